# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import pallas

from pixel_llm import sharding
from pixel_llm.model import layers


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_dense_adds_bias_and_scaled_low_rank_update():
  module = layers.Dense(
    4, ('embed', 'mlp'), use_bias=True, lora=layers.LoraConfig(2, 3.0)
  )
  x = normal(0, 2, 5, 3)
  boxed = module.init(jax.random.key(1), x)['params']
  assert {n: b.names for n, b in boxed.items()} == {
    'kernel': ('embed', 'mlp'),
    'lora_a': ('embed', 'lora'),
    'lora_b': ('lora', 'mlp'),
    'bias': ('mlp',),
  }
  p = {n: normal(i, *b.value.shape) for i, (n, b) in enumerate(boxed.items())}
  want = np.einsum(
    'nld,df->nlf', x, p['kernel'] + 3.0 * p['lora_a'] @ p['lora_b']
  ) + np.asarray(p['bias'])
  np.testing.assert_allclose(module.apply({'params': p}, x), want, 0, 1e-5)


def test_dense_computes_in_its_dtype_on_float32_parameters():
  module = layers.Dense(4, ('embed', 'mlp'), dtype='bfloat16')
  x = normal(0, 2, 3)
  params = module.init(jax.random.key(1), x)
  assert module.apply(params, x).dtype == jnp.bfloat16
  assert nn.unbox(params)['params']['kernel'].dtype == jnp.float32


def test_lora_projections_are_checked():
  with pytest.raises(ValueError, match=r"among query.*got \['q'\]"):
    layers.LoraConfig(projections=('q', 'value'))


def test_layer_norm():
  x = normal(0, 2, 3, 8) * 5 + 3
  module = layers.LayerNorm(epsilon=1e-5)
  params = {'scale': normal(1, 8), 'bias': normal(2, 8)}
  got = module.apply({'params': params}, x)
  x = np.asarray(x, np.float64)
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(
    x.var(-1, keepdims=True) + 1e-5
  )
  want = want * np.asarray(params['scale']) + np.asarray(params['bias'])
  np.testing.assert_allclose(got, want, 0, 1e-5)


def test_attention_weighs_values():
  query, key, value = (
    normal(0, 2, 3, 4, 5),
    normal(1, 2, 6, 4, 5),
    normal(2, 2, 6, 4, 7),
  )
  bias = normal(3, 1, 4, 3, 6)
  got = layers.attention(query, key, value, bias, scale=0.5)
  logits = np.einsum('nqhd,nkhd->nhqk', query, key) * 0.5 + np.asarray(bias)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = np.einsum('nhqk,nkhd->nqhd', weights, value)
  np.testing.assert_allclose(got, want, 0, 1e-5)


def test_fully_masked_query_attends_uniformly():
  query, key, value = normal(0, 1, 2, 5), normal(1, 6, 2, 5), normal(2, 6, 2, 5)
  bias = jnp.full((1, 1, 6), layers.MASKED)
  got = layers.attention(query, key, value, bias)
  np.testing.assert_allclose(got, value.mean(0, keepdims=True), 0, 1e-6)


def test_attention_drops_weights():
  query, key, value = normal(0, 3, 2, 5), normal(1, 6, 2, 5), normal(2, 6, 2, 5)
  seen = []

  def drop(weights):
    seen.append(weights)
    return weights * (jnp.arange(6) == 4)[None, None]

  got = layers.attention(query, key, value, dropout=drop)
  (weights,) = seen
  assert weights.shape == (2, 3, 6)
  np.testing.assert_allclose(weights.sum(-1), np.ones((2, 3)), 0, 1e-6)
  want = weights[:, :, 4].T[..., None] * value[4][None]
  np.testing.assert_allclose(got, want, 0, 1e-6)


@pytest.mark.parametrize('lead', [(2,), (2, 3), ()])
def test_fused_attention_is_attention(lead):
  query = normal(0, *lead, 5, 2, 8)
  key, value = normal(1, *lead, 7, 2, 8), normal(2, *lead, 7, 2, 8)

  def of(attend):
    loss = lambda *x: jnp.sum(jnp.sin(attend(*x)))
    return attend(query, key, value), jax.grad(loss, (0, 1, 2))(
      query, key, value
    )

  fused = of(lambda *x: layers.fused_attention(*x, 0.5, 'xla'))
  plain = of(lambda *x: layers.attention(*x, scale=0.5))
  for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(plain)):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, 0, 1e-5)


