# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import remat
import t5_golden
from flax import linen as nn
from flax import traverse_util
from t5_golden import TINY

from pixel_llm import sharding
from pixel_llm.model import t5
from pixel_llm.model.layers import LoraConfig

LORA = dataclasses.replace(
  TINY, lora=LoraConfig(4, 2.0, ('query', 'key', 'value', 'out'))
)


@pytest.fixture(scope='module')
def golden():
  return t5_golden.load('t5x_tiny_golden')


@pytest.fixture(scope='module')
def params():
  return t5_golden.variables(t5_golden.load('t5x_tiny_params'))


@pytest.fixture(scope='module')
def lora_params():
  """Parameters with LoRA, of no special value."""
  tokens = jnp.ones((1, 2), jnp.int32)
  shapes = nn.unbox(
    jax.eval_shape(
      lambda: t5.T5(LORA).init(jax.random.key(0), None, tokens, tokens)
    )
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0.0, 0.3, s.shape).astype(np.float32), shapes
  )


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, encoder_tokens, input_tokens, target_tokens):
  model = t5.T5(config)
  encoded, valid = model.apply(params, None, encoder_tokens, method='encode')
  return encoded, *model.apply(
    params, encoded, valid, input_tokens, target_tokens, method='decode'
  )


def forward_golden(config, params, golden, prefix):
  return forward(
    config,
    params,
    *(
      golden[f'{prefix}{name}']
      for name in (
        'encoder_input_tokens',
        'decoder_input_tokens',
        'decoder_target_tokens',
      )
    ),
  )


def close(got, want, atol=1e-4):
  np.testing.assert_allclose(np.asarray(got, np.float32), want, 0, atol)


def test_forward_is_t5x(params, golden):
  encoded, logits, hidden = forward_golden(TINY, params, golden, 'inputs/')
  close(encoded, golden['encoder_output'])
  close(logits, golden['decoder_logits'])
  kernel = params['params']['decoder']['logits_dense']['kernel']
  close(hidden @ kernel, golden['decoder_logits'])


def test_long_sequences_are_t5x(params, golden):
  encoded, logits, _ = forward_golden(TINY, params, golden, 'long/')
  close(encoded, golden['long/encoder_output'])
  close(logits, golden['long/decoder_logits'])


def test_bfloat16_is_near_t5x(params, golden):
  config = dataclasses.replace(TINY, dtype='bfloat16')
  encoded, logits, hidden = forward_golden(config, params, golden, 'inputs/')
  assert (encoded.dtype, logits.dtype, hidden.dtype) == (
    jnp.bfloat16,
    jnp.float32,
    jnp.bfloat16,
  )
  close(encoded, golden['bf16/encoder_output'], 0.05)
  close(logits, golden['bf16/decoder_logits'], 0.35)


def test_encoder_layer_is_t5x(params, golden):
  tokens = golden['inputs/encoder_input_tokens']
  mask = (tokens > 0)[:, None, :, None] & (tokens > 0)[:, None, None]
  bias = np.where(mask, 0, -1e10) + golden['hidden/encoder_relpos_bias']
  bias = bias.astype(np.float32)
  layers = params['params']['encoder']['layers']
  x = params['params']['token_embedder']['embedding'][tokens]
  for i in range(2):
    layer = {'params': jax.tree.map(lambda p, i=i: p[i], layers)}
    x, _ = t5.EncoderLayer(TINY).apply(layer, x, bias, True)
    close(x, golden[f'hidden/encoder/layers_{i}'])


def test_gradients_are_t5x(params, golden):
  weights = golden['inputs/decoder_loss_weights'].astype(np.float32)
  targets = golden['inputs/decoder_target_tokens'][..., None]

  def loss(params):
    _, logits, _ = forward_golden(TINY, params, golden, 'inputs/')
    norm = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
    return jnp.sum(weights * (norm - target + 1e-4 * norm**2))

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, golden['loss/total'], 1e-5)
  compare_gradients(grads, t5_golden.load('t5x_tiny_grads'))


def compare_gradients(grads, flat_golden):
  got = traverse_util.flatten_dict(grads['params'], sep='/')
  wanted = t5_golden.stack(flat_golden)
  assert wanted
  for name, want in wanted.items():
    np.testing.assert_allclose(
      got[name], want, 0, 1e-4 * np.abs(want).max(), err_msg=name
    )


def test_remat_saves_memory_and_changes_nothing(lora_params):
  tokens = np.random.default_rng(0).integers(1, 64, (2, 96))

  def loss(config, params):
    logits, hidden = t5.T5(config).apply(
      params,
      None,
      tokens,
      tokens,
      deterministic=False,
      rngs={'dropout': jax.random.key(3)},
    )
    return jnp.mean(jax.nn.logsumexp(logits, -1)) + jnp.mean(hidden**2)

  # Gentle parameters, of gradients about 1.
  params = jax.tree.map(lambda x: 0.3 * x, lora_params)
  remat.check(LORA, loss, params)


