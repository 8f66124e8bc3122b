# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Referring expressions: is the box around the thing that was meant?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm import geometry

_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


def box_precision(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """P@0.5 and mean IoU over referring expressions.

  Args:
    targets: one an expression: 'box' [4] xyxy, normalized; 'weight', 0 leaves
      the expression out, 1 when absent; 'id', when given, makes an expression
      that comes again (a repeated last batch) count only once.
    predictions: in the same order: 'box' [4] xyxy, normalized. It is clipped
      to the image first; a box that is empty, inverted or not finite misses.

  Returns: {'p_at_0.5': share with IoU > 0.5, 'mean_iou': mean IoU}.

  Raises:
    ValueError: the lists disagree in length, or no expression counts.

  Source: scenic pixel_llm, `evaluators.py:RefCocoEvaluator` (k = 1, IoU > 0.5,
    strictly; MDETR's, from which it comes, has >=).
  """
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many predictions as targets, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  seen = set()
  ious = []
  for target, prediction in zip(targets, predictions):
    key = target.get('id')
    if target.get('weight', 1.0) <= 0 or (key is not None and key in seen):
      continue
    seen.add(key)
    box = np.clip(np.asarray(prediction['box'], np.float64), 0.0, 1.0)
    iou = geometry.box_iou(box, np.asarray(target['box'], np.float64))
    ious.append(float(np.nan_to_num(iou)))
  if not ious:
    raise ValueError(
      f'box precision: none of {len(targets)} expressions has a box.'
    )
  return {
    'p_at_0.5': float(np.mean(np.array(ious) > 0.5)),
    'mean_iou': float(np.mean(ious)),
  }


def box_precision_baseline(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """`box_precision` of a model that always answers the whole image.

  Args:
    targets: as for `box_precision`.
    predictions: any; only their number is looked at.

  Returns: {'p_at_0.5_baseline': ..., 'mean_iou_baseline': ...}.

  Raises:
    ValueError: as for `box_precision`.
  """
  whole = [{'box': np.array(_WHOLE_IMAGE)}] * len(predictions)
  return {
    f'{name}_baseline': value
    for name, value in box_precision(targets, whole).items()
  }
