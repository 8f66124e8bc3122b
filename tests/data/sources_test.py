# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Public formats become regions; bad rows say file, line, field and why."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import pickle

import numpy as np
import public_formats as formats
import pytest

from pixel_llm import masks
from pixel_llm.data.sources import source
from pixel_llm.data.sources.coco import Captions, RegionCaptions
from pixel_llm.data.sources.images import Images, image_names
from pixel_llm.data.sources.jsonl import Jsonl
from pixel_llm.data.sources.llava import Llava
from pixel_llm.data.sources.localized_narratives import LocalizedNarratives
from pixel_llm.data.sources.refcoco import (
  RefCoco,
  RefCocoMdetr,
  RefCocoUninext,
  read_refs,
)
from pixel_llm.data.sources.visual_genome import VisualGenome
from pixel_llm.example import Region


@pytest.fixture
def images(tmp_path):
  names = [f'{i:012d}.jpg' for i in (7, 8, 9)]
  return formats.write_images(tmp_path / 'images', names)


def read_all(src):
  """Items by image id, and all problems in order."""
  entries, problems = src.index()
  items = {}
  for entry in entries:
    items[entry.image_id] = src.read(entry)
    problems += items[entry.image_id].problems
  return entries, items, problems


# Localized Narratives.


def narratives(tmp_path, images, rows, name='ln.jsonl'):
  path = formats.write_lines(tmp_path / name, rows)
  return LocalizedNarratives([path], images, 'val', {})


def test_narrative(tmp_path, images):
  entries, items, problems = read_all(
    narratives(tmp_path, images, [formats.narrative()])
  )
  assert not problems
  (entry,) = entries
  assert entry.image_id == '7'
  assert os.path.basename(entry.image or '') == '000000000007.jpg'
  ((row, region),) = items['7'].regions
  assert (row.line, region.id) == (1, '7/1')
  said = [region.text[b:e] for b, e in region.spans]
  assert said == ['In this', 'image', 'a red', 'ring']
  np.testing.assert_array_equal(region.span_weights, [1, 1, 1, 1])
  np.testing.assert_allclose(
    region.span_boxes,
    [
      [0.1, 0.2, 0.1, 0.2],
      [0.1, 0.2, 0.5, 0.2],
      [0.5, 0.2, 0.5, 0.6],
      [0.5, 0.6, 1, 0.6],
    ],
    atol=1e-6,
  )
  np.testing.assert_allclose(
    region.span_centers,
    [[0.1, 0.2], [0.3, 0.2], [0.5, 0.4], [1, 0.6]],
    atol=1e-6,
  )


def test_narratives_are_grouped_by_image(tmp_path, images):
  rows = [
    formats.narrative('8', 1),
    '',
    formats.narrative('7', 1),
    formats.narrative('8', 2, caption='Another, with "image_id": "9" in it'),
  ]
  entries, items, problems = read_all(narratives(tmp_path, images, rows))
  assert not problems
  assert [e.image_id for e in entries] == ['8', '7']
  assert [r.id for _, r in items['8'].regions] == ['8/1', '8/2']
  assert [row.line for row, _ in items['8'].regions] == [1, 4]


def test_compressed_narratives(tmp_path, images):
  rows = [formats.narrative(str(i % 3 + 7), i) for i in range(6)]
  plain = narratives(tmp_path, images, rows)
  data = (tmp_path / 'ln.jsonl').read_bytes()
  packed = tmp_path / 'ln.jsonl.gz'
  packed.write_bytes(gzip.compress(data))
  _, items, problems = read_all(
    LocalizedNarratives([str(packed)], images, 'val', {})
  )
  assert not problems
  _, expected, _ = read_all(plain)
  for image_id, item in expected.items():
    got = [r for _, r in items[image_id].regions]
    assert [r.id for r in got] == [r.id for _, r in item.regions]
  packed.write_bytes(packed.read_bytes()[:-30])
  with pytest.raises(source.SourceError, match=r'ln\.jsonl\.gz: cannot be'):
    LocalizedNarratives([str(packed)], images, 'val', {}).index()


def timed(**changes):
  """timed_caption whose second utterance is changed."""
  rows = formats.narrative()['timed_caption']
  rows[1] = {k: v for k, v in (rows[1] | changes).items() if v is not None}
  return rows


def traced(**changes):
  rows = formats.narrative()['traces']
  rows[1][0] = rows[1][0] | changes
  return rows


