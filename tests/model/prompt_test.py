# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Prompts and extractor against the research code's numbers; properties."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pixel_llm import sharding
from pixel_llm.model import prompt

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CLOSE = {'atol': 1e-5, 'rtol': 1e-4}
TINY = prompt.ExtractorConfig(
  num_queries=3, depth=3, width=16, num_heads=2, mlp_dim=24, out_dim=8
)


def load(name):
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    return dict(arrays)


# --- Location prompt encoder


@pytest.fixture(scope='module', name='sam')
def sam_fixture():
  golden = load('sam_prompt_encoder')
  rows = [golden[f'params/point_embeddings.{i}.weight'] for i in range(4)]
  params = {
    'frequencies': golden[
      'params/pe_layer/positional_encoding_gaussian_matrix'
    ],
    'point_embeddings': np.concatenate(rows),
    'not_a_point': golden['params/not_a_point_embed.weight'][0],
  }
  return golden, {'params': params}


def encode(params, method, *args):
  encoder = prompt.LocationPromptEncoder(prompt.PromptConfig(embed_dim=16))
  return encoder.apply(params, *args, method=method)


def test_boxes_equal_the_golden(sam):
  golden, params = sam
  y = encode(params, 'boxes', golden['in/boxes'], (90, 96))
  np.testing.assert_allclose(y, golden['out/boxes'], **CLOSE)


def test_points_equal_the_golden(sam):
  golden, params = sam
  points, labels = golden['in/points'], golden['in/labels']
  y = encode(params, 'points', points, labels, (90, 96))
  np.testing.assert_allclose(y, golden['out/points_unpadded'], **CLOSE)
  points = np.pad(points, ((0, 0), (0, 1), (0, 0)))
  labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=prompt.IGNORED)
  y = encode(params, 'points', points, labels, (90, 96))
  np.testing.assert_allclose(y, golden['out/points_padded'], **CLOSE)


def test_positions_equal_the_golden(sam):
  golden, params = sam
  y = encode(params, 'positions', 5, 7)
  np.testing.assert_allclose(y, golden['out/dense_pe_5x7'], **CLOSE)


def test_a_point_at_a_cell_centre_has_the_position_of_the_cell(sam):
  _, params = sam
  # Pixel 3 of 14 has its centre at 3.5, that of the first of two cells of 7.
  y = encode(params, 'points', np.full((1, 2), 3.0), np.asarray([1]), (14, 14))
  cell = encode(params, 'positions', 2, 2)[0, 0]
  kind = params['params']['point_embeddings'][prompt.FOREGROUND]
  np.testing.assert_allclose(y[0] - kind, cell, atol=1e-5)


def test_only_ignored_points_have_no_position(sam):
  golden, params = sam
  points, labels = golden['in/points'], golden['in/labels']
  before = encode(params, 'points', points, labels, (90, 96))
  after = encode(params, 'points', points + 20, labels, (90, 96))
  moved = np.abs(after - before).max(-1) > 1e-3
  np.testing.assert_array_equal(moved, labels != prompt.IGNORED)


def test_leading_axes_are_free(sam):
  golden, params = sam
  boxes = golden['in/boxes']
  stacked = np.stack([boxes, boxes[::-1]])
  y = encode(params, 'boxes', stacked, (90, 96))
  assert y.shape == (2, 3, 2, 16)
  np.testing.assert_allclose(y[1, ::-1], y[0], rtol=1e-6)


def test_frequencies_are_never_learned(sam):
  golden, params = sam

  def total(params):
    return jnp.sum(encode(params, 'boxes', golden['in/boxes'], (90, 96)))

  grads = jax.grad(total)(params)['params']
  np.testing.assert_array_equal(grads['frequencies'], 0)
  assert np.all(np.asarray(grads['point_embeddings'])[2:] != 0)


def test_an_odd_width_is_refused():
  with pytest.raises(ValueError, match=r'embed_dim: expected an even.*got 7'):
    prompt.PromptConfig(embed_dim=7)


# --- Prompt feature extractor


def linear(golden, name):
  return {k: golden[f'params/{name}/{k}'] for k in ('kernel', 'bias')}


def attention(golden, name):
  return {
    ours: linear(golden, f'transformer/{name}/{theirs}')
    for ours, theirs in (
      ('query', 'q_proj'),
      ('key', 'k_proj'),
      ('value', 'v_proj'),
      ('out', 'out_proj'),
    )
  }


