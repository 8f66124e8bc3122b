# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Training batches whose content is a pure function of (seed, step).

SeqIO's tasks say what an example becomes; here is only which example comes
when. A run that resumes at step N asks for step N: there is no other state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from pixel_llm import batch as batch_lib
from pixel_llm.data import features as features_lib
from pixel_llm.data import order, registry


@dataclasses.dataclass(frozen=True)
class Stream:
  """Batches of one SeqIO mixture or task, all of one shape.

  Attributes:
    mixture: name of a SeqIO mixture or task.
    sizes: the shape table; `batch` is the global batch.
    rate: share of the steps, relative to the other streams.
  """

  mixture: str
  sizes: batch_lib.BatchSizes
  rate: float = 1.0


class Loader:
  """Batches by step; each step's batch comes from one stream.

  Streams have shapes of their own (long narratives of few regions, short
  expressions of many), so that little of a batch is padding; examples of a
  mixture are mixed within a batch.

  Args:
    streams: name -> stream.
    seed: of order and of every random choice.
    split: of the tasks.
    process: (index, count) of this host; each reads only its own slots.

  Raises:
    ValueError: a batch does not divide by the hosts, or a mixture has a task
      that was not added by `registry.add_task` on records.
  """

  def __init__(
    self,
    streams: Mapping[str, Stream],
    seed: int,
    split: str = 'train',
    process: tuple[int, int] | None = None,
  ):
    if process is None:
      process = (jax.process_index(), jax.process_count())
    self.streams = dict(streams)
    self.steps = order.Schedule({k: s.rate for k, s in streams.items()})
    self._seed, self._split, self._process = seed, split, process
    for name, stream in self.streams.items():
      if stream.sizes.batch % process[1]:
        raise ValueError(
          f'stream {name}: batch {stream.sizes.batch} does not divide by '
          f'{process[1]} hosts.'
        )
      _rates(stream.mixture)

  def batches(self, start: int) -> Generator[tuple[str, batch_lib.Batch]]:
    """(stream name, local NumPy batch) of step `start`, `start` + 1, ..."""
    iterators = {
      name: iter(self._dataset(name, self.steps.count(name, start)))
      for name in self.streams
    }
    step = start
    try:
      while True:
        name = self.steps.member(step)
        yield (
          name,
          batch_lib.Batch(
            **{k: v.numpy() for k, v in next(iterators[name]).items()}
          ),
        )
        step += 1
    finally:
      # Ends TensorFlow's threads while the interpreter still serves them.
      iterators.clear()

  def _dataset(self, name: str, start: int) -> tf.data.Dataset:
    """Batches number `start`, `start` + 1, ... of a stream."""
    stream = self.streams[name]
    index, count = self._process
    local = stream.sizes.batch // count
    rates = _rates(stream.mixture)
    schedule = order.Schedule(rates)

    def slots():
      batch = start
      while True:
        first = batch * stream.sizes.batch + index * local
        yield from range(first, first + local)
        batch += 1

    members = list(rates)
    datasets = [self._member(task, stream, schedule, slots) for task in members]
    choice: Any = tf.data.Dataset.from_generator(
      lambda: (members.index(schedule.member(s)) for s in slots()),
      output_signature=tf.TensorSpec((), tf.int64),
    )
    ds = tf.data.Dataset.choose_from_datasets(datasets, choice)
    ds = ds.batch(local, drop_remainder=True)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 2
    return ds.prefetch(2).with_options(options)

  def _member(
    self, name: str, stream: Stream, schedule: order.Schedule, slots
  ) -> tf.data.Dataset:
    """The examples of one task, in the order of their slots."""
    task = seqio.TaskRegistry.get(name)
    source = registry.task_of(name).source
    assert isinstance(source, registry.RecordSource)
    size = len(source.records(self._split))
    seed = order.mix(self._seed, name)

    def pairs():
      for slot in slots():
        if schedule.member(slot) == name:
          ordinal = schedule.count(name, slot)
          yield (
            order.epoch_index(ordinal, size, seed),
            order.mix(seed, 1, ordinal),
          )

    # SeqIO's types know lengths of one axis only; its code knows shapes.
    lengths: Any = features_lib.lengths(stream.sizes)
    ds: Any = source.dataset_of(self._split, pairs)
    ds = task.preprocess_precache(ds, seed=seed)
    ds = task.preprocess_postcache(ds, sequence_length=lengths, seed=seed)
    return features_lib.PixelFeatureConverter()(ds, lengths)


def _rates(mixture: str) -> dict[str, float]:
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
    rates = {provider.name: 1.0}
  else:
    rates = {t.name: float(provider.get_rate(t)) for t in provider.tasks}
  for name in rates:
    if not isinstance(registry.task_of(name).source, registry.RecordSource):
      raise ValueError(
        f'task {name}: its order can only be a function of the step over '
        'records; write them with `pixel-llm build`.'
      )
  return rates


def to_device(batch: batch_lib.Batch, sharding) -> batch_lib.Batch:
  """The global batch on the mesh, from each host's local part."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )
