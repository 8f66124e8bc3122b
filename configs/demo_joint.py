# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""All capabilities at laptop size, on narrated scenes (`make demo-joint`).

Narratives, captions of boxes and whole images, dense captions, and expressions
with boxes, masks, and whether they mean anything in the image at all.
"""

import ml_collections

from configs import demo

ROOT = 'runs/demo_joint'
PATCH, IMAGE, WIDTH = 8, 96, 64
MASK = 4 * IMAGE // PATCH  # as fine as the mask decoder draws


def get_config() -> ml_collections.ConfigDict:
  config = demo.get_config()
  with config.unlocked():
    _model(config.model)
    data = config.data
    data.records = {
      'scenes_narratives': f'{ROOT}/records/narratives',
      'scenes_regions': f'{ROOT}/records/regions',
      'scenes_expressions': f'{ROOT}/records/expressions',
    }
    data.vocabulary = f'{ROOT}/records/spiece.model'
    data.image = IMAGE
    data.streams = {
      'things': dict(
        mixture='scenes_dense_caption',
        rate=1.0,
        batch=24,
        regions=4,
        context=6,
        length=10,
        objects=6,
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
        mixture='scenes_expressions_segment',
        rate=4.0,
        batch=24,
        regions=6,
        context=16,
        length=16,
        mask=MASK,
      ),
    }
    texts = dict(batch=50, regions=8, context=16, length=16)
    config.eval.tasks = {
      'scenes_narrate': dict(batch=50, regions=2, context=6, length=52),
      'scenes_expressions_refer': texts,
      'scenes_expressions_segment': dict(texts, mask=MASK),
      'scenes_caption_at': texts,
      'scenes_dense_caption': dict(texts, objects=6),
    }
    config.eval.targets = (
      'narrate/point_l1 <= 0.05',
      'refer/p_at_0.5 >= 0.85',
      'refer/not_there_auroc >= 0.9',
      'segment/ciou >= 0.7',
      'dense_caption/map >= 0.35',
      'dense_caption/detection_map >= 0.6',
      'caption_at/cider_d >= 1.5',
    )
    config.loss.focal_weight = 5.0
    config.optimizer.ema = 0.998
    config.loop.steps = 5000
    config.loop.log_every = 100
    config.loop.checkpoint_every = 500
  return config


def _model(model: ml_collections.ConfigDict) -> None:
  side = IMAGE // PATCH
  model.eva.update(position_grid=side)
  model.sam.update(position_grid=side)
  model.mask = dict(
    width=WIDTH,
    depth=2,
    num_heads=4,
    mlp_dim=2 * WIDTH,
    iou_dim=WIDTH,
    adapter=None,
  )
  model.presence = dict(hidden_dim=WIDTH)
  model.detector = dict(
    channels=WIDTH,
    fine_channels=WIDTH,
    tower_layers=1,
    tower_channels=WIDTH,
    groups=8,
    ranges=((0, 10), (8, 20), (16, 40), (32, 80), (64, 50000)),
    radius=1.0,
    candidates=100,
    proposals=32,
    train_candidates=100,
    train_proposals=48,
    samples=32,
    bins=4,
    box_dim=2 * WIDTH,
    detections=12,
  )
