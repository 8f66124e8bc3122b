# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's `.pth`, `.pt` and `.bin` without PyTorch, and without its risk.

Such a file is a zip of a pickle and of raw storages. A pickle may call any
function of any module; here it can name only what rebuilds tensors, and each
of those names stands for a function of this file.

Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch, for the
names and the arguments.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from pixel_llm.checkpoints.tensors import (
  BFLOAT16,
  Tensor,
  TensorFileError,
  damaged,
)

_STORAGES = {
  'DoubleStorage': np.dtype('<f8'),
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': BFLOAT16,
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
  'ComplexFloatStorage': np.dtype('<c8'),
  'ComplexDoubleStorage': np.dtype('<c16'),
}
_DTYPES = {
  'float64': np.dtype('<f8'),
  'float32': np.dtype('<f4'),
  'float16': np.dtype('<f2'),
  'bfloat16': BFLOAT16,
  'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
  'int64': np.dtype('<i8'),
  'int32': np.dtype('<i4'),
  'int16': np.dtype('<i2'),
  'int8': np.dtype('i1'),
  'uint64': np.dtype('<u8'),
  'uint32': np.dtype('<u4'),
  'uint16': np.dtype('<u2'),
  'uint8': np.dtype('u1'),
  'bool': np.dtype('?'),
}
# Those of the opcodes of a pickle that `torch.save` uses, at any protocol.
_OPCODES = (
  'PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID '
  'BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE '
  'NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT '
  'BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING '
  'EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS '
  'EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS '
)
# Nesting of containers and the number of values that a checkpoint may have.
_MAX_DEPTH, _MAX_VALUES = 32, 1_000_000


def is_zip(path: str | os.PathLike) -> bool:
  """Whether the file looks like one that `read` takes."""
  with open(path, 'rb') as file:
    return file.read(4) == b'PK\x03\x04'


def read(path: str | os.PathLike) -> dict[str, Tensor]:
  """The tensors of a file of `torch.save`; reads its pickle only.

  Args:
    path: a file in the zip format, that of PyTorch since 1.6.

  Returns:
    tensors by name. Keys of nested dicts and indices of lists are joined by
    slashes; what is not a tensor is left out.

  Raises:
    TensorFileError: not such a file, damaged, or its pickle names something
      that does not rebuild tensors.
    OSError: it can't be read.
  """
  if not is_zip(path):
    raise TensorFileError(
      path,
      "PyTorch's zip format (torch.save since 1.6)",
      'a file that is no zip; if it is an older one, load and save it anew',
    )
  with damaged(path, 'a whole zip'), zipfile.ZipFile(path) as archive:
    members = archive.namelist()
    pickles = [m for m in members if m.split('/')[1:] == ['data.pkl']]
    if len(pickles) != 1:
      raise TensorFileError(
        path, 'a zip with NAME/data.pkl', f'{len(members)} other members'
      )
    root = pickles[0].removesuffix('data.pkl')
    order = f'{root}byteorder'
    if order in members and archive.read(order) != b'little':
      raise TensorFileError(path, 'little-endian storages', 'big-endian')
    sizes = {m: archive.getinfo(m).file_size for m in members}
    if sizes[pickles[0]] > os.path.getsize(path):
      raise TensorFileError(
        path, 'a pickle smaller than the file', f'{sizes[pickles[0]]} bytes'
      )
    data = archive.read(pickles[0])
  unpickler = _Unpickler(_Archive(path, sizes), root, data)
  with damaged(path, 'a pickle of tensors'):
    _check_opcodes(data)
    value = unpickler.load()
  tensors: dict[str, Tensor] = {}
  for count, (name, tensor) in enumerate(_leaves(path, value, ())):
    if count >= _MAX_VALUES:
      raise TensorFileError(path, f'at most {_MAX_VALUES} values', 'more')
    if tensor is None:
      continue
    if name in tensors:
      raise TensorFileError(path, 'every name once', f'{name} twice')
    tensors[name] = tensor
  if not tensors:
    raise TensorFileError(path, 'tensors', 'none')
  return tensors


class _Archive:
  """The zip file; keeps the storage that was read last.

  Several tensors may be views of one storage, mostly one after the other.
  """

  __slots__ = ('_last', 'path', 'sizes')

  def __init__(self, path: str | os.PathLike, sizes: dict[str, int]):
    self.path, self.sizes = path, sizes
    self._last: tuple[str, np.ndarray] | None = None

  def read(self, member: str) -> np.ndarray:
    last = self._last
    if last is not None and last[0] == member:
      return last[1]
    # Read to its end, which makes zipfile check the sum.
    with (
      damaged(self.path, f'{member} whole'),
      zipfile.ZipFile(self.path) as archive,
    ):
      data = archive.read(member)
    self._last = (member, np.frombuffer(data, np.uint8))
    return self._last[1]


class _Storage:
  """Bytes of the file that tensors are views of."""

  __slots__ = ('dtype', 'member', 'size')

  def __init__(self, member: str, size: int, dtype: np.dtype | None):
    self.member, self.size, self.dtype = member, size, dtype


