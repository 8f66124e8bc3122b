# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of batches: what the network gets, beside the records.

All that is drawn of a batch is read from `Batch` alone, so whatever was done to
an example on its way there shows.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import html as escaping
import io
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import files, masks, pictures
from pixel_llm import image as image_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import loader as loader_lib
from pixel_llm.data import registry
from pixel_llm.prediction import Prediction, Word
from pixel_llm.tasks import task as task_lib

# Steps within which a task's turn must come, to be drawn from a stream.
_FAR = 1000
_RAW_SIDE = 448  # pixels
_END = '⏎'
_BLANK = '␣'
_MASK = (255, 64, 64, 110)
_RED = pictures.color_run(2)[1], pictures.color_run(2, 0.52)[1]

_STYLE = """
h2 { font-size: 1.05rem; margin: 2.4rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--rule); }
.pair { display: grid; gap: 1.25rem;
  grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); }
@media (max-width: 50rem) { .pair { grid-template-columns: 1fr; } }
.pair h3 { font-size: .82rem; font-weight: 500; color: var(--soft);
  margin: 0 0 .4rem; }
.pair .picture { align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
.raw svg.stage { max-height: 22rem; }
/* Over an equal box of the answer both are seen. */
.mark.dashed rect.under { display: none; }
.pane { font-size: .92rem; }
.pixels { image-rendering: pixelated; }
.valid { fill: none; stroke: #fff; stroke-opacity: .55; stroke-width: 1px;
  stroke-dasharray: 2 3; vector-effect: non-scaling-stroke; }
.facts { margin: .2rem 0 0; color: var(--soft); font-size: .82rem;
  overflow-wrap: anywhere; }
.click { stroke: #fff; stroke-width: 2.5px;
  vector-effect: non-scaling-stroke; }
.click.under { stroke: #14161a; stroke-width: 5px; }
.cut { color: #c2261c; text-decoration: line-through; }
@media (prefers-color-scheme: dark) { .cut { color: #ff8a80; } }
.said sub { font-size: .65em; opacity: .8; }
pre { margin: .6rem 0 0; font-size: .76rem; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto;
  background: var(--wash); padding: .5rem; border-radius: 4px; }
"""

_LEGEND = (
  'Left: the batch, as the network gets it. A word has the color of its dot, '
  'the middle of its points; pointing at it shows the box between them. Pale '
  'words have a loss weight below 1; a small number behind one is the weight '
  'of its place, where that is not 1. Dashed in white: the box asked about. '
  'Right: the record.'
)

Progress = Callable[[int, int], None]


def write_sheet(
  path: str | os.PathLike[str],
  task: str,
  streams: Mapping[str, loader_lib.Stream],
  sizes: batch_lib.BatchSizes,
  *,
  seed: int = 0,
  split: str = 'train',
  step: int = 0,
  count: int = 8,
  progress: Progress | None = None,
) -> str:
  """Writes the sheet, whole or not at all.

  Rows are those that training with these streams and this seed has from a step
  on; a task of no stream gets batches of its own.

  Args:
    path: the HTML file; its folder is made when it does not exist.
    task: SeqIO task or mixture.
    streams: as of training.
    sizes: the shape table for a task of no stream.
    seed: of the order and of every random choice.
    split: of the tasks.
    step: the first whose batch is looked at.
    count: images.
    progress: called with images done and in all.

  Returns: a line for the user.

  Raises:
    ValueError: no such task, or no such split of it.
    OSError: the file cannot be written.
  """
  loader, plan = _plan(task, streams, sizes, seed, split, step, count)
  sections, shapes = [], {}
  batches = loader.batches(min(plan))
  for at in range(min(plan), max(plan) + 1):
    name, batch = next(batches)
    if at not in plan:
      continue
    shapes[name] = dataclasses.asdict(loader.streams[name].sizes)
    _, slots = loader.slots(at)
    for i in plan[at]:
      title, key = f'step {at} ({name}), row {i}', f'image-{len(sections)}'
      sections.append(section(title, key, batch, i, slots[i], split))
      if progress is not None:
        progress(len(sections), count)
  batches.close()
  lines = [f'{len(sections)} images, split {split}, seed {seed}.', _LEGEND]
  for name, shape in shapes.items():
    numbers = ', '.join(f'{k} {v}' for k, v in shape.items())
    lines.append(f'Stream {name}: {numbers}.')
  body = ''.join(f'<p class="facts">{_text(x)}</p>\n' for x in lines)
  body += ''.join(sections)
  files.write(path, pictures.page(task, body, _STYLE))
  return (
    f'{path}: {len(sections)} images of {task}, steps {min(plan)} to '
    f'{max(plan)}'
  )


