# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A SeqIO task is a data set x a capability: `add_task`, `task_of`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.data import features as features_lib
from pixel_llm.data import order, records
from pixel_llm.tasks import answer
from pixel_llm.tasks import task as task_lib

# The accelerators are JAX's. Whoever has used TensorFlow before has them taken.
with contextlib.suppress(RuntimeError):
  for kind in ('GPU', 'TPU'):
    tf.config.set_visible_devices([], kind)

# SeqIO gives the seed of an example's random choices, or nothing is drawn.
SEQIO_DRAWS, AS_IT_IS = -1, -2
# Feature beside those of `Batch`, for SeqIO's evaluation: the targets as JSON.
TARGETS = 'decoder_target_tokens_pretokenized'


class SequenceSource(seqio.DataSource):
  """Anything with random access as a SeqIO source: order can be a function.

  As such it emits {'record': bytes of the canonical example, 'seed': int64},
  `SEQIO_DRAWS` or `AS_IT_IS`.

  Args:
    splits: split -> rows, anything with `len(rows)` and `rows[i]`: a list, a
      Grain or TensorFlow Datasets data source, a class of your own.
    to_example: a row -> the canonical example; `add_task` sets it.
  """

  def __init__(
    self,
    splits: Mapping[str, Sequence[Any]],
    to_example: Callable[[Any], example_lib.Example] | None = None,
  ):
    self._rows, self.to_example = dict(splits), to_example
    self.name = type(self).__name__
    super().__init__(
      splits=tuple(self._rows),
      num_input_examples={k: len(v) for k, v in self._rows.items()},
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Any host may read any rows."""
    return True

  def list_shards(self, split: str) -> list[str]:
    """One, since rows are random access."""
    return [split]

  def rows(self, split: str) -> Sequence[Any]:
    """The rows of a split.

    Raises:
      ValueError: no such split; lists those there are.
    """
    if split not in self._rows:
      raise ValueError(
        f'{self.name}: no split {split!r}; there are {", ".join(self._rows)}.'
      )
    return self._rows[split]

  def example(self, split: str, index: int) -> example_lib.Example:
    """The canonical example of a row."""
    assert self.to_example is not None, 'add_task sets it'
    return self.to_example(self.rows(split)[index])

  def record(self, split: str, index: int) -> bytes:
    """The example as a record."""
    return example_lib.to_bytes(self.example(split, index))

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
    """SeqIO's own way in; training uses `loader`.

    Examples of the split `train` are drawn from, those of others are as
    evaluation sees them.
    """
    del sequence_length, use_cached, num_epochs
    size = len(self.rows(split))
    shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
    base = 0 if seed is None else int(seed)

    def indices():
      for i in range(shard.index, size, shard.num_shards):
        yield order.permuted(i, size, base) if shuffle else i

    def load(index):
      record = tf.numpy_function(
        lambda i: self.record(split, int(i)), [index], tf.string, stateful=False
      )
      seed = SEQIO_DRAWS if split == 'train' else AS_IT_IS
      return {
        'record': tf.ensure_shape(record, ()),
        'seed': tf.constant(seed, tf.int64),
      }

    ds = tf.data.Dataset.from_generator(
      indices, output_signature=tf.TensorSpec((), tf.int64)
    )
    return ds.map(load, num_parallel_calls=tf.data.AUTOTUNE)


class RecordSource(SequenceSource):
  """Records made by `pixel-llm build`.

  Args:
    directory: of the record set.

  Raises:
    FileNotFoundError: no split has a manifest there.
  """

  def __init__(self, directory: str):
    self.directory = str(directory)
    super().__init__(
      {
        split: records.RecordSet(self.directory, split)
        for split in records.splits(self.directory)
      },
      example_lib.from_bytes,
    )
    self.name = f'records {self.directory}'

  def list_shards(self, split: str) -> list[str]:
    """Names of its files; any number of readers may share them anyhow."""
    shards = self.rows(split).manifest['shards']
    return [f'{self.directory}/{shard["name"]}' for shard in shards]

  def rows(self, split: str) -> records.RecordSet:
    """The random access records of a split."""
    return cast(records.RecordSet, super().rows(split))

  def record(self, split: str, index: int) -> bytes:
    """The record as it is."""
    return self.rows(split)[index]


@dataclasses.dataclass(frozen=True)
class Entry:
  """What was registered under a name."""

  name: str
  source: seqio.DataSource
  task: task_lib.Task
  augmentation: Augmentation
  vocabulary: vocabulary_lib.Vocabulary

  def training_features(
    self,
    example: example_lib.Example,
    sizes: batch_lib.BatchSizes,
    seed: int,
    out: dict[str, np.ndarray] | None = None,
  ) -> dict[str, np.ndarray]:
    """An example as it is trained on; see `tasks.task.training_features`."""
    return task_lib.training_features(
      self.task, example, self.vocabulary, sizes, self.augmentation, seed, out
    )

  @property
  def sequence(self) -> SequenceSource:
    """The source, as one of random access.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(self.source, SequenceSource):
      raise ValueError(
        f'task {self.name}: a {type(self.source).__name__} is read from its '
        'beginning, but training and evaluation need random access; use '
        'registry.SequenceSource on something with len() and [i], '
        'tfds.data_source for example, or records of `pixel-llm build`.'
      )
    return self.source


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
  augmentation: Augmentation | None = None,
  replace: bool = False,
) -> seqio.Task:
  """Registers an ordinary SeqIO task whose features are those of `Batch`.

  What SeqIO caches offline of it are the canonical examples; what is drawn is
  drawn after.

  Args:
    name: by convention `<dataset>_<task>`.
    source: a `SequenceSource` or `RecordSource`; or any SeqIO source, which
      SeqIO can read, but not `loader`.
    task: the capability, e.g. `tasks.REFER`.
    to_example: one source row (of other SeqIO sources a dict of NumPy values)
      -> the canonical example; records need none.
    augmentation: of the examples when they are trained on; None changes
      nothing but draws prompts and regions.
    replace: take the place of a task of that name.

  Raises:
    ValueError: no vocabulary is set, or `to_example` is missing.
  """
  if not _VOCABULARY:
    raise ValueError(
      f'task {name}: no vocabulary; call registry.use_vocabulary first.'
    )
  steps: list[Any] = [seqio.CacheDatasetPlaceholder()]
  if isinstance(source, SequenceSource):
    if to_example is not None:
      source = copy.copy(source)
      source.to_example = to_example
    to_example = source.to_example
  elif to_example is not None:
    steps.insert(0, functools.partial(_to_records, to_example=to_example))
  if to_example is None:
    raise ValueError(
      f'task {name}: a {type(source).__name__} needs to_example.'
    )
  vocabulary = _VOCABULARY[0]
  entry = Entry(name, source, task, augmentation or Augmentation(), vocabulary)
  if replace and name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  _ENTRIES[name] = entry
  return seqio.TaskRegistry.add(
    name,
    source=cast(Any, source),
    preprocessors=[*steps, functools.partial(_to_features, entry=entry)],
    output_features=features_lib.output_features(
      features_lib.Vocabulary(vocabulary.path, vocabulary.extra_ids)
    ),
    postprocess_fn=_postprocess,
    metric_fns=[_metric(metric) for metric in task.metrics],
  )


