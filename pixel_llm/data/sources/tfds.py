# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets that TensorFlow Datasets has prepared: their TFRecord files.

Files are framed and features read by name here, so that workers read single
records in any order, and neither TensorFlow Datasets nor its graph is needed;
TensorFlow, for the message type alone, is imported when a record is read.
"""

from __future__ import annotations

import abc
import io
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixel_llm import masks
from pixel_llm.data.sources import coco, source
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  Slice,
  SourceError,
)
from pixel_llm.example import Region
from pixel_llm.geometry import box_area, clip_box

# Length and its checksum before a record, the record's checksum behind it.
_HEAD, _TAIL = struct.Struct('<QI'), 4
_ID = 'image/id'

Values = dict[str, list[Any]]


class TfdsSource(abc.ABC):
  """What data sets of TensorFlow Datasets share; a record is an image.

  Args:
    annotations: the `.tfrecord` files of a split.
    images: unused; the records hold them.
    split: unused; the files are the split.
    extras: none.
  """

  version = 1
  extras: tuple[str, ...] = ()

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ):
    del images, split, extras
    self._annotations = annotations

  @abc.abstractmethod
  def regions(
    self, row: Row, values: Values
  ) -> Iterator[tuple[Row, Region] | RowError]:
    """The texts of a record, and errors for those that cannot be used.

    Args:
      row: of the record.
      values: its features by name, flat.

    Raises:
      RowError: nothing of the record can be used.
    """

  def size(self, row: Row, values: Values) -> tuple[int, int] | None:
    """(height, width) of the grid of masks; None without masks."""
    del row, values
    return None

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in the order of their records."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for path in self._annotations:
      for piece, data in _records(path):
        row = piece.row
        try:
          (value,) = _column(row, _parse(row, data), _ID, 1)
          key = source.identifier(row.at(_ID), value)
          if key in seen:
            raise coco.duplicate(row, key, _ID)
        except RowError as e:
          problems.append(e.problem)
        else:
          seen.add(key)
          entries.append(Entry(key, None, '', (piece,)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """The texts of one record."""
    (piece,) = entry.rows
    row = piece.row
    regions: list[tuple[Row, Region]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    try:
      values = _parse(row, piece.read())
      (image,) = _column(row, values, 'image', 1)
      if not isinstance(image, bytes):
        raise RowError(
          row.at('image'), 'not_bytes', 'an encoded image', source.show(image)
        )
      size = self.size(row, values)
      for found in self.regions(row, values):
        if isinstance(found, RowError):
          problems.append(found.problem)
        elif found[1].id in seen:
          problems.append(coco.duplicate(found[0], found[1].id).problem)
        else:
          seen.add(found[1].id)
          regions.append(found)
    except RowError as e:
      return Item((), (e.problem,))
    return Item(tuple(regions), tuple(problems), size, image)


class TfdsRefCoco(TfdsSource):
  """`ref_coco`: every configuration, with masks (1.1.0) or without.

  Ids are `refexp_id`, the data set's own `sent_id`. The records that the
  research code makes of MDETR's files have the same features.
  """

  def size(self, row: Row, values: Values) -> tuple[int, int] | None:
    """That of the first mask, from its header."""
    pngs = values.get('objects/mask')
    if not pngs:
      return None
    return _pixels(row.at('objects[0].mask'), pngs[0], lambda p: p.size[::-1])

  def regions(
    self, row: Row, values: Values
  ) -> Iterator[tuple[Row, Region] | RowError]:
    """Each expression with its object's box and mask."""
    prefix = 'objects/refexp/'
    lengths = _column(row, values, f'{prefix}raw/ragged_row_lengths_0')
    total = int(sum(lengths))
    texts = _column(row, values, f'{prefix}raw/ragged_flat_values', total)
    ids = _column(row, values, f'{prefix}refexp_id/ragged_flat_values', total)
    boxes = _column(row, values, 'objects/bbox', 4 * len(lengths))
    pngs = [None] * len(lengths)
    if 'objects/mask' in values:
      pngs = _column(row, values, 'objects/mask', len(lengths))
    size = self.size(row, values)
    expressions = iter(zip(texts, ids, strict=True))
    for i, length in enumerate(lengths):
      here = row.at(f'objects[{i}]')
      own = list(itertools.islice(expressions, length))
      try:
        box = _box(here.at('bbox'), boxes[4 * i : 4 * i + 4])
        mask = _mask(here.at('mask'), pngs[i], size)
      except RowError as e:
        yield from [e] * len(own)
        continue
      for j, (words, key) in enumerate(own):
        at = here.at(f'refexp[{j}]')
        try:
          text = _text(at.at('raw'), words)
          key = source.identifier(at.at('refexp_id'), key)
          yield at, Region(id=key, text=text, box=box, mask=mask)
        except RowError as e:
          yield e


