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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from pixel_llm import __version__, geometry, pictures, sharding, version
from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import example as example_lib
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
    `written_points` of the first tokens, `written_tokens`, and the logits
    `presence` [R] where the network has the head; of a task that segments
    `mask_logits` [R, h, w], too.
  """
  sizes = config.data.sizes(config.eval.tasks[task])
  asked = registry.task_of(task).task
  decoding = dataclasses.replace(config.eval.decoding, length=sizes.length)
  whole = sharding.replicated(mesh)
  generate = jax.jit(
    functools.partial(task_lib.generate, model, decoding=decoding),
    out_shardings=whole,
  )
  read = jax.jit(
    functools.partial(task_lib.read, model, segments=asked.segments),
    out_shardings=whole,
  )

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
        if found.presence is not None:
          aux.setdefault('presence', []).append(found.presence[i])
        if asked.segments:
          aux.setdefault('mask_logits', []).append(found.mask_logits[i])
        aux['written_tokens'].append(said.tokens[i])
    return tokens, aux

  return predict


@dataclasses.dataclass
class Shown:
  """An example kept for the report: upright RGB, answers and truth.

  Attributes:
    why: it is the 'best', the 'worst' or 'random'.
    rank: how good it is (`Task.rank`).
  """

  image: np.ndarray
  predictions: list[Prediction]
  truth: list[Prediction]
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
    reliability: as of `scoring.reliability`, on the first process.
  """

  capability: str
  rank: str
  metrics: dict[str, float]
  gallery: list[Shown]
  spec: dict[str, Any]
  asked: int
  reliability: list[tuple[float, float, int]]


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
        shown.image, shown.predictions, shown.truth
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
      functools.partial(task_lib.read, model),
      static_argnames='segments',
      out_shardings=whole,
    )
    self._find = jax.jit(
      functools.partial(task_lib.find, model), out_shardings=whole
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
      for group in _groups(task, example)
    ]
    if not any(group for _, group in groups):
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
      'detection': config_lib.to_dict(config.detection)
      if task.detects
      else None,
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
        'version': __version__,
        'source': version.digest(),
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
    metrics, gallery, reliability = {}, [], []
    if _is_first():
      metrics = scoring.metrics(kept.rows, task.metrics)
      gallery = _gallery(examples, kept.rows, task, config.gallery)
      reliability = scoring.reliability(kept.rows, task)
    return Result(
      task.name,
      task.rank.__name__ if task.rank else '',
      _told(metrics),
      gallery,
      spec,
      len(groups) - begun,
      reliability,
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
    regions = lambda i, group: [examples[i].regions[r] for r in group]
    write = lambda asked: self._questions(
      self._writing(sizes), entry, examples, asked, sizes, params
    )
    if task.detects:
      found, again = itertools.tee(
        self._things(examples, [i for _, i, _ in left], sizes, params)
      )
      said = write(
        (i, n * self._config.eval.detection.most + k, _at(box))
        for (n, i, _), (boxes, _) in zip(left, again)
        for k, box in enumerate(boxes)
      )
      for things in found:
        yield _Answer([next(said) for _ in things[0]], [], things)
      return
    said = write(
      (i, n, region)
      for n, i, group in left
      for region in regions(i, group[:1])
      if task.generates
    )
    read = self._questions(
      lambda params, batch, rows: self._read(
        params, batch, segments=task.segments
      ),
      entry,
      examples,
      (
        (i, n, region)
        for n, i, group in left
        for region in regions(i, group)
        if task.reads
      ),
      sizes,
      params,
    )
    for _, _, group in left:
      yield _Answer(
        [next(said)] if task.generates else [],
        [next(read) for _ in group] if task.reads else [],
      )

  def _writing(self, sizes: batch_lib.BatchSizes):
    """(params, batch, question numbers [B, R]) -> Output of written texts."""
    decoding = dataclasses.replace(
      self._config.eval.decoding, length=sizes.length
    )
    return lambda params, batch, rows: self._generate(
      params, batch, decoding=decoding, rows=rows
    )

  def _things(
    self,
    examples: _Examples,
    asked: list[int],
    sizes: batch_lib.BatchSizes,
    params,
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The things found in each image: boxes [n, 4] and scores [n]."""
    config = self._config.eval.detection
    place = sharding.batch_sharding(self._mesh)
    own = sharding.local_rows(place, sizes.batch)
    side = sizes.image
    for start in range(0, len(asked), sizes.batch):
      part = asked[start : start + sizes.batch]
      images = np.zeros((sizes.batch, side, side, 3), np.uint8)
      image_sizes = np.full((sizes.batch, 2), side, np.int32)
      for b in own & set(range(len(part))):
        example = examples[part[b]]
        images[b], fit = image_lib.prepare(
          image_lib.decode(example.image, example.image_id), side
        )
        image_sizes[b] = fit.size
      with sharding.placed(self._mesh, self._config.mesh):
        device = sharding.place((images, image_sizes), place)
        boxes, scores, valid = jax.device_get(self._find(params, *device))
      for b in range(len(part)):
        kept = np.flatnonzero(valid[b] & (scores[b] > config.score))
        kept = kept[np.argsort(-scores[b][kept], kind='stable')][: config.most]
        yield boxes[b][kept], scores[b][kept]

  def _questions(
    self,
    function,
    entry: registry.Entry,
    examples: _Examples,
    asked: Iterable[tuple[int, int, example_lib.Region]],
    sizes: batch_lib.BatchSizes,
    params,
  ) -> Iterator[batch_lib.Output]:
    """Packs questions into batches, images in order, and unpacks the answers.

    Images that are not for this process's devices are not looked at.

    Args:
      function: (params, batch, question numbers [B, R]) -> Output.
      entry: the task.
      examples: all of them.
      asked: (example, question number, region) in order of examples.
      sizes: the shape table.
      params: parameters.

    Yields: the row of the output (NumPy) of each.
    """
    place = sharding.batch_sharding(self._mesh)
    own = sharding.local_rows(place, sizes.batch)
    zero = task_lib.zeros(sizes)
    packed = _packed(asked, sizes.regions)
    while part := list(itertools.islice(packed, sizes.batch)):
      rows = [zero] * sizes.batch
      numbers = np.zeros((sizes.batch, sizes.regions), np.int32)
      for b, (i, questions) in enumerate(part):
        numbers[b, : len(questions)] = [n for n, _ in questions]
        if b not in own:
          continue
        regions = tuple(region for _, region in questions)
        rows[b] = task_lib.features(
          entry.task,
          dataclasses.replace(examples[i], regions=regions),
          entry.vocabulary,
          sizes,
          range(len(regions)),
        )
      batch = batch_lib.Batch(
        **{k: np.stack([r[k] for r in rows]) for k in rows[0]}
      )
      with sharding.placed(self._mesh, self._config.mesh):
        device = sharding.place((batch, numbers), place)
        output = jax.device_get(function(params, *device))
      for b, (_, questions) in enumerate(part):
        for r in range(len(questions)):
          yield jax.tree.map(lambda x, b=b, r=r: x[b, r], output)


def _groups(
  task: task_lib.Task, example: example_lib.Example
) -> list[list[int]]:
  """The questions about an image; all that is to find is one."""
  if not task.detects:
    return task.questions(example)
  return [sorted(r for group in task.questions(example) for r in group)]


def _at(box: np.ndarray) -> example_lib.Region:
  """What is in a box that was found."""
  return example_lib.Region('', '', box=np.asarray(box, np.float32))


def _packed(
  asked: Iterable[tuple[int, int, example_lib.Region]], most: int
) -> Iterator[tuple[int, list[tuple[int, example_lib.Region]]]]:
  """Questions of an image together, at most so many."""
  for i, questions in itertools.groupby(asked, lambda question: question[0]):
    while part := [q[1:] for q in itertools.islice(questions, most)]:
      yield i, part


@dataclasses.dataclass(frozen=True)
class _Answer:
  """An answer to a question.

  Attributes:
    said: what was written; of each thing found, if the task detects.
    read: of each region of the question.
    things: that were found, boxes [n, 4] and scores [n]; None if the task does
      not detect.
  """

  said: list[batch_lib.Output]
  read: list[batch_lib.Output]
  things: tuple[np.ndarray, np.ndarray] | None = None


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
  shown = functools.partial(
    answer_lib.prediction,
    task,
    vocabulary=vocabulary,
    image=example.image_id,
    size_orig=example.size,
    canvas=sizes.image,
  )
  if answer.things is not None:
    boxes, scores = answer.things
    target = {
      'boxes': np.asarray([r.box for r in regions], np.float32).reshape(-1, 4),
      'texts': [r.text for r in regions],
      'ids': [r.id for r in regions],
      'image': example.image_id,
    }
    prediction: dict[str, Any] = {
      'boxes': boxes,
      'scores': scores,
      'texts': [vocabulary.decode(o.tokens) for o in answer.said],
    }
    answers = lambda: [
      dataclasses.replace(shown(_at(box), output=o), confidence=float(score))
      for box, score, o in zip(boxes, scores, answer.said)
    ]
  else:
    target, prediction = task_lib.target(example, group), {}
    for output in answer.said:
      prediction['text'] = vocabulary.decode(output.tokens)
      prediction |= task_lib.written(output.tokens, output.points)
    if answer.read:
      first = answer.read[0]
      target['tokens'] = np.stack([r['decoder_target_tokens'] for r in rows])
      target['points'] = np.stack([r['points'] for r in rows])
      target['weights'] = np.stack([r['point_weights'] for r in rows])
      prediction['points'] = np.stack([o.points for o in answer.read])
      prediction['box'] = geometry.answer_box(first.tokens, first.points)
      if first.presence is not None:
        prediction['presence'] = task_lib.probability(first.presence)
      if task.segments:
        prediction['mask'] = answer_lib.mask(
          first.mask_logits, example.size, sizes.image
        )
    # Of several references the first is shown.
    regions = regions[:1]
    answers = lambda: [
      shown(regions[0], output=(answer.said or answer.read)[0])
    ]
  return {
    'target': target,
    'prediction': prediction,
    'answer': _json(answers),
    'truth': _json(
      lambda: [
        _truth(shown, region, row, sizes) for region, row in zip(regions, rows)
      ]
    ),
  }


def _truth(
  shown: Callable[..., Prediction],
  region: example_lib.Region,
  row: Mapping[str, np.ndarray],
  sizes: batch_lib.BatchSizes,
) -> Prediction:
  """What should have been answered about a region."""
  output = batch_lib.Output(
    tokens=row['decoder_target_tokens'],
    points=row['points'],
    log_probs=np.zeros(sizes.length),
    scores=0.0,
  )
  made = shown(region, output=output, placed=row['point_weights'] > 0)
  if region.absent:
    return dataclasses.replace(made, box_orig=None, there=False)
  return dataclasses.replace(made, mask_orig=region.mask)


def _json(make: Callable[[], list[Prediction]]) -> list[dict[str, Any]] | None:
  """None for what can't be shown: of no known kind, or at no place."""
  try:
    return [p.to_json() for p in make()]
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
  order = [
    n
    for n in np.argsort(ranks, kind='stable')
    if None not in (rows[n]['answer'], rows[n]['truth'])
  ]
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
        [Prediction.from_json(row) for row in rows[n]['answer']],
        [Prediction.from_json(row) for row in rows[n]['truth']],
        why,
        ranks[n],
      )
    )
  return made