def test_attention_with_bias_is_jaxs_own():
  query, key, value = (
    jnp.asarray(normal(i, 2, n, 2, 8), jnp.float32)
    for i, n in enumerate((5, 7, 7))
  )
  bias = jnp.asarray(normal(3, 1, 2, 5, 7))
  bias = (
    bias + jnp.where(jnp.arange(7) < 4, 0.0, layers.MASKED)[None, None, None]
  )

  def gradients(attend):
    loss = lambda *x: jnp.sum(jnp.sin(attend(*x)))
    return attend(query, key, value, bias), jax.grad(loss, (0, 1, 2, 3))(
      query, key, value, bias
    )

  ours = gradients(lambda *x: layers.attention(*x, scale=0.5))
  theirs = gradients(lambda *x: jax.nn.dot_product_attention(*x, scale=0.5))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(a, b, 0, 1e-5)


@pytest.mark.parametrize(
  'query, keys, value, fits',
  [
    (('bfloat16', 4, 64), 6, ('bfloat16', 64), True),
    (('float16', 4, 128), 6, ('float16', 128), True),
    (('float32', 4, 64), 6, ('float32', 64), False),
    (('bfloat16', 4, 64), 6, ('float32', 64), False),
    (('bfloat16', 4, 64), 6, ('bfloat16', 32), False),
    (('bfloat16', 4, 12), 6, ('bfloat16', 12), False),
    (('bfloat16', 4, 136), 6, ('bfloat16', 136), False),
    (('bfloat16', 5, 64), 6, ('bfloat16', 64), False),
    (('bfloat16', 4, 64), 7, ('bfloat16', 64), False),
  ],
)
def test_what_fits_cudnn(query, keys, value, fits):
  make = lambda length, depth, dtype: jax.ShapeDtypeStruct(
    (1, length, 2, depth), dtype
  )
  dtype, length, depth = query
  value_dtype, value_depth = value
  assert fits == layers.fits_cudnn(
    make(length, depth, dtype),
    make(keys, depth, dtype),
    make(keys, value_depth, value_dtype),
  )


@pytest.mark.parametrize('mesh', [None, (4, 2)])
def test_the_kernel_for_tpus_is_attention(mesh, monkeypatch):
  # Pallas itself runs its kernels on a CPU if it is told to.
  interpreted = functools.partial(pallas.pallas_call, interpret=True)
  monkeypatch.setattr(pallas, 'pallas_call', interpreted)
  query, key, value = (
    jnp.asarray(normal(i, 4, n, 2, 64), jnp.bfloat16)
    for i, n in enumerate((300, 260, 260))
  )
  cotangent = normal(3, *query.shape)

  def run(attend):
    def loss(*x):
      y = attend(*x)
      return jnp.sum(cotangent * y), y

    function = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    return function(query, key, value)

  plain = run(lambda *x: layers.attention(*x, scale=0.125))
  with contextlib.ExitStack() as stack:
    if mesh is not None:
      config = sharding.MeshConfig(*mesh)
      stack.enter_context(jax.set_mesh(sharding.make_mesh(config)))
    fused = run(lambda *x: layers.flash_attention(*x, 0.125))
  for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(plain)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    a, b = np.float32(a), np.float32(b)
    np.testing.assert_allclose(a, b, atol=0.01 * np.abs(b).max())


def test_few_or_symbolic_queries_do_not_fit_the_kernel():
  def fits(queries, keys=300, dtype='bfloat16', batch=2):
    shape = lambda n: jax.ShapeDtypeStruct((batch, n, 2, 64), dtype)
    return layers.fits_flash(shape(queries), shape(keys), shape(keys))

  assert fits(300)
  assert not fits(255)
  assert not fits(300, keys=34)
  assert not fits(300, dtype='float32')
  assert not fits(300, batch=jax.export.symbolic_shape('b')[0])


@pytest.mark.parametrize('model', [1, 2])
def test_fsdp_gathers_kernels_and_moves_no_activations(model):
  config = sharding.MeshConfig(data=8 // model, model=model, fsdp=True)
  mesh, rules = sharding.make_mesh(config), config.rules()
  layer = layers.Dense(
    16, ('embed', 'mlp'), True, 'bfloat16', lora=layers.LoraConfig(rank=8)
  )
  x = np.random.default_rng(0).normal(size=(8, 128, 64)).astype('f')
  boxed = jax.eval_shape(layer.init, jax.random.key(0), x)
  places = sharding.state_shardings(boxed, mesh, rules)
  params = nn.unbox(layer.init(jax.random.key(0), x))
  apply = jax.jit(layer.apply)
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    there = jax.device_put((params, x), (places, sharding.batch_sharding(mesh)))
    text = apply.lower(*there).compile().as_text()
    found = apply(*there)
  assert 'all-gather(' in text and 'all-reduce(' not in text
  assert found.sharding.shard_shape(found.shape)[0] == model
  np.testing.assert_array_equal(found, layer.apply(params, x))
