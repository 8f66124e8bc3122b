# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""EVA-02 against the research code's numbers, and its own properties."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import remat
from flax import linen as nn

from pixel_llm import sharding
from pixel_llm.model import eva

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'eva02_vit.npz'
TINY = eva.EvaConfig(
  patch_size=4,
  width=16,
  depth=2,
  num_heads=2,
  mlp_dim=24,
  position_grid=3,
  drop_path_rate=0.5,
)
# Published module name -> ours, within a block.
BLOCK_NAMES = {
  'norm1': ('norm1',),
  'norm2': ('norm2',),
  'mlp/w1': ('mlp', 'w1'),
  'mlp/w2': ('mlp', 'w2'),
  'mlp/w3': ('mlp', 'w3'),
  'mlp/ffn_ln': ('mlp', 'ffn_ln'),
  'attn/q_proj': ('attention', 'query'),
  'attn/k_proj': ('attention', 'key'),
  'attn/v_proj': ('attention', 'value'),
  'attn/proj': ('attention', 'out'),
}


@pytest.fixture(scope='module', name='golden')
def golden_fixture():
  with np.load(GOLDEN) as arrays:
    return dict(arrays)


def put(tree, path, value):
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  assert path[-1] not in tree
  tree[path[-1]] = value


def stack(flat, depth):
  """The published names (`blocks.i`) as our stacked parameter tree."""
  flat = dict(flat)
  tree = {}
  block_names = sorted(
    n.removeprefix('blocks.0/') for n in flat if n.startswith('blocks.0/')
  )
  for name in block_names:
    value = np.stack([flat.pop(f'blocks.{i}/{name}') for i in range(depth)])
    if name.endswith(('q_bias', 'v_bias')):
      which = 'query' if name.endswith('q_bias') else 'value'
      path = ('attention', which, 'bias')
    else:
      module, leaf = name.rsplit('/', 1)
      path = (*BLOCK_NAMES[module], leaf)
    put(tree, ('blocks', *path), value)
  kernel = flat.pop('patch_embed.proj/kernel')
  put(tree, ('patch_embed', 'kernel'), kernel.reshape(-1, kernel.shape[-1]))
  put(tree, ('patch_embed', 'bias'), flat.pop('patch_embed.proj/bias'))
  put(tree, ('class_token',), flat.pop('cls_token')[0, 0])
  put(tree, ('positions',), flat.pop('pos_embed')[0])
  for leaf in ('scale', 'bias'):
    put(tree, ('ln_post', leaf), flat.pop(f'ln_post/{leaf}'))
  assert not flat
  return tree


def init(config, seed=0):
  """Random parameters, none at its initial value, without compiling."""
  shapes = nn.unbox(
    jax.eval_shape(
      eva.Eva(config).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )
  )
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    value = rng.normal(size=leaf.shape).astype(leaf.dtype)
    name = path[-1].key
    if name == 'kernel':
      return value / np.float32(np.sqrt(leaf.shape[-2]))
    return 1 + 0.1 * value if name == 'scale' else 0.3 * value

  return jax.tree_util.tree_map_with_path(one, shapes)


def images(*shape, seed=0) -> Any:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def apply(config, deterministic=True) -> Any:
  model = eva.Eva(config)

  def run(params, image, seed=0):
    return model.apply(
      params, image, deterministic, rngs={'dropout': jax.random.key(seed)}
    )

  return jax.jit(run)


@pytest.mark.parametrize(
  'prefix, output, side',
  [
    ('', 'resized_4_to_7', 4),
    ('params_native', 'native', 7),
    ('params_down', 'resized_10_to_7', 10),
  ],
)
def test_golden(golden, prefix, output, side):
  published = json.loads(str(golden['config']))
  config = eva.EvaConfig(
    patch_size=published['patch_size'],
    width=published['embed_dim'],
    depth=published['depth'],
    num_heads=published['num_heads'],
    mlp_dim=int(published['embed_dim'] * published['mlp_ratio']),
    drop_path_rate=published['drop_path_rate'],
    final_norm=published['use_ln_post'],
    position_grid=side,
  )
  flat = {
    k.removeprefix('params/'): v
    for k, v in golden.items()
    if k.startswith('params/')
  }
  if prefix:
    flat |= {
      k.removeprefix(f'{prefix}/'): v
      for k, v in golden.items()
      if k.startswith(f'{prefix}/')
    }
  params = {'params': stack(flat, config.depth)}
  shapes = jax.eval_shape(
    eva.Eva(config).init, jax.random.key(0), golden['in/images']
  )
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, nn.unbox(shapes)
  )

  features, state = jax.jit(
    functools.partial(
      eva.Eva(config).apply,
      capture_intermediates=lambda module, _: module.name == 'ln_post',
    )
  )(params, golden['in/images'])
  # The class token too, which the encoder keeps to itself.
  (tokens,) = state['intermediates']['ln_post']['__call__']
  expected = golden[f'out/tokens_pos_embed_{output}']
  np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    features, expected[:, 1:].reshape(2, 7, 7, -1), rtol=1e-4, atol=1e-5
  )


