# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a check finds in sound files, and in files made wrong on purpose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import public_formats as formats
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from pixel_llm import example, main, masks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import build, check, records, scenes

SIZE = {'width': formats.WIDTH, 'height': formats.HEIGHT}
WORDS = [
  {'text': 'a red', 'points': [[6, 4], [12, 8]]},
  {'text': 'ring'},
  {'text': 'here', 'points': [[30, 20]]},
]


def line(name, *regions, **fields):
  return {'image': name, **SIZE, **fields, 'regions': list(regions)}


@pytest.fixture
def birds(tmp_path):
  """JSON lines of three images and their folder."""
  names = ['a.png', 'b.png', 'c.png']
  images = formats.write_images(tmp_path / 'images', names)
  path = formats.write_lines(
    tmp_path / 'birds.jsonl',
    [
      line(
        'a.png',
        {'id': 'a1', 'text': 'a red ring, here', 'words': WORDS},
        {'id': 'a2', 'text': 'a ring', 'box': [0, 0, 30, 20]},
        {'text': 'a ring', 'box': [0, 0, 30, 20], 'prompt': 'What is it?'},
        split='train',
      ),
      line(
        'b.png',
        {'text': 'blue', 'mask': [[0, 0, 60, 0, 60, 20, 0, 20]]},
        split='train',
      ),
      line('c.png', {'text': 'no', 'points': [[30, 20]]}, split='val'),
    ],
  )
  return path, images


@pytest.fixture
def built(birds, tmp_path):
  """A folder of their records, each split in one shard."""
  out = str(tmp_path / 'records')
  for split in ('train', 'val'):
    build.build('jsonl', *birds, out, split, strict=True, shards=1)
  return out


def test_statistics(birds, built):
  result = check.check([built])
  assert not result.reasons and list(result.sets) == [
    f'{built}, split train',
    f'{built}, split val',
  ]
  train, val = result.sets.values()
  assert train['images'] == 2 and train['texts'] == 4
  assert train['texts_an_image']['mean'] == 2
  spread = {'mean': 2.25, 'min': 1, 'p5': 1, 'median': 2, 'p95': 4, 'max': 4}
  assert train['words_a_text'] == spread
  assert train['words_with_a_place'] == round(3 / 9, 4)
  assert train['texts_with_box'] == 2 and train['same_text_and_box'] == 1
  assert train['box_share_of_image']['max'] == 0.25
  assert train['mask_share_of_image']['mean'] == 0.5
  assert train['texts_with_prompt'] == 1 and train['texts_with_mask'] == 1
  assert val['texts_with_points'] == 1
  # The same from JSON lines, with their images or without.
  for images in (None, birds[1]):
    lines = check.check([birds[0]], split='train', images=images)
    assert list(lines.sets.values()) == [train] and not lines.reasons
  both = check.check([birds[0]])
  assert both.sets[birds[0]]['images'] == 3


def test_tokens(built, tmp_path):
  path = str(tmp_path / 'v.model')
  vocabulary_lib.train(['a red ring, here', 'blue'], path, 20)
  vocabulary = vocabulary_lib.Vocabulary(path)
  result = check.check([built], split='train', vocabulary=path)
  found = result.sets[f'{built}, split train']
  longest = len(vocabulary.encode('a red ring, here')) + 1
  assert found['tokens_a_text']['max'] == longest < 40
  assert found['cut_at_40_tokens'] == 0
  change(built, lambda made: [with_region(made[0], text='ring ' * 60), made[1]])
  found = check.check([built], split='train', vocabulary=path)
  assert found.sets[f'{built}, split train']['cut_at_128_tokens'] == 0.25


def test_scenes_have_no_problem(tmp_path, capsys):
  scenes.generate(str(tmp_path / 's'), seed=1, train=6, val=3, workers=1)
  annotations = tmp_path / 's' / 'annotations'
  out = str(tmp_path / 'r')
  for split in ('train', 'val'):
    build.build(
      'localized_narratives',
      str(annotations / f'scenes_{split}_localized_narratives.jsonl'),
      str(tmp_path / 's' / 'images' / split),
      out,
      split,
    )
  verb = ['check-data', out, '--split', 'train']
  assert main.main([*verb, '--against', f'{out}:val']) == 0
  said = capsys.readouterr().out
  assert 'images                       6' in said
  assert said.endswith('No problem.\n')
  # Against itself everything leaks.
  target = tmp_path / 'problems.json'
  options = ['--against', out, '--most', '2', '--json', str(target)]
  assert main.main([*verb, *options]) == 1
  said = capsys.readouterr().out
  assert said.count('(leak)') == 2
  assert said.endswith('and 4 more.\n6 problems: leak 6.\n')
  written = json.loads(target.read_text())
  assert [p['record'] for p in written['problems'][:2]] == [0, 0]
  assert len(written['problems']) == 6
  assert written['sets'][f'{out}, split train']['problems'] == {'leak': 6}
  assert not list(tmp_path.glob('*.part'))