def task_of(name: str) -> Entry:
  """What `add_task` registered under `name`.

  Raises:
    ValueError: unknown name; lists the known ones.
  """
  if name not in _ENTRIES:
    raise ValueError(
      f'no task {name!r} was added by registry.add_task; there are '
      f'{", ".join(sorted(_ENTRIES)) or "none"}.'
    )
  return _ENTRIES[name]


def _to_records(
  ds: tf.data.Dataset, *, to_example: Callable[[Any], example_lib.Example]
) -> tf.data.Dataset:
  """Rows of any SeqIO source -> what a `SequenceSource` emits."""

  def convert(row):
    def build(*values):
      values = tf.nest.pack_sequence_as(row, values)
      return example_lib.to_bytes(to_example(values))

    record = tf.numpy_function(
      build, tf.nest.flatten(row), tf.string, stateful=False
    )
    return {
      'record': tf.ensure_shape(record, ()),
      'seed': tf.constant(SEQIO_DRAWS, tf.int64),
    }

  return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def _to_features(
  ds: tf.data.Dataset, sequence_length, *, entry: Entry
) -> tf.data.Dataset:
  """Records -> the unbatched features of `Batch`, padded."""
  sizes = features_lib.sizes_of(sequence_length)
  specs = batch_lib.Batch.specs()
  shapes = features_lib.lengths(sizes)

  def build(record, seed, drawn):
    example, targets = example_lib.from_bytes(record), b''
    if seed == AS_IT_IS:
      groups = entry.task.questions(example)[: sizes.regions]
      out = task_lib.features(
        entry.task,
        example,
        entry.vocabulary,
        sizes,
        [group[0] for group in groups],
      )
      # Masks are drawn on the file: its height and width, and the canvas, px.
      fit = [*example.size, sizes.image]
      targets = json.dumps(
        [task_lib.target(example, group) | {'fit': fit} for group in groups],
        default=bytes.decode,  # masks
      ).encode()
    else:
      out = entry.training_features(example, sizes, order.mix(*map(int, drawn)))
    values = (np.asarray(out[n], s.dtype) for n, s in specs.items())
    return [*map(np.atleast_1d, values), targets]

  @seqio.map_over_dataset(num_seeds=1)
  def convert(row, seed):
    *values, targets = tf.numpy_function(
      build,
      [row['record'], row['seed'], seed],
      [*(tf.as_dtype(s.dtype) for s in specs.values()), tf.string],
      stateful=False,
    )
    return {
      name: tf.ensure_shape(value, shapes[name])
      for name, value in zip(specs, values, strict=True)
    } | {TARGETS: tf.ensure_shape(targets, ())}

  return convert(ds)  # pyright: ignore[reportCallIssue]  it is mapped


