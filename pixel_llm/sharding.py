# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Mesh, logical axis names, and the one table that maps them to each other."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
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
  ('channels', None),
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
    slices: groups of devices with a slower network (DCN) between them, such as
      TPU slices: `data` goes over them first, `model` stays within each.
    fsdp_frozen: with `fsdp`, also of those that are not trained; else each
      device along `data` has them whole, and they need not be gathered.
  """

  data: int = -1
  model: int = 1
  fsdp: bool = False
  slices: int = 1
  fsdp_frozen: bool = True

  def rules(self, trained: bool = True) -> tuple[tuple[str, str | None], ...]:
    """The table of this mesh, for parameters that are trained or not."""
    if not self.fsdp or not (trained or self.fsdp_frozen):
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
  # Explicit axes, JAX 0.10's default, break Linen.
  return Mesh(
    arrange(config, devices), ('data', 'model'), axis_types=(AxisType.Auto,) * 2
  )


def arrange(config: MeshConfig, devices: list) -> np.ndarray:
  """The devices as a [data, model] grid.

  TPUs that are neighbours on the `model` axis are neighbours in their torus;
  other devices stay in JAX's order, which is by process.

  Raises:
    ValueError: as `make_mesh`.
  """
  data = config.data
  if data == -1 and config.model > 0:
    data = len(devices) // config.model
  if data < 1 or config.model < 1 or data * config.model != len(devices):
    raise ValueError(
      f'mesh: data={config.data} x model={config.model} does not fit '
      f'{len(devices)} devices.'
    )
  if config.slices < 1 or data % config.slices:
    raise ValueError(
      f'mesh: data={data} does not divide by slices={config.slices}.'
    )
  if devices[0].platform != 'tpu' or len(devices) == 1:
    return np.asarray(devices).reshape(data, config.model)
  found = len({getattr(d, 'slice_index', 0) for d in devices})
  if found != config.slices:
    raise ValueError(
      f'mesh: slices={config.slices}, but the TPUs are of {found} slices.'
    )
  if found == 1:
    return mesh_utils.create_device_mesh(
      (data, config.model), devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    (data // config.slices, config.model),
    (config.slices, 1),
    devices,
    allow_split_physical_axes=True,
  )


@contextlib.contextmanager
def placed(mesh: Mesh, config: MeshConfig):
  """Where jitted functions of the network run: its mesh and rules."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(config.rules()):
    yield


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


def gathered(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """A parameter, whole along `data`, as it is used.

  Where its rules shard it over `data` (FSDP), left to itself XLA computes with
  the shards and sums activations, which are larger, over all devices.
  Elsewhere, and without rules or mesh, this does nothing.

  Args:
    x: within a jitted function, in which its mesh and rules are set.
    axes: logical names.
  """
  rules = nn.get_logical_axis_rules()
  mesh = jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty or mesh.size == 1:
    return x
  found = nn.logical_to_mesh_axes(axes, rules)
  if found is None or 'data' not in found:
    return x
  kept = (
    axis if axis != 'data' and axis and size % mesh.shape[axis] == 0 else None
    for axis, size in zip(found, x.shape, strict=True)
  )
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 over `data`, the rest whole."""
  return NamedSharding(mesh, PartitionSpec('data'))


def data_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count) of this process's part of a batch over `data`.

  Processes of the same rows of the mesh, as where `model` goes over several,
  have the same part.

  Raises:
    ValueError: processes have parts of unequal size, or that overlap.
  """
  rows: dict[int, set[int]] = {}
  for row, devices in enumerate(mesh.devices):
    for device in devices:
      rows.setdefault(device.process_index, set()).add(row)
  parts = sorted({tuple(sorted(part)) for part in rows.values()})
  if len({len(p) for p in parts}) > 1 or sum(map(len, parts)) != len(
    mesh.devices
  ):
    raise ValueError(
      f'mesh: data={mesh.shape["data"]} x model={mesh.shape["model"]} does not '
      f'give each of {len(rows)} processes a part of its own of a batch.'
    )
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def local_rows(sharding: NamedSharding, batch: int) -> set[int]:
  """The rows of a batch that lie on this process's devices."""
  places = sharding.addressable_devices_indices_map((batch,)).values()
  return {r for place in places if place for r in range(batch)[place[0]]}


def place(values, sharding: NamedSharding):
  """A tree of arrays that every process has whole, on the mesh."""
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
    values,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())
