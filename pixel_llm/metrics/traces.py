# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""How far a predicted trace is from the narrator's, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Steps of the shorter trace that are matched at once.
_SEGMENT = 20


def local_bipartite_matching(
  trace: np.ndarray, other: np.ndarray, window: int = 0
) -> float:
  """Mean distance of two traces whose steps are matched one to one, nearby.

  Each step i of the shorter trace, of p, is matched to a step of its own of the
  longer, of m, in [(i - window) m / p, (i + 1 + window) m / p), so that the sum
  of distances is the least; the distance of two steps is the mean of their
  coordinates' absolute differences. With window 0 each takes the nearest step
  of its own stretch. As in the published code, 20 steps of the shorter trace
  are matched at once, to the part of the longer that they stretch over.

  Args:
    trace: [T, C] steps, normalized: boxes xyxy (C = 4) or points xy (C = 2).
    other: [U, C].
    window: `k` of the paper's tables, which have 0 and 1.

  Returns: the mean over segments of the mean distance of a segment's steps;
    NaN where a trace has no step.

  Raises:
    ValueError: steps differ in their coordinates.

  Source: Meng et al. 2021, section 4.2 (LBM); its code, connect-caption-and-
    trace, `captioning/utils/local_optimal_transport.py`, `eval_utils_joint.py`.
  """
  trace, other = (np.asarray(x, np.float64) for x in (trace, other))
  if trace.ndim != 2 or other.ndim != 2 or trace.shape[1] != other.shape[1]:
    raise ValueError(
      'traces: expected [T, C] and [U, C], got '
      f'{trace.shape} and {other.shape}.'
    )
  short, long = sorted((trace, other), key=len)
  if not len(short):
    return float('nan')
  costs = []
  for start in range(0, len(short), _SEGMENT):
    stretch = len(long) / len(short)
    part = short[start : start + _SEGMENT]
    beside = long[
      int(np.floor(start * stretch)) : int(
        np.ceil((start + _SEGMENT) * stretch)
      )
    ]
    distances = np.abs(part[:, None] - beside[None]).mean(axis=-1)
    rows, columns = np.indices(distances.shape)
    stretch = len(beside) / len(part)
    near = (columns >= (rows - window) * stretch) & (
      columns < (rows + 1 + window) * stretch
    )
    # More than any matching of what is near: never chosen.
    far = len(part) * (distances.max() + 1)
    matched = _assignment(np.where(near, distances, far))
    costs.append(distances[np.arange(len(part)), matched].mean())
  return float(np.mean(costs))


def trace_lbm(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  windows: Sequence[int] = (0, 1),
) -> dict[str, float]:
  """`local_bipartite_matching` of written narratives, mean over images.

  Args:
    targets: one an image: 'points' [..., L, P, 2] xy, normalized; 'weights'
      [..., L], 0 for a token without a ground-truth point. Leading dimensions
      hold several references: the nearest counts.
    predictions: in the same order: 'points' [T, P, 2], of the tokens that were
      written, in their order.
    windows: of `local_bipartite_matching`.

  Returns: {'lbm_0': mean distance, 'lbm_1': ...} and 'lbm_coverage', the share
    of the images with a trace for which points were predicted; the others
    don't enter the mean, NaN where none does.

  Raises:
    ValueError: the lists disagree in length, or points in their number.
  """
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many predictions as targets, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  scores, images = [], 0
  for target, prediction in zip(targets, predictions):
    points = np.asarray(target['points'])
    weights = np.asarray(target['weights'])
    length, coordinates = weights.shape[-1], points.shape[-2] * 2
    traces = [
      trace[weight > 0]
      for trace, weight in zip(
        points.reshape(-1, length, coordinates), weights.reshape(-1, length)
      )
      if (weight > 0).any()
    ]
    images += bool(traces)
    said = np.asarray(prediction['points'], np.float64)
    said = said.reshape(len(said), int(np.prod(said.shape[1:])))
    if traces and len(said):
      scores.append(
        [
          min(local_bipartite_matching(said, trace, k) for trace in traces)
          for k in windows
        ]
      )
  means = np.mean(scores, axis=0) if scores else [float('nan')] * len(windows)
  return {
    **{f'lbm_{k}': float(mean) for k, mean in zip(windows, means)},
    'lbm_coverage': len(scores) / max(images, 1),
  }


def _assignment(costs: np.ndarray) -> np.ndarray:
  """A column for each row, none twice, of the least sum of costs.

  Rows are added one by one; each finds the cheapest path to a free column by
  reduced costs (Dijkstra), and columns on it change hands.

  Args:
    costs: [N, M] with N <= M, finite.

  Returns: [N] columns.

  Source: the Hungarian method: Kuhn 1955, Munkres 1957, by shortest paths.
  """
  n, m = costs.shape
  price_row, price_column = np.zeros(n + 1), np.zeros(m + 1)
  # Column 0 is where a new row begins; rows and columns count from 1.
  owner = np.zeros(m + 1, int)
  for row in range(1, n + 1):
    owner[0], column = row, 0
    shortest, before = np.full(m + 1, np.inf), np.zeros(m + 1, int)
    done = np.zeros(m + 1, bool)
    while owner[column]:
      done[column] = True
      at = owner[column]
      reduced = costs[at - 1] - price_row[at] - price_column[1:]
      closer = ~done[1:] & (reduced < shortest[1:])
      shortest[1:][closer], before[1:][closer] = reduced[closer], column
      left = np.where(done, np.inf, shortest)
      left[0] = np.inf
      following = int(left.argmin())
      step = left[following]
      price_row[owner[done]] += step
      price_column[done] -= step
      shortest[~done] -= step
      column = following
    while column:
      owner[column] = owner[before[column]]
      column = before[column]
  out = np.zeros(n, int)
  for column in np.flatnonzero(owner[1:]):
    out[owner[column + 1] - 1] = column
  return out
