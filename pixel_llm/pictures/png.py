# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions over their image, as a PNG."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixel_llm.pictures import shown
from pixel_llm.pictures.colors import (
  GREY,
  INK,
  PAPER,
  Color,
  color_run,
  of_answers,
)
from pixel_llm.prediction import Box, Point, Prediction

# The longer side of a drawn image lies between these: dots and numbers need
# room on a thumbnail, and a photo of 3000 pixels needs none of its detail.
MIN_SIDE = 800
MAX_SIDE = 1280
_MIN_PANEL = 480  # Narrower text columns are hard to read.
_MAX_LINES = 8  # More captions than this run on in one paragraph.
_SUPERSAMPLING = 3  # PIL draws lines and circles without antialiasing.


def draw(
  image: np.ndarray | bytes,
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction] | None = None,
) -> Image.Image:
  """Draws predictions of one image over it, and their text below.

  Args:
    image: [H, W, 3] uint8 RGB, at any resolution, or an encoded image file.
    predictions: answers about this image, in pixels of the original file.
    truth: what the answers should have been, drawn white and dashed.

  Returns: the picture, RGB. The image stands at its top left, its longer side
    brought to between `MIN_SIDE` and `MAX_SIDE` pixels.

  Raises:
    ValueError: not such an image, or predictions of several sizes.
  """
  rgb = shown.rgb(image)
  truth = truth or ()
  size_orig = shown.size_orig(rgb, (*predictions, *truth))
  canvas = _Canvas(rgb, size_orig)
  for prediction in truth:
    if shown.is_told(prediction):
      _draw_narrative(canvas, prediction, is_truth=True)
      continue
    canvas.mask(shown.outlines(prediction), PAPER, dashed=True)
    if box := shown.box(prediction):
      canvas.box(box, PAPER, dashed=True)
  lines: list[_Line] = []
  colors = of_answers(len(predictions))
  for i, (prediction, (bright, dark)) in enumerate(zip(predictions, colors)):
    if shown.is_told(prediction):
      groups = _draw_narrative(canvas, prediction)
      lines.append(_narrative_line(prediction, groups))
      continue
    number = str(i + 1) if len(predictions) > 1 else ''
    box, clicks = shown.box(prediction), shown.clicks(prediction)
    canvas.mask(shown.outlines(prediction), bright)
    if box:
      canvas.box(box, bright)
      if number:
        canvas.box_label(box, number, bright)
    for click in clicks:
      canvas.dot(canvas.place(click), bright)
    if clicks and number:
      canvas.label(canvas.place(clicks[0]), number, bright)
    placed = bool(box or clicks)
    runs = [_Run(shown.caption(prediction), dark if placed else GREY, number)]
    many = len(predictions) > _MAX_LINES
    if lines and many:
      lines[-1].runs += runs
      continue
    if prediction.box_orig and prediction.confidence is not None and not many:
      runs.append(_Run(f'{prediction.confidence:.2f}', GREY))
    lines.append(_Line(runs, swatch=bright if placed and not number else None))
  return canvas.finish([*lines, *(_truth_line(p, predictions) for p in truth)])


@dataclasses.dataclass
class _Run:
  """Text of one color; `note` is a small number in front of it."""

  text: str
  color: Color
  note: str = ''
  separator: str = ' '


@dataclasses.dataclass
class _Line:
  """A paragraph below the image, with what stands for it in the image.

  `swatch` is the color of its box; None: nothing; dashed: a ground truth.
  """

  runs: list[_Run]
  swatch: Color | None = None
  dashed: bool = False


def _narrative_line(prediction: Prediction, starts: set[int]) -> _Line:
  """The sentence; the words that start a label have its number."""
  pieces = shown.pieces(prediction)
  colors = color_run(len(pieces), 0.52)
  return _Line(
    [
      _Run(
        word.text,
        color if shown.center(word) else GREY,
        note=str(i + 1) if i in starts else '',
        separator=separator,
      )
      for i, ((separator, word), color) in enumerate(zip(pieces, colors))
    ]
  )


