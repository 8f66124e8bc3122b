# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
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


@pytest.fixture(scope='module', params=['loop', 'straight'])
def search(golden, request):
  """Decodes the golden batch with T5X's parameters."""
  tiny = dataclasses.replace(
    t5_golden.TINY, unroll_decoding=request.param == 'straight'
  )
  model = t5.T5(tiny)
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
    beams = [] if function is decoding.greedy else [t5.CACHE_BEAMS]
    return jax.jit(lambda: function(step, cache, 5, config, *beams))()

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

  def __init__(self, batch, seed=0, spread=2.0, length=LENGTH):
    rng = np.random.default_rng(seed)
    self.batch, self.length = batch, length
    self.table = rng.normal(0, spread, (batch, length, VOCAB, VOCAB)).astype(
      np.float32
    )

  def log_probs(self, row, tokens):
    """Of each token given those before it, as NumPy's float64."""
    inputs = [0, *tokens[:-1]]
    logits = self.table[row, np.arange(len(tokens)), inputs]
    logits = logits.astype(np.float64)
    norm = np.log(np.exp(logits).sum(-1))
    return logits[np.arange(len(tokens)), tokens] - norm

  def decode(self, search, rows=None, **config):
    """Aux of each position: the decoder's inputs until there."""
    table = jnp.asarray(self.table)

    def step(tokens, index, cache):
      rows = jnp.arange(tokens.size) // (tokens.size // self.batch)
      cache = {'inputs': cache['inputs'].at[0, :, index].set(tokens)}
      aux = {'inputs': cache['inputs'][0]}
      return table[rows, index, tokens], aux, cache

    cache = {'inputs': jnp.full((1, self.batch, self.length), -1)}
    config = DecodingConfig(**{'length': self.length} | config)
    more = [] if rows is None else [jnp.asarray(rows)]
    return jax.jit(lambda: search(step, cache, self.batch, config, *more))()

  def alone(self, row):
    """The decoder of one of the rows."""
    other = Tables(1, length=self.length)
    other.table = self.table[row : row + 1]
    return other


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


def greedy_by_hand(tables, row, config):
  """Tokens and log probabilities of greedy search, position by position."""
  tokens, log_probs = [], []
  for index in range(config.length):
    logits = tables.table[row, index, tokens[-1] if tokens else 0].copy()
    for token in set(tokens):
      factor = config.repetition_penalty
      logits[token] *= 1 / factor if logits[token] > 0 else factor
    norm = np.log(np.exp(logits.astype(np.float64)).sum())
    size = config.no_repeat_ngram
    before = [
      tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)
    ]
    for token in range(VOCAB):
      newest = (*tokens[len(tokens) - size + 1 :], token)
      if size and len(tokens) >= size - 1 and newest in before:
        logits[token] = -np.inf
    if index < config.min_length:
      logits[1] = -np.inf
    tokens.append(int(logits.argmax()))
    log_probs.append(logits.max() - norm)
    if tokens[-1] == 1:
      break
  pad = [0] * (config.length - len(tokens))
  return tokens + pad, log_probs + pad


RULES = [
  {'no_repeat_ngram': 1},
  {'no_repeat_ngram': 2},
  {'no_repeat_ngram': 3, 'min_length': 9},
  {'no_repeat_ngram': 30},
  {'repetition_penalty': 1.5},
  {'repetition_penalty': 0.7, 'min_length': 5},
  {'repetition_penalty': 2.0, 'no_repeat_ngram': 2, 'min_length': 12},
]


@pytest.mark.parametrize('rules', [{}, *RULES])
def test_greedy_by_the_rules_is_the_one_by_hand(rules):
  tables = Tables(8, seed=5, length=12)
  # What a position likes does not change, so that it would repeat itself.
  tables.table[:] = tables.table[:, :1]
  length = 5 if rules == {'no_repeat_ngram': 1} else 12
  config = DecodingConfig(length=length, **rules)
  decoded = tables.decode(decoding.greedy, length=length, **rules)
  for row in range(8):
    tokens, log_probs = greedy_by_hand(tables, row, config)
    np.testing.assert_array_equal(decoded.tokens[row], tokens)
    np.testing.assert_allclose(decoded.log_probs[row], log_probs, 0, 1e-4)
  # No sequence of 30 can come twice in 12.
  if rules not in ({}, {'no_repeat_ngram': 30}):
    plain = tables.decode(decoding.greedy, length=length)
    assert np.any(plain.tokens != decoded.tokens)


