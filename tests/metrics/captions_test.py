# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption metrics equal pycocoevalcap's, and what is known by hand."""

import json
import math
import pathlib

import numpy as np
import pytest

from pixel_llm.metrics import captions

_METRICS = (captions.bleu, captions.cider_d, captions.cider, captions.rouge_l)
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
  rouge = pytest.importorskip('pycocoevalcap.rouge.rouge').Rouge()
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
  hypotheses[0], references[1] = [], [[], *references[1]]
  gts[1], res[0] = ['', *gts[1]], ['']
  np.testing.assert_allclose(
    captions.rouge_l_scores(references, hypotheses),
    rouge.compute_score(gts, res)[1],
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


def test_cider_by_hand():
  targets = [['red ring'], ['blue star here']]
  # As for CIDEr-D, but a word said twice is not clipped, nor is length
  # looked at: cosine 2 / (sqrt(5) sqrt(2)) of unigrams.
  result = captions.cider(targets, ['red red dog', ''])
  expected = 2 / math.sqrt(5) / math.sqrt(2)
  assert result['cider'] == pytest.approx(10 * expected / 4 / 2)
  clipped = 1 / math.sqrt(5) / math.sqrt(2) * math.exp(-1 / 72)
  result = captions.cider_d(targets, ['red red dog', ''])
  assert result['cider_d'] == pytest.approx(10 * clipped / 4 / 2)


def test_rouge_l_by_hand():
  # In common, in order: a, b, d; the other reference has the best recall.
  result = captions.rouge_l([['a x b c d', 'e a']], ['a b d e'])
  precision, recall = 3 / 4, 3 / 5
  expected = 2.44 * precision * recall / (recall + 1.44 * precision)
  assert result['rouge_l'] == pytest.approx(expected)
  result = captions.rouge_l([['a x b c d', 'e']], ['a b d e'])
  expected = 2.44 * precision * 1 / (1 + 1.44 * precision)
  assert result['rouge_l'] == pytest.approx(expected)


def test_longest_common_subsequence_equals_the_table():
  rng = np.random.default_rng(0)
  for _ in range(100):
    a, b = (rng.choice(list('abcd'), rng.integers(1, 90)) for _ in range(2))
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
      for j, y in enumerate(b):
        table[i + 1, j + 1] = (
          table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        )
    score = captions.rouge_l_scores([[list(a)]], [list(b)])[0]
    precision, recall = table[-1, -1] / len(b), table[-1, -1] / len(a)
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert score == pytest.approx(expected)


def test_spice_says_what_is_missing(monkeypatch):
  monkeypatch.setenv('PATH', '')
  with pytest.raises(captions.SpiceError, match='java: None'):
    captions.spice([['a dog']], ['a dog'])


def test_perfect_captions():
  texts = [f'image {i} shows a thing called {w}' for i, w in enumerate('abcd')]
  targets = [[t] for t in texts]
  assert captions.cider_d(targets, texts)['cider_d'] == pytest.approx(10)
  assert captions.cider(targets, texts)['cider'] == pytest.approx(10)
  assert captions.rouge_l(targets, texts)['rouge_l'] == pytest.approx(1)
  for score in captions.bleu(targets, texts).values():
    assert score == pytest.approx(1)


def test_order_of_examples_is_irrelevant(golden):
  targets, predictions = golden['targets'][:40], golden['predictions'][:40]
  for metric in _METRICS:
    assert metric(targets, predictions) == pytest.approx(
      metric(targets[::-1], predictions[::-1])
    )


def test_padding_counts_nothing():
  targets = [['a red ring'], ['a blue star', 'a star']]
  predictions = ['a red star', 'a blue ring']
  padded = [['a red ring', ''], [''], ['a blue star', '', 'a star'], []]
  for metric in _METRICS:
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
