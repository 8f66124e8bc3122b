# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the model can be asked: a task turns examples into weighted batches.

A task reaches the device only as weights and prompts, so a batch may mix any
tasks. Tasks are values: a user's own is made like ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import augmentation as augmentation_lib
from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, masks
from pixel_llm import image as image_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.model import decoding as decoding_lib
from pixel_llm.model import pixel_llm, t5

WHOLE_IMAGE = np.asarray([0, 0, 1, 1], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """One region of an example, as the task asks and answers it.

  Attributes:
    answer: text for the decoder.
    prompt_box: [4] xyxy, normalized: the location prompt; None asks by
      `prompt_points` alone.
    prompt_points: [N, 2] xy, normalized: on what is meant; None without.
    token_boxes: function of the answer's token spans [T, 2] giving boxes
      [T, 4] xyxy normalized and weights [T]; None when words have no place.
    box: [4] xyxy normalized, the answer's box, or None.
    mask: the answer's pixels on the upright file, as in `masks`, or None.
    there: whether the image has what is asked for; None when nobody says.
  """

  answer: str
  prompt_box: np.ndarray | None = dataclasses.field(
    default_factory=lambda: WHOLE_IMAGE
  )
  prompt_points: np.ndarray | None = None
  token_boxes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = (
    None
  )
  box: np.ndarray | None = None
  mask: bytes | None = None
  there: bool | None = None


def each_region(example: example_lib.Example) -> list[list[int]]:
  """Every region is asked by itself."""
  return [[i] for i in range(len(example.regions))]


def alike(
  key: Callable[[example_lib.Region], Hashable],
) -> Callable[[example_lib.Example], list[list[int]]]:
  """Regions of an equal `key` are references of one question."""

  def groups(example: example_lib.Example) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for i, region in enumerate(example.regions):
      found.setdefault(key(region), []).append(i)
    return list(found.values())

  return groups


def any_region(region: example_lib.Region) -> bool:
  """Every region can be asked about."""
  del region
  return True


@dataclasses.dataclass(frozen=True)
class Task:
  """One capability.

  Attributes:
    name: of the capability; SeqIO tasks are called `<dataset>_<name>`.
    question: what is asked of a region, and its answer.
    prompts: texts for the encoder; `{text}` stands for the region's text,
      `{prompt}` for its prompt. The first is asked, training draws one.
    word_weight: loss weight of the answer's words.
    point_weight: loss weight of the answer's places.
    generates: the answer is written by the model (`generate`).
    reads: the answer is given, and its places are read (`read`).
    groups: regions of an example that share one question in evaluation, as
      lists of indices of `example.regions`; the first is asked, all are
      references.
    detects: the boxes of an example's regions are all there is to find.
    segments: the box that is read prompts a mask.
    usable: whether a region has what the task asks for; others are passed over.
    metrics: functions (targets, predictions) -> dict of floats, as SeqIO's.
      A target is a dict with `texts` (the references), their `ids`, `image`,
      `tokens` [n, L], `points` [n, L, P, 2], `weights` [n, L] of the points,
      and `box` [4] with its `weight`; `presence`, 0 where what is asked for is
      not in the image, else 1; and `mask`, run lengths as in `masks`, where
      there is one. A prediction is a dict with `text`, `written_tokens` [T] and
      `written_points` [T, P, 2] if the task generates, and `points` [n, L, P,
      2] and `box` [4] if it reads, with `presence`, a probability, if the
      network has the head, and `mask` if the task segments. Of a task that
      detects both are of an image: the target has `boxes` [n, 4] and their
      `texts`, the prediction `boxes`, `scores` and `texts`. Coordinates are
      normalized.
    outcomes: function (targets, predictions) -> which of the answers' scores
      came true, bool, and these scores, in [0, 1]; reports show how far such
      scores can be relied on.
    rank: function (targets, predictions) -> how good each answer is, more is
      better; reports show the best and the worst by it.
  """

  name: str
  question: Callable[[example_lib.Region], Question]
  prompts: tuple[str, ...]
  word_weight: float
  point_weight: float
  generates: bool
  reads: bool
  groups: Callable[[example_lib.Example], list[list[int]]] = each_region
  detects: bool = False
  segments: bool = False
  usable: Callable[[example_lib.Region], bool] = any_region
  metrics: tuple[Callable[[list, list], Mapping[str, float]], ...] = ()
  outcomes: Callable[[list, list], tuple[list, list]] | None = None
  rank: Callable[[list, list], Sequence[float]] | None = None

  def prompt(
    self, region: example_lib.Region, rng: np.random.Generator | None = None
  ) -> str:
    """The text for the encoder; one of several if there is `rng`."""
    which = 0 if rng is None else int(rng.integers(len(self.prompts)))
    # One pass, so that a text with braces in it stays what it is.
    values = {'{text}': region.text, '{prompt}': region.prompt or ''}
    return _SLOT.sub(lambda m: values[m.group()], self.prompts[which])

  def questions(self, example: example_lib.Example) -> list[list[int]]:
    """`groups` of those regions that are usable."""
    usable = [self.usable(region) for region in example.regions]
    groups = [[i for i in g if usable[i]] for g in self.groups(example)]
    return [group for group in groups if group]


_SLOT = re.compile(r'\{(?:text|prompt)\}')


def row(
  task: Task,
  region: example_lib.Region,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  fit: geometry.Fit | None = None,
  draws: Draws | None = None,
) -> dict[str, np.ndarray]:
  """The fields of `Batch` for one region, padded to `sizes`.

  The answer is cut so that its end token always fits: the last token before
  the end is then always there to be read. (Reference: the research code reads
  it even when the text was cut.)

  Args:
    task: the capability.
    region: in coordinates of what is seen, but for its mask.
    vocabulary: of T5.
    sizes: the shape table.
    fit: how the file comes onto the canvas, for masks; None leaves them out.
    draws: what training changes at random; None changes nothing.

  Raises:
    ValueError: it is asked about by points, for which `sizes` has no room.
  """
  out = empty_row(sizes)
  _fill(out, task, region, vocabulary, sizes, fit, draws)
  return out


def _fill(
  out: Mapping[str, np.ndarray],
  task: Task,
  region: example_lib.Region,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  fit: geometry.Fit | None,
  draws: Draws | None,
) -> None:
  """Makes an empty row the region's; see `row`."""
  question = task.question(region)
  if draws is not None:
    question = draws.click(question, sizes)
  ids, spans = vocabulary.encode_with_spans(question.answer)
  ids, spans = ids[: sizes.length - 1], spans[: sizes.length - 1]
  count = len(ids)
  prompt = task.prompt(region, None if draws is None else draws.rng)
  prompt = vocabulary.encode(prompt)[: sizes.context - 1]
  prompt = [*prompt, vocabulary_lib.EOS_ID]
  out['encoder_input_tokens'][: len(prompt)] = prompt
  out['decoder_target_tokens'][:count] = ids
  out['decoder_target_tokens'][count] = vocabulary_lib.EOS_ID
  out['decoder_loss_weights'][: count + 1] = task.word_weight
  if question.prompt_box is not None:
    out['prompt_boxes'][:] = question.prompt_box
  else:
    out['prompt_box_weights'][()] = 0
    if not sizes.prompt_points:
      raise ValueError(
        f'{task.name} of region {region.id!r} is asked by points: expected '
        'prompt_points of at least 1 for its stream or evaluation, got 0.'
      )
  if question.prompt_points is not None:
    clicks = question.prompt_points[: sizes.prompt_points]
    out['prompt_points'][: len(clicks)] = clicks
    out['prompt_labels'][: len(clicks)] = 1
  if question.token_boxes is not None:
    boxes, weights = question.token_boxes(spans)
    out['points'][:count] = boxes_to_points(boxes, sizes.points)
    out['point_weights'][:count] = weights * task.point_weight
  if question.box is not None:
    out['boxes'][:] = question.box
    out['box_weights'][()] = 1
  if question.mask is not None and fit is not None and sizes.mask:
    pixels = masks.decode(question.mask, fit.original)
    out['masks'][:] = fit.mask_to_canvas(pixels, sizes.mask)
    out['mask_weights'][()] = 1
  if question.there is not None:
    out['presence'][()] = question.there
    out['presence_weights'][()] = 1


@dataclasses.dataclass(frozen=True)
class Draws:
  """The random choices of one example in training.

  Attributes:
    rng: of all of them.
    augmentation: what may be changed.
  """

  rng: np.random.Generator
  augmentation: Augmentation

  def click(self, question: Question, sizes: batch_lib.BatchSizes) -> Question:
    """Perhaps a point in the prompt's box, in its place."""
    spot = self.rng.random(3)
    box = question.prompt_box
    if (
      box is None
      or box is WHOLE_IMAGE
      or not sizes.prompt_points
      or spot[0] >= self.augmentation.click
    ):
      return question
    point = box[:2] + spot[1:] * (box[2:] - box[:2])
    return dataclasses.replace(
      question,
      prompt_box=None,
      prompt_points=point[None].astype(np.float32),
    )


def target(
  example: example_lib.Example, group: Sequence[int]
) -> dict[str, Any]:
  """What metrics compare with, of one of `Task.questions`; see `Task.metrics`.

  Returns: `texts`, `box` as four numbers, its `weight`, the `id`s, the name of
    the `image`, `presence`, and the `mask` if there is one, an empty one of
    what is absent.
  """
  regions = [example.regions[i] for i in group]
  box, mask = regions[0].box, regions[0].mask
  if regions[0].absent:
    mask = masks.encode(np.zeros(example.size, bool))
  return {
    'texts': [r.text for r in regions],
    'box': [0.0] * 4 if box is None else box.tolist(),
    'weight': 0.0 if box is None else 1.0,
    'ids': [r.id for r in regions],
    'image': example.image_id,
    'presence': 0.0 if regions[0].absent else 1.0,
    **({} if mask is None else {'mask': mask}),
  }


def probability(logit: Any) -> float:
  """What `Output.presence` says."""
  return float((1 + np.tanh(np.float64(logit) / 2)) / 2)


def written(tokens: np.ndarray, points: np.ndarray) -> dict[str, np.ndarray]:
  """What metrics look at of a written answer, without its end and padding.

  Args:
    tokens: [L].
    points: [L, P, 2].
  """
  count = int(np.sum(np.cumsum(tokens <= vocabulary_lib.EOS_ID) == 0))
  return {'written_tokens': tokens[:count], 'written_points': points[:count]}


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
  specs = batch_lib.Batch.specs()
  out = {
    name: np.zeros(specs[name].shape(sizes)[2:], specs[name].dtype)
    for name in _ROW
  }
  out['prompt_boxes'][:] = WHOLE_IMAGE
  out['prompt_box_weights'][()] = 1
  return out


# The fields of one region.
_ROW = tuple(
  name
  for name, spec in batch_lib.Batch.specs().items()
  if spec.dims[:2] == ('B', 'R')
)


def zeros(sizes: batch_lib.BatchSizes) -> dict[str, np.ndarray]:
  """The fields of `Batch` of one example, without the batch axis."""
  return {
    name: np.zeros(spec.shape(sizes)[1:], spec.dtype)
    for name, spec in batch_lib.Batch.specs().items()
  }


def clear(out: Mapping[str, np.ndarray]) -> None:
  """Makes those fields a black image of which nothing is asked."""
  for value in out.values():
    value[...] = 0
  out['image_size'][:] = out['image'].shape[:2]
  out['prompt_boxes'][:] = WHOLE_IMAGE
  out['prompt_box_weights'][:] = 1


def features(
  task: Task,
  example: example_lib.Example,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  chosen: Sequence[int],
) -> dict[str, np.ndarray]:
  """The fields of `Batch` for one example as it is, without the batch axis.

  Args:
    task: the capability.
    example: a canonical example.
    vocabulary: of T5.
    sizes: the shape table.
    chosen: indices of the regions to ask about, at most `sizes.regions`.

  Raises:
    ImageError: the image is damaged.
  """
  rgb = image_lib.decode(example.image, example.image_id)
  fit = geometry.Fit((rgb.shape[0], rgb.shape[1]), sizes.image)
  asked = [example.regions[i] for i in chosen]
  out = zeros(sizes)
  _features(out, task, rgb, fit, asked, example.regions, vocabulary, sizes)
  return out


def training_features(
  task: Task,
  example: example_lib.Example,
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  augmentation: Augmentation,
  seed: int,
  out: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
  """The fields of `Batch` for one example as training sees it.

  At most `sizes.regions` of the regions that are usable and seen are asked
  about, in an order that is drawn. A pure function of its arguments.

  Args:
    task: the capability.
    example: a canonical example.
    vocabulary: of T5.
    sizes: the shape table.
    augmentation: what may be changed.
    seed: of every random choice.
    out: `zeros` to write into, a place in a batch for example; `image` may
      hold anything.

  Raises:
    ImageError: the image is damaged; `out` is as it was.
  """
  rgb = image_lib.decode(example.image, example.image_id)
  draws = Draws(np.random.default_rng(seed), augmentation)
  fit = augmentation.draw(draws.rng, (rgb.shape[0], rgb.shape[1]), sizes.image)
  seen = [
    moved
    for region in example.regions
    if task.usable(region)
    and (moved := augmentation_lib.move(region, fit.affine)) is not None
  ]
  chosen = draws.rng.permutation(len(seen))[: sizes.regions]
  asked = [seen[i] for i in chosen]
  out = zeros(sizes) if out is None else out
  _features(out, task, rgb, fit, asked, seen, vocabulary, sizes, draws)
  return out


def _features(
  out: Mapping[str, np.ndarray],
  task: Task,
  rgb: np.ndarray,
  fit: geometry.Fit,
  asked: Sequence[example_lib.Region],
  seen: Sequence[example_lib.Region],
  vocabulary: vocabulary_lib.Vocabulary,
  sizes: batch_lib.BatchSizes,
  draws: Draws | None = None,
) -> None:
  out['prompt_boxes'][:] = WHOLE_IMAGE
  out['prompt_box_weights'][:] = 1
  for i, region in enumerate(asked):
    place = {name: out[name][i, ...] for name in _ROW}
    _fill(place, task, region, vocabulary, sizes, fit, draws)
  if task.detects and sizes.objects:
    boxes = [r.box for r in seen if r.box is not None]
    # Several phrases of one box are one thing.
    things = np.unique(np.reshape(boxes, (-1, 4)), axis=0)
    count = min(len(things), sizes.objects)
    out['objects'][:count] = things[:count]
    out['object_weights'][:count] = 1
    # Reference: it goes on with the first hundred, and calls the rest nothing.
    out['detection_weights'][()] = len(things) <= sizes.objects
  image_lib.render(rgb, fit, out['image'])
  out['image_size'][:] = fit.size


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
  sam_features: jax.Array | None = None,
  segments: bool = False,
) -> batch_lib.Output:
  """Reads the given answer (teacher forcing) for its points and scores.

  Args:
    model: the network.
    params: its parameters.
    batch: what is asked and answered.
    features: `encode_image` of the batch's images, if it was done before.
    sam_features: `sam` of `encode_maps` of them; masks need it then.
    segments: as of `Task`.

  Returns: `Output` with tokens, log_probs, scores and points; presence, if the
    network has the head; and if it `segments`, mask_logits [B, R, h, w] of the
    box that is read, with mask_ious [B, R].

  Raises:
    ValueError: masks are asked for, and there is no mask decoder, or what it
      draws on is missing.
  """
  if segments and model.config.mask is None:
    raise ValueError(
      'this model has no mask decoder: expected ModelConfig.mask, got None.'
    )
  output = model.run(
    params, batch, features=features, sam_features=sam_features
  )
  masks_of = {}
  if segments:
    if output.mask_logits is None:
      raise ValueError(
        'masks of encoded images: expected `sam` of encode_maps, got None.'
      )
    masks_of = {
      'mask_logits': output.mask_logits[:, :, 0],
      'mask_ious': output.mask_ious[:, :, 0],
    }
  targets = batch.decoder_target_tokens
  log_probs = jax.nn.log_softmax(output.logits)
  log_probs = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  log_probs = jnp.where(targets > 0, log_probs, 0.0)
  return batch_lib.Output(
    tokens=targets,
    log_probs=log_probs,
    scores=log_probs.sum(-1),
    points=output.points,
    presence=output.presence,
    **masks_of,
  )


def find(
  model: pixel_llm.PixelLLM,
  params,
  image: jax.Array,
  image_size: jax.Array,
  features: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finds the things that are worth a caption.

  Args:
    model: the network.
    params: its parameters.
    image: [B, H, W, 3] uint8; with features its shape alone matters.
    image_size: [B, 2] int32 valid (height, width), pixels.
    features: `encode_image` of the images, if it was done before.

  Returns: boxes [B, D, 4] xyxy, normalized to the valid image and clipped to
    it; their scores [B, D] in [0, 1]; and [B, D] bool, which there are, the
    best first.

  Raises:
    ValueError: there is no detector.
  """
  if model.config.detector is None:
    raise ValueError(
      'this model has no detector: expected ModelConfig.detector, got None.'
    )
  if features is None:
    features = model.run(params, image, image_size, method='encode_image')
  boxes, scores, valid = model.run(
    params, features, image_size, image.shape[1:3], method='detect'
  )
  return jnp.clip(boxes, 0, 1), scores, valid
