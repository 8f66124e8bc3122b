# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What every annotation format gives: images, their texts, and bad rows."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import math
import numbers
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol

import numpy as np

from pixel_llm import masks
from pixel_llm.example import Region
from pixel_llm.geometry import box_area, clip_box

if TYPE_CHECKING:
  from pixel_llm.data.sources.images import Member

_SHOWN = 80
_LONGEST = 65535  # what a JPEG can have; a mask of more would be memory
_CHUNK = 1 << 20
_BLANKS = re.compile(r'[ \t\r\n]*')


class SourceError(ValueError):
  """A whole file cannot be used; nothing of it can be built."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """Where a text comes from, for messages.

  Attributes:
    file: path of the annotation file.
    line: 1-based line of a JSONL file; None for other formats.
    field: the part of the row or file that is meant, `regions[3].phrase`.
  """

  file: str
  line: int | None
  field: str = ''

  def at(self, field: str) -> Row:
    """The same row, another field below this one."""
    dot = '.' if self.field and not field.startswith('[') else ''
    return Row(self.file, self.line, f'{self.field}{dot}{field}')


@dataclasses.dataclass(frozen=True)
class Problem:
  """A row that is skipped, and why.

  Attributes:
    row: file, line and field.
    reason: a short constant name, what the manifest counts by.
    expected: what the field should hold.
    found: what it holds.
  """

  row: Row
  reason: str
  expected: str
  found: str

  def __str__(self) -> str:
    line = '' if self.row.line is None else f', line {self.row.line}'
    field = f', field {self.row.field}' if self.row.field else ''
    return (
      f'{self.row.file}{line}{field}: expected {self.expected}, found '
      f'{self.found} ({self.reason}).'
    )


class RowError(ValueError):
  """One row cannot be used."""

  def __init__(self, row: Row, reason: str, expected: str, found: str):
    self.problem = Problem(row, reason, expected, found)
    super().__init__(str(self.problem))

  def __reduce__(self):
    # Exceptions pickle their message alone; this one crosses processes.
    p = self.problem
    return RowError, (p.row, p.reason, p.expected, p.found)


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
  """A piece of an annotation file.

  Attributes:
    row: for messages.
    offset: first byte.
    length: bytes.
    packed: the bytes themselves, deflated, when the file is compressed and
      going back to an offset would mean reading it from the start.
  """

  row: Row
  offset: int
  length: int
  packed: bytes = b''

  def read(self) -> bytes:
    """Its bytes."""
    if self.packed:
      return zlib.decompress(self.packed)
    with open(self.row.file, 'rb') as file:
      file.seek(self.offset)
      return file.read(self.length)

  def value(self) -> Any:
    """The JSON value that `read_array` or `read_members` found there.

    Raises:
      RowError: the file has changed meanwhile.
    """
    return parse(self.row, self.read(), 'surrogateescape')


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One image of the source, light enough for an index of millions.

  Attributes:
    image_id: the data set's id.
    image: path of the file, or where in an archive it is; None when there is
      none.
    missing: the names that were looked for when `image` is None.
    rows: what `Source.read` needs to make the regions.
    also: its ids in other data sets.
  """

  image_id: str
  image: str | Member | None
  missing: str
  rows: tuple[Any, ...]
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
  """One image and its texts, each with the row that it comes from.

  Attributes:
    regions: the good ones.
    problems: the bad ones.
    size: (height, width) that the annotations claim, None when they do not;
      masks are on this grid.
    image: its encoded file, when the annotations hold it.
  """

  regions: tuple[tuple[Row, Region], ...]
  problems: tuple[Problem, ...]
  size: tuple[int, int] | None = None
  image: bytes | None = None


class Source(Protocol):
  """A public annotation format. Picklable: workers read in parallel.

  Attributes:
    version: raised when the same input gives other regions.
    extras: names of the further files that the format needs or takes.
  """

  version: int
  extras: tuple[str, ...]

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ): ...

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """All images in order of first appearance, and the rows lost already."""
    ...

  def read(self, entry: Entry) -> Item:
    """The regions of one image."""
    ...


