# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Narrated scenes: what people say about them, and what they mean by it.

An expression is a structure first and words second, so that whom it means can
be computed. A narrative keeps for every word the thing that it names, which is
where the narrator's pointer is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from pixel_llm.data.scene_images import (
  COLORS,
  PATTERNS,
  SHAPES,
  Look,
  Scene,
  Thing,
)

MAX_WORDS = 45  # of a narrative

_PLACES = {
  # Place -> direction in which it is the furthest, words for one of two, words
  # for one of more.
  'left': ((-1, 0), ('{} on the left', 'left {}'), 'leftmost {}'),
  'right': ((1, 0), ('{} on the right', 'right {}'), 'rightmost {}'),
  'top': ((0, -1), ('{} at the top', 'top {}'), 'topmost {}'),
  'bottom': ((0, 1), ('{} at the bottom', 'bottom {}'), 'lowest {}'),
}
_EXTREMES = {'largest': 1, 'smallest': -1}
_RELATIONS = {
  'left of': (-1, 0),
  'right of': (1, 0),
  'above': (0, -1),
  'below': (0, 1),
}
_RELATION_WORDS = {
  'left of': ('left of', 'to the left of'),
  'right of': ('right of', 'to the right of'),
  'above': ('above',),
  'below': ('below', 'under'),
}
# How often one tries to mean something by its attributes, by attributes other
# than the shape, by its place, by its relation to another thing.
_KINDS = (0.34, 0.04, 0.2, 0.42)
_TRIES = 60
# What is said otherwise of a thing that is not there. Sizes are left alone:
# between two of them eyes differ.
_CHANGED = {'shape': SHAPES, 'color': COLORS, 'pattern': PATTERNS}
# What must lie between two things for one to be called further, parts of the
# image's longer side; and how much larger the larger one must be.
_APART = 0.1
_LARGER = 1.25


@dataclasses.dataclass(frozen=True)
class Expression:
  """Words that single out a thing; None where nothing is said.

  Attributes:
    shape: of `SHAPES`.
    color: of `COLORS`.
    size: of `SIZES`.
    pattern: of `PATTERNS`.
    place: the one furthest left, right, top or bottom, or largest or smallest
      of those that the attributes fit.
    relation: where it is, seen from the anchor.
    anchor: another thing, by its attributes.
  """

  shape: str | None = None
  color: str | None = None
  size: str | None = None
  pattern: str | None = None
  place: str | None = None
  relation: str | None = None
  anchor: Expression | None = None


def matches(
  expression: Expression, scene: Scene, strict: bool = True
) -> list[int]:
  """The things that an expression may mean.

  Args:
    expression: what is said.
    scene: what there is.
    strict: count only what is clearly left of or above the anchor; otherwise
      whatever might be taken for it.

  Returns: indices into `scene.things`.
  """
  said = [
    (name, value)
    for name in ('shape', 'color', 'size', 'pattern')
    if (value := getattr(expression, name))
  ]
  found = [
    i
    for i, thing in enumerate(scene.things)
    if all(getattr(thing.look, name) == value for name, value in said)
  ]
  if expression.anchor and expression.relation:
    anchors = matches(expression.anchor, scene, strict)
    if len(anchors) != 1:
      return []
    anchor = scene.things[anchors[0]]
    found = [
      i
      for i in found
      if i != anchors[0]
      and _related(expression.relation, scene.things[i], anchor, scene, strict)
    ]
  if expression.place:
    found = _furthest(expression.place, found, scene)
  return found


def means(expression: Expression, scene: Scene, index: int) -> bool:
  """Whether an expression means this thing and can mean no other."""
  return all(matches(expression, scene, s) == [index] for s in (True, False))


def words(
  expression: Expression, rng: np.random.Generator, article: str = 'the'
) -> str:
  """An expression in English, with the article before it."""
  noun = ' '.join(
    word
    for word in (
      expression.size and _size_word(rng, expression.size),
      expression.color,
      expression.pattern,
      expression.shape or 'object',
    )
    if word
  )
  if expression.place in _EXTREMES:
    superlative = {'largest': 'biggest'}
    word = expression.place
    if rng.random() < 0.3:
      word = superlative.get(word, word)
    noun = f'{word} {noun}'
  elif expression.place:
    _, of_two, of_more = _PLACES[expression.place]
    form = of_two[int(rng.random() < 0.3)] if rng.random() < 0.75 else of_more
    noun = form.format(noun)
  if expression.anchor and expression.relation:
    relation = _pick(rng, _RELATION_WORDS[expression.relation])
    noun = f'{noun} {relation} {words(expression.anchor, rng)}'
  return f'{article} {noun}'.strip()


