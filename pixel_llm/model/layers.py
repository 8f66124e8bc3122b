# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that several parts of the network share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

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

    def param(name, init, axes, shape):
      boxed = nn.with_logical_partitioning(init, axes)
      return jnp.asarray(self.param(name, boxed, shape), self.dtype)

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
    shape = (x.shape[-1],)
    scale: Any = self.param(
      'scale',
      nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
      shape,
    )
    bias: Any = self.param(
      'bias',
      nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
      shape,
    )
    x = jnp.asarray(x, jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    lead = (1,) * (x.ndim - 1) + (-1,)
    y = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
    y = y * jnp.reshape(scale, lead) + jnp.reshape(bias, lead)
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

  On an NVIDIA GPU, what `fits_cudnn` is left to its fused kernel, so that the
  weights are never in memory. The rest is what `jax.nn.dot_product_attention`
  computes with XLA, in an order that took a CPU about two thirds of its time.

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
  # A bias stays here: SAM's and T5's are learned, and cuDNN has conditions on
  # the shapes of those that it gives gradients of.
  alone = dropout is None and bias is None
  if alone and fits_cudnn(query, key, value) and _on_cuda():
    return fused_attention(query, key, value, scale, 'cudnn')
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
  )


def _on_cuda() -> bool:
  return 'cuda' in jax.devices()[0].client.platform_version