def show(value: Any) -> str:
  """A value as in an error message: its type and how it begins."""
  text = repr(value)
  if len(text) > _SHOWN:
    text = text[:_SHOWN] + '...'
  return f'{type(value).__name__} {text}'


def parse(row: Row, data: bytes, errors: str = 'strict') -> Any:
  """A JSON value.

  Args:
    row: for messages.
    data: UTF-8, with a byte order mark or without.
    errors: what is done with bytes that are no UTF-8, as in `bytes.decode`.

  Raises:
    RowError: not JSON, or not UTF-8.
  """
  try:
    return json.loads(data.decode('utf-8-sig', errors))
  except (ValueError, RecursionError) as e:
    raise RowError(row, 'not_json', 'JSON', f'{data[:40]!r} ({e})') from e


def field(row: Row, values: Any, name: str, reason: str = 'missing_field'):
  """`values[name]` of a JSON object.

  Raises:
    RowError: not an object, or no such field.
  """
  if not isinstance(values, dict):
    raise RowError(row, 'not_an_object', 'a JSON object', show(values))
  if name not in values:
    known = ', '.join(sorted(map(str, values)))
    raise RowError(
      row.at(name), reason, f'a field {name!r}', f'only {known or "no field"}'
    )
  return values[name]


def number(row: Row, value: Any, reason: str = 'not_a_number') -> float:
  """A finite number.

  Raises:
    RowError: a string, null, a boolean, NaN or an infinity.
  """
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise RowError(row, reason, 'a number', show(value))
  try:
    value = float(value)
  except OverflowError as e:
    raise RowError(row, 'not_finite', 'a finite number', show(value)) from e
  if not math.isfinite(value):
    raise RowError(row, 'not_finite', 'a finite number', show(value))
  return value


def text(row: Row, value: Any, reason: str = 'empty_text') -> str:
  """A string with something in it; blanks around it are dropped.

  Raises:
    RowError: not a string, nothing but blanks, or not storable as UTF-8.
  """
  if not isinstance(value, str):
    raise RowError(row, 'not_a_string', 'a string', show(value))
  if not value.strip():
    raise RowError(row, reason, 'a text', show(value))
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise RowError(row, 'not_unicode', 'valid Unicode', show(value)) from e
  return value.strip()


def identifier(row: Row, value: Any) -> str:
  """An id, a string or a whole number, as a string.

  Raises:
    RowError: anything else.
  """
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return str(int(value))
  return text(row, value, 'empty_id')


def box(row: Row, corner_and_size: Any, size: tuple[int, int]) -> np.ndarray:
  """A box of pixels x, y, width, height as [4] float32 xyxy, normalized.

  What reaches over the image's edge is cut off.

  Args:
    row: for messages.
    corner_and_size: four numbers.
    size: (height, width) of the image.

  Raises:
    RowError: not four finite numbers, or nothing of it is inside the image.
  """
  values = items(row, corner_and_size)
  if len(values) != 4:
    raise RowError(row, 'bad_box', 'x, y, width, height', show(values))
  x, y, width, height = (number(row, v) for v in values)
  scale = (size[1], size[0], size[1], size[0])
  xyxy = clip_box(np.array([x, y, x + width, y + height]) / scale)
  if not box_area(xyxy) > 0:
    raise RowError(
      row,
      'bad_box',
      f'x, y, width, height of a part of an image {size[1]} wide and '
      f'{size[0]} high',
      show(values),
    )
  return xyxy.astype(np.float32)


