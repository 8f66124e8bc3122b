# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixel_llm import augmentation, geometry, image
from pixel_llm.augmentation import Augmentation
from pixel_llm.example import Region

SIDES = st.integers(1, 90)
HOW = st.builds(
  Augmentation,
  flip=st.floats(0, 1),
  scale=st.tuples(st.floats(0.05, 1.2), st.floats(1.2, 3)),
)
CASES = dict(
  how=HOW,
  seed=st.integers(0, 2**32),
  original=st.tuples(SIDES, SIDES),
  canvas=st.integers(1, 64),
)


def drawn(how, seed, original, canvas):
  return how.draw(np.random.default_rng(seed), original, canvas)


@settings(max_examples=300, deadline=None)
@given(**CASES)
def test_what_is_drawn_fits_and_goes_back(how, seed, original, canvas):
  fit = drawn(how, seed, original, canvas)
  assert fit == drawn(how, seed, original, canvas)
  assert min(fit.size) >= 1 and max(fit.size) <= canvas
  # What is seen is a part of the file.
  part = fit.to_orig(np.array([0.0, 0.0, 1.0, 1.0]))
  height, width = original
  assert (part >= -1e-6).all()
  assert (part <= np.array([width, height] * 2) + 1e-6).all()
  # Every map has its inverse.
  rng = np.random.default_rng(seed)
  points = rng.random((5, 2)) * (width, height)
  np.testing.assert_allclose(
    fit.to_orig(fit.from_orig(points)), points, atol=1e-6
  )
  boxes = np.concatenate([points, points + rng.random((5, 2))], -1)
  np.testing.assert_allclose(
    fit.to_orig(fit.from_px(fit.to_px(fit.from_orig(boxes)))), boxes, atol=1e-6
  )


@settings(max_examples=150, deadline=None)
@given(**{**CASES, 'canvas': st.integers(24, 64)})
def test_pixels_points_and_masks_move_together(how, seed, original, canvas):
  # A picture of where each of its pixels is: blending keeps a linear ramp.
  height, width = original
  y, x = np.mgrid[:height, :width]
  ramp = np.stack([(x + 0.5) / width, (y + 0.5) / height, x * 0], -1)
  fit = drawn(how, seed, original, canvas)
  seen = image.render((ramp * 255).round().astype(np.uint8), fit) / 255
  rows, columns = fit.size
  assert not seen[rows:].any() and not seen[:, columns:].any()
  i, j = np.mgrid[:rows, :columns]
  where = fit.to_orig(fit.from_px(np.stack([j + 0.5, i + 0.5], -1))) / (
    width,
    height,
  )
  # At the edge a resize has one side only: up to a pixel of the coarser grid.
  grain = 0.5 / 255 + np.maximum(
    1.0 / np.array([width, height]),
    np.ptp(where, axis=(0, 1)) / np.array([columns, rows]),
  )
  assert (np.abs(seen[:rows, :columns, :2] - where) <= grain).all()
  # A mask says of each pixel whether it is in the left half of the file.
  half = (ramp[..., 0] < 0.5).astype(np.uint8)
  on_canvas = fit.mask_to_canvas(half)
  assert not on_canvas[rows:].any() and not on_canvas[:, columns:].any()
  clear = np.abs(where[..., 0] - 0.5) > 0.51 / width
  np.testing.assert_array_equal(
    on_canvas[:rows, :columns][clear], (where[..., 0] < 0.5)[clear]
  )


def test_masks_on_a_coarser_grid_cover_the_padded_input():
  fit = geometry.Fit((40, 80), 64)
  out = fit.mask_to_canvas(np.ones((40, 80), np.uint8), 16)
  assert out.shape == (16, 16)
  assert out[:8].all() and not out[8:].any()
  part = geometry.Fit(
    (40, 80), 64, geometry.Affine.crop((0.5, 0, 1, 1)), (64, 64)
  )
  right = np.zeros((40, 80), np.uint8)
  right[:, 60:] = 1
  out = part.mask_to_canvas(right, 16)
  assert not out[:, :8].any() and out[:, 8:].all()
  # Back on the file, the part that was not seen is empty.
  canvas = part.mask_to_canvas(right)
  np.testing.assert_array_equal(part.mask_from_canvas(canvas), right)


