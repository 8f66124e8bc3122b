# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Answers are the same however many are asked at once, and by whom."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import processes
import pytest
import scene_records
import tiny

from pixel_llm import image as image_lib
from pixel_llm import main, masks, sharding, tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import records, registry
from pixel_llm.model import pixel_llm, presence
from pixel_llm.tasks import task as task_lib
from pixel_llm.train import evaluate, experiment, loop, results, scoring

TASKS = ('scenes_narrate', 'scenes_refer')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = scene_records.experiment(tmp_path_factory.mktemp('data'))
  return dataclasses.replace(
    config,
    eval=dataclasses.replace(config.eval, targets=('refer/p_at_0.5 >= 0.99',)),
  )


@pytest.fixture(scope='module')
def params(config):
  return tiny.init(config.model)[1]


@pytest.fixture(scope='module')
def workdir(config, params, tmp_path_factory):
  """A run with checkpoints of random parameters, called 1 and 2."""
  workdir = tmp_path_factory.mktemp('run')
  trainer = loop.Trainer(config, str(workdir), lambda line: None)
  with trainer.checkpoints:
    zeros = jax.tree.map(
      lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
      trainer._abstract(),
    )
    at = jax.tree.map(
      lambda x, zero: jax.device_put(x, zero.sharding), params, zeros.params
    )
    for step in (1, 2):
      trainer.save(step, zeros.replace(params=at), last=True)
  return workdir


@pytest.fixture(scope='module')
def alone(config, params, tmp_path_factory):
  """Answers of one device that is asked about an image at a time."""
  folder = tmp_path_factory.mktemp('alone')
  ask(config, params, folder)
  return folder


def ask(config, params, folder, batch=1, regions=1, devices=1, progress=None):
  """Evaluates on so many devices, so much at a time."""
  loop.prepare_data(config)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
  evaluator = evaluate.Evaluator(
    shaped(config, batch, regions), pixel_llm.PixelLLM(config.model), mesh
  )
  dumps = evaluate.Dumps(str(folder), 1, log=pytest.fail)
  params = jax.device_put(params, sharding.replicated(mesh))
  return evaluator.run(params, progress, dumps)


def shaped(config, batch, regions):
  """So many are asked at a time."""
  tasks = {
    name: dataclasses.replace(shape, batch=batch, regions=regions)
    for name, shape in config.eval.tasks.items()
  }
  return dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, tasks=tasks)
  )


def assert_same(folder, other, tasks=TASKS):
  """All that was asked, answered and scored, but for rounding."""
  for name in tasks:
    left, left_metrics = scoring.score(str(folder / f'{name}.jsonl'))
    right, right_metrics = scoring.score(str(other / f'{name}.jsonl'))
    assert left.spec == right.spec
    assert len(left.rows) == len(right.rows) == left.spec['questions']
    for a, b in zip(left.rows, right.rows):
      for part in ('target', 'prediction'):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
          if isinstance(value, (np.ndarray, float)) and part == 'prediction':
            np.testing.assert_allclose(value, b[part][key], atol=1e-5)
          else:
            np.testing.assert_array_equal(value, b[part][key], strict=True)
      assert a['truth'] == b['truth']
      for said, also in zip(a['answer'], b['answer'], strict=True):
        assert said['text'] == also['text']
    assert left_metrics == pytest.approx(right_metrics, abs=1e-5)


@pytest.mark.parametrize(
  ('batch', 'regions', 'devices'), [(5, 3, 1), (8, 2, 8)]
)
def test_answers_do_not_depend_on_how_many_are_asked_at_once(
  config, params, alone, tmp_path, batch, regions, devices
):
  ask(config, params, tmp_path, batch, regions, devices)
  assert_same(tmp_path, alone)


