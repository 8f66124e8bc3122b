# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of captions as the caption metrics of the field count them.

pycocoevalcap passes captions through Stanford's `PTBTokenizer` (CoreNLP 3.4.1,
Java) with `-preserveLines -lowerCase` and drops 17 punctuation tokens. This is
its behaviour in Python: written from what the program answers, not from its
source, and compared with it in the tests. Known to differ: file paths, version
numbers and unusual markup.

Reference: there, all captions of a run are one text, and a single letter, a
title or 'No.' at the end of a caption keeps or loses its full stop by how the
next caption begins. Here every caption is tokenized alone.
"""

from __future__ import annotations

import re

# Dropped after lower-casing, as there: '-LRB-' and its like therefore never
# match, and brackets stay in as '-lrb-', '-rrb-', '-lcb-', '-rcb-'.
PUNCTUATIONS = frozenset(
    ["''", "'", '``', '`', '-LRB-', '-RRB-', '-LCB-', '-RCB-', '.', '?', '!',
     ',', ':', '-', '--', '...', ';']
)  # fmt: skip

_REPLACED = {
    '(': '-lrb-', ')': '-rrb-', '[': '-lsb-', ']': '-rsb-', '{': '-lcb-',
    '}': '-rcb-', '"': "''", '“': '``', '”': "''", '‘': '`', '’': "'",
    '«': '``', '»': "''", '‹': '`', '›': "'", '–': '--', '—': '--', '…': '...',
    '£': '#', '€': '$', '¢': 'cents', '&amp;': '&', '&lt;': '<', '&gt;': '>',
    '&quot;': "''", '&apos;': "'", '&nbsp;': '',
}  # fmt: skip

# Characters that stand alone, or for several, wherever they are.
_SPACED = {
    **{ord(c): f' {c} ' for c in '²³¹'},
    ord('½'): ' 1/2 ', ord('¼'): ' 1/4 ', ord('¾'): ' 3/4 ',
    ord('⅓'): ' 1/3 ', ord('⅔'): ' 2/3 ',
    ord('\u00ad'): None, ord('\u200b'): ' ',
}  # fmt: skip

# Words that keep a full stop: in any case, when they begin with a capital,
# and before a number.
_ABBREVIATIONS = (
  'adj adm adv al ala alex apr ariz assn asst atty attys aug ave bancorp bhd '
  'bldg blvd brig bros calif capt cf cie cmdr co col colo comdr conn corp '
  'cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri '
  'ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans '
  'ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr '
  'mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty '
  'pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep '
  'sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue '
  'tues univ va vs vt wed wis wisc wm wyo'
)
_CAPITAL_ABBREVIATIONS = 'ark az del ill la mass miss ore pa tex wash'
_NUMBER_ABBREVIATIONS = 'art ca fig figs no nos op pp prop'

# After a single letter and a full stop, these begin a new sentence.
_STARTS = (
  'A About According After An As At But Earlier He Her Here However If In It '
  'Last Many More Now Once One Other Our She Since So Some Such That The '
  'Their Then There These They This We What When While Yet You'
)


def _any_of(words: str) -> str:
  return '|'.join(words.split())


_L = r'[^\W\d_]'
_A = r'[^\W_]'
_Q = r"['’]"
_NUMBER = r'\d*(?:[.,:]\d+)+|\d+'
_WORD = rf'{_L}{_A}*(?:[.!?]{_L}{_A}*)*'
_CAPITALS = _any_of(
    ' '.join(rf'{w[0].upper()}(?i:{w[1:]})'
             for w in _CAPITAL_ABBREVIATIONS.split())
)  # fmt: skip
_BEGINNING = _any_of(f'{_STARTS} {_STARTS.upper()}')
_URL_END = r'[^\s"<>|.!?(){},-]'

# The longest match wins, the first of equals; groups become separate tokens.
# Lookahead that decides about a token does not count as length, which is why
# contractions match to their end.
_RULES = [
  re.compile(pattern)
  for pattern in (
    # Markup, addresses and what people write instead of words.
    r'</?[A-Za-z][\w:.-]*(?:\s+[\w:-]+(?:=(?:"[^"]*"|\w+))?)*\s*/?>',
    r'(?i:&(?:amp|lt|gt|quot|apos|nbsp|#\d+);)',
    rf'(?i:https?)://[^\s"<>|()]+{_URL_END}',
    r'(?:www\.(?:[^\s"<>|.!?(){},]+\.)+[A-Za-z]{2,4}'
    r"|(?:[^\s\"'`<>|.!?(){},_$-]+\.)+(?:com|net|org|edu))"
    rf'(?:/[^\s"<>|()]+{_URL_END})?',
    r'[A-Za-z0-9][^\s"<>|()@]*@+(?:[^\s"<>|().@]+\.)*[^\s"<>|().@]+',
    rf'#{_L}+|@{_L}\w*',
    rf"[<>]?[:;=]['o*-]?[()DPdpO\\{{@|\[\]](?!{_A})",
    r'\^_\^|-_-',
    # Contractions.
    rf"(?i:({_L}*?)(n['’`]t)(?!{_A}))",
    rf'(?i:(can)(not)|(gim|lem)(me)|(gon|wan)(na)|(got)(ta))(?!{_A})',
    rf"(?i:('t)(is|was))(?!{_A})",
    rf'(?i:({_L}*)({_Q}(?:[smd]|ll|re|ve))(?!{_L}))',
    r'(?i:’(?:[smd]|ll|re|ve))',
    rf'(?i:{_Q}(?:em|till?|cause)|{_Q}n{_Q}|{_Q}n(?!{_A})|ol{_Q})',
    rf'(?<!\w){_Q}(?:\d\d|[2-9]0[sS])(?!{_A})',
    # Words with an apostrophe inside.
    rf'[dlnoA-HJ-XZ]{_Q}{_L}{{2,}}|{_L}+[aeiouyAEIOUY]{_Q}[aeiouA-Z]{_L}*',
    rf"(?i:c'(?:mon|est)|e'er|ma'am|cap'n|nat'l|ne'er|s'mores)(?!{_A})",
    rf'[dDlLjJ]{_Q}|[yY]{_Q}(?={_L})',
    # Abbreviations and initials.
    rf'(?:(?i:{_any_of(_ABBREVIATIONS)})|{_CAPITALS})\.',
    rf'(?i:{_any_of(_NUMBER_ABBREVIATIONS)})\.(?=\s?\d)',
    rf'(?:{_L}\.){{2,}}|{_L}\.(?!\s+(?:{_BEGINNING})(?:\s|$))',
    r'(?i:ph\.d\.)',
    rf'(?:{_WORD}|{_NUMBER})\.(?=[,;:])',
    r'[A-Z]+(?:[&+][A-Z]+)+',
    r'[cC]\+\+|[cCfF]#',
    r'[A-Z]*\$',
    # Words, compounds and numbers.
    _WORD,
    rf'{_A}+(?:[-_]{_A}+)*',
    rf'{_A}+(?:-{_A}+){{0,2}}(?:/{_A}+(?:-{_A}+){{0,2}}){{1,2}}',
    rf'(?:{_NUMBER}|(?:{_L}\.)+|{_WORD})(?:-{_A}+)+',
    rf'[+-]?(?:{_NUMBER})',
    r'\d+ \d+/\d+',
    r'(\(\d{3}\)) (\d{3}-\d{4})(?!\d)',
    # Runs of one mark.
    r'[?!]+|\.{3,}|--+|_+|\*+|#+|<<|>>|“+|”+|``|' + "''",
    r'\S',
  )
]

# Nearly every token of a caption: no rule but the plain word's can match it.
_PLAIN = re.compile(
  r'(?!(?i:cannot|gimme|lemme|gonna|wanna|gotta)\b)[A-Za-z]+(?= |$)'
)
_CLITIC = re.compile(r"(?i:n?['’](?:t|[smd]|ll|re|ve))")


def tokenize(text: str) -> list[str]:
  """Splits a caption as pycocoevalcap's `PTBTokenizer` does.

  Args:
    text: a caption; line breaks count as spaces.

  Returns: lower-case tokens without punctuation. Contractions are split
    ("isn't" -> 'is', "n't"), hyphenated words are not, brackets become '-lrb-'
    and '-rrb-', and characters outside the basic multilingual plane (most
    emoji) are dropped.
  """
  text = text.translate(_SPACED)
  text = ''.join(c for c in text if ord(c) <= 0xFFFF)
  tokens: list[str] = []
  position = 0
  while True:
    while position < len(text) and text[position].isspace():
      position += 1
    if position == len(text):
      break
    if plain := _PLAIN.match(text, position):
      tokens.append(plain.group().lower())
      position = plain.end()
      continue
    matches = [m for rule in _RULES if (m := rule.match(text, position))]
    match = max(matches, key=lambda m: m.end())
    pieces = [g for g in match.groups() if g] or [match.group()]
    tokens.extend(_normalize(piece) for piece in pieces)
    position = match.end()
  # The tokenizer glues '1 1/2' and tags together with no-break spaces, on
  # which the metrics' own splitting parts them again.
  return [
    part
    for token in tokens
    if token not in PUNCTUATIONS
    for part in token.split()
  ]


def _normalize(token: str) -> str:
  if token.lower() in _REPLACED:
    return _REPLACED[token.lower()]
  if token.startswith('--') or re.fullmatch(r'\.{3,}', token):
    return token[:2] if token[0] == '-' else '...'
  if token[0] not in '<&' or token[-1] not in '>;':
    token = token.replace('(', '-lrb-').replace(')', '-rrb-')
  if _CLITIC.fullmatch(token):
    token = token.replace('’', "'")
  return token.replace('“', '``').replace('”', "''").lower()
