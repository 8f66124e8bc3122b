# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm import sharding
from pixel_llm.model import layers, pixel_llm, region
from pixel_llm.tasks import task
from pixel_llm.train import experiment, optimizer, parameters, state, step


@pytest.fixture(scope='module')
def network():
  return tiny.init(tiny.full_config())


@pytest.fixture(scope='module')
def loss(network):
  model, params = network
  config = experiment.LossConfig()
  return jax.jit(
    lambda batch: step.loss_fn(params, model, batch, config, None)[1]
  )


def rows(batch, which):
  return jax.tree.map(lambda x: x[which], batch)


def test_a_mixed_batch_costs_what_its_parts_cost(loss):
  batch = tiny.random_batch()
  # Two examples each of tasks that only speak, point, draw masks, detect.
  parts = {
    ('decoder_loss_weights',): ('word_loss',),
    ('point_weights', 'presence_weights'): ('point_l1', 'presence_loss'),
    ('mask_weights',): ('mask_focal', 'mask_dice', 'mask_iou_error'),
    ('detection_weights',): (
      'center_loss',
      'side_loss',
      'thing_loss',
      'move_loss',
    ),
  }
  for i, names in enumerate(parts):
    for name in names:
      weights = getattr(batch, name).copy()
      weights[: 2 * i] = weights[2 * i + 2 :] = 0
      batch = batch.replace(**{name: weights})
  whole = loss(batch)
  config = experiment.LossConfig()
  weighted = {
    'word_loss': 1,
    'point_l1': config.point_weight,
    'presence_loss': config.presence_weight,
    'mask_focal': config.focal_weight,
    'mask_dice': config.dice_weight,
    'mask_iou_error': config.mask_iou_weight,
    'center_loss': config.center_weight,
    'side_loss': config.side_weight,
    'thing_loss': config.thing_weight,
    'move_loss': config.move_weight,
  }
  np.testing.assert_allclose(
    whole['loss'],
    sum(w * whole[name] for name, w in weighted.items()),
    rtol=1e-5,
  )
  for i, (name, own) in enumerate(parts.items()):
    part = loss(rows(batch, [2 * i, 2 * i + 1] * 4))
    for metric in weighted:
      if metric in own:
        assert part[metric] > 0
        np.testing.assert_allclose(
          part[metric], whole[metric], rtol=1e-4, err_msg=metric
        )
      else:
        assert part[metric] == 0, (name, metric)


def test_a_place_left_empty_costs_nothing(network):
  """As the loader leaves it where an example cannot be read."""
  model, params = network
  batch = tiny.random_batch()
  gone = jax.tree.map(np.copy, batch)
  specs = batch_lib.Batch.specs()
  task.clear({name: getattr(gone, name)[0, ...] for name in specs})
  # Whatever it shows, nothing of it is in the loss.
  shown = gone.replace(image=batch.image)
  loss_of = lambda params, batch: step.loss_fn(
    params, model, batch, experiment.LossConfig(), None
  )
  grad = jax.jit(jax.grad(loss_of, has_aux=True))
  found = [grad(params, b) for b in (gone, shown)]
  for leaves in map(jax.tree.leaves, found):
    assert all(np.isfinite(x).all() for x in leaves)
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_proposals_learn_from_boxes_alone():
  config = dataclasses.replace(
    tiny.model_config(), region=region.RegionConfig(2, 4, 12, 3)
  )
  model, params = tiny.init(config)
  off = experiment.LossConfig(point_weight=0, proposal_weight=3)
  batch = tiny.random_batch()
  batch = batch.replace(
    decoder_loss_weights=0 * batch.decoder_loss_weights,
    boxes=np.broadcast_to(np.float32([0.1, 0.1, 0.9, 0.9]), batch.boxes.shape),
  )
  loss_of = lambda params, batch: step.loss_fn(params, model, batch, off, None)
  grad = jax.jit(jax.grad(loss_of, has_aux=True))
  grads, metrics = grad(params, batch)
  assert metrics['proposal_loss'] > 0
  np.testing.assert_allclose(metrics['loss'], 3 * metrics['proposal_loss'])
  assert np.any(grads['region']['proposal_out']['kernel'])
  assert not np.any(grads['region']['mlp_out']['kernel'])
  none = batch.replace(box_weights=0 * batch.box_weights)
  grads, metrics = grad(params, none)
  assert metrics['proposal_loss'] == 0
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def one_step(network, config, devices):
  """Parameters and metrics after a step on a mesh, as NumPy; the state."""
  mesh = sharding.make_mesh(config, devices)
  model, params = network
  zeros = batch_lib.Batch.zeros(tiny.SIZES)
  init = lambda key: model.init(key, rows(zeros, slice(0, 1)))['params']
  # A large epsilon: Adam's first step is else the sign of the gradient, which
  # rounding decides where the gradient is nearly zero.
  numbers = optimizer.OptimizerConfig(
    warmup_steps=1, learning_rate=1e-2, eps=1.0
  )
  mask = optimizer.trainable_mask(numbers, params)
  made = optimizer.make(numbers, 10, params)
  # Given, not drawn: compiling that takes longer than all the rest.
  places = state.abstract(init, made, mask, mesh, config).params
  given = jax.tree.map(
    lambda x, place: jax.device_put(x, place.sharding), params, places
  )
  first = state.create(init, made, mask, mesh, config, jax.random.key(0), given)
  function = jax.jit(
    functools.partial(
      step.train_step,
      model=model,
      mask=mask,
      optimizer=made,
      config=experiment.LossConfig(),
      rng=jax.random.key(1),
    )
  )
  batch = jax.device_put(tiny.random_batch(), sharding.batch_sharding(mesh))
  with sharding.placed(mesh, config):
    last, metrics = function(first, batch)
  return jax.device_get((last.params, metrics)), last


