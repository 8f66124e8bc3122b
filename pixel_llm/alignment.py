# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""From places of utterances to places of tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pixel_llm.example import Region

Mode = Literal['text', 'relative']
MODES: tuple[Mode, ...] = ('text', 'relative')


def token_places(
  region: Region, token_spans: np.ndarray, mode: Mode = 'text'
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The place of each token of a region's text.

  `text`: a token takes the place of the utterance whose characters it shares
  (the most of them, the earlier one on a tie); a token that no utterance with a
  place covers, a full stop for example, has none.

  `relative`: the published match, blind to the words. Utterance i of n (those
  with a place, from 1) sits at i / n, token j of m at j / m rescaled to run
  from the first utterance's position to the last one's; nearest wins.

  Args:
    region: its `spans`, `span_boxes`, `span_centers` and `span_weights`.
    token_spans: [tokens, 2] int, begin and end character in `region.text` as
      `Vocabulary.encode_with_spans` gives them; (-1, -1) for a token that
      stands for no character (end, padding).
    mode: 'text' or 'relative'.

  Returns:
    boxes [tokens, 4] xyxy, centers [tokens, 2] xy, both float32 and normalized,
    and weights [tokens] float32, 0 where a token has no place.

  Raises:
    ValueError: an unknown mode.

  Source: 'relative' is scenic pixel_llm, `io/ops.py`.
  """
  if mode not in MODES:
    raise ValueError(
      f'token_places: expected mode {" or ".join(map(repr, MODES))}, got '
      f'{mode!r}.'
    )
  tokens = np.asarray(token_spans, np.int64).reshape(-1, 2)
  count = len(tokens)
  boxes = np.zeros((count, 4), np.float32)
  centers = np.zeros((count, 2), np.float32)
  weights = np.zeros((count,), np.float32)
  # Reference: it drops utterances whose centre is <= 1e-5 in x or y, its mark
  # for "missing"; here the record's weight says so.
  placed = np.flatnonzero(region.span_weights > 0)
  real = np.flatnonzero(tokens[:, 0] >= 0)
  if not placed.size or not real.size:
    return boxes, centers, weights

  if mode == 'text':
    found, utterances = _by_text(tokens[real], region.spans[placed])
    real, utterances = real[found], placed[utterances[found]]
  else:
    utterances = placed[_by_position(len(real), len(placed))]
  boxes[real] = region.span_boxes[utterances]
  centers[real] = region.span_centers[utterances]
  weights[real] = region.span_weights[utterances]
  return boxes, centers, weights


def _by_text(
  tokens: np.ndarray, spans: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Whether each token [M, 2] meets a span [N, 2], and which one, [M]."""
  begin, end = tokens[:, 0], tokens[:, 1]
  # A piece that is only the blank before a word goes with that word.
  end = np.maximum(end, begin + 1)
  shared = np.minimum(end[:, None], spans[None, :, 1]) - np.maximum(
    begin[:, None], spans[None, :, 0]
  )
  return shared.max(axis=1) > 0, shared.argmax(axis=1)


def _by_position(tokens: int, utterances: int) -> np.ndarray:
  """[tokens] int: the utterance nearest in relative position."""
  # float32 and squared distances as published: ties are frequent and decided
  # by rounding.
  spots = (np.arange(1, utterances + 1) / utterances).astype(np.float32)
  where = (np.arange(1, tokens + 1) / tokens).astype(np.float32)
  where = spots[0] + where * (spots[-1] - spots[0])
  return ((where[:, None] - spots[None, :]) ** 2).argmin(axis=1)
