# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Mutated annotation files: no crash, and no text is lost without a word.

Each format's good document is changed at random places. Every text of it must
then be kept or be reported, by a problem of its own or one of the row that
holds it; only a file that cannot be read at all may end in a SourceError.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import public_formats as formats
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixel_llm import masks
from pixel_llm.data.sources import source
from pixel_llm.data.sources.coco import Captions, RegionCaptions
from pixel_llm.data.sources.jsonl import Jsonl
from pixel_llm.data.sources.llava import Llava
from pixel_llm.data.sources.localized_narratives import LocalizedNarratives
from pixel_llm.data.sources.refcoco import (
  RefCoco,
  RefCocoMdetr,
  RefCocoUninext,
)
from pixel_llm.data.sources.visual_genome import VisualGenome

Document = Any
# How a format's rows lead to texts: the document, what was kept, the problems
# of the index and those of reading -> whether all is accounted for.
Account = Callable[[Document, list[Any], list[Any], list[Any]], bool]


@dataclasses.dataclass(frozen=True)
class Format:
  """A good document, how it is written and read, and how its texts count."""

  document: Document
  source: Callable[[pathlib.Path, str, Document], Any]
  account: Account


def one_each(count: Callable[[Document], int]) -> Account:
  """Each row is a text; problems of images come on top."""

  def account(document, kept, early, late):
    rows = [p for p in early if not p.row.field.startswith('images')]
    return len(kept) + len(rows) + len(late) == count(document)

  return account


def lists(name: str, rows: Callable[[Document], list[Any]]) -> Account:
  """A row is lost as a whole by the index, or each text of its list counts."""

  def account(document, kept, early, late):
    whole = [p for p in early if 'image_data' not in p.row.file]
    lost = {p.row.field.split('.')[0] for p in whole}
    texts = 0
    for i, row in enumerate(rows(document)):
      found = row.get(name) if isinstance(row, dict) else None
      if any(field.endswith(f'[{i}]') for field in lost):
        texts += 1
      else:
        texts += len(found) if isinstance(found, list) else 1
    return len(kept) + len(whole) + len(late) == texts

  return account


def json_source(kind, name, **extras):
  def make(directory, images, document):
    path = formats.write_json(directory / name, document)
    return kind([path], images, 'train', extras)

  return make


def lines_source(kind):
  def make(directory, images, document):
    lines = [json.dumps(row) for row in document]
    path = formats.write_lines(directory / 'a.jsonl', lines)
    return kind([path], images, 'train', {})

  return make


def refer_source(directory, images, document):
  refs = directory / 'refs(unc).p'
  refs.write_bytes(pickle.dumps(document['refs']))
  instances = formats.write_json(
    directory / 'instances.json', document['instances']
  )
  return RefCoco([str(refs)], images, 'train', {'instances': instances})


def genome_source(directory, images, document):
  paths = formats.write_visual_genome(
    directory, document['regions'], document['meta']
  )
  return VisualGenome([paths[0]], images, 'train', {'image_data': paths[1]})


def count_refer(document, kept, early, late):
  texts = 0
  for ref in document['refs']:
    if not isinstance(ref, dict) or 'split' not in ref:
      texts += 1
    elif ref['split'] == 'train':
      sentences = ref.get('sentences')
      texts += len(sentences) if isinstance(sentences, list) else 1
  return len(kept) + len(early) + len(late) == texts


def count_lines(document, kept, early, late):
  """Lines of our own: by line number, the line or each of its regions."""
  problems = early + late
  for i, row in enumerate(document, start=1):
    whole = [
      p
      for p in problems
      if p.row.line == i and not p.row.field.startswith('regions[')
    ]
    inner = [p for p in problems if p.row.line == i and p not in whole]
    good = [at for at, _ in kept if at.line == i]
    if whole:
      if len(whole) != 1 or inner or good:
        return False
    elif isinstance(row, dict) and row.get('split') in ('train', None):
      if len(inner) + len(good) != len(row['regions']):
        return False
    elif inner or good:
      return False
  return True


def count_turns(document, kept, early, late):
  """Of each conversation all, or each turn that isn't a question."""
  named = [p.row.field for p in early + late] + [at.field for at, _ in kept]
  for i, row in enumerate(document):
    mine = [f for f in named if f == f'[{i}]' or f.startswith(f'[{i}].')]
    if any(not f.startswith(f'[{i}].conversations[') for f in mine):
      if len(mine) != 1:
        return False
      continue
    for j, turn in enumerate(row['conversations']):
      at = f'[{i}].conversations[{j}]'
      found = [f for f in mine if f == at or f.startswith(f'{at}.')]
      asked = isinstance(turn, dict) and turn.get('from') == 'human'
      if len(found) > 1 or (not found and not asked):
        return False
  return True


