# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`narrate.py` in small: EVA-02-B/14, SAM ViT-B and Flan-T5 base.

  pixel-llm train --config configs/narrate_base.py --workdir runs/narrate_base

A size of ours, not of the paper, for a few devices. Not run here.
"""

import ml_collections

from configs import narrate
from pixel_llm import config as config_lib
from pixel_llm.model import eva, sam, t5


def get_config() -> ml_collections.ConfigDict:
  config = narrate.get_config()
  model = config.model
  language = config_lib.to_dict(t5.SIZES['base'])
  language['lora'] = model.t5.lora.to_dict()
  with config.unlocked():
    model.eva = config_lib.to_dict(eva.SIZES['base'])
    model.sam = config_lib.to_dict(sam.SIZES['base'])
    model.t5 = language
  return config
