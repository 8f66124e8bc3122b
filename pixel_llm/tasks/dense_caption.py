# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Dense captioning: every thing of an image found, and each one's caption.

In training the detector learns from all boxes, the language model from captions
of some. Evaluation here asks about the true boxes.

Source: paper section 4.4, dense object captioning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pixel_llm import example as example_lib
from pixel_llm import geometry
from pixel_llm.metrics import calibration
from pixel_llm.metrics import dense_caption as dense_caption_metrics
from pixel_llm.metrics import meteor as meteor_metric
from pixel_llm.tasks import caption_at, narrate


def usable(region: example_lib.Region) -> bool:
  """There is a box."""
  return region.box is not None


def found_scores(targets: list, predictions: list) -> dict[str, float]:
  """DenseCap's mAP and that of detection, of what was found in each image.

  Without METEOR's data that of detection alone, with a note. Answers to
  questions about the true boxes score as those of `caption_at`.
  """
  if not all('boxes' in target for target in targets):
    return caption_at.caption_scores(targets, predictions)
  text_score = narrate.has_meteor() and meteor_metric.text_scores
  out = dense_caption_metrics.dense_caption_map(
    targets, predictions, text_score or None
  )
  right, scores = things(targets, predictions)
  if scores:
    out['detection_ece'] = calibration.ece(right, np.asarray(scores))
  return out


def things(targets: list, predictions: list) -> tuple[list, list]:
  """Which things that were found are there with IoU 0.5, and their scores."""
  if not all('boxes' in target for target in targets):
    return [], []
  right, scores = dense_caption_metrics.hits(targets, predictions)
  return right.tolist(), scores.tolist()


def box_recall(targets: list, predictions: list) -> Sequence[float]:
  """Mean IoU of an image's things with the nearest that was found."""
  ranks = []
  for target, prediction in zip(targets, predictions):
    ious = geometry.pairwise_iou(target['boxes'], prediction['boxes'])
    ranks.append(float(np.mean(ious.max(axis=1))) if ious.size else 0.0)
  return ranks


DENSE_CAPTION = dataclasses.replace(
  caption_at.CAPTION_AT,
  name='dense_caption',
  detects=True,
  usable=usable,
  metrics=(found_scores,),
  outcomes=things,
  rank=box_recall,
)
