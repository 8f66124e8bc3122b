# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A mouse trace and timed utterances -> a place and a span per utterance."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

SAMPLES = 16
# Seconds that an utterance may lie before the first or after the last trace
# point and still take that point's place. Speakers begin before the pointer is
# in the image, by up to nine seconds in real recordings.
REACH = 1.0
_SHORT = 1e-5  # seconds; the published bound below which the mean is taken
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def utterance_places(
  trace: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Where the pointer was during each utterance.

  The trace is sorted by time and interpolated linearly, across the gaps
  between its segments too; each utterance is sampled at 16 equal times from
  its start to its end. The centre is the time integral over the duration, the
  box the samples' minimum and maximum.

  Reference: before the first and after the last point it extrapolates the
  line through the two nearest ones, which sends the pointer flying; here it
  rests at the nearest point, for `REACH` seconds, and beyond that the
  utterance has no place. It drops utterances whose centre is <= 1e-5 in x or
  y; here those whose box lies outside the image.

  Args:
    trace: [points, 3] x, y (normalized, possibly outside [0, 1]) and seconds,
      all segments joined, in any order.
    times: [utterances, 2] start and end, seconds.

  Returns:
    boxes [utterances, 4] xyxy and centers [utterances, 2] xy, float32, clipped
    to [0, 1], and weights [utterances] float32, 0 where there is no place.

  Source: scenic pixel_llm, `tools/build_ln_tfrecord.py:trace2coord`.
  """
  count = len(times)
  boxes = np.zeros((count, 4), np.float32)
  centers = np.zeros((count, 2), np.float32)
  weights = np.zeros((count,), np.float32)
  if not len(trace) or not count:
    return boxes, centers, weights
  trace = np.asarray(trace, np.float64)
  trace = trace[np.argsort(trace[:, 2], kind='stable')]
  start, end = np.asarray(times, np.float64).T
  moments = np.linspace(start, end, SAMPLES, axis=-1)  # [utterances, 16]
  xy = np.stack(
    [np.interp(moments, trace[:, 2], trace[:, i]) for i in range(2)], axis=-1
  )
  low, high = xy.min(axis=1), xy.max(axis=1)

  duration = (end - start)[:, None]
  short = duration < _SHORT
  integral = np.trapezoid(xy, moments[..., None], axis=1)
  center = np.where(
    short, xy.mean(axis=1), integral / np.where(short, 1.0, duration)
  )

  reached = (end >= trace[0, 2] - REACH) & (start <= trace[-1, 2] + REACH)
  inside = (high >= 0).all(axis=-1) & (low <= 1).all(axis=-1)
  there = reached & inside
  boxes[there] = np.clip(np.concatenate([low, high], axis=-1), 0, 1)[there]
  centers[there] = np.clip(center, 0, 1)[there]
  weights[there] = 1
  return boxes, centers, weights


def match_utterances(caption: str, utterances: Sequence[str]) -> np.ndarray:
  """The characters of the caption that each utterance said.

  Words are compared in order, blind to case and punctuation; words that only
  one side has are passed over.

  Args:
    caption: the whole text.
    utterances: words or groups of words, in order of time.

  Returns:
    [utterances, 2] int32, begin and end character in `caption`, from the first
    to the last word found; (-1, -1) where none was.
  """
  words = [(_fold(m.group()), m.span()) for m in _WORD.finditer(caption)]
  said = [
    (_fold(word), i)
    for i, text in enumerate(utterances)
    for word in _WORD.findall(text)
  ]
  spans = np.full((len(utterances), 2), -1, np.int32)
  matcher = difflib.SequenceMatcher(
    None, [w for w, _ in said], [w for w, _ in words], autojunk=False
  )
  for i, j, length in matcher.get_matching_blocks():
    for step in range(length):
      utterance = said[i + step][1]
      begin, end = words[j + step][1]
      if spans[utterance, 0] < 0:
        spans[utterance, 0] = begin
      spans[utterance, 1] = end
  return spans


def _fold(word: str) -> str:
  return word.casefold().replace("'", '').replace('’', '')
