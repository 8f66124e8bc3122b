# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records on disk: sharded ArrayRecord files and the manifest beside them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import pathlib
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from pixel_llm import example

# One record a group: an image is read without its neighbours.
WRITER_OPTIONS = 'group_size:1'
READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_COCO = re.compile(
  r'(?:.*/)?(?:COCO_[a-z]+\d+_)?(\d{12})(?:\.\w+)?|(?:vg/|flickr/)?(\d+)',
  re.ASCII,
)


def manifest_path(directory: str, split: str) -> pathlib.Path:
  """Where the manifest of a split is."""
  return pathlib.Path(directory) / f'{split}.manifest.json'


def splits(directory: str) -> list[str]:
  """Names of the splits that have a manifest.

  Raises:
    FileNotFoundError: there is none.
  """
  found = sorted(
    path.name.removesuffix('.manifest.json')
    for path in pathlib.Path(directory).glob('*.manifest.json')
  )
  if not found:
    raise FileNotFoundError(
      f'records {directory}: expected what `pixel-llm build` writes, found no '
      'manifest.'
    )
  return found


def read_manifest(directory: str, split: str) -> dict[str, Any]:
  """The manifest that `build` wrote.

  Raises:
    FileNotFoundError: no such split; the message lists those there are.
    ValueError: not a manifest, or of another schema version.
  """
  path = manifest_path(directory, split)
  try:
    manifest = json.loads(path.read_bytes())
    schema = manifest['schema']
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f'records {path}: no such file; splits here: '
      f'{", ".join(splits(directory))}.'
    ) from e
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'records {path}: expected a manifest, found: {e!r}.'
    ) from e
  if schema not in example.READABLE:
    raise ValueError(
      f'records {path}: expected schema {example.SCHEMA}, found {schema}; '
      'build the records again.'
    )
  return manifest


def identity(image_id: str) -> str:
  """What two ids share when they may be of the same image: `id 137576`.

  COCO's numbers are equal however they are written: `137576`,
  `COCO_val2014_000000137576`, `coco/train2017/000000137576.jpg`. Numbers of
  other data sets (Visual Genome's, Flickr30k's; also UNINEXT's `vg/2`) count as
  if they were COCO's, since one that is taken for another costs an image, and
  one that is missed leaks. Any other id is equal to itself alone.
  """
  match = _COCO.fullmatch(image_id)
  if match is None:
    return f'id {image_id}'
  return f'id {(match[1] or match[2]).lstrip("0")}'


def content(data: bytes) -> str:
  """What files of the same bytes share: `sha256 ` and the digest."""
  return f'sha256 {hashlib.sha256(data).hexdigest()}'


def identities(directory: str, split: str) -> dict[str, str]:
  """By what the images of a split are known again, each with its image id.

  Two splits share an image when they share a key: its id as of `identity`, or
  the bytes as of `content`. So what leaks from one into another is

    identities(a, 'train').keys() & identities(b, 'val').keys()

  Reads every record once.

  Raises:
    FileNotFoundError, ValueError: as of `RecordSet`.
  """
  record_set = RecordSet(directory, split)
  found: dict[str, str] = {}
  for i in range(len(record_set)):
    made = example.from_bytes(record_set[i])
    found.setdefault(identity(made.image_id), made.image_id)
    found.setdefault(content(made.image), made.image_id)
  return found


class RecordSet(Sequence[bytes]):
  """Random access to the records of a split, in the order of its shards.

  Files are opened when first read. Picklable: each process opens its own.

  Args:
    directory: what `build` wrote into.
    split: the name of the split.

  Raises:
    FileNotFoundError: no manifest, or a shard is missing.
    ValueError: a shard has not the size that the manifest says.
  """

  def __init__(self, directory: str, split: str):
    self.directory, self.split = str(directory), split
    self.manifest = read_manifest(directory, split)
    shards = self.manifest['shards']
    self._paths = [str(pathlib.Path(directory) / s['name']) for s in shards]
    for path, shard in zip(self._paths, shards):
      try:
        found = pathlib.Path(path).stat().st_size
      except FileNotFoundError as e:
        raise FileNotFoundError(
          f'records {path}: no such file, but '
          f'{manifest_path(directory, split)} lists it.'
        ) from e
      if found != shard['bytes']:
        raise ValueError(
          f'records {path}: expected {shard["bytes"]} bytes as '
          f'{manifest_path(directory, split)} says, found {found}; copy or '
          'build it again.'
        )
    counts = (shard['records'] for shard in shards)
    self._ends = list(itertools.accumulate(counts))
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> bytes:
    return self.read([index])[0]

  def read(self, indices: Iterable[int]) -> list[bytes]:
    """The records at `indices`, in their order.

    Raises:
      IndexError: an index outside [0, len).
      DamagedError: a shard is damaged.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}
    indices = [int(i) for i in indices]
    for place, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(
          f'records {self.directory}, split {self.split}: expected an index '
          f'in [0, {len(self)}), got {index}.'
        )
      shard = bisect.bisect_right(self._ends, index)
      start = self._ends[shard - 1] if shard else 0
      wanted.setdefault(shard, []).append((place, index - start))
    out = [b''] * len(indices)
    for shard, pairs in wanted.items():
      try:
        records = self._reader(shard).read([i for _, i in pairs])
      except (RuntimeError, IndexError) as e:
        raise example.DamagedError(
          f'records {self._paths[shard]}: damaged ({e}); copy or build it '
          'again.'
        ) from e
      for (place, _), record in zip(pairs, records):
        out[place] = record
    return out

  def _reader(self, shard: int) -> Any:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = ArrayRecordReader(
          self._paths[shard], READER_OPTIONS
        )
      return self._readers[shard]

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_readers': {}, '_lock': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())
