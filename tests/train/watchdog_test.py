# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Ends of real processes on the CPU, with gloo between them."""

import signal

import processes
import pytest

from pixel_llm import exits
from pixel_llm.train import store

# Instead of the loop; the rest is what `pixel-llm train` does.
PROGRAM = """
import os, signal, sys, time
from pixel_llm import main

def train(args):
  with main._member(args, main._experiment(args)) as watchdog:
    {}

main.VERBS["train"] = train
sys.exit(main.main())
"""


def programs(config_file, body, count, *rest):
  port = processes.free_port()
  return [
    [
      *('-c', PROGRAM.format(body)),
      *processes.training(config_file, *processes.flags(count, i, port), *rest)[
        2:
      ],
    ]
    for i in range(count)
  ]


def test_a_stall_ends_all_with_their_stacks(config_file):
  out = processes.together(
    programs(
      config_file,
      'time.sleep(600)  # hangs here',
      2,
      '--config.loop.stall_seconds=2',
    )
  )
  for i, (code, _, err) in enumerate(out):
    assert code == exits.STALLED
    assert 'no step finished for 2 seconds (loop.stall_seconds)' in err
    stacks = (config_file.parent / 'run' / 'stacks' / f'{i}.txt').read_text()
    for text in (err, stacks):
      assert 'File "<string>", line 7 in train' in text


def test_a_failure_ends_all(config_file):
  body = """
    if args.process_id == 1:
      raise ValueError('the disk is full')
    time.sleep(600)
"""
  out = processes.together(programs(config_file, body, 2))
  assert [code for code, _, _ in out] == [exits.FAILED] * 2
  assert 'train: error: the disk is full' in out[1][2]
  host = store.host()
  assert f'pixel-llm: process 1 ({host}): the disk is full' in out[0][2]


@pytest.mark.slow
def test_a_failure_that_waits_for_the_others_ends_all(config_file):
  body = """
    import contextlib
    from pixel_llm.train import watchdog
    with contextlib.ExitStack() as around:
      around.callback(time.sleep, 600)
      with watchdog.telling():
        if args.process_id == 1:
          raise ValueError('the disk is full')
        time.sleep(600)
"""
  host = store.host()
  for code, _, err in processes.together(programs(config_file, body, 2)):
    assert code == exits.FAILED
    assert f'pixel-llm: process 1 ({host}): the disk is full' in err


@pytest.mark.slow
def test_a_dead_process_ends_the_others(config_file):
  body = """
    if args.process_id == 1:
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
"""
  out = processes.together(
    programs(config_file, body, 2, '--config.loop.heartbeat_seconds=3')
  )
  assert out[1][0] == -signal.SIGKILL
  assert out[0][0] not in (exits.DONE, None)
  assert 'unhealthy' in out[0][2]


@pytest.mark.slow
def test_four_of_unequal_pace_stop_at_one_step(config_file):
  body = """
    from pixel_llm.train import watchdog
    with watchdog.Stop() as stop:
      for step in range(1, 10**6):
        print(step, flush=True)
        time.sleep(0.01 * (1 + args.process_id))
        if stop.at(step):
          break
    print(stop.asked)
    return 75
"""

  def ask(running):
    for line in running[2].stdout:
      if line == '3\n':
        break
    running[2].send_signal(signal.SIGTERM)

  out = processes.together(programs(config_file, body, 4), before=ask)
  assert [code for code, _, _ in out] == [exits.PREEMPTED] * 4
  assert {err for _, _, err in out if 'Traceback' in err} == set()
  ends = {tuple(text.splitlines()[-2:]) for _, text, _ in out}
  assert len(ends) == 1
  assert ends.pop()[1] == 'SIGTERM of a process'


def test_alone_a_step_that_finishes_is_no_stall(tmp_path):
  """Steps under way for longer than the limit, but ending within it."""
  code = f"""
import time
from pixel_llm.train import watchdog

class Result:
  def __init__(self, at):
    self.at = at
  def is_ready(self):
    return time.monotonic() > self.at

with watchdog.Watchdog(1, {str(tmp_path)!r}) as dog:
  began = time.monotonic()
  for i in range(6):
    dog.begun(i, Result(began + 0.4 * i))
  time.sleep(2.5)
  print('here', flush=True)
  time.sleep(60)
"""
  ((code, out, err),) = processes.together([['-c', code]])
  assert code == exits.STALLED and out == 'here\n'
  assert 'the last was 5;' in err
