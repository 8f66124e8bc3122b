# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes of one cluster on this machine, and a run for them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import scene_records
import tiny

from pixel_llm import config as config_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.train import experiment, optimizer

ROOT = pathlib.Path(__file__).parents[1]
# One device a process, not the eight of the tests.
ENV = {
  **os.environ,
  'XLA_FLAGS': os.environ.get('XLA_FLAGS', '').replace(
    '--xla_force_host_platform_device_count=8', ''
  ),
  'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
}


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def together(arguments, timeout=120, env=ENV, before=None):
  """Runs a process for each list of Python's arguments.

  Args:
    arguments: of each process.
    timeout: of all.
    env: of all.
    before: called with the processes while they run.

  Returns: (exit code, stdout, stderr) of each.
  """
  processes = [
    subprocess.Popen(
      [sys.executable, *map(str, own)],
      env=env,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for own in arguments
  ]
  try:
    if before:
      before(processes)
    outs = [p.communicate(timeout=timeout) for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [(p.returncode, *out) for p, out in zip(processes, outs)]


def flags(count, index, port, timeout=60):
  return [
    *('--coordinator', f'127.0.0.1:{port}', '--num-processes', count),
    *('--process-id', index, '--start-timeout', timeout),
  ]


def config(root: pathlib.Path, **loop) -> experiment.ExperimentConfig:
  """A run of the smallest network; its data is made below `root`."""
  annotations = scene_records.make(root, seed=1, train=6, val=3)
  lines = (annotations / 'scenes_train_localized_narratives.jsonl').read_text()
  texts = [json.loads(line)['caption'] for line in lines.splitlines()]
  vocabulary_lib.train(texts, str(root / 'v.model'), 64)
  size = {'batch': 4, 'regions': 2, 'context': 6, 'length': 12}
  return experiment.ExperimentConfig(
    model=tiny.model_config(64),
    data=experiment.DataConfig(
      records={'scenes_narratives': str(root / 'narratives')},
      vocabulary=str(root / 'v.model'),
      extra_ids=0,
      image=32,
      streams={'narrate': experiment.StreamConfig('scenes_narrate', **size)},
    ),
    optimizer=optimizer.OptimizerConfig(warmup_steps=2),
    loop=experiment.LoopConfig(**loop),
    eval=experiment.EvalConfig(
      tasks={'scenes_narrate': experiment.EvalTaskConfig(**size)}
    ),
  )


def write_config(path: pathlib.Path, config) -> pathlib.Path:
  """The config as a file for `--config`."""
  values = json.dumps(json.dumps(config_lib.to_dict(config)))
  path.write_text(
    'import json\n\nimport ml_collections\n\n\ndef get_config():\n'
    f'  return ml_collections.ConfigDict(json.loads({values}))\n'
  )
  return path
