# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The host's answer for one image: text, and where it is in the file.

Everything here is in pixels of the original, upright file, so that a reader
needs to know neither the network's input size nor its padding. A ground truth
has the same form as an answer, which lets pictures show both alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from pixel_llm import masks

Kind: TypeAlias = Literal[
  'narrate', 'caption', 'caption_at', 'refer', 'segment', 'dense_caption'
]
# Questions whose answer has a box, or none if the thing is not there.
FINDS = ('refer', 'segment')
# From this confidence on what was asked for is taken to be there, where no
# evaluation has found a better one.
THERE = 0.5
Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Word:
  """One word of the text and its place.

  Attributes:
    text: as it is shown, punctuation included, without spaces around it.
    points_orig: P points, xy, pixels of the original file; for narrate the two
      corners of the word's place. Empty when the word has no place.
    score: log probability of the word.
  """

  text: str
  points_orig: tuple[Point, ...] = ()
  score: float = 0.0

  @property
  def confidence(self) -> float:
    """Probability of the word."""
    return min(math.exp(self.score), 1.0)

  @property
  def center_orig(self) -> Point | None:
    """Mean of the points, xy; None when the word has no place."""
    if not self.points_orig:
      return None
    xs, ys = zip(*self.points_orig, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)

  @property
  def box_orig(self) -> Box | None:
    """Smallest box around the points, xyxy; None when there are none."""
    if not self.points_orig:
      return None
    xs, ys = zip(*self.points_orig, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What was said of one image, or what should have been said.

  Attributes:
    kind: what was asked.
    image: path or id of the image.
    size_orig: (height, width) of the upright file, pixels.
    text: the whole answer; empty for refer and segment.
    words: the words of `text` in order, each with its place.
    box_orig: the box answered (refer, segment, dense_caption), xyxy, pixels of
      the original file.
    prompt: the text asked about: the expression of refer and segment.
    prompt_box_orig: the box asked about (caption_at), xyxy, pixels of the
      original file.
    score: log probability of the answer as decoding ranks it.
    prompt_points_orig: the points asked about (caption_at), xy, pixels of the
      original file.
    mask_orig: the pixels answered (segment), on the upright file, as in
      `masks`.
    confidence: in [0, 1], None where the network has no say: of refer and
      segment the probability that it is there, of dense_caption that there is a
      thing, of a text the geometric mean of its tokens' probabilities.
    there: whether what refer and segment asked for is taken to be in the image;
      None where the network has no say.
  """

  kind: Kind
  image: str
  size_orig: tuple[int, int]
  text: str = ''
  words: tuple[Word, ...] = ()
  box_orig: Box | None = None
  prompt: str = ''
  prompt_box_orig: Box | None = None
  score: float = 0.0
  prompt_points_orig: tuple[Point, ...] = ()
  mask_orig: bytes | None = None
  confidence: float | None = None
  there: bool | None = None

  def __post_init__(self) -> None:
    if self.kind not in get_args(Kind):
      raise ValueError(
        f'Prediction.kind: expected one of {", ".join(get_args(Kind))}, got '
        f'{self.kind!r}.'
      )
    if len(self.size_orig) != 2 or min(self.size_orig) < 1:
      raise ValueError(
        'Prediction.size_orig: expected (height, width) of at least one '
        f'pixel, got {self.size_orig!r}.'
      )

  def to_json(self) -> dict[str, Any]:
    """The answer as plain JSON values, for users and for files.

    As `prediction.schema.json` beside this file has it. Points and centers are
    [x, y] and boxes [x0, y0, x1, y1], all in pixels of the original file
    (upright, origin at the top left), to 2 decimals; scores are log
    probabilities and confidences probabilities, to 4; a mask is COCO's RLE.
    What does not exist is null or an empty list.

    Raises:
      ValueError: a coordinate or score is not finite, which JSON cannot hold.
    """
    height, width = self.size_orig
    words = []
    for i, word in enumerate(self.words):
      where = f'words[{i}] ({word.text!r})'
      words.append(
        {
          'text': word.text,
          'score': _round(word.score, 4, f'{where}.score'),
          'confidence': _round(word.confidence, 4, f'{where}.score'),
          'points': [_pixels(p, f'{where}.points') for p in word.points_orig],
          'center': _pixels(word.center_orig, f'{where}.center'),
        }
      )
    return {
      'kind': self.kind,
      'image': self.image,
      'image_size': {'width': int(width), 'height': int(height)},
      'text': self.text,
      'score': _round(self.score, 4, 'score'),
      'confidence': None
      if self.confidence is None
      else _round(self.confidence, 4, 'confidence'),
      'there': self.there,
      'prompt': self.prompt,
      'prompt_box': _pixels(self.prompt_box_orig, 'prompt_box'),
      'prompt_points': [
        _pixels(p, 'prompt_points') for p in self.prompt_points_orig
      ],
      'box': _pixels(self.box_orig, 'box'),
      'mask': None
      if self.mask_orig is None
      else {
        'size': [int(height), int(width)],
        'counts': self.mask_orig.decode('ascii'),
      },
      'words': words,
    }

  @classmethod
  def from_json(cls, row: dict[str, Any]) -> Prediction:
    """Reads what `to_json` wrote (centers follow from the points).

    Raises:
      ValueError: a field is missing or holds something else; the message names
        the field.
    """
    if not isinstance(row, dict):
      raise ValueError(f'prediction: expected a JSON object, got {row!r}.')
    size = _field(row, 'image_size', dict)
    words = []
    for i, word in enumerate(_field(row, 'words', list)):
      where = f'words[{i}].'
      if not isinstance(word, dict):
        raise ValueError(
          f'prediction words[{i}]: expected an object, got {word!r}.'
        )
      words.append(
        Word(
          text=_field(word, 'text', str, where),
          points_orig=tuple(
            _numbers(p, 2, f'{where}points')
            for p in _field(word, 'points', list, where)
          ),
          score=_number(_field(word, 'score', object, where), f'{where}score'),
        )
      )
    box, prompt_box = (
      None if row.get(key) is None else _numbers(row[key], 4, key)
      for key in ('box', 'prompt_box')
    )
    size_orig = (
      _field(size, 'height', int, 'image_size.'),
      _field(size, 'width', int, 'image_size.'),
    )
    confidence, mask = row.get('confidence'), row.get('mask')
    there = row.get('there')
    if not (there is None or isinstance(there, bool)):
      raise ValueError(
        f'prediction there: expected true, false or null, got {there!r}.'
      )
    return cls(
      kind=_field(row, 'kind', object),
      image=_field(row, 'image', str),
      size_orig=size_orig,
      text=_field(row, 'text', str),
      words=tuple(words),
      box_orig=box,
      prompt=_field(row, 'prompt', str),
      prompt_box_orig=prompt_box,
      score=_number(_field(row, 'score', object), 'score'),
      prompt_points_orig=tuple(
        _numbers(p, 2, 'prompt_points') for p in row.get('prompt_points') or ()
      ),
      mask_orig=None if mask is None else _mask(mask, size_orig),
      confidence=None
      if confidence is None
      else _number(confidence, 'confidence'),
      there=there,
    )


def _mask(value: Any, size_orig: tuple[int, int]) -> bytes:
  if not isinstance(value, dict) or value.get('size') != list(size_orig):
    raise ValueError(
      f"prediction mask: expected COCO's RLE of the size {list(size_orig)}, "
      f'got {str(value)[:80]}.'
    )
  try:
    return masks.from_counts(_field(value, 'counts', str, 'mask.'), size_orig)
  except (UnicodeEncodeError, ValueError) as e:
    raise ValueError(f'prediction {e}') from e


def _round(value: float, digits: int, where: str) -> float:
  if not math.isfinite(value):
    raise ValueError(
      f'prediction {where}: expected a finite number, got {value!r}.'
    )
  return round(float(value), digits)


def _pixels(values: Sequence[float] | None, where: str) -> list[float] | None:
  if values is None:
    return None
  return [_round(v, 2, where) for v in values]


def _field(row: dict[str, Any], key: str, kind: type, prefix: str = '') -> Any:
  if key not in row:
    raise ValueError(
      f'prediction {prefix}{key}: missing; there are {", ".join(sorted(row))}.'
    )
  if not isinstance(row[key], kind):
    raise ValueError(
      f'prediction {prefix}{key}: expected {kind.__name__}, got {row[key]!r}.'
    )
  return row[key]


def _number(value: Any, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(f'prediction {where}: expected a number, got {value!r}.')
  return float(value)


def _numbers(values: Any, count: int, where: str) -> Any:
  if not isinstance(values, list) or len(values) != count:
    raise ValueError(
      f'prediction {where}: expected {count} numbers, got {values!r}.'
    )
  return tuple(_number(v, where) for v in values)
