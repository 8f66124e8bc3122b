# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's dense object captioning on Visual Genome.

  pixel-llm train --config configs/dense_caption.py --workdir runs/dense_caption

Published for it: mAP 17.5; of captions at true boxes, which is what evaluation
here asks for, METEOR 20.1 and CIDEr 149.0 on Visual Genome, 15.3 and 92.0 on
RefCOCOg. It goes on from `narrate.py`'s run. Not run here.

Source: scenic pixel_llm, `configs/t5/pixel_llm_t5_densecap.py`.
Reference: nothing here asks for points, so their head is frozen instead of left
out.
"""

import ml_collections

from configs import narrate

# Of up to 100 boxes that the detector learns from, 32 are captioned.
SHAPE = dict(regions=32, context=8, length=40)


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  config = narrate.get_config(size)
  with config.unlocked():
    config.model.detector = dict(dtype='bfloat16')  # else as published
    config.init = dict(
      sources=dict(narrate=dict(path='runs/narrate')),
      allow_missing=('^detector/',),
    )
    config.data.records = dict(
      visual_genome='records/densecap', refcocog='records/refcocog'
    )
    regions = dict(mixture='vg_dense_caption', batch=64, objects=100, **SHAPE)
    config.data.streams = dict(regions=regions)
    for task in ('vg_caption_at', 'refcocog_caption_at'):
      config.eval.tasks[task] = dict(batch=32, **SHAPE)
    del config.eval.tasks.coco_narrate
    config.eval.decoding.beams = 1
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = {}  # of EVA, as published
    config.optimizer.freeze += ('^regression/',)
    config.loop.steps = 40_000
  return config