BAD_NARRATIVES = {
  'not json': ('{"image_id": "7", "capt', 'not_json', '', '"capt'),
  'not an object': ('[1, 2]', 'not_an_object', '', 'list [1, 2]'),
  'no image id': (
    {'image_id': None},
    'missing_field',
    'image_id',
    'only annotator_id, caption',
  ),
  'no annotator': ({'annotator_id': None}, 'missing_field', 'annotator_id', ''),
  'boolean id': ({'annotator_id': True}, 'not_a_string', 'annotator_id', ''),
  'no traces': ({'traces': None}, 'missing_field', 'traces', ''),
  'empty traces': ({'traces': []}, 'no_traces', 'traces', 'list []'),
  'empty segment': ({'traces': [[]]}, 'no_traces', 'traces', ''),
  'traces no list': ({'traces': 'none'}, 'not_a_list', 'traces', "str 'none'"),
  'flat traces': (
    {'traces': [{'x': 0, 'y': 0, 't': 0}]},
    'not_a_list',
    'traces[0]',
    'dict',
  ),
  'trace NaN': (
    {'traces': traced(x=float('nan'))},
    'not_finite',
    'traces[1][0].x',
    'float nan',
  ),
  'trace inf': (
    {'traces': traced(t=float('inf'))},
    'not_finite',
    'traces[1][0].t',
    'inf',
  ),
  'trace huge': (
    {'traces': traced(t=10**400)},
    'not_finite',
    'traces[1][0].t',
    'int 1000',
  ),
  'trace string': (
    {'traces': traced(y='0.5')},
    'not_a_number',
    'traces[1][0].y',
    "str '0.5'",
  ),
  'trace without t': (
    {'traces': [[{'x': 0, 'y': 0}]]},
    'missing_field',
    'traces[0][0].t',
    'only x, y',
  ),
  'point no object': ({'traces': [[3]]}, 'not_an_object', 'traces[0][0]', ''),
  'empty caption': ({'caption': ' '}, 'empty_caption', 'caption', "str ' '"),
  'caption number': ({'caption': 3}, 'not_a_string', 'caption', 'int 3'),
  'caption surrogate': (
    {'caption': 'a \ud800'},
    'not_unicode',
    'caption',
    r"str 'a \ud800'",
  ),
  'captions only': (
    {'timed_caption': None},
    'missing_field',
    'timed_caption',
    '',
  ),
  'no utterances': (
    {'timed_caption': []},
    'no_utterances',
    'timed_caption',
    '',
  ),
  'unsorted': (
    {'timed_caption': timed(start_time=1.5, end_time=1.6)},
    'unsorted_times',
    'timed_caption[2].start_time',
    '1.0',
  ),
  'ends before it starts': (
    {'timed_caption': timed(end_time=-1)},
    'unsorted_times',
    'timed_caption[1].end_time',
    '-1',
  ),
  'time string': (
    {'timed_caption': timed(start_time='0')},
    'not_a_number',
    'timed_caption[1].start_time',
    "str '0'",
  ),
  'time null': (
    {'timed_caption': [{'utterance': 'a', 'start_time': None, 'end_time': 1}]},
    'not_a_number',
    'timed_caption[0].start_time',
    'NoneType',
  ),
  'time NaN': (
    {'timed_caption': timed(end_time=float('nan'))},
    'not_finite',
    'timed_caption[1].end_time',
    'nan',
  ),
  'no utterance': (
    {'timed_caption': timed(utterance=None)},
    'missing_field',
    'timed_caption[1].utterance',
    'only end_time, start_time',
  ),
  'utterance number': (
    {'timed_caption': timed(utterance=4)},
    'not_a_string',
    'timed_caption[1].utterance',
    'int 4',
  ),
  'video': (
    {'video_id': 'clip', 'actor_narratives': [], 'traces': None},
    'video_narrative',
    'actor_narratives',
    'Video Localized Narratives',
  ),
}


@pytest.mark.parametrize('name', BAD_NARRATIVES)
def test_bad_narratives(tmp_path, images, name):
  row, reason, field, found = BAD_NARRATIVES[name]
  if isinstance(row, dict):
    row = formats.narrative(**row)
  rows = [formats.narrative('8'), row, formats.narrative('9')]
  _, items, problems = read_all(narratives(tmp_path, images, rows))
  (problem,) = problems
  assert (problem.reason, problem.row.field) == (reason, field)
  assert problem.row.line == 2
  assert found in problem.found
  message = str(problem)
  assert message.startswith(f'{tmp_path}/ln.jsonl, line 2')
  assert 'expected' in message and 'found' in message and '\n' not in message
  assert sum(len(item.regions) for item in items.values()) == 2


def test_invalid_utf8_and_byte_order_mark(tmp_path, images):
  src = narratives(tmp_path, images, [])
  good = json.dumps(formats.narrative()).encode()
  bad = good.replace(b'red ring', b'r\xe9d ring')
  pathlib.Path(tmp_path / 'ln.jsonl').write_bytes(
    b'\xef\xbb\xbf' + good + b'\r\n' + bad
  )
  _, items, problems = read_all(src)
  assert [p.reason for p in problems] == ['not_json']
  assert [r.id for _, r in items['7'].regions] == ['7/1']


def test_duplicate_narrative(tmp_path, images):
  rows = [formats.narrative(), formats.narrative(caption='Again')]
  _, items, (problem,) = read_all(narratives(tmp_path, images, rows))
  assert (problem.reason, problem.row.line) == ('duplicate', 2)
  assert len(items['7'].regions) == 1


def test_silent_utterance_has_no_place(tmp_path, images):
  rows = [formats.narrative(timed_caption=timed(utterance=' '))]
  _, items, _ = read_all(narratives(tmp_path, images, rows))
  ((_, region),) = items['7'].regions
  np.testing.assert_array_equal(region.span_weights, [1, 0, 1, 1])
  np.testing.assert_array_equal(region.spans[1], [-1, -1])


# Image files.


@pytest.mark.parametrize(
  'image_id,name',
  [
    ('137576', '000000137576.jpg'),
    ('137576', 'train2014/COCO_train2014_000000137576.jpg'),
    ('137576', 'COCO_val2014_000000137576.jpg'),
    ('1000092795', 'flickr/1000092795.jpg'),
    ('ADE_val_00000175', 'validation/b/ADE_val_00000175.png'),
    ('0a1b', '0a1b.webp'),
    ('12', '12.JPG'),
  ],
)
def test_image_conventions(tmp_path, image_id, name):
  directory = formats.write_images(tmp_path, [name.replace('JPG', 'jpg')])
  if name.endswith('JPG'):
    (tmp_path / '12.jpg').rename(tmp_path / '12.JPG')
  found, missing = Images(directory).find(*image_names(image_id))
  assert found == str(tmp_path / name) and missing == ''


def test_image_missing_and_ambiguous(tmp_path):
  directory = formats.write_images(tmp_path, ['train/1.jpg', 'val/1.jpg'])
  images = Images(directory)
  found, missing = images.find('2', '000000000002')
  assert found is None and missing.startswith('none of 2, 000000000002 in')
  found, missing = images.find('1')
  assert found is None and '2 files of that name' in missing
  assert images.find('val/1.jpg')[0] == str(tmp_path / 'val' / '1.jpg')


def test_no_image_directory(tmp_path):
  with pytest.raises(source.SourceError, match=r'nowhere: expected a dir'):
    Images(str(tmp_path / 'nowhere'))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(source.SourceError, match=r'empty: .* found none'):
    Images(str(tmp_path / 'empty'))


