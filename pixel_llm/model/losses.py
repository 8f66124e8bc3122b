# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of words and points.

Each returns the weighted sum and the sum of the weights, both float32 scalars,
and leaves the division to `mean`: parts of a batch, micro-batches or hosts are
combined by adding sums and weights first, and the result does not depend on how
the batch was cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pixel_llm.model import region

Array = jax.Array


def mean(total: Array, weight: Array) -> Array:
  """The quotient; 0, with zero gradient, where nothing had weight."""
  some = weight > 0
  return jnp.where(some, total / jnp.where(some, weight, 1.0), 0.0)


def word_loss(
  logits: Array,
  targets: Array,
  weights: Array,
  label_smoothing: float = 0.1,
) -> tuple[Array, Array]:
  """Cross-entropy in nats against smoothed targets.

  The target word has probability 1 - s, each of the other V - 1 words
  s / (V - 1). With z the logits and t the target,

    loss = logsumexp(z) - (1 - s) z_t - s / (V - 1) (sum(z) - z_t),

  so that no array of target probabilities is built.

  Args:
    logits: [..., L, V].
    targets: [..., L] int, ids below V.
    weights: [..., L]; a token of weight 0 is ignored.
    label_smoothing: s, in [0, 1).

  Returns:
    The weighted sum of the tokens' losses, and the sum of the weights.

  Source: scenic pixel_llm, `modeling/losses.py:text_loss`.
  Reference: the mask of padding, empty captions and begin tokens made there
  from token ids is here the caller's `weights`.
  """
  logits = jnp.asarray(logits, jnp.float32)
  vocab = logits.shape[-1]
  others = label_smoothing / (vocab - 1)
  at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = (
    jax.nn.logsumexp(logits, axis=-1)
    - (1 - label_smoothing - others) * at_target
    - others * vocab * jnp.mean(logits, axis=-1)
  )
  return _weigh(loss, weights)


def word_accuracy(
  logits: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
  """How often the likeliest word is the target.

  Args:
    logits: [..., L, V].
    targets: [..., L] int.
    weights: [..., L].

  Returns:
    The weighted number of hits, and the sum of the weights.
  """
  hits = jnp.argmax(logits, axis=-1) == targets
  return _weigh(jnp.asarray(hits, jnp.float32), weights)


def point_loss(
  points: Array, target_points: Array, weights: Array, scale: Array
) -> tuple[Array, Array]:
  """L1 distance, averaged over a token's points and over x and y.

  Coordinates are normalized to the valid image, which differs in shape from
  image to image: `scale` brings their differences to one unit, that of the
  result. With the valid (width, height) in pixels, the unit is the pixel, and
  the weight of the loss depends on the size of the input. With the valid
  (width, height) / side of the padded input, both in pixels, the unit is that
  side and nothing depends on the size; the published weight, 0.1 a pixel at
  384 pixels, is then 0.1 * 384 = 38.4.

  Args:
    points: [B, R, L, P, 2] xy, normalized.
    target_points: [B, R, L, P, 2] xy, normalized.
    weights: [B, R, L]; a token of weight 0 is ignored.
    scale: [B, 2], (width, height) of the valid image in the unit of the loss.

  Returns:
    The weighted sum of the tokens' losses, and the sum of the weights.

  Source: scenic pixel_llm, `modeling/losses.py:point_loss` with `l1_nonzero`.
  Reference: there a token whose target is all zeros counts as missing; here
  only `weights` says so, and the origin is a place like any other.
  """
  difference = jnp.asarray(points, jnp.float32) - target_points
  scale = jnp.reshape(jnp.asarray(scale, jnp.float32), (-1, 1, 1, 1, 2))
  loss = jnp.mean(jnp.abs(difference) * scale, axis=(-2, -1))
  return _weigh(loss, weights)


def proposal_loss(
  proposals: Array, boxes: Array, weights: Array
) -> tuple[Array, Array]:
  """1 - IoU, and the mean L1 of the sides, of cells that lie in a box.

  A cell belongs to the smallest box that its centre is in. A cell in none does
  not count: nobody says that every thing of an image has its box.

  Args:
    proposals: [B, cells, cells, 4] xyxy, normalized.
    boxes: [B, R, 4] xyxy, normalized.
    weights: [B, R]; a box of weight 0 is ignored.

  Returns:
    The weighted sum over cells, and the sum of the weights.

  Source: targets as in FCOS (arXiv 1904.01355), section 3.1.
  """
  cells = proposals.shape[1]
  middle = region.centers(jnp.asarray([[0.0, 0, 1, 1]]), cells)[..., None, :]
  proposals = jnp.reshape(proposals, (len(boxes), -1, 4))
  low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
  inside = jnp.all((middle >= low) & (middle <= high), axis=-1)
  inside &= weights[:, None] > 0  # [B, cells * cells, R]

  area = _area(boxes[..., :2], boxes[..., 2:])
  which = jnp.argmin(jnp.where(inside, area[:, None], jnp.inf), axis=-1)
  target = jnp.take_along_axis(boxes, which[..., None], axis=1)
  weight = jnp.take_along_axis(weights, which, axis=1)
  weight = jnp.where(jnp.any(inside, axis=-1), weight, 0.0)

  overlap = _area(
    jnp.maximum(proposals[..., :2], target[..., :2]),
    jnp.minimum(proposals[..., 2:], target[..., 2:]),
  )
  union = _area(proposals[..., :2], proposals[..., 2:])
  union = union + _area(target[..., :2], target[..., 2:]) - overlap
  iou = overlap / jnp.maximum(union, 1e-6)
  sides = jnp.mean(jnp.abs(proposals - target), axis=-1)
  return _weigh(1 - iou + sides, weight)


def _area(low: Array, high: Array) -> Array:
  sides = jnp.maximum(high - low, 0)
  return sides[..., 0] * sides[..., 1]


def _weigh(values: Array, weights: Array) -> tuple[Array, Array]:
  weights = jnp.asarray(weights, jnp.float32)
  return jnp.sum(values * weights), jnp.sum(weights)