def refer(
  scene: Scene, index: int, rng: np.random.Generator, count: int
) -> list[tuple[Expression, str]]:
  """Different ways to mean one thing and no other.

  Args:
    scene: what there is.
    index: the thing.
    rng: chooses.
    count: how many, at most.

  Returns: expressions and their words; none when the thing has a twin that
    nothing simple tells from it.
  """
  found: dict[str, Expression] = {}
  for _ in range(_TRIES):
    if len(found) == count:
      break
    expression = _expression(scene, index, rng)
    if expression and means(expression, scene, index):
      text = words(expression, rng, 'the' if rng.random() < 0.7 else '')
      found.setdefault(text, expression)
  return [(expression, text) for text, expression in found.items()]


def absent(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
  """Expressions that mean nothing: no thing has what is said of one.

  Args:
    scene: what there is.
    rng: chooses.
    count: how many, at most.
  """
  found: dict[str, None] = {}
  for _ in range(_TRIES):
    if len(found) == count:
      break
    expression = _absent(scene, rng)
    if expression:
      text = words(expression, rng, 'the' if rng.random() < 0.7 else '')
      found.setdefault(text)
  return list(found)


def name(
  look: Look,
  rng: np.random.Generator,
  size: float = 0.5,
  pattern: float = 0.6,
  article: bool = True,
) -> str:
  """A thing in words; its colour and shape always.

  Args:
    look: its attributes.
    rng: chooses.
    size: how often the size is said.
    pattern: how often stripes and dots are said; `plain` five times less.
    article: whether with `a` or `an`.
  """
  said = [_size_word(rng, look.size)] if rng.random() < size else []
  plain = look.pattern == 'plain'
  patterned = rng.random() < (pattern / 5 if plain else pattern)
  form = rng.random()
  if patterned and not plain and form < 0.15:
    stripes = {'striped': 'stripes', 'dotted': 'dots'}[look.pattern]
    said += [look.color, look.shape, 'with', stripes]
  else:
    said_pattern = [look.pattern] if patterned else []
    if article and form > 0.93:
      said += [*said_pattern, look.shape, 'which', 'is', look.color]
      said += ['in', 'color']
    elif article and form > 0.86:
      said += [*said_pattern, look.shape, 'in', look.color, 'color']
    else:
      said += [look.color, *said_pattern, look.shape]
  if article:
    said.insert(0, 'an' if said[0][0] in 'aeiou' else 'a')
  return ' '.join(said)


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
  """Two short sentences on the whole image, as in COCO Captions."""
  result = []
  for attributes in (0.0, 0.4):
    names = [
      name(scene.things[i].look, rng, attributes, attributes)
      for i in order(scene, 'left')
    ]
    listed = ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))
    if rng.random() < 0.25:
      listed += f' on a {scene.background} background'
    result.append(listed[0].upper() + listed[1:] + '.')
  return result


def order(scene: Scene, habit: str) -> list[int]:
  """Indices of the things in the order in which someone looks at them.

  Args:
    scene: what there is.
    habit: 'left' to right, 'top' to bottom, or 'large' ones first.
  """
  axis = 1 if habit == 'top' else 0
  return sorted(
    range(len(scene.things)),
    key=lambda i: (
      habit == 'large' and scene.things[i].look.size != 'large',
      scene.things[i].center[axis],
    ),
  )


@dataclasses.dataclass(frozen=True)
class Voice:
  """An annotator's habits, which make what comes next partly predictable.

  Attributes:
    annotator_id: as in the files.
    habit: the order of things, see `order`.
    openers: how a narrative begins.
    later: how its later sentences begin.
    tempo: seconds for a word of five letters.
    lower: whether the transcript is in lower case.
    bare: whether it is without punctuation.
    circles: whether the pointer goes around things, or scribbles over them.
  """

  annotator_id: int
  habit: str
  openers: tuple[str, ...]
  later: tuple[str, ...]
  tempo: float
  lower: bool
  bare: bool
  circles: bool