def _plan(
  task: str,
  streams: Mapping[str, loader_lib.Stream],
  sizes: batch_lib.BatchSizes,
  seed: int,
  split: str,
  step: int,
  count: int,
) -> tuple[loader_lib.Loader, dict[int, list[int]]]:
  """The loader, and which rows of which of its batches are of the task."""
  own = {task: loader_lib.Stream(task, dataclasses.replace(sizes, batch=count))}
  # Also when it is not needed, since it tells what names there are.
  plans = [(loader_lib.Loader(own, seed, split, (0, 1)), 1, step + 1)]
  if streams:
    hosts = _hosts([s.sizes.batch for s in streams.values()], count)
    loader = loader_lib.Loader(streams, seed, split, (0, hosts))
    plans.insert(0, (loader, hosts, step + _FAR))
  for loader, hosts, last in plans:
    plan: dict[int, list[int]] = {}
    left = count
    for at in range(step, last):
      name, slots = loader.slots(at)
      stream = loader.streams[name]
      local = stream.sizes.batch // hosts
      rows = [
        i
        for i, slot in enumerate(slots[:local])
        if task in (stream.mixture, slot.task)
      ][:left]
      if rows:
        plan[at] = rows
        left -= len(rows)
      if not left:
        break
    if plan:
      break
  return loader, plan


def _hosts(batches: Sequence[int], count: int) -> int:
  """How many hosts there can be of which each has `count` rows or more.

  As the first of them one gets the first rows of large batches without others.
  """
  divisor = math.gcd(*batches)
  most = [
    n
    for n in range(1, divisor + 1)
    if divisor % n == 0 and min(batches) // n >= count
  ]
  return max(most, default=1)


def section(
  title: str,
  key: str,
  batch: batch_lib.Batch,
  i: int,
  slot: loader_lib.Slot,
  split: str,
) -> str:
  """The HTML of one image of a batch, beside its record.

  Args:
    title: what to call it.
    key: an id that no other section of the page has.
    batch: NumPy.
    i: number of the image in it.
    slot: which record it is.
    split: of the record.
  """
  entry = registry.task_of(slot.task)
  example = entry.sequence.example(split, slot.index)
  row = _slice(batch, i, ('B',))
  regions = len(row.decoder_target_tokens)
  panes, origins = [], {}
  for r in range(regions):
    region = _slice(row, r, ('B', 'R'))
    if not _is_empty(region):
      origin = _origin(entry, example, region, origins)
      if origin is not None:
        origins[origin] = r
      text = None if origin is None else example.regions[origin]
      panes.append(_pane(row, region, entry, text, f'region {r}'))
  facts = f'{len(panes)} of {regions} regions'
  facts += ', the others empty' if len(panes) < regions else ''
  if row.detection_weights or row.object_weights.any():
    panes.append(_objects(row))
  side, (height, width) = len(row.image), row.image_size.tolist()
  facts += f'; {width} x {height} px (width x height) of {side} x {side}'
  picture = (
    f'<image class="pixels" id="{key}" width="{side}" height="{side}" '
    f'href="{_png(row.image)}"/>'
  )
  shown = ''
  for marks, text in panes or [('', '')]:
    shown += (
      f'<div class="pane">\n<svg class="stage" viewBox="0 0 {side} {side}" '
      f'role="img" aria-label="{_text(title)}">\n{picture}\n'
      f'<rect class="valid" width="{width}" height="{height}"/>\n{marks}'
      '</svg>\n'
      f'<p class="where" aria-live="polite"></p>\n{text}</div>\n'
    )
    # The next pane shows the same pixels without holding them again.
    picture = f'<use href="#{key}"/>'
  heading = f'{title}: {slot.task}, record {slot.index} of {split}'
  return (
    f'<section>\n<h2>{_text(heading)}</h2>\n<div class="pair">\n'
    f'<div><h3>{facts}</h3>\n<figure class="picture">\n{shown}</figure></div>\n'
    f'<div class="raw">{_raw(example, origins, f"{key}-raw")}</div>\n</div>\n'
    '</section>\n'
  )


