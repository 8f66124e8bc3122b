# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import disks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from pixel_llm import sharding
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints import trees
from pixel_llm.checkpoints.formats import orbax

ROOT = pathlib.Path(__file__).parents[2]


@struct.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any


def kill_itself(source, *arguments):
  """Runs a program that must end by its own SIGKILL."""
  process = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(source), *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert process.returncode == -signal.SIGKILL, process.stderr


def make_state(seed=0, width=16):
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))

  params = {
    'encoder': {'kernel': array(8, width), 'bias': array(width)},
    'head': {'kernel': array(width, 4).astype(jnp.bfloat16)},
  }
  # A hole, as a frozen parameter leaves, in the state of the optimizer.
  trainable = {'encoder': params['encoder'], 'head': {'kernel': None}}
  adam = optax.ScaleByAdamState(
    count=jnp.int32(seed),
    mu=jax.tree.map(lambda x: x * 0.1, trainable),
    nu=jax.tree.map(jnp.square, trainable),
  )
  return State(
    step=jnp.int32(seed),
    params=params,
    opt_state=(optax.EmptyState(), adam),
  )


def on_mesh(tree, config, devices=None):
  """The tree with its last axis over `model` where it divides."""
  mesh = sharding.make_mesh(config, devices)

  def put(x):
    divides = x.ndim and x.shape[-1] % mesh.shape['model'] == 0
    axes = (None,) * (x.ndim - 1) + ('model',) if divides else ()
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

  return jax.tree.map(put, tree)


def abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    tree,
  )


def assert_same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_is_exact_on_any_mesh(tmp_path):
  state = on_mesh(make_state(7), sharding.MeshConfig(data=2, model=4))
  with manager_lib.CheckpointManager(tmp_path / 'a' / 'b') as manager:
    assert manager.latest_step() is None
    manager.save(7, state, {'seed': 3, 'vocabulary': 'abc'})
    assert manager.latest_step() == 7
    assert manager.metadata() == {'seed': 3, 'vocabulary': 'abc'}
  one = on_mesh(make_state(0), sharding.MeshConfig(), jax.devices()[:1])
  two = on_mesh(
    make_state(0), sharding.MeshConfig(data=1, model=2), jax.devices()[2:4]
  )
  with manager_lib.CheckpointManager(tmp_path / 'a' / 'b') as manager:
    for layout in (state, one, two):
      got = manager.restore(abstract(layout))
      assert_same(got, state)
      jax.tree.map(
        lambda a, b: a.sharding == b.sharding or pytest.fail(), got, layout
      )


def test_a_relative_directory_is_one_too(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  state = make_state(3)
  with manager_lib.CheckpointManager('runs/demo/checkpoints') as manager:
    manager.save(3, state)
  # Where the process is when it reads makes no difference to an open manager.
  with manager_lib.CheckpointManager(
    'runs/demo/checkpoints', read_only=True
  ) as manager:
    monkeypatch.chdir('/')
    assert_same(manager.restore(abstract(state)), state)


def test_special_values_keep_their_bits(tmp_path):
  values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
  state = dataclasses.replace(make_state(), params={'w': jnp.asarray(values)})
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(0, state)
    got = manager.restore(abstract(state))
  assert np.asarray(got.params['w']).tobytes() == values.tobytes()


def test_keeps_the_last_and_every(tmp_path):
  config = manager_lib.CheckpointConfig(keep_last=2, keep_every=4)
  with manager_lib.CheckpointManager(tmp_path, config) as manager:
    for step in range(1, 8):
      manager.save(step, make_state(step))
    assert manager.steps() == [4, 6, 7]
    with pytest.raises(manager_lib.CheckpointError, match='already saved'):
      manager.save(7, make_state())
    wanted = abstract(make_state())
    assert int(manager.restore(wanted).step) == 7
    assert int(manager.restore(wanted, 4).step) == 4
    with pytest.raises(
      manager_lib.CheckpointError, match='step 5; there are 4, 6, 7'
    ):
      manager.restore(wanted, 5)
  assert sorted(os.listdir(tmp_path)) == ['4', '6', '7']


def test_keeps_the_best(tmp_path):
  config = manager_lib.CheckpointConfig(
    keep_last=1, keep_best=2, best_metric='a/x'
  )
  values = {1: 0.5, 2: 0.1, 3: None, 4: float('nan'), 5: 0.4, 6: 0.4, 7: 0.9}
  kept = {1: [1], 3: [1, 2, 3], 4: [1, 2, 4], 5: [2, 5], 6: [2, 6]}
  manager = manager_lib.CheckpointManager(tmp_path, config)
  for step, value in values.items():
    metrics = {} if value is None else {'metrics': {'a/x': value, 'a/y': 1}}
    if step == 6:  # what was best is known from the disk too
      manager.close()
      manager = manager_lib.CheckpointManager(tmp_path, config)
    manager.save(step, make_state(step), metrics)
    assert manager.steps() == kept.get(step, manager.steps())
  assert manager.steps() == [2, 6, 7]
  assert manager.metadata(6) == {'metrics': {'a/x': 0.4, 'a/y': 1}}
  manager.close()
  config = dataclasses.replace(config, keep_best=1, best_mode='max')
  with manager_lib.CheckpointManager(tmp_path, config) as manager:
    manager.save(8, make_state(8))
    assert manager.steps() == [7, 8]


# True where it is trained.
TRAINABLE = {
  'encoder': {'kernel': False, 'bias': False},
  'head': {'kernel': True},
}


def with_head(state, value):
  """Another state of the same frozen parameters."""
  head = jax.tree.map(lambda x: x * 0 + value, state.params['head'])
  return dataclasses.replace(
    state, step=jnp.int32(value), params={**state.params, 'head': head}
  )


def size(path):
  return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())


