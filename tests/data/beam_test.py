# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Builds by Apache Beam: the bytes of a local build."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import public_formats as formats
import pytest

from pixel_llm import main

COUNT = 9
beam = pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is None,
  reason='apache_beam is not installed; `make parity` installs it',
)


@pytest.fixture
def arguments(tmp_path):
  names = [f'{i:012d}.jpg' for i in range(COUNT)]
  images = formats.write_images(tmp_path / 'images', names)
  rows = [formats.narrative(str(i)) for i in range(COUNT)]
  rows[4]['caption'] = ''
  path = formats.write_lines(tmp_path / 'ln.jsonl', rows)
  return ['build', 'localized_narratives', '--annotations', path,
          '--images', images, '--workers', '1']  # fmt: skip


def contents(directory):
  return {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}


@pytest.mark.parity
@beam
def test_same_bytes_as_a_local_build(arguments, tmp_path, capfd):
  local, other = str(tmp_path / 'local'), str(tmp_path / 'beam')
  assert main.main([*arguments, '--out', local]) == 0
  by_beam = [*arguments, '--out', other, '--runner', 'DirectRunner']
  assert main.main([*by_beam, '--', '--direct_num_workers=1']) == 0
  whole = contents(local)
  assert contents(other) == whole and len(whole) == 6
  # A shard that was lost is built again, by either.
  for again in (by_beam, [*arguments, '--out', other]):
    (tmp_path / 'beam' / 'train-00002-of-00004.array_record').unlink()
    assert main.main(again) == 0
    assert contents(other) == whole
  assert main.main(by_beam) == 0
  assert 'already built' in capfd.readouterr().out


@pytest.mark.parity
@beam
def test_errors_are_those_of_a_local_build(arguments, tmp_path, capfd):
  out = tmp_path / 'out'
  arguments += ['--out', str(out), '--strict']
  assert main.main(arguments) == 1
  local = capfd.readouterr().err
  assert 'ln.jsonl, line 5, field caption: expected' in local
  assert main.main([*arguments, '--runner', 'DirectRunner']) == 1
  assert local in capfd.readouterr().err
  assert not [p for p in out.iterdir() if p.suffix in ('.job', '.tmp')]
  assert main.main([*arguments, '--runner', 'NoRunner']) == 1
  assert 'runner NoRunner failed' in capfd.readouterr().err


def test_without_beam(arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  arguments += ['--out', str(tmp_path / 'out')]
  assert main.main([*arguments, '--runner', 'DirectRunner']) == 1
  error = capsys.readouterr().err
  assert 'needs Apache Beam' in error and "'pixel-llm[beam]'" in error
  assert list((tmp_path / 'out').iterdir()) == []


def test_options_of_beam_need_a_runner(arguments, tmp_path, capsys):
  arguments += ['--out', str(tmp_path / 'out'), '--', '--project=p']
  with pytest.raises(SystemExit):
    main.main(arguments)
  assert (
    'without --runner, unrecognized: --project=p' in capsys.readouterr().err
  )
