# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which pixels a box means: SAM's mask decoder, told what was said.

`MaskAdapter` adds what was said and seen of a region to the embedded corners of
its box; `MaskDecoder` draws the masks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pixel_llm.model import layers, prompt

Array = jax.Array

# A mask has this many pixels for each cell of the features, along each side.
UPSCALING = 4


@dataclasses.dataclass(frozen=True)
class MaskConfig(prompt.TwoWayConfig):
  """Numbers of the mask decoder, whose defaults are SAM's, and its adapter.

  Attributes:
    width: of the transformer; that of the image features and of the embedded
      prompts too.
    candidates: masks of an ambiguous prompt, beside the one of a clear prompt.
    iou_dim: hidden width of the IoU head.
    adapter: transformer of `MaskAdapter`; None leaves SAM's box prompt alone.
  """

  candidates: int = 3
  iou_dim: int = 256
  adapter: prompt.TwoWayConfig | None = dataclasses.field(
    default_factory=prompt.TwoWayConfig
  )

  def __post_init__(self):
    super().__post_init__()
    if self.width % 8:
      raise ValueError(
        f'MaskConfig.width: expected a multiple of 8, got {self.width}.'
      )
    if self.candidates < 1:
      raise ValueError(
        f'MaskConfig.candidates: expected at least 1, got {self.candidates}.'
      )
    if self.adapter is not None and self.adapter.width != self.width:
      raise ValueError(
        f'MaskConfig.adapter.width: expected {self.width}, the width of the '
        f'prompts it adds to, got {self.adapter.width}.'
      )


