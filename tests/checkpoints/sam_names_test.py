# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import traverse_util
from model import mask_test

from pixel_llm import weights
from pixel_llm.checkpoints import mapping, sam_names
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection
from pixel_llm.model import mask, pixel_llm, prompt, sam

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
MASK = mask.MaskConfig(
  depth=2, width=16, num_heads=2, mlp_dim=8, iou_dim=12, adapter=None
)


def network(config, mask_config=None):
  """The network of which all but SAM's parts is of no interest."""
  return pixel_llm.ModelConfig(
    eva=None,
    sam=config,
    prompt=prompt.PromptConfig(config.out_channels),
    mask=mask_config,
  )


NETWORK = network(TINY, MASK)


def table(peer, config):
  return TABLES[peer](
    config.sam.depth,
    config.sam.blocks_per_group,
    config.sam.patch_size,
    config.sam.position_grid,
    None if config.mask is None else config.mask.depth,
  )


@functools.cache
def shapes(config):
  return weights.encoder_shapes(config, 'sam')


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


@pytest.mark.parametrize('masks', [mask.MaskConfig(), None])
@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('peer', TABLES)
def test_every_published_name_and_shape_is_covered(peer, name, masks):
  with gzip.open(GOLDEN, 'rt') as file:
    published = json.load(file)[f'{peer}/{name}']
  config = network(sam.SIZES[SIZES[name]], masks)
  ours = mapping.convert(table(peer, config), unread(published), shapes(config))
  assert {n: t.shape for n, t in ours.items()} == shapes(config)
  theirs = back(peer, config, ours)
  left = published.keys() - theirs.keys()
  assert {n: list(t.shape) for n, t in theirs.items()} == {
    n: shape for n, shape in published.items() if n not in left
  }
  # What embeds masks stays behind, and what Hugging Face has twice; without a
  # mask decoder all of it.
  known = {'mask_downscaling', 'mask_embed', 'shared_embedding'}
  if masks is None:
    left = {n for n in left if not n.startswith('mask_decoder.')}
    known.add('no_mask_embed')
  assert left and {n.split('.')[1] for n in left} <= known


@pytest.mark.parametrize('peer', TABLES)
@pytest.mark.parametrize('blocks_per_group', [1, 2, 3])
def test_there_and_back_is_exact(peer, blocks_per_group):
  config = network(
    dataclasses.replace(TINY, blocks_per_group=blocks_per_group),
    dataclasses.replace(MASK, depth=blocks_per_group),
  )
  ours = random_tensors(shapes(config))
  theirs = back(peer, config, ours)
  again = mapping.convert(table(peer, config), theirs, shapes(config))
  assert_same(again, ours)
  assert_same(back(peer, config, again), theirs)


def test_blocks_lie_in_their_groups():
  theirs = back('segment-anything', NETWORK, random_tensors(shapes(NETWORK)))
  ours = mapping.convert(
    table('segment-anything', NETWORK), theirs, shapes(NETWORK)
  )

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


def test_the_mask_decoder_is_that_of_the_mapping_by_hand():
  theirs = back('segment-anything', NETWORK, random_tensors(shapes(NETWORK)))
  ours = mapping.convert(
    table('segment-anything', NETWORK), theirs, shapes(NETWORK)
  )
  decoder = tensors_lib.part(theirs, 'mask_decoder.')
  read = mask_test.torch_reader({n: t.read() for n, t in decoder.items()})
  no_mask = theirs['prompt_encoder.no_mask_embed.weight'].read()
  expected = mask_test.decoder_params(read, no_mask)
  assert_same(
    tensors_lib.part(ours, 'mask_decoder/'),
    {
      name: tensors_lib.of_array(x)
      for name, x in traverse_util.flatten_dict(expected, sep='/').items()
    },
  )


def test_another_size_is_named():
  theirs = back('segment-anything', NETWORK, random_tensors(shapes(NETWORK)))
  other = network(
    dataclasses.replace(TINY, depth=3, position_grid=5),
    dataclasses.replace(MASK, depth=1, candidates=2),
  )
  with pytest.raises(mapping.MappingError) as error:
    mapping.convert(table('segment-anything', other), theirs, shapes(other))
  text = str(error.value)
  assert 'image_encoder.blocks.5.attn.proj.weight' in text
  assert 'sam/positions: expected axes [1, 5, 5] from axis 0 on' in text
  assert 'global_block/attention/rel_pos_h: expected [1, 9, 12]' in text
  assert '  mask_decoder.transformer.layers.1.mlp.lin1.bias\n' in text
  assert 'mask_decoder/mask_tokens: expected [3, 16], got [4, 16]' in text
  assert 'mask_decoder/stroke_2/bias: expected [3, 2], got [4, 2]' in text


