# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's referring segmentation on RefCOCO, RefCOCO+ and RefCOCOg.

  pixel-llm train --config configs/refer_segment.py --workdir runs/refer_segment

Published for it: cIoU of 77.2, 69.2 and 70.1 on the three validation sets. It
goes on from `refer.py`'s run with SAM's mask decoder, and trains the mask
adapter and the regression head alone. Not run here.

Source: scenic pixel_llm, `configs/t5/pixel_llm_t5_refseg.py`.
"""

import ml_collections

from configs import refer

# True masks have the input's size: 64 x 16 of them are 151 MB a batch.
SHAPE = dict(**refer.SHAPE, mask=384)


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  config = refer.get_config(size)
  with config.unlocked():
    # SAM's decoder and the adapter as published.
    config.model.mask = dict(dtype='bfloat16')
    decoder = dict(path='weights/sam', take=('^mask_decoder/',))
    config.init = dict(
      sources=dict(refer=dict(path='runs/refer'), sam=decoder),
      allow_missing=('^mask_adapter/',),
    )
    masks = dict(mixture='refcoco_all_segment', batch=64, **SHAPE)
    config.data.streams = dict(masks=masks)
    config.eval.tasks = {
      f'{name}_segment': dict(batch=32, **SHAPE)
      for name in ('refcoco', 'refcoco_plus', 'refcocog')
    }
    config.optimizer.warmup_steps = 500
    config.optimizer.multipliers = (('^mask_adapter/', 10.0),)
    config.optimizer.freeze = ('^(?!mask_adapter/|regression/)',)
    config.loop.steps = 60_000
  return config
