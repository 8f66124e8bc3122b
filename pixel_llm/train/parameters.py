# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of an experiment: how they begin, and how many there are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm.model import pixel_llm
from pixel_llm.train import experiment
from pixel_llm.train import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True)
class Part:
  """The parameters under one path.

  Attributes:
    name: the path.
    count: numbers in it.
    bytes: that they take, once.
    trained: how many of them the optimizer updates.
  """

  name: str
  count: int
  bytes: int
  trained: int

  @property
  def share(self) -> float:
    """Trained of all, 0..1."""
    return self.trained / self.count if self.count else 0.0


def init_fn(
  config: experiment.ExperimentConfig,
) -> Callable[[jax.Array], Any]:
  """From a key to the first parameters, in `nn.LogicallyPartitioned` boxes."""
  model = pixel_llm.PixelLLM(config.model)
  # Parameters do not depend on these sizes, but for the image's channels.
  smallest = batch_lib.BatchSizes(
    batch=1,
    image=config.data.image,
    regions=1,
    context=2,
    length=2,
    points=config.data.points,
    objects=1,
  )

  def init(key):
    params = model.init(key, batch_lib.Batch.zeros(smallest))['params']
    return optimizer_lib.hold_frozen(config.optimizer, params)

  return init


def parts(
  config: experiment.ExperimentConfig, depth: int = 1
) -> tuple[Part, ...]:
  """Counts by part, in the tree's order; nothing is allocated.

  Args:
    config: the experiment; its `optimizer.freeze` says what is trained.
    depth: names of a path that a part has, 1 for whole encoders.

  Raises:
    ConfigError: a regex of `optimizer.freeze` matches nothing.
  """
  shapes = nn.unbox(jax.eval_shape(init_fn(config), jax.random.key(0)))
  mask = optimizer_lib.trainable_mask(config.optimizer, shapes)
  found: dict[str, Part] = {}
  for (keys, leaf), trained in zip(
    jax.tree.leaves_with_path(shapes), jax.tree.leaves(mask)
  ):
    path = jax.tree_util.keystr(keys[:depth], simple=True, separator='/')
    size = math.prod(leaf.shape)
    before = found.get(path, Part(path, 0, 0, 0))
    found[path] = Part(
      path,
      before.count + size,
      before.bytes + size * leaf.dtype.itemsize,
      before.trained + size * trained,
    )
  return tuple(found.values())


def total(parts: Sequence[Part]) -> Part:
  """The sum of parts."""
  return Part(
    'all',
    sum(p.count for p in parts),
    sum(p.bytes for p in parts),
    sum(p.trained for p in parts),
  )


def table(parts: Sequence[Part]) -> str:
  """Lines of parts and their sum, right for a terminal."""
  rows = [('part', 'parameters', 'memory', 'trained', 'share')]
  for p in (*parts, total(parts)):
    counts = (f'{p.count:,}', _memory(p.bytes), f'{p.trained:,}')
    rows.append((p.name, *counts, f'{p.share:.1%}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for name, *numbers in rows:
    cells = [name.ljust(widths[0])]
    cells += [n.rjust(w) for n, w in zip(numbers, widths[1:])]
    lines.append('  '.join(cells))
  return '\n'.join(lines)


def _memory(size: float) -> str:
  for unit in ('B', 'KiB', 'MiB'):
    if size < 1024:
      return f'{size:.0f} {unit}'
    size /= 1024
  return f'{size:.2f} GiB'