def repeats(tokens, size):
  """Whether an n-gram comes twice before the end."""
  tokens = tokens[: length_of(tokens)].tolist()
  grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
  return len(set(grams)) < len(grams)


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('how', [{'beams': 4}, {'temperature': 0.7}])
def test_no_ngram_comes_twice(how, size):
  tables = Tables(16, seed=6, length=16, spread=3.0)
  tables.table[:] = tables.table[:, :1]
  rules = {'no_repeat_ngram': size, 'min_length': 14, **how}
  free = tables.decode(decoding.decode, **how, min_length=14)
  bound = tables.decode(decoding.decode, **rules)
  assert any(repeats(np.asarray(row), size) for row in free.tokens)
  hypotheses = np.asarray(bound.beam_tokens).reshape(-1, 16)
  there = np.asarray(bound.beam_scores).reshape(-1) > -1e7
  assert there.sum() >= 16
  for tokens in hypotheses[there]:
    assert not repeats(tokens, size), tokens
    assert length_of(tokens) > 14 or 1 not in tokens
  for row in range(16):
    tokens = np.asarray(bound.tokens[row])
    length = length_of(tokens)
    # What is forbidden takes no probability from the others.
    np.testing.assert_allclose(
      bound.log_probs[row, :length],
      tables.log_probs(row, tokens[:length]),
      0,
      1e-4,
    )


def test_without_a_place_for_the_end_none_ends():
  tables = Tables(8, seed=7)
  for how in ({'beams': 3}, {'beams': 1}, {'temperature': 1.0}):
    decoded = tables.decode(decoding.decode, min_length=LENGTH, **how)
    assert not np.any(np.asarray(decoded.beam_tokens) == 1)
    np.testing.assert_allclose(
      decoded.scores, decoded.log_probs.sum(-1), 0, 1e-4
    )


@pytest.mark.parametrize(
  'how',
  [
    {'temperature': 3.0, 'top_k': 1},
    {'temperature': 1e-4},
    {'temperature': 1e-38},
    {'temperature': 1e-4, 'top_p': 0.99, 'top_k': 4},
    {'temperature': 1.0, 'top_p': 1e-9},
  ],
)
def test_draws_without_choice_are_greedy(how):
  tables = Tables(32, seed=8)
  greedy = tables.decode(decoding.greedy)
  drawn = tables.decode(decoding.decode, **how)
  np.testing.assert_array_equal(drawn.tokens, greedy.tokens)
  np.testing.assert_allclose(drawn.log_probs, greedy.log_probs, 0, 1e-5)
  np.testing.assert_array_equal(drawn.aux['inputs'], greedy.aux['inputs'])


@pytest.mark.parametrize(
  'how',
  [
    {'temperature': 1.0},
    {'temperature': 1.0, 'top_k': 100},
    {'temperature': 2.0},
    {'temperature': 0.5},
    {'temperature': 1.0, 'top_k': 3},
    {'temperature': 1.0, 'top_p': 0.8},
    {'temperature': 1.5, 'top_k': 4, 'top_p': 0.7},
  ],
)
def test_draws_have_their_probabilities(how):
  count = 20_000
  tables = Tables(1, seed=9, spread=1.0)
  logits = tables.table[0, 0, 0].astype(np.float64)
  table = jnp.asarray(logits, jnp.float32)

  def step(tokens, index, cache):
    return jnp.broadcast_to(table, (count, VOCAB)), {}, cache

  config = DecodingConfig(length=1, **how)
  tokens = jax.jit(lambda: decoding.decode(step, {}, count, config).tokens)()
  found = np.bincount(np.asarray(tokens)[:, 0], minlength=VOCAB) / count

  want = np.exp(logits / how['temperature'])
  order = np.argsort(-want)
  want[order[how.get('top_k') or VOCAB :]] = 0
  want /= want.sum()
  inside = 0.0
  for token in order:
    if inside >= how.get('top_p', 1.0):
      want[token] = 0
    inside += want[token]
  want /= want.sum()
  deviation = np.sqrt(want * (1 - want) / count)
  assert np.all(np.abs(found - want) <= 4 * deviation)
  assert not np.any(found[want == 0])


@pytest.mark.parametrize(
  'how',
  [
    {},
    {'temperature': 1.0},
    {'temperature': 1.0, 'top_k': 4, 'top_p': 0.8, 'seed': 3},
    {'beams': 3},
    {'beams': 3, 'no_repeat_ngram': 2, 'repetition_penalty': 1.3},
  ],
)
def test_a_batch_is_its_rows(how):
  tables = Tables(5, seed=10)
  numbers = np.array([7, 0, 3, 3, 12])
  both = tables.decode(decoding.decode, numbers, **how)
  for row in range(5):
    alone = tables.alone(row).decode(
      decoding.decode, numbers[row : row + 1], **how
    )
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
    np.testing.assert_allclose(alone.scores[0], both.scores[row], 0, 1e-5)


