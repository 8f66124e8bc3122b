# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""RoIAlign and suppression against plain loops; properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_llm import geometry
from pixel_llm.model import roi

# --- RoIAlign


def read_cell(features, y, x):
  """torchvision's bilinear_interpolate: one sample, in cells."""
  height, width, channels = features.shape
  if y < -1 or y > height or x < -1 or x > width:
    return np.zeros(channels)
  y, x = max(y, 0.0), max(x, 0.0)
  top, left = int(y), int(x)
  if top >= height - 1:
    top, y = height - 1, float(height - 1)
  if left >= width - 1:
    left, x = width - 1, float(width - 1)
  bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
  down, across = y - top, x - left
  return (
    features[top, left] * (1 - down) * (1 - across)
    + features[top, right] * (1 - down) * across
    + features[bottom, left] * down * (1 - across)
    + features[bottom, right] * down * across
  )


def plain_roi_align(features, box_px, stride, size, samples):
  """torchvision's roi_align of one box in pixels, aligned, sample by sample."""
  x0, y0, x1, y1 = (v / stride - 0.5 for v in map(float, box_px))
  tall, wide = (y1 - y0) / size, (x1 - x0) / size
  out = np.zeros((size, size, features.shape[-1]))
  for i in range(size):
    for j in range(size):
      for a in range(samples):
        for b in range(samples):
          y = y0 + i * tall + (a + 0.5) * tall / samples
          x = x0 + j * wide + (b + 0.5) * wide / samples
          out[i, j] += read_cell(features, y, x) / samples**2
  return out


def random_boxes(rng, *lead, low=-0.2, high=1.2):
  corners = np.sort(rng.uniform(low, high, (*lead, 2, 2)), axis=-2)
  return corners.reshape(*lead, 4).astype(np.float32)


@pytest.mark.parametrize('samples', [1, 2, 3])
@pytest.mark.parametrize('size', [1, 3])
def test_roi_align_equals_plain_loops(size, samples):
  rng = np.random.default_rng(size)
  features = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
  boxes = random_boxes(rng, 2, 6)
  boxes[0, 0] = [0, 0, 1, 1]
  boxes[0, 1] = [0.5, 0.5, 0.5, 0.5]
  boxes[0, 2] = [2, 2, 3, 3]
  y = np.asarray(roi.roi_align(features, boxes, size, samples))
  assert y.shape == (2, 6, size, size, 3)
  stride = 16
  for b in range(2):
    for r in range(6):
      box_px = boxes[b, r] * np.asarray([7, 5, 7, 5]) * stride
      np.testing.assert_allclose(
        y[b, r],
        plain_roi_align(features[b], box_px, stride, size, samples),
        atol=1e-5,
      )


unit = st.floats(0, 1, width=32)


@settings(deadline=None, max_examples=30)
@given(st.lists(unit, min_size=4, max_size=4), st.integers(1, 3))
def test_a_constant_is_read_as_it_is(corners, samples):
  x0, x1 = sorted(corners[:2])
  y0, y1 = sorted(corners[2:])
  boxes = np.asarray([[[x0, y0, x1, y1]]], np.float32)
  y = roi.roi_align(np.ones((1, 4, 3, 2), np.float32), boxes, 2, samples)
  np.testing.assert_allclose(y, 1, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.2, 0.8), min_size=4, max_size=4))
def test_a_ramp_is_read_at_the_middles(corners):
  x0, x1 = sorted(corners[:2])
  y0, y1 = sorted(corners[2:])
  height, width, size = 10, 20, 2
  y, x = np.meshgrid(
    (np.arange(height) + 0.5) / height,
    (np.arange(width) + 0.5) / width,
    indexing='ij',
  )
  ramp = np.stack([x, y], -1).astype(np.float32)[None]
  boxes = np.asarray([[[x0, y0, x1, y1]]], np.float32)
  got = np.asarray(roi.roi_align(ramp, boxes, size))[0, 0]
  part = (np.arange(size) + 0.5) / size
  want_x, want_y = np.meshgrid(x0 + (x1 - x0) * part, y0 + (y1 - y0) * part)
  np.testing.assert_allclose(got, np.stack([want_x, want_y], -1), atol=1e-5)


def test_flipping_image_and_box_flips_the_result():
  rng = np.random.default_rng(3)
  features = rng.normal(size=(1, 6, 5, 2)).astype(np.float32)
  boxes = random_boxes(rng, 1, 4)
  y = roi.roi_align(features, boxes, 3)
  flipped = geometry.Affine.flip().boxes(boxes)
  other = np.asarray(roi.roi_align(features[:, :, ::-1], flipped, 3))
  np.testing.assert_allclose(other[:, :, :, ::-1], y, atol=1e-5)


