# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What every network with `remat` promises."""

import dataclasses

import jax
import numpy as np


def check(config, loss, params):
  """Less memory the less is kept, and the same gradients.

  Args:
    config: of the network, which has `remat`.
    loss: (config, params) -> scalar.
    params: real ones.
  """
  gradients, memory = {}, {}
  for keep in ('none', 'dots', 'full'):
    changed = dataclasses.replace(config, remat=keep)
    gradient = jax.jit(jax.grad(lambda p, c=changed: loss(c, p)))
    compiled = gradient.lower(params).compile()
    gradients[keep] = compiled(params)
    memory[keep] = compiled.memory_analysis().temp_size_in_bytes
  assert memory['full'] < 0.9 * memory['dots'], memory
  assert memory['dots'] < 0.7 * memory['none'], memory
  for keep in ('dots', 'full'):
    for path, got in jax.tree.leaves_with_path(gradients[keep]):
      want = gradients['none']
      for key in path:
        want = want[key.key]
      scale = max(1.0, float(np.abs(want).max()))
      assert np.abs(got - want).max() <= 1e-6 * scale, (keep, path)
  assert max(float(np.abs(x).max()) for x in jax.tree.leaves(want)) > 0