def test_frozen_parameters_are_written_once(tmp_path):
  state = on_mesh(
    make_state(7, width=20_000), sharding.MeshConfig(data=2, model=4)
  )
  # The optimizer's moments of what is frozen are no part of this.
  state = dataclasses.replace(state, opt_state=())
  states = {step: with_head(state, step) for step in (1, 2)}
  with manager_lib.CheckpointManager(tmp_path) as manager:
    for step, saved in states.items():
      manager.save(step, saved, {'a': 1}, TRAINABLE)
    manager.wait()
    (base,) = tmp_path.glob('base-*')
    assert manager.metadata() == {'a': 1, 'base': base.name[5:]}
    assert size(base) > 4 * size(tmp_path / '2')
    written = base.stat().st_mtime_ns
  one = on_mesh(make_state(0, 20_000), sharding.MeshConfig(), jax.devices()[:1])
  one = dataclasses.replace(one, opt_state=())
  config = manager_lib.CheckpointConfig(frozen='embedded')
  with manager_lib.CheckpointManager(tmp_path, config) as manager:
    for step, saved in states.items():
      for layout in (state, one):
        got = manager.restore(abstract(layout), step)
        assert_same(got, saved)
        assert_same(
          got.params, manager.restore_params(abstract(layout.params))
        ) if step == 2 else None
    # Read by itself it is whole again.
    manager.save(3, got, None, TRAINABLE)
    assert manager.metadata() == {}
  with manager_lib.CheckpointManager(tmp_path) as manager:
    assert_same(manager.restore(abstract(one)), got)
    # Of one device instead of 8, it is the same base.
    manager.save(4, with_head(got, 4), None, TRAINABLE)
    manager.wait()
    assert manager.metadata()['base'] == base.name[5:]
    assert base.stat().st_mtime_ns == written
    half = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), got.params
    )
    np.testing.assert_array_equal(
      manager.restore_params(half)['encoder']['kernel'],
      got.params['encoder']['kernel'].astype(jnp.bfloat16),
    )
    # Frozen otherwise, another.
    params = {
      **got.params,
      'encoder': jax.tree.map(lambda x: x + 1, got.params['encoder']),
    }
    other = dataclasses.replace(got, params=params)
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(5, other, None, TRAINABLE)
    assert_same(manager.restore(abstract(one)), other)
    assert_same(manager.restore(abstract(one), 4), with_head(got, 4))
  for step, whole in ((5, other), (3, got)):
    for folder in (tmp_path / str(step), tmp_path / str(step) / 'params'):
      tensors = orbax.read(folder)
      found = tensors_lib.part(tensors, 'params/') or tensors
      for name, x in trees.flat(whole.params).items():
        np.testing.assert_array_equal(found[name].read(), np.asarray(x))


