# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Local bipartite matching of traces, by hand and against all matchings."""

import itertools
import math

import numpy as np
import pytest

from pixel_llm.metrics import traces


def test_equal_traces_are_at_no_distance():
  trace = np.random.default_rng(0).random((50, 4))
  for window in (0, 1, 5):
    assert traces.local_bipartite_matching(trace, trace, window) == 0


def test_window_0_takes_the_nearest_of_its_own_stretch():
  short = np.array([[0.0, 0.0], [1.0, 1.0]])
  long = np.array([[0.5, 0.5], [0.2, 0.0], [0.0, 0.0], [1.0, 0.6]])
  # 0.1 for the first, 0.2 for the second; the third would be nearer.
  for a, b in ((short, long), (long, short)):
    assert traces.local_bipartite_matching(a, b) == pytest.approx(0.15)
  # With a window of 1 the first may take it.
  assert traces.local_bipartite_matching(short, long, 1) == pytest.approx(0.1)


def test_steps_are_matched_one_to_one():
  short = np.array([[0.0], [0.0]])
  long = np.array([[0.0], [1.0]])
  # Both are nearest the first.
  assert traces.local_bipartite_matching(short, long, 1) == 0.5


@pytest.mark.parametrize('window', [0, 1, 2])
def test_equals_the_best_of_all_matchings(window):
  rng = np.random.default_rng(1)
  for p, m in ((4, 4), (4, 7), (5, 6), (3, 8)):
    short, long = rng.random((p, 2)), rng.random((m, 2))
    costs = [
      np.mean(
        [np.abs(short[i] - long[j]).mean() for i, j in enumerate(columns)]
      )
      for columns in itertools.permutations(range(m), p)
      if all(
        (i - window) * m / p <= j < (i + 1 + window) * m / p
        for i, j in enumerate(columns)
      )
    ]
    found = traces.local_bipartite_matching(short, long, window)
    assert found == pytest.approx(min(costs))


def test_a_wider_window_is_never_farther():
  rng = np.random.default_rng(2)
  a, b = rng.random((33, 4)), rng.random((47, 4))
  scores = [traces.local_bipartite_matching(a, b, k) for k in range(4)]
  assert scores == sorted(scores, reverse=True)
  assert scores[0] > scores[3] > 0


def test_long_traces_are_matched_in_parts():
  # Twenty steps at 0, then five at 1; the other trace the other way round.
  a = np.repeat([[0.0], [1.0]], [20, 5], axis=0)
  assert traces.local_bipartite_matching(a, 1 - a) == 1
  b = np.repeat([[0.0], [1.0], [0.5]], [40, 5, 5], axis=0)
  # The means of both parts weigh the same.
  assert traces.local_bipartite_matching(a, b) == pytest.approx(
    (0 + (3 * 0 + 2 * 0.5) / 5) / 2
  )


def test_over_images():
  points = np.array([[[0.0, 0.0]], [[0.5, 0.5]], [[1.0, 1.0]]])
  targets = [
    # The second reference is nearer; its middle token has no point.
    {
      'points': np.stack([points + 5, points]),
      'weights': np.array([[1, 1, 1], [1, 0, 1]]),
    },
    {'points': points, 'weights': np.zeros(3)},
    {'points': points, 'weights': np.ones(3)},
  ]
  predictions = [
    {'points': points[[0, 2]] + 0.1},
    {'points': points},
    {'points': np.zeros((0, 1, 2))},
  ]
  assert traces.trace_lbm(targets, predictions) == {
    'lbm_0': pytest.approx(0.1),
    'lbm_1': pytest.approx(0.1),
    'lbm_coverage': 0.5,
  }


def test_nothing_to_match_is_nan():
  assert math.isnan(
    traces.local_bipartite_matching(np.zeros((0, 2)), np.zeros((3, 2)))
  )
  target = {'points': np.zeros((2, 1, 2)), 'weights': np.zeros(2)}
  result = traces.trace_lbm([target], [{'points': np.zeros((2, 1, 2))}])
  assert math.isnan(result['lbm_0'])
  assert result['lbm_coverage'] == 0


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match=r'\(3, 2\) and \(3, 4\)'):
    traces.local_bipartite_matching(np.zeros((3, 2)), np.zeros((3, 4)))
  with pytest.raises(ValueError, match='as many predictions'):
    traces.trace_lbm([], [{}])
