# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_llm.checkpoints import transforms
from pixel_llm.checkpoints.tensors import Tensor, of_array

ONE = ()


def array(shape, dtype=np.float32, begin=0):
  values = np.arange(begin, begin + math.prod(shape), dtype=np.float32)
  return values.reshape(shape).astype(dtype)


def read(pieces):
  """Arrays, checked against what was announced of them."""
  return {fields: tensor.read() for fields, tensor in pieces.items()}


def layers(*shapes, field='layer', names=None):
  names = names or [str(i) for i in range(len(shapes))]
  return {
    ((field, name),): of_array(array(shape, begin=100 * i))
    for i, (name, shape) in enumerate(zip(names, shapes))
  }


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for fields, value in read(expected).items():
    np.testing.assert_array_equal(got[fields].read(), value, strict=True)


@given(
  shape=st.lists(st.integers(0, 4), min_size=2, max_size=4),
  dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16, np.int8]),
  data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_transpose_is_undone_exactly(shape, dtype, data):
  axes = tuple(data.draw(st.permutations(range(len(shape)))))
  transform = transforms.Transpose(axes)
  before = {ONE: of_array(array(shape, dtype))}
  after = transform.apply(before)
  np.testing.assert_array_equal(
    read(after)[ONE], before[ONE].read().transpose(axes)
  )
  assert_same(transform.inverse().apply(after), before)
  assert transform.inverse().inverse() == transform


@pytest.mark.parametrize(
  ('transform', 'pieces'),
  [
    (transforms.SplitAxis(1, (2, 3)), {ONE: of_array(array((4, 6)))}),
    (transforms.SplitAxis(0, (-1, 2)), {ONE: of_array(array((4, 6)))}),
    (transforms.JoinAxes(1, (-1, 3)), {ONE: of_array(array((4, 2, 3)))}),
    (transforms.Stack('layer'), layers(*[(2, 3)] * 12)),
    (transforms.Unstack('layer'), {ONE: of_array(array((12, 2, 3)))}),
    (
      transforms.Stack('layer', (5, 2)),
      layers((2, 3), (2, 3), names=['2', '5']),
    ),
    (
      transforms.Concat('p', ('q', 'k', 'v'), 1),
      layers(*[(2, 3)] * 3, field='p', names=('q', 'k', 'v')),
    ),
    (
      transforms.Concat('p', ('b', 'a'), 0, (1, 2)),
      layers((1, 3), (2, 3), field='p', names=('b', 'a')),
    ),
    (
      transforms.Split('p', ('q', 'k', 'v')),
      {ONE: of_array(array((6, 2)))},
    ),
    (
      transforms.Split('p', ('a', 'b'), 1, (5, 1)),
      {ONE: of_array(array((2, 6)))},
    ),
  ],
)
def test_every_transform_is_undone_exactly(transform, pieces):
  after = transform.apply(pieces)
  assert_same(transform.inverse().apply(after), pieces)
  assert transform.inverse().inverse() == transform


def test_stack_orders_layers_by_number():
  pieces = layers(*[(2,)] * 11)
  backwards = dict(reversed(pieces.items()))
  got = read(transforms.Stack('layer').apply(backwards))[ONE]
  np.testing.assert_array_equal(got[:, 0], 100.0 * np.arange(11))


def test_stack_takes_the_numbers_it_is_given_in_their_order():
  pieces = layers((2,), (2,), names=['2', '5'])
  got = read(transforms.Stack('layer', (5, 2)).apply(pieces))[ONE]
  np.testing.assert_array_equal(got[:, 0], [100, 0])


def test_other_fields_are_kept():
  pieces = {
    (('layer', str(i)), ('stack', s)): of_array(array((2,), begin=i))
    for i in range(3)
    for s in ('decoder', 'encoder')
  }
  got = transforms.Stack('layer').apply(pieces)
  assert set(got) == {(('stack', 'decoder'),), (('stack', 'encoder'),)}
  assert_same(transforms.Unstack('layer').apply(got), pieces)


