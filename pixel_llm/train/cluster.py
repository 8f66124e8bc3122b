# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Processes of one run: they find each other, must be alike, and end together.

What the processes tell one another goes through the key-value store of JAX's
distributed runtime, which lives in process 0: no device takes part, so it works
while devices hang.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from etils import epath
from jax._src import cloud_tpu_init, clusters
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from pixel_llm import config as config_lib
from pixel_llm import exits, files
from pixel_llm.train import experiment

_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'seqio',
  'numpy',
)
# What hosts may differ in: where their files lie, and how many threads read.
# What is in the files is compared instead.
_OWN = re.compile(r'data\.(records\..*|vocabulary)|loop\.workers')
_ENDED, _LEFT = 'pixel_llm/ended', 'pixel_llm/left'
_POLL_SECONDS = 1.0
# Process 0 holds the key-value store, so it leaves last; for as long as this.
_LINGER_SECONDS = 10.0
_SHOWN = 20


class ClusterError(ValueError):
  """Processes that are missing, unlike one another, or not to be found."""


@dataclasses.dataclass(frozen=True)
class Place:
  """A process's place among the processes of a run.

  Attributes:
    coordinator: HOST:PORT of process 0, where its services listen.
    count: processes of the run.
    index: of this one.
    devices: the local GPUs that are this process's; None for all it sees.
    found: by what it was found.
  """

  coordinator: str
  count: int
  index: int
  devices: tuple[int, ...] | None = None
  found: str = ''

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdigit():
      raise ClusterError(
        f'coordinator {self.coordinator!r}: expected HOST:PORT.'
      )
    return host.strip('[]'), int(port)


def find(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  devices: Sequence[int] | None = None,
  timeout: float = 60,
) -> Place | None:
  """The place that is given, or else that which the environment says.

  TPU VMs (of any number of slices, also on GKE), SLURM, Open MPI and Kubernetes
  are as `jax.distributed.initialize` finds them; pods of a JobSet say it in
  variables (launch/gke_jobset.yaml).

  Args:
    coordinator: HOST:PORT of process 0.
    count: processes of the run.
    index: of this one.
    devices: the local GPUs that are this process's.
    timeout: seconds to wait for the coordinator's name to be known.

  Returns: None for a process that is alone.

  Raises:
    ClusterError: what is given or found is not all, or does not fit.
  """
  found: dict[str, Any] = {}
  if None in (coordinator, count, index):
    found = _environment(coordinator is None, timeout)
  given = {
    'coordinator': coordinator,
    'count': count,
    'index': index,
    'devices': None if devices is None else tuple(devices),
  }
  found |= {k: v for k, v in given.items() if v is not None}
  if found.get('count') == 1 or not found.keys() - {'found'}:
    return None
  flags = {
    'coordinator': '--coordinator',
    'count': '--num-processes',
    'index': '--process-id',
  }
  missing = [flag for key, flag in flags.items() if key not in found]
  if missing:
    raise ClusterError(
      f'{", ".join(missing)}: neither given nor said by the environment '
      f'({found.get("found", "no cluster found")}). --no-cluster stays alone.'
    )
  place = Place(**{'found': 'flags', **found})
  if not 0 <= place.index < place.count:
    raise ClusterError(
      f'--process-id {place.index}: expected 0 to {place.count - 1}, as there '
      f'are {place.count} processes.'
    )
  place.address  # noqa: B018  (says what is wrong with it)
  return place


