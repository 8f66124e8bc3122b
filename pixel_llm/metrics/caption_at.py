# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Location-conditioned captioning: what are the references of a region?

Visual Genome's boxes lie on top of one another, and two conventions are
published. `alone`: a region's references are the captions of its own box.
`merged`: they are those of all boxes of the image that DenseCap's evaluator
would merge with it, which scores higher. In both each region is an example of
its own.

Source: scenic pixel_llm, `evaluators.py:LocaEvaluator`, with its option
  `merge_gt_boxes` off, as in its configs, and on;
  DenseCap's evaluator groups references as `merged` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm.metrics import dense_caption

CONVENTIONS = ('alone', 'merged')


def references(
  targets: Sequence[Mapping[str, Any]], convention: str
) -> list[list[str]]:
  """The references of each region.

  Args:
    targets: one a region: 'texts', captions of its own box; 'box' [4] xyxy and
      its 'weight', 0 where there is none; 'image', any name of its image. A
      region without box or image is alone.
    convention: 'alone' or 'merged'.

  Returns: captions, in order of `targets`.

  Raises:
    ValueError: no such convention.
  """
  if convention not in CONVENTIONS:
    raise ValueError(
      f'convention: expected one of {CONVENTIONS}, got {convention!r}.'
    )
  out = [list(target['texts']) for target in targets]
  if convention == 'alone':
    return out
  images: dict[Any, list[int]] = {}
  for i, target in enumerate(targets):
    if target.get('weight', 1.0) > 0 and target.get('image') is not None:
      images.setdefault(target['image'], []).append(i)
  for regions in images.values():
    boxes = np.stack([np.asarray(targets[i]['box']) for i in regions])
    for group in dense_caption.merge_boxes(boxes):
      members = [regions[i] for i in group]
      texts = [text for i in members for text in targets[i]['texts']]
      for i in members:
        out[i] = texts
  return out
