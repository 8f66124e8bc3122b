# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that must not be taken: NaN, infinity, spikes of the gradient."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from pixel_llm import files

# Of the mean of gradient norms: about the last fifty steps, and it judges none
# before it has seen as many.
_DECAY, _SEEN = 0.98, 50
# Steps skipped in a row after which a run is stopped all the same.
_MOST = 10


class GuardState(NamedTuple):
  """What the guard carries from step to step.

  Attributes:
    skipped: int32 scalar, bad steps, whose updates were withheld.
    taken: int32 scalar, the others.
    norm: float32 scalar, decaying sum of the others' gradient norms.
    inner: state of the optimizer.
  """

  skipped: Any
  taken: Any
  norm: Any
  inner: Any


def guarded(
  inner: optax.GradientTransformation, withhold: bool, spike: float
) -> optax.GradientTransformationExtraArgs:
  """An optimizer that changes nothing, its state included, at a bad step.

  A step is bad if its loss (the argument `loss` of `update`, default none) or
  its gradient's norm is not finite, or if that is above `spike` times the mean
  of the steps before, which bad ones do not count in. Streams differ less in
  their gradients than in their losses, so these alone have a bound. The state
  is the same with any arguments, so that a run may go on with others.

  Args:
    inner: the optimizer.
    withhold: False takes bad steps. Else all gradients stay in memory until
      their norm is known, as for clipping.
    spike: 0 bounds nothing.
  """

  def init(params):
    zero = jnp.zeros((), jnp.int32)
    return GuardState(zero, zero, jnp.zeros(()), inner.init(params))

  def update(updates, state, params=None, **given):
    norm = optax.tree.norm(updates)
    bad = ~jnp.isfinite(norm + given.get('loss', 0.0))
    if spike:
      mean = state.norm / (1 - _DECAY ** jnp.maximum(state.taken, 1))
      bad |= (state.taken >= _SEEN) & (norm > spike * mean)
    updates, after = inner.update(updates, state.inner, params)
    if withhold:
      updates = jax.tree.map(lambda u: jnp.where(bad, 0, u), updates)
      after = jax.tree.map(
        lambda new, old: jnp.where(bad, old, new), after, state.inner
      )
    sums = _DECAY * state.norm + (1 - _DECAY) * norm
    return updates, GuardState(
      state.skipped + bad,
      state.taken + ~bad,
      jnp.where(bad, state.norm, sums),
      after,
    )

  return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass
class Judge:
  """Looks at the metrics of steps, in order.

  Attributes:
    skip: goes on where the guard withheld a step.
    skipped: steps that it counted until the last that was looked at.
  """

  skip: bool
  skipped: int = 0
  _row: int = 0

  def look(
    self, rows: Iterable[tuple[int, Mapping[str, Any]]]
  ) -> tuple[list[int], tuple[int, str] | None]:
    """Judges steps.

    Args:
      rows: (step, its metrics), those after the last call's.

    Returns:
      the steps that were skipped, and the step that ends the run with what is
      wrong with it, or None.
    """
    passed = []
    for step, metrics in rows:
      wrong = [k for k, v in metrics.items() if not np.isfinite(v)]
      what = f'{", ".join(wrong)} not finite'
      bad = int(metrics['skipped']) > self.skipped
      self.skipped = int(metrics['skipped'])
      if bad and not wrong:
        what = f'grad_norm {float(metrics["grad_norm"]):.3g} is a spike'
      self._row = self._row + 1 if bad else 0
      if self._row >= _MOST:
        return passed, (step, f'{what}, as of the {_MOST - 1} steps before')
      if (bad or wrong) and not (bad and self.skip):
        return passed, (step, what)
      if bad:
        passed.append(step)
    return passed, None


def keep_batch(workdir: str, loader: Any, step: int, why: str) -> epath.Path:
  """Makes the batch of a step again, and writes it into `bad_batches`.

  Args:
    workdir: of the run.
    loader: its `data.loader.Loader`.
    step: the first is 1.
    why: what is wrong with it.

  Returns:
    This process's part of it, as `.npz`. The first process writes which
    examples all of it are, too, as `step_N.json`.
  """
  batches = loader.batches(step - 1)
  _, batch = next(batches)
  batches.close()
  index, count = jax.process_index(), jax.process_count()
  folder = epath.Path(workdir) / 'bad_batches'
  path = folder / f'step_{step}-{index}-of-{count}.npz'
  held = io.BytesIO()
  fields = {name: getattr(batch, name) for name in batch.specs()}
  np.savez_compressed(held, allow_pickle=False, **fields)
  files.write(path, held.getvalue())
  if index == 0:
    stream, slots = loader.slots(step - 1)
    examples = [dataclasses.asdict(slot) for slot in slots]
    values = {'step': step, 'why': why, 'stream': stream, 'examples': examples}
    files.write(folder / f'step_{step}.json', json.dumps(values, indent=1))
  return path
