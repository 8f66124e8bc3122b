# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import os
import re

import pytest
from etils import epath

from pixel_llm import files


def test_writes_bytes_and_text_and_makes_the_folder(tmp_path):
  files.write(tmp_path / 'deep' / 'a', b'bytes')
  files.write(str(tmp_path / 'deep' / 'b'), 'é')
  assert (tmp_path / 'deep' / 'a').read_bytes() == b'bytes'
  assert (tmp_path / 'deep' / 'b').read_text(encoding='utf-8') == 'é'


def test_replaces_what_was_there(tmp_path):
  files.write(tmp_path / 'a', 'old')
  files.write(tmp_path / 'a', 'new')
  assert [p.name for p in tmp_path.iterdir()] == ['a']
  assert (tmp_path / 'a').read_text() == 'new'


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / 'a.html'
  path.write_text('old')

  def full(self, data):
    with open(self, 'wb') as file:
      file.write(data[:10])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'write_bytes', full)
  with pytest.raises(OSError, match=r'No space left.*a\.html'):
    files.write(path, 'a new text that is longer')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['a.html']


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  files.write(path, 'text')
  assert os.read(reader, 9) == b'text'
  os.close(reader)
  assert path.is_fifo() and list(tmp_path.iterdir()) == [path]
  full = tmp_path / 'full'  # a link, for a failure would replace it
  full.symlink_to('/dev/full')
  with pytest.raises(OSError, match=r'No space left.*/full'):
    files.write(full, 'text')
  assert full.is_symlink()


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
  out = tmp_path / 'deep' / 'out'
  for text in ('old', 'new'):
    with files.whole(out) as part:
      part.mkdir()
      (part / 'a').write_text(text)
  assert (out / 'a').read_text() == 'new'
  with pytest.raises(ZeroDivisionError), files.whole(out) as part:
    part.mkdir()
    (part / 'a').write_text('half')
    _ = 1 / 0
  assert (out / 'a').read_text() == 'new'
  assert list(out.parent.iterdir()) == [out]


def test_only_what_was_written_here_is_free(tmp_path):
  source, out = str(tmp_path / 'source'), tmp_path / 'out'
  written = re.compile('a')
  assert files.free(str(out), source, written, force=False) == out
  out.mkdir()
  (out / 'a').write_text('a')
  with pytest.raises(FileExistsError, match='--force replaces it'):
    files.free(str(out), source, written, force=False)
  assert files.free(str(out), source, written, force=True) == out
  with pytest.raises(FileExistsError, match='holds the source'):
    files.free(str(out), str(out / 'a'), written, force=True)
  (out / 'ab').write_text('mine')
  with pytest.raises(FileExistsError, match='holds ab, which'):
    files.free(str(out), source, written, force=True)