def test_draws_are_their_seeds_and_their_rows():
  tables = Tables(32, seed=11, spread=0.5)
  tables.table[:] = tables.table[:1]
  draw = lambda seed: np.asarray(
    tables.decode(decoding.decode, temperature=1.0, seed=seed).tokens
  )
  np.testing.assert_array_equal(draw(1), draw(1))
  assert np.any(draw(1) != draw(2), axis=-1).mean() > 0.5
  assert len(np.unique(draw(1), axis=0)) > 16


@pytest.mark.parametrize(
  'how',
  [
    {},
    {'temperature': 1.0},
    {'beams': 3},
    {'beams': 3, 'alpha': 0.0},
    {'beams': 2, 'finish_outside_beam': True, 'no_repeat_ngram': 2},
  ],
)
def test_an_early_end_changes_nothing(how, monkeypatch):
  tables = Tables(6, seed=12, length=24)
  tables.table[:, 3:, :, 1] += 5.0
  early = tables.decode(decoding.decode, **how)
  steps = []
  while_loop = jax.lax.while_loop

  def to_the_end(keep_going, body, state):
    def count(state):
      jax.debug.callback(lambda i: steps.append(int(i)), state['index'])
      return body(state)

    return while_loop(lambda state: state['index'] < 24, count, state)

  monkeypatch.setattr(jax.lax, 'while_loop', to_the_end)
  late = tables.decode(decoding.decode, **how)
  jax.effects_barrier()
  assert sorted(steps) == list(range(24))
  jax.tree.map(np.testing.assert_array_equal, early, late)


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'length': 0}, 'length: expected at least 1, got 0'),
    ({'beams': 0}, 'beams: expected at least 1'),
    ({'alpha': -0.1}, 'alpha: expected a number from 0 on'),
    ({'temperature': -1.0}, 'temperature: expected a number from 0 on'),
    ({'temperature': float('nan')}, 'temperature: .* got nan'),
    ({'temperature': 1.0, 'top_k': -1}, 'top_k: expected at least 0'),
    ({'temperature': 1.0, 'top_p': 0.0}, 'top_p: expected above 0'),
    ({'temperature': 1.0, 'top_p': 1.1}, 'top_p: expected above 0'),
    ({'seed': -1}, 'seed: expected from 0'),
    ({'min_length': 9, 'length': 8}, 'min_length: expected from 0 to length'),
    ({'no_repeat_ngram': -1}, 'no_repeat_ngram: expected at least 0'),
    ({'repetition_penalty': 0.0}, 'repetition_penalty: expected a number'),
    ({'temperature': 1.0, 'beams': 2}, 'expected temperature 0 or beams 1'),
    ({'top_k': 5}, 'top_k 5 and top_p 1 limit what is drawn'),
    ({'top_p': 0.5}, 'top_k 0 and top_p 0.5 limit what is drawn'),
    (
      {'temperature': 1.0, 'finish_outside_beam': True},
      'finish_outside_beam is a rule of beam search',
    ),
  ],
)
def test_what_excludes_itself_is_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    DecodingConfig(**wrong)


def test_what_a_user_asks_for_takes_the_place_of_the_config():
  beams = DecodingConfig(beams=4, finish_outside_beam=True)
  draws = DecodingConfig(temperature=0.7, top_k=20, seed=5)
  override = decoding.override
  assert override(beams) == beams
  assert override(draws) == draws
  assert override(beams, beams=2) == DecodingConfig(
    beams=2, finish_outside_beam=True
  )
  assert override(beams, temperature=0.5) == DecodingConfig(temperature=0.5)
  assert override(beams, top_p=0.9, seed=2) == DecodingConfig(
    temperature=1.0, top_p=0.9, seed=2
  )
  assert override(draws, top_k=5) == DecodingConfig(
    temperature=0.7, top_k=5, seed=5
  )
  assert override(draws, beams=3) == DecodingConfig(beams=3, seed=5)
  assert override(draws, temperature=0.0) == DecodingConfig(seed=5)
  with pytest.raises(ValueError, match='temperature 0 or beams 1'):
    override(draws, beams=3, temperature=0.5)
  with pytest.raises(ValueError, match='seed 1: nothing is drawn'):
    override(beams, seed=1)
