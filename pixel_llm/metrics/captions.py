# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Caption metrics: BLEU, ROUGE-L, CIDEr and CIDEr-D, and SPICE by its program.

All but CIDEr, which pycocoevalcap does not have, equal that package's.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pathlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pixel_llm.metrics import ptb

Ngrams = Counter[tuple[str, ...]]

_MAX_NGRAM = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2


class SpiceError(RuntimeError):
  """SPICE's program is not there, or failed."""


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
  scores = corpus_bleu(*tokenized(targets, predictions))
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
  scores = cider_d_scores(*tokenized(targets, predictions))
  return {'cider_d': float(np.mean(scores))}


def cider(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """CIDEr as it was first defined, of raw captions.

  Not what tables call by this name, which is CIDEr-D.

  Args:
    targets: as for `bleu`.
    predictions: as for `bleu`.

  Returns: {'cider': mean over examples}, in [0, 10].

  Raises:
    ValueError: as for `bleu`.
  """
  scores = cider_scores(*tokenized(targets, predictions))
  return {'cider': float(np.mean(scores))}


def rouge_l(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """ROUGE-L of raw captions.

  Args:
    targets: as for `bleu`.
    predictions: as for `bleu`.

  Returns: {'rouge_l': mean over examples}, in [0, 1].

  Raises:
    ValueError: as for `bleu`.
  """
  scores = rouge_l_scores(*tokenized(targets, predictions))
  return {'rouge_l': float(np.mean(scores))}


def spice(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """SPICE of raw captions, by its own program in Java.

  Args:
    targets: as for `bleu`.
    predictions: as for `bleu`.

  Returns: {'spice': mean F over examples}, in [0, 1].

  Raises:
    ValueError: as for `bleu`.
    SpiceError: Java, pycocoevalcap or the models of Stanford CoreNLP 3.6.0
      beside its SPICE are not there, or the program failed.

  Source: Anderson et al. 2016; pycocoevalcap `spice/spice.py`.
  """
  found = importlib.util.find_spec('pycocoevalcap')
  places = (found and found.submodule_search_locations) or []
  models = [
    path
    for place in places
    for path in (pathlib.Path(place) / 'spice' / 'lib').glob(
      'stanford-corenlp-3.6.0*.jar'
    )
  ]
  # The package would fetch them, from an address that it knows.
  if len(models) < 2 or not shutil.which('java'):
    raise SpiceError(
      'SPICE: expected java on PATH, the package pycocoevalcap (pip install '
      "'pixel-llm[metrics]'), and stanford-corenlp-3.6.0.jar and "
      'stanford-corenlp-3.6.0-models.jar in its folder spice/lib, got '
      f'java: {shutil.which("java")}, pycocoevalcap: {list(places)}, jars: '
      f'{[path.name for path in models]}.'
    )
  references, hypotheses = tokenized(targets, predictions)
  program = importlib.import_module('pycocoevalcap.spice.spice').Spice()
  try:
    score, _ = program.compute_score(
      {i: [' '.join(r) for r in refs] for i, refs in enumerate(references)},
      {i: [' '.join(tokens)] for i, tokens in enumerate(hypotheses)},
    )
  except (OSError, subprocess.CalledProcessError) as e:
    raise SpiceError(
      f'SPICE: its program failed ({e}); it needs a Java of its time, 8, and '
      'to write beside itself.'
    ) from e
  return {'spice': float(score)}


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
  return _consensus(references, hypotheses, clipped=True)


def cider_scores(
  references: Sequence[Sequence[Sequence[str]]],
  hypotheses: Sequence[Sequence[str]],
) -> np.ndarray:
  """CIDEr of each caption of a corpus of tokens.

  Args:
    references: tokens of each reference of each example.
    hypotheses: tokens of one caption an example.

  Returns: [examples] float64 in [0, 10].

  Source: Vedantam et al. 2015, equations 2 and 3, times 10; as vrama91/cider,
    `cider_scorer.py`, words are not stemmed.
  """
  return _consensus(references, hypotheses, clipped=False)


def _consensus(
  references: Sequence[Sequence[Sequence[str]]],
  hypotheses: Sequence[Sequence[str]],
  clipped: bool,
) -> np.ndarray:
  """Mean cosine of tf-idf; clipped counts and a penalty for length or not."""
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
      penalty = 1.0
      if clipped:
        gap = length - ref_length
        penalty = math.exp(-(gap**2) / (2 * _CIDER_SIGMA**2))
      for n in range(_MAX_NGRAM):
        dot = sum(
          (min(value, other) if clipped else value) * other
          for ngram, value in tfidf[n].items()
          if (other := ref_tfidf[n].get(ngram)) is not None
        )
        norm = norms[n] * ref_norms[n]
        if norm > 0:
          score += penalty * dot / norm / _MAX_NGRAM
    scores.append(10.0 * score / len(refs))
  return np.array(scores)


def rouge_l_scores(
  references: Sequence[Sequence[Sequence[str]]],
  hypotheses: Sequence[Sequence[str]],
) -> np.ndarray:
  """ROUGE-L of each caption of a corpus of tokens.

  F of the longest common subsequence, of the best precision and the best
  recall that any reference gives.

  Args:
    references: tokens of each reference of each example.
    hypotheses: tokens of one caption an example.

  Returns: [examples] float64 in [0, 1].

  Source: Lin 2004; pycocoevalcap `rouge/rouge.py`, with its beta of 1.2.
  """
  scores = []
  for refs, hypothesis in zip(references, hypotheses, strict=True):
    # An empty caption is one empty word there.
    words = hypothesis or ['']
    common = [(_common(ref or [''], words), len(ref or [''])) for ref in refs]
    precision = max(n for n, _ in common) / len(words)
    recall = max(n / length for n, length in common)
    weight = _ROUGE_BETA**2
    scores.append(
      (1 + weight) * precision * recall / (recall + weight * precision)
      if precision
      else 0.0
    )
  return np.array(scores)


def _common(words: Sequence[str], others: Sequence[str]) -> int:
  """Length of the longest common subsequence, a column of bits at a time.

  Source: Hyyrö 2004.
  """
  places: dict[str, int] = {}
  for i, word in enumerate(words):
    places[word] = places.get(word, 0) | 1 << i
  # Bit i is 0 where the subsequence grows with word i.
  column = full = (1 << len(words)) - 1
  for word in others:
    same = column & places.get(word, 0)
    column = (column + same | column - same) & full
  return len(words) - column.bit_count()


def _ngrams(tokens: Sequence[str]) -> Ngrams:
  """All n-grams of order 1 to 4 and their counts."""
  return Counter(
    tuple(tokens[i : i + n])
    for n in range(1, _MAX_NGRAM + 1)
    for i in range(len(tokens) - n + 1)
  )


def tokenized(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> tuple[list[list[list[str]]], list[list[str]]]:
  """Tokens of the examples that have a reference.

  Raises:
    ValueError: as for `bleu`.
  """
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
