# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What record sets and JSON lines hold, and all that is wrong with them.

JSON lines are read by the builder's own parser, so that a check says what a
build would. What is kept of a text or an image is a count or eight bytes.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from pixel_llm import alignment, example, image, masks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import build, records
from pixel_llm.data.sources import source
from pixel_llm.data.sources.jsonl import Jsonl
from pixel_llm.geometry import box_area

# Tokens, end included, that the paper's recipes have room for: narratives and
# expressions (configs/narrate.py, configs/refer.py).
LENGTHS = (128, 40)
_WORD = re.compile(r'\S+')
_SHARD = {'name': str, 'records': int, 'bytes': int, 'sha256': str}
_TYPES = {
  'id': str,
  'text': str,
  'prompt': str | None,
  'mask': bytes | None,
  **dict.fromkeys(
    ('spans', 'span_boxes', 'span_centers', 'span_weights'), np.ndarray
  ),
}
_MOST_TEXTS = 1 << 20  # of an image
_PERCENTILES = {0: 'min', 5: 'p5', 50: 'median', 95: 'p95', 100: 'max'}
_COUNTS = ('records', 'regions', 'utterances', 'utterances_with_place')

Progress = Callable[[int, int], None]
_What = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Problem:
  """Something wrong, and where.

  Attributes:
    file: JSON lines, a shard or a manifest.
    line: 1-based, of JSON lines; None otherwise.
    record: number within its shard, from 0 on; None elsewhere.
    region: id; None where it is of the whole image.
    field: the part that is meant.
    reason: a short constant name.
    expected: what the field should hold.
    found: what it holds.
  """

  file: str
  line: int | None
  record: int | None
  region: str | None
  field: str
  reason: str
  expected: str
  found: str

  def __str__(self) -> str:
    names = ('line', 'record', 'region', 'field')
    parts = [(name, getattr(self, name)) for name in names]
    where = [f'{k} {v}' for k, v in parts if v not in (None, '')]
    return (
      f'{", ".join([self.file, *where])}: expected {self.expected}, found '
      f'{self.found} ({self.reason}).'
    )


_Report = Callable[[Problem], None]


@dataclasses.dataclass
class Result:
  """What a check found.

  Attributes:
    sets: name -> statistics of each set, see `_Statistics.summary`.
    problems: the first of them.
    reasons: how many there are in all, by reason.
  """

  sets: dict[str, dict[str, Any]]
  problems: list[Problem]
  reasons: collections.Counter[str]

  def __str__(self) -> str:
    """The statistics, the first problems and how many there are."""
    lines = []
    for name, summary in self.sets.items():
      lines.append(name)
      lines += [
        f'  {key.replace("_", " "):28} {_words(value)}'
        for key, value in summary.items()
        if value != {}
      ]
    lines += map(str, self.problems)
    total = self.reasons.total()
    if total > len(self.problems):
      lines.append(f'and {total - len(self.problems)} more.')
    counts = ', '.join(f'{k} {n}' for k, n in self.reasons.most_common())
    lines.append(f'{total} problems: {counts}.' if total else 'No problem.')
    return '\n'.join(lines)


def check(
  paths: Sequence[str],
  *,
  split: str | None = None,
  images: str | Sequence[str] | None = None,
  vocabulary: str | None = None,
  against: Sequence[str] = (),
  decode: bool = True,
  most: int = 20,
  out: str | None = None,
  progress: Progress | None = None,
) -> Result:
  """Checks folders of records, each split for itself, and JSON lines.

  Args:
    paths: folders that `build` wrote into, and files of JSON lines; all of
      these files are one set.
    split: only this one.
    images: directory or archives of the JSON lines' images; None looks at no
      image.
    vocabulary: SentencePiece model; counts tokens with it.
    against: folders of records, `DIR` or `DIR:SPLIT`, that no image may be in.
    decode: decodes the images of records, instead of reading their headers.
    most: problems that the result keeps.
    out: a file for all problems and the statistics, as JSON.
    progress: called with images done and in all.

  Raises:
    ValueError, OSError: something cannot be checked at all.
  """
  folders = [p for p in paths if os.path.isdir(p)]
  files = [p for p in paths if not os.path.isdir(p)]
  if images is not None and not files:
    raise ValueError('--images: expected JSON lines to go with it.')
  sets: list[_Records | _Lines] = [
    _Records(folder, name, decode)
    for folder in folders
    for name in ([split] if split else records.splits(folder))
  ]
  if files:
    sets.append(_Lines(files, images, split))
  known = _known(against)
  words = vocabulary_lib.Vocabulary(vocabulary) if vocabulary else None
  result = Result({}, [], collections.Counter())
  with _writer(out) as write:

    def report(problem: Problem) -> None:
      if len(result.problems) < most:
        result.problems.append(problem)
      write(problem)
      result.reasons[problem.reason] += 1

    done, total = 0, sum(map(len, sets))
    for each in sets:
      statistics = _Statistics(words)
      before = result.reasons.copy()
      for found in each.read(report):
        if found is not None:
          statistics.add(found)
          _check_leak(found, known, report)
        done += 1
        if progress is not None:
          progress(done, total)
      if result.reasons == before and not statistics.images:
        where = each.name, None, None, None, ''
        report(Problem(*where, 'empty', 'at least one image', 'none'))
      reasons = result.reasons - before
      result.sets[each.name] = statistics.summary(reasons)
    write(result.sets)
  return result


