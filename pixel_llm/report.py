# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML file with metrics, curves and pictures."""

from __future__ import annotations

import dataclasses
import html as escaping
import itertools
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm import files, pictures
from pixel_llm.prediction import Prediction

Target = tuple[str, float]

# 24 pictures of this size stay well below 3 MB.
_IMAGE_SIDE = 448
# A chart is 340 pixels wide: more points than this cannot be told apart.
_CURVE_POINTS = 340
# Where its axes are: left, right, top, bottom.
_FRAME = 42.0, 336.0, 8.0, 150.0
# `narrate/point_l1_center` is shown beside `narrate/point_l1`.
_BASELINES = ('baseline', 'center', 'whole_image', 'most_frequent')
_COMPARE = {
  '<=': operator.le,
  '<': operator.lt,
  '>=': operator.ge,
  '>': operator.gt,
}

_STYLE = """
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th { font-weight: 500; font-size: .82rem; color: var(--soft); }
tbody th { font-weight: 400; }
th.number, td.number { text-align: right; }
td.number, .pass, .miss { white-space: nowrap; }
td.value { font-weight: 600; }
td.soft { color: var(--soft); }
.pass { color: #15803d; } .miss { color: #c2261c; }
@media (prefers-color-scheme: dark) { .pass { color: #4ade80; }
  .miss { color: #ff8a80; } }
.curves, .gallery { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.gallery.pairs { grid-template-columns:
  repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); }
.gallery .picture { align-content: start; }
.note { margin: .2rem 0 0; font-size: .82rem; color: var(--soft); }
.chart { margin: 0; font-size: .85rem; }
.chart svg { display: block; width: 100%; overflow: visible; }
.chart text { font-size: 10px; fill: var(--soft); }
.chart .grid { stroke: var(--rule); }
.chart .curve { fill: none; stroke: #3b82f6; stroke-width: 1.6;
  stroke-linejoin: round; }
.chart .at { fill: #3b82f6; stroke: var(--paper); stroke-width: 1.5;
  visibility: hidden; }
.chart .ideal { stroke: var(--soft); stroke-dasharray: 4 4; }
.chart .bin { fill: #3b82f6; fill-opacity: .75; }
.chart output { color: var(--soft); float: right; }
pre { margin: 0; white-space: pre-wrap; font-size: .82rem; }
summary { color: var(--soft); cursor: pointer; }
"""

_SCRIPT = """
for (const chart of document.querySelectorAll('.chart:has(.at)')) {
  const svg = chart.querySelector('svg');
  const dot = chart.querySelector('.at');
  const output = chart.querySelector('output');
  const last = output.textContent;
  const rows = svg.dataset.points.split(';').map(row => row.split(','));
  svg.addEventListener('pointermove', event => {
    const x = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse()).x;
    let best = rows[0];
    for (const row of rows)
      if (Math.abs(row[0] - x) < Math.abs(best[0] - x)) best = row;
    dot.setAttribute('cx', best[0]);
    dot.setAttribute('cy', best[1]);
    dot.style.visibility = 'visible';
    output.textContent = `step ${best[2]}: ${best[3]}`;
  });
  svg.addEventListener('pointerleave', () => {
    dot.style.visibility = 'hidden';
    output.textContent = last;
  });
}
"""


@dataclasses.dataclass(frozen=True)
class Section:
  """A gallery of the report.

  Attributes:
    title: its headline.
    items: (image [H, W, 3] uint8 RGB, answers, ground truth) each.
    notes: a word below each, or none at all.
  """

  title: str
  items: Sequence[tuple[np.ndarray, Sequence[Prediction], Sequence[Prediction]]]
  notes: Sequence[str] = ()


