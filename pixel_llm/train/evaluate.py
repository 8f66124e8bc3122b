# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Runs SeqIO tasks' questions through the model and their metrics on top.

All processes ask, each about the images of its devices; the first keeps the
answers, makes the scores and tells them to the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, pictures, sharding
from pixel_llm import image as image_lib
from pixel_llm.checkpoints import digest
from pixel_llm.data import registry
from pixel_llm.model import pixel_llm
from pixel_llm.prediction import Prediction
from pixel_llm.tasks import answer as answer_lib
from pixel_llm.tasks import task as task_lib
from pixel_llm.train import experiment, scoring

Progress = Callable[[str, int, int], None]
# Random ones, that is: the last of a gallery.
_PICTURES = 4


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
    and `points` [R, L, P, 2] and the `tokens` that they are of, as well as
    `written_points` of the first tokens, `written_tokens`.
  """
  sizes = config.data.sizes(config.eval.tasks[task])
  asked = registry.task_of(task).task
  decoding = dataclasses.replace(config.eval.decoding, length=sizes.length)
  whole = sharding.replicated(mesh)
  generate = jax.jit(
    functools.partial(task_lib.generate, model, decoding=decoding),
    out_shardings=whole,
  )
  read = jax.jit(functools.partial(task_lib.read, model), out_shardings=whole)

  def predict(dataset) -> tuple[list, dict[str, list]]:
    tokens: list = []
    names = ('points', 'tokens', 'written_points', 'written_tokens')
    aux: dict[str, list] = {name: [] for name in names}
    rows = dataset.as_numpy_iterator()
    while part := list(itertools.islice(rows, sizes.batch)):
      full = part + part[-1:] * (sizes.batch - len(part))
      batch = batch_lib.Batch(
        **{
          name: np.stack([row[name] for _, row in full])
          for name in batch_lib.Batch.specs()
        }
      )
      with sharding.placed(mesh, config.mesh):
        batch = sharding.place(batch, sharding.batch_sharding(mesh))
        found = read(params, batch) if asked.reads else None
        said = generate(params, batch) if asked.generates else found
        found, said = jax.device_get((found or said, said))
      for i, (index, _) in enumerate(part):
        tokens.append((int(index), said.tokens[i]))
        aux['points'].append(found.points[i])
        aux['tokens'].append(found.tokens[i])
        aux['written_points'].append(said.points[i])
        aux['written_tokens'].append(said.tokens[i])
    return tokens, aux

  return predict


@dataclasses.dataclass
class Shown:
  """An example kept for the report: upright RGB, answer and truth.

  Attributes:
    why: it is the 'best', the 'worst' or 'random'.
    rank: how good it is (`Task.rank`).
  """

  image: np.ndarray
  prediction: Prediction
  truth: Prediction
  why: str
  rank: float


@dataclasses.dataclass
class Result:
  """What became of a task.

  Attributes:
    capability: name of the `Task`.
    rank: what `Task.rank` is called; '' without.
    metrics: of all questions.
    gallery: answers to look at, on the first process.
    spec: what was asked, and how (`scoring`).
    asked: questions that were answered just now, not before.
  """

  capability: str
  rank: str
  metrics: dict[str, float]
  gallery: list[Shown]
  spec: dict[str, Any]
  asked: int


def flat_metrics(results: Mapping[str, Result]) -> dict[str, float]:
  """All metrics, by names as of `scoring.flat`."""
  return scoring.flat(
    {name: (r.capability, r.metrics) for name, r in results.items()}
  )


def show(
  results: Mapping[str, Result],
  step: int,
  writer: Any,
  log: Callable[[str], None],
) -> None:
  """Scalars and pictures for `writer`, a line a task for `log`."""
  for name, result in results.items():
    writer.write_scalars(
      step, {f'eval/{name}/{k}': v for k, v in result.metrics.items()}
    )
    for i, shown in enumerate(result.gallery[-_PICTURES:]):
      picture = pictures.draw(
        shown.image, [shown.prediction], [shown.truth]
      ).convert('RGB')
      writer.write_images(step, {f'eval/{name}/{i}': np.asarray(picture)[None]})
    log(
      f'step {step} {name}: '
      + ', '.join(f'{k} {v:.4f}' for k, v in result.metrics.items())
    )


@dataclasses.dataclass(frozen=True)
class Dumps:
  """Where answers are kept, a file a task.

  Attributes:
    folder: for `<SeqIO task>.jsonl`; what is answered there is not asked again.
    step: of the checkpoint.
    replace: asks again, whatever is there.
    log: gets a line about what is not as expected.
  """

  folder: str
  step: int
  replace: bool = False
  log: Callable[[str], None] = print


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
    # Every process reads all answers.
    whole = sharding.replicated(mesh)
    self._read = jax.jit(
      functools.partial(task_lib.read, model), out_shardings=whole
    )
    self._generate = jax.jit(
      functools.partial(task_lib.generate, model),
      static_argnames='decoding',
      out_shardings=whole,
    )

  def run(
    self,
    params: Any,
    progress: Progress | None = None,
    dumps: Dumps | None = None,
  ) -> dict[str, Result]:
    """Every task of `config.eval.tasks`.

    Args:
      params: parameters, on the mesh.
      progress: called with (task, done, all) questions.
      dumps: where answers are kept; None keeps none.

    Returns: SeqIO task name -> result.
    """
    described = {}
    if dumps:
      leaves = jax.tree.leaves_with_path(params)
      named = {jax.tree_util.keystr(path): x for path, x in leaves}
      described = {'step': dumps.step, 'params': digest.digest(named)}
    described['config'] = scoring.digest(self._config.model)
    return {
      name: self._task(name, shape, params, described, progress, dumps)
      for name, shape in self._config.eval.tasks.items()
    }

  def _task(
    self,
    name: str,
    shape: experiment.EvalTaskConfig,
    params,
    described: dict[str, Any],
    progress: Progress | None,
    dumps: Dumps | None,
  ) -> Result:
    config = self._config.eval
    entry = registry.task_of(name)
    task, sizes = entry.task, self._config.data.sizes(shape)
    examples = _Examples(entry, config.split, config.examples)
    groups = [
      (i, group)
      for i, example in enumerate(examples)
      for group in task.questions(example)
    ]
    if not groups:
      raise ValueError(
        f'task {name}: expected regions that {task.name} can be asked about, '
        f'found none in the {len(examples)} examples of split {config.split}.'
      )
    decoding = dataclasses.replace(config.decoding, length=sizes.length)
    spec = {
      'format': scoring.FORMAT,
      'task': name,
      'capability': task.name,
      'questions': len(groups),
      'prompt': task.prompts[0],
      'decoding': config_lib.to_dict(decoding) if task.generates else None,
      'data': {
        'split': config.split,
        'examples': len(examples),
        'digest': examples.digest(),
      },
      # How many are asked at a time changes no answer.
      'shape': {
        k: v
        for k, v in dataclasses.asdict(sizes).items()
        if k not in ('batch', 'regions')
      },
      'vocabulary': entry.vocabulary.digest,
      'model': described,
      'code': {
        **scoring.code(),
        'metrics': [scoring.name(metric) for metric in task.metrics],
      },
    }
    kept = scoring.Rows()
    if dumps and _is_first():
      path = str(epath.Path(dumps.folder) / f'{name}.jsonl')
      kept = scoring.Writer(path, spec, dumps.replace, dumps.log)
      spec = kept.spec
    begun = _told(kept.begun)
    with contextlib.closing(kept):
      answers = self._answers(entry, examples, groups, begun, sizes, params)
      for n, answer in enumerate(answers, begun):
        i, group = groups[n]
        if _is_first():
          kept.add(
            {'example': i, **_row(entry, examples[i], group, answer, sizes)}
          )
        if progress:
          progress(name, n + 1, len(groups))
    metrics, gallery = {}, []
    if _is_first():
      metrics = scoring.metrics(kept.rows, task.metrics)
      gallery = _gallery(examples, kept.rows, task, config.gallery)
    return Result(
      task.name,
      task.rank.__name__ if task.rank else '',
      _told(metrics),
      gallery,
      spec,
      len(groups) - begun,
    )

  def _answers(
    self,
    entry: registry.Entry,
    examples: _Examples,
    groups: list[tuple[int, list[int]]],
    begun: int,
    sizes: batch_lib.BatchSizes,
    params,
  ) -> Iterator[_Answer]:
    """The answers from question `begun` on, in order."""
    task = entry.task
    left = [(n, *groups[n]) for n in range(begun, len(groups))]
    ask = functools.partial(
      self._questions, entry, examples, sizes=sizes, params=params
    )
    decoding = dataclasses.replace(
      self._config.eval.decoding, length=sizes.length
    )
    said = ask(
      lambda params, batch, rows: self._generate(
        params, batch, decoding=decoding, rows=rows
      ),
      [(i, n, group[0]) for n, i, group in left if task.generates],
    )
    found = ask(
      lambda params, batch, rows: self._read(params, batch),
      [(i, n, r) for n, i, group in left for r in group if task.reads],
    )
    for _, _, group in left:
      yield _Answer(
        next(said) if task.generates else None,
        [next(found) for _ in group] if task.reads else [],
      )

  def _questions(
    self,
    entry: registry.Entry,
    examples: _Examples,
    function,
    asked: list[tuple[int, int, int]],
    sizes: batch_lib.BatchSizes,
    params,
  ) -> Iterator[batch_lib.Output]:
    """Packs questions into batches, images in order, and unpacks the answers.

    Images that are not for this process's devices are not looked at.

    Args:
      entry: the task.
      examples: all of them.
      function: (params, batch, question numbers [B, R]) -> Output.
      asked: (example, question number, region) in order of examples.
      sizes: the shape table.
      params: parameters.

    Yields: the row of the output (NumPy) of each.
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
    place = sharding.batch_sharding(self._mesh)
    own = sharding.local_rows(place, sizes.batch)
    zero = task_lib.zeros(sizes)
    for start in range(0, len(packed), sizes.batch):
      part = packed[start : start + sizes.batch]
      rows = [zero] * sizes.batch
      for b in own & set(range(len(part))):
        i, questions = part[b]
        rows[b] = task_lib.features(
          entry.task,
          examples[i],
          entry.vocabulary,
          sizes,
          [region for _, region in questions],
        )
      batch = batch_lib.Batch(
        **{k: np.stack([r[k] for r in rows]) for k in rows[0]}
      )
      numbers = np.zeros((sizes.batch, sizes.regions), np.int32)
      for b, (_, questions) in enumerate(part):
        numbers[b, : len(questions)] = [n for n, _ in questions]
      with sharding.placed(self._mesh, self._config.mesh):
        device = sharding.place((batch, numbers), place)
        output = jax.device_get(function(params, *device))
      for b, (_, questions) in enumerate(part):
        for r in range(len(questions)):
          yield jax.tree.map(lambda x, b=b, r=r: x[b, r], output)