@dataclasses.dataclass(frozen=True)
class _Found:
  """One image with its good texts, and where they are from."""

  file: str
  line: int | None
  record: int | None
  image_id: str
  size: tuple[int, int]
  image: bytes | None
  regions: tuple[example.Region, ...]


class _Lines:
  """JSON lines."""

  def __init__(
    self,
    files: list[str],
    images: str | Sequence[str] | None,
    split: str | None,
  ):
    self.name = ', '.join(files) + (f', split {split}' if split else '')
    self._source = Jsonl(files, images or '', split or '', {})
    self._has_images = images is not None
    self._entries, self._problems = self._source.index()

  def __len__(self) -> int:
    return len(self._entries)

  def read(self, report: _Report) -> Iterator[_Found | None]:
    """What a build would make of each image; reports what it would skip."""
    for problem in self._problems:
      report(_of_row(problem))
    for entry in self._entries:
      item = self._source.read(entry)
      regions, problems = tuple(r for _, r in item.regions), item.problems
      size, data = item.size, None
      if self._has_images:
        made, problems = build.make(entry, item)
        regions = made.regions if made else ()
        size, data = (made.size, made.image) if made else (None, None)
      for problem in problems:
        report(_of_row(problem))
      if regions and size:
        row = item.regions[0][0]
        where = row.file, row.line, None, entry.image_id
        yield _Found(*where, size, data, regions)
      else:
        yield None


def _of_row(problem: source.Problem) -> Problem:
  row = problem.row
  what = row.field, problem.reason, problem.expected, problem.found
  return Problem(row.file, row.line, None, None, *what)