def region(**fields):
  return Region(
    'r',
    'a cat',
    spans=np.array([[0, 1], [2, 5]], np.int32),
    span_boxes=np.array([[0.1, 0.1, 0.2, 0.2], [0.6, 0.6, 0.9, 0.9]]),
    span_centers=np.array([[0.15, 0.15], [0.75, 0.75]]),
    span_weights=np.ones(2, np.float32),
    **fields,
  )


def test_moving_a_region_cuts_and_drops():
  right = geometry.Affine.crop((0.5, 0.5, 1, 1))
  moved = augmentation.move(
    region(
      box=np.array([0.4, 0.4, 0.6, 0.6]),
      points=np.array([[0.1, 0.9], [0.75, 0.5]]),
    ),
    right,
  )
  np.testing.assert_allclose(moved.box, [0, 0, 0.2, 0.2])
  np.testing.assert_allclose(moved.points, [[0.5, 0]])
  assert moved.span_weights.tolist() == [0, 1]
  np.testing.assert_allclose(moved.span_boxes[1], [0.2, 0.2, 0.8, 0.8])
  np.testing.assert_allclose(moved.span_centers[1], [0.5, 0.5])
  gone = np.array([0.1, 0.1, 0.5, 0.5])
  assert augmentation.move(region(box=gone), right) is None
  assert augmentation.move(region(points=gone[None, :2]), right) is None
  assert augmentation.move(region(), right) is not None
  same = region(box=gone)
  assert augmentation.move(same, geometry.Affine()) is same


@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_moved_regions_say_where_the_file_has_them(how, seed, original, canvas):
  fit = drawn(how, seed, original, canvas)
  rng = np.random.default_rng(seed)
  low = rng.random(2) * 0.8
  box = np.concatenate([low, low + 0.02 + rng.random(2) * 0.18])
  moved = augmentation.move(region(box=box), fit.affine)
  edges = np.tile(original[::-1], 2)
  part = fit.to_orig(np.array([0.0, 0.0, 1.0, 1.0])) / edges
  both = np.concatenate(
    [np.maximum(box[:2], part[:2]), np.minimum(box[2:], part[2:])]
  )
  if moved is None:
    assert geometry.box_area(both) <= 1e-9
  else:
    np.testing.assert_allclose(fit.to_orig(moved.box) / edges, both, atol=1e-6)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('scale', (0.0, 1.0), 'scale: expected 0 < least'),
    ('scale', (2.0, 1.0), 'scale: expected 0 < least'),
    ('flip', 1.5, 'flip: expected a probability, got 1.5'),
    ('click', -0.1, 'click: expected a probability'),
  ],
)
def test_what_cannot_be_drawn_is_refused(field, value, expected):
  with pytest.raises(ValueError, match=expected):
    dataclasses.replace(Augmentation(), **{field: value})


def test_a_picture_of_augmented_scenes():
  """The crops of a picture, with the box where the draw says it is."""
  rgb = np.full((48, 64, 3), 90, np.uint8)
  rgb[10:30, 20:50] = (0, 200, 0)
  rgb[10:30, 20:25] = (250, 0, 0)  # a red edge at the left of the green box
  box = np.array([20, 10, 50, 30.0])
  how = Augmentation(flip=0.5, scale=(0.6, 1.8))
  tiles = []
  for seed in range(12):
    fit = drawn(how, seed, (48, 64), 40)
    seen = image.render(rgb, fit)
    x0, y0, x1, y1 = np.clip(
      np.rint(fit.to_px(fit.from_orig(box))).astype(int),
      0,
      np.tile(fit.size[::-1], 2),
    )
    inside = seen[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
    # Grey only outside of the box, and red on the side that the flip says.
    assert not (inside[..., 2] > 60).any()
    outside = seen[: fit.size[0], : fit.size[1]].copy()
    outside[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = 90
    np.testing.assert_array_equal(outside, 90)
    red = np.nonzero((inside[..., 0] > 200).any(axis=0))[0]
    if len(red) and inside.shape[1] > 8:
      middle = (inside.shape[1] - 1) / 2
      assert (red.mean() > middle) == (fit.affine.scale[0] < 0)
    tiles.append(np.pad(seen, ((0, 2), (0, 2), (0, 0)), constant_values=255))
  sheet = np.concatenate([np.concatenate(tiles[i::4], 1) for i in range(4)], 0)
  golden = pathlib.Path(__file__).parent / 'golden' / 'augmentation.png'
  expected = np.asarray(Image.open(golden)).astype(int)
  # Pillow's versions may round differently.
  assert np.abs(sheet - expected).max() <= 2
