# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import ml_dtypes
import numpy as np
import pytest

from pixel_llm import example
from pixel_llm.data import image_maps


def test_what_is_written_is_read(tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    [
      rng.normal(size=(2, 2, 3)).astype(ml_dtypes.bfloat16),
      rng.normal(size=(4, 4, 2)).astype(np.float32),
    ]
    for _ in range(5)
  ]
  rows[3] = []  # an image that cannot be read
  shards = []
  for i, part in enumerate((rows[:2], rows[2:])):
    path = tmp_path / f'train-{i}.array_record'
    image_maps.write_shard(path, part)
    shards.append((path, len(part)))
  maps = {'eva': ((2, 2, 3), 'bfloat16'), 'sam': ((4, 4, 2), 'float32')}
  image_maps.write_manifest(tmp_path, 'train', shards, {'image': 9}, maps)
  found = image_maps.ImageMaps(str(tmp_path), 'train')
  assert len(found) == 5 and found.of == {'image': 9}
  out = found.zeros(1)
  for i in (4, 0, 2, 1):
    found.read(i, {k: v[0] for k, v in out.items()})
    for made, wanted in zip(out.values(), rows[i], strict=True):
      np.testing.assert_array_equal(made[0], wanted, strict=True)
  with pytest.raises(example.DamagedError, match='row 3: expected 152 bytes'):
    found.read(3, {k: v[0] for k, v in out.items()})
