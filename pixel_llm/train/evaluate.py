# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Runs SeqIO tasks' questions through the model and their metrics on top."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, sharding
from pixel_llm import image as image_lib
from pixel_llm.data import registry
from pixel_llm.model import pixel_llm
from pixel_llm.prediction import Prediction
from pixel_llm.tasks import answer
from pixel_llm.tasks import task as task_lib
from pixel_llm.train import experiment

Progress = Callable[[str, int, int], None]


def seqio_fn(
  config: experiment.ExperimentConfig,
  model: pixel_llm.PixelLLM,
  mesh: jax.sharding.Mesh,
  params: Any,
  task: str,
) -> Callable[[Any], tuple[list, dict[str, list]]]:
  """`predict_with_aux_fn` of SeqIO's `Evaluator`, for one of our tasks.

  Args:
    config: the experiment.
    model: its network.
    mesh: batches are sharded over its `data` axis.
    params: parameters, on the mesh.
    task: SeqIO task of `config.eval.tasks`.

  Returns: function of an enumerated data set giving [(index, tokens [R, L])],
    and `points` [R, L, P, 2] and the `tokens` that they are of.
  """
  sizes = config.data.sizes(config.eval.tasks[task])
  asked = registry.task_of(task).task
  decoding = dataclasses.replace(config.eval.decoding, length=sizes.length)
  generate = jax.jit(
    functools.partial(task_lib.generate, model, decoding=decoding)
  )
  read = jax.jit(functools.partial(task_lib.read, model))

  def predict(dataset) -> tuple[list, dict[str, list]]:
    tokens: list = []
    aux: dict[str, list] = {'points': [], 'tokens': []}
    rows = dataset.as_numpy_iterator()
    while part := list(itertools.islice(rows, sizes.batch)):
      full = part + part[-1:] * (sizes.batch - len(part))
      batch = batch_lib.Batch(
        **{
          name: np.stack([row[name] for _, row in full])
          for name in batch_lib.Batch.specs()
        }
      )
      with jax.set_mesh(mesh):
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        found = read(params, batch) if asked.reads else None
        said = generate(params, batch) if asked.generates else found
        found, said = jax.device_get((found or said, said))
      for i, (index, _) in enumerate(part):
        tokens.append((int(index), said.tokens[i]))
        aux['points'].append(found.points[i])
        aux['tokens'].append(found.tokens[i])
    return tokens, aux

  return predict


@dataclasses.dataclass
class Shown:
  """An example kept for the report: upright RGB, answer and truth."""

  image: np.ndarray
  prediction: Prediction
  truth: Prediction


@dataclasses.dataclass
class Result:
  """Metrics of a task, and some of its answers to look at."""

  metrics: dict[str, float]
  gallery: list[Shown]


