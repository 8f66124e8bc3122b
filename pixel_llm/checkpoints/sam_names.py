# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The names that segment-anything and Hugging Face have for SAM.

Of SAM we have the image encoder, the mask decoder and, of the prompt encoder,
what embeds boxes and points; what embeds masks is left out. In our tree the
blocks are stacked by groups, [groups, blocks a group - 1] of windowed ones and
[groups] of global ones; theirs are numbered through, and have query, key and
value in one matrix. Matrices are stored [out, in] there, convolutions
[out, in, height, width] and transposed ones [in, out, height, width].

The "no mask" embedding is a parameter of their prompt encoder, and of our mask
decoder. The mask adapter is no part of SAM.

Tables of positions stay as they are: the network resizes them to the grid of
the image when it runs.

Source: segment-anything, `modeling/image_encoder.py`, `prompt_encoder.py`,
`mask_decoder.py` and `transformer.py`; Hugging Face transformers,
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
MASK_PREFIX = 'mask_decoder/'

_LEAVES = (('weight', 'scale'), ('bias', 'bias'))
_PROJECTIONS = ('query', 'key', 'value')
# Of a layer of the two-way transformer.
_ATTENTIONS = (
  ('self_attn', 'self_attention'),
  ('cross_attn_token_to_image', 'token_to_image'),
  ('cross_attn_image_to_token', 'image_to_token'),
)


def segment_anything(
  depth: int,
  blocks_per_group: int,
  patch_size: int,
  position_grid: int,
  mask_depth: int | None = None,
) -> Table:
  """The table of segment-anything's `.pth`.

  Args:
    depth: blocks.
    blocks_per_group: blocks up to and with a global one.
    patch_size: side of a patch, pixels.
    position_grid: side of the position table, patches.
    mask_depth: layers of the mask decoder's transformer; None leaves the
      decoder out.
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
    *_masks(
      mask_depth,
      'norm',
      ('output_upscaling.0', 'output_upscaling.1', 'output_upscaling.3'),
      ('layers.0', 'layers.1', 'layers.2'),
    ),
    Ignored(r'prompt_encoder\.mask_downscaling\..*'),
    # Buffers that some files keep; our configuration has them.
    Ignored(r'pixel_(mean|std)'),
  )


def hugging_face(
  depth: int,
  blocks_per_group: int,
  patch_size: int,
  position_grid: int,
  mask_depth: int | None = None,
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
    *_masks(
      mask_depth,
      'layer_norm',
      ('upscale_conv1', 'upscale_layer_norm', 'upscale_conv2'),
      ('proj_in', 'layers.0', 'proj_out'),
    ),
    Ignored(r'prompt_encoder\.mask_embed\..*'),
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
    *_norm(norm1, 'sam/neck/norm1'),
    *_norm(norm2, 'sam/neck/norm2'),
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


def _masks(
  depth: int | None, norm: str, upscaling: Sequence[str], mlp: Sequence[str]
) -> list[Rule | Ignored]:
  """The mask decoder.

  Args:
    depth: of its transformer; None leaves all of it out.
    norm: what names of the transformer's norms begin with.
    upscaling: its convolution, norm and convolution.
    mlp: the three layers of an MLP.
  """
  if depth is None:
    return [Ignored(r'(mask_decoder|prompt_encoder\.no_mask_embed)\..*')]
  decoder = 'mask_decoder'
  first, upscale_norm, second = upscaling
  return [
    Rule('prompt_encoder.no_mask_embed.weight', f'{decoder}/no_mask'),
    Rule(f'{decoder}.iou_token.weight', f'{decoder}/iou_token'),
    Rule(f'{decoder}.mask_tokens.weight', f'{decoder}/mask_tokens'),
    *_two_way(depth, f'{decoder}.transformer', decoder, norm),
    *_upscale(f'{decoder}.{first}', f'{decoder}/upscale_0'),
    *_norm(f'{decoder}.{upscale_norm}', f'{decoder}/upscale_norm'),
    *_upscale(f'{decoder}.{second}', f'{decoder}/upscale_1'),
    *(
      rule
      for i, layer in enumerate(mlp)
      for rule in (
        *_dense(
          rf'{decoder}.output_hypernetworks_mlps.{{mask:\d+}}.{layer}',
          f'{decoder}/stroke_{i}',
          Stack('mask'),
        ),
        *_dense(f'{decoder}.iou_prediction_head.{layer}', f'{decoder}/iou_{i}'),
      )
    ),
  ]


def _two_way(depth: int, theirs: str, ours: str, norm: str) -> list[Rule]:
  """The two-way transformer, whose first layer stands apart in our tree."""
  rules = [
    *_attention(
      f'{theirs}.final_attn_token_to_image', f'{ours}/final_attention'
    ),
    *_norm(f'{theirs}.{norm}_final_attn', f'{ours}/final_norm'),
    *_two_way_layer(f'{theirs}.layers.0', f'{ours}/first_layer', norm),
  ]
  if later := tuple(range(1, depth)):
    layer = f'{{layer:{"|".join(map(str, later))}}}'
    rules += _two_way_layer(
      f'{theirs}.layers.{layer}', f'{ours}/layers', norm, Stack('layer', later)
    )
  return rules


def _two_way_layer(
  theirs: str, ours: str, norm: str, *stack: Stack
) -> list[Rule]:
  return [
    *(
      rule
      for a, b in _ATTENTIONS
      for rule in _attention(f'{theirs}.{a}', f'{ours}/{b}', *stack)
    ),
    *_dense(f'{theirs}.mlp.lin1', f'{ours}/mlp_in', *stack),
    *_dense(f'{theirs}.mlp.lin2', f'{ours}/mlp_out', *stack),
    *_norm(f'{theirs}.{norm}{{i:[1-4]}}', f'{ours}/norm{{i}}', *stack),
  ]


def _attention(theirs: str, ours: str, *stack: Stack) -> list[Rule]:
  return [
    rule
    for a, b in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('out', 'out'))
    for rule in _dense(f'{theirs}.{a}_proj', f'{ours}/{b}', *stack)
  ]


def _dense(theirs: str, ours: str, *stack: Stack) -> list[Rule]:
  axes = (0, 2, 1) if stack else (1, 0)
  return [
    Rule(f'{theirs}.weight', f'{ours}/kernel', (*stack, Transpose(axes))),
    Rule(f'{theirs}.bias', f'{ours}/bias', stack),
  ]


def _norm(theirs: str, ours: str, *stack: Stack) -> list[Rule]:
  return [Rule(f'{theirs}.{a}', f'{ours}/{b}', stack) for a, b in _LEAVES]


def _upscale(theirs: str, ours: str) -> list[Rule]:
  """A transposed convolution, [in, out, 2, 2] -> [in, 4, out]."""
  return [
    Rule(
      f'{theirs}.weight',
      f'{ours}/kernel',
      (JoinAxes(2, (2, 2)), Transpose((0, 2, 1))),
    ),
    Rule(f'{theirs}.bias', f'{ours}/bias'),
  ]
