# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Files in COCO's form: `images`, and `annotations` that belong to them."""

from __future__ import annotations

import abc
import array
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images, image_names
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  Slice,
)
from pixel_llm.example import Region


@dataclasses.dataclass(frozen=True)
class Image:
  """An element of `images`, checked.

  Attributes:
    element: where it is.
    image_id: of the image file; several elements may share one.
    size: (height, width).
    names: of the file, best first.
  """

  element: Slice
  image_id: str
  size: tuple[int, int]
  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Part:
  """An element of `images` and its annotations, packed: indices and places."""

  image: Slice
  annotations: bytes

  def elements(self) -> Iterator[Slice]:
    file = self.image.row.file
    numbers = array.array('q', self.annotations)
    for i in range(0, len(numbers), 3):
      index, offset, length = numbers[i : i + 3]
      yield Slice(Row(file, None, f'annotations[{index}]'), offset, length)


class CocoFile(abc.ABC):
  """What the formats in COCO's form share; a text is an annotation here.

  Files are never in memory as a whole: the index keeps where things are.

  Args:
    annotations: the JSON files.
    images: directory or archives of the image files.
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
    del split, extras
    self._annotations, self._images = annotations, images

  def image(self, element: Slice, value: Any) -> Image:
    """Checks an element of `images`."""
    row = element.row
    image_id = source.identifier(row.at('id'), source.field(row, value, 'id'))
    names = image_names(image_id)
    return Image(
      element,
      image_id,
      source.image_size(row, value),
      (*file_name(row, value), *names),
    )

  @abc.abstractmethod
  def region(
    self,
    row: Row,
    value: Any,
    image_row: Row,
    image: Any,
    size: tuple[int, int],
  ) -> Region:
    """The text of an annotation.

    Args:
      row: of the annotation.
      value: the annotation.
      image_row: of the element of `images` that it belongs to.
      image: that element.
      size: (height, width) of the image.

    Raises:
      RowError: the annotation cannot be used.
    """

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance; those without a text are none."""
    files = Images(self._images)
    problems: list[Problem] = []
    groups: dict[str, tuple[Image, list[_Part]]] = {}
    for path in self._annotations:
      table = Table(path, self.image)
      for key, image in table.images.items():
        places = table.annotations.pop(key, None)
        if places is None:
          continue
        first, parts = groups.setdefault(image.image_id, (image, []))
        if first.size != image.size:
          problems += [
            Problem(
              element.row,
              'wrong_image',
              f'{first.size} (height, width) of image {image.image_id} as '
              f'{first.element.row.field} says',
              f'{image.size} in {image.element.row.field}',
            )
            for element in _Part(image.element, places.tobytes()).elements()
          ]
          continue
        parts.append(_Part(image.element, places.tobytes()))
      problems += table.problems()
    entries = []
    for image_id, (image, parts) in groups.items():
      found, missing = files.find(*image.names)
      entries.append(Entry(image_id, found, missing, (image.size, *parts)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """Parses and checks the annotations of one image."""
    size, *parts = entry.rows
    regions, problems, seen = [], [], set()
    for part in parts:
      image = part.image.value()
      for element in part.elements():
        try:
          region = self.region(
            element.row, element.value(), part.image.row, image, size
          )
          if region.id in seen:
            raise duplicate(element.row, region.id)
        except RowError as e:
          problems.append(e.problem)
        else:
          seen.add(region.id)
          regions.append((element.row, region))
    return Item(tuple(regions), tuple(problems), size)


class Table:
  """Which images a file has, and where its annotations are.

  Attributes:
    images: id within the file -> the image.
    annotations: id of the image -> index, offset and length of each, in a row.

  Args:
    path: the JSON file.
    check: `CocoFile.image`.
  """

  def __init__(self, path: str, check: Any):
    self._path = path
    self.images: dict[str, Image] = {}
    self.annotations: dict[str, array.array[int]] = {}
    self._problems: list[Problem] = []
    seen: set[str] = set()
    for name, i, offset, length, value in source.read_members(
      path, ('images', 'annotations')
    ):
      row = Row(path, None, f'{name}[{i}]')
      try:
        if name == 'images':
          key = key_of(row, value, 'id')
          if key in self.images:
            raise duplicate(row, key)
          self.images[key] = check(Slice(row, offset, length), value)
        elif name == 'annotations':
          key = key_of(row, value, 'id')
          if key in seen:
            raise duplicate(row, key)
          owner = key_of(row, value, 'image_id')
          seen.add(key)
          places = self.annotations.setdefault(owner, array.array('q'))
          places.extend((i, offset, length))
      except RowError as e:
        self._problems.append(e.problem)

  def problems(self) -> list[Problem]:
    """Bad elements, and annotations left without an image."""
    lost = [
      (places[i], key)
      for key, places in self.annotations.items()
      for i in range(0, len(places), 3)
    ]
    return self._problems + [
      Problem(
        Row(self._path, None, f'annotations[{i}].image_id'),
        'no_image_meta',
        'the id of a usable element of images',
        key,
      )
      for i, key in sorted(lost)
    ]


def file_name(row: Row, value: Any) -> list[str]:
  """The `file_name` of an element of `images`, in a list; none without."""
  name = value.get('file_name')
  return [source.text(row.at('file_name'), name)] if name is not None else []


class Captions(CocoFile):
  """COCO captions: `captions_train2017.json` and its kin."""

  def region(
    self,
    row: Row,
    value: Any,
    image_row: Row,
    image: Any,
    size: tuple[int, int],
  ) -> Region:
    """A caption of the whole image."""
    return Region(id=key_of(row, value, 'id'), text=caption(row, value))


class RegionCaptions(CocoFile):
  """Visual Genome as GRiT cut it: `train.json` and `test.json`.

  The images are `<id>.jpg`, in `VG_100K` and `VG_100K_2` or not.

  Source: Wu et al., "GRiT: A Generative Region-to-text Transformer".
  """

  def region(
    self,
    row: Row,
    value: Any,
    image_row: Row,
    image: Any,
    size: tuple[int, int],
  ) -> Region:
    """A box and its phrase."""
    return Region(
      id=key_of(row, value, 'id'),
      text=caption(row, value),
      box=source.box(row.at('bbox'), source.field(row, value, 'bbox'), size),
    )


def caption(row: Row, value: Any) -> str:
  """The `caption` of an annotation, blanks folded."""
  words = source.text(
    row.at('caption'), source.field(row, value, 'caption'), 'empty_caption'
  )
  return ' '.join(words.split())


def key_of(row: Row, value: Any, name: str) -> str:
  """An id that is a field of a JSON object, as a string."""
  return source.identifier(row.at(name), source.field(row, value, name))


def duplicate(row: Row, key: str, name: str = 'id') -> RowError:
  """The error for an id that something before has."""
  return RowError(row.at(name), 'duplicate', 'an id of its own', f'{key} again')
