# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes on the CPU, with gloo between them."""

import processes

from pixel_llm import exits
from pixel_llm.train import cluster, experiment, store


def test_differences_name_process_host_field_and_both_values():
  facts = [
    {'host': 'a', 'jax': '1', 'x': '3'},
    {'host': 'b', 'jax': '2', 'x': '3'},
    {'host': 'c', 'jax': '1', 'y': '4', 'x': '3'},
  ]
  assert cluster.differences(facts) == [
    'process 1 (b): jax is 2, but 1 on process 0 (a)',
    'process 2 (c): y is 4, but not there on process 0 (a)',
  ]
  assert cluster.differences([{'host': 'a', 'x': '1'}] * 2) == []
  many = [facts[0]] + [{'host': 'd', 'jax': '9', 'x': '3'}] * 99
  assert cluster.differences(many)[-1] == 'and 79 more'


def test_facts_are_of_what_files_hold_not_where_they_lie(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'train.manifest.json').write_text('{}')

  def facts(name, **loop):
    return cluster._facts(
      experiment.ExperimentConfig(
        data=experiment.DataConfig(
          records={'x': str(tmp_path / name)},
          image_maps=str(tmp_path / 'maps'),
          modules=('birds',),
        ),
        loop=experiment.LoopConfig(**loop),
      )
    )

  assert facts('a') == facts('b', workers=3)
  assert facts('a') != facts('b', steps=3)
  (tmp_path / 'b' / 'train.manifest.json').write_text('{ }')
  assert facts('a') != facts('b')
  before = facts('a')
  maps = tmp_path / 'maps' / 'task'
  maps.mkdir(parents=True)
  (maps / 'train.manifest.json').write_text('{}')
  with_maps = facts('a')
  assert with_maps != before
  (tmp_path / 'birds.py').write_text('')
  with_module = facts('a')
  assert with_module != with_maps
  (tmp_path / 'birds.py').write_text('x = 1')
  assert facts('a') != with_module


def test_who_is_missing_is_named_in_time(config_file):
  port = processes.free_port()
  out = processes.together(
    processes.training(config_file, *processes.flags(4, i, port, 3))
    for i in (0, 3)
  )
  host = store.host()
  for code, _, err in out:
    assert code == exits.FAILED
    assert err == (
      'pixel-llm train: error: process 1, 2 of 4 did not start within 3 '
      f'seconds; there are 0 ({host}), 3 ({host}).\n'
    )


def test_a_missing_coordinator_is_named_in_time(config_file):
  port = processes.free_port()
  ((code, _, err),) = processes.together(
    [processes.training(config_file, *processes.flags(2, 1, port, 1))]
  )
  assert code == exits.FAILED
  assert err == (
    'pixel-llm train: error: process 0 did not start within 1 seconds: no '
    f'answer at 127.0.0.1:{port} (Connection refused).\n'
  )


def test_two_of_one_index_are_told(config_file):
  port = processes.free_port()
  out = processes.together(
    processes.training(config_file, *processes.flags(3, i, port))
    for i in (0, 1, 1)
  )
  for code, _, err in out:
    assert code == exits.FAILED
    assert 'two processes have the index 1: one on' in err


def test_what_differs_is_named_on_all(config_file):
  port = processes.free_port()
  out = processes.together(
    processes.training(
      config_file, *processes.flags(2, i, port), f'--config.seed={5 * i}'
    )
    for i in (0, 1)
  )
  host = store.host()
  for code, _, err in out:
    assert code == exits.FAILED
    assert (
      'pixel-llm train: error: the processes are not alike:\n'
      f'  process 1 ({host}): config seed is 5, but 0 on process 0 ({host})\n'
    ) in err
    assert 'Traceback' not in err


def test_a_workdir_that_is_not_shared_is_told(config_file):
  port = processes.free_port()
  arguments = [
    processes.training(config_file, *processes.flags(2, i, port, 16))
    for i in (0, 1)
  ]
  other = config_file.parent / 'other'
  arguments[1][arguments[1].index('--workdir') + 1] = other
  out = processes.together(arguments)
  for code, _, err in out:
    assert code == exits.FAILED
    assert f'workdir is {other}, where its files are not seen, but ' in err
  assert list((config_file.parent / 'run').iterdir()) == []


def test_alone_nothing_is_started(config_file):
  with cluster.member(
    None, experiment.ExperimentConfig(), config_file.parent
  ) as watchdog:
    assert not store.joined() and store.is_first()
    assert store.total('x', 3) == 3
    watchdog.alive()