class TfdsCaptions(TfdsSource):
  """`coco_captions`: COCO 2014 with the splits of Karpathy and Li."""

  def regions(
    self, row: Row, values: Values
  ) -> Iterator[tuple[Row, Region] | RowError]:
    """Each caption of the whole image."""
    texts = _column(row, values, 'captions/text')
    ids = _column(row, values, 'captions/id', len(texts))
    for i, (words, key) in enumerate(zip(texts, ids, strict=True)):
      at = row.at(f'captions[{i}]')
      try:
        key = source.identifier(at.at('id'), key)
        yield at, Region(id=key, text=_text(at.at('text'), words))
      except RowError as e:
        yield e


def _parse(row: Row, data: bytes) -> Values:
  """The features of a record by name, flat."""
  try:
    import tensorflow as tf
  except ImportError as e:
    raise SourceError(
      f"{row.file}: reading TFRecord files needs `pip install '.[data]'`."
    ) from e
  try:
    features = tf.train.Example.FromString(data).features.feature
  except Exception as e:  # a class of protobuf's, which tf has for itself
    raise RowError(row, 'not_an_example', 'a tf.train.Example', repr(e)) from e
  values = {}
  for name, feature in features.items():
    kind = feature.WhichOneof('kind')
    values[name] = list(getattr(feature, kind).value) if kind else []
  return values


def _column(
  row: Row, values: Values, name: str, count: int | None = None
) -> list[Any]:
  """A feature's values; `count` of them."""
  found = source.field(row, values, name)
  if count is not None and len(found) != count:
    raise RowError(
      row.at(name), 'bad_count', f'{count} values', f'{len(found)}'
    )
  return found


def _records(path: str) -> Iterator[tuple[Slice, bytes]]:
  """The records of a TFRecord file, and where they are."""
  try:
    total = os.path.getsize(path)
    with open(path, 'rb') as file:
      offset, i = 0, 0
      while offset < total:
        head = file.read(_HEAD.size)
        length = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else total
        offset += _HEAD.size
        if offset + length + _TAIL > total:
          raise SourceError(
            f'{path}: expected a TFRecord file, found {total} bytes that end '
            f'within record {i}.'
          )
        yield (
          Slice(Row(path, None, f'[{i}]'), offset, length),
          (file.read(length)),
        )
        file.seek(_TAIL, os.SEEK_CUR)
        offset, i = offset + length + _TAIL, i + 1
  except OSError as e:
    raise SourceError(f'{path}: cannot be read ({e.strerror}).') from e


def _box(row: Row, value: list[Any]) -> np.ndarray:
  """[4] float32 xyxy of what TensorFlow Datasets has as yxyx, normalized."""
  y0, x0, y1, x1 = (source.number(row, v) for v in value)
  box = clip_box(np.array([x0, y0, x1, y1], np.float32))
  if not box_area(box) > 0:
    raise RowError(
      row,
      'bad_box',
      'ymin, xmin, ymax, xmax of a part of the image',
      source.show(value),
    )
  return box


def _mask(row: Row, png: Any, size: tuple[int, int] | None) -> bytes | None:
  if png is None:
    return None
  pixels = _pixels(row, png, lambda p: np.asarray(p.convert('L')))
  if pixels.shape != size:
    raise RowError(
      row, 'bad_mask', f'{size} (height, width)', f'{pixels.shape}'
    )
  return masks.encode(pixels)


def _pixels(row: Row, png: Any, take: Callable[[Image.Image], Any]) -> Any:
  try:
    with Image.open(io.BytesIO(png)) as picture:
      return take(picture)
  except (OSError, ValueError, TypeError, SyntaxError) as e:
    raise RowError(row, 'bad_mask', 'a PNG', str(e)) from e


def _text(row: Row, value: Any) -> str:
  words = value
  if isinstance(value, bytes):
    words = value.decode('utf-8', 'surrogateescape')
  return ' '.join(source.text(row, words).split())
