# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg as the REFER toolkit stores them."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
from typing import Any

import numpy as np

from pixel_llm.data.sources import source
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  SourceError,
)
from pixel_llm.example import Region


class RefCoco:
  """`refs(<partition>).p` and `instances.json`.

  Each sentence of a reference becomes a region with the object's box; its text
  is the sentence as it was typed (`raw`), with blanks folded.

  Args:
    annotations: the one `refs(...).p`.
    images: directory of the COCO images, 2014 or 2017 names.
    split: only references of this split: train, val, test, testA or testB.
    extra: path of `instances.json`.

  Source: Yu et al., "Modeling Context in Referring Expressions" (REFER).
  """

  version = 1
  extra: str | None = 'instances'

  def __init__(
    self, annotations: list[str], images: str, split: str, extra: str | None
  ):
    if len(annotations) != 1:
      raise SourceError(
        'refcoco annotations: expected one refs(...).p, found '
        f'{len(annotations)}: {", ".join(annotations)}.'
      )
    if extra is None:
      raise SourceError('refcoco: expected the path of instances.json.')
    self._refs, self._instances = annotations[0], extra
    self._images, self._split = images, split

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance among the references."""
    refs = read_refs(self._refs)
    images = source.Images(self._images)
    tables = _Tables(self._instances)
    splits = collections.Counter(
      str(r.get('split')) for r in refs if isinstance(r, dict)
    )
    if self._split not in splits:
      known = ', '.join(f'{k} ({n})' for k, n in sorted(splits.items()))
      raise SourceError(
        f'{self._refs}: expected references of split {self._split!r}, found '
        f'only {known or "none"}.'
      )

    groups: dict[str, list[tuple[Row, Region]]] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for i, ref in enumerate(refs):
      row = Row(self._refs, None, f'[{i}]')
      try:
        if source.field(row, ref, 'split') != self._split:
          continue
        image_id = source.identifier(
          row.at('image_id'), source.field(row, ref, 'image_id')
        )
        box = tables.box(row, ref, image_id)
        sentences = source.items(
          row.at('sentences'), source.field(row, ref, 'sentences')
        )
      except RowError as e:
        problems.append(e.problem)
        continue
      for j, sentence in enumerate(sentences):
        at = row.at(f'sentences[{j}]')
        try:
          region = _region(at, sentence, box, seen)
        except RowError as e:
          problems.append(e.problem)
        else:
          groups.setdefault(image_id, []).append((at, region))

    entries = []
    for image_id, regions in groups.items():
      size, file_name = tables.images[image_id]
      # References carry file names that exist nowhere: instances has the real.
      found, missing = images.find(
        *([file_name] if file_name else []), *source.image_names(image_id)
      )
      entries.append(Entry(image_id, found, missing, (size, *regions)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """The regions that `index` found."""
    size, *regions = entry.rows
    return Item(tuple(regions), (), size)


class _Tables:
  """The images and boxes of an instances file."""

  def __init__(self, path: str):
    self._path = path
    values = source.read_json(path)
    for name in ('images', 'annotations'):
      if not isinstance(values, dict) or not isinstance(values.get(name), list):
        raise SourceError(
          f'{path}: expected a COCO instances file with a list {name!r}, '
          f'found {source.show(values)}.'
        )
    self.images: dict[str, tuple[tuple[int, int], str]] = {}
    self._boxes: dict[str, tuple[Row, str, Any]] = {}
    self._bad: dict[str, RowError] = {}
    for i, image in enumerate(values['images']):
      row = Row(path, None, f'images[{i}]')
      try:
        key = source.identifier(row.at('id'), source.field(row, image, 'id'))
        name = image.get('file_name')
        self.images[key] = (
          source.image_size(row, image),
          name if isinstance(name, str) else '',
        )
      except RowError as e:
        if isinstance(image, dict):
          self._bad[str(image.get('id'))] = e
    for i, annotation in enumerate(values['annotations']):
      row = Row(path, None, f'annotations[{i}]')
      if isinstance(annotation, dict) and 'id' in annotation:
        self._boxes[str(annotation['id'])] = (
          row,
          str(annotation.get('image_id')),
          annotation.get('bbox'),
        )

  def box(self, row: Row, ref: dict[str, Any], image_id: str) -> np.ndarray:
    """The box of a reference's object, [4] xyxy, normalized."""
    if image_id in self._bad:
      raise self._bad[image_id]
    if image_id not in self.images:
      raise RowError(
        row.at('image_id'),
        'no_image_meta',
        f'an id among the images of {self._path}',
        f'{image_id}',
      )
    key = source.identifier(row.at('ann_id'), source.field(row, ref, 'ann_id'))
    if key not in self._boxes:
      raise RowError(
        row.at('ann_id'),
        'no_annotation',
        f'an id among the annotations of {self._path}',
        f'{key}',
      )
    where, owner, values = self._boxes[key]
    if owner != image_id:
      raise RowError(
        where.at('image_id'),
        'wrong_image',
        f'{image_id}, the image of {row.field} in the references',
        owner,
      )
    return source.box(where.at('bbox'), values, self.images[image_id][0])


def _region(row: Row, sentence: Any, box: np.ndarray, seen: set[str]) -> Region:
  """One sentence about an object."""
  key = source.identifier(
    row.at('sent_id'), source.field(row, sentence, 'sent_id')
  )
  # Reference: its default is the raw sentence, too.
  name = 'raw' if 'raw' in sentence else 'sent'
  words = source.text(row.at(name), source.field(row, sentence, name))
  if key in seen:
    raise RowError(
      row.at('sent_id'), 'duplicate', 'an id of its own', f'{key} again'
    )
  seen.add(key)
  return Region(id=key, text=' '.join(words.split()), box=box)


def read_refs(path: str) -> list[Any]:
  """The references of a REFER pickle, without running what it may contain.

  Raises:
    SourceError: missing, not a pickle of plain values, or not a list.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as e:
    raise SourceError(f'{path}: cannot be read ({e.strerror}).') from e
  try:
    # Python 2 wrote the published files; Latin-1 reads its strings and NumPy.
    refs = _PlainUnpickler(io.BytesIO(data), encoding='latin1').load()
  except Exception as e:  # a damaged pickle raises anything at all
    raise SourceError(
      f'{path}: expected a REFER pickle of plain values, found {len(data)} '
      f'bytes beginning {data[:12]!r} ({type(e).__name__}: {e}).'
    ) from e
  if not isinstance(refs, list):
    raise SourceError(
      f'{path}: expected a list of references, found {source.show(refs)}.'
    )
  return refs


def _latin1(text: str, encoding: str) -> bytes:
  """How Python 3 writes bytes, and NumPy its scalars, in old protocols."""
  return text.encode(encoding)


_PLAIN = {
  (module, name): kind
  for module in ('builtins', '__builtin__')
  for name, kind in (
    ('int', int),
    ('long', int),
    ('float', float),
    ('bool', bool),
    ('str', str),
    ('unicode', str),
    ('list', list),
    ('dict', dict),
    ('tuple', tuple),
  )
} | {
  ('_codecs', 'encode'): _latin1,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', 'scalar'): np.int64(0).__reduce__()[0],
  ('numpy._core.multiarray', 'scalar'): np.int64(0).__reduce__()[0],
}


class _PlainUnpickler(pickle.Unpickler):
  """Builds lists, dicts, numbers, strings and NumPy scalars; nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _PLAIN:
      raise pickle.UnpicklingError(f'{module}.{name} is no plain value')
    return _PLAIN[module, name]
