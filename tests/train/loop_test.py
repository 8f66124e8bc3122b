# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The whole path at the smallest size: files to metrics, picture and answer."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from pixel_llm import config as config_lib
from pixel_llm import image as image_lib
from pixel_llm import pictures
from pixel_llm import predictor as predictor_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import manager
from pixel_llm.data import build, scenes
from pixel_llm.train import experiment, loop, optimizer, results

STEPS = 8


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp('run')
  scenes.generate(str(root / 's'), seed=1, train=6, val=3, workers=1)
  annotations = root / 's' / 'annotations'
  for split in ('train', 'val'):
    images = str(root / 's' / 'images' / split)
    build.build(
      'localized_narratives',
      str(annotations / f'scenes_{split}_localized_narratives.jsonl'),
      images,
      str(root / 'narratives'),
      split=split,
    )
    build.build(
      'refcoco',
      str(annotations / 'refer' / 'refs(scenes).p'),
      images,
      str(root / 'refer'),
      split=split,
      instances=str(annotations / 'refer' / 'instances.json'),
    )
  texts = [
    json.loads(line)['caption']
    for line in (annotations / 'scenes_train_localized_narratives.jsonl')
    .read_text()
    .splitlines()
  ]
  path = str(root / 'v.model')
  vocabulary_lib.train(texts, path, 64)
  size = {'batch': 8, 'regions': 2, 'context': 6, 'length': 12}
  return experiment.ExperimentConfig(
    model=tiny.model_config(64),
    data=experiment.DataConfig(
      records={
        'scenes_narratives': str(root / 'narratives'),
        'scenes_refer': str(root / 'refer'),
      },
      vocabulary=path,
      extra_ids=0,
      image=32,
      streams={
        'narrate': experiment.StreamConfig('scenes_narrate', **size),
        'refer': experiment.StreamConfig('scenes_refer', **size),
      },
    ),
    optimizer=optimizer.OptimizerConfig(
      warmup_steps=2, freeze=('sam/positions',)
    ),
    checkpoint=manager.CheckpointConfig(keep_last=10),
    loop=experiment.LoopConfig(steps=STEPS, log_every=4, checkpoint_every=4),
    eval=experiment.EvalConfig(
      tasks={
        'scenes_narrate': experiment.EvalTaskConfig(**size),
        'scenes_refer': experiment.EvalTaskConfig(**size),
      },
      targets=('narrate/point_l1 <= 0.5',),
    ),
  )


def make(config, workdir, lines=None):
  log = (lines if lines is not None else []).append
  return loop.Trainer(config, str(workdir), log, jax.devices()[:1])


def train(config, workdir, lines=None):
  trainer = make(config, workdir, lines)
  with trainer.checkpoints:
    return trainer.train()


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  lines = []
  return workdir, train(config, workdir, lines), lines


def assert_equal(left, right):
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_line_an_interval_and_curves(finished):
  workdir, _, lines = finished
  steps = [line for line in lines if line.startswith('step ')]
  assert len(steps) == STEPS // 4
  assert 'examples/s' in steps[0] and 'left' in steps[0]
  rows = json.loads((workdir / 'curves.json').read_text())
  assert [r['step'] for r in rows] == [4, 8]
  assert {'narrate/word_loss', 'refer/point_l1'} <= set(rows[0])
  assert list(workdir.glob('events.out.tfevents*'))


def test_a_restart_equals_no_interruption_bit_for_bit(
  config, finished, tmp_path, monkeypatch
):
  class Killed(Exception):
    pass

  real = loop.Trainer.save

  def save_and_die(self, step, state):
    real(self, step, state)
    self.checkpoints.wait()
    if step == 4:
      raise Killed

  monkeypatch.setattr(loop.Trainer, 'save', save_and_die)
  with pytest.raises(Killed):
    train(config, tmp_path)
  monkeypatch.undo()
  lines = []
  state = train(config, tmp_path, lines)
  assert 'resuming at step 4' in lines
  assert_equal(state, finished[1])


def test_frozen_parameters_do_not_move(config, finished, tmp_path):
  trainer = make(config, tmp_path)
  with trainer.checkpoints:
    fresh = trainer.restore_or_create()
  end = finished[1].params
  np.testing.assert_array_equal(
    fresh.params['sam']['positions'], end['sam']['positions']
  )
  assert np.any(
    np.asarray(fresh.params['eva']['positions'])
    != np.asarray(end['eva']['positions'])
  )


def test_a_signal_saves_and_says_so(config, tmp_path, monkeypatch):
  real = loop._line

  def ask(*args):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGTERM)
    return real(*args)

  monkeypatch.setattr(loop, '_line', ask)
  with pytest.raises(loop.Preempted, match=r'SIGTERM at step 4 of 8'):
    train(config, tmp_path)
  reader = manager.CheckpointManager(tmp_path / 'checkpoints', read_only=True)
  with reader:
    assert reader.latest_step() == 4


def test_finished_training_is_not_done_again(config, finished):
  workdir, state, _ = finished
  lines = []
  again = train(config, workdir, lines)
  assert f'training is complete: step {STEPS} of {STEPS}' in lines
  assert_equal(again.params, state.params)


