# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Zarr arrays by TensorStore: how T5X and Orbax both keep theirs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from pixel_llm.checkpoints.tensors import Tensor, TensorFileError

# Chunks as T5X and Orbax make them are at most so large.
_CHUNK_BYTES = 64 << 20


def open_all(
  path: str | os.PathLike, specs: Mapping[str, dict[str, Any]]
) -> dict[str, Tensor]:
  """Opens arrays, all at once; reads their metadata only.

  Args:
    path: the checkpoint, for errors.
    specs: TensorStore's spec by name.

  Raises:
    TensorFileError: an array is not there or its metadata are damaged.
  """
  context = ts.Context()
  opening = {
    name: ts.open(ts.Spec(spec), read=True, open=True, context=context)
    for name, spec in specs.items()
  }
  tensors = {}
  for name, future in opening.items():
    try:
      store = future.result()
    # TensorStore raises ValueError and others, by what is damaged.
    except Exception as e:
      raise TensorFileError(path, f'the array {name}', cause(e)) from e
    tensors[name] = _tensor(path, name, store)
  return tensors


def write(
  spec: dict[str, Any], tensor: Tensor, compressor: dict[str, Any]
) -> dict[str, Any]:
  """Writes a tensor as a new zarr v2 array.

  Args:
    spec: TensorStore's, with driver and kvstore.
    tensor: of any dtype that zarr and ml_dtypes have; read here, so that it is
      no longer in memory when the next one is.
    compressor: of its chunks, in zarr's terms.

  Returns:
    the metadata that were decided here: chunks, compressor, shape.

  Raises:
    OSError: it can't be written.
    And what reading the tensor raises.
  """
  metadata = {
    'chunks': chunks(tensor.shape, tensor.dtype.itemsize),
    'compressor': compressor,
    'shape': list(tensor.shape),
  }
  array = tensor.read()
  try:
    store = ts.open(
      ts.Spec({**spec, 'dtype': tensor.dtype.name, 'metadata': metadata}),
      create=True,
      delete_existing=True,
    ).result()
    store.write(array).result()
  except Exception as e:
    raise OSError(f'{spec["kvstore"]}: can not be written: {cause(e)}') from e
  return metadata


def chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Sizes of chunks of at most 64 MiB.

  They divide the shape evenly, but where a length without fitting divisors
  would make very many.
  """
  sizes = list(shape)
  while (count := math.prod(sizes)) * itemsize > _CHUNK_BYTES:
    axis = sizes.index(max(sizes))
    row = count // sizes[axis] * itemsize
    most = max(1, _CHUNK_BYTES // row)
    even = next(n for n in range(most, 0, -1) if shape[axis] % n == 0)
    sizes[axis] = even if 4 * even >= most else most
  # Zarr wants chunks of at least 1, also of an empty array.
  return [max(1, n) for n in sizes]


def cause(error: BaseException) -> str:
  """What TensorStore's error comes down to, in a line."""
  text = str(error).strip() or type(error).__name__
  return re.sub(r'\s+\[.*', '', text.splitlines()[0]).rstrip('.')


def _tensor(path, name: str, store: ts.TensorStore) -> Tensor:
  def load():
    try:
      return np.asarray(store.read().result())
    except Exception as e:
      raise TensorFileError(path, f'{name} whole', cause(e)) from e

  return Tensor(tuple(store.shape), store.dtype.numpy_dtype, load)
