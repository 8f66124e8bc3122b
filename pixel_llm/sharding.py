# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Mesh, logical axis names, and the one table that maps them to each other."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# T5X's own names first (`standard_logical_axis_rules`), then ours.
RULES: tuple[tuple[str, str | None], ...] = (
  ('batch', 'data'),
  ('vocab', 'model'),
  ('embed', None),
  ('mlp', 'model'),
  ('heads', 'model'),
  ('kv', None),
  ('joined_kv', 'model'),
  ('relpos_buckets', None),
  ('length', None),
  ('layers', None),
  ('stack', None),
  ('regions', None),
  ('height', None),
  ('width', None),
  ('lora', None),
  ('unsharded', None),
)
AXIS_NAMES = frozenset(name for name, _ in RULES)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices as a `data x model` grid.

  Attributes:
    data: devices along `data`; -1 takes all that `model` leaves.
    model: devices along `model` (tensor parallelism).
    fsdp: shard the `embed` axis of parameters over `data` as well, which is
      T5X's 2-D parameter partitioning.
  """

  data: int = -1
  model: int = 1
  fsdp: bool = False

  def rules(self) -> tuple[tuple[str, str | None], ...]:
    """The table of this mesh."""
    if not self.fsdp:
      return RULES
    return tuple(('embed', 'data') if r[0] == 'embed' else r for r in RULES)


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """The mesh over all devices, axes `data` and `model`.

  Args:
    config: the wanted grid.
    devices: default `jax.devices()`.

  Raises:
    ValueError: the grid does not hold the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  data = config.data
  if data == -1 and config.model > 0:
    data = len(devices) // config.model
  if data < 1 or config.model < 1 or data * config.model != len(devices):
    raise ValueError(
      f'mesh: data={config.data} x model={config.model} does not fit '
      f'{len(devices)} devices.'
    )
  grid = np.asarray(devices).reshape(data, config.model)
  # Explicit axes, JAX 0.10's default, break Linen.
  return Mesh(grid, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def state_shardings(abstract, mesh: Mesh, rules):
  """Shardings of a tree whose leaves may be `nn.LogicallyPartitioned` boxes.

  A dimension that its mesh axis does not divide stays unsharded.

  Args:
    abstract: shapes in boxes.
    mesh: where they go.
    rules: logical axis names -> mesh axes.

  Raises:
    ValueError: a logical name that no rule has (T5X leaves it unsharded, in
      silence).
  """
  specs = nn.get_partition_spec(abstract)
  shapes = nn.unbox(abstract)
  known = {name for name, _ in rules}

  def one(spec, leaf):
    for name in spec or ():
      if name is not None and name not in known:
        raise ValueError(
          f'logical axis {name!r}: no sharding rule; known are '
          f'{", ".join(sorted(known))}.'
        )
    mesh_spec = nn.logical_to_mesh_axes(spec, rules) if spec else ()
    axes = []
    for i, axis in enumerate(mesh_spec or ()):
      fits = axis is None or leaf.shape[i] % mesh.shape[axis] == 0
      axes.append(axis if fits else None)
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(
    one, specs, shapes, is_leaf=lambda s: isinstance(s, PartitionSpec)
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 over `data`, the rest whole."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())
