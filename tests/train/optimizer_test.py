# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_llm import config as config_lib
from pixel_llm.train import optimizer
from pixel_llm.train import state as state_lib


def tree(value=1.0):
  return {
    'eva': {'kernel': jnp.full((2, 3), value), 'bias': jnp.full(3, value)},
    't5': {
      'norm': {'scale': jnp.full(3, value)},
      'kernel': jnp.full((3, 2), value),
      'lora_a': jnp.full((3, 1), value),
    },
  }


def update(config, params, grads, steps=100, count=1):
  mask = optimizer.trainable_mask(config, params)
  tx = optimizer.make(config, steps, params)
  trainable, frozen = state_lib.split(params, mask)
  grads, _ = state_lib.split(grads, mask)
  opt_state = tx.init(trainable)
  step = jax.jit(tx.update)
  for _ in range(count):
    updates, opt_state = step(grads, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
  return state_lib.merge(trainable, frozen)


def test_schedule_rises_to_the_peak_and_falls_to_the_floor():
  config = optimizer.OptimizerConfig(
    learning_rate=0.5, warmup_steps=4, final_fraction=0.1
  )
  rate = jax.jit(jax.vmap(optimizer.schedule(config, 20)))
  rates = np.asarray(rate(jnp.arange(30)))
  np.testing.assert_allclose(rates[:4], 0.5 * np.array([1, 2, 3, 4]) / 4)
  assert rates[4] == pytest.approx(0.5)
  assert np.all(np.diff(rates[4:21]) < 0)
  assert rates[12] == pytest.approx(0.5 * 0.55)
  np.testing.assert_allclose(rates[20:], 0.05, rtol=1e-6)


@pytest.mark.parametrize(('warmup', 'steps'), [(0, 10), (10, 10), (50, 10)])
def test_no_step_has_rate_zero(warmup, steps):
  config = optimizer.OptimizerConfig(warmup_steps=warmup)
  rate = optimizer.schedule(config, steps)
  rates = [float(rate(s)) for s in range(steps)]
  assert all(0 < r <= config.learning_rate * (1 + 1e-6) for r in rates)


def test_agrees_with_adamw_of_optax():
  config = optimizer.OptimizerConfig(
    no_decay=(), clip_norm=None, warmup_steps=3, weight_decay=0.1
  )
  tx = optax.adamw(
    optimizer.schedule(config, 100), b1=0.9, b2=0.95, weight_decay=0.1
  )
  params, grads = tree(0.7), tree(0.3)
  opt_state, expected = tx.init(params), params
  step = jax.jit(tx.update)
  for _ in range(3):
    updates, opt_state = step(grads, opt_state, expected)
    expected = optax.apply_updates(expected, updates)
  got = update(config, params, grads, count=3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected
  )


def test_weight_decay_spares_scales_and_biases():
  config = optimizer.OptimizerConfig(weight_decay=0.5, warmup_steps=0)
  got = update(config, tree(), jax.tree.map(jnp.zeros_like, tree()))
  np.testing.assert_allclose(got['eva']['kernel'], 1 - 1e-3 * 0.5, rtol=1e-6)
  assert np.all(got['eva']['bias'] == 1)
  assert np.all(got['t5']['norm']['scale'] == 1)


def test_no_decay_names_what_it_should():
  params = {
    name: jnp.ones(2)
    for name in (
      'position_embedding',
      'token_embedding',
      'scale',
      'bias',
      'upscale',
      'kernel',
    )
  }
  config = optimizer.OptimizerConfig(weight_decay=0.5, warmup_steps=0)
  got = update(config, params, jax.tree.map(jnp.zeros_like, params))
  assert {n for n, p in got.items() if p[0] < 1} == {'kernel', 'upscale'}


def test_multiplier_scales_the_update_and_the_first_match_applies():
  plain = optimizer.OptimizerConfig(warmup_steps=0)
  scaled = optimizer.OptimizerConfig(
    warmup_steps=0, multipliers=(('t5/lora', 10.0), ('^t5/', 0.5))
  )
  params, grads = tree(), tree(0.1)
  a, b = update(plain, params, grads), update(scaled, params, grads)
  ratio = jax.tree.map(lambda a, b, p: (b - p) / (a - p), a, b, params)
  np.testing.assert_allclose(ratio['eva']['kernel'], 1, rtol=1e-3)
  np.testing.assert_allclose(ratio['t5']['kernel'], 0.5, rtol=1e-3)
  np.testing.assert_allclose(ratio['t5']['lora_a'], 10, rtol=1e-3)


def test_rates_fall_downwards_from_layer_to_layer():
  params = {
    'eva': {
      'blocks': {'kernel': jnp.ones((3, 2, 2)), 'bias': jnp.ones((3, 2))},
      'patch_embed': {'kernel': jnp.ones((4, 2))},
      'ln_post': {'scale': jnp.ones(2)},
    },
    't5': {'kernel': jnp.ones((2, 2))},
  }
  grads = jax.tree.map(lambda x: 0.1 * x, params)
  plain = optimizer.OptimizerConfig(warmup_steps=0, weight_decay=0.1)
  decayed = dataclasses.replace(
    plain,
    multipliers=(('bias', 2.0),),
    layer_decay=optimizer.LayerDecayConfig(0.5, stem='^eva/patch_embed'),
  )
  a, b = update(plain, params, grads), update(decayed, params, grads)
  ratio = jax.tree.map(lambda a, b, p: (b - p) / (a - p), a, b, params)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3)
  eva = ratio['eva']
  for layer, factor in enumerate((0.125, 0.25, 0.5)):
    close(eva['blocks']['kernel'][layer], factor)
    close(eva['blocks']['bias'][layer], 2 * factor)
  close(eva['patch_embed']['kernel'], 0.0625)
  close(eva['ln_post']['scale'], 1)
  close(ratio['t5']['kernel'], 1)
  wrong = dataclasses.replace(
    plain, layer_decay=optimizer.LayerDecayConfig(stack='^sam/', stem='^eva/')
  )
  with pytest.raises(
    config_lib.ConfigError, match=r'layer_decay.stack: .\^sam/'
  ):
    update(wrong, params, grads)


