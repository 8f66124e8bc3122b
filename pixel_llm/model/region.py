# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Looking straight at regions: visual tokens that need not be found first.

The prompt feature extractor has to learn where a box is from its corners, and
until it has, the language model sees nothing that belongs to the box. Here the
place is given: one token is the region itself, RoI-aligned. For what no prompt
points at, every cell of the image proposes the box of the thing that it is part
of, and is read through that box by the same layers: what they learn of regions
that are asked about, they know of all others.

Reference: not in the paper, whose extractor starts from encoders that know what
they see and trains for long. `ModelConfig.region` is None there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pixel_llm.model import layers

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RegionConfig:
  """Numbers of `RegionTokens`.

  Attributes:
    bins: side of the grid of bins that a region's own token is made of.
    bin_channels: features a bin.
    mlp_dim: hidden width between the bins and the token, and before a cell's
      proposal.
    cells: side of the grid of cells of the valid image.
    dtype: compute dtype.
  """

  bins: int = 7
  bin_channels: int = 256
  mlp_dim: int = 1024
  cells: int = 16
  dtype: str = 'float32'

  def __post_init__(self):
    for name in ('bins', 'bin_channels', 'mlp_dim', 'cells'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'RegionConfig.{name}: expected at least 1, got '
          f'{getattr(self, name)}.'
        )


class RegionTokens(nn.Module):
  """One token of the region, and one of each cell of the image.

  Source: boxes of cells as FCOS (arXiv 1904.01355) regresses them; bins as
  RoIAlign (arXiv 1703.06870) samples them, then two layers as in the box head
  of Fast R-CNN (arXiv 1504.08083).

  Attributes:
    config: the numbers.
    width: of a token.
  """

  config: RegionConfig
  width: int

  def setup(self):
    """Makes the parameters, the same for both methods."""
    config = self.config

    def dense(size, axes=('unsharded', 'embed')):
      return layers.Dense(size, axes, True, config.dtype)

    self.proposal_conv = nn.Conv(
      config.mlp_dim,
      (3, 3),
      dtype=jnp.dtype(config.dtype),
      kernel_init=nn.with_logical_partitioning(
        layers.DEFAULT_INIT, ('height', 'width', 'unsharded', 'mlp')
      ),
      bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('mlp',)),
    )
    self.proposal_out = dense(4, ('mlp', 'unsharded'))
    self.bin_projection = dense(config.bin_channels)
    self.mlp_in = dense(config.mlp_dim, ('unsharded', 'mlp'))
    self.mlp_out = dense(self.width, ('mlp', 'embed'))
    self.corner_projection = dense(self.width)
    self.cell_projection = dense(self.width)
    self.position_projection = dense(self.width)

  def propose(self, features: Array, image_boxes: Array) -> Array:
    """The box of what each cell is part of.

    Args:
      features: [B, h, w, C].
      image_boxes: [B, 1, 4] xyxy of the valid image, normalized to the padded
        input.

    Returns:
      [B, cells, cells, 4] float32, xyxy, normalized to the valid image; each
      holds the centre of its cell.
    """
    cells = self.config.cells
    hidden = nn.gelu(self.proposal_conv(features), approximate=False)
    y = self.proposal_out(sample(hidden, image_boxes, cells)[:, 0])
    # Distances to the four sides; a fifth of the image to begin with.
    reach = nn.sigmoid(jnp.asarray(y, jnp.float32) - 1.5)
    middle = centers(jnp.asarray([[0.0, 0, 1, 1]]), cells)
    boxes = jnp.concatenate(
      [middle - reach[..., :2], middle + reach[..., 2:]], axis=-1
    )
    return jnp.clip(boxes, 0, 1).reshape(-1, cells, cells, 4)

  def __call__(
    self,
    features: Array,
    boxes: Array,
    proposals: Array,
    image_boxes: Array,
    embed: Callable[[Array], Array],
  ) -> tuple[Array, Array, Array]:
    """Reads every region and every cell.

    Args:
      features: [B, h, w, C], the image, shared by its regions.
      boxes: [B, R, 4] xyxy, normalized to the padded input.
      proposals: [B, cells * cells, 4] xyxy, normalized alike: through which box
        a cell is read. No gradient flows into them: they say where to look, and
        learn it from boxes alone.
      image_boxes: [B, 1, 4] xyxy of the valid image, normalized alike.
      embed: of positions [..., 2] xy, normalized alike -> [..., E].

    Returns:
      Tokens of the regions themselves [B, R, 1, width]; of the cells, which
      all regions share, [B, 1, cells * cells, width], row by row; and which
      cells a region has, [B, R, cells * cells] bool: those whose centre its
      box comes within half a cell of, so that every box within the image has
      one.
    """
    config = self.config
    batch, regions = boxes.shape[:2]
    windows = jnp.concatenate([boxes, jax.lax.stop_gradient(proposals)], axis=1)
    flat = lambda x: x.reshape(batch, windows.shape[1], -1)
    bins = sample(self.bin_projection(features), windows, config.bins)
    read = nn.gelu(self.mlp_in(flat(bins)), approximate=False)
    corners = flat(embed(windows.reshape(batch, -1, 2, 2)))
    place = jnp.concatenate([corners, windows], axis=-1)
    read = self.mlp_out(read) + self.corner_projection(place)

    cells = sample(self.cell_projection(features), image_boxes, config.cells)
    middle = embed(centers(image_boxes, config.cells))
    cells = cells + self.position_projection(middle)
    cells = cells + read[:, None, regions:]
    near = _near(boxes, image_boxes, config.cells)
    return read[:, :regions, None], cells, near