def test_a_killed_evaluation_goes_on(config, params, alone, tmp_path):
  class Killed(Exception):
    pass

  def progress(name, done, total):
    assert total == len(scoring.read(str(alone / f'{name}.jsonl')).rows)
    if (name, done) == ('scenes_refer', 4):
      raise Killed

  with pytest.raises(Killed):
    ask(config, params, tmp_path, progress=progress)
  file = tmp_path / 'scenes_refer.jsonl'
  assert len(scoring.read(str(file)).rows) == 4
  # In the middle of a line.
  file.write_bytes(file.read_bytes()[:-9])
  seen = []
  found = ask(config, params, tmp_path, progress=lambda *x: seen.append(x))
  assert_same(tmp_path, alone)
  total = found['scenes_refer'].spec['questions']
  assert [x[:2] for x in seen] == [
    ('scenes_refer', n) for n in range(4, total + 1)
  ]
  assert found['scenes_narrate'].asked == 0
  assert found['scenes_refer'].asked == total - 3
  files = [(tmp_path / f'{n}.jsonl').read_bytes() for n in TASKS]
  assert files == [(alone / f'{n}.jsonl').read_bytes() for n in TASKS]


def test_the_best_and_the_worst_are_shown(config, params, alone):
  found = ask(config, params, alone)
  for name in TASKS:
    gallery = found[name].gallery
    dump = scoring.read(str(alone / f'{name}.jsonl'))
    entry = registry.task_of(name)
    ranks = sorted(scoring.ranks(dump.rows, entry.task))
    by = {
      why: [s.rank for s in gallery if s.why == why]
      for why in ('best', 'worst', 'random')
    }
    assert len({id(s) for s in gallery}) == len(gallery)
    assert by['best'] == ranks[::-1][: len(by['best'])]
    assert by['worst'] == ranks[: len(by['worst'])]
    assert len(by['best']) == min(2, len(ranks))
    assert len(gallery) == min(8, len(ranks))


def test_what_an_evaluation_leaves(config, workdir, tmp_path, capsys):
  """By the command line, of an older step and of the newest."""
  shutil.copytree(workdir, tmp_path / 'run')
  workdir = tmp_path / 'run'
  file = processes.write_config(tmp_path / 'c.py', shaped(config, 8, 2))
  verb = ['evaluate', '--workdir', str(workdir)]
  verb += ['--config', str(file)]
  assert main.main([*verb, '--step', '1', '--tasks', 'scenes_refer']) == 0
  said = capsys.readouterr().out
  assert 'refer/p_at_0.5 ' in said and 'MISSED: >= 0.99' in said
  assert 'narrate' not in said
  older = workdir / 'eval' / '1'
  assert sorted(p.name for p in older.iterdir()) == [
    'metrics.md', 'report.html', 'scenes_refer.jsonl', 'scores.json',
  ]  # fmt: skip
  assert not (workdir / 'metrics.json').exists()
  assert main.main([*verb, '--tasks', 'scenes_narrate']) == 0
  assert 'refer' not in capsys.readouterr().out.partition('report: ')[0]
  assert main.main([*verb, '--tasks', 'scenes_refer']) == 0
  first = capsys.readouterr().out
  assert 'refer/p_at_0.5 ' in first and 'narrate/point_l1 ' in first
  newest = workdir / 'eval' / '2'
  scores = json.loads((newest / 'scores.json').read_text())
  assert scores['step'] == 2 and list(scores['tasks']) == list(TASKS)
  spec = scores['tasks']['scenes_refer']['spec']
  manifest = records.read_manifest(config.data.records['scenes_refer'], 'val')
  assert manifest['digest'].startswith(spec['data']['digest'])
  assert spec['prompt'] == '{text}' and spec['decoding'] is None
  assert scores['tasks']['scenes_narrate']['spec']['decoding']['beams'] == 1
  digest = scores['tasks']['scenes_refer']['digest']
  assert digest == scoring.digest(spec)
  table = (workdir / 'metrics.md').read_text()
  assert digest in table and '| >= 0.99 | ✗ miss |' in table
  report = (workdir / 'report.html').read_text()
  assert digest in report and 'scenes_refer: worst by iou' in report
  metrics = results.read_metrics(str(workdir))
  assert metrics.pop('step') == 2
  # The run itself is as it was.
  assert experiment.load(str(workdir)) == config

  # Nothing is asked again, and scores need neither devices nor TensorFlow.
  stamp = (newest / 'scenes_refer.jsonl').stat().st_mtime_ns
  assert main.main(verb) == 0
  lines = lambda text: [x for x in text.splitlines() if 'step 2' not in x]
  assert lines(capsys.readouterr().out) == lines(first)
  assert (newest / 'scenes_refer.jsonl').stat().st_mtime_ns == stamp
  code = (
    'import sys; from pixel_llm import main; '
    f'code = main.main(["score", {str(newest)!r}, "--json"]); '
    'assert not {"tensorflow", "seqio"} & set(sys.modules); sys.exit(code)'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=processes.ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'none'},
  )
  assert out.returncode == 0, out.stderr
  again = [json.loads(line) for line in out.stdout.splitlines()]
  assert {row['task']: row['metrics'] for row in again} == {
    name: score['metrics'] for name, score in scores['tasks'].items()
  }
  assert {row['spec'] for row in again} == {
    score['digest'] for score in scores['tasks'].values()
  }
  assert main.main(['score', str(newest)]) == 0
  table = capsys.readouterr().out
  for name, value in metrics.items():
    assert f'{name:36} {value:8.4f}' in table


