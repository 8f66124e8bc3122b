# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Where to look: location prompts, and the visual tokens drawn for each.

`LocationPromptEncoder` turns boxes and points into embeddings;
`PromptFeatureExtractor` lets learned queries read the image under them, one
small set of visual tokens per region; `Projection` brings those to the width of
the language model. SAM's two-way transformer, which the extractor is made of,
is the mask decoder's too.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pixel_llm.model import layers

Array = jax.Array

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
# Rows of `point_embeddings`, in SAM's order; the first two are the labels.
_MIN_CORNER, _MAX_CORNER = 2, 3


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """Numbers of `LocationPromptEncoder`.

  Attributes:
    embed_dim: width of an embedding; even, half sines and half cosines.
    frequency_scale: standard deviation of the random frequencies at first, in
      turns over half the image; smaller ones see further.
  """

  embed_dim: int = 256
  frequency_scale: float = 1.0

  def __post_init__(self):
    if self.embed_dim % 2:
      raise ValueError(
        f'PromptConfig.embed_dim: expected an even number, got '
        f'{self.embed_dim}.'
      )


class LocationPromptEncoder(nn.Module):
  """SAM's prompt encoder, for boxes and points.

  It has no dropout and computes in float32 always: a frequency times a position
  is an angle of many turns, of which bfloat16 would keep little.

  Source: Segment Anything (arXiv 2304.02643), appendix A, and
  `segment_anything/modeling/prompt_encoder.py`.
  Reference: mask prompts are left out, and SAM's "no mask" embedding with them:
  it is the same vector at every cell, which the bias of the extractor's image
  projection already expresses.
  """

  config: PromptConfig

  def setup(self):
    """Makes the parameters, the same for every method."""
    width = self.config.embed_dim

    def param(name, axes, shape, scale=1.0):
      init = nn.initializers.normal(scale)
      return layers.parameter(self, name, init, axes, shape)

    self.frequencies = param(
      'frequencies',
      ('unsharded', 'embed'),
      (2, width // 2),
      self.config.frequency_scale,
    )
    self.point_embeddings = param(
      'point_embeddings', ('unsharded', 'embed'), (4, width)
    )
    self.not_a_point = param('not_a_point', ('embed',), (width,))

  def boxes(self, boxes_px: Array, image_size_px: tuple[int, int]) -> Array:
    """Embeds each box as its two corners.

    Args:
      boxes_px: [..., 4] xyxy, pixels of the padded input.
      image_size_px: (height, width) of the padded input.

    Returns:
      [..., 2, embed_dim]: the (min x, min y) corner, then the (max x, max y).
    """
    corners = jnp.reshape(boxes_px, (*boxes_px.shape[:-1], 2, 2))
    kinds = self.point_embeddings[_MIN_CORNER : _MAX_CORNER + 1]
    embedded = self._locate(corners, image_size_px)
    return embedded + _lift(kinds, embedded.ndim)

  def places(self, points: Array) -> Array:
    """Embeds positions alone.

    Args:
      points: [..., 2] xy, normalized to the padded input.

    Returns: [..., embed_dim].
    """
    return self._encode(jnp.asarray(points, jnp.float32))

  def points(
    self, points_px: Array, labels: Array, image_size_px: tuple[int, int]
  ) -> Array:
    """Embeds points by their position and label.

    SAM adds one ignored point to a prompt that has no box; here the caller does
    it, as prompts are batched to a fixed number of points anyway.
    Reference: the research code overwrites the points it is given by a grid of
    its boxes, so that point prompts never reach this.

    Args:
      points_px: [..., points, 2] xy, pixels of the padded input.
      labels: [..., points] int, `FOREGROUND`, `BACKGROUND`, or else ignored.
      image_size_px: (height, width) of the padded input.

    Returns:
      [..., points, embed_dim]; an ignored point has no position.
    """
    embedded = self._locate(points_px, image_size_px)
    kind = jnp.asarray(labels)[..., None]

    def row(vector):
      return _lift(vector, embedded.ndim)

    return jnp.where(
      kind == FOREGROUND,
      embedded + row(self.point_embeddings[FOREGROUND]),
      jnp.where(
        kind == BACKGROUND,
        embedded + row(self.point_embeddings[BACKGROUND]),
        row(self.not_a_point),
      ),
    )

  def positions(self, height: int, width: int) -> Array:
    """[height, width, embed_dim]: the position of every cell of a grid."""
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5) / height
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width
    return self._encode(jnp.stack(jnp.meshgrid(x, y), axis=-1))

  def _locate(self, points_px: Array, image_size_px: tuple[int, int]) -> Array:
    height, width = image_size_px
    points_px = jnp.asarray(points_px, jnp.float32)
    # A coordinate names a pixel; its position is the pixel's centre.
    size = _lift(jnp.asarray([width, height], jnp.float32), points_px.ndim)
    return self._encode((points_px + 0.5) / size)

  def _encode(self, points: Array) -> Array:
    """[..., 2] xy in [0, 1] -> [..., embed_dim]."""
    # A buffer in SAM: it is never learned, whatever is trained around it.
    frequencies = jax.lax.stop_gradient(self.frequencies)
    points = 2 * points - 1
    # Two products rather than a matrix product, which TPUs round to bfloat16.
    angle = points[..., :1] * _lift(frequencies[0], points.ndim)
    angle = angle + points[..., 1:] * _lift(frequencies[1], points.ndim)
    angle = 2 * jnp.pi * angle
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _lift(x: Array, ndim: int) -> Array:
  """Adds leading axes of size 1 up to `ndim`."""
  return jnp.reshape(x, (1,) * (ndim - x.ndim) + x.shape)


