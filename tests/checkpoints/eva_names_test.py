# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
import gzip
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import linen as nn
from flax import traverse_util

from pixel_llm.checkpoints import eva_names, mapping
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection
from pixel_llm.model import eva

# Names and shapes of what each peer builds of its released sizes.
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'encoder_names.json.gz'
TABLES = {'timm': eva_names.timm, 'eva': eva_names.eva}
TINY = eva.EvaConfig(
  patch_size=4,
  width=24,
  depth=3,
  num_heads=2,
  mlp_dim=64,
  position_grid=5,
)
CONFIGS = {
  'subln': dataclasses.replace(TINY, mlp_norm_epsilon=1e-6),
  'fused': dataclasses.replace(TINY, mlp_norm_epsilon=None),
}


def table(peer, config):
  return TABLES[peer](
    config.patch_size, config.mlp_norm_epsilon is not None, config.final_norm
  )


@functools.cache
def shapes(config):
  side = config.patch_size * config.position_grid
  tree = jax.eval_shape(
    lambda key: eva.Eva(config).init(key, jnp.zeros((1, side, side, 3))),
    jax.random.key(0),
  )
  flat: Any = traverse_util.flatten_dict(nn.unbox(tree)['params'], sep='/')
  return {f'eva/{name}': x.shape for name, x in flat.items()}


def unread(shapes):
  def fail():
    raise AssertionError('nothing is to be read')

  return {
    name: tensors_lib.Tensor(tuple(shape), np.dtype(np.float32), fail)
    for name, shape in shapes.items()
  }


def random_tensors(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: tensors_lib.of_array(rng.normal(size=shape).astype(np.float32))
    for name, shape in shapes.items()
  }


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(got[name].read(), tensor.read(), strict=True)


def back(peer, config, ours):
  got, report = mapping.apply(mapping.inverse(table(peer, config)), ours)
  assert not report, report
  return got


@functools.cache
def published():
  with gzip.open(GOLDEN, 'rt') as file:
    return json.load(file)


@pytest.mark.parametrize(
  ('peer', 'name', 'size', 'grid'),
  [
    ('timm', 'eva02_tiny_patch14_224', 'tiny', 16),
    ('timm', 'eva02_small_patch14_224', 'small', 16),
    ('timm', 'eva02_base_patch14_224', 'base', 16),
    ('timm', 'eva02_large_patch14_224', 'large', 16),
    ('timm', 'eva02_tiny_patch14_336', 'tiny', 24),
    ('timm', 'eva02_base_patch14_448', 'base', 32),
    ('timm', 'eva02_large_patch14_448', 'large', 32),
    ('eva', 'eva02_tiny', 'tiny', 16),
    ('eva', 'eva02_small', 'small', 16),
    ('eva', 'eva02_base', 'base', 16),
    ('eva', 'eva02_large', 'large', 16),
  ],
)
def test_every_published_name_and_shape_is_covered(peer, name, size, grid):
  theirs = published()[f'{peer}/{name}']
  config = dataclasses.replace(eva.SIZES[size], position_grid=grid)
  ours = mapping.convert(table(peer, config), unread(theirs), shapes(config))
  assert {n: t.shape for n, t in ours.items()} == shapes(config)
  again = {n: list(t.shape) for n, t in back(peer, config, ours).items()}
  if 'norm.weight' in theirs:
    for leaf in ('weight', 'bias'):
      again[f'norm.{leaf}'] = again.pop(f'fc_norm.{leaf}')
  left = theirs.keys() - again.keys()
  assert again == {n: shape for n, shape in theirs.items() if n not in left}
  assert all(
    n.startswith(('head.', 'lm_head.', 'mask_token')) or 'rope.freqs' in n
    for n in left
  )


@pytest.mark.parametrize('peer', TABLES)
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize('final_norm', [True, False])
def test_there_and_back_is_exact(peer, config, final_norm):
  config = dataclasses.replace(config, final_norm=final_norm)
  ours = random_tensors(shapes(config))
  theirs = back(peer, config, ours)
  again = mapping.convert(table(peer, config), theirs, shapes(config))
  assert_same(again, ours)
  assert_same(back(peer, config, again), theirs)


def renamed(name, fused):
  """A name of EVA's code as timm itself renames it."""
  names = {
    'mlp.ffn_ln': 'mlp.norm',
    'mlp.w12': 'mlp.fc1',
    'mlp.w1': 'mlp.fc1_g',
    'mlp.w2': 'mlp.fc1_x',
    'mlp.w3': 'mlp.fc2',
  }
  if not fused:
    names |= {'q_bias': 'q_proj.bias', 'v_bias': 'v_proj.bias'}
  for old, new in names.items():
    if old in name:
      return name.replace(old, new)
  return name


@pytest.mark.parametrize('kind', CONFIGS)
def test_both_tables_of_one_tree_agree(kind):
  config = CONFIGS[kind]
  ours = random_tensors(shapes(config))
  timm, own = back('timm', config, ours), back('eva', config, ours)
  fused = kind == 'fused'
  assert_same({renamed(name, fused): t for name, t in own.items()}, timm)


