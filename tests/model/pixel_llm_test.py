# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from pixel_llm import batch as batch_lib
from pixel_llm.model import decoding, pixel_llm, region
from pixel_llm.tasks import task as task_lib

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
  mixed = jax.tree.map(
    lambda a, b: np.concatenate([a[:, :1], b[:, 1:]], 1), batch, other
  )
  mixed = mixed.replace(image=batch.image, image_size=batch.image_size)
  left, right = forward(batch), forward(mixed)
  np.testing.assert_allclose(left.points[:, 0], right.points[:, 0], atol=1e-5)
  assert np.abs(left.points[:, 1] - right.points[:, 1]).max() > 1e-3


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
  assert valid[..., 0].mean() > 0.5
  np.testing.assert_allclose(
    np.asarray(output.points)[valid], np.asarray(full.points)[valid], atol=2e-5
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
  features = model.apply(
    {'params': params}, batch.image, batch.image_size, method='encode_image'
  )
  left = task_lib.read(model, params, batch)
  right = task_lib.read(
    model,
    params,
    batch.replace(image=np.zeros_like(batch.image)),
    features=features,
  )
  np.testing.assert_allclose(left.points, right.points, atol=1e-6)


def test_a_region_sees_the_cells_in_its_box():
  config = dataclasses.replace(tiny.model_config(), region=REGION)
  model, params = tiny.init(config)
  features = np.ones((1, 4, 4, 24), np.float32)
  # The first corner of the valid image, which is half of the canvas; all of it.
  boxes = np.array([[[0, 0, 0.1, 0.1], [0, 0, 1, 1]]], np.float32)
  visual, valid = model.apply(
    {'params': params},
    features,
    boxes,
    np.array([[32, 16]]),
    (32, 32),
    method='embed_regions',
  )
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
