# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's output to the host's answer, in pixels of the file."""

from __future__ import annotations

from typing import cast

import numpy as np

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.prediction import Box, Kind, Prediction, Word
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
) -> Prediction:
  """The one place where normalized outputs become pixels of the original file.

  Args:
    task: that asked.
    region: that was asked about.
    output: of one region, NumPy: tokens [L], points [L, P, 2], log_probs [L],
      scores scalar.
    vocabulary: of the tokens.
    image: path or id.
    size_orig: (height, width) of the upright file.
    placed: [L] bool, tokens that have a place; None: all that the task
      places.

  Returns: words with their points for a written answer; a box for a read one.
  """
  question = task.question(region)
  height, width = size_orig
  scale = np.asarray([width, height], np.float32)
  points = np.clip(np.asarray(output.points), 0, 1) * scale
  tokens = np.asarray(output.tokens)
  if not task.generates:
    box = geometry.answer_box(tokens, points)
    return Prediction(
      kind=cast(Kind, task.name),
      image=image,
      size_orig=size_orig,
      prompt=task.prompt(region),
      box_orig=_box(box),
      score=float(output.scores),
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
  return Prediction(
    kind=cast(Kind, task.name),
    image=image,
    size_orig=size_orig,
    text=vocabulary.decode(tokens),
    words=tuple(words),
    prompt_box_orig=None if asked is None else _box(asked * np.tile(scale, 2)),
    score=float(output.scores),
  )


def _box(values: np.ndarray) -> Box:
  x0, y0, x1, y1 = map(float, values)
  return x0, y0, x1, y1
