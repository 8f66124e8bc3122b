# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""T5X's own programs on our network; skipped where T5X is absent.

CONTRIBUTING.md says how to run them.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import scene_records
import tiny
from flax import linen as nn
from flax import traverse_util

pytest.importorskip('t5x')

from t5x import train_state, utils

from pixel_llm import config as config_lib
from pixel_llm import sharding, t5x_model, weights
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import initialization, tensors
from pixel_llm.checkpoints.formats import detection
from pixel_llm.model import region
from pixel_llm.train import (
  evaluate,
  experiment,
  optimizer,
  parameters,
)
from pixel_llm.train import step as step_lib

ROOT = pathlib.Path(__file__).parents[1]
GIN = ROOT / 'configs' / 'gin'
STEPS = 30
# A network whose T5 has the sizes of T5X's tiny one, and learns as the paper's.
TINY = """
from __gin__ import dynamic_registration

from pixel_llm.checkpoints import initialization
from pixel_llm.model import eva
from pixel_llm.model import layers
from pixel_llm.model import prompt
from pixel_llm.model import regression
from pixel_llm.model import sam
from pixel_llm.model import t5
from pixel_llm.train import experiment
from pixel_llm.train import optimizer

include '{root}/configs/gin/default.gin'

eva.EvaConfig:
  patch_size = 8
  width = 16
  depth = 2
  num_heads = 2
  mlp_dim = 24
  position_grid = 4
sam.SamConfig:
  patch_size = 16
  width = 16
  depth = 3
  num_heads = 2
  mlp_dim = 24
  window_size = 2
  blocks_per_group = 3
  position_grid = 2
  out_channels = 8
prompt.PromptConfig.embed_dim = 16
prompt.ExtractorConfig:
  num_queries = 3
  depth = 2
  width = 16
  num_heads = 2
  mlp_dim = 24
  out_dim = 16
t5.T5Config:
  vocab_size = 64
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 2
  num_decoder_layers = 2
  dropout_rate = 0.1
  lora = @layers.LoraConfig()
layers.LoraConfig.rank = 2
regression.RegressionConfig:
  hidden_dim = 16
  depth = 2
experiment.ExperimentConfig.init = @initialization.InitConfig()
initialization.InitConfig:
  sources = {{'t5': @initialization.SourceConfig()}}
  allow_missing = ('^(?!t5/)', '/lora_')
initialization.SourceConfig.path = '{root_data}/t5x_tiny/legacy/checkpoint_600'
experiment.DataConfig:
  records = {{
    'scenes_narratives': '{root_data}/narratives',
    'scenes_refer': '{root_data}/refer',
    'scenes_regions': '{root_data}/regions',
  }}
  vocabulary = '{root_data}/v.model'
  extra_ids = 0
  image = 32
  streams = {{'all': @experiment.StreamConfig()}}
experiment.StreamConfig:
  mixture = 'scenes'
  batch = 8
  regions = 2
  context = 6
  length = 12
experiment.EvalConfig.tasks = {{
  'scenes_narrate': @experiment.EvalTaskConfig(),
  'scenes_refer': @experiment.EvalTaskConfig(),
}}
experiment.EvalTaskConfig:
  batch = 4
  regions = 8
  context = 6
  length = 12
optimizer.OptimizerConfig:
  learning_rate = 1e-2
  warmup_steps = 5
  freeze = ('^sam/', '^t5/(?!.*/lora_)')
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Records, vocabulary, T5X's text-only checkpoints and `tiny.gin`."""
  root = tmp_path_factory.mktemp('t5x')
  annotations = scene_records.make(root, seed=1, train=12, val=5)
  lines = (annotations / 'scenes_train_localized_narratives.jsonl').read_text()
  texts = [json.loads(line)['caption'] for line in lines.splitlines()]
  vocabulary_lib.train(texts, str(root / 'v.model'), 64)
  golden = ROOT / 'tests' / 'golden' / 't5x_tiny_checkpoints.zip'
  with zipfile.ZipFile(golden) as archive:
    archive.extractall(root / 't5x_tiny')
  (root / 'tiny.gin').write_text(TINY.format(root=ROOT, root_data=root))
  return root


@pytest.fixture(scope='module')
def config(root):
  return config_lib.from_gin(
    experiment.ExperimentConfig, [str(root / 'tiny.gin')]
  )


@pytest.fixture(scope='module')
def model(config):
  return t5x_model.Model(config)


@pytest.fixture(scope='module')
def params(model):
  return tiny.init(model.config.model)[1]


