# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy search, sampling and beam search over a cached decoder.

All drive a pure function of one position,

  step_fn(tokens, index, cache) -> (logits, aux, cache)

with tokens [N] int32 (0, the begin token, at index 0), index a scalar int,
logits [N, vocab] and aux any tree of [N, ...]: what the decoder knows of the
token it is about to choose, such as its hidden state. Leaves of the cache are
[layers, N, ...], unless `CacheBeams` says how else it serves several beams.
What does not change with the hypotheses, such as the encoder's keys and values,
is the closure's.

What is forbidden (a repeated n-gram, an end too early) is so to the search
alone: log probabilities are the decoder's, changed by nothing but the
repetition penalty.

Source: T5X, `t5x/decoding.py`: `beam_search` and `temperature_sample` at
temperature 0, whose tokens and scores these give.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from pixel_llm.vocabulary import EOS_ID

Array = jax.Array
StepFn = Callable[[Array, Array, Any], tuple[Array, Any, Any]]

# T5X's "no such hypothesis". Finite: an infinite one would turn to NaN.
_NONE = -1e7


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
  """How to search.

  Attributes:
    length: positions, the end token's included.
    beams: hypotheses kept by beam search; 1 is greedy search in `decode`.
    alpha: exponent of the length penalty; 0 turns it off. Of beam search.
    finish_outside_beam: a hypothesis may end although its end token ranks
      below the best `beams` continuations, among the best 2 * beams: T5X's
      rule, by which even one beam differs from greedy search.
    temperature: 0 takes the likeliest token; above it tokens are drawn, with
      logits divided by it.
    top_k: draws among so many of the likeliest tokens; 0 among all.
    top_p: draws among the fewest likeliest tokens, of those of `top_k`, that
      have so much of the probability together; 1 among all.
    seed: of the draws.
    min_length: tokens before the end token, at least; `length` of them leave
      no place for it.
    no_repeat_ngram: no sequence of so many tokens comes twice; 0 is no limit.
      Like the penalty it looks at what was written, without the begin token.
    repetition_penalty: logits of tokens that came before are divided by it
      where positive, multiplied where negative; 1 turns it off.

  Raises:
    ValueError: a number out of its range, or two that exclude each other.
  Source: of `top_p` arXiv 1904.09751; of `repetition_penalty` arXiv
    1909.05858 (CTRL), section 4.1.
  """

  length: int = 128
  beams: int = 1
  alpha: float = 0.6
  finish_outside_beam: bool = False
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  min_length: int = 0
  no_repeat_ngram: int = 0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    for name, is_right, expected in (
      ('length', self.length >= 1, 'at least 1'),
      ('beams', self.beams >= 1, 'at least 1'),
      # The early end relies on a penalty that grows with the length.
      ('alpha', 0 <= self.alpha < math.inf, 'a number from 0 on'),
      ('temperature', 0 <= self.temperature < math.inf, 'a number from 0 on'),
      ('top_k', self.top_k >= 0, 'at least 0'),
      ('top_p', 0 < self.top_p <= 1, 'above 0 and at most 1'),
      ('seed', 0 <= self.seed < 2**32, 'from 0 to 4294967295'),
      (
        'min_length',
        0 <= self.min_length <= self.length,
        f'from 0 to length, which is {self.length}',
      ),
      ('no_repeat_ngram', self.no_repeat_ngram >= 0, 'at least 0'),
      (
        'repetition_penalty',
        0 < self.repetition_penalty < math.inf,
        'a number above 0',
      ),
    ):
      if not is_right:
        raise ValueError(
          f'decoding: {name}: expected {expected}, got {getattr(self, name)!r}.'
        )
    if self.temperature > 0 and self.beams > 1:
      raise ValueError(
        f'decoding: temperature {self.temperature:g} draws tokens and beams '
        f'{self.beams} searches for the likeliest; expected temperature 0 or '
        'beams 1.'
      )
    if self.temperature > 0 and self.finish_outside_beam:
      raise ValueError(
        'decoding: finish_outside_beam is a rule of beam search; expected '
        f'temperature 0 with it, got {self.temperature:g}.'
      )
    if self.temperature == 0 and (self.top_k or self.top_p < 1):
      raise ValueError(
        f'decoding: top_k {self.top_k} and top_p {self.top_p:g} limit what is '
        'drawn; expected a temperature above 0 with them, got 0.'
      )


