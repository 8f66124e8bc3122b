# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption at: a box, or points -> the caption of what is there.

Source: paper section 4.4, location-conditioned captioning.
"""

from __future__ import annotations

import numpy as np

from pixel_llm import example as example_lib
from pixel_llm.metrics import caption_at as caption_at_metrics
from pixel_llm.metrics import captions
from pixel_llm.tasks import narrate
from pixel_llm.tasks import task as task_lib


def question(region: example_lib.Region) -> task_lib.Question:
  """The region's caption, asked by its box, else by its clicks."""
  return task_lib.Question(
    answer=region.text,
    prompt_box=region.box,
    prompt_points=region.points if region.box is None else None,
    box=region.box,
  )


def usable(region: example_lib.Region) -> bool:
  """There is a place."""
  return region.box is not None or region.points is not None


def place(region: example_lib.Region) -> bytes:
  """Equal where captions are of the same box or clicks."""
  at = region.points if region.box is None else region.box
  return b'' if at is None else np.asarray(at, np.float32).tobytes()


def caption_scores(targets: list, predictions: list) -> dict[str, float]:
  """Those of `narrate`, whose references are of the region alone, and merged.

  See `metrics.caption_at` for what merges references; `*_merged` have them.
  """
  references = caption_at_metrics.references(targets, 'merged')
  written = [p['text'] for p in predictions]
  merged = {
    **captions.cider_d(references, written),
    **narrate.meteor(references, written),
  }
  return {
    **narrate.caption_scores(targets, predictions),
    **{f'{name}_merged': value for name, value in merged.items()},
  }


CAPTION_AT = task_lib.Task(
  name='caption_at',
  question=question,
  prompts=('an object of ',),
  word_weight=1.0,
  point_weight=0.0,
  generates=True,
  reads=False,
  groups=task_lib.alike(place),
  usable=usable,
  metrics=(caption_scores,),
  rank=narrate.cider_d,
)
