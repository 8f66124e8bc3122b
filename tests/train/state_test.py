# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from pixel_llm import sharding
from pixel_llm.train import optimizer
from pixel_llm.train import state as state_lib


def boxed(key, axes, shape):
  return nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)(
    key, shape
  )


def init(key):
  keys = jax.random.split(key, 3)
  return {
    'frozen': boxed(keys[0], ('embed', 'mlp'), (8, 4)),
    'kernel': boxed(keys[1], ('embed', 'mlp'), (8, 16)),
    # 15 divides over no mesh axis.
    'scale': boxed(keys[2], ('mlp',), (15,)),
  }


def parts(mesh_config):
  config = optimizer.OptimizerConfig(freeze=('frozen',))
  mesh = sharding.make_mesh(mesh_config)
  params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  mask = optimizer.trainable_mask(config, params)
  tx = optimizer.make(config, 10, params)
  return tx, mask, mesh, mesh_config.rules()


def test_split_and_merge_are_inverse():
  params = {'a': jnp.ones(2), 'b': {'c': jnp.zeros(3), 'd': jnp.ones(())}}
  mask = {'a': True, 'b': {'c': False, 'd': True}}
  trainable, frozen = state_lib.split(params, mask)
  assert trainable['b']['c'] is None
  assert frozen == {'a': None, 'b': {'c': params['b']['c'], 'd': None}}
  assert jax.tree.structure(
    state_lib.merge(trainable, frozen)
  ) == jax.tree.structure(params)
  jax.tree.map(
    np.testing.assert_array_equal, state_lib.merge(trainable, frozen), params
  )


def test_gradients_exist_for_the_trainable_only():
  params = {'a': jnp.full(2, 3.0), 'b': jnp.full(2, 5.0)}
  trainable, frozen = state_lib.split(params, {'a': True, 'b': False})

  def loss(trainable):
    p = state_lib.merge(trainable, frozen)
    return jnp.sum(p['a'] * p['b'])

  grads = jax.grad(loss)(trainable)
  assert grads['b'] is None
  np.testing.assert_array_equal(grads['a'], [5.0, 5.0])


def test_create_lies_as_abstract_says_and_state_as_its_parameter():
  args = parts(sharding.MeshConfig(data=4, model=2, fsdp=True))
  abstract = state_lib.abstract(init, *args)
  _, _, mesh, rules = args
  # In a mesh and under rules, as the loop is: 15 must not be refused.
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    state = state_lib.create(init, *args, jax.random.key(0))
  spec = PartitionSpec('data', 'model')
  assert abstract.params['kernel'].sharding.spec == spec
  assert abstract.opt_state.inner[1].mu['kernel'].sharding.spec == spec
  assert abstract.opt_state.inner[1].nu['kernel'].sharding.spec == spec
  assert abstract.opt_state.inner[1].mu['frozen'] is None
  assert abstract.params['scale'].sharding.is_fully_replicated
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  jax.tree.map(
    lambda a, s: (
      (a.shape, a.dtype, a.sharding) == (s.shape, s.dtype, s.sharding)
      or pytest.fail(f'{a} {s.sharding}')
    ),
    abstract,
    state,
  )
  assert state.params['kernel'].addressable_shards[0].data.shape == (2, 8)
  assert state.step.dtype == jnp.int32
  assert int(state.step) == 0


def test_the_fresh_state_does_not_depend_on_the_mesh():
  one = state_lib.create(
    init, *parts(sharding.MeshConfig(data=8)), jax.random.key(3)
  )
  two = state_lib.create(
    init,
    *parts(sharding.MeshConfig(data=2, model=4, fsdp=True)),
    jax.random.key(3),
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_device_holds_its_shards_only():
  args = parts(sharding.MeshConfig(data=4, model=2, fsdp=True))
  abstract = state_lib.abstract(init, *args)
  state = state_lib.create(init, *args, jax.random.key(0))
  per_device = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
  )
  expected = sum(
    np.prod(x.sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
    for x in jax.tree.leaves(abstract)
  )
  assert per_device == expected


def test_state_of_muon_lies_as_its_matrix():
  config = optimizer.OptimizerConfig(
    freeze=('frozen',), muon=optimizer.MuonConfig()
  )
  _, mask, mesh, rules = parts(sharding.MeshConfig(data=4, model=2, fsdp=True))
  params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  tx = optimizer.make(config, 10, params)
  abstract = state_lib.abstract(init, tx, mask, mesh, rules)
  state = state_lib.create(init, tx, mask, mesh, rules, jax.random.key(0))
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  momenta = [
    x for x in jax.tree.leaves(abstract.opt_state) if x.shape == (8, 16)
  ]
  assert len(momenta) == 1
  assert momenta[0].sharding.spec == PartitionSpec('data', 'model')
  for a, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(state)):
    assert a.sharding == s.sharding


@pytest.mark.parametrize('names', [('kernel',), ('frozen', 'kernel', 'scale')])
def test_what_is_given_is_not_drawn_and_changes_nothing_else(names):
  args = parts(sharding.MeshConfig(data=4, model=2, fsdp=True))
  leaves = state_lib.abstract(init, *args).params
  given = {
    name: jax.device_put(jnp.full(x.shape, 7.0), x.sharding)
    if name in names
    else None
    for name, x in leaves.items()
  }
  fresh = state_lib.create(init, *args, jax.random.key(3))
  state = state_lib.create(init, *args, jax.random.key(3), given)
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  for name, x in fresh.params.items():
    if name in names:
      assert state.params[name] is given[name]
    else:
      np.testing.assert_array_equal(state.params[name], x)
    assert state.params[name].sharding == x.sharding
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
