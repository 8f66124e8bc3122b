# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Reads what T5X and the research code computed, as our parameter tree."""

import pathlib

import numpy as np
from flax import traverse_util

from pixel_llm.model import t5

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'
TINY = t5.T5Config(
  vocab_size=64,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=2,
  dropout_rate=0.1,
)


def load(name):
  """The arrays of a golden file, by name."""
  with np.load(FOLDER / f'{name}.npz') as file:
    return {name: file[name] for name in file.files}


def part(arrays, prefix):
  """Those whose name starts with `prefix`, which is cut off."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def stack(flat):
  """T5X's `encoder/layers_0/...` -> our stacked `encoder/layers/...`."""
  groups = {}
  for name, array in flat.items():
    stack_name, _, rest = name.partition('/layers_')
    if not rest:
      groups[name] = array
      continue
    layer, _, rest = rest.partition('/')
    rest = rest.replace('kernel_left_lora', 'lora_a')
    rest = rest.replace('kernel_right_lora', 'lora_b')
    groups.setdefault(f'{stack_name}/layers/{rest}', {})[int(layer)] = array
  return {
    name: np.stack([value[i] for i in range(len(value))])
    if isinstance(value, dict)
    else value
    for name, value in groups.items()
  }


def variables(flat):
  """The stacked tree under `params`, as `apply` takes it."""
  return {'params': traverse_util.unflatten_dict(stack(flat), sep='/')}
