# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import pathlib
import zipfile

import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.fixture
def t5x_tiny(tmp_path):
  """T5X's checkpoints of the tiny T5: folders legacy, legacy_bf16, orbax."""
  # Zipped, since they are hundreds of files, some of them hidden.
  with zipfile.ZipFile(GOLDEN / 't5x_tiny_checkpoints.zip') as archive:
    archive.extractall(tmp_path / 't5x_tiny')
  return tmp_path / 't5x_tiny'
