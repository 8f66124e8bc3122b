# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Every default, as a locked ConfigDict; experiments change a few leaves."""

import ml_collections

from pixel_llm import config
from pixel_llm.train import experiment


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    config.to_dict(experiment.ExperimentConfig())
  ).lock()
