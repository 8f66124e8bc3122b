# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_golden

from pixel_llm.model import decoding, t5
from pixel_llm.model.decoding import DecodingConfig

VOCAB = 7
LENGTH = 6


@pytest.fixture(scope='module')
def golden():
  return t5_golden.load('t5x_tiny_golden')


@pytest.fixture(scope='module')
def search(golden):
  """Decodes the golden batch with T5X's parameters."""
  model = t5.T5(t5_golden.TINY)
  params = t5_golden.variables(t5_golden.load('t5x_tiny_params'))
  tokens = golden['inputs/encoder_input_tokens']

  @jax.jit
  def encode():
    encoded, valid = model.apply(params, None, tokens, method='encode')
    return valid, model.apply(params, encoded, method='cross_attention_cache')

  valid, cross = encode()

  def run(function, **config):
    def step(tokens, index, cache):
      return model.apply(
        params, tokens, index, cache, cross, valid, method='decode_step'
      )

    cache = model.init_cache(5, 20)
    config = DecodingConfig(length=20, **config)
    return jax.jit(lambda: function(step, cache, 5, config))()

  return run


def test_greedy_is_t5x(search, golden):
  decoded = search(decoding.greedy)
  np.testing.assert_array_equal(decoded.tokens, golden['greedy/tokens'])
  np.testing.assert_allclose(
    decoded.scores, golden['greedy/log_probs'], 0, 1e-4
  )
  assert decoded.aux.shape == (5, 20, 16)


@pytest.mark.parametrize(
  'name, beams, alpha',
  [('beam4', 4, 0.6), ('beam4_alpha0', 4, 0.0), ('beam1', 1, 0.6)],
)
def test_beam_is_t5x(search, golden, name, beams, alpha):
  decoded = search(
    decoding.beam, beams=beams, alpha=alpha, finish_outside_beam=True
  )
  # T5X's beams ascend; with one it gives no axis of beams.
  tokens = golden[f'{name}/tokens'].reshape(5, beams, 20)[:, ::-1]
  scores = golden[f'{name}/scores'].reshape(5, beams)[:, ::-1]
  np.testing.assert_array_equal(decoded.beam_tokens, tokens)
  np.testing.assert_allclose(decoded.beam_scores, scores, 0, 1e-4)
  np.testing.assert_array_equal(decoded.tokens, tokens[:, 0])
  np.testing.assert_array_equal(decoded.scores, decoded.beam_scores[:, 0])


