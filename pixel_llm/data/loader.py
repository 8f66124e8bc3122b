# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Training batches whose content is a pure function of (seed, step).

Tasks say what an example becomes, SeqIO's mixtures how they are mixed; here is
only which example comes when. A run that resumes at step N asks for step N:
there is no other state. Threads make the examples: decoding, resizing and
copying, most of the work, leave Python's lock.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import queue
import threading
from collections.abc import Generator, Mapping
from concurrent import futures

import cv2
import jax
import numpy as np
import seqio

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import image as image_lib
from pixel_llm.data import image_maps, order, registry
from pixel_llm.tasks import task as task_lib

# Batches that are made while one is used, and as many that wait on the device.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Stream:
  """Batches of one SeqIO mixture or task, all of one shape.

  Attributes:
    mixture: name of a SeqIO mixture or task.
    sizes: the shape table; `batch` is the global batch.
    rate: share of the steps, relative to the other streams.
    maps: by task, those of its images that were made before; None for none.
  """

  mixture: str
  sizes: batch_lib.BatchSizes
  rate: float = 1.0
  maps: Mapping[str, image_maps.ImageMaps] | None = None


@dataclasses.dataclass(frozen=True)
class Slot:
  """Which example fills a place in a batch.

  Attributes:
    task: SeqIO task that it is of.
    index: of its row.
    seed: of every random choice inside it.
  """

  task: str
  index: int
  seed: int


class Loader:
  """Batches by step; each step's batch comes from one stream.

  Streams have shapes of their own (long narratives of few regions, short
  expressions of many), so that little of a batch is padding; examples of a
  mixture are mixed within a batch.

  An example that cannot be read leaves its place empty: a black image of which
  nothing is asked, all weights zero. The others stay where they are.

  Args:
    streams: name -> stream.
    seed: of order and of every random choice.
    split: of the tasks.
    process: (index, count) of this host; each reads only its own slots.
    workers: threads that read and prepare; nothing else depends on it. 0 takes
      as many as there are cores.
    max_damaged: examples that may be passed over on this host.

  Attributes:
    damaged: what was wrong with each that was passed over so far.

  Raises:
    ValueError: a batch does not divide by the hosts, or a mixture has a task
      that was not added by `registry.add_task` on rows of random access, or
      that has none of them in this split.
  """

  def __init__(
    self,
    streams: Mapping[str, Stream],
    seed: int,
    split: str = 'train',
    process: tuple[int, int] | None = None,
    workers: int = 0,
    max_damaged: int = 0,
  ):
    if process is None:
      process = (jax.process_index(), jax.process_count())
    self.streams = dict(streams)
    self.steps = order.Schedule({k: s.rate for k, s in streams.items()})
    self._seed, self._split, self._process = seed, split, process
    self._workers = workers or os.cpu_count() or 1
    self._max_damaged, self._lock = max_damaged, threading.Lock()
    self.damaged: list[str] = []
    self._schedules: dict[str, order.Schedule] = {}
    self._entries: dict[str, registry.Entry] = {}
    self._counts: dict[str, int] = {}
    for name, stream in self.streams.items():
      if stream.sizes.batch % process[1]:
        raise ValueError(
          f'stream {name}: batch {stream.sizes.batch} does not divide by '
          f'{process[1]} hosts.'
        )
      self._schedules[name] = order.Schedule(rates(stream.mixture))
      for task in self._schedules[name].names:
        self._entries[task] = entry = registry.task_of(task)
        self._counts[task] = len(entry.sequence.rows(split))
        if not self._counts[task]:
          raise ValueError(f'task {task}: expected rows in {split!r}, found 0.')

  def slots(self, step: int) -> tuple[str, list[Slot]]:
    """The stream of a step, and the examples of its global batch."""
    name = self.steps.member(step)
    return name, self._slots(name, self.steps.count(name, step), (0, 1))

  def _slots(
    self, name: str, batch: int, process: tuple[int, int]
  ) -> list[Slot]:
    """A host's part of a stream's batch."""
    schedule, size = self._schedules[name], self.streams[name].sizes.batch
    index, count = process
    local = size // count
    first = batch * size + index * local
    out = []
    for slot in range(first, first + local):
      task = schedule.member(slot)
      ordinal = schedule.count(task, slot)
      seed = order.mix(self._seed, task)
      out.append(
        Slot(
          task,
          order.epoch_index(ordinal, self._counts[task], seed),
          order.mix(seed, 1, ordinal),
        )
      )
    return out

  def batches(self, start: int) -> Generator[tuple[str, batch_lib.Batch]]:
    """(stream name, local NumPy batch) of step `start`, `start` + 1, ...

    Raises:
      DamagedError, ImageError: more examples than allowed cannot be read.
    """
    cv2.setNumThreads(1)  # its own would only be in the way of ours
    pool = futures.ThreadPoolExecutor(self._workers, 'loader')
    try:
      coming = collections.deque(
        self._begin(start + i, pool) for i in range(_AHEAD)
      )
      for step in itertools.count(start + _AHEAD):
        coming.append(self._begin(step, pool))
        name, values, rows = coming.popleft()
        for row in rows:
          row.result()
        yield name, batch_lib.Batch(**values)
    finally:
      pool.shutdown(cancel_futures=True)

  def _begin(self, step: int, pool: futures.Executor):
    """Has a step's batch made: its stream, its arrays, and who fills them."""
    name = self.steps.member(step)
    slots = self._slots(name, self.steps.count(name, step), self._process)
    stream, sizes = self.streams[name], self.streams[name].sizes
    # All of a canvas is written, and most of a batch is canvas.
    values = {
      field: (np.empty if field == 'image' else np.zeros)(
        (len(slots), *spec.shape(sizes)[1:]), spec.dtype
      )
      for field, spec in batch_lib.Batch.specs().items()
    }
    maps = None
    if stream.maps is not None:
      maps = next(iter(stream.maps.values())).zeros(len(slots))
    rows = [
      pool.submit(self._fill, values, maps, i, slot, stream)
      for i, slot in enumerate(slots)
    ]
    return name, {**values, 'image_maps': maps}, rows

  def _fill(
    self,
    values: dict[str, np.ndarray],
    maps: dict[str, np.ndarray] | None,
    row: int,
    slot: Slot,
    stream: Stream,
  ) -> None:
    """One place of a batch."""
    entry = self._entries[slot.task]
    place = {name: value[row, ...] for name, value in values.items()}
    try:
      example = entry.sequence.example(self._split, slot.index)
      entry.training_features(example, stream.sizes, slot.seed, place)
      if maps is not None and stream.maps is not None:
        out = {name: value[row] for name, value in maps.items()}
        stream.maps[slot.task].read(slot.index, out)
    except (example_lib.DamagedError, image_lib.ImageError) as e:
      task_lib.clear(place)
      with self._lock:
        self.damaged.append(f'{slot.task}, row {slot.index}: {e}')
        if len(self.damaged) > self._max_damaged:
          raise


