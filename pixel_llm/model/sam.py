# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""SAM's vision transformer, the localization image encoder.

Most blocks attend within windows; the last block of each group attends over
the whole grid. Attention logits carry decomposed relative positions. Source:
"Segment Anything", arXiv 2304.02643, appendix A; the backbone is ViTDet's,
arXiv 2203.16527, and its relative positions MViTv2's, arXiv 2112.01526,
section 4.1.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pixel_llm.model import eva, layers

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SamConfig:
  """Sizes of the encoder; the defaults are SAM ViT-H/16.

  Attributes:
    patch_size: side of a patch, pixels.
    width: of the residual stream.
    depth: blocks, a multiple of `blocks_per_group`.
    num_heads: attention heads.
    mlp_dim: hidden width of the MLP.
    window_size: side of a window, patches.
    blocks_per_group: blocks up to and with a global one.
    position_grid: side of the position tables, patches; they are resized to
      the grid of the image.
    out_channels: of the features.
    mean: of the pixels, in 0..255 (ImageNet's).
    std: of the pixels, in 0..255.
    dtype: of the computation, 'float32' or 'bfloat16'.
    scan_unroll: blocks a step of the loops; `depth` leaves no loop.
    remat: what a block keeps for the backward pass.
  """

  patch_size: int = 16
  width: int = 1280
  depth: int = 32
  num_heads: int = 16
  mlp_dim: int = 5120
  window_size: int = 14
  blocks_per_group: int = 8
  position_grid: int = 64
  out_channels: int = 256
  mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  std: tuple[float, float, float] = (58.395, 57.12, 57.375)
  dtype: str = 'float32'
  scan_unroll: int = 1
  remat: layers.Remat = 'none'

  def __post_init__(self):
    if self.width % self.num_heads:
      raise ValueError(
        f'sam: width {self.width}: expected a multiple of num_heads '
        f'{self.num_heads}.'
      )
    if self.depth % self.blocks_per_group:
      raise ValueError(
        f'sam: depth {self.depth}: expected a multiple of blocks_per_group '
        f'{self.blocks_per_group}.'
      )


# The released models (1024 px, so 64 x 64 patches).
SIZES = {
  'base': SamConfig(
    width=768, depth=12, num_heads=12, mlp_dim=3072, blocks_per_group=3
  ),
  'large': SamConfig(
    width=1024, depth=24, num_heads=16, mlp_dim=4096, blocks_per_group=6
  ),
  'huge': SamConfig(
    width=1280, depth=32, num_heads=16, mlp_dim=5120, blocks_per_group=8
  ),
}


def partition(x: Array, size: int) -> Array:
  """Cuts a grid into square windows, padded with zeros at bottom and right.

  Reference: the research code pads the height by what the width lacks and the
  width by what the height lacks, which is right for squares only.

  Args:
    x: [B, h, w, C].
    size: side of a window.

  Returns: [B * windows, size, size, C], windows row by row.
  """
  batch, height, width, channels = x.shape
  bottom, right = -height % size, -width % size
  if bottom or right:
    x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
  rows, columns = (height + bottom) // size, (width + right) // size
  x = x.reshape(batch, rows, size, columns, size, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, channels)


