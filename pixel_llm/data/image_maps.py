# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of image encoders on disk, a record for each row of a task.

A folder of a task is like one of records, `RecordSet`, whose manifest says also
what the maps are of (`of`) and what each is (`maps`: shape and dtype). A record
holds the maps' numbers one after another; that of an image which cannot be read
is empty.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pixel_llm import example, files
from pixel_llm.data import records

# Numbers of encoders hardly get smaller by it.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


class ImageMaps:
  """Random access to the maps of a task's images.

  Args:
    directory: of the task, as `write_manifest` left it.
    split: of the rows.

  Raises:
    FileNotFoundError, ValueError: as of `RecordSet`.
  """

  def __init__(self, directory: str, split: str):
    self._records = records.RecordSet(directory, split)
    manifest = self._records.manifest
    self.of: dict[str, Any] = manifest['of']
    self._maps = {
      name: (tuple(shape), jnp.dtype(dtype))  # also bfloat16
      for name, (shape, dtype) in manifest['maps'].items()
    }

  def __len__(self) -> int:
    return len(self._records)

  def zeros(self, count: int) -> dict[str, np.ndarray]:
    """Room for so many images, by encoder [count, h, w, channels]."""
    return {
      name: np.zeros((count, *shape), dtype)
      for name, (shape, dtype) in self._maps.items()
    }

  def read(self, index: int, out: Mapping[str, np.ndarray]) -> None:
    """Writes the maps of a row's image into `out`, by encoder.

    Raises:
      DamagedError: there are none of it.
    """
    data, at = self._records[index], 0
    wanted = sum(x.nbytes for x in out.values())
    if len(data) != wanted:
      raise example.DamagedError(
        f'maps {self._records.directory}, row {index}: expected {wanted} '
        f'bytes, found {len(data)}.'
      )
    for name, (shape, dtype) in self._maps.items():
      count = math.prod(shape)
      part = np.frombuffer(data, dtype, count, at)
      out[name][...] = part.reshape(shape)
      at += part.nbytes


def write_shard(path: pathlib.Path, rows: Iterable[list[np.ndarray]]) -> None:
  """Writes a file of rows, whole or not at all; no maps are an empty record."""
  with files.whole(path) as part:
    writer = ArrayRecordWriter(str(part), _WRITER_OPTIONS)
    try:
      for maps in rows:
        writer.write(b''.join(x.tobytes() for x in maps))
    finally:
      writer.close()


def write_manifest(
  directory: pathlib.Path,
  split: str,
  shards: Iterable[tuple[pathlib.Path, int]],
  of: dict[str, Any],
  maps: Mapping[str, tuple[tuple[int, ...], str]],
) -> None:
  """Makes a folder of finished shards readable.

  Args:
    directory: of the task.
    split: of the rows.
    shards: files in order, each with its number of rows.
    of: what the maps depend on.
    maps: encoder -> shape and dtype of an image's map.
  """
  manifest = {
    'schema': example.SCHEMA,
    'of': of,
    'maps': maps,
    'shards': [
      {'name': path.name, 'records': count, 'bytes': path.stat().st_size}
      for path, count in shards
    ],
  }
  path = records.manifest_path(str(directory), split)
  files.write(path, json.dumps(manifest, indent=1) + '\n')
