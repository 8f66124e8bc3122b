# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: restore, iterate, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax.experimental import multihost_utils

from pixel_llm import chips, files, sharding
from pixel_llm import config as config_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import initialization
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.checkpoints.tensors import Tensors
from pixel_llm.data import datasets, registry
from pixel_llm.data import loader as loader_lib
from pixel_llm.model import pixel_llm
from pixel_llm.train import (
  evaluate,
  experiment,
  guard,
  parameters,
  precompute,
  store,
  telemetry,
  writers,
)
from pixel_llm.train import optimizer as optimizer_lib
from pixel_llm.train import state as state_lib
from pixel_llm.train import step as step_lib
from pixel_llm.train import watchdog as watchdog_lib

Log = Callable[[str], None]
# (step, stream, metrics).
Row = tuple[int, str, dict[str, Any]]
# (step, steps) after every step.
Progress = Callable[[int, int], None]

VOCABULARY_FILE = 'spiece.model'


class Preempted(Exception):
  """Asked to stop by a signal; the state is saved."""


class Trainer:
  """A run: its network, mesh, optimizer, data and checkpoints.

  Args:
    config: the experiment.
    workdir: where everything of the run is written.
    log: gets a line an event; on process 0.
    devices: default `jax.devices()`.
    programs: steps that are compiled already, of streams by `train/STREAM`, as
      `plan.load` gives them; the others are compiled.

  Raises:
    ConfigError: the config contradicts itself, its data or the workdir.
    MappingError: sources of `init` do not fit the model.
    TensorFileError: one is damaged, or of no known format.
  """

  def __init__(
    self,
    config: experiment.ExperimentConfig,
    workdir: str,
    log: Log = print,
    devices: list | None = None,
    programs: Mapping[str, Callable[..., Any]] | None = None,
  ):
    self._began, self._programs = time.time(), programs or {}
    self._first = jax.process_index() == 0
    self._log = log if self._first else lambda line: None
    self.config, self.workdir = config, workdir
    self.mesh = sharding.make_mesh(config.mesh, devices)
    experiment.check(config, workdir)
    _check_best(config)
    self.vocabulary = prepare_data(config)
    self.model = pixel_llm.PixelLLM(config.model)
    self._init = parameters.init_fn(config)
    abstract = nn.unbox(jax.eval_shape(self._init, jax.random.key(0)))
    self._mask = optimizer_lib.trainable_mask(config.optimizer, abstract)
    self._optimizer = optimizer_lib.make(
      config.optimizer,
      config.loop.steps,
      abstract,
      withhold=config.loop.on_bad_step == 'skip' or config.loop.spike > 0,
      spike=config.loop.spike,
    )
    self._schedule = optimizer_lib.schedule(config.optimizer, config.loop.steps)
    # Before anything is written, so that the workdir may have another config.
    self._sources = self._open_sources()
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('sources')
    if self._first:
      experiment.save(config, workdir)
    keep_vocabulary(self.vocabulary, workdir)
    telemetry.keep_compiled(config.loop.compile_cache, workdir)
    self.checkpoints = manager_lib.CheckpointManager(
      epath.Path(workdir) / 'checkpoints', config.checkpoint
    )
    self._failed_saves: list[manager_lib.CheckpointError] = []
    sizes = [
      (x.size, bool(m))
      for x, m in zip(jax.tree.leaves(abstract), jax.tree.leaves(self._mask))
    ]
    self._log(
      f'parameters: {sum(n for n, _ in sizes):,}, of which '
      f'{sum(n for n, m in sizes if m):,} are trained; mesh '
      f'{dict(self.mesh.shape)}'
    )

  def _abstract(self) -> state_lib.TrainState:
    return state_lib.abstract(
      self._init, self._optimizer, self._mask, self.mesh, self.config.mesh
    )

  def _open_sources(self) -> dict[str, Tensors]:
    """What a new run starts from; nothing for one that goes on."""
    folder = epath.Path(self.workdir) / 'checkpoints'
    if self.config.init is None:
      return {}
    if folder.exists():
      with manager_lib.CheckpointManager(folder, read_only=True) as reader:
        if reader.latest_step() is not None:
          return {}
    return initialization.open_sources(
      self.config.init, self._abstract().params
    )

  def create(self) -> state_lib.TrainState:
    """A fresh state, of parameters from the sources as far as they go."""
    given = None
    if self._sources:
      assert self.config.init is not None
      abstract = self._abstract().params
      tensors = {n: t for s in self._sources.values() for n, t in s.items()}
      given = initialization.place(tensors, abstract)
      for key, source in self._sources.items():
        path = self.config.init.sources[key].path
        self._log(f'init: {_counted(source.values())} from {key} ({path})')
      drawn, _ = state_lib.split(
        abstract,
        jax.tree.map(lambda x: x is None, given, is_leaf=lambda x: x is None),
      )
      self._log(
        f'init: {_counted(jax.tree.leaves(drawn))} drawn from seed '
        f'{self.config.seed}'
      )
    return state_lib.create(
      self._init,
      self._optimizer,
      self._mask,
      self.mesh,
      self.config.mesh,
      jax.random.key(self.config.seed),
      given,
    )

  def restore_or_create(self) -> state_lib.TrainState:
    """The newest whole checkpoint of the workdir, or a fresh state.

    Newer ones that are damaged are moved out of the way, into
    `checkpoints.damaged`.

    Raises:
      CheckpointError: no checkpoint that there is can be read, or the one that
        can does not fit.
      ConfigError: it was trained with another vocabulary.
      TensorFileError: a source of `init` is damaged.
      ValueError: it has NaN or infinite numbers.
    """
    steps = self.checkpoints.steps()
    if not steps:
      return self.create()
    for step in reversed(steps):
      try:
        self._check(step)
        return self.restore(step)
      except manager_lib.DamagedCheckpointError as e:
        if step == steps[0]:
          raise
        where = self.checkpoints.set_aside(step)
        self._log(f'passed over, and moved to {where}: {e}')
    raise AssertionError('the oldest is restored or raises')

  def _check(self, step: int) -> None:
    """Looks for damage on one process, and tells all."""
    damage = None
    if jax.process_index() == 0:
      try:
        self.checkpoints.check(step)
      except manager_lib.DamagedCheckpointError as e:
        damage = e
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(
      np.asarray(damage is not None)
    ):
      damage = damage or manager_lib.DamagedCheckpointError(
        f'{self.workdir}: step {step} is damaged.'
      )
    if damage is not None:
      raise damage

  def restore(self, step: int) -> state_lib.TrainState:
    """The state of a checkpoint."""
    metadata = self.checkpoints.metadata(step)
    if metadata.get('vocabulary') != self.vocabulary.digest:
      raise config_lib.ConfigError(
        f'{self.workdir}: step {step} was trained with the vocabulary of '
        f'SHA-256 {metadata.get("vocabulary")}, but {self.vocabulary.path} '
        f'has {self.vocabulary.digest}.'
      )
    self._log(f'resuming at step {step}')
    restored = self.checkpoints.restore(self._abstract(), step)
    return optimizer_lib.swap_average(restored)

  def restore_params(self) -> tuple[int, Any]:
    """(step, parameters on the mesh) of the newest checkpoint."""
    abstract = self._abstract().params
    step = self.checkpoints.latest_step()
    return step or 0, self.checkpoints.restore_params(abstract, step)

  def save(
    self,
    step: int,
    state: state_lib.TrainState,
    metrics: dict[str, float] | None = None,
    last: bool = False,
  ) -> None:
    """A checkpoint of `state`; the data position is the step itself.

    With `optimizer.ema` its parameters are their mean, for all who read nothing
    else, and those of the step are kept with the optimizer.

    A save that fails is logged, and training goes on to the next one. It is
    known to have failed at the latest when the next one starts.

    Args:
      step: its name.
      state: what is saved.
      metrics: of an evaluation of it.
      last: waits for it, and tries a second time if it failed.

    Raises:
      CheckpointError: the `checkpoint.max_failed_saves`-th failed in a row, the
        second that hung, or the last one twice; or one of several processes,
        which could not go on together.
    """
    metadata = {
      'step': step,
      'vocabulary': self.vocabulary.digest,
      'seed': self.config.seed,
    }
    if metrics is not None:
      metadata['metrics'] = metrics
    state = optimizer_lib.swap_average(state)
    try:
      if self.checkpoints.wait():
        self._failed_saves = []
    except manager_lib.CheckpointError as e:
      self._failed_save(e)
    for tries_left in (1, 0) if last else (0,):
      try:
        self.checkpoints.save(step, state, metadata, self._mask)
        if last:
          self.checkpoints.wait()
        return
      except manager_lib.CheckpointError as e:
        self._failed_save(e)
        if last and not tries_left:
          raise

  def _failed_save(self, error: manager_lib.CheckpointError) -> None:
    """Logs it; raises it if it was one too many."""
    self._failed_saves.append(error)
    hung = [
      isinstance(e, manager_lib.HungSaveError) for e in self._failed_saves
    ]
    most = self.config.checkpoint.max_failed_saves
    if len(hung) >= most or sum(hung) > 1 or jax.process_count() > 1:
      raise error
    self._log(
      f'checkpoint failed, {len(hung)} in a row of at most {most}; training '
      f'goes on: {error}'
    )

  def loader(self) -> loader_lib.Loader:
    """The batches of the run, by step."""
    data, maps = self.config.data, {}
    if data.image_maps:
      maps = precompute.open_streams(self.config, self._log)
    streams = {
      k: loader_lib.Stream(s.mixture, data.sizes(s), s.rate, maps.get(k))
      for k, s in data.streams.items()
    }
    return loader_lib.Loader(
      streams,
      self.config.seed,
      process=sharding.data_share(self.mesh),
      workers=self.config.loop.workers,
      max_damaged=self.config.loop.max_damaged,
    )

  def step_fn(self):
    """The jitted training step: (state, batch) -> (state, metrics)."""
    step = step_lib.make(self.config, self.model, self._mask, self._optimizer)
    return jax.jit(step, donate_argnums=0)

  def placed(self):
    """Where steps run: mesh and rules, as a context."""
    return sharding.placed(self.mesh, self.config.mesh)

  def train(
    self,
    progress: Progress | None = None,
    watchdog: watchdog_lib.Watchdog | None = None,
  ) -> state_lib.TrainState:
    """Runs to the last step, from wherever the workdir is.

    A SIGTERM or SIGINT of any process saves first.

    Args:
      progress: called after every step.
      watchdog: is told of every step; default nobody is.

    Raises:
      Preempted: a signal ended it; everything done so far is saved.
      FloatingPointError: a step is not finite, or a spike.
    """
    loop = self.config.loop
    meter = telemetry.Meter(
      self.workdir, list(self.mesh.devices.flat), self.step_flops, self._began
    )
    with meter('restore'):
      state = self.restore_or_create()
    start = int(state.step)
    if start >= loop.steps:
      self._log(f'training is complete: step {start} of {loop.steps}')
      return state
    meter.resume(start)
    loader = self.loader()
    maps = {k: s.maps for k, s in loader.streams.items() if s.maps}
    precompute.check_parameters(maps, state.params)
    parts = self.mesh.shape['data'] * loop.microbatches
    for name, stream in loader.streams.items():
      if loop.microbatches < 1 or stream.sizes.batch % parts:
        raise config_lib.ConfigError(
          f'config data.streams.{name}.batch: {stream.sizes.batch} does not '
          f'divide by {parts}, the devices of the data axis times '
          'loop.microbatches.'
        )
    batch_sharding = sharding.batch_sharding(self.mesh)
    batches = loader_lib.on_device(loader.batches(start), batch_sharding)
    step_fn = self.step_fn()
    writer = writers.make(self.config, self.workdir)
    curve = writers.Curve(epath.Path(self.workdir) / 'curves.json', start)
    judge = guard.Judge(
      loop.on_bad_step == 'skip', int(state.opt_state.skipped)
    )
    stop = watchdog_lib.Stop()
    profiler = telemetry.Profiler(
      os.path.join(self.workdir, 'profile'), loop.profile, self._log
    )

    def evaluated():
      with meter('eval'):
        return self.evaluate(
          optimizer_lib.swap_average(state).params,
          step,
          writer,
          watchdog.alive if watchdog else None,
        )

    rows: list[Row] = []  # on the device
    seen: list[Row] = []  # looked at, not yet logged
    saved, reported = start, 0
    with (
      stop,
      profiler,
      contextlib.closing(batches),
      self.placed(),
    ):
      for step in range(start + 1, loop.steps + 1):
        with meter('data'):
          name, batch = next(batches)
        profiler.begin(step)
        taken_by = self._programs.get(f'train/{name}', step_fn)
        state, metrics = meter.step(name, taken_by, state, batch)
        profiler.end(step, metrics)
        if watchdog:
          watchdog.begun(step, metrics['loss'])
        rows.append((step, name, metrics))
        last = stop.at(step) or step == loop.steps
        if progress:
          progress(step, loop.steps)
        logs = step % loop.log_every == 0 or last
        saves = step % loop.checkpoint_every == 0 or last
        if logs or saves:
          meter.settle()
          with meter('log'):
            seen += self._judge(judge, loader, jax.device_get(rows))
            rows = []
        if logs:
          with meter('log'):
            values = _means(seen)
            # Skipped steps do not move the schedule.
            taken = step - 1 - judge.skipped
            values['learning_rate'] = float(self._schedule(taken))
            values['skipped'] = float(judge.skipped)
            damaged = loader.damaged
            values['damaged_examples'] = float(
              store.total('damaged', len(damaged))
            )
            for message in damaged[reported:]:
              self._say(f'passed over: {message}')
            reported = len(damaged)
            for at, _, metrics in seen:
              writer.write_scalars(at, {'grad_norm': metrics['grad_norm']})
            seen = []
          values |= meter.interval()
          with meter('log'):
            writer.write_scalars(step, values)
            curve.add(step, values)
            self._log(_line(step, loop.steps, values))
        due = loop.eval_every and step % loop.eval_every == 0
        scores = None
        # Saved first, a step is safe while it is evaluated; but what is best
        # is known only after.
        if due and self.config.checkpoint.keep_best and not stop.asked:
          scores = evaluate.flat_metrics(evaluated())
          self._check_metric(scores)
        if saves:
          with meter('save'):
            self.save(step, state, scores, last)
          saved = step
          meter.saved(step)
        if due and scores is None and not last:
          evaluated()
        if last:
          break
    writer.close()
    if stop.asked and saved < loop.steps:
      raise Preempted(
        f'stopped by {stop.asked} at step {saved} of {loop.steps}; the state '
        'is saved, the same command goes on from there'
      )
    return state

  def _say(self, line: str) -> None:
    """Logs what this process alone knows."""
    if self._first:
      self._log(line)
    else:
      print(f'process {jax.process_index()}: {line}', flush=True)

  def _check_metric(self, metrics: dict[str, float]) -> None:
    """Raises a ConfigError if `checkpoint.best_metric` is none of them."""
    name = self.config.checkpoint.best_metric
    if name not in metrics:
      raise config_lib.ConfigError(
        f'config checkpoint.best_metric: {name!r} is not evaluated; there are '
        f'{", ".join(sorted(metrics))}.'
      )

  def step_flops(self, step_fn, state, batch) -> float:
    """FLOPs of a step, all devices'; none of what is only done again."""
    config = dataclasses.replace(
      self.config,
      model=telemetry.without_remat(self.config.model),
      loop=dataclasses.replace(self.config.loop, microbatches=1),
    )
    if config != self.config or not hasattr(step_fn, 'trace'):
      model = pixel_llm.PixelLLM(config.model)
      step_fn = jax.jit(
        step_lib.make(config, model, self._mask, self._optimizer)
      )
    return chips.model_flops(step_fn.trace(state, batch).jaxpr)

  def _judge(
    self, judge: guard.Judge, loader: loader_lib.Loader, rows: list[Row]
  ) -> list[Row]:
    """The rows of steps that were taken.

    Raises:
      FloatingPointError: one is not to be taken; its batch is kept.
    """
    skipped, bad = judge.look([(step, metrics) for step, _, metrics in rows])
    for step in skipped:
      self._log(
        f'step {step} is skipped: its gradient is not finite or a spike'
      )
    if bad is not None:
      step, why = bad
      kept = guard.keep_batch(self.workdir, loader, step, why)
      raise FloatingPointError(
        f'step {step}, stream {loader.slots(step - 1)[0]}: {why}. The '
        f'checkpoints before it are kept, and its batch is in {kept}; '
        f'`pixel-llm replay --workdir {self.workdir} --step {step}` says which '
        'examples it was. If it is none of them, lower '
        "optimizer.learning_rate; loop.on_bad_step 'skip' goes on without such "
        'steps.'
      )
    return [row for row in rows if row[0] not in skipped]

  def evaluate(
    self,
    params,
    step: int,
    writer: Any = None,
    progress: evaluate.Progress | None = None,
  ) -> dict[str, evaluate.Result]:
    """Evaluates; scalars and pictures go to TensorBoard."""
    evaluator = evaluate.Evaluator(self.config, self.model, self.mesh)
    found = evaluator.run(params, progress)
    own = writer or writers.make(self.config, self.workdir)
    evaluate.show(found, step, own, self._log)
    if writer is None:
      own.close()
    return found


