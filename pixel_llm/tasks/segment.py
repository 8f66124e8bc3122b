# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Segment: an expression -> the box and the pixels of what it means.

Source: paper section 4.3, referring segmentation: asked and read as `refer` is;
the box that is read prompts the mask decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import logging

from pixel_llm import example as example_lib
from pixel_llm.metrics import segment as segment_metrics
from pixel_llm.tasks import refer
from pixel_llm.tasks import task as task_lib


def question(region: example_lib.Region) -> task_lib.Question:
  """The expression, with the object's mask."""
  return dataclasses.replace(refer.question(region), mask=region.mask)


def usable(region: example_lib.Region) -> bool:
  """There are a box and a mask, or nothing is meant."""
  return (region.box is not None and region.mask is not None) or region.absent


def mask_scores(targets: list, predictions: list) -> dict[str, float]:
  """cIoU, gIoU and precision; nothing, with a note, where masks are missing."""
  if all('mask' in x for x in (*targets, *predictions)):
    return segment_metrics.mask_scores(targets, predictions)
  logging.log_first_n(
    logging.WARNING,
    'Metrics of masks are left out: this evaluation makes no masks.',
    1,
  )
  return {}


def mask_iou(targets: list, predictions: list) -> Sequence[float]:
  """IoU of each mask with the true one; of what is absent, how sure that is."""
  ious = []
  for target, prediction in zip(targets, predictions):
    both, either = segment_metrics.overlap(target['mask'], prediction['mask'])
    if target['presence']:
      ious.append(both / either if either else 0.0)
    else:
      ious.append(1 - prediction.get('presence', 1))
  return ious


SEGMENT = dataclasses.replace(
  refer.REFER,
  name='segment',
  question=question,
  usable=usable,
  segments=True,
  metrics=(refer.box_scores, mask_scores),
  rank=mask_iou,
)
