# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of words, points, masks and boxes.

Each returns the weighted sum and the sum of the weights, both float32 scalars,
and leaves the division to `mean`: parts of a batch, micro-batches or hosts are
combined by adding sums and weights first, and the result does not depend on how
the batch was cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pixel_llm.model import detector, region, roi

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

  area = roi.area(boxes)
  which = jnp.argmin(jnp.where(inside, area[:, None], jnp.inf), axis=-1)
  target = jnp.take_along_axis(boxes, which[..., None], axis=1)
  weight = jnp.take_along_axis(weights, which, axis=1)
  weight = jnp.where(jnp.any(inside, axis=-1), weight, 0.0)

  overlap, union = roi.overlap(proposals, target)
  iou = overlap / jnp.maximum(union, 1e-6)
  sides = jnp.mean(jnp.abs(proposals - target), axis=-1)
  return _weigh(1 - iou + sides, weight)


def focal_loss(
  logits: Array,
  targets: Array,
  weights: Array,
  alpha: float = 0.5,
  gamma: float = 2.0,
) -> Array:
  """Cross-entropy of pixels in which those nearly right count little.

  With p the probability given to a pixel's true class, the pixel costs
  - a (1 - p)^gamma log(p), a being alpha in the mask and 1 - alpha outside.

  Args:
    logits: [..., H, W].
    targets: [..., H, W], 1 in the mask and 0 outside.
    weights: [..., H, W] of the pixels.
    alpha: weight of the pixels in the mask.
    gamma: 0 is cross-entropy.

  Returns:
    [...] the mean over the pixels of each mask; 0 where no pixel has weight.
  Source: arXiv 1708.02002; scenic `model_lib/base_models/model_utils.py`, whose
    alpha is 0.5.
  """
  logits, targets = _float(logits), _float(targets)
  cost = -jax.nn.log_sigmoid(jnp.where(targets > 0.5, logits, -logits))
  cost = cost * (1 - jnp.exp(-cost)) ** gamma
  cost = cost * jnp.where(targets > 0.5, alpha, 1 - alpha)
  weights = jnp.broadcast_to(_float(weights), logits.shape)
  return mean(
    jnp.sum(cost * weights, axis=(-2, -1)), jnp.sum(weights, axis=(-2, -1))
  )


def dice_loss(logits: Array, targets: Array, weights: Array) -> Array:
  """1 - 2 |P and T| / (|P| + |T|), of probable pixels P and true pixels T.

  Args:
    logits: [..., H, W].
    targets: [..., H, W], 1 in the mask and 0 outside.
    weights: [..., H, W] of the pixels.

  Returns:
    [...] in [0, 1); one more pixel above and below the fraction makes two empty
    masks equal.
  Source: arXiv 1606.04797; scenic `model_lib/base_models/model_utils.py`.
  """
  weights = _float(weights)
  inside = jax.nn.sigmoid(_float(logits)) * weights
  targets = _float(targets) * weights
  both = jnp.sum(inside * targets, axis=(-2, -1))
  each = jnp.sum(inside + targets, axis=(-2, -1))
  return 1 - (2 * both + 1) / (each + 1)


def mask_iou(logits: Array, targets: Array, weights: Array) -> Array:
  """Intersection over union of masks.

  Args:
    logits: [..., H, W]; a pixel is in the mask where its logit is above 0.
    targets: [..., H, W], 1 in the mask and 0 outside.
    weights: [..., H, W] of the pixels.

  Returns:
    [...] in [0, 1]; 0 where both are empty. It has no gradient.
  """
  inside, targets = logits > 0, targets > 0.5
  weights = _float(weights)
  both = jnp.sum(_float(inside & targets) * weights, axis=(-2, -1))
  return mean(both, jnp.sum(_float(inside | targets) * weights, axis=(-2, -1)))


