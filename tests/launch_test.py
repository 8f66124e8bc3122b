# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Scripts of launch/: what they would do; `local.sh` for real."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import processes
import pytest
import yaml

from pixel_llm import arguments, exits, main
from pixel_llm.checkpoints import manager
from pixel_llm.train import evaluate, loop, results
from pixel_llm.train import place as place_lib

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))
# What a launcher must bring unharmed to the other side.
VERB = ['train', '--config', 'my configs/x.py', '--config.a="b\\"', '$HOME']
VERB += ['--workdir', 'runs/x']


def run(script, *arguments):
  return subprocess.run(
    [LAUNCH / script, *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=60,
  )


def dry(script, *arguments):
  out = run(script, '--dry-run', *arguments)
  assert out.returncode == 0, out.stderr
  return out.stdout


def test_scripts_pass_shellcheck():
  shellcheck = shutil.which(
    'shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.defpath}'
  )
  if shellcheck is None:
    pytest.skip('no shellcheck')
  out = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
  assert not out.stdout


@pytest.mark.parametrize('script', [s.name for s in SCRIPTS])
def test_help_names_every_option_and_others_are_refused(script):
  help = run(script, '--help')
  assert help.returncode == 0
  options = re.findall(r'^    (-\S+)\)', (LAUNCH / script).read_text(), re.M)
  assert '--dry-run' in options
  for option in set(options) - {'--', '-*'}:
    assert re.search(rf'^  +{option}\b', help.stdout, re.M) or option in (
      '--name',
      '--image',
      '--zone',
    )
  wrong = run(script, '--nonsense')
  assert wrong.returncode == exits.USAGE
  assert '--nonsense: no such option' in wrong.stderr
  assert run(script).returncode == exits.USAGE


def test_local_shares_out_gpus():
  lines = dry('local.sh', '-n', 2, '--gpus', 4, '--port', 5, *VERB).splitlines()
  for i, line in enumerate(lines):
    words = shlex.split(line)
    assert words[: len(VERB) + 1] == ['pixel-llm', *VERB]
    args = arguments.parser(main.VERBS).parse_known_args(words[1:])[0]
    assert args.local_devices == ((0, 1), (2, 3))[i]
    place = (args.coordinator, args.num_processes, args.process_id)
    assert place == ('127.0.0.1:5', 2, i)
  assert run('local.sh', '-n', 2, '--gpus', 3, 'train').returncode == 2


def test_tpu_pod_runs_on_all_workers():
  out = dry(
    *('tpu_pod.sh', '--name', 'n', '--zone', 'z', '--project', 'p'),
    *('--create', 'v5p-32', '--spot', '--install', '--detach', '--', *VERB),
  )
  words = [shlex.split(line) for line in out.replace('\\\n', '').splitlines()]
  gcloud = [w[4:] for w in words if w[0] == 'gcloud']
  assert [w[0] for w in gcloud] == ['create', 'scp', 'ssh', 'ssh']
  for w in gcloud:
    assert ('--zone', 'z') in list(zip(w, w[1:]))
    assert ('--project', 'p') in list(zip(w, w[1:]))
    assert w[0] == 'create' or '--worker=all' in w
  nohup = shlex.split(gcloud[-1][-1].partition(' > ')[0])
  assert nohup[:3] == ['nohup', 'sh', '-c']
  command = shlex.split(nohup[3].partition('exec ')[2])
  assert command == ['.venv/bin/pixel-llm', *VERB]
  out = dry('tpu_pod.sh', '--name', 'n', '--zone', 'z', '--stop')
  assert '-TERM' in shlex.split(out)[-1]


# Of the definition of jobset.x-k8s.io/v1alpha2 and of batch/v1, what we use:
# a name with ! is required, and others than these are refused.
CONTAINER = {
  'name!': str,
  'image!': str,
  'command': [str],
  'args': [str],
  'ports': [{'containerPort!': int}],
  'env': [
    {
      'name!': str,
      'value': str,
      'valueFrom': {'fieldRef!': {'fieldPath!': str}},
    }
  ],
  'resources': {'limits': {...: (int, str)}},
  'volumeMounts': [{'name!': str, 'mountPath!': str}],
}
POD = {
  'restartPolicy': str,
  'terminationGracePeriodSeconds': int,
  'nodeSelector': {...: str},
  'tolerations': [{'operator': str, 'key': str}],
  'containers!': [CONTAINER],
  'volumes': [{'name!': str, 'emptyDir': {'medium': str}}],
}
JOB = {
  'backoffLimit': int,
  'completionMode': str,
  'parallelism': int,
  'completions': int,
  'template!': {'spec!': POD},
}
JOBSET = {
  'apiVersion!': str,
  'kind!': str,
  'metadata!': {'name!': str, 'annotations': {...: str}},
  'spec!': {
    'failurePolicy': {'maxRestarts': int},
    'coordinator': {'replicatedJob!': str, 'jobIndex': int, 'podIndex': int},
    'replicatedJobs!': [
      {'name!': str, 'replicas': int, 'template!': {'spec!': JOB}}
    ],
  },
}
SKY = {
  'name': str,
  'num_nodes': int,
  'resources': {'accelerators': str},
  'workdir': str,
  'envs': {...: str},
  'setup': str,
  'run': str,
}


def assert_fits(value, schema, path=''):
  if isinstance(schema, list):
    assert isinstance(value, list), path
    for i, item in enumerate(value):
      assert_fits(item, schema[0], f'{path}[{i}]')
  elif isinstance(schema, dict):
    assert isinstance(value, dict), path
    keys = {k if k is ... else k.rstrip('!'): v for k, v in schema.items()}
    required = {k[:-1] for k in schema if k is not ... and k.endswith('!')}
    assert required <= value.keys(), f'{path}: {required - value.keys()}'
    for key, item in value.items():
      assert key in keys or ... in keys, f'{path}.{key}'
      assert_fits(item, keys.get(key, keys.get(...)), f'{path}.{key}')
  else:
    assert isinstance(value, schema), f'{path}: {value!r}'


def jobset(*options):
  text = dry(
    *('gke.sh', '--name', 'run', '--image', 'registry/x:1', *options),
    *('--', *VERB),
  )
  assert '${' not in text
  made = yaml.safe_load(text)
  assert_fits(made, JOBSET)
  assert made['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  (workers,) = made['spec']['replicatedJobs']
  assert made['spec']['coordinator']['replicatedJob'] == workers['name']
  job = workers['template']['spec']
  (container,) = job['template']['spec']['containers']
  assert container['args'] == VERB
  return workers['replicas'], job, container


def test_jobset_of_tpu_slices():
  replicas, job, container = jobset(
    *('--tpu', 'tpu-v5p-slice:2x2x4:4', '--hosts', 4, '--slices', 2)
  )
  assert (replicas, job['parallelism'], job['completions']) == (2, 4, 4)
  assert job['template']['spec']['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '2x2x4',
  }
  assert container['resources']['limits'] == {'google.com/tpu': 4}


def test_jobset_of_gpus_is_found_by_its_variables(monkeypatch):
  *_, container = jobset(*('--gpu', 'nvidia-h100-80gb:8', '--hosts', 3))
  assert container['resources']['limits'] == {'nvidia.com/gpu': 8}
  # What Kubernetes and JobSet make of them.
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '2')
  known = {}
  for entry in container['env']:
    where = entry.get('valueFrom')
    if where:
      assert where['fieldRef']['fieldPath'] == (
        "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
      )
    value = 'run-workers-0-0.run' if where else entry['value']
    for name, other in known.items():
      value = value.replace(f'$({name})', other)
    known[entry['name']] = value
    monkeypatch.setenv(entry['name'], value)
  place = place_lib.find(timeout=1)
  assert place is not None
  assert (place.coordinator, place.count, place.index) == (
    'run-workers-0-0.run:8482',
    3,
    2,
  )


def test_jobset_of_cpus_and_what_does_not_fit():
  assert jobset()[1]['template']['spec']['nodeSelector'] == {}
  out = run('gke.sh', '--name', 'x', '--image', 'y', '--slices', 2, '--', 'a')
  assert out.returncode == exits.USAGE and '--slices are of TPUs' in out.stderr


@pytest.mark.parametrize(('per', 'tasks'), [('gpu', 4), ('node', 1)])
def test_slurm_submits_what_goes_on_by_itself(tmp_path, per, tasks):
  script = dry(
    *('slurm.sh', '--nodes', 2, '--gpus', 4, '--per', per),
    *('--sbatch', '--partition=h100', '--', *VERB),
  )
  lines = script.splitlines()
  assert lines[0] == '#!/bin/bash'
  flags = {x.removeprefix('#SBATCH ') for x in lines if x.startswith('#SBATCH')}
  assert {
    '--nodes=2',
    f'--ntasks-per-node={tasks}',
    '--gpus-per-node=4',
    '--partition=h100',
    '--requeue',
  } <= flags
  # Run with an `srun` that ends as preempted processes do.
  for name, body in (
    ('srun', f'printf "%s\\n" "$@"; exit {exits.PREEMPTED}'),
    ('scontrol', 'echo "$@"'),
  ):
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  env = {'PATH': f'{tmp_path}:{os.defpath}', 'SLURM_JOB_ID': '7'}
  out = subprocess.run(
    ['bash', '-c', script], env=env, capture_output=True, text=True
  )
  assert out.returncode == exits.PREEMPTED
  assert out.stdout.splitlines() == [
    *('--label', 'pixel-llm', *VERB, 'requeue 7')
  ]


def test_sky_runs_a_process_a_node(tmp_path):
  task = yaml.safe_load((LAUNCH / 'skypilot.yaml').read_text())
  assert_fits(task, SKY)
  out = dry('sky.sh', '--name', 'x', '--nodes', 3, '--managed', '--', *VERB)
  words = shlex.split(out)
  assert words[:3] == ['sky', 'jobs', 'launch']
  assert words[-1] == 'launch/skypilot.yaml' and (LAUNCH.parent / words[-1])
  # Run as on its second node, with a command that says what it is given.
  venv = tmp_path / 'venv' / 'bin'
  venv.mkdir(parents=True)
  (venv / 'pixel-llm').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  (venv / 'pixel-llm').chmod(0o755)
  env = {
    'HOME': str(tmp_path),
    'PATH': os.defpath,
    'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2\n10.0.0.3',
    'SKYPILOT_NUM_NODES': '3',
    'SKYPILOT_NODE_RANK': '1',
    'ARGUMENTS': words[words.index('--env') + 1].removeprefix('ARGUMENTS='),
  }
  out = subprocess.run(
    ['bash', '-c', task['run']], env=env, capture_output=True, text=True
  )
  given = out.stdout.splitlines()
  assert given[: len(VERB)] == VERB
  assert given[len(VERB) :] == [
    *('--coordinator', '10.0.0.1:8482'),
    *('--num-processes', '3', '--process-id', '1'),
  ]


@pytest.fixture
def local(tmp_path):
  """Starts `local.sh` with two processes of the real program."""
  program = tmp_path / 'pixel-llm'
  program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pixel_llm "$@"\n')
  program.chmod(0o755)

  started = []

  def start(*arguments):
    command = [LAUNCH / 'local.sh', '-n', 2, '--port', processes.free_port()]
    started.append(
      subprocess.Popen(
        [str(x) for x in (*command, *arguments)],
        env={**processes.ENV, 'PIXEL_LLM': str(program)},
        cwd=processes.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
      )
    )
    return started[-1]

  yield start
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)


