# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that several parts of the network share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from pixel_llm import sharding

Array = jax.Array

DEFAULT_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
# Masked logits get this added, T5X's value: a row with every key masked then
# attends uniformly and stays finite.
MASKED = -1e10

# What a block keeps of its forward pass for the backward pass: everything, its
# input alone, or also what its products with kernels gave; attention is then
# computed again, whose logits are the largest. Where no loop is left
# (`scan_unroll`), a CPU's compiler keeps everything all the same.
Remat = Literal['none', 'full', 'dots']
# What the kernel for TPUs pads lengths to.
_LANES = 128


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank update of a projection (arXiv 2106.09685).

  Attributes:
    rank: width of the bottleneck.
    scale: factor of the update; the paper's setting is rank 32, scale 2.
    projections: which of query, key, value, out carry it.

  Raises:
    ValueError: a projection of another name.
  """

  rank: int = 32
  scale: float = 2.0
  projections: tuple[str, ...] = ('query', 'value')

  def __post_init__(self):
    unknown = set(self.projections) - {'query', 'key', 'value', 'out'}
    if unknown:
      raise ValueError(
        'LoraConfig.projections: expected names among query, key, value, '
        f'out, got {sorted(unknown)}.'
      )


def parameter(
  module: nn.Module,
  name: str,
  init: Callable,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
  dtype: str | None = None,
) -> Array:
  """A parameter as it is computed with: cast, then gathered.

  Args:
    module: whose it is.
    name: in it.
    init: (key, shape, dtype) -> its first value.
    axes: logical names of its axes.
    shape: of it.
    dtype: what it is cast to, and travels as; default as it is held.
  """
  if module.has_variable('params', name):
    # Linen asks only for the shape then, and traces what it is given for it.
    make: Callable = lambda key, shape: jnp.broadcast_to(0.0, shape)
  else:
    make = nn.with_logical_partitioning(init, axes)
  value: Any = module.param(name, make, shape)
  value = jnp.asarray(value, dtype)
  return sharding.gathered(value, axes)


class Dense(nn.Module):
  """y = x @ kernel (+ bias) (+ scale * (x @ lora_a) @ lora_b).

  Kernel is [in, out] with logical axis names; parameters are float32 and are
  cast to `dtype` for the product. The low-rank update is never merged: its
  cost is that of two thin products. `lora_a` is drawn as the kernel is and
  `lora_b` is zero, so that at first the update is nothing.

  Attributes:
    features: size of the output.
    axes: logical names of (in, out).
    use_bias: adds a bias of zeros at first.
    dtype: of the product and the result.
    kernel_init: of the kernel and of `lora_a`.
    lora: the low-rank update, or None.
  """

  features: int
  axes: tuple[str, str]
  use_bias: bool = False
  dtype: str = 'float32'
  kernel_init: Callable = DEFAULT_INIT
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., in] -> [..., features]."""
    param = functools.partial(parameter, self, dtype=self.dtype)
    x = jnp.asarray(x, self.dtype)
    width = x.shape[-1]
    kernel = param(
      'kernel', self.kernel_init, self.axes, (width, self.features)
    )
    y = x @ kernel
    if self.lora is not None:
      rank = self.lora.rank
      a = param(
        'lora_a', self.kernel_init, (self.axes[0], 'lora'), (width, rank)
      )
      b = param(
        'lora_b',
        nn.initializers.zeros,
        ('lora', self.axes[1]),
        (rank, self.features),
      )
      y = y + (x @ a * self.lora.scale) @ b
    if self.use_bias:
      bias = param(
        'bias', nn.initializers.zeros, self.axes[1:], (self.features,)
      )
      y = y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
    return y


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, computed in float32."""

  epsilon: float = 1e-6
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., width] -> [..., width]."""
    axes, shape = ('embed',), (x.shape[-1],)
    scale = parameter(self, 'scale', nn.initializers.ones, axes, shape)
    bias = parameter(self, 'bias', nn.initializers.zeros, axes, shape)
    x = jnp.asarray(x, jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    lead = (1,) * (x.ndim - 1) + (-1,)
    # One factor: else, without loops over blocks, a CPU's compiler computes a
    # block's gradient again in every block before it, a tenth of a training
    # step.
    factor = jax.lax.rsqrt(variance + self.epsilon) * jnp.reshape(scale, lead)
    y = (x - mean) * factor + jnp.reshape(bias, lead)
    return jnp.asarray(y, self.dtype)


def remat(
  block: type[nn.Module],
  keep: Remat,
  unroll: int,
  static_argnums: tuple[int, ...] = (),
) -> type[nn.Module]:
  """A block that computes again, backwards, what it does not keep.

  Args:
    block: the body of a scan.
    keep: what it keeps.
    unroll: blocks a step of the scan; between those of one step the compiler
      must be told not to reuse what was computed before.
    static_argnums: arguments of `__call__` that are no arrays; self is 0.

  Returns:
    A class of the same parameters, results and gradients; `block` itself for
    'none'. Other methods than `__call__` stay as they are.

  Raises:
    ValueError: `keep` is none of the three.
  """
  if keep == 'none':
    return block
  policies = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  }
  if keep not in policies:
    raise ValueError(f'remat: expected none, full or dots, got {keep!r}.')
  return nn.remat(
    block,
    policy=policies[keep],
    prevent_cse=unroll > 1,
    static_argnums=static_argnums,
  )