def test_parts_of_fused_matrices_are_those_that_they_are_used_as():
  config = CONFIGS['fused']
  theirs = back('timm', config, random_tensors(shapes(config)))
  ours = mapping.convert(table('timm', config), theirs, shapes(config))
  qkv = np.split(theirs['blocks.2.attn.qkv.weight'].read(), 3)
  for part, name in zip(qkv, ('query', 'key', 'value')):
    kernel = ours[f'eva/blocks/attention/{name}/kernel'].read()
    np.testing.assert_array_equal(kernel[2], part.T)
  gate, _ = np.split(theirs['blocks.1.mlp.fc1.bias'].read(), 2)
  np.testing.assert_array_equal(ours['eva/blocks/mlp/w1/bias'].read()[1], gate)


def test_a_norm_that_the_network_lacks_is_left_out():
  with_norm = random_tensors(shapes(CONFIGS['subln']))
  theirs = back('timm', CONFIGS['subln'], with_norm)
  config = dataclasses.replace(CONFIGS['subln'], final_norm=False)
  ours = mapping.convert(table('timm', config), theirs, shapes(config))
  assert with_norm.keys() - ours.keys() == {
    'eva/ln_post/scale',
    'eva/ln_post/bias',
  }


def test_both_norms_in_one_file_are_refused():
  config = CONFIGS['subln']
  theirs = back('timm', config, random_tensors(shapes(config)))
  theirs['norm.weight'] = theirs['fc_norm.weight']
  with pytest.raises(mapping.MappingError, match='one source, got several'):
    mapping.convert(table('timm', config), theirs, shapes(config))


def test_a_dict_around_the_parameters_is_taken_off():
  theirs = random_tensors({'cls_token': (1, 1, 4)})
  assert eva_names.contained(theirs) == theirs
  around = {f'module/{name}': t for name, t in theirs.items()}
  around['optimizer/state/0/exp_avg'] = theirs['cls_token']
  assert eva_names.contained(around) == theirs
  # The averaged parameters, where there are both.
  average = random_tensors({'cls_token': (1, 1, 4)}, seed=1)
  around |= {f'model_ema/{name}': t for name, t in average.items()}
  assert_same(eva_names.contained(around), average)


# --- Against timm itself


@functools.partial(jax.jit, static_argnums=0)
def features(config, params, image):
  return eva.Eva(config).apply({'params': params}, image)


def imported_params(path, config, norm):
  """timm's file as our parameters, checked to go back as the same bits."""
  _, theirs = detection.open_tensors(path)
  ours = mapping.convert(table('timm', config), theirs, shapes(config))
  again = {
    name.replace('fc_norm', norm): tensor
    for name, tensor in back('timm', config, ours).items()
  }
  left = {'fc_norm.weight', 'fc_norm.bias'} if not config.final_norm else set()
  assert_same(again, {n: t for n, t in theirs.items() if n not in left})
  arrays = {
    name.removeprefix('eva/'): jnp.asarray(t.read()) for name, t in ours.items()
  }
  return traverse_util.unflatten_dict(arrays, sep='/')


def assert_close(got, expected):
  expected = np.asarray(expected)
  assert np.std(expected) > 0.05
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, 1e-4, 1e-5 * scale)


@pytest.mark.parity
@pytest.mark.parametrize(
  'size', ['tiny', 'base', pytest.param('large', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('norm', ['norm', 'fc_norm'])
def test_timm_gives_the_same_tokens_and_their_mean(tmp_path, size, norm):
  timm = peers.imported('timm')
  safetensors = peers.imported('safetensors.torch')
  torch = peers.imported('torch')
  changes = {}
  config = dataclasses.replace(eva.SIZES[size], drop_path_rate=0.0)
  if size == 'base':
    # Its kind of blocks, but not its width; patches of another number.
    config = dataclasses.replace(
      CONFIGS['subln'], patch_size=14, final_norm=True
    )
    changes = {
      'img_size': 70,
      'embed_dim': config.width,
      'depth': config.depth,
      'num_heads': config.num_heads,
      'ref_feat_shape': (5, 5),
    }
  if norm == 'fc_norm':
    # It comes after the pooling there: tokens are compared without it.
    config = dataclasses.replace(config, final_norm=False)
  theirs = timm.create_model(
    f'eva02_{size}_patch14_224',
    num_classes=0,
    use_fc_norm=norm == 'fc_norm',
    **changes,
  ).eval()
  peers.randomize(theirs)
  safetensors.save_file(theirs.state_dict(), tmp_path / 'eva.safetensors')
  params = imported_params(tmp_path / 'eva.safetensors', config, norm)

  side = 14 * config.position_grid
  image = np.random.default_rng(0).normal(size=(2, side, side, 3))
  image = image.astype(np.float32)
  with torch.no_grad():
    tokens = theirs.forward_features(torch.tensor(image).permute(0, 3, 1, 2))
    pooled = theirs.forward_head(tokens, pre_logits=True)
  got = features(config, params, image)
  assert_close(got.reshape(2, -1, config.width), tokens[:, 1:])
  mean = got.mean((1, 2))
  if norm == 'fc_norm':
    mean = theirs.fc_norm(torch.tensor(np.asarray(mean))).detach()
  # A mean of many tokens varies less than they do.
  scale = float(pooled.abs().max())
  np.testing.assert_allclose(mean, pooled, 1e-4, 1e-5 * scale)