class _Records:
  """One split of a folder of records."""

  def __init__(self, directory: str, split: str, decode: bool):
    self.name = f'{directory}, split {split}'
    self._decode = decode
    self._manifest = str(records.manifest_path(directory, split))
    manifest = records.read_manifest(directory, split)
    shards = manifest.get('shards')
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
      raise ValueError(
        f'records {self._manifest}, field shards: expected a list of '
        f'{", ".join(_SHARD)}, found {source.show(shards)}.'
      )
    self._shards = [
      {**s, 'path': os.path.join(directory, s['name'])} for s in shards
    ]
    self._wanted = {name: manifest.get(name) for name in _COUNTS}
    # Of each text: its id's hash, and its record's number among all with its
    # own in the record.
    self._ids, self._texts = array.array('Q'), array.array('Q')

  def __len__(self) -> int:
    return sum(shard['records'] for shard in self._shards)

  def read(self, report: _Report) -> Iterator[_Found | None]:
    """Each record; reports what is wrong with it and with its shard."""
    counts: collections.Counter[str] = collections.Counter()
    number = 0
    for shard in self._shards:
      reader, readable = _open(shard, report)
      for i in range(shard['records']):
        made = (
          _record(reader, shard['path'], i, report) if i < readable else None
        )
        if made is None:
          yield None
        else:
          self._count(made, number, counts)
          yield self._checked(made, shard['path'], i, report)
        number += 1
    # What could not be read was reported, and would be missing here again.
    if counts['records'] == number:
      for name, wanted in self._wanted.items():
        if wanted != counts[name]:
          what = name, 'wrong_count', f'{counts[name]} as there are'
          report(Problem(self._manifest, None, None, None, *what, f'{wanted}'))
    self._check_ids(report)

  def _count(
    self, made: example.Example, number: int, counts: collections.Counter[str]
  ) -> None:
    counts['records'] += 1
    for i, region in enumerate(made.regions):
      counts['regions'] += 1
      counts['utterances'] += len(region.span_weights)
      counts['utterances_with_place'] += int((region.span_weights > 0).sum())
      self._ids.append(_hash(region.id.encode()))
      self._texts.append(number * _MOST_TEXTS + i)

  def _checked(
    self, made: example.Example, path: str, record: int, report: _Report
  ) -> _Found:
    where = path, None, record
    for what in _image_problems(made, self._decode):
      report(Problem(*where, None, *what))
    good = []
    for region in made.regions:
      problems = list(_region_problems(region, made.size))
      for what in problems:
        report(Problem(*where, region.id, *what))
      if not problems:
        good.append(region)
    return _Found(*where, made.image_id, made.size, made.image, tuple(good))

  def _check_ids(self, report: _Report) -> None:
    for first, again in _repeats(self._ids):
      path, record, name = self._text(self._texts[again])
      before = self._text(self._texts[first])
      if name == before[2]:
        expected = (
          f'an id of its own, not that of {before[0]}, record {before[1]}'
        )
        where = path, None, record, name
        report(Problem(*where, 'id', 'duplicate', expected, name))

  def _text(self, text: int) -> tuple[str, int, str]:
    """Shard, record within it and id of an element of `_texts`."""
    record, i = divmod(text, _MOST_TEXTS)
    for shard in self._shards:
      if record < shard['records']:
        break
      record -= shard['records']
    path = shard['path']
    data = ArrayRecordReader(path, records.READER_OPTIONS).read([record])[0]
    return path, record, example.from_bytes(data).regions[i].id


def _is_shard(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(value.get(name), kind) for name, kind in _SHARD.items()
  )


def _open(shard: dict[str, Any], report: _Report) -> tuple[Any, int]:
  """The reader of a shard, and how many of its records are to be read."""
  path, wanted = shard['path'], shard['records']

  def wrong(field, reason, expected, found):
    report(Problem(path, None, None, None, field, reason, expected, found))

  if not os.path.isfile(path):
    wrong('', 'missing', 'a file, as the manifest lists it', 'none')
    return None, 0
  size = os.path.getsize(path)
  if size != shard['bytes']:
    wrong('bytes', 'wrong_size', f'{shard["bytes"]} bytes', f'{size}')
  else:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != shard['sha256']:
      wrong('sha256', 'wrong_digest', shard['sha256'], digest)
  try:
    reader = ArrayRecordReader(path, records.READER_OPTIONS)
    found = reader.num_records()
  except RuntimeError as e:
    wrong('', 'damaged', 'an ArrayRecord file', str(e))
    return None, 0
  if found != wanted:
    wrong('records', 'wrong_count', f'{wanted} records', f'{found}')
  return reader, min(found, wanted)


def _record(
  reader: Any, path: str, number: int, report: _Report
) -> example.Example | None:
  """A record; None when it is none."""
  try:
    made = example.from_bytes(reader.read([number])[0])
    _check_types(made)
    return made
  except (RuntimeError, IndexError, ValueError) as e:
    where = path, None, number, None, ''
    said = str(e).rstrip('.')
    report(Problem(*where, 'not_a_record', 'a canonical example', said))
    return None


def _check_types(made: example.Example) -> None:
  """Raises ValueError at the first value that is of another type."""
  wanted = [('image', bytes, made.image), ('image_id', str, made.image_id)]
  for i, region in enumerate(made.regions):
    wanted += [
      (f'regions[{i}].{name}', kind, getattr(region, name))
      for name, kind in _TYPES.items()
    ]
  for name, kind, value in wanted:
    if not isinstance(value, kind):
      raise ValueError(f'{name}: {source.show(value)}')


# What is wrong with an example: (field, reason, expected, found) each.


