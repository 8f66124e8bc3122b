# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""NumPy's `.npz`: a zip of arrays, whose names may hold slashes."""

from __future__ import annotations

import os
import zipfile

import numpy as np

from pixel_llm.checkpoints.tensors import (
  BFLOAT16,
  Tensor,
  TensorFileError,
  damaged,
)


def read(path: str | os.PathLike) -> dict[str, Tensor]:
  """The arrays of a `.npz` file; reads their headers only.

  Raises:
    TensorFileError: not a zip of arrays, or one of Python objects.
    OSError: it can't be read.
  """
  tensors = {}
  with damaged(path, 'a whole .npz file'), zipfile.ZipFile(path) as archive:
    for member in archive.namelist():
      name = member.removesuffix('.npy')
      with archive.open(member) as file:
        tensors[name] = _tensor(path, name, member, file)
  return tensors


def _tensor(path, name: str, member: str, file) -> Tensor:
  version = np.lib.format.read_magic(file)
  read_header = (
    np.lib.format.read_array_header_1_0
    if version == (1, 0)
    else np.lib.format.read_array_header_2_0
  )
  shape, _, dtype = read_header(file)
  # The only 2-byte void that anyone saves: NumPy does not know bfloat16.
  is_bfloat16 = dtype == np.dtype('V2')
  stored = BFLOAT16 if is_bfloat16 else dtype.newbyteorder('=')
  if stored.hasobject or (stored.kind == 'V' and not is_bfloat16):
    raise TensorFileError(path, f'numbers in {name}', f'dtype {dtype}')

  def load():
    with (
      damaged(path, f'{name} whole'),
      zipfile.ZipFile(path) as archive,
      archive.open(member) as file,
    ):
      array = np.lib.format.read_array(file, allow_pickle=False)
      # Reading on to the end is what makes zipfile check the sum.
      file.read()
    return (
      array.view(stored) if is_bfloat16 else array.astype(stored, copy=False)
    )

  return Tensor(shape, stored, load)
