# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest network with every part, and random batches for it."""

import dataclasses

import jax
import numpy as np
from flax import linen as nn

from pixel_llm import batch as batch_lib
from pixel_llm.model import (
  detector,
  eva,
  mask,
  pixel_llm,
  presence,
  prompt,
  regression,
  sam,
  t5,
)

SIZES = batch_lib.BatchSizes(
  batch=8, image=32, regions=2, context=4, length=6, objects=3, mask=16
)


def model_config(vocab_size: int = 64) -> pixel_llm.ModelConfig:
  return pixel_llm.ModelConfig(
    eva=eva.EvaConfig(
      patch_size=8,
      width=16,
      depth=2,
      num_heads=2,
      mlp_dim=24,
      position_grid=4,
      drop_path_rate=0.0,
    ),
    sam=sam.SamConfig(
      patch_size=16,
      width=16,
      depth=2,
      num_heads=2,
      mlp_dim=24,
      window_size=2,
      blocks_per_group=2,
      position_grid=2,
      out_channels=8,
    ),
    prompt=prompt.PromptConfig(embed_dim=16),
    extractor=prompt.ExtractorConfig(
      num_queries=3, depth=2, width=16, num_heads=2, mlp_dim=24, out_dim=16
    ),
    t5=t5.T5Config(
      vocab_size=vocab_size,
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      mlp_dim=24,
      num_encoder_layers=2,
      num_decoder_layers=2,
      dropout_rate=0.0,
    ),
    regression=regression.RegressionConfig(hidden_dim=16, depth=2),
  )


def random_batch(
  sizes: batch_lib.BatchSizes = SIZES, seed: int = 0, vocab_size: int = 64
) -> batch_lib.Batch:
  rng = np.random.default_rng(seed)
  batch = batch_lib.Batch.zeros(sizes)
  b, r, length = batch.decoder_target_tokens.shape
  counts = rng.integers(2, length, (b, r, 1))
  at = np.arange(length)
  tokens = rng.integers(3, vocab_size, (b, r, length))
  tokens = np.where(at < counts, tokens, np.where(at == counts, 1, 0))

  def random_boxes(count):
    corners = np.sort(rng.random((b, count, 2, 2)), axis=2)
    return corners.reshape(b, count, 4).astype(np.float32)

  boxes = random_boxes(r)
  return batch_lib.Batch(
    image=rng.integers(0, 256, batch.image.shape).astype(np.uint8),
    image_size=rng.integers(sizes.image // 2, sizes.image + 1, (b, 2)).astype(
      np.int32
    ),
    prompt_boxes=boxes,
    prompt_box_weights=np.ones((b, r), np.float32),
    prompt_points=rng.random(batch.prompt_points.shape).astype(np.float32),
    prompt_labels=rng.integers(-1, 2, batch.prompt_labels.shape).astype(
      np.int32
    ),
    encoder_input_tokens=rng.integers(
      0, vocab_size, batch.encoder_input_tokens.shape
    ).astype(np.int32),
    decoder_target_tokens=tokens.astype(np.int32),
    decoder_loss_weights=(tokens > 0).astype(np.float32),
    points=rng.random(batch.points.shape).astype(np.float32),
    point_weights=(rng.random((b, r, length)) < 0.7).astype(np.float32),
    boxes=boxes,
    box_weights=np.ones((b, r), np.float32),
    masks=rng.integers(0, 2, batch.masks.shape).astype(np.uint8),
    mask_weights=np.ones((b, r), np.float32),
    presence=rng.integers(0, 2, (b, r)).astype(np.float32),
    presence_weights=np.ones((b, r), np.float32),
    objects=random_boxes(sizes.objects),
    object_weights=np.ones((b, sizes.objects), np.float32),
    detection_weights=np.ones(b, np.float32),
  )


def full_config() -> pixel_llm.ModelConfig:
  """`model_config` with the parts that are not in every network."""
  return dataclasses.replace(
    model_config(),
    mask=mask.MaskConfig(
      width=16,
      depth=1,
      num_heads=2,
      mlp_dim=24,
      iou_dim=8,
      adapter=prompt.TwoWayConfig(width=16, depth=1, num_heads=2, mlp_dim=24),
    ),
    presence=presence.PresenceConfig(hidden_dim=8),
    prompt=prompt.PromptConfig(embed_dim=16),
    sam=dataclasses.replace(model_config().sam, out_channels=16),
    detector=detector.DetectorConfig(
      channels=8,
      fine_channels=6,
      tower_layers=1,
      tower_channels=8,
      groups=4,
      candidates=20,
      proposals=10,
      train_candidates=20,
      train_proposals=10,
      samples=8,
      bins=3,
      box_dim=8,
      detections=5,
    ),
  )


def init(config: pixel_llm.ModelConfig, seed: int = 0):
  """(model, random parameters without boxes, none at its initial value).

  Drawn by NumPy: to compile what draws them takes longer than most tests.
  """
  model = pixel_llm.PixelLLM(config)
  one = dataclasses.replace(SIZES, batch=1)
  shapes = jax.eval_shape(
    lambda key: model.init(key, batch_lib.Batch.zeros(one))['params'],
    jax.random.key(seed),
  )
  rng = np.random.default_rng(seed)

  def draw(path, x):
    noise = rng.normal(size=x.shape)
    if path[-1].key == 'kernel':
      noise /= np.prod(x.shape[:-1]) ** 0.5
    elif path[-1].key == 'scale':
      noise = 1 + 0.1 * noise
    else:
      noise *= 0.3
    return noise.astype(x.dtype)

  return model, jax.tree.map_with_path(draw, nn.unbox(shapes))
