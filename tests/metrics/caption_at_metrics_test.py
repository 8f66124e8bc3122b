# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Both conventions of a region's references."""

import numpy as np
import pytest

from pixel_llm.metrics import caption_at


def _region(image, box, *texts, weight=1.0):
  return {
    'image': image,
    'box': np.array(box, float),
    'texts': list(texts),
    'weight': weight,
  }


def test_each_alone_or_with_what_is_merged_with_it():
  targets = [
    _region('a', [0, 0, 10, 1], 'a ring'),
    _region('b', [0, 0, 10, 1], 'a star'),
    _region('a', [0, 0, 9, 1], 'a red ring', 'the ring'),
    _region('a', [0, 0, 5, 1], 'half a ring'),
    _region('a', [0, 0, 10, 1], 'no box', weight=0.0),
    _region(None, [0, 0, 10, 1], 'no image'),
  ]
  assert caption_at.references(targets, 'alone') == [
    t['texts'] for t in targets
  ]
  group = ['a ring', 'a red ring', 'the ring']
  assert caption_at.references(targets, 'merged') == [
    group,
    ['a star'],
    group,
    ['half a ring'],
    ['no box'],
    ['no image'],
  ]


def test_another_convention_is_an_error():
  with pytest.raises(ValueError, match=r"'alone', 'merged'.*got 'both'"):
    caption_at.references([], 'both')
