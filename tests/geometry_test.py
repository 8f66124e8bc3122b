# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Transform then inverse is the identity, for points, boxes and masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pixel_llm import geometry
from pixel_llm.geometry import Affine, Fit

settings.register_profile('pixel_llm', deadline=None, max_examples=60)
settings.load_profile('pixel_llm')

sides = st.integers(1, 40)
sizes = st.tuples(sides, sides)
units = st.floats(0, 1, width=32)


@st.composite
def boxes(draw):
  x0, x1 = sorted((draw(units), draw(units)))
  y0, y1 = sorted((draw(units), draw(units)))
  return np.array([x0, y0, x1, y1])


@st.composite
def pixel_crops(draw, size):
  """A crop box on pixel edges of an array of `size`."""
  (height, width) = size
  x0 = draw(st.integers(0, width - 1))
  y0 = draw(st.integers(0, height - 1))
  x1 = draw(st.integers(x0 + 1, width))
  y1 = draw(st.integers(y0 + 1, height))
  return (y0, y1, x0, x1)


@st.composite
def affines(draw):
  out = Affine()
  for _ in range(draw(st.integers(0, 3))):
    if draw(st.booleans()):
      out = out.then(Affine.flip())
    else:
      box = draw(boxes())
      assume((box[2:] - box[:2]).min() > 0.05)
      out = out.then(Affine.crop(box))
  return out


def random_mask(size, seed=0):
  return np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8)


# Fit.


@given(
  st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 600)
)
def test_fit_fills_the_longer_side_and_keeps_the_ratio(original, canvas):
  height, width = Fit(original, canvas).size
  assert max(height, width) == canvas
  assert min(height, width) >= 1
  exact = min(original) * canvas / max(original)
  assert abs(min(height, width) - max(exact, 0.5)) <= 0.5


def test_fit_rounds_halves_up():
  assert Fit((3, 8), 4).size == (2, 4)  # 1.5
  assert Fit((5, 8), 4).size == (3, 4)  # 2.5, which round() would make 2


@given(sizes, st.integers(1, 64), boxes())
def test_fit_units_round_trip(original, canvas, box):
  fit = Fit(original, canvas)
  points = box.reshape(2, 2)
  for value in (box, points):
    np.testing.assert_allclose(fit.from_px(fit.to_px(value)), value, atol=1e-9)
    np.testing.assert_allclose(
      fit.from_orig(fit.to_orig(value)), value, atol=1e-9
    )


def test_fit_units_are_x_before_y():
  fit = Fit((50, 100), 64)
  point = np.array([0.25, 0.5])
  np.testing.assert_allclose(fit.to_orig(point), [25, 25])
  np.testing.assert_allclose(fit.to_px(point), [16, 16])
  np.testing.assert_allclose(
    fit.to_orig(np.array(geometry.WHOLE_IMAGE)), [0, 0, 100, 50]
  )
  with pytest.raises(ValueError, match=r'points .* or boxes .* shape \(3,\)'):
    fit.to_px(np.zeros(3))


@given(sizes, st.integers(0, 40))
def test_fit_mask_round_trip_when_not_shrinking(original, more):
  fit = Fit(original, max(original) + more)
  mask = random_mask(original)
  canvas = fit.mask_to_canvas(mask)
  height, width = fit.size
  assert canvas.shape == (fit.canvas, fit.canvas)
  assert not canvas[height:].any() and not canvas[:, width:].any()
  np.testing.assert_array_equal(fit.mask_from_canvas(canvas), mask)


def test_fit_mask_follows_boxes():
  fit = Fit((60, 90), 45)
  mask = np.zeros((60, 90), np.uint8)
  mask[20:40, 30:60] = 1
  rows, columns = np.nonzero(fit.mask_to_canvas(mask))
  box = fit.to_px(fit.from_orig(np.array([30, 20, 60, 40])))
  np.testing.assert_allclose(
    box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
  )


def test_fit_refuses_what_has_no_pixels():
  with pytest.raises(ValueError, match=r'\(0, 5\)'):
    Fit((0, 5), 8)
  with pytest.raises(ValueError, match=r'expected shape \(4, 5\).*\(5, 4\)'):
    Fit((4, 5), 8).mask_to_canvas(np.zeros((5, 4)))


# Affine.


@given(affines(), boxes())
def test_affine_then_inverse_is_identity(affine, box):
  points = box.reshape(2, 2)
  back = affine.inverse()
  np.testing.assert_allclose(
    back.points(affine.points(points)), points, atol=1e-6
  )
  np.testing.assert_allclose(back.boxes(affine.boxes(box)), box, atol=1e-6)
  np.testing.assert_allclose(
    affine.then(back).points(points), points, atol=1e-6
  )


@given(affines(), affines(), boxes())
def test_affine_composes_in_order(first, second, box):
  np.testing.assert_allclose(
    first.then(second).boxes(box),
    second.boxes(first.boxes(box)),
    rtol=1e-6,
    atol=1e-6,
  )


