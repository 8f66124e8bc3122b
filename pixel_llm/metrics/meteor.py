# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""METEOR 1.5 for English, as pycocoevalcap runs it, without Java.

The parameters are those of its ranking task, words are normalized as with
`-norm`. Function words, WordNet's synonyms and the table of paraphrases are
read where the package pycocoevalcap carries them, when they are first asked
for.

Reference: there, words are equal when Java's hashes of them are; here when they
are.

Source: Denkowski and Lavie 2014, and what `meteor-1.5.jar` does.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import gzip
import importlib.util
import operator
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pixel_llm.metrics import captions, stemmer

# Recall against precision, shape and weight of fragmentation, content words
# against function words.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
# Of words that are equal, have one stem, are synonyms, are paraphrases.
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
_EXACT, _STEM, _SYNONYM, _PARAPHRASE = range(4)
_BEAM = 40

_LETTERS = 'A-Za-zŠŽšžŸÀ-ÖØ-öø-žЀ-ӿԀ-ԧꙀ-ꙮ꙾-ꚗᴀ-ᵿ'
# What stands alone, in this order; a run of dots is hidden meanwhile.
_HIDDEN = '\ue000'
_RULES = [
  (re.compile(pattern), by)
  for pattern, by in (
    (rf"([^0-9{_LETTERS}\s.'`,\-‘’])", r' \1 '),
    (r'\.{2,}', lambda match: f' {_HIDDEN * len(match.group())} '),
    (r'([^0-9]),([^0-9])', r'\1 , \2'),
    (r'([0-9]),([^0-9])', r'\1 , \2'),
    (r'([^0-9]),([0-9])', r'\1 , \2'),
    (r'[`‘’]', "'"),
    (r"[“”]|''", ' " '),
    (r'–|--', '-'),
    (rf'([0-9{_LETTERS}.])-([0-9{_LETTERS}])', r'\1 \2'),
    (rf"([^{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
    (rf"([^0-9{_LETTERS}])'([{_LETTERS}])", r"\1 ' \2"),
    (rf"([{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
    (rf"([{_LETTERS}])'([{_LETTERS}])", r"\1 '\2"),
    (r"([0-9])'(s)", r"\1 '\2"),
  )
]
_DOTTED = re.compile(rf'(?=.*[{_LETTERS}]).*\..*\.')


class MeteorDataError(RuntimeError):
  """The data that METEOR needs is not there."""


def meteor(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """METEOR of raw captions, tokenized as for the other caption metrics.

  Args:
    targets: the reference captions of each example, at least one; empty
      strings are padding, and an example with nothing else does not count.
    predictions: one caption an example, in the same order.

  Returns: {'meteor': score of the corpus}, in [0, 1].

  Raises:
    ValueError: the lists disagree in length, or no example counts.
    MeteorDataError: as for `Meteor`.
  """
  references, hypotheses = captions.tokenized(targets, predictions)
  corpus, _ = load().scores(
    [[' '.join(tokens) for tokens in refs] for refs in references],
    [' '.join(tokens) for tokens in hypotheses],
  )
  return {'meteor': corpus}


def text_scores(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
  """METEOR of each raw caption, as DenseCap's evaluator asks for it.

  Args:
    predictions: captions.
    references: those of each, in the same order; without any the score is 0.

  Raises:
    MeteorDataError: as for `Meteor`.
  """
  return load().scores(references, predictions)[1]


def installed() -> bool:
  """Whether pycocoevalcap with its data is there."""
  return _folder() is not None


@functools.lru_cache(maxsize=1)
def load(folder: str | os.PathLike[str] | None = None) -> Meteor:
  """The scorer, whose data is read once.

  Args:
    folder: with `meteor-1.5.jar` and `data/paraphrase-en.gz`; None takes that
      of pycocoevalcap.

  Raises:
    MeteorDataError: as for `Meteor`.
  """
  found = _folder() if folder is None else pathlib.Path(folder)
  if found is None:
    raise MeteorDataError(
      'METEOR: expected the data of the package pycocoevalcap, which is not '
      "installed: pip install 'pixel-llm[metrics]'."
    )
  return Meteor(found)


def normalize(text: str, prefixes: Mapping[str, bool]) -> list[str]:
  """Words and punctuation as METEOR counts them, lower case.

  Args:
    text: raw, of a line.
    prefixes: abbreviations that keep their full stop; True for those that do
      before a number alone.
  """
  text = f' {text} '
  for pattern, by in _RULES:
    text = pattern.sub(by, text)
  words = text.split()
  out: list[str] = []
  for word, following in zip(words, [*words[1:], '']):
    before = word[:-1]
    if not before or not word.endswith('.'):
      out.append(word)
    elif _DOTTED.fullmatch(word):
      out.append(word.replace('.', ''))
    elif (
      'a' <= following[:1] <= 'z'
      or prefixes.get(before) is False
      or (prefixes.get(before) and '0' <= following[:1] <= '9')
    ):
      out.append(word)
    else:
      out += [before, '.']
  return ' '.join(out).replace(_HIDDEN, '.').lower().split()


# Words `start` to `start + length` of the reference are matched with words
# `at` to `at + span` of the hypothesis.
@dataclasses.dataclass(frozen=True, slots=True)
class _Match:
  start: int
  length: int
  at: int
  span: int
  way: int
  bits: int  # its words in the reference
  bits_at: int  # its words in the hypothesis
  gain: int


def _match(start: int, length: int, at: int, span: int, way: int) -> _Match:
  # Half a word for what is not equal, each side rounded down: the search gives
  # nothing for single words, and leaves out those it could match in two ways.
  gain = length + span if way == _EXACT else length // 2 + span // 2
  bits = ((1 << length) - 1) << start
  return _Match(
    start, length, at, span, way, bits, ((1 << span) - 1) << at, gain
  )


@dataclasses.dataclass(slots=True)
class _Path:
  """A choice of matches for the words of the reference so far."""

  lost: int  # minus all gains
  chunks: int
  distance: int
  next: int  # the word behind the last match
  end: int  # the hypothesis' word behind the last match; -1 after a gap
  used: int  # bits of the reference's words
  used_at: int  # bits of the hypothesis' words
  chosen: tuple[_Match, ...]

  def take(self, match: _Match) -> None:
    self.lost -= match.gain
    self.chunks += self.end not in (-1, match.at)
    self.next = match.start + match.length
    self.end = match.at + match.span


_RANK = operator.attrgetter('lost', 'chunks', 'distance')


class Meteor:
  """Scores captions.

  Args:
    folder: with `meteor-1.5.jar` and `data/paraphrase-en.gz`.

  Raises:
    MeteorDataError: a file is missing or damaged.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    jar = folder / 'meteor-1.5.jar'
    try:
      with zipfile.ZipFile(jar) as archive:
        lines = {
          name: archive.read(name).decode('utf-8').split('\n')
          for name in (
            'function/english.words',
            'synonym/english.synsets',
            'synonym/english.exceptions',
            'nonbreaking/english.prefixes',
          )
        }
      self._paraphrases = _Paraphrases(folder / 'data' / 'paraphrase-en.gz')
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as e:
      raise MeteorDataError(
        f'METEOR: expected meteor-1.5.jar and data/paraphrase-en.gz, whole, in '
        f'{folder}: {e}. They come with pycocoevalcap: pip install '
        "'pixel-llm[metrics]'."
      ) from e
    self._function_words = frozenset(lines['function/english.words'])
    self._prefixes = {
      words[0]: words[1:2] == ['#NUMERIC_ONLY#']
      for line in lines['nonbreaking/english.prefixes']
      if (words := line.split()) and not words[0].startswith('#')
    }
    words = lines['synonym/english.synsets']
    self._synsets = dict(zip(words[::2], words[1::2]))
    self._bases: dict[str, list[str]] = {}
    words = lines['synonym/english.exceptions']
    for base, forms in zip(words[::2], words[1::2]):
      for form in forms.split():
        self._bases.setdefault(form, []).append(base)
    self._synonyms = functools.lru_cache(maxsize=1 << 16)(self._find_synonyms)

  def scores(
    self, references: Sequence[Sequence[str]], hypotheses: Sequence[str]
  ) -> tuple[float, list[float]]:
    """METEOR of texts, each with its best reference.

    Args:
      references: of each text; without any it is compared with an empty one.
      hypotheses: the texts.

    Returns: the corpus' score from the sum of all counts, and each text's, in
      [0, 1].

    Raises:
      ValueError: the lists disagree in length.
    """
    if len(references) != len(hypotheses):
      raise ValueError(
        f'METEOR: expected as many texts as references, got {len(hypotheses)} '
        f'and {len(references)}.'
      )
    total, scores = np.zeros(21, np.int64), []
    for refs, hypothesis in zip(references, hypotheses):
      words = self.normalize(hypothesis)
      counts = [
        self._counts(words, self.normalize(ref)) for ref in refs or ['']
      ]
      each = [_score(c) for c in counts]
      best = each.index(max(each))
      scores.append(each[best])
      # A text that is its reference is no chunk of the corpus.
      counts[best][4] *= not _is_whole(counts[best])
      total += counts[best]
    return _score(total.tolist()), scores

  def normalize(self, text: str) -> list[str]:
    """`normalize` with METEOR's abbreviations."""
    return normalize(text, self._prefixes)

  def _counts(self, words: list[str], reference: list[str]) -> list[int]:
    """What the score is made of, which is summed over a corpus.

    Returns: number of words and of function words, of the text and of the
      reference; chunks; then of the text and of the reference, for each way
      of matching, content words and function words matched.
    """
    matches = self._align(words, reference)
    is_function = [
      [word in self._function_words for word in side]
      for side in (words, reference)
    ]
    chunks, end, behind = 0, -1, 0
    matched = [0] * 16
    for m in matches:
      chunks += m.start != behind or m.at != end
      end, behind = m.at + m.span, m.start + m.length
      for function in is_function[0][m.at : end]:
        matched[2 * m.way + function] += 1
      for function in is_function[1][m.start : behind]:
        matched[8 + 2 * m.way + function] += 1
    return [
      len(words),
      sum(is_function[0]),
      len(reference),
      sum(is_function[1]),
      chunks,
      *matched,
    ]

  def _align(self, words: list[str], reference: list[str]) -> list[_Match]:
    """The best matches that share no word, in order of the reference.

    Many words, then few chunks, then little distance is best, as far as a
    search from left to right with a beam of 40 finds it.
    """
    found: list[list[_Match]] = [[] for _ in reference]
    covers, covers_at = [0] * len(reference), [0] * len(words)
    for m in self._matches(words, reference):
      found[m.start].append(m)
      for i in range(m.start, m.start + m.length):
        covers[i] += 1
      for i in range(m.at, m.at + m.span):
        covers_at[i] += 1
    # What competes with nothing is sure.
    sure = {
      some[0].start: some[0]
      for some in found
      if len(some) == 1
      and set(covers[some[0].start : some[0].start + some[0].length]) == {1}
      and set(covers_at[some[0].at : some[0].at + some[0].span]) == {1}
    }
    start = _Path(0, 0, 0, 0, -1, 0, 0, ())
    for m in sure.values():
      start.used |= m.bits
      start.used_at |= m.bits_at
    paths = [start]
    for index, some in enumerate(found):
      paths.sort(key=_RANK)
      following = []
      for path in paths[:_BEAM]:
        if path.used >> index & 1:
          if index >= path.next:
            m = sure[index]
            path.take(m)
            path.distance += abs(m.start - m.at)
          following.append(path)
          continue
        for m in some:
          if m.bits & path.used or m.bits_at & path.used_at:
            continue
          other = dataclasses.replace(path)
          other.take(m)
          other.used |= m.bits
          other.used_at |= m.bits_at
          other.chosen += (m,)
          following.append(other)
          # Counted there for what comes after, not for the match itself.
          path.distance += abs(m.start - m.at)
        path.chunks += path.end != -1
        path.end = -1
        path.next += 1
        following.append(path)
      paths = following
    paths = sorted(paths, key=_RANK)[:_BEAM]
    for path in paths:
      path.chunks += path.end != -1
    best = min(paths, key=_RANK)
    return sorted(
      (*sure.values(), *best.chosen), key=operator.attrgetter('start')
    )

  def _matches(
    self, words: list[str], reference: list[str]
  ) -> Iterator[_Match]:
    """All matches, in the order in which the search tries them."""
    places = _places(words)
    for j, word in enumerate(reference):
      for i in places.get(word, ()):
        yield _match(j, 1, i, 1, _EXACT)
    if words == reference:
      return
    places = _places([stemmer.stem(word) for word in words])
    for j, word in enumerate(reference):
      for i in places.get(stemmer.stem(word), ()):
        if words[i] != word:
          yield _match(j, 1, i, 1, _STEM)
    senses = [(i, s) for i, w in enumerate(words) if (s := self._synonyms(w))]
    for j, word in enumerate(reference):
      if sense := self._synonyms(word):
        for i, other in senses:
          if words[i] != word and not sense.isdisjoint(other):
            yield _match(j, 1, i, 1, _SYNONYM)
    for start, length, at, span in self._paraphrases.matches(reference, words):
      yield _match(start, length, at, span, _PARAPHRASE)
    for at, span, start, length in self._paraphrases.matches(words, reference):
      yield _match(start, length, at, span, _PARAPHRASE)

  def _find_synonyms(self, word: str) -> frozenset[str]:
    """Numbers of WordNet's sets with the word, or with one it is a form of."""
    bases = self._bases.get(word)
    if bases is None:
      bases = [_base(word, self._synsets)]
    return frozenset(
      number
      for base in (word, *bases)
      for number in self._synsets.get(base, '').split()
    )


class _Paraphrases:
  """A table of phrases and their paraphrases, searched where it lies.

  The file has three lines an entry, a probability, a phrase and a paraphrase,
  and is sorted by the bytes of the phrases.
  """

  def __init__(self, path: pathlib.Path):
    self._text = gzip.decompress(path.read_bytes())
    ends = [
      start + np.flatnonzero(part == ord('\n'))
      for start in range(0, len(self._text), 1 << 24)
      for part in [np.frombuffer(self._text, np.uint8)[start:][: 1 << 24]]
    ]
    self._ends = np.concatenate(ends).astype(np.uint32)
    self._entries = range(len(self._ends) // 3)
    self._find = functools.lru_cache(maxsize=1 << 16)(self._lookup)

  def matches(
    self, words: list[str], others: list[str]
  ) -> Iterator[tuple[int, int, int, int]]:
    """Phrases of some words of which others hold a paraphrase.

    Yields: start and length of the phrase, start and length of the paraphrase;
      as the phrases begin, then grow, then as in the file.
    """
    for start in range(len(words)):
      for end in range(start + 1, len(words) + 1):
        table, longer = self._find(' '.join(words[start:end]))
        found = [
          (order, at, len(paraphrase))
          for at, word in enumerate(others)
          for order, paraphrase in table.get(word, ())
          if others[at : at + len(paraphrase)] == paraphrase
        ]
        for _, at, span in sorted(found):
          yield start, end - start, at, span
        if not longer:
          break

  def _lookup(
    self, phrase: str
  ) -> tuple[dict[str, list[tuple[int, list[str]]]], bool]:
    """A phrase's paraphrases by their first word, and if longer ones exist."""
    key = phrase.encode()
    entry = bisect.bisect_left(self._entries, key, key=self._phrase)
    table: dict[str, list[tuple[int, list[str]]]] = {}
    while entry < len(self._entries):
      found = self._phrase(entry)
      if found != key:
        return table, found.startswith(key + b' ')
      words = self._line(3 * entry + 2).decode().split()
      if words:
        table.setdefault(words[0], []).append((entry, words))
      entry += 1
    return table, False

  def _phrase(self, entry: int) -> bytes:
    return self._line(3 * entry + 1)

  def _line(self, number: int) -> bytes:
    return self._text[int(self._ends[number - 1]) + 1 : int(self._ends[number])]


# WordNet's rules for the base of a word; the first that gives a word it has.
_RULES_OF_BASES = (
  's> ses>s xes>x zes>z ches>ch shes>sh men>man ies>y '
  's> ies>y es>e es> ed>e ed> ing>e ing> er> est> er>e est>e'
)
_SUFFIXES = [rule.split('>') for rule in _RULES_OF_BASES.split()]


def _base(word: str, known: dict[str, str]) -> str:
  if word.endswith('ss') or len(word) <= 2:
    return word
  for suffix, by in _SUFFIXES:
    base = word.removesuffix(suffix) + by
    if word.endswith(suffix) and base in known:
      return base
  return ''


def _places(words: list[str]) -> dict[str, list[int]]:
  places: dict[str, list[int]] = {}
  for i, word in enumerate(words):
    places.setdefault(word, []).append(i)
  return places


def _is_whole(counts: Sequence[int]) -> bool:
  """Everything is matched, in one chunk."""
  return (
    sum(counts[5:13]) == counts[0]
    and sum(counts[13:]) == counts[2]
    and counts[4] == 1
  )


def _score(counts: Sequence[int]) -> float:
  """The score of `Meteor._counts`, or of their sum."""
  shares = []
  for length, function, matched in (
    (counts[0], counts[1], counts[5:13]),
    (counts[2], counts[3], counts[13:]),
  ):
    content, other = (
      sum(w * n for w, n in zip(_WEIGHTS, matched[kind::2])) for kind in (0, 1)
    )
    weight = _DELTA * (length - function) + (1 - _DELTA) * function
    part = _DELTA * content + (1 - _DELTA) * other
    shares.append(part / weight if weight else 0.0)
  precision, recall = shares
  if not (precision and recall):
    return 0.0
  mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
  fragments = 0.0 if _is_whole(counts) else counts[4] / (sum(counts[5:]) / 2)
  return max(mean * (1 - _GAMMA * fragments**_BETA), 0.0)


def _folder() -> pathlib.Path | None:
  """METEOR's folder in pycocoevalcap."""
  spec = importlib.util.find_spec('pycocoevalcap')
  if spec is None or not spec.submodule_search_locations:
    return None
  folder = pathlib.Path(next(iter(spec.submodule_search_locations))) / 'meteor'
  return folder if folder.exists() else None
