# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Segment: an expression -> the box and the pixels of what it means.

Source: paper section 4.3, referring segmentation: asked and read as `refer` is;
the box that is read prompts the mask decoder.
"""

from __future__ import annotations

import dataclasses

from pixel_llm import example as example_lib
from pixel_llm.tasks import refer
from pixel_llm.tasks import task as task_lib


def question(region: example_lib.Region) -> task_lib.Question:
  """The expression, with the object's mask."""
  return dataclasses.replace(refer.question(region), mask=region.mask)


def usable(region: example_lib.Region) -> bool:
  """There are a box and a mask."""
  return region.box is not None and region.mask is not None


SEGMENT = dataclasses.replace(
  refer.REFER, name='segment', question=question, usable=usable
)
