# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Excerpts of real files, where a developer has them beside the repository."""

from __future__ import annotations

import collections
import pathlib

import numpy as np
import public_formats as formats
import pytest

from pixel_llm import masks
from pixel_llm.data.sources.coco import Captions
from pixel_llm.data.sources.llava import Llava
from pixel_llm.data.sources.refcoco import RefCoco
from pixel_llm.data.sources.visual_genome import VisualGenome

SAMPLES = pathlib.Path(__file__).resolve().parents[2].parent / 'shared/data'

pytestmark = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='../shared/data is not there'
)


def read(kind, tmp_path, path, split='train', **extras):
  """Regions, and problems by reason; no image is there."""
  images = formats.write_images(tmp_path / 'images', ['none.jpg'])
  extras = {k: str(SAMPLES / v) for k, v in extras.items()}
  src = kind([str(SAMPLES / path)], images, split, extras)
  entries, problems = src.index()
  items = [src.read(entry) for entry in entries]
  problems = problems + [p for item in items for p in item.problems]
  regions = [(r, item.size) for item in items for _, r in item.regions]
  return regions, collections.Counter(p.reason for p in problems)


def test_coco_captions(tmp_path):
  regions, problems = read(Captions, tmp_path, 'coco/coco_captions_train.json')
  assert len(regions) == 35 and problems == {'no_image_meta': 14}


def test_refcoco(tmp_path):
  """Each mask fills its box, but for tips thinner than a pixel."""
  path, instances = 'refcoco/refs(umd).p', 'refcoco/instances.json'
  count = 0
  for split in ('train', 'val', 'test'):
    regions, problems = read(
      RefCoco, tmp_path, path, split, instances=instances
    )
    assert not problems
    for region, size in regions:
      rows, columns = masks.decode(region.mask, size).nonzero()
      found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
      box = region.box * [size[1], size[0], size[1], size[0]]
      np.testing.assert_allclose(found, box, atol=3)
      count += 1
  assert count == 28


def test_visual_genome(tmp_path):
  regions, problems = read(
    VisualGenome, tmp_path, 'visual_genome/region_descriptions.sample.json',
    image_data='visual_genome/image_data.sample.json',
  )  # fmt: skip
  assert len(regions) == 576 and not problems


def test_llava(tmp_path):
  regions, problems = read(
    Llava, tmp_path, 'llava/llava_instruct_150k_2records.json'
  )
  assert len(regions) == 4 and not problems
  assert regions[0][0].prompt == 'What are the colors of the bus in the image?'
