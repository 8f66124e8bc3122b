# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Losses against the research code's numbers; properties."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_llm.model import losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
END = 1


@pytest.fixture(scope='module', name='golden')
def golden_fixture():
  with np.load(GOLDEN / 'losses.npz') as arrays:
    return dict(arrays)


@pytest.fixture(name='words')
def words_fixture():
  """(logits [3, 2, 5, V], targets, weights), a third of the weights 0."""
  rng = np.random.default_rng(0)
  logits = (3 * rng.normal(size=(3, 2, 5, 11))).astype(np.float32)
  targets = rng.integers(0, 11, (3, 2, 5)).astype(np.int32)
  weights = rng.choice([0.0, 0.5, 1.0], (3, 2, 5)).astype(np.float32)
  return logits, targets, weights


@pytest.fixture(name='places')
def places_fixture():
  """(points [3, 2, 5, 2, 2], targets, weights, scale)."""
  rng = np.random.default_rng(1)
  points, targets = rng.random((2, 3, 2, 5, 2, 2)).astype(np.float32)
  weights = rng.choice([0.0, 0.5, 1.0], (3, 2, 5)).astype(np.float32)
  scale = rng.uniform(0.5, 1, (3, 2)).astype(np.float32)
  return points, targets, weights, scale


@pytest.fixture(name='boxes')
def boxes_fixture():
  """(proposals [3, 4, 4, 4], boxes [3, 2, 4], weights [3, 2])."""
  rng = np.random.default_rng(2)
  corners = np.sort(rng.random((2, 3, 16, 2, 2)), axis=-2).astype(np.float32)
  proposals, boxes = corners.reshape(2, 3, 16, 4)
  weights = rng.choice([0.5, 1.0], (3, 2)).astype(np.float32)
  return proposals.reshape(3, 4, 4, 4), boxes[:, :2], weights


# --- Golden numbers


@pytest.mark.parametrize(
  ('name', 'masked', 'smoothing'),
  [
    ('text_loss_masked', True, 0.1),
    ('text_loss_unmasked', False, 0.1),
    ('text_loss_no_smoothing', True, 0.0),
  ],
)
def test_word_loss_equals_the_golden(golden, name, masked, smoothing):
  tokens = golden['in/text_tokens']
  targets = tokens[:, :, 1:]
  # The published rules: no loss on padding, nor on captions that are empty.
  weights = (targets > 0) & (targets[:, :, :1] != END)
  if masked:
    weights = weights & (golden['in/text_mask'][:, :, None] > 0)
  loss = losses.mean(
    *losses.word_loss(
      golden['in/logits'][:, :, :-1], targets, weights, smoothing
    )
  )
  np.testing.assert_allclose(loss, golden[f'out/{name}'], rtol=1e-5)


@pytest.mark.parametrize('name', ['point_loss_l1', 'point_loss_l1_nonzero'])
def test_point_loss_equals_the_golden(golden, name):
  points, targets = golden['in/pred_points'], golden['in/gt_points']
  weights = golden['in/pred_valid'] * golden['in/gt_valid']
  if name == 'point_loss_l1_nonzero':
    weights = weights * np.any(targets != 0, axis=(-2, -1))
  # Golden points are pixels: with images of 70 x 90 and 100 x 80 pixels,
  scale = np.asarray([[90.0, 70.0], [80.0, 100.0]], np.float32)
  pixels = scale[:, None, None, None]
  loss = losses.mean(
    *losses.point_loss(points / pixels, targets / pixels, weights, scale)
  )
  np.testing.assert_allclose(loss, golden[f'out/{name}'], rtol=1e-5)


# --- Words


def test_no_smoothing_is_plain_cross_entropy(words):
  logits, targets, weights = words
  plain = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  total, weight = losses.word_loss(logits, targets, weights, 0.0)
  np.testing.assert_allclose(total, np.sum(plain * weights), rtol=1e-6)
  np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_smoothed_loss_is_least_at_the_smoothed_distribution():
  smoothed = np.full((1, 11), 0.2 / 10, np.float32)
  smoothed[0, 4] = 0.8
  gradient = jax.grad(
    lambda z: losses.word_loss(z, jnp.asarray([4]), jnp.ones(1), 0.2)[0]
  )(jnp.log(smoothed))
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_word_loss_of_bfloat16_logits_is_float32(words):
  logits, targets, weights = words
  total, weight = losses.word_loss(
    jnp.asarray(logits, jnp.bfloat16), targets, weights
  )
  assert total.dtype == weight.dtype == jnp.float32
  expected, _ = losses.word_loss(logits, targets, weights)
  np.testing.assert_allclose(total, expected, rtol=0.01)


def test_large_logits_stay_finite():
  logits = jnp.asarray([[1e4, -1e4, 0.0]])
  total, _ = losses.word_loss(logits, jnp.asarray([0]), jnp.ones(1), 0.0)
  np.testing.assert_allclose(total, 0, atol=1e-6)


