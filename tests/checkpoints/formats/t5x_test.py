# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import pathlib

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import t5x, zarr
from pixel_llm.checkpoints.tensors import TensorFileError

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
KERNEL = 'target/encoder/layers_0/mlp/wi_0/kernel'


def params():
  with np.load(GOLDEN / 't5x_tiny_params.npz') as file:
    return {name: file[name] for name in file.files}


def test_reads_what_t5x_wrote(t5x_tiny):
  got = t5x.read(t5x_tiny / 'legacy' / 'checkpoint_600')
  target = tensors_lib.part(got, 'target/')
  expected = params()
  assert target.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(target[name].read(), array, strict=True)
  assert got['state/step'].read() == 600
  # Slots stand in the tree itself or in zarr.
  slots = 'state/param_states/encoder/'
  assert got[f'{slots}encoder_norm/scale/v'].shape == (16,)
  assert got[f'{slots}layers_0/mlp/wo/kernel/v_row'].shape == (16,)


def test_reads_bfloat16(t5x_tiny):
  got = t5x.read(t5x_tiny / 'legacy_bf16' / 'checkpoint_600')
  for name, array in params().items():
    np.testing.assert_array_equal(
      got[f'target/{name}'].read(),
      array.astype(ml_dtypes.bfloat16),
      strict=True,
    )


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_exact(tmp_path, dtype):
  arrays = {f'target/{n}': a.astype(dtype) for n, a in params().items()}
  arrays['state/step'] = np.int32(7)
  path = tmp_path / 'checkpoint_7'
  t5x.write(
    path, {n: tensors_lib.of_array(np.asarray(a)) for n, a in arrays.items()}
  )
  got = t5x.read(path)
  assert got.keys() == arrays.keys()
  for name, array in arrays.items():
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name].read(), array)


def test_writes_the_files_that_t5x_writes(t5x_tiny, tmp_path):
  theirs = t5x_tiny / 'legacy_bf16' / 'checkpoint_600'
  source = t5x.read(theirs)
  t5x.write(tmp_path / 'checkpoint_600', source)
  ours = tmp_path / 'checkpoint_600'
  wanted = serialization.msgpack_restore((theirs / 'checkpoint').read_bytes())
  got = serialization.msgpack_restore((ours / 'checkpoint').read_bytes())
  # The same spec of an array, and the same metadata beside its chunks.
  assert got['version'] == wanted['version']
  at = ('encoder', 'layers_0', 'mlp', 'wi_0', 'kernel')
  for tree in (got, wanted):
    tree.update(leaf=tree['optimizer']['target'])
    for key in at:
      tree['leaf'] = tree['leaf'][key]
  assert got['leaf'] == wanted['leaf']
  folder = '.'.join(('target', *at))
  assert json.loads((ours / folder / '.zarray').read_text()) == json.loads(
    (theirs / folder / '.zarray').read_text()
  )


def test_chunks_divide_the_shape_and_stay_small():
  assert zarr.chunks((), 4) == []
  assert zarr.chunks((0, 3), 4) == [1, 3]
  assert zarr.chunks((512, 384), 4) == [512, 384]
  for shape in ((32128, 4096), (4096, 10240), (24, 2048, 5120), (3 << 26,)):
    sizes = zarr.chunks(shape, 4)
    assert all(n % c == 0 for n, c in zip(shape, sizes))
    assert 16 << 20 <= np.prod(sizes) * 4 <= 64 << 20
  assert zarr.chunks((32128, 4096), 4) == [4016, 4096]


def test_a_prime_number_of_words_does_not_make_a_chunk_a_word():
  assert zarr.chunks((32003, 4096), 4) == [4096, 4096]
  assert zarr.chunks((99_999_989,), 4) == [1 << 24]


