# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a folder that a model is loaded from holds. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath
from flax import linen as nn
from flax import traverse_util

from pixel_llm import batch as batch_lib
from pixel_llm import compiled, sharding
from pixel_llm import config as config_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import initialization, mapping
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection, orbax
from pixel_llm.model import pixel_llm
from pixel_llm.prediction import FINDS


def points_by_task(
  shapes: dict[str, Any], names: Iterable[str]
) -> dict[str, int]:
  """The most points that prompts of each task had room for in training.

  Args:
    shapes: of `eval.tasks`, each called `<dataset>_<task>`.
    names: of the tasks.
  """
  found: dict[str, int] = {}
  for name, shape in shapes.items():
    ends = [t for t in names if name.endswith(t)]
    if ends:
      task = max(ends, key=len)
      points = shape.get('prompt_points', 0)
      found[task] = max(found.get(task, 0), points)
  # Its captions are learned as those of boxes.
  found.setdefault('dense_caption', found.get('caption_at', 0))
  return found


def thresholds(path: epath.Path, step: int | None) -> dict[str, float]:
  """Of refer and segment, from which confidence on a thing is there.

  Args:
    path: of `metrics.json`, as the newest evaluation of the run left it.
    step: of the parameters; None takes what is there.

  Returns: nothing of a task that was not evaluated with these parameters.
  """
  try:
    found = json.loads(path.read_text())
    if step not in (None, found['step']):
      return {}
    named = {task: f'{task}/presence_threshold' for task in FINDS}
    return {t: float(found[k]) for t, k in named.items() if k in found}
  except (OSError, ValueError, KeyError, TypeError):
    return {}  # there is none, or another program's


def restore(
  workdir: str,
  model: pixel_llm.PixelLLM,
  image: int,
  points: int,
  vocabulary: vocabulary_lib.Vocabulary,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, int | None]:
  """Restores the parameters, whole on every device.

  Args:
    workdir: a run's, or a folder of an export.
    model: the network.
    image: side of its input, pixels.
    points: a word's.
    vocabulary: that it should have been trained with.
    mesh: of the devices.

  Returns: the parameters and their step, None where nothing says it.

  Raises:
    FileNotFoundError: no checkpoint there.
    TensorFileError: parameters are damaged, or there are none.
    MappingError: they do not fit the network.
    ConfigError: the vocabulary is another.
  """
  everywhere = sharding.replicated(mesh)
  leaves: dict[str, Any] = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
    for name, (shape, dtype) in _shapes(model, image, points).items()
  }
  abstract = traverse_util.unflatten_dict(leaves, sep='/')
  if '://' in workdir:
    # Orbax, which alone reads buckets here, takes longer to import than most
    # models to load.
    from pixel_llm.checkpoints import manager

    checkpoints = epath.Path(workdir) / 'checkpoints'
    with manager.CheckpointManager(checkpoints, read_only=True) as reader:
      step = reader.latest_step()
      _check_vocabulary(vocabulary, reader.metadata(step), workdir)
      return reader.restore_params(abstract, step), step
  root = pathlib.Path(workdir)
  checkpoints = root / 'checkpoints'
  source = orbax.newest(checkpoints) if checkpoints.is_dir() else root
  if source is None:
    raise FileNotFoundError(f'{checkpoints}: no checkpoint there yet.')
  step = None
  metadata = source / 'metadata' / 'metadata'
  if metadata.is_file():
    with tensors_lib.damaged(metadata, 'JSON'):
      found = json.loads(metadata.read_bytes())
    _check_vocabulary(vocabulary, found, str(source))
    step = found.get('step')
  tensors = tensors_lib.parameters(detection.open_tensors(source)[1])
  report = mapping.compare(tensors, {n: x.shape for n, x in leaves.items()})
  if report:
    raise mapping.MappingError(
      f'{source} does not fit config.json beside it: {report}'
    )
  tensors = {
    n: mapping.cast({n: t}, leaves[n].dtype)[n] for n, t in tensors.items()
  }
  return initialization.place(tensors, abstract), step


def _shapes(
  model: pixel_llm.PixelLLM, image: int, points: int
) -> dict[str, tuple[list[int], str]]:
  """Shape and dtype of each parameter, by its name.

  Tracing the network for them took a third of the time to a first answer.
  """
  one = batch_lib.BatchSizes(
    batch=1,
    image=image,
    regions=1,
    context=2,
    length=2,
    points=points,
    objects=1,
  )

  def trace():
    boxed = jax.eval_shape(
      lambda key: model.init(key, batch_lib.Batch.zeros(one))['params'],
      jax.random.key(0),
    )
    found: Any = traverse_util.flatten_dict(nn.unbox(boxed), sep='/')
    return {n: (list(x.shape), str(x.dtype)) for n, x in found.items()}

  config = config_lib.to_dict(model.config)
  what = json.dumps(['parameters', config, dataclasses.asdict(one)])
  return compiled.remembered(what, trace)


def _check_vocabulary(
  vocabulary: vocabulary_lib.Vocabulary, metadata: dict[str, Any], source: str
) -> None:
  digest = metadata.get('vocabulary')
  if digest is not None and digest != vocabulary.digest:
    raise config_lib.ConfigError(
      f'{vocabulary.path}: SHA-256 {vocabulary.digest[:12]}, but {source} was '
      f'trained with {digest[:12]}.'
    )


def read_config(path: epath.Path) -> dict[str, Any]:
  """The run's config; the parts that training alone needs are not looked at.

  Raises:
    FileNotFoundError: no such file.
    ConfigError: it is damaged, or no run's.
  """
  if not path.exists():
    raise FileNotFoundError(
      f'{path}: no such file; expected a --workdir that `pixel-llm train` or '
      '`pixel-llm export --format safetensors` has written.'
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
