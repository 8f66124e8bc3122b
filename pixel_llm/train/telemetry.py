# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run's time goes: shares, FLOPs, memory, goodput and profiles."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from pixel_llm import chips, compiled, files
from pixel_llm.model import pixel_llm

_GIB = 2**30
# Steps that a signal has traced.
_TRACED = 5


class Meter:
  """Measures a run from the host.

  `with meter('save'):` says what the host is at. The kinds `data` and `step`
  are the pace of training. At most two steps are under way, so that what is
  waited for is known: the step before, or data that the devices soon lack. A
  stream's first step is of the kind `compile`.

  Over restarts, `goodput.json` has the seconds of each kind since the run first
  began. Steps that are done again count once, the time they took before is
  `lost`; what a process did after it last wrote is in no kind.

  Args:
    workdir: of the run.
    devices: of the mesh.
    flops: of a step, from its function, state and batch; all devices'.
    began: seconds since the epoch when this process set out.
  """

  def __init__(
    self,
    workdir: str,
    devices: Sequence[Any],
    flops: Callable[[Any, Any, Any], float],
    began: float,
  ):
    self._devices, self._flops = devices, flops
    self._flops_of: dict[str, float] = {}
    self._seconds = collections.defaultdict(float, start=time.time() - began)
    self._done: dict[str, float] = collections.defaultdict(float)
    self._before: Any = None
    self._path = epath.Path(workdir) / 'goodput.json'
    self._began, self._saved = began, {0: 0.0}
    self._total: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def __call__(self, kind: str) -> Iterator[None]:
    """Measures what is done within."""
    before = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[kind] += time.perf_counter() - before

  def resume(self, start: int) -> None:
    """Takes up the counts of a run that goes on from a step."""
    if self._path.exists():
      run = json.loads(self._path.read_text())
      self._began = run['began']
      self._total.update(run['seconds'])
      saved = {int(k): s for k, s in run['saved'].items() if int(k) <= start}
      self._saved |= saved
    kept = self._saved[max(self._saved)]
    self._total['lost'] += self._total['step'] - kept
    self._total['step'] = kept
    self._end_interval()

  def step(self, name: str, function: Callable, state: Any, batch: Any) -> Any:
    """Runs a step of a stream; returns when the one before it is done."""
    if name not in self._flops_of:
      with self('compile'):
        self._flops_of[name] = self._flops(function, state, batch)
        return jax.block_until_ready(function(state, batch))
    with self('step'):
      result = function(state, batch)
      jax.block_until_ready(self._before)
      self._before = result[1]
    self._done['steps'] += 1
    self._done['examples'] += batch.image.shape[0]
    self._done['flops'] += self._flops_of[name]
    return result

  def settle(self) -> None:
    """Returns when all steps are done."""
    with self('step'):
      jax.block_until_ready(self._before)

  def saved(self, step: int) -> None:
    """A checkpoint keeps the work up to a step."""
    self._saved[step] = self._total['step'] + self._seconds['step']
    self._write()

  def interval(self) -> dict[str, float]:
    """Scalars of the time since this was called before.

    `time/KIND` are shares of it, `time/other` is the loop's own. Of the time at
    training's pace, if steps but the first were taken: `examples_per_second`,
    `run/seconds_per_step`, `run/tflops_per_second`, and `run/mfu` of the
    peak in bfloat16 where it is known. `run/goodput` is the share of steps that
    count in the time since the run first began, `run/memory_gib` and
    `run/memory_peak_gib` are of this process's fullest device.
    """
    elapsed = time.perf_counter() - self._interval_began
    values = {f'time/{k}': s / elapsed for k, s in self._seconds.items()}
    values['time/other'] = 1 - sum(values.values())
    pace = self._seconds['data'] + self._seconds['step']
    if self._done['steps']:
      values['examples_per_second'] = self._done['examples'] / pace
      values['run/seconds_per_step'] = pace / self._done['steps']
      flops = self._done['flops'] / pace
      values['run/tflops_per_second'] = flops / 1e12
      chip = chips.of_kind(self._devices[0].device_kind)
      if chip is not None:
        values['run/mfu'] = flops / (chip.flops * len(self._devices))
    stats = [d.memory_stats() for d in self._devices if _is_local(d)]
    for name, key in (
      ('run/memory_gib', 'bytes_in_use'),
      ('run/memory_peak_gib', 'peak_bytes_in_use'),
    ):
      found = [s[key] / _GIB for s in stats if s and key in s]
      if found:
        values[name] = max(found)
    self._end_interval()
    values['run/goodput'] = self._write()
    return values

  def _end_interval(self) -> None:
    for kind, seconds in self._seconds.items():
      self._total[kind] += seconds
    self._seconds.clear()
    self._done.clear()
    self._interval_began = time.perf_counter()

  def _write(self) -> float:
    """Writes `goodput.json` and returns the goodput."""
    kinds = {**self._total, **self._seconds}
    total = {k: self._total[k] + self._seconds.get(k, 0.0) for k in kinds}
    goodput = total.get('step', 0.0) / (time.time() - self._began)
    if jax.process_index() == 0:
      values = {
        'began': self._began,
        'goodput': goodput,
        'seconds': total,
        'saved': self._saved,
      }
      files.write(self._path, json.dumps(values, indent=2) + '\n')
    return goodput