def t5x(program, root, *arguments):
  """Runs T5X's program with its gin file and bindings."""
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      f't5x.{program}',
      f'--gin_file={root}/tiny.gin',
      f'--gin_file={GIN}/t5x_{program}.gin',
      *(f'--gin.{argument}' for argument in arguments),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert not done.returncode, done.stderr[-8000:]
  return done.stderr


@pytest.fixture(scope='module')
def trained(root):
  """(T5X's model folder after `STEPS` steps, its log)."""
  folder = root / 'model'
  log = t5x(
    'train',
    root,
    f"MODEL_DIR='{folder}'",
    "MIXTURE_OR_TASK_NAME='scenes'",
    f'TRAIN_STEPS={STEPS}',
    f'EVAL_PERIOD={STEPS // 3}',
    'EVAL_STEPS=2',
    f'utils.SaveCheckpointConfig.period={STEPS // 3}',
    '__main__.train.infer_eval_dataset_cfg=None',
    'train/utils.DatasetConfig.seed=0',
  )
  return folder, log


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def boxed(config):
  return jax.eval_shape(parameters.init_fn(config), jax.random.key(0))


def initializer(model, optimizer_def=None):
  return t5x_model.TrainStateInitializer(
    optimizer_def,
    model.get_initial_variables,
    input_shapes={},
    partitioner=t5x_model.Partitioner(model.config),
  )


def features(config, vocab_size=64):
  sizes = config.data.sizes(config.data.streams['all'])
  batch = dataclasses.asdict(tiny.random_batch(sizes, vocab_size=vocab_size))
  return {k: v for k, v in batch.items() if v is not None and v.size}


def text_only(root):
  """The parameters of T5X's text-only checkpoint, by our names."""
  given = initialization._opened(
    't5',
    initialization.SourceConfig(f'{root}/t5x_tiny/legacy/checkpoint_600'),
  )
  return {name: tensor.read() for name, tensor in given.items()}


def test_the_loss_is_that_of_our_own_loop(config, model, params):
  batch = features(config)
  assert not {'masks', 'objects', 'prompt_points'} & set(batch)
  loss, metrics = jax.jit(lambda p, b: model.loss_fn(p, b, None))(params, batch)
  expected, values = jax.jit(
    lambda p, b: step_lib.loss_fn(p, model.module, b, config.loss, None)
  )(params, t5x_model._batch(batch))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert metrics.keys() == values.keys() > {'word_loss', 'point_l1'}
  for name, metric in metrics.items():
    np.testing.assert_allclose(metric.compute(), values[name], rtol=1e-6)
  # Over batches, a metric weighs them by what they hold.
  nothing = t5x_model.Mean(np.float32(0), np.float32(0))
  both = metrics['point_l1'].merge(nothing)
  np.testing.assert_allclose(both.compute(), values['point_l1'], rtol=1e-6)
  assert nothing.compute() == 0


def test_answers_and_scores(config, model, params):
  batch = features(config)
  tokens, aux = jax.jit(model.predict_batch_with_aux)(
    params, batch, jax.random.PRNGKey(0)
  )
  shape = batch['decoder_target_tokens'].shape
  assert tokens.shape == shape
  assert aux['points'].shape == aux['written_points'].shape == (*shape, 2, 2)
  np.testing.assert_array_equal(aux['tokens'], batch['decoder_target_tokens'])
  scores = jax.jit(model.score_batch)(params, batch)
  assert scores.shape == shape[:2] == aux['scores'].shape
  assert (scores < 0).all()


@pytest.mark.parametrize('kind', ['legacy', 'orbax'])
def test_a_text_only_checkpoint_gives_the_t5_exactly(root, model, kind):
  path = f'{root}/t5x_tiny/{kind}/checkpoint_600'
  source = initialization.SourceConfig(path)
  init = initialization.InitConfig({'t5': source}, ('^(?!t5/)', '/lora_'))
  start = t5x_model.Model(dataclasses.replace(model.config, init=init))
  key = jax.random.PRNGKey(0)
  given = flat(initializer(start).from_scratch(key).params)
  drawn = t5x_model.Model(dataclasses.replace(model.config, init=None))
  drawn = flat(initializer(drawn).from_scratch(key).params)
  with np.load(ROOT / 'tests' / 'golden' / 't5x_tiny_params.npz') as golden:
    for name, array in given.items():
      if not name.startswith('t5/') or 'lora' in name:
        np.testing.assert_array_equal(array, drawn[name], err_msg=name)
        continue
      name = name.removeprefix('t5/')
      layers = name.replace('layers/', 'layers_{}/')
      theirs = (
        golden[name]
        if name == layers
        else np.stack([golden[layers.format(i)] for i in range(2)])
      )
      np.testing.assert_array_equal(array, theirs, err_msg=name)


