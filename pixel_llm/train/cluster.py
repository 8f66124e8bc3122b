# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Processes of one run: they must all be there, and be alike."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import machinery
from typing import Any

import jax
from etils import epath

from pixel_llm import config as config_lib
from pixel_llm import files, version
from pixel_llm.train import experiment, store
from pixel_llm.train import place as place_lib
from pixel_llm.train import watchdog as watchdog_lib

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
_OWN = re.compile(r'data\.(records\..*|vocabulary|image_maps)|loop\.workers')
_SHOWN = 20


def join(
  place: place_lib.Place, timeout: float = 60, heartbeat: float = 100
) -> None:
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
    raise place_lib.ClusterError(error)
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
  place: place_lib.Place | None,
  config: experiment.ExperimentConfig,
  workdir: epath.PathLike,
  timeout: float = 60,
) -> Iterator[watchdog_lib.Watchdog]:
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
  with watchdog_lib.Watchdog(config.loop.stall_seconds, stacks) as watchdog:
    if place is not None:
      table = check_alike(config, workdir, place.found, timeout)
      if table:
        print(table, flush=True)
    yield watchdog
  if place is not None:
    jax.distributed.shutdown()


# JAX's own start with a process missing aborts the others, and says not which.
async def _hold_roll_call(place: place_lib.Place, timeout: float) -> str:
  """Process 0: waits for all, tells all what is wrong, or ''."""
  loop = asyncio.get_running_loop()
  present, wrong = {0: store.host()}, loop.create_future()
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
    raise place_lib.ClusterError(
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


def _answer_roll_call(place: place_lib.Place, timeout: float) -> str:
  """Another process: says that it is there, and hears what is wrong."""
  said = {'index': place.index, 'count': place.count, 'host': store.host()}
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
      raise place_lib.ClusterError(
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
  key = 'pixel_llm/workdir'
  if store.is_first():
    mark = f'.{uuid.uuid4().hex}'
    files.write(workdir / mark, '')
    store.put(key, f'{mark} {workdir}')
    try:
      yield str(workdir)
    finally:
      (workdir / mark).unlink()
    return
  said = store.told(key, time.monotonic() + timeout)
  mark, _, there = (said or '').partition(' ')
  # Network file systems take their time.
  deadline = time.monotonic() + min(timeout / 4, watchdog_lib.LINGER_SECONDS)
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
  leaves = config_lib.leaves(config_lib.to_dict(config))
  return {
    **versions,
    'source of pixel_llm': version.digest(),
    'vocabulary': _digest([epath.Path(config.data.vocabulary)]),
    **{
      f'data.records.{key}': _digest(
        sorted(pathlib.Path(directory).glob('*.manifest.json'))
      )
      for key, directory in config.data.records.items()
    },
    'data.image_maps': _maps_digest(config.data.image_maps),
    **{f'module {name}': _module_digest(name) for name in config.data.modules},
    **{
      f'config {path}': repr(value)
      for path, value in leaves
      if not _OWN.fullmatch(path)
    },
  }


def _maps_digest(directory: str | None) -> str:
  if not directory:
    return 'none'
  root = pathlib.Path(directory)
  return _digest(sorted(root.rglob('*.manifest.json')), root)


def _module_digest(name: str) -> str:
  """Of a user's module, or of all of the package that it is in."""
  top = name.partition('.')[0]
  spec = machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
  if spec is None or spec.origin is None:  # the trainer says so
    return 'none'
  path = pathlib.Path(spec.origin)
  if not spec.submodule_search_locations:
    return _digest([path])
  return _digest(sorted(path.parent.rglob('*.py')), path.parent)


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
  mine = json.dumps({'host': store.host(), **facts})
  store.put(f'pixel_llm/{stage}/{store.index()}', mine)
  deadline = time.monotonic() + timeout
  verdict = f'pixel_llm/{stage}/verdict'
  if store.index():
    said = store.told(verdict, deadline + timeout)
    if said is None:
      raise place_lib.ClusterError(
        'process 0 says no more whether all are alike.'
      )
  else:
    values = [
      store.told(f'pixel_llm/{stage}/{i}', deadline)
      for i in range(store.count())
    ]
    silent = [i for i, value in enumerate(values) if value is None]
    found = [json.loads(value) for value in values if value is not None]
    said = '\n  '.join(
      [f'process {_some(silent)}: no answer within {timeout:g} seconds.']
      if silent
      else differences(found)
    )
    store.put(verdict, said)
  if said:
    raise place_lib.ClusterError(f'the processes are not alike:\n  {said}')
  return [] if store.index() else found


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


def _some(items: Sequence[int | str]) -> str:
  more = len(items) - _SHOWN
  listed = ', '.join(map(str, items[:_SHOWN]))
  return f'{listed} and {more} more' if more > 0 else listed
