# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Are the things that a narrative names in the image, in their colour?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

COLORS = (
    'red', 'green', 'blue', 'yellow', 'purple', 'orange', 'white', 'black',
)  # fmt: skip
SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')

# How many words a colour may stand before its shape, and a number before its
# colour: 'two | small plain | red | big striped | rings'.
_WINDOW = 3
_NUMBERS = {
  'one': 1,
  'two': 2,
  'three': 3,
  'four': 4,
  'five': 5,
  'six': 6,
  'seven': 7,
  'eight': 8,
  'nine': 9,
  'ten': 10,
}
# What may stand between a shape and the colour that follows it.
_LINKS = {('in',)} | {
  (*who, verb, *place)
  for who in ((), ('which',), ('that',))
  for verb in ('is', 'are')
  for place in ((), ('in',))
}
_STOPS = frozenset('.!?;')


def mentions(
  text: str,
  colors: Sequence[str] = COLORS,
  shapes: Sequence[str] = SHAPES,
) -> Counter[tuple[str, str]]:
  """The (colour, shape) pairs that a text names, and how often.

  A shape takes the nearest colour among the three words before it ('a small
  red striped ring'), not across another shape or the end of a sentence; else
  the colour that follows it in 'ring which is red', 'ring in red', 'ring is
  red'. A colour serves one shape only. A plural counts as the number before it
  ('two red circles'), as two when there is none. A shape without a colour is
  no mention.

  Args:
    text: any text; case does not matter.
    colors: colour words.
    shapes: shape words, singular; plurals in 's' and 'es' are understood.

  Returns: counts by (colour, shape).
  """
  words = re.findall(r'[a-z]+|\d+|[.!?;]', text.lower())
  singular = {shape: shape for shape in shapes} | {
    shape + ('es' if shape.endswith(('s', 'x')) else 's'): shape
    for shape in shapes
  }
  used: set[int] = set()
  counts: Counter[tuple[str, str]] = Counter()
  for at, word in enumerate(words):
    if word not in singular:
      continue
    # Backwards from the shape to the previous shape or sentence.
    before = at
    while before and words[before - 1] not in _STOPS | singular.keys():
      before -= 1
    color = next(
        (i for i in range(at - 1, max(before, at - _WINDOW) - 1, -1)
         if words[i] in colors and i not in used),
        None,
    )  # fmt: skip
    first = at if color is None else color
    if color is None:
      color = next(
          (end for end in range(at + 2, min(at + 5, len(words)))
           if words[end] in colors and tuple(words[at + 1 : end]) in _LINKS),
          None,
      )  # fmt: skip
    if color is None:
      continue
    used.add(color)
    number = 1
    if word != singular[word]:
      number = _last_number(words[max(before, first - _WINDOW) : first]) or 2
    counts[words[color], singular[word]] += number
  return counts


def object_precision(
  targets: Sequence[Sequence[str]],
  predictions: Sequence[str],
  colors: Sequence[str] = COLORS,
  shapes: Sequence[str] = SHAPES,
) -> dict[str, float]:
  """Share of the things named that the image's references name too.

  Every mention counts, over all images alike; a pair named more often than in
  the reference that names it most is wrong the extra times.

  Args:
    targets: the reference narratives of each image.
    predictions: one narrative an image, in the same order.
    colors: as for `mentions`.
    shapes: as for `mentions`.

  Returns: {'object_precision': in [0, 1]}; 0 when nothing is named, for who
    says nothing should not win.

  Raises:
    ValueError: the lists disagree in length.
  """
  right, named, _ = _totals(targets, predictions, colors, shapes)
  return {'object_precision': right / named if named else 0.0}


def object_recall(
  targets: Sequence[Sequence[str]],
  predictions: Sequence[str],
  colors: Sequence[str] = COLORS,
  shapes: Sequence[str] = SHAPES,
) -> dict[str, float]:
  """Share of the things in the image's references that are named.

  Args:
    targets: as for `object_precision`.
    predictions: as for `object_precision`.
    colors: as for `mentions`.
    shapes: as for `mentions`.

  Returns: {'object_recall': in [0, 1]}.

  Raises:
    ValueError: the lists disagree in length, or no reference names a thing.
  """
  right, _, present = _totals(targets, predictions, colors, shapes)
  if not present:
    raise ValueError(
      f'object recall: no reference of {len(targets)} examples names a '
      'colour and a shape.'
    )
  return {'object_recall': right / present}


def _totals(
  targets: Sequence[Sequence[str]],
  predictions: Sequence[str],
  colors: Sequence[str],
  shapes: Sequence[str],
) -> tuple[int, int, int]:
  """Mentions that are right, mentions, and mentions in the references."""
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many narratives as examples, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  right = named = present = 0
  for texts, prediction in zip(targets, predictions):
    truth: Counter[tuple[str, str]] = Counter()
    for text in texts:
      truth |= mentions(text, colors, shapes)
    said = mentions(prediction, colors, shapes)
    right += (said & truth).total()
    named += said.total()
    present += truth.total()
  return right, named, present


def _last_number(words: Sequence[str]) -> int | None:
  for word in reversed(words):
    if word.isdigit():
      return int(word)
    if word in _NUMBERS:
      return _NUMBERS[word]
  return None