# RefCOCO.


def refcoco(tmp_path, images, split='train', **files):
  refs, instances = formats.write_refcoco(tmp_path, **files)
  return RefCoco([refs], images, split, {'instances': instances})


def test_refcoco(tmp_path, images):
  entries, items, problems = read_all(refcoco(tmp_path, images))
  assert not problems
  assert [e.image_id for e in entries] == ['7']
  item = items['7']
  assert item.size == (formats.HEIGHT, formats.WIDTH)
  regions = [r for _, r in item.regions]
  assert [r.id for r in regions] == ['1', '2', '4']
  assert regions[0].text == 'The ring, number 1.'
  np.testing.assert_allclose(regions[0].box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  # Reaches over the edge: cut off there.
  np.testing.assert_allclose(regions[2].box, [0.8, 0, 1, 1], atol=1e-6)
  entries, _, _ = read_all(refcoco(tmp_path, images, split='val'))
  assert [e.image_id for e in entries] == ['8']


def test_refcoco_numpy_scalars_and_old_protocols(tmp_path, images):
  ref = formats.reference(np.int64(7), np.int32(70), [np.int64(5)])
  for protocol in (0, 2, 4):
    src = refcoco(tmp_path, images)
    (tmp_path / 'refs(test).p').write_bytes(pickle.dumps([ref], protocol))
    _, items, problems = read_all(src)
    assert not problems
    assert items['7'].regions[0][1].id == '5'


def test_refcoco_unknown_split(tmp_path, images):
  with pytest.raises(
    source.SourceError, match=r"split 'testA', found only train \(2\), val \(1"
  ):
    refcoco(tmp_path, images, split='testA').index()


class Malicious:
  def __reduce__(self):
    return os.mkdir, ('made-by-pickle',)


def test_refcoco_pickle_runs_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'refs.p'
  path.write_bytes(pickle.dumps([Malicious()]))
  with pytest.raises(source.SourceError, match=r'mkdir is no plain value'):
    read_refs(str(path))
  assert not (tmp_path / 'made-by-pickle').exists()


@pytest.mark.parametrize(
  'data', [b'', b'{"json": 1}', pickle.dumps([1, 2])[:-4]]
)
def test_refcoco_damaged_pickle(tmp_path, data):
  (tmp_path / 'refs.p').write_bytes(data)
  with pytest.raises(source.SourceError, match=r'refs\.p: .*REFER pickle'):
    read_refs(str(tmp_path / 'refs.p'))
  with pytest.raises(source.SourceError, match=r'gone\.p: cannot be read'):
    read_refs(str(tmp_path / 'gone.p'))


@pytest.mark.parametrize(
  'change,reason,field',
  [
    ({'ann_id': 99}, 'no_annotation', '[1].ann_id'),
    ({'image_id': 99}, 'no_image_meta', '[1].image_id'),
    ({'image_id': 8}, 'wrong_image', 'annotations[0].image_id'),
    ({'sentences': 'a ring'}, 'not_a_list', '[1].sentences'),
    (
      {'sentences': [{'sent_id': 1, 'raw': '  '}]},
      'empty_text',
      '[1].sentences[0].raw',
    ),
    ({'sentences': [{'sent_id': 1}]}, 'missing_field', '[1].sentences[0].sent'),
    (
      {'sentences': [{'sent_id': 3, 'sent': 'a'}]},
      'duplicate',
      '[1].sentences[0].sent_id',
    ),
  ],
)
def test_bad_references(tmp_path, images, change, reason, field):
  refs = [
    formats.reference(8, 80, [3]),
    formats.reference(7, 70, [1]) | change,
  ]
  _, items, (problem,) = read_all(refcoco(tmp_path, images, refs=refs))
  assert (problem.reason, problem.row.field) == (reason, field)
  assert len(items['8'].regions) == 1


@pytest.mark.parametrize(
  'bbox,reason',
  [
    ([0, 0, 0, 9], 'bad_box'),
    ([90, 0, 9, 9], 'bad_box'),
    ([0, 0, 9], 'bad_box'),
    (None, 'not_a_list'),
    ([0, 0, 9, '9'], 'not_a_number'),
    ([0, 0, 9, float('nan')], 'not_finite'),
  ],
)
def test_bad_boxes(tmp_path, images, bbox, reason):
  instances = {
    'images': [formats.coco_image(7)],
    'annotations': [{'id': 70, 'image_id': 7, 'bbox': bbox}],
  }
  src = refcoco(
    tmp_path,
    images,
    refs=[formats.reference(7, 70, [1])],
    instances=instances,
  )
  _, _, (problem,) = read_all(src)
  assert problem.reason == reason
  assert problem.row.file.endswith('instances.json')
  assert problem.row.field == 'annotations[0].bbox'


def test_bad_instances(tmp_path, images):
  src = refcoco(tmp_path, images, instances={'images': []})
  with pytest.raises(source.SourceError, match=r"a list 'annotations'"):
    src.index()
  (tmp_path / 'instances.json').write_text('{"images": [')
  with pytest.raises(
    source.SourceError, match=r'instances\.json, byte 12: exp'
  ):
    src.index()
  instances = {
    'images': [formats.coco_image(7, height='40')],
    'annotations': [{'id': 70, 'image_id': 7, 'bbox': [0, 0, 9, 9]}],
  }
  refs = [formats.reference(7, 70, [1])]
  src = refcoco(tmp_path, images, refs=refs, instances=instances)
  _, _, (problem,) = read_all(src)
  assert problem.row.field == 'images[0].height'


# Masks.


def pixels(region):
  return masks.decode(region.mask, (formats.HEIGHT, formats.WIDTH))


def test_refcoco_masks(tmp_path, images):
  """Polygons, run lengths and compressed run lengths are the same."""
  inside = np.zeros((formats.HEIGHT, formats.WIDTH), bool)
  inside[4:24, 6:36] = True
  rle = masks.encode(inside)
  size = list(inside.shape)
  forms = [
    formats.SQUARE,
    {'size': size, 'counts': masks.unpack(rle).tolist()},
    {'size': size, 'counts': rle.decode()},
    None,
    [],
  ]
  things = [
    {'id': i, 'image_id': 7, 'bbox': [6, 4, 30, 20], 'segmentation': form}
    for i, form in enumerate(forms)
  ]
  src = refcoco(
    tmp_path,
    images,
    refs=[formats.reference(7, i, [i]) for i in range(len(forms))],
    instances=formats.coco_file([formats.coco_image(7)], things),
  )
  _, items, problems = read_all(src)
  assert not problems
  regions = [r for _, r in items['7'].regions]
  for region in regions[:3]:
    np.testing.assert_array_equal(pixels(region), inside)
  assert [r.mask for r in regions[3:]] == [None, None]


@pytest.mark.parametrize(
  'mask,reason,field',
  [
    ('polygon', 'not_a_list', ''),
    ([1, 2, 3, 4, 5, 6], 'not_a_list', '[0]'),
    ([[1, 2, 3, 4]], 'bad_mask', '[0]'),
    ([[1, 2, 3, 4, 5, 6, 7]], 'bad_mask', '[0]'),
    ([[1, 2, 3, 4, 5, '6']], 'not_a_number', '[0]'),
    ([formats.SQUARE[0], [1, 2, 3, 4, 5, 1e9]], 'bad_mask', '[1]'),
    ([[1, 2, 3, 4, 5, float('nan')]], 'not_finite', '[0]'),
    ({'size': [60, 40], 'counts': [2400]}, 'bad_mask', 'size'),
    ({'size': [40, 60]}, 'missing_field', 'counts'),
    ({'size': [40, 60], 'counts': [2399]}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': [2401, -1]}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': [2.4e3]}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': [10**30]}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': 'é~'}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': 7}, 'bad_mask', 'counts'),
    ({'size': [40, 60], 'counts': None}, 'bad_mask', 'counts'),
  ],
)
def test_bad_masks(tmp_path, images, mask, reason, field):
  thing = {'id': 70, 'image_id': 7, 'bbox': [6, 4, 30, 20]}
  src = refcoco(
    tmp_path,
    images,
    refs=[formats.reference(7, 70, [1, 2])],
    instances=formats.coco_file(
      [formats.coco_image(7)], [thing | {'segmentation': mask}]
    ),
  )
  _, items, problems = read_all(src)
  assert items['7'].regions == ()
  assert [p.reason for p in problems] == [reason] * 2  # both sentences
  where = f'annotations[0].segmentation.{field}'.rstrip('.')
  assert problems[0].row.field == where.replace('.[', '[')


