# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Do scores rank right answers first, and do they mean what they say?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

_BINS = 15


def auroc(labels: Sequence[int] | np.ndarray, scores: np.ndarray) -> float:
  """The chance that a positive scores above a negative, a tie counting half.

  Args:
    labels: [N] bool or 0/1.
    scores: [N], higher is more positive; any scale.

  Returns: the area under the ROC curve, in [0, 1].

  Raises:
    ValueError: shapes disagree, a score is not a number, or all labels are
      equal.

  Source: Mann and Whitney 1947; Hanley and McNeil 1982.
  """
  labels, scores = _checked(labels, scores, both=True)
  _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
  # Ranks from 1, the mean of them where scores are equal.
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
  positives = int(labels.sum())
  above = ranks[labels].sum() - positives * (positives + 1) / 2
  return float(above / (positives * (len(labels) - positives)))


def average_precision(
  labels: Sequence[int] | np.ndarray, scores: np.ndarray
) -> float:
  """Precision summed over steps of recall, without interpolation.

  Equal scores are one step, so that the order of examples says nothing.

  Args:
    labels: [N] bool or 0/1.
    scores: [N], higher is more positive; any scale.

  Returns: in [0, 1]; the share of positives when all scores are equal.

  Raises:
    ValueError: shapes disagree, a score is not a number, or no label is 1.

  Source: Manning et al. 2008, chapter 8; as scikit-learn's
    `average_precision_score`.
  """
  labels, scores = _checked(labels, scores)
  if not labels.any():
    raise ValueError('average precision: expected a positive label, got none.')
  order = np.argsort(-scores, kind='stable')
  last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
  hits = np.cumsum(labels[order])[last]
  steps = np.diff(hits, prepend=0) / hits[-1]
  return float(np.sum(steps * hits / (last + 1)))


def youden_threshold(
  labels: Sequence[int] | np.ndarray, scores: np.ndarray
) -> float:
  """The threshold that tells positives from negatives best.

  It maximizes the true positive rate less the false positive rate (Youden's
  J), not F1: how many negatives a split has is chosen by who made it, J does
  not depend on it, and F1 would move with it. Choose it on validation; scores
  at it on the examples it was chosen on are too good.

  Args:
    labels: [N] bool or 0/1.
    scores: [N], higher is more positive.

  Returns: a number halfway between two neighbouring scores; what is at least
    as large is positive. Of equally good ones the nearest to 0.5.

  Raises:
    ValueError: as for `auroc`.

  Source: Youden 1950.
  """
  labels, scores = _checked(labels, scores, both=True)
  values = np.unique(scores)
  # Also: all are positive.
  cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
  rates = [
    1 - np.searchsorted(np.sort(scores[labels == kind]), cuts) / n
    for kind, n in ((True, labels.sum()), (False, (~labels).sum()))
  ]
  gain = rates[0] - rates[1]
  best = cuts[np.isclose(gain, gain.max(), rtol=0, atol=1e-12)]
  return float(best[np.argmin(np.abs(best - 0.5))])


def brier(labels: Sequence[int] | np.ndarray, scores: np.ndarray) -> float:
  """Mean squared distance of probabilities to what came true, in [0, 1].

  Args:
    labels: [N] bool or 0/1.
    scores: [N] in [0, 1].

  Raises:
    ValueError: shapes disagree, there is nothing, or a score is outside.

  Source: Brier 1950, for two outcomes, one of them counted.
  """
  labels, scores = _checked(labels, scores, probabilities=True)
  return float(np.mean((scores - labels) ** 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
  """The data of a reliability diagram; bins without examples are NaN.

  Attributes:
    edges: [bins + 1] of the bins' ends, from 0 to 1.
    confidence: [bins] mean score.
    accuracy: [bins] share of positives.
    count: [bins] number of examples.
  """

  edges: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  count: np.ndarray

  @property
  def ece(self) -> float:
    """Expected calibration error: mean |accuracy - confidence| of examples."""
    gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
    return float(np.sum(gap * self.count) / self.count.sum())


def reliability(
  labels: Sequence[int] | np.ndarray, scores: np.ndarray, bins: int = _BINS
) -> Reliability:
  """How often what got a score came true, score by score.

  Args:
    labels: [N] bool or 0/1.
    scores: [N] in [0, 1].
    bins: how many, of equal width; each has its upper end, the first 0 too.

  Raises:
    ValueError: as for `brier`.

  Source: Guo et al. 2017, equations 2 to 5, with their 15 bins.
  """
  labels, scores = _checked(labels, scores, probabilities=True)
  edges = np.linspace(0, 1, bins + 1)
  which = np.searchsorted(edges[1:-1], scores, side='left')
  count = np.bincount(which, minlength=bins)
  with np.errstate(invalid='ignore'):
    confidence, accuracy = (
      np.bincount(which, x, minlength=bins) / count for x in (scores, labels)
    )
  return Reliability(edges, confidence, accuracy, count)


def ece(labels: Sequence[int] | np.ndarray, scores: np.ndarray) -> float:
  """`reliability(labels, scores).ece`, of 15 bins of equal width."""
  return reliability(labels, scores).ece


def _checked(
  labels: Sequence[int] | np.ndarray,
  scores: np.ndarray,
  both: bool = False,
  probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Both as [N] arrays, bool and float64."""
  labels = np.asarray(labels).astype(bool)
  scores = np.asarray(scores, np.float64)
  if labels.ndim != 1 or labels.shape != scores.shape or not len(labels):
    raise ValueError(
      'calibration: expected as many labels as scores, at least one, got '
      f'shapes {labels.shape} and {scores.shape}.'
    )
  if np.isnan(scores).any():
    raise ValueError('calibration: expected numbers as scores, got NaN.')
  if both and labels.all() == labels.any():
    raise ValueError(
      f'calibration: expected labels of both kinds, got {len(labels)} of '
      f'{int(labels[0])}.'
    )
  if probabilities and (scores.min() < 0 or scores.max() > 1):
    raise ValueError(
      f'calibration: expected scores in [0, 1], got {scores.min()} to '
      f'{scores.max()}.'
    )
  return labels, scores
