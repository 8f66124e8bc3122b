# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The whole path at laptop size, on narrated scenes (`make demo`)."""

import ml_collections

from configs import default

ROOT = 'runs/demo'
PATCH, IMAGE, WIDTH = 8, 64, 64


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  with config.unlocked():
    _model(config.model)
    data = config.data
    data.records = {
      'scenes_narratives': f'{ROOT}/records/narratives',
      'scenes_refer': f'{ROOT}/records/refer',
      'scenes_regions': f'{ROOT}/records/regions',
    }
    data.vocabulary = f'{ROOT}/records/spiece.model'
    data.extra_ids = 0
    data.image = IMAGE
    # Long narratives of few regions and short texts of many: batches of their
    # own shapes, so that little of them is padding.
    data.streams = {
      'captions': dict(
        mixture='scenes_caption_at',
        rate=1.0,
        batch=24,
        regions=4,
        context=6,
        length=10,
      ),
      'narratives': dict(
        mixture='scenes_narrate',
        rate=2.0,
        batch=24,
        regions=2,
        context=6,
        length=52,
      ),
      'expressions': dict(
        mixture='scenes_refer',
        rate=1.0,
        batch=24,
        regions=4,
        context=14,
        length=14,
      ),
    }
    config.eval.tasks = {
      'scenes_narrate': dict(batch=50, regions=2, context=6, length=52),
      'scenes_refer': dict(batch=50, regions=8, context=14, length=14),
      'scenes_caption_at': dict(batch=50, regions=8, context=14, length=14),
    }
    config.eval.decoding.beams = 4
    config.eval.targets = (
      'narrate/point_l1 <= 0.06',
      'narrate/object_precision >= 0.85',
      'refer/p_at_0.5 >= 0.6',
    )
    config.loss.label_smoothing = 0.0
    config.loss.point_weight = 8.0
    config.loss.proposal_weight = 5.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.01
    config.optimizer.muon = dict(rate=2.0)
    # The best of those tried; the first that is found in a path applies.
    config.optimizer.multipliers = (
      ('^(eva|sam)/', 4.0),
      ('^extractor/.*(query|key)/kernel', 0.4),
      ('^t5/.*query/kernel', 0.6),
      ('.', 2.0),
    )
    config.loop.steps = 2400
    config.loop.log_every = 50
    config.loop.checkpoint_every = 250
  return config


def _model(model: ml_collections.ConfigDict) -> None:
  model.eva.update(
    patch_size=PATCH,
    width=WIDTH,
    depth=2,
    num_heads=4,
    mlp_dim=2 * WIDTH,
    position_grid=IMAGE // PATCH,
    drop_path_rate=0.0,
    scan_unroll=2,
  )
  model.sam.update(
    patch_size=PATCH,
    width=WIDTH,
    depth=2,
    num_heads=4,
    mlp_dim=2 * WIDTH,
    window_size=4,
    blocks_per_group=2,
    position_grid=IMAGE // PATCH,
    out_channels=64,
    scan_unroll=2,
  )
  model.prompt.embed_dim = 64
  # Smooth positions: both corners of a box together point at its middle.
  model.prompt.frequency_scale = 0.4
  model.extractor.update(
    num_queries=4,
    depth=1,
    width=WIDTH,
    num_heads=4,
    mlp_dim=2 * WIDTH,
    out_dim=WIDTH,
    branch_scale=0.1,
  )
  # From scratch, shapes in boxes come far sooner with it.
  model.region = dict(bins=4, bin_channels=32, mlp_dim=2 * WIDTH, cells=6)
  model.t5.update(
    vocab_size=384,
    emb_dim=WIDTH,
    num_heads=4,
    head_dim=WIDTH // 4,
    mlp_dim=2 * WIDTH,
    num_encoder_layers=1,
    num_decoder_layers=2,
    dropout_rate=0.0,
    scan_unroll=2,
  )
  model.regression.update(hidden_dim=WIDTH, depth=3)
