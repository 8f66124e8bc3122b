# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import sentencepiece

from pixel_llm import vocabulary as vocabulary_lib

TEXTS = [
  'In this image I can see a small red ring.',
  'There is a naïve café, “quoted” text and 漢字 here.',
  'a large blue star left of the green cross',
] * 4


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'small.model'
  vocabulary_lib.train(TEXTS, str(path), 120)
  return vocabulary_lib.Vocabulary(str(path))


@pytest.mark.parametrize('text', TEXTS[:3])
def test_spans_are_characters_of_the_text(vocabulary, text):
  ids, spans = vocabulary.encode_with_spans(text)
  assert ids == vocabulary.encode(text)
  joined = ''.join(text[b:e] for b, e in spans)
  assert joined == ''.join(text.split())
  assert (np.diff(spans[:, 0]) >= 0).all()


def test_spans_survive_folded_blanks(vocabulary):
  text = 'a  red   ring'
  _, spans = vocabulary.encode_with_spans(text)
  assert ''.join(text[b:e] for b, e in spans) == 'aredring'


def test_empty_text_has_no_tokens(vocabulary):
  ids, spans = vocabulary.encode_with_spans('')
  assert ids == [] and spans.shape == (0, 2)


def test_decode_stops_at_the_end_and_drops_padding(vocabulary):
  ids = vocabulary.encode('a red ring')
  assert vocabulary.decode([*ids, 1, *ids, 0, 0]) == 'a red ring'
  assert vocabulary.decode([0, 1]) == ''


def test_words_group_tokens(vocabulary):
  ids = [*vocabulary.encode(TEXTS[0]), 1, 0]
  words = vocabulary.words(ids)
  assert [w for w, _, _ in words] == TEXTS[0].split()
  assert words[0][1] == 0 and words[-1][2] == len(ids) - 2
  assert all(a[2] == b[1] for a, b in zip(words, words[1:]))


def test_training_again_gives_the_same_bytes(tmp_path):
  for name in 'ab':
    vocabulary_lib.train(TEXTS, str(tmp_path / name), 100)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_extra_ids_lie_above_the_pieces(vocabulary):
  more = vocabulary_lib.Vocabulary(vocabulary.path, extra_ids=100)
  assert more.size == vocabulary.size + 100
  assert more.digest == vocabulary.digest


def test_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'none\.model: no such file'):
    vocabulary_lib.Vocabulary(str(tmp_path / 'none.model'))
  bad = tmp_path / 'bad.model'
  bad.write_bytes(b'not a model')
  with pytest.raises(ValueError, match=r'bad\.model: expected a Sentence'):
    vocabulary_lib.Vocabulary(str(bad))


def test_foreign_special_ids_are_refused(tmp_path):
  other = tmp_path / 'other.model'
  with other.open('wb') as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXTS),
      model_writer=f,
      vocab_size=100,
      hard_vocab_limit=False,
      minloglevel=2,
    )
  with pytest.raises(ValueError, match=r'\(0, 1, 2, -1\)'):
    vocabulary_lib.Vocabulary(str(other))
