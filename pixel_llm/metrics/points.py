# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""How far the words of a narrative are from where the narrator pointed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def point_distances(
  points: np.ndarray, target_points: np.ndarray
) -> np.ndarray:
  """L1 distance of each token's points to the nearest ground-truth point.

  The distance of two points is the mean, not the sum, of |dx| and |dy|; each
  predicted point takes the nearest of its own token's ground-truth points, and
  a token's distance is the mean over its predicted points.

  Args:
    points: [..., P, 2] xy, normalized.
    target_points: [..., G, 2] xy, normalized; G need not equal P.

  Returns: [...] float64.

  Source: scenic pixel_llm, `evaluators.py:PointEvaluator.add_example`.
  """
  difference = np.abs(
    np.asarray(points, np.float64)[..., :, None, :]
    - np.asarray(target_points, np.float64)[..., None, :, :]
  )  # [..., P, G, 2]
  return difference.mean(axis=-1).min(axis=-1).mean(axis=-1)


def word_point_l1(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """Word-point L1 under teacher forcing: token i against token i.

  The distances are averaged over the tokens of an image that have a
  ground-truth point, then over images: a short narrative weighs as much as a
  long one.

  Args:
    targets: one an image: 'points' [..., L, G, 2] xy, normalized; 'weights'
      [..., L], 0 for a token without a ground-truth point. Leading dimensions
      are the image's regions.
    predictions: in the same order: 'points' [..., L, P, 2] xy, normalized, as
      predicted for the target's tokens.

  Returns: {'point_l1': mean distance}.

  Raises:
    ValueError: shapes disagree, or no token at all has a ground-truth point.

  Source: scenic pixel_llm, `evaluators.py:PointEvaluator`.
  """
  # Reference: there, a token has a point when its largest coordinate is > 0,
  # so that a point at the origin does not count; weights say it here. There,
  # an image none of whose tokens has a point enters the mean with distance 0;
  # it is left out here, padding examples with it.
  scores = []
  for index, (target, prediction) in enumerate(_pairs(targets, predictions)):
    points = np.asarray(prediction['points'])
    target_points = np.asarray(target['points'])
    weights = np.asarray(target['weights'], np.float64)
    if not (
      points.shape[:-2] == target_points.shape[:-2] == weights.shape
      and points.shape[-1:] == target_points.shape[-1:] == (2,)
    ):
      raise ValueError(
        f'example {index}: expected points [..., L, P, 2], target points '
        f'[..., L, G, 2] and weights [..., L] with the same leading '
        f'dimensions, got {points.shape}, {target_points.shape} and '
        f'{weights.shape}.'
      )
    score = _weighted_mean(point_distances(points, target_points), weights)
    if score is not None:
      scores.append(score)
  if not scores:
    raise ValueError(
      f'point L1: none of {len(targets)} examples has a token with a '
      'ground-truth point.'
    )
  return {'point_l1': float(np.mean(scores))}


def word_point_l1_center(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """`word_point_l1` of a model that always points at the image's centre.

  Args:
    targets: as for `word_point_l1`.
    predictions: any; only their number is looked at.

  Returns: {'point_l1_center': mean distance}.

  Raises:
    ValueError: as for `word_point_l1`.
  """
  centers = [
    {'points': np.full((*np.shape(target['points'])[:-2], 1, 2), 0.5)}
    for target, _ in _pairs(targets, predictions)
  ]
  return {'point_l1_center': word_point_l1(targets, centers)['point_l1']}


def generated_point_l1(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """Word-point L1 of freely generated narratives.

  Reference: the research code compares positions only, which means something
  only under teacher forcing. Here a generated token is compared with the
  ground-truth points of all tokens of the same id in the image's references
  (a thing named twice may be pointed at in two places) and takes the nearest;
  a token that has none there counts nothing, so the share of tokens that
  count is reported beside the distance. On its own tokens the nearest
  occurrence is at most as far as the same position: `generated_point_l1` is
  then a lower bound of `word_point_l1`.

  Args:
    targets: one an image: 'tokens' [..., L] int, 'points' [..., L, G, 2] xy,
      normalized, 'weights' [..., L], 0 for a token without a ground-truth
      point; leading dimensions may hold several references.
    predictions: in the same order: 'tokens' [T] int, 0 is padding, 'points'
      [T, P, 2] xy, normalized.

  Returns: {'generated_point_l1': mean distance, over tokens and then images,
    NaN when no token counts; 'generated_point_coverage': the share of all
    generated tokens that count}.
  """
  scores, counted, generated = [], 0, 0
  for target, prediction in _pairs(targets, predictions):
    has_point = np.asarray(target['weights']) > 0  # [..., L]
    target_tokens = np.asarray(target['tokens'])[has_point]  # [N]
    target_points = np.asarray(target['points'])[has_point]  # [N, G, 2]
    tokens = np.asarray(prediction['tokens'])
    points = np.asarray(prediction['points'])
    generated += int(np.sum(tokens != 0)) if has_point.any() else 0
    distances = []
    for token, point in zip(tokens, points, strict=True):
      same = target_points[target_tokens == token]
      if token != 0 and len(same):
        distances.append(point_distances(point[None], same).min())
    counted += len(distances)
    if distances:
      scores.append(float(np.mean(distances)))
  return {
    'generated_point_l1': float(np.mean(scores)) if scores else float('nan'),
    'generated_point_coverage': counted / max(generated, 1),
  }


def grounding_recall(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  radii: Sequence[float] = (0.05, 0.1, 0.2),
) -> dict[str, float]:
  """How much of what was pointed at is said, and pointed at nearby.

  A ground-truth token is found when a token of the same id was written whose
  place is at most `radius` from its own. A place is the mean of a token's
  points, distances are Euclidean.

  Args:
    targets: as for `generated_point_l1`; of several references that which is
      found best counts, for each radius by itself.
    predictions: as for `generated_point_l1`.
    radii: in units of the normalized image.

  Returns: {'grounding_recall_0.05': share of tokens found, mean over images
    with a ground-truth point, ...}; NaN where there is none.

  Raises:
    ValueError: the lists disagree in length.
  """
  scores = []
  for target, prediction in _pairs(targets, predictions):
    tokens = np.asarray(prediction['tokens'])
    places = np.asarray(prediction['points'], np.float64).mean(axis=-2)
    places = np.where((tokens != 0)[:, None], places, np.inf)
    target_tokens = np.asarray(target['tokens'])
    length = target_tokens.shape[-1]
    target_places = np.asarray(target['points'], np.float64).mean(axis=-2)
    found = [
      [np.mean(least <= radius) for radius in radii]
      for ids, centers, weights in zip(
        target_tokens.reshape(-1, length),
        target_places.reshape(-1, length, 2),
        np.asarray(target['weights']).reshape(-1, length),
      )
      if (weights > 0).any()
      for least in [
        _nearest(ids[weights > 0], centers[weights > 0], tokens, places)
      ]
    ]
    if found:
      scores.append(np.max(np.asarray(found), axis=0))
  means = np.mean(scores, axis=0) if scores else [float('nan')] * len(radii)
  return {f'grounding_recall_{r}': float(x) for r, x in zip(radii, means)}


def _nearest(
  ids: np.ndarray, centers: np.ndarray, tokens: np.ndarray, places: np.ndarray
) -> np.ndarray:
  """[N] distance of each id's centre to the nearest place of an equal token."""
  distances = np.linalg.norm(centers[:, None] - places[None], axis=-1)
  distances = np.where(ids[:, None] == tokens[None], distances, np.inf)
  return distances.min(axis=1, initial=np.inf)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float | None:
  """None when no weight is positive."""
  total = weights.sum()
  # A value of weight 0 may be anything, NaN too.
  values = np.where(weights > 0, values, 0.0)
  return float((values * weights).sum() / total) if total > 0 else None


def _pairs(targets: Sequence[Any], predictions: Sequence[Any]):
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many predictions as targets, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  return list(zip(targets, predictions))
