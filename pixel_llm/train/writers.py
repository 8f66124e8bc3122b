# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Where scalars and pictures go: TensorBoard, W&B, MLflow, and our report."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from etils import epath

from pixel_llm import config as config_lib
from pixel_llm import files
from pixel_llm.train import experiment


def make(config: experiment.ExperimentConfig, workdir: str) -> Any:
  """The writers of `loop.writers` as one; none but on the first process.

  A run that goes on, or is evaluated, writes on in what it began.

  Returns: a `clu.metric_writers.MetricWriter` of scalars and images.

  Raises:
    ConfigError: one is not installed.
  """
  kinds = {'tensorboard': _tensorboard, 'wandb': _Wandb, 'mlflow': _Mlflow}
  names = config.loop.writers if jax.process_index() == 0 else ()
  return metric_writers.MultiWriter(
    [kinds[name](config, workdir) for name in names]
  )


def _tensorboard(config: experiment.ExperimentConfig, workdir: str) -> Any:
  del config
  return metric_writers.SummaryWriter(workdir)


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise config_lib.ConfigError(
      f'config loop.writers: {name!r} is not installed: pip install {name}.'
    ) from e


class _Wandb:
  """A run of Weights & Biases; its WANDB_* variables say where and how."""

  def __init__(self, config: experiment.ExperimentConfig, workdir: str):
    self._wandb = _import('wandb')
    path = workdir if '://' in workdir else os.path.abspath(workdir)
    self._run = self._wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'pixel_llm'),
      name=epath.Path(path).name,
      id=hashlib.sha256(path.encode()).hexdigest()[:16],
      resume='allow',
      dir=None if '://' in workdir else workdir,
      config=config_lib.to_dict(config),
    )
    # By steps of its own, W&B would drop those that are done again.
    self._run.define_metric('*', step_metric='step')

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Scalars of a step."""
    values = {k: float(v) for k, v in scalars.items()}
    self._run.log({'step': step, **values})

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Images [N, H, W, 3] uint8 of a step."""
    shown = {k: [self._wandb.Image(i) for i in v] for k, v in images.items()}
    self._run.log({'step': step, **shown})

  def flush(self) -> None:
    """It sends what it has by itself."""

  def close(self) -> None:
    """Ends the run."""
    self._run.finish()


class _Mlflow:
  """A run of MLflow, in `mlflow.db` of the workdir unless told where."""

  def __init__(self, config: experiment.ExperimentConfig, workdir: str):
    mlflow = _import('mlflow')
    self._entities = importlib.import_module('mlflow.entities')
    uri, artifacts = os.environ.get('MLFLOW_TRACKING_URI'), None
    if not uri:
      if '://' in workdir:
        raise config_lib.ConfigError(
          "config loop.writers: 'mlflow' has no database on a bucket; set "
          'MLFLOW_TRACKING_URI.'
        )
      root = os.path.abspath(workdir)
      uri, artifacts = f'sqlite:///{root}/mlflow.db', f'{root}/mlflow'
    self._client = mlflow.MlflowClient(uri)
    kept = epath.Path(workdir) / 'mlflow_run.txt'
    if kept.exists():
      self._run = kept.read_text()
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'pixel_llm')
    found = self._client.get_experiment_by_name(name)
    within = (
      found.experiment_id
      if found
      else self._client.create_experiment(name, artifacts)
    )
    made = self._client.create_run(within, run_name=kept.parent.name)
    self._run = made.info.run_id
    self._client.log_dict(self._run, config_lib.to_dict(config), 'config.json')
    files.write(kept, self._run)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Scalars of a step."""
    now = int(time.time() * 1000)
    metrics = [
      self._entities.Metric(k, float(v), now, step) for k, v in scalars.items()
    ]
    self._client.log_batch(self._run, metrics)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Images [N, H, W, 3] uint8 of a step."""
    for key, several in images.items():
      for image in several:
        self._client.log_image(self._run, image, key=key, step=step)

  def flush(self) -> None:
    """Everything is written at once."""

  def close(self) -> None:
    """The run stays open: whoever goes on writes on in it."""


class Curve:
  """The logged scalars as JSON, for the report; survives restarts.

  Args:
    path: the file.
    start: entries after this step are of a run that was lost; they go.
  """

  def __init__(self, path: epath.Path, start: int):
    self._path = path
    rows = json.loads(path.read_text()) if path.exists() else []
    self.rows = [r for r in rows if r['step'] <= start]

  def add(self, step: int, values: dict[str, float]) -> None:
    """Appends and writes, atomically."""
    self.rows.append({'step': step, **values})
    files.write(self._path, json.dumps(self.rows))
