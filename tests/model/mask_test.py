# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Mask decoder and adapter against published numbers; properties."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import linen as nn

from pixel_llm import sharding
from pixel_llm.model import mask, prompt

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CLOSE = {'atol': 1e-5, 'rtol': 1e-4}
TWO_WAY = prompt.TwoWayConfig(depth=2, width=16, num_heads=2, mlp_dim=24)
TINY = mask.MaskConfig(
  depth=2,
  width=16,
  num_heads=2,
  mlp_dim=24,
  candidates=2,
  iou_dim=12,
  adapter=TWO_WAY,
)


def load(name):
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    return dict(arrays)


# --- The published parameters under our names. `read(name)` gives an array by
# its name in Flax's spelling and layout.


def linear(read, name):
  return {k: read(f'{name}/{k}') for k in ('kernel', 'bias')}


def norm(read, name):
  return {k: read(f'{name}/{k}') for k in ('scale', 'bias')}


def attention(read, name):
  names = (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'out'))
  return {
    ours: linear(read, f'transformer/{name}/{theirs}_proj')
    for ours, theirs in names
  }


def layer(read, index):
  name = f'layers.{index}'
  return {
    'self_attention': attention(read, f'{name}/self_attn'),
    'token_to_image': attention(read, f'{name}/cross_attn_token_to_image'),
    'image_to_token': attention(read, f'{name}/cross_attn_image_to_token'),
    'mlp_in': linear(read, f'transformer/{name}/mlp/lin1'),
    'mlp_out': linear(read, f'transformer/{name}/mlp/lin2'),
    **{
      f'norm{i}': norm(read, f'transformer/{name}/norm{i}') for i in range(1, 5)
    },
  }


def stack(*trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def two_way(read, depth):
  return {
    'first_layer': layer(read, 0),
    'layers': stack(*(layer(read, i) for i in range(1, depth))),
    'final_attention': attention(read, 'final_attn_token_to_image'),
    'final_norm': norm(read, 'transformer/norm_final_attn'),
  }


def upscale(read, name):
  kernel = read(f'{name}/kernel')  # [2, 2, out, in]
  y, x, outs, ins = kernel.shape
  kernel = kernel.transpose(3, 0, 1, 2).reshape(ins, y * x, outs)
  return {'kernel': kernel, 'bias': read(f'{name}/bias')}


def decoder_params(read, no_mask, depth=2, masks=4):
  strokes = [
    stack(
      *(
        linear(read, f'output_hypernetworks_mlps.{m}/layers.{i}')
        for m in range(masks)
      )
    )
    for i in range(3)
  ]
  return {
    'no_mask': no_mask,
    'iou_token': read('iou_token.weight'),
    'mask_tokens': read('mask_tokens.weight'),
    **two_way(read, depth),
    **{f'stroke_{i}': s for i, s in enumerate(strokes)},
    'upscale_0': upscale(read, 'output_upscaling/0'),
    'upscale_norm': norm(read, 'output_upscaling/1'),
    'upscale_1': upscale(read, 'output_upscaling/3'),
    **{
      f'iou_{i}': linear(read, f'iou_prediction_head/layers.{i}')
      for i in range(3)
    },
  }


def adapter_params(read, depth=2):
  return {
    'queries': read('output_tokens.weight'),
    'gate': read('alpha_output.weight'),
    'visual_projection': linear(read, 'visual_projection_mlp/layers.0'),
    'visual_projection_norm': norm(read, 'visual_projection_mlp/LayerNorm_0'),
    'word_projection': linear(read, 'textual_projection_mlp/layers.0'),
    'word_projection_norm': norm(read, 'textual_projection_mlp/LayerNorm_0'),
    **two_way(read, depth),
  }


def check_names(model, params, *inputs):
  """The mapping names every parameter, and nothing else."""
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, shapes['params']
  )