CAPTIONS = [
  {'id': i, 'image_id': 7 + i % 2, 'caption': f'A ring {i}.'} for i in range(4)
]
THINGS = [
  {
    'id': 70 + i,
    'image_id': 7 + i % 2,
    'bbox': [6.0, 4, 30, 20],
    'segmentation': [
      formats.SQUARE,
      {'size': [40, 60], 'counts': [244, 20, 2136]},
      {'size': [40, 60], 'counts': 'd7d0hR2'},
      None,
    ][i],
    'caption': 'a ring',
  }
  for i in range(4)
]
IMAGES = [formats.coco_image(7), formats.coco_image(8)]
OWN = [
  {
    'image': f'{7 + i % 2:012d}.jpg',
    'width': formats.WIDTH,
    'height': formats.HEIGHT,
    'split': 'train',
    'regions': [
      {
        'id': f'{i}-1',
        'text': 'a red ring',
        'prompt': 'What?',
        'box': [6, 4, 36, 24],
        'points': [[30, 20]],
        'mask': formats.SQUARE,
        'words': [{'text': 'red', 'points': [[6, 4], [30, 20]]}],
      },
      {'text': 'another'},
    ],
  }
  for i in range(3)
]
MDETR = [formats.mdetr(i, segmentation=formats.SQUARE) for i in range(3)]

FORMATS = {
  'coco_captions': Format(
    formats.coco_file(IMAGES, CAPTIONS),
    json_source(Captions, 'captions.json'),
    one_each(lambda d: len(d['annotations'])),
  ),
  'jsonl': Format(OWN, lines_source(Jsonl), count_lines),
  'llava': Format(
    [formats.conversation(), formats.conversation('000000000008.jpg')],
    json_source(Llava, 'llava.json'),
    count_turns,
  ),
  'localized_narratives': Format(
    [formats.narrative(str(7 + i % 2), i) for i in range(3)],
    lines_source(LocalizedNarratives),
    one_each(len),
  ),
  'refcoco': Format(
    {
      'refs': [
        formats.reference(7 + i % 2, 70 + i, [2 * i, 2 * i + 1])
        for i in range(4)
      ],
      'instances': formats.coco_file(IMAGES, THINGS),
    },
    refer_source,
    count_refer,
  ),
  'refcoco_mdetr': Format(
    formats.coco_file(*map(list, zip(*MDETR, strict=True))),
    json_source(RefCocoMdetr, 'finetune.json'),
    one_each(lambda d: len(d['annotations'])),
  ),
  'refcoco_uninext': Format(
    {'train': [formats.uninext(7), formats.uninext(8)], 'val': []},
    json_source(RefCocoUninext, 'instances.json'),
    lists('expressions', lambda d: d['train']),
  ),
  'visual_genome': Format(
    {
      'regions': [
        {
          'id': i,
          'regions': [
            formats.vg_region(10 * i + k, image_id=i) for k in range(2)
          ],
        }
        for i in (7, 8)
      ],
      'meta': [
        {'image_id': i, 'height': 40, 'width': 60, 'url': f'a/{i}.jpg'}
        for i in (7, 8)
      ],
    },
    genome_source,
    lists('regions', lambda d: d['regions']),
  ),
  'visual_genome_grit': Format(
    formats.coco_file(IMAGES, THINGS),
    json_source(RegionCaptions, 'test.json'),
    one_each(lambda d: len(d['annotations'])),
  ),
}
# Where a change makes the file no file of its format: lists that must be.
FIXED = {
  'coco_captions': {(), ('images',), ('annotations',)},
  'jsonl': {()},
  'llava': {()},
  'localized_narratives': {()},
  'refcoco': {
    (),
    ('refs',),
    ('instances',),
    ('instances', 'images'),
    ('instances', 'annotations'),
  },
  'refcoco_mdetr': {(), ('images',), ('annotations',)},
  'refcoco_uninext': {(), ('train',)},
  'visual_genome': {(), ('regions',), ('meta',)},
  'visual_genome_grit': {(), ('images',), ('annotations',)},
}

LEAVES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 100),
  st.integers(-(10**30), 10**30),
  st.floats(),
  st.text(max_size=5),
  st.sampled_from(['', ' ', '7', '\ud800', 'train', 'gpt', 'human', [], {}]),
)
VALUES = st.recursive(
  LEAVES,
  lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v),
  max_leaves=6,
)


def places(value, path=()):
  """Paths of all values within a document."""
  yield path
  inner = ()
  if isinstance(value, dict):
    inner = value.items()
  elif isinstance(value, list):
    inner = enumerate(value)
  for key, child in inner:
    yield from places(child, (*path, key))