def curve(workdir):
  rows = json.loads((workdir / 'curves.json').read_text())
  return [
    {k: v for k, v in row.items() if 'narrate/' in k or k == 'step'}
    for row in rows
  ]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_two_devices(tmp_path, local):
  config = processes.config(tmp_path, steps=4, log_every=1)
  file = processes.write_config(tmp_path / 'c.py', config)
  two, one = tmp_path / 'two', tmp_path / 'one'
  out, _ = local('train', '--config', file, '--workdir', two).communicate(
    timeout=300
  )
  assert 'cluster (flags): 2 processes x 1 cpu (cpu) = 2 devices' in out
  # Only the first speaks of steps and writes.
  assert '[0] step 4/4' in out and '[1] step' not in out
  assert len(list(two.glob('events.out.tfevents*'))) == 1
  trainer = loop.Trainer(config, str(one), lambda _: None, jax.devices()[:2])
  with trainer.checkpoints:
    trainer.train()
  left, right = curve(two), curve(one)
  assert [row['step'] for row in left] == [1, 2, 3, 4]
  for a, b in zip(left, right, strict=True):
    assert a == pytest.approx(b, rel=1e-4)
  out, _ = local('evaluate', '--workdir', two).communicate(timeout=300)
  assert '[0] narrate/point_l1' in out and '[1] narrate' not in out
  with trainer.checkpoints:
    step, params = trainer.restore_params()
    found = evaluate.flat_metrics(trainer.evaluate(params, step))
  metrics = results.read_metrics(str(two))
  for name, value in found.items():
    np.testing.assert_allclose(metrics[name], value, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_sigterm_at_one_of_two_saves_both_and_goes_on(tmp_path, local):
  config = processes.config(
    tmp_path, steps=100_000, log_every=1, checkpoint_every=100_000
  )
  file = processes.write_config(tmp_path / 'c.py', config)
  workdir = tmp_path / 'run'
  running = local('train', '--config', file, '--workdir', workdir)
  out = ''
  for line in running.stdout:
    out += line
    if '[0] step 3/' in line:
      # The second, by what it was started with.
      (process,) = (
        int(p.name)
        for p in pathlib.Path('/proc').iterdir()
        if p.name.isdigit()
        and _words(p)[-2:] == ['--process-id', '1']
        and str(workdir) in _words(p)
      )
      os.kill(process, signal.SIGTERM)
  assert running.wait(timeout=60) == exits.PREEMPTED
  ends = [x for x in out.splitlines() if 'stopped by SIGTERM' in x]
  assert [x[:4] for x in sorted(ends)] == ['[0] ', '[1] ']
  assert len({x[4:] for x in ends}) == 1
  reader = manager.CheckpointManager(workdir / 'checkpoints', read_only=True)
  with reader:
    step = reader.latest_step()
  assert f'at step {step} of' in ends[0] and step >= 3
  again = local(
    *('train', '--config', file, '--workdir', workdir),
    f'--config.loop.steps={step + 1}',
  )
  out, _ = again.communicate(timeout=300)
  assert again.returncode == exits.DONE
  assert f'[0] resuming at step {step}' in out
  assert f'[0] step {step + 1}/{step + 1}' in out


def _words(process):
  try:
    return (process / 'cmdline').read_text().split('\0')[:-1]
  except OSError:
    return []
