# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import sys

import pytest

from pixel_llm import exits, main
from pixel_llm import predictor as predictor_lib


class Asked(Exception):
  """Instead of a predictor: what it would be made of."""


@pytest.fixture
def asked(monkeypatch):
  def from_workdir(workdir, **decoding):
    raise Asked({k: v for k, v in decoding.items() if v is not None})

  monkeypatch.setattr(predictor_lib.Predictor, 'from_workdir', from_workdir)

  def ask(*arguments):
    with pytest.raises(Asked) as found:
      main.main([*arguments, '--workdir', 'runs/x'])
    return found.value.args[0]

  return ask


def test_decoding_options_reach_the_predictor(asked):
  assert asked('narrate', 'a.png') == {}
  assert asked('narrate', 'a.png', '--beams', '4') == {'beams': 4}
  options = ['--temperature', '0.7', '--top-k', '40', '--top-p', '0.9']
  options += ['--seed', '3']
  assert asked('caption-at', 'a.png', '--box', '0,0,9,9', *options) == {
    'temperature': 0.7,
    'top_k': 40,
    'top_p': 0.9,
    'seed': 3,
  }
  assert asked('refer', 'a.png', 'the red ring') == {}


def test_reading_has_no_decoding_options(capsys):
  with pytest.raises(SystemExit) as end:
    main.main(['refer', 'a.png', 'x', '--workdir', 'r', '--seed', '1'])
  assert end.value.code == 2
  assert '--seed' in capsys.readouterr().err


def test_help_says_the_exit_codes(capsys):
  with pytest.raises(SystemExit):
    main.main(['--help'])
  said = ' '.join(capsys.readouterr().out.split())
  assert f'{exits.PREEMPTED} stopped by a signal' in said
  assert f'{exits.STALLED} stood still' in said


def test_app_without_its_extra_is_told(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  monkeypatch.delitem(sys.modules, 'pixel_llm.app.server', raising=False)
  monkeypatch.delattr('pixel_llm.app.server', raising=False)
  assert main.main(['app', '--workdir', 'x']) == exits.FAILED
  assert "pip install 'pixel-llm[app]'" in capsys.readouterr().err
