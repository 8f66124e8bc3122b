# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm import geometry
from pixel_llm.model import decoding, detector, pixel_llm, region
from pixel_llm.tasks import task as task_lib

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
REGION = region.RegionConfig(bins=2, bin_channels=4, mlp_dim=12, cells=3)


@pytest.fixture(scope='module', params=[None, REGION], ids=['paper', 'region'])
def network(request):
  return tiny.init(
    dataclasses.replace(tiny.model_config(), region=request.param)
  )


@pytest.fixture(scope='module')
def forward(network):
  model, params = network
  return jax.jit(lambda batch: model.apply({'params': params}, batch))


def test_output_shapes(network, forward):
  output = forward(tiny.random_batch())
  if network[0].config.region is None:
    assert output.proposals is None
  else:
    assert output.proposals.shape == (8, 3, 3, 4)
  assert output.logits.shape == (8, 2, 6, 64)
  assert output.hidden.shape == (8, 2, 6, 16)
  assert output.points.shape == (8, 2, 6, 2, 2)


def test_needs_an_image_encoder():
  with pytest.raises(ValueError, match='eva and sam are both None'):
    dataclasses.replace(tiny.model_config(), eva=None, sam=None)


@pytest.mark.parametrize('absent', ['eva', 'sam'])
def test_either_encoder_may_be_absent(absent):
  config = dataclasses.replace(tiny.model_config(), **{absent: None})
  model, params = tiny.init(config)
  assert absent not in params
  features = jax.jit(
    lambda b: model.apply(
      {'params': params}, b.image, b.image_size, method='encode_image'
    )
  )(tiny.random_batch())
  assert features.shape[-1] == (8 if absent == 'eva' else 16)


def test_joined_maps_are_the_research_code(network):
  with np.load(GOLDEN / 'join_features.npz') as golden:
    maps = {'eva': golden['in/feat_a'], 'sam': golden['in/feat_b']}
    features = network[0].apply({}, maps, method='join')
    np.testing.assert_allclose(features, golden['out/concat_plus'], atol=1e-5)


def test_padding_pixels_do_not_matter(forward):
  batch = tiny.random_batch()
  batch = batch.replace(image_size=np.full((8, 2), 20, np.int32))
  image = batch.image.copy()
  image[:, 20:] = 77
  image[:, :, 20:] = 200
  np.testing.assert_array_equal(
    forward(batch).logits, forward(batch.replace(image=image)).logits
  )


def test_a_region_does_not_see_the_others(forward):
  batch = tiny.random_batch()
  other = tiny.random_batch(seed=1)
  mixed = batch.replace(
    **{
      name: np.concatenate(
        [getattr(batch, name)[:, :1], getattr(other, name)[:, 1:]], axis=1
      )
      for name, spec in batch.specs().items()
      if spec.dims[:2] == ('B', 'R')
    }
  )
  left, right = forward(batch), forward(mixed)
  np.testing.assert_allclose(left.points[:, 0], right.points[:, 0], atol=1e-5)
  assert np.abs(left.points[:, 1] - right.points[:, 1]).max() > 1e-3


def test_points_say_where(network):
  model, params = network
  batch = tiny.random_batch(
    dataclasses.replace(tiny.SIZES, batch=1, prompt_points=3)
  )
  features = np.random.default_rng(2).normal(size=(1, 4, 4, 24)).astype('f')

  @jax.jit
  def embed(boxes, points, labels, weights):
    return model.apply(
      {'params': params},
      features,
      boxes,
      batch.image_size,
      (32, 32),
      (points, labels, weights),
      method='embed_regions',
    )[0]

  def visual(
    box=(0.1, 0.2, 0.6, 0.7), box_weight=0.0, points=None, labels=None
  ):
    boxes = np.broadcast_to(np.float32(box), (1, 2, 4))
    points = np.float32(points or [[0.3, 0.3], [0.8, 0.2], [0.5, 0.9]])
    labels = np.int32(labels or [1, -1, 0])
    weights = np.full((1, 2), box_weight, np.float32)
    return embed(
      boxes,
      np.broadcast_to(points, (1, 2, 3, 2)),
      np.broadcast_to(labels, (1, 2, 3)),
      weights,
    )

  same = functools.partial(np.testing.assert_allclose, atol=1e-5)
  differ = lambda a, b: np.abs(a - b).max() > 1e-4
  # Without a box only points matter, and of these those that are there.
  same(visual(), visual(box=(0.5, 0.5, 1, 1)))
  same(visual(), visual(points=[[0.3, 0.3], [0.8, 0.2], [0.1, 0.1]]))
  assert differ(visual(), visual(points=[[0.7, 0.3], [0.8, 0.2], [0.5, 0.9]]))
  assert differ(visual(), visual(points=[[0.3, 0.3], [0.8, 0.9], [0.5, 0.9]]))
  assert differ(visual(), visual(labels=[1, 1, 0]))
  # With one, both do; no point at all is not the same as no points asked for,
  # but all such prompts are alike.
  assert differ(visual(box_weight=1), visual())
  assert differ(
    visual(box_weight=1), visual(box_weight=1, box=(0.5, 0.5, 1, 1))
  )
  none = {'labels': [0, 0, 0], 'box_weight': 1}
  same(visual(**none), visual(**none, points=[[0.0, 0], [1, 1], [0, 1]]))


