# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens equal those of pycocoevalcap's PTBTokenizer."""

import json
import pathlib
import shutil

import pytest

from pixel_llm.metrics import ptb

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'captions.json'


@pytest.fixture(scope='module')
def golden():
  return json.loads(_GOLDEN.read_text(encoding='utf-8'))['sentences']


def test_equal_to_golden(golden):
  assert len(golden) >= 300
  different = [
    (text, tokens, ptb.tokenize(text))
    for text, tokens in golden
    if ptb.tokenize(text) != tokens
  ]
  assert not different


@pytest.mark.skipif(not shutil.which('java'), reason='needs Java')
def test_equal_to_live_package(golden):
  module = pytest.importorskip('pycocoevalcap.tokenizer.ptbtokenizer')
  texts = [text for text, _ in golden]
  # A neutral line after each caption: what follows would decide about the
  # caption's last full stop.
  tokens = module.PTBTokenizer().tokenize(
    {i: [{'caption': text}, {'caption': 'x'}] for i, text in enumerate(texts)}
  )
  for i, text in enumerate(texts):
    assert ptb.tokenize(text) == tokens[i][0].split(), text


@pytest.mark.parametrize(
  ('text', 'tokens'),
  [
    ('A dog, a cat.', 'a dog a cat'),
    ("It isn't the dog's ball", "it is n't the dog 's ball"),
    ('a "red" (big) ring', 'a red -lrb- big -rrb- ring'),
    ('black-and-white t-shirt', 'black-and-white t-shirt'),
    ('Mr. Smith at 5 p.m.', 'mr. smith at 5 p.m.'),
    ('they cannot', 'they can not'),
    ('', ''),
    (' ... ', ''),
    ('two\nlines', 'two lines'),
    ('a \U0001f600 face', 'a face'),
  ],
)
def test_by_hand(text, tokens):
  assert ptb.tokenize(text) == tokens.split()


def test_tokens_of_tokens_are_the_same_for_plain_words():
  text = 'In this image I can see a small red striped ring, and a dog.'
  once = ptb.tokenize(text)
  assert ptb.tokenize(' '.join(once)) == once
