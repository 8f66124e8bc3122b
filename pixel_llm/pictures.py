# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions over their image: a PNG, or an HTML page that can be hovered.

Every word of a narrative has a color of a run that goes along the sentence, as
in the paper's figures; its dot on the image has the same hue. Ground truth is
white and dashed (boxes), or stands beside (narratives).
"""

from __future__ import annotations

import base64
import dataclasses
import html as escaping
import io
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixel_llm import files
from pixel_llm.image import decode
from pixel_llm.prediction import Box, Point, Prediction, Word

Color = tuple[int, int, int]

# The longer side of a drawn image lies between these: dots and numbers need
# room on a thumbnail, and a photo of 3000 pixels needs none of its detail.
MIN_SIDE = 800
MAX_SIDE = 1280
_MIN_PANEL = 480  # Narrower text columns are hard to read.
_MAX_LINES = 8  # More captions than this run on in one paragraph.
_SUPERSAMPLING = 3  # PIL draws lines and circles without antialiasing.
_INK: Color = (20, 22, 26)
_PAPER: Color = (255, 255, 255)
_GREY: Color = (118, 122, 130)


def color_run(count: int, lightness: float = 0.76) -> list[Color]:
  """Colors along a sentence: violet, blue, green, yellow, red.

  The hue turns evenly in OKLCH at one lightness, so that neighbors look alike,
  no color stands out and all of them can be read on the same background.

  Args:
    count: number of colors.
    lightness: OKLab L, in [0, 1].

  Returns: `count` RGB triples, 0 to 255.

  Source: B. Ottosson, "A perceptual color space for image processing" (2020),
    for the matrices.
  """
  colors = []
  for i in range(count):
    hue = math.radians(295 - 270 * i / max(count - 1, 1))
    # More would be livelier where sRGB has it, but step unevenly.
    chroma = 0.15
    rgb = _oklch(lightness, chroma, hue)
    # sRGB holds less chroma at some hues: step back until it fits.
    while chroma > 0 and not all(0 <= v <= 1 for v in rgb):
      chroma -= 0.005
      rgb = _oklch(lightness, chroma, hue)
    r, g, b = (round(255 * min(max(v, 0), 1)) for v in rgb)
    colors.append((r, g, b))
  return colors


def _oklch(lightness: float, chroma: float, hue: float) -> list[float]:
  a, b = chroma * math.cos(hue), chroma * math.sin(hue)
  long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
  medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
  short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
  linear = (
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
  )
  return [
    12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055
    for v in linear
  ]


def _hex(color: Color) -> str:
  return '#{:02x}{:02x}{:02x}'.format(*color)


# What is shown of a prediction.


def _center(word: Word) -> Point | None:
  """The word's point; a place that is not finite is shown as no place."""
  center = word.center_orig
  if center is None or not all(map(math.isfinite, center)):
    return None
  return center


def _box(prediction: Prediction) -> Box | None:
  box = prediction.box_orig
  if prediction.kind == 'caption_at':
    box = prediction.prompt_box_orig
  if box is None or not all(map(math.isfinite, box)):
    return None
  return _ordered(box)


def _ordered(box: Box) -> Box:
  x0, y0, x1, y1 = box
  return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _caption(prediction: Prediction) -> str:
  return prediction.prompt if prediction.kind == 'refer' else prediction.text


def _news(truth: Prediction, predictions: Sequence[Prediction]) -> str:
  """The true text; '' when it only repeats the expression asked about."""
  if truth.kind == 'refer' and truth.prompt in {p.prompt for p in predictions}:
    return ''
  return _caption(truth)


def _pieces(prediction: Prediction) -> list[tuple[str, Word]]:
  """Each word with what stands before it in the text: a space or nothing."""
  if not prediction.words:
    return [('', Word(prediction.text))] if prediction.text else []
  pieces = []
  end = 0
  for word in prediction.words:
    begin = prediction.text.find(word.text, end)
    if begin < 0 or prediction.text[end:begin].strip():
      separator = ' '
    else:
      separator = ' ' if begin > end else ''
      end = begin + len(word.text)
    pieces.append((separator if pieces else '', word))
  return pieces


def _is_told(prediction: Prediction) -> bool:
  return prediction.kind == 'narrate'


