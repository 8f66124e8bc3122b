# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Masks as run lengths, in the form that COCO's tools read and write.

A mask here is the compressed `counts` of COCO's RLE, bytes: the lengths of runs
of equal pixels, down the columns from left to right, beginning with a run of
zeros (of length 0 if need be). With the (height, width) of the upright file,
`{'size': [height, width], 'counts': mask}` is what pycocotools takes.

Source: COCO's `maskApi.c`, whose results these functions equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# COCO rounds polygons to a fifth of a pixel.
_SUBPIXELS = 5


def encode(mask: np.ndarray) -> bytes:
  """Run lengths of a mask.

  Args:
    mask: [height, width], any dtype; what is not zero is inside.
  """
  flat = np.asarray(mask).astype(bool).ravel(order='F')
  changes = np.flatnonzero(np.diff(flat, prepend=False))
  return pack(np.diff(changes, prepend=0, append=flat.size))


def decode(mask: bytes, size: tuple[int, int]) -> np.ndarray:
  """The pixels of a mask.

  Args:
    mask: compressed counts.
    size: (height, width).

  Returns:
    [height, width] uint8, 1 inside.

  Raises:
    ValueError: not run lengths, or not of this size.
  """
  counts = unpack(mask)
  _check_total(counts, size)
  inside = np.arange(len(counts), dtype=np.int64).astype(np.uint8) & 1
  return np.repeat(inside, counts).reshape(size, order='F')


def pack(counts: np.ndarray | Sequence[int]) -> bytes:
  """Compresses run lengths: COCO's variable-length numbers.

  From the fourth on a length is its difference to the one two before. Each
  number is written in groups of 5 bits, the lowest first, bit 5 saying that
  another group follows, as the characters from '0' on; the highest bit of the
  last group is the sign.

  Args:
    counts: [runs] whole numbers >= 0.
  """
  counts = np.asarray(counts, np.int64)
  values = counts.copy()
  values[3:] -= counts[1:-2]
  groups, more = [], []
  rest, open_ = values, np.ones(len(values), bool)
  while open_.any():
    group = rest & 31
    rest = rest >> 5
    again = rest != np.where(group & 16, -1, 0)
    groups.append(np.where(open_, group | (again << 5), -1))
    more.append(open_)
    open_ = open_ & again
  if not groups:
    return b''
  table = np.stack(groups, axis=1)
  return (table[np.stack(more, axis=1)] + 48).astype(np.uint8).tobytes()


def unpack(mask: bytes) -> np.ndarray:
  """The run lengths that `pack` compressed, [runs] int64.

  Raises:
    ValueError: not such bytes, or a length below zero.
  """
  groups = np.frombuffer(mask, np.uint8).astype(np.int64) - 48
  if len(groups) == 0:
    return groups
  if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
    raise ValueError(
      f'mask: expected the compressed counts of an RLE, got {mask[:40]!r}.'
    )
  ends = np.flatnonzero(groups < 32)
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > 12:
    raise ValueError('mask: expected run lengths below 2**59, got a longer.')
  shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
  values = np.add.reduceat((groups & 31) << shifts, starts)
  values -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
  # Differences to the one two before become sums, of odd and even places.
  values[1::2] = np.cumsum(values[1::2])
  values[2::2] = np.cumsum(values[2::2])
  if values.min() < 0:
    raise ValueError(
      f'mask: expected run lengths from 0 on, got {values.min()}.'
    )
  return values


def area(mask: bytes) -> int:
  """How many pixels are inside."""
  return int(unpack(mask)[1::2].sum())


def from_counts(
  counts: bytes | str | Sequence[int], size: tuple[int, int]
) -> bytes:
  """A mask from the `counts` of an RLE, compressed or not.

  Raises:
    ValueError: not run lengths, or not of this size.
  """
  if isinstance(counts, str):
    counts = counts.encode('ascii')
  lengths = (
    unpack(counts)
    if isinstance(counts, bytes)
    else np.asarray(counts, np.int64)
  )
  if lengths.ndim != 1 or (len(lengths) and lengths.min() < 0):
    raise ValueError('mask: expected a list of run lengths from 0 on.')
  _check_total(lengths, size)
  return _canonical(np.cumsum(lengths), size)


