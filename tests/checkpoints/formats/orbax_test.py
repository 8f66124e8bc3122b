# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import struct

from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import orbax
from pixel_llm.checkpoints.tensors import TensorFileError

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
ARRAYS = {
  'head/kernel': np.arange(12, dtype=np.float32).reshape(3, 4),
  'head/bias': np.zeros(4, np.float32),
  'half/kernel': np.array([[1.5, -2]], ml_dtypes.bfloat16),
  'scale': np.float32(3),
}


@struct.dataclass
class State:
  step: object
  params: object


def nested():
  return {
    'head': {
      'kernel': jnp.asarray(ARRAYS['head/kernel']),
      'bias': jnp.asarray(ARRAYS['head/bias']),
    },
    'half': {'kernel': jnp.asarray(ARRAYS['half/kernel'])},
    'scale': jnp.asarray(ARRAYS['scale']),
  }


def test_reads_what_t5x_wrote(t5x_tiny):
  got = orbax.read(t5x_tiny / 'orbax' / 'checkpoint_600')
  target = tensors_lib.part(got, 'target/')
  with np.load(GOLDEN / 't5x_tiny_params.npz') as expected:
    assert target.keys() == set(expected.files)
    for name, tensor in target.items():
      np.testing.assert_array_equal(tensor.read(), expected[name], strict=True)
  assert got['state/step'].read() == 600


def test_reads_what_our_manager_wrote(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(3, State(step=jnp.int32(3), params=nested()))
    manager.save(12, State(step=jnp.int32(12), params=nested()))
  assert orbax.newest(tmp_path) == tmp_path / '12'
  got = orbax.read(tmp_path / '12')
  params = tensors_lib.part(got, 'params/')
  assert params.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(params[name].read(), array, strict=True)
  assert got['train/step'].read() == 12
  assert orbax.read(tmp_path / '12' / 'params').keys() == ARRAYS.keys()


@pytest.mark.parametrize('ocdbt', [True, False])
@pytest.mark.parametrize('zarr3', [True, False])
def test_reads_every_layout_of_orbax(tmp_path, ocdbt, zarr3):
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / 'x', nested())
  got = orbax.read(tmp_path / 'x')
  assert got.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(got[name].read(), array, strict=True)


def test_orbax_restores_what_is_written_here(tmp_path):
  orbax.write(
    tmp_path / '0',
    {n: tensors_lib.of_array(np.asarray(a)) for n, a in ARRAYS.items()},
    {'source': 'x'},
  )
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    nested(),
  )
  with manager_lib.CheckpointManager(tmp_path, read_only=True) as manager:
    assert manager.steps() == [0]
    assert manager.metadata() == {'source': 'x'}
    got = manager.restore_params(wanted)
    with pytest.raises(manager_lib.CheckpointError, match="no item 'train'"):
      manager.restore(State(step=jnp.int32(0), params=wanted))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
    got,
    nested(),
  )
  tree = ocp.StandardCheckpointer().restore(tmp_path / '0' / 'params')
  np.testing.assert_array_equal(
    tree['head']['kernel'], ARRAYS['head/kernel'], strict=True
  )
  ours = orbax.read(tmp_path / '0')
  assert ours.keys() == {f'params/{n}' for n in ARRAYS}


def test_the_newest_is_of_the_finished(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(3, State(step=jnp.int32(3), params=nested()))
  shutil.copytree(tmp_path / '3', tmp_path / '7.orbax-checkpoint-tmp-1')
  (tmp_path / '9').mkdir()
  assert orbax.newest(tmp_path) == tmp_path / '3'
  assert orbax.newest(tmp_path / '9') is None


def test_damage_is_named(t5x_tiny, tmp_path):
  path = t5x_tiny / 'orbax' / 'checkpoint_600' / 'state'
  before = {n: t.read() for n, t in orbax.read(path).items()}
  named = []
  # Not every file of a database still matters; those that do are missed.
  for file in [*path.glob('d/*'), *path.glob('ocdbt.process_0/d/*')]:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    try:
      after = {n: t.read() for n, t in orbax.read(path).items()}
    except TensorFileError as e:
      assert str(path) in str(e)
      named.append(file)
    else:
      for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, strict=True)
    file.write_bytes(whole)
  assert len(named) == 2
  (path / 'manifest.ocdbt').write_bytes(b'noise')
  with pytest.raises(TensorFileError, match='state: expected the array'):
    orbax.read(path)
  for text in ('', '{}', '[]', '{"tree_metadata": {"x": 1}}'):
    (path / '_METADATA').write_text(text)
    with pytest.raises(TensorFileError, match='_METADATA: expected the JSON'):
      orbax.read(path)
  (path / '_METADATA').unlink()
  with pytest.raises(TensorFileError, match='a folder with _METADATA'):
    orbax.read(path)


def test_names_that_leave_the_folder_are_refused(tmp_path):
  leaf = {
    'key_metadata': [{'key': '../x', 'key_type': 2}],
    'value_metadata': {'value_type': 'jax.Array'},
  }
  (tmp_path / '_METADATA').write_text(
    json.dumps({'tree_metadata': {'x': leaf}, 'use_ocdbt': False})
  )
  with pytest.raises(TensorFileError, match='names without slashes'):
    orbax.read(tmp_path)
