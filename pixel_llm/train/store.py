# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run tell one another.

It goes through the key-value store of JAX's distributed runtime, which lives in
process 0: no device takes part, so it works while devices hang.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import jax
from jax._src import distributed as jax_distributed


def is_first() -> bool:
  """Whether this process speaks for all; it does when it is alone."""
  return index() == 0


def index() -> int:
  """Of this process; 0 when it is alone."""
  return jax_distributed.global_state.process_id


def count() -> int:
  """Of processes; of one that is alone not known."""
  return jax_distributed.global_state.num_processes


def joined() -> bool:
  """Whether this process is one of a cluster."""
  return jax_distributed.global_state.client is not None


def total(name: str, own: int) -> int:
  """The sum of what all processes have said last; waits for none of them."""
  if not joined():
    return own
  key = f'pixel_llm/total/{name}'
  client().key_value_set(f'{key}/{index()}', str(own), allow_overwrite=True)
  return sum(map(int, all_of(key).values()))


def put(key: str, value: str) -> None:
  """Says something to all; raises where the store is gone."""
  client().key_value_set(key, value)


def try_put(key: str, value: str) -> None:
  """Says it unless it was said already, or the store is gone."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    put(key, value)


def told(key: str, deadline: float) -> str | None:
  """What is said under a key, as soon as it is; None if not by the deadline.

  Args:
    key: of the store.
    deadline: by `time.monotonic`.
  """
  left = max(1, int(1000 * (deadline - time.monotonic())))
  try:
    return client().blocking_key_value_get(key, left)
  except jax.errors.JaxRuntimeError:
    return None


def all_of(prefix: str) -> dict[int, str]:
  """What processes have set below a prefix, by their index."""
  try:
    found = client().key_value_dir_get(f'{prefix}/') if joined() else []
  except jax.errors.JaxRuntimeError:  # JAX itself ends us
    found = []
  return {int(key.rpartition('/')[2]): value for key, value in found}


def client() -> Any:
  """JAX's own, of a process that has `joined`."""
  return jax_distributed.global_state.client


def host() -> str:
  """The name of this machine."""
  return socket.gethostname()
