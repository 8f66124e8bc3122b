# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the model can be asked: one file per capability."""

from pixel_llm.tasks.caption import CAPTION
from pixel_llm.tasks.caption_at import CAPTION_AT
from pixel_llm.tasks.dense_caption import DENSE_CAPTION
from pixel_llm.tasks.instruct import INSTRUCT
from pixel_llm.tasks.narrate import NARRATE
from pixel_llm.tasks.refer import REFER
from pixel_llm.tasks.segment import SEGMENT
from pixel_llm.tasks.task import Question, Task

__all__ = [
  'CAPTION',
  'CAPTION_AT',
  'DENSE_CAPTION',
  'INSTRUCT',
  'NARRATE',
  'REFER',
  'SEGMENT',
  'Question',
  'Task',
]
