# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The names that T5X and Hugging Face have for T5 1.1 and Flan-T5.

Our tree is T5X's with the layers of a stack stacked on axis 0. Hugging Face
numbers the parts of a layer and stores matrices [out, in].

Source: T5X, `t5x/examples/t5/network.py`; Hugging Face transformers,
`models/t5/modeling_t5.py`.
"""

from __future__ import annotations

from typing import Any

from pixel_llm.checkpoints.mapping import Ignored, MappingError, Rule, Table
from pixel_llm.checkpoints.tensors import Tensors
from pixel_llm.checkpoints.transforms import Stack, Transpose

# Where the whole network has its T5.
PREFIX = 't5/'
# T5X's name by which a T5 alone is known: ours is below the prefix.
EMBEDDING = 'token_embedder/embedding'

_STACKS = '{stack:encoder|decoder}'
_LAYER = r'{layer:\d+}'

# Of a layer, what `{rest}` may be.
_PARTS = (
  r'(?:self_|encoder_decoder_)?attention/(?:query|key|value|out)/kernel'
  r'|mlp/(?:wi_0|wi_1|wo)/kernel'
  r'|pre_(?:(?:self_|cross_)?attention|mlp)_layer_norm/scale'
)

T5X: Table = (
  Rule(
    rf'{_STACKS}/layers_{_LAYER}/{{rest:{_PARTS}}}',
    't5/{stack}/layers/{rest}',
    (Stack('layer'),),
  ),
  *(
    Rule(name, f't5/{name}')
    for name in (
      EMBEDDING,
      f'{_STACKS}/relpos_bias/rel_embedding',
      'encoder/encoder_norm/scale',
      'decoder/decoder_norm/scale',
      'decoder/logits_dense/kernel',
    )
  ),
)


def _hugging_face() -> Table:
  def block(stack, part, name, ours, transpose=True):
    return Rule(
      f'{stack}.block.{_LAYER}.layer.{part}.{name}',
      f't5/{stack}/layers/{ours}',
      (*((Transpose(),) if transpose else ()), Stack('layer')),
    )

  def attention(stack, part, theirs, ours):
    return [
      block(stack, part, f'{theirs}.{a}.weight', f'{ours}/{b}/kernel')
      for a, b in zip('qkvo', ('query', 'key', 'value', 'out'))
    ]

  def mlp(stack, part):
    return [
      block(stack, part, f'DenseReluDense.{m}.weight', f'mlp/{m}/kernel')
      for m in ('wi_0', 'wi_1', 'wo')
    ]

  def norms(stack, *ours):
    return [
      block(
        stack, i, 'layer_norm.weight', f'pre_{name}_layer_norm/scale', False
      )
      for i, name in enumerate(ours)
    ]

  def ends(stack):
    # One table a stack, which its first layer keeps.
    bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    return [
      Rule(
        f'{stack}.{bias}',
        f't5/{stack}/relpos_bias/rel_embedding',
        (Transpose(),),
      ),
      Rule(
        f'{stack}.final_layer_norm.weight', f't5/{stack}/{stack}_norm/scale'
      ),
    ]

  return (
    Rule('shared.weight', 't5/token_embedder/embedding'),
    *ends('encoder'),
    *attention('encoder', 0, 'SelfAttention', 'attention'),
    *mlp('encoder', 1),
    *norms('encoder', 'attention', 'mlp'),
    *ends('decoder'),
    *attention('decoder', 0, 'SelfAttention', 'self_attention'),
    *attention('decoder', 1, 'EncDecAttention', 'encoder_decoder_attention'),
    *mlp('decoder', 2),
    *norms('decoder', 'self_attention', 'cross_attention', 'mlp'),
    Rule('lm_head.weight', 't5/decoder/logits_dense/kernel', (Transpose(),)),
    # Both stacks read the shared table; some files repeat it for each.
    Ignored(r'(en|de)coder\.embed_tokens\.weight', same_as='shared.weight'),
    # Left in old files by a version that had, and did not use, such a table.
    Ignored(
      r'decoder\.block\.0\.layer\.1\.EncDecAttention\.'
      r'relative_attention_bias\.weight'
    ),
  )


HUGGING_FACE: Table = _hugging_face()


def sizes(tensors: Tensors) -> dict[str, int]:
  """The numbers of a T5, read off the shapes of our tree.

  Args:
    tensors: by our names, those of T5 starting with `t5/`.

  Returns:
    fields of `T5Config`.

  Raises:
    MappingError: a tensor that shows one of them is not there, or has another
      number of axes.
  """

  def shape(name: str, axes: int) -> tuple[int, ...]:
    tensor = tensors.get(PREFIX + name)
    if tensor is None or len(tensor.shape) != axes:
      found = 'none' if tensor is None else str(list(tensor.shape))
      raise MappingError(
        f'{PREFIX}{name}: expected a tensor of {axes} axes, got {found}; is it '
        'a T5 1.1 or Flan-T5?'
      )
    return tensor.shape

  vocab_size, emb_dim = shape(EMBEDDING, 2)
  num_heads = shape('encoder/relpos_bias/rel_embedding', 2)[0]
  encoder, _, joined = shape('encoder/layers/attention/query/kernel', 3)
  decoder = shape('decoder/layers/self_attention/query/kernel', 3)[0]
  return {
    'vocab_size': vocab_size,
    'emb_dim': emb_dim,
    'num_heads': num_heads,
    'head_dim': joined // max(num_heads, 1),
    'mlp_dim': shape('encoder/layers/mlp/wi_0/kernel', 3)[2],
    'num_encoder_layers': encoder,
    'num_decoder_layers': decoder,
  }


def check_hugging_face_config(config: dict[str, Any]) -> None:
  """Refuses a `config.json` of a network that computes something else.

  Args:
    config: its content; keys that are not there have transformers' defaults.

  Raises:
    MappingError: naming the key, the value wanted and that found.
  """
  # Version 4 tells by tied embeddings that outputs are scaled, as T5 1.0's;
  # version 5 says so, and calls embeddings tied whether they are or not.
  scaled = 'scale_decoder_outputs'
  key = scaled if scaled in config else 'tie_word_embeddings'
  for name, wanted, default in (
    ('model_type', 't5', 't5'),
    ('feed_forward_proj', 'gated-gelu', 'relu'),
    ('relative_attention_num_buckets', 32, 32),
    ('relative_attention_max_distance', 128, 128),
    (key, False, True),
  ):
    found = config.get(name, default)
    if found != wanted:
      raise MappingError(
        f'config.json: expected {name} {wanted!r} as T5 1.1 and Flan-T5 have '
        f'it, got {found!r}.'
      )


def hugging_face_config(
  numbers: dict[str, int], dropout_rate: float, dtype: str
) -> dict[str, Any]:
  """The `config.json` with which transformers builds the same network.

  Args:
    numbers: of `sizes`.
    dropout_rate: of training.
    dtype: of the tensors beside it.
  """
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'vocab_size': numbers['vocab_size'],
    'd_model': numbers['emb_dim'],
    'd_kv': numbers['head_dim'],
    'd_ff': numbers['mlp_dim'],
    'num_heads': numbers['num_heads'],
    'num_layers': numbers['num_encoder_layers'],
    'num_decoder_layers': numbers['num_decoder_layers'],
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'feed_forward_proj': 'gated-gelu',
    'dense_act_fn': 'gelu_new',
    'is_gated_act': True,
    'tie_word_embeddings': False,
    'dropout_rate': dropout_rate,
    'layer_norm_epsilon': 1e-6,
    'initializer_factor': 1.0,
    'is_encoder_decoder': True,
    'use_cache': True,
    'pad_token_id': 0,
    'eos_token_id': 1,
    'decoder_start_token_id': 0,
    'torch_dtype': dtype,
  }