def _image_problems(made: example.Example, decode: bool) -> Iterator[_What]:
  try:
    if decode:
      size = image.decode(made.image, made.image_id).shape[:2]
    else:
      size = image.size(made.image, made.image_id)
    if size != made.size:
      yield 'size', 'image_size', f'{size} (height, width)', f'{made.size}'
  except image.ImageError as e:
    yield 'image', 'image_unreadable', 'an image', str(e)
  if not made.regions:
    yield 'regions', 'no_regions', 'at least one region', 'none'


def _region_problems(
  region: example.Region, size: tuple[int, int]
) -> Iterator[_What]:
  if not region.text.strip():
    yield 'text', 'empty_text', 'a text', source.show(region.text)
  if region.box is not None:
    yield from _outside('box', region.box[None])
    if not box_area(region.box) > 0:
      expected = 'x0, y0, x1, y1 with x1 > x0 and y1 > y0'
      yield 'box', 'bad_box', expected, f'{region.box.tolist()}'
  if region.points is not None:
    yield from _outside('points', region.points)
  if region.mask is not None:
    try:
      masks.from_counts(region.mask, size)
    except ValueError as e:
      yield 'mask', 'bad_mask', 'run lengths of the image', str(e)
  count = len(region.spans)
  lengths = [
    len(getattr(region, f'span_{name}'))
    for name in ('boxes', 'centers', 'weights')
  ]
  if lengths != [count] * 3:
    expected = f'{count} boxes, centers and weights, as spans'
    yield 'spans', 'wrong_count', expected, f'{lengths}'
    return
  yield from _outside('span_boxes', region.span_boxes)
  yield from _outside('span_centers', region.span_centers)
  yield from _outside('span_weights', region.span_weights[:, None])
  end = 0
  for i, span in enumerate(region.spans.tolist()):
    if span == [-1, -1]:
      continue
    if not end <= span[0] < span[1] <= len(region.text):
      expected = f'begin and end in [{end}, {len(region.text)}], in order'
      yield f'spans[{i}]', 'bad_span', expected, f'{span}'
    end = max(end, span[1])


def _outside(field: str, values: np.ndarray) -> Iterator[_What]:
  """Rows that are not within [0, 1]; NaN is not."""
  if not values.size or (values.min() >= 0 and values.max() <= 1):
    return
  inside = ((values >= 0) & (values <= 1)).all(axis=-1)
  for i in np.flatnonzero(~inside):
    at = field if field == 'box' else f'{field}[{i}]'
    yield at, 'outside', 'numbers in [0, 1]', f'{values[i].tolist()}'


# Images that must not be there.


def _known(against: Sequence[str]) -> dict[str, str]:
  """Key of an image, see `records.identities` -> where it is."""
  known = {}
  for path in against:
    folder, split = path, None
    if not os.path.isdir(path) and ':' in path:
      folder, _, split = path.rpartition(':')
    for name in [split] if split else records.splits(folder):
      for key, image_id in records.identities(folder, name).items():
        known[key] = f'{image_id} of {folder}, split {name}'
  return known


def _check_leak(
  found: _Found, known: Mapping[str, str], report: _Report
) -> None:
  keys = [records.identity(found.image_id)]
  if found.image is not None:
    keys.append(records.content(found.image))
  for key in keys:
    if key in known:
      where = found.file, found.line, found.record, None, 'image'
      said = f'{found.image_id}, which is {known[key]} ({key})'
      report(Problem(*where, 'leak', 'no image of --against', said))
      return


# Counting.


