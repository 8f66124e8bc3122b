# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Ranking and calibration against counts by hand and closed forms."""

import numpy as np
import pytest

from pixel_llm.metrics import calibration


def test_auroc_counts_pairs():
  # Of the six pairs four are in order, one is a tie, one is not.
  labels, scores = [1, 0, 1, 0, 1], [0.9, 0.5, 0.5, 0.3, 0.4]
  assert calibration.auroc(labels, scores) == pytest.approx(4.5 / 6)


def test_auroc_equals_all_pairs_and_does_not_see_the_scale():
  rng = np.random.default_rng(0)
  labels, scores = rng.random(80) < 0.3, rng.integers(0, 12, 80) / 11
  difference = scores[labels][:, None] - scores[~labels]
  expected = np.mean((difference > 0) + 0.5 * (difference == 0))
  assert calibration.auroc(labels, scores) == pytest.approx(expected)
  assert calibration.auroc(labels, np.exp(5 * scores)) == pytest.approx(
    expected
  )
  assert calibration.auroc(~labels, scores) == pytest.approx(1 - expected)


def test_average_precision_by_hand():
  # Found at ranks 1, 3 and 4.
  result = calibration.average_precision(
    [1, 0, 1, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.5]
  )
  assert result == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
  # Two at once: precision 2/3 when both of them are found.
  assert calibration.average_precision(
    [1, 0, 1], [0.5, 0.5, 0.5]
  ) == pytest.approx(2 / 3)


def test_youden_threshold_parts_what_can_be_parted():
  labels, scores = [0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]
  assert calibration.youden_threshold(labels, scores) == pytest.approx(0.4)
  # However many negatives there are.
  more = calibration.youden_threshold(labels + [0] * 50, scores + [0.1] * 50)
  assert more == pytest.approx(0.4)


def test_youden_threshold_is_the_best_of_all():
  rng = np.random.default_rng(1)
  labels = rng.random(60) < 0.5
  scores = np.round(np.clip(0.3 * labels + rng.random(60) * 0.7, 0, 1), 2)
  gain = lambda t: np.mean(scores[labels] >= t) - np.mean(scores[~labels] >= t)
  chosen = calibration.youden_threshold(labels, scores)
  assert gain(chosen) == pytest.approx(
    max(gain(t) for t in np.linspace(0, 1.01, 1011))
  )


def test_brier_and_ece_by_hand():
  labels, scores = [1, 0, 1], [0.9, 0.4, 0.36]
  assert calibration.brier(labels, scores) == pytest.approx(
    (0.01 + 0.16 + 0.64**2) / 3
  )
  # 0.4 ends the sixth bin of fifteen, in which 0.36 is too.
  data = calibration.reliability(labels, scores)
  assert data.count.tolist() == [0] * 5 + [2] + [0] * 7 + [1, 0]
  assert data.confidence[5] == pytest.approx(0.38)
  assert data.accuracy[5] == 0.5
  assert np.isnan(data.accuracy[0])
  assert calibration.ece(labels, scores) == pytest.approx((2 * 0.12 + 0.1) / 3)


def test_ends_have_a_bin():
  data = calibration.reliability([0, 1], [0.0, 1.0], bins=3)
  assert data.count.tolist() == [1, 0, 1]
  assert data.ece == 0


def test_calibrated_scores_have_a_small_error_and_certain_ones_a_large():
  rng = np.random.default_rng(2)
  scores = rng.random(20000)
  labels = rng.random(20000) < scores
  assert calibration.ece(labels, scores) < 0.02
  # Always sure, right half of the time.
  assert calibration.ece(labels, np.ones(20000)) == pytest.approx(0.5, abs=0.02)
  # E[p (1 - p)] of a uniform p.
  assert calibration.brier(labels, scores) == pytest.approx(1 / 6, abs=0.01)


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='both kinds, got 2 of 1'):
    calibration.auroc([1, 1], [0.1, 0.2])
  with pytest.raises(ValueError, match='both kinds'):
    calibration.youden_threshold([0], [0.1])
  with pytest.raises(ValueError, match='a positive label'):
    calibration.average_precision([0], [0.1])
  with pytest.raises(ValueError, match='as many labels as scores'):
    calibration.brier([1, 0], [0.1])
  with pytest.raises(ValueError, match='at least one'):
    calibration.ece([], [])
  with pytest.raises(ValueError, match=r'in \[0, 1\], got 0.5 to 1.5'):
    calibration.ece([0, 1], [0.5, 1.5])
  with pytest.raises(ValueError, match='got NaN'):
    calibration.auroc([0, 1], [0.5, np.nan])
