# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Plans of the smallest network on CPU devices, and what is refused."""

import dataclasses
import importlib.util
import json
import os

import jax
import numpy as np
import pytest
import tiny

from pixel_llm import main, plan, sharding
from pixel_llm.train import experiment, optimizer, parameters
from pixel_llm.train import state as state_lib

# What the smallest network does not look at.
UNUSED = (
  'prompt_box_weights',
  'boxes',
  'box_weights',
  'masks',
  'mask_weights',
  'presence',
  'presence_weights',
  'objects',
  'object_weights',
  'detection_weights',
)
LIBTPU = (
  importlib.util.find_spec('libtpu') is not None
  or 'TPU_LIBRARY_PATH' in os.environ
)
SHAPE = dict(
  **{k: getattr(tiny.SIZES, k) for k in ('batch', 'regions', 'context')},
  length=tiny.SIZES.length,
  objects=tiny.SIZES.objects,
  mask=tiny.SIZES.mask,
)
CONFIG = experiment.ExperimentConfig(
  model=tiny.model_config(),
  data=experiment.DataConfig(
    streams={'s': experiment.StreamConfig('narrate', **SHAPE)},
    image=tiny.SIZES.image,
  ),
  optimizer=optimizer.OptimizerConfig(freeze=('^sam/',)),
  eval=experiment.EvalConfig(
    tasks={'t': experiment.EvalTaskConfig(**SHAPE)},
  ),
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The plan of a step and the file of its executable."""
  path = str(tmp_path_factory.mktemp('plan') / 'step')
  return plan.make(CONFIG, 'cpu:8', save=path), path


def test_classes_add_up(trained):
  (program,) = trained[0].programs
  memory = program.memory
  batch = tiny.random_batch()
  names = list(batch.specs())
  size = lambda names: sum(getattr(batch, n).nbytes for n in names) // 8
  assert memory.batch == size(names)
  # A CPU pads nothing: the rest of the arguments is in the classes.
  assert memory.padding == -size(UNUSED)
  sizes = parameters.parts(CONFIG)
  frozen = next(p for p in sizes if p.name == 'sam')
  assert memory.frozen == frozen.bytes
  assert memory.trainable == parameters.total(sizes).bytes - frozen.bytes
  # AdamW's two moments, and counters.
  assert 0 <= memory.optimizer - 2 * memory.trainable <= 64
  assert memory.temporaries > 0
  assert memory.total == sum(dataclasses.astuple(memory))


def test_a_device_does_its_share_of_the_network(trained):
  (program,) = trained[0].programs
  assert program.cost is not None
  assert program.cost.flops == pytest.approx(program.model_flops, rel=0.05)
  # Gradients of all that is trained are summed over the devices.
  sums = [c for c in program.cost.collectives if c.kind == 'all-reduce']
  total = sum(c.bytes * c.count for c in sums)
  assert total == pytest.approx(program.memory.trainable, rel=0.05)


def test_text_and_json_say_the_same(trained):
  made = trained[0]
  values = json.loads(plan.to_json(made))
  (program,) = values['programs']
  assert program['memory']['frozen'] == made.programs[0].memory.frozen
  assert 'train/s' in plan.text(made) and 'all-reduce' in plan.text(made)


def test_the_saved_step_runs(trained):
  _, path = trained
  with pytest.raises(ValueError, match='learning_rate'):
    plan.load(
      path,
      dataclasses.replace(
        CONFIG, optimizer=optimizer.OptimizerConfig(learning_rate=1.0)
      ),
    )
  step = plan.load(path, CONFIG)['train/s']
  mesh = sharding.make_mesh(CONFIG.mesh)
  _, params = tiny.init(CONFIG.model)
  mask = optimizer.trainable_mask(CONFIG.optimizer, params)
  update = optimizer.make(CONFIG.optimizer, CONFIG.loop.steps, params)
  trainable, _ = state_lib.split(params, mask)
  state = state_lib.TrainState(
    np.int32(0), params, jax.tree.map(np.asarray, update.init(trainable))
  )
  state = jax.device_put(state, sharding.replicated(mesh))
  batch = jax.device_put(tiny.random_batch(), sharding.batch_sharding(mesh))
  state, metrics = step(state, batch)
  assert int(state.step) == 1
  assert np.isfinite(float(metrics['loss']))


def test_evaluation_is_planned():
  made = plan.make(CONFIG, 'cpu:2', train=False, decode=True, read=True)
  decode, read = made.programs
  assert (decode.name, read.name) == ('decode/t', 'eval/t')
  # All parameters are held, none trained.
  sizes = parameters.total(parameters.parts(CONFIG))
  assert decode.memory.frozen == read.memory.frozen == sizes.bytes
  assert decode.memory.optimizer == 0
  assert decode.cost is not None and decode.cost.flops > 0


@pytest.mark.parametrize(
  'topology, says',
  [
    ('v7:2x2', 'v4, v5e, v5p, v6e'),
    ('v5e', 'v4, v5e, v5p, v6e'),
    ('v5e:2x2x2', 'torus of 2'),
    ('cpu:0', 'cpu:N'),
    ('cpu:9', '8 devices'),
  ],
)
def test_topologies_that_there_are_not(topology, says):
  assert len(jax.devices()) == 8  # from now on there are no more
  with pytest.raises(ValueError, match=says):
    plan.topology_devices(topology)


@pytest.mark.skipif(LIBTPU, reason='libtpu is here')
def test_without_libtpu_it_says_what_to_install(capsys):
  line = ['plan', '--config', 'configs/demo.py', '--topology', 'v5e:2x2']
  assert main.main(line) == 1
  assert "pip install 'jax[tpu]'" in capsys.readouterr().err


@pytest.mark.skipif(not LIBTPU, reason='libtpu is not here')
def test_a_chip_is_a_device(monkeypatch):
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  for topology, chips in (('v4:2x2x2', 8), ('v5e:4x4', 16), ('v5p:2x2x2', 8)):
    assert len(plan.topology_devices(topology)) == chips
  with pytest.raises(ValueError, match=r'refuses it: .*3x3'):
    plan.topology_devices('v5e:3x3')


def test_meshes_and_batches_that_do_not_fit(capsys):
  line = ['plan', '--config', 'configs/demo.py', '--topology', 'cpu:8']
  assert main.main([*line, '--mesh', 'data=3']) == 1
  assert 'data=3 x model=1' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='2'):
    main.main([*line, '--mesh', 'rows=8'])
  stream = '--config.data.streams.captions.batch=6'
  assert main.main([*line, stream]) == 1
  assert 'data.streams.captions.batch = 6' in capsys.readouterr().err


def test_what_is_too_large_is_refused_with_advice():
  said = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
    'the total memory required for HLO temporaries (25.5G) exceeds available '
    'HBM (15.75G).'
  )
  assert plan._refused(said, 7) == 25.5 * 2**30
  said = 'RESOURCE_EXHAUSTED: Ran out of memory. Used 20.00G of 15.75G hbm.'
  assert plan._refused(said, 2**30) == 19 * 2**30
  mesh = sharding.make_mesh(CONFIG.mesh)
  advice = ' '.join(
    plan._advice('train/s', plan.Memory(frozen=2**30), CONFIG, mesh)
  )
  for override in (
    '--config.mesh.fsdp=True',
    '--config.optimizer.frozen_dtype=bfloat16',
    '--config.model.t5.dtype=bfloat16',
    '--config.model.eva.remat=full',
    '--mesh data=4,model=2',
  ):
    assert override in advice
