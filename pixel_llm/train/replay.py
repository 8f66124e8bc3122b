# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A step of a run once more, to see which examples made it what it was.

The batch of a step is a function of the step, so nothing needs to have been
saved but a checkpoint before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pixel_llm import batch as batch_lib
from pixel_llm import sharding
from pixel_llm.data import loader as loader_lib
from pixel_llm.train import loop as loop_lib
from pixel_llm.train import step as step_lib

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Replay:
  """A step, looked at.

  Attributes:
    step: its number; the first is 1.
    start: step of the checkpoint that it was reached from.
    stream: that its batch is of.
    metrics: of the step.
    examples: (slot, loss terms of it alone) of each example, without dropout;
      those that are not finite first, then the largest losses.
  """

  step: int
  start: int
  stream: str
  metrics: dict[str, float]
  examples: list[tuple[loader_lib.Slot, dict[str, float]]]

  def to_json(self) -> dict[str, Any]:
    """For machines."""
    return {
      **dataclasses.asdict(self),
      'examples': [
        {**dataclasses.asdict(slot), **terms} for slot, terms in self.examples
      ],
    }

  def __str__(self) -> str:
    described = lambda values: ', '.join(
      f'{k} {v:.4g}' for k, v in values.items()
    )
    lines = [
      f'step {self.step}, stream {self.stream}, from the checkpoint of step '
      f'{self.start}: {described(self.metrics)}',
      *(
        f'  {slot.task}, row {slot.index}: {described(terms)}'
        for slot, terms in self.examples
      ),
    ]
    return '\n'.join(lines)


def replay(
  trainer: loop_lib.Trainer, step: int, progress: Progress | None = None
) -> Replay:
  """Runs from the newest checkpoint before a step up to it.

  Args:
    trainer: of the run; one process.
    step: its number; the first is 1.
    progress: called with steps done and to do.

  Raises:
    CheckpointError: no checkpoint is old enough, or it can't be read.
    ValueError: no such step.
  """
  if not 1 <= step <= trainer.config.loop.steps:
    raise ValueError(
      f'step: expected 1 to {trainer.config.loop.steps}, got {step}.'
    )
  steps = [s for s in trainer.checkpoints.steps() if s < step]
  if steps:
    start, state = steps[-1], trainer.restore(steps[-1])
  else:
    start, state = 0, trainer.create()
  loader = trainer.loader()
  batches = loader.batches(start)
  place = sharding.batch_sharding(trainer.mesh)
  step_fn = trainer.step_fn()
  with trainer.placed():
    for done in range(start, step):
      _, batch = next(batches)
      if done == step - 1:
        # The step takes the state's memory.
        examples = _examples(trainer, state.params, batch, place)
      state, metrics = step_fn(state, loader_lib.to_device(batch, place))
      if progress is not None:
        progress(done + 1 - start, step - start)
  batches.close()
  stream, slots = loader.slots(step - 1)
  order = sorted(
    zip(slots, examples, strict=True),
    key=lambda pair: (
      bool(np.isfinite(list(pair[1].values())).all()),
      -pair[1]['loss'],
    ),
  )
  return Replay(
    step=step,
    start=start,
    stream=stream,
    metrics={k: float(v) for k, v in jax.device_get(metrics).items()},
    examples=order,
  )


def _examples(
  trainer: loop_lib.Trainer, params: Any, batch: batch_lib.Batch, place: Any
) -> list[dict[str, float]]:
  """The loss terms of each example of a batch alone."""
  loss = jax.jit(
    functools.partial(
      step_lib.loss_fn,
      model=trainer.model,
      config=trainer.config.loss,
      rng=None,
    )
  )
  out = []
  for i in range(len(batch.image)):
    # All rows are this one, so that shapes and shardings stay.
    alone = jax.tree.map(
      lambda x, i=i: np.repeat(x[i : i + 1], len(x), 0), batch
    )
    _, metrics = loss(params, batch=loader_lib.to_device(alone, place))
    out.append({k: float(v) for k, v in jax.device_get(metrics).items()})
  return out