def mutate(data, document, fixed):
  """Changes one place: another value, nothing, twice, or another key."""
  found = [p for p in places(document) if p]
  if not found:
    return  # all of it was dropped
  path = data.draw(st.sampled_from(found))
  holder = document
  for key in path[:-1]:
    holder = holder[key]
  key = path[-1]
  keep = path in fixed or any(p[: len(path)] == path for p in fixed)
  ways = ['value'] * 3 + [
    'drop',
    'twice' if isinstance(holder, list) else 'key',
  ]
  way = data.draw(st.sampled_from(ways))
  if keep:
    return
  if way == 'value':
    holder[key] = data.draw(VALUES)
  elif way == 'drop':
    del holder[key]
  elif way == 'twice':
    holder.insert(key, copy.deepcopy(holder[key]))
  else:
    holder[data.draw(st.text(max_size=4))] = holder.pop(key)


def read(src):
  entries, early = src.index()
  kept, late = [], []
  for entry in entries:
    item = src.read(entry)
    kept += item.regions
    late += item.problems
    check_kept(item)
  for problem in early + late:
    assert problem.row.file and problem.reason and problem.expected
    assert problem.row.line or problem.row.field
    json.dumps(dataclasses.asdict(problem)).encode()
  return kept, early, late


def check_kept(item):
  """What is kept is sound."""
  ids = [region.id for _, region in item.regions]
  assert len(set(ids)) == len(ids)
  for _, region in item.regions:
    assert region.text.strip() and region.text.encode()
    if region.box is not None:
      x0, y0, x1, y1 = region.box
      assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
    if region.mask is not None:
      assert masks.decode(region.mask, item.size).shape == item.size
    if region.points is not None:
      assert np.isfinite(region.points).all()
    for values in (region.span_boxes, region.span_centers):
      assert np.isfinite(values).all() and len(values) == len(region.spans)


def fuzz(name, directory, count):
  form = FORMATS[name]
  images = formats.write_images(
    directory / 'images', [f'{i:012d}.jpg' for i in (7, 8)]
  )

  @settings(
    max_examples=count,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.data())
  def check(data):
    document = copy.deepcopy(form.document)
    for _ in range(data.draw(st.integers(1, 3))):
      mutate(data, document, FIXED[name])
    try:
      found = read(form.source(directory, images, document))
    except source.SourceError as e:
      # No reference, no line of the split is left at all.
      assert 'of split' in str(e), str(e)
    else:
      assert form.account(document, *found), found

  check()


def fuzz_bytes(name, directory, count):
  """Files with bytes flipped, cut and put in."""
  form = FORMATS[name]
  images = formats.write_images(
    directory / 'images', [f'{i:012d}.jpg' for i in (7, 8)]
  )
  src = form.source(directory, images, form.document)
  path = next(p for p in directory.iterdir() if 'json' in p.suffix)
  good = path.read_bytes()
  places = st.integers(0, len(good) - 1)

  @settings(
    max_examples=count,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(places, places, st.binary(max_size=4))
  def check(begin, length, new):
    bad = good[:begin] + new + good[begin + length % 7 :]
    path.write_bytes(bad[: -length or None] if length % 5 == 0 else bad)
    try:
      read(src)
    except source.SourceError as e:
      assert path.name in str(e) and 'expected' in str(e)

  check()


@pytest.mark.parametrize('name', FORMATS)
def test_good_documents_are_kept(name, tmp_path):
  form = FORMATS[name]
  images = formats.write_images(
    tmp_path / 'images', [f'{i:012d}.jpg' for i in (7, 8)]
  )
  kept, early, late = read(form.source(tmp_path, images, form.document))
  assert kept and not early and not late
  assert form.account(form.document, kept, early, late)
  assert not form.account(form.document, kept[1:], early, late)
  assert not any(math.isnan(v) for _, r in kept for v in r.span_weights)


@pytest.mark.parametrize('name', FORMATS)
def test_mutated_rows(name, tmp_path):
  fuzz(name, tmp_path, 25)


@pytest.mark.parametrize('name', FORMATS)
def test_mutated_bytes(name, tmp_path):
  fuzz_bytes(name, tmp_path, 25)


# Together with the next more than 10,000 cases.
@pytest.mark.slow
@pytest.mark.parametrize('name', FORMATS)
def test_many_mutated_rows(name, tmp_path):
  fuzz(name, tmp_path, 800)


@pytest.mark.slow
@pytest.mark.parametrize('name', FORMATS)
def test_many_mutated_bytes(name, tmp_path):
  fuzz_bytes(name, tmp_path, 400)
