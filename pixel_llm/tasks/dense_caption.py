# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Dense captioning: every thing of an image found, and each one's caption.

In training the detector learns from all boxes, the language model from captions
of some. Evaluation here asks about the true boxes.

Source: paper section 4.4, dense object captioning.
"""

from __future__ import annotations

import dataclasses

from pixel_llm import example as example_lib
from pixel_llm.tasks import caption_at


def usable(region: example_lib.Region) -> bool:
  """There is a box."""
  return region.box is not None


DENSE_CAPTION = dataclasses.replace(
  caption_at.CAPTION_AT, name='dense_caption', detects=True, usable=usable
)