@dataclasses.dataclass(frozen=True)
class _Answer:
  """What was written, and what was read of each region of the question."""

  said: batch_lib.Output | None
  found: list[batch_lib.Output]


class _Examples:
  """The canonical examples of a split, each read when it is looked at."""

  def __init__(self, entry: registry.Entry, split: str, most: int):
    self._rows = entry.sequence.rows(split)
    self._count = min(most or len(self._rows), len(self._rows))
    # An image is looked at by each of its questions.
    self._read = functools.lru_cache(64)(
      functools.partial(entry.sequence.example, split)
    )

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[example_lib.Example]:
    return (self[i] for i in range(self._count))

  def __getitem__(self, index: int) -> example_lib.Example:
    return self._read(index)

  def digest(self) -> str:
    """Of the split's records as their manifest says; of others' content."""
    manifest = getattr(self._rows, 'manifest', None)
    if manifest is not None:
      return manifest['digest'][:16]
    found = hashlib.sha256()
    for example in self:
      found.update(hashlib.sha256(example_lib.to_bytes(example)).digest())
    return found.hexdigest()[:16]


def _is_first() -> bool:
  return jax.process_index() == 0


def _told(value: Any) -> Any:
  """What JSON makes of the first process's value, on every process."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.asarray(data.size))
  data = data if _is_first() else np.zeros(int(size), np.uint8)
  data = multihost_utils.broadcast_one_to_all(data)
  return json.loads(np.asarray(data).astype(np.uint8).tobytes())


def _row(
  entry: registry.Entry,
  example: example_lib.Example,
  group: list[int],
  answer: _Answer,
  sizes: batch_lib.BatchSizes,
) -> dict[str, Any]:
  """A question and its answer, as a dump keeps them."""
  task, vocabulary = entry.task, entry.vocabulary
  regions = [example.regions[r] for r in group]
  rows = [task_lib.row(task, region, vocabulary, sizes) for region in regions]
  target = task_lib.target(example, group)
  prediction: dict[str, Any] = {}
  if answer.said is not None:
    prediction['text'] = vocabulary.decode(answer.said.tokens)
    prediction |= task_lib.written(answer.said.tokens, answer.said.points)
  if answer.found:
    target['tokens'] = np.stack([r['decoder_target_tokens'] for r in rows])
    target['points'] = np.stack([r['points'] for r in rows])
    target['weights'] = np.stack([r['point_weights'] for r in rows])
    prediction['points'] = np.stack([o.points for o in answer.found])
    prediction['box'] = geometry.answer_box(
      answer.found[0].tokens, answer.found[0].points
    )
  truth = batch_lib.Output(
    tokens=rows[0]['decoder_target_tokens'],
    points=rows[0]['points'],
    log_probs=np.zeros(sizes.length),
    scores=0.0,
  )
  shown = functools.partial(
    _shown,
    task,
    regions[0],
    vocabulary=vocabulary,
    image=example.image_id,
    size_orig=example.size,
  )
  return {
    'target': target,
    'prediction': prediction,
    'answer': shown(output=answer.said or answer.found[0]),
    'truth': shown(output=truth, placed=rows[0]['point_weights'] > 0),
  }


def _shown(*args, **kwargs) -> dict[str, Any] | None:
  """`answer.prediction` as JSON; None for what JSON or pictures can't hold."""
  try:
    return answer_lib.prediction(*args, **kwargs).to_json()
  except ValueError:
    return None


def _gallery(
  examples: _Examples,
  rows: list[dict[str, Any]],
  task: task_lib.Task,
  most: int,
) -> list[Shown]:
  """The best, the worst and random answers: a third each, at most."""
  ranks = scoring.ranks(rows, task)
  order = [n for n in np.argsort(ranks, kind='stable') if rows[n]['answer']]
  random = np.random.default_rng(0).permutation(sorted(order)).tolist()
  chosen: dict[int, str] = {}
  for why, among, count in (
    ('best', order[::-1], most // 3),
    ('worst', order, most // 3),
    ('random', random, most - 2 * (most // 3)),
  ):
    left = [int(n) for n in among if n not in chosen]
    chosen |= dict.fromkeys(left[:count], why)
  made = []
  for n, why in chosen.items():
    example = examples[rows[n]['example']]
    made.append(
      Shown(
        image_lib.decode(example.image, example.image_id),
        Prediction.from_json(rows[n]['answer']),
        Prediction.from_json(rows[n]['truth']),
        why,
        ranks[n],
      )
    )
  return made
