# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""P@0.5 and mean IoU against boxes worked out by hand."""

import numpy as np
import pytest

from pixel_llm.metrics import refer


def _score(boxes, others, **target):
  return refer.box_precision(
    [{'box': np.array(b), **target} for b in boxes],
    [{'box': np.array(b)} for b in others],
  )


def test_worked_by_hand():
  truth = [[0.0, 0.0, 0.4, 0.4]] * 3
  # IoU 1, 0.08 / 0.24 and 0.
  answers = [
    [0.0, 0.0, 0.4, 0.4],
    [0.2, 0.0, 0.6, 0.4],
    [0.5, 0.5, 0.9, 0.9],
  ]
  result = _score(truth, answers)
  assert result == {
    'p_at_0.5': pytest.approx(1 / 3),
    'mean_iou': pytest.approx((1 + 1 / 3 + 0) / 3),
  }


def test_iou_of_exactly_one_half_misses():
  result = _score([[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 0.5]])
  assert result == {'p_at_0.5': 0.0, 'mean_iou': 0.5}


def test_answers_are_clipped_to_the_image():
  result = _score([[0.5, 0.5, 1.0, 1.0]], [[0.5, 0.5, 9.0, 9.0]])
  assert result == {'p_at_0.5': 1.0, 'mean_iou': 1.0}


@pytest.mark.parametrize(
  'box',
  [
    [0.3, 0.3, 0.3, 0.3],
    [0.4, 0.4, 0.0, 0.0],
    [0.4, 0.0, 0.0, 0.4],
    [np.nan, 0.0, 0.4, 0.4],
    [2.0, 2.0, 3.0, 3.0],
  ],
)
def test_degenerate_answers_miss(box):
  result = _score([[0.0, 0.0, 0.4, 0.4]], [box])
  assert result == {'p_at_0.5': 0.0, 'mean_iou': 0.0}


def test_a_degenerate_truth_is_not_met_by_itself():
  box = [0.3, 0.3, 0.3, 0.6]
  assert _score([box], [box])['mean_iou'] == 0.0


def test_weight_zero_and_repeated_ids_do_not_count():
  good, bad = np.array([0.1, 0.1, 0.5, 0.5]), np.array([0.6, 0.6, 0.9, 0.9])
  targets = [
    {'box': good, 'id': 'a'},
    {'box': good, 'id': 'b', 'weight': 1.0},
    {'box': good, 'id': 'b', 'weight': 1.0},
    {'box': None, 'id': 'c', 'weight': 0.0},
  ]
  predictions = [{'box': b} for b in (good, bad, bad, bad)]
  assert refer.box_precision(targets, predictions)['p_at_0.5'] == 0.5


def test_permutation_of_examples_is_irrelevant():
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 0.5, (2, 20, 2))
  boxes = np.concatenate([low, low + rng.uniform(0, 0.5, low.shape)], axis=-1)
  order = rng.permutation(20)
  a, b = _score(*boxes), _score(*boxes[:, order])
  assert a == pytest.approx(b)
  assert 0 < a['mean_iou'] < 1


def test_baseline_is_the_whole_image():
  targets = [{'box': np.array(b)} for b in ([0, 0, 1, 0.6], [0, 0, 0.2, 0.5])]
  assert refer.box_precision_baseline(targets, [{}, {}]) == {
    'p_at_0.5_baseline': 0.5,
    'mean_iou_baseline': pytest.approx(0.35),
  }


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='as many predictions'):
    refer.box_precision([{'box': np.zeros(4)}], [])
  with pytest.raises(ValueError, match='none of 1 expressions'):
    refer.box_precision([{'box': None, 'weight': 0.0}], [{'box': np.zeros(4)}])
