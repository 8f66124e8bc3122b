# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Asks a trained model about images. Needs neither TensorFlow nor T5X."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from pixel_llm import batch as batch_lib
from pixel_llm import compiled, geometry, loading, places, sharding, tasks
from pixel_llm import config as config_lib
from pixel_llm import example as example_lib
from pixel_llm import image as image_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.model import decoding as decoding_lib
from pixel_llm.model import pixel_llm
from pixel_llm.prediction import THERE, Box, Kind, Point, Prediction
from pixel_llm.tasks import answer
from pixel_llm.tasks import task as task_lib

# Lengths and counts are padded to powers of two from this on, so that few
# programs are compiled.
_SMALLEST = 8
# Regions of an image that are asked about at once; more take turns.
_MOST_REGIONS = 64
# Tokens of an expression, T5's length in training.
_MOST_TOKENS = 512
# What asks each kind of question.
_TASKS = {
  t.name: t
  for t in (
    tasks.NARRATE,
    tasks.CAPTION,
    tasks.CAPTION_AT,
    tasks.REFER,
    tasks.SEGMENT,
    tasks.DENSE_CAPTION,
  )
}
# Regions of an image to ask about, and the scores of those that were found.
_Regions = tuple[list[example_lib.Region], list[float] | None]
# What is asked of each image, or why nothing can be.
_Ask = Callable[['_Seen'], list['_Regions | ValueError']]


@dataclasses.dataclass(frozen=True)
class _Seen:
  """Encoded images, the last ones black if there are fewer.

  Attributes:
    names: of those that are there.
    fits: of each file on the canvas.
    pixels: [B, canvas, canvas, 3] uint8, on the host.
    sizes: [B, 2] int32 valid (height, width), pixels.
    maps: `encode_maps` of them, on the devices.
    features: these joined.
  """

  names: list[str]
  fits: list[geometry.Fit]
  pixels: np.ndarray
  sizes: np.ndarray
  maps: dict[str, jax.Array]
  features: jax.Array


