# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import pytest

from pixel_llm import chips


@pytest.mark.parametrize(
  ('kind', 'flops'),
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v5', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
  ],
)
def test_the_kinds_that_jax_names(kind, flops):
  chip = chips.of_kind(kind)
  assert chip is not None and chip.flops == flops


def test_a_cpu_has_no_peak():
  assert chips.of_kind(jax.devices()[0].device_kind) is None


def test_loops_count_as_often_as_they_run():
  """Which the compiler's own count does not."""
  a, b = jnp.ones((3, 4)), jnp.ones((4, 4))

  def looped(a, b):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, length=5)[0]

  traced = jax.jit(looped).trace(a, b)
  assert chips.model_flops(traced.jaxpr) == 5 * 2 * 3 * 4 * 4
  counted = traced.lower().compile().cost_analysis()
  assert counted['flops'] < 2 * 2 * 3 * 4 * 4


def test_convolutions_and_branches():
  image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2, 3, 5))

  def convolved(x):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def either(x, which):
    return jax.lax.cond(
      which, lambda x: convolved(x).sum(), lambda x: x.sum(), x
    )

  jaxpr = jax.make_jaxpr(either)(image, True)
  assert chips.model_flops(jaxpr) == 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
