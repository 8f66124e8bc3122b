# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Traces, utterances, words and tokens find each other."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_llm import alignment
from pixel_llm.data import align
from pixel_llm.example import Region

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'ln_preprocessing.npz'


def places(trace, times):
  return align.utterance_places(np.array(trace, float), np.array(times, float))


# Traces.


def test_straight_trace():
  # x runs from 0.2 to 0.6 in two seconds, y rests.
  boxes, centers, weights = places(
    [[0.2, 0.5, 0], [0.6, 0.5, 2]], [[0, 2], [0.5, 1.5]]
  )
  np.testing.assert_allclose(
    boxes, [[0.2, 0.5, 0.6, 0.5], [0.3, 0.5, 0.5, 0.5]], atol=1e-6
  )
  np.testing.assert_allclose(centers, [[0.4, 0.5], [0.4, 0.5]], atol=1e-6)
  np.testing.assert_array_equal(weights, [1, 1])
  assert boxes.dtype == centers.dtype == weights.dtype == np.float32


def test_centre_is_the_time_integral():
  # 3 s at 0.2, then a jump and 1 s at 0.8: a mean over points would say 0.5.
  trace = [[0.2, 0.2, 0], [0.2, 0.2, 3], [0.8, 0.2, 3.0], [0.8, 0.2, 4]]
  _, centers, _ = places(trace, [[0, 4]])
  np.testing.assert_allclose(centers[0, 0], 0.35, atol=0.02)


def test_segments_in_any_order_and_gap_is_interpolated():
  trace = [[0.8, 0.1, 4], [0.0, 0.1, 0], [0.2, 0.1, 1]]
  boxes, centers, _ = places(trace, [[2.5, 2.5]])
  np.testing.assert_allclose(boxes[0], [0.5, 0.1, 0.5, 0.1], atol=1e-6)
  np.testing.assert_allclose(centers[0], [0.5, 0.1], atol=1e-6)


def test_utterances_beyond_the_trace():
  trace = [[0.2, 0.3, 5], [0.9, 0.3, 5.5]]
  times = [[0, 1], [3.5, 4.5], [6, 6.2], [7, 8]]
  boxes, _, weights = places(trace, times)
  np.testing.assert_array_equal(weights, [0, 1, 1, 0])
  # At rest where the trace begins and ends, not thrown out along its line.
  np.testing.assert_allclose(boxes[1], [0.2, 0.3, 0.2, 0.3], atol=1e-6)
  np.testing.assert_allclose(boxes[2], [0.9, 0.3, 0.9, 0.3], atol=1e-6)


def test_outside_the_image():
  trace = [[-0.5, 0.5, 0], [0.5, 0.5, 1], [1.5, 0.5, 2], [2.5, 0.5, 3]]
  boxes, centers, weights = places(trace, [[0, 1], [2, 3]])
  np.testing.assert_allclose(boxes[0], [0, 0.5, 0.5, 0.5], atol=1e-6)
  np.testing.assert_allclose(centers[0], [0, 0.5], atol=1e-6)
  np.testing.assert_array_equal(weights, [1, 0])
  assert not boxes[1].any() and not centers[1].any()


def test_no_trace_and_one_point():
  _, _, weights = places(np.zeros((0, 3)), [[0, 1]])
  np.testing.assert_array_equal(weights, [0])
  boxes, _, weights = places([[0.3, 0.4, 1]], [[0.5, 1]])
  np.testing.assert_allclose(boxes[0], [0.3, 0.4, 0.3, 0.4])
  assert places([[0.3, 0.4, 1]], np.zeros((0, 2)))[0].shape == (0, 4)


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.tuples(st.floats(-2, 3), st.floats(-2, 3), st.floats(0, 10)),
    min_size=1,
    max_size=12,
  ),
  st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), min_size=1),
)
def test_centre_lies_in_its_box_in_the_image(trace, spans):
  times = [(start, start + length) for start, length in spans]
  boxes, centers, weights = places(trace, times)
  assert np.isfinite(boxes).all() and set(weights) <= {0, 1}
  assert (boxes >= 0).all() and (boxes <= 1).all()
  assert (centers >= boxes[:, :2] - 1e-5).all()
  assert (centers <= boxes[:, 2:] + 1e-5).all()


# Words.


def found(caption, utterances):
  spans = align.match_utterances(caption, utterances)
  assert spans.dtype == np.int32 and spans.shape == (len(utterances), 2)
  return [caption[b:e] if b >= 0 else None for b, e in spans]


def test_match_ignores_case_and_punctuation():
  assert found(
    "In this image, there's a Red ring.",
    ['in this', 'image there’s', 'a', 'red', 'RING.'],
  ) == ['In this', "image, there's", 'a', 'Red', 'ring']


def test_match_follows_order_of_repeated_words():
  caption = 'a ring and a star and a ring'
  spans = align.match_utterances(
    caption, ['a ring', 'and', 'a star', 'and', 'a ring']
  )
  np.testing.assert_array_equal(
    spans, [[0, 6], [7, 10], [11, 17], [18, 21], [22, 28]]
  )


def test_match_passes_over_words_of_one_side():
  assert found(
    'there is a big red ring on the left',
    ['there is', 'um', 'a red', 'ring', 'at the', 'left side', ''],
  ) == ['there is', None, 'a big red', 'ring', 'the', 'left', None]


def test_match_of_nothing():
  assert found('...', ['a']) == [None]
  assert found('a', []) == []