class Evaluator:
  """Compiles once, evaluates as often as asked.

  Args:
    config: the experiment.
    model: its network.
    mesh: batches are sharded over its `data` axis.
  """

  def __init__(
    self,
    config: experiment.ExperimentConfig,
    model: pixel_llm.PixelLLM,
    mesh: jax.sharding.Mesh,
  ):
    self._config, self._mesh = config, mesh
    self._read = jax.jit(functools.partial(task_lib.read, model))
    self._generate = jax.jit(
      functools.partial(task_lib.generate, model), static_argnames='decoding'
    )

  def run(
    self, params: Any, progress: Progress | None = None
  ) -> dict[str, Result]:
    """Every task of `config.eval.tasks`.

    Args:
      params: parameters, on the mesh.
      progress: called with (task, done, all) questions.

    Returns: SeqIO task name -> result.
    """
    return {
      name: self._task(name, shape, params, progress)
      for name, shape in self._config.eval.tasks.items()
    }

  def _task(
    self,
    name: str,
    shape: experiment.EvalTaskConfig,
    params,
    progress: Progress | None,
  ) -> Result:
    config = self._config.eval
    entry = registry.task_of(name)
    task, sizes = entry.task, self._config.data.sizes(shape)
    examples = _Examples(entry, config.split, config.examples)
    groups: list[tuple[int, list[int]]] = []
    targets: list[dict[str, Any]] = []
    for i, example in enumerate(examples):
      for group in task.questions(example):
        groups.append((i, group))
        target = task_lib.target(example, group)
        targets.append({**target, 'box': np.asarray(target['box'], np.float32)})
    if not groups:
      raise ValueError(
        f'task {name}: expected regions that {task.name} can be asked about, '
        f'found none in the {len(examples)} examples of split {config.split}.'
      )
    predictions: list[dict[str, Any]] = [{} for _ in groups]
    done = 0
    total = len(groups) * (task.generates + task.reads)

    if task.generates:
      decoding = dataclasses.replace(config.decoding, length=sizes.length)
      asked = [(i, n, group[0]) for n, (i, group) in enumerate(groups)]
      generate = lambda params, batch, rows: self._generate(
        params, batch, decoding=decoding, rows=rows
      )
      for n, output, _ in self._questions(
        generate, entry, examples, asked, sizes, params
      ):
        predictions[n]['text'] = entry.vocabulary.decode(output.tokens)
        predictions[n]['output'] = output
        done += 1
        if progress:
          progress(name, done, total)
    if task.reads:
      asked = [(i, n, r) for n, (i, group) in enumerate(groups) for r in group]
      rows: list[list] = [[] for _ in groups]
      for n, output, batch in self._questions(
        lambda params, batch, rows: self._read(params, batch),
        entry,
        examples,
        asked,
        sizes,
        params,
      ):
        rows[n].append((output, batch))
        done += len(rows[n]) == len(groups[n][1])
        if progress:
          progress(name, done, total)
      for n, pairs in enumerate(rows):
        predictions[n]['points'] = np.stack([o.points for o, _ in pairs])
        predictions[n]['box'] = geometry.answer_box(
          pairs[0][0].tokens, pairs[0][0].points
        )
        predictions[n].setdefault('output', pairs[0][0])
        targets[n]['points'] = np.stack([b.points for _, b in pairs])
        targets[n]['weights'] = np.stack([b.point_weights for _, b in pairs])

    metrics: dict[str, float] = {}
    for metric in task.metrics:
      metrics.update(metric(targets, predictions))
    gallery = [
      _shown(entry, examples[i], group, predictions[n], sizes)
      for n, (i, group) in _spread(groups, config.gallery)
    ]
    return Result(metrics, gallery)

  def _questions(
    self,
    function,
    entry: registry.Entry,
    examples,
    asked,
    sizes: batch_lib.BatchSizes,
    params,
  ) -> Iterator[tuple[int, batch_lib.Output, batch_lib.Batch]]:
    """Packs questions into batches, images in order, and unpacks the answers.

    Args:
      function: (params, batch, question numbers [B, R]) -> Output.
      entry: the task.
      examples: all of them.
      asked: (example, question number, region) in order of examples.
      sizes: the shape table.
      params: parameters.

    Yields: question number, its row of the output and of the batch (NumPy).
    """
    packed: list[tuple[int, list[tuple[int, int]]]] = []
    for i, n, region in asked:
      if (
        not packed
        or packed[-1][0] != i
        or (len(packed[-1][1]) == sizes.regions)
      ):
        packed.append((i, []))
      packed[-1][1].append((n, region))
    for start in range(0, len(packed), sizes.batch):
      part = packed[start : start + sizes.batch]
      rows = [
        task_lib.features(
          entry.task,
          examples[i],
          entry.vocabulary,
          sizes,
          [region for _, region in questions],
        )
        for i, questions in part
      ]
      zero = {k: np.zeros_like(v) for k, v in rows[0].items()}
      rows += [zero] * (sizes.batch - len(rows))
      batch = batch_lib.Batch(
        **{k: np.stack([r[k] for r in rows]) for k in rows[0]}
      )
      numbers = np.zeros((sizes.batch, sizes.regions), np.int32)
      for b, (_, questions) in enumerate(part):
        numbers[b, : len(questions)] = [n for n, _ in questions]
      with jax.set_mesh(self._mesh):
        device = jax.device_put(
          (batch, numbers), sharding.batch_sharding(self._mesh)
        )
        output = jax.device_get(function(params, *device))
      for b, (_, questions) in enumerate(part):
        for r, (n, _) in enumerate(questions):
          pick = lambda x, b=b, r=r: x[b, r]
          regions = {
            k: pick(getattr(batch, k))
            for k, spec in batch_lib.Batch.specs().items()
            if spec.dims[:2] == ('B', 'R')
          }
          yield (n, jax.tree.map(pick, output), batch_lib.Batch(**regions))


class _Examples:
  """The canonical examples of a split, each read when it is looked at."""

  def __init__(self, entry: registry.Entry, split: str, most: int):
    self._source, self._split = entry.sequence, split
    self._count = len(self._source.rows(split))
    if most:
      self._count = min(most, self._count)

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[example_lib.Example]:
    return (self[i] for i in range(self._count))

  def __getitem__(self, index: int) -> example_lib.Example:
    return self._source.example(self._split, index)


def _spread(items: list, most: int) -> list[tuple[int, Any]]:
  """At most `most` of the items with their numbers, evenly spread."""
  count = min(most, len(items))
  return [
    (n, items[n]) for n in (i * len(items) // count for i in range(count))
  ]


def _shown(
  entry: registry.Entry,
  example: example_lib.Example,
  group: list[int],
  prediction: dict[str, Any],
  sizes: batch_lib.BatchSizes,
) -> Shown:
  """The answer to one question and the truth beside it."""
  task, vocabulary = entry.task, entry.vocabulary
  region = example.regions[group[0]]
  row = task_lib.row(task, region, vocabulary, sizes)
  truth = batch_lib.Output(
    tokens=row['decoder_target_tokens'],
    points=row['points'],
    log_probs=np.zeros(sizes.length),
    scores=0.0,
  )
  make = functools.partial(
    answer.prediction,
    task,
    region,
    vocabulary=vocabulary,
    image=example.image_id,
    size_orig=example.size,
  )
  return Shown(
    image_lib.decode(example.image, example.image_id),
    make(output=prediction['output']),
    make(output=truth, placed=row['point_weights'] > 0),
  )
