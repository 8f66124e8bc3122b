# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes of one cluster on this machine, and a run for them."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import scene_records

from pixel_llm import config as config_lib
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


def training(config_file, *rest):
  """Arguments of Python for `pixel-llm train` of a config."""
  workdir = config_file.parent / 'run'
  return [
    *('-m', 'pixel_llm', 'train', '--config', config_file),
    *('--workdir', workdir, *rest),
  ]


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
  return dataclasses.replace(
    scene_records.experiment(root, ('narrate',), batch=4),
    optimizer=optimizer.OptimizerConfig(warmup_steps=2),
    loop=experiment.LoopConfig(**loop),
  )


def write_config(path: pathlib.Path, config) -> pathlib.Path:
  """The config as a file for `--config`."""
  values = json.dumps(json.dumps(config_lib.to_dict(config)))
  path.write_text(
    'import json\n\nimport ml_collections\n\n\ndef get_config():\n'
    f'  return ml_collections.ConfigDict(json.loads({values}))\n'
  )
  return path
