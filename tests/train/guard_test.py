# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixel_llm.train import guard

PARAMS = {'a': jnp.ones(3), 'frozen': None}


def run(norms, withhold=True, spike=0.0, losses=None):
  """Parameters, state and skipped steps after gradients of such norms."""
  made = guard.guarded(optax.adam(0.1), withhold, spike)
  update = jax.jit(made.update)
  params, state, skipped = PARAMS, made.init(PARAMS), []
  for step, norm in enumerate(norms):
    grads = {'a': jnp.asarray([norm, 0.0, 0.0], jnp.float32), 'frozen': None}
    before = int(state.skipped)
    loss = 1.0 if losses is None else losses[step]
    updates, state = update(grads, state, params, loss=loss)
    params = optax.apply_updates(params, updates)
    if int(state.skipped) > before:
      skipped.append(step)
  return params['a'], state, skipped


def assert_equal(left, right):
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(bad):
  params, state, skipped = run([1.0, bad, 2.0])
  without, expected, _ = run([1.0, 2.0])
  assert skipped == [1] and int(state.skipped) == 1 and int(state.taken) == 2
  assert_equal(params, without)
  assert_equal(state.inner, expected.inner)
  assert_equal(state.norm, expected.norm)


def test_so_does_one_whose_loss_alone_is_not():
  params, _, skipped = run([1.0, 1.0, 2.0], losses=[1.0, np.nan, 1.0])
  assert skipped == [1]
  assert_equal(params, run([1.0, 2.0])[0])


def test_a_spike_is_told_from_the_steps_before():
  usual = [1.0, 1.5] * 40
  _, state, skipped = run([*usual, 4.0, 9.0, 1.0], spike=5.0)
  # The mean is about 1.25.
  assert skipped == [81]
  mean = state.norm / (1 - guard._DECAY ** int(state.taken))
  assert 1.2 < float(mean) < 1.4
  assert run([*usual, 9.0])[2] == []
  # Nothing is judged by a few steps.
  assert run([1.0, 1.0, 9.0], spike=5.0)[2] == []


def test_bad_steps_are_taken_if_asked():
  params, state, skipped = run([1.0, np.nan], withhold=False)
  assert skipped == [1] and np.isnan(np.asarray(params)).any()
  assert jax.tree.structure(state) == jax.tree.structure(run([1.0])[1])


def rows(*counts, **metrics):
  return [
    (i + 1, {'loss': 1.0, 'grad_norm': 7.0, 'skipped': n, **metrics})
    for i, n in enumerate(counts)
  ]


def test_the_judge_passes_what_was_skipped():
  judge = guard.Judge(skip=True)
  assert judge.look(rows(0, 1, 1, 2)) == ([2, 4], None)
  assert judge.skipped == 2
  passed, bad = judge.look(rows(*range(3, 30)))
  assert bad is not None and bad[0] == 9 and '9 steps before' in bad[1]
  assert len(passed) == 8


def test_the_judge_stops_at_the_first():
  judge = guard.Judge(skip=False)
  assert judge.look(rows(0, 1, 2)) == ([], (2, 'grad_norm 7 is a spike'))
  found = guard.Judge(skip=False).look(rows(0, loss=np.nan))
  assert found == ([], (1, 'loss not finite'))
  # What is not finite and was not skipped, too.
  found = guard.Judge(skip=True).look(rows(0, point_l1=np.inf))
  assert found == ([], (1, 'point_l1 not finite'))
