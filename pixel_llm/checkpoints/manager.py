# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: asynchronous, exact, and onto any mesh.

A checkpoint is a folder named by its step with three items: `params`, the tree
by its own names; `train`, the rest of the state; `metadata`, JSON. A reader of
one item does not touch the others. Beside them `digests.json` has the SHA-256
of every file, by which damage is known; a save that was killed before it was
written has none, and neither have buckets, which look after their bytes.

Frozen parameters are not in `params` but once in `base-<digest>`, beside the
steps, which is complete before a step that needs it is. `metadata` has the
digest of their values as `base`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from pixel_llm import files
from pixel_llm.checkpoints import digest as digest_lib
from pixel_llm.checkpoints import trees
from pixel_llm.checkpoints.formats import orbax

_PARAMS, _TRAIN, _METADATA = 'params', 'train', 'metadata'
# In the metadata: the digest of the frozen parameters, written once.
_BASE = 'base'
_DIGESTS = 'digests.json'
_POLL_SECONDS = 0.2
_LEAST_SECONDS = 60.0

State = TypeVar('State')


class CheckpointError(RuntimeError):
  """A checkpoint can't be written, read, or does not fit the model."""


class DamagedCheckpointError(CheckpointError):
  """A checkpoint is not as it was written, or can't be read."""


class HungSaveError(CheckpointError):
  """A save took too long; its threads may hang for as long as the disk does."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is kept, and whether training waits for the disk.

  Attributes:
    keep_last: the newest so many checkpoints stay.
    keep_every: those whose step is a multiple of it stay too; None for none.
    keep_best: so many with the best metric stay too.
    best_metric: which, such as 'narrate/point_l1', as `metrics` of the
      metadata has it. A checkpoint without it, or with NaN, is never best.
    best_mode: whether the smallest or the largest is best.
    frozen: parameters that are not trained are written 'once', beside the
      checkpoints, or 'embedded' in each, which is then whole by itself.
    asynchronous: `save` returns when the state is copied to host memory.
    digests: written for each checkpoint by a thread, and compared before one is
      restored to go on from.
    save_timeout_seconds: after that a save has failed.
    max_failed_saves: so many failed saves in a row end training; the last
      step's does in any case, and so do two that hung.
  """

  keep_last: int = 3
  keep_every: int | None = None
  keep_best: int = 0
  best_metric: str | None = None
  best_mode: Literal['min', 'max'] = 'min'
  frozen: Literal['once', 'embedded'] = 'once'
  asynchronous: bool = True
  digests: bool = True
  save_timeout_seconds: float = 1200.0
  max_failed_saves: int = 3

  def __post_init__(self):
    if self.keep_last < 1:
      raise ValueError(f'keep_last: expected >= 1, got {self.keep_last}.')
    if self.keep_every is not None and self.keep_every < 1:
      raise ValueError(
        f'keep_every: expected >= 1 or None, got {self.keep_every}.'
      )
    if self.keep_best < 0:
      raise ValueError(f'keep_best: expected >= 0, got {self.keep_best}.')
    if self.keep_best and not self.best_metric:
      raise ValueError('best_metric: keep_best needs one, got none.')
    for field, known in (
      ('best_mode', ('min', 'max')),
      ('frozen', ('once', 'embedded')),
    ):
      if getattr(self, field) not in known:
        raise ValueError(
          f'{field}: expected {" or ".join(map(repr, known))}, got '
          f'{getattr(self, field)!r}.'
        )
    if self.save_timeout_seconds <= 0:
      raise ValueError(
        f'save_timeout_seconds: expected > 0, got {self.save_timeout_seconds}.'
      )
    if self.max_failed_saves < 1:
      raise ValueError(
        f'max_failed_saves: expected >= 1, got {self.max_failed_saves}.'
      )


