# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Features of boxes, and which of many boxes to keep; shapes are static.

`region.sample` reads boxes as well: with one sample a part, wide enough to pass
over no cell. Here RoIAlign is as published, several samples a part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def roi_align(
  features: Array, boxes: Array, size: int, sampling_ratio: int = 2
) -> Array:
  """The mean of linear samples of the features in each part of boxes.

  A sample beyond the outermost cells' centres reads the nearest of them; one
  more than a cell away reads 0.

  Args:
    features: [B, h, w, C], of the padded input.
    boxes: [B, R, 4] xyxy, normalized to the padded input.
    size: parts along each side of a box.
    sampling_ratio: samples along each side of a part.

  Returns:
    [B, R, size, size, C].

  Raises:
    ValueError: the sampling ratio is below 1: the number of samples cannot
      depend on the boxes.

  Source: Mask R-CNN (arXiv 1703.06870), section 3; the borders are those of
    `torchvision.ops.roi_align` with `aligned=True`.
  Reference: scenic's reads zeros beyond the outermost cells' centres already,
    so that a box at the border of the image fades out.
  """
  return multilevel_roi_align([features], boxes, None, size, sampling_ratio)


def multilevel_roi_align(
  pyramid: list[Array],
  boxes: Array,
  levels: Array | None,
  size: int,
  sampling_ratio: int = 2,
  counts: list[tuple[float, float]] | None = None,
) -> Array:
  """`roi_align`, each box in one level of a feature pyramid.

  Args:
    pyramid: [B, h_i, w_i, C] each, of the padded input and perhaps beyond.
    boxes: [B, R, 4] xyxy, normalized to the padded input.
    levels: [B, R] int, index of each box's level; None sums over all.
    size: parts along each side of a box.
    sampling_ratio: samples along each side of a part.
    counts: of each level, how many of its cells are as high and as wide as the
      padded input; None where that is all of them.

  Returns:
    [B, R, size, size, C].

  Raises:
    ValueError: the sampling ratio is below 1.
  """
  if sampling_ratio < 1:
    raise ValueError(
      f'roi_align: expected a sampling_ratio of at least 1, got '
      f'{sampling_ratio}.'
    )
  out: Array | None = None
  for i, features in enumerate(pyramid):
    _, height, width, _ = features.shape
    count = (height, width) if counts is None else counts[i]
    down, across = (
      _weights(
        boxes[..., axis] * count[1 - axis],
        boxes[..., axis + 2] * count[1 - axis],
        size,
        sampling_ratio,
        cells,
      )
      for axis, cells in ((1, height), (0, width))
    )
    if levels is not None:
      down = down * (levels == i)[..., None, None]
    down, across = (jnp.asarray(w, features.dtype) for w in (down, across))
    rows = jnp.einsum('brih,bhwc->briwc', down, features)
    y = jnp.einsum('brjw,briwc->brijc', across, rows)
    out = y if out is None else out + y
  if out is None:
    raise ValueError('roi_align: expected features, got an empty pyramid.')
  return out


def _weights(
  low: Array, high: Array, size: int, samples: int, cells: int
) -> Array:
  """[B, R] ends of boxes, in cells -> [B, R, size, cells] weights of cells."""
  count = size * samples
  at = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
  low, high = low[..., None], high[..., None]
  # The first cell has its centre at 0.
  at = low + (high - low) * at[None, None] - 0.5
  there = (at >= -1) & (at <= cells)
  at = jnp.clip(at, 0, cells - 1)
  cell = jnp.arange(cells, dtype=jnp.float32)
  weights = jnp.maximum(1 - jnp.abs(at[..., None] - cell[None, None, None]), 0)
  weights = weights * there[..., None]
  weights = weights.reshape(*weights.shape[:2], size, samples, cells)
  return jnp.mean(weights, axis=-2)


def area(boxes: Array) -> Array:
  """[..., 4] xyxy -> [...], in squares of their unit; 0 if turned over."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def overlap(boxes: Array, others: Array) -> tuple[Array, Array]:
  """Areas of the intersection and of the union, box by box.

  Args:
    boxes: [..., 4] xyxy.
    others: [..., 4] xyxy, of a shape that broadcasts.

  Returns:
    Two of [...], in squares of the boxes' unit.
  """
  both = jnp.concatenate(
    [
      jnp.maximum(boxes[..., :2], others[..., :2]),
      jnp.minimum(boxes[..., 2:], others[..., 2:]),
    ],
    axis=-1,
  )
  return area(both), area(boxes) + area(others) - area(both)


def pairwise_overlap(boxes: Array, others: Array) -> tuple[Array, Array]:
  """`overlap` of every pair.

  Args:
    boxes: [..., N, 4] xyxy.
    others: [..., M, 4] xyxy.

  Returns:
    Two of [..., N, M], in squares of the boxes' unit.
  """
  return overlap(boxes[..., :, None, :], others[..., None, :, :])


def nms(boxes: Array, scores: Array, valid: Array, threshold: float) -> Array:
  """Greedy non-maximum suppression.

  A box stays unless it overlaps a better one that stays. That is a recursion
  over the boxes by their scores; here all boxes are decided at once, and again
  from what was decided, until nothing changes: after n rounds the n best are
  right, and most are far earlier, as chains of boxes that overlap are short.

  Args:
    boxes: [..., N, 4] xyxy.
    scores: [..., N]; of two equal ones the first is the better.
    valid: [..., N] bool; others are dropped and drop none.
    threshold: boxes whose IoU is above it overlap.

  Returns:
    [..., N] bool, which to keep. `geometry.nms` is the same on the host.
  """
  shared, union = pairwise_overlap(boxes, boxes)
  theirs, own = scores[..., :, None], scores[..., None, :]
  index = jnp.arange(scores.shape[-1])
  first = index[:, None] < index[None, :]
  first = jnp.reshape(first, (1,) * (scores.ndim - 1) + first.shape)
  better = (theirs > own) | ((theirs == own) & first)
  # Without a quotient: two empty boxes overlap nothing.
  drops = better & (shared > threshold * union) & valid[..., :, None]

  def decide(state):
    keep, _ = state
    again = valid & ~jnp.any(keep[..., :, None] & drops, axis=-2)
    return again, jnp.any(again != keep)

  keep, _ = jax.lax.while_loop(
    lambda state: state[1], decide, (valid, jnp.asarray(True))
  )
  return keep


def best(scores: Array, keep: Array, count: int) -> tuple[Array, Array]:
  """The best of what was kept.

  Args:
    scores: [..., N], finite.
    keep: [..., N] bool.
    count: how many; at most N.

  Returns:
    Their indices [..., count] int32, best first, and [..., count] bool, which
    of these were kept at all.
  """
  values, index = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), count)
  return index, values > -jnp.inf
