# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""PixelLLM: image encoders, location prompts, T5 and a point for every word.

Source: "Pixel Aligned Language Models", arXiv 2312.09237, section 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm import geometry
from pixel_llm.model import detector as detector_lib
from pixel_llm.model import eva as eva_lib
from pixel_llm.model import mask as mask_lib
from pixel_llm.model import presence as presence_lib
from pixel_llm.model import prompt as prompt_lib
from pixel_llm.model import region as region_lib
from pixel_llm.model import regression as regression_lib
from pixel_llm.model import sam as sam_lib
from pixel_llm.model import t5 as t5_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The parts of the network; an absent part is None.

  Attributes:
    eva: semantic image encoder.
    sam: localization image encoder; at least one encoder is present.
    prompt: location prompt encoder.
    extractor: prompt feature extractor.
    region: tokens of the region and of the image's cells beside the
      extractor's; None, as published, leaves them out.
    t5: language model.
    regression: per-token regression head.
    mask: mask decoder of the answers' boxes; None leaves masks out.
    detector: finds what is worth a caption; None leaves it out.
    presence: says whether what is asked for is there; None, as published,
      leaves it out.
  """

  eva: eva_lib.EvaConfig | None = dataclasses.field(
    default_factory=eva_lib.EvaConfig
  )
  sam: sam_lib.SamConfig | None = dataclasses.field(
    default_factory=sam_lib.SamConfig
  )
  prompt: prompt_lib.PromptConfig = dataclasses.field(
    default_factory=prompt_lib.PromptConfig
  )
  extractor: prompt_lib.ExtractorConfig = dataclasses.field(
    default_factory=prompt_lib.ExtractorConfig
  )
  region: region_lib.RegionConfig | None = None
  t5: t5_lib.T5Config = dataclasses.field(default_factory=t5_lib.T5Config)
  regression: regression_lib.RegressionConfig = dataclasses.field(
    default_factory=regression_lib.RegressionConfig
  )
  mask: mask_lib.MaskConfig | None = None
  detector: detector_lib.DetectorConfig | None = None
  presence: presence_lib.PresenceConfig | None = None

  def __post_init__(self):
    if self.eva is None and self.sam is None:
      raise ValueError('model: eva and sam are both None; one must be there.')
    if self.mask is None:
      return
    if self.sam is None:
      raise ValueError('model: masks are drawn on features of sam, got None.')
    widths = self.mask.width, self.prompt.embed_dim, self.sam.out_channels
    if len(set(widths)) > 1:
      raise ValueError(
        'model: expected mask.width, prompt.embed_dim and sam.out_channels to '
        f'be one number, got {widths}.'
      )


def normalize(image: Array, image_size: Array, mean, std) -> Array:
  """Pixels to what an encoder was trained on; the padding becomes 0.

  Args:
    image: [B, H, W, 3] uint8.
    image_size: [B, 2] int32 valid (height, width).
    mean: three numbers, in 0..255.
    std: three numbers, in 0..255.

  Returns: [B, H, W, 3] float32.
  """
  mean = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
  std = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, 3)
  pixels = (jnp.asarray(image, jnp.float32) - mean) / std
  _, height, width, _ = image.shape
  rows = jnp.arange(height)[None, :] < image_size[:, :1]
  columns = jnp.arange(width)[None, :] < image_size[:, 1:]
  valid = rows[:, :, None, None] & columns[:, None, :, None]
  return jnp.where(valid, pixels, 0.0)


def _pixels(boxes: Array, scale: Array, canvas: tuple[int, int]) -> Array:
  """Normalized boxes -> pixels of the padded input; `scale` of `_valid_box`."""
  height, width = canvas
  return boxes * scale * jnp.asarray([[[width, height] * 2]], jnp.float32)


def _points(batch: batch_lib.Batch) -> tuple[Array, Array, Array] | None:
  """What `embed_regions` needs of the points; None if prompts have none."""
  points = batch.prompt_points
  if points is None or not points.shape[2]:
    return None
  return points, batch.prompt_labels, batch.prompt_box_weights


def _valid_box(
  image_size: Array, canvas: tuple[int, int]
) -> tuple[Array, Array]:
  """The valid image in the padded input.

  Returns: its box [B, 1, 4] xyxy, normalized to the padded input; and the
    factor [B, 1, 4] of boxes normalized to it that normalizes them alike.
  """
  corner = image_size[:, None, ::-1] / jnp.asarray(
    [[canvas[::-1]]], jnp.float32
  )
  box = jnp.concatenate([jnp.zeros_like(corner), corner], axis=-1)
  return box, jnp.concatenate([corner, corner], axis=-1)


class PixelLLM(nn.Module):
  """The network.

  `__call__` is teacher forcing for training; `encode_image`, `embed_regions`,
  `encode_prompts` and `decode_step` are its parts for decoding: an image is
  encoded once for any number of regions, a region's prompt once for all its
  tokens, and the points come out of the same pass as the words.
  """

  config: ModelConfig

  def run(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    """`apply` of the parameters alone, which gives no other collection."""
    return self.apply({'params': params}, *args, **kwargs)

  def setup(self):
    """Makes the parts."""
    c = self.config
    self.eva = eva_lib.Eva(c.eva) if c.eva is not None else None
    self.sam = sam_lib.Sam(c.sam) if c.sam is not None else None
    self.prompt_encoder = prompt_lib.LocationPromptEncoder(c.prompt)
    self.extractor = prompt_lib.PromptFeatureExtractor(c.extractor)
    self.region = (
      region_lib.RegionTokens(c.region, c.extractor.out_dim)
      if c.region is not None
      else None
    )
    self.projection = prompt_lib.Projection(c.t5.emb_dim, c.t5.dtype)
    self.t5 = t5_lib.T5(c.t5)
    self.regression = regression_lib.RegressionHead(c.regression)
    self.mask_decoder = self.mask_adapter = None
    if c.mask is not None:
      self.mask_decoder = mask_lib.MaskDecoder(c.mask)
      if c.mask.adapter is not None:
        self.mask_adapter = mask_lib.MaskAdapter(c.mask.adapter)
    self.detector = (
      detector_lib.Detector(c.detector) if c.detector is not None else None
    )
    self.presence = (
      presence_lib.PresenceHead(c.presence) if c.presence is not None else None
    )

  def encode_image(
    self, image: Array, image_size: Array, deterministic: bool = True
  ) -> Array:
    """Features of both encoders, concatenated on the finer grid.

    Args:
      image: [B, H, W, 3] uint8, padded bottom and right.
      image_size: [B, 2] int32 valid (height, width), pixels.
      deterministic: no drop path.

    Returns: [B, h, w, channels].
    Source: paper section 3.1; the smaller grid is resized to the larger.
    """
    return self.join(self.encode_maps(image, image_size, deterministic))

  def encode_maps(
    self,
    image: Array,
    image_size: Array,
    deterministic: bool = True,
    given: dict[str, Array] | None = None,
  ) -> dict[str, Array]:
    """Features of each encoder, on its own grid.

    Args:
      image: [B, H, W, 3] uint8, padded bottom and right.
      image_size: [B, 2] int32 valid (height, width), pixels.
      deterministic: no drop path.
      given: those that are there already, `Batch.image_maps`.

    Returns:
      `eva` and `sam`, each [B, h, w, channels] if the encoder is there.
    """
    c = self.config
    maps = dict(given or {})
    if c.eva is not None and self.eva is not None and 'eva' not in maps:
      pixels = normalize(image, image_size, c.eva.mean, c.eva.std)
      maps['eva'] = self.eva(pixels, deterministic)
    if c.sam is not None and self.sam is not None and 'sam' not in maps:
      pixels = normalize(image, image_size, c.sam.mean, c.sam.std)
      maps['sam'] = self.sam(pixels, deterministic)
    return maps

  def join(self, features: dict[str, Array]) -> Array:
    """`encode_maps` -> `encode_image`."""
    maps = [features[name] for name in ('eva', 'sam') if name in features]
    height = max(m.shape[1] for m in maps)
    width = max(m.shape[2] for m in maps)
    maps = [
      m
      if m.shape[1:3] == (height, width)
      else jax.image.resize(
        m, (m.shape[0], height, width, m.shape[3]), 'bicubic'
      )
      for m in maps
    ]
    return jnp.concatenate(maps, axis=-1)

  def propose(
    self, features: Array, image_size: Array, canvas: tuple[int, int]
  ) -> Array | None:
    """The box of what each cell of the image is part of.

    Args:
      features: [B, h, w, channels] from `encode_image`.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.

    Returns:
      [B, cells, cells, 4] xyxy, normalized to the valid image; None without
      `ModelConfig.region`.
    """
    if self.region is None:
      return None
    return self.region.propose(features, _valid_box(image_size, canvas)[0])

  def embed_regions(
    self,
    features: Array,
    prompt_boxes: Array,
    image_size: Array,
    canvas: tuple[int, int],
    points: tuple[Array, Array, Array] | None = None,
  ) -> tuple[Array, Array]:
    """Visual tokens of each prompt.

    Args:
      features: [B, h, w, channels] from `encode_image`.
      prompt_boxes: [B, R, 4] xyxy, normalized to the valid image.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.
      points: `prompt_points`, `prompt_labels` and `prompt_box_weights` of a
        batch; None: boxes alone.

    Returns:
      [B, R, V, T5 width], those of the extractor's queries first, then the
      region's own and the image's cells, if any; and their validity
      [B, R, V] bool.
    Source: paper section 3.2.
    Reference: the research code overwrites points by a grid in their box.
    """
    valid_box, scale = _valid_box(image_size, canvas)
    boxes = prompt_boxes * scale
    boxes_px = _pixels(prompt_boxes, scale, canvas)
    prompts = self.prompt_encoder.boxes(boxes_px, canvas)
    if points is not None:
      prompts = self._point(prompts, points, scale, canvas)
    positions = self.prompt_encoder.positions(*features.shape[1:3])
    visual = self.projection(self.extractor(features, positions, prompts))
    valid = jnp.ones(visual.shape[:3], bool)
    if self.region is None:
      return visual, valid

    proposals = self.region.propose(features, valid_box)
    if points is not None:
      boxes = jnp.where(
        points[2][..., None] > 0,
        boxes,
        region_lib.pointed_box(proposals, *points[:2]) * scale,
      )
    proposals = proposals.reshape(features.shape[0], -1, 4) * scale
    own, cells, near = self.region(
      features, boxes, proposals, valid_box, self.prompt_encoder.places
    )
    # Cells are projected once an image, before the regions get their copies.
    cells = self.projection(cells)
    cells = jnp.broadcast_to(cells, (*near.shape, cells.shape[-1]))
    visual = jnp.concatenate([visual, self.projection(own), cells], axis=2)
    valid = jnp.concatenate([valid, valid[:, :, :1], near], axis=2)
    return visual, valid

  def _point(
    self,
    prompts: Array,
    points: tuple[Array, Array, Array],
    scale: Array,
    canvas: tuple[int, int],
  ) -> Array:
    """Embedded points [B, R, K, E] before those of boxes that are asked of."""
    at, labels, box_weights = points
    height, width = canvas
    at_px = at * scale[:, None, :, :2] * jnp.asarray([[[[width, height]]]])
    kinds = jnp.where(
      labels > 0,
      prompt_lib.FOREGROUND,
      jnp.where(labels < 0, prompt_lib.BACKGROUND, prompt_lib.IGNORED),
    )
    at = self.prompt_encoder.points(at_px, kinds, canvas)
    # As SAM has it where there is no box.
    none = self.prompt_encoder.points(
      jnp.zeros((1, 1, 1, 2)),
      jnp.full((1, 1, 1), prompt_lib.IGNORED),
      canvas,
    )
    asked = box_weights[..., None, None] > 0
    return jnp.concatenate([at, jnp.where(asked, prompts, none)], axis=2)

  def encode_prompts(
    self,
    visual: Array,
    visual_valid: Array,
    encoder_input_tokens: Array,
    deterministic: bool = True,
  ) -> tuple[Array, Array]:
    """T5's encoder over [visual tokens, text prompt] of every region.

    Args:
      visual: [B, R, V, T5 width] from `embed_regions`.
      visual_valid: [B, R, V] bool, from there too.
      encoder_input_tokens: [B, R, C] int32.
      deterministic: no dropout.

    Returns: [B * R, S, width] and its validity [B * R, S] bool.
    """
    b, r, v, d = visual.shape
    return self.t5.encode(
      visual.reshape(b * r, v, d),
      encoder_input_tokens.reshape(b * r, -1),
      deterministic,
      visual_valid.reshape(b * r, v),
    )

  def segment(
    self,
    sam_features: Array,
    boxes: Array,
    image_size: Array,
    canvas: tuple[int, int],
    visual: Array,
    visual_valid: Array,
    hidden: Array,
    words: Array,
    ambiguous: bool = False,
  ) -> tuple[Array, Array]:
    """Masks of what the answers' boxes mean.

    Args:
      sam_features: [B, h, w, channels], `sam` of `encode_maps`.
      boxes: [B, R, 4] xyxy, normalized to the valid image; no gradient.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.
      visual: [B, R, V, T5 width] from `embed_regions`.
      visual_valid: [B, R, V] bool, from there too.
      hidden: [B, R, L, T5 width], the decoder's hidden states.
      words: [B, R, L] bool, those that stand for a word.
      ambiguous: gives several masks a region, to choose from by predicted IoU.

    Returns:
      Logits [B, R, masks, 4 * h, 4 * w] on the padded input, and predicted IoU
      [B, R, masks], both float32.

    Raises:
      ValueError: the network has no mask decoder.

    Source: paper section 3.4, referring segmentation.
    Reference: the published adapter reads the hidden states of padding too, so
      that a mask depends on how far the text was padded.
    """
    if self.mask_decoder is None:
      raise ValueError('segment: expected ModelConfig.mask, got None.')
    _, scale = _valid_box(image_size, canvas)
    boxes_px = _pixels(jax.lax.stop_gradient(boxes), scale, canvas)
    prompts = self.prompt_encoder.boxes(boxes_px, canvas)
    if self.mask_adapter is not None:
      valid = jnp.concatenate([visual_valid, words], axis=-1)
      prompts = self.mask_adapter(prompts, visual, hidden, valid)
    positions = self.prompt_encoder.positions(*sam_features.shape[1:3])
    return self.mask_decoder(sam_features, positions, prompts, ambiguous)

  def detect(
    self, features: Array, image_size: Array, canvas: tuple[int, int]
  ) -> tuple[Array, Array, Array]:
    """The boxes that are worth a caption.

    Args:
      features: [B, h, w, channels] from `encode_image`.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.

    Returns:
      Boxes [B, D, 4] xyxy, normalized to the valid image; their scores [B, D]
      in [0, 1]; and [B, D] bool, which there are, the best first.

    Raises:
      ValueError: the network has no detector.

    Source: paper section 3.4, dense object captioning.
    """
    if self.detector is None:
      raise ValueError('detect: expected ModelConfig.detector, got None.')
    boxes_px, scores, there = self.detector(features, image_size, canvas)
    _, scale = _valid_box(image_size, canvas)
    return (
      boxes_px / _pixels(jnp.ones_like(scale), scale, canvas),
      scores,
      there,
    )

  def __call__(
    self,
    batch: batch_lib.Batch,
    deterministic: bool = True,
    features: Array | None = None,
    sam_features: Array | None = None,
  ) -> batch_lib.Output:
    """Teacher forcing: logits, hidden states and points of every token.

    With `ModelConfig.mask` a mask of each answer too: of the box at its last
    word. With `ModelConfig.detector` and `Batch.objects` also what it says of
    them; unless deterministic it learns from boxes drawn by 'dropout'.

    Args:
      batch: what is asked and answered.
      deterministic: no dropout, no drop path.
      features: of the batch's images if they are encoded already.
      sam_features: `sam` of `encode_maps`; without it, encoded images get no
        masks.
    """
    canvas = batch.image.shape[1:3]
    if features is None:
      maps = self.encode_maps(
        batch.image, batch.image_size, deterministic, batch.image_maps
      )
      features, sam_features = self.join(maps), maps.get('sam')
    visual, visual_valid = self.embed_regions(
      features, batch.prompt_boxes, batch.image_size, canvas, _points(batch)
    )
    encoded, valid = self.encode_prompts(
      visual, visual_valid, batch.encoder_input_tokens, deterministic
    )
    b, r, length = batch.decoder_target_tokens.shape
    targets = batch.decoder_target_tokens.reshape(b * r, length)
    logits, hidden = self.t5.decode(
      encoded,
      valid,
      t5_lib.shift_right(targets),
      targets,
      deterministic=deterministic,
    )
    hidden = hidden.reshape(b, r, length, -1)
    points = self.locate(hidden)
    mask_logits = mask_ious = None
    if self.mask_decoder is not None and sam_features is not None:
      mask_logits, mask_ious = self.segment(
        sam_features,
        geometry.answer_box(batch.decoder_target_tokens, points),
        batch.image_size,
        canvas,
        visual,
        visual_valid,
        hidden,
        batch.decoder_target_tokens > 0,
      )
    seen = None
    objects = batch.objects
    if self.detector is not None and objects is not None and objects.shape[1]:
      _, scale = _valid_box(batch.image_size, canvas)
      seen = self.detector.learn(
        features,
        batch.image_size,
        canvas,
        _pixels(objects, scale, canvas),
        batch.object_weights,
        None if deterministic else self.make_rng('dropout'),
      )
    return batch_lib.Output(
      logits=logits.reshape(b, r, length, -1),
      hidden=hidden,
      points=points,
      # Made a second time here; the compiler sees that it is the same.
      proposals=self.propose(features, batch.image_size, canvas),
      presence=self._presence(batch.decoder_target_tokens, hidden),
      mask_logits=mask_logits,
      mask_ious=mask_ious,
      seen=seen,
    )

  def _presence(self, tokens: Array, hidden: Array) -> Array | None:
    """[B, R] logits: whether there is what an answer [B, R, L] means."""
    if self.presence is None:
      return None
    # Where the last token before the end is read, as its points are.
    last = jnp.maximum((tokens > 0).sum(-1) - 1, 0)[..., None, None]
    return self.presence(jnp.take_along_axis(hidden, last, axis=2)[:, :, 0])

  def start_decoding(
    self, batch: batch_lib.Batch, length: int, features: Array | None = None
  ):
    """Everything that decoding needs once: image, prompts, cross attention.

    Args:
      batch: what is asked.
      length: most tokens to write.
      features: of the batch's images if they are encoded already.

    Returns:
      (cross-attention keys and values, validity [B * R, S], empty cache).
    """
    if features is None:
      features = self.encode_image(batch.image, batch.image_size)
    visual, visual_valid = self.embed_regions(
      features,
      batch.prompt_boxes,
      batch.image_size,
      batch.image.shape[1:3],
      _points(batch),
    )
    encoded, valid = self.encode_prompts(
      visual, visual_valid, batch.encoder_input_tokens
    )
    cross = self.t5.cross_attention_cache(encoded)
    return cross, valid, self.t5.init_cache(encoded.shape[0], length)

  def decode_step(
    self, tokens: Array, index: Array, cache, cross, valid: Array
  ):
    """One token for every sequence.

    Args:
      tokens: [N] int32, the previous token.
      index: scalar int32, its position.
      cache: self-attention cache.
      cross: cross-attention keys and values.
      valid: [N, S] bool, validity of the encoder's output.

    Returns: logits [N, vocab] of the next token, hidden state [N, width], from
      all of which `locate` reads points, and cache.
    """
    return self.t5.decode_step(tokens, index, cache, cross, valid)

  def locate(self, hidden: Array) -> Array:
    """The points of tokens.

    All tokens at once, when the search has chosen them: a step would read the
    head's kernels for a few rows, most of which a search by beams drops.

    A token has its points where it is read, a position after the one that
    writes it: only there it is known. After the last position nothing is read;
    a last token that is not the end has the points of its own.

    Args:
      hidden: [..., L, width], the decoder's hidden state of each position.

    Returns: [..., L, P, 2] xy, normalized, of each token.
    Source: scenic pixel_llm, `modeling/pixel_llm.py:predict_points`.
    """
    points = self.regression(hidden)
    last = points[..., -1:, :, :]
    return jnp.concatenate([points[..., 1:, :, :], last], axis=-3)
