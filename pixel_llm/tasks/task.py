# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the model can be asked: a task turns examples into weighted batches.

A task reaches the device only as weights and prompts, so a batch may mix any
tasks. Tasks are values: a user's own is made like ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import image as image_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.model import decoding as decoding_lib
from pixel_llm.model import pixel_llm, t5

WHOLE_IMAGE = np.asarray([0, 0, 1, 1], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """One region of an example, as the task asks and answers it.

  Attributes:
    prompt: text for the encoder.
    answer: text for the decoder.
    prompt_box: [4] xyxy, normalized: the location prompt.
    token_boxes: function of the answer's token spans [T, 2] giving boxes
      [T, 4] xyxy normalized and weights [T]; None when words have no place.
    box: [4] xyxy normalized, the answer's box, or None.
  """

  prompt: str
  answer: str
  prompt_box: np.ndarray = dataclasses.field(
    default_factory=lambda: WHOLE_IMAGE
  )
  token_boxes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = (
    None
  )
  box: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """One capability.

  Attributes:
    name: of the capability; SeqIO tasks are called `<dataset>_<name>`.
    question: what is asked of a region, and its answer.
    word_weight: loss weight of the answer's words.
    point_weight: loss weight of the answer's places.
    generates: the answer is written by the model (`generate`).
    reads: the answer is given, and its places are read (`read`).
    groups: regions of an example that share one question in evaluation, as
      lists of indices of `example.regions`; the first is asked, all are
      references.
    metrics: functions (targets, predictions) -> dict of floats, as SeqIO's.
      A target is a dict with `texts` (the references), `points` [n, L, P, 2],
      `weights` [n, L] of the points, and `box` [4] with its `weight`; a
      prediction is a dict with `text` if the task generates, and `points`
      [n, L, P, 2] and `box` [4] if it reads. Coordinates are normalized.
  """

  name: str
  question: Callable[[example_lib.Region], Question]
  word_weight: float
  point_weight: float
  generates: bool
  reads: bool
  groups: Callable[[example_lib.Example], list[list[int]]]
  metrics: tuple[Callable[[list, list], Mapping[str, float]], ...] = ()


def each_region(example: example_lib.Example) -> list[list[int]]:
  """Every region is asked by itself."""
  return [[i] for i in range(len(example.regions))]


def row(
  task: Task,
  region: example_lib.Region,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
) -> dict[str, np.ndarray]:
  """The fields of `Batch` for one region, padded to `sizes`.

  The answer is cut so that its end token always fits: the last token before
  the end is then always there to be read. (Reference: the research code reads
  it even when the text was cut.)
  """
  question = task.question(region)
  ids, spans = vocabulary.encode_with_spans(question.answer)
  ids, spans = ids[: sizes.length - 1], spans[: sizes.length - 1]
  count = len(ids)
  out = empty_row(sizes)
  prompt = vocabulary.encode(question.prompt)[: sizes.context - 1]
  prompt = [*prompt, vocabulary_lib.EOS_ID]
  out['encoder_input_tokens'][: len(prompt)] = prompt
  out['decoder_target_tokens'][:count] = ids
  out['decoder_target_tokens'][count] = vocabulary_lib.EOS_ID
  out['decoder_loss_weights'][: count + 1] = task.word_weight
  out['prompt_boxes'][:] = question.prompt_box
  if question.token_boxes is not None:
    boxes, weights = question.token_boxes(spans)
    out['points'][:count] = boxes_to_points(boxes, sizes.points)
    out['point_weights'][:count] = weights * task.point_weight
  if question.box is not None:
    out['boxes'][:] = question.box
    out['box_weights'][()] = 1
  return out


def boxes_to_points(boxes: np.ndarray, points: int) -> np.ndarray:
  """[..., 4] xyxy -> [..., P, 2]: both corners, or the centre when P is 1.

  Raises:
    ValueError: P is neither 1 nor 2.
  """
  if points == 2:
    return np.reshape(boxes, (*boxes.shape[:-1], 2, 2))
  if points == 1:
    return ((boxes[..., :2] + boxes[..., 2:]) / 2)[..., None, :]
  raise ValueError(f'points a token: expected 1 or 2, got {points}.')


def empty_row(sizes: batch_lib.BatchSizes) -> dict[str, np.ndarray]:
  """A region that weighs nothing and asks about the whole image."""
  out = {
    name: np.zeros(shape, dtype) for name, shape, dtype in _row_specs(sizes)
  }
  out['prompt_boxes'][:] = WHOLE_IMAGE
  out['prompt_box_weights'][()] = 1
  return out


@functools.lru_cache(maxsize=64)
def _row_specs(
  sizes: batch_lib.BatchSizes,
) -> list[tuple[str, tuple[int, ...], np.dtype]]:
  """(field, shape, dtype) of one region."""
  return [
    (name, spec.shape(sizes)[2:], np.dtype(spec.dtype))
    for name, spec in batch_lib.Batch.specs().items()
    if spec.dims[:2] == ('B', 'R')
  ]


def features(
  task: Task,
  example: example_lib.Example,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  chosen: Sequence[int],
) -> dict[str, np.ndarray]:
  """The fields of `Batch` for one example, without the batch axis.

  Args:
    task: the capability.
    example: a canonical example.
    vocabulary: of T5.
    sizes: the shape table.
    chosen: indices of the regions to ask about, at most `sizes.regions`.
  """
  rgb = image_lib.decode(example.image, example.image_id)
  pixels, fit = image_lib.prepare(rgb, sizes.image)
  rows = [row(task, example.regions[i], vocabulary, sizes) for i in chosen]
  rows += [empty_row(sizes)] * (sizes.regions - len(rows))
  out = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
  for name, spec in batch_lib.Batch.specs().items():
    if name not in out:
      out[name] = np.zeros(spec.shape(sizes)[1:], spec.dtype)
  out['image'] = pixels
  out['image_size'] = np.asarray(fit.size, np.int32)
  return out


def sample_regions(count: int, most: int, seed: int) -> list[int]:
  """At most `most` of `count` regions, in an order drawn from `seed`."""
  order = np.random.default_rng(seed).permutation(count)
  return order[:most].tolist()


def generate(
  model: pixel_llm.PixelLLM,
  params,
  batch: batch_lib.Batch,
  decoding: decoding_lib.DecodingConfig,
  features: jax.Array | None = None,
  rows: jax.Array | None = None,
) -> batch_lib.Output:
  """Writes the answer to every region, each word with its points.

  Args:
    model: the network.
    params: its parameters.
    batch: what is asked; its targets are not looked at.
    decoding: how to search.
    features: `encode_image` of the batch's images, if it was done before.
    rows: [B, R] int, the number of each region, by which it has draws of its
      own in every batch; None counts them, 0 to B * R - 1.

  Returns: `Output` with tokens, log_probs, scores and points.
  """
  b, r = batch.encoder_input_tokens.shape[:2]
  cross, valid, cache = model.run(
    params, batch, decoding.length, features, method='start_decoding'
  )

  def step(tokens, index, cache):
    return model.run(
      params, tokens, index, cache, cross, valid, method='decode_step'
    )

  rows = rows if rows is None else rows.reshape(b * r)
  result = decoding_lib.decode(
    step, cache, b * r, decoding, rows, t5.CACHE_BEAMS
  )
  is_end = result.tokens == vocabulary_lib.EOS_ID
  written = jnp.cumsum(is_end, axis=-1) == 0
  points = model.run(params, result.aux, method='locate')
  points = jnp.where(written[..., None, None], points, 0.0)
  shape = lambda x: x.reshape(b, r, *x.shape[1:])
  return batch_lib.Output(
    tokens=shape(result.tokens),
    log_probs=shape(result.log_probs),
    scores=shape(result.scores),
    points=shape(points),
  )


def read(
  model: pixel_llm.PixelLLM,
  params,
  batch: batch_lib.Batch,
  features: jax.Array | None = None,
) -> batch_lib.Output:
  """Reads the given answer (teacher forcing) for its points and scores.

  Args:
    model: the network.
    params: its parameters.
    batch: what is asked and answered.
    features: `encode_image` of the batch's images, if it was done before.

  Returns: `Output` with tokens, log_probs, scores and points.
  """
  output = model.run(params, batch, features=features)
  targets = batch.decoder_target_tokens
  log_probs = jax.nn.log_softmax(output.logits)
  log_probs = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  log_probs = jnp.where(targets > 0, log_probs, 0.0)
  return batch_lib.Output(
    tokens=targets,
    log_probs=log_probs,
    scores=log_probs.sum(-1),
    points=output.points,
  )
