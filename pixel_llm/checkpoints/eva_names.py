# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The names that timm and EVA's own code have for EVA-02.

Our tree has the blocks stacked on axis 0. Theirs are numbered, and their
matrices are stored [out, in]. The released tiny and small have query, key and
value in one matrix, gate and value of the SwiGLU in another, and no norm within
the SwiGLU; base and large have them apart, with the norm.

The table of positions stays as it is: the network resizes it to the grid of
the image when it runs. Rotary positions are not read from files: those of
files fine-tuned at 336 and 448 px were squeezed into 16 steps, which only the
network's configuration can say.

Source: timm, `models/eva.py`; EVA, `EVA-02/asuka/modeling_pretrain.py` and
`modeling_finetune.py`.
"""

from __future__ import annotations

from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.mapping import Ignored, Rule, Table
from pixel_llm.checkpoints.tensors import Tensors
from pixel_llm.checkpoints.transforms import (
  JoinAxes,
  Split,
  Stack,
  Transpose,
)

# Where the whole network has the encoder.
PREFIX = 'eva/'

# What EVA's files have their parameters in, the preferred first.
_CONTAINERS = ('model_ema/', 'model/', 'module/', 'state_dict/')
_LEAVES = (('weight', 'scale'), ('bias', 'bias'))


def timm(patch_size: int, mlp_norm: bool, final_norm: bool) -> Table:
  """The table of timm's files.

  The norm of the tokens is `norm` there, or `fc_norm` behind the pooling; an
  export has the latter, as timm's models have by default.

  Args:
    patch_size: side of a patch, pixels.
    mlp_norm: base and large, which have a norm within the SwiGLU.
    final_norm: the network has the norm of the tokens; else the file's is left
      out.
  """
  rules = _projections('q_proj.bias', 'v_proj.bias')
  if not mlp_norm:
    rules = _fused_projections('fc1')
  else:
    rules += [*_dense('mlp.fc1_g', 'mlp/w1'), *_dense('mlp.fc1_x', 'mlp/w2')]
    rules += _norm('mlp.norm', 'mlp/ffn_ln')
  return (
    *_common(patch_size, final_norm, 'fc2'),
    *rules,
    Ignored(r'head\..*'),
  )


def eva(patch_size: int, mlp_norm: bool, final_norm: bool) -> Table:
  """The table of the files of EVA's code; arguments as `timm`."""
  rules = _projections('q_bias', 'v_bias')
  if not mlp_norm:
    rules = _fused_projections('w12')
  else:
    rules += [*_dense('mlp.w1', 'mlp/w1'), *_dense('mlp.w2', 'mlp/w2')]
    rules += _norm('mlp.ffn_ln', 'mlp/ffn_ln')
  return (
    *_common(patch_size, final_norm, 'w3'),
    *rules,
    # Of the pre-training, of a fine-tuned classifier, and constants.
    Ignored(r'mask_token|lm_head\..*|head\..*'),
    Ignored(r'(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)'),
  )


def contained(tensors: Tensors) -> Tensors:
  """The parameters of a file of EVA's code, which may lie in a dict of it."""
  for prefix in _CONTAINERS:
    if inner := tensors_lib.part(tensors, prefix):
      return inner
  return tensors


def _common(
  patch_size: int, final_norm: bool, last: str
) -> list[Rule | Ignored]:
  """What both have alike; `last` is the SwiGLU's second matrix."""
  norms: list[Rule | Ignored] = [Ignored(r'(fc_)?norm\.(weight|bias)')]
  if final_norm:
    norms = [
      Rule(f'{name}.{a}', f'eva/ln_post/{b}')
      for name in ('fc_norm', 'norm')
      for a, b in _LEAVES
    ]
  return [
    Rule(
      'patch_embed.proj.weight',
      'eva/patch_embed/kernel',
      # As the pixels of a patch lie in memory: row, column, colour.
      (Transpose((2, 3, 1, 0)), JoinAxes(0, (patch_size, patch_size, -1))),
    ),
    Rule('patch_embed.proj.bias', 'eva/patch_embed/bias'),
    Rule('cls_token', 'eva/class_token', (JoinAxes(0, (1, 1, -1)),)),
    Rule('pos_embed', 'eva/positions', (JoinAxes(0, (1, -1)),)),
    *norms,
    *_norm('norm1', 'norm1'),
    *_norm('norm2', 'norm2'),
    *_dense('attn.proj', 'attention/out'),
    *_dense(f'mlp.{last}', 'mlp/w3'),
  ]


def _projections(query_bias: str, value_bias: str) -> list[Rule]:
  """Query, key and value of a matrix each; keys have no bias."""
  return [
    *(
      _block(f'attn.{a}_proj.weight', f'attention/{b}/kernel', matrix=True)
      for a, b in (('q', 'query'), ('k', 'key'), ('v', 'value'))
    ),
    _block(f'attn.{query_bias}', 'attention/query/bias'),
    _block(f'attn.{value_bias}', 'attention/value/bias'),
  ]


def _fused_projections(gated: str) -> list[Rule]:
  """Query, key and value of one matrix; the SwiGLU's gate and value too."""
  qkv = Split('part', ('query', 'key', 'value'), 1)
  gate = Split('part', ('w1', 'w2'), 1)
  return [
    _block(
      'attn.qkv.weight',
      'attention/{part:query|key|value}/kernel',
      qkv,
      matrix=True,
    ),
    _block('attn.q_bias', 'attention/query/bias'),
    _block('attn.v_bias', 'attention/value/bias'),
    _block(f'mlp.{gated}.weight', 'mlp/{part:w1|w2}/kernel', gate, matrix=True),
    _block(f'mlp.{gated}.bias', 'mlp/{part:w1|w2}/bias', gate),
  ]


def _block(theirs: str, ours: str, *cut: Split, matrix: bool = False) -> Rule:
  """A parameter of every block; of a matrix, the last axes are swapped."""
  swapped = (Transpose((0, 2, 1)),) if matrix else ()
  return Rule(
    rf'blocks.{{layer:\d+}}.{theirs}',
    f'eva/blocks/{ours}',
    (Stack('layer'), *cut, *swapped),
  )


def _dense(theirs: str, ours: str) -> list[Rule]:
  return [
    _block(f'{theirs}.weight', f'{ours}/kernel', matrix=True),
    _block(f'{theirs}.bias', f'{ours}/bias'),
  ]


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [_block(f'{theirs}.{a}', f'{ours}/{b}') for a, b in _LEAVES]
