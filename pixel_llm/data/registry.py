# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A SeqIO task is a data set x a capability: `add_task`, `task_of`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import features as features_lib
from pixel_llm.data import order, records
from pixel_llm.tasks import task as task_lib


class RecordSource(seqio.DataSource):
  """Records made by `pixel-llm build` as a SeqIO source, with random access.

  Emits {'record': bytes, 'seed': int64}; the seed is of every random choice
  inside the example.

  Args:
    directory: of the record set.
    splits: names of its splits.

  Raises:
    FileNotFoundError: a split has no manifest there.
  """

  def __init__(self, directory: str, splits: Sequence[str]):
    self.directory = str(directory)
    self._records = {
      split: records.RecordSet(self.directory, split) for split in splits
    }
    super().__init__(
      splits=splits,
      num_input_examples={k: len(v) for k, v in self._records.items()},
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Any host may read any records."""
    return True

  def list_shards(self, split: str) -> list[str]:
    """One, since records are random access."""
    return [f'{self.directory}/{split}']

  def records(self, split: str) -> records.RecordSet:
    """The random access records of a split."""
    if split not in self._records:
      raise KeyError(
        f'{self.directory}: no split {split!r}; there are '
        f'{", ".join(self._records)}.'
      )
    return self._records[split]

  def dataset_of(
    self, split: str, pairs: Callable[[], Iterable[tuple[int, int]]]
  ) -> tf.data.Dataset:
    """The records at the (index, seed) pairs that `pairs()` yields."""
    record_set = self.records(split)
    ds = tf.data.Dataset.from_generator(
      pairs,
      output_signature=(
        tf.TensorSpec((), tf.int64),
        tf.TensorSpec((), tf.int64),
      ),
    )

    def load(index, seed):
      record = tf.numpy_function(
        lambda i: record_set[int(i)], [index], tf.string, stateful=False
      )
      return {'record': tf.ensure_shape(record, ()), 'seed': seed}

    return ds.map(load, num_parallel_calls=2)

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length=None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """SeqIO's own way in; training uses `loader` and `dataset_of`."""
    del sequence_length, use_cached, num_epochs
    size = len(self.records(split))
    shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
    base = 0 if seed is None else int(seed)

    def pairs():
      for i in range(shard.index, size, shard.num_shards):
        index = order.permuted(i, size, base) if shuffle else i
        yield index, order.mix(base, index)

    return self.dataset_of(split, pairs)


@dataclasses.dataclass(frozen=True)
class Entry:
  """What was registered under a name."""

  name: str
  source: seqio.DataSource
  task: task_lib.Task
  to_example: Callable[[Any], example_lib.Example]
  vocabulary: vocabulary_lib.Vocabulary


_ENTRIES: dict[str, Entry] = {}
_VOCABULARY: list[vocabulary_lib.Vocabulary] = []


def use_vocabulary(vocabulary: vocabulary_lib.Vocabulary) -> None:
  """The vocabulary of the tasks that are added from now on."""
  _VOCABULARY[:] = [vocabulary]


def add_task(
  name: str,
  source: Any,
  task: task_lib.Task,
  to_example: Callable[[Any], example_lib.Example] | None = None,
  replace: bool = False,
) -> seqio.Task:
  """Registers an ordinary SeqIO task whose features are those of `Batch`.

  Args:
    name: by convention `<dataset>_<task>`.
    source: a `RecordSource`, or any SeqIO source together with `to_example`.
    task: the capability, e.g. `tasks.REFER`.
    to_example: one source record (a dict of NumPy values) -> the canonical
      example; None reads our own records.
    replace: take the place of a task of that name.

  Raises:
    ValueError: no vocabulary is set, or `to_example` is missing.
  """
  if not _VOCABULARY:
    raise ValueError(
      f'task {name}: no vocabulary; call registry.use_vocabulary first.'
    )
  if to_example is None:
    if not isinstance(source, RecordSource):
      raise ValueError(
        f'task {name}: a {type(source).__name__} needs to_example.'
      )
    to_example = _from_record
  vocabulary = _VOCABULARY[0]
  entry = Entry(name, source, task, to_example, vocabulary)
  if replace and name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  _ENTRIES[name] = entry
  return seqio.TaskRegistry.add(
    name,
    source=cast(Any, source),
    preprocessors=[functools.partial(_to_features, entry=entry)],
    output_features=features_lib.output_features(
      seqio.SentencePieceVocabulary(vocabulary.path, vocabulary.extra_ids)
    ),
    metric_fns=list(task.metrics),
  )


def task_of(name: str) -> Entry:
  """What `add_task` registered under `name`.

  Raises:
    KeyError: unknown name; lists the known ones.
  """
  if name not in _ENTRIES:
    raise KeyError(
      f'no task {name!r} was added by registry.add_task; there are '
      f'{", ".join(sorted(_ENTRIES)) or "none"}.'
    )
  return _ENTRIES[name]


def _from_record(row: dict[str, Any]) -> example_lib.Example:
  return example_lib.from_bytes(row['record'])


def _to_features(
  ds: tf.data.Dataset, sequence_length, *, entry: Entry
) -> tf.data.Dataset:
  """Raw source rows -> the unbatched features of `Batch`, padded."""
  sizes = features_lib.sizes_of(sequence_length)
  specs = batch_lib.Batch.specs()

  def convert(index, row):
    seed = row.get('seed', index)
    keys = [k for k in row if k != 'seed']

    def build(seed, *values):
      example = entry.to_example(dict(zip(keys, values)))
      chosen = task_lib.sample_regions(
        len(example.regions), sizes.regions, int(seed)
      )
      out = task_lib.features(
        entry.task, example, entry.vocabulary, sizes, chosen
      )
      return [np.asarray(out[n], specs[n].dtype) for n in specs]

    values = tf.numpy_function(
      build,
      [seed, *[row[k] for k in keys]],
      [tf.as_dtype(s.dtype) for s in specs.values()],
      stateful=False,
    )
    return {
      name: tf.ensure_shape(value, spec.shape(sizes)[1:])
      for (name, spec), value in zip(specs.items(), values)
    }

  return ds.enumerate().map(convert, num_parallel_calls=2)