class _Session:
  """Orbax's manager while it is open, and the writer of the base beside it.

  A save that hangs takes its session with it: what its threads still do when
  the disk answers again changes nothing here.
  """

  def __init__(self):
    self.manager: ocp.CheckpointManager
    self.base: str | None = None
    self.writer: ocp.AsyncCheckpointer | None = None

  def finish_base(self) -> None:
    """Called before a step gets its final name, and when one is waited for."""
    if self.writer is not None:
      self.writer.wait_until_finished()

  def finish(self) -> None:
    """Returns when no save is under way."""
    self.manager.wait_until_finished()
    self.finish_base()
    writer, self.writer = self.writer, None
    if writer is not None:
      writer.close()

  def discard(self) -> None:
    """Closes both; they raise what was raised before."""
    with contextlib.suppress(Exception):
      self.manager.close()
    with contextlib.suppress(Exception):
      if self.writer is not None:
        self.writer.close()


class CheckpointManager:
  """The checkpoints of one directory.

  All processes call every method, in the same order. A failed save shows as a
  `CheckpointError` at `save` or at the next call of any method; the earlier
  checkpoints stay, and so does the manager's use: `save` may be tried again.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    config: CheckpointConfig | None = None,
    *,
    read_only: bool = False,
  ):
    """Opens a directory, and clears what a killed save left in it.

    Args:
      directory: local or `gs://`; created unless read-only.
      config: default `CheckpointConfig()`.
      read_only: never creates, changes or clears anything, so that it may be
        open while another process is training.

    Raises:
      CheckpointError: the directory can't be made or read, or, read-only, does
        not exist.
    """
    # Orbax takes absolute paths only; a bucket's already is.
    local = '://' not in os.fspath(directory)
    self.directory = epath.Path(
      os.path.abspath(directory) if local else directory
    )
    self._config = config or CheckpointConfig()
    self._read_only = read_only
    # Set before opening, so that a failed open can be closed.
    self._session: _Session | None = None
    self._failed = False
    self._digester: threading.Thread | None = None
    self._best = _Best(self._config)
    self._deadline: float | None = None  # of the save under way
    _quiet_orbax()
    self._session = self._open()

  def save(
    self,
    step: int,
    state: Any,
    metadata: dict[str, Any] | None = None,
    trainable: Any = None,
  ) -> None:
    """Writes a checkpoint; the caller may donate `state` as soon as it returns.

    Args:
      step: its name; larger than those before.
      state: a flax.struct dataclass with `params`; leaves are jax.Arrays.
      metadata: JSON values, read back by `metadata`; of `metrics` in it,
        name -> number, one may say what is best.
      trainable: a tree as `params` with True where it is trained; the others
        must be as they were at the first save. Default all.

    Raises:
      CheckpointError: this save, or the asynchronous one before, failed.
      TypeError: `metadata` is not JSON.
    """
    metadata = {} if metadata is None else metadata
    json.dumps(metadata)
    self.wait()
    if self._failed:
      # A thread of the failed save may have written on while its folder was
      # being cleared.
      self._discard()
    self._best.add(step, metadata)
    self._deadline = time.monotonic() + self._config.save_timeout_seconds
    with self._saving(f'step {step} was not saved'):
      session = self._session or self._bounded(self._open)
      self._session = session
      self._bounded(self._begin, session, step, state, metadata, trainable)
      if not self._config.asynchronous:
        self._bounded(session.finish)
        self._deadline = None
    self._failed = False
    local = '://' not in os.fspath(self.directory)
    if self._config.digests and local and jax.process_index() == 0:
      self._digester = threading.Thread(
        target=self._digest, args=(step, session), name='digests', daemon=True
      )
      self._digester.start()

  def _begin(
    self,
    session: _Session,
    step: int,
    state: Any,
    metadata: dict[str, Any],
    trainable: Any,
  ) -> None:
    """Copies what is to be written, and starts to write."""
    if step in session.manager.all_steps():
      raise CheckpointError(
        f'{self.directory}: step {step} is already saved there.'
      )
    params = trees.flat(state.params)
    if trainable is not None and self._config.frozen == 'once':
      mask = trees.flat(trainable)
      frozen = {n: x for n, x in params.items() if not mask[n]}
      if 0 < len(frozen) < len(params):
        params = {n: x for n, x in params.items() if mask[n]}
        metadata = {**metadata, _BASE: self._write_base(session, frozen)}
    items = ocp.args.Composite(
      **{
        _PARAMS: ocp.args.StandardSave(trees.unflat(params)),
        _TRAIN: ocp.args.StandardSave(trees.nested(_rest(state))),
        _METADATA: ocp.args.JsonSave(metadata),
      }
    )
    session.manager.save(step, args=items, force=True)

  def _write_base(self, session: _Session, frozen: dict[str, Any]) -> str:
    """Starts to write the base if it is not there; its digest."""
    if session.base is None:
      digest = digest_lib.digest(frozen)
      path = orbax.base(self.directory, digest)
      there = ocp.utils.is_checkpoint_finalized(path)
      if jax.process_count() > 1:
        there = multihost_utils.broadcast_one_to_all(np.asarray(there))
      if not there:
        session.writer = writer = ocp.AsyncCheckpointer(
          ocp.StandardCheckpointHandler(),
          async_options=self._async_options(),
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=_BASE
          ),
        )
        writer.save(
          path, args=ocp.args.StandardSave(trees.unflat(frozen)), force=True
        )
      session.base = digest
    return session.base

  def _digest(self, step: int, session: _Session) -> None:
    """Writes the digests of a checkpoint as soon as it is complete."""
    folder = self.directory / str(step)
    while not ocp.utils.is_checkpoint_finalized(folder):
      if session is not self._session:
        return  # it failed
      time.sleep(_POLL_SECONDS)
    with contextlib.suppress(OSError):  # by now it may be gone again
      files.write(folder / _DIGESTS, json.dumps(_sha256(folder), indent=1))

  def check(self, step: int) -> None:
    """Compares a checkpoint's files with their digests, if it has them.

    Every process reads all of it; call it on one.

    Raises:
      DamagedCheckpointError: a file is missing or another.
    """
    folder = self.directory / str(step)
    if not (folder / _DIGESTS).exists():
      return
    with self._reading(step):
      wanted = json.loads((folder / _DIGESTS).read_text())
      found = _sha256(folder)
    for name, digest in wanted.items():
      if found.get(name) != digest:
        what = 'is missing' if name not in found else 'is not what was written'
        raise DamagedCheckpointError(
          f'{self.directory}: step {step} is damaged: {name} {what}.'
        )

  def set_aside(self, step: int) -> epath.Path:
    """Moves a checkpoint out of the way, and says where to.

    Raises:
      CheckpointError: it cannot be moved.
    """
    self.wait()
    self._discard()
    target = self.directory.with_name(f'{self.directory.name}.damaged')
    if jax.process_index() == 0:
      try:
        target.mkdir(parents=True, exist_ok=True)
        (self.directory / str(step)).replace(
          target / f'{step}.{int(time.time())}'
        )
      except OSError as e:
        raise CheckpointError(
          f'{self.directory}: step {step} cannot be moved to {target}: {e}.'
        ) from e
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('set_aside')
    self._session = self._open()
    return target

  def restore(self, abstract: State, step: int | None = None) -> State:
    """The state as it was saved, bit for bit, laid out as `abstract` says.

    Args:
      abstract: the wanted tree; leaves have shape, dtype and sharding, which
        may be of another mesh or number of devices than at saving.
      step: default the newest.

    Raises:
      CheckpointError: no such checkpoint, it can't be read, or its names,
        shapes or dtypes are not those of `abstract`; the message lists them.
    """
    wanted: Any = abstract
    restored = self._restore(
      step, {_PARAMS: wanted.params, _TRAIN: _rest(wanted)}, cast=False
    )
    return dataclasses.replace(restored[_TRAIN], params=restored[_PARAMS])

  def restore_params(self, abstract: Any, step: int | None = None) -> Any:
    """The parameters alone; nothing else of the checkpoint is read.

    Args:
      abstract: the wanted tree of parameters. Leaves without a sharding go to
        the first device; a dtype other than the saved one is cast to.
      step: default the newest.

    Raises:
      CheckpointError: as in `restore`, but for dtypes.
    """
    return self._restore(step, {_PARAMS: abstract}, cast=True)[_PARAMS]

  def metadata(self, step: int | None = None) -> dict[str, Any]:
    """What was given to `save`, without reading any array.

    Raises:
      CheckpointError: no such checkpoint, or it can't be read.
    """
    step = self._existing(step)
    with self._reading(step):
      return self._read_metadata(self._opened(), step)

  def _read_metadata(
    self, manager: ocp.CheckpointManager, step: int
  ) -> dict[str, Any]:
    item = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
    return manager.restore(step, args=item)[_METADATA]

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending; waits for a save."""
    self.wait()
    return sorted(self._opened().all_steps())

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, or None; waits for a save."""
    return max(self.steps(), default=None)

  def wait(self) -> bool:
    """Returns when no save is under way; whether one was.

    Raises:
      CheckpointError: the save failed.
    """
    if self._deadline is None:
      return False
    with self._saving('the last save failed'):
      if self._session is not None:
        self._bounded(self._session.finish)
      if self._digester is not None:
        self._bounded(self._digester.join)
        self._digester = None
    self._deadline = None
    return True

  def _bounded(self, call: Callable[..., Any], *args: Any) -> Any:
    """What a call gives, if it does so before the save's deadline.

    Raises:
      TimeoutError: else. The thread is left behind; nothing can end it while
        the system does not answer it.
    """
    assert self._deadline is not None
    outcome = concurrent.futures.Future()

    def run():
      try:
        outcome.set_result(call(*args))
      except BaseException as e:
        outcome.set_exception(e)

    # Threads that it starts are daemons then too.
    threading.Thread(target=run, name='save', daemon=True).start()
    # After the deadline, what is done already needs a moment to say so.
    least = min(_LEAST_SECONDS, self._config.save_timeout_seconds)
    return outcome.result(max(least, self._deadline - time.monotonic()))

  def close(self) -> None:
    """Waits for the save under way and ends the threads; may be repeated.

    Raises:
      CheckpointError: the save failed.
    """
    try:
      self.wait()
    finally:
      self._discard()

  def __enter__(self) -> CheckpointManager:
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    # The error that is under way says more than what closing would add.
    with contextlib.suppress(*([CheckpointError] if kind else [])):
      self.close()

  def _open(self) -> _Session:
    session = _Session()
    keep: list[policies.PreservationPolicy] = [
      policies.LatestN(self._config.keep_last),
      self._best,
    ]
    if self._config.keep_every is not None:
      keep.append(policies.EveryNSteps(self._config.keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keep),
      create=False,
      async_options=self._async_options(session.finish_base),
    )
    try:
      if not self._read_only:
        self.directory.mkdir(parents=True, exist_ok=True)
      if not self.directory.is_dir():
        raise NotADirectoryError('no such directory')
      if not self._read_only and jax.process_index() == 0:
        _clear(self.directory)
      session.manager = manager = ocp.CheckpointManager(
        self.directory,
        options=options,
        item_handlers={
          _PARAMS: ocp.StandardCheckpointHandler(),
          _TRAIN: ocp.StandardCheckpointHandler(),
          _METADATA: ocp.JsonCheckpointHandler(),
        },
      )
      if self._config.keep_best and not self._read_only:
        for step in manager.all_steps():
          self._best.add(step, self._read_metadata(manager, step))
      return session
    except Exception as e:
      raise CheckpointError(
        f'{self.directory}: can not be opened for checkpoints: {_cause(e)}'
      ) from e

  def _async_options(
    self, callback: Callable[[], None] | None = None
  ) -> ocp.AsyncOptions:
    return ocp.AsyncOptions(
      timeout_secs=math.ceil(self._config.save_timeout_seconds),
      post_finalization_callback=callback,
      # Made in the background, a folder that can not be made would leave
      # threads waiting five minutes for it, the exit of the process included.
      create_directories_asynchronously=False,
    )

  def _opened(self) -> ocp.CheckpointManager:
    if self._session is None:
      self._session = self._open()
    return self._session.manager

  def _discard(self) -> None:
    session, self._session = self._session, None
    if session is not None:
      session.discard()

  @contextlib.contextmanager
  def _saving(self, what: str):
    try:
      yield
    except CheckpointError:
      self._deadline = None
      raise
    except TimeoutError as e:
      # Closing would wait for it; opening is for the next call.
      self._deadline = self._session = self._digester = None
      self._failed = True
      raise HungSaveError(
        f'{self.directory}: {what}: not done after '
        f'{self._config.save_timeout_seconds:g} seconds '
        '(checkpoint.save_timeout_seconds).'
      ) from e
    except Exception as e:
      self._deadline = None
      # Orbax now counts the failed step as saved and those it would have
      # replaced as gone. Opened again it reads the truth from the disk, and
      # clears what the failed save left there.
      self._discard()
      with contextlib.suppress(CheckpointError):
        self._session = self._open()
      self._failed = True
      raise CheckpointError(f'{self.directory}: {what}: {_cause(e)}') from e

  @contextlib.contextmanager
  def _reading(self, step: int):
    try:
      yield
    except CheckpointError:
      raise
    except Exception as e:
      raise DamagedCheckpointError(
        f'{self.directory}: step {step} can not be read: {_cause(e)}'
      ) from e

  def _existing(self, step: int | None) -> int:
    steps = self.steps()
    if not steps:
      raise CheckpointError(f'{self.directory}: no checkpoint there.')
    if step is not None and step not in steps:
      raise CheckpointError(
        f'{self.directory}: no checkpoint of step {step}; there are '
        f'{", ".join(map(str, steps))}.'
      )
    return steps[-1] if step is None else step

  def _restore(
    self, step: int | None, items: dict[str, Any], cast: bool
  ) -> dict[str, Any]:
    step = self._existing(step)
    manager = self._opened()
    with self._reading(step):
      on_disk = {k: v.tree for k, v in manager.item_metadata(step).items() if v}
      base = self._read_metadata(manager, step).get(_BASE)
    shared = {}
    if base is not None and _PARAMS in items:
      shared = self._base_metadata(step, base)
    with self._reading(step):
      for item, tree in items.items():
        saved = on_disk.get(item)
        if saved is None:
          raise CheckpointError(
            f'{self.directory}: step {step} has no item {item!r}.'
          )
        saved = trees.flat(saved) | (shared if item == _PARAMS else {})
        message = trees.difference(trees.flat(tree), saved, cast)
        if message:
          raise CheckpointError(
            f'{self.directory}: {item} of step {step} do not fit the model. '
            f'{message}'
          )
      wanted = {
        item: {
          name: _placed(leaf)
          for name, leaf in trees.flat(tree).items()
          if item != _PARAMS or name not in shared
        }
        for item, tree in items.items()
      }
      args = {
        item: ocp.args.StandardRestore(trees.unflat(flat))
        for item, flat in wanted.items()
      }
      restored = manager.restore(step, args=ocp.args.Composite(**args))
      found = {item: trees.flat(restored[item]) for item in items}
    if base is not None and shared:
      found[_PARAMS] |= self._restore_base(
        step,
        base,
        {n: x for n, x in trees.flat(items[_PARAMS]).items() if n in shared},
        shared,
      )
    return {item: trees.like(tree, found[item]) for item, tree in items.items()}

  def _base_metadata(self, step: int, base: str) -> dict[str, Any]:
    path = orbax.base(self.directory, base)
    with (
      self._reading_base(step, path),
      contextlib.closing(
        ocp.Checkpointer(ocp.StandardCheckpointHandler())
      ) as r,
    ):
      metadata: Any = r.metadata(path).item_metadata
      return trees.flat(metadata.tree)

  def _restore_base(
    self, step: int, base: str, wanted: dict[str, Any], saved: dict[str, Any]
  ) -> dict[str, Any]:
    path = orbax.base(self.directory, base)
    with (
      self._reading_base(step, path),
      contextlib.closing(
        ocp.Checkpointer(ocp.StandardCheckpointHandler())
      ) as r,
    ):
      placed = trees.unflat({n: _placed(leaf) for n, leaf in wanted.items()})
      found = trees.flat(r.restore(path, args=ocp.args.StandardRestore(placed)))
      if any(found[n].dtype != saved[n].dtype for n in found):
        return found  # cast
      digest = digest_lib.digest(found)
      if digest != base:
        raise ValueError(f'its parameters have the digest {digest}')
      return found

  @contextlib.contextmanager
  def _reading_base(self, step: int, path: epath.Path):
    # Not of a damaged checkpoint: the others need the same base.
    try:
      if not path.exists():
        raise FileNotFoundError('no such folder')
      yield
    except Exception as e:
      raise CheckpointError(
        f'{self.directory}: step {step} needs {path.name} beside it, the '
        f'parameters that were not trained: {_cause(e)}'
      ) from e


class _Best(policies.PreservationPolicy):
  """Preserves the checkpoints with the best metric."""

  def __init__(self, config: CheckpointConfig):
    self._config = config
    self._scores: dict[int, float] = {}

  def add(self, step: int, metadata: dict[str, Any]) -> None:
    """Notes a checkpoint's metric, if it has it."""
    value = metadata.get('metrics', {}).get(self._config.best_metric)
    self._scores.pop(step, None)
    if value is not None and math.isfinite(value):
      self._scores[step] = -value if self._config.best_mode == 'min' else value

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    """Of each checkpoint, whether it stays; of equal ones the newest."""
    steps = [c.step for c in checkpoints]
    ranked = sorted(
      (s for s in steps if s in self._scores),
      key=lambda s: (self._scores[s], s),
      reverse=True,
    )
    return [s in ranked[: self._config.keep_best] for s in steps]