def test_another_or_no_base_is_refused(tmp_path):
  states = [make_state(seed) for seed in (1, 2)]
  for i, state in enumerate(states):
    with manager_lib.CheckpointManager(tmp_path / str(i)) as manager:
      manager.save(1, state, None, TRAINABLE)
  bases = [next((tmp_path / str(i)).glob('base-*')) for i in range(2)]
  shutil.rmtree(bases[0])
  said = f'step 1 needs {bases[0].name} beside it'
  with manager_lib.CheckpointManager(tmp_path / '0') as manager:
    for call in (
      lambda: manager.restore(abstract(states[0])),
      lambda: manager.restore_params(abstract(states[0].params)),
    ):
      with pytest.raises(
        manager_lib.CheckpointError, match=f'{said}.*no such folder'
      ) as error:
        call()
      # All others need the same, so there is nothing to fall back to.
      assert not isinstance(error.value, manager_lib.DamagedCheckpointError)
    with pytest.raises(tensors_lib.TensorFileError, match=bases[0].name):
      orbax.read(tmp_path / '0' / '1')
    shutil.copytree(bases[1], bases[0])
    with pytest.raises(
      manager_lib.CheckpointError,
      match=f'{said}.*have the digest {bases[1].name[5:]}',
    ):
      manager.restore(abstract(states[0]))


@pytest.mark.parametrize('asynchronous', [True, False])
def test_save_does_not_see_a_donated_update(tmp_path, asynchronous):
  state = on_mesh(
    make_state(1, width=4096), sharding.MeshConfig(data=1, model=8)
  )
  expected = jax.tree.map(lambda x: np.array(x, copy=True), state)

  def step(state):
    return jax.tree.map(lambda x: -x * 3, state)

  step = jax.jit(step, donate_argnums=0)
  with manager_lib.CheckpointManager(
    tmp_path, manager_lib.CheckpointConfig(asynchronous=asynchronous)
  ) as manager:
    wanted = abstract(state)
    manager.save(1, state)
    # On CPU JAX may decline to donate what Orbax still reads; not afterwards.
    first = step(state)
    state = step(first)
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    for _ in range(4):
      state = step(state)
    jax.block_until_ready(state)
    assert_same(manager.restore(wanted), expected)


def test_params_only_reads_only_params(tmp_path):
  state = on_mesh(make_state(3), sharding.MeshConfig(data=1, model=8))
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(3, state, {'a': 1})
  shutil.rmtree(tmp_path / '3' / 'train')
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params
  )
  with manager_lib.CheckpointManager(tmp_path, read_only=True) as manager:
    got = manager.restore_params(shapes)
    assert manager.metadata() == {'a': 1}
    with pytest.raises(manager_lib.CheckpointError, match="no item 'train'"):
      manager.restore(abstract(state))
    half = manager.restore_params(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes
      )
    )
  assert_same(got, state.params)
  assert len(got['encoder']['kernel'].devices()) == 1
  assert_same(
    half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  )


def test_read_only_changes_nothing(tmp_path):
  with pytest.raises(manager_lib.CheckpointError, match='no such directory'):
    manager_lib.CheckpointManager(tmp_path / 'none', read_only=True)
  assert not (tmp_path / 'none').exists()
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(1, make_state())
  # As a save that another process has under way.
  under_way = tmp_path / '2.orbax-checkpoint-tmp'
  under_way.mkdir()
  with manager_lib.CheckpointManager(tmp_path, read_only=True) as manager:
    assert manager.latest_step() == 1
    manager.restore(abstract(make_state()))
  assert under_way.exists()


