# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import traverse_util
from model import t5_golden

from pixel_llm.checkpoints import mapping, t5_names
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection
from pixel_llm.model import decoding, t5
from pixel_llm.vocabulary import EOS_ID

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
HUGGING_FACE = GOLDEN / 'hf_t5_tiny'


def opened(path, prefix=''):
  return tensors_lib.part(detection.open_tensors(path)[1], prefix)


def mapped(table, tensors):
  got, report = mapping.apply(table, tensors)
  assert not report, report
  return got


def variables(tensors, dtype=np.float32):
  arrays = {
    name.removeprefix('t5/'): jnp.asarray(tensor.read().astype(dtype))
    for name, tensor in tensors.items()
  }
  return {'params': traverse_util.unflatten_dict(arrays, sep='/')}


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, encoder_tokens, input_tokens, target_tokens):
  model = t5.T5(config)
  encoded, valid = model.apply(params, None, encoder_tokens, method='encode')
  return model.apply(
    params, encoded, valid, input_tokens, target_tokens, method='decode'
  )[0]


def t5x_logits(params):
  golden = t5_golden.load('t5x_tiny_golden')
  names = ('encoder_input', 'decoder_input', 'decoder_target')
  tokens = (golden[f'inputs/{name}_tokens'] for name in names)
  return logits(t5_golden.TINY, params, *tokens), golden['decoder_logits']


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(got[name].read(), tensor.read(), strict=True)


@pytest.mark.parametrize('folder', ['legacy', 'orbax'])
def test_t5x_checkpoints_give_t5x_logits(t5x_tiny, folder):
  ours = mapped(t5_names.T5X, opened(t5x_tiny / folder, 'target/'))
  assert t5_names.sizes(ours) == {
    'vocab_size': 64,
    'emb_dim': 16,
    'num_heads': 2,
    'head_dim': 8,
    'mlp_dim': 32,
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
  }
  got, expected = t5x_logits(variables(ours))
  # Of the largest logit, 10.7: T5X's own rounding, measured against float64,
  # is 1.1e-5 already.
  np.testing.assert_allclose(got, expected, 0, 1e-5 * np.abs(expected).max())
  # The parameters at least are the same bits.
  same = t5_golden.variables(t5_golden.load('t5x_tiny_params'))
  np.testing.assert_array_equal(got, t5x_logits(same)[0])


def test_t5x_in_bfloat16_gives_the_logits_of_its_rounding(t5x_tiny):
  rounded = mapped(t5_names.T5X, opened(t5x_tiny / 'legacy_bf16', 'target/'))
  exact = mapped(t5_names.T5X, opened(t5x_tiny / 'legacy', 'target/'))
  for name, tensor in rounded.items():
    np.testing.assert_array_equal(
      tensor.read(), exact[name].read().astype(tensors_lib.BFLOAT16)
    )
  got, expected = t5x_logits(variables(rounded))
  difference = np.abs(got - expected).max()
  assert 1e-4 < difference < 0.5


def test_t5x_there_and_back_is_exact(t5x_tiny):
  for folder in ('legacy', 'legacy_bf16'):
    theirs = opened(t5x_tiny / folder, 'target/')
    ours = mapped(t5_names.T5X, theirs)
    assert_same(mapped(mapping.inverse(t5_names.T5X), ours), theirs)


def test_hugging_face_gives_the_logits_of_transformers():
  ours = mapped(
    t5_names.HUGGING_FACE, opened(HUGGING_FACE / 'model.safetensors')
  )
  numbers = t5_names.sizes(ours)
  assert (numbers['num_heads'], numbers['emb_dim']) == (3, 16)
  with np.load(HUGGING_FACE / 'logits.npz') as golden:
    # No padding among the decoder's tokens: every target counts.
    got = logits(
      t5.T5Config(**numbers),
      variables(ours),
      golden['encoder_input_tokens'],
      golden['decoder_input_tokens'],
      np.ones_like(golden['decoder_input_tokens']),
    )
    np.testing.assert_allclose(got, golden['logits'], 0, 1e-5)


def test_hugging_face_in_both_formats_is_the_same():
  safe = opened(HUGGING_FACE / 'model.safetensors')
  pickled = opened(HUGGING_FACE / 'pytorch_model.bin')
  # The table of words stands in the latter three times.
  assert pickled.keys() - safe.keys() == {
    'encoder.embed_tokens.weight',
    'decoder.embed_tokens.weight',
  }
  table = t5_names.HUGGING_FACE
  assert_same(mapped(table, pickled), mapped(table, safe))
  back = mapped(mapping.inverse(table), mapped(table, pickled))
  assert_same(back, safe)


def test_tables_of_words_that_differ_are_refused():
  tensors = opened(HUGGING_FACE / 'pytorch_model.bin')
  tensors['encoder.embed_tokens.weight'] = tensors['lm_head.weight']
  ours = mapped(t5_names.HUGGING_FACE, tensors)
  with pytest.raises(mapping.MappingError, match=r'^encoder\.embed_tokens'):
    ours['t5/token_embedder/embedding'].read()


def test_from_t5x_to_hugging_face_and_back(t5x_tiny):
  theirs = opened(t5x_tiny / 'legacy', 'target/')
  middle = mapped(
    mapping.inverse(t5_names.HUGGING_FACE), mapped(t5_names.T5X, theirs)
  )
  assert middle['encoder.block.1.layer.1.DenseReluDense.wo.weight'].shape == (
    16,
    32,
  )
  back = mapped(
    mapping.inverse(t5_names.T5X), mapped(t5_names.HUGGING_FACE, middle)
  )
  assert_same(back, theirs)