def rates(mixture: str) -> dict[str, float]:
  """Task name -> rate; a task is a mixture of itself."""
  try:
    provider = seqio.get_mixture_or_task(mixture)
  except ValueError as e:
    known = sorted(
      {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    )
    raise ValueError(
      f'no SeqIO mixture or task {mixture!r}; there are {", ".join(known)}.'
    ) from e
  if isinstance(provider, seqio.Task):
    return {provider.name: 1.0}
  return {t.name: float(provider.get_rate(t)) for t in provider.tasks}


def to_device(batch: batch_lib.Batch, sharding) -> batch_lib.Batch:
  """The global batch on the mesh, from each host's local part."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def on_device(
  batches: Generator[tuple[str, batch_lib.Batch]], sharding
) -> Generator[tuple[str, batch_lib.Batch]]:
  """The batches on the mesh; a thread brings the next ones there meanwhile.

  Args:
    batches: of `Loader.batches`; closed when this is.
    sharding: of `sharding.batch_sharding`.
  """
  ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
  stop = threading.Event()

  def put(item) -> bool:
    while not stop.is_set():
      with contextlib.suppress(queue.Full):
        ready.put(item, timeout=0.1)
        return True
    return False

  def produce():
    try:
      for name, batch in batches:
        if not put((name, to_device(batch, sharding))):
          return
    except Exception as e:
      put(e)

  thread = threading.Thread(target=produce, name='on_device', daemon=True)
  thread.start()
  try:
    while True:
      item = ready.get()
      if isinstance(item, Exception):
        raise item
      yield item
  finally:
    stop.set()
    thread.join()
    batches.close()
