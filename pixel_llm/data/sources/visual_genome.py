# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Visual Genome: boxes and the phrases that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images, image_names
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  SourceError,
)
from pixel_llm.example import Region


class VisualGenome:
  """`region_descriptions.json` and `image_data.json`.

  Args:
    annotations: `region_descriptions.json` files.
    images: directory or archives of the image files, in `VG_100K` and
      `VG_100K_2` or not.
    split: with `splits`, only the images of this list; else the files are the
      split.
    extras: `image_data`, the path of `image_data.json`, and `splits`, that of
      a list of image ids a split, as `densecap_splits.json`.

  Source: Krishna et al., "Visual Genome", version 1.2 of the region
  descriptions.
  """

  version = 1
  extras: tuple[str, ...] = ('image_data', 'splits')

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ):
    if 'image_data' not in extras:
      raise SourceError('visual_genome: expected the path of image_data.json.')
    self._annotations, self._images = annotations, images
    self._image_data = extras['image_data']
    self._split, self._splits = split, extras.get('splits')

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance."""
    images = Images(self._images)
    meta, problems = _image_data(self._image_data)
    wanted = None
    if self._splits is not None:
      wanted = read_split(self._splits, self._split)
    groups: dict[str, list[source.Slice]] = {}
    for path in self._annotations:
      for i, (offset, length, value) in enumerate(source.read_array(path)):
        row = Row(path, None, f'[{i}]')
        try:
          regions = source.items(
            row.at('regions'), source.field(row, value, 'regions')
          )
          if not regions:
            continue
          owner, at = (
            (value, row)
            if 'id' in value
            else (regions[0], row.at('regions[0]'))
          )
          name = 'id' if 'id' in value else 'image_id'
          image_id = source.identifier(
            at.at(name), source.field(at, owner, name)
          )
        except RowError as e:
          problems.append(e.problem)
        else:
          if wanted is None or image_id in wanted:
            groups.setdefault(image_id, []).append(
              source.Slice(row, offset, length)
            )
    entries = []
    for image_id, pieces in groups.items():
      size, names, also = meta.get(image_id, (None, [], ()))
      image, missing = images.find(*names, *image_names(image_id))
      entries.append(Entry(image_id, image, missing, (size, *pieces), also))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """Parses and checks the regions of one image."""
    size, *pieces = entry.rows
    regions, problems, seen = [], [], set()
    for piece in pieces:
      try:
        values = piece.value()['regions']
      except RowError as e:
        problems.append(e.problem)
        continue
      for i, value in enumerate(values):
        row = piece.row.at(f'regions[{i}]')
        try:
          if size is None:
            raise RowError(
              row,
              'no_image_meta',
              'its image in image_data.json',
              f'no usable entry of image {entry.image_id}',
            )
          regions.append((row, _region(row, value, size, seen)))
        except RowError as e:
          problems.append(e.problem)
    return Item(tuple(regions), tuple(problems), size)


def _region(
  row: Row, value: Any, size: tuple[int, int], seen: set[str]
) -> Region:
  key = source.identifier(
    row.at('region_id'), source.field(row, value, 'region_id')
  )
  phrase = source.text(
    row.at('phrase'), source.field(row, value, 'phrase'), 'empty_phrase'
  )
  box = source.box(
    row,
    [source.field(row, value, name) for name in ('x', 'y', 'width', 'height')],
    size,
  )
  if key in seen:
    raise RowError(
      row.at('region_id'), 'duplicate', 'an id of its own', f'{key} again'
    )
  seen.add(key)
  return Region(id=key, text=' '.join(phrase.split()), box=box)


def _image_data(
  path: str,
) -> tuple[
  dict[str, tuple[tuple[int, int], list[str], tuple[str, ...]]], list[Problem]
]:
  """Image id -> (height, width), file names by its URL, and its id in COCO."""
  values = source.read_json(path)
  if not isinstance(values, list):
    raise SourceError(
      f'{path}: expected a list of images, found {source.show(values)}.'
    )
  meta, problems = {}, []
  for i, value in enumerate(values):
    row = Row(path, None, f'[{i}]')
    try:
      key = source.identifier(
        row.at('image_id'), source.field(row, value, 'image_id')
      )
      parts = str(value.get('url') or '').split('/')
      names = ['/'.join(parts[-2:]), parts[-1]] if parts[-1] else []
      number = value.get('coco_id')
      also = () if number is None else (str(number),)
      meta[key] = (source.image_size(row, value), names, also)
    except RowError as e:
      problems.append(e.problem)
  return meta, problems


def read_split(path: str, split: str) -> set[str]:
  """The image ids of one split in a file such as `densecap_splits.json`.

  Raises:
    SourceError: no lists of ids, no such split, or an id in two of them.
  """
  owners: dict[str, str] = {}
  lists: dict[str, int] = {}
  for name, i, _, _, value in source.read_members(path):
    try:
      key = source.identifier(Row(path, None, f'{name}[{i}]'), value)
    except RowError as e:
      raise SourceError(str(e)) from e
    lists[name] = lists.get(name, 0) + 1
    if owners.setdefault(key, name) != name:
      raise SourceError(
        f'{path}: expected every image in one split, found {key} in '
        f'{owners[key]} and {name}.'
      )
  if split not in lists:
    known = ', '.join(f'{k} ({n})' for k, n in sorted(lists.items()))
    raise SourceError(
      f'{path}: expected a list {split!r} of image ids, found only '
      f'{known or "none"}.'
    )
  return {key for key, name in owners.items() if name == split}