def from_polygons(
  polygons: Sequence[np.ndarray], size: tuple[int, int]
) -> bytes:
  """The pixels inside any of the polygons.

  Args:
    polygons: each [corners, 2] xy, pixels of the upright file, closed by its
      first corner; corners may be anywhere.
    size: (height, width).
  """
  places, signs = [], []
  for polygon in polygons:
    changes = _outline(np.asarray(polygon, np.float64), size)
    places.append(changes)
    # Inside from every other change on.
    signs.append(1 - 2 * (np.arange(len(changes)) & 1))
  if len(polygons) == 1:
    return _canonical(places[0], size)
  at, where = np.unique(np.concatenate([[0], *places]), return_inverse=True)
  depth = np.zeros(len(at), np.int64)
  np.add.at(depth, where[1:], np.concatenate([[], *signs]).astype(np.int64))
  inside = np.cumsum(depth) > 0
  return _canonical(at[np.diff(inside, prepend=False)], size)


def resize(
  mask: bytes, size: tuple[int, int], wanted: tuple[int, int]
) -> bytes:
  """The mask of a copy of the image of another size, by nearest neighbour.

  Args:
    mask: of an image of `size`.
    size: (height, width).
    wanted: (height, width) of the copy.
  """
  if size == wanted:
    return mask
  pixels = decode(mask, size)
  rows, columns = (
    (2 * np.arange(new) + 1) * old // (2 * new)
    for old, new in zip(size, wanted, strict=True)
  )
  return encode(pixels[rows[:, None], columns])


def _outline(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Where a walk down all columns crosses the polygon's outline, sorted.

  Edges are drawn on the grid of fifths of pixels; every step to another column
  of that grid which passes the middle of a column of pixels is a crossing.
  """
  height, width = size
  corners = np.trunc(_SUBPIXELS * polygon + 0.5).astype(np.int64)
  start, end = corners, np.roll(corners, -1, axis=0)
  flat = np.abs(end - start)
  wide = flat[:, 0] >= flat[:, 1]
  # Along its longer side each edge is drawn from its lesser end.
  along = np.where(wide, 0, 1)
  edge = np.arange(len(corners))
  flip = start[edge, along] > end[edge, along]
  low = np.where(flip[:, None], end, start)
  high = np.where(flip[:, None], start, end)
  steps = flat.max(axis=1)
  slope = (high - low)[edge, 1 - along] / np.maximum(steps, 1)

  which = np.repeat(edge, steps + 1)
  first = np.cumsum(steps + 1) - (steps + 1)
  step = np.arange(len(which)) - first[which]
  step = np.where(flip[which], steps[which] - step, step)
  main = low[edge, along][which] + step
  side = np.trunc(
    low[edge, 1 - along][which] + slope[which] * step + 0.5
  ).astype(np.int64)
  u = np.where(wide[which], main, side)
  v = np.where(wide[which], side, main)

  moved = np.flatnonzero(u[1:] != u[:-1]) + 1
  backwards = u[moved] < u[moved - 1]
  x = np.where(backwards, u[moved], u[moved] - 1)
  # The middle of a column of pixels: x = 2 of each five.
  column, off = np.divmod(x - _SUBPIXELS // 2, _SUBPIXELS)
  kept = (off == 0) & (column >= 0) & (column < width)
  y = np.minimum(v[moved], v[moved - 1])[kept]
  row = np.ceil(np.clip((y + 0.5) / _SUBPIXELS - 0.5, 0, height))
  return np.sort(column[kept] * height + row.astype(np.int64))


def _canonical(changes: np.ndarray, size: tuple[int, int]) -> bytes:
  """Counts from places of change, sorted; two at one place are none."""
  at, times = np.unique(changes, return_counts=True)
  total = size[0] * size[1]
  at = at[(times & 1 == 1) & (at < total)]
  return pack(np.diff(at, prepend=0, append=total))


def _check_total(counts: np.ndarray, size: tuple[int, int]) -> None:
  # In floats: hostile lengths may overflow, and none near that is an image.
  if float(counts.astype(np.float64).sum()) != size[0] * size[1]:
    raise ValueError(
      f'mask: expected run lengths of {size[0]} x {size[1]} (height x width) '
      f'pixels together, got {counts.astype(np.float64).sum():.0f}.'
    )
