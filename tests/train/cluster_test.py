# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes on the CPU, with gloo between them."""

import signal

import processes
import pytest
from jax._src import cloud_tpu_init

from pixel_llm import exits, main
from pixel_llm.train import cluster, experiment

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[003-004]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
}
OPEN_MPI_4 = {
  'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.1.2.3:5',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '0',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
}
JOBSET = {
  'KUBERNETES_SERVICE_HOST': '10.0.0.1',
  'JOB_COMPLETION_INDEX': '2',
  'JAX_COORDINATOR_ADDRESS': 'run-workers-0-0.run:8482',
  'JAX_NUM_PROCESSES': '4',
}
GKE_TPU = {
  'TPU_WORKER_HOSTNAMES': 'localhost,b',
  'TPU_WORKER_ID': '1',
  'MEGASCALE_NUM_SLICES': '2',
  'MEGASCALE_SLICE_ID': '1',
  'MEGASCALE_COORDINATOR_ADDRESS': 'localhost:8080',
}


@pytest.fixture
def found(monkeypatch):
  """`find` in an environment of these variables alone."""

  def find(variables, tpu=False, **given):
    for name in (*SLURM, *OPEN_MPI_4, *JOBSET, *GKE_TPU, 'JAX_PROCESS_ID'):
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_init, 'running_in_cloud_tpu_vm', tpu)
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', tpu)
    place = cluster.find(timeout=1, **given)
    return place and (
      place.coordinator,
      place.count,
      place.index,
      place.devices,
    )

  return find


def test_slurm_is_found(found):
  assert found(SLURM) == ('node003:61447', 4, 3, (1,))
  alone = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'SLURM_LOCALID': '0'}
  assert found(alone) == ('node003:61447', 4, 3, None)
  one_seen = {**SLURM, 'CUDA_VISIBLE_DEVICES': '1'}
  assert found(one_seen) == ('node003:61447', 4, 3, None)
  assert found({**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}) is None


def test_open_mpi_is_found(found):
  assert found(OPEN_MPI_4) == ('10.1.2.3:61441', 2, 1, None)
  five = {k: v for k, v in OPEN_MPI_4.items() if 'uri' not in k}
  with pytest.raises(cluster.ClusterError, match='--coordinator: neither'):
    found(five)
  assert found(five, coordinator='a:1') == ('a:1', 2, 1, None)


def test_jobset_is_found(found):
  assert found(JOBSET) == ('run-workers-0-0.run:8482', 4, 2, None)
  bare = {k: v for k, v in JOBSET.items() if 'JAX' not in k}
  with pytest.raises(cluster.ClusterError, match='JAX_NUM_PROCESSES'):
    found(bare)
  with pytest.raises(cluster.ClusterError, match=r'whole number, got .x.'):
    found({**JOBSET, 'JAX_NUM_PROCESSES': 'x'})


def test_tpus_on_gke_are_found_over_all_slices(found):
  assert found(GKE_TPU, tpu=True) == ('localhost:8482', 4, 3, None)
  # As in a JobSet, whose index is that in a slice.
  both = {**JOBSET, **GKE_TPU, 'JOB_COMPLETION_INDEX': '1'}
  address = JOBSET['JAX_COORDINATOR_ADDRESS']
  assert found(both, tpu=True) == (address, 4, 3, None)


def test_what_is_given_goes_before_what_is_found(found):
  given = {'coordinator': '[::1]:9', 'count': 2, 'index': 0}
  assert found(SLURM, **given) == ('[::1]:9', 2, 0, None)
  assert found({}, **given, devices=[2, 3]) == ('[::1]:9', 2, 0, (2, 3))
  assert cluster.Place('[::1]:9', 2, 0).address == ('::1', 9)


def test_nothing_found_is_alone(found):
  assert found({}) is None


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ({'count': 2}, '--coordinator, --process-id: neither given nor said'),
    ({'devices': [0]}, '--coordinator, --num-processes, --process-id'),
    ({'coordinator': 'a:1', 'count': 2, 'index': 2}, 'expected 0 to 1'),
    ({'coordinator': 'a', 'count': 2, 'index': 1}, "'a': expected HOST:PORT"),
  ],
)
def test_flags_that_do_not_fit_are_told(found, given, said):
  with pytest.raises(cluster.ClusterError, match=said):
    found({}, **given)


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