def test_what_does_not_fit_is_told(config, workdir, tmp_path, capsys):
  def said(changed, *options):
    file = processes.write_config(tmp_path / 'c.py', changed)
    verb = ['evaluate', '--workdir', str(workdir), '--config', str(file)]
    assert main.main([*verb, *options]) == 1
    return capsys.readouterr().err

  config = shaped(config, 8, 2)
  wider = dataclasses.replace(
    config.model, t5=dataclasses.replace(config.model.t5, mlp_dim=48)
  )
  assert 't5.mlp_dim: 24 -> 48' in said(
    dataclasses.replace(config, model=wider)
  )
  error = said(config, '--tasks', 'scenes_refer,scenes_segmnt')
  assert '--tasks scenes_segmnt: expected names of config eval.tasks' in error
  assert 'no checkpoint of step 7; there are 1, 2' in said(
    config, '--step', '7'
  )
  words = tmp_path / 'v.model'
  vocabulary_lib.train(['quite other words', 'here and there'] * 9, words, 50)
  data = dataclasses.replace(config.data, vocabulary=str(words))
  assert 'is not the vocabulary that step 2' in said(
    dataclasses.replace(config, data=data)
  )
  verb = ['evaluate', '--workdir', str(workdir), '--config.seed=3']
  assert main.main(verb) == 1
  assert 'expected a --config to change' in capsys.readouterr().err


def counts(targets, predictions):
  """For the test alone: how much there is of each."""
  return {
    'true': sum(len(t['boxes']) for t in targets),
    'found': sum(len(p['boxes']) for p in predictions),
  }