class Predictor:
  """A model, loaded once, and the image it looks at.

  ```python
  predictor = Predictor.from_workdir('runs/demo')
  predictor.set_image('photo.jpg')
  predictor.narrate().words[3].points_orig
  predictor.refer(['the small red ring'])[0].box_orig
  predictor.caption_at([(10, 20, 110, 160)])[0].text
  for answer in predictor.ask_many(paths, 'narrate', batch_size=32):
    ...
  ```

  Args:
    model: the network.
    params: its parameters, on all of `devices`.
    vocabulary: of its words.
    image_size: side of its padded square input, pixels.
    decoding: how answers are written.
    prompt_points: points that prompts had room for in training, by task.
    devices: that share the images of a batch; None takes the first.
    step: of training.
    thresholds: of refer and segment, the confidence from which on a thing is
      taken to be in the image; `prediction.THERE` where there is none.
  """

  def __init__(
    self,
    model: pixel_llm.PixelLLM,
    params: Any,
    vocabulary: vocabulary_lib.Vocabulary,
    image_size: int,
    decoding: decoding_lib.DecodingConfig,
    prompt_points: dict[str, int] | None = None,
    devices: Sequence[Any] | None = None,
    step: int | None = None,
    thresholds: dict[str, float] | None = None,
  ):
    self._thresholds = thresholds or {}
    self._model, self._params, self._vocabulary = model, params, vocabulary
    self._image_size, self._decoding = image_size, decoding
    self._prompt_points = prompt_points or {}
    self._mesh, self._step = _mesh(devices), step
    self._encode = jax.jit(functools.partial(_encode, model))
    self._find = jax.jit(functools.partial(task_lib.find, model))
    self._generate = jax.jit(
      functools.partial(task_lib.generate, model), static_argnames='decoding'
    )
    self._read = jax.jit(
      functools.partial(task_lib.read, model), static_argnames='segments'
    )
    self._seen: _Seen | None = None

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

  @property
  def step(self) -> int | None:
    """Of training, whose parameters these are; None where nothing says it."""
    return self._step

  @property
  def pixels(self) -> np.ndarray:
    """[1, canvas, canvas, 3] uint8: the image as the network sees it."""
    return self._now().pixels[:1]

  @classmethod
  def from_workdir(
    cls,
    workdir: str,
    beams: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    devices: Sequence[Any] | None = None,
  ) -> Predictor:
    """Loads the newest checkpoint of a run, or what was exported of one.

    Programs that are compiled for its questions stay in `compile_cache/` of
    `workdir`, or in the user's cache where that cannot be written, unless JAX
    was told of another place.

    Args:
      workdir: a run's, or a folder of `config.json`, `spiece.model` and the
        parameters, as `pixel-llm export --format safetensors` writes it.
      beams: of decoding, as all that follow; None takes the config's.
      temperature: above 0 draws words instead of searching for the likeliest.
      top_k: draws among so many of the likeliest tokens.
      top_p: draws among the likeliest tokens that have so much probability.
      seed: of the draws; equal seeds give equal answers.
      devices: that share the images of a batch; None takes the first.

    Raises:
      ValueError: a number of decoding out of its range, or two that exclude
        each other.
      FileNotFoundError: no run there.
      TensorFileError: no parameters there, or they are damaged.
      MappingError: they do not fit the config.
      ConfigError: the config is damaged, or the vocabulary there is not the
        checkpoint's.
    """
    root = epath.Path(workdir)
    values = loading.read_config(root / 'config.json')
    compiled.keep_beside(workdir)
    model_config = config_lib.from_dict(
      pixel_llm.ModelConfig, values['model'], 'model'
    )
    decoding = config_lib.from_dict(
      decoding_lib.DecodingConfig, values['eval']['decoding'], 'eval.decoding'
    )
    shapes = values['eval']['tasks']
    # The longest answer that any of its tasks was shaped for.
    length = max(
      (t['length'] for t in shapes.values()), default=decoding.length
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
    params, step = loading.restore(
      workdir, model, data['image'], data['points'], vocabulary, _mesh(devices)
    )
    return cls(
      model,
      params,
      vocabulary,
      data['image'],
      decoding,
      loading.points_by_task(shapes, _TASKS),
      devices,
      step,
      loading.thresholds(root / 'metrics.json', step),
    )

  def lacks(self, kind: Kind) -> str | None:
    """Why nothing of a kind can be asked; None if it can."""
    config = self._model.config
    if kind == 'segment' and config.mask is None:
      return 'this model has no mask decoder: model.mask of its config is None.'
    if kind == 'dense_caption' and config.detector is None:
      return 'this model has no detector: model.detector of its config is None.'
    return None

  def set_image(self, image: str | np.ndarray, name: str = 'image') -> None:
    """Encodes an image; every question after it is about this one.

    Args:
      image: path (JPEG, PNG or WebP; EXIF orientation is respected), or
        upright RGB [H, W, 3] uint8.
      name: of an array, for the answers.

    Raises:
      ImageError: not an image, truncated or damaged.
    """
    self._seen = self._look([_load(image, name, self._image_size)], 1)

  def narrate(self) -> Prediction:
    """A long caption, every word with its points."""
    return self._ask('narrate')[0]

  def caption(self) -> Prediction:
    """The whole image in a sentence."""
    return self._ask('caption')[0]

  def caption_at(
    self,
    boxes_orig: Iterable[Box] = (),
    points_orig: Iterable[Point | Sequence[Point]] = (),
    masks: Iterable[np.ndarray] = (),
  ) -> list[Prediction]:
    """A caption for each box, then for each point, then for each mask.

    Args:
      boxes_orig: xyxy, pixels of the upright original file.
      points_orig: xy, alike; several points of one thing are a list of them.
      masks: [height, width] of the upright file, not zero inside; each is
        asked about by its box.

    Raises:
      ValueError: a box is no box, a mask is empty or of another size, or
        something lies outside of the image.
    """
    return self._ask(
      'caption_at', boxes_orig=boxes_orig, points_orig=points_orig, masks=masks
    )

  def refer(self, expressions: Sequence[str]) -> list[Prediction]:
    """The box of each referring expression.

    `confidence` is the probability that it is in the image at all, and `there`
    whether that is enough, by the threshold that the last evaluation of the
    run found (0.5 before the first); both are None where the network has no
    presence head.

    Raises:
      ValueError: an expression is empty, too long, or no text.
    """
    return self._ask('refer', expressions=expressions)

  def segment(self, expressions: Sequence[str]) -> list[Prediction]:
    """The box and the pixels of each referring expression; see `refer`.

    Raises:
      ValueError: as `refer`, or the network has no mask decoder.
    """
    return self._ask('segment', expressions=expressions)

  def dense_caption(
    self, max: int | None = None, threshold: float = 0.0
  ) -> list[Prediction]:
    """Every thing that is found, with its box and caption, the surest first.

    Args:
      max: so many at most; None takes all that the detector gives.
      threshold: only those whose confidence is at least this, in [0, 1].

    Raises:
      ValueError: the network has no detector, or a number out of its range.
    """
    return self._ask('dense_caption', max=max, threshold=threshold)

  def ask_many(
    self,
    images: Iterable[str | np.ndarray],
    kind: Kind,
    batch_size: int = 8,
    **question: Any,
  ) -> Iterator[list[Prediction] | ValueError]:
    """Asks the same of many images, several at a time; `set_image` stays.

    Args:
      images: paths or arrays, as in `set_image`.
      kind: the name of a method above.
      batch_size: images at a time, at least; a multiple of the devices.
      **question: its arguments.

    Yields:
      of each image in order what that method returns, in a list, or what it
      raises: a damaged image, or a box outside of one, costs no other image.

    Raises:
      ValueError: nothing of that kind can be asked, or the question itself is
        wrong.
    """
    ask = self._question(kind, **question)
    count = -(-batch_size // self._mesh.size) * self._mesh.size
    return self._answers(images, kind, ask, count)

  def _answers(
    self,
    images: Iterable[str | np.ndarray],
    kind: Kind,
    ask: _Ask,
    count: int,
  ) -> Iterator[list[Prediction] | ValueError]:
    with concurrent.futures.ThreadPoolExecutor(min(count, 8)) as pool:

      def start(batch):
        return [
          pool.submit(_load, image, f'image {i}', self._image_size)
          for i, image in batch
        ]

      numbered = enumerate(images)
      batches = iter(lambda: list(itertools.islice(numbered, count)), [])
      coming = start(next(batches, []))
      while coming:
        # The next batch is read while this one is answered.
        now, coming = coming, start(next(batches, []))
        loaded: list[Any] = []
        for future in now:
          try:
            loaded.append(future.result())
          except image_lib.ImageError as e:
            loaded.append(e)
        whole = [x for x in loaded if not isinstance(x, ValueError)]
        found = iter(
          self._reply(kind, self._look(whole, count), ask) if whole else ()
        )
        for x in loaded:
          yield x if isinstance(x, ValueError) else next(found)

  def _ask(self, kind: Kind, **question: Any) -> list[Prediction]:
    seen = self._now()
    found = self._reply(kind, seen, self._question(kind, **question))[0]
    if isinstance(found, ValueError):
      raise found
    return found

  def _now(self) -> _Seen:
    if self._seen is None:
      raise ValueError('no image: call set_image first.')
    return self._seen

  def _look(
    self, images: list[tuple[str, np.ndarray, geometry.Fit]], count: int
  ) -> _Seen:
    """Encodes images as a batch of `count`, or as many as there are devices."""
    count = max(count, self._mesh.size)
    side = self._image_size
    pixels = np.zeros((count, side, side, 3), np.uint8)
    sizes = np.full((count, 2), side, np.int32)
    for i, (_, shown, fit) in enumerate(images):
      pixels[i], sizes[i] = shown, fit.size
    with sharding.placed(self._mesh, sharding.MeshConfig()):
      maps, features = self._encode(
        self._params, self._on_devices(pixels), self._on_devices(sizes)
      )
    names, _, fits = zip(*images, strict=True)
    return _Seen(list(names), list(fits), pixels, sizes, maps, features)

  def _on_devices(self, values: Any) -> Any:
    return jax.device_put(values, sharding.batch_sharding(self._mesh))

  def _question(self, kind: Kind, **question: Any) -> _Ask:
    """What is asked of each image, after a look at what holds for all."""
    if kind not in _TASKS:
      raise ValueError(
        f'question: expected one of {", ".join(_TASKS)}, got {kind!r}.'
      )
    if reason := self.lacks(kind):
      raise ValueError(reason)
    makers: dict[str, Callable[..., _Ask]] = {
      'refer': self._expressions,
      'segment': self._expressions,
      'caption_at': _places,
      'dense_caption': self._things,
    }
    return makers.get(kind, _whole)(**question)

  def _expressions(self, expressions: Sequence[str]) -> _Ask:
    if isinstance(expressions, str):
      raise ValueError(
        f'expressions: expected a list of them, got {expressions[:80]!r}.'
      )
    for i, text in enumerate(expressions):
      where = f'expression {i}'
      try:
        count = len(self._vocabulary.encode(text))
      # SentencePiece's for half a surrogate pair.
      except (UnicodeError, RuntimeError, TypeError) as e:
        raise ValueError(f'{where}: expected text, got {text!r:.80}.') from e
      if not count:
        raise ValueError(f'{where}: expected some words, got {text[:80]!r}.')
      if count > _MOST_TOKENS:
        raise ValueError(
          f'{where}: expected at most {_MOST_TOKENS} tokens, got {count} '
          f'({len(text)} characters, {text[:40]!r} ...).'
        )
    return _all([example_lib.Region('', text) for text in expressions])

  def _things(self, max: int | None = None, threshold: float = 0.0) -> _Ask:
    if max is not None and max < 1:
      raise ValueError(f'max: expected at least 1, got {max}.')
    if not 0 <= threshold <= 1:
      raise ValueError(f'threshold: expected 0 to 1, got {threshold:g}.')

    def ask(seen: _Seen) -> list[_Regions | ValueError]:
      with sharding.placed(self._mesh, sharding.MeshConfig()):
        found = self._find(
          self._params,
          *map(self._on_devices, (seen.pixels, seen.sizes)),
          seen.features,
        )
      boxes, scores, there = map(np.asarray, jax.device_get(found))
      result: list[_Regions | ValueError] = []
      for i in range(len(seen.names)):
        kept = np.flatnonzero(there[i] & (scores[i] >= threshold))[:max]
        regions = [
          example_lib.Region('', '', box=geometry.clip_box(boxes[i, j]))
          for j in kept
        ]
        result.append((regions, scores[i, kept].tolist()))
      return result

    return ask

  def _reply(
    self, kind: Kind, seen: _Seen, ask: _Ask
  ) -> list[list[Prediction] | ValueError]:
    """The answers of each image, or why it has none."""
    task = _TASKS[kind]
    asked = ask(seen)
    regions = [[] if isinstance(a, ValueError) else a[0] for a in asked]
    answers: list[dict[int, Prediction]] = [{} for _ in asked]
    # Those that are asked about by as many points go together, so that no
    # answer depends on what else is asked.
    for clicks in sorted({_clicks(r) for rs in regions for r in rs}):
      chosen = [
        [j for j, r in enumerate(rs) if _clicks(r) == clicks] for rs in regions
      ]
      for start in range(0, max(map(len, chosen)), _MOST_REGIONS):
        part = [js[start : start + _MOST_REGIONS] for js in chosen]
        made = self._predictions(
          task,
          seen,
          [[rs[j] for j in js] for rs, js in zip(regions, part)],
          clicks,
          start,
        )
        for i, js in enumerate(part):
          answers[i].update(zip(js, made[i], strict=True))
    result: list[list[Prediction] | ValueError] = []
    for a, found in zip(asked, answers, strict=True):
      if isinstance(a, ValueError):
        result.append(a)
        continue
      predictions = [found[j] for j in range(len(found))]
      if a[1] is not None:
        predictions = [
          dataclasses.replace(p, confidence=score)
          for p, score in zip(predictions, a[1], strict=True)
        ]
      result.append(predictions)
    return result

  def _predictions(
    self,
    task: task_lib.Task,
    seen: _Seen,
    regions: list[list[example_lib.Region]],
    clicks: int,
    start: int,
  ) -> list[list[Prediction]]:
    """Asks about some regions of each image, the first its `start`-th."""
    everything = [r for rs in regions for r in rs]
    longest = lambda texts: (
      max(len(self._vocabulary.encode(t)) for t in texts) + 1
    )
    sizes = batch_lib.BatchSizes(
      batch=len(seen.sizes),
      image=self._image_size,
      regions=_padded(max(map(len, regions)), 1),
      context=_padded(longest(task.prompt(r) for r in everything)),
      length=_padded(longest(task.question(r).answer for r in everything)),
      points=self._model.config.regression.points,
      prompt_points=max(clicks, self._prompt_points.get(task.name, 0)),
    )
    blank = task_lib.empty_row(sizes)
    rows = []
    for i in range(sizes.batch):
      own = regions[i] if i < len(regions) else []
      made = [task_lib.row(task, r, self._vocabulary, sizes) for r in own]
      made += [blank] * (sizes.regions - len(made))
      rows.append({k: np.stack([r[k] for r in made]) for k in blank})
    batch = batch_lib.Batch(
      image=seen.pixels,
      image_size=seen.sizes,
      **{k: np.stack([r[k] for r in rows]) for k in blank},
    )
    batch = self._on_devices(batch)
    with sharding.placed(self._mesh, sharding.MeshConfig()):
      if task.generates:
        # Each region draws as it would alone with its image.
        numbers = np.arange(start, start + sizes.regions, dtype=np.int32)
        output = self._generate(
          self._params,
          batch,
          decoding=self._decoding,
          features=seen.features,
          rows=self._on_devices(np.tile(numbers, (sizes.batch, 1))),
        )
      else:
        output = self._read(
          self._params,
          batch,
          seen.features,
          seen.maps.get('sam') if task.segments else None,
          segments=task.segments,
        )
    output = jax.device_get(output)
    return [
      [
        answer.prediction(
          task,
          region,
          vocabulary=self._vocabulary,
          image=name,
          size_orig=fit.original,
          output=jax.tree.map(lambda x, at=(i, j): x[at], output),
          canvas=self._image_size,
          threshold=self._thresholds.get(task.name, THERE),
        )
        for j, region in enumerate(own)
      ]
      for i, (name, fit, own) in enumerate(
        zip(seen.names, seen.fits, regions, strict=True)
      )
    ]


def _encode(
  model: pixel_llm.PixelLLM, params: Any, image: Any, image_size: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
  maps = model.run(params, image, image_size, method='encode_maps')
  return maps, model.run(params, maps, method='join')


def _mesh(devices: Sequence[Any] | None) -> jax.sharding.Mesh:
  chosen = jax.local_devices()[:1] if devices is None else list(devices)
  return sharding.make_mesh(sharding.MeshConfig(), chosen)


def _load(
  image: str | np.ndarray, name: str, canvas: int
) -> tuple[str, np.ndarray, geometry.Fit]:
  """An image's name and pixels on the canvas."""
  if isinstance(image, np.ndarray):
    rgb = image
    if (
      rgb.ndim != 3
      or rgb.shape[2] != 3
      or rgb.dtype != np.uint8
      or not rgb.size
    ):
      raise image_lib.ImageError(
        f'{name}: expected RGB [H, W, 3] uint8, got {list(rgb.shape)} '
        f'{rgb.dtype}.'
      )
  else:
    rgb, name = image_lib.load(image), str(image)
  return name, *image_lib.prepare(rgb, canvas)


def _all(regions: list[example_lib.Region]) -> _Ask:
  """The same of every image."""
  return lambda seen: [(regions, None) for _ in seen.names]


def _whole() -> _Ask:
  return _all([example_lib.Region('', '')])


def _clicks(region: example_lib.Region) -> int:
  """How many points it is asked about by."""
  return 0 if region.points is None else len(region.points)


def _places(**given: Any) -> _Ask:
  of = places.places(**given)

  def ask(seen: _Seen) -> list[_Regions | ValueError]:
    result: list[_Regions | ValueError] = []
    for name, fit in zip(seen.names, seen.fits, strict=True):
      try:
        result.append((of(name, fit), None))
      except ValueError as e:
        result.append(e)
    return result

  return ask


def _padded(count: int, smallest: int = _SMALLEST) -> int:
  return max(smallest, 1 << (count - 1).bit_length())
