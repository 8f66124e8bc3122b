# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Files that several tests of training need."""

import processes
import pytest

from pixel_llm.train import experiment


@pytest.fixture
def config_file(tmp_path):
  return processes.write_config(
    tmp_path / 'c.py', experiment.ExperimentConfig()
  )
