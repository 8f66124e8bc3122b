# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Refer: an expression -> the box of what it means.

Source: paper section 3.4, referring localization: the expression is both the
prompt and the decoder's text, and the box is read at its last token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import logging

from pixel_llm import example as example_lib
from pixel_llm import geometry
from pixel_llm.metrics import refer as refer_metrics
from pixel_llm.tasks import task as task_lib

# Weight of the words before the last. Reference: 0 there; what this does by
# itself was not isolated.
EARLIER = 0.3


def question(region: example_lib.Region) -> task_lib.Question:
  """The expression; its last token is where the object's corners are read."""
  box = region.box

  def token_boxes(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.zeros((len(spans), 4), np.float32)
    weights = np.zeros((len(spans),), np.float32)
    if box is not None and len(spans):
      boxes[:], weights[:] = box, EARLIER
      weights[-1] = 1
    return boxes, weights

  there = box is not None
  return task_lib.Question(
    answer=region.text,
    token_boxes=token_boxes,
    box=box,
    there=there if there or region.absent else None,
  )


def usable(region: example_lib.Region) -> bool:
  """There is a box, or nothing is meant, of which there is nothing to read."""
  return region.box is not None or region.absent


def box_scores(targets: list, predictions: list) -> dict[str, float]:
  """Precision, mean IoU, those of the whole image as the answer, and presence.

  Presence is left out, with a note, where something is not there to be found
  but the network does not say so. `presence_threshold` is the probability from
  which on to say that it is there, by the split that is evaluated.
  """
  out = {
    **refer_metrics.box_precision(targets, predictions),
    **refer_metrics.box_precision_baseline(targets, predictions),
  }
  if all('presence' in x for x in (*targets, *predictions)):
    out |= refer_metrics.presence_scores(targets, predictions)
    if len({t['presence'] > 0 for t in targets}) == 2:
      out['presence_threshold'] = refer_metrics.presence_threshold(
        targets, predictions
      )
  elif not all(target.get('presence', 1) for target in targets):
    logging.log_first_n(
      logging.WARNING,
      'Metrics of what is not there are left out: this model has no presence '
      'head.',
      1,
    )
  return out


def presences(targets: list, predictions: list) -> tuple[list, list]:
  """Whether each expression's thing is there, and what the network says."""
  if not all('presence' in x for x in (*targets, *predictions)):
    return [], []
  return (
    [bool(t['presence'] > 0) for t in targets],
    [float(p['presence']) for p in predictions],
  )


def iou(targets: list, predictions: list) -> Sequence[float]:
  """IoU of each box with the true one; of what is absent, how sure that is."""
  boxes = np.reshape([np.clip(p['box'], 0, 1) for p in predictions], (-1, 4))
  truth = np.reshape([t['box'] for t in targets], (-1, 4))
  ious = np.nan_to_num(geometry.box_iou(boxes, truth)).tolist()
  return [
    iou if t.get('presence', 1) else 1 - p.get('presence', 1)
    for iou, t, p in zip(ious, targets, predictions)
  ]


# The words are given in the prompt: writing them again teaches nothing.
REFER = task_lib.Task(
  name='refer',
  question=question,
  prompts=('{text}',),
  word_weight=0.0,
  point_weight=1.0,
  generates=False,
  reads=True,
  usable=usable,
  metrics=(box_scores,),
  outcomes=presences,
  rank=iou,
)
