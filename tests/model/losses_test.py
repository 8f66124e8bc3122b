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


# --- Masks


@pytest.fixture(name='masks')
def masks_fixture():
  """(logits [3, 2, 4, 5, 6], ious, targets [3, 2, 10, 12], pixels, weights)."""
  rng = np.random.default_rng(2)
  logits = (2 * rng.normal(size=(3, 2, 4, 5, 6))).astype(np.float32)
  ious = rng.random((3, 2, 4)).astype(np.float32)
  targets = rng.integers(0, 2, (3, 2, 10, 12)).astype(np.uint8)
  pixels = np.ones((3, 10, 12), np.float32)
  pixels[0, 7:] = pixels[1, :, 8:] = 0
  weights = rng.choice([0.0, 0.5, 1.0], (3, 2)).astype(np.float32)
  return logits, ious, targets, pixels, weights


def published_parts(logits, ious, targets, padding, weights):
  """Focal loss in the image alone, the rest on the padding too."""
  inside = losses.mask_loss(logits, ious, targets, padding, weights)
  everywhere = losses.mask_loss(
    logits, ious, targets, np.ones_like(padding), weights
  )
  weight = inside[3]
  assert float(weight) == weights.sum()
  return [losses.mean(p, weight) for p in (inside[0], *everywhere[1:3])]


def test_mask_loss_equals_the_golden(golden):
  focal, dice, iou = published_parts(
    golden['in/pred_masks'],
    golden['in/pred_ious'],
    golden['in/gt_masks'][..., 0],
    golden['in/padding_mask'],
    golden['in/mask_gt_valid'],
  )
  expected = {
    name: golden[f'out/sam/mask_{name}_loss']
    for name in ('focal', 'dice', 'iou_pred')
  }
  np.testing.assert_allclose(20 * focal, expected['focal'], rtol=1e-5)
  np.testing.assert_allclose(dice, expected['dice'], rtol=1e-5)
  np.testing.assert_allclose(iou, expected['iou_pred'], rtol=1e-5)
  np.testing.assert_allclose(
    20 * focal + dice + iou, golden['out/sam/mask_loss'], rtol=1e-5
  )


def test_mask_loss_equals_the_golden_of_the_whole_model():
  with np.load(GOLDEN / 'model_refseg_masks.npz') as arrays:
    golden = dict(arrays)
  focal, dice, iou = published_parts(
    golden['out/pred/detection_masks'],
    golden['out/pred/iou_predictions'],
    golden['in/label/masks'][..., 0],
    golden['in/padding_mask'],
    golden['in/label/labels'],
  )
  for name, value in (
    ('mask_focal_loss', 20 * focal),
    ('mask_dice_loss', dice),
    ('mask_iou_pred_loss', iou),
    ('mask_loss', 20 * focal + dice + iou),
  ):
    np.testing.assert_allclose(value, golden[f'out/metrics/{name}'], rtol=1e-5)


def test_focal_loss_without_focus_is_cross_entropy(masks):
  logits, _, _, pixels, _ = masks
  logits, pixels = logits[:, 0, 0], pixels[:, :5, :6]
  targets = (logits > 0.7).astype(np.float32)
  plain = optax.sigmoid_binary_cross_entropy(logits, targets)
  np.testing.assert_allclose(
    losses.focal_loss(logits, targets, pixels, gamma=0),
    (0.5 * plain * pixels).sum((1, 2)) / pixels.sum((1, 2)),
    rtol=1e-5,
  )


def test_a_certain_mask_costs_nothing_and_a_wrong_one_much():
  targets = np.zeros((1, 4, 4), np.uint8)
  targets[:, 1:3] = 1
  logits = 50 * (2.0 * targets - 1)
  pixels = np.ones((1, 4, 4))
  for loss in (losses.focal_loss, losses.dice_loss):
    np.testing.assert_allclose(loss(logits, targets, pixels), 0, atol=1e-6)
    assert loss(-logits, targets, pixels) > 0.9
  assert losses.mask_iou(logits, targets, pixels) == 1
  assert losses.mask_iou(-logits, targets, pixels) == 0