def _size_orig(
  image: np.ndarray, predictions: Iterable[Prediction]
) -> tuple[int, int]:
  """The (height, width) in which the predictions speak; the image may differ.

  Raises:
    ValueError: the predictions are of images of different sizes.
  """
  sizes = {(int(p.size_orig[0]), int(p.size_orig[1])) for p in predictions}
  if len(sizes) > 1:
    raise ValueError(
      'picture: expected predictions of one image, got the sizes '
      f'{sorted(sizes)}.'
    )
  return sizes.pop() if sizes else (image.shape[0], image.shape[1])


def _rgb(image: np.ndarray | bytes) -> np.ndarray:
  """[H, W, 3] uint8 of an array, or of an encoded file, set upright."""
  if isinstance(image, bytes):
    return decode(image, 'picture')
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
    raise ValueError(
      f'picture: expected an image [H, W, 3] uint8, got {image.shape} '
      f'{image.dtype}.'
    )
  return image


# PNG.


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
  rgb = _rgb(image)
  truth = truth or ()
  size_orig = _size_orig(rgb, (*predictions, *truth))
  canvas = _Canvas(rgb, size_orig)
  for prediction in truth:
    if _is_told(prediction):
      _draw_narrative(canvas, prediction, is_truth=True)
    elif box := _box(prediction):
      canvas.box(box, _PAPER, dashed=True)
  lines: list[_Line] = []
  colors = _prediction_colors(predictions)
  for i, (prediction, (bright, dark)) in enumerate(zip(predictions, colors)):
    if _is_told(prediction):
      groups = _draw_narrative(canvas, prediction)
      lines.append(_narrative_line(prediction, groups))
      continue
    number = str(i + 1) if len(predictions) > 1 else ''
    box = _box(prediction)
    if box:
      canvas.box(box, bright)
      if number:
        canvas.label(canvas.place((box[0], box[1])), number, bright)
    run = _Run(_caption(prediction), dark if box else _GREY, note=number)
    if lines and len(predictions) > _MAX_LINES:
      lines[-1].runs.append(run)
    else:
      lines.append(_Line([run], swatch=bright if box and not number else None))
  return canvas.finish([*lines, *(_truth_line(p, predictions) for p in truth)])


def _prediction_colors(
  predictions: Sequence[Prediction],
) -> list[tuple[Color, Color]]:
  """A bright color for the image and a dark one for text, for each."""
  count = len(predictions)
  # Without the pale violet at the start: a single box is red.
  bright, dark = color_run(count + 1), color_run(count + 1, 0.52)
  return list(zip(bright[1:], dark[1:], strict=True))


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
  pieces = _pieces(prediction)
  colors = color_run(len(pieces), 0.52)
  return _Line(
    [
      _Run(
        word.text,
        color if _center(word) else _GREY,
        note=str(i + 1) if i in starts else '',
        separator=separator,
      )
      for i, ((separator, word), color) in enumerate(zip(pieces, colors))
    ]
  )


def _truth_line(truth: Prediction, predictions: Sequence[Prediction]) -> _Line:
  runs = [_Run('ground truth', _GREY)]
  if news := _news(truth, predictions):
    runs.append(_Run(news, _INK))
  return _Line(runs, swatch=_GREY, dashed=True)


