# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Invertible changes of tensors between one checkpoint's layout and another's.

A transform maps pieces to pieces. A piece is a `Tensor` under its fields, the
parts of its name that tell it from its siblings, such as `layer: 3`. Shapes
are known at once; nothing is loaded before the result is read, and of a stack
only one layer beside the stack itself is in memory.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from pixel_llm.checkpoints.tensors import Tensor

Fields = tuple[tuple[str, str], ...]
Pieces = dict[Fields, Tensor]


class Transform(abc.ABC):
  """A change of layout, and the way back."""

  # The field that it takes from names, or adds to them.
  joins: str | None = None
  forks: str | None = None

  @abc.abstractmethod
  def apply(self, pieces: Pieces) -> Pieces:
    """The changed pieces.

    Raises:
      ValueError: they can't be changed so; the message says why.
    """

  @abc.abstractmethod
  def inverse(self) -> Transform:
    """What undoes it, exactly."""


@dataclasses.dataclass(frozen=True)
class Transpose(Transform):
  """Axes in another order: the result's axis i is the source's `axes[i]`."""

  axes: tuple[int, ...] = (1, 0)

  def __post_init__(self):
    if sorted(self.axes) != list(range(len(self.axes))):
      raise ValueError(f'axes: expected a permutation, got {self.axes}.')

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""

    def one(tensor: Tensor) -> Tensor:
      if len(tensor.shape) != len(self.axes):
        raise ValueError(
          f'expected {len(self.axes)} axes to transpose, got '
          f'{list(tensor.shape)}'
        )
      shape = tuple(tensor.shape[a] for a in self.axes)
      return Tensor(
        shape, tensor.dtype, lambda: tensor.read().transpose(self.axes)
      )

    return {fields: one(tensor) for fields, tensor in pieces.items()}

  def inverse(self) -> Transpose:
    """See base class."""
    return Transpose(tuple(int(i) for i in np.argsort(self.axes)))


