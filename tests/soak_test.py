# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes that are killed, and fewer or more that go on."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Minutes of starting processes.
pytestmark = pytest.mark.slow


def python(*args):
  # Of its own, since it forks, which this process with its threads can't. Of
  # one device a process, unlike here.
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    env={**env, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=1500,
    check=False,
  )
  assert process.returncode == 0, process.stdout + process.stderr[-4000:]
  return process.stdout


def test_killed_at_random_it_ends_as_if_it_had_not_been():
  lines = python('benchmarks/soak.py', '--kills', '3').splitlines()
  assert sum(line.startswith('kill ') for line in lines) == 3
  assert lines[-1] == 'no difference, bit for bit'


def test_other_numbers_of_processes_go_on(tmp_path):
  """Two processes are killed; one, two and four go on from there."""
  source = """
      import json, pathlib, shutil, sys
      from benchmarks import soak

      root, steps = pathlib.Path(sys.argv[1]), 12
      first = soak.run(root, 'first', steps, 2)
      first.until(6)
      first.kill([0, 1])
      begun = max(soak.orbax.steps(first.workdir / 'checkpoints'))
      losses, slots = {}, {}
      for count in (1, 2, 4):
        shutil.copytree(root / 'first', root / str(count))
        after = soak.run(root, str(count), steps, count)
        assert after.wait() == steps
        losses[count] = after.losses()
        parts = [
          json.loads((after.workdir / f'slots{count}.{i}.json').read_text())
          for i in range(count)
        ]
        slots[count] = [
          [slot for part in parts for slot in part[step]] for step in parts[0]
        ]
        log = (after.workdir / 'process0.log').read_text()
        assert f'resuming at step {begun}' in log
      print(json.dumps([begun, losses, slots]))
  """
  said = python('-c', textwrap.dedent(source), str(tmp_path))
  begun, losses, slots = json.loads(said.splitlines()[-1])
  # At step 6 the save of step 4 has begun, after that of step 2 was done.
  assert 2 <= begun < 12
  assert slots['1'] == slots['2'] == slots['4'] and len(slots['1'][0]) == 8
  for count in ('1', '4'):
    assert len(losses[count]) == len(losses['2']) == 12
    assert losses[count][:begun] == losses['2'][:begun]
    for found, expected in zip(losses[count], losses['2']):
      for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)