def _draw_narrative(
  canvas: _Canvas, prediction: Prediction, is_truth: bool = False
) -> set[int]:
  """Draws the trace; returns the index of the word that starts each label."""
  words = [word for _, word in _pieces(prediction)]
  colors = color_run(len(words))
  placed = [
    (i, canvas.place(center), _PAPER if is_truth else color)
    for i, (word, color) in enumerate(zip(words, colors))
    if (center := _center(word))
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
    self._labels: list[tuple[Point, str, Color]] = []
    self._dots: list[Box] = []

  def place(self, xy: Point) -> Point:
    """Original pixels to pixels of the drawing."""
    return xy[0] * self.scale[0], xy[1] * self.scale[1]

  def _width(self, units: float) -> int:
    return max(round(units * self.unit * _SUPERSAMPLING), 1)

  def _line(
    self, points: list[Point], color: Color, dashed: bool, thickness: float = 2
  ) -> None:
    """A line with a dark border on both sides, whole or dashed."""
    points = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points]
    halo = (*_INK, 190)
    width = self._width(thickness)
    border = self._width(thickness + 2.2)
    self._draw.line(points, fill=halo, width=border, joint='curve')
    if not dashed:
      self._draw.line(points, fill=color, width=width, joint='curve')
      return
    dash = self._width(8)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
      length = math.dist((x0, y0), (x1, y1))
      for at in range(0, int(length), 2 * dash):
        t0, t1 = at / length, min(at + dash, length) / length
        self._draw.line(
          [
            (x0 + (x1 - x0) * t0, y0 + (y1 - y0) * t0),
            (x0 + (x1 - x0) * t1, y0 + (y1 - y0) * t1),
          ],
          fill=color,
          width=width,
        )

  def trace(
    self, points: Sequence[tuple[Point, Color]], dashed: bool = False
  ) -> None:
    """A thin line from point to point, each piece in its end's color."""
    for (start, _), (end, color) in itertools.pairwise(points):
      self._line([start, end], color, dashed)

  def dot(self, xy: Point, color: Color) -> None:
    """A filled circle with a dark border at a point of the drawing."""
    center = xy[0] * _SUPERSAMPLING, xy[1] * _SUPERSAMPLING
    self._draw.circle(center, self._width(7), fill=_INK)
    self._draw.circle(center, self._width(5), fill=color)
    r = 6 * self.unit
    self._dots.append((xy[0] - r, xy[1] - r, xy[0] + r, xy[1] + r))

  def box(self, box: Box, color: Color, dashed: bool = False) -> None:
    """A rectangle given in original pixels."""
    x0, y0 = self.place((box[0], box[1]))
    x1, y1 = self.place((box[2], box[3]))
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    self._line(corners, color, dashed, thickness=3)

  def label(self, xy: Point, text: str, color: Color) -> None:
    """A chip of text near a point of the drawing; placed by `finish`."""
    self._labels.append((xy, text, color))

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
    away = 8 * self.unit
    taken = list(self._dots)
    for (x, y), text, color in self._labels:
      left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
      width, height = right - left + 2 * pad, bottom - top + 2 * pad
      for dx, dy in _LABEL_PLACES:
        x0 = x + dx * (width / 2 + away) - width / 2
        y0 = y + dy * (height / 2 + away) - height / 2
        spot = x0, y0, x0 + width, y0 + height
        inside = (
          x0 >= 0
          and y0 >= 0
          and spot[2] <= self.size[0]
          and spot[3] <= self.size[1]
        )
        if inside and not any(_overlap(spot, other) for other in taken):
          taken.append(spot)
          pen.rounded_rectangle(spot, radius=pad, fill=color, outline=_INK)
          pen.text(
            (x0 + pad - left, y0 + pad - top), text, fill=_INK, font=font
          )
          break


# Where a label may stand beside its point, best first.
_LABEL_PLACES = (
  (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0),
  (2, 0), (-2, 0), (0, -2), (0, 2),
)  # fmt: skip


def _overlap(a: Box, b: Box) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
          texts.append(((x, y), note, _GREY, True))
          x += note_length
          texts.append(((x, y), chunk, run.color, False))
          x += length
    y += step + round(size * 0.3)
  height = picture.height + round(y + margin / 2)
  result = Image.new('RGB', (width, height), _PAPER)
  result.paste(picture, (0, 0))
  pen = ImageDraw.Draw(result)
  top = picture.height
  for (x, y), line in swatches:
    x1, y0, y1 = x + size * 0.8, top + y + size * 0.3, top + y + size * 1.1
    if line.dashed:
      middle = (y0 + y1) / 2
      for x0 in (x, x + size * 0.5):
        spot = x0, middle - size * 0.08, x0 + size * 0.3, middle + size * 0.08
        pen.rectangle(spot, fill=_GREY)
    elif line.swatch:
      pen.rectangle((x, y0, x1, y1), fill=line.swatch, outline=_INK)
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


# HTML.

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #17191d;
  --soft: #5f646d; --rule: #dcdfe4; --wash: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a;
  --ink: #e8eaed; --soft: #9aa0a9; --rule: #33373d; --wash: #1f2227; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