def test_iou_counts_pixels():
  logits = np.asarray([[[1, 1, -1, -1], [1, 1, -1, -1.0]]])
  targets = np.asarray([[[0, 1, 1, 0], [0, 1, 0, 0]]])
  pixels = np.ones((1, 2, 4))
  np.testing.assert_allclose(losses.mask_iou(logits, targets, pixels), 2 / 5)
  pixels[..., 2:] = 0
  np.testing.assert_allclose(losses.mask_iou(logits, targets, pixels), 2 / 4)
  assert losses.mask_iou(-abs(logits), 0 * targets, pixels) == 0


def test_only_the_cheapest_candidate_is_trained_but_every_iou(masks):
  logits, ious, targets, pixels, _ = masks
  weights = np.ones((3, 2), np.float32)

  def total(logits, ious):
    focal, dice, iou, weight = losses.mask_loss(
      logits, ious, targets, pixels, weights
    )
    return (20 * focal + dice + iou) / weight

  by_logits, by_ious = jax.grad(total, argnums=(0, 1))(logits, ious)
  trained = np.abs(by_logits).max((3, 4)) > 0
  assert (trained.sum(-1) == 1).all()
  assert (np.asarray(by_ious) != 0).all()
  # Each alone costs no less than the one that was chosen.
  for candidate in range(4):
    one = np.s_[:, :, candidate : candidate + 1]
    focal, dice, *_ = losses.mask_loss(
      logits[one], ious[one], targets, pixels, weights
    )
    chosen_focal, chosen_dice, *_ = losses.mask_loss(
      logits, ious, targets, pixels, weights
    )
    assert 20 * focal + dice >= 20 * chosen_focal + chosen_dice


def test_the_padding_costs_nothing(masks):
  logits, ious, targets, pixels, weights = masks
  logits = jax.image.resize(logits, (3, 2, 4, 10, 12), 'nearest')
  off = pixels[:, None] == 0
  before = losses.mask_loss(logits, ious, targets, pixels, weights)
  after = losses.mask_loss(
    np.where(off[:, :, None], 9, logits),
    ious,
    np.where(off, 1 - targets, targets),
    pixels,
    weights,
  )
  np.testing.assert_array_equal(before, after)


def test_regions_of_weight_zero_cost_nothing(masks):
  logits, ious, targets, pixels, weights = masks
  assert (weights == 0).any()
  off = weights == 0
  before = losses.mask_loss(*masks)
  after = losses.mask_loss(
    np.where(off[..., None, None, None], 7, logits),
    np.where(off[..., None], 7, ious),
    np.where(off[..., None, None], 1, targets),
    pixels,
    weights,
  )
  np.testing.assert_array_equal(before, after)


def test_masks_of_a_mixed_batch_are_its_parts(masks):
  whole = losses.mask_loss(*masks)
  parts = [losses.mask_loss(*(a[i : i + 1] for a in masks)) for i in range(3)]
  np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-5)


def test_no_mask_is_no_loss_and_no_gradient(masks):
  logits, ious, targets, pixels, weights = masks

  def total(logits, ious):
    *parts, weight = losses.mask_loss(
      logits, ious, targets, 0 * pixels, 0 * weights
    )
    return sum(losses.mean(p, weight) for p in parts)

  value, grads = jax.value_and_grad(total, argnums=(0, 1))(logits, ious)
  assert float(value) == 0
  for gradient in grads:
    np.testing.assert_array_equal(gradient, 0)


# --- Both


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


def test_presence_is_cross_entropy_of_those_that_are_known():
  logits = jnp.asarray([[0.0, 2.0, -3.0]])
  presence = jnp.asarray([[1.0, 0.0, 1.0]])
  total, weight = losses.presence_loss(
    logits, presence, jnp.asarray([[1.0, 0.5, 0.0]])
  )
  wanted = np.log(2) + 0.5 * -np.log(1 - 1 / (1 + np.exp(-2.0)))
  np.testing.assert_allclose(total, wanted, rtol=1e-6)
  assert float(weight) == 1.5