def test_adafactor_is_optaxs():
  params = {'a': jnp.linspace(-1, 1, 128 * 160).reshape(128, 160)}
  grads = {'a': jnp.cos(params['a'] * 9)}
  config = optimizer.OptimizerConfig(
    learning_rate=0.01,
    warmup_steps=0,
    weight_decay=0.0,
    clip_norm=None,
    adafactor=optimizer.AdafactorConfig(),
  )
  ours = update(config, params, grads, count=3)
  rate = optimizer.schedule(config, 100)
  theirs = optax.adafactor(rate, weight_decay_rate=None)
  theirs_state = theirs.init(params)
  for _ in range(3):
    updates, theirs_state = theirs.update(grads, theirs_state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(ours['a'], params['a'], rtol=1e-5, atol=1e-7)
  sizes = [x.size for x in jax.tree.leaves(theirs_state)]
  made = optimizer.make(config, 100, params).init(params)
  assert max(x.size for x in jax.tree.leaves(made)) == max(sizes) == 160


def test_adafactor_and_muon_exclude_each_other():
  with pytest.raises(ValueError, match='expected one of them, got both'):
    optimizer.OptimizerConfig(
      muon=optimizer.MuonConfig(), adafactor=optimizer.AdafactorConfig()
    )


def test_clips_by_the_trainable_norm_alone():
  config = optimizer.OptimizerConfig(
    freeze=('^eva/',), b1=0.0, eps=1e3, weight_decay=0.0, warmup_steps=0
  )
  params, grads = tree(), tree(2.0)
  # A large eps makes the update proportional to the clipped gradient.
  one = update(config, params, grads)
  grads['eva']['kernel'] = grads['eva']['kernel'] * 1e6
  two = update(config, params, grads)
  assert np.array_equal(one['t5']['kernel'], two['t5']['kernel'])
  # Norm of the 12 trainable gradients of 2.
  expected = 1e-3 * (2 / np.sqrt(12 * 2.0**2)) / 1e3
  zeros = jax.tree.map(jnp.zeros_like, params)
  got = update(config, zeros, grads)
  np.testing.assert_allclose(-got['t5']['kernel'], expected, rtol=2e-3)


def test_frozen_parameters_keep_their_bits_and_have_no_optimizer_state():
  config = optimizer.OptimizerConfig(freeze=('^eva/', '^t5/(?!.*lora)'))
  params = tree(0.3)
  mask = optimizer.trainable_mask(config, params)
  assert jax.tree.leaves(mask) == [False, False, False, True, False]
  got = update(config, params, tree())
  assert np.array_equal(got['eva']['kernel'], params['eva']['kernel'])
  assert not np.array_equal(got['t5']['lora_a'], params['t5']['lora_a'])
  trainable, _ = state_lib.split(params, mask)
  opt_state = optimizer.make(config, 10, params).init(trainable).inner
  shapes = sorted(x.shape for x in jax.tree.leaves(opt_state))
  assert shapes == [(), (), (3, 1), (3, 1)]


def test_mask_works_on_shapes_alone():
  shapes = jax.eval_shape(tree)
  config = optimizer.OptimizerConfig(freeze=('lora',))
  assert optimizer.trainable_mask(config, shapes)['t5'] == {
    'norm': {'scale': True},
    'kernel': True,
    'lora_a': False,
  }


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (
      {'freeze': ('eva', 'lorra')},
      r"freeze\[1\]: 'lorra' is found in no parameter.*eva/bias",
    ),
    (
      {'multipliers': (('mask', 2.0),)},
      r"multipliers\[0\]: 'mask' is found in no trainable",
    ),
    (
      {'freeze': ('lora',), 'multipliers': (('lora', 2.0),)},
      r'multipliers\[0\]',
    ),
    ({'freeze': ('.',)}, 'nothing is left to train'),
  ],
)
def test_regex_that_matches_nothing_is_an_error(options, said):
  config = optimizer.OptimizerConfig(**options)
  with pytest.raises(config_lib.ConfigError, match=said):
    optimizer.make(config, 10, tree())


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('learning_rate', 0.0),
    ('warmup_steps', -1),
    ('final_fraction', 1.5),
    ('clip_norm', 0.0),
    ('b2', 1.0),
    ('freeze', ('(',)),
    ('multipliers', (('[', 1.0),)),
  ],
)
def test_bad_number_or_regex_names_its_path(key, value):
  with pytest.raises(config_lib.ConfigError, match=f'optimizer: {key}: '):
    config_lib.from_dict(optimizer.OptimizerConfig, {key: value}, 'optimizer')


