# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test, and files that several rooms' tests need.

There are 8 devices, and no silent broadcasting.
"""

import os
import pathlib
import shutil
import tempfile
import zipfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Compiling is most of the suite's time; the numbers are the same. What took
# more than a second is kept for the session, of each worker its own since JAX
# writes such files in place. By the environment, so for subprocesses too.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()

import jax
import pytest

flags = ['--xla_force_host_platform_device_count=8']
if jax.__version_info__ < (0, 11):
  # Halves it again. XLA ends the process at a flag that it does not know, so
  # only where it is known to.
  flags.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *flags])

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_unconfigure():
  shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'])


@pytest.fixture
def t5x_tiny(tmp_path):
  """T5X's checkpoints of the tiny T5: folders legacy, legacy_bf16, orbax."""
  # Zipped, since they are hundreds of files, some of them hidden.
  golden = pathlib.Path(__file__).parent / 'golden'
  with zipfile.ZipFile(golden / 't5x_tiny_checkpoints.zip') as archive:
    archive.extractall(tmp_path / 't5x_tiny')
  return tmp_path / 't5x_tiny'
