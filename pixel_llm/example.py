# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The canonical example: what a record of any data set holds.

One record is one image with every text that speaks of it. Records know no
vocabulary and no input size: places are kept for characters of the text, and
tasks turn characters into tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import msgpack
import numpy as np

SCHEMA = 2
# 1 had no prompts, points and masks.
READABLE = (1, 2)


class DamagedError(ValueError):
  """An example cannot be read; training may go on without it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
  """One text about an image, and where it and its words are.

  Attributes:
    id: unique within the data set; keeps its identity to the metric.
    text: a narrative, a referring expression or a region's caption.
    prompt: the question that the text answers; None when nothing was asked.
    box: [4] float32 xyxy, normalized; None when the text has no box.
    points: [N, 2] float32 xy, normalized: clicks that say what the text is
      about; None without.
    mask: the pixels that it is about, on the grid of the upright file, in the
      form of `masks`; None without.
    spans: [S, 2] int32, begin and end character in `text` of each utterance
      in order of time; (-1, -1) when the utterance is not found in the text.
    span_boxes: [S, 4] float32 xyxy, normalized and clipped: the trace's
      bounding box during the utterance.
    span_centers: [S, 2] float32 xy, normalized and clipped: the trace's mean.
    span_weights: [S] float32, 0 when the utterance has no trace.
    absent: nothing of the image is what the text, an expression, means.
  """

  id: str
  text: str
  prompt: str | None = None
  box: np.ndarray | None = None
  points: np.ndarray | None = None
  mask: bytes | None = None
  spans: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0, 2), np.int32)
  )
  span_boxes: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0, 4), np.float32)
  )
  span_centers: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0, 2), np.float32)
  )
  span_weights: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0,), np.float32)
  )
  absent: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One image and its regions.

  Attributes:
    image: encoded JPEG, PNG or WebP bytes, as in the source, or a smaller JPEG.
    image_id: the data set's id of the image.
    size: (height, width) of the upright image, pixels.
    regions: the texts about it.
  """

  image: bytes
  image_id: str
  size: tuple[int, int]
  regions: tuple[Region, ...]


# Typed as it may be told to write elsewhere and return nothing.
_PACK = cast(Callable[[Any], bytes], msgpack.packb)
_PLAIN = ('id', 'text', 'prompt', 'mask')
_ARRAYS = {
  'box': ('<f4', (4,)),
  'points': ('<f4', (-1, 2)),
  'spans': ('<i4', (-1, 2)),
  'span_boxes': ('<f4', (-1, 4)),
  'span_centers': ('<f4', (-1, 2)),
  'span_weights': ('<f4', (-1,)),
}


def to_bytes(example: Example) -> bytes:
  """The record: a msgpack map; the same example gives the same bytes."""
  regions = []
  for region in example.regions:
    row = {name: getattr(region, name) for name in _PLAIN}
    for name, (dtype, _) in _ARRAYS.items():
      value = getattr(region, name)
      row[name] = None if value is None else np.asarray(value, dtype).tobytes()
    if region.absent:
      row['absent'] = True  # a reader of before passes it over, as boxless
    regions.append(row)
  return _PACK(
    {
      'schema': SCHEMA,
      'image_id': example.image_id,
      'size': list(example.size),
      'regions': regions,
      'image': example.image,
    }
  )


def from_bytes(record: bytes) -> Example:
  """Reads what `to_bytes` wrote.

  Raises:
    DamagedError: not a record of this schema version.
  """
  try:
    row = msgpack.unpackb(record)
    if row['schema'] not in READABLE:
      raise DamagedError(
        f'record: expected schema {SCHEMA}, got {row["schema"]}; build the '
        'records again.'
      )
    regions = []
    for r in row['regions']:
      if row['schema'] == 1:
        r = dict.fromkeys(('prompt', 'points', 'mask')) | r
      values: dict[str, Any] = {name: r[name] for name in _PLAIN}
      for name, (dtype, shape) in _ARRAYS.items():
        values[name] = (
          None
          if r[name] is None
          else np.frombuffer(r[name], dtype).reshape(shape)
        )
      regions.append(Region(**values, absent=r.get('absent', False)))
    return Example(
      image=row['image'],
      image_id=row['image_id'],
      size=(int(row['size'][0]), int(row['size'][1])),
      regions=tuple(regions),
    )
  except DamagedError:
    raise
  except (
    KeyError,
    TypeError,
    IndexError,
    ValueError,
    msgpack.UnpackException,
  ) as e:
    raise DamagedError(
      f'record of {len(record)} bytes: not a canonical example ({e!r}).'
    ) from e
