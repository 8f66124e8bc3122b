# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""By what images of two record sets are known to be the same."""

from __future__ import annotations

import hashlib
import pathlib

import public_formats as formats
import pytest

from pixel_llm.data import build, records


@pytest.mark.parametrize(
  'image_id',
  [
    '137576',
    '000000137576',
    '000000137576.jpg',
    'coco/train2017/000000137576.jpg',
    'COCO_val2014_000000137576',
    'train2014/COCO_train2014_000000137576.jpg',
    'vg/137576',
  ],
)
def test_one_number_however_it_is_written(image_id):
  assert records.identity(image_id) == 'id 137576'


@pytest.mark.parametrize(
  'image_id',
  ['ADE_val_00000175', 'a/1.jpg', 'video/0001', '0a1b', 'x_000000137576', '٣'],
)
def test_other_ids_are_equal_to_themselves_alone(image_id):
  assert records.identity(image_id) == f'id {image_id}'


def test_identities(tmp_path):
  images = formats.write_images(
    tmp_path / 'images', ['000000000007.jpg', 'copies/eight.jpg']
  )
  rows = [
    {'image': name, 'height': 40, 'width': 60, 'regions': [{'text': 'a ring'}]}
    for name in ('000000000007.jpg', 'copies/eight.jpg')
  ]
  path = formats.write_lines(tmp_path / 'a.jsonl', rows)
  out = str(tmp_path / 'out')
  for split in ('train', 'val'):
    build.build('jsonl', path, images, out, split, strict=True)
  assert records.splits(out) == ['train', 'val']
  digests = [
    hashlib.sha256((pathlib.Path(images) / row['image']).read_bytes())
    for row in rows
  ]
  assert records.identities(out, 'val') == {
    'id 7': '000000000007.jpg',
    f'sha256 {digests[0].hexdigest()}': '000000000007.jpg',
    'id copies/eight.jpg': 'copies/eight.jpg',
    f'sha256 {digests[1].hexdigest()}': 'copies/eight.jpg',
  }
