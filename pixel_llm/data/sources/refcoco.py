# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg as REFER, MDETR and UNINEXT store them."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm.data.sources import coco, source
from pixel_llm.data.sources.images import Images, image_names
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


class RefCoco:
  """REFER: `refs(<partition>).p` and `instances.json`.

  Each sentence of a reference becomes a region with the object's box and mask;
  its text is the sentence as it was typed (`raw`), with blanks folded, its id
  the `sent_id`.

  Args:
    annotations: the one `refs(...).p`.
    images: directory or archives of the COCO images, 2014 or 2017 names.
    split: only references of this split: train, val, test, testA or testB.
    extras: `instances`, the path of `instances.json`.

  Source: Yu et al., "Modeling Context in Referring Expressions" (REFER).
  """

  version = 2
  extras: tuple[str, ...] = ('instances',)

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ):
    if len(annotations) != 1:
      raise SourceError(
        'refcoco annotations: expected one refs(...).p, found '
        f'{len(annotations)}: {", ".join(annotations)}.'
      )
    if 'instances' not in extras:
      raise SourceError('refcoco: expected the path of instances.json.')
    self._refs, self._instances = annotations[0], extras['instances']
    self._images, self._split = images, split

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance among the references."""
    refs = read_refs(self._refs)
    images = Images(self._images)
    tables = _Tables(self._instances)
    splits = collections.Counter(
      str(r.get('split')) for r in refs if isinstance(r, dict)
    )
    _check_split(self._refs, 'references', self._split, splits)

    groups: dict[str, list[tuple[Row, list[Any], Slice]]] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for i, ref in enumerate(refs):
      row = Row(self._refs, None, f'[{i}]')
      try:
        if source.field(row, ref, 'split') != self._split:
          continue
        sentences = source.items(
          row.at('sentences'), source.field(row, ref, 'sentences')
        )
      except RowError as e:
        problems.append(e.problem)
        continue
      good = []
      for j, sentence in enumerate(sentences):
        at = row.at(f'sentences[{j}]')
        try:
          good.append((at, *_sentence(at, sentence, seen)))
        except RowError as e:
          problems.append(e.problem)
      try:
        image_id, thing = tables.thing(row, ref)
      except RowError as e:
        problems += [e.problem] * len(good)
        continue
      if good:
        groups.setdefault(image_id, []).append((row, good, thing))

    entries = []
    for image_id, rows in groups.items():
      size, names = tables.images[image_id]
      # References carry file names that exist nowhere: instances has the real.
      found, missing = images.find(*names, *image_names(image_id))
      entries.append(Entry(image_id, found, missing, (size, *rows)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """Boxes and masks of the things that `index` found sentences about."""
    size, *rows = entry.rows
    regions, problems = [], []
    for row, sentences, thing in rows:
      try:
        value = thing.value()
        if coco.key_of(thing.row, value, 'image_id') != entry.image_id:
          raise RowError(
            thing.row.at('image_id'),
            'wrong_image',
            f'{entry.image_id}, the image of {row.field} in the references',
            f'{value["image_id"]}',
          )
        box, mask = _box_and_mask(thing.row, value, 'segmentation', size)
      except RowError as e:
        problems += [e.problem] * len(sentences)
        continue
      for at, key, text in sentences:
        regions.append((at, Region(id=key, text=text, box=box, mask=mask)))
    return Item(tuple(regions), tuple(problems), size)


class _Tables:
  """The images of an instances file, and where its annotations are."""

  def __init__(self, path: str):
    self._path = path
    self.images: dict[str, tuple[tuple[int, int], list[str]]] = {}
    self._things: dict[str, Slice] = {}
    self._bad: dict[str, RowError] = {}
    for name, i, offset, length, value in source.read_members(
      path, ('images', 'annotations')
    ):
      row = Row(path, None, f'{name}[{i}]')
      if name == 'annotations':
        if isinstance(value, dict) and 'id' in value:
          self._things[str(value['id'])] = Slice(row, offset, length)
      elif name == 'images':
        try:
          key = coco.key_of(row, value, 'id')
          names = coco.file_name(row, value)
          self.images[key] = (source.image_size(row, value), names)
        except RowError as e:
          if isinstance(value, dict):
            self._bad[str(value.get('id'))] = e

  def thing(self, row: Row, ref: Any) -> tuple[str, Slice]:
    """The image and the annotation of what a reference speaks of."""
    image_id = coco.key_of(row, ref, 'image_id')
    if image_id in self._bad:
      raise self._bad[image_id]
    key = coco.key_of(row, ref, 'ann_id')
    for name, reason, what, value, known in (
      ('image_id', 'no_image_meta', 'images', image_id, self.images),
      ('ann_id', 'no_annotation', 'annotations', key, self._things),
    ):
      if value not in known:
        raise RowError(
          row.at(name),
          reason,
          f'an id among the {what} of {self._path}',
          value,
        )
    return image_id, self._things[key]


class RefCocoMdetr(coco.CocoFile):
  """MDETR: `finetune_refcoco_train.json` and its kin.

  An element of `images` is one expression, `original_id` the COCO image. The
  id is the `sent_id` where a file keeps it (`refexp_id`), else the element's,
  which numbers the expressions; the text is `raw` where a file keeps it, else
  `caption`, which is lower case. The published files have no masks; an
  annotation with a `segmentation` gives one.

  Source: Kamath et al., "MDETR", and what scenic pixel_llm,
  `tools/build_mdetr_ref_tfrecord.py` reads beside.
  """

  def image(self, element: Slice, value: Any) -> coco.Image:
    """An expression's image."""
    row = element.row
    name = 'original_img_id' if 'original_img_id' in value else 'original_id'
    image_id = coco.key_of(row, value, name)
    names = coco.file_name(row, value) + image_names(image_id)
    return coco.Image(
      element, image_id, source.image_size(row, value), tuple(names)
    )

  def region(
    self,
    row: Row,
    value: Any,
    image_row: Row,
    image: Any,
    size: tuple[int, int],
  ) -> Region:
    """An expression and the thing that it means."""
    name = 'raw' if 'raw' in image else 'caption'
    text = source.text(image_row.at(name), source.field(image_row, image, name))
    box, mask = _box_and_mask(row, value, 'segmentation', size)
    return Region(
      id=coco.key_of(
        image_row, image, 'refexp_id' if 'refexp_id' in image else 'id'
      ),
      text=' '.join(text.split()),
      box=box,
      mask=mask,
    )