@dataclasses.dataclass(frozen=True)
class TwoWayConfig:
  """Numbers of SAM's two-way transformer; the defaults are SAM's.

  Attributes:
    depth: layers.
    width: of its tokens; attention to and from the image has half of it.
    num_heads: heads of every attention; divides half the width.
    mlp_dim: hidden width of the MLP.
    branch_scale: factor of the last kernel, as it is drawn, of the MLPs, of
      what the image reads from the tokens, and of the final attention. Norms
      come after the sum here, so these hide what the layers have read before;
      1 draws them as every other kernel.
    dtype: compute dtype.
    scan_unroll: layers a step of the scan.
  """

  depth: int = 2
  width: int = 256
  num_heads: int = 8
  mlp_dim: int = 2048
  branch_scale: float = 1.0
  dtype: str = 'float32'
  scan_unroll: int = 1

  def __post_init__(self):
    name = type(self).__name__
    if self.depth < 1:
      raise ValueError(f'{name}.depth: expected at least 1, got {self.depth}.')
    if self.width % (2 * self.num_heads):
      raise ValueError(
        f'{name}.width: expected a multiple of 2 * num_heads = '
        f'{2 * self.num_heads}, got {self.width}.'
      )


@dataclasses.dataclass(frozen=True)
class ExtractorConfig(TwoWayConfig):
  """Numbers of `PromptFeatureExtractor`; those of its transformer first.

  Attributes:
    depth: layers of the two-way transformer.
    width: of its tokens.
    num_queries: visual tokens a region.
    out_dim: width of a visual token.
  """

  depth: int = 6
  width: int = 512
  num_queries: int = 32
  out_dim: int = 1024