def test_golden_rotation(golden):
  cosines, sines = map(jnp.asarray, eva.rotary_tables(7, 7, 16))
  rotated = eva.rotate(golden['in/rope_x'], cosines[None], sines[None])
  np.testing.assert_allclose(
    rotated, golden['out/rope_y'], rtol=1e-4, atol=1e-5
  )


def test_rotated_products_depend_on_the_offset_alone():
  rng = np.random.default_rng(0)
  query, key = jnp.asarray(rng.normal(size=(2, 1, 8)), jnp.float32)
  cosines, sines = map(jnp.asarray, eva.rotary_tables(5, 6, 8))
  queries = eva.rotate(jnp.tile(query, (30, 1)), cosines, sines)
  keys = eva.rotate(jnp.tile(key, (30, 1)), cosines, sines)
  product = (queries @ keys.T).reshape(5, 6, 5, 6)
  np.testing.assert_allclose(
    product[:-1, :-1, :-1, :-1], product[1:, 1:, 1:, 1:], atol=1e-5
  )
  assert abs(product[0, 0, 0, 1] - product[0, 0, 1, 0]) > 1e-2


def test_patches_are_those_of_a_convolution():
  image = images(2, 14, 10, 3)
  kernel = images(4, 4, 3, 5, seed=1)
  expected = jax.lax.conv_general_dilated(
    image, kernel, (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(
    eva.patches(image, 4) @ kernel.reshape(-1, 5), expected, atol=1e-4
  )


def test_the_rest_of_a_patch_is_cropped():
  params = init(TINY)
  image = images(2, 15, 14, 3)
  whole = apply(TINY)(params, image)
  assert whole.shape == (2, 3, 3, 16)
  np.testing.assert_array_equal(whole, apply(TINY)(params, image[:, :12, :12]))


def test_image_smaller_than_a_patch_is_refused():
  with pytest.raises(ValueError, match=r'4 x 4 px, got 3 x 8 px'):
    eva.patches(images(1, 3, 8, 3), 4)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'num_heads': 3}, 'width 16 over num_heads 3'),
    ({'drop_path_rate': 1.0}, r'drop_path_rate: .* got 1.0'),
    ({'rotary_grid': 0}, r'rotary_grid: .* got 0'),
  ],
)
def test_bad_config_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def transposed(params, config):
  """Parameters that make of a transposed image the transposed features."""
  params = jax.tree.map(np.asarray, params['params'])
  side, patch = config.position_grid, config.patch_size
  head = config.width // config.num_heads
  grid = params['positions'][1:].reshape(side, side, -1)
  kernel = params['patch_embed']['kernel'].reshape(patch, patch, 3, -1)
  attention = dict(params['blocks']['attention'])
  # Rows turn the first half of a head and columns the second: they swap.
  swap = np.arange(config.width).reshape(-1, 2, head // 2)[:, ::-1].ravel()
  for name in ('query', 'key'):
    attention[name] = jax.tree.map(lambda x: x[..., swap], attention[name])
  return {
    'params': params
    | {
      'positions': np.concatenate(
        [params['positions'][:1], grid.transpose(1, 0, 2).reshape(side**2, -1)]
      ),
      'patch_embed': params['patch_embed']
      | {'kernel': kernel.transpose(1, 0, 2, 3).reshape(patch**2 * 3, -1)},
      'blocks': params['blocks'] | {'attention': attention},
    }
  }


def test_height_and_width_are_alike():
  params = init(TINY)
  image = images(2, 8, 20, 3)
  wide = apply(TINY)(params, image)
  assert wide.shape == (2, 2, 5, 16)
  tall = apply(TINY)(transposed(params, TINY), image.transpose(0, 2, 1, 3))
  np.testing.assert_allclose(wide, tall.transpose(0, 2, 1, 3), atol=2e-5)
  # The transposition is not a no-op.
  other = apply(TINY)(params, image.transpose(0, 2, 1, 3))
  assert np.abs(wide - other.transpose(0, 2, 1, 3)).max() > 1e-2


def test_evaluation_needs_no_rng_and_training_does():
  params, image = init(TINY), images(2, 12, 12, 3)
  run = apply(TINY)
  jax.eval_shape(eva.Eva(TINY).apply, params, image)
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    jax.eval_shape(
      functools.partial(eva.Eva(TINY).apply, deterministic=False), params, image
    )
  np.testing.assert_array_equal(run(params, image, 1), run(params, image, 2))
  train = apply(TINY, deterministic=False)
  np.testing.assert_array_equal(
    train(params, image, 1), train(params, image, 1)
  )
  differences = [
    np.abs(train(params, image, 1) - train(params, image, s)).max()
    for s in range(2, 6)
  ]
  assert max(differences) > 1e-2


def test_drop_path_keeps_the_expectation():
  x = jnp.ones((20000, 1, 2))
  y = jax.jit(eva.drop_path)(x, 0.3, jax.random.key(0))
  np.testing.assert_array_equal(y[:, 0, 0], y[:, 0, 1])
  values = np.unique(y)
  np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-6)
  # Five standard deviations of the mean.
  assert abs(float(y.mean()) - 1) < 5 * np.sqrt(0.3 / 0.7 / len(x))
  np.testing.assert_array_equal(eva.drop_path(x, 0.0, jax.random.key(0)), x)


