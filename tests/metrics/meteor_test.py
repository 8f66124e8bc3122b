# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""METEOR equals the jar that pycocoevalcap carries.

The golden scores were made by that jar, as `test_equal_to_the_jar` runs it.
"""

import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from pixel_llm.metrics import meteor, stemmer

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_CAPTIONS = json.loads((_GOLDEN / 'captions.json').read_text(encoding='utf-8'))

needs_data = pytest.mark.skipif(
  not meteor.installed(), reason="needs pip install 'pixel-llm[metrics]'"
)


def _sentences():
  """What people say of images, and everything the tokenizer is tested with."""
  texts = [text for text, _ in _CAPTIONS['sentences']]
  return [' '.join(text.split()).replace('|', '/') for text in texts]


def _varied(count, seed=0):
  """References and a text that is more or less like them."""
  rng = np.random.default_rng(seed)
  sentences = _sentences()
  # What is said of images, in words with many synonyms and paraphrases.
  slots = [
    ['a man', 'two young children', 'the big dog', 'several people', 'a woman'],
    ['is sitting on', 'are running in front of', 'walks next to', 'rides'],
    ['a red car', 'the large house', 'an old bicycle', 'the street', 'a boat'],
    ['in the city.', 'during the day', 'at night, in the rain', 'by the sea'],
  ]
  for _ in range(len(sentences)):
    sentences.append(' '.join(str(rng.choice(slot)) for slot in slots))
  others = [
    'kids playing', 'a couple of', 'in front of', 'the man', 'is riding',
    'motorbike', 'automobile', 'children', 'running', 'walks', 'near to', 'big',
    'large', 'small', 'little', 'lots of', 'many', 'U.S.', "it's", 'photo',
    'picture', 'sitting on top of', 'next to', 'beside', 'the', 'of', 'a',
  ]  # fmt: skip
  pairs = []
  for _ in range(count):
    references = list(rng.choice(sentences, rng.integers(1, 4)))
    like = references if rng.random() < 0.8 else sentences
    words = str(rng.choice(like)).split() or ['a']
    for _ in range(rng.integers(0, 9)):
      i, j = rng.integers(0, len(words), 2)
      kind = rng.integers(0, 5)
      if kind == 0 and len(words) > 1:
        del words[i]
      elif kind == 1:
        words[i] = str(rng.choice(others))
      elif kind == 2:
        words[i], words[j] = words[j], words[i]
      elif kind == 3:
        words[i:i] = words[j : j + 4]
      else:
        words[i] += str(rng.choice(['s', 'ed', 'ing', 'ly', '.', ',', '-']))
    pairs.append(([str(r) for r in references], ' '.join(words)))
  return pairs


def _jar(pairs):
  """The jar's scores, and that of the corpus."""
  folder = meteor.load().folder
  command = 'java -Xmx2G -jar meteor-1.5.jar - - -stdio -l en -norm'
  with subprocess.Popen(
    command.split(),
    cwd=folder,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    encoding='utf-8',
  ) as process:
    lines = [' ||| '.join(['SCORE', *refs, text]) for refs, text in pairs]
    out = []
    for line in lines:
      process.stdin.write(line + '\n')
      process.stdin.flush()
      out.append(process.stdout.readline().strip())
    process.stdin.write(' ||| '.join(['EVAL', *out]) + '\n')
    process.stdin.close()
    scores = [float(line) for line in process.stdout]
  return scores[-1], scores[:-1]


def _compare(pairs, corpus, scores):
  found, each = meteor.load().scores(
    [refs for refs, _ in pairs], [text for _, text in pairs]
  )
  np.testing.assert_allclose(each, scores, rtol=0, atol=1e-4)
  assert found == pytest.approx(corpus, abs=1e-4)


@needs_data
def test_equal_to_golden():
  golden = json.loads((_GOLDEN / 'meteor.json').read_text(encoding='utf-8'))
  assert len(golden['pairs']) >= 200
  _compare(golden['pairs'], golden['corpus'], golden['scores'])


@pytest.mark.parity
@needs_data
@pytest.mark.skipif(not shutil.which('java'), reason='needs Java')
def test_equal_to_the_jar():
  pairs = [*_varied(1500), ([''], ''), ([''], 'a dog'), (['a dog'], '')]
  _compare(pairs, *_jar(pairs))