def _truth_line(truth: Prediction, predictions: Sequence[Prediction]) -> _Line:
  runs = [_Run('ground truth', GREY)]
  if news := shown.news(truth, predictions):
    runs.append(_Run(news, INK))
  return _Line(runs, swatch=GREY, dashed=True)


def _draw_narrative(
  canvas: _Canvas, prediction: Prediction, is_truth: bool = False
) -> set[int]:
  """Draws the trace; returns the index of the word that starts each label."""
  words = [word for _, word in shown.pieces(prediction)]
  colors = color_run(len(words))
  placed = [
    (i, canvas.place(center), PAPER if is_truth else color)
    for i, (word, color) in enumerate(zip(words, colors))
    if (center := shown.center(word))
  ]
  canvas.trace([(xy, color) for _, xy, color in placed], dashed=is_truth)
  if is_truth:
    return set()
  # The words of one utterance share their place: one label says `3-5`.
  groups: list[tuple[list[int], Point, Color]] = []
  for i, xy, color in placed:
    canvas.dot(xy, color)
    if groups and math.dist(groups[-1][1], xy) < canvas.unit * 16:
      groups[-1][0].append(i)
    else:
      groups.append(([i], xy, color))
  for (first, *rest), xy, color in groups:
    text = f'{first + 1}-{rest[-1] + 1}' if rest else f'{first + 1}'
    canvas.label(xy, text, color)
  return {first for (first, *_), _, _ in groups}


