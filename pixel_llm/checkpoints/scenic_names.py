# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The names that the published research code has for the whole network.

Blocks of all encoders are numbered through there, and the T5 is T5X's under
`textual/t5_module`. What cannot be a rule, as it is no mere change of place, is
done before (`to_ours`).

Source: scenic, `projects/pixel_llm`, at commit 4a38d475ee89.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from pixel_llm.checkpoints import mapping, t5_names, tensors
from pixel_llm.checkpoints.mapping import Ignored, Rule, Table
from pixel_llm.checkpoints.transforms import (
  JoinAxes,
  Split,
  SplitAxis,
  Stack,
  Transform,
)

_ATTENTION = (
  ('q_proj', 'query'),
  ('k_proj', 'key'),
  ('v_proj', 'value'),
  ('out_proj', 'out'),
)
_ADAPTER = 'prompt_adapter'


def to_ours(
  flat: Mapping[str, np.ndarray], global_blocks: Sequence[int] = ()
) -> dict[str, np.ndarray]:
  """Parameters by our names.

  Args:
    flat: by the research code's names, joined by `/`; all of a network, or all
      of some of its parts. Without the prompt encoder, which is never trained,
      they may be gradients, of which none is folded.
    global_blocks: of SAM, those without windows: the last of each group.

  Returns: by our names, joined by `/`.

  Raises:
    MappingError: names that no rule takes, or parameters that none gives.
  """
  flat = {
    name.removeprefix('textual/t5_module/'): np.asarray(x)
    for name, x in flat.items()
  }
  _change(flat)
  parts = table(flat, global_blocks)
  given, report = mapping.apply(
    parts, {name: tensors.of_array(x) for name, x in flat.items()}
  )
  if report:
    raise mapping.MappingError(str(report))
  return {name: x.read() for name, x in given.items()}


def _change(flat: dict[str, np.ndarray]) -> None:
  """Makes of theirs, in place, what differs from ours by more than its place.

  Reference: SAM's "no mask" embedding is added to every cell of the image; a
  bias of ours has it. Two of four outputs a point are logits that nothing
  reads. A box's score is two logits, of which the difference matters. Flax
  turns the kernels of transposed convolutions round.
  """
  projection = f'{_ADAPTER}/prompt_embedding_projection_mlp/layers.0'
  no_mask = flat.get('prompt_encoder/no_mask_embed.weight')
  if no_mask is not None and f'{projection}/kernel' in flat:
    constant = no_mask[0] @ flat[f'{projection}/kernel']
    name = f'{_ADAPTER}/image_projection_mlp/layers.0/bias'
    flat[name] = flat[name] + constant + flat[f'{projection}/bias']
  head = 'point_predictor/mlp/layers'
  last = max((int(n) for n in _found(flat, rf'{head}\.(\d+)/')), default=None)
  for leaf in ('kernel', 'bias'):
    if last is not None:
      x = flat.pop(f'{head}.{last}/{leaf}')
      x = x.reshape(*x.shape[:-1], -1, 4)[..., :2]
      flat[f'{head}.last/{leaf}'] = x.reshape(*x.shape[:-2], -1)
    name = f'box_decoder/roi_heads/box_head.0/cls_score/{leaf}'
    if name in flat:
      flat[name] = np.diff(flat[name], axis=-1)
  name = 'box_decoder/fpn/simfp_3.0/kernel'
  if name in flat:
    x = flat[name][::-1, ::-1].transpose(2, 0, 1, 3)
    flat[name] = x.reshape(len(x), 4, -1)
  for name in _found(flat, r'(mask_decoder/output_upscaling/[03]/kernel)'):
    x = flat[name].transpose(3, 0, 1, 2)
    flat[name] = x.reshape(len(x), 4, -1)
  for name in _found(flat, r'(box_decoder/fpn/simfp_\d.[01]/kernel)'):
    if flat[name].ndim == 4 and flat[name].shape[:2] == (1, 1):
      flat[name] = flat[name][0, 0]


def _found(flat: Mapping[str, np.ndarray], pattern: str) -> set[str]:
  found = (re.match(pattern, name) for name in flat)
  return {match[1] for match in found if match}


