# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import zipfile

import ml_dtypes
import numpy as np
import pytest

from pixel_llm.checkpoints.formats import npz
from pixel_llm.checkpoints.tensors import TensorFileError

ARRAYS = {
  'encoder/kernel': np.arange(6000, dtype=np.float32).reshape(20, 300),
  'encoder/half': np.array([1.5, -2], ml_dtypes.bfloat16),
  'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  'step': np.int32(7),
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path, save):
  path = tmp_path / 'x.npz'
  save(path, **ARRAYS)
  got = npz.read(path)
  assert got.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert got[name].shape == np.shape(array)
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name].read(), array, strict=True)


def test_bytes_of_another_order_become_ours(tmp_path):
  np.savez(tmp_path / 'x.npz', x=np.array([1.0, 2.0], '>f4'))
  tensor = npz.read(tmp_path / 'x.npz')['x']
  assert tensor.dtype == np.float32
  np.testing.assert_array_equal(tensor.read(), np.float32([1, 2]), strict=True)


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, **ARRAYS)
  whole = path.read_bytes()
  for cut in (0, 10, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:cut])
    with pytest.raises(TensorFileError, match=r'x\.npz: expected a whole'):
      npz.read(path)


def test_a_flipped_byte_of_a_tensor_is_noticed(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, **ARRAYS)
  data = bytearray(path.read_bytes())
  data[data.index(ARRAYS['encoder/kernel'].tobytes()) + 20000] ^= 1
  path.write_bytes(data)
  got = npz.read(path)
  with pytest.raises(TensorFileError, match='encoder/kernel whole, got BadZip'):
    got['encoder/kernel'].read()
  got['encoder/half'].read()


def test_flipped_bytes_never_give_a_traceback(tmp_path):
  path = tmp_path / 'x.npz'
  rng = np.random.default_rng(0)
  for save in (np.savez, np.savez_compressed):
    save(path, x=np.arange(30.0), y=np.ones((2, 3)))
    whole = path.read_bytes()
    for _ in range(150):
      data = bytearray(whole)
      data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
      path.write_bytes(data)
      try:
        for tensor in npz.read(path).values():
          tensor.read()
      except TensorFileError as e:
        assert str(path) in str(e)


def test_a_header_that_ends_early_is_named(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    # NumPy's tokenizer has an error of its own for it.
    header = b"{'descr': '<f4', 'shape': (3L,".ljust(64)
    magic = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little')
    archive.writestr('x.npy', magic + header)
  with pytest.raises(TensorFileError, match=r'x\.npz: expected a whole'):
    npz.read(tmp_path / 'x.npz')


def test_objects_are_refused(tmp_path):
  np.savez(tmp_path / 'x.npz', x=np.array([{}, None], object))
  with pytest.raises(TensorFileError, match='numbers in x, got dtype object'):
    npz.read(tmp_path / 'x.npz')
  with zipfile.ZipFile(tmp_path / 'y.npz', 'w') as archive:
    archive.writestr('x.npy', b'no array at all')
  with pytest.raises(TensorFileError, match='magic string'):
    npz.read(tmp_path / 'y.npz')
