# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A folder that can be asked: a tiny network of random parameters."""

import json

import jax
import numpy as np
import tiny

from pixel_llm import config as config_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import of_array
from pixel_llm.model import decoding

TEXTS = ['a small red ring', 'the large blue star', 'a dog runs'] * 9
IMAGE = 32


def make(folder, config=None, tasks=None):
  """Writes config, vocabulary and parameters; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  config = tiny.full_config() if config is None else config
  vocabulary_lib.train(TEXTS, str(folder / 'spiece.model'), 60)
  _, params = tiny.init(config)
  values = {
    'model': config_lib.to_dict(config),
    'data': {'image': IMAGE, 'points': 2, 'extra_ids': 0},
    'eval': {
      'decoding': config_lib.to_dict(decoding.DecodingConfig(length=6)),
      'tasks': tasks or {},
    },
  }
  (folder / 'config.json').write_text(json.dumps(values))
  safetensors.write(
    folder / 'model.safetensors',
    {
      jax.tree_util.keystr(k, simple=True, separator='/'): of_array(x)
      for k, x in jax.tree.leaves_with_path(params)
    },
    {'format': 'np'},
  )
  return folder


def picture(seed=0, size=(60, 90)):
  """[H, W, 3] uint8 noise."""
  return (
    np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
  )