class _Canvas:
  """An image at display size with antialiased marks in original pixels."""

  def __init__(self, rgb: np.ndarray, size_orig: tuple[int, int]):
    height, width = size_orig
    side = min(max(width, height, MIN_SIDE), MAX_SIDE)
    scale = side / max(width, height)
    self.size = max(round(width * scale), 1), max(round(height * scale), 1)
    self.scale = self.size[0] / width, self.size[1] / height
    self.unit = side / 800  # One pixel of a drawing of 800.
    self.image = Image.fromarray(rgb).resize(
      self.size, Image.Resampling.BICUBIC
    )
    over = self.size[0] * _SUPERSAMPLING, self.size[1] * _SUPERSAMPLING
    self._marks = Image.new('RGBA', over)
    self._draw = ImageDraw.Draw(self._marks)
    # Of each its text, color and places as (left, top), the best first, as
    # functions of its width and height.
    self._labels: list[tuple[str, Color, list[_Place]]] = []
    self._dots: list[Box] = []

  def place(self, xy: Point) -> Point:
    """Original pixels to pixels of the drawing."""
    return xy[0] * self.scale[0], xy[1] * self.scale[1]

  def _width(self, units: float) -> int:
    return max(round(units * self.unit * _SUPERSAMPLING), 1)

  def _line(
    self,
    points: list[Point],
    color: Color,
    dashed: bool,
    thickness: float = 2,
  ) -> None:
    """A line with a dark border on both sides, whole or dashed."""
    points = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points]
    halo = (*INK, 190)
    width = self._width(thickness)
    border = self._width(thickness + 2.2)
    self._draw.line(points, fill=halo, width=border, joint='curve')
    if not dashed:
      self._draw.line(points, fill=color, width=width, joint='curve')
      return
    dash = self._width(8)
    behind = 0.0  # Dashes go on around corners.
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
      length = math.dist((x0, y0), (x1, y1))
      at = -(behind % (2 * dash))
      while at < length:
        t0, t1 = max(at, 0) / length, min(at + dash, length) / length
        if t1 > t0:
          self._draw.line(
            [
              (x0 + (x1 - x0) * t0, y0 + (y1 - y0) * t0),
              (x0 + (x1 - x0) * t1, y0 + (y1 - y0) * t1),
            ],
            fill=color,
            width=width,
          )
        at += 2 * dash
      behind += length

  def trace(
    self, points: Sequence[tuple[Point, Color]], dashed: bool = False
  ) -> None:
    """A thin line from point to point, each piece in its end's color."""
    for (start, _), (end, color) in itertools.pairwise(points):
      self._line([start, end], color, dashed)

  def dot(self, xy: Point, color: Color) -> None:
    """A filled circle with a dark border at a point of the drawing."""
    center = xy[0] * _SUPERSAMPLING, xy[1] * _SUPERSAMPLING
    self._draw.circle(center, self._width(7), fill=INK)
    self._draw.circle(center, self._width(5), fill=color)
    r = 6 * self.unit
    self._dots.append((xy[0] - r, xy[1] - r, xy[0] + r, xy[1] + r))

  def box(self, box: Box, color: Color, dashed: bool = False) -> None:
    """A rectangle given in original pixels."""
    x0, y0 = self.place((box[0], box[1]))
    x1, y1 = self.place((box[2], box[3]))
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    self._line(corners, color, dashed, thickness=3)

  def mask(
    self, outlines: Sequence[np.ndarray], color: Color, dashed: bool = False
  ) -> None:
    """A tinted area, given by outlines in original pixels."""
    if not outlines:
      return
    lines = [
      [self.place((x, y)) for x, y in outline.tolist()] for outline in outlines
    ]
    inside = np.zeros(self.size[::-1], np.uint8)
    # Sixteenths of pixels; what is inside two outlines is a hole.
    corners = [
      np.rint(np.multiply(line, 16)).astype(np.int32) for line in lines
    ]
    cv2.fillPoly(inside, corners, 255, cv2.LINE_AA, 4)
    share = 0.2 if dashed else 0.45
    tint = Image.new('RGB', self.size, color)
    alpha = Image.fromarray((inside * share).astype(np.uint8))
    self.image.paste(tint, (0, 0), alpha)
    for line in lines:
      self._line([*line, line[0]], color, dashed, thickness=1.5)

  def label(self, xy: Point, text: str, color: Color) -> None:
    """A chip of text near a point of the drawing; placed by `finish`."""
    away = 8 * self.unit
    x, y = xy
    self._labels.append(
      (
        text,
        color,
        [
          lambda w, h, dx=dx, dy=dy: (
            x + dx * (w / 2 + away) - w / 2,
            y + dy * (h / 2 + away) - h / 2,
          )
          for dx, dy in _LABEL_PLACES
        ],
      )
    )

  def box_label(self, box: Box, text: str, color: Color) -> None:
    """A chip of text in or at a corner of a box, given in original pixels."""
    x0, y0 = self.place((box[0], box[1]))
    x1, y1 = self.place((box[2], box[3]))
    self._labels.append(
      (
        text,
        color,
        [
          lambda w, h: (x0, y0),
          lambda w, h: (x1 - w, y0),
          lambda w, h: (x0, y1 - h),
          lambda w, h: (x1 - w, y1 - h),
          lambda w, h: (x0, y0 - h),
          lambda w, h: (x1 - w, y0 - h),
          lambda w, h: (x0 - w, y0),
          lambda w, h: (x1, y0),
          lambda w, h: (x0, y1),
          lambda w, h: ((x0 + x1 - w) / 2, y0),
        ],
      )
    )

  def finish(self, lines: Sequence[_Line]) -> Image.Image:
    """Puts labels where they hide no other, and the text below."""
    picture = self.image.convert('RGB')
    marks = self._marks.resize(self.size, Image.Resampling.BOX)
    picture.paste(marks, (0, 0), marks)
    self._place_labels(ImageDraw.Draw(picture))
    return _with_text(picture, lines, self.unit)

  def _place_labels(self, pen: ImageDraw.ImageDraw) -> None:
    font = ImageFont.load_default(size=12 * self.unit)
    pad = 2 * self.unit
    taken = list(self._dots)
    for text, color, places in self._labels:
      left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
      width, height = right - left + 2 * pad, bottom - top + 2 * pad
      best, least = None, math.inf
      for place in places:
        # Within the image as far as there is room.
        x0, y0 = (
          min(max(at, 0), max(side - length - 1, 0))
          for at, side, length in zip(
            place(width, height), self.size, (width, height), strict=True
          )
        )
        spot = x0, y0, x0 + width, y0 + height
        hidden = sum(_overlap(spot, other) for other in taken)
        if hidden < least:
          best, least = spot, hidden
        if not hidden:
          break
      assert best is not None
      taken.append(best)
      pen.rounded_rectangle(best, radius=pad, fill=color, outline=INK)
      at = best[0] + pad - left, best[1] + pad - top
      pen.text(at, text, fill=INK, font=font)


