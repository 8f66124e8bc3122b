# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
import tiny

from pixel_llm import batch as batch_lib
from pixel_llm.train import telemetry

BATCH = batch_lib.Batch(image=jnp.zeros((4, 1)))


def meter(path, start, steps, flops=1e9):
  """A run of so many steps from one on, each of them saved."""
  made = telemetry.Meter(
    str(path), jax.devices(), lambda *_: flops, time.time() - 1
  )
  made.resume(start)
  function = jax.jit(lambda state, batch: (state + 1, {'loss': state}))
  state = jnp.float32(start)
  for step in range(start, start + steps):
    with made('data'):
      time.sleep(0.01)
    state, _ = made.step('s', function, state, BATCH)
    made.settle()
    made.saved(step + 1)
  assert int(state) == start + steps
  return made


def test_an_interval_adds_up(tmp_path):
  made = meter(tmp_path, 0, 5)
  with made('save'):
    time.sleep(0.02)
  values = made.interval()
  shares = [v for k, v in values.items() if k.startswith('time/')]
  assert sum(shares) == pytest.approx(1) and min(shares) >= 0
  assert {'time/data', 'time/step', 'time/save', 'time/compile'} <= set(values)
  # The first of the five is compiled.
  pace = values['run/seconds_per_step']
  assert values['examples_per_second'] * pace == pytest.approx(4)
  assert values['run/tflops_per_second'] * pace == pytest.approx(1e-3)
  # A CPU has no published peak, nor does it count its memory.
  assert 'run/mfu' not in values and 'run/memory_gib' not in values
  assert 0 < values['run/goodput'] < 1
  # Of the next interval nothing was measured yet.
  assert set(made.interval()) == {'time/other', 'run/goodput'}


def test_mfu_is_of_all_devices(tmp_path, monkeypatch):
  chip = types.SimpleNamespace(flops=1e12)
  monkeypatch.setattr(telemetry.chips, 'of_kind', lambda kind: chip)
  values = meter(tmp_path, 0, 3).interval()
  share = values['run/tflops_per_second'] / jax.device_count()
  assert values['run/mfu'] == pytest.approx(share)


def test_goodput_counts_steps_that_are_done_again_once(tmp_path):
  meter(tmp_path, 0, 6).interval()
  first = json.loads((tmp_path / 'goodput.json').read_text())
  again = meter(tmp_path, 3, 2)
  again.interval()
  last = json.loads((tmp_path / 'goodput.json').read_text())
  assert last['began'] == first['began']
  lost = first['seconds']['step'] - first['saved']['3']
  assert last['seconds']['lost'] == pytest.approx(lost) and lost > 0
  assert list(map(int, last['saved'])) == [0, 1, 2, 3, 4, 5]
  # Of the one or two seconds that each of the two took to start.
  assert last['seconds']['start'] > 2
  kept = last['seconds']['step'] / (time.time() - last['began'])
  assert last['goodput'] == pytest.approx(kept, rel=0.2)


def test_the_network_without_remat_is_else_the_same():
  config = tiny.model_config()
  other = dataclasses.replace(
    config, t5=dataclasses.replace(config.t5, remat='full')
  )
  assert other != config
  assert telemetry.without_remat(other) == config


def test_a_signal_traces_the_next_steps(tmp_path):
  lines = []
  with telemetry.Profiler(str(tmp_path), None, lines.append) as profiler:
    for step in range(1, 9):
      if step == 3:
        os.kill(os.getpid(), signal.SIGUSR1)
      profiler.begin(step)
      profiler.end(step, jnp.ones(()) + step)
  assert lines == [f'profile up to step 7: {tmp_path}']
  assert list(tmp_path.rglob('*.xplane.pb'))


def test_compiled_programs_are_kept_and_found(tmp_path):
  """In processes of their own, since JAX decides once."""
  code = (
    'import jax, sys\n'
    'from pixel_llm.train import telemetry\n'
    'jax.jit(lambda x: x * 2)(1.0)\n'
    'telemetry.keep_compiled("programs", sys.argv[1])\n'
    'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
    'jax.jit(lambda x: x + 2)(1.0)\n'
    'telemetry.keep_compiled("programs", sys.argv[1] + "/other")\n'
    'jax.jit(lambda x: x + 3)(1.0)\n'
    'telemetry.keep_compiled("", sys.argv[1])\n'
    'jax.jit(lambda x: x + 4)(1.0)\n'
  )
  environment = {
    k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'
  }

  def programs():
    subprocess.run(
      [sys.executable, '-c', code, str(tmp_path)],
      check=True,
      env=environment,
      timeout=60,
    )
    return sorted(tmp_path.rglob('*-cache'))

  found = programs()
  other = [p for p in found if p.is_relative_to(tmp_path / 'other')]
  # Of each run its own, and none of what came before or after.
  assert len(other) == 1 and len(found) == 2
  assert programs() == found
