# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: loss, gradient, update. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pixel_llm import batch as batch_lib
from pixel_llm.model import losses, pixel_llm
from pixel_llm.train import experiment
from pixel_llm.train import state as state_lib

# Name of a metric -> (factor in the loss, weighted sum, sum of the weights).
Terms = dict[str, tuple[float, jax.Array, jax.Array]]


def loss_terms(
  params,
  model: pixel_llm.PixelLLM,
  batch: batch_lib.Batch,
  config: experiment.LossConfig,
  rng: jax.Array | None,
) -> Terms:
  """The terms of a batch's loss, before they are divided by their weights.

  Args:
    params: parameters.
    model: the network.
    batch: what to say and where; tasks are in its weights alone.
    config: factors of the terms.
    rng: of dropout and drop path; None is deterministic.
  """
  rngs = None if rng is None else {'dropout': rng}
  output = model.run(params, batch, deterministic=rng is None, rngs=rngs)
  words = losses.word_loss(
    output.logits,
    batch.decoder_target_tokens,
    batch.decoder_loss_weights,
    config.label_smoothing,
  )
  # (width, height) of the valid image, in sides of the padded input.
  scale = batch.image_size[:, ::-1] / batch.image.shape[1]
  points = losses.point_loss(
    output.points, batch.points, batch.point_weights, scale
  )
  terms: Terms = {
    'word_loss': (1.0, *words),
    'point_l1': (config.point_weight, *points),
  }
  if output.proposals is not None:
    terms['proposal_loss'] = (
      config.proposal_weight,
      *losses.proposal_loss(output.proposals, batch.boxes, batch.box_weights),
    )
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
    factors = (config.focal_weight, config.dice_weight, config.mask_iou_weight)
    names = ('mask_focal', 'mask_dice', 'mask_iou_error')
    for name, factor, part in zip(names, factors, parts, strict=True):
      terms[name] = (factor, part, weight)
  if output.presence is not None:
    terms['presence_loss'] = (
      config.presence_weight,
      *losses.presence_loss(
        output.presence, batch.presence, batch.presence_weights
      ),
    )
  if output.seen is not None:
    detection = losses.detection_loss(output.seen, batch.detection_weights)
    factors = (
      config.center_weight,
      config.side_weight,
      config.thing_weight,
      config.move_weight,
    )
    names = ('center_loss', 'side_loss', 'thing_loss', 'move_loss')
    for name, factor, part in zip(names, factors, detection, strict=True):
      terms[name] = (factor, *part)
  return terms


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
    batch: what to say and where.
    config: factors of the terms.
    rng: of dropout and drop path; None is deterministic.

  Returns: scalar loss, dict of scalar metrics.
  """
  terms = loss_terms(params, model, batch, config, rng)
  return _total(terms, {name: weight for name, (_, _, weight) in terms.items()})


def _total(terms: Terms, weights: dict[str, jax.Array]):
  metrics = {
    name: losses.mean(total, weights[name])
    for name, (_, total, _) in terms.items()
  }
  loss = sum(factor * metrics[k] for k, (factor, _, _) in terms.items())
  return loss, {'loss': loss, **metrics}


def valid_pixels(batch: batch_lib.Batch) -> jax.Array:
  """[B, M, M] float32: 1 where a pixel of `Batch.masks` is of the image."""
  side = batch.masks.shape[-1]
  # The middle of each pixel, in pixels of the padded input.
  at = (jnp.arange(side) + 0.5) * (batch.image.shape[1] / side)
  inside = at[None, None] < batch.image_size[..., None]
  return jnp.asarray(inside[:, 0, :, None] & inside[:, 1, None], jnp.float32)


def gradients(
  trainable,
  frozen,
  *,
  model: pixel_llm.PixelLLM,
  batch: batch_lib.Batch,
  config: experiment.LossConfig,
  rng: jax.Array,
  microbatches: int = 1,
):
  """Gradients of `loss_fn` by the trainable parameters, and its metrics.

  With microbatches they are those of the whole batch all the same: the weights
  of its terms are summed first, for which XLA keeps only what they hang on.

  Args:
    trainable: parameters, None where frozen.
    frozen: the others.
    model: the network.
    batch: its images are dealt out to the microbatches, so that each has some
      of every device's.
    config: of the loss.
    rng: of dropout; microbatches draw for themselves.
    microbatches: by whose number the images of each device divide.
  """

  def terms_of(trainable, part, rng):
    params = state_lib.merge(trainable, frozen)
    return loss_terms(params, model, part, config, rng)

  if microbatches == 1:

    def loss_of(trainable):
      terms = terms_of(trainable, batch, rng)
      return _total(terms, {k: weight for k, (_, _, weight) in terms.items()})

    return jax.grad(loss_of, has_aux=True)(trainable)

  # A size may be 0, of which no size of another axis follows.
  parts = jax.tree.map(
    lambda x: x.reshape(
      len(x) // microbatches, microbatches, *x.shape[1:]
    ).swapaxes(0, 1),
    batch,
  )
  keys = jax.random.split(rng, microbatches)
  weights = jax.lax.map(
    lambda x: {k: w for k, (_, _, w) in terms_of(trainable, *x).items()},
    (parts, keys),
  )
  weights = jax.tree.map(lambda x: x.sum(axis=0), weights)

  def loss_of_part(trainable, part, key):
    return _total(terms_of(trainable, part, key), weights)

  def add(total, x):
    grads, metrics = jax.grad(loss_of_part, has_aux=True)(trainable, *x)
    return jax.tree.map(jnp.add, total, (grads, metrics)), None

  shapes = jax.eval_shape(
    jax.grad(loss_of_part, has_aux=True),
    trainable,
    *jax.tree.map(lambda x: x[0], (parts, keys)),
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, (parts, keys))[0]


def train_step(
  state: state_lib.TrainState,
  batch: batch_lib.Batch,
  *,
  model: pixel_llm.PixelLLM,
  mask,
  optimizer: optax.GradientTransformationExtraArgs,
  config: experiment.LossConfig,
  rng: jax.Array,
  microbatches: int = 1,
):
  """One update; gradients exist for the trainable parameters only.

  Args:
    state: of the step before.
    batch: this step's.
    model: the network.
    mask: tree of bool, the trainable parameters.
    optimizer: of `optimizer.make`, acts on the trainable ones.
    config: of the loss.
    rng: the run's key; the step is folded in.
    microbatches: parts of the batch, one at a time in memory.

  Returns: the new state, dict of scalar metrics.
  """
  trainable, frozen = state_lib.split(state.params, mask)

  grads, metrics = gradients(
    trainable,
    frozen,
    model=model,
    batch=batch,
    config=config,
    rng=jax.random.fold_in(rng, state.step),
    microbatches=microbatches,
  )
  updates, opt_state = optimizer.update(
    grads, state.opt_state, trainable, loss=metrics['loss']
  )
  params = state_lib.merge(optax.apply_updates(trainable, updates), frozen)
  metrics['grad_norm'] = optax.tree.norm(grads)  # before clipping
  state = state_lib.TrainState(state.step + 1, params, opt_state)
  metrics['skipped'] = state.opt_state.skipped
  return state, metrics


def make(
  config: experiment.ExperimentConfig,
  model: pixel_llm.PixelLLM,
  mask: Any,
  optimizer: optax.GradientTransformationExtraArgs,
) -> Callable[[state_lib.TrainState, batch_lib.Batch], Any]:
  """`train_step` of an experiment: (state, batch) -> (state, metrics)."""
  return functools.partial(
    train_step,
    model=model,
    mask=mask,
    optimizer=optimizer,
    config=config.loss,
    rng=jax.random.key(config.seed),
    microbatches=config.loop.microbatches,
  )
