# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Dense captioning: is every thing found, and each one's caption right?

DenseCap's average precision. Its boxes are whole pixels with both ends inside,
to which it adds 1 before it takes areas; that is the overlap of the continuous
boxes that are used here, in any unit.

Source: Johnson et al. 2016; jcjohnson/densecap, `eval/eval_utils.lua`
  (`DenseCaptioningEvaluator`) and `densecap/box_utils.lua` (`merge_boxes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm import geometry

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
# A caption must score above; -1 asks nothing of it: detection.
TEXT_THRESHOLDS = (-1.0, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
_MERGED = 0.7
_RECALLS = 100

# Captions and the references of each -> [captions] scores in [0, 1].
TextScore = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]


def merge_boxes(
  boxes: np.ndarray, threshold: float = _MERGED
) -> list[np.ndarray]:
  """Groups of boxes that are one thing.

  The box that overlaps most others takes them, the first of equals; then the
  same among those that are left. A group's boxes need not overlap one another.

  Args:
    boxes: [N, 4] xyxy, of one image.
    threshold: IoU from which on boxes are one.

  Returns: indices of each group, rising; every box is in one. A box without
    area is a group of its own.
  """
  boxes = np.reshape(np.asarray(boxes, np.float64), (-1, 4))
  iou = geometry.pairwise_iou(boxes, boxes)
  np.fill_diagonal(iou, 1.0)
  close = iou >= threshold
  groups = []
  while close.any():
    group = np.flatnonzero(close[np.argmax(close.sum(axis=0))])
    groups.append(group)
    close[group] = False
    close[:, group] = False
  return groups


def average_precisions(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  text_score: TextScore | None = None,
) -> np.ndarray:
  """DenseCap's average precision at each pair of thresholds.

  Boxes of the truth that are one thing (`merge_boxes`) become their mean box
  with all their captions. In each image predictions, surest first, take the
  box that they overlap most, be it little and be it taken: only the first that
  comes to a box can be right. Over all images, surest first, precision is then
  the largest at the recall or beyond, averaged over recalls of 0, 0.01, ...,
  0.99. (There, too: the loop to 1 in steps of 0.01 ends before 1.)

  Args:
    targets: one an image: 'boxes' [N, 4] xyxy, 'texts' N captions.
    predictions: in the same order: 'boxes' [M, 4] xyxy in the same unit,
      'scores' [M], 'texts' M captions (not looked at without `text_score`). A
      box that is empty, inverted or not finite overlaps nothing.
    text_score: METEOR, of raw captions; called once, for those that a box was
      found for. None leaves captions out.

  Returns: [5, 7] float64 in [0, 1] for `IOU_THRESHOLDS` and `TEXT_THRESHOLDS`;
    NaN but for the first column without `text_score`. Images without a box
    in the truth only have wrong predictions.

  Raises:
    ValueError: the lists disagree in length, or there is no box in the truth.
  """
  if len(targets) != len(predictions):
    raise ValueError(
      'dense captions: expected as many predictions as targets, got '
      f'{len(predictions)} and {len(targets)}.'
    )
  scores, ious = [np.zeros(0)], [np.zeros(0)]
  texts: list[tuple[str, list[str]] | None] = []
  positives = 0
  for index, (target, prediction) in enumerate(zip(targets, predictions)):
    truth = np.reshape(np.asarray(target['boxes'], np.float64), (-1, 4))
    boxes = np.reshape(np.asarray(prediction['boxes'], np.float64), (-1, 4))
    sure = np.reshape(np.asarray(prediction['scores'], np.float64), -1)
    if len(truth) != len(target['texts']) or len(boxes) != len(sure):
      raise ValueError(
        f'dense captions, image {index}: expected a caption for every box and '
        f'a score for every prediction, got {len(target["texts"])} for '
        f'{len(truth)} and {len(sure)} for {len(boxes)}.'
      )
    groups = merge_boxes(truth)
    positives += len(groups)
    # Reference: there, a prediction that overlaps nothing takes the last box,
    # by an index of -1; here it takes none.
    order, found, best = _take(
      np.array([truth[g].mean(axis=0) for g in groups]).reshape(-1, 4),
      boxes,
      sure,
    )
    scores.append(sure[order])
    ious.append(found)
    for i, iou, j in zip(order, found, best):
      references = [target['texts'][k] for k in groups[j]] if iou else []
      texts.append((prediction['texts'][i], references) if iou else None)
  if not positives:
    raise ValueError(
      f'dense captions: none of {len(targets)} images has a box.'
    )
  all_scores, all_ious = np.concatenate(scores), np.concatenate(ious)
  columns = len(TEXT_THRESHOLDS) if text_score else 1
  text = np.zeros(len(texts))
  asked = np.flatnonzero(all_ious >= IOU_THRESHOLDS[0])
  if text_score and len(asked):
    pairs = [pair for i in asked if (pair := texts[i])]
    text[asked] = text_score([c for c, _ in pairs], [r for _, r in pairs])
  order = np.argsort(-all_scores, kind='stable')
  out = np.full((len(IOU_THRESHOLDS), len(TEXT_THRESHOLDS)), np.nan)
  for row, least in enumerate(IOU_THRESHOLDS):
    for column, above in enumerate(TEXT_THRESHOLDS[:columns]):
      right = ((all_ious >= least) & (text > above))[order]
      out[row, column] = _average(right, positives)
  return out


def dense_caption_map(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  text_score: TextScore | None = None,
) -> dict[str, float]:
  """Mean of `average_precisions`, and of those that ignore captions.

  Args:
    targets: as for `average_precisions`.
    predictions: as for `average_precisions`.
    text_score: as for `average_precisions`.

  Returns: {'map': mean over the 30 pairs of thresholds, 'detection_map': mean
    over the five IoUs}, in [0, 1]; without 'map' if there is no `text_score`.

  Raises:
    ValueError: as for `average_precisions`.
  """
  table = average_precisions(targets, predictions, text_score)
  out = {'detection_map': float(table[:, 0].mean())}
  return (
    out
    if text_score is None
    else {
      'map': float(table[:, 1:].mean()),
      **out,
    }
  )


def hits(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  iou: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
  """Which of the things that were found are there, and how sure each was.

  Args:
    targets: as for `average_precisions`.
    predictions: as for `average_precisions`.
    iou: with a box that no surer prediction came to, from which on it is there.

  Returns: [N] bool and [N] scores, of all predictions of all images.
  """
  right, scores = [np.zeros(0, bool)], [np.zeros(0)]
  for target, prediction in zip(targets, predictions, strict=True):
    truth = np.reshape(np.asarray(target['boxes'], np.float64), (-1, 4))
    merged = [truth[g].mean(axis=0) for g in merge_boxes(truth)]
    sure = np.reshape(np.asarray(prediction['scores'], np.float64), -1)
    order, found, _ = _take(
      np.reshape(merged, (-1, 4)),
      np.reshape(np.asarray(prediction['boxes'], np.float64), (-1, 4)),
      sure,
    )
    right.append(found >= iou)
    scores.append(sure[order])
  return np.concatenate(right), np.concatenate(scores)


def _take(
  truth: np.ndarray, boxes: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Which box each prediction of an image takes.

  Args:
    truth: [N, 4] xyxy.
    boxes: [M, 4] xyxy.
    scores: [M].

  Returns: [M] predictions, surest first; [M] IoU with the box that each takes,
    0 where it was taken before or there is none; [M] that box.
  """
  order = np.argsort(-scores, kind='stable')
  if not len(truth):
    zeros = np.zeros(len(order))
    return order, zeros, zeros.astype(int)
  boxes = np.where(np.isfinite(boxes).all(axis=-1, keepdims=True), boxes, 0.0)
  ious = geometry.pairwise_iou(boxes[order], truth)
  best = ious.argmax(axis=1)
  found = ious.max(axis=1)
  # Those that overlap nothing come to no box.
  first = np.zeros(len(order), bool)
  touching = np.flatnonzero(found > 0)
  first[touching[np.unique(best[touching], return_index=True)[1]]] = True
  return order, np.where(first, found, 0.0), best


def _average(right: np.ndarray, positives: int) -> float:
  """Interpolated average precision of predictions, surest first."""
  if not right.any():
    return 0.0
  hits = np.cumsum(right)
  precision = hits / np.arange(1, len(right) + 1)
  # The largest here or beyond.
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  # In whole numbers, so that a recall of 0.07 is one of 7 in 100.
  needed = np.ceil(np.arange(_RECALLS) * positives / _RECALLS - 1e-9)
  at = np.searchsorted(hits, needed, side='left')
  return float(np.append(precision, 0.0)[at].mean())