def test_remat_of_another_name_is_refused():
  config = dataclasses.replace(TINY, remat='some')
  tokens = jnp.ones((1, 2), jnp.int32)
  with pytest.raises(ValueError, match="none, full or dots, got 'some'"):
    t5.T5(config).init(jax.random.key(0), None, tokens, tokens)


def test_buckets_are_t5x(golden):
  relative = golden['relpos/relative_position']
  for bidirectional, name in ((True, 'bidirectional'), (False, 'causal')):
    np.testing.assert_array_equal(
      t5.relative_buckets(relative, bidirectional),
      golden[f'relpos/bucket_{name}'],
    )


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_relative_bias_is_t5x(params, golden, stack):
  want = golden[f'hidden/{stack}_relpos_bias']
  length = want.shape[-1]
  module = t5.RelativeBias(2, stack == 'encoder')
  variables = {'params': params['params'][stack]['relpos_bias']}
  np.testing.assert_array_equal(module.apply(variables, length), want)
  for index in (0, 7, length - 1):
    row, own = module.apply(variables, index, length, method='row')
    np.testing.assert_array_equal(row, want[0, :, index])
    np.testing.assert_array_equal(own, want[0, :, index, index])


@pytest.mark.parametrize(
  'name, unroll', [('plain', 1), ('lora_qv', 9), ('lora_qkvo', 1)]
)
def test_visual_tokens_and_lora_are_the_research_code(name, unroll):
  arrays = t5_golden.load(f't5_head_{name}')
  meta = json.loads(str(arrays['config']))
  rank = meta['decoder_lora_rank']
  numbers = {
    key: value
    for key, value in meta['t5'].items()
    if key not in ('logits_via_embedding', 'mlp_activations')
  }
  config = t5.T5Config(
    **numbers,
    scan_unroll=unroll,
    lora=LoraConfig(
      rank,
      meta['decoder_lora_scale'],
      ('query', 'key', 'value', 'out')[:: 1 if 'qkvo' in name else 2],
    )
    if rank
    else None,
  )

  def same_rank(flat):
    # The encoder's rank is lower in one file: zeros make up for it.
    widen = {'kernel_left_lora': 1, 'kernel_right_lora': 0}
    out = {}
    for key, array in flat.items():
      axis = widen.get(key.split('/')[-1])
      if axis is not None:
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, rank - array.shape[axis])
        array = np.pad(array, pad)
      out[key] = array
    return out

  params = t5_golden.variables(
    same_rank(t5_golden.part(arrays, 'params/t5_module/'))
  )
  model = t5.T5(config)
  inputs = arrays['in/text_tokens']
  targets = np.pad(inputs[:, 1:], ((0, 0), (0, 1)))

  def run(params, visual, context):
    encoded, valid = model.apply(params, visual, context, method='encode')
    return model.apply(params, encoded, valid, inputs, targets, method='decode')

  def total(params, visual):
    logits, feats = run(params, visual, context)
    value = jnp.sum(logits * arrays['in/cotangent_logits'])
    value += jnp.sum(feats * arrays['in/cotangent_feats'])
    return value, (logits, feats)

  visual, context = arrays['in/visual_features'], arrays['in/context_tokens']
  (grads, visual_grad), (logits, feats) = jax.jit(
    jax.grad(total, (0, 1), has_aux=True)
  )(params, visual)
  close(logits, arrays['out/logits'])
  close(feats, arrays['out/feats'])
  if not rank:
    logits, feats = jax.jit(run)(params, visual, context[:, :0])
    close(logits, arrays['out/logits_no_context'])
    close(feats, arrays['out/feats_no_context'])
  want = arrays['grad/visual_features']
  close(visual_grad, want, 1e-4 * np.abs(want).max())

  # A padded column of lora_a has no gradient in the file but a true one here.
  def cut(path, grad):
    name = jax.tree_util.keystr(path)
    encoder_rank = meta['encoder_lora_rank']
    if "'encoder'" in name and 'lora_a' in name:
      return grad[..., :encoder_rank]
    if "'encoder'" in name and 'lora_b' in name:
      return grad[..., :encoder_rank, :]
    return grad

  compare_gradients(
    jax.tree_util.tree_map_with_path(cut, grads),
    t5_golden.part(arrays, 'grad/params/t5_module/'),
  )


