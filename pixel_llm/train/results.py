# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint of a run, and writes what comes of it.

Below `eval/<step>` of the workdir: a dump a task (`scoring`), `scores.json`
with all metrics and the specs that they are of, `metrics.md` and `report.html`.
Those of the newest checkpoint also lie in the workdir, with `metrics.json`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn

from pixel_llm import config as config_lib
from pixel_llm import files, report, sharding
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.model import pixel_llm
from pixel_llm.train import (
  evaluate,
  experiment,
  loop,
  parameters,
  scoring,
  telemetry,
  writers,
)
from pixel_llm.train import optimizer as optimizer_lib
from pixel_llm.train import state as state_lib

_TARGET = re.compile(r'\s*(\S+)\s*(>=|<=)\s*([-+.\deE]+)\s*')
_SCORES = 'scores.json'


def run(
  workdir: str,
  config: experiment.ExperimentConfig | None = None,
  step: int | None = None,
  tasks: Sequence[str] = (),
  force: bool = False,
  progress: evaluate.Progress | None = None,
  log: Callable[[str], None] = print,
) -> tuple[dict[str, float], epath.Path]:
  """Evaluates a checkpoint; what was answered before is not asked again.

  All processes call it; the first writes and logs.

  Args:
    workdir: of the run.
    config: of the evaluation, whose network is the run's; default the run's
      own.
    step: of the checkpoint; default the newest.
    tasks: of `config.eval.tasks`; default all.
    force: asks again, whatever was answered.
    progress: called with (task, done, all) questions.
    log: gets a line an event.

  Returns: all metrics of the step, by names as of `scoring.flat`, and the
    report.

  Raises:
    ConfigError: the config is not of this run's network or vocabulary, or a
      task is none of its own.
    CheckpointError: no such checkpoint, or it can't be read.
    DumpError: a dump there is damaged, or of another evaluation.
  """
  config = _config(workdir, config, tasks)
  bounds = targets(config.eval)  # before hours of work
  vocabulary = loop.prepare_data(config)
  mesh = sharding.make_mesh(config.mesh)
  telemetry.keep_compiled(config.loop.compile_cache, workdir)
  init = parameters.init_fn(config)
  mask = optimizer_lib.trainable_mask(
    config.optimizer, nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  )
  folder = epath.Path(workdir) / 'checkpoints'
  with manager_lib.CheckpointManager(folder, read_only=True) as checkpoints:
    kept = checkpoints.metadata(step)
    at: int = kept['step']
    newest = checkpoints.latest_step()
    if kept.get('vocabulary') != vocabulary.digest:
      raise config_lib.ConfigError(
        f'config data.vocabulary: {vocabulary.path} (SHA-256 '
        f'{vocabulary.digest[:12]}) is not the vocabulary that step {at} of '
        f'{workdir} was trained with (SHA-256 {str(kept["vocabulary"])[:12]}).'
      )
    params = checkpoints.restore_params(
      state_lib.abstract_params(init, mask, mesh, config.mesh), at
    )
  out = epath.Path(workdir) / 'eval' / str(at)
  first = jax.process_index() == 0
  say = log if first else lambda line: None
  evaluator = evaluate.Evaluator(config, pixel_llm.PixelLLM(config.model), mesh)
  found = evaluator.run(
    params, progress, evaluate.Dumps(str(out), at, force, say)
  )
  asked = {name: result for name, result in found.items() if result.asked}
  if asked:
    writer = writers.make(config, workdir)
    evaluate.show(asked, at, writer, say)
    writer.close()
  if not first:
    return evaluate.flat_metrics(found), out / 'report.html'
  count = sum(x.size for x in jax.tree.leaves(params))
  return write(workdir, at, at == newest, config, found, count, bounds)


def _config(
  workdir: str,
  config: experiment.ExperimentConfig | None,
  tasks: Sequence[str],
) -> experiment.ExperimentConfig:
  """The config of the evaluation, with those tasks."""
  trained = experiment.load(workdir)
  config = config or trained
  lines = config_lib.difference(
    *(config_lib.to_dict(c.model) for c in (trained, config))
  )
  if lines:
    raise config_lib.ConfigError(
      f'config model: not the network of {workdir} (there -> here):\n  '
      + '\n  '.join(lines)
    )
  for name in tasks:
    if name not in config.eval.tasks:
      raise config_lib.ConfigError(
        f'--tasks {name}: expected names of config eval.tasks: '
        f'{", ".join(config.eval.tasks) or "there are none"}.'
      )
  if not tasks:
    return config
  chosen = {name: config.eval.tasks[name] for name in dict.fromkeys(tasks)}
  return dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, tasks=chosen)
  )


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