class Tables:
  """A decoder that is a table, over a cache that remembers its inputs."""

  def __init__(self, batch, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    self.batch = batch
    self.table = rng.normal(0, spread, (batch, LENGTH, VOCAB, VOCAB)).astype(
      np.float32
    )

  def log_probs(self, row, tokens):
    """Of each token given those before it, as NumPy's float64."""
    inputs = [0, *tokens[:-1]]
    logits = self.table[row, np.arange(len(tokens)), inputs]
    logits = logits.astype(np.float64)
    norm = np.log(np.exp(logits).sum(-1))
    return logits[np.arange(len(tokens)), tokens] - norm

  def decode(self, search, **config):
    """Aux of each position: the decoder's inputs until there."""
    table = jnp.asarray(self.table)

    def step(tokens, index, cache):
      rows = jnp.arange(tokens.size) // (tokens.size // self.batch)
      cache = {'inputs': cache['inputs'].at[0, :, index].set(tokens)}
      aux = {'inputs': cache['inputs'][0]}
      return table[rows, index, tokens], aux, cache

    cache = {'inputs': jnp.full((1, self.batch, LENGTH), -1)}
    config = DecodingConfig(length=LENGTH, **config)
    return jax.jit(lambda: search(step, cache, self.batch, config))()


def length_of(tokens):
  """Tokens up to the end token, that included."""
  ends = np.flatnonzero(tokens == 1)
  return ends[0] + 1 if ends.size else len(tokens)


def test_one_beam_without_penalty_is_greedy():
  tables = Tables(batch=64)
  greedy = tables.decode(decoding.greedy)
  beam = tables.decode(decoding.beam, beams=1, alpha=0.0)
  np.testing.assert_array_equal(beam.tokens, greedy.tokens)
  np.testing.assert_array_equal(beam.aux['inputs'], greedy.aux['inputs'])
  np.testing.assert_allclose(beam.log_probs, greedy.log_probs, 0, 1e-5)
  np.testing.assert_allclose(beam.scores, greedy.scores, 0, 1e-5)
  lengths = {length_of(row) for row in np.asarray(beam.tokens)}
  assert lengths == set(range(1, LENGTH + 1))
  other = tables.decode(
    decoding.beam, beams=1, alpha=0.0, finish_outside_beam=True
  )
  assert np.any(other.tokens != greedy.tokens)


@pytest.mark.parametrize('beams', [1, 3])
def test_hypotheses_are_consistent(beams):
  """Cache, aux, log probabilities and scores are those of the tokens."""
  tables = Tables(batch=16, seed=1)
  decoded = tables.decode(decoding.decode, beams=beams)
  assert decoded.beam_tokens.shape == (16, beams, LENGTH)
  for row in range(16):
    tokens = np.asarray(decoded.tokens[row])
    length = length_of(tokens)
    assert not np.any(tokens[length:])
    want = np.zeros(LENGTH)
    want[:length] = tables.log_probs(row, tokens[:length])
    np.testing.assert_allclose(decoded.log_probs[row], want, 0, 1e-4)
    penalty = ((5 + length) / 6) ** 0.6
    if beams == 1 or tokens[length - 1] != 1:
      penalty = 1.0
    np.testing.assert_allclose(
      decoded.scores[row], want.sum() / penalty, 0, 1e-4
    )
    aux = np.zeros((LENGTH, LENGTH), int)
    aux[:length] = np.where(
      np.tri(length, LENGTH), np.concatenate([[0], tokens[:-1]]), -1
    )
    np.testing.assert_array_equal(decoded.aux['inputs'][row], aux)
  scores = np.asarray(decoded.beam_scores)
  assert np.all(scores[:, 1:] <= scores[:, :-1])


def test_wide_beam_finds_the_best_ended_hypothesis():
  tables = Tables(batch=4, seed=2)
  decoded = tables.decode(decoding.beam, beams=300, alpha=0.6)
  words = [0, *range(2, VOCAB)]
  for row in range(4):
    # 300 live hypotheses hold all of four tokens or fewer but not of five; a
    # search that wide can only do better than the best of the short ones.
    best = max(
      tables.log_probs(row, [*start, 1]).sum()
      / ((5 + len(start) + 1) / 6) ** 0.6
      for n in range(4)
      for start in itertools.product(words, repeat=n)
    )
    assert decoded.scores[row] >= best - 1e-4


def test_end_token_must_rank_within_the_beam():
  # The end token is always second best, of one beam.
  table = np.zeros((1, LENGTH, VOCAB, VOCAB), np.float32)
  table[..., 3] = 2.0
  table[..., 1] = 1.0
  tables = Tables(1)
  tables.table = table
  inside = tables.decode(decoding.beam, beams=1)
  np.testing.assert_array_equal(inside.tokens, [[3] * LENGTH])
  outside = tables.decode(decoding.beam, beams=1, finish_outside_beam=True)
  np.testing.assert_array_equal(outside.tokens, [[1] + [0] * (LENGTH - 1)])


@pytest.mark.parametrize('search', [decoding.greedy, decoding.beam])
def test_stops_early(search):
  calls = []

  def step(tokens, index, cache):
    jax.debug.callback(lambda i: calls.append(int(i)), index)
    # The end is as good as certain from position 2 on.
    logits = jnp.zeros((tokens.size, VOCAB))
    return logits.at[:, 1].set(jnp.where(index < 2, -9.0, 30.0)), {}, cache

  config = DecodingConfig(length=50, beams=2)
  decoded = search(step, {}, 3, config)
  jax.block_until_ready(decoded)
  jax.effects_barrier()
  assert max(calls) < 6
  np.testing.assert_array_equal(decoded.tokens[:, 2:4], [[1, 0]] * 3)
