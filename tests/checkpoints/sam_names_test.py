# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import linen as nn
from flax import traverse_util

from pixel_llm.checkpoints import mapping, sam_names
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection
from pixel_llm.model import prompt, sam

# Names and shapes of what each peer builds of its released sizes.
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'encoder_names.json.gz'
SIZES = {'vit_b': 'base', 'vit_l': 'large', 'vit_h': 'huge'}
TABLES = {
  'segment-anything': sam_names.segment_anything,
  'huggingface': sam_names.hugging_face,
}
# Ten cells a side: the third window of each row and column is half empty.
TINY = sam.SamConfig(
  patch_size=4,
  width=24,
  depth=6,
  num_heads=2,
  mlp_dim=48,
  window_size=4,
  blocks_per_group=3,
  position_grid=10,
  out_channels=16,
)
SIDE = 40


def table(peer, config):
  return TABLES[peer](
    config.depth,
    config.blocks_per_group,
    config.patch_size,
    config.position_grid,
  )


@functools.cache
def shapes(config):
  """Of the encoder and of the prompt encoder of the same width."""

  def flat(module, prefix, *args, **kwargs):
    tree = jax.eval_shape(
      lambda key: module.init(key, *args, **kwargs)['params'],
      jax.random.key(0),
    )
    leaves = traverse_util.flatten_dict(nn.unbox(tree), sep='/')
    return {f'{prefix}/{name}': x.shape for name, x in leaves.items()}

  side = config.patch_size * config.position_grid
  encoder = prompt.LocationPromptEncoder(
    prompt.PromptConfig(config.out_channels)
  )
  return flat(sam.Sam(config), 'sam', jnp.zeros((1, side, side, 3))) | flat(
    encoder, 'prompt_encoder', jnp.zeros((1, 4)), (side, side), method='boxes'
  )


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


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('peer', TABLES)
def test_every_published_name_and_shape_is_covered(peer, name):
  with gzip.open(GOLDEN, 'rt') as file:
    published = json.load(file)[f'{peer}/{name}']
  config = sam.SIZES[SIZES[name]]
  ours = mapping.convert(table(peer, config), unread(published), shapes(config))
  assert {n: t.shape for n, t in ours.items()} == shapes(config)
  theirs = back(peer, config, ours)
  left = published.keys() - theirs.keys()
  assert {n: list(t.shape) for n, t in theirs.items()} == {
    n: shape for n, shape in published.items() if n not in left
  }
  # What stays behind is of masks, or what Hugging Face has twice.
  assert left and not [
    n for n in left if 'mask' not in n and 'shared_embedding' not in n
  ]


@pytest.mark.parametrize('peer', TABLES)
@pytest.mark.parametrize('blocks_per_group', [1, 2, 3])
def test_there_and_back_is_exact(peer, blocks_per_group):
  config = sam.SamConfig(**{**vars(TINY), 'blocks_per_group': blocks_per_group})
  ours = random_tensors(shapes(config))
  theirs = back(peer, config, ours)
  again = mapping.convert(table(peer, config), theirs, shapes(config))
  assert_same(again, ours)
  assert_same(back(peer, config, again), theirs)


def test_blocks_lie_in_their_groups():
  theirs = back('segment-anything', TINY, random_tensors(shapes(TINY)))
  ours = mapping.convert(table('segment-anything', TINY), theirs, shapes(TINY))

  def qkv(layer):
    weight = theirs[f'image_encoder.blocks.{layer}.attn.qkv.weight'].read()
    return np.split(weight, 3)

  def kernel(blocks, name):
    return ours[f'sam/groups/{blocks}/attention/{name}/kernel'].read()

  for i, name in enumerate(('query', 'key', 'value')):
    windowed, whole = (
      kernel('window_blocks', name),
      kernel('global_block', name),
    )
    assert windowed.shape == (2, 2, 24, 24) and whole.shape == (2, 24, 24)
    np.testing.assert_array_equal(windowed[1, 0], qkv(3)[i].T)
    np.testing.assert_array_equal(windowed[0, 1], qkv(1)[i].T)
    np.testing.assert_array_equal(whole[0], qkv(2)[i].T)


def test_another_size_is_named():
  theirs = back('segment-anything', TINY, random_tensors(shapes(TINY)))
  other = sam.SamConfig(**{**vars(TINY), 'depth': 3, 'position_grid': 5})
  with pytest.raises(mapping.MappingError) as error:
    mapping.convert(table('segment-anything', other), theirs, shapes(other))
  text = str(error.value)
  assert 'image_encoder.blocks.5.attn.proj.weight' in text
  assert 'sam/positions: expected axes [1, 5, 5] from axis 0 on' in text
  assert 'global_block/attention/rel_pos_h: expected [1, 9, 12]' in text


def test_two_halves_of_hugging_face_s_frequencies_are_one():
  theirs = back('huggingface', TINY, random_tensors(shapes(TINY)))
  first = theirs['shared_image_embedding.positional_embedding'].read()
  copy = 'prompt_encoder.shared_embedding.positional_embedding'
  for array, fits in ((first.copy(), True), (first + 1, False)):
    both = theirs | {copy: tensors_lib.of_array(array)}
    ours = mapping.convert(table('huggingface', TINY), both, shapes(TINY))
    if fits:
      ours['prompt_encoder/frequencies'].read()
    else:
      with pytest.raises(mapping.MappingError, match=copy):
        ours['prompt_encoder/frequencies'].read()


