# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test, and files that several rooms' tests need.

There are 8 devices, and no silent broadcasting.
"""

import os
import pathlib
import zipfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compiling is most of the suite's time; the numbers are the same.
jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture
def t5x_tiny(tmp_path):
  """T5X's checkpoints of the tiny T5: folders legacy, legacy_bf16, orbax."""
  # Zipped, since they are hundreds of files, some of them hidden.
  golden = pathlib.Path(__file__).parent / 'golden'
  with zipfile.ZipFile(golden / 't5x_tiny_checkpoints.zip') as archive:
    archive.extractall(tmp_path / 't5x_tiny')
  return tmp_path / 't5x_tiny'
