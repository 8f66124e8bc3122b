# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A config's training step, and its captions, on the accelerator that is there.

  python -m benchmarks.gpu --size base --batch 32
  python -m benchmarks.gpu --size xl --batch 16 --remat full none

The network of configs/narrate.py at its full size with random parameters and
inputs: seconds, MFU and memory of a step, and seconds of writing captions, each
with cuDNN's attention and with XLA's alone. MFU counts no FLOP that is only
done again. Needs neither data nor TensorFlow.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import narrate
from pixel_llm import batch as batch_lib
from pixel_llm import chips, sharding
from pixel_llm import config as config_lib
from pixel_llm.model import decoding, layers, pixel_llm
from pixel_llm.tasks import task
from pixel_llm.train import (
  experiment,
  optimizer,
  parameters,
  state,
  step,
  telemetry,
)

_GIB = 2**30
KERNELS = ('cuDNN', 'XLA')


def random_batch(sizes: batch_lib.BatchSizes) -> batch_lib.Batch:
  """A batch (NumPy) whose every image, word and place counts."""
  rng = np.random.default_rng(0)

  def draw(x):
    if x.dtype == jnp.uint8:
      return rng.integers(0, 256, x.shape, np.uint8)
    if x.dtype == jnp.int32:
      return rng.integers(2, 30_000, x.shape, np.int32)
    return rng.random(x.shape, np.float32)

  batch = jax.tree.map(draw, batch_lib.Batch.shapes(sizes))
  size = np.full(batch.image_size.shape, sizes.image, np.int32)
  ones = np.ones(batch.decoder_loss_weights.shape, np.float32)
  box = np.broadcast_to(
    np.array([0, 0, 1, 1], np.float32), batch.prompt_boxes.shape
  )
  return dataclasses.replace(
    batch,
    image_size=size,
    prompt_boxes=box,
    prompt_box_weights=np.ones(batch.prompt_box_weights.shape, np.float32),
    decoder_loss_weights=ones,
    point_weights=ones,
  )


def timed(run: Callable[[], Any], runs: int) -> float:
  """Seconds of a run, of `runs` in a row whose last is waited for."""
  jax.block_until_ready(run())
  begun = time.perf_counter()
  for _ in range(runs):
    result = run()
  jax.block_until_ready(result)
  return (time.perf_counter() - begun) / runs


def memory(compiled: Any) -> float:
  """GiB that the program takes at its peak."""
  found = compiled.memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  ) / _GIB


def measure(
  config: experiment.ExperimentConfig, title: str, args: argparse.Namespace
) -> None:
  """Prints a line a program."""
  sizes = config.data.sizes(config.data.streams['narratives'])
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  init = parameters.init_fn(config)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  mask = optimizer.trainable_mask(config.optimizer, shapes)
  update = optimizer.make(config.optimizer, config.loop.steps, shapes)
  held = state.create(init, update, mask, mesh, config.mesh, jax.random.key(0))
  given = sharding.place(random_batch(sizes), sharding.batch_sharding(mesh))
  model = pixel_llm.PixelLLM(config.model)
  take = lambda model: step.make(config, model, mask, update)
  whole = pixel_llm.PixelLLM(telemetry.without_remat(config.model))
  flops = chips.model_flops(jax.make_jaxpr(take(whole))(held, given))
  chip = chips.of_kind(jax.devices()[0].device_kind)

  def compiled(what, function, *args, **jit):
    begun = time.perf_counter()
    made = jax.jit(function, **jit).lower(*args).compile()
    spent = time.perf_counter() - begun
    print(
      f'{title}, {what}: {memory(made):.2f} GiB, compiled in {spent:.0f} s',
      end=', ',
      flush=True,
    )
    return made

  def once():
    nonlocal held
    held, metrics = stepped(held, given)
    return metrics

  for kernel in args.attention:
    with sharding.placed(mesh, config.mesh), attention(kernel):
      stepped = compiled(
        f'step, {kernel}', take(model), held, given, donate_argnums=0
      )
      seconds = timed(once, args.runs)
      if args.profile:
        with jax.profiler.trace(args.profile):
          timed(once, 2)
      mfu = f'MFU {flops / seconds / chip.flops:.1%}' if chip else 'MFU unknown'
      print(f'{seconds * 1e3:.1f} ms, {mfu}', flush=True)
      for count in args.beams:
        how = decoding.DecodingConfig(length=sizes.length, beams=count)
        write = functools.partial(task.generate, model, decoding=how)
        written = compiled(
          f'written, beams {count}, {kernel}', write, held.params, given
        )
        run = functools.partial(written, held.params, given)
        seconds = timed(run, 2)
        words = int((run().tokens > 0).sum())
        print(
          f'{seconds * 1e3:.0f} ms, {words / seconds:,.0f} tokens/s', flush=True
        )


@contextlib.contextmanager
def attention(kernel: str) -> Iterator[None]:
  """Leaves attention to cuDNN where it fits, or to XLA alone."""
  fits = layers.fits_cudnn
  if kernel == 'XLA':
    layers.fits_cudnn = lambda *_: False
  jax.clear_caches()
  try:
    yield
  finally:
    layers.fits_cudnn = fits


def main() -> None:
  """Prints what it ran on, and the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', default='base', help='of T5')
  parser.add_argument('--batch', type=int, nargs='+', default=[16])
  parser.add_argument('--remat', nargs='+', default=['full'])
  parser.add_argument('--beams', type=int, nargs='*', default=[1, 4])
  parser.add_argument(
    '--attention', nargs='+', choices=KERNELS, default=KERNELS
  )
  parser.add_argument('--runs', type=int, default=10)
  parser.add_argument('--profile', help='folder for a trace of three steps')
  args = parser.parse_args()
  device = jax.devices()[0]
  print(
    f'{device.device_kind}, JAX {jax.__version__}, Python '
    f'{platform.python_version()}; {args.runs} steps in a row',
    flush=True,
  )
  for batch in args.batch:
    for remat in args.remat:
      values = narrate.get_config(args.size)
      with values.unlocked():
        values.model.eva.remat = values.model.t5.remat = remat
        values.data.streams.narratives.batch = batch
      config = config_lib.from_dict(
        experiment.ExperimentConfig, values.to_dict()
      )
      title = f'T5 {args.size}, batch {batch}, remat {remat}'
      measure(config, title, args)


if __name__ == '__main__':
  main()