def override(
  config: DecodingConfig,
  beams: int | None = None,
  temperature: float | None = None,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int | None = None,
) -> DecodingConfig:
  """A config with what a user asks for instead; None asks for nothing.

  Asking for draws gives up the config's beams, asking for beams its draws.
  `top_k` and `top_p` ask for draws, at temperature 1 unless one is given.

  Raises:
    ValueError: as `DecodingConfig`, or a seed where nothing is drawn.
  """
  if temperature is None and (top_k or (top_p is not None and top_p < 1)):
    temperature = config.temperature or 1.0
  changes: dict[str, Any] = {}
  if temperature:
    changes |= {'beams': 1, 'finish_outside_beam': False}
  if temperature == 0 or (beams is not None and not temperature):
    changes |= {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}
  asked = {
    'beams': beams,
    'temperature': temperature,
    'top_k': top_k,
    'top_p': top_p,
    'seed': seed,
  }
  changes |= {k: v for k, v in asked.items() if v is not None}
  config = dataclasses.replace(config, **changes)
  if seed is not None and config.temperature == 0:
    raise ValueError(
      f'decoding: seed {seed}: nothing is drawn at temperature 0; expected a '
      'temperature above 0 with it.'
    )
  return config


@struct.dataclass
class Decoded:
  """B rows; the best hypothesis of each, and all K of them, best first.

  Attributes:
    tokens: [B, L] int32, end token kept, 0 after it.
    log_probs: [B, L], of each token: the decoder's, whatever temperature it
      was drawn at; 0 after the end.
    scores: [B], of `beam_scores`.
    aux: tree of [B, L, ...], what `step_fn` gave with each token; 0 after the
      end.
    beam_tokens: [B, K, L] int32; zeros where fewer than K have ended.
    beam_scores: [B, K]: log probability over length penalty; of a row where
      no hypothesis has ended, the bare log probability. At most -1e7 for
      those that are not there.
  """

  tokens: Array
  log_probs: Array
  scores: Array
  aux: Any
  beam_tokens: Array
  beam_scores: Array


class CacheBeams(NamedTuple):
  """How a decoder's cache serves several hypotheses a row.

  Attributes:
    expand: (cache of a hypothesis a row, number of beams) -> of so many.
    reorder: (cache, rows) -> the cache in which hypothesis i goes on from what
      rows[i] was, both of [batch * beams].
  """

  expand: Callable[[Any, int], Any]
  reorder: Callable[[Any, Array], Any]


# Every hypothesis has its own, [layers, batch * beams, ...].
COPIED = CacheBeams(
  lambda cache, beams: jax.tree.map(
    lambda x: jnp.repeat(x, beams, axis=1), cache
  ),
  lambda cache, rows: jax.tree.map(lambda x: jnp.take(x, rows, axis=1), cache),
)


def decode(
  step_fn: StepFn,
  cache: Any,
  batch: int,
  config: DecodingConfig,
  rows: Array | None = None,
  beams: CacheBeams | None = None,
) -> Decoded:
  """Beam search, or with one beam `greedy` unless by T5X's rule.

  Args:
    step_fn: one position, see above; N = batch * beams.
    cache: its first cache, [layers, batch, ...].
    batch: rows, B.
    config: how to search.
    rows: [B] int, see `greedy`.
    beams: how the cache serves several; None takes [layers, batch, ...] apart.
  """
  if config.beams == 1 and not config.finish_outside_beam:
    return greedy(step_fn, cache, batch, config, rows)
  return beam(step_fn, cache, batch, config, beams or COPIED)