def test_leak_by_bytes_alone(birds, built, tmp_path):
  data = (pathlib.Path(birds[1]) / 'c.png').read_bytes()
  (pathlib.Path(birds[1]) / 'other.png').write_bytes(data)
  path = formats.write_lines(
    tmp_path / 'other.jsonl', ['', line('other.png', {'text': 'x'})]
  )
  against = [f'{built}:val']
  assert not check.check([path], against=against).reasons
  result = check.check([path], images=birds[1], against=against)
  assert str(result.problems[0]).startswith(
    f'{path}, line 2, field image: expected no image of --against, found '
    f'other.png, which is c.png of {built}, split val (sha256 '
  )
  other = check.check([path], images=birds[1], against=[f'{built}:train'])
  assert not other.reasons


# Shards.


def shard(built):
  return pathlib.Path(built) / 'train-00000-of-00001.array_record'


def problems(built, **options):
  """(record, region, field, reason) of each."""
  result = check.check([built], split='train', **options)
  assert {p.file for p in result.problems} <= {
    str(shard(built)),
    f'{built}/train.manifest.json',
  }
  return [(p.record, p.region, p.field, p.reason) for p in result.problems]


def test_missing_shard(built):
  shard(built).unlink()
  assert problems(built) == [(None, None, '', 'missing')]