def test_eight_devices_learn_what_one_learns(network):
  (one, metrics_one), _ = one_step(
    network, sharding.MeshConfig(), jax.devices()[:1]
  )
  (eight, metrics), last = one_step(
    network, sharding.MeshConfig(data=4, model=2, fsdp=True), None
  )
  for name in metrics:
    np.testing.assert_allclose(metrics[name], metrics_one[name], rtol=1e-4)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  kernel = last.params['t5']['encoder']['layers']['mlp']['wi_0']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 4, 12)


def test_microbatches_learn_what_the_batch_learns(network):
  """Though their tasks, and so the weights of their terms, are uneven."""
  model, params = network
  batch = tiny.random_batch()
  # The boxes that the second stage of the detector learns from are drawn.
  config = experiment.LossConfig(thing_weight=0.0, move_weight=0.0)
  for i, name in enumerate(
    (
      'decoder_loss_weights',
      'point_weights',
      'mask_weights',
      'presence_weights',
    )
  ):
    weights = getattr(batch, name).copy()
    weights[: 2 * i] = weights[2 * i + 3 :] = 0
    batch = batch.replace(**{name: weights})
  found = [
    jax.jit(
      functools.partial(
        step.gradients,
        model=model,
        config=config,
        rng=jax.random.key(0),
        microbatches=count,
      )
    )(params, nothing_of(params), batch=batch)
    for count in (1, 2, 4)
  ]
  (grads, metrics), *others = found
  for other_grads, other_metrics in others:
    assert other_metrics.keys() == metrics.keys()
    for name in metrics.keys() - {'thing_loss', 'move_loss'}:
      np.testing.assert_allclose(
        other_metrics[name], metrics[name], rtol=1e-4, err_msg=name
      )
    for a, b in zip(
      jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True
    ):
      most = 1e-3 * np.abs(a).max() + 1e-5
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=most)


def nothing_of(tree):
  return jax.tree.map(lambda x: None, tree)


def test_training_a_few_steps_fits_a_batch(network):
  model, params = network
  numbers = optimizer.OptimizerConfig(
    learning_rate=5e-3, warmup_steps=5, weight_decay=0.0
  )
  mask = optimizer.trainable_mask(numbers, params)
  made = optimizer.make(numbers, 60, params)
  function = jax.jit(
    functools.partial(
      step.train_step,
      model=model,
      mask=mask,
      optimizer=made,
      config=experiment.LossConfig(label_smoothing=0.0),
      rng=jax.random.key(0),
    )
  )
  current = state.TrainState(
    jax.numpy.zeros((), 'int32'), params, made.init(params)
  )
  batch = tiny.random_batch()
  history = []
  for _ in range(60):
    current, metrics = function(current, batch)
    history.append(float(metrics['loss']))
  assert history[-1] < 0.6 * history[0]


def test_masks_are_compared_within_the_image():
  batch = tiny.random_batch()
  batch = batch.replace(image_size=np.tile(np.int32([[32, 20]]), (8, 1)))
  pixels = np.asarray(step.valid_pixels(batch))
  assert pixels.shape == (8, 16, 16)
  assert pixels[:, :, :10].all()
  assert not pixels[:, :, 10:].any()


@pytest.mark.slow
def test_frozen_parameters_in_bfloat16_stay_as_they_are():
  config = experiment.ExperimentConfig(
    model=dataclasses.replace(
      tiny.model_config(),
      t5=dataclasses.replace(tiny.model_config().t5, lora=layers.LoraConfig(2)),
    ),
    data=experiment.DataConfig(image=32),
    optimizer=optimizer.OptimizerConfig(
      freeze=('^sam/', '^prompt_encoder/', '^t5/(?!.*/lora_)'),
      frozen_dtype='bfloat16',
    ),
  )
  full = dataclasses.replace(
    config,
    optimizer=dataclasses.replace(config.optimizer, frozen_dtype='float32'),
  )
  mesh = sharding.make_mesh(config.mesh)
  model = pixel_llm.PixelLLM(config.model)
  batch = tiny.random_batch()
  results = {}
  for name, c in (('half', config), ('full', full)):
    init = parameters.init_fn(c)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    mask = optimizer.trainable_mask(c.optimizer, shapes)
    transform = optimizer.make(c.optimizer, 10, shapes)
    first = state.create(
      init, transform, mask, mesh, config.mesh, jax.random.key(0)
    )
    train = jax.jit(
      functools.partial(
        step.train_step,
        model=model,
        mask=mask,
        optimizer=transform,
        config=c.loss,
        rng=jax.random.key(1),
      )
    )
    results[name] = (first.params, mask, *train(first, batch))
  before, mask, after, metrics = results['half']
  held = set()
  for (keys, old), new, trained in zip(
    jax.tree.leaves_with_path(before),
    jax.tree.leaves(after.params),
    jax.tree.leaves(mask),
  ):
    frozen = not trained
    matrix = keys[-1].key in ('kernel', 'embedding')
    want = jnp.bfloat16 if frozen and matrix else jnp.float32
    assert old.dtype == new.dtype == want, keys
    if frozen:
      np.testing.assert_array_equal(old, new)
      held.add((keys[0].key, str(old.dtype)))
  assert {('sam', 'bfloat16'), ('t5', 'bfloat16')} <= held
  assert ('prompt_encoder', 'float32') in held
  # Only rounded: the loss and its gradient hardly change.
  wide = results['full'][3]
  for name in ('word_loss', 'point_l1', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], wide[name], rtol=0.03)
  assert metrics['word_loss'] != wide['word_loss']
