# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Every default, as a locked ConfigDict; experiments change a few leaves.

Files that are made of it take a size of T5: `--config configs/refer.py:base`.
"""

import ml_collections

from pixel_llm import config as config_lib
from pixel_llm.model import t5
from pixel_llm.train import experiment


def get_config(size: str = 'xl') -> ml_collections.ConfigDict:
  if size not in t5.SIZES:
    raise config_lib.ConfigError(
      f'size {size!r}: expected one of {", ".join(t5.SIZES)}.'
    )
  values = config_lib.to_dict(experiment.ExperimentConfig())
  values['model']['t5'] = config_lib.to_dict(t5.SIZES[size])
  return ml_collections.ConfigDict(values).lock()


def in_bfloat16(config: ml_collections.ConfigDict) -> None:
  """Computes in bfloat16, holds the frozen in it, recomputes blocks."""
  for name in ('eva', 'sam', 'extractor', 't5', 'regression'):
    config.model[name].dtype = 'bfloat16'
  config.model.eva.remat = config.model.t5.remat = 'full'
  config.optimizer.frozen_dtype = 'bfloat16'