def test_nothing_there(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    for call in (
      manager.metadata,
      lambda: manager.restore(abstract(make_state())),
      lambda: manager.restore_params(abstract(make_state().params)),
    ):
      with pytest.raises(
        manager_lib.CheckpointError, match=f'{tmp_path}: no checkpoint'
      ):
        call()


def test_tree_that_does_not_fit_lists_both_sides(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(5, make_state())
    other = make_state(width=8)
    params = dict(other.params, new={'scale': jnp.ones(2)})
    del params['head']
    with pytest.raises(manager_lib.CheckpointError) as error:
      manager.restore(abstract(dataclasses.replace(other, params=params)))
    message = str(error.value)
    assert f'{tmp_path}: params of step 5' in message
    assert 'Missing in the checkpoint: new/scale.' in message
    assert 'Unknown to the model: head/kernel.' in message
    assert (
      'encoder/kernel: expected (8, 8) float32, got (8, 16) float32' in message
    )
    with pytest.raises(
      manager_lib.CheckpointError, match=r'train of step 5.*opt_state/1/mu/'
    ):
      manager.restore(abstract(dataclasses.replace(make_state(), opt_state=())))
    # The manager is as good as before.
    assert_same(manager.restore(abstract(make_state())), make_state())


def test_dtype_is_part_of_an_exact_restore(tmp_path):
  state = make_state()
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(5, state)
    state = dataclasses.replace(
      state, params=jax.tree.map(lambda x: x.astype(jnp.float32), state.params)
    )
    with pytest.raises(
      manager_lib.CheckpointError,
      match=r'head/kernel: expected \(16, 4\) float32, got .* bfloat16',
    ):
      manager.restore(abstract(state))


def test_damaged_checkpoint_is_named(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    manager.save(1, make_state())
    manager.save(2, make_state())
    manager.wait()
    for file in (tmp_path / '2' / 'params').rglob('d/*'):
      file.write_bytes(b'garbage')
    with pytest.raises(
      manager_lib.CheckpointError, match=f'{tmp_path}: step 2 can not be read'
    ):
      manager.restore(abstract(make_state()))
    assert_same(manager.restore(abstract(make_state()), 1), make_state())


def test_digests_find_what_orbax_does_not(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    for step in (1, 2):
      manager.save(step, make_state())
    manager.wait()
    manager.check(1)
    manager.check(2)
    # A flipped bit anywhere, of a file that is never read alike.
    files = sorted(p for p in (tmp_path / '2').glob('*/**/*') if p.is_file())
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(
      manager_lib.DamagedCheckpointError,
      match=r'step 2 is damaged: .* is not what was written',
    ):
      manager.check(2)
    where = manager.set_aside(2)
    assert manager.steps() == [1]
    assert len(list(where.iterdir())) == 1
    manager.save(2, make_state())
    assert manager.steps() == [1, 2]
    (tmp_path / '2' / 'metadata' / 'metadata').unlink()
    with pytest.raises(
      manager_lib.DamagedCheckpointError, match='metadata is missing'
    ):
      manager.check(2)


@pytest.mark.parametrize('below', ['', 'deeper'])
def test_file_in_place_of_the_directory(tmp_path, below):
  path = tmp_path / 'file'
  path.write_text('')
  for read_only in (True, False):
    with pytest.raises(
      manager_lib.CheckpointError, match=f'{path}.*can not be opened'
    ):
      manager_lib.CheckpointManager(path / below, read_only=read_only)


# TensorStore ends its cancelled writes after Orbax's event loop is gone.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('asynchronous', [True, False])
def test_full_and_read_only_disk(tmp_path, asynchronous):
  config = manager_lib.CheckpointConfig(keep_last=1, asynchronous=asynchronous)
  wanted = abstract(make_state())
  started = time.monotonic()
  with disks.small(tmp_path / 'disk') as disk:
    manager = manager_lib.CheckpointManager(disk, config)
    manager.save(1, make_state(1))
    with pytest.raises(
      manager_lib.CheckpointError, match=f'{disk}.*No space left'
    ):
      manager.save(2, make_state(2, width=40_000))
      manager.latest_step()
    # The earlier one was to be replaced by that, and is still there.
    assert manager.steps() == [1]
    assert_same(manager.restore(wanted), make_state(1))
    manager.save(3, make_state(3))
    manager.wait()
    assert os.listdir(disk) == ['3']

    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    with pytest.raises(
      manager_lib.CheckpointError, match=f'{disk}.*Read-only file system'
    ):
      manager.save(4, make_state(4))
      manager.wait()
    with manager_lib.CheckpointManager(disk, read_only=True) as reader:
      assert_same(reader.restore(wanted), make_state(3))
    subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)
    manager.save(5, make_state(5))
    assert manager.steps() == [5]
    manager.close()
    manager.close()
  assert time.monotonic() - started < 60


def test_killed_in_a_save(tmp_path):
  """kill -9 when the folder of step 2 is there and not yet complete."""
  source = """
      import os, signal, sys
      import jax.numpy as jnp
      from flax import struct
      from pixel_llm.checkpoints import manager

      assert 'tensorflow' not in sys.modules

      @struct.dataclass
      class State:
        step: int
        params: dict

      m = manager.CheckpointManager(sys.argv[1])
      m.save(1, State(jnp.int32(1), {'w': jnp.arange(8.0)}))
      m.wait()
      commit = os.rename
      def rename(a, b, *args, **kwargs):
        # The last thing that a save does is to name its folder by its step.
        if os.path.basename(os.fspath(b)) == '2':
          os.kill(os.getpid(), signal.SIGKILL)
        commit(a, b, *args, **kwargs)
      os.rename = rename
      m.save(2, State(jnp.int32(1), {'w': jnp.ones(8)}))
      m.wait()
  """
  kill_itself(source, tmp_path)
  left = [p for p in os.listdir(tmp_path) if p != '1']
  assert len(left) == 1 and left[0].startswith('2.'), left

  wanted = {'w': jax.ShapeDtypeStruct((8,), jnp.float32)}
  with manager_lib.CheckpointManager(tmp_path) as manager:
    assert manager.steps() == [1]
    np.testing.assert_array_equal(
      manager.restore_params(wanted)['w'], np.arange(8.0)
    )
    manager.save(2, make_state(2))
    assert manager.steps() == [1, 2]
  assert sorted(os.listdir(tmp_path)) == ['1', '2']


@pytest.mark.parametrize('at', ['base', '1'])
def test_killed_around_the_base(tmp_path, at):
  """kill -9 before the base is complete, and between it and the step."""
  source = """
      import os, signal, sys
      import jax.numpy as jnp
      from flax import struct
      from pixel_llm.checkpoints import manager

      @struct.dataclass
      class State:
        step: int
        params: dict

      commit = os.rename
      def rename(a, b, *args, **kwargs):
        if os.path.basename(os.fspath(b)).split('-')[0] == sys.argv[2]:
          os.kill(os.getpid(), signal.SIGKILL)
        commit(a, b, *args, **kwargs)
      os.rename = rename
      m = manager.CheckpointManager(sys.argv[1])
      params = {'v': jnp.ones(4), 'w': jnp.arange(8.0)}
      m.save(1, State(jnp.int32(1), params), None, {'v': True, 'w': False})
      m.wait()
  """
  kill_itself(source, tmp_path, at)
  complete = [p for p in tmp_path.iterdir() if 'tmp' not in p.name]
  assert len(complete) == (0 if at == 'base' else 1)
  params = {'v': jnp.zeros(4), 'w': jnp.arange(8.0)}
  state = State(jnp.int32(1), params, ())
  with manager_lib.CheckpointManager(tmp_path) as manager:
    assert manager.steps() == []
    manager.save(1, state, None, {'v': True, 'w': False})
    assert_same(manager.restore(abstract(state)), state)
  left = sorted(p.name for p in tmp_path.iterdir())
  assert left[0] == '1' and left[1].startswith('base-') and len(left) == 2


def test_killed_at_random_in_saves(tmp_path):
  """kill -9 of processes that do nothing but save."""
  source = """
      import os, random, signal, sys, time, warnings
      import jax
      import jax.numpy as jnp
      from flax import struct
      from pixel_llm.checkpoints import manager

      @struct.dataclass
      class State:
        step: int
        params: dict

      def state(step):
        own = {f'w{i}': jnp.full((400, 100), step) for i in range(20)}
        params = {**own, 'v': jnp.arange(90_000.0)}
        return State(jnp.int32(step), params)

      def run():
        config = manager.CheckpointConfig(keep_last=2)
        m = manager.CheckpointManager(sys.argv[1], config)
        step = m.latest_step() or 0
        if step:
          m.check(step)
          saved = state(step)
          like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
              x.shape, x.dtype, sharding=x.sharding
            ),
            saved,
          )
          for a, b in zip(*map(jax.tree.leaves, (m.restore(like), saved))):
            assert (a == b).all()
        os.write(1, f'{step} '.encode())
        mask = {**{f'w{i}': True for i in range(20)}, 'v': False}
        while True:
          step += 1
          m.save(step, state(step), None, mask)

      draw = random.Random(0)
      warnings.simplefilter('ignore')  # JAX's, of forks; nothing runs yet
      for _ in range(8):
        read, write = os.pipe()
        child = os.fork()
        if not child:
          os.dup2(write, 1)
          try:
            run()
          finally:
            os._exit(1)
        os.close(write)
        step = os.read(read, 100)
        assert step, os.waitpid(child, 0)
        os.write(1, step)
        time.sleep(draw.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
  """
  process = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(source), str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=200,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  steps = [int(word) for word in process.stdout.split()]
  assert len(steps) == 8 and steps == sorted(steps) and steps[-1] > 2
  with manager_lib.CheckpointManager(tmp_path) as manager:
    assert manager.latest_step() >= steps[-1]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('asynchronous', [True, False])
def test_hung_save(tmp_path, asynchronous):
  config = manager_lib.CheckpointConfig(
    asynchronous=asynchronous, save_timeout_seconds=2
  )
  said = r'step 2 was not saved: not done after 2 seconds|the last save failed'
  with disks.hanging(tmp_path / 'disk') as disk:
    manager = manager_lib.CheckpointManager(disk / 'a', config)
    manager.save(1, make_state(1))
    manager.wait()
    disks.freeze(disk)
    with pytest.raises(manager_lib.HungSaveError, match=said):
      manager.save(2, make_state(2))
      manager.wait()
    with pytest.raises(manager_lib.HungSaveError, match='step 3 was not saved'):
      manager.save(3, make_state(3))
      manager.wait()
    disks.thaw(disk)
    manager.save(4, make_state(4))
    assert manager.steps()[-1] == 4 and 1 in manager.steps()
    assert_same(manager.restore(abstract(make_state())), make_state(4))
    manager.close()


def test_a_save_that_was_done_in_time_has_not_hung(tmp_path):
  config = manager_lib.CheckpointConfig(save_timeout_seconds=5)
  with manager_lib.CheckpointManager(tmp_path, config) as manager:
    manager.save(1, make_state(1))
    manager._deadline -= 10  # as if the next came that much later
    manager.save(2, make_state(2))
    assert manager.steps() == [1, 2]


def test_the_error_under_way_is_not_hidden_by_closing(tmp_path, monkeypatch):
  manager = manager_lib.CheckpointManager(tmp_path)
  manager.save(1, make_state())
  wait = manager._opened().wait_until_finished

  def fail():
    wait()  # else it goes on beside the next test
    raise OSError('disk')

  with pytest.raises(KeyError), manager:
    monkeypatch.setattr(manager._opened(), 'wait_until_finished', fail)
    raise KeyError('the cause')


def test_orbax_is_silent(tmp_path):
  records = []

  class Keep(logging.Handler):
    def emit(self, record):
      records.append(record.getMessage())

  logger, handler = logging.getLogger('absl'), Keep()
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  try:
    with manager_lib.CheckpointManager(tmp_path) as manager:
      manager.save(1, make_state())
    logger.info('others are heard')
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
  assert records == ['others are heard']


def test_metadata_that_is_no_json_fails_at_once(tmp_path):
  with manager_lib.CheckpointManager(tmp_path) as manager:
    with pytest.raises(TypeError):
      manager.save(1, make_state(), {'a': np.float32(1)})
    assert manager.latest_step() is None


@pytest.mark.parametrize(
  'options',
  [
    {'keep_last': 0},
    {'keep_every': 0},
    {'keep_best': -1},
    {'best_metric': None, 'keep_best': 1},
    {'best_mode': 'most'},
    {'frozen': 'never'},
    {'save_timeout_seconds': 0},
    {'max_failed_saves': 0},
  ],
)
def test_bad_config(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    manager_lib.CheckpointConfig(**options)