@pytest.mark.parametrize('ambiguous', [False, True])
def test_decoder_equals_the_golden(ambiguous):
  golden = load('sam_mask_decoder')
  config = mask.MaskConfig(
    depth=2, width=32, num_heads=8, mlp_dim=64, iou_dim=32, adapter=None
  )
  params = decoder_params(
    lambda name: golden[f'params/{name}'], golden['in/dense']
  )
  inputs = (
    golden['in/image_embeddings'][None],
    golden['in/image_pe'],
    golden['in/sparse'][None],
  )
  model = mask.MaskDecoder(config)
  check_names(model, params, *inputs)
  logits, iou = jax.jit(model.apply, static_argnames='ambiguous')(
    {'params': params}, *inputs, ambiguous=ambiguous
  )
  name = f'multimask_{ambiguous}'
  np.testing.assert_allclose(logits[0], golden[f'out/masks_{name}'], **CLOSE)
  np.testing.assert_allclose(iou[0], golden[f'out/ious_{name}'], **CLOSE)


def test_adapter_equals_the_golden():
  golden = load('mask_adapter')
  config = prompt.TwoWayConfig(depth=2, width=32, num_heads=8, mlp_dim=64)
  params = adapter_params(lambda name: golden[f'params/{name}'])
  inputs = [
    golden[f'in/{name}']
    for name in ('sparse_embedding', 'visual_features', 'text_features')
  ]
  model = mask.MaskAdapter(config)
  check_names(model, params, *inputs)
  y = jax.jit(model.apply)({'params': params}, *inputs)
  np.testing.assert_allclose(y, golden['out/sparse_embedding'], **CLOSE)


# --- Against segment-anything itself


@pytest.fixture(name='modeling')
def modeling_fixture():
  """`segment_anything.modeling`."""
  peers.imported('segment_anything')
  return importlib.import_module('segment_anything.modeling')


def arrays(module):
  """A PyTorch module's parameters by name."""
  return {k: v.numpy() for k, v in module.state_dict().items()}


def torch_reader(state):
  """Reads a PyTorch module's parameters in Flax's spelling and layout."""

  def read(name):
    *path, leaf = name.replace('/', '.').split('.')
    path = '.'.join(path)
    if leaf in ('bias', 'weight'):
      return state[f'{path}.{leaf}']
    weight = state[f'{path}.weight']
    if weight.ndim == 4:  # [in, out, 2, 2]
      return weight.transpose(2, 3, 1, 0)
    return weight.T if leaf == 'kernel' else weight

  return read


@pytest.mark.parametrize('prompts', ['boxes', 'points', 'points and boxes'])
@pytest.mark.parity
def test_points_boxes_and_masks_equal_segment_anything(modeling, prompts):
  import torch

  width, size, grid = 32, (96, 128), (6, 8)
  torch.manual_seed(0)
  theirs_prompt = modeling.PromptEncoder(width, grid, size, 16)
  theirs_decoder = modeling.MaskDecoder(
    transformer_dim=width,
    transformer=modeling.TwoWayTransformer(2, width, 4, 64),
    iou_head_hidden_dim=20,
  )
  with torch.no_grad():
    # Zero biases and unit scales would hide a wrong place.
    for module in (theirs_prompt, theirs_decoder):
      for p in module.parameters():
        p += 0.1 * torch.randn(p.shape)
    features = torch.randn(1, width, *grid)
    low = torch.rand(3, 2) * 50
    boxes = torch.cat([low, low + 10 + torch.rand(3, 2) * 30], 1)
    points = torch.rand(3, 4, 2) * 90
    labels = torch.tensor([[1, 0, 1, -1], [0, 0, 1, 1], [1, -1, -1, 0]])
    sparse, dense = theirs_prompt(
      (points, labels) if 'points' in prompts else None,
      boxes if 'boxes' in prompts else None,
      None,
    )
    expected = {
      ambiguous: theirs_decoder(
        features, theirs_prompt.get_dense_pe(), sparse, dense, ambiguous
      )
      for ambiguous in (False, True)
    }

  read = torch_reader(arrays(theirs_prompt))
  gaussian = theirs_prompt.pe_layer.positional_encoding_gaussian_matrix
  rows = [read(f'point_embeddings.{i}.weight') for i in range(4)]
  prompt_params = {
    'frequencies': gaussian.numpy(),
    'point_embeddings': np.concatenate(rows),
    'not_a_point': read('not_a_point_embed.weight')[0],
  }
  encoder = prompt.LocationPromptEncoder(prompt.PromptConfig(width))

  def encode(*args, method):
    return encoder.apply({'params': prompt_params}, *args, method=method)

  points, labels = points.numpy(), labels.numpy()
  parts = []
  if 'points' in prompts:
    if 'boxes' not in prompts:
      points = np.pad(points, ((0, 0), (0, 1), (0, 0)))
      labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=-1)
    parts.append(encode(points, labels, size, method='points'))
  if 'boxes' in prompts:
    parts.append(encode(boxes.numpy(), size, method='boxes'))
  embedded = np.concatenate(parts, axis=1)
  np.testing.assert_allclose(embedded, sparse.numpy(), **CLOSE)

  config = mask.MaskConfig(
    depth=2, width=width, num_heads=4, mlp_dim=64, iou_dim=20, adapter=None
  )
  decoder = mask.MaskDecoder(config)
  params = decoder_params(
    torch_reader(arrays(theirs_decoder)), read('no_mask_embed.weight')
  )
  for ambiguous, (masks, ious) in expected.items():
    logits, iou = decoder.apply(
      {'params': params},
      features.numpy().transpose(0, 2, 3, 1),
      encode(*grid, method='positions'),
      embedded[None],
      ambiguous,
    )
    np.testing.assert_allclose(logits[0], masks.numpy(), **CLOSE)
    np.testing.assert_allclose(iou[0], ious.numpy(), **CLOSE)