def greedy(
  step_fn: StepFn,
  cache: Any,
  batch: int,
  config: DecodingConfig,
  rows: Array | None = None,
) -> Decoded:
  """One hypothesis a row: the likeliest token of each position, or a draw.

  It stops as soon as every row has ended.

  Args:
    step_fn: one position, see above; N = batch.
    cache: its first cache, [layers, batch, ...].
    batch: rows, B.
    config: how to search; nothing of beams matters.
    rows: [B] int, the number of each row; 0 to B - 1 if None. What is drawn
      for a row depends on the seed, its number and its own logits: it is the
      same in every batch.

  Returns:
    The one hypothesis of each row; scores are sums of log probabilities.
  """
  key = jax.random.key(config.seed)
  rows = jnp.arange(batch) if rows is None else rows
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)

  def keep_going(state):
    return (state['index'] < config.length) & ~jnp.all(state['ended'])

  def body(state):
    index, ended = state['index'], state['ended']
    logits, aux, cache = step_fn(state['tokens'], index, state['cache'])
    past = jnp.swapaxes(state['history']['tokens'], 0, 1)
    logits = _penalize(jnp.asarray(logits, jnp.float32), past, index, config)
    total = jax.nn.logsumexp(logits, axis=-1)
    logits = _forbid(logits, past, index, config)
    if config.temperature > 0:
      tokens = _draw(logits, keys, index, config)
      chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    else:
      tokens = jnp.asarray(jnp.argmax(logits, axis=-1), jnp.int32)
      chosen = jnp.max(logits, axis=-1)
    entry = {'tokens': tokens, 'log_probs': chosen - total, 'aux': aux}
    entry = jax.tree.map(lambda x: _where(ended, 0, x), entry)
    return {
      'index': index + 1,
      'tokens': entry['tokens'],
      'ended': ended | (tokens == EOS_ID),
      'history': _record(state['history'], entry, index),
      'cache': cache,
    }

  tokens = jnp.zeros(batch, jnp.int32)
  end = jax.lax.while_loop(
    keep_going,
    body,
    {
      'index': jnp.int32(0),
      'tokens': tokens,
      'ended': jnp.zeros(batch, bool),
      'history': {
        'tokens': jnp.zeros((config.length, batch), jnp.int32),
        'log_probs': jnp.zeros((config.length, batch)),
        'aux': _empty_aux(step_fn, tokens, cache, config.length, (batch,)),
      },
      'cache': cache,
    },
  )
  history = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), end['history'])
  scores = jnp.sum(history['log_probs'], axis=-1)
  return Decoded(
    tokens=history['tokens'],
    log_probs=history['log_probs'],
    scores=scores,
    aux=history['aux'],
    beam_tokens=history['tokens'][:, None],
    beam_scores=scores[:, None],
  )