def attention(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  scale: float = 1.0,
  dropout: Callable[[Array], Array] | None = None,
) -> Array:
  """Softmax attention; the one place where keys are weighed.

  What `fits_cudnn` on an NVIDIA GPU, and what `fits_flash` on a TPU, is left to
  a fused kernel, so that the weights are never in memory. The rest is what
  `jax.nn.dot_product_attention` computes with XLA, in an order that took a CPU
  about two thirds of its time.

  Args:
    query: [..., queries, heads, depth].
    key: [..., keys, heads, depth].
    value: [..., keys, heads, depth_v].
    bias: broadcastable to [..., heads, queries, keys]; masks are added as
      `MASKED`.
    scale: factor of the logits (T5: 1, others depth ** -0.5).
    dropout: applied to the weights, [..., heads, queries, keys].

  Returns:
    [..., queries, heads, depth_v], dtype of `value`; the softmax is float32.
  """
  # A bias stays with XLA: SAM's and T5's are learned, and the kernels have
  # conditions on the shapes of those that they give gradients of.
  kernels = {}
  if dropout is None and bias is None:
    # cuDNN is asked for its version as soon as it is traced.
    if fits_cudnn(query, key, value) and _has_cuda():
      kernels['cuda'] = functools.partial(
        fused_attention, scale=scale, implementation='cudnn'
      )
    if fits_flash(query, key, value):
      kernels['tpu'] = functools.partial(flash_attention, scale=scale)
  plain = functools.partial(_attend, bias=bias, scale=scale, dropout=dropout)
  if not kernels:
    return plain(query, key, value)
  # What is lowered decides, not the machine that does it.
  return jax.lax.platform_dependent(query, key, value, default=plain, **kernels)


def _attend(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None,
  scale: float,
  dropout: Callable[[Array], Array] | None,
) -> Array:
  """`attention` by XLA."""
  # Heads lead in the products; einsum's own order costs more transposes.
  query, key, value = (
    jnp.swapaxes(x, -3, -2) for x in (query * scale, key, value)
  )
  logits = jnp.asarray(query @ key.mT, jnp.float32)
  if bias is not None:
    logits = logits + bias
  weights = jnp.asarray(jax.nn.softmax(logits, axis=-1), value.dtype)
  if dropout is not None:
    weights = dropout(weights)
  return jnp.swapaxes(weights @ value, -3, -2)


def fused_attention(
  query: Array,
  key: Array,
  value: Array,
  scale: float,
  implementation: Literal['xla', 'cudnn'],
) -> Array:
  """`attention` without bias and dropout, by JAX's own function.

  Args:
    query: [..., queries, heads, depth]; any leading axes, as of the others.
    key: [..., keys, heads, depth].
    value: [..., keys, heads, depth].
    scale: factor of the logits.
    implementation: see `jax.nn.dot_product_attention`.

  Returns: [..., queries, heads, depth].
  """
  flat = (jnp.reshape(x, (-1, *x.shape[-3:])) for x in (query, key, value))
  y = jax.nn.dot_product_attention(
    *flat, scale=scale, implementation=implementation
  )
  return jnp.reshape(y, query.shape)


