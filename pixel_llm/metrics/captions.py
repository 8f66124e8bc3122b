# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption metrics: BLEU and CIDEr-D, equal to pycocoevalcap's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pixel_llm.metrics import ptb

Ngrams = Counter[tuple[str, ...]]

_MAX_NGRAM = 4
_CIDER_SIGMA = 6.0


def bleu(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU-1 to BLEU-4 of raw captions.

  Args:
    targets: the reference captions of each example, at least one; empty
      strings are padding, and an example with nothing else does not count.
    predictions: one caption an example, in the same order.

  Returns: {'bleu_1': ..., 'bleu_2': ..., 'bleu_3': ..., 'bleu_4': ...} in
    [0, 1].

  Raises:
    ValueError: the lists disagree in length, or no example counts.
  """
  scores = corpus_bleu(*_tokenized(targets, predictions))
  return {f'bleu_{n}': score for n, score in enumerate(scores, 1)}


def cider_d(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """CIDEr-D of raw captions; document frequencies are the targets' own.

  What the field's tables call CIDEr is this number, most often times 100.

  Args:
    targets: as for `bleu`.
    predictions: as for `bleu`.

  Returns: {'cider_d': mean over examples}, in [0, 10]; 0 for a single example,
    in which no word is rarer than another.

  Raises:
    ValueError: as for `bleu`.
  """
  scores = cider_d_scores(*_tokenized(targets, predictions))
  return {'cider_d': float(np.mean(scores))}


def caption_baseline(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """The scores of the most frequent reference, said of every image.

  The caption is taken from the evaluated references themselves, which makes
  the baseline stronger than one that only saw the training set.

  Args:
    targets: as for `bleu`.
    predictions: any; only their number is looked at.

  Returns: {'cider_d_baseline': ..., 'bleu_4_baseline': ...}.

  Raises:
    ValueError: as for `bleu`.
  """
  counts = Counter(text for texts in targets for text in texts if text)
  # Ties are broken by the text, so that the order of examples says nothing.
  caption = min(counts, key=lambda text: (-counts[text], text), default='')
  constant = [caption] * len(predictions)
  return {
    'cider_d_baseline': cider_d(targets, constant)['cider_d'],
    'bleu_4_baseline': bleu(targets, constant)['bleu_4'],
  }


def corpus_bleu(
  references: Sequence[Sequence[Sequence[str]]],
  hypotheses: Sequence[Sequence[str]],
) -> list[float]:
  """BLEU-1 to BLEU-4 over a corpus of tokens.

  Counts are clipped by the largest count in any reference; the brevity penalty
  compares with the reference of the closest length, the shorter one of two.

  Args:
    references: tokens of each reference of each example.
    hypotheses: tokens of one caption an example.

  Returns: the four scores, in [0, 1].

  Source: Papineni et al. 2002; pycocoevalcap `bleu/bleu_scorer.py`, with its
    smoothing constants, which only keep an empty corpus from dividing by zero.
  """
  correct = np.zeros(_MAX_NGRAM)
  total = np.zeros(_MAX_NGRAM)
  length = reference_length = 0
  for refs, hypothesis in zip(references, hypotheses, strict=True):
    size = len(hypothesis)
    length += size
    reference_length += min((abs(len(ref) - size), len(ref)) for ref in refs)[1]
    limit: Ngrams = Counter()
    for ref in refs:
      limit |= _ngrams(ref)
    for ngram, count in (_ngrams(hypothesis) & limit).items():
      correct[len(ngram) - 1] += count
    total += np.maximum(size - np.arange(_MAX_NGRAM), 0)
  precisions = (correct + 1e-15) / (total + 1e-9)
  scores = np.cumprod(precisions) ** (1 / np.arange(1, _MAX_NGRAM + 1))
  ratio = (length + 1e-15) / (reference_length + 1e-9)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  return [float(score) * penalty for score in scores]


def cider_d_scores(
  references: Sequence[Sequence[Sequence[str]]],
  hypotheses: Sequence[Sequence[str]],
) -> np.ndarray:
  """CIDEr-D of each caption of a corpus of tokens.

  Args:
    references: tokens of each reference of each example.
    hypotheses: tokens of one caption an example.

  Returns: [examples] float64 in [0, 10].

  Source: Vedantam et al. 2015, section 5 and equation 7; pycocoevalcap
    `cider/cider_scorer.py`: sigma 6, n-grams up to 4, times 10.
  """
  counted = [[_ngrams(ref) for ref in refs] for refs in references]
  documents = Counter(ngram for refs in counted for ngram in set().union(*refs))
  log_corpus = math.log(len(counted)) if counted else 0.0

  def vectors(ngrams: Ngrams) -> tuple[list[dict], np.ndarray, int]:
    """tf-idf by n-gram order, their norms, and the length."""
    tfidf: list[dict] = [{} for _ in range(_MAX_NGRAM)]
    for ngram, count in ngrams.items():
      idf = log_corpus - math.log(max(1, documents[ngram]))
      tfidf[len(ngram) - 1][ngram] = count * idf
    norms = np.sqrt([sum(x * x for x in v.values()) for v in tfidf])
    # The original measures length in bigrams: it differs from words only
    # where a caption is empty.
    return tfidf, norms, sum(c for g, c in ngrams.items() if len(g) == 2)

  scores = []
  for refs, hypothesis in zip(counted, hypotheses, strict=True):
    tfidf, norms, length = vectors(_ngrams(hypothesis))
    score = 0.0
    for ref in refs:
      ref_tfidf, ref_norms, ref_length = vectors(ref)
      penalty = math.exp(-((length - ref_length) ** 2) / (2 * _CIDER_SIGMA**2))
      for n in range(_MAX_NGRAM):
        dot = sum(
          min(value, ref_tfidf[n][ngram]) * ref_tfidf[n][ngram]
          for ngram, value in tfidf[n].items()
          if ngram in ref_tfidf[n]
        )
        norm = norms[n] * ref_norms[n]
        if norm > 0:
          score += penalty * dot / norm / _MAX_NGRAM
    scores.append(10.0 * score / len(refs))
  return np.array(scores)


def _ngrams(tokens: Sequence[str]) -> Ngrams:
  """All n-grams of order 1 to 4 and their counts."""
  return Counter(
    tuple(tokens[i : i + n])
    for n in range(1, _MAX_NGRAM + 1)
    for i in range(len(tokens) - n + 1)
  )


def _tokenized(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> tuple[list[list[list[str]]], list[list[str]]]:
  """Tokens of the examples that have a reference."""
  if len(targets) != len(predictions):
    raise ValueError(
      f'expected as many captions as examples, got {len(predictions)} and '
      f'{len(targets)}.'
    )
  references, hypotheses = [], []
  for texts, prediction in zip(targets, predictions):
    if isinstance(texts, str):
      raise ValueError(
        f'expected a list of reference captions, got a string: {texts!r}.'
      )
    refs = [ptb.tokenize(text) for text in texts if text]
    if refs:
      references.append(refs)
      hypotheses.append(ptb.tokenize(prediction))
  if not references:
    raise ValueError(
      f'caption metrics: none of {len(targets)} examples has a reference.'
    )
  return references, hypotheses