@pytest.mark.parametrize('peer', TABLES)
def test_what_is_wrong_with_a_mask_decoder_is_listed(peer):
  theirs = back(peer, NETWORK, random_tensors(shapes(NETWORK)))
  theirs['mask_decoder.hf_token.weight'] = theirs.pop(
    'prompt_encoder.no_mask_embed.weight'
  )
  mlp = 'proj_out' if peer == 'huggingface' else 'layers.2'
  del theirs[f'mask_decoder.output_hypernetworks_mlps.1.{mlp}.bias']
  with pytest.raises(mapping.MappingError) as error:
    mapping.convert(table(peer, NETWORK), theirs, shapes(NETWORK))
  assert str(error.value).splitlines() == [
    '1 names of the source that no rule takes:',
    '  mask_decoder.hf_token.weight',
    '2 names of the target that nothing gives:',
    '  mask_decoder/no_mask [1, 16]',
    '  mask_decoder/stroke_2/bias [4, 2]',
    '1 shapes:',
    '  mask_decoder/stroke_2/bias: expected mask 0..3, got none of 1',
  ]
  # None of it matters to a network without masks.
  without = network(TINY)
  ours = mapping.convert(table(peer, without), theirs, shapes(without))
  assert {name.split('/')[0] for name in ours} == {'sam', 'prompt_encoder'}


def test_two_halves_of_hugging_face_s_frequencies_are_one():
  theirs = back('huggingface', NETWORK, random_tensors(shapes(NETWORK)))
  first = theirs['shared_image_embedding.positional_embedding'].read()
  copy = 'prompt_encoder.shared_embedding.positional_embedding'
  for array, fits in ((first.copy(), True), (first + 1, False)):
    both = theirs | {copy: tensors_lib.of_array(array)}
    ours = mapping.convert(table('huggingface', NETWORK), both, shapes(NETWORK))
    if fits:
      ours['prompt_encoder/frequencies'].read()
    else:
      with pytest.raises(mapping.MappingError, match=copy):
        ours['prompt_encoder/frequencies'].read()


# --- Against the peers themselves


def imported_params(peer, path, out):
  """A peer's file as our parameters, checked to go back as the same bits."""
  weights.import_weights(str(path), str(out), peer, NETWORK, part='sam')
  _, ours = detection.open_tensors(out)
  _, theirs = detection.open_tensors(path)
  again = back(peer, NETWORK, ours)
  assert_same(again, {name: theirs[name] for name in again})
  arrays = {name: jnp.asarray(t.read()) for name, t in ours.items()}
  return traverse_util.unflatten_dict(arrays, sep='/')


def features(params, image):
  return jax.jit(sam.Sam(TINY).apply)({'params': params['sam']}, image)


@functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
def segmented(params, image, boxes_px):
  """What `PixelLLM.segment` says of boxes of an image that it is shown.

  Args:
    params: SAM's.
    image: [height, width, 3] uint8, not yet padded.
    boxes_px: [boxes, 4].

  Returns: without and with `ambiguous`, logits [boxes, masks, SIDE, SIDE] and
    predicted IoU [boxes, masks].
  """
  model = pixel_llm.PixelLLM(NETWORK)
  height, width, _ = image.shape
  size = jnp.array([[height, width]])
  # Whatever is in the padding.
  image = jnp.pad(
    image,
    ((0, SIDE - height), (0, SIDE - width), (0, 0)),
    constant_values=jnp.uint8(99),
  )
  maps = model.run(params, image[None], size, method='encode_maps')
  boxes = boxes_px / jnp.array([[width, height, width, height]])
  nothing = jnp.zeros((1, len(boxes), 0, 1))
  results = []
  for ambiguous in (False, True):
    logits, iou = model.run(
      params,
      maps['sam'],
      boxes[None],
      size,
      (SIDE, SIDE),
      visual=nothing,
      visual_valid=nothing[..., 0] > 0,
      hidden=nothing,
      words=nothing[..., 0] > 0,
      ambiguous=ambiguous,
      method='segment',
    )
    results.append((logits[0], iou[0]))
  return results


def pictures(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


# Shorter than it is wide, so that it is padded.
PICTURE = (
  np.random.default_rng(3).integers(0, 256, (28, SIDE, 3)).astype(np.uint8)
)
BOXES = np.array([[3, 5, 20, 21.5], [0, 0, 40, 28], [11, 2, 33, 9]], np.float32)


def assert_close(got, expected):
  expected = np.asarray(expected)
  assert np.std(expected) > 0.1
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, 1e-4, 1e-5 * scale)


def assert_same_masks(got, expected):
  """Both of (logits, IoU) of all boxes, which are to matter for either."""
  for a, b in zip(got, map(np.asarray, expected)):
    assert b.std(axis=0).mean() > 0.01
    assert_close(a, b)


def randomize(model):
  """Random parameters, large enough that masks depend on boxes."""
  peers.randomize(model)
  with peers.imported('torch').no_grad():
    for x in model.mask_decoder.parameters():
      x *= 2 if x.ndim > 1 else 1


