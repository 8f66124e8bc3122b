# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Safetensors: a JSON header, then the bytes of the tensors end to end.

Source: the format's description in the `safetensors` package's README.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from pixel_llm.checkpoints.tensors import (
  BFLOAT16,
  Tensor,
  TensorFileError,
  Tensors,
)

_DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': BFLOAT16,
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'C64': np.dtype('<c8'),
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The format's own limit, against lengths that are noise.
_MAX_HEADER = 100_000_000
_METADATA = '__metadata__'


def read(path: str | os.PathLike) -> dict[str, Tensor]:
  """The tensors of a `.safetensors` file; reads the header only.

  Raises:
    TensorFileError: not safetensors, truncated, or its header and its size
      contradict one another.
    OSError: it can't be read.
  """
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    first = file.read(8)
    length = struct.unpack('<Q', first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(size - 8, _MAX_HEADER):
      raise TensorFileError(
        path,
        'safetensors, which starts with the length of a header in the file',
        f'length {length} in {size} bytes',
      )
    header = _json(path, file.read(length))
  begin, spans = 8 + length, []
  tensors = {}
  for name, entry in header.items():
    if name == _METADATA:
      continue
    shape, dtype, span = _entry(path, name, entry)
    tensors[name] = _tensor(path, begin + span[0], shape, dtype)
    spans.append(span)
  end = 0
  for span in sorted(spans):
    if span[0] != end:
      raise TensorFileError(
        path, f'tensors end to end, one at {end}', f'one at {span[0]}'
      )
    end = span[1]
  if begin + end != size:
    raise TensorFileError(
      path,
      f'{begin + end} bytes, as its header says',
      f'{size}: truncated or damaged',
    )
  return tensors


def write(
  path: str | os.PathLike,
  tensors: Tensors,
  metadata: dict[str, str] | None = None,
) -> None:
  """Writes a `.safetensors` file, one tensor in memory at a time.

  Args:
    path: the file; what was there is lost at once, so a caller that wants
      whole files only writes elsewhere and moves.
    tensors: their order is kept among those of one item size.
    metadata: further text by key; readers of Hugging Face want `format`.

  Raises:
    ValueError: a dtype that the format does not have.
    OSError: it can't be written.
  """
  # Large items first, so that every tensor is aligned to its item size.
  order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
  header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
  end = 0
  for name in order:
    tensor = tensors[name]
    if tensor.dtype not in _NAMES:
      raise ValueError(f'{name}: safetensors has no dtype {tensor.dtype}.')
    header[name] = {
      'dtype': _NAMES[tensor.dtype],
      'shape': list(tensor.shape),
      'data_offsets': [end, end := end + tensor.nbytes],
    }
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for name in order:
      # No variable holds it while the next one is read.
      file.write(_bytes(tensors[name]))


def read_index(path: str | os.PathLike, read_shard) -> dict[str, Tensor]:
  """The tensors of several files, by Hugging Face's index of them.

  Args:
    path: a `*.index.json` whose `weight_map` gives each name's file.
    read_shard: reads one of the files, which lie beside the index.

  Raises:
    TensorFileError: not such an index, or a file lacks what the index says.
    OSError: a file can't be read.
  """
  index = _json(path, pathlib.Path(path).read_bytes())
  places = index.get('weight_map')
  if not isinstance(places, dict) or not places:
    raise TensorFileError(path, "a 'weight_map' of names to files", 'none')
  shards: dict[str, dict[str, Tensor]] = {}
  for name, shard in places.items():
    # A file elsewhere than beside the index is not what anyone means.
    if not isinstance(shard, str) or os.path.basename(shard) != shard:
      raise TensorFileError(path, f'a file name for {name}', repr(shard))
    if shard not in shards:
      file = pathlib.Path(path).parent / shard
      if not file.is_file():
        raise TensorFileError(path, f'the file {shard} beside it', 'none')
      shards[shard] = read_shard(file)
    if name not in shards[shard]:
      raise TensorFileError(path, f'{name} in {shard}', 'none there')
  return {name: shards[shard][name] for name, shard in places.items()}


def _bytes(tensor: Tensor) -> memoryview:
  return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data


def _json(path, data: bytes) -> dict[str, Any]:
  def unique(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
      names = [name for name, _ in pairs]
      twice = sorted({name for name in names if names.count(name) > 1})
      raise TensorFileError(path, 'every name once', f'{twice} more than once')
    return values

  try:
    value = json.loads(data, object_pairs_hook=unique)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise TensorFileError(path, 'JSON', str(e)) from e
  if not isinstance(value, dict):
    raise TensorFileError(path, 'a JSON object', type(value).__name__)
  return value


def _entry(path, name: str, entry: Any):
  """(shape, dtype, (begin, end)) of a header's entry."""

  def whole_numbers(values):
    return isinstance(values, list) and all(
      type(v) is int and v >= 0 for v in values
    )

  fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
  shape: Any = fields.get('shape')
  span: Any = fields.get('data_offsets')
  dtype = _DTYPES.get(str(fields.get('dtype')))
  if not whole_numbers(shape) or not whole_numbers(span) or dtype is None:
    raise TensorFileError(
      path,
      f'a known dtype, a shape and data_offsets for {name}',
      repr(entry)[:200],
    )
  wanted = math.prod(shape) * dtype.itemsize
  if len(span) != 2 or span[1] - span[0] != wanted:
    raise TensorFileError(
      path, f'{wanted} bytes for {name} {shape}', f'data_offsets {span}'
    )
  return tuple(shape), dtype, span


def _tensor(path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
  def load():
    data = np.fromfile(path, np.uint8, tensor.nbytes, offset=offset)
    if data.size != tensor.nbytes:
      # It was whole when its header was read.
      raise TensorFileError(
        path, f'{tensor.nbytes} bytes from {offset}', f'{data.size}'
      )
    return data.view(dtype).reshape(shape)

  tensor = Tensor(shape, dtype, load)
  return tensor
