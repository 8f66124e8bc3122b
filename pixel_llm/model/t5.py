# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""T5 1.1 / Flan-T5: an encoder-decoder that also reads visual tokens.

The function is T5X's to the letter (relative position buckets, RMS norms,
gated GELU, unscaled attention, additive masks on the query side too), and so
are the parameter names, but that the layers of a stack are one scanned block:
`layers_0/...`, `layers_1/...` are stacked on axis 0 under `layers/...`.

Source: T5X, `t5x/examples/t5/network.py` and `layers.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pixel_llm.model import decoding, layers
from pixel_llm.model.layers import MASKED, Dense, LoraConfig

Array = jax.Array

BUCKETS = 32
MAX_DISTANCE = 128

_MLP_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
_BIAS_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Numbers of T5 1.1; the defaults are Flan-T5 XL's.

  Attributes:
    vocab_size: rows of the embedding; T5's 32,100 pieces rounded up to 128.
    emb_dim: width of the residual stream.
    num_heads: attention heads.
    head_dim: width of a head; heads x width need not be `emb_dim`.
    mlp_dim: hidden width of the gated MLP.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    dropout_rate: at each of T5X's places.
    dtype: of the activations; logits and parameters are float32.
    lora: low-rank updates of every attention's projections, or None.
    scan_unroll: layers a scan step holds; at least the number of layers gives
      straight-line code, which a CPU prefers and a TPU compiler does not.
    unroll_decoding: the layers of a decoding step are straight-line code. The
      kernels of the decoder are then copied once, before the first step; a
      loop over layers would copy them at every step, but hold them once.
    remat: what a layer keeps for the backward pass.
  """

  vocab_size: int = 32128
  emb_dim: int = 2048
  num_heads: int = 32
  head_dim: int = 64
  mlp_dim: int = 5120
  num_encoder_layers: int = 24
  num_decoder_layers: int = 24
  dropout_rate: float = 0.1
  dtype: str = 'float32'
  lora: LoraConfig | None = None
  scan_unroll: int = 1
  unroll_decoding: bool = True
  remat: layers.Remat = 'none'


def _size(emb_dim: int, num_heads: int, mlp_dim: int, depth: int) -> T5Config:
  return T5Config(
    emb_dim=emb_dim,
    num_heads=num_heads,
    mlp_dim=mlp_dim,
    num_encoder_layers=depth,
    num_decoder_layers=depth,
  )


SIZES: dict[str, T5Config] = {
  'small': _size(512, 6, 1024, 8),
  'base': _size(768, 12, 2048, 12),
  'large': _size(1024, 16, 2816, 24),
  'xl': _size(2048, 32, 5120, 24),
  'xxl': _size(4096, 64, 10240, 24),
}


def shift_right(tokens: Array) -> Array:
  """Decoder inputs of targets: [..., L] -> [..., L], begin token (0) first."""
  return jnp.concatenate(
    [jnp.zeros_like(tokens[..., :1]), tokens[..., :-1]], axis=-1
  )


def relative_buckets(relative: np.ndarray, bidirectional: bool) -> np.ndarray:
  """Bucket of each relative position.

  Half of a direction's buckets are exact distances; the others grow
  logarithmically up to `MAX_DISTANCE`.

  Args:
    relative: key index - query index, int.
    bidirectional: the encoder's rule, which halves the buckets between past
      and future; else the decoder's, where the future shares bucket 0.

  Returns:
    int32 in [0, BUCKETS), the shape of `relative`.

  Source: arXiv 1910.10683, section 2.1; T5X, `layers.RelativePositionBiases`.
  """
  if bidirectional:
    count = BUCKETS // 2
    distance = np.abs(relative)
    offset = count * (relative > 0)
  else:
    count = BUCKETS
    distance = np.maximum(-relative, 0)
    offset = np.zeros_like(relative)
  exact = count // 2
  ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
  far = exact + (
    np.log(ratio) / np.log(MAX_DISTANCE / exact) * (count - exact)
  ).astype(np.int32)
  bucket = np.where(distance < exact, distance, np.minimum(far, count - 1))
  return (bucket + offset).astype(np.int32)


class RmsNorm(nn.Module):
  """x / rms(x) * scale: no mean, no bias; statistics in float32."""

  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., width] -> [..., width]."""
    scale = layers.parameter(
      self, 'scale', nn.initializers.ones, ('embed',), x.shape[-1:], self.dtype
    )
    x = jnp.asarray(x, jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = jnp.asarray(x * jax.lax.rsqrt(mean_square + 1e-6), self.dtype)
    return y * jnp.reshape(scale, (1,) * (x.ndim - 1) + (-1,))


class Embed(nn.Module):
  """Rows of a table; ids beyond it give zeros, as T5X's one-hot product."""

  vocab_size: int
  features: int
  dtype: str

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    """[...] int -> [..., features]."""
    table = layers.parameter(
      self,
      'embedding',
      nn.initializers.normal(1.0),
      ('vocab', 'embed'),
      (self.vocab_size, self.features),
    )
    rows = jnp.take(table, tokens, axis=0, mode='fill', fill_value=0)
    return jnp.asarray(rows, self.dtype)


class RelativeBias(nn.Module):
  """Attention bias by distance between query and key, one table a stack."""

  num_heads: int
  bidirectional: bool

  def setup(self):
    """Makes the parts, the same for every method."""
    self.rel_embedding: Any = self.param(
      'rel_embedding',
      nn.with_logical_partitioning(_BIAS_INIT, ('heads', 'relpos_buckets')),
      (self.num_heads, BUCKETS),
    )

  def _by_distance(self, length: int) -> Array:
    """[heads, 2 * length - 1]: key - query from -(length - 1) upwards."""
    relative = np.arange(1 - length, length)
    buckets = relative_buckets(relative, self.bidirectional)
    return self.rel_embedding[:, buckets]

  def __call__(self, length: int) -> Array:
    """Bias of all queries and keys, [1, heads, length, length]."""
    # Row q is the vector by distance, moved q to the right. Reading rows of
    # 2 * length as rows of 2 * length - 1 moves them so, with neither gather
    # nor, backwards, scatter.
    rows = jnp.pad(self._by_distance(length), ((0, 0), (0, 1)))
    rows = jnp.broadcast_to(rows[:, None], (self.num_heads, length, 2 * length))
    rows = jnp.reshape(rows, (self.num_heads, -1))
    rows = rows[:, : length * (2 * length - 1)]
    rows = jnp.reshape(rows, (self.num_heads, length, -1))
    return rows[None, :, :, length - 1 :]

  def row(self, index: Array, length: int) -> tuple[Array, Array]:
    """Bias of the query at `index` to all keys, [heads, length], to itself."""
    by_distance = self._by_distance(length)
    row = jax.lax.dynamic_slice_in_dim(
      by_distance, length - 1 - index, length, axis=1
    )
    return row, by_distance[:, length - 1]


class Attention(nn.Module):
  """Multi-head attention without scale; T5 folds it into the query kernel."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config

    def dense(name, features, axes, kernel_init=layers.DEFAULT_INIT):
      with_lora = c.lora is not None and name in c.lora.projections
      return Dense(
        features,
        axes,
        dtype=c.dtype,
        kernel_init=kernel_init,
        lora=c.lora if with_lora else None,
      )

    # The scale that other attentions have in their logits.
    query_init = nn.initializers.variance_scaling(
      1.0 / c.head_dim, 'fan_in', 'normal'
    )
    joined = c.num_heads * c.head_dim
    self.query = dense('query', joined, ('embed', 'joined_kv'), query_init)
    self.key = dense('key', joined, ('embed', 'joined_kv'))
    self.value = dense('value', joined, ('embed', 'joined_kv'))
    self.out = dense('out', c.emb_dim, ('joined_kv', 'embed'))
    # One mask for all queries of a row, as T5X.
    self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

  def _split(self, x: Array) -> Array:
    return jnp.reshape(
      x, (*x.shape[:-1], self.config.num_heads, self.config.head_dim)
    )

  def __call__(
    self, x: Array, memory: Array, bias: Array, deterministic: bool
  ) -> Array:
    """Queries from x [N, q, emb], keys from memory [N, k, emb]."""
    y = layers.attention(
      self._split(self.query(x)),
      *self.keys_values(memory),
      bias,
      dropout=functools.partial(self.dropout, deterministic=deterministic),
    )
    return self.out(jnp.reshape(y, (*x.shape[:-1], -1)))

  def keys_values(self, memory: Array) -> tuple[Array, Array]:
    """[..., emb] -> keys and values [..., heads, kv]."""
    return self._split(self.key(memory)), self._split(self.value(memory))

  def step(
    self,
    x: Array,
    key: Array,
    value: Array,
    bias: Array,
    own: tuple[Array, Array, Array] | None = None,
  ) -> Array:
    """One position over keys and values that are already there.

    The beams of a row are so many queries of the same keys, which are
    therefore kept once.

    Args:
      x: [N, emb], N = M * beams.
      key: [M, heads, kv, k]; as the product wants it, so that nothing is
        transposed.
      value: [M, heads, k, kv].
      bias: broadcastable to [M, heads, beams, k].
      own: key and value [N, heads, kv] of the position itself and its bias
        [heads], which `key` and `value` do not hold.

    Returns:
      [N, emb].
    """
    query = self._split(self.query(x))
    query = jnp.reshape(query, (key.shape[0], -1, *query.shape[1:]))
    query = jnp.swapaxes(query, 1, 2)
    logits = jnp.asarray(query @ key, jnp.float32) + bias
    if own is None:
      weights = jnp.asarray(jax.nn.softmax(logits), value.dtype)
      y = weights @ value
    else:
      own_key, own_value, own_bias = (
        own[0][:, :, None],
        own[1][:, :, None],
        own[2][None, :, None, None],
      )
      own_logit = jnp.sum(query * own_key, axis=-1, keepdims=True)
      logits = jnp.concatenate(
        [logits, jnp.asarray(own_logit, jnp.float32) + own_bias], axis=-1
      )
      weights = jnp.asarray(jax.nn.softmax(logits), value.dtype)
      y = weights[..., :-1] @ value + weights[..., -1:] * own_value
    return self.out(jnp.reshape(jnp.swapaxes(y, 1, 2), (x.shape[0], -1)))


class Mlp(nn.Module):
  """(gelu(x @ wi_0) * (x @ wi_1)) @ wo; GELU by tanh, as Flax's default."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    """[..., emb] -> [..., emb]."""
    c = self.config

    def dense(name, features, axes):
      return Dense(
        features, axes, dtype=c.dtype, kernel_init=_MLP_INIT, name=name
      )

    gate = nn.gelu(dense('wi_0', c.mlp_dim, ('embed', 'mlp'))(x))
    y = gate * dense('wi_1', c.mlp_dim, ('embed', 'mlp'))(x)
    y = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))(y, deterministic)
    return dense('wo', c.emb_dim, ('mlp', 'embed'))(y)


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each normed before and added after."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config
    self.pre_attention_layer_norm = RmsNorm(c.dtype)
    self.attention = Attention(c)
    self.pre_mlp_layer_norm = RmsNorm(c.dtype)
    self.mlp = Mlp(c)
    self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self, x: Array, bias: Array, deterministic: bool
  ) -> tuple[Array, None]:
    """[N, S, emb], [N, heads, S, S] -> [N, S, emb]."""
    y = self.pre_attention_layer_norm(x)
    y = self.attention(y, y, bias, deterministic)
    x = x + self.dropout(y, deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic), None


class DecoderLayer(nn.Module):
  """Causal self-attention, cross attention, MLP."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config
    self.pre_self_attention_layer_norm = RmsNorm(c.dtype)
    self.self_attention = Attention(c)
    self.pre_cross_attention_layer_norm = RmsNorm(c.dtype)
    self.encoder_decoder_attention = Attention(c)
    self.pre_mlp_layer_norm = RmsNorm(c.dtype)
    self.mlp = Mlp(c)
    self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x: Array,
    encoded: Array,
    bias: Array,
    cross_bias: Array,
    deterministic: bool,
  ) -> tuple[Array, None]:
    """[N, L, emb] with its keys [N, S, emb] -> [N, L, emb]."""
    y = self.pre_self_attention_layer_norm(x)
    y = self.self_attention(y, y, bias, deterministic)
    x = x + self.dropout(y, deterministic)
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(y, encoded, cross_bias, deterministic)
    x = x + self.dropout(y, deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic), None

  def cross_keys_values(self, carry: None, encoded: Array) -> Any:
    """What `step` reads of `encoded`."""
    key, value = self.encoder_decoder_attention.keys_values(encoded)
    return carry, {
      'key': jnp.moveaxis(key, 1, 3),
      'value': jnp.swapaxes(value, 1, 2),
    }

  def step(
    self,
    x: Array,
    cache: Any,
    cross: Any,
    bias: Array,
    own_bias: Array,
    cross_bias: Array,
  ) -> tuple[Array, Any]:
    """One position: [N, emb] -> [N, emb] and its entry for the cache."""
    y = self.pre_self_attention_layer_norm(x)
    key, value = self.self_attention.keys_values(y)
    x = x + self.self_attention.step(
      y, cache['key'], cache['value'], bias, (key, value, own_bias)
    )
    return self._step_across(x, cross, cross_bias), {'key': key, 'value': value}

  def step_in_place(
    self,
    x: Array,
    index: Array,
    cache: Any,
    cross: Any,
    bias: Array,
    cross_bias: Array,
  ) -> tuple[Array, Any]:
    """One position: [N, emb] -> [N, emb] and the layer's cache with it."""
    y = self.pre_self_attention_layer_norm(x)
    rows = cache['key'].shape[0]
    # Those of a row's beams are neighbours: position, then slot.
    key, value = (
      jnp.reshape(a, (rows, -1, *a.shape[1:]))
      for a in self.self_attention.keys_values(y)
    )
    start = index * key.shape[1]
    put = jax.lax.dynamic_update_slice_in_dim
    cache = {
      'key': put(cache['key'], jnp.moveaxis(key, 1, -1), start, axis=-1),
      'value': put(cache['value'], jnp.swapaxes(value, 1, 2), start, axis=-2),
    }
    x = x + self.self_attention.step(y, cache['key'], cache['value'], bias)
    return self._step_across(x, cross, cross_bias), cache

  def _step_across(self, x: Array, cross: Any, bias: Array) -> Array:
    """What follows self-attention at one position."""
    y = self.pre_cross_attention_layer_norm(x)
    x = x + self.encoder_decoder_attention.step(
      y, cross['key'], cross['value'], bias
    )
    return x + self.mlp(self.pre_mlp_layer_norm(x), True)


def _write(cache: Any, key: Array, value: Array, index: Array) -> Any:
  """The cache with keys and values [..., heads, kv] of position `index`."""
  put = jax.lax.dynamic_update_slice_in_dim
  return {
    'key': put(cache['key'], key[..., None], index, axis=-1),
    'value': put(cache['value'], value[..., None, :], index, axis=-2),
  }


def _step_config(config: T5Config) -> T5Config:
  """Of the layers that take parameters of `_step_params`."""
  # In few bits a kernel would swallow a small update.
  is_merged = config.dtype == 'float32'
  return dataclasses.replace(config, lora=None) if is_merged else config


def _step_params(params: Any, config: T5Config) -> Any:
  """Stacked layers with low-rank updates in their kernels, for many steps."""
  if config.lora is None or _step_config(config).lora is not None:
    return params
  if 'lora_a' not in params:
    return {
      name: _step_params(x, config) if isinstance(x, Mapping) else x
      for name, x in params.items()
    }
  update = params['lora_a'] @ params['lora_b']
  return {'kernel': params['kernel'] + config.lora.scale * update}


def _scan(
  layer: type[nn.Module],
  config: T5Config,
  length: int,
  methods: dict[str, dict[str, Any]],
) -> Any:
  """`length` equal layers as one; how to scan each method beside that."""
  shared = {
    'variable_axes': {'params': 0},
    'split_rngs': {'params': True, 'dropout': True},
    'length': length,
    'metadata_params': {nn.PARTITION_NAME: 'layers'},
  }
  return nn.scan(
    layer, methods={name: shared | options for name, options in methods.items()}
  )(config)


class Encoder(nn.Module):
  """The bidirectional stack."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config
    self.relpos_bias = RelativeBias(c.num_heads, bidirectional=True)
    depth = c.num_encoder_layers
    self.layers = _scan(
      # `deterministic` is no array.
      layers.remat(EncoderLayer, c.remat, c.scan_unroll, (3,)),
      c,
      depth,
      {
        '__call__': {
          'in_axes': nn.broadcast,
          'unroll': min(c.scan_unroll, depth),
        },
      },
    )
    self.encoder_norm = RmsNorm(c.dtype)
    self.dropout = nn.Dropout(c.dropout_rate)

  def __call__(self, x: Array, valid: Array, deterministic: bool) -> Array:
    """[N, S, emb], [N, S] bool -> [N, S, emb]."""
    mask = valid[:, None, :, None] & valid[:, None, None, :]
    bias = jnp.where(mask, 0.0, MASKED) + self.relpos_bias(x.shape[1])
    x, _ = self.layers(x, bias, deterministic)
    return self.dropout(self.encoder_norm(x), deterministic)


class Decoder(nn.Module):
  """The causal stack with cross attention, and the word logits."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config
    self.relpos_bias = RelativeBias(c.num_heads, bidirectional=False)
    depth = c.num_decoder_layers
    self.layers = _scan(
      layers.remat(DecoderLayer, c.remat, c.scan_unroll, (5,)),
      c,
      depth,
      {
        '__call__': {
          'in_axes': nn.broadcast,
          'unroll': min(c.scan_unroll, depth),
        },
        'cross_keys_values': {'in_axes': nn.broadcast},
        'step': {
          'in_axes': (0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
        },
      },
    )
    self.decoder_norm = RmsNorm(c.dtype)
    self.logits_dense = Dense(
      c.vocab_size, ('embed', 'vocab'), kernel_init=_MLP_INIT
    )
    self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x: Array,
    encoded: Array,
    encoder_valid: Array,
    target_valid: Array,
    deterministic: bool,
  ) -> tuple[Array, Array]:
    """Teacher forcing: [N, L, emb] -> logits and hidden states."""
    length = x.shape[1]
    query_valid = target_valid[:, None, :, None]
    causal = np.tri(length, dtype=bool)[None, None]
    mask = causal & query_valid & target_valid[:, None, None, :]
    bias = jnp.where(mask, 0.0, MASKED) + self.relpos_bias(length)
    cross_mask = query_valid & encoder_valid[:, None, None, :]
    cross_bias = jnp.where(cross_mask, 0.0, MASKED)
    x, _ = self.layers(x, encoded, bias, cross_bias, deterministic)
    hidden = self.decoder_norm(x)
    return self.logits_dense(self.dropout(hidden, deterministic)), hidden

  def cross_keys_values(self, encoded: Array) -> Any:
    """Keys and values of `encoded`, stacked over layers or in a tuple."""
    stacked = self.layers.cross_keys_values(None, encoded)[1]
    depth = self.config.num_decoder_layers
    if not self.config.unroll_decoding:
      return stacked
    # Out here, since the compiler does not move slices out of a loop.
    params = nn.unbox(self.layers.variables['params'])
    stacked['params'] = _step_params(params, self.config)
    return tuple(
      jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)
    )

  def step(
    self, x: Array, index: Array, cache: Any, cross: Any, encoder_valid: Array
  ) -> tuple[Array, Array, Any]:
    """One position: [N, emb] -> logits, hidden state and the new cache."""
    cross_bias = jnp.where(encoder_valid, 0.0, MASKED)[:, None, None]
    if 'layers' in cache:
      x, cache = self._step_in_place(x, index, cache, cross, cross_bias)
    else:
      length = cache['key'].shape[-1]
      bias, own_bias = self.relpos_bias.row(index, length)
      seen = jnp.where(jnp.arange(length) < index, 0.0, MASKED)
      bias = bias[None, :, None] + seen[None, None, None]
      x, entry = self.layers.step(x, cache, cross, bias, own_bias, cross_bias)
      # Every layer has read the cache before it changes, once and in place:
      # only the end of the loop tells the compiler so.
      cache = _write(cache, entry['key'], entry['value'], index)
    hidden = self.decoder_norm(x)
    return self.logits_dense(hidden), hidden, cache

  def _step_in_place(
    self, x: Array, index: Array, cache: Any, cross: Any, cross_bias: Array
  ) -> tuple[Array, Any]:
    """The layers one after another, each with a cache of its own."""
    rows, columns = (cache['layers'][0]['key'].shape[i] for i in (0, -1))
    slots = cache.get('slots')
    beams = 1 if slots is None else slots.shape[1]
    length = columns // beams
    bias, _ = self.relpos_bias.row(index, length)
    seen = jnp.arange(length) <= index
    if slots is None:
      mine = seen[None, None]
    else:
      own = jnp.arange(beams, dtype=slots.dtype)
      slots = jax.lax.dynamic_update_slice_in_dim(
        slots,
        jnp.broadcast_to(own[None, :, None], (rows, beams, 1)),
        index,
        axis=2,
      )
      mine = slots[..., None] == own[None, None, None]
      mine = mine & seen[None, None, :, None]
      mine = jnp.reshape(mine, (rows, beams, columns))
      bias = jnp.repeat(bias, beams, axis=1)
    bias = bias[None, :, None] + jnp.where(mine, 0.0, MASKED)[:, None]
    layer = DecoderLayer(_step_config(self.config), parent=None)
    written = []
    for own, memory in zip(cache['layers'], cross, strict=True):
      x, own = layer.apply(
        {'params': memory['params']},
        x,
        index,
        own,
        memory,
        bias,
        cross_bias,
        method='step_in_place',
      )
      written.append(own)
    cache = {**cache, 'layers': tuple(written)}
    return x, cache if slots is None else {**cache, 'slots': slots}


def _expand(cache: Any, beams: int) -> Any:
  """See `CACHE_BEAMS`."""
  if 'layers' not in cache:
    return decoding.COPIED.expand(cache, beams)
  rows, _, _, length = cache['layers'][0]['key'].shape
  return {
    'layers': tuple(
      {
        'key': jnp.repeat(layer['key'], beams, axis=-1),
        'value': jnp.repeat(layer['value'], beams, axis=-2),
      }
      for layer in cache['layers']
    ),
    'slots': jnp.zeros((rows, beams, length), jnp.int32),
  }


def _reorder(cache: Any, rows: Array) -> Any:
  """See `CACHE_BEAMS`."""
  if 'layers' not in cache:
    return decoding.COPIED.reorder(cache, rows)
  slots = cache['slots']
  flat = jnp.reshape(slots, (-1, slots.shape[-1]))[rows]
  return {**cache, 'slots': jnp.reshape(flat, slots.shape)}


# Where layers have caches of their own, keys and values stay where they were
# written, those of a row's beams side by side: [M, heads, kv, length * beams]
# and [M, heads, length * beams, kv]. Which slot a hypothesis was in at each
# position, [M, beams, length] `slots`, is all that is reordered; attention
# masks the columns of others. Reading a row's columns for all its beams at once
# costs less than copying them.
CACHE_BEAMS = decoding.CacheBeams(_expand, _reorder)


class T5(nn.Module):
  """T5 1.1 whose encoder reads [visual tokens, text tokens]."""

  config: T5Config

  def setup(self):
    """Makes the parts, the same for every method."""
    c = self.config
    self.token_embedder = Embed(c.vocab_size, c.emb_dim, c.dtype)
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    self.dropout = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    visual: Array | None,
    tokens: Array,
    target_tokens: Array,
    deterministic: bool = True,
  ) -> tuple[Array, Array]:
    """Encoder and decoder at once, the decoder fed the targets' right shift.

    Args:
      visual: [N, V, emb] or None, see `encode`.
      tokens: [N, C] int, see `encode`.
      target_tokens: [N, L] int, see `decode`.
      deterministic: no dropout.

    Returns:
      logits [N, L, vocab] float32 and hidden [N, L, emb], see `decode`.
    """
    encoded, valid = self.encode(visual, tokens, deterministic)
    return self.decode(
      encoded, valid, shift_right(target_tokens), target_tokens, deterministic
    )

  def encode(
    self,
    visual: Array | None,
    tokens: Array,
    deterministic: bool = True,
    visual_valid: Array | None = None,
  ) -> tuple[Array, Array]:
    """Encodes visual tokens followed by text.

    Args:
      visual: [N, V, emb] embeddings, or None for text alone. They take
        positions 0..V-1, the text those after.
      tokens: [N, C] int, 0 is padding; C may be 0.
      deterministic: no dropout.
      visual_valid: [N, V] bool, those of `visual` to attend to; None for all.

    Returns:
      encoded [N, V + C, emb] and encoder_valid [N, V + C] bool.
    """
    x = self._embed(tokens, deterministic)
    valid = tokens > 0
    if visual is not None:
      x = jnp.concatenate([jnp.asarray(visual, x.dtype), x], axis=1)
      if visual_valid is None:
        visual_valid = jnp.ones(visual.shape[:2], bool)
      valid = jnp.concatenate([visual_valid, valid], axis=1)
    return self.encoder(x, valid, deterministic), valid

  def decode(
    self,
    encoded: Array,
    encoder_valid: Array,
    input_tokens: Array,
    target_tokens: Array,
    deterministic: bool = True,
  ) -> tuple[Array, Array]:
    """Teacher forcing: all positions at once.

    Args:
      encoded: [N, S, emb].
      encoder_valid: [N, S] bool.
      input_tokens: [N, L] int, the right shift of the targets.
      target_tokens: [N, L] int; only which are 0 (padding) matters: these
        positions neither attend nor are attended to.
      deterministic: no dropout.

    Returns:
      logits [N, L, vocab] float32 and hidden [N, L, emb], the states after
      the last norm and before the last dropout.
    """
    x = self._embed(input_tokens, deterministic)
    return self.decoder(
      x, encoded, encoder_valid, target_tokens > 0, deterministic
    )

  def cross_attention_cache(self, encoded: Array) -> Any:
    """Keys and values of the encoded, once for all decoding steps.

    Args:
      encoded: [N, S, emb].

    Returns:
      {'key': [layers, N, heads, kv, S], 'value': [layers, N, heads, S, kv]};
      with `unroll_decoding` a tuple with one of these a layer,
      without the axis of layers, and the layer's 'params' beside them.
    """
    return self.decoder.cross_keys_values(encoded)

  @nn.nowrap
  def init_cache(self, batch: int, length: int) -> Any:
    """The empty self-attention cache: needs no parameters.

    Args:
      batch: rows, N.
      length: positions to decode.

    Returns:
      {'key': zeros [layers, N, heads, kv, length], 'value': zeros [layers, N,
      heads, length, kv]}; with `unroll_decoding` {'layers': one of these a
      layer}, without the axis of layers: read behind a reshape, the compiler
      would keep a second copy of each. `CACHE_BEAMS` makes it one of beams.
    """
    c = self.config
    lead = (batch, c.num_heads)
    if not c.unroll_decoding:
      lead = (c.num_decoder_layers, *lead)
    cache = {
      'key': jnp.zeros((*lead, c.head_dim, length), c.dtype),
      'value': jnp.zeros((*lead, length, c.head_dim), c.dtype),
    }
    if not c.unroll_decoding:
      return cache
    return {'layers': (cache,) * c.num_decoder_layers}

  def decode_step(
    self,
    tokens: Array,
    index: Array,
    cache: Any,
    cross: Any,
    encoder_valid: Array,
  ) -> tuple[Array, Array, Any]:
    """One position of cached decoding, without target padding as in T5X.

    Args:
      tokens: [N] int, inputs of this position (0 at the first).
      index: scalar int, this position; those before it must be in the cache.
      cache: of `init_cache(N, length)`, or `init_cache(M, length)` expanded to
        beams, or of the step before.
      cross: of `cross_attention_cache`, M rows.
      encoder_valid: [M, S] bool. N = M * beams, the beams of a row adjacent.

    Returns:
      logits [N, vocab] float32, hidden [N, emb] and the new cache.
    """
    x = self._embed(tokens, True)
    return self.decoder.step(x, index, cache, cross, encoder_valid)

  def _embed(self, tokens: Array, deterministic: bool) -> Array:
    x = self.token_embedder(tokens)
    return self.dropout(x, deterministic) if x.ndim > 2 else x
