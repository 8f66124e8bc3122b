# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import pathlib
import shutil

import numpy as np
import pytest

from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection, safetensors
from pixel_llm.checkpoints.tensors import TensorFileError

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
X = {'x': tensors_lib.of_array(np.ones(2, np.float32))}


def test_files_by_their_endings(tmp_path, t5x_tiny):
  safetensors.write(tmp_path / 'x.safetensors', X)
  np.savez(tmp_path / 'x.npz', x=np.ones(2))
  index = tmp_path / 'x.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'x': 'x.safetensors'}}))
  shutil.copy(GOLDEN / 'torch_state.pth', tmp_path / 'x.pth')
  for name, expected in (
    ('x.safetensors', 'safetensors'),
    ('x.npz', 'npz'),
    ('x.safetensors.index.json', 'safetensors, sharded'),
    ('x.pth', 'PyTorch'),
  ):
    words, tensors = detection.open_tensors(tmp_path / name)
    assert words == expected and tensors


def test_folders_by_what_they_hold(tmp_path, t5x_tiny):
  for folder, expected in (
    ('legacy', 'T5X'),
    ('legacy/checkpoint_600', 'T5X'),
    ('orbax', 'Orbax'),
    ('orbax/checkpoint_600', 'Orbax'),
    ('orbax/checkpoint_600/state', 'Orbax'),
  ):
    words, tensors = detection.open_tensors(t5x_tiny / folder)
    assert words == expected
    assert 'target/encoder/encoder_norm/scale' in tensors
  run = tmp_path / 'run'
  shutil.copytree(t5x_tiny / 'orbax', run / 'checkpoints')
  assert detection.open_tensors(run)[0] == 'Orbax'
  hugging_face = tmp_path / 'hf'
  hugging_face.mkdir()
  (hugging_face / 'config.json').write_text('{}')
  safetensors.write(hugging_face / 'model.safetensors', X)
  assert detection.open_tensors(str(hugging_face))[0] == 'safetensors'
  (hugging_face / 'model.safetensors').rename(hugging_face / 'a.safetensors')
  assert detection.open_tensors(hugging_face)[1].keys() == {'x'}
  safetensors.write(hugging_face / 'b.safetensors', X)
  with pytest.raises(TensorFileError, match=r'of a\.safetensors, b\.safe'):
    detection.open_tensors(hugging_face)


def test_what_is_none_is_named(tmp_path):
  with pytest.raises(FileNotFoundError):
    detection.open_tensors(tmp_path / 'nothing')
  with pytest.raises(TensorFileError, match='a folder of nothing'):
    detection.open_tensors(tmp_path)
  (tmp_path / 'x.txt').write_text('x')
  with pytest.raises(TensorFileError, match=r"a file '\.txt'"):
    detection.open_tensors(tmp_path / 'x.txt')