def write(
  workdir: str,
  step: int,
  newest: bool,
  config: experiment.ExperimentConfig,
  found: Mapping[str, evaluate.Result],
  count: int,
  bounds: Mapping[str, tuple[str, float]],
) -> tuple[dict[str, float], epath.Path]:
  """Writes scores, table and report; returns all metrics, and the report.

  Args:
    workdir: of the run.
    step: that was evaluated.
    newest: it is the newest, so that the workdir's own files are of it.
    config: of the evaluation.
    found: what was evaluated now. Scores that other tasks of the same
      parameters had before stay.
    count: of parameters.
    bounds: metric -> what it must reach.
  """
  root = epath.Path(workdir)
  out = root / 'eval' / str(step)
  scores = _scores(out / _SCORES, found)
  files.write(
    out / _SCORES, json.dumps({'step': step, 'tasks': scores}, indent=2) + '\n'
  )
  metrics = scoring.flat(
    {
      name: (s['spec']['capability'], s['metrics'])
      for name, s in scores.items()
    }
  )
  title = f'{root.name}: step {step}'
  table = _markdown(title, metrics, bounds, scores)
  folders = [out, root] if newest else [out]
  for folder in folders:
    files.write(folder / 'metrics.md', table)
    _write_report(
      folder / 'report.html', root, step, found, metrics, bounds, count
    )
  if newest:
    # Last: its step is the mark that the report is of this checkpoint.
    values = json.dumps({'step': step, **metrics}, indent=2) + '\n'
    files.write(root / 'metrics.json', values)
  return metrics, folders[-1] / 'report.html'


def read_metrics(workdir: str) -> dict[str, float]:
  """What `write` wrote of the newest step; empty when there is nothing."""
  path = epath.Path(workdir) / 'metrics.json'
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except json.JSONDecodeError:
    return {}


def _scores(
  path: epath.Path, found: Mapping[str, evaluate.Result]
) -> dict[str, Any]:
  """Of each task: metrics, spec and its digest; old ones stay if they can."""
  scores: dict[str, Any] = {}
  models = [result.spec['model'] for result in found.values()]
  try:
    old = json.loads(path.read_text())['tasks'] if path.exists() else {}
    scores |= {k: v for k, v in old.items() if v['spec']['model'] in models}
  except (ValueError, KeyError, TypeError, AttributeError):
    pass  # it is made anew
  for name, result in found.items():
    scores[name] = {
      'digest': scoring.digest(result.spec),
      'metrics': result.metrics,
      'spec': result.spec,
    }
  return scores


def _markdown(
  title: str,
  metrics: Mapping[str, float],
  bounds: Mapping[str, tuple[str, float]],
  scores: Mapping[str, Any],
) -> str:
  rows = [
    (
      name,
      score['spec']['questions'],
      f'{score["spec"]["data"]["split"]}, {score["spec"]["data"]["digest"]}',
      score['spec']['model'].get('params', ''),
      f'{score["spec"]["code"]["version"]}, {score["spec"]["code"]["source"]}',
      score['digest'],
    )
    for name, score in scores.items()
  ]
  heads = ('task', 'questions', 'data', 'parameters', 'code', 'spec')
  return (
    f'# {title}\n\n{report.markdown(metrics, bounds)}\n'
    + 'Digests of what was asked; `scores.json` has the specs.\n\n'
    + report.markdown_table(heads, rows)
  )


def _write_report(
  path: epath.Path,
  root: epath.Path,
  step: int,
  found: Mapping[str, evaluate.Result],
  metrics: Mapping[str, float],
  bounds: Mapping[str, tuple[str, float]],
  count: int,
) -> None:
  """Writes `report.html`: metrics, curves and galleries."""
  curves_file = root / 'curves.json'
  rows = json.loads(curves_file.read_text()) if curves_file.exists() else []
  curves: dict[str, list[tuple[int, float]]] = {}
  for row in rows:
    for name, value in row.items():
      if name != 'step' and not name.startswith(('time/', 'run/')):
        curves.setdefault(name, []).append((row['step'], value))
  sections = []
  for name, result in found.items():
    by = f' by {result.rank.replace("_", " ")}' if result.rank else ''
    for why in ('best', 'worst', 'random'):
      shown = [s for s in result.gallery if s.why == why]
      if shown:
        sections.append(
          report.Section(
            f'{name}: {why}{by if why != "random" else ""}',
            [(s.image, s.predictions, s.truth) for s in shown],
            [f'{s.rank:.3g}' for s in shown] if result.rank else (),
          )
        )
  report.write_report(
    str(path),
    f'{root.name}: step {step}',
    metrics,
    bounds,
    sections,
    curves,
    {name: r.reliability for name, r in found.items() if r.reliability},
    {
      'Steps': f'{step:,}',
      'Parameters': f'{count:,}',
      'Device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'Machine': f'{platform.machine()}, {os.cpu_count()} cores',
      'JAX': jax.__version__,
      'Python': platform.python_version(),
      **{
        f'Spec of {name}, {scoring.digest(result.spec)}': json.dumps(
          result.spec, indent=2
        )
        for name, result in found.items()
      },
    },
  )