def table(
  flat: Mapping[str, np.ndarray], global_blocks: Sequence[int]
) -> Table:
  """The rules for the parts that are there; see `to_ours`."""
  roots = _found(flat, '([^/]+)/')
  parts = {
    'git_backbone': _eva,
    'sam_backbone': lambda: _sam(flat, tuple(global_blocks)),
    'prompt_encoder': lambda: _prompt('mask_decoder' in roots),
    _ADAPTER: lambda: _extractor(flat),
    'visual_project_layers': lambda: [
      _dense('visual_project_layers/visual_projection.0', 'projection/dense'),
      _dense('visual_project_layers/visual_projection.1', 'projection/norm'),
    ],
    'point_predictor': lambda: [
      _dense('point_predictor/LayerNorm_0', 'regression/norm'),
      _dense('point_predictor/mlp/layers.last', 'regression/out'),
      _dense(
        r'point_predictor/mlp/layers.{i:\d+}', r'regression/dense_{i:\d+}'
      ),
    ],
    'mask_decoder': lambda: _mask_decoder(flat),
    'mask_adapter': lambda: _mask_adapter(flat),
    'box_decoder': _detector,
    'decoder': _t5,
  }
  rules: list[Rule | Ignored] = []
  for root, make in parts.items():
    if root in roots:
      rules += make()
  return tuple(rules)


def _dense(theirs: str, ours: str, *cut: Transform) -> Rule:
  leaf = '{leaf:kernel|bias|scale}'
  return Rule(f'{theirs}/{leaf}', f'{ours}/{leaf}', cut)


def _patches(theirs: str, ours: str) -> list[Rule]:
  return [
    Rule(
      f'{theirs}/patch_embed.proj/kernel',
      f'{ours}/patch_embed/kernel',
      (JoinAxes(0, (-1, -1, -1)),),
    ),
    Rule(f'{theirs}/patch_embed.proj/bias', f'{ours}/patch_embed/bias'),
  ]


def _eva() -> list[Rule]:
  block, stack = r'git_backbone/blocks.{layer:\d+}', Stack('layer')
  rest = r'{rest:norm[12]/.*|mlp/.*}'
  rules = [
    Rule(
      'git_backbone/cls_token', 'eva/class_token', (JoinAxes(0, (1, 1, -1)),)
    ),
    Rule('git_backbone/pos_embed', 'eva/positions', (JoinAxes(0, (1, -1)),)),
    _dense('git_backbone/ln_post', 'eva/ln_post'),
    *_patches('git_backbone', 'eva'),
    Rule(f'{block}/{rest}', f'eva/blocks/{rest}', (stack,)),
    _dense(f'{block}/attn/proj', 'eva/blocks/attention/out', stack),
  ]
  for a, b in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    ours = f'eva/blocks/attention/{b}'
    rules.append(_dense(f'{block}/attn/{a}_proj', ours, stack))
    rules.append(Rule(f'{block}/attn/{a}_bias', f'{ours}/bias', (stack,)))
  return rules


def _sam(
  flat: Mapping[str, np.ndarray], global_blocks: tuple[int, ...]
) -> list[Rule]:
  depth = len(_found(flat, r'sam_backbone/blocks\.(\d+)/'))
  windowed = tuple(i for i in range(depth) if i not in global_blocks)
  group = depth // max(len(global_blocks), 1)
  rules = [
    *_patches('sam_backbone', 'sam'),
    Rule(
      'sam_backbone/pos_embed', 'sam/positions', (JoinAxes(0, (1, -1, -1)),)
    ),
    Rule(
      'sam_backbone/neck/0/kernel',
      'sam/neck/conv1/kernel',
      (JoinAxes(0, (1, 1, -1)),),
    ),
    _dense('sam_backbone/neck/1', 'sam/neck/norm1'),
    _dense('sam_backbone/neck/2', 'sam/neck/conv2'),
    _dense('sam_backbone/neck/3', 'sam/neck/norm2'),
  ]
  for kind, layers, cut in (
    ('window_blocks', windowed, (SplitAxis(0, (-1, group - 1)),)),
    ('global_block', global_blocks, ()),
  ):
    block = f'sam_backbone/blocks.{{layer:{"|".join(map(str, layers))}}}'
    ours, stack = f'sam/groups/{kind}', Stack('layer', layers)
    part = 'attention/{part:query|key|value}'
    rest, tables = r'{rest:norm[12]/.*|mlp/.*}', r'{table:rel_pos_[hw]}'
    rules += [
      Rule(f'{block}/{rest}', f'{ours}/{rest}', (stack, *cut)),
      Rule(
        f'{block}/attn/{tables}', f'{ours}/attention/{tables}', (stack, *cut)
      ),
      _dense(f'{block}/attn/proj', f'{ours}/attention/out', stack, *cut),
      *(
        Rule(
          f'{block}/attn/qkv/{leaf}',
          f'{ours}/{part}/{leaf}',
          (stack, Split('part', ('query', 'key', 'value'), axis), *cut),
        )
        for leaf, axis in (('kernel', 2), ('bias', 1))
      ),
    ]
  return rules


