# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which example comes when: pure functions of (seed, position).

Nothing here keeps state, so a run resumes at any step at once, and the order
does not depend on hosts, workers or interruptions.
"""

from __future__ import annotations

import fractions
import itertools
import math
import zlib
from collections.abc import Mapping

_MASK = (1 << 64) - 1
_MOST_PERIOD = 100_000


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
  """An interleaving of members whose shares are exact over every period.

  Args:
    rates: member name -> positive rate; only ratios matter.

  Raises:
    ValueError: no member, or a rate that is not positive.
  """

  def __init__(self, rates: Mapping[str, float]):
    if not rates or min(rates.values()) <= 0:
      raise ValueError(f'rates: expected positive numbers, got {dict(rates)}.')
    self.names = tuple(rates)
    total = sum(rates.values())
    shares = [
      fractions.Fraction(r / total).limit_denominator(1000)
      for r in rates.values()
    ]
    period = math.lcm(*(s.denominator for s in shares))
    period = min(period, _MOST_PERIOD)
    counts = [max(1, round(s * period)) for s in shares]
    self._period = sum(counts)
    # Earliest-deadline interleaving: occurrence j of a member with c in a
    # period belongs at (j + 1/2) / c.
    due = sorted(
      ((j + 0.5) / c, k) for k, c in enumerate(counts) for j in range(c)
    )
    self._pattern = [k for _, k in due]
    self._counts = counts
    self._prefix = [
      [0, *itertools.accumulate(int(p == k) for p in self._pattern)]
      for k in range(len(counts))
    ]

  def member(self, slot: int) -> str:
    """Name of the member that slot number `slot` belongs to."""
    return self.names[self._pattern[slot % self._period]]

  def count(self, name: str, slot: int) -> int:
    """How many of the slots before `slot` belong to `name`."""
    k = self.names.index(name)
    periods, rest = divmod(slot, self._period)
    return periods * self._counts[k] + self._prefix[k][rest]