def test_words_come_from_earlier_words_only(forward):
  batch = tiny.random_batch()
  tokens = np.full_like(batch.decoder_target_tokens, 9)
  later = tokens.copy()
  later[..., 3:] = 10
  left, right = (
    forward(batch.replace(decoder_target_tokens=t)) for t in (tokens, later)
  )
  np.testing.assert_allclose(
    left.logits[:, :, :4], right.logits[:, :, :4], atol=1e-5
  )
  assert np.abs(left.logits[:, :, 4:] - right.logits[:, :, 4:]).max() > 1e-3


@pytest.mark.parametrize(
  'how',
  [
    {'beams': 1},
    {'beams': 3},
    {'beams': 2, 'no_repeat_ngram': 1, 'min_length': 3},
    {'temperature': 1.5, 'top_k': 20, 'top_p': 0.9},
  ],
)
def test_generated_words_and_points_equal_those_of_a_full_pass(
  network, forward, how
):
  model, params = network
  batch = tiny.random_batch()
  config = decoding.DecodingConfig(length=6, **how)
  output = jax.jit(task_lib.generate, static_argnums=(0, 3))(
    model, params, batch, config
  )
  full = forward(batch.replace(decoder_target_tokens=output.tokens))
  # A network that knows nothing may write padding, which a full pass masks.
  valid = np.cumprod(np.asarray(output.tokens) > 0, axis=-1) > 0
  # Only a draw begins with it.
  assert valid[..., 0].all() or 'temperature' in how
  assert valid[..., 0].mean() > 0.5
  # The end has no place, and a word's is read one position later.
  placed = valid & (np.asarray(output.tokens) != 1)
  placed[..., :-1] &= valid[..., 1:]
  np.testing.assert_allclose(
    np.asarray(output.points)[placed],
    np.asarray(full.points)[placed],
    atol=2e-5,
  )
  log_probs = jax.nn.log_softmax(full.logits)
  chosen = np.take_along_axis(
    np.asarray(log_probs), np.asarray(output.tokens)[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(
    np.asarray(output.log_probs)[valid], chosen[valid], atol=2e-5
  )


def test_encoding_the_image_before_changes_nothing(network):
  model, params = network
  batch = tiny.random_batch()

  @jax.jit
  def both(batch):
    features = model.run(
      params, batch.image, batch.image_size, method='encode_image'
    )
    without = batch.replace(image=jnp.zeros_like(batch.image))
    return (
      task_lib.read(model, params, batch),
      task_lib.read(model, params, without, features=features),
    )

  left, right = both(batch)
  np.testing.assert_allclose(left.points, right.points, atol=1e-6)


def test_reading_says_what_is_there_and_draws_it():
  model, params = tiny.init(tiny.full_config())
  batch = tiny.random_batch()

  @jax.jit
  def run(batch):
    maps = model.run(
      params, batch.image, batch.image_size, method='encode_maps'
    )
    features = model.run(params, maps, method='join')
    given = {'features': features, 'sam_features': maps['sam']}
    return (
      task_lib.read(model, params, batch, segments=True),
      task_lib.read(model, params, batch, **given, segments=True),
      task_lib.read(model, params, batch, features),
      task_lib.find(model, params, batch.image, batch.image_size, features),
    )

  whole, encoded, plain, (boxes, scores, there) = run(batch)
  assert whole.mask_logits.shape == (8, 2, 8, 8)
  for name in ('mask_logits', 'mask_ious', 'presence'):
    np.testing.assert_allclose(
      getattr(whole, name), getattr(encoded, name), atol=1e-5
    )
  assert plain.mask_logits is None and plain.presence.shape == (8, 2)
  assert boxes.shape == (8, 5, 4) and ((boxes >= 0) & (boxes <= 1)).all()
  assert scores.shape == there.shape == (8, 5)
  # Another last word changes what is said of it; what follows the end does not.
  words = np.asarray(batch.decoder_target_tokens)
  length = (words > 0).sum(-1, keepdims=True)
  at = np.arange(words.shape[-1])
  other = np.where(at == length - 2, 63 - words, words)
  again = jax.jit(functools.partial(task_lib.read, model, params))(
    batch.replace(decoder_target_tokens=other)
  )
  assert (np.abs(again.presence - plain.presence) > 1e-6).all()
  small = dataclasses.replace(model.config, mask=None, detector=None)
  bare = pixel_llm.PixelLLM(small)
  with pytest.raises(ValueError, match='no mask decoder'):
    task_lib.read(bare, params, batch, segments=True)
  with pytest.raises(ValueError, match='no detector'):
    task_lib.find(bare, params, batch.image, batch.image_size)


def test_a_region_sees_the_cells_in_its_box():
  config = dataclasses.replace(tiny.model_config(), region=REGION)
  model, params = tiny.init(config)
  features = np.ones((1, 4, 4, 24), np.float32)
  # The first corner of the valid image, which is half of the canvas; all of it.
  boxes = np.array([[[0, 0, 0.1, 0.1], [0, 0, 1, 1]]], np.float32)
  embed = jax.jit(
    lambda *args: model.run(params, *args, (32, 32), method='embed_regions')
  )
  visual, valid = embed(features, boxes, np.array([[32, 16]]))
  queries = config.extractor.num_queries
  assert visual.shape == (1, 2, queries + 1 + 9, 16)
  assert valid[0, 1].all()
  assert np.flatnonzero(valid[0, 0]).tolist() == list(range(queries + 2))


def test_normalize_is_the_encoders_own():
  image = np.full((1, 4, 4, 3), 100, np.uint8)
  out = pixel_llm.normalize(
    image, np.asarray([[4, 2]]), (100.0, 50.0, 0.0), (1.0, 2.0, 100.0)
  )
  np.testing.assert_allclose(out[0, 0, 0], [0, 25, 1])
  np.testing.assert_array_equal(out[0, :, 2:], 0)


def test_paper_sized_config_has_the_published_parts():
  config = pixel_llm.ModelConfig()
  model = pixel_llm.PixelLLM(config)
  sizes = batch_lib.BatchSizes(
    batch=1, image=384, regions=1, context=2, length=2
  )
  params = jax.eval_shape(
    lambda key: model.init(key, batch_lib.Batch.zeros(sizes)), jax.random.key(0)
  )['params']
  count = {
    k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()
  }
  assert count['t5'] == 2_849_757_184
  assert round(count['eva'] / 1e6) == 303
  assert round(count['sam'] / 1e6) == 637


# --- Masks


@pytest.fixture(scope='module')
def segmenter():
  """(model, parameters of which no gate is closed)."""
  model, params = tiny.init(tiny.full_config())
  gate = params['mask_adapter']['gate']
  params['mask_adapter']['gate'] = np.full(gate.shape, 0.7, np.float32)
  return model, params


@pytest.fixture(scope='module')
def answered(segmenter):
  """(batch, output of the full pass, inputs of `segment` made by hand)."""
  model, params = segmenter
  batch = tiny.random_batch()
  canvas = batch.image.shape[1:3]

  @jax.jit
  def run(params):
    def apply(*args, method):
      return model.apply({'params': params}, *args, method=method)

    maps = apply(batch.image, batch.image_size, method='encode_maps')
    features = apply(maps, method='join')
    visual, valid = apply(
      features,
      batch.prompt_boxes,
      batch.image_size,
      canvas,
      method='embed_regions',
    )
    output = model.apply({'params': params}, batch)
    encoded = model.apply(
      {'params': params},
      batch.replace(image=np.zeros_like(batch.image)),
      features=features,
      sam_features=maps['sam'],
    )
    bare = model.apply({'params': params}, batch, features=features)
    inputs = {
      'sam_features': maps['sam'],
      'boxes': geometry.answer_box(batch.decoder_target_tokens, output.points),
      'image_size': batch.image_size,
      'visual': visual,
      'visual_valid': valid,
      'hidden': output.hidden,
      'words': batch.decoder_target_tokens > 0,
    }
    return output, encoded, bare, inputs

  return batch, *run(params)


@pytest.fixture(scope='module')
def segment(segmenter):
  model, params = segmenter
  return jax.jit(
    lambda inputs: model.apply(
      {'params': params}, **inputs, canvas=(32, 32), method='segment'
    )
  )


def test_no_mask_without_its_config(forward):
  output = forward(tiny.random_batch())
  assert output.mask_logits is None
  assert output.mask_ious is None


def test_masks_are_of_the_answers_boxes(answered, segment):
  _, output, _, _, inputs = answered
  # SAM's grid here is 2 x 2.
  assert output.mask_logits.shape == (8, 2, 1, 8, 8)
  assert output.mask_ious.shape == (8, 2, 1)
  logits, ious = segment(inputs)
  np.testing.assert_allclose(output.mask_logits, logits, atol=1e-5)
  np.testing.assert_allclose(output.mask_ious, ious, atol=1e-5)
  whole = np.broadcast_to(np.asarray([0, 0, 1, 1], np.float32), (8, 2, 4))
  other, _ = segment({**inputs, 'boxes': whole})
  assert np.abs(other - logits).max() > 1e-3


def test_boxes_are_of_the_valid_image(answered, segment):
  batch, _, _, _, inputs = answered
  left, _ = segment({**inputs, 'boxes': batch.boxes})
  # The same place of the canvas, said in units of an image as large as it.
  size = batch.image_size[:, None, ::-1] / np.float32(32)
  boxes = batch.boxes * np.concatenate([size, size], -1)
  full = np.full((8, 2), 32, np.int32)
  right, _ = segment({**inputs, 'boxes': boxes, 'image_size': full})
  np.testing.assert_allclose(left, right, atol=1e-4)


def test_boxes_reach_the_prompt_encoder_in_pixels(segmenter, answered, segment):
  model, params = segmenter
  batch, _, _, _, inputs = answered
  size = batch.image_size[:, None, ::-1].astype(np.float32)
  boxes_px = batch.boxes * np.concatenate([size, size], -1)

  def by_hand(model, boxes_px):
    prompts = model.mask_adapter(
      model.prompt_encoder.boxes(boxes_px, (32, 32)),
      inputs['visual'],
      inputs['hidden'],
      np.concatenate([inputs['visual_valid'], inputs['words']], -1),
    )
    positions = model.prompt_encoder.positions(2, 2)
    return model.mask_decoder(inputs['sam_features'], positions, prompts)

  run = jax.jit(nn.apply(by_hand, model))
  for want, got in zip(
    run({'params': params}, boxes_px),
    segment({**inputs, 'boxes': batch.boxes}),
  ):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_mask_depends_on_the_words_but_not_on_their_padding(
  answered, segment
):
  *_, inputs = answered
  logits, _ = segment(inputs)
  words, hidden = (np.asarray(inputs[name]) for name in ('words', 'hidden'))
  assert not words.all()
  for where, largest in ((~words, 1e-4), (words, None)):
    moved = np.where(where[..., None], hidden[..., ::-1], hidden)
    other, _ = segment({**inputs, 'hidden': moved})
    error = np.abs(other - logits).max()
    assert error > 1e-3 if largest is None else error < largest


def test_masks_move_no_box(segmenter, answered):
  model, params = segmenter
  *_, inputs = answered

  @jax.jit
  def total(boxes, hidden):
    given = {**inputs, 'boxes': boxes, 'hidden': hidden}
    logits, ious = model.apply(
      {'params': params}, **given, canvas=(32, 32), method='segment'
    )
    return (logits**2).sum() + (ious**2).sum()

  to_boxes, to_hidden = jax.grad(total, argnums=(0, 1))(
    inputs['boxes'], inputs['hidden']
  )
  np.testing.assert_array_equal(to_boxes, 0)
  assert np.abs(to_hidden).max() > 0


def test_encoded_images_get_masks_with_the_features_of_sam(answered):
  _, output, encoded, bare, _ = answered
  np.testing.assert_allclose(encoded.mask_logits, output.mask_logits, atol=1e-5)
  assert bare.mask_logits is None


def test_impossible_masks_are_refused():
  config = tiny.full_config()
  with pytest.raises(ValueError, match='features of sam, got None'):
    dataclasses.replace(config, sam=None)
  narrow = dataclasses.replace(config.prompt, embed_dim=8)
  with pytest.raises(ValueError, match=r'be one number, got \(16, 8, 16\)'):
    dataclasses.replace(config, prompt=narrow)


def test_segmenting_without_a_mask_decoder_is_refused(network):
  model, params = network
  with pytest.raises(ValueError, match=r'expected ModelConfig\.mask'):
    model.apply({'params': params}, *[None] * 8, method='segment')


def halved(config):
  """The same network, computing in bfloat16."""
  parts = ('eva', 'sam', 'extractor', 'region', 't5', 'regression')
  return dataclasses.replace(
    config,
    **{
      name: dataclasses.replace(getattr(config, name), dtype='bfloat16')
      for name in parts
      if getattr(config, name) is not None
    },
  )


def test_bfloat16_is_near_float32(network, forward):
  model, params = network
  half = pixel_llm.PixelLLM(halved(model.config))
  # Cells are hard to choose at this size; those of the batch are far apart.
  batch = tiny.random_batch()
  got, want = jax.jit(half.run)(params, batch), forward(batch)
  assert got.logits.dtype == got.points.dtype == jnp.float32
  assert got.hidden.dtype == jnp.bfloat16
  said = batch.decoder_target_tokens > 0
  for name in ('logits', 'points'):
    a = np.asarray(getattr(got, name))[said]
    b = np.asarray(getattr(want, name))[said]
    # A step of bfloat16 is 1 / 128; rounded at every layer.
    assert 0 < np.abs(a - b).mean() < 0.02 * np.abs(b).std() + 0.01, name


def products(jaxpr, prefix=''):
  """(where, operands' dtypes) of every product and convolution, loops too."""
  for equation in jaxpr.eqns:
    where = f'{prefix}/{equation.source_info.name_stack}'
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield where, {str(v.aval.dtype) for v in equation.invars}
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from products(inner, where)


def test_products_are_bfloat16_but_for_words_and_places(network):
  model, params = network
  half = pixel_llm.PixelLLM(halved(model.config))
  batch = tiny.random_batch()

  def decode_once(params):
    cross, valid, cache = half.run(params, batch, 5, method='start_decoding')
    rows = jnp.zeros(len(valid), jnp.int32)
    logits, hidden, _ = half.run(
      params, rows, 0, cache, cross, valid, method='decode_step'
    )
    return logits, half.run(params, hidden, method='locate')

  for run in (lambda p: half.run(p, batch), decode_once):
    found = list(products(jax.make_jaxpr(run)(params).jaxpr))
    assert len(found) > 40
    wide = {where for where, dtypes in found if 'float32' in dtypes}
    assert len(wide) == 2
    assert {where.rpartition('/')[2] for where in wide} == {
      'logits_dense',
      'out',
    }
    assert any(where.endswith('regression/out') for where in wide)


def test_what_is_detected_is_in_the_image(segmenter):
  model, params = segmenter
  batch = tiny.random_batch()
  features = np.random.default_rng(1).normal(size=(8, 4, 4, 32)).astype('f')

  @jax.jit
  def detect(features, size):
    return model.apply(
      {'params': params}, features, size, (32, 32), method='detect'
    )

  boxes, scores, there = map(np.asarray, detect(features, batch.image_size))
  assert boxes.shape == (8, 5, 4)
  assert scores.shape == there.shape == (8, 5)
  assert there.any()
  assert (boxes >= 0).all()
  assert (boxes <= 1 + 1e-6).all()
  # In pixels of the padded input they are what the detector says.
  model = detector.Detector(model.config.detector)
  boxes_px, *_ = model.apply(
    {'params': params['detector']}, features, batch.image_size, (32, 32)
  )
  sides = np.tile(batch.image_size[:, None, ::-1], 2)
  np.testing.assert_allclose(boxes * sides, boxes_px, atol=1e-3)


def test_nothing_is_detected_without_its_config(network):
  model, params = network
  batch = tiny.random_batch()
  with pytest.raises(ValueError, match='detector, got None'):
    model.apply(
      {'params': params},
      np.zeros((8, 4, 4, 24), np.float32),
      batch.image_size,
      (32, 32),
      method='detect',
    )
