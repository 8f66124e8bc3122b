# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which coloured shapes a narrative names."""

import pytest

from pixel_llm.metrics import objects


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('a red ring', {('red', 'ring'): 1}),
    ('A small Red, striped RING.', {('red', 'ring'): 1}),
    ('a red very big old striped ring', {}),
    ('a striped ring which is red in color', {('red', 'ring'): 1}),
    ('a ring in red color', {('red', 'ring'): 1}),
    ('the ring is red', {('red', 'ring'): 1}),
    ('the rings that are in red', {('red', 'ring'): 2}),
    ('two small red circles', {('red', 'circle'): 2}),
    ('3 plain blue crosses', {('blue', 'cross'): 3}),
    ('There are two. Red circles', {('red', 'circle'): 2}),
    ('five rings, red stars', {('red', 'star'): 2}),
    ('one red circle', {('red', 'circle'): 1}),
    (
      'a red ring and a red ring left of the green star',
      {('red', 'ring'): 2, ('green', 'star'): 1},
    ),
    ('a ring and a red star', {('red', 'star'): 1}),
    ('a red ring and star', {('red', 'ring'): 1}),
    ('ring is red and star is blue', {('red', 'ring'): 1, ('blue', 'star'): 1}),
    ('The background is white. A ring', {}),
    ('a ring', {}),
    ('a pink ring and a red dog', {}),
    ('', {}),
  ],
)
def test_mentions(text, expected):
  assert dict(objects.mentions(text)) == expected


def test_other_words_can_be_given():
  assert objects.mentions('a pink box', ['pink'], ['box']) == {
    ('pink', 'box'): 1
  }
  assert objects.mentions('two pink boxes', ['pink'], ['box']).total() == 2


def test_worked_by_hand():
  targets = [
    ['a red ring and a blue star', 'a red ring and a red ring'],
    ['a green cross'],
  ]
  predictions = [
    # The third red ring and the blue ring are wrong.
    'a red ring, a red ring, a red ring and a blue ring',
    'a cross',
  ]
  assert objects.object_precision(targets, predictions) == {
    'object_precision': 2 / 4
  }
  # Two red rings, a blue star and a green cross are there.
  assert objects.object_recall(targets, predictions) == {'object_recall': 2 / 4}


def test_saying_the_reference_is_perfect_in_any_order():
  texts = ['a red ring and two blue stars', 'a cross which is black in color']
  for order in (texts, texts[::-1]):
    targets = [[t, 'a dog'] for t in order]
    assert objects.object_precision(targets, order)['object_precision'] == 1
    assert objects.object_recall(targets, order)['object_recall'] == 1


def test_silence_scores_zero():
  assert objects.object_precision([['a red ring']], ['a dog']) == {
    'object_precision': 0.0
  }


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='as many narratives'):
    objects.object_precision([['a red ring']], [])
  with pytest.raises(ValueError, match='no reference of 1 examples'):
    objects.object_recall([['a dog']], ['a dog'])