def test_names_of_other_networks_are_listed():
  tensors = opened(HUGGING_FACE / 'model.safetensors')
  # T5 1.0 has one `wi`, and no `lm_head` of its own.
  name = 'encoder.block.0.layer.1.DenseReluDense.wi_0.weight'
  tensors[name.replace('wi_0', 'wi')] = tensors.pop(name)
  _, report = mapping.apply(t5_names.HUGGING_FACE, tensors)
  assert report.unmatched == (name.replace('wi_0', 'wi'),)
  assert report.misshapen == (
    't5/encoder/layers/mlp/wi_0/kernel: expected layer 0..1, got none of 0',
  )
  _, report = mapping.apply(
    t5_names.T5X, {'encoder/layers_0/mlp/wi/kernel': tensors['lm_head.weight']}
  )
  assert report.unmatched == ('encoder/layers_0/mlp/wi/kernel',)


def test_sizes_of_what_is_no_t5():
  with pytest.raises(mapping.MappingError, match=r'token_embedder.*got none'):
    t5_names.sizes({})


def test_the_config_of_hugging_face_is_checked():
  config = json.loads((HUGGING_FACE / 'config.json').read_text())
  t5_names.check_hugging_face_config(config)
  numbers = t5_names.sizes(
    mapped(t5_names.HUGGING_FACE, opened(HUGGING_FACE / 'model.safetensors'))
  )
  ours = t5_names.hugging_face_config(numbers, 0.1, 'float32')
  t5_names.check_hugging_face_config(ours)
  # All that ours says, theirs says too, but for version 5's way of `tie`.
  said = {k: v for k, v in ours.items() if k in config}
  said['tie_word_embeddings'] = True
  assert said == {k: config[k] for k in said} and len(said) > 15
  for key, value in (
    ('feed_forward_proj', 'relu'),
    ('model_type', 'mt5'),
    ('relative_attention_max_distance', 64),
    ('scale_decoder_outputs', True),
  ):
    with pytest.raises(mapping.MappingError, match=f'expected {key}'):
      t5_names.check_hugging_face_config(config | {key: value})
  del config['scale_decoder_outputs']
  with pytest.raises(mapping.MappingError, match='tie_word_embeddings False'):
    t5_names.check_hugging_face_config(config)


# --- Against transformers itself


@pytest.fixture(scope='module', name='small')
def small_fixture(tmp_path_factory):
  """T5 1.1 small of transformers, of random weights; our parameters."""
  transformers = peers.imported('transformers')
  torch = peers.imported('torch')
  config = t5.SIZES['small']
  theirs = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      **t5_names.hugging_face_config(vars(config), 0.1, 'float32')
    )
  ).eval()
  # Version 5 ties the last layer to the embeddings until a file has both.
  theirs.lm_head.weight = torch.nn.Parameter(theirs.shared.weight.clone())
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      # As they are initialized, but for the last layer: logits would hardly
      # depend on what was written before.
      if 'layer_norm' not in name:
        std = 3 * config.emb_dim**-0.5 if 'lm_head' in name else weight.std()
        weight.copy_(std * torch.randn(weight.shape, generator=generator))
    # Some texts are to end.
    theirs.lm_head.weight[EOS_ID] *= 3
  folder = tmp_path_factory.mktemp('t5')
  theirs.save_pretrained(folder)
  return theirs, variables(mapped(t5_names.HUGGING_FACE, opened(folder)))


def written(params, text, **how):
  """What our search writes."""
  config = t5.SIZES['small']
  model = t5.T5(config)
  how = decoding.DecodingConfig(**how)

  @jax.jit
  def generate(params, text):
    encoded, valid = model.apply(params, None, text, method='encode')
    cross = model.apply(params, encoded, method='cross_attention_cache')

    def step(tokens, index, cache):
      return model.apply(
        params, tokens, index, cache, cross, valid, method='decode_step'
      )

    cache = model.init_cache(len(text), how.length)
    return decoding.decode(
      step, cache, len(text), how, beams=t5.CACHE_BEAMS
    ).tokens

  return np.asarray(generate(params, text))


@pytest.mark.parity
@pytest.mark.slow
def test_transformers_says_the_same_at_the_size_of_small(small):
  import torch

  theirs, params = small
  rng = np.random.default_rng(0)
  text = rng.integers(2, 32000, (8, 40)).astype(np.int32)
  text[1, 30:] = 0
  inputs = {
    'input_ids': torch.tensor(text).long(),
    'attention_mask': torch.tensor(text > 0).long(),
  }
  tokens = rng.integers(2, 32000, (8, 24)).astype(np.int32)
  with torch.no_grad():
    expected = theirs(
      **inputs, decoder_input_ids=torch.tensor(tokens).long()
    ).logits.numpy()
  got = logits(t5.SIZES['small'], params, text, tokens, np.ones_like(tokens))
  np.testing.assert_allclose(got, expected, 0, 1e-5 * np.abs(expected).max())

  def generated(**how):
    with torch.no_grad():
      found = theirs.generate(
        **inputs, max_new_tokens=24, do_sample=False, **how
      ).numpy()[:, 1:]
    return np.pad(found, ((0, 0), (0, 24 - found.shape[1])))

  greedy = generated()
  ends = (greedy == EOS_ID).any(1)
  assert ends.any() and not ends.all()
  np.testing.assert_array_equal(written(params, text, length=24), greedy)
  # Of texts that end, each library chooses by a length penalty of its own.
  np.testing.assert_array_equal(
    written(params, text, length=24, beams=4, min_length=24),
    generated(num_beams=4, min_new_tokens=24),
  )