_I_SEE = ('In this image I can see', 'In this picture I can see')
_WE_SEE = ('In this image we can see', 'In this picture we can see')
_ALSO = ('There is', 'I can also see')
_WE_ALSO = ('There is', 'We can also see')
VOICES = (
  Voice(12, 'left', _I_SEE, _ALSO, 0.26, False, False, True),
  Voice(37, 'left', _I_SEE, _ALSO, 0.30, False, True, False),
  Voice(58, 'left', _WE_SEE, _WE_ALSO, 0.24, True, True, True),
  Voice(64, 'left', _WE_SEE, ('Here is', 'There is'), 0.32, False, True, True),
  Voice(93, 'left', ('There is',), ('There is',), 0.28, False, False, False),
  Voice(101, 'large', ('The image shows',), _ALSO, 0.27, False, True, True),
  Voice(117, 'large', ('Here I can see',), _ALSO, 0.23, True, True, False),
  Voice(125, 'top', ('Here we can see',), _WE_ALSO, 0.29, False, False, True),
)


@dataclasses.dataclass(frozen=True)
class Piece:
  """Words that are said while the pointer is at one place.

  Attributes:
    text: words with their punctuation.
    target: index of the thing they name or place; 'all' for the background;
      None for words of their own, on the way to the next thing.
  """

  text: str
  target: int | str | None = None


def narrative(
  scene: Scene, voice: Voice, rng: np.random.Generator
) -> list[Piece]:
  """What an annotator says: every thing once, in the voice's order.

  The caption is the texts joined by blanks.
  """
  while True:
    pieces = _narrative(scene, voice, rng)
    if sum(len(p.text.split()) for p in pieces) <= MAX_WORDS:
      return pieces


def _narrative(
  scene: Scene, voice: Voice, rng: np.random.Generator
) -> list[Piece]:
  indices = order(scene, voice.habit)
  count = len(indices)
  few = count <= 3
  size, pattern = (0.6, 0.7) if few else (0.4, 0.45)
  placed = {1: 0.8, 2: 0.3, 3: 0.25}.get(count, 0.15)

  pieces: list[Piece] = []
  previous: Thing | None = None
  for sentence in _sentences(indices, rng):
    first = scene.things[sentence[0]]
    if previous is None:
      pieces.append(Piece(_pick(rng, voice.openers)))
    else:
      bridges = [
        f'{text[0].upper()}{text[1:]} it'
        for relation, texts in _RELATION_WORDS.items()
        if _related(relation, first, previous, scene, strict=True)
        for text in texts[-1:]
      ]
      if bridges and rng.random() < 0.3:
        pieces += [Piece(_pick(rng, bridges)), Piece('there is')]
      elif rng.random() < placed:
        text = _pick(rng, _places(first, scene))
        pieces.append(Piece(text[0].upper() + text[1:], sentence[0]))
        pieces.append(Piece('there is'))
      else:
        pieces.append(Piece(_pick(rng, voice.later)))
    for i, index in enumerate(sentence):
      thing = scene.things[index]
      if i:
        before = scene.things[sentence[i - 1]]
        near = math.hypot(*_offset(thing, before, scene)) < 0.4
        if near and len(sentence) == 2 and rng.random() < 0.2:
          pieces.append(Piece('next to'))
        elif i == len(sentence) - 1:
          pieces.append(Piece('and'))
        else:
          pieces[-1] = _ended(pieces[-1], ',')
      pieces.append(Piece(name(thing.look, rng, size, pattern), index))
      if rng.random() < placed:
        pieces.append(Piece(_pick(rng, _places(thing, scene)), index))
    pieces[-1] = _ended(pieces[-1], '.')
    previous = scene.things[sentence[-1]]
  if rng.random() < {1: 0.6, 2: 0.35}.get(count, 0.25):
    pieces.append(Piece(_pick(rng, _backdrops(scene.background)), 'all'))
  return pieces


def _sentences(
  indices: Sequence[int], rng: np.random.Generator
) -> list[list[int]]:
  """Cuts a list into one to three sentences."""
  count = len(indices)
  parts = 1 + int(rng.integers(2)) if count <= 3 else 2 + int(rng.integers(2))
  parts = min(parts, count)
  cuts = sorted(rng.choice(np.arange(1, count), parts - 1, replace=False))
  edges = [0, *map(int, cuts), count]
  return [list(indices[a:b]) for a, b in itertools.pairwise(edges)]


def _places(thing: Thing, scene: Scene) -> list[str]:
  """Where a thing is in the image, in words."""
  x = thing.center[0] / scene.width
  y = thing.center[1] / scene.height
  places = []
  if x < 0.36:
    places += ['on the left side', 'on the left']
  if x > 0.64:
    places += ['on the right side', 'on the right']
  if y < 0.36:
    places += ['at the top', 'at the top of the image']
  if y > 0.64:
    places += ['at the bottom', 'at the bottom of the image']
  return places or ['in the middle', 'in the center of the image']


