# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption at: a box -> the caption of what is there.

Source: paper section 4.4, location-conditioned captioning.
"""

from __future__ import annotations

import numpy as np

from pixel_llm import example as example_lib
from pixel_llm.tasks import narrate
from pixel_llm.tasks import task as task_lib

PROMPT = 'an object of '


def question(region: example_lib.Region) -> task_lib.Question:
  """The region's caption, asked by its box."""
  box = task_lib.WHOLE_IMAGE if region.box is None else region.box
  return task_lib.Question(
    prompt=PROMPT, answer=region.text, prompt_box=box, box=region.box
  )


def groups(example: example_lib.Example) -> list[list[int]]:
  """Captions of the same box are references of one question."""
  found: dict[bytes, list[int]] = {}
  for i, region in enumerate(example.regions):
    box = task_lib.WHOLE_IMAGE if region.box is None else region.box
    found.setdefault(np.asarray(box, np.float32).tobytes(), []).append(i)
  return list(found.values())


CAPTION_AT = task_lib.Task(
  name='caption_at',
  question=question,
  word_weight=1.0,
  point_weight=0.0,
  generates=True,
  reads=False,
  groups=groups,
  metrics=(narrate.caption_scores,),
)
