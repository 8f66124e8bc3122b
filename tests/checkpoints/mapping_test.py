# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import ml_dtypes
import numpy as np
import pytest

from pixel_llm.checkpoints import mapping
from pixel_llm.checkpoints.mapping import Ignored, MappingError, Rule
from pixel_llm.checkpoints.tensors import Tensor, of_array
from pixel_llm.checkpoints.transforms import Split, Stack, Transpose

# A made-up network: fused projections, layers, a name that stays.
TABLE = (
  Rule('head.{leaf}', 'head/{leaf}'),
  Rule(
    r'blocks.{layer:\d+}.attn.qkv.weight',
    'layers/{p:query|key|value}/kernel',
    (Split('p', ('query', 'key', 'value')), Transpose(), Stack('layer')),
  ),
  Rule(
    r'blocks.{layer:\d+}.norm.{leaf}', 'layers/norm/{leaf}', (Stack('layer'),)
  ),
  Ignored(r'head_copy\.weight', same_as='head.weight'),
  Ignored('step'),
)
EXPECTED = {
  'head/weight': (2,),
  'layers/query/kernel': (3, 4, 2),
  'layers/key/kernel': (3, 4, 2),
  'layers/value/kernel': (3, 4, 2),
  'layers/norm/scale': (3, 4),
}


def source(dtype=np.float32):
  rng = np.random.default_rng(0)
  arrays = {'head.weight': rng.normal(size=2)}
  for i in range(3):
    arrays[f'blocks.{i}.attn.qkv.weight'] = rng.normal(size=(6, 4))
    arrays[f'blocks.{i}.norm.scale'] = rng.normal(size=4)
  return {n: of_array(a.astype(dtype)) for n, a in arrays.items()}


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_there_and_back_is_exact(dtype):
  before = source(dtype)
  after = mapping.convert(TABLE, before, EXPECTED)
  assert list(after) == list(EXPECTED)
  qkv = before['blocks.1.attn.qkv.weight'].read()
  np.testing.assert_array_equal(
    after['layers/key/kernel'].read()[1], qkv[2:4].T, strict=True
  )
  back, report = mapping.apply(mapping.inverse(TABLE), after)
  assert not report and back.keys() == before.keys()
  for name, tensor in before.items():
    np.testing.assert_array_equal(back[name].read(), tensor.read(), strict=True)


def test_nothing_is_read_to_convert():
  def fail():
    raise AssertionError('a tensor was loaded')

  lazy = {n: Tensor(t.shape, t.dtype, fail) for n, t in source().items()}
  after = mapping.convert(TABLE, lazy, EXPECTED)
  mapping.cast(after, np.dtype(np.float16))
  mapping.apply(mapping.inverse(TABLE), after)


def test_everything_that_does_not_fit_is_listed():
  tensors = source()
  del tensors['head.weight']
  tensors['stray.a'] = tensors['blocks.0.norm.scale']
  tensors['stray.b'] = tensors['blocks.0.norm.scale']
  tensors['head.bias'] = of_array(np.zeros(5, np.float32))
  del tensors['blocks.1.norm.scale']
  wanted = EXPECTED | {'layers/query/kernel': (3, 4, 9), 'more': (1, 2)}
  with pytest.raises(MappingError) as e:
    mapping.convert(TABLE, tensors, wanted)
  assert str(e.value).splitlines() == [
    '2 names of the source that no rule takes:',
    '  stray.a',
    '  stray.b',
    '1 names that the target does not have:',
    '  head/bias [5]',
    '3 names of the target that nothing gives:',
    '  head/weight [2]',
    '  layers/norm/scale [3, 4]',
    '  more [1, 2]',
    '2 shapes:',
    '  layers/norm/scale: expected layer 0..2, got none of 1',
    '  layers/query/kernel: expected [3, 4, 9], got [3, 4, 2]',
  ]