def test_truncated_shard(built):
  data = shard(built).read_bytes()
  shard(built).write_bytes(data[: len(data) // 2])
  assert problems(built) == [
    (None, None, 'bytes', 'wrong_size'),
    (None, None, 'records', 'wrong_count'),
  ]


def test_changed_byte(built):
  data = bytearray(shard(built).read_bytes())
  # Within the pixels of the first image, which begins with its signature.
  data[data.index(b'\x89PNG') + 200] ^= 0xFF
  shard(built).write_bytes(data)
  assert problems(built) == [
    (None, None, 'sha256', 'wrong_digest'),
    (0, None, '', 'not_a_record'),
  ]


def manifest_of(built):
  path = pathlib.Path(built) / 'train.manifest.json'
  return path, json.loads(path.read_text())


def test_wrong_counts(built):
  path, manifest = manifest_of(built)
  manifest['regions'] += 1
  del manifest['utterances']
  path.write_text(json.dumps(manifest))
  result = check.check([built], split='train')
  assert [str(p) for p in result.problems] == [
    f'{path}, field regions: expected 4 as there are, found 5 (wrong_count).',
    f'{path}, field utterances: expected 3 as there are, found None '
    '(wrong_count).',
  ]


def test_a_shard_lists_more_than_it_has(built):
  path, manifest = manifest_of(built)
  manifest['shards'][0]['records'] = 3
  path.write_text(json.dumps(manifest))
  assert problems(built) == [(None, None, 'records', 'wrong_count')]


@pytest.mark.parametrize('shards', [None, [{'name': 'x'}], [3]])
def test_no_manifest_of_ours(built, shards, capsys):
  path, manifest = manifest_of(built)
  path.write_text(json.dumps({**manifest, 'shards': shards}))
  assert main.main(['check-data', built, '--split', 'train']) == 1
  assert 'field shards: expected' in capsys.readouterr().err


def change(built, edit):
  """Writes the records anew, with the manifest that they then have."""
  read = records.RecordSet(built, 'train')
  made = [example.from_bytes(read[i]) for i in range(len(read))]
  path = shard(built)
  writer = ArrayRecordWriter(str(path), records.WRITER_OPTIONS)
  for each in edit(made):
    row = each if isinstance(each, bytes) else example.to_bytes(each)
    writer.write(row)
  writer.close()
  manifest_path, manifest = manifest_of(built)
  data = path.read_bytes()
  manifest['shards'][0]['bytes'] = len(data)
  manifest['shards'][0]['sha256'] = hashlib.sha256(data).hexdigest()
  manifest_path.write_text(json.dumps(manifest))


def with_region(made, **values):
  first, *rest = made.regions
  first = dataclasses.replace(first, **values)
  return dataclasses.replace(made, regions=(first, *rest))


BOX = np.float32([0.1, 0.1, 0.5, 0.5])
NAN = np.float32([[0.5, np.nan]])
SPANS = np.int32([[0, 5], [6, 10], [12, 16]])


@pytest.mark.parametrize(
  'values,field,reason',
  [
    (dict(box=BOX + 0.6), 'box', 'outside'),
    (dict(box=BOX[[2, 1, 0, 3]]), 'box', 'bad_box'),
    (
      dict(points=np.float32([[0.5, 0.5], [0.5, -0.1]])),
      'points[1]',
      'outside',
    ),
    (dict(points=NAN), 'points[0]', 'outside'),
    (dict(mask=masks.encode(np.ones((9, 9)))), 'mask', 'bad_mask'),
    (dict(mask=b'\xff'), 'mask', 'bad_mask'),
    (dict(text=' ', spans=SPANS * 0 - 1), 'text', 'empty_text'),
    (dict(spans=SPANS[[1, 0, 2]]), 'spans[1]', 'bad_span'),
    (dict(spans=SPANS * [1, 2]), 'spans[1]', 'bad_span'),
    (dict(spans=SPANS + np.int32([[0], [0], [9]])), 'spans[2]', 'bad_span'),
    (dict(spans=SPANS[:2]), 'spans', 'wrong_count'),
    (dict(span_weights=np.float32([1, 0, 7])), 'span_weights[2]', 'outside'),
    (
      dict(span_boxes=np.float32([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 2, 1]])),
      'span_boxes[2]',
      'outside',
    ),
    (dict(span_centers=np.tile(NAN, (3, 1))), 'span_centers[0]', 'outside'),
  ],
)
def test_values_out_of_their_range(built, values, field, reason):
  change(built, lambda made: [with_region(made[0], **values), made[1]])
  assert (0, 'a1', field, reason) in problems(built)


def test_image_of_another_size(built):
  edit = lambda made: [dataclasses.replace(made[0], size=(60, 40)), made[1]]
  change(built, edit)
  assert problems(built) == [(0, None, 'size', 'image_size')]
  assert problems(built, decode=False) == problems(built)


def test_damaged_image(built):
  edit = lambda made: [
    dataclasses.replace(made[0], image=made[0].image[:-2000]), made[1]
  ]  # fmt: skip
  change(built, edit)
  assert problems(built) == [(0, None, 'image', 'image_unreadable')]
  assert problems(built, decode=False) == []


@pytest.mark.parametrize('row', [b'', b'\xc1', b'\x80', b'\x01', b'\x93abc'])
def test_no_record(built, row):
  change(built, lambda made: [made[0], row])
  assert problems(built) == [(1, None, '', 'not_a_record')]


@pytest.mark.parametrize(
  'values', [dict(spans=None), dict(mask='ab'), dict(prompt=3), dict(id=None)]
)
def test_values_of_another_type(built, values):
  change(built, lambda made: [made[0], with_region(made[1], **values)])
  assert problems(built) == [(1, None, '', 'not_a_record')]


def test_repeated_id(built):
  change(built, lambda made: [made[0], with_region(made[1], id='a2')])
  assert problems(built) == [(1, 'a2', 'id', 'duplicate')]
  result = check.check([built], split='train')
  assert str(result.problems[0]).endswith(
    f'expected an id of its own, not that of {shard(built)}, record 0, found '
    'a2 (duplicate).'
  )


def test_same_image_twice(built):
  edit = lambda made: [
    made[0], dataclasses.replace(made[1], image=made[0].image)
  ]  # fmt: skip
  change(built, edit)
  result = check.check([built], split='train')
  assert result.sets[f'{built}, split train']['same_image_bytes'] == 1
  assert not result.reasons


# JSON lines: what a build would say.


def test_lines_say_what_a_build_says(birds, tmp_path):
  path = formats.write_lines(
    tmp_path / 'bad.jsonl',
    [
      line('a.png', {'text': 'x', 'box': [0, 0, 90, 20]}, {'text': ''}),
      'not JSON',
      line('b.png', {'text': 'x', 'colour': 'red'}, {'text': 'y', 'id': 'q'}),
      line('c.png', {'text': 'x', 'id': 'q'}),
      line('none.png', {'text': 'x'}),
      line('b.png', {'text': 'x'}, width=61),
      line('c.png', {'text': 'good'}),
    ],
  )
  build.build('jsonl', path, birds[1], str(tmp_path / 'out'))
  report = (tmp_path / 'out' / 'train.report.jsonl').read_text().splitlines()
  out = str(tmp_path / 'found.json')
  result = check.check([path], images=birds[1], out=out)
  found = json.loads(pathlib.Path(out).read_text())['problems']
  key = lambda p: json.dumps([p[k] for k in json.loads(report[0])])
  assert sorted(map(key, found)) == sorted(key(json.loads(p)) for p in report)
  assert len(found) == len(report) == 7
  assert result.sets[path]['images'] == 2
  assert result.sets[path]['outside_the_image'] == 1


@pytest.mark.parametrize(
  'arguments,message',
  [
    (['nothing.jsonl'], 'nothing.jsonl: cannot be read'),
    (['.'], 'expected what `pixel-llm build` writes'),
    (['RECORDS', '--split', 'tst'], 'splits here: train, val'),
    (['RECORDS', '--against', 'RECORDS:tst'], 'splits here: train, val'),
    (['RECORDS', '--against', 'nowhere'], 'nowhere: expected what'),
    (['RECORDS', '--images', '.'], '--images: expected JSON lines'),
    (['RECORDS', '--vocabulary', 'no.model'], 'no.model: no such file'),
    (['BIRDS', '--split', 'tst'], 'found only train (2), val (1)'),
  ],
)
def test_what_cannot_be_checked(
  birds, built, tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  arguments = [
    a.replace('RECORDS', 'records').replace('BIRDS', 'birds.jsonl')
    for a in arguments
  ]
  assert main.main(['check-data', *arguments]) == 1
  out, err = capsys.readouterr()
  assert message in err and not out


def test_empty_lines(tmp_path):
  path = formats.write_lines(tmp_path / 'none.jsonl', [])
  assert check.check([path]).reasons == {'empty': 1}
