# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""SentencePiece vocabulary for T5, without TensorFlow."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import sentencepiece
from etils import epath

from pixel_llm import files

PAD_ID = 0
EOS_ID = 1


class Vocabulary:
  """T5's SentencePiece vocabulary: pad 0, end 1, unknown 2.

  Args:
    path: a `.model` file, local or on a bucket (`gs://`).
    extra_ids: sentinel ids above the pieces (T5: 100).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not a SentencePiece model, or its special ids are not T5's.
  """

  def __init__(self, path: str, extra_ids: int = 0):
    self.path = str(path)
    self.extra_ids = extra_ids
    file = epath.Path(self.path)
    if not file.exists():
      raise FileNotFoundError(f'vocabulary {self.path}: no such file.')
    data = file.read_bytes()
    self.digest = hashlib.sha256(data).hexdigest()
    try:
      self._sp: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as e:
      raise ValueError(
        f'vocabulary {self.path}: expected a SentencePiece model, got '
        f'{len(data)} bytes that are none ({e}).'
      ) from e
    found = (
      self._sp.pad_id(),
      self._sp.eos_id(),
      self._sp.unk_id(),
      self._sp.bos_id(),
    )
    if found != (PAD_ID, EOS_ID, 2, -1):
      raise ValueError(
        f'vocabulary {self.path}: expected (pad, eos, unk, bos) ids '
        f'(0, 1, 2, -1) as T5 has them, got {found}.'
      )

  @property
  def size(self) -> int:
    """Number of ids, sentinels included."""
    return self._sp.vocab_size() + self.extra_ids

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`, without the end token."""
    return list(self._sp.encode(text))

  def encode_with_spans(self, text: str) -> tuple[list[int], np.ndarray]:
    """Token ids and the characters that each covers.

    SentencePiece folds blanks, so offsets come from its own surface
    alignment, never from summing piece lengths.

    Returns:
      ids, and [tokens, 2] int32 begin and end character in `text`, leading
      blanks of a piece left out.
    """
    proto = self._sp.encode(text, return_type='proto')
    # Its offsets are bytes of UTF-8: character index of every byte.
    if text.isascii():
      character = range(len(text) + 1)
    else:
      widths = [len(c.encode()) for c in text]
      character = np.repeat(np.arange(len(text) + 1), [*widths, 1]).tolist()
    ids, spans = [], []
    for piece in proto.pieces:
      begin, end = character[piece.begin], character[piece.end]
      while begin < end and text[begin].isspace():
        begin += 1
      ids.append(piece.id)
      spans.append((begin, end))
    return ids, np.asarray(spans, np.int32).reshape(-1, 2)

  def decode(self, ids) -> str:
    """Text of token ids: stops at the end token, drops padding."""
    kept = []
    for i in np.asarray(ids).tolist():
      if i == EOS_ID:
        break
      if i != PAD_ID:
        kept.append(i if i < self._sp.vocab_size() else 2)
    return self._sp.decode(kept)

  def words(self, ids) -> list[tuple[str, int, int]]:
    """Words of a token sequence with the tokens that make each.

    Args:
      ids: [tokens] int; read up to the end token.

    Returns:
      a list of (word, first token, one past the last token).
    """
    out: list[tuple[str, int, int]] = []
    for i, token in enumerate(np.asarray(ids).tolist()):
      if token == EOS_ID:
        break
      if token == PAD_ID or token >= self._sp.vocab_size():
        continue
      piece = self._sp.id_to_piece(token)
      starts = piece.startswith('\u2581') or not out
      text = piece.replace('\u2581', '')
      if token == 2:
        text = '\u2047'
      if starts:
        out.append((text, i, i + 1))
      else:
        word, begin, _ = out[-1]
        out[-1] = (word + text, begin, i + 1)
    return [w for w in out if w[0]]


def train(texts, path: str, size: int) -> None:
  """Trains a small vocabulary with T5's special ids on `texts`.

  Single-threaded, so that the same texts give the same bytes. Byte pairs, since
  on texts of few distinct words the unigram model that T5 uses keeps hardly
  any whole word.

  Args:
    texts: an iterable of sentences.
    path: where the `.model` goes (local).
    size: number of pieces; lowered to what the texts support.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    vocab_size=size,
    hard_vocab_limit=False,
    model_type='bpe',
    pad_id=PAD_ID,
    eos_id=EOS_ID,
    unk_id=2,
    bos_id=-1,
    character_coverage=1.0,
    num_threads=1,
    minloglevel=2,
  )
  files.write(path, model.getvalue())
