# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of frozen image encoders, made once instead of at every step.

Where nothing is drawn for an image and an encoder is not trained, its map of
the image never changes. `precompute` writes the maps of a config's training
tasks, and `open_streams` gives them to the loader of a run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import example as example_lib
from pixel_llm import files, geometry, sharding
from pixel_llm import image as image_lib
from pixel_llm.checkpoints import digest, initialization
from pixel_llm.data import image_maps, loader, records, registry
from pixel_llm.model import pixel_llm
from pixel_llm.train import experiment, parameters
from pixel_llm.train import optimizer as optimizer_lib
from pixel_llm.train import state as state_lib

_SPLIT = 'train'
_ROWS_PER_SHARD = 512

Progress = Callable[[int, int], None]


def frozen_encoders(config: experiment.ExperimentConfig) -> tuple[str, ...]:
  """Encoders of which nothing is trained and nothing dropped at random."""
  abstract = _abstract(config)
  mask = optimizer_lib.trainable_mask(config.optimizer, abstract)
  return tuple(
    name
    for name in ('eva', 'sam')
    if name in mask
    and not any(jax.tree.leaves(mask[name]))
    and not getattr(getattr(config.model, name), 'drop_path_rate', 0.0)
  )


def precompute(
  config: experiment.ExperimentConfig,
  out: str,
  batch: int = 32,
  workers: int = 0,
  log: Callable[[str], None] = print,
  progress: Progress | None = None,
) -> None:
  """Writes the maps of all tasks of the config whose images are not augmented.

  A folder a task; shards that are there already are not made again.

  Args:
    config: the experiment, whose tasks are registered. Encoders are as of a new
      run of it: from `init`, else drawn.
    out: the folder.
    batch: images at a time, over the devices.
    workers: threads that decode; 0 takes as many as there are cores.
    log: gets a line a task.
    progress: called with images done and in all.

  Raises:
    ConfigError: there is nothing to make, or `out` has maps of something else.
  """
  names = frozen_encoders(config)
  if not names:
    raise config_lib.ConfigError(
      'config optimizer.freeze: expected all of ^eva/ or of ^sam/ (and '
      'model.eva.drop_path_rate 0), found no encoder that is frozen.'
    )
  tasks = {
    task: registry.task_of(task)
    for stream in config.data.streams.values()
    for task in loader.rates(stream.mixture)
  }
  for task in [t for t, entry in tasks.items() if _augmented(entry)]:
    log(f'{task}: augmented, so its images are encoded at every step')
    del tasks[task]
  if not tasks:
    raise config_lib.ConfigError(
      'config data.streams: expected a task without augmentation, got none.'
    )
  mesh = sharding.make_mesh(sharding.MeshConfig())
  if batch % mesh.size:
    raise ValueError(
      f'batch: expected a multiple of {mesh.size} devices, got {batch}.'
    )
  params = _encoder_params(config, names, mesh)
  digests = {name: _digest(params[name]) for name in names}
  model = pixel_llm.PixelLLM(
    dataclasses.replace(
      config.model,
      **{n: None for n in ('eva', 'sam') if n not in names},
      mask=None,
    )
  )
  encode = jax.jit(
    lambda image, size: model.run(params, image, size, method='encode_maps')
  )
  sizes = batch_lib.BatchSizes(batch=1, image=config.data.image)
  zeros = batch_lib.Batch.shapes(sizes)
  shapes = jax.eval_shape(encode, zeros.image, zeros.image_size)
  maps = {n: (x.shape[1:], str(x.dtype)) for n, x in sorted(shapes.items())}
  total = sum(len(e.sequence.rows(_SPLIT)) for e in tasks.values())
  done = itertools.count(1)

  def one(entry: registry.Entry, index: int):
    """An image as training sees it, and its size; None if it is damaged."""
    image = np.zeros((config.data.image, config.data.image, 3), np.uint8)
    try:
      example = entry.sequence.example(_SPLIT, index)
      rgb = image_lib.decode(example.image, example.image_id)
    except (example_lib.DamagedError, image_lib.ImageError) as e:
      log(f'{entry.name}, row {index}: passed over: {e}')
      return image, None
    fit = geometry.Fit((rgb.shape[0], rgb.shape[1]), config.data.image)
    image_lib.render(rgb, fit, image)
    return image, fit.size

  def made(entry: registry.Entry, rows: range, pool: futures.Executor):
    """The maps of each row."""
    for begin in range(rows.start, rows.stop, batch):
      part = range(begin, min(begin + batch, rows.stop))
      loaded = list(pool.map(functools.partial(one, entry), part))
      images = np.zeros((batch, *loaded[0][0].shape), np.uint8)
      images[: len(part)] = [image for image, _ in loaded]
      size = np.ones((batch, 2), np.int32)
      size[: len(part)] = [size or (1, 1) for _, size in loaded]
      place = sharding.batch_sharding(mesh)
      found = encode(*jax.device_put((images, size), place))
      found = jax.device_get([found[name] for name in maps])
      for i, (_, fits) in enumerate(loaded):
        yield [x[i] for x in found] if fits else []
        if progress:
          progress(next(done), total)

  with futures.ThreadPoolExecutor(workers or None) as pool:
    for task, entry in tasks.items():
      folder = pathlib.Path(out) / task
      of = {**_of(config, entry, names), 'parameters': digests}
      _claim(folder, of)
      rows = len(entry.sequence.rows(_SPLIT))
      shards = -(-rows // _ROWS_PER_SHARD)
      written = []
      for i in range(shards):
        begin = i * _ROWS_PER_SHARD
        part = range(begin, min(begin + _ROWS_PER_SHARD, rows))
        path = folder / f'{_SPLIT}-{i:05d}-of-{shards:05d}.array_record'
        if path.exists():
          for _ in part:
            next(done)
        else:
          image_maps.write_shard(path, made(entry, part, pool))
        written.append((path, len(part)))
      image_maps.write_manifest(folder, _SPLIT, written, of, maps)
      log(f'{folder}: maps of {", ".join(maps)} of {rows} images')


def open_streams(
  config: experiment.ExperimentConfig, log: Callable[[str], None]
) -> dict[str, dict[str, image_maps.ImageMaps]]:
  """The maps of `data.image_maps` by stream and task, checked but for params.

  Streams with a task that is augmented or has none there have none, and the log
  says so.

  Raises:
    ConfigError: they are of another config or of other data.
  """
  found: dict[str, dict[str, image_maps.ImageMaps]] = {}
  names = frozen_encoders(config)
  for name, stream in config.data.streams.items():
    maps = {}
    for task in loader.rates(stream.mixture):
      entry = registry.task_of(task)
      folder = f'{config.data.image_maps}/{task}'
      there = pathlib.Path(records.manifest_path(folder, _SPLIT)).exists()
      augmented = _augmented(entry)
      if augmented or not there:
        why = 'is augmented' if augmented else f'has no maps in {folder}'
        log(f'stream {name} encodes its images at every step: {task} {why}')
        maps = None
        break
      maps[task] = image_maps.ImageMaps(folder, _SPLIT)
      _same(folder, maps[task].of, _of(config, entry, names))
    if maps:
      found[name] = maps
      log(f'stream {name}: maps of {", ".join(names)} are read')
  return found


def check_parameters(
  maps: Mapping[str, Mapping[str, image_maps.ImageMaps]], params: Any
) -> None:
  """Raises ConfigError if maps are not of these encoders."""
  tasks = {t: m for of_stream in maps.values() for t, m in of_stream.items()}
  names = {name for m in tasks.values() for name in m.of['parameters']}
  own = {name: _digest(params[name]) for name in sorted(names)}
  for task, m in tasks.items():
    _same(task, {'parameters': m.of['parameters']}, {'parameters': own})


def _digest(params: Any) -> str:
  leaves = jax.tree.leaves_with_path(params)
  return digest.digest({jax.tree_util.keystr(k): x for k, x in leaves})


def _abstract(config: experiment.ExperimentConfig) -> Any:
  init = parameters.init_fn(config)
  return nn.unbox(jax.eval_shape(init, jax.random.key(0)))


def _augmented(entry: registry.Entry) -> bool:
  """Whether what is seen of an image is drawn."""
  return entry.augmentation.flip > 0 or entry.augmentation.scale != (1.0, 1.0)


def _of(
  config: experiment.ExperimentConfig,
  entry: registry.Entry,
  names: tuple[str, ...],
) -> dict[str, Any]:
  """What maps depend on, but for the parameters."""
  rows = entry.sequence.rows(_SPLIT)
  manifest = getattr(rows, 'manifest', {})
  encoders = {}
  for name in names:
    encoder = config_lib.to_dict(getattr(config.model, name))
    # Ways to compute the same.
    for key in ('remat', 'scan_unroll'):
      encoder.pop(key, None)
    encoders[name] = encoder
  of = {
    'rows': len(rows),
    'records': manifest.get('digest'),
    'image': config.data.image,
    'encoders': encoders,
  }
  return json.loads(json.dumps(of))


def _claim(folder: pathlib.Path, of: dict[str, Any]) -> None:
  """Says what a folder's shards are of, or checks that it says so."""
  kept = folder / 'of.json'
  if kept.exists():
    _same(str(folder), json.loads(kept.read_text()), of)
  files.write(kept, json.dumps(of, indent=1))


def _same(what: str, there: dict[str, Any], wanted: dict[str, Any]) -> None:
  there = {k: v for k, v in there.items() if k in wanted}
  lines = config_lib.difference(there, wanted)
  if lines:
    raise config_lib.ConfigError(
      f'image maps {what}: of another config or data (there -> here):\n  '
      + '\n  '.join(lines)
    )


def _encoder_params(
  config: experiment.ExperimentConfig,
  names: tuple[str, ...],
  mesh: jax.sharding.Mesh,
) -> Any:
  """Parameters of encoders as a new run has them."""
  init = parameters.init_fn(config)

  def encoders(key):
    params = init(key)
    return {name: params[name] for name in names}

  optimizer, how = optax.identity(), sharding.MeshConfig()
  shapes = nn.unbox(jax.eval_shape(encoders, jax.random.key(0)))
  mask = jax.tree.map(lambda _: False, shapes)
  abstract = state_lib.abstract(encoders, optimizer, mask, mesh, how).params
  given = None
  if config.init is not None:
    tensors = {
      name: tensor
      for source in initialization.open_sources(
        config.init, _abstract(config)
      ).values()
      for name, tensor in source.items()
      if name.split('/')[0] in names
    }
    given = initialization.place(tensors, abstract)
  key = jax.random.key(config.seed)
  return state_lib.create(
    encoders, optimizer, mask, mesh, how, key, given
  ).params