def _environment(coordinator: bool, timeout: float) -> dict[str, Any]:
  """Fields of `Place` as the environment says; without a cluster none."""
  env = os.environ
  address = env.get('JAX_COORDINATOR_ADDRESS')
  index = env.get('JAX_PROCESS_ID')
  # Of one slice's hosts alone, where there may be several slices.
  if not cloud_tpu_init.running_in_cloud_tpu_vm:
    index = index or env.get('JOB_COMPLETION_INDEX')
  if address and 'JAX_NUM_PROCESSES' in env and index is not None:
    return {
      'coordinator': address,
      'count': _number(env['JAX_NUM_PROCESSES'], 'JAX_NUM_PROCESSES'),
      'index': _number(index, 'JAX_PROCESS_ID or JOB_COMPLETION_INDEX'),
      'found': 'variables of JAX',
    }
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method or not _is_present(kind):
      continue
    name = kind.__name__.removesuffix('Cluster')
    try:
      found = {
        'count': kind.get_process_count(),
        'index': kind.get_process_id(),
        'found': name,
      }
      if found['count'] > 1 and coordinator:
        found['coordinator'] = address or kind.get_coordinator_address(
          timeout_secs=int(timeout),
          override_coordinator_port=env.get('JAX_COORDINATOR_PORT'),
        )
    except RuntimeError as e:
      raise ClusterError(f'cluster of {name}: {e}') from e
    if (own := _own_device(kind)) is not None:
      found['devices'] = (own,)
    return found
  # Open MPI 5 does not say any more where it was started, which JAX goes by.
  if env.get('OMPI_COMM_WORLD_SIZE', '1') != '1':
    return {
      'count': int(env['OMPI_COMM_WORLD_SIZE']),
      'index': int(env['OMPI_COMM_WORLD_RANK']),
      'found': 'Open MPI',
    }
  if 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env:
    raise ClusterError(
      'this is a pod of an Indexed Job, which does not say of how many: set '
      'JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES as '
      'launch/gke_jobset.yaml does, or install the package kubernetes. '
      '--no-cluster stays alone.'
    )
  return {}


def _number(text: str, name: str) -> int:
  if not text.isdigit():
    raise ClusterError(f'{name}: expected a whole number, got {text!r}.')
  return int(text)


def _is_present(kind: type[clusters.ClusterEnv]) -> bool:
  # Any pod is one to JAX; and without its package it warns.
  if kind is clusters.K8sCluster and 'JOB_COMPLETION_INDEX' not in os.environ:
    return False
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return kind.is_env_present()


def _own_device(kind: type[clusters.ClusterEnv]) -> int | None:
  """The GPU of a process that shares its node with others of the run.

  JAX gives a process its GPU even where it is alone on its node, and where the
  launcher has left it only one to see.
  """
  env = os.environ
  local = kind.get_local_process_id()
  if local is None or cloud_tpu_init.running_in_cloud_tpu_vm:
    return None
  shared = env.get(
    'OMPI_COMM_WORLD_LOCAL_SIZE', env.get('SLURM_STEP_TASKS_PER_NODE', '2')
  )
  alone = re.fullmatch(r'1(\(x\d+\))?', shared)
  seen = env.get('CUDA_VISIBLE_DEVICES', env.get('ROCR_VISIBLE_DEVICES'))
  if alone or (seen is not None and local >= len(seen.split(','))):
    return None
  return local


def join(place: Place, timeout: float = 60, heartbeat: float = 100) -> None:
  """Makes this process one of its cluster; before anything else of JAX.

  Args:
    place: of this process.
    timeout: seconds for all to be there.
    heartbeat: seconds after which a process that says nothing is dead, and the
      others end.

  Raises:
    ClusterError: one is missing in time, by its index.
  """
  error = (
    asyncio.run(_hold_roll_call(place, timeout))
    if place.index == 0
    else _answer_roll_call(place, timeout)
  )
  if error:
    raise ClusterError(error)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    place.coordinator,
    place.count,
    place.index,
    place.devices,
    cluster_detection_method='deactivate',
    initialization_timeout=max(1, int(timeout)),
    heartbeat_timeout_seconds=max(1, int(heartbeat)),
  )


