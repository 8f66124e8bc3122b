# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's referring localization on RefCOCO, RefCOCO+ and RefCOCOg.

  pixel-llm train --config configs/refer.py --workdir runs/refer

Published for it: P@0.5 of 90.3, 83.7 and 84.5 on the three validation sets.
It goes on from `narrate.py`'s run. Not run here.

Source: scenic pixel_llm, `configs/t5/pixel_llm_t5_ref.py`.
Reference: that file mixes UNINEXT's sets, as `joint.py` does; these are the
paper's words. Records leave out the images of every validation and test set:
`pixel-llm build --exclude`, see `data/refcoco.md`.
"""

import ml_collections

from configs import narrate

RECORDS = ('refcoco', 'refcoco+', 'refcocog')
# The expression is both the prompt and the text that is read.
SHAPE = dict(regions=16, context=40, length=40)


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  config = narrate.get_config(size)
  with config.unlocked():
    config.init = dict(sources=dict(narrate=dict(path='runs/narrate')))
    config.data.records = {name: f'records/{name}' for name in RECORDS}
    expressions = dict(mixture='refcoco_all', batch=64, **SHAPE)
    config.data.streams = dict(expressions=expressions)
    config.eval.tasks = {
      f'{name}_refer': dict(batch=32, **SHAPE)
      for name in ('refcoco', 'refcoco_plus', 'refcocog')
    }
    config.eval.decoding.beams = 3
    config.optimizer.warmup_steps = 1000
    config.loop.steps = 120_000
  return config
