# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Localized Narratives: captions spoken while pointing, as JSON lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm.data import align
from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images, image_names
from pixel_llm.data.sources.source import Entry, Item, Problem, Row, RowError
from pixel_llm.example import Region

# A key cannot occur inside a string: its quotes would be escaped there.
_IMAGE_ID = re.compile(rb'"image_id"\s*:\s*(?:"([^"\\]*)"|(\d+))\s*[,}]')
_VIDEO_FIELDS = ('actor_narratives', 'time_alignment', 'video_id')


class LocalizedNarratives:
  """The image data sets (COCO, Flickr30k, ADE20k, Open Images).

  Several narratives of one image become several regions of one example.

  Args:
    annotations: `.jsonl` or `.jsonl.gz` files.
    images: directory or archives of the image files.
    split: unused; the files are the split.
    extras: none.

  Source: Pont-Tuset et al., "Connecting Vision and Language with Localized
  Narratives", and the data set's page on file formats.
  """

  version = 1
  extras: tuple[str, ...] = ()

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ):
    del split, extras
    self._annotations = annotations
    self._images = images

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance."""
    images = Images(self._images)
    groups: dict[str, list[source.Slice]] = {}
    problems = []
    for path in self._annotations:
      for piece, data in source.read_lines(path):
        try:
          groups.setdefault(_image_id(piece.row, data), []).append(piece)
        except RowError as e:
          problems.append(e.problem)
    entries = []
    for image_id, pieces in groups.items():
      image, missing = images.find(*image_names(image_id))
      entries.append(Entry(image_id, image, missing, tuple(pieces)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """Parses, checks and aligns the narratives of one image."""
    regions, problems, seen = [], [], set()
    for piece in entry.rows:
      try:
        region = parse(piece.row, piece.read())
        if region.id in seen:
          raise RowError(
            piece.row.at('annotator_id'),
            'duplicate',
            'one narrative an image and annotator',
            f'a second {region.id} (image/annotator)',
          )
      except RowError as e:
        problems.append(e.problem)
      else:
        seen.add(region.id)
        regions.append((piece.row, region))
    return Item(tuple(regions), tuple(problems))


def parse(row: Row, data: bytes) -> Region:
  """One line as a region, utterances matched to the caption by text.

  Raises:
    RowError: the line cannot be used.
  """
  values = _object(row, data)
  image_id = source.identifier(
    row.at('image_id'), source.field(row, values, 'image_id')
  )
  annotator = source.identifier(
    row.at('annotator_id'), source.field(row, values, 'annotator_id')
  )
  caption = source.text(
    row.at('caption'), source.field(row, values, 'caption'), 'empty_caption'
  )
  utterances, times = _utterances(
    row.at('timed_caption'), source.field(row, values, 'timed_caption')
  )
  trace = _trace(row.at('traces'), source.field(row, values, 'traces'))

  boxes, centers, weights = align.utterance_places(trace, times)
  # An utterance of no word is silence: the pointer's place then is no word's.
  weights *= np.array([bool(u.strip()) for u in utterances], np.float32)
  return Region(
    id=f'{image_id}/{annotator}',
    text=caption,
    spans=align.match_utterances(caption, utterances),
    span_boxes=boxes,
    span_centers=centers,
    span_weights=weights,
  )


def _image_id(row: Row, data: bytes) -> str:
  """The image of a line, without parsing its thousands of trace points."""
  match = _IMAGE_ID.search(data)
  if match:
    try:
      name = (match.group(1) or match.group(2) or b'').decode()
    except UnicodeDecodeError as e:
      raise RowError(row.at('image_id'), 'not_unicode', 'UTF-8', str(e)) from e
    if name.strip():
      return name.strip()
  return source.identifier(
    row.at('image_id'), source.field(row, _object(row, data), 'image_id')
  )


def _object(row: Row, data: bytes) -> Any:
  values = source.parse(row, data)
  if isinstance(values, dict):
    video = [name for name in _VIDEO_FIELDS if name in values]
    if video:
      raise RowError(
        row.at(video[0]),
        'video_narrative',
        'a narrative of an image (Localized Narratives)',
        'one of a video (Video Localized Narratives)',
      )
  return values


def _utterances(row: Row, value: Any) -> tuple[list[str], np.ndarray]:
  """Texts, and [utterances, 2] start and end in seconds."""
  words, times = [], []
  previous = -np.inf
  for i, timed in enumerate(source.items(row, value)):
    at = row.at(f'[{i}]')
    word = source.field(at, timed, 'utterance')
    if not isinstance(word, str):
      raise RowError(
        at.at('utterance'), 'not_a_string', 'a string', source.show(word)
      )
    start, end = (
      source.number(at.at(name), source.field(at, timed, name))
      for name in ('start_time', 'end_time')
    )
    if start < previous:
      raise RowError(
        at.at('start_time'),
        'unsorted_times',
        f'at least {previous}, where the utterance before it starts',
        f'{start}',
      )
    if end < start:
      raise RowError(
        at.at('end_time'),
        'unsorted_times',
        f'at least its start_time {start}',
        f'{end}',
      )
    previous = start
    words.append(word)
    times.append((start, end))
  if not words:
    raise RowError(
      row, 'no_utterances', 'at least one utterance', source.show(value)
    )
  return words, np.array(times, np.float64)


def _trace(row: Row, value: Any) -> np.ndarray:
  """[points, 3] x, y, t of all segments joined."""
  points, numbers = [], []
  segments = source.items(row, value)
  for i, segment in enumerate(segments):
    for j, point in enumerate(source.items(row.at(f'[{i}]'), segment)):
      if not isinstance(point, dict) or not point.keys() >= {'x', 'y', 't'}:
        for name in 'xyt':
          source.field(row.at(f'[{i}][{j}]'), point, name)
      points.append((i, j))
      numbers.append((point['x'], point['y'], point['t']))
  if not points:
    raise RowError(
      row, 'no_traces', 'at least one trace point', source.show(value)
    )
  # A narrative has thousands of numbers: look at them one by one only when
  # something is wrong.
  kinds = {type(v) for xyt in numbers for v in xyt}
  if kinds <= {int, float}:
    try:
      trace = np.array(numbers, np.float64)
    except OverflowError:
      trace = np.array([np.nan])
    if np.isfinite(trace).all():
      return trace
  return np.array(
    [
      [
        source.number(row.at(f'[{i}][{j}].{name}'), v)
        for name, v in zip('xyt', xyt)
      ]
      for (i, j), xyt in zip(points, numbers)
    ]
  )