def test_facts_are_of_what_files_hold_not_where_they_lie(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'train.manifest.json').write_text('{}')

  def facts(name, **loop):
    return cluster._facts(
      experiment.ExperimentConfig(
        data=experiment.DataConfig(records={'x': str(tmp_path / name)}),
        loop=experiment.LoopConfig(**loop),
      )
    )

  assert facts('a') == facts('b', workers=3)
  assert facts('a') != facts('b', steps=3)
  (tmp_path / 'b' / 'train.manifest.json').write_text('{ }')
  assert facts('a') != facts('b')


@pytest.fixture
def config_file(tmp_path):
  return processes.write_config(
    tmp_path / 'c.py', experiment.ExperimentConfig()
  )


def cli(config_file, *rest):
  workdir = config_file.parent / 'run'
  return [
    *('-m', 'pixel_llm', 'train', '--config', config_file),
    *('--workdir', workdir, *rest),
  ]


def test_who_is_missing_is_named_in_time(config_file):
  port = processes.free_port()
  out = processes.together(
    cli(config_file, *processes.flags(4, i, port, 3)) for i in (0, 3)
  )
  host = cluster._host()
  for code, _, err in out:
    assert code == exits.FAILED
    assert err == (
      'pixel-llm train: error: process 1, 2 of 4 did not start within 3 '
      f'seconds; there are 0 ({host}), 3 ({host}).\n'
    )


def test_a_missing_coordinator_is_named_in_time(config_file):
  port = processes.free_port()
  ((code, _, err),) = processes.together(
    [cli(config_file, *processes.flags(2, 1, port, 1))]
  )
  assert code == exits.FAILED
  assert err == (
    'pixel-llm train: error: process 0 did not start within 1 seconds: no '
    f'answer at 127.0.0.1:{port} (Connection refused).\n'
  )


def test_two_of_one_index_are_told(config_file):
  port = processes.free_port()
  out = processes.together(
    cli(config_file, *processes.flags(3, i, port)) for i in (0, 1, 1)
  )
  for code, _, err in out:
    assert code == exits.FAILED
    assert 'two processes have the index 1: one on' in err


def test_what_differs_is_named_on_all(config_file):
  port = processes.free_port()
  out = processes.together(
    cli(config_file, *processes.flags(2, i, port), f'--config.seed={5 * i}')
    for i in (0, 1)
  )
  host = cluster._host()
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
    cli(config_file, *processes.flags(2, i, port, 16)) for i in (0, 1)
  ]
  other = config_file.parent / 'other'
  arguments[1][arguments[1].index('--workdir') + 1] = other
  out = processes.together(arguments)
  for code, _, err in out:
    assert code == exits.FAILED
    assert f'workdir is {other}, where its files are not seen, but ' in err
  assert list((config_file.parent / 'run').iterdir()) == []


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
      *cli(config_file, *processes.flags(count, i, port), *rest)[2:],
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
  host = cluster._host()
  assert f'pixel-llm: process 1 ({host}): the disk is full' in out[0][2]


@pytest.mark.slow
def test_a_failure_that_waits_for_the_others_ends_all(config_file):
  body = """
    import contextlib
    from pixel_llm.train import cluster
    with contextlib.ExitStack() as around:
      around.callback(time.sleep, 600)
      with cluster.telling():
        if args.process_id == 1:
          raise ValueError('the disk is full')
        time.sleep(600)
"""
  host = cluster._host()
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
    from pixel_llm.train import cluster
    with cluster.Stop() as stop:
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


def test_alone_nothing_is_started(config_file):
  with cluster.member(
    None, experiment.ExperimentConfig(), config_file.parent
  ) as watchdog:
    assert not cluster.joined() and cluster.is_first()
    assert cluster.total('x', 3) == 3
    watchdog.alive()


def test_alone_a_step_that_finishes_is_no_stall(tmp_path):
  """Steps under way for longer than the limit, but ending within it."""
  code = f"""
import time
from pixel_llm.train import cluster

class Result:
  def __init__(self, at):
    self.at = at
  def is_ready(self):
    return time.monotonic() > self.at

with cluster.Watchdog(1, {str(tmp_path)!r}) as watchdog:
  began = time.monotonic()
  for i in range(6):
    watchdog.begun(i, Result(began + 0.4 * i))
  time.sleep(2.5)
  print('here', flush=True)
  time.sleep(60)
"""
  ((code, out, err),) = processes.together([['-c', code]])
  assert code == exits.STALLED and out == 'here\n'
  assert 'the last was 5;' in err


def test_help_says_the_exit_codes(capsys):
  with pytest.raises(SystemExit):
    main.main(['--help'])
  said = ' '.join(capsys.readouterr().out.split())
  assert f'{exits.PREEMPTED} stopped by a signal' in said
  assert f'{exits.STALLED} stood still' in said