def test_split_and_stack_of_fused_projections():
  # One fused matrix a layer -> three stacked ones, and back.
  pieces = layers((6, 2), (6, 2))
  split = transforms.Split('p', ('q', 'k', 'v'))
  got = transforms.Stack('layer').apply(split.apply(pieces))
  assert {dict(f)['p']: t.shape for f, t in got.items()} == dict.fromkeys(
    'qkv', (2, 2, 2)
  )
  back = split.inverse().apply(transforms.Unstack('layer').apply(got))
  assert_same(back, pieces)


@pytest.mark.parametrize(
  ('transform', 'pieces', 'match'),
  [
    (transforms.Transpose(), layers((2, 3, 4)), r'2 axes to transpose.*\[2, 3'),
    (transforms.SplitAxis(1, (4, -1)), layers((2, 6)), r'got \[2, 6\]'),
    (transforms.SplitAxis(2, (4, -1)), layers((2, 6)), r'an axis 2'),
    (transforms.JoinAxes(0, (3, -1)), layers((2, 6)), r'axes \[3, -1\]'),
    (transforms.JoinAxes(1, (-1, 2)), layers((2, 6)), r'from axis 1 on'),
    (transforms.Stack('layer'), layers((2,), (3,)), r'\[2\] and float32 \[3\]'),
    (
      transforms.Stack('layer'),
      layers((2,), (2,), names=['0', '3']),
      'layer 0..3, got none of 1, 2',
    ),
    (
      transforms.Stack('layer'),
      layers((2,), (2,), names=['0', '00']),
      'layer 0..0, got a number twice',
    ),
    (
      transforms.Stack('layer', (2, 5)),
      layers((2,), (2,), names=['2', '3']),
      'layer 2, 5, got none of 5',
    ),
    (
      transforms.Stack('layer', (2, 5)),
      layers((2,), (2,), (2,), names=['2', '5', '3']),
      'layer 2, 5, got 3',
    ),
    (transforms.Unstack('layer'), {ONE: of_array(array(()))}, 'a scalar'),
    (
      transforms.Unstack('layer', (2, 5)),
      {ONE: of_array(array((3, 2)))},
      r'2 to unstack, got \[3, 2\]',
    ),
    (
      transforms.Concat('p', ('q', 'k')),
      layers((2,), field='p', names=['q']),
      'expected p q, k, got q',
    ),
    (
      transforms.Concat('p', ('0', '1')),
      layers((2, 1), (2, 2), field='p'),
      'equal shapes but for axis 0',
    ),
    # The way back would cut it in halves.
    (
      transforms.Concat('p', ('0', '1')),
      layers((2,), (4,), field='p'),
      r'sizes \[2, 2\] along axis 0, got \[2, 4\]',
    ),
    (
      transforms.Split('p', ('a', 'b')),
      {ONE: of_array(array((3,)))},
      '2 parts',
    ),
    (
      transforms.Split('p', ('a', 'b'), 0, (1, 1)),
      {ONE: of_array(array((3,)))},
      r'\[1, 1\], got \[3\]',
    ),
  ],
)
def test_what_can_not_be_done_is_said(transform, pieces, match):
  with pytest.raises(ValueError, match=match):
    transform.apply(pieces)


def test_axes_are_a_permutation():
  with pytest.raises(ValueError, match='a permutation'):
    transforms.Transpose((0, 0))


def test_a_stack_is_read_layer_by_layer_and_once_for_its_layers():
  reads: list[str] = []

  def counted(name, shape):
    def load():
      reads.append(name)
      return array(shape)

    return Tensor(shape, np.dtype(np.float32), load)

  pieces = {(('layer', str(i)),): counted(str(i), (2, 3)) for i in range(3)}
  stack = transforms.Stack('layer').apply(pieces)
  back = transforms.Unstack('layer').apply(stack)
  assert reads == []
  read(back)
  assert reads == ['0', '1', '2']
  # It was let go after the last; a second round reads anew.
  read(back)
  assert reads == ['0', '1', '2'] * 2