def _backdrops(tone: str) -> list[str]:
  return [
    f'The background is {tone}.',
    f'In the background there is a {tone} surface.',
    f'The background is {tone} in color.',
  ]


def _ended(piece: Piece, mark: str) -> Piece:
  return dataclasses.replace(piece, text=piece.text + mark)


def _expression(
  scene: Scene, index: int, rng: np.random.Generator
) -> Expression | None:
  """Something true to say of a thing; it may be true of others too."""
  look = scene.things[index].look
  kind = rng.choice(len(_KINDS), p=_KINDS)
  shapeless = kind == 1 or rng.random() < 0.1
  # Most say little; who says where says little else.
  often = 0.45 if kind < 2 else 0.2
  color, size, pattern = rng.random(3) < (often + 0.15, often, often)
  dull = look.pattern == 'plain' and rng.random() < 0.5
  base = Expression(
    shape=None if shapeless else look.shape,
    color=look.color if color or shapeless else None,
    size=look.size if size else None,
    pattern=look.pattern if pattern and not dull else None,
  )
  if kind < 2:
    return base
  if kind == 2:
    sideways = size or rng.random() < 0.8
    place = _pick(rng, tuple(_PLACES if sideways else _EXTREMES))
    return dataclasses.replace(base, place=place)
  if len(scene.things) < 2:
    return None
  other = int(rng.integers(len(scene.things) - 1))
  other += other >= index
  look = scene.things[other].look
  extra = rng.integers(5)
  return dataclasses.replace(
    base,
    relation=_pick(rng, tuple(_RELATIONS)),
    anchor=Expression(
      shape=look.shape,
      color=look.color,
      size=look.size if extra == 1 else None,
      pattern=look.pattern if extra == 2 else None,
    ),
  )


def _absent(scene: Scene, rng: np.random.Generator) -> Expression | None:
  """Something true of a thing, or of its anchor, with a word or two changed."""
  index = int(rng.integers(len(scene.things)))
  expression = _expression(scene, index, rng)
  if expression is None:
    return None
  anchor = expression.anchor
  part = anchor if anchor and rng.random() < 0.5 else expression
  values = {
    name: _pick(rng, choices)
    for name, choices in _CHANGED.items()
    if getattr(part, name) and rng.random() < 0.6
  }
  # Nor does its size alone tell it from what is there.
  shown = Expression(shape=part.shape, color=part.color, pattern=part.pattern)
  if matches(dataclasses.replace(shown, **values), scene):
    return None
  changed = dataclasses.replace(part, **values)
  if part is anchor:
    return dataclasses.replace(expression, anchor=changed)
  return changed


def _related(
  relation: str, thing: Thing, anchor: Thing, scene: Scene, strict: bool
) -> bool:
  """Whether a thing is left of, right of, above or below another."""
  x, y = _offset(thing, anchor, scene)
  right, down = _RELATIONS[relation]
  along = x * right + y * down
  if not strict:
    return along > 0
  return along > _APART and along > abs(x * down + y * right)


def _furthest(place: str, among: list[int], scene: Scene) -> list[int]:
  """The one of several things for which a superlative clearly holds."""
  if len(among) < 2:
    return []
  things = [scene.things[i] for i in among]
  if place in _EXTREMES:
    values = [math.log(t.diameter) * _EXTREMES[place] for t in things]
    margin = math.log(_LARGER)
  else:
    right, down = _PLACES[place][0]
    values = [t.center[0] * right + t.center[1] * down for t in things]
    margin = _APART * max(scene.width, scene.height)
  second, first = sorted(values)[-2:]
  return [among[values.index(first)]] if first - second >= margin else []


def _offset(thing: Thing, anchor: Thing, scene: Scene) -> tuple[float, float]:
  """From the anchor to the thing, parts of the image's longer side."""
  longer = max(scene.width, scene.height)
  (x, y), (anchor_x, anchor_y) = thing.center, anchor.center
  return (x - anchor_x) / longer, (y - anchor_y) / longer


def _size_word(rng: np.random.Generator, size: str) -> str:
  other = {'small': 'little', 'large': 'big'}[size]
  return other if rng.random() < 0.15 else size


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
  return values[int(rng.integers(len(values)))]