class RefCocoUninext:
  """UNINEXT: `instances.json`, split -> things with their `expressions`.

  The files number no expressions: an id is split, thing and expression. Text
  is lower case there.

  Args:
    annotations: `instances.json` files.
    images: directory or archives of the image files, of COCO, Visual Genome or
      Flickr30k.
    split: the list to take: train, val, test, testA or testB.
    extras: none.

  Source: Yan et al., "Universal Instance Perception as Object Discovery and
  Retrieval"; scenic pixel_llm, `tools/build_uninext_ref_tfrecord.py`.
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
    """Images in order of first appearance in the split."""
    images = Images(self._images)
    groups: dict[str, tuple[list[str], tuple[int, int], list[Slice]]] = {}
    problems = []
    for path in self._annotations:
      splits: collections.Counter[str] = collections.Counter()
      for name, i, offset, length, value in source.read_members(path):
        splits[name] += 1
        if name != self._split:
          continue
        row = Row(path, None, f'{name}[{i}]')
        try:
          image_id, names = _uninext_image(row, value)
          size = source.image_size(row, value)
          group = groups.setdefault(image_id, (names, size, []))
          if group[1] != size:
            raise RowError(
              row,
              'wrong_image',
              f'{group[1]} (height, width) of image {image_id} as before',
              f'{size}',
            )
          group[2].append(Slice(row, offset, length))
        except RowError as e:
          problems.append(e.problem)
      _check_split(path, 'things', self._split, splits)
    entries = []
    for image_id, (names, size, things) in groups.items():
      found, missing = images.find(*names)
      entries.append(Entry(image_id, found, missing, (size, *things)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """The expressions of one image."""
    size, *things = entry.rows
    regions, problems = [], []
    for thing in things:
      value, row = thing.value(), thing.row
      number = row.field.removeprefix(f'{self._split}[').removesuffix(']')
      expressions: list[Any] = [None]  # one, as long as they are unknown
      try:
        expressions = source.items(
          row.at('expressions'), source.field(row, value, 'expressions')
        )
        box, mask = _box_and_mask(row, value, 'mask', size)
      except RowError as e:
        problems += [e.problem] * len(expressions)
        continue
      for k, words in enumerate(expressions):
        at = row.at(f'expressions[{k}]')
        try:
          text = ' '.join(source.text(at, words).split())
        except RowError as e:
          problems.append(e.problem)
        else:
          key = f'{self._split}/{number}/{k}'
          regions.append((at, Region(id=key, text=text, box=box, mask=mask)))
    return Item(tuple(regions), tuple(problems), size)


def _uninext_image(row: Row, value: Any) -> tuple[str, list[str]]:
  """The id of a thing's image, and the names of the file."""
  key = coco.key_of(row, value, 'image_id')
  kind = value.get('data_source', 'coco')
  if kind == 'coco':
    # A bare number may be an image of Visual Genome beside it.
    return key, [n for n in image_names(key) if n != key]
  if kind not in ('vg', 'flickr'):
    raise RowError(
      row.at('data_source'),
      'unknown_source',
      'coco, vg or flickr',
      source.show(kind),
    )
  return f'{kind}/{key}', [key]


def _box_and_mask(
  row: Row, value: Any, name: str, size: tuple[int, int]
) -> tuple[np.ndarray, bytes | None]:
  box = source.box(row.at('bbox'), source.field(row, value, 'bbox'), size)
  return box, source.mask(row.at(name), value.get(name), size)


def _check_split(
  path: str, what: str, split: str, splits: collections.Counter[str]
) -> None:
  if split not in splits:
    known = ', '.join(f'{k} ({n})' for k, n in sorted(splits.items()))
    raise SourceError(
      f'{path}: expected {what} of split {split!r}, found only '
      f'{known or "none"}.'
    )


def _sentence(row: Row, sentence: Any, seen: set[str]) -> tuple[str, str]:
  """The id and the text of a sentence about a thing."""
  key = coco.key_of(row, sentence, 'sent_id')
  # Reference: its default is the raw sentence, too.
  name = 'raw' if 'raw' in sentence else 'sent'
  words = source.text(row.at(name), source.field(row, sentence, name))
  if key in seen:
    raise coco.duplicate(row, key, 'sent_id')
  seen.add(key)
  return key, ' '.join(words.split())


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
