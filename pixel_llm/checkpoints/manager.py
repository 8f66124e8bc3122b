# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: asynchronous, exact, and onto any mesh.

A checkpoint is a folder named by its step with three items: `params`, the tree
by its own names; `train`, the rest of the state; `metadata`, JSON. A reader of
one item does not touch the others. Beside them `digests.json` has the SHA-256
of every file, by which damage is known; a save that was killed before it was
written has none, and neither have buckets, which look after their bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import threading
import time
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from pixel_llm import files

_PARAMS, _TRAIN, _METADATA = 'params', 'train', 'metadata'
_DIGESTS = 'digests.json'
_POLL_SECONDS = 0.2
# How many names an error about a tree lists of each kind.
_LISTED = 20

State = TypeVar('State')


class CheckpointError(RuntimeError):
  """A checkpoint can't be written, read, or does not fit the model."""


class DamagedCheckpointError(CheckpointError):
  """A checkpoint is not as it was written, or can't be read."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is kept, and whether training waits for the disk.

  Attributes:
    keep_last: the newest so many checkpoints stay.
    keep_every: those whose step is a multiple of it stay too; None for none.
    asynchronous: `save` returns when the state is copied to host memory.
    digests: written for each checkpoint by a thread, and compared before one is
      restored to go on from.
  """

  keep_last: int = 3
  keep_every: int | None = None
  asynchronous: bool = True
  digests: bool = True

  def __post_init__(self):
    if self.keep_last < 1:
      raise ValueError(f'keep_last: expected >= 1, got {self.keep_last}.')
    if self.keep_every is not None and self.keep_every < 1:
      raise ValueError(
        f'keep_every: expected >= 1 or None, got {self.keep_every}.'
      )


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
    self._manager: ocp.CheckpointManager | None = None
    self._failed = False
    self._digester: threading.Thread | None = None
    _quiet_orbax()
    self._open()

  def save(
    self, step: int, state: Any, metadata: dict[str, Any] | None = None
  ) -> None:
    """Writes a checkpoint; the caller may donate `state` as soon as it returns.

    Args:
      step: its name; larger than those before.
      state: a flax.struct dataclass with `params`; leaves are jax.Arrays.
      metadata: JSON values, read back by `metadata`.

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
    manager = self._opened()
    if step in manager.all_steps():
      raise CheckpointError(
        f'{self.directory}: step {step} is already saved there.'
      )
    items = ocp.args.Composite(
      **{
        _PARAMS: ocp.args.StandardSave(_nested(state.params)),
        _TRAIN: ocp.args.StandardSave(_nested(_rest(state))),
        _METADATA: ocp.args.JsonSave(metadata),
      }
    )
    with self._saving(f'step {step} was not saved'):
      manager.save(step, args=items, force=True)
      if not self._config.asynchronous:
        manager.wait_until_finished()
    self._failed = False
    local = '://' not in os.fspath(self.directory)
    if self._config.digests and local and jax.process_index() == 0:
      self._digester = threading.Thread(
        target=self._digest, args=(step, manager), name='digests', daemon=True
      )
      self._digester.start()

  def _digest(self, step: int, manager: ocp.CheckpointManager) -> None:
    """Writes the digests of a checkpoint as soon as it is complete."""
    folder = self.directory / str(step)
    while not ocp.utils.is_checkpoint_finalized(folder):
      if manager is not self._manager:
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
    self._open()
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
      item = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
      return self._opened().restore(step, args=item)[_METADATA]

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending; waits for a save."""
    self.wait()
    return sorted(self._opened().all_steps())

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, or None; waits for a save."""
    return max(self.steps(), default=None)

  def wait(self) -> None:
    """Returns when no save is under way.

    Raises:
      CheckpointError: the save failed.
    """
    with self._saving('the last save failed'):
      self._opened().wait_until_finished()
    if self._digester is not None:
      self._digester.join()
      self._digester = None

  def close(self) -> None:
    """Waits for the save under way and ends the threads; may be repeated.

    Raises:
      CheckpointError: the save failed.
    """
    if self._manager is None:
      return
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

  def _open(self) -> None:
    keep: list[policies.PreservationPolicy] = [
      policies.LatestN(self._config.keep_last)
    ]
    if self._config.keep_every is not None:
      keep.append(policies.EveryNSteps(self._config.keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keep),
      create=False,
      cleanup_tmp_directories=not self._read_only,
      # Made in the background, a folder that can not be made would leave
      # threads waiting five minutes for it, the exit of the process included.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    try:
      if not self._read_only:
        self.directory.mkdir(parents=True, exist_ok=True)
      if not self.directory.is_dir():
        raise NotADirectoryError('no such directory')
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=options,
        item_handlers={
          _PARAMS: ocp.StandardCheckpointHandler(),
          _TRAIN: ocp.StandardCheckpointHandler(),
          _METADATA: ocp.JsonCheckpointHandler(),
        },
      )
    except Exception as e:
      raise CheckpointError(
        f'{self.directory}: can not be opened for checkpoints: {_cause(e)}'
      ) from e

  def _opened(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._open()
    assert self._manager is not None
    return self._manager

  def _discard(self) -> None:
    manager, self._manager = self._manager, None
    if manager is not None:
      # It raises what was raised before.
      with contextlib.suppress(Exception):
        manager.close()

  @contextlib.contextmanager
  def _saving(self, what: str):
    try:
      yield
    except CheckpointError:
      raise
    except Exception as e:
      # Orbax now counts the failed step as saved and those it would have
      # replaced as gone. Opened again it reads the truth from the disk, and
      # clears what the failed save left there.
      self._discard()
      with contextlib.suppress(CheckpointError):
        self._open()
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
    self, step: int | None, trees: dict[str, Any], cast: bool
  ) -> dict[str, Any]:
    step = self._existing(step)
    manager = self._opened()
    with self._reading(step):
      on_disk = dict(manager.item_metadata(step).items())
      for item, tree in trees.items():
        saved = on_disk.get(item)
        if saved is None:
          raise CheckpointError(
            f'{self.directory}: step {step} has no item {item!r}.'
          )
        message = _difference(_flat(tree), _flat(saved.tree), cast)
        if message:
          raise CheckpointError(
            f'{self.directory}: {item} of step {step} do not fit the model. '
            f'{message}'
          )
      wanted = {
        item: ocp.args.StandardRestore(_nested(jax.tree.map(_placed, tree)))
        for item, tree in trees.items()
      }
      restored = manager.restore(step, args=ocp.args.Composite(**wanted))
      return {item: _like(tree, restored[item]) for item, tree in trees.items()}


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


def _flat(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree.leaves_with_path(tree)
  }


def _nested(tree: Any) -> dict[str, Any]:
  # Plain dicts: on disk there is no trace of the classes of the optimizer, nor
  # of its empty nodes.
  return traverse_util.unflatten_dict(_flat(tree), sep='/')


def _like(tree: Any, nested: dict[str, Any]) -> Any:
  flat = traverse_util.flatten_dict(nested, sep='/')
  return jax.tree.unflatten(
    jax.tree.structure(tree), [flat[path] for path in _flat(tree)]
  )


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
  place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _difference(
  expected: dict[str, Any], got: dict[str, Any], cast: bool
) -> str:
  def described(leaf):
    shape = tuple(leaf.shape)
    return f'{shape}' if cast else f'{shape} {leaf.dtype}'

  misshapen = [
    f'{path}: expected {described(expected[path])}, got {described(got[path])}'
    for path in expected
    if path in got and described(expected[path]) != described(got[path])
  ]
  missing = [path for path in expected if path not in got]
  unknown = [path for path in got if path not in expected]
  parts = [
    f'{title}: {"; ".join(lines[:_LISTED])}'
    + (f' and {len(lines) - _LISTED} more' if len(lines) > _LISTED else '')
    + '.'
    for title, lines in (
      ('Missing in the checkpoint', missing),
      ('Unknown to the model', unknown),
      ('Misshapen', misshapen),
    )
    if lines
  ]
  return ' '.join(parts)


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