# --- Against the peers themselves


@functools.partial(jax.jit, static_argnums=0)
def features(config, params, image):
  return sam.Sam(config).apply({'params': params}, image)


def imported_params(peer, path, config):
  """A peer's file as our parameters, checked to go back as the same bits."""
  _, theirs = detection.open_tensors(path)
  ours = mapping.convert(table(peer, config), theirs, shapes(config))
  again = back(peer, config, ours)
  assert_same(again, {name: theirs[name] for name in again})
  arrays = {name: jnp.asarray(t.read()) for name, t in ours.items()}
  return traverse_util.unflatten_dict(arrays, sep='/')


def images(seed=0, side=SIDE):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, side, side, 3)).astype(np.float32)


def assert_close(got, expected):
  expected = np.asarray(expected)
  assert np.std(expected) > 0.1
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, 1e-4, 1e-5 * scale)


@pytest.mark.parity
def test_segment_anything_gives_the_same_features_and_prompts(tmp_path):
  peers.imported('segment_anything')
  modeling = peers.imported('segment_anything.modeling')
  torch = peers.imported('torch')
  theirs = modeling.Sam(
    modeling.ImageEncoderViT(
      img_size=SIDE,
      patch_size=TINY.patch_size,
      embed_dim=TINY.width,
      depth=TINY.depth,
      num_heads=TINY.num_heads,
      mlp_ratio=2,
      out_chans=TINY.out_channels,
      norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
      use_rel_pos=True,
      window_size=TINY.window_size,
      global_attn_indexes=(2, 5),
    ),
    modeling.PromptEncoder(TINY.out_channels, (10, 10), (SIDE, SIDE), 4),
    modeling.MaskDecoder(
      transformer_dim=TINY.out_channels,
      transformer=modeling.TwoWayTransformer(1, TINY.out_channels, 2, 8),
    ),
  ).eval()
  peers.randomize(theirs)
  torch.save(theirs.state_dict(), tmp_path / 'sam.pth')
  params = imported_params('segment-anything', tmp_path / 'sam.pth', TINY)
  image = images()
  with torch.no_grad():
    expected = theirs.image_encoder(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert_close(features(TINY, params['sam'], image), expected)

  encoder = prompt.LocationPromptEncoder(prompt.PromptConfig(TINY.out_channels))
  variables = {'params': params['prompt_encoder']}
  boxes = np.array([[3, 5, 20, 31.5], [0, 0, 40, 40]], np.float32)
  with torch.no_grad():
    expected, _ = theirs.prompt_encoder(None, torch.tensor(boxes), None)
  got = encoder.apply(variables, boxes, (SIDE, SIDE), method='boxes')
  assert_close(got, expected)
  points = np.random.default_rng(1).uniform(0, 40, (2, 3, 2)).astype(np.float32)
  labels = np.array([[1, 0, -1], [0, 1, 1]])
  with torch.no_grad():
    expected, _ = theirs.prompt_encoder(
      (torch.tensor(points), torch.tensor(labels)), torch.tensor(boxes), None
    )
  got = encoder.apply(variables, points, labels, (SIDE, SIDE), method='points')
  assert_close(got, expected[:, :3])
  with torch.no_grad():
    expected = theirs.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
  assert_close(encoder.apply(variables, 10, 10, method='positions'), expected)


@pytest.mark.parity
@pytest.mark.slow
def test_segment_anything_gives_the_same_features_at_its_real_size(tmp_path):
  registry = peers.imported('segment_anything').sam_model_registry
  torch = peers.imported('torch')
  theirs = registry['vit_b']().eval()
  peers.randomize(theirs)
  torch.save(theirs.state_dict(), tmp_path / 'sam.pth')
  config = sam.SIZES['base']
  params = imported_params('segment-anything', tmp_path / 'sam.pth', config)
  image = images(side=1024)[:1]
  with torch.no_grad():
    expected = theirs.image_encoder(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert expected.shape == (1, 64, 64, 256)
  assert_close(features(config, params['sam'], image), expected)


@pytest.mark.parity
def test_transformers_gives_the_same_features(tmp_path):
  transformers = peers.imported('transformers')
  torch = peers.imported('torch')
  vision = {
    'hidden_size': TINY.width,
    'num_hidden_layers': TINY.depth,
    'num_attention_heads': TINY.num_heads,
    'image_size': SIDE,
    'patch_size': TINY.patch_size,
    'window_size': TINY.window_size,
    'global_attn_indexes': [2, 5],
    'mlp_dim': TINY.mlp_dim,
    'output_channels': TINY.out_channels,
    'num_pos_feats': TINY.out_channels // 2,
  }
  prompts = {
    'hidden_size': TINY.out_channels,
    'image_size': SIDE,
    'patch_size': TINY.patch_size,
  }
  decoder = {
    'hidden_size': TINY.out_channels,
    'mlp_dim': 8,
    'num_attention_heads': 2,
    'num_hidden_layers': 1,
  }
  theirs = transformers.SamModel(
    transformers.SamConfig(
      vision_config=vision,
      prompt_encoder_config=prompts,
      mask_decoder_config=decoder,
    )
  ).eval()
  peers.randomize(theirs)
  theirs.save_pretrained(tmp_path)
  params = imported_params('huggingface', tmp_path, TINY)
  image = images()
  with torch.no_grad():
    expected = theirs.get_image_embeddings(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert_close(features(TINY, params['sam'], image), expected)
