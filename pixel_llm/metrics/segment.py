# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Referring segmentation: how much of what was meant is marked, and no more?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm import masks
from pixel_llm.metrics import refer

_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def overlap(mask: bytes, other: bytes) -> tuple[int, int]:
  """Pixels in both of two masks, and in any, without drawing them.

  Args:
    mask: run lengths as in `masks`.
    other: of the same image.

  Returns: (intersection, union), in pixels.

  Raises:
    ValueError: not run lengths, or of images of different sizes.
  """
  ends = [np.cumsum(masks.unpack(x)) for x in (mask, other)]
  totals = [int(e[-1]) if len(e) else 0 for e in ends]
  if totals[0] != totals[1]:
    raise ValueError(
      'masks: expected two of one image, got run lengths of '
      f'{totals[0]} and {totals[1]} pixels.'
    )
  places = np.union1d(*ends)
  starts = np.concatenate([[0], places[:-1]])
  lengths = places - starts
  # Runs are outside and inside by turns.
  a, b = (np.searchsorted(e, starts, side='right') & 1 for e in ends)
  return int(lengths[(a & b) > 0].sum()), int(lengths[(a | b) > 0].sum())


def mask_scores(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
  threshold: float = 0.5,
) -> dict[str, float]:
  """cIoU, gIoU and P@0.5 to P@0.9 of masks.

  What is not there is an empty target. Answered by nothing it has IoU 1 and
  adds no pixel; answered by a mask it has IoU 0, and the mask's pixels join
  the union of cIoU. What is there but answered by nothing has IoU 0.

  Args:
    targets: one an expression: 'mask', run lengths on the upright file as in
      `masks`, or None; 'presence', 0 where what it means is not in the image,
      by default 0 where the mask is None or has no pixel; 'id', when given,
      makes an expression that comes again count only once.
    predictions: in the same order: 'mask', or None for nothing; 'presence',
      the probability that it is there: below `threshold` the answer is
      nothing, whatever the mask. By default a mask without a pixel is nothing.
    threshold: of 'presence'.

  Returns: {'ciou': sum of intersections over sum of unions, 'giou': mean IoU
    over all expressions, 'mask_p_at_0.5': share of what is there with IoU >=
    0.5, ..., 'mask_p_at_0.9': ...}. cIoU is 1 where nothing is there and
    nothing was marked; P@k are left out where nothing is there.

  Raises:
    ValueError: the lists disagree in length, there is nothing, or two masks
      are not of one image.

  Source: Liu et al. 2023 (GRES), section 3; ReLA,
    `gres_model/evaluation/refer_evaluation.py`, of whose two ways to say
    nothing (a class, an empty mask) the first decides when it is there.
  """
  intersections, unions, ious, found = [], [], [], []
  for target, prediction in refer.counted(targets, predictions):
    truth, marked = _pixels(target), _pixels(prediction)
    there = float(target.get('presence', truth is not None)) > 0
    said = float(prediction.get('presence', marked is not None)) >= threshold
    if not there:
      both, either = 0, masks.area(marked) if said and marked else 0
      iou = float(not said)
    else:
      if truth is None or marked is None:
        both, either = 0, sum(masks.area(x) for x in (truth, marked) if x)
      else:
        both, either = overlap(truth, marked)
      both = both if said else 0
      iou = both / either if either else 0.0
      found.append(iou)
    intersections.append(both)
    unions.append(either)
    ious.append(iou)
  if not ious:
    raise ValueError('mask scores: expected an expression, got none.')
  out = {
    'ciou': sum(intersections) / sum(unions) if sum(unions) else 1.0,
    'giou': float(np.mean(ious)),
  }
  for k in _THRESHOLDS if found else ():
    out[f'mask_p_at_{k}'] = float(np.mean(np.array(found) >= k))
  return out


def _pixels(answer: Mapping[str, Any]) -> bytes | None:
  """The mask, or None where it has no pixel."""
  mask = answer['mask']
  return mask if mask and masks.area(mask) else None