# (width, height) of a label -> its left and top.
_Place = Callable[[float, float], tuple[float, float]]
# Where a label may stand beside its point, best first.
_LABEL_PLACES = (
  (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0),
  (2, 0), (-2, 0), (0, -2), (0, 2), (2, 2), (-2, 2), (2, -2), (-2, -2),
  (3, 0), (-3, 0), (0, 4), (0, -4),
)  # fmt: skip


def _overlap(a: Box, b: Box) -> float:
  """Pixels that two boxes share."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  return max(width, 0) * max(height, 0)


def _with_text(
  picture: Image.Image, lines: Sequence[_Line], unit: float
) -> Image.Image:
  """The picture with paragraphs below it, wrapped to its width."""
  if not lines:
    return picture
  size = max(18 * unit, 15)
  font = ImageFont.load_default(size=size)
  width = max(picture.width, _MIN_PANEL)
  margin = round(size * 0.8)
  step = round(size * 1.5)
  blank = font.getlength(' ')
  note_font = ImageFont.load_default(size=size * 0.6)
  texts: list[tuple[Point, str, Color, bool]] = []
  swatches: list[tuple[Point, _Line]] = []
  y = margin
  for line in lines:
    start = x = margin + (round(size * 1.3) if line.swatch else 0)
    swatches.append(((margin, y), line))
    for run in line.runs:
      for i, part in enumerate(run.text.split()):
        for j, chunk in enumerate(_chunks(part, font, width - margin - start)):
          note = '' if i or j else run.note
          note_length = note_font.getlength(note) + size * 0.1 if note else 0
          length = font.getlength(chunk)
          gap = blank if x > start and (run.separator or i) and not j else 0
          if x > start and x + gap + note_length + length > width - margin:
            x, y, gap = start, y + step, 0
          x += gap
          texts.append(((x, y), note, GREY, True))
          x += note_length
          texts.append(((x, y), chunk, run.color, False))
          x += length
    y += step + round(size * 0.3)
  height = picture.height + round(y + margin / 2)
  result = Image.new('RGB', (width, height), PAPER)
  result.paste(picture, (0, 0))
  pen = ImageDraw.Draw(result)
  top = picture.height
  for (x, y), line in swatches:
    x1, y0, y1 = x + size * 0.8, top + y + size * 0.3, top + y + size * 1.1
    if line.dashed:
      middle = (y0 + y1) / 2
      for x0 in (x, x + size * 0.5):
        spot = x0, middle - size * 0.08, x0 + size * 0.3, middle + size * 0.08
        pen.rectangle(spot, fill=GREY)
    elif line.swatch:
      pen.rectangle((x, y0, x1, y1), fill=line.swatch, outline=INK)
  for (x, y), text, color, is_note in texts:
    if is_note:
      pen.text((x, top + y), text, fill=color, font=note_font)
    else:
      pen.text((x, top + y), text, fill=color, font=font)
  return result


def _chunks(
  text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[str]:
  """Cuts a word that is wider than the line."""
  chunks = ['']
  for letter in text:
    if chunks[-1] and font.getlength(chunks[-1] + letter) > width:
      chunks.append('')
    chunks[-1] += letter
  return chunks