def _postprocess(
  value: Any, example: Any = None, is_target: bool = False
) -> list[dict[str, Any]]:
  """SeqIO's targets and texts of an image as ours, a question each."""
  if not is_target:
    return [{'text': text} for text in value]
  return [
    {
      **target,
      'box': np.asarray(target['box'], np.float32),
      'tokens': example['decoder_target_tokens'][i][None],
      **({'mask': target['mask'].encode()} if 'mask' in target else {}),
      'points': example['points'][i][None],
      'weights': example['point_weights'][i][None],
    }
    for i, target in enumerate(json.loads(value))
  ]


def _metric(metric: Callable[[list, list], Mapping[str, float]]) -> Callable:
  """A metric of questions as one of images, of `train.evaluate.seqio_fn`."""

  @functools.wraps(metric, assigned=('__name__', '__doc__'))
  def of_images(targets, predictions, aux_values):
    flat_targets, flat_predictions = [], []
    for i, (asked, said) in enumerate(zip(targets, predictions, strict=True)):
      for r, target in enumerate(asked):
        # T5X gives lists.
        points = np.asarray(aux_values['points'][i][r], np.float32)
        tokens = np.asarray(aux_values['tokens'][i][r])
        box = geometry.answer_box(tokens, points)
        written: dict[str, Any] = task_lib.written(
          np.asarray(aux_values['written_tokens'][i][r]),
          np.asarray(aux_values['written_points'][i][r], np.float32),
        )
        if 'presence' in aux_values:
          logit = aux_values['presence'][i][r]
          written['presence'] = task_lib.probability(logit)
        if 'mask_logits' in aux_values:
          *size_orig, canvas = target['fit']
          logits = np.asarray(aux_values['mask_logits'][i][r], np.float32)
          written['mask'] = answer.mask(logits, tuple(size_orig), canvas)
        flat_targets.append(target)
        flat_predictions.append(
          {**said[r], **written, 'points': points[None], 'box': box}
        )
    return metric(flat_targets, flat_predictions)

  del of_images.__wrapped__  # SeqIO reads the arguments' names
  return of_images
