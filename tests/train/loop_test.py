# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The whole path at the smallest size: files to metrics, picture and answer."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import disks
import jax
import numpy as np
import pytest
import scene_records
from PIL import Image

from pixel_llm import config as config_lib
from pixel_llm import image as image_lib
from pixel_llm import main, pictures, plan, sharding, weights
from pixel_llm import predictor as predictor_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import initialization, manager, trees
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import of_array
from pixel_llm.train import evaluate, experiment, loop, optimizer, results

STEPS = 8


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = scene_records.experiment(tmp_path_factory.mktemp('run'))
  return dataclasses.replace(
    config,
    optimizer=optimizer.OptimizerConfig(
      warmup_steps=2, freeze=('sam/positions',)
    ),
    checkpoint=manager.CheckpointConfig(keep_last=10),
    loop=experiment.LoopConfig(steps=STEPS, log_every=4, checkpoint_every=4),
    eval=dataclasses.replace(config.eval, targets=('narrate/point_l1 <= 0.5',)),
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
  assert {'narrate/grad_norm', 'time/save', 'run/goodput'} <= set(rows[1])
  assert rows[1]['skipped'] == 0
  assert list(workdir.glob('events.out.tfevents*'))


def test_a_restart_equals_no_interruption_bit_for_bit(
  config, finished, tmp_path, monkeypatch
):
  class Killed(Exception):
    pass

  real = loop.Trainer.save

  def save_and_die(self, step, *args):
    real(self, step, *args)
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


def test_steps_compiled_before_are_the_steps(config, finished, tmp_path):
  path, one = str(tmp_path / 'programs'), jax.devices()[:1]
  plan.make(config, 'cpu:1', save=path)
  programs = plan.load(path, config, one)
  assert set(programs) == {'train/narrate', 'train/refer'}
  trainer = loop.Trainer(
    config, str(tmp_path), lambda line: None, one, programs=programs
  )
  with trainer.checkpoints:
    assert_equal(trainer.train(), finished[1])
  with pytest.raises(
    ValueError, match=r'for cpu:1, 1 devices, but there are 8'
  ):
    plan.load(path, config)
  (tmp_path / 'other').write_bytes(b'x')
  with pytest.raises(ValueError, match='plan --save'):
    plan.load(str(tmp_path / 'other'), config)


def test_so_it_does_with_a_mean_of_parameters(config, tmp_path, monkeypatch):
  """Which evaluation gets, and all who read parameters alone."""
  config = dataclasses.replace(
    config,
    optimizer=dataclasses.replace(config.optimizer, ema=0.9),
    loop=dataclasses.replace(
      config.loop, on_bad_step='skip', spike=9.0, profile=(2, 3), eval_every=6
    ),
  )
  evaluated = []
  monkeypatch.setattr(
    loop.Trainer,
    'evaluate',
    lambda _, params, *rest: evaluated.append(jax.device_get(params)),
  )
  whole = train(config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'killed')
  shutil.rmtree(tmp_path / 'killed' / 'checkpoints' / str(STEPS))
  lines = []
  state = train(config, tmp_path / 'killed', lines)
  assert f'resuming at step {STEPS // 2}' in lines
  assert_equal(state, whole)
  assert_equal(*evaluated)
  mean = optimizer.swap_average(whole).params
  trainer = make(config, tmp_path / 'whole')
  with trainer.checkpoints:
    step, params = trainer.restore_params()
  assert step == STEPS
  assert_equal(params, mean)
  kernel = lambda tree: np.asarray(tree['regression']['out']['kernel'])
  assert np.any(kernel(mean) != kernel(whole.params))
  assert list((tmp_path / 'whole' / 'profile').rglob('*.xplane.pb'))


def test_a_damaged_checkpoint_is_passed_over(config, finished, tmp_path):
  """Training goes on from the one before, and ends where it would have."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  newest = workdir / 'checkpoints' / str(STEPS)
  file = max(newest.rglob('*'), key=lambda p: p.stat().st_size)
  file.write_bytes(file.read_bytes()[:-1] + b'?')
  lines = []
  state = train(config, workdir, lines)
  assert_equal(state, finished[1])
  assert any('step 8 is damaged' in line for line in lines)
  assert f'resuming at step {STEPS // 2}' in lines
  assert (workdir / 'checkpoints.damaged').is_dir()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('recovers', [True, False])
def test_failed_saves_end_training_only_in_a_row(
  config, finished, tmp_path, recovers
):
  """For two or three saves there is a file where their folder should be."""
  folder = tmp_path / 'run' / 'checkpoints'

  def progress(step, _):
    if step == 3:
      trainer.checkpoints.wait()
      folder.rename(tmp_path / 'away')
      folder.touch()
    if step == 5 and recovers:
      folder.unlink()
      (tmp_path / 'away').rename(folder)

  config = dataclasses.replace(
    config,
    checkpoint=manager.CheckpointConfig(keep_last=10),
    loop=dataclasses.replace(config.loop, checkpoint_every=1),
  )
  lines = []
  trainer = make(config, tmp_path / 'run', lines)
  if recovers:
    with trainer.checkpoints:
      assert_equal(trainer.train(progress), finished[1])
      assert trainer.checkpoints.steps() == [1, 2, 5, 6, 7, 8]
  else:
    with (
      trainer.checkpoints,
      pytest.raises(manager.CheckpointError, match='can not be opened'),
    ):
      trainer.train(progress)
    assert (tmp_path / 'away' / '2').is_dir()
  failed = [line for line in lines if line.startswith('checkpoint failed')]
  assert len(failed) == 2
  assert 'failed, 2 in a row of at most 3; training goes on: ' in failed[1]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('recovers', [True, False])
def test_a_hung_save_is_tried_once_more(config, finished, tmp_path, recovers):
  config = dataclasses.replace(
    config,
    checkpoint=manager.CheckpointConfig(save_timeout_seconds=6),
    loop=dataclasses.replace(config.loop, checkpoint_every=1),
  )
  lines = []
  with disks.hanging(tmp_path / 'disk') as disk:

    def progress(step, _):
      if step == 3:
        trainer.checkpoints.wait()
        disks.freeze(disk)
      if step == 4 and recovers:
        disks.thaw(disk)

    (disk / 'checkpoints').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'checkpoints').symlink_to(disk / 'checkpoints')
    trainer = make(config, tmp_path / 'run', lines)
    with contextlib.ExitStack() as stack:
      stack.enter_context(trainer.checkpoints)
      if recovers:
        assert_equal(trainer.train(progress), finished[1])
        assert trainer.checkpoints.steps()[-3:] == [6, 7, 8]
      else:
        with pytest.raises(
          manager.HungSaveError, match=r'step 4 was not saved: not done after 6'
        ):
          trainer.train(progress)
    disks.thaw(disk) if not recovers else None
  failed = [line for line in lines if line.startswith('checkpoint failed')]
  assert len(failed) == 1 and 'step 3 was not saved' in failed[0]


def test_the_best_is_kept(config, tmp_path):
  checkpoint = manager.CheckpointConfig(
    keep_last=1, keep_best=1, best_metric='narrate/word_error'
  )
  tasks = {'scenes_narrate': config.eval.tasks['scenes_narrate']}
  config = dataclasses.replace(
    config,
    checkpoint=checkpoint,
    eval=dataclasses.replace(config.eval, tasks=tasks, targets=()),
  )
  with pytest.raises(config_lib.ConfigError, match='multiple of the 4 of'):
    make(config, tmp_path)
  loop_config = dataclasses.replace(
    config.loop, checkpoint_every=2, eval_every=2
  )
  config = dataclasses.replace(config, loop=loop_config)
  with pytest.raises(
    config_lib.ConfigError, match=r'word_error.*is not eval.*narrate/point_l1'
  ):
    train(config, tmp_path)
  metric = 'narrate/point_l1'
  checkpoint = dataclasses.replace(checkpoint, best_metric=metric)
  lines = []
  train(dataclasses.replace(config, checkpoint=checkpoint), tmp_path, lines)
  values = {
    int(line.split()[1]): float(line.split('point_l1 ')[1].split(',')[0])
    for line in lines
    if 'scenes_narrate' in line and 'point_l1 ' in line
  }
  assert sorted(values) == [2, 4, 6, 8]
  with manager.CheckpointManager(tmp_path / 'checkpoints') as reader:
    best = reader.steps()[0]
    assert reader.steps() == sorted({best, 8})
    kept = reader.metadata(best)['metrics'][metric]
  assert round(kept, 4) == values[best] == min(values.values())


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
  with pytest.raises(loop.Preempted, match=r'SIGTERM at step 5 of 8'):
    train(config, tmp_path)
  reader = manager.CheckpointManager(tmp_path / 'checkpoints', read_only=True)
  with reader:
    assert reader.latest_step() == 5


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
  metrics = evaluate.flat_metrics(found)
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
  bounds = results.targets(config.eval)
  said, path = results.write(str(workdir), step, True, config, found, 1, bounds)
  assert said == metrics
  assert results.read_metrics(str(workdir)) == {'step': STEPS, **metrics}
  assert 'narrate/point_l1' in path.read_text()


def test_a_misspelt_task_to_evaluate_is_told(config, finished, tmp_path):
  wrong = {'scenes_naratte': config.eval.tasks['scenes_narrate']}
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, tasks=wrong)
  )
  trainer = make(config, tmp_path)
  with (
    trainer.checkpoints,
    pytest.raises(ValueError, match=r"'scenes_naratte'.*scenes_narrate"),
  ):
    trainer.evaluate(finished[1].params, 1)


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
  from pixel_llm.data import registry
  from pixel_llm.tasks import task as task_lib

  entry = registry.task_of('scenes_narrate')
  record = entry.sequence.example('val', 0)
  sizes = config.data.sizes(config.eval.tasks['scenes_narrate'])
  trained = task_lib.features(entry.task, record, entry.vocabulary, sizes, [0])[
    'image'
  ]
  predictor = predictor_lib.Predictor.from_workdir(str(evaluated[0]))
  predictor.set_image(image_lib.decode(record.image, 'x'))
  difference = predictor.pixels.astype(int) - trained
  assert np.abs(difference).max() <= 1


@pytest.fixture(scope='module')
def exported(finished, tmp_path_factory):
  path = tmp_path_factory.mktemp('exported') / 'x.safetensors'
  weights.export_weights(str(finished[0]), str(path), 'safetensors')
  return path


def starting(config, allow_missing=(), **source):
  init = initialization.InitConfig(
    {'start': initialization.SourceConfig(**source)}, allow_missing
  )
  return dataclasses.replace(config, init=init)


def write_config(path, config):
  """The config as a file for `--config`."""
  values = json.dumps(json.dumps(config_lib.to_dict(config)))
  path.write_text(
    'import json\n\nimport ml_collections\n\n\ndef get_config():\n'
    f'  return ml_collections.ConfigDict(json.loads({values}))\n'
  )
  return str(path)


@pytest.mark.parametrize('devices', [1, 8])
def test_a_run_starts_from_an_export_bit_for_bit(
  config, finished, exported, tmp_path, devices
):
  config = starting(config, path=str(exported))
  model = 2 if devices == 8 else 1
  config = dataclasses.replace(config, mesh=sharding.MeshConfig(model=model))
  lines = []
  trainer = loop.Trainer(
    config, str(tmp_path), lines.append, jax.devices()[:devices]
  )
  with trainer.checkpoints:
    state = trainer.restore_or_create()
  end = finished[1].params
  assert_equal(state.params, end)
  abstract = trainer._abstract()
  assert jax.tree.structure(state) == jax.tree.structure(abstract)
  for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
    assert (got.dtype, got.sharding) == (wanted.dtype, wanted.sharding)
  kernel = state.params['t5']['decoder']['layers']['mlp']['wi_0']['kernel']
  assert kernel.addressable_shards[0].data.size * model == kernel.size
  assert int(state.step) == 0
  assert not any(
    np.any(np.asarray(x)) for x in jax.tree.leaves(state.opt_state)
  )
  leaves = jax.tree.leaves(end)
  assert lines[-2:] == [
    f'init: {len(leaves)} parameters, {sum(x.size for x in leaves):,} numbers '
    f'from start ({exported})',
    'init: 0 parameters, 0 numbers drawn from seed 0',
  ]


def test_what_no_source_gives_is_drawn_as_ever(config, exported, tmp_path):
  partial = starting(
    config,
    allow_missing=('^(?!t5/)', '/layers/mlp/'),
    path=str(exported),
    take=('^t5/',),
    leave_out=('/layers/mlp/',),
  )
  trainer = make(partial, tmp_path / 'partial')
  with trainer.checkpoints:
    got = trees.flat(trainer.restore_or_create().params)
  trainer = make(config, tmp_path / 'fresh')
  with trainer.checkpoints:
    fresh = trees.flat(trainer.restore_or_create().params)
  source = safetensors.read(exported)
  taken = {n for n in got if n.startswith('t5/') and '/layers/mlp/' not in n}
  assert 10 < len(taken) < len(got) - 10
  for name, x in got.items():
    expected = source[name].read() if name in taken else np.asarray(fresh[name])
    np.testing.assert_array_equal(np.asarray(x), expected, name, strict=True)


def test_steps_are_those_of_the_source_with_a_new_optimizer(
  config, finished, exported, tmp_path
):
  state = train(starting(config, path=str(exported)), tmp_path / 'a')
  trainer = make(config, tmp_path / 'b')
  fresh = jax.tree.map(
    lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
    trainer._abstract(),
  )
  trainer.restore_or_create = lambda: fresh.replace(
    params=jax.tree.map(jax.numpy.copy, finished[1].params)
  )
  with trainer.checkpoints:
    assert_equal(trainer.train(), state)


def test_a_run_that_goes_on_does_not_look_at_its_sources(
  config, finished, exported, tmp_path
):
  run, source = tmp_path / 'run', tmp_path / 'source'
  shutil.copytree(finished[0] / 'checkpoints' / '4', source / '4')
  (base,) = (finished[0] / 'checkpoints').glob('base-*')
  shutil.copytree(base, source / base.name)
  config = starting(config, path=str(source), step=4)
  trainer = make(config, run)
  with trainer.checkpoints:
    begun = trainer.restore_or_create()
    reader = manager.CheckpointManager(
      finished[0] / 'checkpoints', read_only=True
    )
    with reader:
      assert_equal(begun.params, reader.restore_params(begun.params, 4))
    trainer.save(0, begun)
  shutil.rmtree(source)
  lines = []
  trainer = make(config, run, lines)
  with trainer.checkpoints:
    assert_equal(trainer.restore_or_create(), begun)
  assert lines[-1] == 'resuming at step 0'
  # Without a checkpoint the same is an error.
  shutil.rmtree(run / 'checkpoints')
  with pytest.raises(config_lib.ConfigError, match='no such file or folder'):
    make(config, run)


def test_a_misfit_through_the_command_line(config, exported, tmp_path, capsys):
  tensors = dict(safetensors.read(exported))
  name = 't5/decoder/decoder_norm/scale'
  tensors[name] = of_array(np.ones(17, np.float32))
  del tensors['t5/encoder/encoder_norm/scale']
  bad, workdir = tmp_path / 'bad.safetensors', tmp_path / 'run'
  safetensors.write(bad, tensors)

  def said(path):
    file = write_config(tmp_path / 'c.py', starting(config, path=str(path)))
    verb = ['train', '--config', file, '--workdir', str(workdir)]
    assert main.main(verb) == 1
    return capsys.readouterr().err

  assert said(bad) == (
    f'pixel-llm train: error: init.sources.start: {bad}: 1 shapes:\n'
    f'  {name}: expected [16], got [17]\n'
    'init: 1 names of the target that nothing gives:\n'
    '  t5/encoder/encoder_norm/scale [16]\n'
  )
  none = tmp_path / 'none'
  assert said(none) == (
    'pixel-llm train: error: config init.sources.start.path: '
    f'{none}: no such file or folder.\n'
  )
  (tmp_path / 'cut.safetensors').write_bytes(exported.read_bytes()[:-4])
  assert 'truncated' in said(tmp_path / 'cut.safetensors')
  # Nothing was written, so the workdir may have another config.
  assert not workdir.exists()
  tensors = dict(safetensors.read(exported))
  tensors[name] = of_array(np.full(16, np.nan, np.float32))
  safetensors.write(bad, tensors)
  assert said(bad) == (
    f'pixel-llm train: error: {bad}: {name}: expected finite numbers, got 16 '
    'NaN or infinite ones among 16.\n'
  )


def test_seqios_evaluator_says_what_ours_says(config, finished):
  trainer = make(config, finished[0])
  with trainer.checkpoints:
    _, params = trainer.restore_params()
  name = 'scenes_refer'
  # All expressions of an image: SeqIO's examples are images.
  size = dataclasses.replace(config.eval.tasks[name], regions=8, batch=2)
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, tasks={name: size})
  )
  ours = evaluate.Evaluator(config, trainer.model, trainer.mesh).run(params)
  found = scene_records.seqio_metrics(
    config, trainer.model, trainer.mesh, params, name
  )
  assert found.keys() == ours[name].metrics.keys() and found
  for key, value in ours[name].metrics.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-5)


def test_the_readmes_own_task_trains(config, tmp_path, monkeypatch):
  """Its very file, in a folder with photos of birds."""
  readme = (pathlib.Path(__file__).parents[2] / 'README.md').read_text()
  code = readme.split('`birds.py`:\n\n```python\n')[1].split('```')[0]
  assert len(code.splitlines()) < 40
  (tmp_path / 'birds.py').write_text(code)
  birds = tmp_path / 'birds'
  birds.mkdir()
  rng = np.random.default_rng(0)
  for split, count in (('train', 6), ('val', 2)):
    rows = []
    for i in range(count):
      file = f'{split}{i}.png'
      Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(
        birds / file
      )
      names = [{'name': n, 'box': [4, 3, 24, 20]} for n in ('a ring', 'a star')]
      rows.append({'file': file, 'size': [40, 30], 'birds': names})
    (birds / f'{split}.json').write_text(json.dumps(rows))
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  shape = config.data.streams['refer']
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data,
      records={},
      modules=('birds',),
      augmentation={},
      streams={'birds': dataclasses.replace(shape, mixture='birds_refer')},
    ),
    eval=dataclasses.replace(
      config.eval,
      tasks={'birds_refer': config.eval.tasks['scenes_refer']},
      targets=(),
    ),
    loop=dataclasses.replace(config.loop, steps=2),
  )
  lines = []
  trainer = make(config, tmp_path / 'run', lines)
  with trainer.checkpoints:
    state = trainer.train()
    results = trainer.evaluate(state.params, 2)
  assert any(line.startswith('step 2/2') for line in lines)
  assert 0 <= results['birds_refer'].metrics['p_at_0.5'] <= 1


def test_a_step_that_is_not_finite_is_found_and_replayed(
  config, tmp_path, capsys
):
  """One word of one narrative points at nothing that is a number."""
  from pixel_llm import example, tasks
  from pixel_llm.data import datasets, registry

  registry.use_vocabulary(
    vocabulary_lib.Vocabulary(config.data.vocabulary, config.data.extra_ids)
  )
  datasets.register(config.data.records)
  source = registry.task_of('scenes_narrate').sequence
  rows = [source.example('train', i % 6) for i in range(24)]
  region = rows[4].regions[0]
  rows[4] = dataclasses.replace(
    rows[4],
    regions=(
      dataclasses.replace(region, span_boxes=region.span_boxes * np.nan),
    ),
  )
  registry.add_task(
    'sick_narrate',
    registry.SequenceSource({'train': rows}, lambda row: row),
    tasks.NARRATE,
    replace=True,
  )
  assert isinstance(rows[4], example.Example)
  shape = dataclasses.replace(
    config.data.streams['narrate'], mixture='sick_narrate', batch=8
  )
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, streams={'sick': shape})
  )
  trainer = make(config, tmp_path)
  loader = trainer.loader()
  first = next(
    i for i in range(3) if 4 in [s.index for s in loader.slots(i)[1]]
  )
  number = first + 1
  said = rf'step {number}, stream sick: .*point_l1.* not finite.*replay'
  with trainer.checkpoints, pytest.raises(FloatingPointError, match=said):
    trainer.train()
  kept = tmp_path / 'bad_batches'
  with np.load(kept / f'step_{number}-0-of-1.npz') as batch:
    assert np.isnan(batch['points']).any() and batch['image'].any()
  about = json.loads((kept / f'step_{number}.json').read_text())
  assert 4 in [e['index'] for e in about['examples']]
  assert 'not finite' in about['why']
  assert (
    main.main(
      ['replay', '--workdir', str(tmp_path), '--step', str(first + 1), '--json']
    )
    == 0
  )
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['step'] == first + 1 and found['stream'] == 'sick'
  sick, *well = found['examples']
  assert sick['index'] == 4 and np.isnan(sick['point_l1'])
  assert all(np.isfinite(w['loss']) and w['index'] != 4 for w in well)
  assert main.main(['replay', '--workdir', str(tmp_path), '--step', '99']) == 1
  assert 'expected 1 to 8, got 99' in capsys.readouterr().err
  # The same run goes on, if such steps are to be left out.
  skipping = dataclasses.replace(config.loop, on_bad_step='skip')
  lines = []
  state = train(dataclasses.replace(config, loop=skipping), tmp_path, lines)
  count = sum(4 in [s.index for s in loader.slots(i)[1]] for i in range(STEPS))
  assert int(state.opt_state.skipped) == count
  assert sum('skipped' in line for line in lines) == count
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  rows = json.loads((tmp_path / 'curves.json').read_text())
  assert rows[-1]['skipped'] == count and np.isfinite(rows[-1]['sick/loss'])
