# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What training changes at random: the image and all that points into it.

Nothing here keeps state: the same draws of the same generator give the same
result. What is drawn for the image is a `Fit`, which has an inverse, and moves
boxes, points and masks with the pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pixel_llm import geometry
from pixel_llm.example import Region
from pixel_llm.geometry import Affine, Fit


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How an example may be changed; by default it is not.

  Attributes:
    flip: probability that left and right are exchanged. Words such as "left"
      stay as they are.
    scale: least and greatest length of the longer side, in sides of the
      canvas. What is larger than the canvas is cropped at a random place, what
      is smaller is padded.
    click: probability that a location prompt is a point in the box instead of
      the box, where the batch has room for points.

  Source: scenic pixel_llm, `random_ratio_resize` and `fixed_size_crop` of
  `io/ops.py`. Reference: its draws have a state, so that no run repeats.
  """

  flip: float = 0.0
  scale: tuple[float, float] = (1.0, 1.0)
  click: float = 0.0

  def __post_init__(self):
    least, most = self.scale
    if not 0 < least <= most:
      raise ValueError(
        'augmentation scale: expected 0 < least <= greatest, got '
        f'{tuple(self.scale)}.'
      )
    for name in ('flip', 'click'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f'augmentation {name}: expected a probability, got '
          f'{getattr(self, name)}.'
        )

  def draw(
    self, rng: np.random.Generator, original: tuple[int, int], canvas: int
  ) -> Fit:
    """What is seen of an image.

    Args:
      rng: of the draws; always as many, whatever comes out.
      original: (height, width) of the upright file.
      canvas: side of the network's input.
    """
    turned, ratio, *where = rng.random(4)
    least, most = self.scale
    ratio = least + (most - least) * ratio
    whole = Fit(original, max(1, int(canvas * ratio))).size
    part = (min(whole[0], canvas), min(whole[1], canvas))
    affine = Affine()
    if part != whole:
      # On whole pixels of the file, so that nothing is shifted by less.
      corners = np.zeros((2, 2))
      for axis, spot in enumerate(where):
        side = original[axis]
        seen = max(1, round(side * part[axis] / whole[axis]))
        corners[:, 1 - axis] = int(spot * (side - seen + 1)) + np.array(
          [0, seen]
        )
      affine = Affine.crop((corners / original[::-1]).ravel())
    if turned < self.flip:
      affine = affine.then(Affine.flip())
    return Fit(original, canvas, affine, part)


def move(region: Region, affine: Affine) -> Region | None:
  """The region in coordinates of what is seen; its mask stays on the file.

  Boxes are cut at the edge. Clicks beyond it go, words said there lose their
  place.

  Returns:
    None when it had a box or clicks, and nothing of them is seen.
  """
  if affine == Affine():
    return region
  box, points = region.box, region.points
  if box is not None:
    box = geometry.clip_box(affine.boxes(box))
    if not geometry.box_area(box) > 0:
      return None
  if points is not None:
    points = affine.points(points)
    points = points[_inside(points, points)]
    if not len(points):
      if box is None:
        return None
      points = None
  spans = affine.boxes(region.span_boxes)
  seen = _inside(spans[:, :2], spans[:, 2:])
  return dataclasses.replace(
    region,
    box=box,
    points=points,
    span_boxes=geometry.clip_box(spans),
    span_centers=geometry.clip_box(affine.points(region.span_centers)),
    span_weights=region.span_weights * seen,
  )


def _inside(low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """[N] bool: something of each [low, high] xy is in [0, 1]."""
  return np.all((low <= 1) & (high >= 0), axis=-1)
