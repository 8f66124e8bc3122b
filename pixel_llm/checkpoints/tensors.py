# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors by name, each read when asked for: what every file of them is here.

A reader of a format gives a mapping of names to `Tensor`; a writer takes one.
What stands between them (`mapping.py`) maps mappings, so that a checkpoint of
any size passes through memory a tensor at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TensorFileError(ValueError):
  """A file of tensors is not what it should be: which, wanted and found."""

  def __init__(self, path: str | os.PathLike, expected: str, found: str):
    super().__init__(f'{os.fspath(path)}: expected {expected}, got {found}.')


@contextlib.contextmanager
def damaged(path: str | os.PathLike, expected: str):
  """Turns what reading a damaged file raises into the error that names it.

  Damage may raise whatever the wrong values lead to in the library that reads
  them, so the block should hold nothing but the reading.
  """
  try:
    yield
  except TensorFileError:
    raise
  except Exception as e:
    if isinstance(e, OSError) and e.filename is not None:
      # The file can't be read at all, and the error says which.
      raise
    text = str(e).strip().rstrip('.').partition('\n')[0]
    plain = text and isinstance(e, ValueError)
    found = text if plain else f'{type(e).__name__}: {text or "no message"}'
    raise TensorFileError(path, expected, found) from e


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that is not in memory yet.

  Attributes:
    shape: its sizes; () for a scalar.
    dtype: NumPy's, with those of ml_dtypes.
    load: gives the array; called anew by every `read`.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes in memory once read."""
    return self.size * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """The array, of `shape` and `dtype`; the caller must not write to it.

    Raises:
      TensorFileError: its file is damaged.
      ValueError: its file holds another shape or dtype than it announced.
      OSError: its file can't be read.
    """
    array = self.load()
    # What a file says of a tensor and what it holds are two things.
    if array.shape != self.shape or array.dtype != self.dtype:
      raise ValueError(
        f'a tensor announced as {self.dtype} {list(self.shape)} is '
        f'{array.dtype} {list(array.shape)}.'
      )
    return array


Tensors = Mapping[str, Tensor]


def is_floating(dtype: np.dtype) -> bool:
  """Whether NumPy's or ml_dtypes' dtype is of floating point numbers."""
  # Those of ml_dtypes are of kind V or f to NumPy, by its version.
  return dtype.kind == 'f' or dtype.name.startswith(('bfloat', 'float'))


def of_array(array: np.ndarray) -> Tensor:
  """An array in memory as a `Tensor`."""
  return Tensor(array.shape, array.dtype, lambda: array)


def part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
  """Those whose name starts with `prefix`, which is cut off."""
  return {
    name.removeprefix(prefix): tensor
    for name, tensor in tensors.items()
    if name.startswith(prefix)
  }


def parameters(tensors: Tensors) -> dict[str, Tensor]:
  """Those of a train state that are parameters, by the parameters' names.

  Orbax's of ours are under `params/`, T5X's under `target/`; other files hold
  nothing else.
  """
  return part(tensors, 'params/') or part(tensors, 'target/') or dict(tensors)
