# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: metrics.json and report.html."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping

import jax
from etils import epath

from pixel_llm import config as config_lib
from pixel_llm import files, report
from pixel_llm.data import registry
from pixel_llm.train import evaluate, experiment

_TARGET = re.compile(r'\s*(\S+)\s*(>=|<=)\s*([-+.\deE]+)\s*')


def flat_metrics(results: Mapping[str, evaluate.Result]) -> dict[str, float]:
  """`<capability>/<metric>`; `<SeqIO task>/<metric>` where two share one."""
  names = [registry.task_of(name).task.name for name in results]
  out = {}
  for name, result in results.items():
    short = registry.task_of(name).task.name
    key = short if names.count(short) == 1 else name
    out |= {f'{key}/{k}': float(v) for k, v in result.metrics.items()}
  return out


def targets(config: experiment.EvalConfig) -> dict[str, tuple[str, float]]:
  """The bounds of `eval.targets`, parsed.

  Raises:
    ConfigError: it is not a metric, >= or <=, and a number.
  """
  out = {}
  for i, text in enumerate(config.targets):
    match = _TARGET.fullmatch(text)
    try:
      assert match is not None
      out[match[1]] = (match[2], float(match[3]))
    except (AssertionError, ValueError) as e:
      raise config_lib.ConfigError(
        f'config eval.targets[{i}]: expected "METRIC >= NUMBER" or '
        f'"METRIC <= NUMBER", got {text!r}.'
      ) from e
  return out


def write_metrics(
  workdir: str, step: int, metrics: Mapping[str, float]
) -> epath.Path:
  """Writes `metrics.json`, atomically; returns its path."""
  path = epath.Path(workdir) / 'metrics.json'
  files.write(path, json.dumps({'step': step, **metrics}, indent=2) + '\n')
  return path


def read_metrics(workdir: str) -> dict[str, float]:
  """What `write_metrics` wrote; empty when there is nothing."""
  path = epath.Path(workdir) / 'metrics.json'
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except json.JSONDecodeError:
    return {}


def write_report(
  workdir: str,
  step: int,
  config: experiment.ExperimentConfig,
  results: Mapping[str, evaluate.Result],
  parameters: int,
) -> epath.Path:
  """Writes `report.html`: metrics, curves and galleries; returns its path."""
  root = epath.Path(workdir)
  curves_file = root / 'curves.json'
  rows = json.loads(curves_file.read_text()) if curves_file.exists() else []
  curves: dict[str, list[tuple[int, float]]] = {}
  for row in rows:
    for name, value in row.items():
      if name != 'step' and not name.startswith(('time/', 'run/')):
        curves.setdefault(name, []).append((row['step'], value))
  sections = [
    report.Section(
      name, [(s.image, s.prediction, s.truth) for s in result.gallery]
    )
    for name, result in results.items()
  ]
  path = root / 'report.html'
  report.write_report(
    str(path),
    f'{root.name}: step {step}',
    flat_metrics(results),
    targets(config.eval),
    sections,
    curves,
    {
      'Steps': f'{step:,}',
      'Parameters': f'{parameters:,}',
      'Device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'Machine': f'{platform.machine()}, {os.cpu_count()} cores',
      'JAX': jax.__version__,
      'Python': platform.python_version(),
    },
  )
  return path
