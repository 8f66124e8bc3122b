# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The names that segment-anything and Hugging Face have for SAM.

Of SAM we have the image encoder and, of the prompt encoder, what embeds boxes
and points; the rest of a file is left out. In our tree the blocks are stacked
by groups, [groups, blocks a group - 1] of windowed ones and [groups] of global
ones; theirs are numbered through, and have query, key and value in one matrix.
Matrices are stored [out, in] there, and convolutions [out, in, height, width].

Tables of positions stay as they are: the network resizes them to the grid of
the image when it runs.

Source: segment-anything, `modeling/image_encoder.py` and
`modeling/prompt_encoder.py`; Hugging Face transformers,
`models/sam/modeling_sam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pixel_llm.checkpoints.mapping import Ignored, Rule, Table
from pixel_llm.checkpoints.transforms import (
  JoinAxes,
  Split,
  SplitAxis,
  Stack,
  Transform,
  Transpose,
)

# Where the whole network has its parts.
PREFIX, PROMPT_PREFIX = 'sam/', 'prompt_encoder/'

_LEAVES = (('weight', 'scale'), ('bias', 'bias'))
_PROJECTIONS = ('query', 'key', 'value')


def segment_anything(
  depth: int, blocks_per_group: int, patch_size: int, position_grid: int
) -> Table:
  """The table of segment-anything's `.pth`.

  Args:
    depth: blocks.
    blocks_per_group: blocks up to and with a global one.
    patch_size: side of a patch, pixels.
    position_grid: side of the position table, patches.
  """
  encoder, prompt = 'image_encoder.', 'prompt_encoder.'
  return (
    *_ends(
      (patch_size, position_grid),
      f'{encoder}patch_embed.proj',
      f'{encoder}pos_embed',
      [f'{encoder}neck.{i}' for i in range(4)],
    ),
    *_blocks(depth, blocks_per_group, f'{encoder}blocks', 'norm'),
    *_prompt(
      f'{prompt}pe_layer.positional_encoding_gaussian_matrix',
      f'{prompt}point_embeddings',
    ),
    Ignored(r'prompt_encoder\.(mask_downscaling|no_mask_embed)\..*'),
    Ignored(r'mask_decoder\..*'),
    # Buffers that some files keep; our configuration has them.
    Ignored(r'pixel_(mean|std)'),
  )


def hugging_face(
  depth: int, blocks_per_group: int, patch_size: int, position_grid: int
) -> Table:
  """The table of Hugging Face's files; arguments as `segment_anything`."""
  encoder, prompt = 'vision_encoder.', 'prompt_encoder.'
  frequencies = 'shared_image_embedding.positional_embedding'
  return (
    *_ends(
      (patch_size, position_grid),
      f'{encoder}patch_embed.projection',
      f'{encoder}pos_embed',
      [
        f'{encoder}neck.{name}'
        for name in ('conv1', 'layer_norm1', 'conv2', 'layer_norm2')
      ],
    ),
    *_blocks(depth, blocks_per_group, f'{encoder}layers', 'layer_norm'),
    *_prompt(frequencies, f'{prompt}point_embed'),
    # One parameter there; some files repeat it.
    Ignored(
      r'prompt_encoder\.shared_embedding\.positional_embedding',
      same_as=frequencies,
    ),
    Ignored(r'prompt_encoder\.(mask_embed|no_mask_embed)\..*'),
    Ignored(r'mask_decoder\..*'),
  )


def _ends(
  sizes: tuple[int, int], patches: str, positions: str, neck: Sequence[str]
) -> list[Rule]:
  """What is before and after the blocks; of `neck`, its four layers."""
  patch_size, grid = sizes
  conv1, norm1, conv2, norm2 = neck
  return [
    Rule(
      f'{patches}.weight',
      'sam/patch_embed/kernel',
      # As the pixels of a patch lie in memory: row, column, colour.
      (Transpose((2, 3, 1, 0)), JoinAxes(0, (patch_size, patch_size, -1))),
    ),
    Rule(f'{patches}.bias', 'sam/patch_embed/bias'),
    Rule(positions, 'sam/positions', (JoinAxes(0, (1, grid, grid)),)),
    Rule(
      f'{conv1}.weight',
      'sam/neck/conv1/kernel',
      (JoinAxes(1, (-1, 1, 1)), Transpose()),
    ),
    Rule(
      f'{conv2}.weight', 'sam/neck/conv2/kernel', (Transpose((2, 3, 1, 0)),)
    ),
    *(
      Rule(f'{theirs}.{a}', f'sam/neck/{ours}/{b}')
      for theirs, ours in ((norm1, 'norm1'), (norm2, 'norm2'))
      for a, b in _LEAVES
    ),
  ]


def _blocks(
  depth: int, blocks_per_group: int, blocks: str, norm: str
) -> list[Rule]:
  """Those of windowed and of global blocks."""
  last = blocks_per_group - 1
  windowed = tuple(i for i in range(depth) if i % blocks_per_group != last)
  whole = tuple(range(last, depth, blocks_per_group))
  rules = _block(blocks, norm, 'global_block', whole, ())
  if windowed:
    grouped = (SplitAxis(0, (-1, last)),)
    rules += _block(blocks, norm, 'window_blocks', windowed, grouped)
  return rules


def _block(
  blocks: str,
  norm: str,
  kind: str,
  layers: tuple[int, ...],
  grouped: tuple[Transform, ...],
) -> list[Rule]:
  layer = f'{{layer:{"|".join(map(str, layers))}}}'
  stack = Stack('layer', layers)

  def rule(theirs, ours, *transforms):
    return Rule(
      f'{blocks}.{layer}.{theirs}',
      f'sam/groups/{kind}/{ours}',
      (stack, *transforms, *grouped),
    )

  def dense(theirs, ours):
    return [
      rule(f'{theirs}.weight', f'{ours}/kernel', Transpose((0, 2, 1))),
      rule(f'{theirs}.bias', f'{ours}/bias'),
    ]

  # One matrix and one bias of all three, cut when they are stacked.
  cut = Split('part', _PROJECTIONS, 1)
  part = f'attention/{{part:{"|".join(_PROJECTIONS)}}}'
  return [
    rule('attn.qkv.weight', f'{part}/kernel', cut, Transpose((0, 2, 1))),
    rule('attn.qkv.bias', f'{part}/bias', cut),
    *dense('attn.proj', 'attention/out'),
    rule('attn.rel_pos_h', 'attention/rel_pos_h'),
    rule('attn.rel_pos_w', 'attention/rel_pos_w'),
    *dense('mlp.lin1', 'mlp/lin1'),
    *dense('mlp.lin2', 'mlp/lin2'),
    *(
      rule(f'{norm}{i}.{a}', f'norm{i}/{b}') for i in (1, 2) for a, b in _LEAVES
    ),
  ]


def _prompt(frequencies: str, points: str) -> list[Rule]:
  """What embeds boxes and points."""
  return [
    Rule(frequencies, 'prompt_encoder/frequencies'),
    Rule(
      rf'{points}.{{kind:\d+}}.weight',
      'prompt_encoder/point_embeddings',
      (Stack('kind', (0, 1, 2, 3)), JoinAxes(0, (4, 1))),
    ),
    Rule(
      'prompt_encoder.not_a_point_embed.weight',
      'prompt_encoder/not_a_point',
      (JoinAxes(0, (1, -1)),),
    ),
  ]