@contextlib.contextmanager
def member(
  place: Place | None,
  config: experiment.ExperimentConfig,
  workdir: epath.PathLike,
  timeout: float = 60,
) -> Iterator[Watchdog]:
  """This process as one of its cluster, whose processes are alike.

  Args:
    place: of this process; None for one that is alone.
    config: the experiment.
    workdir: of the run; stacks of a stall are written there.
    timeout: seconds for all to be there, and to answer.

  Yields: what ends it together with the others.

  Raises:
    ClusterError: see `join` and `check_alike`.
  """
  if place is not None:
    join(place, timeout, config.loop.heartbeat_seconds)
  stacks = epath.Path(workdir) / 'stacks'
  with Watchdog(config.loop.stall_seconds, stacks) as watchdog:
    if place is not None:
      table = check_alike(config, workdir, place.found, timeout)
      if table:
        print(table, flush=True)
    yield watchdog
  if place is not None:
    jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this process speaks for all; it does when it is alone."""
  return jax_distributed.global_state.process_id == 0


def joined() -> bool:
  """Whether this process is one of a cluster."""
  return jax_distributed.global_state.client is not None


# JAX's own start with a process missing aborts the others, and says not which.
async def _hold_roll_call(place: Place, timeout: float) -> str:
  """Process 0: waits for all, tells all what is wrong, or ''."""
  loop = asyncio.get_running_loop()
  present, wrong = {0: _host()}, loop.create_future()
  verdict: asyncio.Future[str] = loop.create_future()
  callers: set[asyncio.Task] = set()

  async def call(reader, writer):
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
      said = json.loads(await reader.readline())
      index, host = int(said['index']), str(said['host'])
      task = asyncio.current_task()
      assert task is not None
      callers.add(task)
      gone = asyncio.ensure_future(_end_of(reader))
      mistake = ''
      if said['count'] != place.count:
        mistake = (
          f'process {index} ({host}) is one of {said["count"]} processes, but '
          f'process 0 ({present[0]}) of {place.count}.'
        )
      elif index in present:
        mistake = (
          f'two processes have the index {index}: one on {present[index]}, one '
          f'on {host}.'
        )
      else:
        present[index] = host
      if (mistake or len(present) == place.count) and not wrong.done():
        wrong.set_result(mistake)
      await asyncio.wait({gone, verdict}, return_when=asyncio.FIRST_COMPLETED)
      if verdict.done():
        writer.write(json.dumps({'error': verdict.result()}).encode() + b'\n')
        await writer.drain()
        # It hangs up first, so that the port is free at once.
        await asyncio.wait({gone}, timeout=2)
      else:
        present.pop(index)
      gone.cancel()
    writer.close()

  try:
    server = await asyncio.start_server(call, None, place.address[1])
  except OSError as e:
    raise ClusterError(
      f'coordinator {place.coordinator}: process 0 can not listen there: '
      f'{os.strerror(e.errno) if e.errno else e}.'
    ) from e
  done, _ = await asyncio.wait({wrong}, timeout=timeout)
  if done:
    said = wrong.result()
  else:
    missing = [i for i in range(place.count) if i not in present]
    there = _some([f'{i} ({host})' for i, host in sorted(present.items())])
    said = (
      f'process {_some(missing)} of {place.count} did not start within '
      f'{timeout:g} seconds; there are {there}.'
    )
  server.close()
  verdict.set_result(said)
  if callers:
    await asyncio.wait(callers, timeout=5)
  return said


async def _end_of(reader: asyncio.StreamReader) -> None:
  with contextlib.suppress(OSError):
    await reader.read()


def _answer_roll_call(place: Place, timeout: float) -> str:
  """Another process: says that it is there, and hears what is wrong."""
  said = {'index': place.index, 'count': place.count, 'host': _host()}
  deadline = time.monotonic() + timeout
  while True:
    left = deadline - time.monotonic()
    try:
      with socket.create_connection(place.address, max(left, 1)) as connection:
        connection.sendall(json.dumps(said).encode() + b'\n')
        # Process 0 may have begun to wait later than this one.
        connection.settimeout(timeout + 10)
        answer = connection.makefile().readline()
      return json.loads(answer)['error']
    except ValueError:
      why = 'it hung up'
    except OSError as e:
      why = e.strerror or str(e)
    if left < 0:
      raise ClusterError(
        f'process 0 did not start within {timeout:g} seconds: no answer at '
        f'{place.coordinator} ({why}).'
      )
    time.sleep(0.2)


def check_alike(
  config: experiment.ExperimentConfig,
  workdir: epath.PathLike,
  found: str,
  timeout: float,
) -> str:
  """Says on every process what is unlike on any; before anything is compiled.

  Args:
    config: the experiment.
    workdir: of the run.
    found: by what the cluster was found.
    timeout: seconds for all to answer.

  Returns: a table of the cluster; on other processes than 0 nothing.

  Raises:
    ClusterError: a process differs, named with host, field and both values, or
      does not answer.
  """
  facts = _facts(config)
  with _shared(epath.Path(workdir), timeout) as where:
    _compare('facts', {**facts, 'workdir': where}, timeout)
  # Takes the devices, and waits for those of the others.
  local = jax.local_devices()
  devices = _compare(
    'devices',
    {
      'platform': local[0].platform,
      'kind': local[0].device_kind,
      'local devices': str(len(local)),
      'devices': str(jax.device_count()),
    },
    timeout,
  )
  return _table(found, devices, facts) if devices else ''


@contextlib.contextmanager
def _shared(workdir: epath.Path, timeout: float) -> Iterator[str]:
  """Where process 0 writes, if this one finds there what that one has written.

  Else that it does not, which makes it unlike process 0.
  """
  client, key = _client(), 'pixel_llm/workdir'
  if is_first():
    mark = f'.{uuid.uuid4().hex}'
    files.write(workdir / mark, '')
    client.key_value_set(key, f'{mark} {workdir}')
    try:
      yield str(workdir)
    finally:
      (workdir / mark).unlink()
    return
  said = _told(client, key, time.monotonic() + timeout)
  mark, _, there = (said or '').partition(' ')
  # Network file systems take their time.
  deadline = time.monotonic() + min(timeout / 4, _LINGER_SECONDS)
  while not (found := bool(said) and (workdir / mark).exists()):
    if time.monotonic() > deadline:
      break
    time.sleep(0.2)
  yield there if found else f'{workdir}, where its files are not seen'


def _facts(config: experiment.ExperimentConfig) -> dict[str, str]:
  """What must be alike on all hosts, by names."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'none'
  root = pathlib.Path(__file__).parents[1]
  leaves = config_lib.leaves(config_lib.to_dict(config))
  return {
    **versions,
    'source of pixel_llm': _digest(sorted(root.rglob('*.py')), root),
    'vocabulary': _digest([epath.Path(config.data.vocabulary)]),
    **{
      f'data.records.{key}': _digest(
        sorted(pathlib.Path(directory).glob('*.manifest.json'))
      )
      for key, directory in config.data.records.items()
    },
    **{
      f'config {path}': repr(value)
      for path, value in leaves
      if not _OWN.fullmatch(path)
    },
  }


