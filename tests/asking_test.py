# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import asked
import numpy as np
import pytest
from PIL import Image

from pixel_llm import asking, main, masks
from pixel_llm.prediction import Prediction


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return str(asked.make(tmp_path_factory.mktemp('asked')))


@pytest.fixture
def images(tmp_path):
  """Three images, the last one damaged, and a file that is none."""
  folder = tmp_path / 'images'
  (folder / 'deep').mkdir(parents=True)
  for i, name in enumerate(('000007.png', 'deep/b.png', 'deep/c.png')):
    Image.fromarray(asked.picture(i)).save(folder / name)
  damaged = folder / 'deep' / 'c.png'
  damaged.write_bytes(damaged.read_bytes()[:400])
  (folder / 'notes.txt').write_text('no image')
  return folder


def segment(workdir, *arguments):
  expressions = ['--expression', 'a star', 'a 🐕']
  options = ['--workdir', workdir, '--batch-size', '2']
  return main.main(['segment', *map(str, arguments), *expressions, *options])


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_goes_on_where_it_was_interrupted(
  workdir, images, tmp_path, capsys
):
  log, coco = tmp_path / 'log.jsonl', tmp_path / 'coco.json'
  out = tmp_path / 'out'
  options = ['--jsonl', log, '--coco', coco, '--out', out, '--png']
  assert segment(workdir, images, *options) == 1
  said = capsys.readouterr()
  assert 'c.png: expected a JPEG' in said.err
  assert '1 of 3 images failed' in said.err and not said.out
  whole = log.read_bytes()
  first, second = rows(log)
  assert [r['image'] for r in (first, second)] == [
    str(images / '000007.png'),
    str(images / 'deep' / 'b.png'),
  ]
  answers = [Prediction.from_json(a) for a in first['answers']]
  assert [p.prompt for p in answers] == ['a star', 'a 🐕']
  found = json.loads(coco.read_text())
  assert [r['image_id'] for r in found] == [7, 7, 'b.png', 'b.png']
  assert sorted(p.name for p in out.rglob('*.png')) == ['000007.png', 'b.png']

  # Killed within the second line; the damaged image was put right since.
  log.write_bytes(whole[:-30])
  Image.fromarray(asked.picture(2)).save(images / 'deep' / 'c.png')
  (out / '000007.png').unlink()
  assert segment(workdir, images, *options) == 0
  assert log.read_bytes().startswith(whole)
  assert [pathlib.Path(r['image']).name for r in rows(log)] == [
    '000007.png', 'b.png', 'c.png',
  ]  # fmt: skip
  again = json.loads(coco.read_text())
  assert again[:4] == found and len(again) == 6
  # What was answered before is not asked again.
  assert sorted(p.name for p in out.rglob('*.png')) == ['b.png', 'c.png']


def test_answers_of_another_question_are_refused(workdir, images, tmp_path):
  log = tmp_path / 'log.jsonl'
  image = images / '000007.png'
  assert segment(workdir, image, '--jsonl', log) == 0
  before = log.read_bytes()
  other = ['segment', str(image), 'the ring', '--workdir', workdir]
  assert main.main([*other, '--jsonl', str(log)]) == 1
  assert log.read_bytes() == before
  log.write_text('{"image": 1}\n')
  assert segment(workdir, image, '--jsonl', log) == 1


@pytest.mark.parametrize('place', ['--point=-5,40', '--box=-1,0.5,30,40'])
def test_places_outside_of_the_image_are_told(workdir, images, capsys, place):
  arguments = ['caption-at', str(images / '000007.png'), *place.split('=')]
  assert main.main([*arguments, '--workdir', workdir]) == 1
  name, value = place[2:].split('=')
  said = capsys.readouterr().err
  assert f'{name} {value}: expected' in said and '<= 90' in said


def test_answers_go_to_devices_and_a_full_disk_is_told(
  workdir, images, tmp_path, capsys
):
  image = images / '000007.png'
  # Links, for a failure would put files in their places.
  full, null = tmp_path / 'full', tmp_path / 'null'
  full.symlink_to('/dev/full')
  null.symlink_to('/dev/null')
  assert segment(workdir, image, '--jsonl', full) == 1
  assert f'{full}: No space left' in capsys.readouterr().err
  for option in ('--jsonl', '--coco'):
    assert segment(workdir, image, option, null) == 0
    assert null.is_symlink() and not null.is_file()


def test_json_lines_and_words_for_people(workdir, images, capsys):
  image = images / 'deep' / 'b.png'
  assert segment(workdir, image, '--json') == 0
  lines = capsys.readouterr().out.splitlines()
  found = [Prediction.from_json(json.loads(line)) for line in lines]
  assert [p.kind for p in found] == ['segment'] * 2
  assert segment(workdir, str(images / '**' / 'b.*')) == 0
  assert capsys.readouterr().out.startswith(f'{image}: a star: ')


def test_files_folders_and_globs_are_images_once(images):
  found = asking.find_images(
    [f'{images}/*.png', str(images), str(images / 'notes.txt')]
  )
  assert list(found.values()) == [
    '000007.png', 'deep/b.png', 'deep/c.png', 'notes.txt',
  ]  # fmt: skip
  assert asking.find_images([f'{images}/**/b.*']) == {
    f'{images}/deep/b.png': 'deep/b.png'
  }


