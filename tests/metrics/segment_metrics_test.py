# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of masks against pixels, pycocotools and cases by hand."""

import numpy as np
import pytest

from pixel_llm import masks
from pixel_llm.metrics import segment


def _mask(*rows):
  return masks.encode(np.array([[int(c) for c in row] for row in rows]))


def _random(rng, size=(13, 9)):
  """Blobs, so that runs are of all lengths; empty and full ones too."""
  share = rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
  return (rng.random(size) < share).astype(np.uint8)


def test_overlap_equals_pixels():
  rng = np.random.default_rng(0)
  for _ in range(200):
    a, b = _random(rng), _random(rng)
    expected = ((a & b).sum(), (a | b).sum())
    assert segment.overlap(masks.encode(a), masks.encode(b)) == expected


@pytest.mark.parity
def test_overlap_equals_pycocotools():
  api = pytest.importorskip('pycocotools.mask')
  rng = np.random.default_rng(1)
  pixels = np.stack([_random(rng, (17, 23)) for _ in range(40)], axis=-1)
  rles = api.encode(np.asfortranarray(pixels))
  counts = [rle['counts'] for rle in rles]
  expected = api.iou(rles, rles, [0] * len(rles))
  for i, a in enumerate(counts):
    for j, b in enumerate(counts):
      both, either = segment.overlap(a, b)
      assert (both / either if either else 0) == pytest.approx(expected[i, j])


def test_worked_by_hand():
  truth = _mask('1100', '1100')
  targets = [{'mask': truth}] * 3
  predictions = [
    {'mask': truth},  # 4 of 4
    {'mask': _mask('1110', '1110')},  # 4 of 6
    {'mask': _mask('0110', '0000')},  # 1 of 5
  ]
  ious = [1, 4 / 6, 1 / 5]
  assert segment.mask_scores(targets, predictions) == {
    'ciou': pytest.approx(9 / 15),
    'giou': pytest.approx(sum(ious) / 3),
    'mask_p_at_0.5': pytest.approx(2 / 3),
    'mask_p_at_0.6': pytest.approx(2 / 3),
    'mask_p_at_0.7': pytest.approx(1 / 3),
    'mask_p_at_0.8': pytest.approx(1 / 3),
    'mask_p_at_0.9': pytest.approx(1 / 3),
  }


def test_iou_at_the_threshold_counts():
  targets = [{'mask': _mask('11')}]
  result = segment.mask_scores(targets, [{'mask': _mask('10')}])
  assert result['mask_p_at_0.5'] == 1
  assert result['mask_p_at_0.6'] == 0


def test_what_is_not_there():
  empty, some, two = _mask('0000'), _mask('1110'), _mask('1100')
  targets = [
    {'mask': empty},
    {'mask': None},
    {'mask': None, 'presence': 0},
    {'mask': two},
    {'mask': two},
  ]
  predictions = [
    {'mask': empty},  # right: 1, no pixel
    {'mask': some},  # wrong: 0, 3 pixels
    {'mask': some, 'presence': 0.2},  # right: 1, no pixel
    {'mask': two},  # 2 of 2
    {'mask': two, 'presence': 0.2},  # wrong: 0 of 2
  ]
  result = segment.mask_scores(targets, predictions)
  assert result['ciou'] == pytest.approx(2 / (3 + 2 + 2))
  assert result['giou'] == pytest.approx(3 / 5)
  # Of what is there alone.
  assert result['mask_p_at_0.9'] == 0.5
  lax = segment.mask_scores(targets, predictions, threshold=0.1)
  assert lax['giou'] == pytest.approx(3 / 5)
  assert lax['ciou'] == pytest.approx(4 / (3 + 3 + 2 + 2))


def test_nothing_there_and_nothing_said():
  assert segment.mask_scores([{'mask': None}], [{'mask': None}]) == {
    'ciou': 1.0,
    'giou': 1.0,
  }


def test_ids_count_once():
  one, other = _mask('10'), _mask('01')
  targets = [{'mask': one, 'id': 'a'}, {'mask': one, 'id': 'a'}]
  result = segment.mask_scores(targets, [{'mask': one}, {'mask': other}])
  assert result['giou'] == 1


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='of 2 and 4 pixels'):
    segment.overlap(_mask('10'), _mask('1000'))
  with pytest.raises(ValueError, match='as many predictions'):
    segment.mask_scores([{'mask': None}], [])
  with pytest.raises(ValueError, match='got none'):
    segment.mask_scores([], [])