def mask_loss(
  logits: Array,
  ious: Array,
  targets: Array,
  pixels: Array,
  weights: Array,
  focal_weight: float = 20.0,
  dice_weight: float = 1.0,
) -> tuple[Array, Array, Array, Array]:
  """The parts of SAM's loss of masks.

  Where a region has several candidates the one that costs least is trained, by
  focal and dice loss; the predicted IoU of every candidate is brought to what
  it is. The published total is 20 * focal + 1 * dice + 1 * IoU.

  Args:
    logits: [B, R, M, h, w] of M candidates; resized linearly to the targets.
    ious: [B, R, M], predicted IoU of each.
    targets: [B, R, H, W], 1 in the mask and 0 outside, on the grid of the
      padded input.
    pixels: [B, H, W], 1 in the valid image and 0 on the padding.
    weights: [B, R]; a region of weight 0 is ignored.
    focal_weight: of focal loss, in the choice of the cheapest candidate.
    dice_weight: of dice loss, in that choice.

  Returns:
    The weighted sums over regions of focal loss, of dice loss and of the
    squared error of the IoU, and the sum of the weights.

  Source: Segment Anything (arXiv 2304.02643), appendix A; scenic pixel_llm,
    `modeling/losses.py:sam_mask_loss`.
  Reference: there the dice loss and the true IoU count the padding as image,
    which is never shown to anybody; here no part does.
  """
  size = targets.shape[-2:]
  logits = _float(logits)
  if logits.shape[-2:] != size:
    logits = jax.image.resize(logits, (*logits.shape[:3], *size), 'bilinear')
  targets = jnp.broadcast_to(targets[:, :, None], logits.shape)
  pixels = pixels[:, None, None]
  focal = focal_loss(logits, targets, pixels)
  dice = dice_loss(logits, targets, pixels)
  best = jnp.argmin(focal_weight * focal + dice_weight * dice, axis=-1)

  def at_best(values):
    return jnp.take_along_axis(values, best[..., None], axis=-1)[..., 0]

  error = jnp.square(_float(ious) - mask_iou(logits, targets, pixels))
  focal, weight = _weigh(at_best(focal), weights)
  dice, _ = _weigh(at_best(dice), weights)
  iou, _ = _weigh(jnp.mean(error, axis=-1), weights)
  return focal, dice, iou, weight


def presence_loss(
  logits: Array, presence: Array, weights: Array
) -> tuple[Array, Array]:
  """Cross-entropy of whether what is asked for is there, in nats.

  Args:
    logits: [B, R].
    presence: [B, R], 1 there and 0 not.
    weights: [B, R]; a region of weight 0 is ignored.

  Returns:
    The weighted sum, and the sum of the weights.
  """
  logits = _float(logits)
  return _weigh(jax.nn.softplus(logits) - logits * presence, weights)


def center_loss(
  logits: Array, heat: Array, is_center: Array, weights: Array
) -> tuple[Array, Array, Array]:
  """Focal loss of where the centres of things are.

  Args:
    logits: [B, cells].
    heat: [B, cells] in [0, 1]; background counts less the nearer it is to 1.
    is_center: [B, cells] bool.
    weights: [B]; 0 where not every thing of an image has its box.

  Returns:
    The weighted sums over the cells that are centres and over the others, and
    the weighted number of centres, at least one an image.
  Source: CenterNet (arXiv 1904.07850), equation 1, weighted 1 to 3 as in scenic
    `projects/baselines/centernet/modeling/centernet.py`.
  """
  chance = jnp.clip(jax.nn.sigmoid(_float(logits)), 1e-4, 1 - 1e-4)
  hit = -0.25 * (1 - chance) ** 2 * jnp.log(chance) * is_center
  miss = -0.75 * chance**2 * jnp.log(1 - chance) * (1 - heat) ** 4
  miss = jnp.where(is_center, 0.0, miss)
  count = jnp.maximum(jnp.sum(_float(is_center), axis=1), 1)
  hit, _ = _weigh(jnp.sum(hit, axis=1), weights)
  miss, _ = _weigh(jnp.sum(miss, axis=1), weights)
  return hit, miss, _weigh(count, weights)[0]