def test_chunks_that_do_not_divide_the_shape_are_read_back(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(zarr, '_CHUNK_BYTES', 200)
  array = np.arange(37 * 13, dtype=np.float32).reshape(37, 13)
  t5x.write(tmp_path / 'x', {'target/x': tensors_lib.of_array(array)})
  assert (tmp_path / 'x' / 'target.x' / '12.0').is_file()
  got = t5x.read(tmp_path / 'x')['target/x'].read()
  np.testing.assert_array_equal(got, array, strict=True)


def test_reads_variants_of_the_tree(tmp_path):
  array = np.arange(6, dtype=np.float32)

  def packed(values):
    return msgpack.packb((values.shape, values.dtype.name, values.tobytes()))

  def ext(code, values):
    return msgpack.ExtType(code, packed(values))

  zarr.write(
    {
      'driver': 'zarr',
      'kvstore': {'driver': 'file', 'path': f'{tmp_path}/target.old/'},
    },
    tensors_lib.of_array(array),
    {'id': 'gzip', 'level': 1},
  )
  tree = {
    'target': {
      'whole': ext(1, array),
      # What Flax does with arrays over 2^30 bytes.
      'pieces': {
        '__msgpack_chunked_array__': True,
        'shape': {'0': 2, '1': 3},
        'chunks': {'0': ext(1, array[:4]), '1': ext(1, array[4:])},
      },
      # A spec of an old TensorStore, copied from a bucket.
      'old': {
        'driver': 'zarr',
        'dtype': 'float32',
        'kvstore': {'driver': 'gfile'},
        'path': 'target.old',
        'metadata': {'chunks': [5], 'shape': [6]},
      },
      'none': None,
    },
    'state': {'step': ext(3, np.array(5, np.int32))},
  }
  (tmp_path / 'checkpoint').write_bytes(
    msgpack.packb({'version': 2, 'optimizer': tree})
  )
  got = t5x.read(tmp_path)
  assert list(got) == [
    'target/whole',
    'target/pieces',
    'target/old',
    'state/step',
  ]
  np.testing.assert_array_equal(
    got['target/pieces'].read(), array.reshape(2, 3)
  )
  np.testing.assert_array_equal(got['target/old'].read(), array)
  assert got['state/step'].read() == 5


def test_damage_is_named(t5x_tiny):
  path = t5x_tiny / 'legacy' / 'checkpoint_600'
  chunk = path / KERNEL.replace('/', '.') / '0.0'
  whole = chunk.read_bytes()
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 1
  for data in (whole[:-20], bytes(flipped), b''):
    chunk.write_bytes(data)
    with pytest.raises(TensorFileError, match=f'{KERNEL} whole'):
      t5x.read(path)[KERNEL].read()
  # Without it, a lost chunk would be zeros.
  chunk.unlink()
  with pytest.raises(TensorFileError, match=f'{KERNEL} whole.*missing'):
    t5x.read(path)[KERNEL].read()
  (chunk.parent / '.zarray').unlink()
  with pytest.raises(TensorFileError, match=f'the array {KERNEL}'):
    t5x.read(path)


def test_a_damaged_tree_is_named(t5x_tiny):
  path = t5x_tiny / 'legacy' / 'checkpoint_600'
  tree = path / 'checkpoint'
  whole = tree.read_bytes()
  for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
    tree.write_bytes(whole[:cut])
    with pytest.raises(TensorFileError, match=r'checkpoint: expected the msg'):
      t5x.read(path)
  rng = np.random.default_rng(0)
  for _ in range(60):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    tree.write_bytes(data)
    try:
      t5x.read(path)
    except TensorFileError as e:
      assert str(path) in str(e)
  for content, match in (
    ({'target': {}}, 'version None'),
    ({'version': 1, 'optimizer': {}}, 'version 1'),
    ([1], 'version None'),
  ):
    tree.write_bytes(msgpack.packb(content))
    with pytest.raises(TensorFileError, match=match):
      t5x.read(path)
  spec = {'driver': 'zarr', 'kvstore': {'path': '../../elsewhere/'}}
  tree.write_bytes(msgpack.packb({'version': 3, 'optimizer': {'x': spec}}))
  with pytest.raises(TensorFileError, match='a folder beside it for x'):
    t5x.read(path)
