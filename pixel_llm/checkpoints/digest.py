# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A digest of arrays by their values, wherever and however they lie.

It is computed where the arrays are, and is the same on any mesh and after any
way through files. It tells accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def digest(arrays: Mapping[str, jax.Array]) -> str:
  """16 hexadecimal digits of the names, shapes, dtypes and bits of arrays.

  Args:
    arrays: by name, on one mesh; all processes call.
  """
  names = sorted(arrays)
  words = jax.device_get(_words([arrays[name] for name in names]))
  described = [
    (name, arrays[name].shape, str(arrays[name].dtype), [int(w) for w in found])
    for name, found in zip(names, words, strict=True)
  ]
  return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


@jax.jit
def _words(arrays: list[jax.Array]) -> list[list[jax.Array]]:
  return [[_sum(x, seed) for seed in _SEEDS] for x in arrays]


def _sum(x: jax.Array, seed: int) -> jax.Array:
  """uint32: the sum of every number mixed with its place, in any order."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  else:
    bits = x.astype(jnp.uint32)
  # No reshape: that would gather what is sharded.
  place = jnp.full(x.shape, seed, jnp.uint32)
  for axis in range(x.ndim):
    stride = math.prod(x.shape[axis + 1 :]) % 2**32
    place += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(
      stride
    )
  return jnp.sum(_mixed(bits ^ _mixed(place)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """Every bit of it depends on every bit; Source: MurmurHash3's finalizer."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
