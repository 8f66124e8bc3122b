# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""BLEU and CIDEr-D equal pycocoevalcap's, and what is known by hand."""

import json
import math
import pathlib

import numpy as np
import pytest

from pixel_llm.metrics import captions

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'captions.json'


@pytest.fixture(scope='module')
def golden():
  return json.loads(_GOLDEN.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def tokens(golden):
  """References and hypotheses in pycocoevalcap's own tokens."""
  table = dict(golden['sentences'])
  references = [[table[t] for t in texts] for texts in golden['targets']]
  return references, [table[t] for t in golden['predictions']]


def test_bleu_equals_golden(golden, tokens):
  np.testing.assert_allclose(
    captions.corpus_bleu(*tokens), golden['bleu'], rtol=0, atol=1e-9
  )


def test_cider_d_equals_golden(golden, tokens):
  np.testing.assert_allclose(
    captions.cider_d_scores(*tokens), golden['cider_d_scores'],
    rtol=0, atol=1e-9,
  )  # fmt: skip


def test_raw_captions_equal_golden(golden):
  targets, predictions = golden['targets'], golden['predictions']
  bleu = captions.bleu(targets, predictions)
  assert list(bleu.values()) == pytest.approx(golden['bleu'], abs=1e-6)
  cider = captions.cider_d(targets, predictions)
  assert cider['cider_d'] == pytest.approx(golden['cider_d'], abs=1e-6)


def test_equal_to_live_package(tokens):
  bleu = pytest.importorskip('pycocoevalcap.bleu.bleu').Bleu(4)
  cider = pytest.importorskip('pycocoevalcap.cider.cider').Cider()
  rng = np.random.default_rng(0)
  references, hypotheses = tokens
  order = rng.permutation(len(hypotheses))[:60]
  # Shuffled, so that hypotheses meet references they were not made for.
  hypotheses = [hypotheses[i] for i in rng.permutation(order)]
  references = [references[i] for i in order]
  gts = {i: [' '.join(r) for r in refs] for i, refs in enumerate(references)}
  res = {i: [' '.join(h)] for i, h in enumerate(hypotheses)}
  np.testing.assert_allclose(
    captions.corpus_bleu(references, hypotheses),
    bleu.compute_score(gts, res, verbose=0)[0],
    rtol=0, atol=1e-9,
  )  # fmt: skip
  np.testing.assert_allclose(
    captions.cider_d_scores(references, hypotheses),
    cider.compute_score(gts, res)[1],
    rtol=0, atol=1e-9,
  )  # fmt: skip


def test_bleu_by_hand():
  # Unigrams: 'the' is clipped to 2 of 7; no bigram is right.
  result = captions.bleu(
    [['The cat is on the mat.', 'There is a cat on the mat']],
    ['the the the the the the the'],
  )
  assert result['bleu_1'] == pytest.approx(2 / 7)
  assert result['bleu_2'] < 1e-6


def test_brevity_penalty_takes_the_closest_then_the_shorter_reference():
  result = captions.bleu([['a b c d', 'a b c d e f']], ['a b c d e'])
  assert result['bleu_1'] == pytest.approx(1.0)
  result = captions.bleu([['a b c d e f g h']], ['a b c d'])
  assert result['bleu_4'] == pytest.approx(math.exp(1 - 8 / 4))


def test_cider_d_by_hand():
  # Two images without a word in common: every idf is log 2 and cancels.
  targets = [['red ring'], ['blue star here']]
  # One unigram of two, no bigram, lengths in bigrams equal: cosine 1/2.
  result = captions.cider_d(targets, ['red dog', ''])
  assert result['cider_d'] == pytest.approx(10 * (1 / 2) / 4 / 2)


def test_perfect_captions():
  texts = [f'image {i} shows a thing called {w}' for i, w in enumerate('abcd')]
  targets = [[t] for t in texts]
  assert captions.cider_d(targets, texts)['cider_d'] == pytest.approx(10)
  for score in captions.bleu(targets, texts).values():
    assert score == pytest.approx(1)


def test_order_of_examples_is_irrelevant(golden):
  targets, predictions = golden['targets'][:40], golden['predictions'][:40]
  for metric in (captions.bleu, captions.cider_d):
    assert metric(targets, predictions) == pytest.approx(
      metric(targets[::-1], predictions[::-1])
    )


def test_padding_counts_nothing():
  targets = [['a red ring'], ['a blue star', 'a star']]
  predictions = ['a red star', 'a blue ring']
  padded = [['a red ring', ''], [''], ['a blue star', '', 'a star'], []]
  for metric in (captions.bleu, captions.cider_d):
    assert metric(targets, predictions) == metric(
      padded, ['a red star', 'a dog', 'a blue ring', '']
    )


def test_baseline_says_the_most_frequent_reference():
  targets = [['a red ring', 'a ring'], ['a ring'], ['a blue star']]
  result = captions.caption_baseline(targets, ['', '', ''])
  constant = ['a ring'] * 3
  assert result == {
    'cider_d_baseline': captions.cider_d(targets, constant)['cider_d'],
    'bleu_4_baseline': captions.bleu(targets, constant)['bleu_4'],
  }
  assert result['cider_d_baseline'] > 0


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='as many captions'):
    captions.bleu([['a']], [])
  with pytest.raises(ValueError, match='a list of reference captions'):
    captions.cider_d(['a dog'], ['a dog'])
  with pytest.raises(ValueError, match='none of 1 examples'):
    captions.cider_d([['']], ['a dog'])