def _slice(
  batch: batch_lib.Batch, i: int, dims: tuple[str, ...]
) -> batch_lib.Batch:
  """Element `i` along the last of `dims`, of the fields that begin so."""
  return batch_lib.Batch(
    **{
      name: getattr(batch, name)[i]
      for name, spec in batch_lib.Batch.specs().items()
      if spec.dims[: len(dims)] == dims
    }
  )


def _is_empty(region: batch_lib.Batch) -> bool:
  """Nothing is to be said, and nothing weighs anything."""
  return not any(
    np.any(value)
    for value in (
      region.decoder_target_tokens,
      region.decoder_loss_weights,
      region.point_weights,
      region.box_weights,
      region.mask_weights,
    )
  )


def _origin(
  entry: registry.Entry,
  example: example_lib.Example,
  region: batch_lib.Batch,
  taken: Collection[int],
) -> int | None:
  """Which of the record's texts a region says; None: none of the others."""
  said = region.decoder_target_tokens
  said = said[said > 0].tolist()
  for i, candidate in enumerate(example.regions):
    if i not in taken and entry.task.usable(candidate):
      answer = entry.task.question(candidate).answer
      ids = entry.vocabulary.encode(answer)[: len(region.points) - 1]
      if said == [*ids, vocabulary_lib.EOS_ID]:
        return i
  return None


# One region: (SVG, HTML).


def _pane(
  row: batch_lib.Batch,
  region: batch_lib.Batch,
  entry: registry.Entry,
  text: example_lib.Region | None,
  name: str,
) -> tuple[str, str]:
  asked = answer = ''
  if text is not None:
    full = entry.task.question(text).answer
    answer = _cut(entry.vocabulary, region.decoder_target_tokens, [full])
    prompts = [
      dataclasses.replace(entry.task, prompts=(prompt,)).prompt(text)
      for prompt in entry.task.prompts
    ]
    asked = _cut(entry.vocabulary, region.encoder_input_tokens, prompts)
  marks, words = _tokens(row, region, entry.vocabulary)
  where, places = _places(row, region)
  lines = [
    f'<p class="facts">{name}, asked: {_prompt(region, entry.vocabulary)}'
    f'{asked}</p>\n<p class="said">{words}{answer}</p>\n'
  ]
  if text is None:
    lines.append(
      '<p class="facts">not a text of the record as it is there</p>\n'
    )
  lines += [f'<p class="facts">{place}</p>\n' for place in places]
  for name, weights in (
    ('loss weights', region.decoder_loss_weights),
    ('weights of places', region.point_weights),
  ):
    lines.append(f'<p class="facts">{name}: {_counted(weights, region)}</p>\n')
  return _mask(region, len(row.image)) + where + marks, ''.join(lines)


def _cut(
  vocabulary: vocabulary_lib.Vocabulary,
  tokens: np.ndarray,
  texts: Sequence[str],
) -> str:
  """What there was no room for, as HTML, of the text that the tokens begin."""
  kept = tokens[tokens > 0].tolist()[:-1]
  for text in texts:
    ids = vocabulary.encode(text)
    rest = ids[len(kept) :]
    if rest and kept == ids[: len(tokens) - 1]:
      return (
        f' <span class="cut" title="{len(rest)} tokens cut">'
        f'{_text(vocabulary.decode(rest))}</span>'
      )
  return ''


def _prompt(
  region: batch_lib.Batch, vocabulary: vocabulary_lib.Vocabulary
) -> str:
  tokens = region.encoder_input_tokens
  return (
    f'&ldquo;{_text(vocabulary.decode(tokens))}&rdquo; '
    f'({int((tokens > 0).sum())} of {len(tokens)} tokens)'
  )


