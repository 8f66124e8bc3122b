# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A run of several processes that is killed again and again, and is not harmed.

Trains a tiny network on real processes (jax.distributed on the CPU, gloo) twice
with the same seed: without a pause, and with kill -9 at random moments: of one
process or of all, while they start, train, or are within a save. After each
kill the rest is killed too, as a scheduler would, and the same command starts
again. Both runs must have the same loss at every step, and the same parameters
and optimizer at the end, bit for bit.

Processes are forked off one that has imported everything, since that is most of
what a start takes; what is compiled is kept on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image
from rich import progress as rich_progress

from pixel_llm import tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import manager
from pixel_llm.checkpoints.formats import orbax
from pixel_llm.data import registry
from pixel_llm.example import Example, Region
from pixel_llm.model import eva, pixel_llm, prompt, regression, t5
from pixel_llm.train import experiment, loop, optimizer

# A process that shows no new step for so long is stuck.
_PATIENCE_SECONDS = 300.0
_WORDS = ('red', 'blue', 'green', 'ring', 'star', 'box', 'small', 'large')
# By name; anything else in a row of curves.json is about time.
_LOSSES = 'soak/'


def main() -> int:
  """Prints what was killed and when; 1 if the runs differ."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--seed', type=int, default=0, help='of the kills')
  parser.add_argument('--workdir', help='default a folder that is removed')
  args = parser.parse_args()
  root = pathlib.Path(args.workdir or tempfile.mkdtemp(prefix='soak-'))
  try:
    with rich_progress.Progress(
      *rich_progress.Progress.get_default_columns(),
      rich_progress.MofNCompleteColumn(),
      disable=not sys.stderr.isatty(),
    ) as bar:
      task = bar.add_task('kills', total=args.kills)
      lines = soak(
        root,
        kills=args.kills,
        processes=args.processes,
        seed=args.seed,
        log=lambda line: print(line, flush=True),
        progress=lambda done: bar.update(task, completed=done),
      )
  finally:
    if args.workdir is None:
      shutil.rmtree(root, ignore_errors=True)
  print('\n'.join(lines) or 'no difference, bit for bit')
  return int(bool(lines))


def soak(
  root: pathlib.Path,
  kills: int,
  processes: int,
  seed: int = 0,
  log: Callable[[str], None] = print,
  progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """Runs both; how they differ, in words."""
  steps = 5 * kills + 16
  began = time.monotonic()
  whole = run(root, 'whole', steps, processes)
  assert whole.wait() == steps
  log(
    f'{processes} processes, {steps} steps; without a kill: '
    f'{time.monotonic() - began:.0f} s'
  )
  draw, done, began, before = random.Random(seed), 0, time.monotonic(), 0
  lost = 0
  while True:
    started = time.monotonic()
    killed = run(root, 'killed', steps, processes)
    if done == kills:
      assert killed.wait() == steps
      break
    how = draw.choice(('step', 'step', 'save', 'save', 'start'))
    if how == 'start':
      time.sleep(draw.uniform(0, 15))
    else:
      # New steps, so that the run comes to its end some time.
      killed.until(before + draw.randint(1, 6), saving=how == 'save')
      time.sleep(draw.uniform(0, 0.05 if how == 'save' else 0.5))
    count = draw.choice((1, processes))
    reached, saving = killed.step, killed.saving
    killed.kill(draw.sample(range(processes), count))
    done += 1
    newest = max(orbax.steps(killed.workdir / 'checkpoints'), default=0)
    lost += max(0, reached - newest)
    log(
      f'kill {done}: {count} of {processes} processes, at '
      f'{f"step {reached}" if reached else "start"}'
      f'{", within a save" if saving else ""}, '
      f'{time.monotonic() - started:.1f} s after the start; newest '
      f'checkpoint: {newest}'
    )
    before = max(before, newest)
    assert before < steps, 'ended before the last kill'
    progress(done)
  log(
    f'{kills} kills: {time.monotonic() - began:.0f} s, {lost} steps done twice'
  )
  return differences(whole, killed, steps)


def differences(a: Run, b: Run, steps: int) -> list[str]:
  """How two runs' losses, parameters and optimizers differ."""
  curves = [x.losses() for x in (a, b)]
  lines = [
    f'step {step}: {left} is not {right}'
    for step, left, right in zip(range(1, steps + 1), *curves)
    if left != right
  ]
  if [len(c) for c in curves] != [steps, steps]:
    lines.append(f'expected {steps} losses, got {[len(c) for c in curves]}')
  left, right = (orbax.read(x.workdir / f'checkpoints/{steps}') for x in (a, b))
  if left.keys() != right.keys():
    lines.append(f'names differ: {left.keys() ^ right.keys()}')
  lines += [
    f'{name} differs'
    for name in left.keys() & right.keys()
    if left[name].read().tobytes() != right[name].read().tobytes()
  ]
  return lines


