# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""SAM's encoder against the research code's numbers, and its properties."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import remat
from flax import linen as nn

from pixel_llm import sharding
from pixel_llm.model import sam

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'sam_vit.npz'
TINY = sam.SamConfig(
  patch_size=4,
  width=16,
  depth=6,
  num_heads=2,
  mlp_dim=24,
  window_size=2,
  blocks_per_group=3,
  position_grid=4,
  out_channels=8,
)


@pytest.fixture(scope='module', name='golden')
def golden_fixture():
  with np.load(GOLDEN) as arrays:
    return dict(arrays)


def nested(flat):
  """{'a/b': x} -> {'a': {'b': x}}."""
  tree = {}
  for name, value in flat.items():
    *modules, leaf = name.split('/')
    branch = tree
    for module in modules:
      branch = branch.setdefault(module, {})
    branch[leaf] = value
  return tree


def block(flat, index):
  """One published block under our names."""
  prefix = f'blocks.{index}/'
  tree = nested(
    {
      n.removeprefix(prefix): flat.pop(n)
      for n in sorted(flat)
      if n.startswith(prefix)
    }
  )
  attention = tree.pop('attn')
  qkv = attention.pop('qkv')
  kernels = np.split(qkv['kernel'], 3, axis=1)
  biases = np.split(qkv['bias'], 3)
  for name, kernel, bias in zip(('query', 'key', 'value'), kernels, biases):
    attention[name] = {'kernel': kernel, 'bias': bias}
  attention['out'] = attention.pop('proj')
  return tree | {'attention': attention}


def stack(flat, config):
  """The published names (`blocks.i`) as our stacked parameter tree."""
  flat = dict(flat)
  pile = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
  groups = []
  for start in range(0, config.depth, config.blocks_per_group):
    blocks = [block(flat, start + i) for i in range(config.blocks_per_group)]
    groups.append(
      {'window_blocks': pile(blocks[:-1]), 'global_block': blocks[-1]}
    )
  kernel = flat.pop('patch_embed.proj/kernel')
  tree = {
    'patch_embed': {
      'kernel': kernel.reshape(-1, kernel.shape[-1]),
      'bias': flat.pop('patch_embed.proj/bias'),
    },
    'positions': flat.pop('pos_embed').reshape(-1, config.width),
    'groups': pile(groups),
  }
  neck = nested(flat)['neck']
  assert set(nested(flat)) == {'neck'}
  tree['neck'] = {
    'conv1': {'kernel': neck['0']['kernel'][0, 0]},
    'norm1': neck['1'],
    'conv2': neck['2'],
    'norm2': neck['3'],
  }
  return tree