def _check_best(config: experiment.ExperimentConfig) -> None:
  """Raises a ConfigError if no checkpoint could be the best."""
  if not config.checkpoint.keep_best:
    return
  every, saved = config.loop.eval_every, config.loop.checkpoint_every
  if not every or every % saved:
    raise config_lib.ConfigError(
      f'config loop.eval_every: expected a multiple of the {saved} of '
      f'loop.checkpoint_every, since checkpoint.keep_best is set, got {every}.'
    )
  if not config.eval.tasks:
    raise config_lib.ConfigError(
      'config eval.tasks: expected some, since checkpoint.keep_best is set, '
      'got none.'
    )


def prepare_data(
  config: experiment.ExperimentConfig,
) -> vocabulary_lib.Vocabulary:
  """Reads the vocabulary and registers the config's SeqIO tasks.

  Raises:
    ConfigError: the vocabulary does not fit the model, a module of
      `data.modules` can't be imported, or a name is no task.
  """
  data = config.data
  vocabulary = vocabulary_lib.Vocabulary(data.vocabulary, data.extra_ids)
  if vocabulary.size > config.model.t5.vocab_size:
    raise config_lib.ConfigError(
      f'config model.t5.vocab_size: the vocabulary {data.vocabulary} has '
      f'{vocabulary.size} ids, more than the {config.model.t5.vocab_size} '
      'rows of the embedding.'
    )
  registry.use_vocabulary(vocabulary)
  datasets.register(data.records, data.augmentation, data.prompts)
  if data.modules and os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())  # a script has its own folder there alone
  for i, module in enumerate(data.modules):
    try:
      importlib.import_module(module)
    except ImportError as e:
      raise config_lib.ConfigError(
        f'config data.modules[{i}]: {module!r} cannot be imported: {e}.'
      ) from e
  datasets.add_mixtures(data.mixtures)
  return vocabulary


