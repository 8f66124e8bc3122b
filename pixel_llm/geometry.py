# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Points, boxes and masks: units, the way to the network's input, and back.

Three units, told apart by name. Unmarked: normalized to the valid image, in
[0, 1]. `_px`: pixels of the padded square input. `_orig`: pixels of the
original upright file. All are continuous: pixel i covers [i, i + 1], its centre
is i + 0.5. Points are xy, boxes xyxy, sizes (height, width).

Because unmarked coordinates are relative to the valid image, resizing and
padding (`Fit`) leave them alone; only flips and crops (`Affine`) move them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Affine:
  """Axis-aligned map of normalized coordinates: `scale * xy + offset`.

  Flips, crops and their inverses and compositions, in the coordinates of the
  image before to those of the image after. The default is the identity.

  Attributes:
    scale: (x, y); negative flips.
    offset: (x, y).
  """

  scale: tuple[float, float] = (1.0, 1.0)
  offset: tuple[float, float] = (0.0, 0.0)

  @classmethod
  def flip(cls) -> Affine:
    """Left and right exchanged."""
    return cls(scale=(-1.0, 1.0), offset=(1.0, 0.0))

  @classmethod
  def crop(cls, box) -> Affine:
    """The part of the image in `box` (xyxy) becomes the whole image.

    A box reaching beyond [0, 1] pads. To crop arrays without a shift below one
    pixel, take the box from `snap_box`.

    Raises:
      ValueError: the box is empty or turned over.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (x1 > x0 and y1 > y0):
      raise ValueError(
        'Affine.crop: expected a box xyxy with x1 > x0 and y1 > y0, got '
        f'{(x0, y0, x1, y1)}.'
      )
    scale = (1.0 / (x1 - x0), 1.0 / (y1 - y0))
    return cls(scale=scale, offset=(-x0 * scale[0], -y0 * scale[1]))

  def then(self, after: Affine) -> Affine:
    """This map followed by `after`."""
    return Affine(
      scale=(self.scale[0] * after.scale[0], self.scale[1] * after.scale[1]),
      offset=(
        self.offset[0] * after.scale[0] + after.offset[0],
        self.offset[1] * after.scale[1] + after.offset[1],
      ),
    )

  def inverse(self) -> Affine:
    """The map back."""
    scale = (1.0 / self.scale[0], 1.0 / self.scale[1])
    return Affine(
      scale=scale,
      offset=(-self.offset[0] * scale[0], -self.offset[1] * scale[1]),
    )

  def points(self, points: np.ndarray) -> np.ndarray:
    """Moves points [..., 2]; they may leave [0, 1]."""
    points = np.asarray(points)
    return points * np.asarray(self.scale, points.dtype) + np.asarray(
      self.offset, points.dtype
    )

  def boxes(self, boxes: np.ndarray) -> np.ndarray:
    """Moves boxes [..., 4] and puts their corners in order again."""
    boxes = np.asarray(boxes)
    moved = boxes * np.asarray(self.scale * 2, boxes.dtype) + np.asarray(
      self.offset * 2, boxes.dtype
    )
    if self.scale[0] < 0:
      moved = moved[..., [2, 1, 0, 3]]
    if self.scale[1] < 0:
      moved = moved[..., [0, 3, 2, 1]]
    return moved

  def coordinates(self, coordinates: np.ndarray) -> np.ndarray:
    """Moves points [..., 2] or boxes [..., 4]."""
    if self == Affine():
      return coordinates
    is_box = np.shape(coordinates)[-1] == 4
    return self.boxes(coordinates) if is_box else self.points(coordinates)

  def array(
    self, image: np.ndarray, size: tuple[int, int] | None = None
  ) -> np.ndarray:
    """Moves the pixels of an image or mask; what comes from outside is zero.

    Pixels are moved, never blended (nearest neighbour): scaling is left to the
    one resize of `image.prepare`.

    Args:
      image: [height, width, ...], any dtype.
      size: (height, width) of the result; default keeps the size of a pixel,
        so that a crop has fewer pixels and its inverse pads.

    Returns:
      [height, width, ...], same dtype.
    """
    height, width = image.shape[:2]
    if size is None:
      size = (
        max(1, round(height / abs(self.scale[1]))),
        max(1, round(width / abs(self.scale[0]))),
      )
    back = self.inverse()
    indices, inside = [], []
    for axis, (old, new) in enumerate(zip((height, width), size)):
      xy = 1 - axis
      centers = (np.arange(new) + 0.5) / new
      source = np.floor(
        (centers * back.scale[xy] + back.offset[xy]) * old
      ).astype(np.int64)
      inside.append((source >= 0) & (source < old))
      indices.append(np.clip(source, 0, old - 1))
    out = image[indices[0][:, None], indices[1][None, :]]
    out[~(inside[0][:, None] & inside[1][None, :])] = 0
    return out


@dataclasses.dataclass(frozen=True)
class Fit:
  """How an image comes onto a square canvas, padded at bottom and right.

  By default all of it: the longer side becomes the canvas, the shorter keeps
  the aspect ratio to the nearest whole pixel (halves go up; at least one
  pixel). Otherwise the part that `affine` makes the whole, `resized` large.

  Normalized coordinates are of what is seen, the valid image on the canvas.

  Attributes:
    original: (height, width) of the upright file, `_orig` pixels.
    canvas: side of the square input, `_px` pixels.
    affine: coordinates of the upright file, normalized, to those of what is
      seen; the identity shows all of it.
    resized: (height, width) of what is seen on the canvas, `_px` pixels; None
      fills the canvas as far as the aspect ratio allows.
  """

  original: tuple[int, int]
  canvas: int
  affine: Affine = Affine()
  resized: tuple[int, int] | None = None

  def __post_init__(self):
    height, width = self.original
    if height < 1 or width < 1 or self.canvas < 1:
      raise ValueError(
        'Fit: expected sizes of at least one pixel, got an original of '
        f'{self.original} (height, width) and a canvas of {self.canvas}.'
      )
    if self.resized and not (
      min(self.resized) > 0 and max(self.resized) <= self.canvas
    ):
      raise ValueError(
        f'Fit: expected resized (height, width) from 1 to {self.canvas}, got '
        f'{self.resized}.'
      )

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) of the valid image on the canvas, `_px` pixels."""
    if self.resized is not None:
      return self.resized
    height, width = self.original
    longer = max(height, width)
    # Whole numbers: floats round 0.5 one way or the other by luck.
    rounded = [
      max(1, (2 * side * self.canvas + longer) // (2 * longer))
      for side in (height, width)
    ]
    return rounded[0], rounded[1]

  @property
  def seen(self) -> tuple[int, int, int, int]:
    """The part of the file that is seen, xyxy, whole `_orig` pixels.

    Raises:
      ValueError: its edges lie within pixels; see `snap_box`.
    """
    box = self.to_orig(np.array([0.0, 0.0, 1.0, 1.0]))
    x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
    if np.abs(box - (x0, y0, x1, y1)).max() > 1e-3:
      raise ValueError(f'Fit.seen: expected whole pixels, got {box.tolist()}.')
    return x0, y0, x1, y1

  def to_orig(self, coordinates: np.ndarray) -> np.ndarray:
    """Normalized points [..., 2] or boxes [..., 4] in `_orig` pixels."""
    whole = self.affine.inverse().coordinates(coordinates)
    return whole * _scale(self.original, coordinates)

  def from_orig(self, coordinates_orig: np.ndarray) -> np.ndarray:
    """Points [..., 2] or boxes [..., 4] in `_orig` pixels, normalized."""
    return self.affine.coordinates(
      coordinates_orig / _scale(self.original, coordinates_orig)
    )

  def to_px(self, coordinates: np.ndarray) -> np.ndarray:
    """Normalized points [..., 2] or boxes [..., 4] in `_px` pixels."""
    return coordinates * _scale(self.size, coordinates)

  def from_px(self, coordinates_px: np.ndarray) -> np.ndarray:
    """Points [..., 2] or boxes [..., 4] in `_px` pixels, normalized."""
    return coordinates_px / _scale(self.size, coordinates_px)

  def mask_to_canvas(
    self, mask_orig: np.ndarray, side: int | None = None
  ) -> np.ndarray:
    """A mask of the original file on the canvas, zero on the padding.

    Args:
      mask_orig: [height, width] of `original`, any dtype.
      side: of a coarser or finer grid over the canvas; default its pixels.

    Returns:
      [side, side], same dtype, by nearest neighbour.
    """
    _check_size('Fit.mask_to_canvas', mask_orig, self.original)
    side = self.canvas if side is None else side
    indices, inside = [], []
    for axis, (old, new) in enumerate(
      zip(self.original, self.size, strict=True)
    ):
      # Centres of cells, in whole numbers as far as possible: (2 i + 1) / (2
      # side) of the canvas.
      twice = (2 * np.arange(side) + 1) * self.canvas
      valid = twice < 2 * side * new
      if self.affine == Affine():
        at = twice * old // (2 * side * new)
      else:
        back = self.affine.inverse()
        seen = twice / (2 * side * new)
        at = np.floor(
          (seen * back.scale[1 - axis] + back.offset[1 - axis]) * old
        ).astype(np.int64)
        valid &= (at >= 0) & (at < old)
      indices.append(np.clip(at, 0, old - 1))
      inside.append(valid)
    out = mask_orig[indices[0][:, None], indices[1]]
    out[~(inside[0][:, None] & inside[1])] = 0
    return out

  def mask_from_canvas(self, mask_px: np.ndarray) -> np.ndarray:
    """A mask of the canvas on the original file, by nearest neighbour.

    Undoes `mask_to_canvas` exactly when all of the image is seen and the canvas
    is at least as large as its longer side. What is not seen is zero.

    Args:
      mask_px: [canvas, canvas], any dtype.

    Returns:
      [height, width] of `original`, same dtype.
    """
    _check_size('Fit.mask_from_canvas', mask_px, (self.canvas, self.canvas))
    height, width = self.size
    valid = mask_px[:height, :width]
    if self.affine == Affine():
      return _nearest(valid, self.original)
    return self.affine.inverse().array(valid, self.original)


def snap_box(box, size: tuple[int, int]) -> np.ndarray:
  """The box on pixel edges nearest to `box`, at least one pixel large.

  Args:
    box: [4] xyxy, normalized.
    size: (height, width) of the array to be cropped.

  Returns:
    [4] float64 xyxy, normalized, inside [0, 1].
  """
  height, width = size
  scale = np.asarray([width, height], np.float64)
  box = clip_box(np.asarray(box, np.float64))
  low = np.minimum(np.rint(box[:2] * scale), scale - 1)
  high = np.maximum(np.rint(box[2:] * scale), low + 1)
  return np.concatenate([low, high]) / np.concatenate([scale, scale])


def clip_box(boxes: np.ndarray) -> np.ndarray:
  """Boxes [..., 4] (or points [..., 2]) clipped to the valid image."""
  return np.minimum(np.maximum(boxes, 0), 1)  # quicker than np.clip


def box_area(boxes: np.ndarray) -> np.ndarray:
  """[...] areas of boxes [..., 4]; a box turned over has none."""
  sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Intersection over union, box by box.

  The ratio is the same in every unit, as long as both boxes share it.

  Args:
    boxes: [..., 4] xyxy.
    others: [..., 4] xyxy, of the same or a broadcastable shape.

  Returns:
    [...] in [0, 1]; 0 where the union is empty.
  """
  boxes, others = np.asarray(boxes), np.asarray(others)
  overlap = box_area(
    np.concatenate(
      [
        np.maximum(boxes[..., :2], others[..., :2]),
        np.minimum(boxes[..., 2:], others[..., 2:]),
      ],
      axis=-1,
    )
  )
  union = box_area(boxes) + box_area(others) - overlap
  return np.where(union > 0, overlap / np.where(union > 0, union, 1), 0.0)


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Intersection over union of every pair.

  Args:
    boxes: [..., N, 4] xyxy.
    others: [..., M, 4] xyxy.

  Returns:
    [..., N, M] in [0, 1].
  """
  boxes, others = np.asarray(boxes), np.asarray(others)
  return box_iou(boxes[..., :, None, :], others[..., None, :, :])


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
  """Greedy non-maximum suppression: a box stays unless a better one covers it.

  `model.roi.nms` is the same on the device.

  Args:
    boxes: [N, 4] xyxy.
    scores: [N]; of two equal ones the first is the better.
    threshold: boxes whose IoU is above it overlap.

  Returns:
    [kept] int64, indices of the boxes that stay, best first.
  """
  order = np.argsort(-np.asarray(scores), kind='stable')
  iou = pairwise_iou(boxes, boxes)
  kept: list[int] = []
  for i in order:
    if not np.any(iou[i, kept] > threshold):
      kept.append(int(i))
  return np.asarray(kept, np.int64)


def points_to_box(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Smallest box holding the weighted points.

  Args:
    points: [..., length, points, 2] xy.
    weights: [..., length]; tokens of weight 0 are ignored.

  Returns:
    [..., 4] xyxy; the zero box where no token has a weight.

  Source: scenic pixel_llm, `modeling/utils.py`; weights replace its valid mask.
  """
  points, weights = np.asarray(points), np.asarray(weights)
  there = weights > 0
  kept = np.expand_dims(there, (-2, -1))
  low = np.where(kept, points, np.inf).min(axis=(-3, -2))
  high = np.where(kept, points, -np.inf).max(axis=(-3, -2))
  box = np.concatenate([low, high], axis=-1)
  any_there = np.any(there, axis=-1, keepdims=True)
  return np.where(any_there, box, 0.0).astype(points.dtype)


def answer_box(tokens: Any, points: Any) -> Any:
  """The box that a read answer points at, on the host or on the device.

  Args:
    tokens: [..., L] int, the answer with its end token.
    points: [..., L, P, 2] xy.

  Returns:
    [..., 4] xyxy, the bounding box of the points of the last token before the
    end; an array of NumPy or JAX as `points` is.

  Source: paper section 3.4, referring localization.
  """
  xp = points.__array_namespace__()
  last = xp.maximum((tokens > 0).sum(-1) - 2, 0)[..., None, None, None]
  at = xp.take_along_axis(points, last, axis=-3)[..., 0, :, :]
  return xp.concatenate([at.min(-2), at.max(-2)], axis=-1)


def _scale(size: tuple[int, int], coordinates: np.ndarray) -> np.ndarray:
  """The factors of (x, y) or (x, y, x, y) for a (height, width)."""
  height, width = size
  repeats = {2: 1, 4: 2}.get(np.shape(coordinates)[-1])
  if repeats is None:
    raise ValueError(
      'expected points [..., 2] or boxes [..., 4], got shape '
      f'{np.shape(coordinates)}.'
    )
  dtype = np.result_type(np.asarray(coordinates).dtype, np.float32)
  return np.asarray([width, height] * repeats, dtype)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[height, width] resampled at pixel centres, in whole numbers."""
  rows, columns = (
    (2 * np.arange(new) + 1) * old // (2 * new)
    for old, new in zip(array.shape, size)
  )
  return array[rows[:, None], columns[None, :]]


def _check_size(name: str, mask: np.ndarray, size: tuple[int, int]) -> None:
  if mask.shape != tuple(size):
    raise ValueError(f'{name}: expected shape {tuple(size)}, got {mask.shape}.')