def _is_local(device: Any) -> bool:
  return device.process_index == jax.process_index()


def without_remat(config: pixel_llm.ModelConfig) -> pixel_llm.ModelConfig:
  """The network that computes nothing twice, whose work is that of the step."""
  parts = {}
  for field in dataclasses.fields(config):
    part = getattr(config, field.name)
    if hasattr(part, 'remat'):
      parts[field.name] = dataclasses.replace(part, remat='none')
  return dataclasses.replace(config, **parts)


class Profiler:
  """Traces of steps, for TensorBoard and Perfetto.

  Args:
    folder: where to write, by JAX's profiler.
    steps: the first and the last step to trace; None traces none until a
      SIGUSR1 asks for the next five.
    log: gets a line a trace.
  """

  def __init__(
    self,
    folder: str,
    steps: tuple[int, int] | None,
    log: Callable[[str], None],
  ):
    self._folder, self._steps, self._log = folder, steps, log
    self._asked, self._last = False, 0

  def begin(self, step: int) -> None:
    """Before a step."""
    if self._last:
      return
    if self._steps and self._steps[0] <= step <= self._steps[1]:
      self._last = self._steps[1]
    elif self._asked:
      self._last = step + _TRACED - 1
    if self._last:
      self._asked = False
      jax.profiler.start_trace(self._folder)

  def end(self, step: int, result: Any) -> None:
    """After a step; waits for its result if it is the last that is traced."""
    if self._last and step >= self._last:
      jax.block_until_ready(result)
      jax.profiler.stop_trace()
      self._last = 0
      self._log(f'profile up to step {step}: {self._folder}')

  def __enter__(self) -> Profiler:
    self._handler = None
    # Outside of the main thread the caller handles signals.
    with contextlib.suppress(ValueError):
      self._handler = signal.signal(signal.SIGUSR1, self._ask)
    return self

  def _ask(self, *_: Any) -> None:
    self._asked = True

  def __exit__(self, *_: Any) -> None:
    if self._handler is not None:
      signal.signal(signal.SIGUSR1, self._handler)
    if self._last:
      jax.profiler.stop_trace()


def keep_compiled(path: str, workdir: str) -> None:
  """Has JAX keep compiled programs on disk, unless it was told where before.

  Args:
    path: a folder, below the workdir unless absolute or a bucket's; '' keeps
      none.
    workdir: of the run.
  """
  where = path if '://' in path else os.path.join(workdir, path)
  compiled.keep(where if path else None)