class _Statistics:
  """Counts of a set; of its size is only what tells images apart."""

  def __init__(self, vocabulary: vocabulary_lib.Vocabulary | None):
    self._vocabulary = vocabulary
    self._counts: collections.Counter[str] = collections.Counter()
    # Value -> how often.
    self._histograms: dict[str, collections.Counter[float]] = {
      name: collections.Counter()
      for name in ('regions', 'words', 'boxes', 'masks', 'tokens')
    }
    self._images = array.array('Q')

  @property
  def images(self) -> int:
    """How many there were."""
    return self._counts['images']

  def add(self, found: _Found) -> None:
    """Counts an image and its texts."""
    counts, histograms = self._counts, self._histograms
    counts['images'] += 1
    histograms['regions'][len(found.regions)] += 1
    if found.image is not None:
      self._images.append(_hash(found.image))
    said = set()
    for region in found.regions:
      spans = [m.span() for m in _WORD.finditer(region.text)]
      histograms['words'][len(spans)] += 1
      if region.span_weights.any():
        _, _, weights = alignment.token_places(region, np.array(spans))
        counts['placed'] += int((weights > 0).sum())
      if region.box is not None:
        histograms['boxes'][round(float(box_area(region.box)), 4)] += 1
      if region.mask is not None:
        pixels = max(found.size[0] * found.size[1], 1)
        histograms['masks'][round(masks.area(region.mask) / pixels, 4)] += 1
      counts['prompts'] += region.prompt is not None
      counts['clicked'] += region.points is not None
      key = region.text, None if region.box is None else region.box.tobytes()
      counts['repeated'] += key in said
      said.add(key)
      if self._vocabulary is not None:
        tokens = len(self._vocabulary.encode(region.text)) + 1
        histograms['tokens'][tokens] += 1

  def summary(self, reasons: Mapping[str, int]) -> dict[str, Any]:
    """Name -> number, or name -> number of its spread."""
    counts, histograms = self._counts, self._histograms
    words = histograms['words']
    total = sum(words.values())
    spoken = sum(k * n for k, n in words.items())
    out: dict[str, Any] = {
      'images': self.images,
      'texts': total,
      'texts_an_image': _spread(histograms['regions']),
      'words_a_text': _spread(words),
      'words_with_a_place': round(counts['placed'] / max(spoken, 1), 4),
      'texts_with_prompt': counts['prompts'],
      'texts_with_points': counts['clicked'],
      'texts_with_box': sum(histograms['boxes'].values()),
      'box_share_of_image': _spread(histograms['boxes']),
      'degenerate_boxes': reasons.get('bad_box', 0),
      'outside_the_image': reasons.get('outside', 0),
      'texts_with_mask': sum(histograms['masks'].values()),
      'mask_share_of_image': _spread(histograms['masks']),
      'same_text_and_box': counts['repeated'],
      'same_id': reasons.get('duplicate', 0),
      'same_image_bytes': sum(1 for _ in _repeats(self._images)),
    }
    if self._vocabulary is not None:
      tokens = histograms['tokens']
      out['tokens_a_text'] = _spread(tokens)
      for length in LENGTHS:
        cut = sum(n for k, n in tokens.items() if k > length)
        out[f'cut_at_{length}_tokens'] = round(cut / max(total, 1), 4)
    return out | {'problems': dict(reasons)}


def _spread(counts: collections.Counter[float]) -> dict[str, float]:
  """Mean and percentiles; empty without a value."""
  values = np.array(sorted(counts))
  if not len(values):
    return {}
  times = np.array([counts[v] for v in values])
  ends = np.cumsum(times)
  out = {'mean': float(values @ times / ends[-1])}
  for percent, name in _PERCENTILES.items():
    # The smallest value that so many are not above.
    at = np.searchsorted(ends, percent / 100 * ends[-1])
    out[name] = float(values[at])
  return {k: round(v, 4) for k, v in out.items()}


def _hash(data: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')


def _repeats(hashes: array.array) -> Iterator[tuple[int, int]]:
  """(first, again): where a value was first, and where it is once more."""
  values = np.array(hashes, np.uint64)
  _, firsts, which = np.unique(values, return_index=True, return_inverse=True)
  first = firsts[which]
  for i in np.flatnonzero(first != np.arange(len(values))):
    yield int(first[i]), int(i)


# What is told.


def _words(value: Any) -> str:
  """A number, or several with their names, in words."""
  if isinstance(value, dict):
    return ', '.join(f'{k} {_words(v)}' for k, v in value.items()) or 'none'
  return f'{value:,}' if isinstance(value, int) else f'{value:g}'


@contextlib.contextmanager
def _writer(path: str | None) -> Iterator[Callable[[Any], None]]:
  """Writes problems as they come, then the sets, as one JSON object."""
  if path is None:
    yield lambda value: None
    return
  part = f'{path}.part'
  try:
    with open(part, 'w') as file:
      file.write('{"problems": [')
      separator = '\n'

      def write(value: Any) -> None:
        nonlocal separator
        if isinstance(value, Problem):
          file.write(separator + json.dumps(dataclasses.asdict(value)))
          separator = ',\n'
        else:
          file.write(f'\n], "sets": {json.dumps(value, indent=2)}}}\n')

      yield write
    os.replace(part, path)
  finally:
    pathlib.Path(part).unlink(missing_ok=True)
