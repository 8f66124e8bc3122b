# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pixel_llm import compiled, version

OPTIONS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
)


@pytest.fixture
def folder(tmp_path):
  """Where programs are kept in this test alone."""
  before = {name: getattr(jax.config, name) for name in OPTIONS}
  jax.config.update('jax_compilation_cache_dir', None)  # as users have it
  compiled.keep(str(tmp_path))
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


class Trace:
  """Counts how often it is needed."""

  def __init__(self, found):
    self.found, self.calls = found, 0

  def __call__(self):
    self.calls += 1
    return self.found


def test_a_trace_is_made_once_for_one_code(folder, monkeypatch):
  one, other = Trace({'a': [[2, 3], 'float32']}), Trace({'b': [[1], 'int8']})
  for _ in range(2):
    assert compiled.remembered('one', one) == one.found
    assert compiled.remembered('other', other) == other.found
  assert (one.calls, other.calls) == (1, 1)
  monkeypatch.setattr(version, 'digest', lambda: 'edited')
  assert compiled.remembered('one', one) == one.found
  assert one.calls == 2


def test_a_damaged_trace_is_made_again(folder):
  trace = Trace([1, 2])
  compiled.remembered('it', trace)
  (path,) = folder.glob('traced-*.json')
  path.write_text(path.read_text()[:3])
  assert compiled.remembered('it', trace) == [1, 2]
  assert compiled.remembered('it', trace) == [1, 2]
  assert trace.calls == 2


@pytest.mark.parametrize('where', [None, 'gs://bucket/programs', 'file/below'])
def test_what_cannot_be_kept_is_found_out_each_time(folder, where):
  (folder / 'file').write_text('')
  if where == 'file/below':
    where = str(folder / where)
  compiled.keep(where)
  trace = Trace(5)
  assert [compiled.remembered('it', trace) for _ in range(2)] == [5, 5]
  assert trace.calls == 2
  assert os.listdir(folder) == ['file']


def test_the_users_folder_is_taken_where_the_runs_cannot_be_written(
  folder, tmp_path, monkeypatch
):
  home, run = tmp_path / 'home', tmp_path / 'run'
  monkeypatch.setenv('XDG_CACHE_HOME', str(home))
  run.mkdir()
  (run / 'compile_cache').write_text('in its place')
  compiled.keep_beside(str(run))
  assert jax.config.jax_compilation_cache_dir == str(home / 'pixel_llm')
  (run / 'compile_cache').unlink()
  compiled.keep_beside(str(run))
  assert jax.config.jax_compilation_cache_dir == str(run / 'compile_cache')