class _Callable:
  """A function that a pickle may call, and can do nothing else to."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)


class _Dtype:
  """What a storage's class or a dtype of PyTorch stands for."""

  __slots__ = ('dtype',)

  def __init__(self, dtype: np.dtype | None):
    self.dtype = dtype


def _check_opcodes(data: bytes) -> None:
  """Refuses what Python's unpickler would take, at any cost in memory."""
  allowed = frozenset(_OPCODES.split())
  for opcode, argument, _ in pickletools.genops(data):
    if opcode.name not in allowed:
      raise ValueError(f'the opcode {opcode.name}')
    # The memo is a list as long as its largest index.
    if opcode.name == 'LONG_BINPUT' and int(argument or 0) > len(data):
      raise ValueError(f'the index {argument} in {len(data)} bytes')


class _Unpickler(pickle.Unpickler):
  """Makes `Tensor`s of what `torch.save` wrote."""

  def __init__(self, archive: _Archive, root: str, data: bytes):
    super().__init__(io.BytesIO(data))
    self._archive, self._root = archive, root

  def find_class(self, module: str, name: str) -> Any:
    allowed = {
      'collections.OrderedDict': collections.OrderedDict,
      'torch.Size': _Callable(tuple),
      'torch._utils._rebuild_tensor': _Callable(self._tensor),
      'torch._utils._rebuild_tensor_v2': _Callable(self._tensor),
      'torch._utils._rebuild_tensor_v3': _Callable(self._tensor_of_dtype),
      'torch._utils._rebuild_parameter': _Callable(lambda data, *_: data),
      'torch.storage.UntypedStorage': _Dtype(None),
    }
    full = f'{module}.{name}'
    if full in allowed:
      return allowed[full]
    if module == 'torch' and name in _STORAGES:
      return _Dtype(_STORAGES[name])
    if module == 'torch' and name in _DTYPES:
      return _Dtype(_DTYPES[name])
    raise TensorFileError(
      self._archive.path,
      'a pickle that only rebuilds tensors',
      f'one that names {full}; nothing of it was run',
    )

  def persistent_load(self, pid: Any) -> _Storage:
    kind, storage, key, _, size = pid
    if kind != 'storage' or not isinstance(storage, _Dtype):
      raise ValueError(f'persistent id {pid!r}')
    member = f'{self._root}data/{key}'
    itemsize = storage.dtype.itemsize if storage.dtype is not None else 1
    found = self._archive.sizes.get(member)
    if found != size * itemsize:
      raise TensorFileError(
        self._archive.path,
        f'{size * itemsize} bytes in {member}',
        'no such member' if found is None else f'{found}',
      )
    return _Storage(member, size * itemsize, storage.dtype)

  def _tensor(self, storage, offset, shape, stride, *_) -> Tensor:
    return self._view(storage, offset, shape, stride, storage.dtype)

  def _tensor_of_dtype(
    self, storage, offset, shape, stride, _grad, _hooks, dtype, *_
  ) -> Tensor:
    return self._view(storage, offset, shape, stride, dtype.dtype)

  def _view(self, storage, offset, shape, stride, dtype) -> Tensor:
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if (
      not isinstance(storage, _Storage)
      or not isinstance(dtype, np.dtype)
      or len(shape) != len(stride)
      or not all(type(n) is int and n >= 0 for n in numbers)
    ):
      raise ValueError(
        f'a tensor of offset {offset}, shape {shape} and strides {stride}'
      )
    last = sum((n - 1) * step for n, step in zip(shape, stride))
    end = offset + last + 1 if math.prod(shape) else 0
    if end * dtype.itemsize > storage.size:
      raise TensorFileError(
        self._archive.path,
        f'{end * dtype.itemsize} bytes in {storage.member}',
        f'{storage.size}',
      )

    def load():
      if not end:
        return np.zeros(shape, dtype)
      begin = offset * dtype.itemsize
      whole = self._archive.read(storage.member)[
        begin : end * dtype.itemsize
      ].view(dtype)
      return np.lib.stride_tricks.as_strided(
        whole,
        shape,
        tuple(step * dtype.itemsize for step in stride),
        writeable=False,
      )

    return Tensor(shape, dtype, load)


def _leaves(
  path, value: Any, names: tuple[str, ...]
) -> Iterator[tuple[str, Tensor | None]]:
  """Names of the values within `value`; of what is no tensor, with None."""
  if len(names) > _MAX_DEPTH:
    raise TensorFileError(
      path, f'at most {_MAX_DEPTH} containers in one another', 'more'
    )
  if isinstance(value, Tensor):
    yield '/'.join(names) or 'tensor', value
    return
  yield '', None
  if isinstance(value, dict):
    children = list(value.items())
  elif isinstance(value, (list, tuple)):
    children = list(enumerate(value))
  else:
    return
  for key, child in children:
    yield from _leaves(path, child, (*names, str(key)))
