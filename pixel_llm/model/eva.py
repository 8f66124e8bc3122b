# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""EVA-02, the semantic image encoder.

A plain vision transformer with a class token, learned absolute positions, 2-D
rotary positions on the patches, and a SwiGLU whose hidden layer is normalized
(sub-LN). Source: "EVA-02: A Visual Representation for Neon Genesis",
arXiv 2303.11331, section 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pixel_llm.model import layers

Array = jax.Array

ROTARY_BASE = 10000.0
CLASS_INIT = nn.initializers.normal(0.02)
# Longest wavelength of the initial position tables, grids across.
_WAVES = 4.0


def position_init(key: Array, shape: tuple[int, int], dtype=jnp.float32):
  """Sines and cosines of x and of y, a learned table's first values.

  Reference: the research code starts from zeros, for it always loads a trained
  encoder. From scratch, places are then the last thing that is learned; with
  these the first steps already tell left from right.

  Args:
    key: not used, the table is the same for every seed.
    shape: (rows, width); a square grid row by row, with or without a first row
      for the class token, which is zero.
    dtype: of the table.
  """
  del key
  rows, width = shape
  side = math.isqrt(rows)
  quarter = -(-width // 4)
  # From a wave of `_WAVES` grids to one of four cells.
  lengths = np.geomspace(_WAVES * side, 4.0, quarter)
  angles = 2 * np.pi * np.arange(side)[:, None] / lengths  # [side, quarter]
  waves = np.concatenate([np.sin(angles), np.cos(angles)], -1)
  half = waves.shape[-1]
  table = np.concatenate(
    [
      np.broadcast_to(waves[None], (side, side, half)),
      np.broadcast_to(waves[:, None], (side, side, half)),
    ],
    -1,
  ).reshape(side * side, 2 * half)[:, :width]
  table = np.concatenate([np.zeros((rows - side * side, width)), table])
  return jnp.asarray(table, dtype)


@dataclasses.dataclass(frozen=True)
class EvaConfig:
  """Sizes of the encoder; the defaults are EVA-02-L/14.

  Attributes:
    patch_size: side of a patch, pixels.
    width: of the residual stream.
    depth: blocks.
    num_heads: attention heads; each is a multiple of 4 wide.
    mlp_dim: hidden width of the SwiGLU, published as int(width * 8 / 3).
    position_grid: side of the learned position table, patches; it is resized
      to the grid of the image.
    rotary_grid: rotations go so many steps across the grid of any image, as
      where EVA-02 is fine-tuned at a larger one; None goes one step a patch.
    drop_path_rate: stochastic depth of the last block; it grows linearly from
      0 at the first.
    mlp_norm_epsilon: of the norm within the SwiGLU; None leaves the norm out.
    final_norm: normalizes the output.
    mean: of the pixels, in 0..255 (OpenAI CLIP's).
    std: of the pixels, in 0..255.
    dtype: of the computation, 'float32' or 'bfloat16'.
    scan_unroll: blocks a step of the loop; `depth` leaves no loop.
    remat: what a block keeps for the backward pass.
  """

  patch_size: int = 14
  width: int = 1024
  depth: int = 24
  num_heads: int = 16
  mlp_dim: int = 2730
  position_grid: int = 16
  rotary_grid: int | None = None
  drop_path_rate: float = 0.1
  # As PixelLLM was trained; EVA-02 itself has 1e-6 here.
  mlp_norm_epsilon: float | None = 1e-5
  final_norm: bool = True
  mean: tuple[float, float, float] = (122.7709383, 116.7460125, 104.09373615)
  std: tuple[float, float, float] = (68.5005327, 66.6321579, 70.32316305)
  dtype: str = 'float32'
  scan_unroll: int = 1
  remat: layers.Remat = 'none'

  def __post_init__(self):
    if self.width % (4 * self.num_heads):
      raise ValueError(
        f'eva: width {self.width} over num_heads {self.num_heads}: expected '
        f'heads a multiple of 4 wide, for rotations of pairs in y and x.'
      )
    if not 0 <= self.drop_path_rate < 1:
      raise ValueError(
        f'eva: drop_path_rate: expected a number in [0, 1), got '
        f'{self.drop_path_rate}.'
      )
    if self.rotary_grid is not None and self.rotary_grid < 1:
      raise ValueError(
        f'eva: rotary_grid: expected at least 1, or None, got '
        f'{self.rotary_grid}.'
      )


def _size(
  width: int, depth: int, num_heads: int, mlp_dim: int, side: int
) -> EvaConfig:
  grid = side // 14
  return EvaConfig(
    width=width,
    depth=depth,
    num_heads=num_heads,
    mlp_dim=mlp_dim,
    position_grid=grid,
    rotary_grid=None if grid == 16 else 16,
    mlp_norm_epsilon=1e-5 if width >= 768 else None,
  )


# The released models: pre-trained at 224 px, and fine-tuned at the number of
# pixels in the name, with rotations squeezed into pre-training's 16 steps; tiny
# and small have no norm inside the SwiGLU. EVA-02-CLIP's towers are not among
# them, for they have another norm in the attention.
SIZES: dict[str, EvaConfig] = {
  'tiny': _size(192, 12, 3, 512, 224),
  'tiny_336': _size(192, 12, 3, 512, 336),
  'small': _size(384, 12, 6, 1024, 224),
  'small_336': _size(384, 12, 6, 1024, 336),
  'base': _size(768, 12, 12, 2048, 224),
  'base_448': _size(768, 12, 12, 2048, 448),
  'large': _size(1024, 24, 16, 2730, 224),
  'large_448': _size(1024, 24, 16, 2730, 448),
}


def patches(image: Array, size: int) -> Array:
  """Cuts an image into squares; the rest at the bottom and right is cropped.

  A 384 px image holds 27 patches of 14 px, so its last 6 rows and columns are
  never seen (as in the research code).

  Args:
    image: [B, H, W, C].
    size: side of a patch, pixels.

  Returns:
    [B, H // size, W // size, size * size * C], each patch row by row: the
    order of a convolution kernel [size, size, C, out].

  Raises:
    ValueError: the image is smaller than a patch.
  """
  batch, height, width, channels = image.shape
  rows, columns = height // size, width // size
  if not rows or not columns:
    raise ValueError(
      f'image: expected at least one patch of {size} x {size} px, got '
      f'{height} x {width} px.'
    )
  image = image[:, : rows * size, : columns * size]
  image = image.reshape(batch, rows, size, columns, size, channels)
  image = image.transpose(0, 1, 3, 2, 4, 5)
  return image.reshape(batch, rows, columns, size * size * channels)


def rotary_tables(
  height: int, width: int, head_dim: int, steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines of a grid of patches, made while tracing.

  The first half of a head turns with the row, the second with the column, both
  in steps of one patch. Channels (2i, 2i + 1) are one plane; the sines carry
  the sign of the rotation, so that `rotate` needs a swap and no negation.

  Reference: steps are one patch at any image size there, and so by default
  here; `steps` is EVA-02's own way with larger grids than pre-training's.

  Args:
    height: of the grid, patches.
    width: of the grid, patches.
    head_dim: width of a head, a multiple of 4.
    steps: from one end of the grid to the other; None is one a patch.

  Returns:
    (cosines, sines), each [height * width, head_dim] float32.
  Source: arXiv 2104.09864, equation 34, once for each axis of the image.
  """
  planes = head_dim // 4
  frequencies = ROTARY_BASE ** (-np.arange(planes) / planes)
  angles = np.zeros((height, width, 2, planes, 2))
  rows, columns = (
    np.arange(n) * (1.0 if steps is None else steps / n)
    for n in (height, width)
  )
  angles[:, :, 0] += rows[:, None, None, None] * frequencies[:, None]
  angles[:, :, 1] += columns[:, None, None] * frequencies[:, None]
  sines = np.sin(angles) * np.array([-1, 1])
  shape = (height * width, head_dim)
  return (
    np.cos(angles).reshape(shape).astype(np.float32),
    sines.reshape(shape).astype(np.float32),
  )


def rotate(x: Array, cosines: Array, sines: Array) -> Array:
  """Turns each plane of `x` by the angle of its position.

  Args:
    x: [..., head_dim].
    cosines: from `rotary_tables`, of as many axes as `x`.
    sines: the same.
  """
  swapped = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
  return x * cosines + swapped * sines


def drop_path(x: Array, rate: Array | float, rng: Array) -> Array:
  """Zeroes whole examples of a residual branch, keeping the expectation.

  Args:
    x: [B, ...].
    rate: scalar, probability of a zero, below 1.
    rng: PRNG key.

  Source: "Deep Networks with Stochastic Depth", arXiv 1603.09382, scaled in
  training rather than in evaluation.
  """
  shape = (x.shape[0],) + (1,) * (x.ndim - 1)
  kept = jax.random.bernoulli(rng, 1 - rate, shape)
  return x * jnp.asarray(kept / (1 - rate), x.dtype)


class Attention(nn.Module):
  """Multi-head self-attention with rotated queries and keys."""

  config: EvaConfig

  @nn.compact
  def __call__(self, x: Array, cosines: Array, sines: Array) -> Array:
    """[B, N, width], tables [N, head_dim] -> [B, N, width]."""
    c = self.config
    head_dim = c.width // c.num_heads

    def project(name, use_bias):
      y = layers.Dense(
        c.width,
        ('embed', 'joined_kv'),
        use_bias=use_bias,
        dtype=c.dtype,
        name=name,
      )(x)
      return y.reshape(*x.shape[:2], c.num_heads, head_dim)

    cosines, sines = cosines[None, :, None], sines[None, :, None]
    query = rotate(project('query', True), cosines, sines)
    # A bias of the keys would move all logits of a query alike: it has none.
    key = rotate(project('key', False), cosines, sines)
    y = layers.attention(
      query, key, project('value', True), scale=head_dim**-0.5
    )
    return layers.Dense(
      c.width, ('joined_kv', 'embed'), use_bias=True, dtype=c.dtype, name='out'
    )(y.reshape(x.shape))


class SwiGlu(nn.Module):
  """silu(x w1) * (x w2), normalized if so configured, times w3."""

  config: EvaConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, N, width] -> [B, N, width]."""
    c = self.config

    def dense(name, features, axes):
      return layers.Dense(
        features, axes, use_bias=True, dtype=c.dtype, name=name
      )

    gate = dense('w1', c.mlp_dim, ('embed', 'mlp'))(x)
    hidden = nn.silu(gate) * dense('w2', c.mlp_dim, ('embed', 'mlp'))(x)
    if c.mlp_norm_epsilon is not None:
      norm = layers.LayerNorm(c.mlp_norm_epsilon, c.dtype, name='ffn_ln')
      hidden = norm(hidden)
    return dense('w3', c.width, ('mlp', 'embed'))(hidden)


class Block(nn.Module):
  """x + attention(norm(x)), then x + SwiGLU(norm(x)): the body of the scan."""

  config: EvaConfig
  deterministic: bool

  @nn.compact
  def __call__(
    self, x: Array, rate: Array, cosines: Array, sines: Array
  ) -> tuple[Array, None]:
    """[B, N, width], scalar drop path rate, rotary tables -> ([...], None)."""
    c = self.config

    def drop(branch):
      if self.deterministic or not c.drop_path_rate:
        return branch
      return drop_path(branch, rate, self.make_rng('dropout'))

    y = layers.LayerNorm(dtype=c.dtype, name='norm1')(x)
    x = x + drop(Attention(c, name='attention')(y, cosines, sines))
    y = layers.LayerNorm(dtype=c.dtype, name='norm2')(x)
    x = x + drop(SwiGlu(c, name='mlp')(y))
    return x, None


class Eva(nn.Module):
  """The encoder.

  Parameters: `patch_embed/{kernel [patch * patch * 3, width], bias}`,
  `class_token`, `positions` (of the class token, then the grid row by row),
  `blocks/...` with the blocks stacked on axis 0, and `ln_post`.
  """

  config: EvaConfig

  @nn.compact
  def __call__(self, image: Array, deterministic: bool = True) -> Array:
    """Features of the patches.

    Args:
      image: [B, H, W, 3] normalized pixels; what is left of a patch at the
        bottom and right is cropped.
      deterministic: no drop path; else an rng named 'dropout' is needed.

    Returns:
      [B, H // patch_size, W // patch_size, width]; the class token stays
      inside.
    """
    c = self.config
    x = layers.Dense(
      c.width,
      ('unsharded', 'embed'),
      use_bias=True,
      dtype=c.dtype,
      name='patch_embed',
    )(patches(image, c.patch_size))
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, c.width)

    param = functools.partial(layers.parameter, self)
    class_token = param('class_token', CLASS_INIT, ('embed',), (c.width,))
    positions = param(
      'positions',
      position_init,
      ('length', 'embed'),
      (1 + c.position_grid**2, c.width),
    )
    first = jnp.asarray(class_token + positions[0], c.dtype)[None, None]
    first = jnp.broadcast_to(first, (batch, 1, c.width))
    # Reference: the research code takes the grid to be square.
    grid = resize_positions(positions[1:], c.position_grid, height, width)
    x = x + jnp.asarray(grid, c.dtype)[None]
    x = jnp.concatenate([first, x], axis=1)

    cosines, sines = rotary_tables(
      height, width, c.width // c.num_heads, c.rotary_grid
    )
    # The class token has no place: its angle is 0.
    cosines = np.pad(cosines, ((1, 0), (0, 0)), constant_values=1)
    sines = np.pad(sines, ((1, 0), (0, 0)))
    # Reference: divides by depth - 1, so that one block is an error there.
    rates = c.drop_path_rate * np.arange(c.depth) / max(c.depth - 1, 1)
    blocks = nn.scan(
      layers.remat(Block, c.remat, c.scan_unroll),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=typing.cast(typing.Any, (0, nn.broadcast, nn.broadcast)),
      length=c.depth,
      unroll=min(c.scan_unroll, c.depth),
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, deterministic, name='blocks')
    tables = (jnp.asarray(t, c.dtype) for t in (cosines, sines))
    x, _ = blocks(x, jnp.asarray(rates, jnp.float32), *tables)
    if c.final_norm:
      x = layers.LayerNorm(dtype=c.dtype, name='ln_post')(x)
    return x[:, 1:].reshape(batch, height, width, c.width)


def resize_positions(table: Array, side: int, height: int, width: int) -> Array:
  """A table of positions, bicubically resized to another grid.

  Args:
    table: [side * side, width of the features].
    side: of the table, patches.
    height: of the grid, patches.
    width: of the grid, patches.

  Returns: [height * width, width of the features].
  """
  if (height, width) == (side, side):
    return table
  features = table.shape[-1]
  table = table.reshape(side, side, features)
  # Antialiased where it shrinks, as in JAX by default; PyTorch's is not.
  table = jax.image.resize(table, (height, width, features), 'bicubic')
  return table.reshape(height * width, features)
