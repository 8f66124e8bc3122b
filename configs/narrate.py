# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's pre-training on Localized Narratives, at its size.

  pixel-llm train --config configs/narrate.py --workdir runs/narrate

`configs/narrate.py:base` has another T5; encoders are EVA-02-L/14 and SAM ViT-H
with all. Weights are of `pixel-llm import`. We know of no published score of it
alone, and that run began from an unreleased caption model. Not run here.

Source: scenic pixel_llm, `configs/t5/pixel_llm_t5_trace.py`.
Reference: its prompts are cut after 8 tokens, ours fit.
"""

import ml_collections

from configs import default

# As in data/localized_narratives.md; T5's own vocabulary, for all its sizes.
RECORDS = ('coco_narratives', 'coco_captions')
VOCABULARY = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
SHAPE = dict(regions=1, context=20, length=128)
LORA = dict(rank=32, scale=2.0, projections=('query', 'value'))


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  config = default.get_config(size)
  with config.unlocked():
    # The encoders, the extractor and the head have the paper's sizes already.
    config.model.t5.lora = LORA
    default.in_bfloat16(config)
    weights = {part: dict(path=f'weights/{part}') for part in ('eva', 't5')}
    weights['sam'] = dict(path='weights/sam', leave_out=('^mask_decoder/',))
    drawn = ('^(extractor|projection|regression)/', '/lora_')
    config.init = dict(sources=weights, allow_missing=drawn)
    config.data.records = {name: f'records/{name}' for name in RECORDS}
    config.data.vocabulary = VOCABULARY
    narratives = dict(mixture='narrate', batch=256, **SHAPE)
    config.data.streams = dict(narratives=narratives)
    config.eval.tasks = dict(coco_narrate=dict(batch=32, **SHAPE))
    config.eval.decoding.beams = 4
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_steps = 250
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = None
    config.optimizer.freeze = ('^sam/', '^prompt_encoder/', '^t5/(?!.*/lora_)')
    config.mesh.update(fsdp=True, fsdp_frozen=size == 'xxl')
    config.loop.steps = 10_000
  return config