NOWHERE = ['--workdir', '/nowhere/at/all']


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['narrate', 'x/*.png'], 'x/*.png: expected images'),
    (['narrate', '.', '--out', 'file/out'], 'file/out: cannot be written'),
    (['narrate', 'a.png', '--jsonl', 'file/x'], 'file: cannot be written'),
    (['narrate', 'a.png', '--coco', 'sub'], 'sub: expected a file, found a fo'),
    (['narrate', 'a.png', '--out', 'x.gif'], 'ends in .png or .html'),
    (['narrate', 'a.png', 'b.png', '--out', 'x.png'], 'a folder for 2 images'),
    (['narrate', 'a.png', 'sub/a.png', '--out', 'o'], 'would both be'),
    (
      ['narrate', 'a.png', 'sub/a.png', '--coco', 'o'],
      'would both have the id',
    ),
    (['refer', 'a.png'], 'expected an expression behind the image'),
    (['refer', 'a.png', 'file'], 'file: expected an expression, found a file'),
    (['caption-at', 'a.png'], 'expected --box, --point or --mask'),
    (['caption-at', 'a.png', '--mask', 'file'], '--mask file: expected an ima'),
    (
      ['narrate', 'a.png', '--coco', 'o', '--image-ids', 'ids'],
      'ids: no id of a.png',
    ),
    (
      ['narrate', 'a.png', '--coco', 'o', '--image-ids', 'file'],
      'file: expected JSON of file names and ids',
    ),
    (['narrate', 'a.png', '--truth', 'ids'], 'expected --out too'),
    (
      ['narrate', 'a.png', '--out', 'o', '--truth', 'file'],
      'file:1: expected a line as --jsonl writes it',
    ),
    (
      ['narrate', 'a.png', '--out', 'o', '--truth', 'other'],
      'other: no truth of any image',
    ),
  ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(
  tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'ids').write_text('{"b.png": 3}')
  (tmp_path / 'other').write_text('{"image": "b.png", "answers": []}')
  for name in ('a.png', 'b.png', 'sub/a.png'):
    Image.fromarray(asked.picture()).save(tmp_path / name)
  assert main.main([*arguments, *NOWHERE]) == 1
  assert message in capsys.readouterr().err


def test_images_have_the_ids_that_are_given(tmp_path):
  images = {'x/a.png': 'a.png', 'x/d/a.png': 'd/a.png'}
  path = tmp_path / 'ids.json'
  path.write_text('{"a.png": 5, "d/a.png": 6}')
  assert list(asking._image_ids(str(path), images).values()) == [5, 6]
  listed = [{'file_name': n, 'id': i} for i, n in enumerate(images.values())]
  path.write_text(json.dumps({'images': listed}))
  assert list(asking._image_ids(str(path), images).values()) == [0, 1]
  name = 'COCO_val2014_000000391895.jpg'
  assert asking._image_ids(None, {'x': name}) == {'x': 391895}


def test_coco_reads_captions_and_boxes_apart():
  said = Prediction('narrate', 'x', (4, 6), 'a dog')
  assert asking.coco_result(said, 3) == {'image_id': 3, 'caption': 'a dog'}
  mask = masks.encode(np.eye(4, 6))
  drawn = Prediction(
    'segment', 'x', (4, 6), box_orig=(1, 1, 4, 3), prompt='ring',
    mask_orig=mask, confidence=0.25,
  )  # fmt: skip
  assert asking.coco_result(drawn, 'x') == {
    'image_id': 'x',
    'category_id': 1,
    'bbox': [1, 1, 3, 2],
    'score': 0.25,
    'segmentation': {'size': [4, 6], 'counts': mask.decode()},
    'expression': 'ring',
  }


def test_truth_is_found_by_the_names_of_images(tmp_path):
  said = Prediction('narrate', 'x', (4, 6), 'a dog')
  path = tmp_path / 'truth.jsonl'
  rows = [{'image': n, 'answers': [said.to_json()]} for n in ('a.png', 'z.png')]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  images = {'x/a.png': 'a.png', 'x/b.png': 'b.png'}
  assert asking._truths(str(path), images) == {'x/a.png': [said]}


def test_a_truth_of_another_size_costs_no_answer(
  workdir, images, tmp_path, capsys
):
  image = images / '000007.png'
  files = {n: tmp_path / n for n in ('log', 'truth', 'again', 'wrong')}
  assert segment(workdir, image, '--jsonl', files['log']) == 0
  row = rows(files['log'])[0]
  files['truth'].write_text(json.dumps(row))
  row['answers'][0]['image_size'] = {'width': 3, 'height': 4}
  row['answers'] = [a | {'mask': None} for a in row['answers']]
  files['wrong'].write_text(json.dumps(row))
  out = ['--out', tmp_path / 'a.html', '--truth']
  assert segment(workdir, image, *out, files['truth']) == 0
  assert 'ground truth' in (tmp_path / 'a.html').read_text()
  capsys.readouterr()
  again = ['--jsonl', files['again']]
  assert segment(workdir, image, *out, files['wrong'], *again) == 1
  assert '(height, width) (60, 90), its truth (4, 3)' in capsys.readouterr().err
  assert len(rows(files['again'])) == 1
  assert 'ground truth' not in (tmp_path / 'a.html').read_text()


def test_a_mask_is_what_is_not_zero_nor_transparent(tmp_path):
  index = np.zeros((3, 4), np.uint8)
  index[1, 2] = 1
  path = str(tmp_path / 'm.png')
  Image.fromarray(index).save(path)
  assert np.array_equal(asking._read_mask(path), index != 0)
  rgba = np.full((3, 4, 4), 255, np.uint8)
  rgba[..., 3] = index
  Image.fromarray(rgba).save(path)
  assert np.array_equal(asking._read_mask(path), index != 0)


def test_names_without_utf_8_become_json():
  assert json.loads(asking.to_json({'x': 'é'})) == {'x': 'é'}
  assert json.loads(asking.to_json(['\udc80']).encode()) == ['\udc80']