def pointed_box(proposals: Array, points: Array, labels: Array) -> Array:
  """The box of what is pointed at: that of the first point's cell.

  Args:
    proposals: [B, cells, cells, 4] from `RegionTokens.propose`.
    points: [B, R, K, 2] xy, normalized to the valid image.
    labels: [B, R, K] int; above 0, a point is on what is meant.

  Returns:
    [B, R, 4] xyxy, normalized to the valid image; all of it where no point is
    on what is meant.
  """
  batch, cells = proposals.shape[:2]
  on = labels > 0
  first = jnp.argmax(on, axis=-1)[..., None, None]
  point = jnp.take_along_axis(points, first, axis=2)[:, :, 0]
  cell = jnp.clip(jnp.floor(point * cells), 0, cells - 1).astype(jnp.int32)
  index = cell[..., 1] * cells + cell[..., 0]
  boxes = jnp.take_along_axis(
    proposals.reshape(batch, cells * cells, 4), index[..., None], axis=1
  )
  whole = jnp.asarray([[[0.0, 0, 1, 1]]])
  return jnp.where(jnp.any(on, axis=-1, keepdims=True), boxes, whole)


def centers(boxes: Array, grid: int) -> Array:
  """Centres of the parts of boxes.

  Args:
    boxes: [..., 4] xyxy.
    grid: parts along each side.

  Returns:
    [..., grid * grid, 2] xy in the units of `boxes`, row by row.
  """
  part = (jnp.arange(grid, dtype=jnp.float32) + 0.5) / grid
  part = jnp.stack(jnp.meshgrid(part, part), axis=-1).reshape(-1, 2)
  low, high = boxes[..., None, :2], boxes[..., None, 2:]
  part = jnp.reshape(part, (1,) * (low.ndim - 2) + part.shape)
  return low + (high - low) * part


def sample(features: Array, boxes: Array, grid: int) -> Array:
  """What an image shows in each part of boxes.

  Linear interpolation at the centre of a part, stretched to the part's size
  where that is larger than a cell, so that no cell of a box is passed over.

  Args:
    features: [B, h, w, C].
    boxes: [B, R, 4] xyxy, normalized to the padded input.
    grid: parts along each side of a box.

  Returns:
    [B, R, grid * grid, C], row by row.
  """
  batch, height, width, channels = features.shape
  regions = boxes.shape[1]
  across, down = (
    _weights(boxes[..., i], boxes[..., i + 2], grid, cells)
    for i, cells in ((0, width), (1, height))
  )
  # One product of all parts with all cells: row by row, then column by column,
  # would be fewer operations, but in as many products as there are regions.
  weights = down[..., :, None, :, None] * across[..., None, :, None, :]
  weights = weights.reshape(batch, regions * grid * grid, height * width)
  y = jnp.asarray(weights, features.dtype) @ features.reshape(
    batch, height * width, channels
  )
  return y.reshape(batch, regions, grid * grid, channels)


def _weights(low: Array, high: Array, grid: int, cells: int) -> Array:
  """[B, R] ends in [0, 1] -> [B, R, grid, cells]; each row sums to 1."""
  part = (jnp.arange(grid, dtype=jnp.float32) + 0.5) / grid
  middle = (jnp.arange(cells, dtype=jnp.float32) + 0.5) / cells
  low, high = low[..., None], high[..., None]
  center = low + (high - low) * part[None, None]
  # Beyond the middle of the outermost cell there is nothing to interpolate.
  center = jnp.clip(center, middle[0], middle[-1])[..., None]
  reach = jnp.maximum((high - low) / grid, 1 / cells)[..., None]
  offset = jnp.abs(center - middle[None, None, None]) / reach
  weights = jnp.maximum(1 - offset, 0)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _near(boxes: Array, image_boxes: Array, cells: int) -> Array:
  """[B, R, cells * cells] bool: is a cell's centre in the box, or nearly."""
  low, high = image_boxes[..., :2], image_boxes[..., 2:]
  # A hair more than half a cell: rounding must not leave a box without cells.
  half = (high - low)[..., None, :] * (0.5 / cells + 1e-4)
  middle = centers(image_boxes, cells)
  first = jnp.clip(boxes[..., :2], low, high)[..., None, :]
  last = jnp.clip(boxes[..., 2:], low, high)[..., None, :]
  return jnp.all((middle >= first - half) & (middle <= last + half), axis=-1)