def randomized(shapes, seed=0):
  """Random parameters, none at its initial value, without compiling."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    value = rng.normal(size=leaf.shape).astype(leaf.dtype)
    name = path[-1].key
    if name == 'kernel':
      return value / np.float32(np.sqrt(leaf.shape[-2]))
    return 1 + 0.1 * value if name == 'scale' else 0.3 * value

  return jax.tree_util.tree_map_with_path(one, shapes)


def init(config):
  return randomized(
    nn.unbox(
      jax.eval_shape(
        sam.Sam(config).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
      )
    )
  )


def images(*shape, seed=0) -> Any:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def apply(config) -> Any:
  return jax.jit(sam.Sam(config).apply, static_argnums=2)


@pytest.mark.parametrize('size', [98, 128])
def test_golden(golden, size):
  published = json.loads(str(golden['config']))
  assert published['window_block_indexes'] == [0]
  config = sam.SamConfig(
    patch_size=published['patch_size'],
    width=published['embed_dim'],
    depth=published['depth'],
    num_heads=published['num_heads'],
    mlp_dim=4 * published['embed_dim'],
    window_size=published['window_size'],
    blocks_per_group=2,
    position_grid=published['img_size'] // published['patch_size'],
    out_channels=published['out_chans'],
  )
  image = golden[f'in/images_{size}']
  params = {
    'params': stack(
      {
        k.removeprefix('params/'): v
        for k, v in golden.items()
        if k.startswith('params/')
      },
      config,
    )
  }
  shapes = jax.eval_shape(sam.Sam(config).init, jax.random.key(0), image)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, nn.unbox(shapes)
  )
  np.testing.assert_allclose(
    apply(config)(params, image),
    golden[f'out/features_{size}'],
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize('height, width', [(4, 4), (5, 7), (3, 9), (8, 2)])
def test_windows_are_cut_and_put_back(height, width):
  x = images(2, height, width, 3)
  windows = sam.partition(x, 4)
  rows, columns = -(-height // 4), -(-width // 4)
  assert windows.shape == (2 * rows * columns, 4, 4, 3)
  last = np.zeros((4, 4, 3), np.float32)
  corner = x[1, 4 * (rows - 1) :, 4 * (columns - 1) :]
  last[: corner.shape[0], : corner.shape[1]] = corner
  np.testing.assert_array_equal(windows[-1], last)
  np.testing.assert_array_equal(sam.unpartition(windows, height, width), x)


def test_relative_positions_are_looked_up_by_offset():
  table = images(9, 2)
  found = sam.relative_positions(table, 5)
  for query, key in ((0, 0), (4, 0), (1, 3)):
    np.testing.assert_array_equal(found[query, key], table[query - key + 4])
  # A table that is a line stays one when it is resized (away from its ends).
  line = jnp.arange(15, dtype=jnp.float32)[:, None]
  found = np.asarray(sam.relative_positions(line, 10))[..., 0]
  np.testing.assert_allclose(np.diag(found), 7, atol=1e-5)
  np.testing.assert_allclose(np.diff(np.diag(found, 2)), 0, atol=1e-5)


@functools.cache
def windowed_block(config):
  module = sam.Block(config, True)
  shapes = nn.unbox(
    jax.eval_shape(
      module.init, jax.random.key(0), jnp.zeros((1, 2, 2, config.width))
    )
  )
  run = jax.jit(lambda p, x: module.apply(p, x)[0])
  return randomized(shapes), run


def test_a_window_sees_itself_and_its_padding_alone():
  params, run = windowed_block(TINY)
  x = images(1, 3, 5, 16)
  y = np.asarray(run(params, x))
  changed = x.copy()
  changed[:, 2:, 4:] += 1  # The corner, alone in a window with 3 of padding.
  difference = np.abs(np.asarray(run(params, changed)) - y).max((0, 3)) > 1e-6
  expected = np.zeros((3, 5), bool)
  expected[2:, 4:] = True
  np.testing.assert_array_equal(difference, expected)
  # What the padding says is the same for every image: a constant key whose
  # presence matters, for it is not masked.
  alone = run(params, x[:, 2:, 4:])
  np.testing.assert_allclose(alone, y[:, 2:, 4:], atol=1e-5)
  unpadded = sam.Block(dataclasses.replace(TINY, window_size=1), True)
  attention = dict(params['params']['attention'])
  for name in ('rel_pos_h', 'rel_pos_w'):
    attention[name] = attention[name][1:2]
  without, _ = unpadded.apply(
    {'params': params['params'] | {'attention': attention}}, x[:, 2:, 4:]
  )
  assert np.abs(without - alone).max() > 1e-3


def transposed(params, config):
  """Parameters that make of a transposed image the transposed features."""
  params = jax.tree.map(np.asarray, params['params'])
  side, patch = config.position_grid, config.patch_size

  def swap(tree):
    if not isinstance(tree, dict):
      return tree
    tree = {k: swap(v) for k, v in tree.items()}
    if 'rel_pos_h' in tree:
      tree['rel_pos_h'], tree['rel_pos_w'] = (
        tree['rel_pos_w'],
        tree['rel_pos_h'],
      )
    return tree

  params = swap(params)
  grid = params['positions'].reshape(side, side, -1)
  kernel = params['patch_embed']['kernel'].reshape(patch, patch, 3, -1)
  conv2 = params['neck']['conv2']['kernel'].transpose(1, 0, 2, 3)
  return {
    'params': params
    | {
      'positions': grid.transpose(1, 0, 2).reshape(side**2, -1),
      'patch_embed': params['patch_embed']
      | {'kernel': kernel.transpose(1, 0, 2, 3).reshape(patch**2 * 3, -1)},
      'neck': params['neck'] | {'conv2': {'kernel': conv2}},
    }
  }


def test_height_and_width_are_alike():
  # The windows of one grid (3 x 4) are padded in height alone, of the other in
  # width; each has one side in common with the table of positions.
  params, image = init(TINY), images(1, 12, 16, 3)
  one = apply(TINY)(params, image)
  assert one.shape == (1, 3, 4, 8)
  other = apply(TINY)(transposed(params, TINY), image.transpose(0, 2, 1, 3))
  np.testing.assert_allclose(one, other.transpose(0, 2, 1, 3), atol=5e-5)
  plain = apply(TINY)(params, image.transpose(0, 2, 1, 3))
  assert np.abs(one - plain.transpose(0, 2, 1, 3)).max() > 1e-2


def test_unrolled_equals_scanned_and_nothing_is_random():
  straight = dataclasses.replace(TINY, scan_unroll=TINY.depth)
  params, image = init(TINY), images(1, 12, 16, 3)
  features = apply(TINY)(params, image)
  np.testing.assert_allclose(
    features, apply(straight)(params, image), atol=5e-5
  )
  for config, loops in ((TINY, True), (straight, False)):
    # Training asks for no rng.
    gradient = jax.jit(
      jax.grad(lambda p, c=config: jnp.sum(apply(c)(p, image, False)))
    )
    assert ('while' in gradient.lower(params).as_text()) == loops


def test_remat_saves_memory_and_changes_nothing():
  config = dataclasses.replace(TINY, window_size=6)
  image = images(2, 48, 48, 3)

  def loss(config, params):
    return jnp.mean(sam.Sam(config).apply(params, image) ** 2)

  remat.check(config, loss, init(config))


def test_blocks_come_in_the_order_windows_then_global():
  # With the global block silenced, nothing passes from window to window but
  # through the 3 x 3 neck, which reaches one patch.
  config = dataclasses.replace(TINY, depth=3)
  params = init(config)
  out = params['params']['groups']['global_block']['attention']['out']
  silent = jax.tree.map(np.zeros_like, out)
  image = images(1, 16, 16, 3)
  changed = image.copy()
  changed[:, :4, :4] += 1

  def reach(params):
    run = apply(config)
    return np.abs(run(params, image) - run(params, changed)).max((0, 3)) > 1e-6

  assert reach(params).all()
  params['params']['groups']['global_block']['attention']['out'] = silent
  expected = np.zeros((4, 4), bool)
  expected[:3, :3] = True
  np.testing.assert_array_equal(reach(params), expected)


def test_all_blocks_global():
  config = dataclasses.replace(TINY, depth=2, blocks_per_group=1)
  shapes = nn.unbox(
    jax.eval_shape(
      sam.Sam(config).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )
  )
  assert set(shapes['params']['groups']) == {'global_block'}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'num_heads': 3}, 'width 16: expected a multiple of num_heads 3'),
    ({'depth': 4}, 'depth 4: expected a multiple of blocks_per_group 3'),
  ],
)
def test_bad_config_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_bfloat16():
  config = dataclasses.replace(TINY, dtype='bfloat16')
  params, image = init(config), images(1, 12, 16, 3)
  half = apply(config)(params, image)
  assert half.dtype == jnp.bfloat16
  error = np.abs(half.astype(jnp.float32) - apply(TINY)(params, image))
  assert 0 < error.max() < 0.3


def test_parameters_carry_known_axes_and_shard():
  boxed = jax.eval_shape(
    sam.Sam(TINY).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
    assert is_box(box), path
    assert len(box.names) == len(box.value.shape), path
    assert set(box.names) <= sharding.AXIS_NAMES, path
    assert box.value.dtype == jnp.float32, path
  mesh_config = sharding.MeshConfig(data=4, model=2, fsdp=True)
  mesh = sharding.make_mesh(mesh_config)
  shardings = sharding.state_shardings(boxed, mesh, mesh_config.rules())
  groups = shardings['params']['groups']
  spec = jax.sharding.PartitionSpec
  assert groups['window_blocks']['mlp']['lin1']['kernel'].spec == spec(
    None, None, 'data', 'model'
  )
  assert groups['global_block']['attention']['out']['kernel'].spec == spec(
    None, 'model', 'data'
  )


# Counts of `image_encoder.*` in the released checkpoints; of all of SAM's
# 93,735,472, 312,342,832 and 641,090,608 parameters, the prompt encoder has
# 6,220 and the mask decoder 4,058,340.
@pytest.mark.parametrize(
  'name, whole, global_blocks',
  [
    ('base', 93_735_472, (2, 5, 8, 11)),
    ('large', 312_342_832, (5, 11, 17, 23)),
    ('huge', 641_090_608, (7, 15, 23, 31)),
  ],
)
def test_sizes(name, whole, global_blocks):
  config = sam.SIZES[name]
  every = config.blocks_per_group
  assert tuple(range(every - 1, config.depth, every)) == global_blocks
  shapes = jax.eval_shape(
    sam.Sam(config).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  total = sum(x.size for x in jax.tree.leaves(shapes))
  assert total == whole - 6_220 - 4_058_340