def test_a_workdir_of_another_config_is_refused(config, finished):
  other = dataclasses.replace(config, seed=5)
  with pytest.raises(config_lib.ConfigError, match=r'seed: 0 -> 5'):
    train(other, finished[0])


def test_another_vocabulary_is_refused(config, finished, tmp_path):
  path = tmp_path / 'other.model'
  vocabulary_lib.train(['quite other words', 'here and there'] * 9, path, 50)
  data = dataclasses.replace(config.data, vocabulary=str(path))
  other = dataclasses.replace(config, data=data)
  with pytest.raises(config_lib.ConfigError, match=r'data.vocabulary'):
    train(other, finished[0])


def test_a_vocabulary_larger_than_the_embedding_is_refused(config, tmp_path):
  data = dataclasses.replace(config.data, extra_ids=100)
  with pytest.raises(config_lib.ConfigError, match=r'more than the 64 rows'):
    train(dataclasses.replace(config, data=data), tmp_path)


@pytest.fixture(scope='module')
def evaluated(config, finished):
  workdir, _, _ = finished
  trainer = make(config, workdir)
  with trainer.checkpoints:
    step, params = trainer.restore_params()
    return workdir, step, trainer.evaluate(params, step)


def test_metrics_and_their_baselines(evaluated, config):
  workdir, step, found = evaluated
  metrics = results.flat_metrics(found)
  assert {
    'narrate/point_l1',
    'narrate/point_l1_center',
    'narrate/object_precision',
    'narrate/cider_d',
    'narrate/cider_d_baseline',
    'narrate/bleu_4',
    'refer/p_at_0.5',
    'refer/p_at_0.5_baseline',
  } <= set(metrics)
  assert all(np.isfinite(v) for v in metrics.values())
  results.write_metrics(str(workdir), step, metrics)
  assert results.read_metrics(str(workdir))['step'] == STEPS
  path = results.write_report(str(workdir), step, config, found, 1)
  assert 'narrate/point_l1' in path.read_text()


def test_evaluation_does_not_depend_on_the_batch(config, evaluated, tmp_path):
  workdir, _, found = evaluated
  tasks = {
    name: dataclasses.replace(shape, batch=16, regions=3)
    for name, shape in config.eval.tasks.items()
  }
  other = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, tasks=tasks)
  )
  trainer = make(other, workdir)
  with trainer.checkpoints:
    step, params = trainer.restore_params()
    again = trainer.evaluate(params, step)
  left, right = results.flat_metrics(found), results.flat_metrics(again)
  assert left == pytest.approx(right, abs=1e-5)


def test_the_predictor_answers_in_pixels_of_the_file(evaluated, tmp_path):
  workdir, _, _ = evaluated
  predictor = predictor_lib.Predictor.from_workdir(str(workdir))
  rgb = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
  predictor.set_image(rgb, 'random')
  narrative = predictor.narrate()
  assert narrative.size_orig == (60, 90)
  for word in narrative.words:
    for x, y in word.points_orig:
      assert 0 <= x <= 90 and 0 <= y <= 60
  boxes = [p.box_orig for p in predictor.refer(['the red ring', 'a star'])]
  alone = predictor.refer(['a star'])[0].box_orig
  np.testing.assert_allclose(boxes[1], alone, atol=1e-3)
  caption = predictor.caption_at([(10, 10, 40, 50)])[0]
  assert caption.prompt_box_orig == pytest.approx((10, 10, 40, 50))
  pictures.save(tmp_path / 'x.html', rgb, [narrative])
  with pytest.raises(ValueError, match=r'0 <= x0 < x1 <= 90'):
    predictor.caption_at([(10, 10, 100, 50)])
  with pytest.raises(ValueError, match='expected some words'):
    predictor.refer([''])


def test_the_predictor_draws_by_its_seed(evaluated):
  workdir = str(evaluated[0])
  rgb = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)

  def narrative(**decoding):
    predictor = predictor_lib.Predictor.from_workdir(workdir, **decoding)
    predictor.set_image(rgb)
    return predictor.narrate().text

  likeliest = narrative(beams=1)
  assert narrative(top_k=1) == likeliest
  assert narrative(temperature=1e-5, seed=1) == likeliest
  first = narrative(temperature=2.0, seed=1)
  assert narrative(temperature=2.0, seed=1) == first
  assert narrative(temperature=2.0, seed=2) != first
  with pytest.raises(ValueError, match='temperature 0 or beams 1'):
    narrative(beams=2, temperature=1.0)


def test_inference_sees_the_pixels_of_training(config, evaluated):
  from pixel_llm import example as example_lib
  from pixel_llm.data import registry
  from pixel_llm.tasks import task as task_lib

  entry = registry.task_of('scenes_narrate')
  record = example_lib.from_bytes(entry.source.records('val')[0])
  sizes = config.data.sizes(config.eval.tasks['scenes_narrate'])
  trained = task_lib.features(entry.task, record, entry.vocabulary, sizes, [0])[
    'image'
  ]
  predictor = predictor_lib.Predictor.from_workdir(str(evaluated[0]))
  predictor.set_image(image_lib.decode(record.image, 'x'))
  difference = predictor.pixels.astype(int) - trained
  assert np.abs(difference).max() <= 1
