# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pixel_llm import config as config_lib
from pixel_llm import sharding, weights
from pixel_llm.checkpoints import initialization, mapping
from pixel_llm.checkpoints.formats import orbax, safetensors
from pixel_llm.checkpoints.initialization import InitConfig, SourceConfig
from pixel_llm.checkpoints.tensors import TensorFileError, of_array
from pixel_llm.model import t5

SHAPES = {
  'eva/kernel': (4, 8),
  't5/layers/kernel': (2, 8, 16),
  't5/layers/lora_a': (2, 8, 2),
  't5/scale': (15,),
}


def arrays(seed=0, *names):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in SHAPES.items()
    if not names or name in names
  }


def abstract(mesh_config=None, dtype=jnp.float32):
  mesh = sharding.make_mesh(mesh_config or sharding.MeshConfig())

  def one(shape):
    divides = shape[-1] % mesh.shape['model'] == 0
    axes = (None,) * (len(shape) - 1) + (('model',) if divides else ())
    place = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  flat = {name: one(shape) for name, shape in SHAPES.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def write(path, values):
  safetensors.write(path, {n: of_array(x) for n, x in values.items()})
  return str(path)


def opened(*sources, allow_missing=(), tree=None):
  config = InitConfig(
    {f's{i}': source for i, source in enumerate(sources)}, allow_missing
  )
  return initialization.open_sources(config, tree or abstract())


def message(*sources, **options):
  with pytest.raises(mapping.MappingError) as e:
    opened(*sources, **options)
  return str(e.value)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize('model', [1, 2, 8])
def test_each_parameter_lies_as_its_sharding_says(tmp_path, model):
  values = arrays()
  path = write(tmp_path / 'x.safetensors', values)
  tree = abstract(sharding.MeshConfig(model=model))
  tensors = opened(SourceConfig(path), tree=tree)['s0']
  placed = flat(initialization.place(tensors, tree))
  assert placed.keys() == values.keys()
  for name, leaf in flat(tree).items():
    got = placed[name]
    assert got.sharding == leaf.sharding
    for shard in got.addressable_shards:
      assert shard.data.shape == leaf.sharding.shard_shape(leaf.shape)
      np.testing.assert_array_equal(
        np.asarray(shard.data), values[name][shard.index], strict=True
      )


def test_what_is_placed_may_be_donated(tmp_path):
  values = arrays()
  path = write(tmp_path / 'x.safetensors', values)
  tree = abstract(sharding.MeshConfig(model=2))
  tensors = opened(SourceConfig(path), tree=tree)['s0']
  placed = initialization.place(tensors, tree)
  step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  # Replicas that shared the array on the host would be changed several times.
  for _ in range(3):
    placed = step(placed)
  for name, got in flat(placed).items():
    for shard in got.addressable_shards:
      expected = values[name][shard.index] + 1 + 1 + 1
      np.testing.assert_array_equal(np.asarray(shard.data), expected)


def test_sources_together_and_what_is_drawn(tmp_path):
  one = write(tmp_path / 'one.safetensors', arrays(1))
  two = write(tmp_path / 'two.safetensors', arrays(2))
  taken = opened(
    SourceConfig(one, take=('^t5/',), leave_out=('lora', 'scale')),
    SourceConfig(two, take=('kernel', 'scale'), leave_out=('^t5/layers',)),
    allow_missing=('/lora_[ab]$',),
  )
  assert list(taken['s0']) == ['t5/layers/kernel']
  assert list(taken['s1']) == ['eva/kernel', 't5/scale']
  tensors = {**taken['s0'], **taken['s1']}
  placed = flat(initialization.place(tensors, abstract()))
  assert placed['t5/layers/lora_a'] is None
  np.testing.assert_array_equal(
    placed['t5/layers/kernel'], arrays(1)['t5/layers/kernel']
  )
  np.testing.assert_array_equal(placed['eva/kernel'], arrays(2)['eva/kernel'])


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
  first = arrays(1)
  first['t5/scale'] = first['t5/scale'][:14]
  first['t5/extra'] = np.zeros((3, 2), np.float32)
  first['eva/kernel'] = first['eva/kernel'].astype(ml_dtypes.bfloat16)
  del first['t5/layers/kernel'], first['t5/layers/lora_a']
  one = write(tmp_path / 'one.safetensors', first)
  two = write(tmp_path / 'two.safetensors', arrays(2, 'eva/kernel'))
  said = message(
    SourceConfig(one, leave_out=('typo',)),
    SourceConfig(two, take=('eva', 'nothing')),
    allow_missing=('lora_b', 'lora_a'),
  )
  assert said == (
    f'init.sources.s0: {one}: 1 names that the target does not have:\n'
    '  t5/extra [3, 2]\n'
    '1 shapes:\n'
    '  t5/scale: expected [15], got [14]\n'
    '1 dtypes:\n'
    '  eva/kernel: expected float32, got bfloat16\n'
    '1 regular expressions that are found in no name:\n'
    "  leave_out 'typo'\n"
    f'init.sources.s1: {two}: 1 regular expressions that are found in no '
    'name:\n'
    "  take 'nothing'\n"
    'init: 1 names of the target that nothing gives:\n'
    '  t5/layers/kernel [2, 8, 16]\n'
    '1 names of the target that several sources give:\n'
    '  eva/kernel: s0, s1\n'
    '1 regular expressions that are found in no name:\n'
    "  allow_missing 'lora_b'"
  )


def test_names_of_others_are_sent_to_import(tmp_path):
  path = write(tmp_path / 'x.safetensors', {'shared.weight': np.zeros(3)})
  assert 'pixel-llm import' in message(SourceConfig(path))
  path = write(tmp_path / 'y.safetensors', arrays())
  said = message(SourceConfig(path, leave_out=('.',)), allow_missing=('.',))
  assert 'expected parameters to take, got none' in said


@pytest.mark.parametrize('model_dtype', [jnp.float32, jnp.bfloat16])
def test_another_dtype_is_cast_when_asked_for(tmp_path, model_dtype):
  dtypes = {jnp.float32: ml_dtypes.bfloat16, jnp.bfloat16: np.float32}
  values = {n: x.astype(dtypes[model_dtype]) for n, x in arrays().items()}
  path = write(tmp_path / 'x.safetensors', values)
  tree = abstract(dtype=model_dtype)
  assert '4 dtypes:' in message(SourceConfig(path), tree=tree)
  tensors = opened(SourceConfig(path, cast=True), tree=tree)['s0']
  for name, got in flat(initialization.place(tensors, tree)).items():
    assert got.dtype == model_dtype
    np.testing.assert_array_equal(
      np.asarray(got), values[name].astype(model_dtype), strict=True
    )


def test_whole_numbers_are_not_cast(tmp_path):
  values = arrays()
  values['t5/scale'] = np.zeros(15, np.int32)
  path = write(tmp_path / 'x.safetensors', values)
  assert 't5/scale: expected float32, got int32' in message(
    SourceConfig(path, cast=True)
  )


def test_numbers_that_are_not_finite_are_named(tmp_path):
  values = arrays()
  values['t5/layers/kernel'][1, 2, 3] = np.nan
  values['t5/layers/kernel'][0, 0, 0] = -np.inf
  path = write(tmp_path / 'x.safetensors', values)
  tensors = opened(SourceConfig(path))['s0']
  expected = (
    f'{path}: t5/layers/kernel: expected finite numbers, got 2 NaN or '
    'infinite ones among 256'
  )
  with pytest.raises(ValueError, match=re.escape(expected)):
    initialization.place(tensors, abstract())
  # A float16 of 7e4 is infinite too: it is what is stored that counts.
  values = arrays()
  values['t5/scale'][4] = 7e4
  path = write(tmp_path / 'y.safetensors', values)
  tree = abstract(dtype=jnp.float16)
  tensors = opened(SourceConfig(path, cast=True), tree=tree)['s0']
  with (
    np.errstate(over='ignore'),
    pytest.raises(ValueError, match='t5/scale: expected finite numbers'),
  ):
    initialization.place(tensors, tree)


def test_a_step_of_a_run_or_the_newest(tmp_path):
  run = tmp_path / 'run'
  for step in (4, 20):
    folder = run / 'checkpoints' / str(step)
    tensors = {n: of_array(x) for n, x in arrays(step).items()}
    orbax.write(folder, tensors, {})
  (run / 'config.json').write_text(json.dumps({}))
  checkpoints = run / 'checkpoints'
  for source, step in (
    (SourceConfig(str(run)), 20),
    (SourceConfig(str(run), step=4), 4),
    (SourceConfig(str(checkpoints)), 20),
    (SourceConfig(str(checkpoints), step=4), 4),
    (SourceConfig(str(checkpoints / '4')), 4),
    (SourceConfig(str(checkpoints / '4' / 'params')), 4),
  ):
    taken = opened(source)['s0']
    assert taken.keys() == SHAPES.keys()
    for name, expected in arrays(step).items():
      np.testing.assert_array_equal(taken[name].read(), expected, strict=True)
  with pytest.raises(TensorFileError, match=r'step 5, got those of 4, 20'):
    opened(SourceConfig(str(run), step=5))
  path = write(tmp_path / 'x.safetensors', arrays())
  with pytest.raises(TensorFileError, match=r'of step 5, got none'):
    opened(SourceConfig(path, step=5))


@pytest.mark.parametrize('kind', ['legacy', 'orbax'])
def test_a_t5_of_t5x_is_a_source_as_it_is(t5x_tiny, kind):
  source = SourceConfig(str(t5x_tiny / kind / 'checkpoint_600'))
  shapes = weights.shapes(
    t5.T5Config(
      vocab_size=64,
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      mlp_dim=32,
      num_encoder_layers=2,
      num_decoder_layers=2,
    )
  )
  tree = traverse_util.unflatten_dict(
    {n: jax.ShapeDtypeStruct(x, np.float32) for n, x in shapes.items()}, sep='/'
  )
  taken = opened(source, tree=tree)['s0']
  assert {name: tensor.shape for name, tensor in taken.items()} == shapes


def test_a_tensor_that_no_t5_has_is_told(tmp_path):
  values = {'token_embedder/embedding': np.ones((4, 2)), 'adapter': np.ones(2)}
  path = write(tmp_path / 'x.safetensors', values)
  said = message(SourceConfig(path))
  assert f'init.sources.s0: {path}: 1 names of the source' in said
  assert '  adapter' in said


def test_a_source_that_is_not_there(tmp_path):
  path = tmp_path / 'none'
  expected = f'config init.sources.s0.path: {path}: no such file or folder.'
  for step in (None, 3):
    with pytest.raises(config_lib.ConfigError, match=re.escape(expected)):
      opened(SourceConfig(str(path), step=step))


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ({}, 'config init: sources: expected at least one'),
    ({'sources': {'a': {}}}, 'config init.sources.a: path: expected a file'),
    (
      {'sources': {'a': {'path': 'x', 'take': ('(',)}}},
      r"config init.sources.a: take: '\(' is no regex",
    ),
    (
      {'sources': {'a': {'path': 'x', 'takes': ('t5',)}}},
      "Did you mean 'take'",
    ),
    (
      {'sources': {'a': {'path': 'x'}}, 'allow_missing': ('[',)},
      r"config init: allow_missing: '\[' is no regex",
    ),
  ],
)
def test_what_a_config_may_not_say(values, expected):
  with pytest.raises(config_lib.ConfigError, match=expected):
    config_lib.from_dict(InitConfig, values, 'init')
