# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Places that a user asks about, in pixels of a file: checked, normalized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pixel_llm import example as example_lib
from pixel_llm import geometry
from pixel_llm.prediction import Box, Point

# A file's name and fit -> the regions to ask about.
Places = Callable[[str, geometry.Fit], list[example_lib.Region]]


def places(
  boxes_orig: Iterable[Box] = (),
  points_orig: Iterable[Point | Sequence[Point]] = (),
  masks: Iterable[np.ndarray] = (),
) -> Places:
  """Boxes, then points, then boxes of masks; of one image or of many.

  Args:
    boxes_orig: xyxy, pixels of the upright original file.
    points_orig: xy, alike; several points of one thing are a list of them.
    masks: [height, width] of the upright file, not zero inside.

  Returns: a function that raises ValueError where a place is none of the file.

  Raises:
    ValueError: a box or a point is none at all.
  """
  boxes = [tuple(map(float, box)) for box in boxes_orig]
  points = [np.asarray(p, np.float32) for p in points_orig]
  masks = [np.asarray(mask) for mask in masks]
  for box in boxes:
    if len(box) != 4:
      raise ValueError(f'box {box}: expected x0, y0, x1, y1.')
  for at in points:
    if at.size == 0 or at.size % 2 or at.ndim > 2 or at.shape[-1] != 2:
      raise ValueError(f'point {at.tolist()}: expected x, y or a list of them.')

  def of(name: str, fit: geometry.Fit) -> list[example_lib.Region]:
    return [
      *(_at_box(box, fit, name) for box in boxes),
      *(_at_points(at.reshape(-1, 2), fit, name) for at in points),
      *(_at_box(_mask_box(m, fit, name), fit, name) for m in masks),
    ]

  return of


def _at_box(
  box: Sequence[float], fit: geometry.Fit, name: str
) -> example_lib.Region:
  x0, y0, x1, y1 = box
  height, width = fit.original
  if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
    raise ValueError(
      f'box {x0:g},{y0:g},{x1:g},{y1:g}: expected x0,y0,x1,y1 in pixels with '
      f'0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, the size of '
      f'{name}.'
    )
  normalized = fit.from_orig(np.asarray(box, np.float32))
  return example_lib.Region('', '', box=normalized)


def _at_points(
  points: np.ndarray, fit: geometry.Fit, name: str
) -> example_lib.Region:
  height, width = fit.original
  for x, y in points.tolist():
    if not (0 <= x <= width and 0 <= y <= height):
      raise ValueError(
        f'point {x:g},{y:g}: expected x,y in pixels with 0 <= x <= {width} and '
        f'0 <= y <= {height}, the size of {name}.'
      )
  return example_lib.Region('', '', points=fit.from_orig(points))


def _mask_box(
  mask: np.ndarray, fit: geometry.Fit, name: str
) -> tuple[float, float, float, float]:
  if mask.shape != fit.original:
    raise ValueError(
      f'mask: expected [height, width] of {list(fit.original)}, the size of '
      f'{name}, got {list(mask.shape)}.'
    )
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  if not len(rows):
    raise ValueError('mask: expected a pixel that is not zero, got none.')
  x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return float(x0), float(y0), float(x1), float(y1)