.picture { margin: 0; display: grid; gap: 1rem 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.pane { min-width: 0; max-width: 60rem; }
.pane svg.stage { display: block; width: 100%; max-height: 82vh;
  border-radius: 4px; background: var(--wash); touch-action: pan-y; }
.said { margin: 0; overflow-wrap: anywhere; }
.role, .where { color: var(--soft); font-size: .82rem; }
.role { margin-right: .4em; }
.where { margin: .15rem 0 0; min-height: 1.5em;
  font-variant-numeric: tabular-nums; }
.word { color: var(--dark, var(--soft)); border-radius: 3px; cursor: default; }
@media (prefers-color-scheme: dark) { .word { color: var(--bright,
  var(--soft)); } }
.word.hit, .word:focus-visible { outline: 2px solid currentColor;
  outline-offset: 1px; background: var(--wash); }
.entry { display: block; break-inside: avoid; }
.many { columns: 17rem; }
.mark circle { fill: var(--bright); stroke: #14161a;
  vector-effect: non-scaling-stroke; stroke-width: 1.5px; }
.mark rect { fill: none; stroke: var(--bright); stroke-width: 2.5px;
  vector-effect: non-scaling-stroke; }
.mark rect.under { stroke: #14161a; stroke-width: 5px; opacity: .7; }
.mark.dashed rect:not(.under) { stroke: #fff; stroke-dasharray: 7 5; }
.mark.placed rect { display: none; }
.trace line { stroke: var(--bright); stroke-width: 1.6px;
  vector-effect: non-scaling-stroke; }
.trace line.under { stroke: #14161a; stroke-width: 3.6px; opacity: .65; }
.stage.on .mark:not(.hit), .stage.on .trace { opacity: .16; }
.stage .mark.hit rect { display: inline; }
.mark circle { transform-box: fill-box; transform-origin: center; }
.stage .mark.hit circle { transform: scale(1.4); stroke-width: 2.5px; }
"""

# A mark and the words that belong together carry the same data-key within
# their pane. Keys, not positions, link them: the words of a wrapped sentence
# and the dots on the image have nothing else in common.
SCRIPT = """
for (const pane of document.querySelectorAll('.pane')) {
  const stage = pane.querySelector('.stage');
  const where = pane.querySelector('.where');
  const words = [...pane.querySelectorAll('.word[data-key]')];
  const marks = [...stage.querySelectorAll('.mark')].map(mark => ({
    mark, key: mark.dataset.key, box: mark.dataset.box.split(' ').map(Number),
    placed: mark.classList.contains('placed') }));
  const show = keys => {
    const here = [];
    for (const {mark, key} of marks) {
      const hit = keys.includes(key);
      mark.classList.toggle('hit', hit);
      if (hit) here.push(mark.dataset.where);
    }
    for (const word of words)
      word.classList.toggle('hit', keys.includes(word.dataset.key));
    stage.classList.toggle('on', marks.some(m => keys.includes(m.key)));
    where.textContent = here.slice(0, 3).join(', ');
  };
  for (const word of words) {
    for (const event of ['pointerenter', 'focus'])
      word.addEventListener(event, () => show([word.dataset.key]));
    for (const event of ['pointerleave', 'blur'])
      word.addEventListener(event, () => show([]));
  }
  const nearest = event => {
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(stage.getScreenCTM().inverse());
    const size = stage.viewBox.baseVal;
    const near = Math.hypot(size.width, size.height) * 0.012;
    // Inside a box its center counts as near, the smaller the box the nearer.
    const all = marks.map(({key, box: [x0, y0, x1, y1], placed}) => {
      const inside = !placed && x0 <= at.x && at.x <= x1 && y0 <= at.y
        && at.y <= y1;
      return {key, far: inside ? -1 / (1 + (x1 - x0) * (y1 - y0))
        : Math.hypot(at.x - (x0 + x1) / 2, at.y - (y0 + y1) / 2)};
    });
    const best = Math.min(...all.map(m => m.far));
    return all.filter(m => m.far <= (best < 0 ? best : best + near))
      .map(m => m.key);
  };
  stage.addEventListener('pointermove', event => show(nearest(event)));
  stage.addEventListener('pointerdown', event => show(nearest(event)));
  stage.addEventListener('pointerleave', () => show([]));
}
"""


def html(
  image: np.ndarray | bytes,
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction] | None = None,
  title: str = '',
) -> str:
  """One HTML page with everything in it, to be hovered or tabbed through.

  Args:
    image: as in `draw`.
    predictions: as in `draw`.
    truth: as in `draw`; true narratives stand beside, with their own trace.
    title: of the page; plain text.

  Returns: the page.

  Raises:
    ValueError: not such an image, or predictions of several sizes.
  """
  return page(title, figure(image, predictions, truth))


def page(title: str, body: str, style: str = '', script: str = '') -> str:
  """A page around HTML that `figure` wrote; its style and script included."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n'
    f'<body>\n<h1>{_text(title)}</h1>\n{body}\n'
    f'<script>{SCRIPT}{script}</script>\n</body>\n</html>\n'
  )


def figure(
  image: np.ndarray | bytes,
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction] | None = None,
  name: str = 'image',
  max_side: int = MAX_SIDE,
) -> str:
  """The HTML of predictions over their image, for a `page`.

  Args:
    image: as in `draw`; it becomes a JPEG of quality 85 inside the HTML.
    predictions: as in `draw`.
    truth: as in `html`.
    name: an id that no other figure of the page has.
    max_side: longer side of the JPEG, pixels; a larger image is shrunk.

  Returns: one `<figure>` element.

  Raises:
    ValueError: not such an image, or predictions of several sizes.
  """
  rgb = _rgb(image)
  truth = truth or ()
  size_orig = _size_orig(rgb, (*predictions, *truth))
  height, width = size_orig
  picture = (
    f'<image id="{_text(name)}" width="{width}" height="{height}" '
    f'preserveAspectRatio="none" href="{_data_uri(rgb, max_side)}"/>'
  )
  # The second pane shows the same pixels without holding them again.
  again = f'<use href="#{_text(name)}"/>'
  panes = []
  boxes = [p for p in predictions if not _is_told(p)]
  true_boxes = [p for p in truth if not _is_told(p)]
  if boxes or true_boxes:
    panes.append(_boxes(boxes, true_boxes))
  panes += [_narrative(p, size_orig, '') for p in predictions if _is_told(p)]
  panes += [
    _narrative(p, size_orig, 'ground truth') for p in truth if _is_told(p)
  ]
  shown = []
  for i, (marks, text) in enumerate(panes or [('', '')]):
    shown.append(
      f'<div class="pane">\n<svg class="stage" viewBox="0 0 {width} {height}" '
      f'role="img" aria-label="{_text(_alternative(predictions))}">\n'
      f'{again if i else picture}\n{marks}</svg>\n'
      f'<p class="where" aria-live="polite"></p>\n{text}</div>\n'
    )
  return f'<figure class="picture">\n{"".join(shown)}</figure>\n'


def _text(text: str) -> str:
  return escaping.escape(text, quote=True)


def _alternative(predictions: Sequence[Prediction]) -> str:
  images = dict.fromkeys(p.image for p in predictions)
  return 'Image ' + ', '.join(images)


def _data_uri(rgb: np.ndarray, max_side: int) -> str:
  picture = Image.fromarray(rgb)
  picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, 'JPEG', quality=85, optimize=True)
  return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def style_of(bright: Color, dark: Color) -> str:
  """The attribute that gives a mark or a word its colors."""
  return f'style="--bright:{_hex(bright)};--dark:{_hex(dark)}"'


def _number(value: float) -> str:
  return f'{value:.2f}'.rstrip('0').rstrip('.')


def _rect(box: Box, kind: str = '') -> str:
  x0, y0, x1, y1 = box
  return (
    f'<rect{kind} x="{_number(x0)}" y="{_number(y0)}" '
    f'width="{_number(x1 - x0)}" height="{_number(y1 - y0)}"/>'
  )


def mark_of(
  key: str, style: str, kind: str, box: Box, where: str, shape: str = ''
) -> str:
  """A box over the image, as SVG.

  Args:
    key: of the words that belong to it, their `data-key`.
    style: as of `style_of`, or ''.
    kind: 'dashed'; 'placed' for a box that shows while its word is pointed at;
      or ''.
    box: xyxy, in the pixels of the picture.
    where: what is said of it while it is pointed at.
    shape: SVG that goes with it.
  """
  return (
    f'<g class="mark {kind}" data-key="{key}" '
    f'data-box="{" ".join(map(_number, box))}" data-where="{_text(where)}" '
    f'{style}>{_rect(box, " class=under")}{_rect(box)}{shape}</g>\n'
  )


def _narrative(
  prediction: Prediction, size_orig: tuple[int, int], role: str
) -> tuple[str, str]:
  """Marks and text of one narrative: (SVG, HTML)."""
  pieces = _pieces(prediction)
  colors = zip(color_run(len(pieces)), color_run(len(pieces), 0.52))
  radius = _number(max(size_orig) * 0.0115)
  marks, lines, spans = [], [], []
  last = None
  for i, ((separator, word), pair) in enumerate(zip(pieces, colors)):
    style = style_of(*pair)
    center, box = _center(word), word.box_orig
    shown = _text(word.text)
    if center is None or box is None:
      spans.append(f'{separator}<span class="word">{shown}</span>')
      continue
    x, y = map(_number, center)
    marks.append(
      mark_of(
        str(i),
        style,
        'placed',
        box,
        f'{word.text}: ({center[0]:.0f}, {center[1]:.0f}) px',
        f'<circle cx="{x}" cy="{y}" r="{radius}"/>',
      )
    )
    if last:
      ends = f'x1="{last[0]}" y1="{last[1]}" x2="{x}" y2="{y}"'
      lines.append(f'<line class="under" {ends}/><line {style} {ends}/>\n')
    last = x, y
    spans.append(
      f'{separator}<span class="word" tabindex="0" data-key="{i}" '
      f'{style}>{shown}</span>'
    )
  label = f'<span class="role">{role}</span>' if role else ''
  return (
    f'<g class="trace">{"".join(lines)}</g>\n{"".join(marks)}',
    f'<p class="said">{label}{"".join(spans)}</p>\n',
  )


def _boxes(
  predictions: Sequence[Prediction], truth: Sequence[Prediction]
) -> tuple[str, str]:
  """Marks and text of boxes with their texts: (SVG, HTML)."""
  marks, entries = [], []
  pairs = _prediction_colors(predictions)
  rows = [
    (_box(p), _caption(p), style_of(*pair), '')
    for p, pair in zip(predictions, pairs)
  ]
  rows += [(_box(p), _news(p, predictions), '', 'ground truth') for p in truth]
  for i, (box, caption, style, role) in enumerate(rows):
    label = f'<span class="role">{role}</span>' if role else ''
    key = mark = ''
    if box:
      pixels = ' '.join(f'{v:.0f}' for v in box)
      where = f'{caption or role}: {pixels} px'
      kind = 'dashed' if role else ''
      mark = mark_of(str(i), style, kind, box, where)
      key = f' tabindex="0" data-key="{i}"'
    marks.append(mark)
    entries.append(
      f'<span class="entry"><span class="word"{key} {style}>{label}'
      f'{_text(caption)}</span></span>\n'
    )
  kinds = 'said many' if len(entries) > _MAX_LINES else 'said'
  # The truth goes under the answers: of two equal boxes the answer is seen.
  layers = marks[len(predictions) :] + marks[: len(predictions)]
  return ''.join(layers), f'<p class="{kinds}">{"".join(entries)}</p>\n'


def save(
  path: str | os.PathLike[str],
  image: np.ndarray | bytes,
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction] | None = None,
) -> None:
  """Writes `draw` or `html` to a file, by the ending of its name.

  Args:
    path: ends in .png or .html; its folder is made when it does not exist.
    image: as in `draw`.
    predictions: as in `draw`.
    truth: as in `draw`.

  Raises:
    ValueError: another ending, or as in `draw`.
    OSError: the file cannot be written; nothing is left of it then.
  """
  path = pathlib.Path(path)
  ending = path.suffix.lower()
  if ending == '.png':
    file = io.BytesIO()
    draw(image, predictions, truth).save(file, 'PNG')
    files.write(path, file.getvalue())
  elif ending == '.html':
    title = predictions[0].image if predictions else path.stem
    files.write(path, html(image, predictions, truth, title))
  else:
    raise ValueError(
      f'{path}: expected a name that ends in .png or .html, got {ending!r}.'
    )