def beam(
  step_fn: StepFn,
  cache: Any,
  batch: int,
  config: DecodingConfig,
  cache_beams: CacheBeams = COPIED,
) -> Decoded:
  """Beam search.

  Per position the best 2K of all K * vocab continuations are looked at: those
  that do not end are the next K live hypotheses, those that end compete by
  score for the K places of the ended ones. It stops early when in every row no
  live hypothesis could still score better than the worst ended one.

  Hypotheses are kept as links from position to position, and only the
  decoder's cache is reordered on the way; tokens, log probabilities and aux
  are read along the links once, at the end.

  Args:
    step_fn: one position, see above; N = batch * beams, the beams of a row
      adjacent.
    cache: the first cache, of one hypothesis a row; expanded here.
    batch: rows, B.
    config: how to search.
    cache_beams: how it serves several.

  Returns:
    The K best hypotheses of each row, best first.
  """
  length, beams = config.length, config.beams

  def penalty(tokens):
    return ((5.0 + tokens) / 6.0) ** config.alpha

  def keep_going(state):
    # Log probabilities only fall, so that the longest length is a bound.
    reachable = state['log_probs'][:, 0] / penalty(length + 1)
    settled = state['ended']['scores'][:, -1] > reachable
    return (state['index'] < length) & ~jnp.all(settled)

  def body(state):
    index, ended = state['index'], state['ended']
    logits, aux, cache = step_fn(
      jnp.reshape(state['tokens'], -1), index, state['cache']
    )
    past = state['past']
    logits = _penalize(jnp.asarray(logits, jnp.float32), past, index, config)
    token_log_probs = jax.nn.log_softmax(logits)
    token_log_probs = _forbid(token_log_probs, past, index, config)
    vocab = token_log_probs.shape[-1]
    token_log_probs = jnp.reshape(token_log_probs, (batch, -1))
    total = token_log_probs + jnp.repeat(state['log_probs'], vocab, axis=1)
    total, choice = jax.lax.top_k(total, 2 * beams)
    found = {
      'log_probs': jnp.take_along_axis(token_log_probs, choice, axis=1),
      'slots': choice // vocab,
    }
    tokens = choice % vocab
    ends = tokens == EOS_ID

    live_log_probs, order = jax.lax.top_k(total + _NONE * ends, beams)
    live = _pick({'tokens': tokens, **found}, order)

    may_end = ends & (total > _NONE)
    if not config.finish_outside_beam:
      may_end = may_end & (jnp.arange(2 * beams) < beams)[None]
    scores = jnp.where(may_end, total / penalty(index + 1), _NONE)
    found['ends'] = jnp.full_like(choice, index)
    found['scores'] = scores
    both = jax.tree.map(
      lambda old, new: jnp.concatenate([old, new], axis=1), ended, found
    )
    _, best = jax.lax.top_k(both['scores'], beams)

    rows = jnp.reshape(jnp.arange(batch)[:, None] * beams + live['slots'], -1)
    if past is not None:
      written = jnp.reshape(live['tokens'], (-1, 1))
      past = jax.lax.dynamic_update_slice_in_dim(past[rows], written, index, 1)
    aux = jax.tree.map(lambda x: _split(x, batch), aux)
    return {
      'index': index + 1,
      'tokens': live['tokens'],
      'log_probs': live_log_probs,
      'ended': _pick(both, best),
      'history': _record(state['history'], live, index),
      'aux': _record(state['aux'], aux, index),
      'cache': cache_beams.reorder(cache, rows),
      'past': past,
    }

  # At first the beams are one and the same: only one of them counts.
  only_first = jnp.where(jnp.arange(beams) == 0, 0.0, _NONE)
  tokens = jnp.zeros((batch, beams), jnp.int32)
  cache = cache_beams.expand(cache, beams)
  steps = jnp.zeros((length, batch, beams), jnp.int32)
  end = jax.lax.while_loop(
    keep_going,
    body,
    {
      'index': jnp.int32(0),
      'tokens': tokens,
      'log_probs': jnp.tile(only_first[None], (batch, 1)),
      # Of an ended hypothesis: the position of its end token, the slot it was
      # in there, the end token's log probability.
      'ended': {
        'scores': jnp.full((batch, beams), _NONE),
        'ends': jnp.full((batch, beams), -1),
        'slots': jnp.zeros((batch, beams), jnp.int32),
        'log_probs': jnp.zeros((batch, beams)),
      },
      # Of the hypothesis in a slot after each position: the token of that
      # position, its log probability and the slot before.
      'history': {'tokens': steps, 'log_probs': steps * 0.0, 'slots': steps},
      # Of the hypothesis in a slot before it.
      'aux': _empty_aux(
        step_fn, jnp.reshape(tokens, -1), cache, length, (batch, beams)
      ),
      'cache': cache,
      # The tokens of a slot, where rules ask for them: links don't tell yet.
      'past': (
        jnp.zeros((batch * beams, length), jnp.int32)
        if config.no_repeat_ngram or config.repetition_penalty != 1
        else None
      ),
    },
  )

  ended = end['ended']
  any_ended = ended['ends'][:, :1] >= 0
  scores = jnp.where(any_ended, ended['scores'], end['log_probs'])
  ends = jnp.where(any_ended, ended['ends'], length)
  slots = jnp.where(any_ended, ended['slots'], jnp.arange(beams)[None])

  def follow(slots, position):
    """From the slots after a position to those before it."""
    index, history, aux = position
    here = _pick(history, slots)
    before = jnp.where(index < ends, here['slots'], slots)
    tokens = jnp.where(
      index < ends, here['tokens'], jnp.where(index == ends, EOS_ID, 0)
    )
    log_probs = jnp.where(
      index < ends,
      here['log_probs'],
      jnp.where(index == ends, ended['log_probs'], 0.0),
    )
    best = jax.tree.map(
      lambda x: _where(index <= ends[:, 0], x[:, 0], 0),
      _pick(aux, before[:, :1]),
    )
    return before, (tokens, log_probs[:, 0], best)

  _, (tokens, log_probs, aux) = jax.lax.scan(
    follow,
    slots,
    (jnp.arange(length), end['history'], end['aux']),
    reverse=True,
  )
  tokens = jnp.moveaxis(tokens, 0, -1)
  return Decoded(
    tokens=tokens[:, 0],
    log_probs=jnp.moveaxis(log_probs, 0, 1),
    scores=scores[:, 0],
    aux=jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), aux),
    beam_tokens=tokens,
    beam_scores=scores,
  )


def _penalize(
  logits: Array, past: Array | None, index: Array, config: DecodingConfig
) -> Array:
  """Logits [N, vocab] with the repetition penalty.

  Args:
    logits: [N, vocab].
    past: [N, L] int, of which those before `index` are written; None is only
      for a config whose rules don't ask for it.
    index: scalar int.
    config: whose `repetition_penalty` counts.
  """
  if config.repetition_penalty == 1 or past is None:
    return logits
  old = jnp.take_along_axis(logits, past, axis=1)
  penalty = config.repetition_penalty
  new = jnp.where(old > 0, old / penalty, old * penalty)
  return _put(logits, _written(past, index, logits.shape[1]), new)


