# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A file of answers: what is kept, what is damaged, what goes on."""

import json

import numpy as np
import pytest

from pixel_llm import tasks
from pixel_llm.train import scoring

CODE = {
  'version': '1',
  'source': 'a',
  'metrics': [scoring.name(m) for m in tasks.REFER.metrics],
}
SPEC = {
  'format': scoring.FORMAT,
  'task': 'things_refer',
  'capability': 'refer',
  'questions': 5,
  'model': {'params': 'b'},
  'code': CODE,
}


def answer(n):
  box = np.asarray([0.1 * n, 0.1, 0.1 * n + 0.3, 1 / 3], np.float32)
  target = {'texts': [f'ring {n}, né \ud800'], 'box': box, 'weight': 1.0}
  return {
    'target': target,
    'prediction': {'box': box + np.float32(0.05)},
    'answer': None,
    'truth': None,
  }


def written(path, count=5, spec=SPEC, replace=False, log=None):
  writer = scoring.Writer(path, spec, replace, log or pytest.fail)
  begun = writer.begun
  for n in range(begun, count):
    writer.add(answer(n))
  writer.close()
  return begun


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'eval' / '7' / 'things_refer.jsonl')


def test_reliability_is_of_those_bins_that_have_scores():
  sure = [0.95, 0.95, 0.95, 0.05]
  rows = [
    {'target': {'presence': float(i < 2)}, 'prediction': {'presence': p}}
    for i, p in enumerate(sure)
  ]
  found = scoring.reliability(rows, tasks.REFER)
  assert np.allclose(found, [(0.05, 0, 1), (0.95, 2 / 3, 3)])
  # Of a network without the head there is nothing to say.
  assert scoring.reliability([answer(0)], tasks.REFER) == []
  assert scoring.reliability([answer(0)], tasks.CAPTION_AT) == []


def test_values_come_back_bit_for_bit():
  random = np.random.default_rng(0)
  row = {
    'target': {
      'points': random.random((2, 3, 2, 2), np.float32) * 1e-3,
      'tokens': np.arange(6, dtype=np.int32).reshape(2, 3),
      'boxes': np.zeros((0, 4), np.float32),
      'mask': b'0\\a`~1',
      'texts': ['', 'a "ring"\n', '\ud800 né'],
      'weight': 0.25,
    },
    'prediction': {'box': np.asarray([np.nan, np.inf, 0, 1], np.float32)},
  }
  line = scoring.encode(row)
  assert '\n' not in line and json.loads(line)
  read = scoring.decode(line)
  for part, values in row.items():
    for name, value in values.items():
      np.testing.assert_array_equal(read[part][name], value, strict=True)
      assert type(read[part][name]) is type(value)
  assert scoring.encode(read) == line


def test_what_is_kept_is_scored(path):
  written(path)
  dump, metrics = scoring.score(path)
  assert dump.spec == SPEC and dump.whole
  rows = [answer(n) for n in range(5)]
  assert metrics == scoring.metrics(rows, tasks.REFER.metrics)
  assert 0.4 < metrics['mean_iou'] < 0.6
  ranks = scoring.ranks(dump.rows, tasks.REFER)
  assert np.mean(ranks) == pytest.approx(metrics['mean_iou'])
  found = {'a': ('refer', {'x': 1}), 'b': ('refer', {'x': 2}), 'c': ('d', {})}
  assert scoring.flat(found) == {'a/x': 1, 'b/x': 2}
  assert scoring.dumps([str(dump.path), path.rpartition('/')[0]]) == [path] * 2


@pytest.mark.parametrize('cut', [0, 1, 30])
def test_what_was_begun_goes_on(path, tmp_path, cut):
  written(path)
  whole = (tmp_path / 'eval' / '7' / 'things_refer.jsonl').read_bytes()
  lines = whole.splitlines(keepends=True)
  begun = b''.join(lines[:4])[: -cut or None]
  with open(path, 'wb') as file:
    file.write(begun)
  with pytest.raises(
    scoring.DumpError, match=rf'refer.jsonl:{5 - bool(cut)}: '
  ):
    scoring.score(path)
  assert written(path) == 3 - bool(cut)
  with open(path, 'rb') as file:
    assert file.read() == whole
  assert written(path) == 5


def test_damage_is_told_by_its_line(path):
  written(path)
  with open(path) as file:
    lines = file.read().splitlines()

  def said(*changed):
    with open(path, 'w') as file:
      file.write(''.join(f'{line}\n' for line in changed))
    with pytest.raises(scoring.DumpError) as e:
      scoring.read(path)
    with pytest.raises(scoring.DumpError):
      written(path)
    return str(e.value).removeprefix(path)

  wrong = lines[2].replace('ring', 'sing')
  assert said(*lines[:2], wrong, *lines[3:]).startswith(':3: ')
  assert 'crc32' in said(*lines[:2], wrong, *lines[3:])
  assert said(*lines[:3], lines[3][:-9], lines[4]).startswith(':4: ')
  assert said(*lines[:3], lines[4]).startswith(':4: ')
  assert 'question 2 of 5' in said(*lines[:3], lines[4])
  assert said(*lines, lines[1]).startswith(':7: ')
  assert said('').startswith(':1: ')
  assert said('{"a": 1}').startswith(':1: ')
  assert said(scoring.encode({'spec': {**SPEC, 'format': 0}})).endswith(
    'expected format 1, found 0.'
  )
  assert 'no ' in said(scoring.encode({'a': 1}))


def test_answers_to_another_evaluation_stay(path):
  written(path, 3)
  other = {**SPEC, 'model': {'params': 'c'}}
  said = r"refer.jsonl:1: .*--force(?s:.*)model.params: 'b' -> 'c'"
  with pytest.raises(scoring.DumpError, match=said):
    written(path, spec=other)
  assert len(scoring.read(path).rows) == 3
  assert written(path, spec=other, replace=True) == 0
  assert scoring.read(path).spec == other


def test_answers_of_other_code_are_told(path):
  written(path, 3)
  newer = {**SPEC, 'code': {**CODE, 'source': 'z'}}
  lines = []
  # Half by one code and half by another would be neither's.
  assert written(path, spec=newer, log=lines.append) == 0
  assert written(path, spec=SPEC, log=lines.append) == 5
  assert scoring.read(path).spec == newer
  assert 'begins again' in lines[0] and '--force' in lines[1]


def test_a_metric_that_is_not_there_is_told(path):
  for name in ('pixel_llm.tasks.refer:none', 'nowhere:x'):
    written(path, spec={**SPEC, 'code': {'metrics': [name]}}, replace=True)
    with pytest.raises(scoring.DumpError, match=rf':1: metric {name!r}'):
      scoring.score(path)


def test_a_folder_without_a_dump(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no \*.jsonl there'):
    scoring.dumps([str(tmp_path)])
