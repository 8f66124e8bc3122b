# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption: a short caption of the whole image."""

from __future__ import annotations

from pixel_llm import example as example_lib
from pixel_llm.tasks import narrate
from pixel_llm.tasks import task as task_lib

# Source: scenic pixel_llm, `pixel_llm_t5_trace_ref_densecap_llava.py`.
# Evaluation asks the first. Reference: typing errors are put right.
PROMPTS = (
  'A photo of ',
  'A short image caption: ',
  'A short image description: ',
  'An image that shows ',
  'Write a short description for the image. ',
  'Write a description for the photo. ',
  'Provide a description of what is presented in the photo. ',
  'Briefly describe the content of the image. ',
  'Can you briefly explain what you see in the image? ',
  'Could you use a few words to describe what you perceive in the photo? ',
  'Please provide a short depiction of the picture. ',
  'Using language, provide a short account of the image. ',
  'Use a few words to illustrate what is happening in the picture. ',
)


def question(region: example_lib.Region) -> task_lib.Question:
  """The text, asked about the whole image."""
  return task_lib.Question(answer=region.text)


CAPTION = task_lib.Task(
  name='caption',
  question=question,
  prompts=PROMPTS,
  word_weight=1.0,
  point_weight=0.0,
  generates=True,
  reads=False,
  groups=narrate.GROUPS,
  metrics=(narrate.caption_scores,),
  rank=narrate.cider_d,
)
