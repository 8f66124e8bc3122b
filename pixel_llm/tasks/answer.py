# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's output to the host's answer, in pixels of the file."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, masks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.prediction import THERE, Box, Kind, Prediction, Word
from pixel_llm.tasks import task as task_lib


def prediction(
  task: task_lib.Task,
  region: example_lib.Region,
  *,
  output: batch_lib.Output,
  vocabulary: vocabulary_lib.Vocabulary,
  image: str,
  size_orig: tuple[int, int],
  placed: np.ndarray | None = None,
  canvas: int | None = None,
  threshold: float = THERE,
) -> Prediction:
  """The one place where normalized outputs become pixels of the original file.

  Args:
    task: that asked.
    region: that was asked about.
    output: of one region, NumPy: tokens [L], points [L, P, 2], log_probs [L],
      scores scalar; if there, presence scalar and mask_logits [h, w].
    vocabulary: of the tokens.
    image: path or id.
    size_orig: (height, width) of the upright file.
    placed: [L] bool, tokens that have a place; None: all that the task
      places.
    canvas: side of the network's padded input, pixels; masks need it.
    threshold: confidence from which on a thing is taken to be there.

  Returns: words with their points for a written answer; a box, and a mask, for
    a read one.
  """
  question = task.question(region)
  height, width = size_orig
  scale = np.asarray([width, height], np.float32)
  points = np.clip(np.asarray(output.points), 0, 1) * scale
  tokens = np.asarray(output.tokens)
  if not task.generates:
    box = geometry.answer_box(tokens, points)
    drawn = None
    if output.mask_logits is not None and canvas is not None:
      drawn = mask(np.asarray(output.mask_logits), size_orig, canvas)
    sure = None
    if output.presence is not None:
      sure = _sigmoid(float(output.presence))
    return Prediction(
      kind=cast(Kind, task.name),
      image=image,
      size_orig=size_orig,
      prompt=task.prompt(region),
      box_orig=_box(box),
      score=float(output.scores),
      mask_orig=drawn,
      confidence=sure,
      there=None if sure is None else sure >= threshold,
    )
  if placed is None:
    placed = np.full(tokens.shape, task.point_weight > 0)
  words = []
  for text, begin, end in vocabulary.words(tokens):
    own = [i for i in range(begin, end) if placed[i]]
    mean = points[own].mean(axis=0) if own else np.zeros((0, 2))
    words.append(
      Word(
        text=text,
        points_orig=tuple((float(x), float(y)) for x, y in mean),
        score=float(np.sum(output.log_probs[begin:end])),
      )
    )
  asked = question.prompt_box
  if asked is not None and np.array_equal(asked, task_lib.WHOLE_IMAGE):
    asked = None
  asked = None if asked is None else _box(asked * np.tile(scale, 2))
  clicks = question.prompt_points
  clicks = [] if clicks is None else clicks * scale
  count = max(int((tokens > 0).sum()), 1)
  return Prediction(
    kind=cast(Kind, task.name),
    image=image,
    size_orig=size_orig,
    text=vocabulary.decode(tokens),
    words=tuple(words),
    box_orig=asked if task.detects else None,
    prompt_box_orig=None if task.detects else asked,
    score=float(output.scores),
    prompt_points_orig=tuple((float(x), float(y)) for x, y in clicks),
    confidence=math.exp(min(float(np.sum(output.log_probs)) / count, 0.0)),
  )


def mask(logits: np.ndarray, size_orig: tuple[int, int], canvas: int) -> bytes:
  """Where a mask's logits are above 0, in pixels of the original file.

  Bilinear, straight from the network's grid. (Reference: SAM resizes twice, to
  the padded input and from there to the file.)

  Args:
    logits: [h, w] on the padded input.
    size_orig: (height, width) of the upright file.
    canvas: side of the padded input, pixels.

  Returns: run lengths, as in `masks`.
  """
  fit = geometry.Fit(size_orig, canvas)
  logits = np.asarray(logits, np.float32)
  places = []
  for cells, valid, count in zip(
    logits.shape, fit.size, size_orig, strict=True
  ):
    centers = (np.arange(count) + 0.5) / count * valid / canvas * cells - 0.5
    centers = np.clip(centers, 0, cells - 1)
    low = np.minimum(centers.astype(np.int64), max(cells - 2, 0))
    high = np.minimum(low + 1, cells - 1)
    places.append((low, high, (centers - low).astype(np.float32)))
  (top, bottom, down), (left, right, across) = places
  inside = np.zeros(size_orig, bool)
  # In blocks: the logits of a large file would take four times its memory.
  for start in range(0, size_orig[0], _ROWS):
    block = slice(start, start + _ROWS)
    part = down[block, None]
    rows = logits[top[block]] * (1 - part) + logits[bottom[block]] * part
    values = rows[:, left] * (1 - across) + rows[:, right] * across
    inside[block] = values > 0
  return masks.encode(inside)


_ROWS = 512


def _sigmoid(value: float) -> float:
  return 1 / (1 + math.exp(-min(max(value, -60.0), 60.0)))


def _box(values: np.ndarray) -> Box:
  x0, y0, x1, y1 = map(float, values)
  return x0, y0, x1, y1
