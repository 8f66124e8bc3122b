# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which example comes when: pure functions of (seed, position).

Nothing here keeps state, so a run resumes at any step at once, and the order
does not depend on hosts, workers or interruptions.
"""

from __future__ import annotations

import fractions
import math
import zlib
from collections.abc import Mapping

_MASK = (1 << 64) - 1


def mix(*values: int | str) -> int:
  """A 63-bit hash of integers and names (splitmix64 finalizer, chained)."""
  state = 0
  for value in values:
    number = zlib.crc32(value.encode()) if isinstance(value, str) else value
    state = (state + number + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    state ^= state >> 31
  return state >> 1


def permuted(position: int, size: int, seed: int) -> int:
  """Element `position` of a permutation of range(size) drawn by `seed`.

  A Feistel network of four rounds over the next even number of bits, walked
  until it falls inside: constant memory at any size.
  """
  if size < 2:
    return 0
  half = max(1, (max(1, (size - 1).bit_length()) + 1) // 2)
  mask = (1 << half) - 1
  value = position
  while True:
    left, right = value >> half, value & mask
    for r in range(4):
      left, right = right, left ^ (mix(seed, r, right) & mask)
    value = (left << half) | right
    if value < size:
      return value


def epoch_index(ordinal: int, size: int, seed: int) -> int:
  """Index of the `ordinal`-th example read; every epoch is shuffled anew."""
  epoch, position = divmod(ordinal, size)
  return permuted(position, size, mix(seed, epoch))


class Schedule:
  """An interleaving of members whose shares are exact, at any length.

  Of all slots the first member has every one where its share adds up to another
  whole; the second has its share of those that are left, and so on. After any
  number of slots each member is within a few of its share.

  Args:
    rates: member name -> positive rate; only ratios matter, and they are taken
      as exactly as they are given.

  Raises:
    ValueError: no member, or a rate that is not a positive number.
  """

  def __init__(self, rates: Mapping[str, float]):
    if not rates or not all(0 < r < math.inf for r in rates.values()):
      raise ValueError(f'rates: expected positive numbers, got {dict(rates)}.')
    self.names = tuple(rates)
    exact = [fractions.Fraction(r) for r in rates.values()]
    # Of the slots that the members before it leave.
    self._shares = [
      (r / sum(exact[k:])).as_integer_ratio() for k, r in enumerate(exact)
    ]

  def member(self, slot: int) -> str:
    """Name of the member that slot number `slot` belongs to."""
    for name, (up, down) in zip(self.names, self._shares, strict=True):
      before = -(-slot * up // down)
      if -(-(slot + 1) * up // down) > before:
        return name
      slot -= before
    raise AssertionError('the last member takes all that is left')

  def count(self, name: str, slot: int) -> int:
    """How many of the slots before `slot` belong to `name`."""
    for other, (up, down) in zip(self.names, self._shares, strict=True):
      own = -(-slot * up // down)
      if other == name:
        return own
      slot -= own
    raise KeyError(name)