def test_accuracy_counts_weighted_hits():
  logits = np.eye(4, dtype=np.float32)[None]  # says 0 1 2 3
  targets = np.asarray([[0, 1, 3, 0]])
  weights = np.asarray([[1.0, 0.5, 1.0, 0.0]])
  hits, weight = losses.word_accuracy(logits, targets, weights)
  assert (float(hits), float(weight)) == (1.5, 2.5)


# --- Points


def test_unit_of_the_point_loss_is_that_of_scale():
  points = np.zeros((1, 1, 1, 1, 2), np.float32)
  targets = np.asarray([0.5, 0.25], np.float32).reshape(points.shape)
  weights = np.ones((1, 1, 1), np.float32)
  # 384 x 192 valid pixels, (width, height), of an input of 384 x 384.
  pixels = np.asarray([[384.0, 192.0]])
  total, _ = losses.point_loss(points, targets, weights, pixels)
  np.testing.assert_allclose(total, (192 + 48) / 2)
  sides, _ = losses.point_loss(points, targets, weights, pixels / 384)
  # The published balance: 0.1 a pixel is 38.4 a side.
  np.testing.assert_allclose(38.4 * sides, 0.1 * total, rtol=1e-6)


def test_the_origin_is_a_place(places):
  points, targets, _, scale = places
  weights = np.ones((3, 2, 5), np.float32)
  total, weight = losses.point_loss(points, 0 * targets, weights, scale)
  assert float(total) > 0
  assert float(weight) == weights.size


# --- Proposals


def test_a_cell_answers_for_the_smallest_box_around_its_centre():
  # Centres at 0.25 and 0.75; the large box holds all, the small one the first.
  boxes = np.asarray([[[0, 0, 1, 1], [0.1, 0.1, 0.4, 0.4]]], np.float32)
  proposals = np.broadcast_to(boxes[:, 0], (1, 2, 2, 4)).copy()
  loss = lambda p, w: losses.proposal_loss(p, boxes, jnp.asarray([w]))
  total, weight = loss(proposals, [1.0, 1.0])
  # The first cell says the whole image of a box of 0.09.
  np.testing.assert_allclose(total, 1 - 0.09 + (0.1 + 0.6) / 2, rtol=1e-6)
  assert float(weight) == 4
  proposals[0, 0, 0] = boxes[0, 1]
  total, _ = loss(proposals, [1.0, 1.0])
  np.testing.assert_allclose(total, 0, atol=1e-6)
  # Without the large box, three cells are in none.
  total, weight = loss(proposals, [0.0, 0.5])
  np.testing.assert_allclose(total, 0, atol=1e-6)
  assert float(weight) == 0.5
  total, weight = loss(proposals, [0.0, 0.0])
  assert float(losses.mean(total, weight)) == 0


def test_proposals_are_drawn_to_their_boxes():
  boxes = np.asarray([[[0.1, 0.2, 0.7, 0.9]]], np.float32)
  proposals = np.asarray([[[[0.3, 0.3, 0.6, 0.6]]]], np.float32)
  loss = lambda p: losses.proposal_loss(p, boxes, np.ones((1, 1)))[0]
  for _ in range(200):
    proposals = proposals - 0.01 * jax.grad(loss)(proposals)
  np.testing.assert_allclose(proposals[0, 0, 0], boxes[0, 0], atol=0.03)


# --- All


def test_tokens_of_weight_zero_change_neither_loss_nor_gradient(words, places):
  def word(logits, targets):
    return losses.word_loss(logits, targets, words[2])[0]

  def point(points, targets):
    return losses.point_loss(points, targets, *places[2:])[0]

  for loss, (x, targets, weights) in ((word, words), (point, places[:3])):
    off = (weights == 0).reshape(weights.shape + (1,) * (x.ndim - 3))
    off_target = off.reshape(weights.shape + (1,) * (targets.ndim - 3))
    before = jax.value_and_grad(loss)(x, targets)
    after = jax.value_and_grad(loss)(
      np.where(off, x + 7, x), np.where(off_target, 0 * targets, targets)
    )
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(np.where(off, before[1], 0), 0)
    assert np.abs(before[1]).max() > 0


def test_a_mixed_batch_is_its_parts_by_weight(words, places, boxes):
  for loss, arrays in (
    (losses.word_loss, words),
    (losses.word_accuracy, words),
    (losses.point_loss, places),
    (losses.proposal_loss, boxes),
  ):
    whole = loss(*arrays)
    parts = [loss(*(a[i : i + 1] for a in arrays)) for i in range(3)]
    totals, weights = np.asarray(parts).T
    np.testing.assert_allclose(whole[0], totals.sum(), rtol=1e-5)
    np.testing.assert_allclose(whole[1], weights.sum(), rtol=1e-6)
    means = np.asarray([losses.mean(*p) for p in parts])
    np.testing.assert_allclose(
      losses.mean(*whole), np.average(means, weights=weights), rtol=1e-5
    )


def test_nothing_to_say_is_no_loss_and_no_gradient(words):
  logits, targets, weights = words
  loss = lambda z: losses.mean(*losses.word_loss(z, targets, 0 * weights))
  value, gradient = jax.value_and_grad(loss)(logits)
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, 0)