class MaskDecoder(nn.Module):
  """Masks of embedded prompts, and how good each is thought to be.

  Source: Segment Anything (arXiv 2304.02643), appendix A, and
  `segment_anything/modeling/mask_decoder.py`.
  Reference: the "no mask" embedding, a constant that is added to every cell,
  is a parameter of SAM's prompt encoder; it is here, where alone it is used.
  """

  config: MaskConfig

  @nn.compact
  def __call__(
    self,
    features: Array,
    feature_positions: Array,
    prompts: Array,
    ambiguous: bool = False,
  ) -> tuple[Array, Array]:
    """Draws the masks of every region.

    Args:
      features: [B, h, w, width], SAM's image features, shared by the regions.
      feature_positions: [h, w, width], `LocationPromptEncoder.positions`.
      prompts: [B, R, T, width], embedded location prompts.
      ambiguous: gives the `candidates` masks instead of the one of a clear
        prompt (SAM's `multimask_output`).

    Returns:
      Logits [B, R, masks, 4 * h, 4 * w] and predicted IoU [B, R, masks], both
      float32. Masks cover what the features cover: the padded input.
    """
    config = self.config
    batch, height, width, _ = features.shape
    regions = prompts.shape[1]
    masks = 1 + config.candidates

    no_mask = self._embedding('no_mask', 1)
    image = jnp.reshape(
      jnp.asarray(features, config.dtype) + jnp.reshape(no_mask, (1, 1, 1, -1)),
      (batch, 1, height * width, config.width),
    )
    positions = jnp.asarray(feature_positions, config.dtype)
    positions = jnp.reshape(positions, (1, 1, height * width, config.width))
    own = jnp.concatenate(
      [self._embedding('iou_token', 1), self._embedding('mask_tokens', masks)]
    )
    own = jnp.broadcast_to(own[None, None], (batch, regions, *own.shape))
    tokens, image = prompt.two_way_transformer(
      config,
      jnp.concatenate([own, jnp.asarray(prompts, config.dtype)], axis=2),
      image,
      positions,
      keep=1 + masks,
    )

    shown = slice(1, None) if ambiguous else slice(0, 1)
    strokes = tokens[:, :, 1:]
    for i, size in enumerate((config.width, config.width, config.width // 8)):
      strokes = prompt.QueryDense(size, config.dtype, name=f'stroke_{i}')(
        nn.relu(strokes) if i else strokes
      )
    # [B, R, cells, 4, width / 4], then [B, R, cells, 4, 4, width / 8].
    fine = Upscale(config.width // 4, config.dtype, name='upscale_0')(image)
    fine = layers.LayerNorm(1e-6, config.dtype, name='upscale_norm')(fine)
    fine = nn.gelu(fine, approximate=False)
    fine = Upscale(config.width // 8, config.dtype, name='upscale_1')(fine)
    fine = nn.gelu(fine, approximate=False)
    logits = jnp.einsum(
      'brmc,brnsfc->brmnsf',
      strokes[:, :, shown],
      fine,
      preferred_element_type=jnp.float32,
    )

    iou = tokens[:, :, 0]
    sizes = (config.iou_dim, config.iou_dim, masks)
    axes = (('embed', 'mlp'), ('mlp', 'embed'), ('embed', 'unsharded'))
    for i, size in enumerate(sizes):
      # float32 at last: bfloat16 could not tell 0.998 from 1.
      dtype = config.dtype if i < 2 else 'float32'
      iou = layers.Dense(size, axes[i], True, dtype, name=f'iou_{i}')(
        nn.relu(iou) if i else iou
      )
    return _place(logits, height, width), iou[:, :, shown]

  def _embedding(self, name: str, rows: int) -> Array:
    return layers.parameter(
      self,
      name,
      nn.initializers.normal(1.0),
      ('unsharded', 'embed'),
      (rows, self.config.width),
      self.config.dtype,
    )


class Upscale(nn.Module):
  """A transposed convolution of kernel and stride 2, before it is laid out.

  The 2 x 2 pixels that a cell becomes depend on no other cell: they are an axis
  of the result, and only the mask, of one channel, is laid out (`_place`).
  """

  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., width] -> [..., 4, features]; the 4 are row by row."""
    init = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'normal', in_axis=0, out_axis=2, batch_axis=(1,)
    )
    param = functools.partial(layers.parameter, self, dtype=self.dtype)
    kernel = param(
      'kernel',
      init,
      ('embed', 'stack', 'mlp'),
      (x.shape[-1], 4, self.features),
    )
    bias = param('bias', nn.initializers.zeros, ('mlp',), (self.features,))
    y = jnp.asarray(x, self.dtype) @ jnp.reshape(kernel, (x.shape[-1], -1))
    y = jnp.reshape(y, (*x.shape[:-1], 4, self.features))
    return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def _place(logits: Array, height: int, width: int) -> Array:
  """Lays out the pixels of cells.

  Args:
    logits: [B, R, M, h * w, 4, 4]: of each cell its 2 x 2 parts, of each part
      its 2 x 2 pixels.
    height: h.
    width: w.

  Returns: [B, R, M, 4 * h, 4 * w].
  """
  lead = logits.shape[:3]
  y = jnp.reshape(logits, (*lead, height, width, 2, 2, 2, 2))
  y = jnp.transpose(y, (0, 1, 2, 3, 5, 7, 4, 6, 8))
  return jnp.reshape(y, (*lead, UPSCALING * height, UPSCALING * width))


class MaskAdapter(nn.Module):
  """Adds what was seen and said of a region to its embedded box.

  One learned query a prompt token reads the region's visual tokens and the
  hidden states of its words in a two-way transformer. A gate for every channel,
  closed at first, lets the result in: training starts from SAM as it is.

  Source: PixelLLM (arXiv 2312.09237); scenic pixel_llm,
  `modeling/mask_adapter.py`.
  """

  config: prompt.TwoWayConfig

  @nn.compact
  def __call__(
    self,
    prompts: Array,
    visual: Array,
    words: Array,
    valid: Array | None = None,
  ) -> Array:
    """Moves the prompts of every region.

    Args:
      prompts: [B, R, T, width], embedded location prompts.
      visual: [B, R, V, D], the region's visual tokens.
      words: [B, R, L, E], the decoder's hidden states.
      valid: [B, R, V + L] bool, which of them to read; None: all.

    Returns: [B, R, T, width] float32.
    """
    config = self.config
    batch, regions, count = prompts.shape[:3]

    def project(name, x):
      x = layers.LayerNorm(1e-6, config.dtype, name=f'{name}_norm')(x)
      return layers.Dense(
        config.width, ('mlp', 'embed'), True, config.dtype, name=name
      )(x)

    def param(name, init):
      shape = count, config.width
      return layers.parameter(self, name, init, ('unsharded', 'embed'), shape)

    read = jnp.concatenate(
      [project('visual_projection', visual), project('word_projection', words)],
      axis=2,
    )
    queries = param('queries', nn.initializers.normal(1.0))
    gate = jnp.tanh(param('gate', nn.initializers.zeros))
    tokens, _ = prompt.two_way_transformer(
      config,
      jnp.broadcast_to(
        jnp.asarray(queries, config.dtype)[None, None],
        (batch, regions, count, config.width),
      ),
      read,
      jnp.zeros((1, 1, 1, 1), config.dtype),
      keep=count,
      image_valid=valid,
    )
    return prompts + gate[None, None] * jnp.asarray(tokens, jnp.float32)