@pytest.fixture(scope='module', name='segment_anything')
def segment_anything_fixture(tmp_path_factory):
  """segment-anything's model and our parameters."""
  peers.imported('segment_anything')
  modeling = peers.imported('segment_anything.modeling')
  torch = peers.imported('torch')
  torch.manual_seed(0)
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
      transformer_dim=MASK.width,
      transformer=modeling.TwoWayTransformer(
        MASK.depth, MASK.width, MASK.num_heads, MASK.mlp_dim
      ),
      iou_head_hidden_dim=MASK.iou_dim,
    ),
  ).eval()
  randomize(theirs)
  folder = tmp_path_factory.mktemp('segment_anything')
  torch.save(theirs.state_dict(), folder / 'sam.pth')
  return theirs, imported_params(
    'segment-anything', folder / 'sam.pth', folder / 'ours.safetensors'
  )


@pytest.mark.parity
def test_segment_anything_gives_the_same_features_and_prompts(segment_anything):
  theirs, params = segment_anything
  torch = peers.imported('torch')
  image = pictures()
  with torch.no_grad():
    expected = theirs.image_encoder(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert_close(features(params, image), expected)

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
  randomize(theirs)
  torch.save(theirs.state_dict(), tmp_path / 'sam.pth')
  base = network(sam.SIZES['base'])
  out = tmp_path / 'ours.safetensors'
  weights.import_weights(
    str(tmp_path / 'sam.pth'), str(out), 'segment-anything', base
  )
  _, ours = detection.open_tensors(out)
  params = traverse_util.unflatten_dict(
    {name: jnp.asarray(t.read()) for name, t in ours.items()}, sep='/'
  )
  image = np.random.default_rng(0).normal(size=(1, 1024, 1024, 3))
  image = image.astype(np.float32)
  with torch.no_grad():
    expected = theirs.image_encoder(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert expected.shape == (1, 64, 64, 256)
  got = jax.jit(sam.Sam(base.sam).apply)({'params': params['sam']}, image)
  assert_close(got, expected)


@pytest.mark.parity
def test_segment_anything_s_predictor_draws_the_same_masks(segment_anything):
  theirs, params = segment_anything
  predictor = peers.imported('segment_anything').SamPredictor(theirs)
  predictor.set_image(PICTURE)
  height = len(PICTURE)
  for ambiguous, got in enumerate(segmented(params, PICTURE, BOXES)):
    drawn, iou, low_resolution = (
      np.stack(x)
      for x in zip(
        *(
          predictor.predict(box=box, multimask_output=bool(ambiguous))
          for box in BOXES
        )
      )
    )
    assert_same_masks(got, (low_resolution, iou))
    # With these patches, pixels of a mask are those of the image.
    unclear = np.abs(low_resolution[..., :height, :]) < 1e-3
    assert drawn.shape == unclear.shape and unclear.mean() < 0.1
    np.testing.assert_array_equal(
      np.where(unclear, drawn, got[0][..., :height, :] > 0), drawn
    )


@pytest.fixture(scope='module', name='sam_model')
def sam_model_fixture(tmp_path_factory):
  """transformers' model and our parameters."""
  transformers = peers.imported('transformers')
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
    'hidden_size': MASK.width,
    'mlp_dim': MASK.mlp_dim,
    'num_attention_heads': MASK.num_heads,
    'num_hidden_layers': MASK.depth,
    'iou_head_hidden_dim': MASK.iou_dim,
  }
  theirs = transformers.SamModel(
    transformers.SamConfig(
      vision_config=vision,
      prompt_encoder_config=prompts,
      mask_decoder_config=decoder,
    )
  ).eval()
  randomize(theirs)
  folder = tmp_path_factory.mktemp('transformers')
  theirs.save_pretrained(folder / 'theirs')
  return theirs, imported_params(
    'huggingface', folder / 'theirs', folder / 'ours.safetensors'
  )


@pytest.mark.parity
def test_transformers_gives_the_same_features(sam_model):
  theirs, params = sam_model
  torch = peers.imported('torch')
  image = pictures()
  with torch.no_grad():
    expected = theirs.get_image_embeddings(
      torch.tensor(image).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  assert_close(features(params, image), expected)


@pytest.mark.parity
def test_transformers_draws_the_same_masks(sam_model):
  theirs, params = sam_model
  torch = peers.imported('torch')
  pixels = (PICTURE - np.float32(TINY.mean)) / np.float32(TINY.std)
  pixels = np.pad(pixels, ((0, SIDE - len(PICTURE)), (0, 0), (0, 0)))
  for ambiguous, got in enumerate(segmented(params, PICTURE, BOXES)):
    with torch.no_grad():
      expected = theirs(
        pixel_values=torch.tensor(pixels)[None].permute(0, 3, 1, 2),
        input_boxes=torch.tensor(BOXES)[None],
        multimask_output=bool(ambiguous),
      )
    assert_same_masks(got, (expected.pred_masks[0], expected.iou_scores[0]))
