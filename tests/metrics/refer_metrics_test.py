# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Precision, mean IoU and presence, worked out by hand."""

import numpy as np
import pytest

from pixel_llm.metrics import refer

_PRECISIONS = [f'p_at_{k}' for k in (0.5, 0.6, 0.7, 0.8, 0.9)]


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
    **dict.fromkeys(_PRECISIONS, pytest.approx(1 / 3)),
    'mean_iou': pytest.approx((1 + 1 / 3 + 0) / 3),
  }


def test_each_threshold_counts_what_is_above_it():
  # IoU 0.95, 0.85, 0.75, 0.65, 0.55.
  answers = [[0.0, 0.0, 1.0, 0.95 - 0.1 * i] for i in range(5)]
  result = _score([[0.0, 0.0, 1.0, 1.0]] * 5, answers)
  assert [result[k] for k in _PRECISIONS] == [1.0, 0.8, 0.6, 0.4, 0.2]


def test_iou_of_exactly_one_half_misses():
  result = _score([[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 0.5]])
  assert result['p_at_0.5'] == 0
  assert result['mean_iou'] == 0.5


def test_answers_are_clipped_to_the_image():
  result = _score([[0.5, 0.5, 1.0, 1.0]], [[0.5, 0.5, 9.0, 9.0]])
  assert set(result.values()) == {1.0}


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
  assert set(result.values()) == {0.0}


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


def test_what_is_not_there_has_no_box_to_find():
  good = np.array([0.1, 0.1, 0.5, 0.5])
  targets = [{'box': good, 'presence': 1}, {'box': None, 'presence': 0}]
  result = refer.box_precision(targets, [{'box': good}] * 2)
  assert result['mean_iou'] == 1


def _presences(there, said, threshold=0.5):
  return refer.presence_scores(
    [{'presence': x} for x in there],
    [{'presence': x} for x in said],
    threshold,
  )


def test_presence_worked_by_hand():
  there, said = [1, 1, 1, 0, 0], [0.9, 0.5, 0.4, 0.45, 0.1]
  assert _presences(there, said) == {
    'n_acc': 1.0,
    't_acc': pytest.approx(2 / 3),
    # Of six pairs one is the wrong way round.
    'not_there_auroc': pytest.approx(5 / 6),
    # Found at ranks 1 and 3.
    'not_there_ap': pytest.approx((1 + 2 / 3) / 2),
    'presence_brier': pytest.approx((0.01 + 0.25 + 0.36 + 0.45**2 + 0.01) / 5),
    # Five bins of one each.
    'presence_ece': pytest.approx((0.1 + 0.5 + 0.6 + 0.45 + 0.1) / 5),
  }
  strict = _presences(there, said, 0.46)
  assert (strict['n_acc'], strict['t_acc']) == (1, pytest.approx(2 / 3))
  lax = _presences(there, said, 0.3)
  assert (lax['n_acc'], lax['t_acc']) == (0.5, 1)


def test_presence_of_one_kind_leaves_out_what_needs_both():
  assert set(_presences([1, 1], [0.9, 0.2])) == {
    't_acc',
    'presence_brier',
    'presence_ece',
  }
  assert _presences([0], [0.2])['n_acc'] == 1


def test_presence_threshold_is_between_the_kinds():
  threshold = refer.presence_threshold(
    [{'presence': x} for x in (1, 1, 0, 0, 0)],
    [{'presence': x} for x in (0.3, 0.9, 0.1, 0.2, 0.05)],
  )
  assert threshold == pytest.approx(0.25)
  result = _presences([1, 1, 0, 0, 0], [0.3, 0.9, 0.1, 0.2, 0.05], threshold)
  assert (result['n_acc'], result['t_acc']) == (1, 1)


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='both kinds'):
    refer.presence_threshold([{'presence': 1}], [{'presence': 0.4}])
  with pytest.raises(ValueError, match=r'in \[0, 1\]'):
    _presences([1], [1.5])
  with pytest.raises(ValueError, match='as many predictions'):
    refer.box_precision([{'box': np.zeros(4)}], [])
  with pytest.raises(ValueError, match='none of 1 expressions'):
    refer.box_precision([{'box': None, 'weight': 0.0}], [{'box': np.zeros(4)}])
