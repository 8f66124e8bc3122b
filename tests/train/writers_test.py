# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What is written is read again with each one's own library."""

import dataclasses

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from pixel_llm import config as config_lib
from pixel_llm.train import experiment, writers


def write(workdir, *names):
  """A run's scalars and a picture, with a restart between."""
  loop = experiment.LoopConfig(writers=names)
  config = dataclasses.replace(experiment.ExperimentConfig(), loop=loop)
  for step in (4, 8):
    writer = writers.make(config, str(workdir))
    writer.write_scalars(step, {'s/word_loss': np.float32(1 / step)})
    writer.write_images(step, {'eval/x/0': np.zeros((1, 4, 5, 3), np.uint8)})
    writer.flush()
    writer.close()


def test_tensorboard(tmp_path):
  write(tmp_path, 'tensorboard')
  events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  tags = events.Tags()
  assert 's/word_loss' in tags['tensors'] + tags['scalars']
  assert 'eval/x/0' in tags['tensors'] + tags['images']


def test_mlflow(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  write(tmp_path, 'mlflow')
  client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/mlflow.db')
  run = (tmp_path / 'mlflow_run.txt').read_text()
  history = client.get_metric_history(run, 's/word_loss')
  assert [(m.step, m.value) for m in history] == [(4, 0.25), (8, 0.125)]
  assert any(p.name.endswith('.png') for p in tmp_path.rglob('*'))


def test_wandb(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  write(tmp_path, 'wandb')
  assert len(list(tmp_path.rglob('run-*.wandb'))) == 2


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_what_is_not_installed_is_told(tmp_path, monkeypatch, name):
  monkeypatch.setitem(__import__('sys').modules, name, None)
  with pytest.raises(config_lib.ConfigError, match=f'pip install {name}'):
    write(tmp_path, name)