def test_things_are_found_and_captioned_and_drawn(tmp_path):
  """By a network with all parts, alone and on eight devices."""
  root = tmp_path / 'data'
  config = scene_records.experiment(root)
  records = {**config.data.records, 'scenes_regions': str(root / 'regions')}
  records['things'] = records['scenes_refer']
  names = ('scenes_dense', 'things_segment')
  shape = config.eval.tasks['scenes_refer']
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(
      tiny.full_config(), presence=presence.PresenceConfig()
    ),
    data=dataclasses.replace(config.data, records=records),
    eval=dataclasses.replace(
      config.eval,
      tasks=dict.fromkeys(names, shape),
      detection=experiment.DetectionConfig(most=4, score=0.0),
    ),
  )
  vocabulary = loop.prepare_data(config)
  registry.add_task(
    'scenes_dense',
    registry.RecordSource(records['scenes_regions']),
    dataclasses.replace(
      tasks.DENSE_CAPTION, metrics=(counts, *tasks.DENSE_CAPTION.metrics)
    ),
    replace=True,
  )
  model, params = tiny.init(config.model)
  alone, spread = tmp_path / 'alone', tmp_path / 'spread'
  found = ask(config, params, alone)
  ask(config, params, spread, 8, 3, 8)
  assert_same(alone, spread, names)

  dense = scoring.read(str(alone / 'scenes_dense.jsonl'))
  assert dense.spec['detection'] == {'most': 4, 'score': 0.0}
  examples = [
    registry.task_of('scenes_dense').sequence.example('val', i)
    for i in range(3)
  ]
  assert dense.spec['questions'] == len(examples)
  metrics = found['scenes_dense'].metrics
  assert metrics['true'] == sum(len(e.regions) for e in examples)
  for row, example in zip(dense.rows, examples):
    prediction = row['prediction']
    image, fit = image_lib.prepare(image_lib.decode(example.image, 'x'), 32)
    size = np.asarray(fit.size, np.int32)
    boxes, scores, valid = task_lib.find(model, params, image[None], size[None])
    assert np.all(np.diff(prediction['scores']) <= 0)
    count = min(4, int(np.sum(valid)))
    assert len(prediction['texts']) == count > 0
    np.testing.assert_allclose(prediction['boxes'], boxes[0][:count], atol=1e-5)
    np.testing.assert_allclose(
      prediction['scores'], scores[0][:count], atol=1e-5
    )
    assert [p['text'] for p in row['answer']] == prediction['texts']
    assert len(row['truth']) == len(example.regions)
  assert any(s.predictions for s in found['scenes_dense'].gallery)

  assert 0 <= metrics['detection_map'] <= 1
  assert {'p_at_0.5', 'ciou'} <= set(found['things_segment'].metrics)
  segments = scoring.read(str(alone / 'things_segment.jsonl'))
  for row in segments.rows:
    assert 0 < row['prediction']['presence'] < 1
    size = row['answer'][0]['image_size']
    height, width = size['height'], size['width']
    drawn = masks.decode(row['prediction']['mask'], (height, width))
    assert drawn.shape == (height, width)
    assert row['answer'][0]['confidence'] == pytest.approx(
      row['prediction']['presence'], abs=1e-4
    )
  assert vocabulary.size <= 64

  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  params = jax.device_put(params, sharding.replicated(mesh))
  seqios = scene_records.seqio_metrics(
    shaped(config, 2, 8), model, mesh, params, 'things_segment'
  )
  assert seqios == pytest.approx(found['things_segment'].metrics, rel=1e-5)


@pytest.mark.slow
def test_answers_do_not_depend_on_processes_nor_on_a_kill(
  config, workdir, params, alone, tmp_path
):
  """One process that is killed and goes on, and two."""
  file = processes.write_config(tmp_path / 'c.py', shaped(config, 2, 1))
  for count in (1, 2):
    run = tmp_path / str(count)
    shutil.copytree(workdir, run)
    port = processes.free_port()
    verb = ['-m', 'pixel_llm', 'evaluate', '--config', file, '--workdir', run]
    verb += ['--step', 1]
    arguments = [
      [*verb, *(processes.flags(count, i, port) if count > 1 else [])]
      for i in range(count)
    ]
    dump = run / 'eval' / '1' / 'scenes_refer.jsonl'

    def kill(running, dump=dump):
      while not dump.exists() or dump.read_bytes().count(b'\n') < 4:
        assert running[0].poll() is None
        time.sleep(0.01)
      running[0].kill()

    if count == 1:
      ((code, *_),) = processes.together(arguments, before=kill)
      left = len(scoring.read(str(dump)).rows)
      if code == -signal.SIGKILL:  # unless it was done by then
        assert left >= 3
    for code, out, err in processes.together(arguments, timeout=300):
      assert code == 0, out + err
    assert_same(run / 'eval' / '1', alone)
    assert 'refer/p_at_0.5' in (run / 'eval' / '1' / 'metrics.md').read_text()