def _forbid(
  logits: Array, past: Array | None, index: Array, config: DecodingConfig
) -> Array:
  """-inf where a token would repeat an n-gram, or end too early.

  Arguments as of `_penalize`.
  """
  _, vocab = logits.shape
  if config.min_length:
    end = (jnp.arange(vocab) == EOS_ID) & (index < config.min_length)
    logits = jnp.where(end[None], -jnp.inf, logits)
  size = config.no_repeat_ngram
  if size and past is not None and size <= past.shape[1]:
    # Of every n-gram its last token, where all before it are the newest ones.
    count = past.shape[1] - size + 1
    is_repeat = jnp.arange(count)[None] + size - 1 < index
    for i in range(size - 1):
      newest = past[:, jnp.maximum(index - size + 1 + i, 0)]
      is_repeat = is_repeat & (past[:, i : i + count] == newest[:, None])
    tokens = jnp.where(is_repeat, past[:, size - 1 :], vocab)
    logits = _put(logits, tokens, -jnp.inf)
  return logits


def _written(past: Array, index: Array, other: int) -> Array:
  """Of [N, L] those before `index`, `other` in the places of the others."""
  return jnp.where(jnp.arange(past.shape[1])[None] < index, past, other)


def _put(x: Array, columns: Array, values: Array | float) -> Array:
  """[N, M] with values at [N, J] columns; columns beyond M are left out.

  A column that comes several times must have one value.
  """
  rows = jnp.arange(len(x))[:, None]
  return x.at[rows, columns].set(values, mode='drop')


def _draw(
  logits: Array, keys: Array, index: Array, config: DecodingConfig
) -> Array:
  """Draws a token for each row.

  Args:
    logits: [N, vocab].
    keys: [N] random keys, of the rows.
    index: scalar int, the position.
    config: temperature, `top_k` and `top_p`.

  Returns: [N] int32.
  """
  keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
  # Relative to the largest, so that no temperature is too low.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  logits = logits / config.temperature
  draw = jax.vmap(jax.random.categorical)
  if not config.top_k and config.top_p == 1:
    return jnp.asarray(draw(keys, logits), jnp.int32)
  vocab = logits.shape[-1]
  logits, tokens = jax.lax.top_k(logits, min(config.top_k or vocab, vocab))
  if config.top_p < 1:
    probabilities = jax.nn.softmax(logits)
    likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The likeliest has none before it, but for rounding.
    is_in = (likelier < config.top_p).at[:, 0].set(True)
    logits = jnp.where(is_in, logits, -jnp.inf)
  rank = draw(keys, logits)
  return jnp.take_along_axis(tokens, rank[:, None], axis=1)[:, 0]


def _where(rows: Array, x: Any, y: Any) -> Array:
  """`jnp.where` by [B] rows of [B, ...] arrays; either may be a number."""
  rank = max(jnp.ndim(x), jnp.ndim(y))
  return jnp.where(jnp.reshape(rows, (-1,) + (1,) * (rank - 1)), x, y)


def _pick(tree: Any, index: Array) -> Any:
  """Of leaves [B, K, ...] those at index [B, J]: [B, J, ...]."""
  return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, index), tree)


def _split(x: Array, batch: int) -> Array:
  """[B * K, ...] -> [B, K, ...]."""
  return jnp.reshape(x, (batch, -1, *x.shape[1:]))


def _record(history: Any, entry: Any, index: Array) -> Any:
  """Puts leaves [...] at `index` of leaves [L, ...]."""
  return jax.tree.map(
    lambda h, e: jax.lax.dynamic_update_index_in_dim(h, e, index, 0),
    history,
    entry,
  )


def _empty_aux(
  step_fn: StepFn, tokens: Array, cache: Any, length: int, rows: tuple[int, ...]
) -> Any:
  """Zeros [length, *rows, ...] for what `step_fn` will give beside logits."""
  shapes = jax.eval_shape(step_fn, tokens, jnp.int32(0), cache)[1]
  return jax.tree.map(
    lambda s: jnp.zeros((length, *rows, *s.shape[1:]), s.dtype), shapes
  )
