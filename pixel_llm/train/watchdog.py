# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""How a run ends: by a signal, with a process that fails, or when it stalls."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from etils import epath
from jax.experimental import multihost_utils

from pixel_llm import exits, files
from pixel_llm.train import store

_ENDED, _LEFT = 'pixel_llm/ended', 'pixel_llm/left'
_POLL_SECONDS = 1.0
# Process 0 holds the key-value store, so it leaves last; for as long as this.
LINGER_SECONDS = 10.0


class Watchdog:
  """Ends this process when its run stands still, or has ended elsewhere.

  A context; a thread looks. When no step finishes for a time, the stacks of all
  threads go to stderr and a file, on all processes, and all exit with
  `exits.STALLED`. When another process has failed, this one does not wait for
  it.

  Args:
    seconds: without a finished step until it is a stall; 0 for never.
    folder: of the files of stacks, one a process.
  """

  def __init__(self, seconds: float, folder: epath.PathLike):
    self._seconds, self._folder = seconds, epath.Path(folder)
    self._stop = threading.Event()
    self._running: collections.deque[tuple[int, Any]] = collections.deque()
    self._last, self._step = time.monotonic(), 0
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def __enter__(self) -> Watchdog:
    self._last = time.monotonic()
    self._thread.start()
    return self

  def __exit__(self, error: Any, *_: Any) -> None:
    if error and store.joined():
      # It may come of another's end, whose own word says more.
      time.sleep(2 * _POLL_SECONDS)
    self._stop.set()
    self._thread.join()

  def begun(self, step: int, result: jax.Array) -> None:
    """A step is under way, and has finished when its result is there."""
    self._running.append((step, result))

  def alive(self, *_: Any) -> None:
    """Something else than a step goes on."""
    self._last = time.monotonic()

  def _watch(self) -> None:
    poll = min(_POLL_SECONDS, self._seconds / 4 or _POLL_SECONDS)
    while not self._stop.wait(poll):
      while self._running and self._running[0][1].is_ready():
        self._step = self._running.popleft()[0]
        self._last = time.monotonic()
      for end in _ended().values():
        _say(f'process {end.index} ({end.host}): {end.message}')
        if end.code == exits.STALLED:
          self._dump()
        _leave(end)
      if self._seconds and time.monotonic() - self._last > self._seconds:
        end = _end(
          exits.STALLED,
          f'no step finished for {self._seconds:g} seconds '
          f'(loop.stall_seconds), the last was {self._step}; stacks of all '
          f'threads are in {self._folder}',
        )
        # Before this one's are written, so that they are of the same moment.
        _tell(end)
        _say(f'process {end.index} ({end.host}): {end.message}')
        self._dump()
        _leave(end)

  def _dump(self) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2)
    with tempfile.TemporaryFile() as file:
      faulthandler.dump_traceback(file)
      file.seek(0)
      stacks = file.read()
    name = f'{store.index()}.txt'
    # What hangs may be the very file system.
    writer = threading.Thread(
      target=_try_write, args=(self._folder / name, stacks), daemon=True
    )
    writer.start()
    writer.join(LINGER_SECONDS)


def _try_write(path: epath.Path, data: bytes) -> None:
  try:
    files.write(path, data)
  except OSError as e:
    _say(f'{path}: {e.strerror}')


class Stop:
  """Turns SIGTERM and SIGINT into a wish that a loop reads; a context.

  Of several processes any may be asked. JAX, which then handles SIGTERM, agrees
  on a step while steps go on.

  Attributes:
    asked: the signal, once `at` has said so.
  """

  asked: str = ''

  def __enter__(self):
    self._before = {}
    alone = jax.process_count() == 1
    for number in (signal.SIGTERM, signal.SIGINT)[0 if alone else 1 :]:
      # Outside of the main thread the caller handles signals.
      with contextlib.suppress(ValueError):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def _ask(self, number, _):
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.asked = signal.Signals(number).name

  def at(self, step: int) -> bool:
    """Whether to stop after this step; equal on all processes."""
    if multihost_utils.reached_preemption_sync_point(step):
      self.asked = 'SIGTERM of a process'
    return bool(self.asked)

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class _End:
  """Why a process ended first, and the others after it."""

  code: int
  index: int
  host: str
  message: str


def _end(code: int, message: str) -> _End:
  return _End(code, store.index(), store.host(), message)


@contextlib.contextmanager
def telling() -> Iterator[None]:
  """Has the others end when this fails, before what is around waits for them.

  As a save does that is under way.
  """
  try:
    yield
  except Exception as e:
    _tell(_end(exits.FAILED, str(e) or type(e).__name__))
    raise


def leave(code: int, message: str) -> NoReturn:
  """Ends this process, and has the others of its cluster end too.

  JAX would wait for the others first, which wait for this one.
  """
  _leave(_end(code, message))


def _leave(end: _End) -> NoReturn:
  _tell(end)
  if store.joined():
    store.try_put(f'{_LEFT}/{store.index()}', '')
    # The others look around before what they wait for is gone; and last goes
    # process 0, as it holds the store.
    deadline = time.monotonic() + LINGER_SECONDS
    while len(store.all_of(_LEFT)) < store.count():
      if time.monotonic() > deadline:
        break
      time.sleep(0.1)
    if store.index() == 0:
      time.sleep(1)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(end.code)


def _tell(end: _End) -> None:
  if store.joined():
    store.try_put(
      f'{_ENDED}/{store.index()}', json.dumps(dataclasses.asdict(end))
    )


def _ended() -> dict[int, _End]:
  """Why other processes have ended, by their index."""
  found = {k: _End(**json.loads(v)) for k, v in store.all_of(_ENDED).items()}
  found.pop(store.index(), None)
  return found


def _say(line: str) -> None:
  print(f'pixel-llm: {line}', file=sys.stderr, flush=True)
