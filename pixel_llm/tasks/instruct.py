# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Instruct: a question about an image -> its answer.

Source: scenic pixel_llm, `get_llava_cap_train_source`.
"""

from __future__ import annotations

from pixel_llm import example as example_lib
from pixel_llm.tasks import caption, narrate
from pixel_llm.tasks import task as task_lib


def usable(region: example_lib.Region) -> bool:
  """Something was asked."""
  return region.prompt is not None


INSTRUCT = task_lib.Task(
  name='instruct',
  question=caption.question,
  prompts=('Question: {prompt} Answer: ',),
  word_weight=1.0,
  point_weight=0.0,
  generates=True,
  reads=False,
  groups=task_lib.alike(lambda region: region.prompt),
  usable=usable,
  metrics=(narrate.caption_scores,),
  rank=narrate.cider_d,
)