class Attention(nn.Module):
  """Multi-head attention with biases.

  Attributes:
    inner: width between its projections.
    config: the transformer's.
    out_scale: factor of the last kernel as it is drawn.
  """

  inner: int
  config: TwoWayConfig
  out_scale: float = 1.0

  @nn.compact
  def __call__(
    self, query: Array, key: Array, value: Array, valid: Array | None = None
  ) -> Array:
    """Attends `query` to `key`.

    Args:
      query: [B, R, Q, width]; where its R is 1 and that of `key` is not, it is
        projected once for all regions.
      key: [B, R, K, width].
      value: [B, R, K, width].
      valid: [B, R, K] bool, the keys there are; None: all.

    Returns:
      [B, R, Q, width], with the R of `key`.
    """
    config = self.config

    def project(name, x):
      dense = layers.Dense(
        self.inner, ('embed', 'joined_kv'), True, config.dtype, name=name
      )
      return jnp.reshape(dense(x), (*x.shape[:-1], config.num_heads, -1))

    query = project('query', query)
    key = project('key', key)
    value = project('value', value)
    # Contracting with the size-1 axis instead would have the weights, which are
    # larger than the query, transposed.
    query = jnp.broadcast_to(query, (*key.shape[:2], *query.shape[2:]))
    scale = (self.inner // config.num_heads) ** -0.5
    bias = None
    if valid is not None:
      bias = jnp.where(valid[:, :, None, None], 0.0, layers.MASKED)
    y = layers.attention(query, key, value, bias, scale)
    y = jnp.reshape(y, (*y.shape[:3], self.inner))
    return layers.Dense(
      config.width,
      ('joined_kv', 'embed'),
      True,
      config.dtype,
      kernel_init=_scaled_init(self.out_scale),
      name='out',
    )(y)


def _scaled_init(scale: float) -> Any:
  """`layers.DEFAULT_INIT` times a factor."""
  return nn.initializers.variance_scaling(scale**2, 'fan_in', 'normal')


class TwoWayLayer(nn.Module):
  """One layer of SAM's two-way transformer, post-norm.

  Attributes:
    config: the transformer's.
    first: SAM's first layer: its self-attention sees no positions and replaces
      the tokens instead of adding to them.
  """

  config: TwoWayConfig
  first: bool = False

  @nn.compact
  def __call__(
    self,
    state: tuple[Array, Array],
    token_positions: Array,
    image_positions: Array,
    image_valid: Array | None = None,
  ) -> tuple[tuple[Array, Array], None]:
    """Updates tokens, then the image.

    Args:
      state: tokens [B, R, T, width] and image [B, R or 1, N, width]; an image
        that no region has changed yet is passed once.
      token_positions: [B, R, T, width].
      image_positions: [1, 1, N, width].
      image_valid: [B, R, N] bool, or None; only where the image has R regions.

    Returns:
      The new state, its image with R regions; and None, for `nn.scan`.
    """
    config = self.config

    def norm(name, x):
      return layers.LayerNorm(1e-5, config.dtype, name=name)(x)

    def attend(name, inner, query, key, value, scale=1.0, valid=None):
      attention = Attention(inner, config, scale, name=name)
      return attention(query, key, value, valid)

    tokens, image = state
    if self.first:
      tokens = attend('self_attention', config.width, tokens, tokens, tokens)
    else:
      placed = tokens + token_positions
      tokens = tokens + attend(
        'self_attention', config.width, placed, placed, tokens
      )
    tokens = norm('norm1', tokens)

    image_placed = image + image_positions
    # Regions that share the image are so many more queries to it.
    query = jnp.reshape(
      tokens + token_positions, (*image.shape[:2], -1, config.width)
    )
    read = attend(
      'token_to_image',
      config.width // 2,
      query,
      image_placed,
      image,
      valid=image_valid,
    )
    tokens = tokens + jnp.reshape(read, tokens.shape)
    tokens = norm('norm2', tokens)

    hidden = layers.Dense(
      config.mlp_dim, ('embed', 'mlp'), True, config.dtype, name='mlp_in'
    )(tokens)
    tokens = tokens + layers.Dense(
      config.width,
      ('mlp', 'embed'),
      True,
      config.dtype,
      kernel_init=_scaled_init(config.branch_scale),
      name='mlp_out',
    )(nn.relu(hidden))
    tokens = norm('norm3', tokens)

    image = image + attend(
      'image_to_token',
      config.width // 2,
      image_placed,
      tokens + token_positions,
      tokens,
      config.branch_scale,
    )
    return (tokens, norm('norm4', image)), None


def two_way_transformer(
  config: TwoWayConfig,
  tokens: Array,
  image: Array,
  image_positions: Array,
  *,
  keep: int,
  image_valid: Array | None = None,
) -> tuple[Array, Array]:
  """Lets tokens read an image and the image them, layer by layer.

  Called in the compact method of a module, whose parameters it makes:
  `first_layer`, `layers` (stacked), `final_attention` and `final_norm`.

  Args:
    config: the numbers.
    tokens: [B, R, T, width]; they are their own positions too.
    image: [B, R or 1, N, width]; 1 where all regions share it.
    image_positions: [1, 1, N, width].
    keep: leading tokens to return.
    image_valid: [B, R, N] bool, cells to be read; None: all. Only where the
      image has R regions.

  Returns:
    Tokens [B, R, keep, width], normalized, and the image [B, R, N, width].
  Source: `segment_anything/modeling/transformer.py`.
  """
  token_positions = tokens
  state = (tokens, image)
  # The first layer stands outside the scan: it differs, and its image may have
  # no regions yet.
  state, _ = TwoWayLayer(config, first=True, name='first_layer')(
    state, token_positions, image_positions, image_valid
  )
  if config.depth > 1:
    scanned = nn.scan(
      TwoWayLayer,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=typing.cast(Any, nn.broadcast),
      length=config.depth - 1,
      unroll=config.scan_unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    state, _ = scanned(config, name='layers')(
      state, token_positions, image_positions, image_valid
    )
  tokens, image = state

  # Tokens no longer meet: those not kept have done their work.
  tokens = tokens[:, :, :keep]
  tokens = tokens + Attention(
    config.width // 2, config, config.branch_scale, name='final_attention'
  )(
    tokens + token_positions[:, :, :keep],
    image + image_positions,
    image,
    image_valid,
  )
  tokens = layers.LayerNorm(1e-5, config.dtype, name='final_norm')(tokens)
  return tokens, image


class PromptFeatureExtractor(nn.Module):
  """Learned queries that read the image at a prompt.

  Queries and prompt tokens attend to the image and the image to them, through
  SAM's two-way transformer; each query then has a linear layer of its own. A
  region never sees another.

  Source: PixelLLM (arXiv 2312.09237); scenic pixel_llm,
  `modeling/prompt_adapter.py`; `segment_anything/modeling/transformer.py`.
  Reference: the research code also computes an output per image cell, whose
  parameters it keeps although their gradient is zero: left out. It adds its
  projected "no mask" embedding, a constant, to every cell: the bias of
  `image_projection` stands for the sum. It leaves the projections of prompts
  and positions out where widths agree; here they are always there.
  """

  config: ExtractorConfig

  @nn.compact
  def __call__(
    self, features: Array, feature_positions: Array, prompts: Array
  ) -> Array:
    """Draws the visual tokens of every region.

    Args:
      features: [B, h, w, C], the image, shared by its regions.
      feature_positions: [h, w, E], `LocationPromptEncoder.positions`.
      prompts: [B, R, T, E], embedded location prompts.

    Returns:
      [B, R, num_queries, out_dim].
    """
    config = self.config
    batch, regions = prompts.shape[:2]
    cells = features.shape[1] * features.shape[2]

    def project(name, x):
      return layers.Dense(
        config.width, ('unsharded', 'embed'), True, config.dtype, name=name
      )(x)

    # One image for all regions, [B, 1, N, width], until the first layer writes
    # into it: its projections there cost no more for many regions than for one.
    image = project('image_projection', features)
    image = jnp.reshape(image, (batch, 1, cells, config.width))
    image_positions = project('position_projection', feature_positions)
    image_positions = jnp.reshape(image_positions, (1, 1, cells, config.width))

    queries = layers.parameter(
      self,
      'queries',
      nn.initializers.normal(1.0),
      ('unsharded', 'embed'),
      (config.num_queries, config.width),
      config.dtype,
    )
    queries = jnp.broadcast_to(
      _lift(queries, 4),
      (batch, regions, config.num_queries, config.width),
    )
    tokens = jnp.concatenate(
      [queries, project('prompt_projection', prompts)], axis=2
    )

    tokens, _ = two_way_transformer(
      config, tokens, image, image_positions, keep=config.num_queries
    )
    return QueryDense(config.out_dim, config.dtype, name='heads')(tokens)


class QueryDense(nn.Module):
  """A linear layer for each query, as one product."""

  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, R, queries, width] -> [B, R, queries, features]."""
    queries, width = x.shape[2:]
    init = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'normal', batch_axis=(0,)
    )
    param = functools.partial(layers.parameter, self, dtype=self.dtype)
    axes = 'stack', 'embed', 'mlp'
    kernel = param('kernel', init, axes, (queries, width, self.features))
    axes, shape = ('stack', 'mlp'), (queries, self.features)
    bias = param('bias', nn.initializers.zeros, axes, shape)
    y = jnp.einsum('brqd,qdo->brqo', jnp.asarray(x, self.dtype), kernel)
    return y + _lift(bias, 4)


class Projection(nn.Module):
  """Linear layer and LayerNorm to the width of the language model.

  Source: scenic pixel_llm, `modeling/layers.py:LinearProjectLayers`.
  """

  width: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., in] -> [..., width]."""
    x = layers.Dense(
      self.width,
      ('mlp', 'embed'),
      True,
      self.dtype,
      kernel_init=nn.initializers.normal(0.02),
      name='dense',
    )(x)
    return layers.LayerNorm(1e-5, self.dtype, name='norm')(x)