def fits_cudnn(query: Array, key: Array, value: Array) -> bool:
  """Whether cuDNN's fused attention takes arrays of these shapes and dtypes."""
  depth = query.shape[-1]
  return (
    query.dtype in (jnp.bfloat16, jnp.float16)
    and query.dtype == key.dtype == value.dtype
    and value.shape[-1] == depth <= 128
    and depth % 8 == 0
    # JAX takes no others where there is a gradient, though it means to refuse
    # them only with a bias (0.10.2 and 0.11.2, seen on an H100).
    and query.shape[-3] % 2 == key.shape[-3] % 2 == 0
  )


def flash_attention(
  query: Array, key: Array, value: Array, scale: float
) -> Array:
  """`attention` without bias and dropout, by JAX's kernel for TPUs.

  The kernel is no operation that XLA can cut: each device of the mesh runs it
  on its part of the first leading axis (`data`) and of the heads (`model`).

  Args:
    query: [..., queries, heads, depth]; any leading axes, as of the others.
    key: [..., keys, heads, depth].
    value: [..., keys, heads, depth].
    scale: factor of the logits.

  Returns: [..., queries, heads, depth].
  """
  run = functools.partial(_flash, scale=scale)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    parts: list[str | None] = [None] * query.ndim
    axes = {-2: 'model'} if query.ndim == 3 else {0: 'data', -2: 'model'}
    for i, name in axes.items():
      if name in mesh.shape and query.shape[i] % mesh.shape[name] == 0:
        parts[i] = name
    spec = PartitionSpec(*parts)
    run = jax.shard_map(
      run, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
    )
  return run(query, key, value)


def _flash(query: Array, key: Array, value: Array, scale: float) -> Array:
  # Loaded where it is used: it is of no use elsewhere.
  from jax.experimental.pallas.ops.tpu import flash_attention as pallas

  def pad(x):
    x = jnp.reshape(x, (-1, *x.shape[-3:]))
    rest = -x.shape[1] % _LANES
    return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))), 1, 2)

  def there(x, count):
    # Padding looks at padding alone.
    ids = jnp.asarray(jnp.arange(x.shape[2]) < count, jnp.int32)
    return jnp.broadcast_to(ids, (x.shape[0], x.shape[2]))

  def block(x):
    size = x.shape[2]
    return max(b for b in range(_LANES, 513, _LANES) if size % b == 0)

  counts = query.shape[-3], key.shape[-3]
  q, k, v = (pad(x) for x in (query, key, value))
  rows, columns = block(q), block(k)
  y = pallas.flash_attention(
    q,
    k,
    v,
    segment_ids=pallas.SegmentIds(there(q, counts[0]), there(k, counts[1])),
    sm_scale=scale,
    block_sizes=pallas.BlockSizes(
      block_q=rows,
      block_k_major=columns,
      block_k=columns,
      block_b=1,
      block_q_major_dkv=rows,
      block_q_dkv=rows,
      block_k_major_dkv=columns,
      block_k_dkv=columns,
      block_q_dq=rows,
      block_k_major_dq=columns,
      block_k_dq=columns,
    ),
  )
  return jnp.reshape(jnp.swapaxes(y, 1, 2)[:, : counts[0]], query.shape)


def fits_flash(query: Array, key: Array, value: Array) -> bool:
  """Whether the kernel for TPUs takes arrays like these and is worth it."""
  shapes = (*query.shape, *key.shape, *value.shape)
  return (
    query.dtype == key.dtype == value.dtype == jnp.bfloat16
    and query.shape[-1] == value.shape[-1]
    # Symbolic sizes, as in programs that are exported, are no numbers.
    and all(isinstance(n, int) for n in shapes)
    # Padded to 128, fewer would be padding for the greater part.
    and min(query.shape[-3], key.shape[-3]) >= 2 * _LANES
  )


def _has_cuda() -> bool:
  return 'cuda' in jax.devices()[0].client.platform_version