def keep_vocabulary(
  vocabulary: vocabulary_lib.Vocabulary, workdir: str
) -> None:
  """Copies the vocabulary into the workdir, so that it is whole by itself.

  Raises:
    ConfigError: the workdir has another one.
  """
  kept = epath.Path(workdir) / VOCABULARY_FILE
  if kept.exists():
    other = vocabulary_lib.Vocabulary(str(kept), vocabulary.extra_ids)
    if other.digest != vocabulary.digest:
      raise config_lib.ConfigError(
        f'config data.vocabulary: {vocabulary.path} (SHA-256 '
        f'{vocabulary.digest[:12]}) is not the vocabulary that {workdir} was '
        f'trained with (SHA-256 {other.digest[:12]}).'
      )
    return
  if jax.process_index() == 0:
    files.write(kept, epath.Path(vocabulary.path).read_bytes())


def _counted(leaves: Iterable[Any]) -> str:
  sizes = [leaf.size for leaf in leaves]
  return f'{len(sizes)} parameters, {sum(sizes):,} numbers'


def _means(rows: list[Row]) -> dict[str, float]:
  """The mean of each stream's metrics."""
  found: dict[str, list[float]] = {}
  for _, name, metrics in rows:
    for key, value in metrics.items():
      if key != 'skipped':
        found.setdefault(f'{name}/{key}', []).append(value)
  return {k: float(np.mean(v)) for k, v in found.items()}


def _line(step: int, steps: int, values: dict[str, float]) -> str:
  losses = ' '.join(
    f'{k} {v:.3f}'
    for k, v in values.items()
    if k.endswith(('word_loss', 'point_l1'))
  )
  line = f'step {step}/{steps} {losses}'
  if 'examples_per_second' in values:  # else all that was done is compiled
    left = values['run/seconds_per_step'] * (steps - step)
    line += (
      f' {values["examples_per_second"]:.1f} examples/s, data wait '
      f'{values.get("time/data", 0.0):.0%}, {_clock(left)} left'
    )
  return line


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}'
    if hours
    else (f'{minutes}:{seconds:02}')
  )