def matrices():
  rng = np.random.default_rng(0)
  return {
    'layers': {'kernel': jnp.asarray(rng.normal(size=(2, 4, 6)))},
    'logits': {'kernel': jnp.asarray(rng.normal(size=(4, 6)))},
    'norm': {'scale': jnp.ones(4)},
    'queries': jnp.asarray(rng.normal(size=(3, 4))),
  }


def muon(**options):
  return optimizer.OptimizerConfig(
    learning_rate=0.1,
    weight_decay=0.0,
    warmup_steps=0,
    muon=optimizer.MuonConfig(**options),
  )


def test_muon_moves_all_directions_of_each_matrix_of_a_stack_alike():
  params = jax.tree.map(jnp.zeros_like, matrices())
  # One direction of the gradient is many times as strong as the rest.
  grads = matrices()
  strong = jnp.outer(jnp.arange(4.0), jnp.ones(6))[None]
  grads['layers']['kernel'] += 5.0 * strong
  moved = update(muon(rate=2.0), params, grads, steps=10**6)
  for one in np.asarray(moved['layers']['kernel']):
    values = np.linalg.svd(one, compute_uv=False)
    assert values.max() < 4 * values[1:3].max()
    # rate x learning rate x 0.2, the root mean square of an update of Adam.
    rms = np.sqrt(np.mean(np.square(one)))
    assert 0.5 * 0.04 < rms < 1.5 * 0.04


