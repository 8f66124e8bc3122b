# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""All of the paper's capabilities, and LLaVA's instructions, in one model.

  pixel-llm train --config configs/joint.py --workdir runs/joint

We know of no published score. It starts as `narrate.py`. Not run here.

Source: scenic pixel_llm, `configs/t5/pixel_llm_t5_trace_ref_densecap_llava.py`.
Reference: there all have 16 regions of 160 text tokens. Here a stream a kind of
text, at the published rates: as many answers with 55 % of the language model's
tokens, for five compiled steps instead of one.
"""

import ml_collections

from configs import narrate

RECORDS = ['flickr30k_expressions', 'mixed_coco_expressions', 'llava']
RECORDS += [*narrate.RECORDS, 'mixed_vg_expressions', 'refcoco']
REFER = dict(flickr30k_refer=1.0, mixed_coco_refer=5.0, mixed_vg_refer=1.0)
FIELDS = ('mixture', 'rate', 'regions', 'context', 'length', 'objects')
STREAMS = dict(
  captions=('coco_caption', 3.0, 5, 32, 64, 0),  # COCO has five an image
  narratives=('coco_narrate', 1.0, 1, 32, 128, 0),
  expressions=('joint_refer', 7.0, 16, 32, 40, 0),
  regions=('vg_dense_caption', 5.0, 16, 8, 40, 100),
  instructions=('llava_instruct', 5.0, 16, 32, 128, 0),
)


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  config = narrate.get_config(size)
  with config.unlocked():
    config.model.detector = dict(detections=32, dtype='bfloat16')
    config.init.allow_missing += ('^detector/',)
    config.data.records = {name: f'records/{name}' for name in RECORDS}
    config.data.records.visual_genome = 'records/densecap'
    config.data.mixtures = dict(joint_refer=REFER)
    for name, values in STREAMS.items():
      config.data.streams[name] = dict(zip(FIELDS, values), batch=128)
    tasks = ('coco_caption', 'coco_narrate', 'refcoco_refer', 'vg_caption_at')
    for task, values in zip(tasks, STREAMS.values()):
      shape = dict(zip(FIELDS[2:5], values[2:5]))
      config.eval.tasks[task] = dict(batch=32, **shape)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.05)
    config.optimizer.layer_decay = {}  # of EVA, as published
    config.optimizer.warmup_steps = 2000
    config.loop.steps = 240_000
  return config
