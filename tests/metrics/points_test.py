# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Word-point L1 against distances worked out by hand."""

import math

import numpy as np
import pytest

from pixel_llm.metrics import points


def test_distance_is_the_mean_over_axes_to_the_nearest_point():
  predicted = np.array([[[0.1, 0.2], [0.9, 0.6]]])  # one token, two points
  truth = np.array([[[0.0, 0.0], [1.0, 1.0]]])
  # (0.1 + 0.2) / 2 to the first corner, (0.1 + 0.4) / 2 to the second.
  np.testing.assert_allclose(
    points.point_distances(predicted, truth), [(0.15 + 0.25) / 2]
  )


def test_tokens_then_images_are_averaged():
  targets = [
    {'points': np.zeros((2, 1, 2)), 'weights': np.array([1.0, 1.0])},
    {'points': np.zeros((2, 1, 2)), 'weights': np.array([0.0, 1.0])},
    {'points': np.zeros((2, 1, 2)), 'weights': np.zeros(2)},
  ]
  predictions = [
    {'points': np.array([[[0.1, 0.1]], [[0.3, 0.3]]])},
    {'points': np.array([[[np.nan, np.inf]], [[0.6, 0.2]]])},
    {'points': np.ones((2, 1, 2))},
  ]
  # The third image has no point and does not count.
  result = points.word_point_l1(targets, predictions)
  assert result == {'point_l1': pytest.approx((0.2 + 0.4) / 2)}


def test_a_point_at_the_origin_counts():
  target = {'points': np.zeros((1, 1, 2)), 'weights': np.ones(1)}
  result = points.word_point_l1([target], [{'points': np.ones((1, 1, 2))}])
  assert result['point_l1'] == 1.0


def test_perfect_points_score_zero_and_order_of_images_is_irrelevant():
  rng = np.random.default_rng(0)
  targets = [
    {
      'points': rng.random((3, 5, 2, 2)),
      'weights': (rng.random((3, 5)) > 0.3).astype(float),
    }
    for _ in range(4)
  ]
  assert points.word_point_l1(targets, targets)['point_l1'] == 0
  predictions = [{'points': rng.random((3, 5, 2, 2))} for _ in range(4)]
  assert points.word_point_l1(targets, predictions)['point_l1'] == (
    pytest.approx(
      points.word_point_l1(targets[::-1], predictions[::-1])['point_l1']
    )
  )


def test_center_baseline():
  targets = [{
    'points': np.array([[[0.1, 0.2], [0.5, 0.9]]]),
    'weights': np.ones(1),
  }]  # fmt: skip
  result = points.word_point_l1_center(targets, [{}])
  assert result == {'point_l1_center': pytest.approx(0.2)}


def test_generated_tokens_meet_their_like():
  targets = [{
    'tokens': np.array([[7, 8, 7, 1]]),
    'points': np.array([[[[0.0, 0.0]], [[0.5, 0.5]], [[1.0, 1.0]],
                         [[0.0, 0.0]]]]),
    'weights': np.array([[1.0, 1.0, 1.0, 0.0]]),
  }]  # fmt: skip
  predictions = [{
    'tokens': np.array([7, 9, 8, 1, 0]),
    'points': np.array([[[0.8, 0.8]], [[0, 0]], [[0.5, 0.9]], [[0, 0]],
                        [[0, 0]]]),
  }]  # fmt: skip
  result = points.generated_point_l1(targets, predictions)
  # 7 is nearest its second mention, 9 and the end token have no partner.
  assert result['generated_point_l1'] == pytest.approx((0.2 + 0.2) / 2)
  assert result['generated_point_coverage'] == 0.5


def test_own_tokens_are_a_lower_bound():
  rng = np.random.default_rng(1)
  target = {
    'tokens': rng.integers(1, 4, 12),
    'points': rng.random((12, 2, 2)),
    'weights': np.ones(12),
  }
  prediction = {'tokens': target['tokens'], 'points': rng.random((12, 2, 2))}
  free = points.generated_point_l1([target], [prediction])
  forced = points.word_point_l1([target], [prediction])
  assert free['generated_point_l1'] < forced['point_l1']
  assert free['generated_point_coverage'] == 1


def test_nothing_in_common_is_nan_and_covers_nothing():
  target = {
    'tokens': np.array([5]), 'points': np.zeros((1, 1, 2)),
    'weights': np.ones(1),
  }  # fmt: skip
  prediction = {'tokens': np.array([6]), 'points': np.zeros((1, 1, 2))}
  result = points.generated_point_l1([target], [prediction])
  assert math.isnan(result['generated_point_l1'])
  assert result['generated_point_coverage'] == 0


def test_grounding_recall_by_hand():
  corners = np.array([
    [[0.0, 0.0], [0.2, 0.2]], [[0.4, 0.4], [0.6, 0.6]],
    [[0.9, 0.9], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]],
  ])  # fmt: skip
  target = {
    'tokens': np.array([7, 8, 9, 1]),
    'points': corners,
    'weights': np.array([1, 1, 1, 0]),
  }
  prediction = {
    # Padding says nothing, wherever it is.
    'tokens': np.array([8, 7, 7, 0]),
    'points': np.array(
      [[[0.5, 0.58]], [[0.5, 0.5]], [[0.13, 0.14]], [[0.95, 0.95]]]
    ),
  }
  result = points.grounding_recall([target], [prediction])
  # 8 is 0.08 from its place, the nearer 7 exactly 0.05, 9 was not said.
  assert result == {
    'grounding_recall_0.05': pytest.approx(1 / 3),
    'grounding_recall_0.1': pytest.approx(2 / 3),
    'grounding_recall_0.2': pytest.approx(2 / 3),
  }


def test_grounding_recall_of_the_best_reference():
  rng = np.random.default_rng(3)
  target = {
    'tokens': rng.integers(2, 5, (3, 6)),
    'points': rng.random((3, 6, 2, 2)),
    'weights': np.ones((3, 6)),
  }
  said = {'tokens': target['tokens'][1], 'points': target['points'][1]}
  empty = {'tokens': np.zeros(0, int), 'points': np.zeros((0, 2, 2))}
  none = {**target, 'weights': np.zeros((3, 6))}
  result = points.grounding_recall([target, target, none], [said, empty, said])
  assert set(result.values()) == {0.5}
  result = points.grounding_recall([none], [said])
  assert all(math.isnan(x) for x in result.values())


def test_errors_say_what_was_expected():
  target = {'points': np.zeros((2, 1, 2)), 'weights': np.ones(2)}
  with pytest.raises(ValueError, match=r'example 0: expected points'):
    points.word_point_l1([target], [{'points': np.zeros((3, 1, 2))}])
  with pytest.raises(ValueError, match='none of 0 examples'):
    points.word_point_l1([], [])
  with pytest.raises(ValueError, match='as many predictions'):
    points.word_point_l1([target], [])
