# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Regression head: from the hidden state of a word to its place."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from pixel_llm.model import layers

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
  """Numbers of `RegressionHead`.

  Attributes:
    hidden_dim: width of the hidden layers.
    depth: linear layers, the last one included.
    points: P, points a word.
    dtype: compute dtype of the hidden layers.
  """

  hidden_dim: int = 512
  depth: int = 4
  points: int = 2
  dtype: str = 'float32'

  def __post_init__(self):
    if self.depth < 1:
      raise ValueError(
        f'RegressionConfig.depth: expected at least 1, got {self.depth}.'
      )


class RegressionHead(nn.Module):
  """LayerNorm, then an MLP with exact GELU, then points.

  Source: PixelLLM (arXiv 2312.09237); scenic pixel_llm,
  `modeling/point_predictor.py`.
  Reference: the last layer there has two more outputs a point, logits that
  nothing reads or trains: left out.
  """

  config: RegressionConfig

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    """Reads the points of every word.

    Args:
      hidden: [..., L, D], the decoder's last hidden state.

    Returns:
      [..., L, P, 2] float32 xy, normalized to the valid image; not clipped.
    """
    config = self.config
    x = layers.LayerNorm(1e-6, config.dtype, name='norm')(hidden)
    # Alternating names, as a kernel may use one only once: column- then
    # row-parallel products.
    here, there = 'embed', 'mlp'
    for i in range(config.depth - 1):
      x = layers.Dense(
        config.hidden_dim, (here, there), True, config.dtype, name=f'dense_{i}'
      )(x)
      x = nn.gelu(x, approximate=False)
      here, there = there, here
    # float32 whatever the rest: near 1, bfloat16 steps are 1/256 of the image.
    x = layers.Dense(config.points * 2, (here, 'unsharded'), True, name='out')(
      x
    )
    points = jnp.reshape(x, (*x.shape[:-1], config.points, 2))
    return (points + 1) / 2