def test_muon_gives_each_matrix_what_it_gives_it_alone():
  rng = np.random.default_rng(3)
  shapes = {'a': (4, 6), 'b': (2, 4, 6), 'c': (6, 4), 'd': (2, 3, 4, 6)}
  draw = lambda: {
    name: {'kernel': jnp.asarray(rng.normal(size=shape), jnp.float32)}
    for name, shape in shapes.items()
  }
  params, grads = draw(), draw()
  together = update(muon(), params, grads, count=3)
  for name in shapes:
    alone = update(muon(), {name: params[name]}, {name: grads[name]}, count=3)
    np.testing.assert_allclose(
      together[name]['kernel'], alone[name]['kernel'], rtol=1e-4, atol=1e-6
    )


def test_muon_leaves_the_rest_to_adam():
  params, grads = matrices(), matrices()
  plain = dataclasses.replace(muon(), muon=None)
  a, b = update(plain, params, grads), update(muon(), params, grads)
  for path in (('logits', 'kernel'), ('norm', 'scale')):
    x, y = a[path[0]][path[1]], b[path[0]][path[1]]
    assert np.array_equal(x, y)
  assert np.array_equal(a['queries'], b['queries'])
  assert not np.allclose(a['layers']['kernel'], b['layers']['kernel'])


def test_muon_goes_with_freezing_and_multipliers():
  config = dataclasses.replace(
    muon(), freeze=('^queries',), multipliers=(('^layers/', 0.5),)
  )
  params, grads = matrices(), matrices()
  whole = update(muon(), params, grads)
  got = update(config, params, grads)
  assert np.array_equal(got['queries'], params['queries'])
  np.testing.assert_allclose(
    got['layers']['kernel'] - params['layers']['kernel'],
    0.5 * (whole['layers']['kernel'] - params['layers']['kernel']),
    rtol=1e-4,
    atol=1e-6,
  )


def test_bad_muon_names_its_path():
  for key, value in (('rate', 0.0), ('momentum', 1.0), ('exclude', ('(',))):
    with pytest.raises(
      config_lib.ConfigError, match=f'optimizer.muon: {key}: '
    ):
      config_lib.from_dict(
        optimizer.OptimizerConfig, {'muon': {key: value}}, 'optimizer'
      )


def test_the_mean_of_parameters_follows_them_and_swaps_with_them():
  config = optimizer.OptimizerConfig(
    learning_rate=0.1, warmup_steps=0, freeze=('^eva/',), ema=0.5
  )
  params = tree()
  mask = optimizer.trainable_mask(config, params)
  tx = optimizer.make(config, 10, params)
  trainable, frozen = state_lib.split(params, mask)
  opt_state = tx.init(trainable)
  mean = np.asarray(params['t5']['kernel'])
  for step in range(8):
    updates, opt_state = jax.jit(tx.update)(trainable, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    decay = min(0.5, (1 + step) / (10 + step))
    mean = decay * mean + (1 - decay) * np.asarray(trainable['t5']['kernel'])
  params = state_lib.merge(trainable, frozen)
  state = state_lib.TrainState(jnp.int32(8), params, opt_state)
  swapped = optimizer.swap_average(state)
  np.testing.assert_allclose(swapped.params['t5']['kernel'], mean, rtol=1e-5)
  assert np.all(mean > params['t5']['kernel'])
  np.testing.assert_array_equal(
    swapped.params['eva']['kernel'], params['eva']['kernel']
  )
  again = optimizer.swap_average(swapped)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)):
    np.testing.assert_array_equal(a, b)
