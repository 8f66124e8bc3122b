# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import json
import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from pixel_llm import config as config_lib


@dataclasses.dataclass(frozen=True)
class Lora:
  rank: int = 4
  scale: float = 2.0


@dataclasses.dataclass(frozen=True)
class Model:
  width: int = 8
  rate: float = 0.1
  scan: bool = True
  dtype: typing.Literal['float32', 'bfloat16'] = 'float32'
  lora: Lora | None = None
  base: Lora = Lora()

  def __post_init__(self):
    if self.width < 0:
      raise ValueError(f'width: expected >= 0, got {self.width}.')


@dataclasses.dataclass(frozen=True)
class Root:
  model: Model = Model()
  names: tuple[str, ...] = ('a',)
  factors: tuple[tuple[str, float], ...] = ()
  size: tuple[int, int] = (3, 4)
  tasks: dict[str, Lora] = dataclasses.field(default_factory=dict)
  limit: float | None = 1.0
  split: int | str = 1


loras = st.builds(Lora, st.integers(), st.floats(allow_nan=False))
roots = st.builds(
  Root,
  model=st.builds(
    Model,
    width=st.integers(0, 99),
    rate=st.floats(allow_nan=False),
    scan=st.booleans(),
    dtype=st.sampled_from(['float32', 'bfloat16']),
    lora=st.none() | loras,
    base=loras,
  ),
  names=st.lists(st.text()).map(tuple),
  factors=st.lists(st.tuples(st.text(), st.floats(allow_nan=False))).map(tuple),
  size=st.tuples(st.integers(), st.integers()),
  tasks=st.dictionaries(st.text(), loras),
  limit=st.none() | st.floats(allow_nan=False),
  split=st.integers() | st.text(),
)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(roots)
def test_round_trip_is_exact_also_through_json(root):
  values = config_lib.to_dict(root)
  assert config_lib.from_dict(Root, values) == root
  assert config_lib.from_dict(Root, json.loads(json.dumps(values))) == root
  assert config_lib.difference(values, values) == []


def test_missing_keys_keep_their_defaults():
  got = config_lib.from_dict(Root, {'model': {'width': 3}})
  assert got == Root(model=Model(width=3))
  assert config_lib.from_dict(Root, {}) == Root()


def test_optional_subtree_appears_and_vanishes():
  got = config_lib.from_dict(Root, {'model': {'lora': {'rank': 9}}})
  assert got.model.lora == Lora(rank=9)
  got = config_lib.from_dict(Root, {'model': {'lora': None}})
  assert got.model.lora is None


def test_int_for_float_becomes_float():
  got = config_lib.from_dict(Root, {'model': {'rate': 1}, 'limit': 2})
  assert (got.model.rate, got.limit) == (1.0, 2.0)
  assert isinstance(got.model.rate, float)
  assert isinstance(got.limit, float)


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    (
      {'model': {'widht': 3}},
      r"config model\.widht: unknown key 'widht'\. Did you mean 'width'\?"
      r'.*base, dtype, lora, rate, scan, width',
    ),
    ({'modle': {}}, r"Did you mean 'model'"),
    ({'model': {'width': '3'}}, r"model\.width: expected int, got str '3'"),
    ({'model': {'width': 3.0}}, r'model\.width: expected int, got float'),
    ({'model': {'width': True}}, r'model\.width: expected int, got bool'),
    ({'model': {'width': None}}, r'model\.width'),
    ({'model': {'rate': True}}, r'model\.rate: expected float, got bool'),
    ({'model': {'scan': 1}}, r'model\.scan: expected bool, got int'),
    ({'model': {'width': -1}}, r'config model: width: expected >= 0'),
    ({'model': {'dtype': 'int8'}}, r"'float32', 'bfloat16', got 'int8'"),
    ({'model': {'lora': {'rnak': 1}}}, r'model\.lora\.rnak: unknown key'),
    ({'model': {'lora': 3}}, r'model\.lora: expected the fields of Lora'),
    ({'model': {'base': None}}, r'model\.base'),
    ({'model': 3}, r'model: expected the fields of Model, got 3'),
    ({'names': 'abc'}, r"names: expected a tuple, got 'abc'"),
    ({'names': ['a', 1]}, r'names\[1\]: expected str, got int 1'),
    ({'size': [1, 2, 3]}, r'size: expected 2 values, got 3'),
    ({'factors': [['a', 'b']]}, r'factors\[0\]\[1\]: expected float'),
    ({'tasks': {'x': {'rank': 'a'}}}, r'tasks\.x\.rank: expected int'),
    ({'tasks': []}, r'tasks: expected a dict, got \[\]'),
    ({'limit': 'no'}, r'limit: expected float, got str'),
    ({'split': 1.5}, r'split: expected int, got float'),
  ],
)
def test_what_does_not_fit_names_its_path(values, said):
  with pytest.raises(config_lib.ConfigError, match=said):
    config_lib.from_dict(Root, values)


def test_difference_names_changed_leaves():
  left = config_lib.to_dict(Root())
  right = config_lib.to_dict(Root(model=Model(width=3, lora=Lora())))
  assert config_lib.difference(left, right) == [
    "model.lora: None -> {'rank': 4, 'scale': 2.0}",
    'model.width: 8 -> 3',
  ]
  assert config_lib.difference({'a': 1}, {'b': 1}) == [
    'a: 1 -> None',
    'b: None -> 1',
  ]
