# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions over their image, as HTML that can be hovered."""

from __future__ import annotations

import base64
import html as escaping
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pixel_llm.pictures import shown
from pixel_llm.pictures.colors import Color, color_run, of_answers
from pixel_llm.prediction import Box, Point, Prediction

# More captions than this stand in columns.
_MAX_LINES = 8
# Longer side of the JPEG in a page, pixels.
MAX_SIDE = 1280


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
.mark path { fill: var(--bright); fill-opacity: .4; fill-rule: evenodd;
  stroke: var(--bright); stroke-width: 1.5px;
  vector-effect: non-scaling-stroke; }
.mark.dashed path { fill: #fff; fill-opacity: .2; stroke: #fff;
  stroke-dasharray: 4 3; }
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
LINK = """
const link = pane => {
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
};
"""
SCRIPT = f"{LINK}document.querySelectorAll('.pane').forEach(link);"


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
  rgb = shown.rgb(image)
  truth = truth or ()
  size_orig = shown.size_orig(rgb, (*predictions, *truth))
  height, width = size_orig
  panes = overlays(predictions, truth, size_orig)
  picture = (
    f'<image id="{_text(name)}" width="{width}" height="{height}" '
    f'preserveAspectRatio="none" href="{_data_uri(rgb, max_side)}"/>'
  )
  # The second pane shows the same pixels without holding them again.
  again = f'<use href="#{_text(name)}"/>'
  parts = []
  for i, (marks, text) in enumerate(panes or [('', '')]):
    parts.append(
      f'<div class="pane">\n<svg class="stage" viewBox="0 0 {width} {height}" '
      f'role="img" aria-label="{_text(_alternative(predictions))}">\n'
      f'{again if i else picture}\n{marks}</svg>\n'
      f'<p class="where" aria-live="polite"></p>\n{text}</div>\n'
    )
  return f'<figure class="picture">\n{"".join(parts)}</figure>\n'


def overlays(
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction],
  size_orig: tuple[int, int],
) -> list[tuple[str, str]]:
  """Marks (SVG) and text (HTML) of each pane, which `LINK` ties together.

  Args:
    predictions: as in `draw`.
    truth: as in `html`.
    size_orig: (height, width) of their image, pixels.
  """
  panes = []
  boxes = [p for p in predictions if not shown.is_told(p)]
  true_boxes = [p for p in truth if not shown.is_told(p)]
  if boxes or true_boxes:
    panes.append(_boxes(boxes, true_boxes, size_orig))
  panes += [
    _narrative(p, size_orig, '') for p in predictions if shown.is_told(p)
  ]
  panes += [
    _narrative(p, size_orig, 'ground truth') for p in truth if shown.is_told(p)
  ]
  return panes


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


def _hex(color: Color) -> str:
  return '#{:02x}{:02x}{:02x}'.format(*color)


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
  pieces = shown.pieces(prediction)
  colors = zip(color_run(len(pieces)), color_run(len(pieces), 0.52))
  marks, lines, spans = [], [], []
  last = None
  for i, ((separator, word), pair) in enumerate(zip(pieces, colors)):
    style = style_of(*pair)
    center, box = shown.center(word), word.box_orig
    said = _text(word.text)
    if center is None or box is None:
      spans.append(f'{separator}<span class="word">{said}</span>')
      continue
    x, y = map(_number, center)
    marks.append(
      mark_of(
        str(i),
        style,
        'placed',
        box,
        f'{word.text}: ({center[0]:.0f}, {center[1]:.0f}) px',
        _dots([center], size_orig),
      )
    )
    if last:
      ends = f'x1="{last[0]}" y1="{last[1]}" x2="{x}" y2="{y}"'
      lines.append(f'<line class="under" {ends}/><line {style} {ends}/>\n')
    last = x, y
    spans.append(
      f'{separator}<span class="word" tabindex="0" data-key="{i}" '
      f'{style}>{said}</span>'
    )
  label = f'<span class="role">{role}</span>' if role else ''
  return (
    f'<g class="trace">{"".join(lines)}</g>\n{"".join(marks)}',
    f'<p class="said">{label}{"".join(spans)}</p>\n',
  )


def _boxes(
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction],
  size_orig: tuple[int, int],
) -> tuple[str, str]:
  """Marks and text of boxes with their texts: (SVG, HTML)."""
  marks, entries = [], []
  rows = [
    (p, shown.caption(p), style_of(*pair), '')
    for p, pair in zip(predictions, of_answers(len(predictions)))
  ]
  rows += [(p, shown.news(p, predictions), '', 'ground truth') for p in truth]
  for i, (prediction, caption, style, role) in enumerate(rows):
    label = f'<span class="role">{role}</span>' if role else ''
    key = mark = ''
    box, clicks = shown.box(prediction), shown.clicks(prediction)
    if box or clicks:
      where = f'{caption or role}: {_where(box, clicks)} px'
      if prediction.confidence is not None and not role:
        where += f', {prediction.confidence:.2f}'
      kind = 'dashed' if role else ''
      if not box:
        xs, ys = zip(*clicks, strict=True)
        box, kind = (min(xs), min(ys), max(xs), max(ys)), f'{kind} placed'
      shape = _mask(prediction) + _dots(clicks, size_orig)
      mark = mark_of(str(i), style, kind, box, where, shape)
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


def _where(box: Box | None, points: Sequence[Point]) -> str:
  if box:
    return ' '.join(f'{v:.0f}' for v in box)
  return ' '.join(f'({x:.0f}, {y:.0f})' for x, y in points)


def _dots(points: Sequence[Point], size_orig: tuple[int, int]) -> str:
  radius = _number(max(size_orig) * 0.0115)
  return ''.join(
    f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{radius}"/>'
    for x, y in points
  )


def _mask(prediction: Prediction) -> str:
  lines = [
    'M' + 'L'.join(f'{_number(x)} {_number(y)}' for x, y in line) + 'Z'
    for line in shown.outlines(prediction)
  ]
  return f'<path d="{"".join(lines)}"/>' if lines else ''