def mask(row: Row, segmentation: Any, size: tuple[int, int]) -> bytes | None:
  """The `segmentation` of a COCO instance, as in `masks`; None without one.

  Args:
    row: for messages.
    segmentation: polygons x, y, x, y, ... in pixels, or {size, counts} with
      the run lengths, compressed or not.
    size: (height, width) of the image.

  Raises:
    RowError: anything else, or of another size.
  """
  if segmentation is None or segmentation == []:
    return None
  if isinstance(segmentation, dict):
    grid = field(row, segmentation, 'size')
    if grid != list(size):
      raise RowError(
        row.at('size'), 'bad_mask', f'{list(size)} as the image', show(grid)
      )
    counts = field(row, segmentation, 'counts')
    plain = isinstance(counts, list) and all(type(c) is int for c in counts)
    if not (plain or isinstance(counts, str)):
      raise RowError(
        row.at('counts'), 'bad_mask', 'run lengths or a string', show(counts)
      )
    try:
      return masks.from_counts(counts, size)
    except (ValueError, OverflowError) as e:
      raise RowError(
        row.at('counts'), 'bad_mask', 'the run lengths of the image', str(e)
      ) from e
  polygons = []
  for i, polygon in enumerate(items(row, segmentation)):
    at = row.at(f'[{i}]')
    values = [number(at, v) for v in items(at, polygon)]
    corners = np.array(values[: len(values) // 2 * 2]).reshape(-1, 2)
    # One image's side beyond the edge is a slip; a million is memory.
    far = np.abs(corners / (size[1], size[0]) - 0.5) > 1.5
    if len(values) < 6 or len(values) % 2 or far.any():
      raise RowError(
        at,
        'bad_mask',
        f'x, y of three corners or more in an image {size[1]} wide and '
        f'{size[0]} high',
        show(polygon),
      )
    polygons.append(corners)
  return masks.from_polygons(polygons, size)


def image_size(row: Row, values: Any) -> tuple[int, int]:
  """(height, width) from the fields `height` and `width` of a JSON object.

  Raises:
    RowError: missing, or not whole numbers above zero.
  """
  sides = []
  for name in ('height', 'width'):
    side = number(row.at(name), field(row, values, name))
    if side != int(side) or not 1 <= side <= _LONGEST:
      raise RowError(
        row.at(name), 'bad_size', f'pixels, 1 to {_LONGEST}', f'{side}'
      )
    sides.append(int(side))
  return sides[0], sides[1]


def items(row: Row, value: Any) -> list[Any]:
  """A list.

  Raises:
    RowError: anything else.
  """
  if not isinstance(value, list):
    raise RowError(row, 'not_a_list', 'a list', show(value))
  return value


def read_json(path: str) -> Any:
  """A whole JSON file.

  Raises:
    SourceError: missing or not JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except OSError as e:
    raise SourceError(f'{path}: cannot be read ({e.strerror}).') from e
  except (ValueError, RecursionError) as e:
    raise SourceError(f'{path}: expected JSON, found: {e}.') from e


def read_lines(path: str) -> Iterator[tuple[Slice, bytes]]:
  """The lines of a file that are not blank, and where they are.

  Args:
    path: JSON lines, compressed when the name ends in `.gz`.

  Raises:
    SourceError: missing, or damaged as a whole.
  """
  compressed = path.endswith('.gz')
  offset = 0
  try:
    with gzip.open(path) if compressed else open(path, 'rb') as file:
      for i, line in enumerate(file, start=1):
        if line.strip():
          packed = zlib.compress(line, 1) if compressed else b''
          yield Slice(Row(path, i), offset, len(line), packed), line
        offset += len(line)
  except (OSError, EOFError, zlib.error) as e:
    raise SourceError(f'{path}: cannot be read ({e}).') from e


def read_array(path: str) -> Iterator[tuple[int, int, Any]]:
  """The elements of a JSON file that is one array, without holding it all.

  Visual Genome's region descriptions take gigabytes as Python objects.

  Args:
    path: a JSON file.

  Yields:
    offset and length in bytes of each element, and the element itself.

  Raises:
    SourceError: missing, not an array, or cut short.
  """
  try:
    with open(path, 'rb') as file:
      yield from _Array(path, file).elements()
  except OSError as e:
    raise SourceError(f'{path}: cannot be read ({e.strerror}).') from e


def read_members(
  path: str, required: Sequence[str] = ()
) -> Iterator[tuple[str, int, int, int, Any]]:
  """The elements of the arrays in a JSON file that is one object.

  Args:
    path: a JSON file.
    required: names of arrays that must be there.

  Yields:
    name of the array, index within it, and what `read_array` gives. Members
    that are no arrays are passed over.

  Raises:
    SourceError: missing, not an object, cut short, or without a required array.
  """
  names: dict[str, None] = {}
  try:
    with open(path, 'rb') as file:
      yield from _Array(path, file).members(names)
  except OSError as e:
    raise SourceError(f'{path}: cannot be read ({e.strerror}).') from e
  for name in required:
    if name not in names:
      known = ', '.join(sorted(names)) or 'none'
      raise SourceError(
        f'{path}: expected a list {name!r}, found only these lists: {known}.'
      )


class _Array:
  """A JSON array, or an object of such, seen through a window of its file.

  JSON's own characters are ASCII, so that Latin-1 finds the ends of elements
  and one character is one byte.
  """

  def __init__(self, path: str, file: BinaryIO):
    self._path, self._file = path, file
    mark = file.read(len(codecs.BOM_UTF8))
    known = mark == codecs.BOM_UTF8
    self._window = '' if known else mark.decode('latin-1')  # from `_base` on
    self._base = len(mark) if known else 0
    self._at = 0  # within the window
    self._decoder = json.JSONDecoder()

  def members(
    self, names: dict[str, None]
  ) -> Iterator[tuple[str, int, int, int, Any]]:
    """Elements of the object's arrays, whose names it adds to `names`."""
    self._take('{', 'object')
    if self._peek() == '}':
      return
    while True:
      self._peek()
      name = self._value()
      if not isinstance(name, str):
        self._fail('a JSON object', repr(name))
      self._take(':', 'object')
      if self._peek() == '[':
        names[name] = None
        for i, element in enumerate(self.elements()):
          yield name, i, *element
      else:
        self._value()
      if self._peek() == '}':
        return
      self._take(',', 'object')

  def elements(self) -> Iterator[tuple[int, int, Any]]:
    self._take('[')
    if self._peek() == ']':
      self._at += 1
      return
    while True:
      self._peek()
      offset, value = self._base + self._at, self._value()
      yield offset, self._base + self._at - offset, value
      if self._peek() == ']':
        self._at += 1
        return
      self._take(',')

  def _more(self, count: int = _CHUNK) -> bool:
    data = self._file.read(count).decode('latin-1')
    self._window = self._window[self._at :] + data
    self._base += self._at
    self._at = 0
    return bool(data)

  def _peek(self) -> str:
    """The next character that is no blank; '' at the end of the file."""
    while True:
      blank = _BLANKS.match(self._window, self._at)
      self._at = blank.end() if blank else self._at
      if self._at < len(self._window):
        return self._window[self._at]
      if not self._more():
        return ''

  def _take(self, character: str, kind: str = 'array') -> None:
    found = self._peek()
    if found != character:
      self._fail(
        f'a JSON {kind} with {character!r} here',
        repr(found) if found else 'the end of the file',
      )
    self._at += 1

  def _fail(self, expected: str, found: str) -> NoReturn:
    raise SourceError(
      f'{self._path}, byte {self._base + self._at}: expected {expected}, '
      f'found {found}.'
    )

  def _value(self) -> Any:
    count = _CHUNK
    while True:
      try:
        value, end = self._decoder.raw_decode(self._window, self._at)
        # A number at the window's end may go on behind it: 1, 1. and 1e+.
        if end > len(self._window) - 3:
          end -= self._at  # the window is moved to the value
          if self._more(count):
            continue
      except (ValueError, RecursionError) as e:
        # Cut by the window, or broken: only the end of the file tells.
        if not self._more(count):
          raise SourceError(
            f'{self._path}, byte {self._base + self._at}: expected a JSON '
            f'value, found: {e}.'
          ) from e
        count *= 2
      else:
        piece = self._window[self._at : end]
        self._at = end
        if not piece.isascii():
          # What is no UTF-8 becomes lone surrogates, which `text` refuses.
          data = piece.encode('latin-1').decode('utf-8', 'surrogateescape')
          value = json.loads(data)
        return value
