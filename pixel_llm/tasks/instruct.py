# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Instruct: a question about an image -> its answer.

Source: scenic pixel_llm, `get_llava_cap_train_source`.
"""

from __future__ import annotations

import collections

from pixel_llm import example as example_lib
from pixel_llm.tasks import caption, narrate
from pixel_llm.tasks import task as task_lib


def usable(region: example_lib.Region) -> bool:
  """Something was asked."""
  return region.prompt is not None


def groups(example: example_lib.Example) -> list[list[int]]:
  """Texts with the same prompt are references of one question."""
  found = collections.defaultdict(list)
  for i, region in enumerate(example.regions):
    found[region.prompt].append(i)
  return list(found.values())


INSTRUCT = task_lib.Task(
  name='instruct',
  question=caption.question,
  prompts=('Question: {prompt} Answer: ',),
  word_weight=1.0,
  point_weight=0.0,
  generates=True,
  reads=False,
  groups=groups,
  usable=usable,
  metrics=(narrate.caption_scores,),
)