def test_every_box_reads_its_own_level():
  rng = np.random.default_rng(4)
  pyramid = [
    rng.normal(size=(2, side, side, 3)).astype(np.float32) for side in (8, 4, 2)
  ]
  boxes = random_boxes(rng, 2, 5)
  levels = rng.integers(0, 3, (2, 5))
  y = roi.multilevel_roi_align(pyramid, boxes, levels, 2)
  alone = np.stack([roi.roi_align(f, boxes, 2) for f in pyramid])
  want = np.take_along_axis(alone, levels[None, ..., None, None, None], 0)[0]
  np.testing.assert_allclose(y, want, atol=1e-6)


def test_samples_that_depend_on_the_boxes_are_refused():
  features, boxes = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 4))
  with pytest.raises(ValueError, match='sampling_ratio of at least 1, got 0'):
    roi.roi_align(features, boxes, 2, 0)
  with pytest.raises(ValueError, match='an empty pyramid'):
    roi.multilevel_roi_align([], boxes, None, 2)


# --- Suppression


def plain_nms(boxes, scores, threshold):
  """One box after another, in whole numbers and fractions of them."""
  left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
  kept = []
  while left:
    chosen, *left = left
    kept.append(chosen)
    survivors = []
    for i in left:
      ax0, ay0, ax1, ay1 = boxes[chosen]
      bx0, by0, bx1, by1 = boxes[i]
      wide = max(0, min(ax1, bx1) - max(ax0, bx0))
      tall = max(0, min(ay1, by1) - max(ay0, by0))
      union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0)
      union -= wide * tall
      if not wide * tall > threshold * union:
        survivors.append(i)
    left = survivors
  return kept


@st.composite
def candidates(draw):
  """Boxes on whole numbers, many of which overlap, and scores with ties."""
  side = st.integers(0, 6)
  boxes = []
  for _ in range(draw(st.integers(1, 12))):
    x0, x1 = sorted((draw(side), draw(side)))
    y0, y1 = sorted((draw(side), draw(side)))
    boxes.append([x0, y0, x1, y1])
  scores = [draw(st.integers(0, 5)) for _ in boxes]
  return boxes, scores


# Padded to one shape: compiled once.
COUNT = 12
device_nms = jax.jit(roi.nms)


@settings(deadline=None, max_examples=200)
@given(candidates(), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_nms_of_host_and_device_equal_plain_loops(found, threshold):
  boxes, scores = found
  kept = plain_nms(boxes, scores, threshold)
  np.testing.assert_array_equal(
    geometry.nms(np.asarray(boxes, float), np.asarray(scores), threshold), kept
  )
  more = COUNT - len(boxes)
  valid = np.arange(COUNT) < len(boxes)
  # What is not valid overlaps everything and is the best of all.
  boxes = np.asarray(boxes + [[0, 0, 6, 6]] * more, np.float32)
  scores = np.asarray(scores + [9] * more, np.float32)
  keep = device_nms(boxes, scores, valid, threshold)
  assert sorted(kept) == np.flatnonzero(keep).tolist()
  index, there = roi.best(scores, keep, COUNT)
  assert np.asarray(index)[np.asarray(there)].tolist() == kept


def test_a_long_chain_is_decided_to_its_end():
  # Each box overlaps its neighbours alone: every second one stays.
  count = 40
  low = np.arange(count, dtype=np.float32)
  zero = np.zeros(count, np.float32)
  boxes = np.stack([low, zero, low + 1.8, zero + 1], -1)
  scores = -low
  keep = roi.nms(boxes, scores, np.ones(count, bool), 0.2)
  np.testing.assert_array_equal(keep, np.arange(count) % 2 == 0)
  np.testing.assert_array_equal(
    geometry.nms(boxes, scores, 0.2), np.arange(0, count, 2)
  )


def test_images_of_a_batch_are_decided_apart():
  rng = np.random.default_rng(5)
  boxes, scores = random_boxes(rng, 3, 20), rng.random((3, 20))
  scores = scores.astype(np.float32)
  valid = rng.random((3, 20)) < 0.8
  keep = np.asarray(roi.nms(boxes, scores, valid, 0.3))
  for i in range(3):
    np.testing.assert_array_equal(
      keep[i], roi.nms(boxes[i], scores[i], valid[i], 0.3)
    )
  assert 3 < np.sum(keep) < valid.sum()


def test_overlap_is_that_of_geometry():
  rng = np.random.default_rng(6)
  boxes, others = random_boxes(rng, 2, 4), random_boxes(rng, 2, 3)
  overlap, union = roi.pairwise_overlap(boxes, others)
  np.testing.assert_allclose(
    overlap / union, geometry.pairwise_iou(boxes, others), atol=1e-5
  )


def test_fewer_kept_than_asked_for_are_told():
  scores = jnp.asarray([0.5, 0.9, 0.1])
  index, there = roi.best(scores, jnp.asarray([True, False, True]), 3)
  assert index[:2].tolist() == [0, 2]
  assert there.tolist() == [True, True, False]
  assert 0 <= int(index[2]) < 3