def test_first_block_is_never_dropped_and_the_last_one_often():
  config = dataclasses.replace(TINY, drop_path_rate=0.9)
  one_block = dataclasses.replace(config, depth=1)
  params, image = init(config), images(64, 8, 8, 3)
  first = {
    'params': params['params']
    | {'blocks': jax.tree.map(lambda x: x[:1], params['params']['blocks'])}
  }
  expected = apply(one_block)(first, image)
  # Where both branches of the second block fall away, the first remains.
  features = apply(config, deterministic=False)(params, image, 3)
  same = np.isclose(features, expected, atol=1e-5).all((1, 2, 3))
  assert 0.6 < same.mean() < 0.97  # 0.81 expected
  # Depth 1 has no slope to divide by; its only block is the first.
  alone = apply(one_block, deterministic=False)(first, image, 3)
  np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_unrolled_equals_scanned():
  straight = dataclasses.replace(TINY, scan_unroll=99)
  params, image = init(TINY), images(2, 12, 12, 3)
  np.testing.assert_allclose(
    apply(TINY)(params, image), apply(straight)(params, image), atol=1e-5
  )
  for config, loops in ((TINY, True), (straight, False)):
    gradient = jax.jit(
      jax.grad(lambda p, c=config: jnp.sum(apply(c)(p, image)))
    )
    assert ('while' in gradient.lower(params).as_text()) == loops


def test_remat_saves_memory_and_changes_nothing():
  config = dataclasses.replace(TINY, depth=4)
  image = images(2, 48, 48, 3)

  def loss(config, params):
    # The same places drop out, whatever is kept.
    return jnp.mean(
      eva.Eva(config).apply(
        params, image, False, rngs={'dropout': jax.random.key(3)}
      )
      ** 2
    )

  remat.check(config, loss, init(config))


def test_final_norm_can_be_left_out():
  config = dataclasses.replace(TINY, final_norm=False)
  params = nn.unbox(
    jax.eval_shape(
      eva.Eva(config).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )
  )
  assert 'ln_post' not in params['params']


def test_bfloat16_is_near_float32_and_parameters_stay_float32():
  config = dataclasses.replace(TINY, dtype='bfloat16')
  params, image = init(config), images(2, 12, 12, 3)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  half = apply(config)(params, image)
  assert half.dtype == jnp.bfloat16
  error = np.abs(half.astype(jnp.float32) - apply(TINY)(params, image))
  assert 0 < error.max() < 0.2


