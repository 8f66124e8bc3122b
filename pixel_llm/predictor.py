# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Asks a trained model about an image. Needs neither TensorFlow nor T5X."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import example as example_lib
from pixel_llm import image as image_lib
from pixel_llm import tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.model import decoding as decoding_lib
from pixel_llm.model import pixel_llm
from pixel_llm.prediction import Prediction
from pixel_llm.tasks import answer
from pixel_llm.tasks import task as task_lib

# Lengths and counts are padded to powers of two from this on, so that few
# programs are compiled.
_SMALLEST = 8


class Predictor:
  """A model, loaded once, and the image it looks at.

  ```python
  predictor = Predictor.from_workdir('runs/demo')
  predictor.set_image('photo.jpg')
  predictor.narrate().words[3].points_orig
  predictor.refer(['the small red ring'])[0].box_orig
  predictor.caption_at([(10, 20, 110, 160)])[0].text
  ```

  Args:
    model: the network.
    params: its parameters.
    vocabulary: of its words.
    image_size: side of its padded square input, pixels.
    decoding: how answers are written.
  """

  def __init__(
    self,
    model: pixel_llm.PixelLLM,
    params: Any,
    vocabulary: vocabulary_lib.Vocabulary,
    image_size: int,
    decoding: decoding_lib.DecodingConfig,
  ):
    self._model, self._params, self._vocabulary = model, params, vocabulary
    self._image_size, self._decoding = image_size, decoding
    self._encode = jax.jit(
      lambda params, image, size: model.apply(
        {'params': params}, image, size, method='encode_image'
      )
    )
    self._generate = jax.jit(
      functools.partial(task_lib.generate, model), static_argnames='decoding'
    )
    self._read = jax.jit(functools.partial(task_lib.read, model))
    self._name: str | None = None

  @property
  def model(self) -> pixel_llm.PixelLLM:
    """The network."""
    return self._model

  @property
  def params(self) -> Any:
    """Its parameters."""
    return self._params

  @property
  def vocabulary(self) -> vocabulary_lib.Vocabulary:
    """Of its words."""
    return self._vocabulary

  @property
  def image_size(self) -> int:
    """Side of its padded square input, pixels."""
    return self._image_size

  @property
  def decoding(self) -> decoding_lib.DecodingConfig:
    """How answers are written."""
    return self._decoding

  @classmethod
  def from_workdir(
    cls,
    workdir: str,
    beams: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
  ) -> Predictor:
    """Loads the newest checkpoint that `pixel-llm train` left in `workdir`.

    Args:
      workdir: local or on a bucket.
      beams: of decoding, as all that follow; None takes the config's.
      temperature: above 0 draws words instead of searching for the likeliest.
      top_k: draws among so many of the likeliest tokens.
      top_p: draws among the likeliest tokens that have so much probability.
      seed: of the draws; equal seeds give equal answers.

    Raises:
      ValueError: a number of decoding out of its range, or two that exclude
        each other.
      FileNotFoundError: no run there.
      CheckpointError: no checkpoint, or it does not fit its config.
      ConfigError: the config is damaged, or the vocabulary there is not the
        checkpoint's.
    """
    root = epath.Path(workdir)
    values = _read_config(root / 'config.json')
    model_config = config_lib.from_dict(
      pixel_llm.ModelConfig, values['model'], 'model'
    )
    decoding = config_lib.from_dict(
      decoding_lib.DecodingConfig, values['eval']['decoding'], 'eval.decoding'
    )
    # The longest answer that any of its tasks was shaped for.
    length = max(
      (t['length'] for t in values['eval']['tasks'].values()),
      default=decoding.length,
    )
    decoding = decoding_lib.override(
      dataclasses.replace(decoding, length=length),
      beams=beams,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      seed=seed,
    )
    data = values['data']
    vocabulary = vocabulary_lib.Vocabulary(
      str(root / 'spiece.model'), data['extra_ids']
    )
    model = pixel_llm.PixelLLM(model_config)
    example = batch_lib.Batch.zeros(
      batch_lib.BatchSizes(
        batch=1,
        image=data['image'],
        regions=1,
        context=2,
        length=2,
        points=data['points'],
      )
    )
    abstract = nn.unbox(
      jax.eval_shape(
        lambda key: model.init(key, example)['params'], jax.random.key(0)
      )
    )
    with manager_lib.CheckpointManager(
      root / 'checkpoints', read_only=True
    ) as checkpoints:
      step = checkpoints.latest_step()
      digest = checkpoints.metadata(step).get('vocabulary')
      if digest != vocabulary.digest:
        raise config_lib.ConfigError(
          f'{vocabulary.path}: SHA-256 {vocabulary.digest[:12]}, but the '
          f'checkpoint of step {step} was trained with {str(digest)[:12]}.'
        )
      params = checkpoints.restore_params(abstract, step)
    return cls(model, params, vocabulary, data['image'], decoding)

  def set_image(self, image: str | np.ndarray, name: str = 'image') -> None:
    """Encodes an image; every question after it is about this one.

    Args:
      image: path (JPEG, PNG or WebP; EXIF orientation is respected), or
        upright RGB [H, W, 3] uint8.
      name: of an array, for the answers.

    Raises:
      ImageError: not an image, truncated or damaged.
    """
    if isinstance(image, np.ndarray):
      rgb, self._name = image, name
    else:
      rgb, self._name = image_lib.load(image), str(image)
    pixels, self._fit = image_lib.prepare(rgb, self._image_size)
    self.pixels = pixels[None]
    self._size = np.asarray(self._fit.size, np.int32)[None]
    self._features = self._encode(self._params, self.pixels, self._size)

  def narrate(self) -> Prediction:
    """A long caption, every word with its points."""
    return self._ask(tasks.NARRATE, [example_lib.Region('', '')])[0]

  def refer(self, expressions: Sequence[str]) -> list[Prediction]:
    """The box of each referring expression.

    Raises:
      ValueError: an expression is empty.
    """
    for i, text in enumerate(expressions):
      if not self._vocabulary.encode(text):
        raise ValueError(f'expression {i}: expected some words, got {text!r}.')
    regions = [example_lib.Region('', text) for text in expressions]
    return self._ask(tasks.REFER, regions)

  def caption_at(
    self, boxes_orig: Sequence[tuple[float, float, float, float]]
  ) -> list[Prediction]:
    """A caption for each box.

    Args:
      boxes_orig: xyxy, pixels of the upright original file.

    Raises:
      ValueError: a box is no box, or lies outside of the image.
    """
    self._check_image()
    height, width = self._fit.original
    regions = []
    for box in boxes_orig:
      x0, y0, x1, y1 = box
      if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
          f'box {x0:g},{y0:g},{x1:g},{y1:g}: expected x0,y0,x1,y1 in pixels '
          f'with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, the '
          f'size of {self._name}.'
        )
      normalized = self._fit.from_orig(np.asarray(box, np.float32))
      regions.append(example_lib.Region('', '', box=normalized))
    return self._ask(tasks.CAPTION_AT, regions)

  def _check_image(self) -> None:
    if self._name is None:
      raise ValueError('no image: call set_image first.')

  def _ask(
    self, task: task_lib.Task, regions: list[example_lib.Region]
  ) -> list[Prediction]:
    self._check_image()
    if not regions:
      return []
    longest = lambda texts: (
      max(len(self._vocabulary.encode(t)) for t in texts) + 1
    )
    sizes = batch_lib.BatchSizes(
      batch=1,
      image=self._image_size,
      regions=_padded(len(regions), 1),
      context=_padded(longest(task.prompt(r) for r in regions)),
      length=_padded(longest(task.question(r).answer for r in regions)),
      points=self._model.config.regression.points,
    )
    rows = [task_lib.row(task, r, self._vocabulary, sizes) for r in regions]
    rows += [task_lib.empty_row(sizes)] * (sizes.regions - len(rows))
    batch = batch_lib.Batch(
      image=self.pixels,
      image_size=self._size,
      **{k: np.stack([r[k] for r in rows])[None] for k in rows[0]},
    )
    if task.generates:
      output = self._generate(
        self._params, batch, decoding=self._decoding, features=self._features
      )
    else:
      output = self._read(self._params, batch, features=self._features)
    output = jax.device_get(output)
    return [
      answer.prediction(
        task,
        region,
        vocabulary=self._vocabulary,
        image=str(self._name),
        size_orig=self._fit.original,
        output=jax.tree.map(lambda x, i=i: x[0, i], output),
      )
      for i, region in enumerate(regions)
    ]


def _padded(count: int, smallest: int = _SMALLEST) -> int:
  return max(smallest, 1 << (count - 1).bit_length())


def _read_config(path: epath.Path) -> dict[str, Any]:
  """The run's config; the parts that training alone needs are not looked at."""
  if not path.exists():
    raise FileNotFoundError(
      f'{path}: no such file; expected a --workdir that `pixel-llm train` '
      'has written.'
    )
  try:
    values = json.loads(path.read_text())
    needed = [
      values['model'],
      values['data']['image'],
      values['data']['points'],
      values['data']['extra_ids'],
      values['eval']['decoding'],
      values['eval']['tasks'],
    ]
    del needed
  except (json.JSONDecodeError, KeyError, TypeError) as e:
    raise config_lib.ConfigError(
      f'{path}: not the config of a run ({e!r}).'
    ) from e
  return values