def write_report(
  path: str | os.PathLike[str],
  title: str,
  metrics: Mapping[str, float],
  targets: Mapping[str, Target] | None = None,
  sections: Sequence[Section] = (),
  curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
  reliability: Mapping[str, Sequence[tuple[float, float, int]]] | None = None,
  facts: Mapping[str, str] | None = None,
) -> None:
  """Writes the report, whole or not at all.

  Args:
    path: the HTML file; its folder is made when it does not exist.
    title: the headline.
    metrics: name -> value. A name that is another's with `_baseline`,
      `_center`, `_whole_image` or `_most_frequent` behind it is shown beside
      that one.
    targets: metric name -> what it must reach, ('<=', 0.06) for example; the
      operators are <=, <, >= and >.
    sections: pictures, in order.
    curves: name -> (step, value) in order of step; values that are not finite
      are left out.
    reliability: name -> (mean score, share that came true, number) of each bin
      of scores, both in [0, 1].
    facts: what else there is to know of the run (config, seconds, machine);
      a value of several lines is folded.

  Raises:
    ValueError: an unknown operator in `targets`, or predictions of a section
      that do not fit (see `pictures.figure`).
    OSError: the file cannot be written; nothing is left of it then.
  """
  parts = [_metrics_table(metrics, targets or {})]
  charts = [_chart(name, rows) for name, rows in (curves or {}).items()]
  if any(charts):
    parts.append(
      _part('Training', f'<div class="curves">{"".join(charts)}</div>')
    )
  diagrams = [_diagram(k, bins) for k, bins in (reliability or {}).items()]
  if diagrams:
    parts.append(
      _part(
        'How far scores can be relied on',
        f'<div class="curves">{"".join(diagrams)}</div>\n<p class="note">Each '
        'dot is of the answers of about one score, the larger the more: across '
        'that score, up the share that came true.</p>',
      )
    )
  numbers = itertools.count()
  for section in sections:
    notes = section.notes or [''] * len(section.items)
    figures = [
      '<div>'
      + pictures.figure(
        image,
        predictions,
        truth or None,
        name=f'image-{next(numbers)}',
        max_side=_IMAGE_SIDE,
      )
      + (f'<p class="note">{_text(note)}</p></div>' if note else '</div>')
      for (image, predictions, truth), note in zip(
        section.items, notes, strict=True
      )
    ]
    pairs = any(
      t and p.kind == 'narrate' for _, ps, t in section.items for p in ps
    )
    kind = 'gallery pairs' if pairs else 'gallery'
    parts.append(
      _part(section.title, f'<div class="{kind}">\n{"".join(figures)}</div>')
    )
  if facts:
    parts.append(_facts(facts))
  page = pictures.page(title, '\n'.join(parts), _STYLE, _SCRIPT)
  files.write(path, page)


def _text(text: str) -> str:
  return escaping.escape(text, quote=True)


def _part(title: str, body: str) -> str:
  return f'<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>\n'


@dataclasses.dataclass(frozen=True)
class _Metric:
  """A line of the table: `reached` is None without a target."""

  name: str
  value: str
  target: str
  reached: bool | None
  baselines: list[str]


def _lines(
  metrics: Mapping[str, float], targets: Mapping[str, Target]
) -> list[_Metric]:
  """Metrics with their targets, and with the baselines beside them."""
  baselines: dict[str, list[str]] = {}
  for name in metrics:
    for ending in _BASELINES:
      of = name.removesuffix(f'_{ending}')
      if of != name and of in metrics and name not in targets:
        baselines.setdefault(of, []).append(ending)
  beside = {f'{of}_{e}' for of, endings in baselines.items() for e in endings}
  lines = []
  for name in dict.fromkeys([*metrics, *targets]):
    if name in beside:
      continue
    value, target, reached = metrics.get(name), '', None
    if name in targets:
      target = f'{targets[name][0]} {_number(targets[name][1])}'
      reached = _reaches(name, value, targets[name])
    others = [
      _number(metrics[f'{name}_{ending}'])
      + (f' ({ending.replace("_", " ")})' if ending != 'baseline' else '')
      for ending in baselines.get(name, ())
    ]
    shown = 'not measured' if value is None else _number(value)
    lines.append(_Metric(name, shown, target, reached, others))
  return lines


def _metrics_table(
  metrics: Mapping[str, float], targets: Mapping[str, Target]
) -> str:
  marks = {
    None: '',
    True: '<span class="pass">✓ pass</span>',
    False: '<span class="miss">✗ miss</span>',
  }
  rows = [
    f'<tr><th scope="row">{_text(line.name)}</th>'
    f'<td class="number value">{line.value}</td><td>{_text(line.target)}</td>'
    f'<td>{marks[line.reached]}</td>'
    f'<td class="soft">{"<br>".join(line.baselines)}</td></tr>\n'
    for line in _lines(metrics, targets)
  ]
  heads = ''.join(
    f'<th scope="col"{kind}>{head}</th>'
    for head, kind in (
      ('metric', ''),
      ('value', ' class="number"'),
      ('target', ''),
      ('', ''),
      ('trivial baseline', ''),
    )
  )
  return _part(
    'Metrics',
    f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n'
    f'<tbody>\n{"".join(rows)}</tbody>\n</table></div>',
  )