def test_parameters_carry_known_axes_and_shard():
  boxed = jax.eval_shape(
    eva.Eva(TINY).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
    assert is_box(box), path
    assert len(box.names) == len(box.value.shape), path
    assert set(box.names) <= sharding.AXIS_NAMES, path
  names = boxed['params']['blocks']['attention']['query']['kernel'].names
  assert names == ('layers', 'embed', 'joined_kv')
  mesh_config = sharding.MeshConfig(data=4, model=2, fsdp=True)
  mesh = sharding.make_mesh(mesh_config)
  shardings = sharding.state_shardings(boxed, mesh, mesh_config.rules())
  kernel = shardings['params']['blocks']['mlp']['w1']['kernel']
  assert kernel.spec == jax.sharding.PartitionSpec(None, 'data', 'model')


def count(config):
  shapes = jax.eval_shape(
    eva.Eva(config).init, jax.random.key(0), jnp.zeros((1, 28, 28, 3))
  )
  return sum(x.size for x in jax.tree.leaves(shapes))


# Millions of parameters as the model cards of timm give them, without the head
# of 1,000 classes that the fine-tuned have: a kernel and a bias.
@pytest.mark.parametrize(
  'name, millions, head',
  [
    ('tiny', 5.50, False),
    ('tiny_336', 5.76, True),
    ('small', 21.62, False),
    ('small_336', 22.13, True),
    ('base', 85.76, False),
    ('base_448', 87.12, True),
    ('large', 303.27, False),
    ('large_448', 305.08, True),
  ],
)
def test_sizes(name, millions, head):
  config = eva.SIZES[name]
  assert config.mlp_dim == int(config.width * 4 * 2 / 3)
  total = count(config)
  if head:
    total += 1000 * (config.width + 1)
  assert total == pytest.approx(millions * 1e6, abs=6e3)


@pytest.mark.parametrize('name', eva.SIZES)
def test_sizes_are_the_sum_of_their_parts(name):
  c = eva.SIZES[name]
  d, f = c.width, c.mlp_dim
  attention = 4 * d * d + 3 * d  # the keys have no bias
  mlp = 2 * (d * f + f) + f * d + d
  mlp += 2 * f * (c.mlp_norm_epsilon is not None)
  norms = 2 * 2 * d
  ends = 14 * 14 * 3 * d + d + d + (1 + c.position_grid**2) * d + 2 * d
  assert count(c) == c.depth * (attention + mlp + norms) + ends


def test_larger_grids_turn_as_far_as_the_smaller():
  near = eva.rotary_tables(4, 4, 8)
  far = eva.rotary_tables(8, 12, 8, steps=4)
  for squeezed, plain in zip(far, near):
    grid = squeezed.reshape(8, 12, 8)[::2, ::3]
    np.testing.assert_allclose(grid, plain.reshape(4, 4, 8), atol=1e-6)
  assert np.abs(far[1] - eva.rotary_tables(8, 12, 8)[1]).max() > 0.1
  for a, b in zip(near, eva.rotary_tables(4, 4, 8, steps=4)):
    np.testing.assert_array_equal(a, b)


def test_pixel_statistics_are_clips():
  clip = np.array([0.48145466, 0.4578275, 0.40821073]) * 255
  np.testing.assert_allclose(TINY.mean, clip, rtol=1e-6)
  clip = np.array([0.26862954, 0.26130258, 0.27577711]) * 255
  np.testing.assert_allclose(TINY.std, clip, rtol=1e-6)


def test_the_norm_within_the_mlp_can_be_left_out():
  image = images(1, 12, 12, 3)
  params = init(TINY)
  without = dataclasses.replace(TINY, mlp_norm_epsilon=None)
  bare = init(without)
  names = params['params']['blocks']['mlp'].keys()
  assert names - bare['params']['blocks']['mlp'].keys() == {'ffn_ln'}
  got = apply(without)(bare, image)
  # By hand, of one block: its SwiGLU on the hidden layer as it is.
  x = np.random.default_rng(1).normal(size=(1, 3, 16)).astype(np.float32)
  mlp = jax.tree.map(lambda leaf: leaf[0], bare['params']['blocks']['mlp'])
  gate, value = (x @ mlp[n]['kernel'] + mlp[n]['bias'] for n in ('w1', 'w2'))
  expected = (gate / (1 + np.exp(-gate)) * value) @ mlp['w3']['kernel']
  np.testing.assert_allclose(
    eva.SwiGlu(without).apply({'params': mlp}, x),
    expected + mlp['w3']['bias'],
    1e-5,
    1e-5,
  )
  assert np.abs(got - apply(TINY)(params, image)).max() > 1e-2