def side_loss(
  distances: Array, targets: Array, has_box: Array, weights: Array
) -> tuple[Array, Array]:
  """1 - generalized IoU of boxes that hold one point.

  Args:
    distances: [B, cells, 4], from the point to the left, upper, right and lower
      side.
    targets: [B, cells, 4] alike.
    has_box: [B, cells] bool; others cost nothing.
    weights: [B] of the images.

  Returns:
    The weighted sum over cells, and the weighted number of cells that have a
    box, at least one an image.
  Source: arXiv 1902.09630; scenic
    `projects/baselines/centernet/modeling/centernet.py`.
  """
  distances, targets = _float(distances), _float(targets)

  def area(sides):
    return jnp.prod(sides[..., :2] + sides[..., 2:], axis=-1)

  # Both hold the point, so the nearer sides bound the intersection.
  overlap = area(jnp.minimum(distances, targets))
  hull = area(jnp.maximum(distances, targets))
  union = area(distances) + area(targets) - overlap
  loss = 1 - overlap / (union + 1e-6) + (hull - union) / (hull + 1e-6)
  loss = jnp.sum(jnp.where(has_box, loss, 0.0), axis=1)
  count = jnp.maximum(jnp.sum(_float(has_box), axis=1), 1)
  return _weigh(loss, weights)[0], _weigh(count, weights)[0]


def box_loss(
  logits: Array, moves: Array, targets: Array, is_thing: Array, weights: Array
) -> tuple[Array, Array, Array]:
  """Losses of a detector's second stage, which looks at boxes.

  Args:
    logits: [B, N], that a box holds a thing.
    moves: [B, N, 4], to the thing's own box.
    targets: [B, N, 4], what `moves` should be; read where there is a thing.
    is_thing: [B, N] bool.
    weights: [B, N]; a box of weight 0 is ignored.

  Returns:
    The weighted sums of the cross-entropy and of the L1 of the moves, and the
    sum of the weights, things and background.

  Source: arXiv 1504.08083, section 2.3; scenic
    `projects/baselines/centernet/modeling/roi_heads.py`.
  Reference: there L1 is divided by the number of boxes with those that are
    padding.
  """
  logits = _float(logits)
  wrong = jax.nn.softplus(jnp.where(is_thing, -logits, logits))
  away = jnp.sum(jnp.abs(_float(moves) - targets), axis=-1)
  away, _ = _weigh(jnp.where(is_thing, away, 0.0), weights)
  wrong, weight = _weigh(wrong, weights)
  return wrong, away, weight


def detection_loss(
  seen: detector.Seen, weights: Array
) -> tuple[tuple[Array, Array], ...]:
  """The losses of both stages of the detector.

  Args:
    seen: what was said and should have been.
    weights: [B]; 0 where not every thing of an image has its box.

  Returns:
    Four pairs of a sum and its weight, the number of things, of cells, and
    twice of boxes: of where centres are, of how far sides are, of which boxes
    hold a thing, and of where exactly it is. The published total weights their
    means 0.5, 1, 1 and 1.

  Source: scenic pixel_llm, `modeling/box_decoder.py`.
  """
  hit, miss, centers = center_loss(
    seen.logits, seen.heat, seen.is_center, weights
  )
  sides, cells = side_loss(
    seen.distances, seen.target_distances, seen.has_box, weights
  )
  wrong, away, boxes = box_loss(
    seen.box_logits,
    seen.box_moves,
    seen.target_moves,
    seen.is_thing,
    seen.box_weights * weights[:, None],
  )
  return (
    (hit + miss, centers),
    (sides, cells),
    (wrong, boxes),
    (away, boxes),
  )


def _float(x: Array) -> Array:
  return jnp.asarray(x, jnp.float32)


def _weigh(values: Array, weights: Array) -> tuple[Array, Array]:
  weights = jnp.asarray(weights, jnp.float32)
  return jnp.sum(values * weights), jnp.sum(weights)