def _digest(paths: Sequence[Any], root: pathlib.Path | None = None) -> str:
  """Of the files' names and bytes; `none` of none."""
  found = hashlib.sha256()
  for path in paths:
    name = path.relative_to(root) if root else path.name
    found.update(f'{name}\0'.encode())
    try:
      found.update(path.read_bytes())
    except OSError:
      return 'none'
  return found.hexdigest()[:12] if paths else 'none'


def _compare(
  stage: str, facts: Mapping[str, str], timeout: float
) -> list[dict[str, str]]:
  """Brings all processes' facts to process 0, and its verdict to all.

  Returns: the facts of each, with its host; on other processes than 0 nothing.
  """
  state, client = jax_distributed.global_state, _client()
  mine = json.dumps({'host': _host(), **facts})
  client.key_value_set(f'pixel_llm/{stage}/{state.process_id}', mine)
  deadline = time.monotonic() + timeout
  verdict = f'pixel_llm/{stage}/verdict'
  if state.process_id:
    said = _told(client, verdict, deadline + timeout)
    if said is None:
      raise ClusterError('process 0 says no more whether all are alike.')
  else:
    values = [
      _told(client, f'pixel_llm/{stage}/{i}', deadline)
      for i in range(state.num_processes)
    ]
    silent = [i for i, value in enumerate(values) if value is None]
    found = [json.loads(value) for value in values if value is not None]
    said = '\n  '.join(
      [f'process {_some(silent)}: no answer within {timeout:g} seconds.']
      if silent
      else differences(found)
    )
    client.key_value_set(verdict, said)
  if said:
    raise ClusterError(f'the processes are not alike:\n  {said}')
  return [] if state.process_id else found