def norm(golden, name):
  prefix = f'params/transformer/{name}'
  return {k: golden[f'{prefix}/{k}'] for k in ('scale', 'bias')}


def layer(golden, index):
  name = f'layers.{index}'
  return {
    'self_attention': attention(golden, f'{name}/self_attn'),
    'token_to_image': attention(golden, f'{name}/cross_attn_token_to_image'),
    'image_to_token': attention(golden, f'{name}/cross_attn_image_to_token'),
    'mlp_in': linear(golden, f'transformer/{name}/mlp/lin1'),
    'mlp_out': linear(golden, f'transformer/{name}/mlp/lin2'),
    **{f'norm{i}': norm(golden, f'{name}/norm{i}') for i in range(1, 5)},
  }


def extractor_params(golden, depth, queries):
  """The published names of `PromptAdaptor` under ours."""
  prompts = linear(golden, 'prompt_embedding_projection_mlp/layers.0')
  image = linear(golden, 'image_projection_mlp/layers.0')
  # The constant that the research code adds to every cell.
  no_mask = golden['in/dense'][0] @ prompts['kernel'] + prompts['bias']
  heads = [
    linear(golden, f'output_hypernetworks_mlps.{i}/layers.0')
    for i in range(queries)
  ]
  rest = [layer(golden, i) for i in range(1, depth)]
  stack = lambda *leaves: np.stack(leaves)
  return {
    'queries': golden['params/output_tokens.weight'],
    'prompt_projection': prompts,
    'position_projection': linear(golden, 'image_pe_projection_mlp/layers.0'),
    'image_projection': {**image, 'bias': image['bias'] + no_mask},
    'first_layer': layer(golden, 0),
    'layers': jax.tree.map(stack, *rest),
    'final_attention': attention(golden, 'final_attn_token_to_image'),
    'final_norm': norm(golden, 'norm_final_attn'),
    'heads': jax.tree.map(stack, *heads),
  }


def test_extractor_equals_the_golden():
  golden = load('prompt_adapter')
  config = prompt.ExtractorConfig(
    num_queries=4, depth=2, width=32, num_heads=8, mlp_dim=64, out_dim=24
  )
  inputs = [
    golden[f'in/{n}'] for n in ('image_embeddings', 'image_pe', 'sparse')
  ]
  model = prompt.PromptFeatureExtractor(config)
  params = extractor_params(golden, config.depth, config.num_queries)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  # The mapping names every parameter, and nothing else.
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, shapes['params']
  )
  y = jax.jit(model.apply)({'params': params}, *inputs)
  np.testing.assert_allclose(y, golden['out/sparse_features'], **CLOSE)


