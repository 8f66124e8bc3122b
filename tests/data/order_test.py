# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_llm.data import order


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 2**60))
def test_permuted_is_a_permutation(size, seed):
  seen = {order.permuted(i, size, seed) for i in range(size)}
  assert seen == set(range(size))


def test_every_epoch_sees_every_example_once_in_another_order():
  epochs = [
    [order.epoch_index(e * 100 + i, 100, 5) for i in range(100)]
    for e in range(3)
  ]
  assert all(sorted(e) == list(range(100)) for e in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != list(range(100))


def test_order_depends_on_the_seed():
  first, second = (
    [order.permuted(i, 1000, s) for i in range(50)] for s in (1, 2)
  )
  assert first != second


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_schedule_shares_are_exact_over_a_period(rates):
  schedule = order.Schedule({f'm{i}': float(r) for i, r in enumerate(rates)})
  period = sum(rates)
  names = [schedule.member(s) for s in range(3 * period)]
  counts = collections.Counter(names)
  assert counts == {f'm{i}': 3 * r for i, r in enumerate(rates)}


def test_schedule_count_is_the_number_of_earlier_slots():
  schedule = order.Schedule({'a': 2.0, 'b': 1.0, 'c': 0.5})
  seen = collections.Counter()
  for slot in range(60):
    for name in 'abc':
      assert schedule.count(name, slot) == seen[name]
    seen[schedule.member(slot)] += 1


def test_schedule_refuses_what_is_no_rate():
  with pytest.raises(ValueError, match='positive'):
    order.Schedule({'a': 0.0})
  with pytest.raises(ValueError, match='positive'):
    order.Schedule({})


def test_mix_spreads_names_and_numbers():
  values = {order.mix(a, b) for a in range(100) for b in ('x', 'y', 3)}
  assert len(values) == 300
  assert all(0 <= v < 2**63 for v in values)