# RefCOCO of others.


def mdetr(tmp_path, images, pairs):
  values = formats.coco_file(*map(list, zip(*pairs, strict=True)))
  path = formats.write_json(tmp_path / 'finetune_refcoco_train.json', values)
  return RefCocoMdetr([path], images, 'train', {})


def test_mdetr(tmp_path, images):
  pairs = [
    formats.mdetr(1),
    formats.mdetr(2, image_id=8, original_id='8'),
    formats.mdetr(3, raw='The RING,  3', refexp_id=301),
    formats.mdetr(4, segmentation=formats.SQUARE),
  ]
  entries, items, problems = read_all(mdetr(tmp_path, images, pairs))
  assert not problems
  assert [e.image_id for e in entries] == ['7', '8']
  assert os.path.basename(entries[0].image or '') == '000000000007.jpg'
  regions = [r for _, r in items['7'].regions]
  assert [(r.id, r.text) for r in regions] == [
    ('1', 'the ring number 1'),
    ('301', 'The RING, 3'),
    ('4', 'the ring number 4'),
  ]
  np.testing.assert_allclose(regions[0].box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  assert regions[0].mask is None and pixels(regions[2]).sum() == 600
  assert items['7'].size == (formats.HEIGHT, formats.WIDTH)


@pytest.mark.parametrize(
  'changes,reason,field',
  [
    ({'caption': ' '}, 'empty_text', 'images[1].caption'),
    ({'bbox': [0, 0, 0, 1]}, 'bad_box', 'annotations[1].bbox'),
    ({'segmentation': [[1]]}, 'bad_mask', 'annotations[1].segmentation[0]'),
    ({'height': 30}, 'wrong_image', 'annotations[1]'),
    ({'refexp_id': 1}, 'duplicate', 'annotations[1].id'),
  ],
)
def test_bad_mdetr(tmp_path, images, changes, reason, field):
  pairs = [formats.mdetr(1), formats.mdetr(2, **changes)]
  _, items, (problem,) = read_all(mdetr(tmp_path, images, pairs))
  assert (problem.reason, problem.row.field) == (reason, field)
  assert len(items['7'].regions) == 1


def test_mdetr_with_two_boxes_for_an_expression(tmp_path, images):
  image, annotation = formats.mdetr(1)
  path = formats.write_json(
    tmp_path / 'a.json',
    formats.coco_file([image], [annotation, annotation | {'id': 2}]),
  )
  _, _, (problem,) = read_all(RefCocoMdetr([path], images, 'train', {}))
  assert (problem.reason, problem.row.field) == (
    'duplicate',
    'annotations[1].id',
  )


def uninext(tmp_path, images, things, split='train'):
  path = formats.write_json(
    tmp_path / 'instances.json', {'train': things, 'val': [formats.uninext(8)]}
  )
  return RefCocoUninext([path], images, split, {})


def test_uninext(tmp_path):
  images = formats.write_images(
    tmp_path / 'images', ['COCO_train2014_000000000007.jpg', '7.jpg', '8.jpg']
  )
  things = [formats.uninext(7), formats.uninext(7, data_source='vg')]
  entries, items, problems = read_all(uninext(tmp_path, images, things))
  assert not problems
  found = [(e.image_id, os.path.basename(e.image or '')) for e in entries]
  assert found == [
    ('7', 'COCO_train2014_000000000007.jpg'),
    ('vg/7', '7.jpg'),
  ]
  regions = [r for _, r in items['7'].regions]
  assert [(r.id, r.text) for r in regions] == [
    ('train/0/0', 'the ring'),
    ('train/0/1', 'red one'),
  ]
  np.testing.assert_allclose(regions[0].box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  assert pixels(regions[0]).sum() == 600
  with pytest.raises(
    source.SourceError, match=r"split 'testA', found only train \(2\), val \(1"
  ):
    uninext(tmp_path, images, things, 'testA').index()


@pytest.mark.parametrize(
  'changes,reasons,field',
  [
    ({'bbox': [1]}, ['bad_box'] * 2, 'train[1].bbox'),
    ({'mask': 4}, ['not_a_list'] * 2, 'train[1].mask'),
    ({'expressions': ['a', 3]}, ['not_a_string'], 'train[1].expressions[1]'),
    ({'expressions': None}, ['not_a_list'], 'train[1].expressions'),
    ({'width': 0}, ['bad_size'], 'train[1].width'),
    ({'height': 30}, ['wrong_image'], 'train[1]'),
    ({'data_source': 'gqa'}, ['unknown_source'], 'train[1].data_source'),
  ],
)
def test_bad_uninext(tmp_path, images, changes, reasons, field):
  things = [formats.uninext(), formats.uninext(**changes)]
  _, items, problems = read_all(uninext(tmp_path, images, things))
  assert [p.reason for p in problems] == reasons
  assert problems[0].row.field == field
  assert len(items['7'].regions) >= 2


# COCO.


def test_coco_captions(tmp_path, images):
  """An image may come after its captions, or not at all, or have none."""
  captions = [
    {'id': 1, 'image_id': 7, 'caption': ' A ring \n on  a table.'},
    {'id': 2, 'image_id': 8, 'caption': 'Zwei Ringe, größer'},
    {'id': 3, 'image_id': 99, 'caption': 'of an image that is not listed'},
    {'id': 4, 'image_id': 7, 'caption': 'Another.'},
    {'id': 4, 'image_id': 7, 'caption': 'The same id.'},
    {'id': 5, 'image_id': 7, 'caption': ' '},
    {'id': 6, 'image_id': 10, 'caption': 'of an image without a size'},
  ]
  values = {
    'annotations': captions,
    'type': 'captions',
    'images': [
      formats.coco_image(8, file_name='000000000008.jpg'),
      formats.coco_image(7),
      formats.coco_image(9),
      {'id': 10, 'file_name': '10.jpg'},
    ],
  }
  path = tmp_path / 'captions_train2017.json'
  path.write_text(json.dumps(values, ensure_ascii=False), encoding='utf-8-sig')
  entries, items, problems = read_all(Captions([str(path)], images, 'a', {}))
  assert [e.image_id for e in entries] == ['8', '7']
  texts = [(r.id, r.text, r.box) for _, r in items['7'].regions]
  assert texts == [('1', 'A ring on a table.', None), ('4', 'Another.', None)]
  assert items['8'].regions[0][1].text == 'Zwei Ringe, größer'
  assert [(p.reason, p.row.field) for p in problems] == [
    ('duplicate', 'annotations[4].id'),
    ('missing_field', 'images[3].height'),
    ('no_image_meta', 'annotations[2].image_id'),
    ('no_image_meta', 'annotations[6].image_id'),
    ('empty_caption', 'annotations[5].caption'),
  ]


def test_captions_that_are_no_utf8(tmp_path, images):
  captions = [
    {'id': 1, 'image_id': 7, 'caption': 'a café'},
    {'id': 2, 'image_id': 7, 'caption': 'a ring'},
  ]
  values = formats.coco_file([formats.coco_image(7)], captions)
  path = tmp_path / 'a.json'
  path.write_bytes(json.dumps(values, ensure_ascii=False).encode('latin-1'))
  _, items, (problem,) = read_all(Captions([str(path)], images, 'a', {}))
  assert (problem.reason, problem.row.field) == (
    'not_unicode',
    'annotations[0].caption',
  )
  assert [r.id for _, r in items['7'].regions] == ['2']


@pytest.mark.parametrize(
  'text,message',
  [
    ('[]', "JSON object with '{' here, found '\\['"),
    ('{"images": []}', "a list 'annotations', found only these lists: images"),
    ('{"images": {}, "annotations": []}', "a list 'images'"),
    ('{"images": [], "annotations": [{}', 'the end of the file'),
    ('{"images": [], "annotations": [{"a"', 'expected a JSON value'),
    ('{"images": [], ', 'expected a JSON value'),
    ('{3: []}', 'a JSON object, found 3'),
    ('', 'the end of the file'),
  ],
)
def test_files_that_are_not_of_coco(tmp_path, images, text, message):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(source.SourceError, match=message) as e:
    Captions([str(tmp_path / 'a.json')], images, 'a', {}).index()
  assert str(e.value).startswith(str(tmp_path / 'a.json'))


@pytest.mark.parametrize('chunk', [3, 64])
def test_elements_cut_by_the_window(tmp_path, images, monkeypatch, chunk):
  monkeypatch.setattr(source, '_CHUNK', chunk)
  captions = [
    {'id': i, 'image_id': 7, 'caption': f'größer {i}'} for i in range(9)
  ]
  values = formats.coco_file([formats.coco_image(7)], captions)
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(values, ensure_ascii=False, indent=1))
  _, items, problems = read_all(Captions([str(path)], images, 'a', {}))
  assert not problems
  assert [r.text for _, r in items['7'].regions] == [
    c['caption'] for c in captions
  ]


def test_numbers_cut_by_the_window(tmp_path, monkeypatch):
  monkeypatch.setattr(source, '_CHUNK', 1)
  (tmp_path / 'a.json').write_text('{"a": [123, 4.5e+2], "n": 678, "b": [[9]]}')
  found = list(source.read_members(str(tmp_path / 'a.json')))
  assert [(name, i, v) for name, i, _, _, v in found] == [
    ('a', 0, 123),
    ('a', 1, 450),
    ('b', 0, [9]),
  ]
  (tmp_path / 'a.json').write_text('[-0.5e-1]')
  ((offset, length, value),) = source.read_array(str(tmp_path / 'a.json'))
  assert (offset, length, value) == (1, 7, -0.05)


# LLaVA.


def llava(tmp_path, images, rows):
  return Llava(
    [formats.write_json(tmp_path / 'llava_150k.json', rows)],
    images,
    'train',
    {},
  )


def test_llava(tmp_path, images):
  rows = [
    formats.conversation(),
    formats.conversation('000000000008.jpg', id=None),
    formats.conversation(
      ['000000000007.jpg'],
      conversations=[
        {'from': 'human', 'value': 'Where?\n<image>'},
        {'from': 'gpt', 'value': 'There.'},
      ],
    ),
  ]
  entries, items, problems = read_all(llava(tmp_path, images, rows))
  assert not problems
  assert [e.image_id for e in entries] == ['7', '8']
  assert os.path.basename(entries[0].image or '') == '000000000007.jpg'
  found = [(r.id, r.prompt, r.text) for _, r in items['7'].regions]
  assert found == [
    ('llava_150k/0/1', 'What is this?', 'A red ring.'),
    ('llava_150k/0/3', 'Is it large?', 'It is.\n\nVery.'),
    ('llava_150k/2/1', 'Where?', 'There.'),
  ]


def test_llava_images_of_many_sets(tmp_path, monkeypatch):
  """A bare number of another set isn't taken for the image."""
  monkeypatch.chdir(tmp_path)
  names = ['vg/VG_100K/2.jpg', 'coco/000000000002.jpg', 'gqa/images/3.jpg']
  images = formats.write_images('all', names)
  rows = [
    formats.conversation(name)
    for name in ('vg/VG_100K/2.jpg', 'coco/train2017/000000000002.jpg')
  ]
  rows.append(formats.conversation('vg/VG_100K/3.jpg'))
  entries, _, _ = read_all(llava(tmp_path, images, rows))
  found = [e.image and e.image.removeprefix(images + '/') for e in entries]
  assert found == ['vg/VG_100K/2.jpg', 'coco/000000000002.jpg', None]
  entries, _, _ = read_all(llava(tmp_path, 'all/vg/VG_100K', rows[:1]))
  assert entries[0].image == 'all/vg/VG_100K/2.jpg'


TURN = {'from': 'gpt', 'value': 'It is.'}


@pytest.mark.parametrize(
  'changes,reason,field,kept',
  [
    ({'image': None}, 'no_image', 'image', 0),
    ({'image': ['7.jpg', '8.jpg']}, 'several_images', 'image', 0),
    ({'image': ''}, 'empty_text', 'image', 0),
    ({'conversations': None}, 'missing_field', 'conversations', 0),
    ({'conversations': {}}, 'not_a_list', 'conversations', 0),
    ({'conversations': [TURN]}, 'no_question', 'conversations[0]', 0),
    (
      {'conversations': [{'from': 'human', 'value': 'Why?'}]},
      'no_answer',
      'conversations[0]',
      0,
    ),
    (
      {
        'conversations': [
          {'from': 'human', 'value': 'Why?'},
          {'from': 'human', 'value': 'How?'},
          TURN,
        ]
      },
      'no_answer',
      'conversations[0]',
      1,
    ),
    (
      {
        'conversations': [
          {'from': 'system', 'value': 'Be kind.'},
          {'from': 'human', 'value': 'How?'},
          TURN,
        ]
      },
      'unknown_speaker',
      'conversations[0].from',
      1,
    ),
    (
      {
        'conversations': [
          {'from': 'human', 'value': 'How?'},
          {'from': 'gpt', 'value': ' '},
        ]
      },
      'empty_text',
      'conversations[1].value',
      0,
    ),
  ],
)
def test_bad_conversations(tmp_path, images, changes, reason, field, kept):
  rows = [formats.conversation(), formats.conversation(**changes)]
  _, items, (problem,) = read_all(llava(tmp_path, images, rows))
  assert (problem.reason, problem.row.field) == (reason, f'[1].{field}')
  assert len(items['7'].regions) == 2 + kept


# Our own lines.


def lines(tmp_path, images, rows, split='train', name='own.jsonl'):
  return Jsonl([formats.write_lines(tmp_path / name, rows)], images, split, {})


def own(image='000000000007.jpg', regions=None, **changes):
  row = {
    'image': image,
    'width': formats.WIDTH,
    'height': formats.HEIGHT,
    'regions': [{'text': 'a ring'}] if regions is None else regions,
  }
  return row | changes


def test_jsonl(tmp_path, images):
  regions = [
    {
      'id': 3,
      'text': ' a red ring ',
      'prompt': 'What?',
      'box': [6, 4, 36, 24],
      'points': [[30, 20], [60.5, 40]],
      'mask': formats.SQUARE,
      'words': [
        {'text': 'a'},
        {'text': 'red ring', 'points': [[6, 4], [30, 20]]},
      ],
    },
    {'text': 'nothing else', 'id': None, 'box': None, 'words': None},
  ]
  rows = [
    own(regions=regions),
    own('000000000008.jpg', split='val'),
    own('000000000009', image_id='nine', split='train'),
    own(regions=[{'text': 'on another line'}]),
  ]
  entries, items, problems = read_all(lines(tmp_path, images, rows))
  assert not problems
  assert [e.image_id for e in entries] == ['000000000007.jpg', 'nine']
  assert os.path.basename(entries[1].image or '') == '000000000009.jpg'
  first, second, third = [r for _, r in items['000000000007.jpg'].regions]
  assert (first.id, first.text, first.prompt) == ('3', 'a red ring', 'What?')
  np.testing.assert_allclose(first.box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  np.testing.assert_allclose(first.points, [[0.5, 0.5], [1, 1]])
  assert pixels(first).sum() == 600
  np.testing.assert_array_equal(first.spans, [[0, 1], [2, 10]])
  np.testing.assert_array_equal(first.span_weights, [0, 1])
  np.testing.assert_allclose(
    first.span_boxes[1], [0.1, 0.1, 0.5, 0.5], atol=1e-6
  )
  np.testing.assert_allclose(first.span_centers[1], [0.3, 0.3], atol=1e-6)
  assert (second.id, second.box, second.mask, second.points) == (
    '000000000007.jpg/1',
    None,
    None,
    None,
  )
  assert third.id == '000000000007.jpg/2'


BAD_LINES = {
  'not json': ('{"image"', 'not_json', ''),
  'a list': ('[]', 'not_an_object', ''),
  'no image': ({'image': ''}, 'empty_text', 'image'),
  'typing error': ({'boxes': []}, 'unknown_field', 'boxes'),
  'no size': ({'width': None}, 'not_a_number', 'width'),
  'half pixels': ({'width': 1.5}, 'bad_size', 'width'),
  'split number': ({'split': 1}, 'not_a_string', 'split'),
  'no list': ({'regions': {}}, 'not_a_list', 'regions'),
  'no regions': ({'regions': []}, 'no_regions', 'regions'),
  'other size': (
    {'image': '000000000008.jpg', 'width': 40},
    'wrong_image',
    'image',
  ),
}


@pytest.mark.parametrize('name', BAD_LINES)
def test_bad_lines(tmp_path, images, name):
  row, reason, field = BAD_LINES[name]
  if isinstance(row, dict):
    row = own() | row
  rows = [own('000000000008.jpg'), row, own('000000000009.jpg')]
  _, items, (problem,) = read_all(lines(tmp_path, images, rows))
  assert (problem.reason, problem.row.line) == (reason, 2)
  assert problem.row.field == field
  assert sum(len(item.regions) for item in items.values()) == 2


BAD_OWN_REGIONS = {
  'no object': (3, 'not_an_object', ''),
  'no text': ({'text': None}, 'not_a_string', 'text'),
  'typing error': ({'bbox': [1, 2, 3, 4]}, 'unknown_field', 'bbox'),
  'prompt': ({'prompt': ''}, 'empty_text', 'prompt'),
  'id': ({'id': 1.5}, 'not_a_string', 'id'),
  'id again': ({'id': 'first'}, 'duplicate', 'id'),
  'width and height': ({'box': [30, 20, 6, 4]}, 'bad_box', 'box'),
  'no area': ({'box': [30, 20, 30, 24]}, 'bad_box', 'box'),
  'three numbers': ({'box': [30, 20, 36]}, 'bad_box', 'box'),
  'box outside': ({'box': [30, 20, 70, 24]}, 'outside', 'box[1]'),
  'box text': ({'box': [30, 20, '36', 24]}, 'not_a_number', 'box[1]'),
  'point': ({'points': [[1, 2], [3]]}, 'bad_point', 'points[1]'),
  'no point': ({'points': []}, 'bad_point', 'points'),
  'flat points': ({'points': [1, 2]}, 'not_a_list', 'points[0]'),
  'point outside': ({'points': [[50, 50]]}, 'outside', 'points[0]'),
  'mask': ({'mask': [[1, 2]]}, 'bad_mask', 'mask[0]'),
  'absent': ({'absent': 1}, 'not_a_boolean', 'absent'),
  'absent here': (
    {'absent': True, 'points': [[1, 2]]},
    'absent_with_place',
    'absent',
  ),
  'words': ({'words': 'a'}, 'not_a_list', 'words'),
  'word': ({'words': [{'word': 'a'}]}, 'unknown_field', 'words[0].word'),
  'word not there': (
    {'words': [{'text': 'ring'}, {'text': 'a'}]},
    'word_not_in_text',
    'words[1].text',
  ),
}


@pytest.mark.parametrize('name', BAD_OWN_REGIONS)
def test_bad_regions_of_lines(tmp_path, images, name):
  region, reason, field = BAD_OWN_REGIONS[name]
  if isinstance(region, dict):
    region = {'text': 'a ring'} | region
  row = own(regions=[{'text': 'good', 'id': 'first'}, region, {'text': 'also'}])
  _, items, (problem,) = read_all(lines(tmp_path, images, [row]))
  where = 'regions[1]' + (f'.{field}' if field else '')
  assert (problem.reason, problem.row.field) == (reason, where)
  assert str(problem).startswith(f'{tmp_path}/own.jsonl, line 1, field regi')
  regions = [r for _, r in items['000000000007.jpg'].regions]
  assert [r.id for r in regions] == ['first', '000000000007.jpg/2']


def test_lines_of_other_splits_only(tmp_path, images):
  rows = [own(split='val'), own(split='val'), own(split='dev')]
  with pytest.raises(
    source.SourceError, match=r"split 'train', found only dev \(1\), val \(2\)"
  ):
    lines(tmp_path, images, rows).index()


# Visual Genome.


def visual_genome(tmp_path, images, **files):
  regions, image_data = formats.write_visual_genome(tmp_path, **files)
  return VisualGenome([regions], images, 'train', {'image_data': image_data})


def test_visual_genome(tmp_path, images):
  entries, items, problems = read_all(visual_genome(tmp_path, images))
  assert [e.image_id for e in entries] == ['7', '8', '9']
  regions = [r for _, r in items['7'].regions]
  assert [(r.id, r.text) for r in regions] == [('1', 'a ring'), ('2', 'a ring')]
  np.testing.assert_allclose(regions[0].box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  assert items['7'].size == (formats.HEIGHT, formats.WIDTH)
  (problem,) = problems  # image 9 is not in image_data.json
  assert (problem.reason, problem.row.field) == (
    'no_image_meta',
    '[2].regions[0]',
  )


def test_visual_genome_folder_from_url(tmp_path):
  images = formats.write_images(
    tmp_path / 'vg', ['VG_100K/7.jpg', 'VG_100K_2/7.jpg', 'VG_100K/8.jpg']
  )
  entries, _, _ = read_all(visual_genome(tmp_path, images))
  assert (entries[0].image or '').endswith('/VG_100K/7.jpg')


@pytest.mark.parametrize(
  'change,reason,field',
  [
    ({'phrase': ' \n'}, 'empty_phrase', 'phrase'),
    ({'phrase': None}, 'not_a_string', 'phrase'),
    ({'width': 0}, 'bad_box', ''),
    ({'x': '6'}, 'not_a_number', ''),
    ({'y': float('nan')}, 'not_finite', ''),
    ({'region_id': 1}, 'duplicate', 'region_id'),
  ],
)
def test_bad_regions(tmp_path, images, change, reason, field):
  regions = [formats.vg_region(1), formats.vg_region(2) | change]
  descriptions = [{'id': 7, 'regions': regions}, {'id': 8, 'regions': []}]
  src = visual_genome(tmp_path, images, descriptions=descriptions)
  _, items, (problem,) = read_all(src)
  where = '[0].regions[1]' + ('.' + field if field else '')
  assert (problem.reason, problem.row.field) == (reason, where)
  assert len(items['7'].regions) == 1


def test_visual_genome_without_id_and_with_bad_meta(tmp_path, images):
  src = visual_genome(
    tmp_path,
    images,
    descriptions=[{'regions': [formats.vg_region(1)]}, {'id': 8}, 5],
    image_data=[
      {'image_id': 7, 'height': 40, 'width': 60},
      {'image_id': 8, 'height': 40},
    ],
  )
  entries, items, problems = read_all(src)
  assert [e.image_id for e in entries] == ['7']
  assert len(items['7'].regions) == 1
  assert [(p.reason, p.row.field) for p in problems] == [
    ('missing_field', '[1].width'),
    ('missing_field', '[1].regions'),
    ('not_an_object', '[2]'),
  ]


def test_densecap_splits(tmp_path, images):
  """An image that is in no split is in none, not in train."""
  src = visual_genome(tmp_path, images)
  splits = formats.write_json(
    tmp_path / 'densecap_splits.json', {'train': [8], 'val': [], 'test': ['7']}
  )

  def of(split, splits=splits):
    extras = {'image_data': str(tmp_path / 'image_data.json'), 'splits': splits}
    return VisualGenome(src._annotations, images, split, extras)

  assert [e.image_id for e in of('test').index()[0]] == ['7']
  assert [e.image_id for e in of('train').index()[0]] == ['8']
  with pytest.raises(source.SourceError, match=r"list 'dev' of image ids, fou"):
    of('dev').index()
  for values, message in (
    ({'train': [7], 'test': [7]}, 'every image in one split, found 7 in train'),
    ({'train': [7.5]}, r'field train\[0\]: expected a string'),
    ([7], "a JSON object with '{' here"),
  ):
    path = formats.write_json(tmp_path / 'bad.json', values)
    with pytest.raises(source.SourceError, match=message):
      of('train', path).index()


def test_visual_genome_of_grit(tmp_path, images):
  regions = [
    {'id': 5, 'image_id': 7, 'bbox': [6, 4, 30, 20], 'caption': 'a\n ring '},
    {'id': 6, 'image_id': 7, 'bbox': [6, 4, 0, 20], 'caption': 'a ring'},
  ]
  values = formats.coco_file(
    [{'id': 7, 'file_name': '7.jpg', 'height': 40, 'width': 60}], regions
  )
  path = formats.write_json(tmp_path / 'test.json', values)
  entries, items, (problem,) = read_all(
    RegionCaptions([path], images, 'test', {})
  )
  assert os.path.basename(entries[0].image or '') == '000000000007.jpg'
  ((_, region),) = items['7'].regions
  assert (region.id, region.text) == ('5', 'a ring')
  np.testing.assert_allclose(region.box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  assert (problem.reason, problem.row.field) == (
    'bad_box',
    'annotations[1].bbox',
  )


# Arrays larger than memory.


@pytest.mark.parametrize('indent', [None, 2])
def test_read_array_gives_the_bytes_of_each_element(
  tmp_path, monkeypatch, indent
):
  monkeypatch.setattr(source, '_CHUNK', 7)  # every element is cut
  values = [{'é': 'a "quoted" ] , text', 'n': i * 1.5} for i in range(20)]
  values += ['日本', 12345, None, [], {'deep': [[1, 2], {'x': '\\'}]}]
  path = tmp_path / 'a.json'
  text = json.dumps(values, indent=indent, ensure_ascii=False)
  path.write_text(text, encoding='utf-8')
  data = path.read_bytes()
  pieces = list(source.read_array(str(path)))
  assert [json.loads(data[o : o + n]) for o, n, _ in pieces] == values
  assert [v['n'] for _, _, v in pieces[:20]] == [v['n'] for v in values[:20]]
  path.write_text(' [ ] ')
  assert list(source.read_array(str(path))) == []


@pytest.mark.parametrize(
  'text', ['', '{"a": 1}', '[{"a": 1}', '[{"a": 1', '[1 2]', '[1, oops]']
)
def test_read_array_refuses_what_is_none(tmp_path, text):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(source.SourceError, match=r'a\.json, byte \d+: expected'):
    list(source.read_array(str(tmp_path / 'a.json')))


def test_row_error_survives_a_process_boundary():
  row = source.Row('a.jsonl', 3, 'caption')
  error = source.RowError(row, 'empty_caption', 'a text', '')
  again = pickle.loads(pickle.dumps(error))
  assert again.problem == error.problem and str(again) == str(error)


def test_regions_hold_no_sentinels(tmp_path, images):
  _, items, _ = read_all(narratives(tmp_path, images, [formats.narrative()]))
  ((_, region),) = items['7'].regions
  assert isinstance(region, Region) and region.box is None
