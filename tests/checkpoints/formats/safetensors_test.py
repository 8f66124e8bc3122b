# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import TensorFileError

ARRAYS = {
  'b.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a': np.array([1.5, -2, 3], ml_dtypes.bfloat16),
  'scalar': np.array(7, np.int64),
  'flag': np.array([True, False, True]),
  'empty': np.zeros((0, 4), np.float32),
  'special': np.array([np.nan, -0.0, np.inf], np.float32),
}


def lazy(arrays):
  return {n: tensors_lib.of_array(a) for n, a in arrays.items()}


def file_of(path, header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(struct.pack('<Q', length) + text + data)
  return path


def entry(shape=(2,), span=(0, 8), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(span)}


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, array in expected.items():
    assert got[name].shape == array.shape and got[name].dtype == array.dtype
    assert got[name].nbytes == array.nbytes
    assert got[name].read().tobytes() == array.tobytes()


def test_round_trip_is_exact(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, lazy(ARRAYS), {'format': 'np'})
  assert_same(safetensors.read(path), ARRAYS)


def test_reads_a_file_made_by_hand(tmp_path):
  data = struct.pack('<2f', 1, 2) + struct.pack('<2H', 0x3F80, 0xC000)
  path = file_of(
    tmp_path / 'x.safetensors',
    {
      '__metadata__': {'format': 'pt'},
      'x': entry(),
      'y': entry((2, 1), (8, 12), 'BF16'),
    },
    data,
  )
  got = safetensors.read(path)
  np.testing.assert_array_equal(got['x'].read(), [1, 2])
  np.testing.assert_array_equal(got['y'].read().astype(np.float32), [[1], [-2]])


@pytest.mark.parity
def test_is_the_format_of_the_safetensors_package(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  path = tmp_path / 'x.safetensors'
  plain = {n: a for n, a in ARRAYS.items() if n != 'a'}
  library.save_file(plain, path)
  assert_same(safetensors.read(path), plain)
  safetensors.write(path, lazy(plain))
  theirs = library.load_file(path)
  for name, array in plain.items():
    assert theirs[name].tobytes() == array.tobytes()


def test_nothing_is_loaded_before_it_is_read(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, lazy(ARRAYS))
  got = safetensors.read(path)
  # What is read is what the file holds now.
  data = bytearray(path.read_bytes())
  begin = data.index(ARRAYS['b.weight'].tobytes())
  data[begin : begin + 4] = struct.pack('<f', 9)
  path.write_bytes(data)
  assert got['b.weight'].read()[0, 0] == 9


@pytest.mark.parametrize('cut', [0, 4, 8, 20, 300, -1])
def test_a_truncated_file_is_named(tmp_path, cut):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, lazy(ARRAYS))
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(TensorFileError, match=r'x\.safetensors: expected'):
    safetensors.read(path)


@pytest.mark.parametrize(
  ('header', 'match'),
  [
    (b'{"x": ', 'expected JSON'),
    (b'[1, 2]', 'a JSON object, got list'),
    (b'\xff\xfe{}', 'expected JSON'),
    (b'{"x":1,"x":2}', "every name once, got .'x'. more"),
    ({'x': entry(dtype='F31')}, 'a known dtype'),
    ({'x': entry(shape=(-2,))}, 'a known dtype, a shape'),
    ({'x': entry(shape=(2, True))}, 'a known dtype, a shape'),
    ({'x': entry(span=(0, 4))}, '8 bytes for x'),
    ({'x': entry(span=(0, 8, 9))}, '8 bytes for x'),
    ({'x': entry(span=(8, 16))}, 'one at 0, got one at 8'),
    ({'x': entry(), 'y': entry()}, 'one at 8, got one at 0'),
    ({'x': entry((3,), (0, 12))}, 'truncated or damaged'),
    ({'x': 3}, 'a known dtype'),
    ({}, 'truncated or damaged'),
  ],
)
def test_a_wrong_header_is_named(tmp_path, header, match):
  path = file_of(tmp_path / 'x.safetensors', header, bytes(8))
  with pytest.raises(TensorFileError, match=match):
    safetensors.read(path)


def test_a_length_that_is_noise_allocates_nothing(tmp_path):
  path = file_of(tmp_path / 'x.safetensors', {}, length=1 << 60)
  with pytest.raises(TensorFileError, match='length of a header'):
    safetensors.read(path)


def test_flipped_bytes_never_give_a_traceback(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, lazy(ARRAYS))
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for _ in range(300):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    try:
      for tensor in safetensors.read(path).values():
        tensor.read()
    except TensorFileError as e:
      assert str(path) in str(e)


def test_a_file_cut_after_opening_is_named(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, lazy(ARRAYS))
  got = safetensors.read(path)
  path.write_bytes(path.read_bytes()[:-9])
  last = max(ARRAYS, key=lambda n: -got[n].dtype.itemsize)
  names = [n for n in ARRAYS if ARRAYS[n].dtype == np.float32]
  with pytest.raises(TensorFileError, match='bytes from'):
    for name in [*names, last, 'flag', 'a']:
      got[name].read()


def test_sharded_by_an_index(tmp_path):
  names = list(ARRAYS)
  places = {}
  for i, part in enumerate((names[:2], names[2:])):
    shard = f'model-0000{i + 1}-of-00002.safetensors'
    safetensors.write(tmp_path / shard, lazy({n: ARRAYS[n] for n in part}))
    places |= dict.fromkeys(part, shard)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': places}))
  assert_same(safetensors.read_index(index, safetensors.read), ARRAYS)

  for wrong, match in (
    ({**places, 'more': places['a']}, 'more in model-00001.*none there'),
    ({**places, 'a': 'lost.safetensors'}, 'the file lost.safetensors'),
    ({**places, 'a': '../x.safetensors'}, 'a file name for a'),
    ({}, 'weight_map'),
  ):
    index.write_text(json.dumps({'weight_map': wrong}))
    with pytest.raises(TensorFileError, match=match):
      safetensors.read_index(index, safetensors.read)


def test_a_dtype_without_a_name_is_not_written(tmp_path):
  arrays = lazy({'x': np.zeros(2, np.complex128)})
  with pytest.raises(ValueError, match='x: safetensors has no dtype'):
    safetensors.write(tmp_path / 'x.safetensors', arrays)