def _told(client: Any, key: str, deadline: float) -> str | None:
  left = max(1, int(1000 * (deadline - time.monotonic())))
  try:
    return client.blocking_key_value_get(key, left)
  except jax.errors.JaxRuntimeError:
    return None


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """What is unlike process 0, a line each.

  Args:
    facts: of each process in order, with `host`, which may differ.
  """
  first = facts[0]
  lines = [
    f'process {i} ({own["host"]}): {key} is {own.get(key, "not there")}, but '
    f'{first.get(key, "not there")} on process 0 ({first["host"]})'
    for i, own in enumerate(facts)
    for key in {**first, **own}
    if key != 'host' and own.get(key) != first.get(key)
  ]
  more = len(lines) - _SHOWN
  return lines[:_SHOWN] + ([f'and {more} more'] if more > 0 else [])


def _table(
  found: str, devices: Sequence[Mapping[str, str]], facts: Mapping[str, str]
) -> str:
  one = devices[0]
  config = ''.join(f'{k}={v}\n' for k, v in facts.items() if 'config' in k)
  data = ' '.join(
    f'{k.removeprefix("data.records.")} {v}'
    for k, v in facts.items()
    if k.startswith('data.records.')
  )
  return '\n'.join(
    [
      f'cluster ({found}): {len(devices)} processes x '
      f'{one["local devices"]} {one["kind"]} ({one["platform"]}) = '
      f'{one["devices"]} devices',
      '  ' + ', '.join(f'{i} {d["host"]}' for i, d in enumerate(devices)),
      '  ' + ', '.join(f'{k} {facts[k]}' for k in ('python', *_PACKAGES)),
      f'  source {facts["source of pixel_llm"]}, config '
      f'{hashlib.sha256(config.encode()).hexdigest()[:12]}, vocabulary '
      f'{facts["vocabulary"]}, records: {data or "none"}',
    ]
  )


def total(name: str, count: int) -> int:
  """The sum of what all processes have said last; waits for none of them."""
  if not joined():
    return count
  index = jax_distributed.global_state.process_id
  key = f'pixel_llm/total/{name}'
  _client().key_value_set(f'{key}/{index}', str(count), allow_overwrite=True)
  return sum(map(int, _all(key).values()))


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
    if error and joined():
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
    name = f'{jax_distributed.global_state.process_id}.txt'
    # What hangs may be the very file system.
    writer = threading.Thread(
      target=_try_write, args=(self._folder / name, stacks), daemon=True
    )
    writer.start()
    writer.join(_LINGER_SECONDS)


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
  return _End(code, jax_distributed.global_state.process_id, _host(), message)


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
  state = jax_distributed.global_state
  if joined():
    _set(f'{_LEFT}/{state.process_id}', '')
    # The others look around before what they wait for is gone; and last goes
    # process 0, as it holds the store.
    deadline = time.monotonic() + _LINGER_SECONDS
    while len(_all(_LEFT)) < state.num_processes:
      if time.monotonic() > deadline:
        break
      time.sleep(0.1)
    if state.process_id == 0:
      time.sleep(1)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(end.code)


def _tell(end: _End) -> None:
  if joined():
    index = jax_distributed.global_state.process_id
    _set(f'{_ENDED}/{index}', json.dumps(dataclasses.asdict(end)))


def _ended() -> dict[int, _End]:
  """Why other processes have ended, by their index."""
  found = {k: _End(**json.loads(v)) for k, v in _all(_ENDED).items()}
  found.pop(jax_distributed.global_state.process_id, None)
  return found


def _set(key: str, value: str) -> None:
  # What is there first stays; the store may be gone.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().key_value_set(key, value)


def _all(prefix: str) -> dict[int, str]:
  """What processes have set below a prefix, by their index."""
  try:
    told = _client().key_value_dir_get(f'{prefix}/') if joined() else []
  except jax.errors.JaxRuntimeError:  # JAX itself ends us
    told = []
  return {int(key.rpartition('/')[2]): value for key, value in told}


def _client() -> Any:
  return jax_distributed.global_state.client


def _host() -> str:
  return socket.gethostname()


def _some(items: Sequence[int | str]) -> str:
  more = len(items) - _SHOWN
  listed = ', '.join(map(str, items[:_SHOWN]))
  return f'{listed} and {more} more' if more > 0 else listed


def _say(line: str) -> None:
  print(f'pixel-llm: {line}', file=sys.stderr, flush=True)
