# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Our own format, for data of users: JSON lines, an image a line.

The fields are described in the top-level `data/jsonl.md`.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  SourceError,
)
from pixel_llm.example import Region
from pixel_llm.geometry import box_area

_LINE = {'image', 'image_id', 'width', 'height', 'split', 'regions'}
_REGION = {
  'id',
  'text',
  'prompt',
  'box',
  'points',
  'mask',
  'words',
  'absent',
}
# What has no place.
_PLACED = ('box', 'points', 'mask', 'words')
_WORD = {'text', 'points'}
# Pixels that a coordinate may lie beyond the edge: tools round differently.
_BEYOND = 1.0


class Jsonl:
  """Images with regions, in pixels.

  Args:
    annotations: `.jsonl` or `.jsonl.gz` files.
    images: directory or archives of the image files, to which `image` is
      relative; '' looks for none of them.
    split: only the lines of this split, and those without one; '' takes all.
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
    del extras
    self._annotations, self._images = annotations, images
    self._split = split

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance."""
    images = Images(self._images) if self._images else None
    problems: list[Problem] = []
    groups: dict[str, tuple[str, tuple[int, int], list[Any]]] = {}
    splits: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    for path in self._annotations:
      for line, data in source.read_lines(path):
        row = line.row
        try:
          value = source.parse(row, data)
          _known(row, value, _LINE)
          if value.get('split') is not None:
            split = source.text(row.at('split'), value['split'])
            splits[split] += 1
            if self._split and split != self._split:
              continue
          name = source.text(row.at('image'), source.field(row, value, 'image'))
          image_id = source.identifier(
            row.at('image_id'), _or(value.get('image_id'), name)
          )
          size = source.image_size(row, value)
          first = groups.setdefault(image_id, (name, size, []))
          if first[:2] != (name, size):
            raise RowError(
              row.at('image'),
              'wrong_image',
              f'{first[0]} of {first[1]} (height, width) as in an earlier '
              f'line of image {image_id}',
              f'{name} of {size}',
            )
          first[2].append((line, _repeated(value, seen)))
        except RowError as e:
          problems.append(e.problem)
    if splits and self._split and self._split not in splits and not groups:
      known = ', '.join(f'{k} ({n})' for k, n in sorted(splits.items()))
      raise SourceError(
        f'{", ".join(self._annotations)}: expected lines of split '
        f'{self._split!r}, found only {known}.'
      )
    entries = []
    for image_id, (name, size, lines) in groups.items():
      found, missing = images.find(name) if images else (None, name)
      entries.append(Entry(image_id, found, missing, (size, *lines)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """Parses and checks the regions of one image."""
    size, *lines = entry.rows
    regions, problems, count = [], [], 0
    for line, repeated in lines:
      row = line.row
      value = source.parse(row, line.read())
      try:
        values = source.items(
          row.at('regions'), source.field(row, value, 'regions')
        )
        if not values:
          raise RowError(
            row.at('regions'), 'no_regions', 'at least one region', 'list []'
          )
      except RowError as e:
        problems.append(e.problem)
        continue
      for i, region in enumerate(values):
        at = row.at(f'regions[{i}]')
        try:
          if i in repeated:
            raise RowError(
              at.at('id'),
              'duplicate',
              'an id of its own',
              f'{region["id"]} again',
            )
          default = f'{entry.image_id}/{count}'
          regions.append((at, parse(at, region, size, default)))
        except RowError as e:
          problems.append(e.problem)
        count += 1
    return Item(tuple(regions), tuple(problems), size)


def parse(row: Row, value: Any, size: tuple[int, int], default: str) -> Region:
  """An element of `regions`.

  Args:
    row: for messages.
    value: the element.
    size: (height, width) of the image.
    default: the id when it has none.

  Raises:
    RowError: it cannot be used.
  """
  _known(row, value, _REGION)
  text = source.text(row.at('text'), source.field(row, value, 'text'))
  prompt, box, points = (value.get(k) for k in ('prompt', 'box', 'points'))
  absent = _or(value.get('absent'), False)
  if not isinstance(absent, bool):
    raise RowError(
      row.at('absent'), 'not_a_boolean', 'true or false', source.show(absent)
    )
  placed = [k for k in _PLACED if value.get(k) is not None]
  if absent and placed:
    raise RowError(
      row.at('absent'), 'absent_with_place', 'no place', ', '.join(placed)
    )
  if prompt is not None:
    prompt = source.text(row.at('prompt'), prompt)
  if box is not None:
    box = _box(row.at('box'), box, size)
  if points is not None:
    points = _points(row.at('points'), points, size)
  return Region(
    id=source.identifier(row.at('id'), _or(value.get('id'), default)),
    text=text,
    prompt=prompt,
    box=box,
    points=points,
    mask=source.mask(row.at('mask'), value.get('mask'), size),
    absent=absent,
    **_words(row.at('words'), _or(value.get('words'), []), text, size),
  )


def _words(
  row: Row, value: Any, text: str, size: tuple[int, int]
) -> dict[str, np.ndarray]:
  """The spans of a region and their places, from words in order of the text."""
  words = source.items(row, value)
  count, at = len(words), 0
  spans = np.zeros((count, 2), np.int32)
  boxes = np.zeros((count, 4), np.float32)
  centers = np.zeros((count, 2), np.float32)
  weights = np.zeros((count,), np.float32)
  for i, word in enumerate(words):
    here = row.at(f'[{i}]')
    _known(here, word, _WORD)
    said = source.text(here.at('text'), source.field(here, word, 'text'))
    begin = text.find(said, at)
    if begin < 0:
      raise RowError(
        here.at('text'),
        'word_not_in_text',
        f'what stands in the text from character {at} on, '
        f'{source.show(text[at:])}',
        source.show(said),
      )
    at = begin + len(said)
    spans[i] = begin, at
    if word.get('points'):
      points = _points(here.at('points'), word['points'], size)
      boxes[i] = [*points.min(axis=0), *points.max(axis=0)]
      centers[i] = points.mean(axis=0)
      weights[i] = 1
  return {
    'spans': spans,
    'span_boxes': boxes,
    'span_centers': centers,
    'span_weights': weights,
  }


def _box(row: Row, value: Any, size: tuple[int, int]) -> np.ndarray:
  values = source.items(row, value)
  corners = [values[:2], values[2:]]
  if len(values) == 4:
    box = _points(row, corners, size).reshape(4)
    if box_area(box) > 0:
      return box
  raise RowError(
    row,
    'bad_box',
    'x0, y0, x1, y1 in pixels, with x1 > x0 and y1 > y0',
    source.show(value),
  )


def _points(row: Row, value: Any, size: tuple[int, int]) -> np.ndarray:
  """[N, 2] float32 xy, normalized, of [[x, y], ...] in pixels."""
  points = []
  for i, point in enumerate(source.items(row, value)):
    at = row.at(f'[{i}]')
    if len(source.items(at, point)) != 2:
      raise RowError(at, 'bad_point', 'x, y in pixels', source.show(point))
    points.append([source.number(at, v) for v in point])
    beyond = [
      v < -_BEYOND or v > side + _BEYOND
      for v, side in zip(points[-1], (size[1], size[0]), strict=True)
    ]
    if any(beyond):
      raise RowError(
        at,
        'outside',
        f'x, y in pixels of an image {size[1]} wide and {size[0]} high',
        source.show(point),
      )
  if not points:
    raise RowError(row, 'bad_point', 'at least one [x, y]', 'list []')
  xy = np.array(points) / (size[1], size[0])
  return np.clip(xy, 0, 1).astype(np.float32)


def _or(value: Any, default: Any) -> Any:
  """What is null is absent."""
  return default if value is None else value


def _known(row: Row, value: Any, names: set[str]) -> None:
  """Refuses what is no object, or has a field that nothing would read."""
  if not isinstance(value, dict):
    raise RowError(row, 'not_an_object', 'a JSON object', source.show(value))
  for name in value:
    if name not in names:
      raise RowError(
        row.at(name),
        'unknown_field',
        f'one of {", ".join(sorted(names))}',
        source.show(name),
      )


def _repeated(value: dict[str, Any], seen: set[str]) -> frozenset[int]:
  """Which regions of a line have an id that was there before."""
  regions = value.get('regions')
  repeated = set()
  for i, region in enumerate(regions if isinstance(regions, list) else ()):
    if isinstance(region, dict) and region.get('id') is not None:
      key = str(region['id']).strip()
      if key in seen:
        repeated.add(i)
      seen.add(key)
  return frozenset(repeated)
