# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Stems of English words: Porter2 as METEOR 1.5 has it.

Later releases of Snowball treat some words differently; this is the algorithm
as its author described it in 2002, with the exceptions of METEOR's copy.

Source: Porter, "The English (Porter2) stemming algorithm".
"""

from __future__ import annotations

import functools
import re

_UNCHANGED = 'sky news howe atlas cosmos bias andes'
_WHOLE = {
  'skis': 'ski', 'skies': 'sky', 'dying': 'die', 'lying': 'lie', 'tying': 'tie',
  'idly': 'idl', 'gently': 'gentl', 'ugly': 'ugli', 'early': 'earli',
  'only': 'onli', 'singly': 'singl',
  **{word: word for word in _UNCHANGED.split()},
}  # fmt: skip
_AFTER_PLURAL = 'inning outing canning herring earring proceed exceed succeed'
_STEP_2 = {
  'tional': 'tion', 'enci': 'ence', 'anci': 'ance', 'abli': 'able',
  'entli': 'ent', 'izer': 'ize', 'ization': 'ize', 'ational': 'ate',
  'ation': 'ate', 'ator': 'ate', 'alism': 'al', 'aliti': 'al', 'alli': 'al',
  'fulness': 'ful', 'ousli': 'ous', 'ousness': 'ous', 'iveness': 'ive',
  'iviti': 'ive', 'biliti': 'ble', 'bli': 'ble', 'ogi': 'og', 'fulli': 'ful',
  'lessli': 'less', 'li': '',
}  # fmt: skip
_STEP_3 = {
  'tional': 'tion', 'ational': 'ate', 'alize': 'al', 'icate': 'ic',
  'iciti': 'ic', 'ical': 'ic', 'ful': '', 'ness': '', 'ative': '',
}  # fmt: skip
_DERIVED = (
  'al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion'
)
_STEP_4: dict[str, str] = dict.fromkeys(_DERIVED.split(), '')
# What must stand before a suffix.
_BEFORE = {'ogi': 'l', 'li': 'cdeghkmnrt', 'ion': 'st'}
_DOUBLES = ('bb', 'dd', 'ff', 'gg', 'mm', 'nn', 'pp', 'rr', 'tt')

# A 'y' that is a consonant is written 'Y' meanwhile.
_VOWEL = re.compile('[aeiouy]')
_REGION = re.compile('[aeiouy][^aeiouy]')
_SHORT_END = re.compile('(?:[^aeiouy][aeiouy][^aeiouywxY]|^[aeiouy][^aeiouy])$')


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
  """The stem of a lower-case word; numbers and short words are their own."""
  if len(word) <= 2:
    return word
  if word in _WHOLE:
    return _WHOLE[word]
  word = word.removeprefix("'")
  word = 'Y' + word[1:] if word.startswith('y') else word
  word = re.sub('([aeiouy])y', r'\1Y', word)
  prefix = re.match('gener|commun|arsen', word)
  r1 = prefix.end() if prefix else _after(word, 0)
  r2 = _after(word, r1)

  for suffix in ("'s'", "'s", "'"):
    if word.endswith(suffix):
      word = word[: -len(suffix)]
      break
  word = _plural(word)
  if word not in _AFTER_PLURAL.split():
    word = _past(word, r1)
    if len(word) > 2 and re.search('[^aeiouy][yY]$', word):
      word = word[:-1] + 'i'
    word = _replaced(word, _STEP_2, r1, r2)
    word = _replaced(word, _STEP_3, r1, r2)
    word = _replaced(word, _STEP_4, r2, r2)
    at = len(word) - 1
    if word.endswith('e'):
      if at >= r2 or (at >= r1 and not _SHORT_END.search(word[:-1])):
        word = word[:-1]
    elif word.endswith('ll') and at >= r2:
      word = word[:-1]
  return word.replace('Y', 'y')


def _after(word: str, start: int) -> int:
  """Behind the first consonant that follows a vowel, else the end."""
  found = _REGION.search(word, start)
  return found.end() if found else len(word)


def _plural(word: str) -> str:
  if word.endswith('sses'):
    return word[:-2]
  if word.endswith(('ied', 'ies')):
    return word[:-2] if len(word) > 4 else word[:-1]
  if word.endswith(('us', 'ss')):
    return word
  if word.endswith('s') and _VOWEL.search(word[:-2]):
    return word[:-1]
  return word


def _past(word: str, r1: int) -> str:
  """Without 'ed', 'ing' and their adverbs, and the stem mended."""
  suffix = _longest(word, ('eed', 'eedly', 'ed', 'edly', 'ing', 'ingly'))
  rest = word[: len(word) - len(suffix)]
  if suffix.startswith('eed'):
    return rest + 'ee' if len(rest) >= r1 else word
  if not suffix or not _VOWEL.search(rest):
    return word
  if rest.endswith(('at', 'bl', 'iz')):
    return rest + 'e'
  if rest.endswith(_DOUBLES):
    return rest[:-1]
  if len(rest) == r1 and _SHORT_END.search(rest):
    return rest + 'e'
  return rest


def _replaced(word: str, suffixes: dict[str, str], region: int, r2: int) -> str:
  """The longest suffix replaced, if it is in the region."""
  suffix = _longest(word, tuple(suffixes))
  rest = word[: len(word) - len(suffix)]
  fits = rest.endswith(tuple(_BEFORE.get(suffix, ''))) or suffix not in _BEFORE
  least = r2 if suffix == 'ative' else region
  if not suffix or len(rest) < least or not fits:
    return word
  return rest + suffixes[suffix]


def _longest(word: str, suffixes: tuple[str, ...]) -> str:
  """The longest of the suffixes that the word ends in, or ''."""
  return max((s for s in suffixes if word.endswith(s)), key=len, default='')