def markdown(
  metrics: Mapping[str, float], targets: Mapping[str, Target] | None = None
) -> str:
  """The report's table of metrics in Markdown; see `write_report`."""
  marks = {None: '', True: '✓ pass', False: '✗ miss'}
  return markdown_table(
    ('metric', 'value', 'target', '', 'trivial baseline'),
    [
      (m.name, m.value, m.target, marks[m.reached], ', '.join(m.baselines))
      for m in _lines(metrics, targets or {})
    ],
  )


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table in Markdown."""
  rule = ['---'] * len(heads)
  return ''.join(
    f'| {" | ".join(str(c).replace("|", chr(92) + "|") for c in row)} |\n'
    for row in (heads, rule, *rows)
  )


def _reaches(name: str, value: float | None, target: Target) -> bool:
  """Whether a metric is there and on the right side of its target."""
  compare, bound = target
  if compare not in _COMPARE:
    raise ValueError(
      f'target of {name}: expected one of {", ".join(_COMPARE)}, got '
      f'{compare!r}.'
    )
  return value is not None and _COMPARE[compare](value, bound)


def _number(value: float) -> str:
  return f'{value:.4g}'


def _ticks(low: float, high: float) -> list[float]:
  """Three to six round numbers that cover [low, high]'s inside."""
  step = 10 ** math.floor(math.log10((high - low) / 3))
  step *= max(k for k in (1, 2, 5) if k * step <= (high - low) / 3)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _diagram(name: str, bins: Sequence[tuple[float, float, int]]) -> str:
  """A reliability diagram as SVG."""
  left, right, top, bottom = _FRAME
  x = lambda value: left + (right - left) * value
  y = lambda value: bottom - (bottom - top) * value
  total = sum(count for _, _, count in bins)
  error = sum(abs(sure - share) * n for sure, share, n in bins) / total
  axes = [
    f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" '
    f'y2="{y(tick):.1f}"/><text x="{left - 6}" y="{y(tick) + 3.5:.1f}" '
    f'text-anchor="end">{tick:g}</text>\n<text x="{x(tick):.1f}" '
    f'y="{bottom + 16}" text-anchor="middle">{tick:g}</text>\n'
    for tick in (0.0, 0.5, 1.0)
  ]
  dots = [
    f'<circle class="bin" cx="{x(sure):.1f}" cy="{y(share):.1f}" '
    f'r="{2 + 7 * math.sqrt(n / total):.1f}"><title>{_number(sure)}: '
    f'{_number(share)} of {n}</title></circle>\n'
    for sure, share, n in bins
  ]
  return (
    f'<figure class="chart"><figcaption>{_text(name)} <output>ECE '
    f'{_number(error)} of {total}</output></figcaption>\n'
    f'<svg viewBox="0 0 340 170" role="img" aria-label="{_text(name)}">\n'
    f'{"".join(axes)}<line class="ideal" x1="{left}" x2="{right}" '
    f'y1="{bottom}" y2="{top}"/>\n{"".join(dots)}</svg></figure>\n'
  )


def _chart(name: str, rows: Sequence[tuple[float, float]]) -> str:
  """A line chart as SVG, hovered by `_SCRIPT`; '' when nothing is finite."""
  rows = [(s, v) for s, v in rows if math.isfinite(s) and math.isfinite(v)]
  if not rows:
    return ''
  # From the end, so that the last value is always there.
  stride = math.ceil(len(rows) / _CURVE_POINTS)
  rows = rows[::-1][::stride][::-1]
  left, right, top, bottom = _FRAME
  x_low, x_high = _range([s for s, _ in rows])
  y_low, y_high = _range([v for _, v in rows])

  def x(step: float) -> float:
    return left + (right - left) * (step - x_low) / (x_high - x_low)

  def y(value: float) -> float:
    return bottom - (bottom - top) * (value - y_low) / (y_high - y_low)

  axes = [
    f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" '
    f'y2="{y(tick):.1f}"/><text x="{left - 6}" y="{y(tick) + 3.5:.1f}" '
    f'text-anchor="end">{_number(tick)}</text>\n'
    for tick in _ticks(y_low, y_high)
  ]
  axes += [
    f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" '
    f'y2="{bottom + 4}"/><text x="{x(tick):.1f}" y="{bottom + 16}" '
    f'text-anchor="middle">{_number(tick)}</text>\n'
    for tick in _ticks(x_low, x_high)
  ]
  line = ' '.join(f'{x(s):.1f},{y(v):.1f}' for s, v in rows)
  points = ';'.join(
    f'{x(s):.1f},{y(v):.1f},{s:.10g},{_number(v)}' for s, v in rows
  )
  step, value = rows[-1]
  return (
    f'<figure class="chart"><figcaption>{_text(name)} <output>step '
    f'{step:.10g}: {_number(value)}</output></figcaption>\n'
    f'<svg viewBox="0 0 340 170" role="img" aria-label="{_text(name)}" '
    f'data-points="{points}">\n{"".join(axes)}'
    # A transparent sheet, so that the whole chart can be hovered.
    '<rect width="340" height="170" fill="transparent"/>\n'
    f'<polyline class="curve" points="{line}"/>\n'
    '<circle class="at" r="4"/>\n</svg></figure>\n'
  )


def _range(values: Sequence[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  if low == high:
    # A constant still needs an axis.
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room
  return low, high


def _facts(facts: Mapping[str, str]) -> str:
  rows = []
  for name, value in facts.items():
    shown = _text(str(value))
    if '\n' in shown.strip():
      shown = f'<details><summary>show</summary><pre>{shown}</pre></details>'
    rows.append(
      f'<tr><th scope="row">{_text(name)}</th><td>{shown}</td></tr>\n'
    )
  return _part('The run', f'<table><tbody>\n{"".join(rows)}</tbody></table>')