def unpartition(windows: Array, height: int, width: int) -> Array:
  """[B * windows, size, size, C] -> [B, h, w, C]: undoes `partition`."""
  _, size, _, channels = windows.shape
  rows, columns = -(-height // size), -(-width // size)
  x = windows.reshape(-1, rows, columns, size, size, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(-1, rows * size, columns * size, channels)
  return x[:, :height, :width]


def relative_positions(table: Array, size: int) -> Array:
  """The embedding of every query's offset to every key along one axis.

  Args:
    table: [2 * s - 1, head_dim], of offsets -(s - 1)..s - 1; resized linearly
      when `size` is not s.
    size: queries and keys along the axis.

  Returns: [size (queries), size (keys), head_dim].
  """
  offsets = 2 * size - 1
  if table.shape[0] != offsets:
    table = jax.image.resize(table, (offsets, table.shape[1]), 'linear')
  index = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
  return table[index]


class Attention(nn.Module):
  """Multi-head self-attention over a grid, with relative positions.

  Attributes:
    config: sizes.
    table_size: side of the grid that the relative positions are made for.
  """

  config: SamConfig
  table_size: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, h, w, width] -> [B, h, w, width]."""
    c = self.config
    batch, height, width, _ = x.shape
    head_dim = c.width // c.num_heads

    def dense(name, axes):
      return layers.Dense(
        c.width, axes, use_bias=True, dtype=c.dtype, name=name
      )

    def project(name):
      y = dense(name, ('embed', 'joined_kv'))(x)
      return y.reshape(batch, height * width, c.num_heads, head_dim)

    def relative(name, size):
      table = self.param(
        name,
        nn.with_logical_partitioning(
          nn.initializers.zeros, ('relpos_buckets', 'kv')
        ),
        (2 * self.table_size - 1, head_dim),
      )
      return relative_positions(jnp.asarray(table, c.dtype), size)

    query = project('query')
    # The published weights expect the unscaled query here.
    grid = query.reshape(batch, height, width, c.num_heads, head_dim)
    bias_h = jnp.einsum('bhwnd,hkd->bnhwk', grid, relative('rel_pos_h', height))
    # Reference: the research code sizes this table by the height.
    bias_w = jnp.einsum('bhwnd,wkd->bnhwk', grid, relative('rel_pos_w', width))
    bias = bias_h[..., :, None] + bias_w[..., None, :]
    bias = bias.reshape(batch, c.num_heads, height * width, height * width)
    y = layers.attention(
      query, project('key'), project('value'), bias, scale=head_dim**-0.5
    )
    return dense('out', ('joined_kv', 'embed'))(y.reshape(x.shape))


class Mlp(nn.Module):
  """Two layers with an exact GELU between them."""

  config: SamConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., width] -> [..., width]."""
    c = self.config
    x = layers.Dense(
      c.mlp_dim, ('embed', 'mlp'), use_bias=True, dtype=c.dtype, name='lin1'
    )(x)
    x = nn.gelu(x, approximate=False)
    return layers.Dense(
      c.width, ('mlp', 'embed'), use_bias=True, dtype=c.dtype, name='lin2'
    )(x)


class Block(nn.Module):
  """One pre-norm block; attends within windows, or over the whole grid.

  Windows are padded after the norm, with zeros that are not masked: each is a
  key and a value made of the biases alone, the same for any image. The
  published weights were trained so.

  Attributes:
    config: sizes.
    windowed: attends within windows.
  """

  config: SamConfig
  windowed: bool

  @nn.compact
  def __call__(self, x: Array, _=None) -> tuple[Array, None]:
    """[B, h, w, width] -> ([B, h, w, width], None): the body of a scan."""
    c = self.config
    _, height, width, _ = x.shape
    y = layers.LayerNorm(dtype=c.dtype, name='norm1')(x)
    if self.windowed:
      y = partition(y, c.window_size)
      y = Attention(c, c.window_size, name='attention')(y)
      y = unpartition(y, height, width)
    else:
      y = Attention(c, c.position_grid, name='attention')(y)
    x = x + y
    y = layers.LayerNorm(dtype=c.dtype, name='norm2')(x)
    return x + Mlp(c, name='mlp')(y), None


class Group(nn.Module):
  """Windowed blocks, then a global one: the body of the outer scan."""

  config: SamConfig

  @nn.compact
  def __call__(self, x: Array, _=None) -> tuple[Array, None]:
    """[B, h, w, width] -> ([B, h, w, width], None)."""
    c = self.config
    windowed = c.blocks_per_group - 1
    block = layers.remat(Block, c.remat, c.scan_unroll)
    if windowed:
      x, _ = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=windowed,
        unroll=min(c.scan_unroll, windowed),
        # An axis name may stand once in a parameter; 'layers' is the outer.
        metadata_params={nn.PARTITION_NAME: 'stack'},
      )(c, True, name='window_blocks')(x, None)
    x, _ = block(c, False, name='global_block')(x)
    return x, None


class Neck(nn.Module):
  """A 1 x 1 and a 3 x 3 convolution, each followed by LayerNorm."""

  config: SamConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, h, w, width] -> [B, h, w, out_channels]."""
    c = self.config
    x = layers.Dense(
      c.out_channels, ('embed', 'unsharded'), dtype=c.dtype, name='conv1'
    )(x)
    x = layers.LayerNorm(dtype=c.dtype, name='norm1')(x)
    x = nn.Conv(
      c.out_channels,
      (3, 3),
      use_bias=False,
      dtype=jnp.dtype(c.dtype),
      kernel_init=nn.with_logical_partitioning(
        layers.DEFAULT_INIT, ('height', 'width', 'unsharded', 'channels')
      ),
      name='conv2',
    )(x)
    return layers.LayerNorm(dtype=c.dtype, name='norm2')(x)


class Sam(nn.Module):
  """The encoder.

  Parameters: `patch_embed/{kernel [patch * patch * 3, width], bias}`,
  `positions [position_grid ** 2, width]`, `groups/window_blocks/...` with
  leading axes [groups, blocks_per_group - 1], `groups/global_block/...` with
  leading axis [groups], and `neck`.
  """

  config: SamConfig

  @nn.compact
  def __call__(self, image: Array, deterministic: bool = True) -> Array:
    """Features of the patches.

    Args:
      image: [B, H, W, 3] normalized pixels; what is left of a patch at the
        bottom and right is cropped.
      deterministic: changes nothing; here for the call to be that of `Eva`.

    Returns: [B, H // patch_size, W // patch_size, out_channels].
    """
    # Reference: the research code runs this encoder with drop path 0.5 in
    # training although it is frozen; there is none here.
    del deterministic
    c = self.config
    x = layers.Dense(
      c.width,
      ('unsharded', 'embed'),
      use_bias=True,
      dtype=c.dtype,
      name='patch_embed',
    )(eva.patches(image, c.patch_size))
    _, height, width, _ = x.shape
    positions = layers.parameter(
      self,
      'positions',
      eva.position_init,
      ('length', 'embed'),
      (c.position_grid**2, c.width),
    )
    # Reference: the research code resizes when the height differs, whatever
    # the width.
    grid = eva.resize_positions(positions, c.position_grid, height, width)
    x = x + jnp.asarray(grid, c.dtype).reshape(1, height, width, c.width)
    num_groups = c.depth // c.blocks_per_group
    x, _ = nn.scan(
      Group,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=num_groups,
      unroll=max(1, min(c.scan_unroll // c.blocks_per_group, num_groups)),
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, name='groups')(x, None)
    return Neck(c, name='neck')(x)