def test_axes_lie_as_in_our_own_loop(config, model):
  state = initializer(model)
  mesh = t5x_model.Partitioner(config).mesh
  ours = sharding.state_shardings(boxed(config), mesh, config.mesh.rules())
  theirs = flat(state.train_state_axes.params)
  sharded = 0
  for name, expected in flat(ours).items():
    whole = (None,) * len(theirs[name])
    assert tuple(theirs[name]) == (*expected.spec, *whole)[: len(whole)], name
    sharded += any(theirs[name])
  assert mesh.shape['model'] == 8
  assert 0 < sharded < len(theirs)


@pytest.mark.parametrize('kind', ['adamw', 'adafactor'])
def test_what_is_frozen_stays(config, model, params, kind):
  definition = (
    t5x_model.optimizer(config, 10)
    if kind == 'adamw'
    else t5x_model.Adafactor(config)
  )
  variables = jax.eval_shape(
    lambda key: model.get_initial_variables(key, {}), jax.random.PRNGKey(0)
  )
  # Checks that every axis has its rule, and that state has its axes.
  abstract = jax.eval_shape(
    lambda v: train_state.FlaxOptimTrainState.create(definition, v), variables
  )
  assert flat(abstract.as_logical_axes().params).keys() == flat(params).keys()

  @jax.jit
  def update(params):
    state = definition.create(params)
    grads = jax.tree.map(jax.numpy.ones_like, params)
    return state.apply_gradient(grads, learning_rate=0.1).target

  with jax.numpy_rank_promotion('allow'):
    moved = flat(update(params))
  mask = flat(optimizer.trainable_mask(config.optimizer, params))
  for name, before in flat(params).items():
    assert (np.asarray(moved[name]) != before).any() == mask[name], name
  assert 0 < sum(mask.values()) < len(mask)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['adamw', 'adafactor'])
def test_a_saved_state_is_restored_with_its_slots(config, kind, tmp_path):
  definition = (
    t5x_model.optimizer(config, 10)
    if kind == 'adamw'
    else t5x_model.Adafactor(config)
  )
  model = t5x_model.Model(dataclasses.replace(config, init=None), definition)
  start = initializer(model, definition)
  state = start.from_scratch(jax.random.PRNGKey(0))
  grads = jax.tree.map(jax.numpy.ones_like, state.params)
  with jax.numpy_rank_promotion('allow'):
    state = jax.jit(lambda s, g: s.apply_gradient(g, 0.1))(state, grads)
  restore = utils.RestoreCheckpointConfig(str(tmp_path), 'latest')
  for path in (None, str(tmp_path / 'checkpoint_1')):
    restored, manager = utils.create_checkpoint_manager_and_restore(
      start,
      t5x_model.Partitioner(config),
      restore if path else None,
      path,
      None,
      utils.SaveCheckpointConfig(period=1),
      str(tmp_path),
      use_orbax=True,
    )
    if path is None:
      manager.save(state, ())
      manager.wait_until_finished()
    manager.close()
  saved, found = flat(state.state_dict()), flat(restored.state_dict())
  assert found.keys() == saved.keys() and int(restored.step) == 1
  for name, value in saved.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_does_not_fit_is_said(config):
  with pytest.raises(config_lib.ConfigError, match=r"'refer'.*data.streams"):
    t5x_model.lengths(config, 'refer')
  with pytest.raises(config_lib.ConfigError, match=r"'x'.*scenes_narrate"):
    t5x_model.batch_size(config, 'x', evaluation=True)
  muon = dataclasses.replace(config.optimizer, muon=optimizer.MuonConfig())
  with pytest.raises(config_lib.ConfigError, match=r'optimizer\.muon'):
    t5x_model.optimizer(dataclasses.replace(config, optimizer=muon), 10)


@pytest.mark.slow
def test_training_from_a_text_only_checkpoint(root, trained):
  folder, log = trained
  losses = [
    float(line.split('loss=')[1].split(',')[0])
    for line in log.splitlines()
    if 'collection=train ' in line and 'loss=' in line
  ]
  assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]
  assert 'collection=training_eval/scenes_refer' in log
  _, found = detection.open_tensors(folder / f'checkpoint_{STEPS}')
  found = tensors.parameters(found)
  for name, array in text_only(root).items():
    np.testing.assert_array_equal(found[name].read(), array, err_msg=name)
  lora = [t.read() for name, t in found.items() if name.endswith('lora_b')]
  assert lora and all(x.any() for x in lora)  # drawn as zeros