def test_zero_lora_is_no_lora(params, lora_params, golden):
  flat = traverse_util.flatten_dict(params)
  merged = {
    name: np.zeros_like(value)
    if name[-1] == 'lora_b'
    else flat.get(name, value)
    for name, value in traverse_util.flatten_dict(lora_params).items()
  }
  merged = traverse_util.unflatten_dict(merged)
  for got, want in zip(
    forward_golden(LORA, merged, golden, 'inputs/'),
    forward_golden(TINY, params, golden, 'inputs/'),
  ):
    close(got, want, 1e-5)


def test_position_depends_on_those_before_it_only(lora_params):
  model = t5.T5(LORA)
  x = jax.random.normal(jax.random.key(2), (1, 5, 16))
  encoded = jax.random.normal(jax.random.key(3), (1, 3, 16))
  encoder_valid = jnp.asarray([[True, False, True]])

  @jax.jit
  @jax.jacrev
  def jacobian(inputs):
    x, encoded = inputs
    logits, _ = model.apply(
      lora_params,
      x,
      encoded,
      encoder_valid,
      jnp.ones((1, 5), bool),
      True,
      method=lambda m, *args: m.decoder(*args),
    )
    return jnp.sum(logits, axis=(0, 2))

  by_input, by_encoded = jacobian((x, encoded))
  influence = np.abs(by_input).sum(axis=(1, 3))
  np.testing.assert_array_equal(influence > 0, np.tri(5, dtype=bool))
  influence = np.abs(by_encoded).sum(axis=(1, 3))
  np.testing.assert_array_equal(influence > 0, [[True, False, True]] * 5)


@pytest.mark.parametrize('unroll', [False, True])
def test_cached_decoding_is_t5x(params, golden, unroll):
  tokens = golden['inputs/decoder_input_tokens']
  logits, _, cache = steps(
    dataclasses.replace(TINY, unroll_decoding=unroll),
    params,
    None,
    golden['inputs/encoder_input_tokens'],
    tokens,
  )
  close(logits, golden['step_logits'])
  for name in ('key', 'value'):
    for i in range(2):
      want = golden[
        f'cache_after_6/decoder/layers_{i}/self_attention/cached_{name}'
      ]
      found = cache['layers'][i][name] if unroll else cache[name][i]
      if name == 'value':
        found = np.swapaxes(found, -1, -2)
      close(found[..., :6], want[..., :6])


@pytest.mark.parametrize('unroll', [False, True])
def test_cached_decoding_is_teacher_forcing(lora_params, unroll):
  visual = jax.random.normal(jax.random.key(4), (2, 3, 16))
  context = jnp.asarray([[5, 6], [7, 0]])
  # Two beams a row: what they read of the encoder is kept once.
  targets = jax.random.randint(jax.random.key(5), (4, 9), 1, 64)
  logits, hidden = jax.jit(t5.T5(LORA).apply)(
    lora_params,
    jnp.repeat(visual, 2, axis=0),
    jnp.repeat(context, 2, axis=0),
    targets,
  )
  step_logits, step_hidden, _ = steps(
    dataclasses.replace(LORA, unroll_decoding=unroll),
    lora_params,
    visual,
    context,
    t5.shift_right(targets),
  )
  close(step_logits, logits)
  close(step_hidden, hidden)


def steps(config, params, visual, context, input_tokens):
  """All positions of `input_tokens` one by one."""
  model = t5.T5(config)

  @jax.jit
  def run(input_tokens):
    encoded, valid = model.apply(params, visual, context, method='encode')
    cross = model.apply(params, encoded, method='cross_attention_cache')
    batch, length = input_tokens.shape

    def body(cache, position):
      index, tokens = position
      logits, hidden, cache = model.apply(
        params, tokens, index, cache, cross, valid, method='decode_step'
      )
      return cache, (logits, hidden)

    cache, outputs = jax.lax.scan(
      body,
      model.init_cache(batch, length),
      (jnp.arange(length), input_tokens.T),
    )
    return *(jnp.swapaxes(x, 0, 1) for x in outputs), cache

  return run(input_tokens)


def test_dropout_is_shared_along_length_and_spares_hidden(params):
  model = t5.T5(
    dataclasses.replace(
      TINY, dropout_rate=0.2, num_encoder_layers=1, num_decoder_layers=1
    )
  )
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x[:1] if "'layers'" in str(path) else x, params
  )
  context = jnp.asarray([[5, 6, 9]])
  targets = jnp.asarray([[5, 6, 9, 4, 8, 1]])

  @jax.jit
  def run(key):
    return model.apply(
      params, None, context, targets, False, rngs={'dropout': key}
    )

  logits, hidden = run(jax.random.key(0))
  other, _ = run(jax.random.key(1))
  assert np.abs(logits - other).max() > 0.1
  kernel = params['params']['decoder']['logits_dense']['kernel']
  mask = np.asarray(logits @ np.linalg.pinv(kernel) / hidden)
  close(mask, np.broadcast_to(mask[:, :1], mask.shape), 1e-2)
  close(np.where(mask > 1, mask - 1.25, mask), np.zeros_like(mask), 1e-2)
  assert 0 < (mask > 1).mean() < 1


