# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records keep every field, and those of before are read."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest

from pixel_llm import example, masks

REGION = example.Region(
  id='7/1',
  text='a ring',
  prompt='What is it?',
  box=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
  points=np.array([[0.2, 0.3]], np.float32),
  mask=masks.encode(np.eye(3)),
  spans=np.array([[2, 6]], np.int32),
  span_boxes=np.array([[0, 0, 1, 1]], np.float32),
  span_centers=np.array([[0.5, 0.5]], np.float32),
  span_weights=np.ones(1, np.float32),
)
EXAMPLE = example.Example(
  image=b'JPEG', image_id='7', size=(3, 3), regions=(REGION,)
)


def assert_equal(one, other):
  for field in dataclasses.fields(example.Region):
    np.testing.assert_array_equal(
      getattr(one, field.name), getattr(other, field.name), field.name
    )


def test_record():
  record = example.to_bytes(EXAMPLE)
  read = example.from_bytes(record)
  assert (read.image, read.image_id, read.size) == (b'JPEG', '7', (3, 3))
  assert_equal(read.regions[0], REGION)
  assert example.to_bytes(read) == record


def test_record_of_what_is_absent():
  region = example.Region('1', 'a')
  made = dataclasses.replace(EXAMPLE, regions=(region,))
  assert_equal(example.from_bytes(example.to_bytes(made)).regions[0], region)


def test_record_of_what_means_nothing():
  regions = (example.Region('1', 'a', absent=True), REGION)
  record = example.to_bytes(dataclasses.replace(EXAMPLE, regions=regions))
  read = example.from_bytes(record).regions
  assert [r.absent for r in read] == [True, False]
  # Others are as they were before there were such.
  assert b'absent' not in example.to_bytes(EXAMPLE)


def test_record_of_schema_1():
  row = msgpack.unpackb(example.to_bytes(EXAMPLE)) | {'schema': 1}
  for name in ('prompt', 'points', 'mask'):
    del row['regions'][0][name]
  read = example.from_bytes(msgpack.packb(row) or b'').regions[0]
  assert_equal(
    read, dataclasses.replace(REGION, prompt=None, points=None, mask=None)
  )


@pytest.mark.parametrize('change', [{'schema': 3}, {'regions': [{'id': '1'}]}])
def test_no_record(change):
  row = msgpack.unpackb(example.to_bytes(EXAMPLE)) | change
  with pytest.raises(ValueError, match=r'record.*(schema 2|not a canonical)'):
    example.from_bytes(msgpack.packb(row) or b'')
