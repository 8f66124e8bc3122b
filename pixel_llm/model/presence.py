# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Presence head: whether what an expression means is in the image at all."""

from __future__ import annotations

import dataclasses

import jax
from flax import linen as nn

from pixel_llm.model import layers

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PresenceConfig:
  """Numbers of `PresenceHead`.

  Attributes:
    hidden_dim: width of the hidden layer.
    dtype: compute dtype of the hidden layer.
  """

  hidden_dim: int = 512
  dtype: str = 'float32'


class PresenceHead(nn.Module):
  """LayerNorm, then an MLP of one hidden layer with exact GELU.

  Reference: the research code answers every expression with a box.
  """

  config: PresenceConfig

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    """Reads the answer's last token.

    Args:
      hidden: [..., D], the decoder's hidden state where that token is read.

    Returns: [...] float32 logits; above 0 it is there.
    """
    config = self.config
    x = layers.LayerNorm(1e-6, config.dtype, name='norm')(hidden)
    x = layers.Dense(
      config.hidden_dim, ('embed', 'mlp'), True, config.dtype, name='dense'
    )(x)
    x = nn.gelu(x, approximate=False)
    x = layers.Dense(1, ('mlp', 'unsharded'), True, name='out')(x)
    return x[..., 0]
