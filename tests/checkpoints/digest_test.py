# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pixel_llm import sharding
from pixel_llm.checkpoints import digest as digest_lib


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'a/kernel': jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
    'a/low': jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.bfloat16),
    'flags': jnp.asarray(rng.integers(0, 2, 9), bool),
    'bytes': jnp.asarray(rng.integers(-9, 9, (2, 2)), jnp.int8),
    'scalar': jnp.float32(rng.normal()),
    'none': jnp.zeros((0, 3)),
  }


def test_the_same_on_any_mesh():
  expected = digest_lib.digest(arrays())
  assert len(expected) == 16 and int(expected, 16)
  for data, model in ((2, 4), (8, 1)):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=data, model=model))
    placed = {
      name: jax.device_put(
        x,
        NamedSharding(
          mesh,
          PartitionSpec('data', None)
          if x.ndim == 2 and x.shape[0] % data == 0
          else PartitionSpec(),
        ),
      )
      for name, x in arrays().items()
    }
    assert digest_lib.digest(placed) == expected


@pytest.mark.parametrize(
  'change',
  [
    lambda x: {**x, 'scalar': -x['scalar']},
    lambda x: {**x, 'a/kernel': x['a/kernel'].at[3, 4].add(1e-6)},
    lambda x: {**x, 'a/kernel': x['a/kernel'][::-1]},
    lambda x: {**x, 'a/kernel': x['a/kernel'].T},
    lambda x: {**x, 'a/low': x['a/low'].astype(jnp.float32)},
    lambda x: {**x, 'flags': ~x['flags']},
    lambda x: {**x, 'none': jnp.zeros((0, 4))},
    lambda x: {('b' if n == 'bytes' else n): y for n, y in x.items()},
    lambda x: {n: y for n, y in x.items() if n != 'bytes'},
  ],
)
def test_everything_counts(change):
  assert digest_lib.digest(change(arrays())) != digest_lib.digest(arrays())


def test_zero_has_a_sign_and_nan_a_payload():
  def of(*bits):
    values = np.array(bits, np.uint32).view(np.float32)
    return digest_lib.digest({'x': jnp.asarray(values)})

  assert len({of(0), of(1 << 31), of(0x7FC00000), of(0x7FC00001)}) == 4
