# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Referring expressions: is the box around the thing that was meant?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm import geometry
from pixel_llm.metrics import calibration

_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def box_precision(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """P@0.5 to P@0.9 and mean IoU over referring expressions.

  Args:
    targets: one an expression: 'box' [4] xyxy, normalized; 'weight', 0 leaves
      the expression out, 1 when absent; 'presence', 0 where what it means is
      not in the image, which leaves it out as well, 1 when absent; 'id', when
      given, makes an expression that comes again (a repeated last batch) count
      only once.
    predictions: in the same order: 'box' [4] xyxy, normalized. It is clipped
      to the image first; a box that is empty, inverted or not finite misses.

  Returns: {'p_at_0.5': share with IoU > 0.5, ..., 'p_at_0.9': ...,
    'mean_iou': mean IoU}.

  Raises:
    ValueError: the lists disagree in length, or no expression counts.

  Source: scenic pixel_llm, `evaluators.py:RefCocoEvaluator` (k = 1, IoU > 0.5,
    strictly; MDETR's, from which it comes, has >=).
  """
  ious = []
  for target, prediction in counted(targets, predictions):
    if target.get('weight', 1.0) <= 0 or not target.get('presence', 1):
      continue
    box = np.clip(np.asarray(prediction['box'], np.float64), 0.0, 1.0)
    iou = geometry.box_iou(box, np.asarray(target['box'], np.float64))
    ious.append(float(np.nan_to_num(iou)))
  if not ious:
    raise ValueError(
      f'box precision: none of {len(targets)} expressions has a box.'
    )
  return {
    **{f'p_at_{k}': float(np.mean(np.array(ious) > k)) for k in _THRESHOLDS},
    'mean_iou': float(np.mean(ious)),
  }


def box_precision_baseline(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """P@0.5 and mean IoU of a model that always answers the whole image.

  Args:
    targets: as for `box_precision`.
    predictions: any; only their number is looked at.

  Returns: {'p_at_0.5_baseline': ..., 'mean_iou_baseline': ...}.

  Raises:
    ValueError: as for `box_precision`.
  """
  whole = [{'box': np.array(_WHOLE_IMAGE)}] * len(predictions)
  scores = box_precision(targets, whole)
  return {f'{k}_baseline': scores[k] for k in ('p_at_0.5', 'mean_iou')}


def presence_scores(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  threshold: float = 0.5,
) -> dict[str, float]:
  """Is it known when what an expression means is not in the image?

  Args:
    targets: one an expression: 'presence', 1 there, 0 not; 'id' as for
      `box_precision`.
    predictions: in the same order: 'presence', the probability that it is
      there, in [0, 1].
    threshold: from this probability on the answer is that it is there; see
      `presence_threshold`.

  Returns: {'n_acc': the share of what is not there that is called so, 't_acc':
    the share of what is there that is called so, 'not_there_auroc' and
    'not_there_ap': the ranking by 1 - probability, 'presence_brier',
    'presence_ece'}. Where all expressions are there, or none is, the numbers
    that need both kinds are left out.

  Raises:
    ValueError: the lists disagree in length, there is nothing, or a
      probability is not in [0, 1].

  Source: Liu et al. 2023 (GRES), section 3; ReLA,
    `gres_model/evaluation/refer_evaluation.py` (N_acc, T_acc).
  """
  there, scores = _presence(targets, predictions)
  out = {
    'presence_brier': calibration.brier(there, scores),
    'presence_ece': calibration.ece(there, scores),
  }
  called = scores >= threshold
  if there.any():
    out['t_acc'] = float(np.mean(called[there]))
  if not there.all():
    out['n_acc'] = float(np.mean(~called[~there]))
  if there.any() and not there.all():
    out['not_there_auroc'] = calibration.auroc(~there, 1 - scores)
    out['not_there_ap'] = calibration.average_precision(~there, 1 - scores)
  return out


def presence_threshold(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> float:
  """The probability from which on to say that it is there.

  Args:
    targets: as for `presence_scores`, of a split that is not reported.
    predictions: as for `presence_scores`.

  Returns: `calibration.youden_threshold`, which says why.

  Raises:
    ValueError: as for `presence_scores`, or all are there, or none is.
  """
  return calibration.youden_threshold(*_presence(targets, predictions))


def counted(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
  """Pairs of both, each 'id' of a target once.

  Raises:
    ValueError: the lists disagree in length.
  """
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many predictions as targets, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  seen = set()
  pairs = []
  for target, prediction in zip(targets, predictions):
    key = target.get('id')
    if key is None or key not in seen:
      pairs.append((target, prediction))
      seen.add(key)
  return pairs


def _presence(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
  pairs = counted(targets, predictions)
  there = np.array([target['presence'] > 0 for target, _ in pairs], bool)
  return there, np.array([float(p['presence']) for _, p in pairs])