def _prompt(has_masks: bool) -> list[Rule | Ignored]:
  no_mask = 'prompt_encoder/no_mask_embed.weight'
  return [
    Rule(
      'prompt_encoder/pe_layer/positional_encoding_gaussian_matrix',
      'prompt_encoder/frequencies',
    ),
    Rule(
      r'prompt_encoder/point_embeddings.{kind:\d+}.weight',
      'prompt_encoder/point_embeddings',
      (Stack('kind'), JoinAxes(0, (4, 1))),
    ),
    Rule(
      'prompt_encoder/not_a_point_embed.weight',
      'prompt_encoder/not_a_point',
      (JoinAxes(0, (1, -1)),),
    ),
    Rule(no_mask, 'mask_decoder/no_mask')
    if has_masks
    else Ignored(re.escape(no_mask)),
    Ignored(r'prompt_encoder/mask_downscaling/.*'),
  ]


def _extractor(flat: Mapping[str, np.ndarray]) -> list[Rule | Ignored]:
  return [
    Rule(f'{_ADAPTER}/output_tokens.weight', 'extractor/queries'),
    _dense(
      _ADAPTER + r'/output_hypernetworks_mlps.{query:\d+}/layers.0',
      'extractor/heads',
      Stack('query'),
    ),
    *(
      _dense(f'{_ADAPTER}/{a}_projection_mlp/layers.0', f'extractor/{b}')
      for a, b in (
        ('prompt_embedding', 'prompt_projection'),
        ('image_pe', 'position_projection'),
        ('image', 'image_projection'),
      )
    ),
    *_two_way(flat, _ADAPTER, 'extractor'),
    # Computed there, used by nothing.
    Ignored(f'{_ADAPTER}/dense_output_mlp/.*'),
  ]


def _two_way(
  flat: Mapping[str, np.ndarray], theirs: str, ours: str
) -> list[Rule]:
  """SAM's two-way transformer."""
  theirs = f'{theirs}/transformer'
  depth = len(_found(flat, rf'{theirs}/layers\.(\d+)/'))
  later = tuple(range(1, depth))
  rules = [
    _dense(f'{theirs}/norm_final_attn', f'{ours}/final_norm'),
    *(
      _dense(
        f'{theirs}/final_attn_token_to_image/{a}', f'{ours}/final_attention/{b}'
      )
      for a, b in _ATTENTION
    ),
  ]
  blocks: list[tuple[str, str, tuple[Transform, ...]]] = [
    (f'{theirs}/layers.0', f'{ours}/first_layer', ())
  ]
  if later:
    numbers = '|'.join(map(str, later))
    blocks.append(
      (
        f'{theirs}/layers.{{layer:{numbers}}}',
        f'{ours}/layers',
        (Stack('layer', later),),
      )
    )
  for block, here, cut in blocks:
    rules += [
      *(
        _dense(f'{block}/norm{i}', f'{here}/norm{i}', *cut) for i in range(1, 5)
      ),
      _dense(f'{block}/mlp/lin1', f'{here}/mlp_in', *cut),
      _dense(f'{block}/mlp/lin2', f'{here}/mlp_out', *cut),
      *(
        _dense(f'{block}/{c}/{a}', f'{here}/{d}/{b}', *cut)
        for a, b in _ATTENTION
        for c, d in (
          ('self_attn', 'self_attention'),
          ('cross_attn_token_to_image', 'token_to_image'),
          ('cross_attn_image_to_token', 'image_to_token'),
        )
      ),
    ]
  return rules