@dataclasses.dataclass(frozen=True)
class SplitAxis(Transform):
  """One axis becomes several, such as joined heads [J] -> [heads, depth].

  Attributes:
    axis: which, from 0.
    sizes: of the new axes; one may be -1, whatever is left.
  """

  axis: int
  sizes: tuple[int, ...]

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""

    def one(tensor: Tensor) -> Tensor:
      whole = tensor.shape[self.axis] if self.axis < len(tensor.shape) else 0
      known = math.prod(n for n in self.sizes if n != -1)
      left = whole // known if known else 0
      sizes = tuple(left if n == -1 else n for n in self.sizes)
      if not whole or math.prod(sizes) != whole:
        raise ValueError(
          f'expected an axis {self.axis} of {list(self.sizes)}, got '
          f'{list(tensor.shape)}'
        )
      shape = (*tensor.shape[: self.axis], *sizes)
      shape += tensor.shape[self.axis + 1 :]
      return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))

    return {fields: one(tensor) for fields, tensor in pieces.items()}

  def inverse(self) -> JoinAxes:
    """See base class."""
    return JoinAxes(self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class JoinAxes(Transform):
  """Several neighbouring axes, of sizes given for the way back, become one.

  Attributes:
    axis: the first of them, from 0.
    sizes: theirs; one may be -1, any.
  """

  axis: int
  sizes: tuple[int, ...]

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""

    def one(tensor: Tensor) -> Tensor:
      end = self.axis + len(self.sizes)
      found = tensor.shape[self.axis : end]
      if len(found) != len(self.sizes) or any(
        n not in (-1, m) for n, m in zip(self.sizes, found)
      ):
        raise ValueError(
          f'expected axes {list(self.sizes)} from axis {self.axis} on, got '
          f'{list(tensor.shape)}'
        )
      shape = (*tensor.shape[: self.axis], math.prod(found))
      shape += tensor.shape[end:]
      return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))

    return {fields: one(tensor) for fields, tensor in pieces.items()}

  def inverse(self) -> SplitAxis:
    """See base class."""
    return SplitAxis(self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class Stack(Transform):
  """Pieces numbered by a field become one, on a new axis 0.

  Attributes:
    field: of the names.
    numbers: its values in the order of the result; None for 0, 1 and so on
      without a gap.
  """

  field: str
  numbers: tuple[int, ...] | None = None

  @property
  def joins(self) -> str:
    """See base class."""
    return self.field

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""
    result = {}
    for fields, by_value in _joined(pieces, self.field).items():
      by_number = {int(v): tensor for v, tensor in by_value.items()}
      wanted = self.numbers or tuple(range(max(by_number) + 1))
      gaps = sorted(set(wanted) - set(by_number))
      more = sorted(set(by_number) - set(wanted))
      if gaps or more or len(by_number) != len(by_value):
        span = f'0..{wanted[-1]}' if not self.numbers else _numbers(wanted)
        found = f'none of {_numbers(gaps)}' if gaps else _numbers(more)
        found = found or 'a number twice'
        raise ValueError(f'expected {self.field} {span}, got {found}')
      result[fields] = _stacked([by_number[n] for n in wanted])
    return result

  def inverse(self) -> Unstack:
    """See base class."""
    return Unstack(self.field, self.numbers)


@dataclasses.dataclass(frozen=True)
class Unstack(Transform):
  """Axis 0 becomes pieces numbered by a field; see `Stack`."""

  field: str
  numbers: tuple[int, ...] | None = None

  @property
  def forks(self) -> str:
    """See base class."""
    return self.field

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""
    result = {}
    for fields, tensor in pieces.items():
      if not tensor.shape:
        raise ValueError('expected an axis to unstack, got a scalar')
      numbers = self.numbers or tuple(range(tensor.shape[0]))
      if len(numbers) != tensor.shape[0]:
        raise ValueError(
          f'expected {len(numbers)} to unstack, got {list(tensor.shape)}'
        )
      whole = _Shared(tensor, len(numbers))
      for i, number in enumerate(numbers):
        result[_with(fields, self.field, str(number))] = whole.part(
          i, tensor.shape[1:], (i,)
        )
    return result

  def inverse(self) -> Stack:
    """See base class."""
    return Stack(self.field, self.numbers)


@dataclasses.dataclass(frozen=True)
class Concat(Transform):
  """Pieces named by a field become one, end to end along an axis.

  Attributes:
    field: of the names.
    names: its values in the order of the result.
    axis: from 0.
    sizes: along the axis, for the way back; None for equal ones.
  """

  field: str
  names: tuple[str, ...]
  axis: int = 0
  sizes: tuple[int, ...] | None = None

  @property
  def joins(self) -> str:
    """See base class."""
    return self.field

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""
    result = {}
    for fields, by_value in _joined(pieces, self.field).items():
      if set(by_value) != set(self.names):
        raise ValueError(
          f'expected {self.field} {", ".join(self.names)}, got '
          f'{", ".join(sorted(by_value))}'
        )
      result[fields] = self._one([by_value[name] for name in self.names])
    return result

  def _one(self, parts: list[Tensor]) -> Tensor:
    def rest(tensor):
      return tensor.shape[: self.axis] + tensor.shape[self.axis + 1 :]

    if any(self.axis >= len(t.shape) for t in parts) or any(
      rest(t) != rest(parts[0]) or t.dtype != parts[0].dtype for t in parts
    ):
      raise ValueError(
        f'expected equal shapes but for axis {self.axis}, got '
        f'{_described(parts)}'
      )
    sizes = tuple(t.shape[self.axis] for t in parts)
    wanted = self.sizes or (sizes[0],) * len(sizes)
    if sizes != wanted:
      # Else the way back would cut elsewhere.
      raise ValueError(
        f'expected sizes {list(wanted)} along axis {self.axis}, got '
        f'{list(sizes)}'
      )
    shape = list(parts[0].shape)
    shape[self.axis] = sum(sizes)
    return Tensor(
      tuple(shape),
      parts[0].dtype,
      lambda: np.concatenate([t.read() for t in parts], self.axis),
    )

  def inverse(self) -> Split:
    """See base class."""
    return Split(self.field, self.names, self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class Split(Transform):
  """One piece is cut along an axis into some named by a field; see `Concat`."""

  field: str
  names: tuple[str, ...]
  axis: int = 0
  sizes: tuple[int, ...] | None = None

  @property
  def forks(self) -> str:
    """See base class."""
    return self.field

  def apply(self, pieces: Pieces) -> Pieces:
    """See base class."""
    result = {}
    for fields, tensor in pieces.items():
      length = tensor.shape[self.axis] if self.axis < len(tensor.shape) else 0
      count = len(self.names)
      sizes = self.sizes or (length // count,) * count
      if not length or sum(sizes) != length:
        raise ValueError(
          f'expected an axis {self.axis} of {count} parts'
          f'{f" {list(self.sizes)}" if self.sizes else ""}, got '
          f'{list(tensor.shape)}'
        )
      whole, begin = _Shared(tensor, count), 0
      for i, (name, size) in enumerate(zip(self.names, sizes)):
        shape = list(tensor.shape)
        shape[self.axis] = size
        span = (slice(None),) * self.axis + (slice(begin, begin + size),)
        result[_with(fields, self.field, name)] = whole.part(
          i, tuple(shape), span
        )
        begin += size
    return result

  def inverse(self) -> Concat:
    """See base class."""
    return Concat(self.field, self.names, self.axis, self.sizes)


class _Shared:
  """A tensor of which several are parts: read once for all of them.

  It stays in memory from the first part's reading to the last one's.
  """

  def __init__(self, tensor: Tensor, count: int):
    self._tensor, self._count = tensor, count
    self._array: np.ndarray | None = None
    self._pending: set[int] = set()

  def part(self, i: int, shape: tuple[int, ...], index) -> Tensor:
    return Tensor(shape, self._tensor.dtype, lambda: self._read(i)[index])

  def _read(self, i: int) -> np.ndarray:
    if self._array is None or i not in self._pending:
      self._array = self._tensor.read()
      self._pending = set(range(self._count))
    array = self._array
    self._pending.discard(i)
    if not self._pending:
      self._array = None
    return array


def _stacked(parts: list[Tensor]) -> Tensor:
  first = parts[0]
  if any(t.shape != first.shape or t.dtype != first.dtype for t in parts):
    raise ValueError(f'expected equal shapes to stack, got {_described(parts)}')

  def load():
    array = np.empty((len(parts), *first.shape), first.dtype)
    for i, tensor in enumerate(parts):
      array[i] = tensor.read()
    return array

  return Tensor((len(parts), *first.shape), first.dtype, load)


def _joined(pieces: Pieces, field: str) -> dict[Fields, dict[str, Tensor]]:
  """Pieces by their other fields, then by their value of `field`."""
  result: dict[Fields, dict[str, Tensor]] = {}
  for fields, tensor in pieces.items():
    others = tuple(f for f in fields if f[0] != field)
    result.setdefault(others, {})[dict(fields)[field]] = tensor
  return result


def _with(fields: Fields, field: str, value: str) -> Fields:
  return tuple(sorted((*fields, (field, value))))


def _numbers(numbers: Iterable[int]) -> str:
  return ', '.join(map(str, numbers))


def _described(tensors: list[Tensor]) -> str:
  kinds = {f'{t.dtype} {list(t.shape)}': None for t in tensors}
  return ' and '.join(kinds)
