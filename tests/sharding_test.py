# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from pixel_llm import sharding


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    (sharding.MeshConfig(), (8, 1)),
    (sharding.MeshConfig(model=2), (4, 2)),
    (sharding.MeshConfig(data=2, model=4), (2, 4)),
    (sharding.MeshConfig(model=8), (1, 8)),
  ],
)
def test_mesh_holds_every_device_once(config, expected):
  mesh = sharding.make_mesh(config)
  assert mesh.devices.shape == expected
  assert mesh.axis_names == ('data', 'model')
  assert set(mesh.devices.ravel().tolist()) == set(jax.devices())


@pytest.mark.parametrize(
  'config',
  [
    sharding.MeshConfig(data=3),
    sharding.MeshConfig(model=3),
    sharding.MeshConfig(model=16),
    sharding.MeshConfig(data=2, model=2),
    sharding.MeshConfig(data=-2, model=-4),
    sharding.MeshConfig(data=0),
    sharding.MeshConfig(model=-8),
  ],
)
def test_grid_that_does_not_fit_is_refused(config):
  with pytest.raises(ValueError, match='does not fit 8 devices'):
    sharding.make_mesh(config)


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:2])
  assert mesh.devices.shape == (2, 1)


def test_rules_name_mesh_axes_and_no_name_twice():
  for fsdp in (False, True):
    rules = sharding.MeshConfig(fsdp=fsdp).rules()
    names = [name for name, _ in rules]
    assert len(names) == len(set(names))
    assert set(names) == sharding.AXIS_NAMES
    assert {axis for _, axis in rules} <= {'data', 'model', None}


def test_fsdp_changes_embed_alone():
  plain = dict(sharding.MeshConfig().rules())
  fsdp = dict(sharding.MeshConfig(fsdp=True).rules())
  changed = {k: v for k, v in fsdp.items() if plain[k] != v}
  assert changed == {'embed': 'data'}


def boxes():
  def box(axes, *shape):
    return nn.LogicallyPartitioned(
      jax.ShapeDtypeStruct(shape, jnp.float32), axes
    )

  return {
    'kernel': box(('embed', 'mlp'), 8, 16),
    'stacked': box(('layers', 'mlp', 'embed'), 3, 16, 8),
    'odd': box(('embed', 'heads'), 8, 15),
    'bare': jax.ShapeDtypeStruct((8, 16), jnp.float32),
    'scalar': jax.ShapeDtypeStruct((), jnp.int32),
  }


def specs(config):
  mesh = sharding.make_mesh(config)
  got = sharding.state_shardings(boxes(), mesh, config.rules())
  return {name: tuple(s.spec) for name, s in got.items()}


def test_state_shardings_follow_the_rules():
  got = specs(sharding.MeshConfig(data=4, model=2))
  assert got['kernel'] == (None, 'model')
  assert got['stacked'] == (None, 'model', None)
  assert got['bare'] == ()
  assert got['scalar'] == ()


def test_state_shardings_of_fsdp():
  got = specs(sharding.MeshConfig(data=4, model=2, fsdp=True))
  assert got['kernel'] == ('data', 'model')
  assert got['stacked'] == (None, 'model', 'data')


def test_dimension_that_does_not_divide_stays_whole():
  got = specs(sharding.MeshConfig(data=4, model=2, fsdp=True))
  assert got['odd'] == ('data', None)


def test_every_sharding_can_hold_its_leaf():
  for config in (
    sharding.MeshConfig(),
    sharding.MeshConfig(data=2, model=4, fsdp=True),
    sharding.MeshConfig(model=8),
  ):
    mesh = sharding.make_mesh(config)
    got = sharding.state_shardings(boxes(), mesh, config.rules())
    leaves = nn.unbox(boxes())
    for name, leaf in leaves.items():
      got[name].shard_shape(leaf.shape)


def test_batch_lies_over_data():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, model=2))
  x = jax.device_put(np.zeros((8, 3)), sharding.batch_sharding(mesh))
  assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
  assert x.sharding.spec == PartitionSpec('data')
  assert sharding.replicated(mesh).is_fully_replicated


@dataclasses.dataclass(frozen=True)
class Tpu:
  """What a mesh looks at of a TPU; a slice here is a torus of 4 x 2 chips."""

  id: int
  slice_index: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v5'
  core_on_chip: int = 0

  @property
  def coords(self):
    # As JAX orders them: by hosts, each of 2 x 2 chips.
    return (2 * (self.id // 4 % 2) + self.id % 2, self.id % 4 // 2, 0)

  @property
  def process_index(self):
    return self.id // 4


def tpus(slices):
  return [Tpu(i, i // 8) for i in range(8 * slices)]


def test_slices_lie_outermost_on_data():
  config = sharding.MeshConfig(model=4, slices=2)
  grid = sharding.arrange(config, tpus(2))
  assert grid.shape == (4, 4)
  assert [{d.slice_index for d in row} for row in grid] == [
    *([{0}] * 2),
    *([{1}] * 2),
  ]
  assert set(grid.ravel()) == set(tpus(2))


@pytest.mark.parametrize('model', [2, 4])
def test_neighbours_on_model_are_neighbours_in_the_torus(model):
  grid = sharding.arrange(sharding.MeshConfig(model=model), tpus(1))
  for row in grid:
    for a, b in zip(row, [*row[1:], row[0]]):
      x, y = (abs(m - n) for m, n in zip(a.coords[:2], b.coords[:2]))
      # The torus of 4 goes round.
      assert min(x, 4 - x) + y == 1


def test_slices_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='slices=1, but the TPUs are of 2'):
    sharding.arrange(sharding.MeshConfig(), tpus(2))
  with pytest.raises(ValueError, match='data=4 does not divide by slices=3'):
    sharding.make_mesh(sharding.MeshConfig(model=2, slices=3))


def test_slices_elsewhere_are_as_jax_orders_devices():
  config = sharding.MeshConfig(model=2, slices=2)
  mesh = sharding.make_mesh(config)
  assert mesh.devices.ravel().tolist() == jax.devices()


@dataclasses.dataclass
class Grid:
  """What `data_share` looks at of a mesh: processes as a [data, model] grid."""

  processes: list

  @property
  def devices(self):
    cell = lambda p: Tpu(4 * p, 0)
    return np.asarray([[cell(p) for p in row] for row in self.processes])

  @property
  def shape(self):
    return dict(zip(('data', 'model'), self.devices.shape))


@pytest.mark.parametrize(
  ('grid', 'shares'),
  [
    ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
    ([[1], [0], [1], [0]], [(1, 2), (0, 2)]),
    ([[0, 1]], [(0, 1), (0, 1)]),
    ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ],
)
def test_processes_of_the_same_rows_have_the_same_share(
  monkeypatch, grid, shares
):
  for process, share in enumerate(shares):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    assert sharding.data_share(Grid(grid)) == share


@pytest.mark.parametrize('grid', [[[0], [0], [1]], [[0, 1], [1, 2], [2, 0]]])
def test_uneven_shares_are_refused(grid):
  with pytest.raises(ValueError, match='a part of its own'):
    sharding.data_share(Grid(grid))


def test_placed_is_what_was_given_and_its_rows_are_known():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, model=2))
  whole = sharding.batch_sharding(mesh)
  x = np.arange(24).reshape(8, 3)
  placed = sharding.place({'x': x}, whole)['x']
  np.testing.assert_array_equal(placed, x)
  assert placed.sharding == whole
  assert sharding.local_rows(whole, 8) == set(range(8))