def _mask_decoder(flat: Mapping[str, np.ndarray]) -> list[Rule | Ignored]:
  return [
    Rule('mask_decoder/iou_token.weight', 'mask_decoder/iou_token'),
    Rule('mask_decoder/mask_tokens.weight', 'mask_decoder/mask_tokens'),
    *_two_way(flat, 'mask_decoder', 'mask_decoder'),
    *(
      _dense(
        rf'mask_decoder/output_hypernetworks_mlps.{{mask:\d+}}/layers.{i}',
        f'mask_decoder/stroke_{i}',
        Stack('mask'),
      )
      for i in range(3)
    ),
    *(
      _dense(f'mask_decoder/output_upscaling/{i}', f'mask_decoder/{ours}')
      for i, ours in ((0, 'upscale_0'), (1, 'upscale_norm'), (3, 'upscale_1'))
    ),
    _dense(
      r'mask_decoder/iou_prediction_head/layers.{i:\d}',
      r'mask_decoder/iou_{i:\d}',
    ),
  ]


def _mask_adapter(flat: Mapping[str, np.ndarray]) -> list[Rule | Ignored]:
  return [
    Rule('mask_adapter/output_tokens.weight', 'mask_adapter/queries'),
    Rule('mask_adapter/alpha_output.weight', 'mask_adapter/gate'),
    *_two_way(flat, 'mask_adapter', 'mask_adapter'),
    *(
      _dense(
        f'mask_adapter/{a}_projection_mlp/{c}',
        f'mask_adapter/{b}_projection{d}',
      )
      for a, b in (('visual', 'visual'), ('textual', 'word'))
      for c, d in (('layers.0', ''), ('LayerNorm_0', '_norm'))
    ),
  ]


def _detector() -> list[Rule | Ignored]:
  fpn, head = 'box_decoder/fpn', 'box_decoder/proposal_generator'
  boxes = 'box_decoder/roi_heads/box_head.0'
  rules: list[Rule | Ignored] = [
    _dense(f'{fpn}/simfp_3.0', 'detector/pyramid/upscale'),
    _dense(f'{fpn}/top_block/p6', 'detector/pyramid/level_3_out'),
    _dense(f'{fpn}/top_block/p7', 'detector/pyramid/level_4_out'),
    _dense(f'{head}/agn_hm', 'detector/proposal_head/center'),
    _dense(f'{head}/bbox_pred', 'detector/proposal_head/sides'),
    Rule(
      rf'{head}/scales.{{level:\d}}/scale',
      'detector/proposal_head/factors',
      (Stack('level'), JoinAxes(0, (-1, 1))),
    ),
    _dense(f'{boxes}/fc1', 'detector/box_head/mlp_0'),
    _dense(f'{boxes}/fc2', 'detector/box_head/mlp_1'),
    _dense(f'{boxes}/cls_score', 'detector/box_head/thing'),
    _dense(f'{boxes}/bbox_pred', 'detector/box_head/moves'),
  ]
  for level, stage, first in ((0, 3, 1), (1, 4, 0), (2, 5, 1)):
    for ours, i in (('in', first), ('out', first + 1)):
      name = f'detector/pyramid/level_{level}_{ours}'
      rules.append(_dense(f'{fpn}/simfp_{stage}.{i}', name))
      rules.append(_dense(f'{fpn}/simfp_{stage}.{i}.norm', f'{name}_norm'))
  # Convolutions and norms take turns there.
  for i in range(8):
    name = f'detector/proposal_head/tower_{i}'
    rules.append(_dense(f'{head}/bbox_tower/{3 * i}', name))
    rules.append(_dense(f'{head}/bbox_tower/{3 * i + 1}', f'{name}_norm'))
  return rules


def _t5() -> list[Rule | Ignored]:
  layer = r'{stack:encoder|decoder}/layers_{layer:\d+}/{rest:.*attention/\w+}'
  return [
    *(
      Rule(
        f'{layer}/kernel_{a}_lora',
        f't5/{{stack}}/layers/{{rest}}/lora_{b}',
        (Stack('layer'),),
      )
      for a, b in (('left', 'a'), ('right', 'b'))
    ),
    *t5_names.T5X,
  ]
