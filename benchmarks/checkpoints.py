# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What checkpoints cost a training loop, and how much they write.

A state of float32 matrices, some trained by Adam, some frozen, goes through a
loop of jitted steps that donate it. Measured are the seconds that a save holds
the loop up (until the state is copied to the host), how much longer the steps
take while it is written (on a CPU the writer takes cores from them, which it
does not on an accelerator), the time until it is complete, the bytes on disk,
and the time to restore. The stall is their sum over the time between saves.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from rich import progress as rich_progress

from pixel_llm.checkpoints import manager as manager_lib

_SIDE = 2048


@struct.dataclass
class State:
  """As `train.state.TrainState`."""

  step: Any
  params: Any
  opt_state: Any


def main() -> int:
  """Prints a line for each way to save; 1 if a stall is above the target."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--trained', type=int, default=6, help='16 MiB matrices')
  parser.add_argument('--frozen', type=int, default=12, help='16 MiB matrices')
  parser.add_argument('--saves', type=int, default=5)
  parser.add_argument(
    '--interval', type=float, default=600, help='seconds between saves'
  )
  parser.add_argument('--target', type=float, default=0.02, help='stall')
  parser.add_argument('--workdir', help='on the disk to measure')
  args = parser.parse_args()
  print(
    f'{args.trained} trained and {args.frozen} frozen matrices of '
    f'{_SIDE} x {_SIDE} float32; {args.saves} saves of each; '
    f'{jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before',
    flush=True,
  )
  failed = False
  with rich_progress.Progress(disable=not sys.stderr.isatty()) as bar:
    task = bar.add_task('saves', total=3 * args.saves)
    for frozen, asynchronous in (
      ('once', True),
      ('embedded', True),
      ('once', False),
    ):
      config = manager_lib.CheckpointConfig(
        keep_last=2, frozen=frozen, asynchronous=asynchronous
      )
      stall = _measure(config, args, lambda: bar.advance(task))
      failed |= asynchronous and stall > args.target
  return int(failed)


def _measure(config, args, progress) -> float:
  """Prints what saves of a kind cost; the share of the loop that is lost."""
  trainable = {
    **{f't{i}': True for i in range(args.trained)},
    **{f'f{i}': False for i in range(args.frozen)},
  }
  optimizer = optax.adam(1e-3)

  @jax.jit
  def init(key):
    # Of a scale that keeps gradients and so moments alive: zeros compress.
    params = {
      n: jax.random.normal(k, (_SIDE, _SIDE)) * _SIDE**-0.5
      for n, k in zip(trainable, jax.random.split(key, len(trainable)))
    }
    moved = {n: x for n, x in params.items() if trainable[n]}
    return State(jnp.int32(0), params, optimizer.init(moved))

  def step(state, x):
    frozen = {n: v for n, v in state.params.items() if not trainable[n]}
    moved = {n: v for n, v in state.params.items() if trainable[n]}

    def loss(moved):
      y = x
      for w in (*moved.values(), *frozen.values()):
        y = jnp.tanh(y @ w)
      return jnp.mean(jnp.square(y))

    updates, opt_state = optimizer.update(
      jax.grad(loss)(moved), state.opt_state
    )
    params = optax.apply_updates(moved, updates) | frozen
    return State(state.step + 1, params, opt_state)

  step = jax.jit(step, donate_argnums=0)
  state = init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (64, _SIDE))

  def steps(count):
    nonlocal state
    began = time.perf_counter()
    for _ in range(count):
      state = jax.block_until_ready(step(state, x))
    return time.perf_counter() - began

  steps(3)
  pace = min(steps(5) for _ in range(3)) / 5
  folder = pathlib.Path(tempfile.mkdtemp(dir=args.workdir))
  blocked, slowed, complete = [], [], []
  manager = manager_lib.CheckpointManager(folder, config)
  for number in range(1, args.saves + 1):
    began = time.perf_counter()
    manager.save(number, state, {}, trainable)
    blocked.append(time.perf_counter() - began)
    done, busy = 0, 0.0
    while not (folder / str(number) / 'digests.json').exists():
      busy += steps(1)
      done += 1
    complete.append(time.perf_counter() - began)
    manager.wait()
    slowed.append(max(0.0, busy - done * pace))
    progress()
  # The first save also compiles, and writes the base.
  blocked_later = sum(blocked[1:]) / len(blocked[1:])
  slowed_later = sum(slowed[1:]) / len(slowed[1:])
  last = folder / str(args.saves)
  base = next(folder.glob('base-*'), None)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  began = time.perf_counter()
  jax.block_until_ready(manager.restore(abstract))
  restored = time.perf_counter() - began
  manager.close()
  size = sum(v.nbytes for v in jax.tree.leaves(state))
  stall = (blocked_later + slowed_later) / args.interval
  print(
    f'{config.frozen}, {"" if config.asynchronous else "not "}asynchronous: '
    f'state {_mb(size)}, step {pace:.2f} s; a save blocks '
    f'{blocked_later:.2f} s (the first {blocked[0]:.2f} s), slows steps by '
    f'{slowed_later:.2f} s, complete with digests after '
    f'{sum(complete[1:]) / len(complete[1:]):.1f} s: of {args.interval:.0f} s '
    f'{blocked_later / args.interval:.2%} blocked, {stall:.2%} in all; writes '
    f'{_mb(_size(last))}'
    + (f' and once {_mb(_size(base))}' if base else '')
    + f'; restore {restored:.1f} s',
    flush=True,
  )
  shutil.rmtree(folder)
  return stall


def _size(path: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())


def _mb(size: float) -> str:
  return f'{size / 1e6:.0f} MB'


if __name__ == '__main__':
  sys.exit(main())