@settings(deadline=None, max_examples=60)
@given(
  st.lists(st.sampled_from(['a', 'ring', "it's", 'été', '3']), max_size=12),
  st.data(),
)
def test_exact_utterances_are_found_where_they_are(words, data):
  caption = ', '.join(words)
  utterances, at = [], 0
  while at < len(words):
    size = data.draw(st.integers(1, 3))
    utterances.append(', '.join(words[at : at + size]))
    at += size
  assert found(caption, utterances) == utterances


# Tokens.


def region(text, spans, weights=None):
  count = len(spans)
  corners = np.linspace(0.1, 0.9, count * 4).reshape(count, 4)
  return Region(
    id='1',
    text=text,
    spans=np.array(spans, np.int32).reshape(-1, 2),
    span_boxes=corners.astype(np.float32),
    span_centers=corners[:, 1:3].astype(np.float32),
    span_weights=np.ones(count, np.float32)
    if weights is None
    else np.array(weights, np.float32),
  )


def test_tokens_take_their_utterance():
  r = region('a red ring.', [[0, 5], [6, 10]])
  # 'a', ' red' (blank left out), a blank of its own, 'ri', 'ng', '.', padding.
  tokens = np.array(
    [[0, 1], [2, 5], [6, 6], [6, 8], [8, 10], [10, 11], [-1, -1]]
  )
  boxes, centers, weights = alignment.token_places(r, tokens, 'text')
  np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 0, 0])
  for token, utterance in enumerate([0, 0, 1, 1, 1]):
    np.testing.assert_array_equal(boxes[token], r.span_boxes[utterance])
    np.testing.assert_array_equal(centers[token], r.span_centers[utterance])
  assert not boxes[5:].any() and not centers[5:].any()
  assert boxes.dtype == centers.dtype == weights.dtype == np.float32


def test_token_over_two_utterances_takes_the_larger_part():
  r = region('icebreaker', [[0, 3], [3, 10]])
  boxes, _, _ = alignment.token_places(r, np.array([[0, 10], [0, 6]]))
  np.testing.assert_array_equal(boxes[0], r.span_boxes[1])
  np.testing.assert_array_equal(boxes[1], r.span_boxes[0])  # a tie


@pytest.mark.parametrize('mode', alignment.MODES)
def test_utterance_without_place_gives_none(mode):
  r = region('a red ring', [[0, 1], [2, 5], [-1, -1]], weights=[0, 1, 0])
  tokens = np.array([[0, 1], [2, 5], [6, 10]])
  boxes, _, weights = alignment.token_places(r, tokens, mode)
  expected = [0, 1, 0] if mode == 'text' else [1, 1, 1]
  np.testing.assert_array_equal(weights, expected)
  np.testing.assert_array_equal(boxes[weights > 0][0], r.span_boxes[1])


@pytest.mark.parametrize('mode', alignment.MODES)
def test_no_utterance_and_no_token(mode):
  tokens = np.array([[0, 1], [2, 3]])
  _, _, weights = alignment.token_places(Region('1', 'a b'), tokens, mode)
  np.testing.assert_array_equal(weights, [0, 0])
  r = region('a b', [[0, 3]])
  boxes, centers, weights = alignment.token_places(r, np.zeros((0, 2)), mode)
  assert boxes.shape == (0, 4) and centers.shape == (0, 2) and not len(weights)


def test_unknown_mode():
  mode: Any = 'words'
  with pytest.raises(ValueError, match="'text' or 'relative', got 'words'"):
    alignment.token_places(Region('1', 'a'), np.zeros((0, 2)), mode)


# Against the research code.


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as values:
    return dict(values)


def golden_region(golden):
  caption = str(golden['in/caption'])
  utterances = [str(u) for u in golden['in/utterances']]
  return utterances, Region(
    id='1',
    text=caption,
    spans=align.match_utterances(caption, utterances),
    span_boxes=golden['in/bbox'],
    span_centers=golden['in/center'],
    span_weights=np.ones(len(utterances), np.float32),
  )


def test_relative_mode_is_the_published_match(golden):
  assert json.loads(str(golden['config']))['num_points_per_token'] == 2
  _, r = golden_region(golden)
  ids = golden['out/decoded/text_tokens'][0]
  # The match knows tokens only as real or not: 0 begins and pads, 1 ends.
  tokens = np.where((ids > 1)[:, None], [[0, 1]], [[-1, -1]])
  boxes, _, weights = alignment.token_places(r, tokens, 'relative')
  np.testing.assert_array_equal(weights, ids > 1)
  height, width = golden['out/decoded/orig_size']
  points = np.round(boxes * np.array([width, height] * 2, np.float32)).reshape(
    -1, 2, 2
  )
  np.testing.assert_array_equal(points, golden['out/decoded/points'][0])


def test_text_mode_beats_the_published_match(golden):
  """Word by word, the truth is known here: the caption is its utterances."""
  utterances, r = golden_region(golden)
  words, truth, at = [], [], 0
  for i, utterance in enumerate(utterances):
    for word in utterance.split():
      begin = r.text.index(word, at)
      at = begin + len(word)
      words.append((begin, at))
      truth.append(i)
  # As a vocabulary would cut them: a piece for every three characters.
  tokens = [
    (b, min(b + 3, end), i)
    for (begin, end), i in zip(words, truth)
    for b in range(begin, end, 3)
  ]
  spans = np.array([t[:2] for t in tokens])
  expected = golden['in/bbox'][[t[2] for t in tokens]]
  text, _, weights = alignment.token_places(r, spans, 'text')
  assert weights.all()
  np.testing.assert_array_equal(text, expected)
  relative, _, _ = alignment.token_places(r, spans, 'relative')
  wrong = (relative != expected).any(-1).mean()
  assert 0.1 < wrong < 0.9
