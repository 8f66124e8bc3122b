# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: loss, gradient, update. Pure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pixel_llm import batch as batch_lib
from pixel_llm.model import losses, pixel_llm
from pixel_llm.train import experiment
from pixel_llm.train import state as state_lib


def loss_fn(
  params,
  model: pixel_llm.PixelLLM,
  batch: batch_lib.Batch,
  config: experiment.LossConfig,
  rng: jax.Array | None,
):
  """Weighted loss of a batch.

  Every term is a weighted sum over the weights' sum, so a mixed batch costs
  what its parts cost together. (Reference: the research code scales by the
  batch mean of a per-example flag.)

  Args:
    params: parameters.
    model: the network.
    batch: what to say and where; tasks are in its weights alone.
    config: weights of the terms.
    rng: of dropout and drop path; None is deterministic.

  Returns: scalar loss, dict of scalar metrics.
  """
  rngs = None if rng is None else {'dropout': rng}
  output = model.run(params, batch, deterministic=rng is None, rngs=rngs)
  words, word_weight = losses.word_loss(
    output.logits,
    batch.decoder_target_tokens,
    batch.decoder_loss_weights,
    config.label_smoothing,
  )
  # (width, height) of the valid image, in sides of the padded input.
  scale = batch.image_size[:, ::-1] / batch.image.shape[1]
  points, point_weight = losses.point_loss(
    output.points, batch.points, batch.point_weights, scale
  )
  words = losses.mean(words, word_weight)
  points = losses.mean(points, point_weight)
  loss = words + config.point_weight * points
  metrics = {'word_loss': words, 'point_l1': points}
  if output.proposals is not None:
    proposals = losses.mean(
      *losses.proposal_loss(output.proposals, batch.boxes, batch.box_weights)
    )
    loss = loss + config.proposal_weight * proposals
    metrics['proposal_loss'] = proposals
  if output.mask_logits is not None and batch.masks.shape[-1]:
    *parts, weight = losses.mask_loss(
      output.mask_logits,
      output.mask_ious,
      batch.masks,
      valid_pixels(batch),
      batch.mask_weights,
      config.focal_weight,
      config.dice_weight,
    )
    focal, dice, iou = (losses.mean(part, weight) for part in parts)
    loss = loss + config.focal_weight * focal + config.dice_weight * dice
    loss = loss + config.mask_iou_weight * iou
    metrics |= {'mask_focal': focal, 'mask_dice': dice, 'mask_iou_error': iou}
  if output.seen is not None:
    centers, sides, things, moves = losses.detection_loss(
      output.seen, batch.detection_weights
    )
    loss = loss + config.center_weight * centers + config.side_weight * sides
    loss = loss + config.thing_weight * things + config.move_weight * moves
    metrics |= {
      'center_loss': centers,
      'side_loss': sides,
      'thing_loss': things,
      'move_loss': moves,
    }
  return loss, {'loss': loss, **metrics}


def valid_pixels(batch: batch_lib.Batch) -> jax.Array:
  """[B, M, M] float32: 1 where a pixel of `Batch.masks` is of the image."""
  side = batch.masks.shape[-1]
  # The middle of each pixel, in pixels of the padded input.
  at = (jnp.arange(side) + 0.5) * (batch.image.shape[1] / side)
  inside = at[None, None] < batch.image_size[..., None]
  return jnp.asarray(inside[:, 0, :, None] & inside[:, 1, None], jnp.float32)


def train_step(
  state: state_lib.TrainState,
  batch: batch_lib.Batch,
  *,
  model: pixel_llm.PixelLLM,
  mask,
  optimizer: optax.GradientTransformation,
  config: experiment.LossConfig,
  rng: jax.Array,
):
  """One update; gradients exist for the trainable parameters only.

  Args:
    state: of the step before.
    batch: this step's.
    model: the network.
    mask: tree of bool, the trainable parameters.
    optimizer: acts on the trainable ones.
    config: of the loss.
    rng: the run's key; the step is folded in.

  Returns: the new state, dict of scalar metrics.
  """
  trainable, frozen = state_lib.split(state.params, mask)

  def loss_of(trainable):
    params = state_lib.merge(trainable, frozen)
    return loss_fn(
      params, model, batch, config, jax.random.fold_in(rng, state.step)
    )

  grads, metrics = jax.grad(loss_of, has_aux=True)(trainable)
  updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
  params = state_lib.merge(optax.apply_updates(trainable, updates), frozen)
  metrics['grad_norm'] = optax.tree.norm(grads)
  state = state_lib.TrainState(state.step + 1, params, opt_state)
  return state, metrics