def test_parameters_are_named_and_stacked():
  boxed = jax.eval_shape(
    lambda: t5.T5(LORA).init(
      jax.random.key(0), None, jnp.ones((1, 2), int), jnp.ones((1, 2), int)
    )
  )
  flat = traverse_util.flatten_dict(boxed['params'], sep='/')
  for name, box in flat.items():
    assert isinstance(box, nn.LogicallyPartitioned), name
    assert len(box.names) == box.value.ndim, name
    assert set(box.names) <= sharding.AXIS_NAMES, name
    assert (box.names[0] == 'layers') == ('/layers/' in name), name
    assert box.value.dtype == jnp.float32, name
  t5x = t5_golden.stack(t5_golden.load('t5x_tiny_params'))
  shapes = {n: b.value.shape for n, b in flat.items() if 'lora' not in n}
  assert shapes == {name: array.shape for name, array in t5x.items()}


# Section 1 of T5X's table, counted from its own modules.
@pytest.mark.parametrize(
  'size, count',
  [
    ('small', 76_961_152),
    ('base', 247_577_856),
    ('large', 783_150_080),
    ('xl', 2_849_757_184),
    ('xxl', 11_135_332_352),
  ],
)
def test_sizes_are_t5x(size, count):
  tokens = jnp.ones((1, 2), jnp.int32)
  shapes = jax.eval_shape(
    lambda: t5.T5(t5.SIZES[size]).init(jax.random.key(0), None, tokens, tokens)
  )
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_default_is_xl():
  assert t5.T5Config() == t5.SIZES['xl']


def test_initial_spread():
  config = t5.T5Config(
    vocab_size=256,
    emb_dim=64,
    num_heads=4,
    head_dim=32,
    mlp_dim=96,
    num_encoder_layers=2,
    num_decoder_layers=2,
    lora=LoraConfig(16),
  )
  tokens = jnp.ones((1, 2), jnp.int32)
  init = functools.partial(t5.T5(config).init, jax.random.key(0), None)
  params = nn.unbox(jax.jit(init)(tokens, tokens))['params']
  layer = params['decoder']['layers']
  attention, mlp = layer['self_attention'], layer['mlp']
  for array, want in (
    (attention['query']['kernel'], (64 * 32) ** -0.5),
    (attention['query']['lora_a'], (64 * 32) ** -0.5),
    (attention['value']['lora_a'], 64**-0.5),
    (attention['key']['kernel'], 64**-0.5),
    (attention['out']['kernel'], 128**-0.5),
    (mlp['wi_0']['kernel'], 64**-0.5),
    (mlp['wo']['kernel'], 96**-0.5),
    (params['token_embedder']['embedding'], 1.0),
    (params['decoder']['logits_dense']['kernel'], 64**-0.5),
  ):
    np.testing.assert_allclose(np.std(array), want, 0.06)
  assert not np.any(attention['query']['lora_b'])
  assert not np.array_equal(mlp['wo']['kernel'][0], mlp['wo']['kernel'][1])


def test_unknown_token_embeds_to_zeros(params):
  variables = {'params': params['params']['token_embedder']}
  rows = t5.Embed(64, 16, 'float32').apply(variables, jnp.asarray([63, 64]))
  assert np.all(rows[0]) and not np.any(rows[1])


def test_shift_right():
  np.testing.assert_array_equal(
    t5.shift_right(jnp.asarray([[5, 1, 0], [7, 8, 9]])), [[0, 5, 1], [0, 7, 8]]
  )


def test_visual_tokens_that_are_not_valid_change_nothing():
  model = t5.T5(
    t5.T5Config(
      vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12,
      num_encoder_layers=2, num_decoder_layers=1, dropout_rate=0.0,
    )
  )  # fmt: skip
  visual = jax.random.normal(jax.random.key(0), (2, 4, 8))
  tokens = jnp.array([[5, 6, 1], [7, 1, 0]])
  valid = jnp.array([[True, False, True, True], [False, True, True, False]])
  params = model.init(jax.random.key(1), visual, tokens, tokens, tokens)

  def run(visual, valid):
    encoded, mask = model.apply(
      params, visual, tokens, True, valid, method='encode'
    )
    logits, _ = model.apply(
      params, encoded, mask, tokens, tokens, method='decode'
    )
    # A padded position has nothing to attend to and so attends to anything.
    return logits[tokens > 0]

  other = jnp.where(valid[..., None], visual, 3 * visual + 1)
  np.testing.assert_allclose(run(visual, valid), run(other, valid), atol=1e-6)
  assert np.abs(run(visual, valid) - run(visual, None)).max() > 1e-4