def _clear(directory: epath.Path) -> None:
  """Removes what killed saves left; Orbax would do so while we write."""
  for path in directory.iterdir():
    if path.is_dir() and ocp.utils.is_tmp_checkpoint(path):
      with contextlib.suppress(OSError):  # a save will tell
        path.rmtree()


def _sha256(folder: epath.Path) -> dict[str, str]:
  """Path within the folder -> digest, of all files but that of digests."""
  found = {}
  for root, _, names in sorted(os.walk(folder)):
    for name in sorted(names):
      path = os.path.join(root, name)
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      found[os.path.relpath(path, folder)] = digest
  found.pop(_DIGESTS, None)
  return found


def _rest(state: Any) -> Any:
  return dataclasses.replace(state, params=None)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
  place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _cause(error: BaseException) -> str:
  text = str(error).strip() or 'no message'
  # TensorStore tells the path of calls to the error of the system at its end.
  system = re.search(r"([^:\[\]]+) \[os_error_code='\d+'\]", text)
  reason = system[1].strip() if system else text.splitlines()[0]
  return f'{type(error).__name__}: {reason}'


class _OrbaxFilter(logging.Filter):
  """Drops what Orbax says below a warning, and the errors that it raises too.

  absl has one logger for all packages, so the source file decides.
  """

  raising = ('future.py', 'async_checkpointer.py', 'checkpoint_manager.py')

  def filter(self, record: logging.LogRecord) -> bool:
    if 'orbax' not in record.pathname:
      return True
    if record.levelno >= logging.ERROR:
      return record.filename not in self.raising
    return record.levelno >= logging.WARNING


_FILTER = _OrbaxFilter()


def _quiet_orbax() -> None:
  logging.getLogger('absl').addFilter(_FILTER)
