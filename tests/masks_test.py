# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Masks are COCO's: counts that pycocotools wrote, and its polygons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pixel_llm import masks

# (polygons, (height, width), counts that pycocotools 2.0.11 gives for them).
GOLDEN = [
  ([[1, 1, 5, 1, 5, 5]], (8, 8), b'a0171O1f0'),
  ([[0.5, 0.5, 9.5, 2.2, 4.1, 7.9]], (8, 10), b'9172N2N2NO2M2O1O7'),
  ([[-3, -3, 4, -2, 12.3, 9, 2, 14]], (9, 7), b'0f11bN'),
  (
    [[1, 1, 6, 1, 6, 6, 1, 6], [4, 4, 9, 4, 9, 9, 4, 9]],
    (10, 12),
    b';5500003M03M0000j0',
  ),
  ([[2, 2, 8, 8, 8, 2, 2, 8]], (10, 10), b'f056N2N10O2N2a0'),
  ([[0, 0, 7, 0, 7, 5, 0, 5]], (5, 7), b'0S1'),
  ([[3, 3, 3, 3, 3, 3]], (6, 6), b'T1'),
  ([[3.2, 1, 3.2, 5, 3.4, 5]], (6, 6), b'T1'),
]
SQUARE = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]


def corners(polygons):
  return [np.reshape(p, (-1, 2)) for p in polygons]


@pytest.mark.parametrize('polygons,size,counts', GOLDEN)
def test_polygons_as_pycocotools_has_them(polygons, size, counts):
  mask = masks.from_polygons(corners(polygons), size)
  assert mask == counts
  assert masks.encode(masks.decode(mask, size)) == counts


@pytest.mark.parity
def test_polygons_equal_pycocotools():
  theirs = pytest.importorskip('pycocotools.mask')
  rng = np.random.default_rng(0)
  for i in range(2000):
    size = height, width = [int(n) for n in rng.integers(1, 60, 2)]
    polygons = []
    for _ in range(rng.integers(1, 4)):
      points = rng.uniform(-0.3, 1.3, (rng.integers(3, 9), 2)) * [width, height]
      rounded = [points, np.round(points), np.round(5 * points) / 5]
      polygons.append(rounded[i % 3])
    flat = [p.ravel().tolist() for p in polygons]
    pixels = theirs.decode(theirs.merge(theirs.frPyObjects(flat, *size)))
    mask = masks.from_polygons(polygons, (height, width))
    np.testing.assert_array_equal(masks.decode(mask, (height, width)), pixels)
    assert mask == theirs.encode(np.asfortranarray(pixels))['counts']


def test_columns_come_first():
  mask = masks.encode(np.array(SQUARE))
  np.testing.assert_array_equal(masks.unpack(mask), [4, 2, 1, 2, 3])
  assert masks.area(mask) == 4
  np.testing.assert_array_equal(masks.decode(mask, (3, 4)), SQUARE)
  assert masks.decode(mask, (3, 4)).dtype == np.uint8


@given(
  arrays.arrays(
    bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
  )
)
def test_encode_and_decode(pixels):
  size = pixels.shape
  mask = masks.encode(pixels)
  np.testing.assert_array_equal(masks.decode(mask, size), pixels)
  counts = masks.unpack(mask)
  assert masks.from_counts(counts.tolist(), size) == mask
  assert masks.from_counts(mask.decode(), size) == mask
  assert masks.area(mask) == pixels.sum()


@given(st.lists(st.integers(0, 2**40), max_size=12))
def test_pack_and_unpack(counts):
  assert masks.unpack(masks.pack(counts)).tolist() == counts


def test_counts_with_empty_runs_become_canonical():
  assert masks.from_counts([0, 0, 4, 2, 1, 0, 0, 2, 3], (3, 4)) == (
    masks.from_counts([4, 2, 1, 2, 3], (3, 4))
  )


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_hostile_counts_are_refused_or_decoded(data):
  try:
    pixels = masks.decode(data, (5, 6))
  except ValueError as e:
    assert 'mask: expected' in str(e)
  else:
    assert pixels.shape == (5, 6) and pixels.max() <= 1


@pytest.mark.parametrize(
  'counts,message',
  [
    ([4, 2, 1], r'run lengths of 3 x 4 .* got 7'),
    ([4, -2, 10], 'from 0 on'),
    ('42 ', 'compressed counts'),
    ('o' * 13 + '0', 'below 2'),
    (masks.pack([7, 6]), 'got 13'),
  ],
)
def test_bad_counts(counts, message):
  with pytest.raises(ValueError, match=message):
    masks.from_counts(counts, (3, 4))


def test_resize_to_twice_and_back():
  mask = masks.encode(np.array(SQUARE))
  twice = masks.resize(mask, (3, 4), (6, 8))
  np.testing.assert_array_equal(
    masks.decode(twice, (6, 8)), np.kron(SQUARE, np.ones((2, 2), int))
  )
  assert masks.resize(twice, (6, 8), (3, 4)) == mask