@given(boxes(), sizes)
def test_flip_twice_is_identity(box, size):
  flip = Affine.flip()
  assert flip.then(flip) == Affine()
  np.testing.assert_allclose(flip.boxes(flip.boxes(box)), box, atol=1e-12)
  mask = random_mask(size)
  np.testing.assert_array_equal(flip.array(flip.array(mask)), mask)
  np.testing.assert_array_equal(flip.array(mask), mask[:, ::-1])


@given(boxes())
def test_flip_keeps_corners_in_order(box):
  flipped = Affine.flip().boxes(box)
  assert (flipped[2:] >= flipped[:2]).all()
  np.testing.assert_allclose(
    flipped, [1 - box[2], box[1], 1 - box[0], box[3]], atol=1e-12
  )


@given(st.data(), sizes)
def test_crop_slices_and_its_inverse_pads(data, size):
  y0, y1, x0, x1 = data.draw(pixel_crops(size))
  height, width = size
  crop = Affine.crop([x0 / width, y0 / height, x1 / width, y1 / height])
  image = random_mask((*size, 3))
  cropped = crop.array(image)
  np.testing.assert_array_equal(cropped, image[y0:y1, x0:x1])
  expected = np.zeros_like(image)
  expected[y0:y1, x0:x1] = image[y0:y1, x0:x1]
  padded = crop.inverse().array(cropped)
  np.testing.assert_array_equal(padded, expected)
  np.testing.assert_array_equal(crop.array(padded), cropped)


def test_array_and_points_move_together():
  mask = np.zeros((20, 30), np.uint8)
  mask[4, 7] = 1
  center = np.array([7.5 / 30, 4.5 / 20])
  affine = Affine.crop([0.1, 0.1, 0.6, 0.5]).then(Affine.flip())
  moved = affine.array(mask)
  (row,), (column,) = np.nonzero(moved)
  height, width = moved.shape
  np.testing.assert_allclose(
    affine.points(center), [(column + 0.5) / width, (row + 0.5) / height]
  )


def test_dtype_is_kept():
  box = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
  assert Affine.flip().boxes(box).dtype == np.float32
  assert Fit((3, 4), 8).to_px(box).dtype == np.float32


@pytest.mark.parametrize('box', [(0.5, 0, 0.5, 1), (0, 0.6, 1, 0.5)])
def test_empty_crop_is_refused(box):
  with pytest.raises(ValueError, match='x1 > x0 and y1 > y0'):
    Affine.crop(box)


@given(boxes(), sizes)
def test_snapped_box_lies_on_pixels(box, size):
  snapped = geometry.snap_box(box, size)
  pixels = snapped * np.array([size[1], size[0]] * 2)
  np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-9)
  assert (pixels[2:] - pixels[:2] > 0.5).all()
  assert (snapped >= 0).all() and (snapped <= 1).all()


# Boxes.


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(a, b):
  iou = geometry.box_iou(a, b)
  assert 0 <= iou <= 1 + 1e-9
  np.testing.assert_allclose(iou, geometry.box_iou(b, a))
  if geometry.box_area(a) > 0:
    np.testing.assert_allclose(geometry.box_iou(a, a), 1, atol=1e-9)
  # A side that 1 - x rounds away is no side after a flip.
  if min((box[2:] - box[:2]).min() for box in (a, b)) > 1e-6:
    flip = Affine.flip()
    np.testing.assert_allclose(
      geometry.box_iou(flip.boxes(a), flip.boxes(b)), iou, atol=1e-6
    )


def test_iou_by_hand():
  a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], np.float32)
  b = np.array([[1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2]], np.float32)
  np.testing.assert_allclose(
    geometry.pairwise_iou(a, b), [[1 / 7, 0, 1], [0, 0, 0]], rtol=1e-6
  )
  np.testing.assert_allclose(geometry.box_iou(a, b[:2]), [1 / 7, 0], rtol=1e-6)


def test_points_to_box_ignores_weightless_tokens():
  points = np.array(
    [
      [[[0.2, 0.9], [0.4, 0.3]], [[0.0, 0.0], [1.0, 1.0]]],
      [[[0.5, 0.5], [0.6, 0.6]], [[0.1, 0.1], [0.2, 0.2]]],
    ],
    np.float32,
  )
  weights = np.array([[1, 0], [0, 0]], np.float32)
  box = geometry.points_to_box(points, weights)
  np.testing.assert_allclose(box, [[0.2, 0.3, 0.4, 0.9], [0, 0, 0, 0]])
  assert box.dtype == np.float32


def test_clip_box():
  np.testing.assert_array_equal(
    geometry.clip_box(np.array([-1, 0.5, 2, 0.6])), [0, 0.5, 1, 0.6]
  )


def test_answer_box_is_that_of_the_last_token_on_host_and_device():
  tokens = np.asarray([[5, 6, 1, 0], [5, 1, 0, 0], [1, 0, 0, 0]])
  points = np.random.default_rng(0).random((3, 4, 2, 2)).astype(np.float32)
  want = points[np.arange(3), [1, 0, 0]]
  want = np.concatenate([want.min(1), want.max(1)], -1)
  box = geometry.answer_box(tokens, points)
  assert isinstance(box, np.ndarray)
  np.testing.assert_array_equal(box, want)
  box = jax.jit(geometry.answer_box)(jnp.asarray(tokens), jnp.asarray(points))
  np.testing.assert_array_equal(box, want)