def _tokens(
  row: batch_lib.Batch,
  region: batch_lib.Batch,
  vocabulary: vocabulary_lib.Vocabulary,
) -> tuple[str, str]:
  """Dots and the trace through them; the tokens that they belong to."""
  ids = region.decoder_target_tokens.tolist()
  words = vocabulary.words(ids)
  bright = pictures.color_run(len(words))
  dark = pictures.color_run(len(words), 0.52)
  word_of = {i: n for n, (_, a, b) in enumerate(words) for i in range(a, b)}
  starts = {a for _, a, _ in words}
  size = row.image_size[::-1]
  radius = len(row.image) * 0.0115
  marks, lines, spans = [], [], []
  last = None
  for i, token in enumerate(ids):
    loss = float(region.decoder_loss_weights[i])
    place = float(region.point_weights[i])
    if token == vocabulary_lib.PAD_ID and not loss and not place:
      continue
    piece = vocabulary.words([token])
    text = piece[0][0] if piece else _BLANK
    if token == vocabulary_lib.EOS_ID:
      text = _END
    n = word_of.get(i)
    style = ''
    if n is not None and place > 0:
      style = pictures.style_of(bright[n], dark[n])
    note = f'token {i}, id {token}: loss weight {loss:g}, place {place:g}'
    link = ''
    if place > 0:
      points = region.points[i] * size
      x, y = points.mean(axis=0)
      x0, y0, x1, y1 = *points.min(axis=0), *points.max(axis=0)
      dot = f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}"/>'
      said = ' '.join(f'({px:.1f}, {py:.1f})' for px, py in points)
      where = f'{text}: {said} px'
      box = float(x0), float(y0), float(x1), float(y1)
      marks.append(pictures.mark_of(str(i), style, 'placed', box, where, dot))
      if last is not None and last != (x, y):
        ends = (
          f'x1="{last[0]:.2f}" y1="{last[1]:.2f}" x2="{x:.2f}" y2="{y:.2f}"'
        )
        lines.append(f'<line class="under" {ends}/><line {style} {ends}/>\n')
      last = x, y
      link = f' tabindex="0" data-key="{i}" {style}'
    pale = f'<span style="opacity:{0.6 + 0.4 * loss:.2f}">{_text(text)}</span>'
    shown = pale if loss < 1 else _text(text)
    if place not in (0, 1):
      shown += f'<sub>{place:g}</sub>'
    separator = ' ' if spans and (i in starts or n is None) else ''
    spans.append(
      f'{separator}<span class="word" title="{_text(note)}"{link}>{shown}'
      '</span>'
    )
  trace = f'<g class="trace">{"".join(lines)}</g>\n'
  return trace + ''.join(marks), ''.join(spans)


def _places(
  row: batch_lib.Batch, region: batch_lib.Batch
) -> tuple[str, list[str]]:
  """What is asked about and the answer's box: marks, and a line for each."""
  marks, lines = [], []
  if region.box_weights:
    _add_box(row, region.boxes, 'box', '', marks, lines)
    lines[-1] += f', weight {float(region.box_weights):g}'
  if not region.prompt_box_weights:
    lines.append('no box is asked about, points alone')
  elif np.array_equal(region.prompt_boxes, task_lib.WHOLE_IMAGE):
    lines.append('asked about the whole image')
  else:
    _add_box(row, region.prompt_boxes, 'asked', 'dashed', marks, lines)
  for k, label in enumerate(region.prompt_labels.tolist()):
    if label:
      x, y = region.prompt_points[k] * row.image_size[::-1]
      name = 'on it' if label > 0 else 'not on it'
      arm = len(row.image) * 0.02
      stroke = f'M{x - arm:.2f} {y:.2f}h{2 * arm:.2f}'
      if label > 0:
        stroke += f'M{x:.2f} {y - arm:.2f}v{2 * arm:.2f}'
      marks += [
        f'<path class="click {k}" d="{stroke}"/>' for k in ('under', '')
      ]
      lines.append(f'point {name}: ({x:.1f}, {y:.1f}) px')
  if region.mask_weights:
    lines.append(
      f'mask of {int(region.masks.sum())} of {region.masks.size} cells, weight '
      f'{float(region.mask_weights):g}'
    )
  return ''.join(marks), lines


def _add_box(
  row: batch_lib.Batch,
  box: np.ndarray,
  name: str,
  kind: str,
  marks: list[str],
  lines: list[str],
) -> None:
  """A box of the valid image, its mark and its line."""
  height, width = row.image_size.tolist()
  x0, y0, x1, y1 = (box * [width, height, width, height]).tolist()
  style = '' if kind else pictures.style_of(*_RED)
  said = f'{name}: {x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f} px'
  key = f'{name}-{len(marks)}'
  marks.append(pictures.mark_of(key, style, kind, (x0, y0, x1, y1), said))
  lines.append(
    f'<span class="word" tabindex="0" data-key="{key}" {style}>{said}</span>'
  )


def _objects(row: batch_lib.Batch) -> tuple[str, str]:
  """The pane of what there is to detect."""
  marks, lines = [], []
  for box, weight in zip(row.objects, row.object_weights, strict=True):
    if weight:
      _add_box(row, box, f'object {len(marks)}', '', marks, lines)
      lines[-1] += f', weight {float(weight):g}'
  head = (
    f'{len(marks)} objects, room for {len(row.objects)}; detection weighs '
    f'{float(row.detection_weights):g}'
  )
  lines.insert(0, head)
  return ''.join(marks), ''.join(f'<p class="facts">{x}</p>\n' for x in lines)