class Run:
  """The processes of one run, from one start to their end or death.

  Args:
    workdir: of the run.
    pids: of its processes.
    logs: of what they say.
  """

  def __init__(
    self, workdir: pathlib.Path, pids: list[int], logs: list[pathlib.Path]
  ):
    self.workdir, self._logs = workdir, logs
    self._pids = dict(enumerate(pids))
    self._began = time.time()

  @property
  def step(self) -> int:
    """The last one with a loss since this start, else 0."""
    rows = self._rows() if self._since('curves.json') else []
    return rows[-1]['step'] if rows else 0

  @property
  def saving(self) -> bool:
    """Whether a save of this start is not complete."""
    return self._since('checkpoints/*.orbax-checkpoint-tmp*')

  def _since(self, pattern: str) -> bool:
    for path in self.workdir.glob(pattern):
      with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime > self._began:
          return True
    return False

  def losses(self) -> list[dict[str, float]]:
    """Of each step."""
    return [
      {k: v for k, v in row.items() if k.startswith(_LOSSES)}
      for row in self._rows()
    ]

  def _rows(self) -> list[dict[str, float]]:
    file = self.workdir / 'curves.json'
    return json.loads(file.read_text()) if file.exists() else []

  def until(self, step: int, saving: bool = False) -> None:
    """Waits for a step of this start, or the first save from there."""
    last = time.monotonic() + _PATIENCE_SECONDS
    while self.step < step or (saving and not self.saving):
      self._check(time.monotonic() > last)
      if not self._pids:
        return
      time.sleep(0.002 if self.step >= step else 0.05)

  def wait(self) -> int:
    """The last step, when all processes have ended well."""
    last = time.monotonic() + _PATIENCE_SECONDS * 4
    while self._pids:
      self._check(time.monotonic() > last)
      time.sleep(0.05)
    return self.step

  def _check(self, late: bool) -> None:
    for index, pid in list(self._pids.items()):
      found, status = os.waitpid(pid, os.WNOHANG)
      if found:
        del self._pids[index]
      if status or late:
        self.kill([])
        what = f'ended with {status}' if status else 'is late'
        raise RuntimeError(
          f'process {index} {what}: {self._logs[index].read_text()[-4000:]}'
        )

  def kill(self, first: list[int]) -> None:
    """SIGKILL to some processes, and to the others a second later."""
    for index in first:
      if index in self._pids:
        os.kill(self._pids[index], signal.SIGKILL)
    if 0 < len(first) < len(self._pids):
      time.sleep(1)
    for pid in self._pids.values():
      os.kill(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
    self._pids = {}


def run(root: pathlib.Path, name: str, steps: int, processes: int) -> Run:
  """Starts the processes; the run goes on from where it was."""
  workdir = root / name
  workdir.mkdir(parents=True, exist_ok=True)
  vocabulary = root / 'vocabulary.model'
  if not vocabulary.exists():
    vocabulary_lib.train([' '.join(_WORDS)] * 9, str(vocabulary), 64)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  pids, logs = [], []
  for index in range(processes):
    log = workdir / f'process{index}.log'
    with warnings.catch_warnings():
      # JAX's, of forks: nothing of it runs yet here.
      warnings.simplefilter('ignore')
      pid = os.fork()
    if not pid:
      _worker(root, workdir, log, steps, port, processes, index)
    pids.append(pid)
    logs.append(log)
  return Run(workdir, pids, logs)


def _worker(
  root: pathlib.Path,
  workdir: pathlib.Path,
  log: pathlib.Path,
  steps: int,
  port: int,
  processes: int,
  index: int,
) -> None:
  """What a process does; does not return."""
  code = 1
  try:
    with open(log, 'w', buffering=1) as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 1)
    jax.config.update('jax_disable_most_optimizations', True)
    jax.config.update('jax_compilation_cache_dir', str(root / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    if processes > 1:
      jax.config.update('jax_cpu_collectives_implementation', 'gloo')
      jax.distributed.initialize(f'localhost:{port}', processes, index)
    config = make_config(root / 'vocabulary.model', steps)
    add_task(config)
    trainer = loop.Trainer(config, str(workdir))
    loader = trainer.loader()
    # This process's part of each batch; the one stream's batches are the steps.
    files = {
      s: [
        dataclasses.astuple(x)
        for x in loader._slots('soak', s, loader._process)
      ]
      for s in range(9)
    }
    with trainer.checkpoints:
      trainer.train()
    name = f'slots{processes}.{index}.json'
    (workdir / name).write_text(json.dumps(files))
    code = 0
  except BaseException:
    import traceback

    traceback.print_exc()
  finally:
    sys.stdout.flush()
    os._exit(code)


def add_task(config: experiment.ExperimentConfig) -> None:
  """Registers `soak_refer`: images of noise, expressions and boxes."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(24):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(
      file, 'png'
    )
    corners = np.sort(rng.random((2, 2)), axis=0).astype(np.float32)
    text = ' '.join(rng.choice(_WORDS, 3))
    region = Region(id=f'{i}', text=text, box=corners.reshape(4))
    rows.append(Example(file.getvalue(), f'{i}.png', (32, 32), (region,)))
  data = config.data
  registry.use_vocabulary(
    vocabulary_lib.Vocabulary(data.vocabulary, data.extra_ids)
  )
  registry.add_task(
    'soak_refer',
    registry.SequenceSource({'train': rows}),
    tasks.REFER,
    lambda row: row,
    replace=True,
  )


def make_config(
  vocabulary: pathlib.Path, steps: int
) -> experiment.ExperimentConfig:
  """The tiny run: every second step is saved, every loss logged."""
  return experiment.ExperimentConfig(
    model=pixel_llm.ModelConfig(
      eva=eva.EvaConfig(
        patch_size=16,
        width=16,
        depth=1,
        num_heads=2,
        mlp_dim=16,
        position_grid=2,
      ),
      sam=None,
      prompt=prompt.PromptConfig(embed_dim=16),
      extractor=prompt.ExtractorConfig(
        num_queries=2, depth=1, width=16, num_heads=2, mlp_dim=16, out_dim=16
      ),
      t5=t5.T5Config(
        vocab_size=64,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
      ),
      regression=regression.RegressionConfig(hidden_dim=16, depth=1),
    ),
    data=experiment.DataConfig(
      vocabulary=str(vocabulary),
      extra_ids=0,
      image=32,
      streams={
        'soak': experiment.StreamConfig(
          'soak_refer', batch=8, regions=1, context=4, length=8
        )
      },
    ),
    optimizer=optimizer.OptimizerConfig(warmup_steps=2, freeze=('^eva/',)),
    checkpoint=manager.CheckpointConfig(keep_last=2, keep_every=100),
    loop=experiment.LoopConfig(
      steps=steps, log_every=1, checkpoint_every=2, workers=1
    ),
  )


if __name__ == '__main__':
  sys.exit(main())