@pytest.fixture(scope='module', name='tiny')
def tiny_fixture():
  """(apply, params, features, positions, prompts) of a random extractor."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
  positions = rng.normal(size=(3, 4, 10)).astype(np.float32)
  prompts = rng.normal(size=(2, 5, 2, 10)).astype(np.float32)
  model = prompt.PromptFeatureExtractor(TINY)
  shapes = nn.unbox(
    jax.eval_shape(model.init, jax.random.key(0), features, positions, prompts)
  )
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.4).astype(x.dtype), shapes
  )
  return jax.jit(model.apply), params, features, positions, prompts


def test_permuting_regions_permutes_outputs(tiny):
  apply, params, features, positions, prompts = tiny
  order = np.asarray([3, 0, 4, 1, 2])
  y = apply(params, features, positions, prompts)
  permuted = apply(params, features, positions, prompts[:, order])
  assert y.shape == (2, 5, 3, 8)
  np.testing.assert_allclose(permuted, y[:, order], atol=1e-5)


def test_regions_and_images_do_not_see_one_another(tiny):
  apply, params, features, positions, prompts = tiny
  y = apply(params, features, positions, prompts)
  other = prompts.copy()
  other[0, 2] += 1
  changed = np.asarray(apply(params, features, positions, other) != y)
  expected = np.zeros((2, 5), bool)
  expected[0, 2] = True
  np.testing.assert_array_equal(changed.any((2, 3)), expected)
  other = features.copy()
  other[1] += 1
  changed = np.asarray(apply(params, other, positions, prompts) != y)
  np.testing.assert_array_equal(changed.any((2, 3)), [[False] * 5, [True] * 5])


def test_one_region_equals_the_same_among_others(tiny):
  apply, params, features, positions, prompts = tiny
  y = apply(params, features, positions, prompts)
  alone = apply(params, features, positions, prompts[:, 3:4])
  np.testing.assert_allclose(alone, y[:, 3:4], atol=1e-5)


def test_cells_may_come_in_any_order_with_their_positions(tiny):
  apply, params, features, positions, prompts = tiny
  y = apply(params, features, positions, prompts)
  flipped = apply(params, features[:, ::-1], positions[::-1], prompts)
  np.testing.assert_allclose(flipped, y, atol=1e-5)
  moved = apply(params, features[:, ::-1], positions, prompts)
  assert np.abs(moved - y).max() > 1e-3


def test_gradients_reach_every_parameter(tiny):
  apply, params, features, positions, prompts = tiny
  total = lambda p: jnp.sum(jnp.sin(apply(p, features, positions, prompts)))
  grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params))
  # A key's bias shifts all logits of a query alike.
  dead = {
    jax.tree_util.keystr(path) for path, g in grads if np.abs(g).max() < 1e-7
  }
  assert all("['key']['bias']" in name for name in dead), dead


def test_unrolling_keeps_parameters_and_result(tiny):
  apply, params, *inputs = tiny
  config = dataclasses.replace(TINY, scan_unroll=2)
  model = prompt.PromptFeatureExtractor(config)
  y = jax.jit(model.apply)(params, *inputs)
  np.testing.assert_allclose(y, apply(params, *inputs), atol=1e-5)


def test_bfloat16_runs_through(tiny):
  _, params, *inputs = tiny
  model = prompt.PromptFeatureExtractor(
    dataclasses.replace(TINY, dtype='bfloat16')
  )
  y = jax.eval_shape(model.apply, params, *inputs)
  assert y.dtype == jnp.bfloat16
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype('float32')}


def test_depth_one_has_no_scanned_layers():
  model = prompt.PromptFeatureExtractor(dataclasses.replace(TINY, depth=1))
  inputs = jnp.ones((1, 2, 2, 6)), jnp.ones((2, 2, 10)), jnp.ones((1, 3, 2, 10))
  shape, params = jax.eval_shape(
    model.init_with_output, jax.random.key(0), *inputs
  )
  assert shape.shape == (1, 3, 3, 8)
  assert 'layers' not in params['params']


@pytest.mark.parametrize(
  ('change', 'message'),
  [({'depth': 0}, 'depth: .*at least 1, got 0'), ({'width': 12}, '8, got 12')],
)
def test_impossible_sizes_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, num_heads=4, **change)


# --- Projection


def test_projection_equals_the_golden():
  golden = load('linear_project')
  params = {
    'dense': linear(golden, 'visual_projection.0'),
    'norm': {
      k: golden[f'params/visual_projection.1/{k}'] for k in ('scale', 'bias')
    },
  }
  y = prompt.Projection(24).apply({'params': params}, golden['in/x'])
  np.testing.assert_allclose(y, golden['out/y'], **CLOSE)


# --- All


@pytest.mark.parametrize(
  'init',
  [
    functools.partial(
      prompt.LocationPromptEncoder(prompt.PromptConfig(16)).init,
      method='boxes',
      boxes_px=jnp.ones((1, 4)),
      image_size_px=(8, 8),
    ),
    functools.partial(
      prompt.PromptFeatureExtractor(TINY).init,
      features=jnp.ones((1, 2, 2, 6)),
      feature_positions=jnp.ones((2, 2, 10)),
      prompts=jnp.ones((1, 3, 2, 10)),
    ),
    functools.partial(prompt.Projection(8).init, x=jnp.ones((1, 3))),
  ],
  ids=['encoder', 'extractor', 'projection'],
)
def test_every_parameter_has_known_axes_that_a_mesh_can_hold(init):
  boxed = jax.eval_shape(init, jax.random.key(0))
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  leaves = jax.tree.leaves(boxed, is_leaf=is_boxed)
  assert leaves
  for leaf in leaves:
    assert is_boxed(leaf)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= sharding.AXIS_NAMES
    # Flax refuses a kernel that uses one name twice.
    nn.logical_to_mesh_axes(leaf.names, sharding.RULES)
