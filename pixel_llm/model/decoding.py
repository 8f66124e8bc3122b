# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search over a cached decoder.

Both drive a pure function of one position,

  step_fn(tokens, index, cache) -> (logits, aux, cache)

with tokens [N] int32 (0, the begin token, at index 0), index a scalar int,
logits [N, vocab] and aux any tree of [N, ...]: what the decoder knows of the
token it is about to choose, such as its hidden state or its points. Leaves of
the cache are [layers, N, ...]. What does not change with the hypotheses, such
as the encoder's keys and values, is the closure's.

Source: T5X, `t5x/decoding.py`: `beam_search` and `temperature_sample` at
temperature 0, whose tokens and scores these give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
    alpha: exponent of the length penalty; 0 turns it off.
    finish_outside_beam: a hypothesis may end although its end token ranks
      below the best `beams` continuations, among the best 2 * beams: T5X's
      rule, by which even one beam differs from greedy search.
  """

  length: int = 128
  beams: int = 1
  alpha: float = 0.6
  finish_outside_beam: bool = False


@struct.dataclass
class Decoded:
  """B rows; the best hypothesis of each, and all K of them, best first.

  Attributes:
    tokens: [B, L] int32, end token kept, 0 after it.
    log_probs: [B, L], of each token; 0 after the end.
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


def decode(
  step_fn: StepFn, cache: Any, batch: int, config: DecodingConfig
) -> Decoded:
  """Beam search, or with one beam greedy search unless by T5X's rule."""
  outside = config.finish_outside_beam
  search = greedy if config.beams == 1 and not outside else beam
  return search(step_fn, cache, batch, config)


def greedy(
  step_fn: StepFn, cache: Any, batch: int, config: DecodingConfig
) -> Decoded:
  """Takes the likeliest token at each position until every row has ended.

  Args:
    step_fn: one position, see above; N = batch.
    cache: its first cache, [layers, batch, ...].
    batch: rows, B.
    config: only `length` matters.

  Returns:
    The one hypothesis of each row; scores are sums of log probabilities.
  """

  def keep_going(state):
    return (state['index'] < config.length) & ~jnp.all(state['ended'])

  def body(state):
    index, ended = state['index'], state['ended']
    logits, aux, cache = step_fn(state['tokens'], index, state['cache'])
    logits = jnp.asarray(logits, jnp.float32)
    tokens = jnp.asarray(jnp.argmax(logits, axis=-1), jnp.int32)
    # The largest logit is the chosen one's.
    log_probs = jnp.max(logits, -1) - jax.nn.logsumexp(logits, axis=-1)
    entry = {'tokens': tokens, 'log_probs': log_probs, 'aux': aux}
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
  step_fn: StepFn, cache: Any, batch: int, config: DecodingConfig
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
    cache: the first cache, [layers, batch, ...]; expanded here.
    batch: rows, B.
    config: how to search.

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
    token_log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
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

    may_end = ends
    if not config.finish_outside_beam:
      may_end = ends & (jnp.arange(2 * beams) < beams)[None]
    scores = total / penalty(index + 1) + _NONE * ~may_end
    found['ends'] = jnp.full_like(choice, index)
    found['scores'] = scores
    both = jax.tree.map(
      lambda old, new: jnp.concatenate([old, new], axis=1), ended, found
    )
    _, best = jax.lax.top_k(both['scores'], beams)

    rows = jnp.reshape(jnp.arange(batch)[:, None] * beams + live['slots'], -1)
    aux = jax.tree.map(lambda x: _split(x, batch), aux)
    return {
      'index': index + 1,
      'tokens': live['tokens'],
      'log_probs': live_log_probs,
      'ended': _pick(both, best),
      'history': _record(state['history'], live, index),
      'aux': _record(state['aux'], aux, index),
      'cache': jax.tree.map(lambda x: jnp.take(x, rows, axis=1), cache),
    }

  # At first the beams are one and the same: only one of them counts.
  only_first = jnp.where(jnp.arange(beams) == 0, 0.0, _NONE)
  tokens = jnp.zeros((batch, beams), jnp.int32)
  cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache)
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