# --- Properties


def randomized(model, *inputs):
  """Parameters of which none is zero."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.4).astype(x.dtype), shapes
  )


@pytest.fixture(scope='module', name='decoder')
def decoder_fixture():
  rng = np.random.default_rng(1)
  inputs = tuple(
    rng.normal(size=shape).astype(np.float32)
    for shape in ((2, 3, 4, 16), (3, 4, 16), (2, 5, 2, 16))
  )
  model = mask.MaskDecoder(TINY)
  apply = jax.jit(model.apply, static_argnums=4)
  return apply, randomized(model, *inputs), inputs


@pytest.fixture(scope='module', name='adapter')
def adapter_fixture():
  rng = np.random.default_rng(2)
  inputs = tuple(
    rng.normal(size=shape).astype(np.float32)
    for shape in ((2, 5, 2, 16), (2, 5, 3, 10), (2, 5, 4, 7))
  )
  model = mask.MaskAdapter(TWO_WAY)
  return jax.jit(model.apply), randomized(model, *inputs), inputs


def test_shapes(decoder):
  apply, params, inputs = decoder
  for ambiguous, masks in ((False, 1), (True, 2)):
    logits, iou = apply(params, *inputs, ambiguous)
    assert logits.shape == (2, 5, masks, 12, 16)
    assert iou.shape == (2, 5, masks)


def test_regions_and_images_do_not_see_one_another(decoder):
  apply, params, (features, positions, prompts) = decoder
  y = apply(params, features, positions, prompts, False)
  other = prompts.copy()
  other[0, 2] += 1
  changed = apply(params, features, positions, other, False)
  expected = np.zeros((2, 5), bool)
  expected[0, 2] = True
  for before, after in zip(y, changed):
    moved = np.asarray(before != after).reshape(2, 5, -1).any(-1)
    np.testing.assert_array_equal(moved, expected)
  other = features.copy()
  other[1] += 1
  moved = np.asarray(apply(params, other, positions, prompts, False)[0] != y[0])
  np.testing.assert_array_equal(moved.any((2, 3, 4)), [[False] * 5, [True] * 5])


def test_a_mask_is_laid_out_as_its_cells(decoder):
  apply, params, (features, positions, prompts) = decoder
  logits, iou = apply(params, features, positions, prompts, False)
  # Cells in another order with their positions: the same cells elsewhere.
  other, same = apply(
    params, features[:, ::-1, ::-1], positions[::-1, ::-1], prompts, False
  )
  np.testing.assert_allclose(iou, same, atol=1e-5)
  cells = lambda x: (
    np.asarray(x).reshape(2, 5, 3, 4, 4, 4).transpose(0, 1, 2, 4, 3, 5)
  )
  np.testing.assert_allclose(
    cells(other)[:, :, ::-1, ::-1], cells(logits), atol=1e-5
  )


def test_pixels_of_a_cell_go_row_by_row():
  # One cell beside another; of each, number 10 * part + pixel.
  parts = 10 * np.arange(4)[:, None] + np.arange(4)
  laid = mask._place(np.stack([parts, parts + 100])[None, None, None], 1, 2)
  np.testing.assert_array_equal(
    laid[0, 0, 0, :, :4],
    [[0, 1, 10, 11], [2, 3, 12, 13], [20, 21, 30, 31], [22, 23, 32, 33]],
  )
  np.testing.assert_array_equal(laid[..., 4:], laid[..., :4] + 100)


def test_a_closed_gate_lets_nothing_in(adapter):
  apply, _, inputs = adapter
  init = jax.jit(mask.MaskAdapter(TWO_WAY).init)
  params = nn.unbox(init(jax.random.key(0), *inputs))
  np.testing.assert_array_equal(apply(params, *inputs), inputs[0])


def test_what_is_not_there_is_not_read(adapter):
  apply, params, (prompts, visual, words) = adapter
  valid = np.random.default_rng(3).random((2, 5, 7)) < 0.6
  valid[..., 0] = True
  y = apply(params, prompts, visual, words, valid)
  shift = np.where(valid, 0, 5).astype(np.float32)[..., None]
  shift = shift * np.linspace(-1, 2, 7, dtype=np.float32)
  other = apply(
    params,
    prompts,
    visual + np.pad(shift, ((0, 0),) * 3 + ((0, 3),))[:, :, :3],
    words + shift[:, :, 3:],
    valid,
  )
  np.testing.assert_allclose(y, other, atol=1e-5)
  all_read = apply(params, prompts, visual, words)
  assert np.abs(y - all_read).max() > 1e-3
  np.testing.assert_allclose(
    all_read,
    apply(params, prompts, visual, words, np.ones_like(valid)),
    atol=1e-6,
  )


@pytest.mark.parametrize('part', ['decoder', 'adapter'])
def test_gradients_reach_every_parameter(part, request):
  apply, params, inputs = request.getfixturevalue(part)

  def total(params):
    y = apply(params, *inputs, *((True,) if part == 'decoder' else ()))
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(y))

  grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params))
  dead = {
    jax.tree_util.keystr(path) for path, g in grads if np.abs(g).max() < 1e-7
  }
  # A key's bias shifts all logits of a query alike.
  dead = {name for name in dead if "['key']['bias']" not in name}
  if part == 'adapter':
    # Nobody asks what the things read have become.
    last = ("['layers']['image_to_token']", "['layers']['norm4']")
    dead = {n for n in dead if not any(name in n for name in last)}
  assert not dead


def test_bfloat16(decoder):
  apply, params, inputs = decoder
  model = mask.MaskDecoder(dataclasses.replace(TINY, dtype='bfloat16'))
  logits, iou = jax.jit(model.apply)(params, *inputs)
  assert logits.dtype == iou.dtype == jnp.float32
  exact, _ = apply(params, *inputs, False)
  error = np.abs(logits - exact).max() / np.abs(exact).max()
  assert 0 < error < 0.1
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype('float32')}


@pytest.mark.parametrize('part', ['decoder', 'adapter'])
def test_every_parameter_has_known_axes_that_a_mesh_can_hold(part, request):
  *_, inputs = request.getfixturevalue(part)
  model = {
    'decoder': mask.MaskDecoder(TINY),
    'adapter': mask.MaskAdapter(TWO_WAY),
  }[part]
  boxed = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for leaf in jax.tree.leaves(boxed, is_leaf=is_boxed):
    assert is_boxed(leaf)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= sharding.AXIS_NAMES
    nn.logical_to_mesh_axes(leaf.names, sharding.RULES)


def test_the_default_sizes_are_those_of_sam():
  config = mask.MaskConfig()
  shapes = jax.eval_shape(
    mask.MaskDecoder(config).init,
    jax.random.key(0),
    jnp.zeros((1, 2, 2, 256)),
    jnp.zeros((2, 2, 256)),
    jnp.zeros((1, 1, 2, 256)),
  )
  total = sum(x.size for x in jax.tree.leaves(shapes))
  # The published mask decoder, and the "no mask" embedding.
  assert total == 4_058_340 + 256


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'depth': 0}, r'MaskConfig.depth: expected at least 1, got 0'),
    ({'width': 18}, r'MaskConfig.width: .* 2 \* num_heads = 4, got 18'),
    ({'width': 20}, r'MaskConfig.width: expected a multiple of 8, got 20'),
    ({'candidates': 0}, r'MaskConfig.candidates: .* got 0'),
    ({'width': 24}, r'MaskConfig.adapter.width: expected 24, .* got 16'),
  ],
)
def test_impossible_numbers_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)
