# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""T5X's own checkpoints, those of the published T5 1.1 and Flan-T5.

A folder `checkpoint_<step>` with a msgpack file `checkpoint`, the tree of the
train state, and a zarr array for each leaf that the tree does not hold itself.
Checkpoints that T5X writes through Orbax are read by `orbax.py`.

Source: T5X, `t5x/checkpoints.py`; Flax, `flax/serialization.py`.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import msgpack
import numpy as np
from flax import traverse_util

from pixel_llm.checkpoints.formats import zarr
from pixel_llm.checkpoints.tensors import (
  BFLOAT16,
  Tensor,
  TensorFileError,
  Tensors,
  damaged,
  of_array,
)

# Of the versions that T5X reads, 2 differs in bfloat16 only.
_VERSION, _VERSIONS = 3, (2, 3)
_TREE = 'checkpoint'
# Ext types of Flax: an array, a NumPy scalar.
_ARRAY, _SCALAR = 1, 3
# Flax writes larger arrays as dicts of pieces, under this key.
_PIECES = '__msgpack_chunked_array__'


def read(path: str | os.PathLike) -> dict[str, Tensor]:
  """The arrays of a T5X checkpoint; of those in zarr, their metadata only.

  Args:
    path: the folder `checkpoint_<step>`.

  Returns:
    tensors by their path in the train state: `target/...` are the parameters,
    `state/...` the step and the optimizer's slots.

  Raises:
    TensorFileError: not such a checkpoint, or damaged.
    OSError: it can't be read.
  """
  file = pathlib.Path(path) / _TREE
  with damaged(file, "the msgpack of T5X's tree"):
    content = msgpack.unpackb(
      file.read_bytes(), raw=False, strict_map_key=False, ext_hook=_array
    )
  version = content.get('version') if isinstance(content, dict) else None
  if version not in _VERSIONS or not isinstance(content.get('optimizer'), dict):
    raise TensorFileError(
      file,
      f"a tree 'optimizer' of version {_VERSIONS[0]} or {_VERSIONS[1]}",
      f'version {version!r}',
    )
  inline: dict[str, Tensor] = {}
  specs: dict[str, dict[str, Any]] = {}
  order: list[str] = []
  with damaged(file, "T5X's tree"):
    _collect(file, content['optimizer'], (), inline, specs, order)
  stored = zarr.open_all(path, specs)
  for name, tensor in stored.items():
    if tensor.dtype == np.uint16:
      raise TensorFileError(path, f'numbers in {name}', 'uint16 (bfloat16?)')
  return {name: (inline | stored)[name] for name in order}


def write(path: str | os.PathLike, tensors: Tensors) -> None:
  """Writes a checkpoint that T5X's `Checkpointer` reads.

  Args:
    path: the folder to make, `checkpoint_<step>`.
    tensors: by path in the train state, as from `read`; `target/...` and
      `state/step` are what T5X wants for inference. Scalars and vectors of
      one number go into the tree, all else into zarr.

  Raises:
    OSError: it can't be written.
  """
  root = pathlib.Path(path)
  root.mkdir(parents=True)
  leaves: dict[str, Any] = {}
  for name, tensor in tensors.items():
    if tensor.size <= 1:
      leaves[name] = msgpack.ExtType(_ARRAY, _packed(tensor.read()))
      continue
    place = f'{name.replace("/", ".")}/'
    kvstore = {'driver': 'file', 'path': str(root.absolute() / place)}
    spec = {'driver': 'zarr', 'kvstore': kvstore}
    metadata = zarr.write(spec, tensor, {'id': 'gzip', 'level': 1})
    leaves[name] = {
      'driver': 'zarr',
      'dtype': tensor.dtype.name,
      'kvstore': {'driver': 'file', 'path': place},
      'metadata': metadata,
    }
  tree = traverse_util.unflatten_dict(leaves, sep='/')
  data = msgpack.packb({'version': _VERSION, 'optimizer': tree})
  assert data is not None
  (root / _TREE).write_bytes(data)


def _array(code: int, data: bytes) -> Any:
  if code not in (_ARRAY, _SCALAR):
    raise ValueError(f'ext type {code}')
  shape, name, raw = msgpack.unpackb(data, raw=False)
  dtype = BFLOAT16 if name == 'bfloat16' else np.dtype(name)
  if dtype.hasobject:
    raise ValueError(f'an array of {name}')
  return np.frombuffer(raw, dtype).reshape(shape)


def _packed(array: np.ndarray) -> bytes:
  data = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
  assert data is not None
  return data


def _collect(file, value, names, inline, specs, order) -> None:
  """Sorts the leaves within `value` into arrays and specs of arrays."""
  name = '/'.join(names)
  if isinstance(value, np.ndarray):
    inline[name] = of_array(value)
  elif isinstance(value, (bool, int, float)):
    inline[name] = of_array(np.asarray(value))
  elif not isinstance(value, dict):
    # None and the like hold no numbers.
    return
  elif _PIECES in value:
    inline[name] = of_array(_joined(file, name, value))
  elif value.get('driver') == 'zarr':
    specs[name] = _spec(file, name, value)
  else:
    for key, child in value.items():
      _collect(file, child, (*names, str(key)), inline, specs, order)
    return
  order.append(name)


def _joined(file, name: str, value: dict[str, Any]) -> np.ndarray:
  with damaged(file, f'the pieces of {name}'):
    shape, pieces = value['shape'], value['chunks']
    flat = [pieces[str(i)] for i in range(len(pieces))]
    sizes = [shape[str(i)] for i in range(len(shape))]
    return np.concatenate(flat).reshape(sizes)


def _spec(file, name: str, value: dict[str, Any]) -> dict[str, Any]:
  # Old versions of TensorStore have `path` beside `kvstore`. What is said of
  # chunks and compression is left to the array's own metadata, and the driver
  # may be that of the bucket from which the folder was copied.
  kvstore = value.get('kvstore')
  kvstore = kvstore if isinstance(kvstore, dict) else {}
  place = str(value.get('path') or kvstore.get('path') or '').rstrip('/')
  if not place or place in ('.', '..') or os.path.basename(place) != place:
    raise TensorFileError(file, f'a folder beside it for {name}', repr(place))
  where = pathlib.Path(file).absolute().parent / place
  return {
    'driver': 'zarr',
    'kvstore': {'driver': 'file', 'path': f'{where}/'},
    # A lost chunk is an error, not zeros.
    'fill_missing_data_reads': False,
  }