def test_names_may_be_missing_when_allowed():
  wanted = EXPECTED | {'head/lora_a': (2, 1), 'head/lora_b': (1, 2)}
  with pytest.raises(MappingError, match=r'head/lora_b \[1, 2\]'):
    mapping.convert(TABLE, source(), wanted, ['.*/lora_a'])
  got = mapping.convert(TABLE, source(), wanted, ['.*/lora_[ab]'])
  assert got.keys() == EXPECTED.keys()
  # The whole name, not a part of it.
  with pytest.raises(MappingError, match='lora_a'):
    mapping.convert(TABLE, source(), wanted, ['lora_[ab]'])


def test_a_repeated_tensor_must_repeat():
  tensors = source() | {'step': of_array(np.int32(3))}
  weight = tensors['head.weight'].read()
  tensors['head_copy.weight'] = of_array(weight.copy())
  got = mapping.convert(TABLE, tensors, EXPECTED)
  np.testing.assert_array_equal(got['head/weight'].read(), weight)
  tensors['head_copy.weight'] = of_array(weight + 1)
  got = mapping.convert(TABLE, tensors, EXPECTED)
  with pytest.raises(
    MappingError, match=r'head_copy\.weight: expected the val'
  ):
    got['head/weight'].read()
  del tensors['head.weight']
  _, report = mapping.apply(TABLE, tensors)
  assert report.unmatched == ('head_copy.weight',)


def test_two_sources_of_one_name_are_an_error():
  table = (Rule('a', 'x'), Rule('b', 'x'))
  tensors = {n: of_array(np.zeros(1)) for n in 'ab'}
  _, report = mapping.apply(table, tensors)
  assert report.misshapen == ('x: expected one source, got several',)


def test_names_are_matched_whole_and_dots_are_dots():
  table = (Rule('a.{x}', '{x}'),)
  for name in ('a.b.c', 'aXb', 'a.b/c', 'za.b', 'a.'):
    _, report = mapping.apply(table, {name: of_array(np.zeros(1))})
    assert report.unmatched == (name,)


def test_a_field_that_stands_twice_is_the_same_text():
  table = (Rule('{s}/{s}_norm', '{s}'),)
  tensors = {n: of_array(np.zeros(1)) for n in ('a/a_norm', 'a/b_norm')}
  got, report = mapping.apply(table, tensors)
  assert list(got) == ['a'] and report.unmatched == ('a/b_norm',)
  back, _ = mapping.apply(mapping.inverse(table), got)
  assert list(back) == ['a/a_norm']


def test_a_rule_whose_fields_lead_nowhere_is_refused():
  for arguments in (
    (r'{layer:\d+}.w', 'w'),
    ('w', '{layer}/w', (Stack('layer'),)),
    ('w', '{p}/w'),
  ):
    with pytest.raises(ValueError, match='expected transforms that join'):
      Rule(*arguments)


def test_cast_changes_floating_point_only():
  tensors = {
    'half': of_array(np.array([1.5, -2], ml_dtypes.bfloat16)),
    'count': of_array(np.int32(3)),
  }
  got = mapping.cast(tensors, np.dtype(np.float32))
  assert got['half'].dtype == np.float32 and got['count'].dtype == np.int32
  np.testing.assert_array_equal(got['half'].read(), np.float32([1.5, -2]))


def test_merging_lora_adds_the_update():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 4)).astype(np.float32)
  arrays = {
    'a/kernel': rng.normal(size=(2, 4, 3)),
    'a/lora_a': rng.normal(size=(2, 4, 1)),
    'a/lora_b': rng.normal(size=(2, 1, 3)),
    'b/kernel': rng.normal(size=(4, 3)),
  }
  arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
  tensors = {n: of_array(a) for n, a in arrays.items()}
  got = mapping.merge_lora(tensors, 2.0)
  assert list(got) == ['a/kernel', 'b/kernel']
  a, b = arrays['a/lora_a'][1], arrays['a/lora_b'][1]
  np.testing.assert_allclose(
    x @ got['a/kernel'].read()[1],
    x @ arrays['a/kernel'][1] + (x @ a * 2.0) @ b,
    atol=1e-5,
  )
  np.testing.assert_array_equal(got['b/kernel'].read(), arrays['b/kernel'])
  del tensors['a/lora_b']
  with pytest.raises(MappingError, match='expected a/lora_b beside it'):
    mapping.merge_lora(tensors, 2.0)
