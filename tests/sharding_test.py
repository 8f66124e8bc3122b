# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

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