@pytest.mark.slow
def test_its_checkpoints_are_ours_and_its_evaluation_too(
  root, config, model, trained, tmp_path
):
  """The same logits and metrics of what `pixel-llm import` makes of them."""
  checkpoint = trained[0] / f'checkpoint_{STEPS}'
  for task in config.eval.tasks:
    t5x(
      'eval',
      root,
      f"MIXTURE_OR_TASK_NAME='{task}'",
      f"CHECKPOINT_PATH='{checkpoint}'",
      f"EVAL_OUTPUT_DIR='{tmp_path}/eval'",
    )
  restored, _ = utils.create_checkpoint_manager_and_restore(
    initializer(model),
    t5x_model.Partitioner(config),
    utils.RestoreCheckpointConfig(str(checkpoint), 'specific', strict=False),
    str(checkpoint),
    None,
    use_orbax=True,
  )
  out = tmp_path / 'ours.safetensors'
  weights.import_weights(str(checkpoint), str(out), 'pixel-llm')
  _, ours = detection.open_tensors(out)
  ours = {name: tensor.read() for name, tensor in ours.items()}
  theirs = flat(restored.params)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)

  ours = traverse_util.unflatten_dict(ours, sep='/')
  batch = t5x_model._batch(features(config))
  run = jax.jit(lambda params: model.module.run(params, batch).logits)
  # Theirs are sharded, so sums have another order.
  np.testing.assert_allclose(
    run(ours), run(dict(restored.params)), rtol=0, atol=1e-5
  )

  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  expected = evaluate.Evaluator(config, model.module, mesh).run(ours)
  for task, result in expected.items():
    lines = tmp_path / f'eval/inference_eval/{task}-metrics.jsonl'
    metrics = json.loads(lines.read_text().splitlines()[-1])
    assert metrics.pop('step') == STEPS
    assert metrics.keys() == result.metrics.keys() and metrics
    for name, value in result.metrics.items():
      # Several narratives may answer a question: SeqIO sees the first's places.
      if not name.startswith(('point_', 'generated_', 'grounding_', 'lbm_')):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


@pytest.mark.slow
def test_inference_writes_texts_and_points(root, config, trained, tmp_path):
  t5x(
    'infer',
    root,
    "MIXTURE_OR_TASK_NAME='scenes_narrate'",
    f"CHECKPOINT_PATH='{trained[0]}/checkpoint_{STEPS}'",
    f"INFER_OUTPUT_DIR='{tmp_path}'",
  )
  (file,) = tmp_path.glob('scenes_narrate-predict_with_aux.jsonl-*-of-00001')
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(rows) == 5
  for row in rows:
    assert len(row['prediction']) == 8
    assert all(isinstance(text, str) for text in row['prediction'])
    assert np.shape(row['aux']['written_points']) == (8, 12, 2, 2)
    assert 'texts' in row['inputs']['decoder_target_tokens_pretokenized']


@pytest.mark.slow
def test_a_part_that_its_checkpoint_lacks_is_drawn(config, trained):
  """By T5X's own `assignment_map`, from a checkpoint of another network."""
  checkpoint = str(trained[0] / f'checkpoint_{STEPS}')
  larger = t5x_model.Model(
    dataclasses.replace(
      config,
      init=None,
      model=dataclasses.replace(
        config.model,
        region=region.RegionConfig(bins=2, bin_channels=4, mlp_dim=8, cells=2),
      ),
    )
  )
  state, _ = utils.create_checkpoint_manager_and_restore(
    initializer(larger),
    t5x_model.Partitioner(config),
    utils.RestoreCheckpointConfig(
      checkpoint,
      'specific',
      strict=False,
      fallback_to_scratch=True,
      assignment_map=((r'target/region/.*', None),),
    ),
    checkpoint,
    jax.random.PRNGKey(0),
    use_orbax=True,
  )
  _, saved = detection.open_tensors(checkpoint)
  saved = tensors.parameters(saved)
  found = flat(state.params)
  assert found.keys() == flat(nn.unbox(boxed(larger.config))).keys()
  assert found.keys() > saved.keys()
  for name, tensor in saved.items():
    np.testing.assert_array_equal(found[name], tensor.read(), err_msg=name)