def _mask(region: batch_lib.Batch, side: int) -> str:
  """The mask over the padded input, as SVG."""
  if not region.mask_weights:
    return ''
  rgba = np.zeros((*region.masks.shape, 4), np.uint8)
  rgba[region.masks > 0] = _MASK
  return (
    f'<image class="pixels" width="{side}" height="{side}" '
    f'href="{_png(rgba)}"/>\n'
  )


def _counted(weights: np.ndarray, region: batch_lib.Batch) -> str:
  """How many tokens have which weight, padding left out if it has none."""
  there = (region.decoder_target_tokens > 0) | (weights != 0)
  counts = collections.Counter(weights[there].tolist())
  parts = [f'{weight:g} ({n})' for weight, n in sorted(counts.items())]
  return f'{", ".join(parts)}; {int(there.sum())} of {len(weights)} tokens'


# The record.


def _raw(
  example: example_lib.Example, rows: Mapping[int, int], key: str
) -> str:
  """The image as in its file with the texts that the batch has; all as JSON."""
  chosen = list(rows)
  rgb = image_lib.decode(example.image, example.image_id)
  figure = pictures.figure(
    rgb,
    [_prediction(example, example.regions[i]) for i in chosen],
    name=key,
    max_side=_RAW_SIDE,
  )
  order = [*chosen, *sorted(set(range(len(example.regions))) - set(chosen))]
  lines = [
    json.dumps(
      {
        'image_id': example.image_id,
        'width': example.size[1],
        'height': example.size[0],
        'image': f'{len(example.image)} bytes',
        'regions': len(example.regions),
      },
      ensure_ascii=False,
    )
  ]
  for i in order:
    where = f'in region {rows[i]}: ' if i in rows else 'not in the batch: '
    value = _json(example.regions[i], example.size)
    lines.append(where + json.dumps(value, ensure_ascii=False))
  return (
    f'<h3>record: {_text(example.image_id)}, pixels of the file</h3>\n{figure}'
    f'<pre>{_text(chr(10).join(lines))}</pre>\n'
  )


def _prediction(
  example: example_lib.Example, region: example_lib.Region
) -> Prediction:
  """The text and its places, as pictures draw them."""
  height, width = example.size
  scale = np.asarray([width, height, width, height])
  words, end = [], 0
  for (a, b), box, weight in zip(
    region.spans.tolist(), region.span_boxes, region.span_weights, strict=True
  ):
    if a >= end:
      between = region.text[end:a].strip()
      words += [Word(between)] if between else []
      x0, y0, x1, y1 = (box * scale).tolist()
      points = ((x0, y0), (x1, y1)) if weight > 0 else ()
      words.append(Word(region.text[a:b], points))
      end = b
  rest = region.text[end:].strip()
  words += [Word(rest)] if words and rest else []
  box = region.box
  return Prediction(
    kind='narrate' if words else 'caption_at',
    image=example.image_id,
    size_orig=example.size,
    text=region.text,
    words=tuple(words),
    prompt_box_orig=None if box is None else tuple((box * scale).tolist()),
  )


def _json(region: example_lib.Region, size: tuple[int, int]) -> dict[str, Any]:
  """A text of the record for reading: its places in pixels, no null."""
  scale = [size[1], size[0]]

  def pixels(values: np.ndarray) -> Any:
    rounded = np.round(values.reshape(-1, 2) * scale, 1)
    return rounded.reshape(values.shape).tolist()

  words = [
    {'text': region.text[a:b] if a >= 0 else None}
    | ({'box': pixels(box)} if weight > 0 else {})
    for (a, b), box, weight in zip(
      region.spans.tolist(), region.span_boxes, region.span_weights
    )
  ]
  found = {
    'id': region.id,
    'text': region.text,
    'prompt': region.prompt,
    'box': None if region.box is None else pixels(region.box),
    'points': None if region.points is None else pixels(region.points),
    'mask': None
    if region.mask is None
    else f'{masks.area(region.mask)} pixels',
    'words': words or None,
  }
  return {k: v for k, v in found.items() if v is not None}


def _png(pixels: np.ndarray) -> str:
  """Exactly these pixels, as the address of an image."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def _text(text: str) -> str:
  return escaping.escape(text, quote=True)