@needs_data
def test_by_hand():
  score = lambda text, *refs: meteor.text_scores([text], [refs])[0]
  assert score('a red ring.', 'A red ring .') == 1
  assert score('a red ring', 'blue stars', 'a red ring') == 1
  assert score('a dog', 'two cats') == 0
  # One content word of two, of weight 1: all chunks are one of one word.
  half = 1 / (0.15 / 0.5 + 0.85 / 0.5)
  assert score('red ring', 'red star') == pytest.approx(half * (1 - 0.6))
  # A function word weighs a third of a content word.
  assert score('the ring', 'the star') == pytest.approx(0.25 * 0.4)
  # A stem counts 0.6, and as there is one chunk of two words, half is lost.
  share = 1.6 / 2
  assert score('red rings', 'red ring') == pytest.approx(share)
  # The search counts half a word as none, and so does not choose between two
  # such ways of matching: the jar has 0 here too.
  assert score('an automobile', 'a car') == 0
  assert score('rings', 'ring') == 0


@needs_data
def test_perfect_texts_make_a_perfect_corpus():
  texts = ['a red ring', 'two blue stars are here']
  assert meteor.meteor([[t, 'a dog'] for t in texts], texts) == {'meteor': 1.0}


@needs_data
def test_padding_counts_nothing():
  targets = [['a red ring'], ['a blue star', 'a star']]
  padded = [['a red ring', ''], [''], ['a blue star', '', 'a star'], []]
  assert meteor.meteor(targets, ['a red star', 'a blue ring']) == meteor.meteor(
    padded, ['a red star', 'a dog', 'a blue ring', '']
  )


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('A dog, a cat.', 'a dog , a cat .'),
    ('U.S. troops, U.S.-based', 'us troops , us based'),
    ("It isn't the dog's ball", "it isn 't the dog 's ball"),
    ('black-and-white a-b-c 1,000 3.5', 'black and white a b-c 1,000 3.5'),
    ('well...known (café) – 90° ½', 'well ... known ( café ) - 90 ° ½'),
    ("the 90's 5'b “so”", 'the 90 \'s 5\'b " so "'),
    ('Mr. X at no. 5. No. more', 'mr. x at no. 5 . no. more'),
    ('No. More, etc.', 'no . more , etc .'),
    ('', ''),
    ('\U0001f600', '\U0001f600'),
  ],
)
def test_normalize(text, words):
  prefixes = {'Mr': False, 'no': True, 'No': True}
  assert meteor.normalize(text, prefixes) == words.split()


@pytest.mark.parametrize(
  ('word', 'expected'),
  [
    ('skies', 'sky'), ('consign', 'consign'), ('consignment', 'consign'),
    ('knightly', 'knight'), ('hoping', 'hope'), ('hopping', 'hop'),
    ('generously', 'generous'), ('ties', 'tie'), ('cries', 'cri'),
    ('gas', 'gas'), ('gaps', 'gap'), ('succeeding', 'succeed'),
    ('nationality', 'nation'), ('communism', 'communism'), ('by', 'by'),
    ('saying', 'say'), ('youth', 'youth'), ('rating', 'rate'),
    ('fluently', 'fluentli'), ('controlling', 'control'), ('2nd', '2nd'),
  ],
)  # fmt: skip
def test_stem(word, expected):
  assert stemmer.stem(word) == expected


@needs_data
def test_as_many_references_as_texts():
  with pytest.raises(ValueError, match='got 1 and 0'):
    meteor.text_scores(['a dog'], [])


def test_missing_data_is_said(tmp_path, monkeypatch):
  with pytest.raises(meteor.MeteorDataError, match=r'pixel-llm\[metrics\]'):
    meteor.Meteor(tmp_path)
  (tmp_path / 'meteor-1.5.jar').write_bytes(b'PK')
  with pytest.raises(meteor.MeteorDataError, match='whole, in'):
    meteor.Meteor(tmp_path)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  assert not meteor.installed()
  meteor.load.cache_clear()
  with pytest.raises(meteor.MeteorDataError, match='not installed'):
    meteor.load()
