# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
import json
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import tiny
from flax import linen as nn
from flax import traverse_util
from model import t5_golden

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import main, weights
from pixel_llm.checkpoints import eva_names, mapping, sam_names, t5_names
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import (
  detection,
  orbax,
  safetensors,
  t5x,
)
from pixel_llm.checkpoints.mapping import MappingError
from pixel_llm.checkpoints.tensors import TensorFileError, of_array
from pixel_llm.model import pixel_llm, t5
from pixel_llm.model.layers import LoraConfig

GOLDEN = pathlib.Path(__file__).parent / 'golden'
HUGGING_FACE = str(GOLDEN / 'hf_t5_tiny')


def opened(path, prefix=''):
  return tensors_lib.part(detection.open_tensors(path)[1], prefix)


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(got[name].read(), tensor.read(), strict=True)


def nested(tensors):
  return traverse_util.unflatten_dict(
    {name: jnp.asarray(t.read()) for name, t in tensors.items()}, sep='/'
  )


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, encoder_tokens, decoder_tokens):
  model = t5.T5(config)
  variables = {'params': params}
  encoded, valid = model.apply(variables, None, encoder_tokens, method='encode')
  return model.apply(
    variables,
    encoded,
    valid,
    decoder_tokens,
    jnp.ones_like(decoder_tokens),
    method='decode',
  )[0]


def tokens(vocab_size):
  rng = np.random.default_rng(0)
  encoder = rng.integers(2, vocab_size, (2, 7)).astype(np.int32)
  encoder[1, 4:] = 0
  return encoder, rng.integers(2, vocab_size, (2, 5)).astype(np.int32)


def run_with_lora(folder):
  """A run's folder whose T5 has LoRA: (config, params, folder)."""
  config = tiny.model_config()
  lora = LoraConfig(2, 1.5, ('query', 'value', 'out'))
  config = dataclasses.replace(
    config, t5=dataclasses.replace(config.t5, lora=lora)
  )
  example = batch_lib.Batch.zeros(dataclasses.replace(tiny.SIZES, batch=1))
  shapes = jax.eval_shape(
    lambda key: pixel_llm.PixelLLM(config).init(key, example)['params'],
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape).astype(np.float32)),
    nn.unbox(shapes),
  )
  folder.mkdir()
  text = json.dumps({'model': config_lib.to_dict(config)})
  (folder / 'config.json').write_text(text)
  (folder / 'spiece.model').write_bytes(b'the vocabulary')

  @dataclasses.dataclass
  class State:
    params: object
    step: object

  with manager_lib.CheckpointManager(folder / 'checkpoints') as manager:
    jax.tree_util.register_dataclass(State)
    manager.save(20, State(params, jnp.int32(20)))
  return config, params


@pytest.mark.parametrize('folder', ['legacy', 'orbax'])
def test_t5x_becomes_parameters_that_our_manager_restores(
  t5x_tiny, tmp_path, folder
):
  out = tmp_path / 'out'
  said = weights.import_weights(str(t5x_tiny / folder), str(out), 't5x')
  assert said == f'{out}: 29 tensors, 14,656 numbers'
  shapes = weights.shapes(t5_golden.TINY)
  abstract = traverse_util.unflatten_dict(
    {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}, sep='/'
  )
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    ),
    abstract,
  )
  with manager_lib.CheckpointManager(out, read_only=True) as manager:
    params = manager.restore_params(abstract)['t5']
    assert manager.metadata()['names'] == 't5x'
  expected = t5_golden.variables(t5_golden.load('t5x_tiny_params'))['params']
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
    params,
    expected,
  )


def test_npz_by_the_names_of_t5x_is_t5x_too(tmp_path):
  out = str(tmp_path / 'x.safetensors')
  source = str(GOLDEN / 't5x_tiny_params.npz')
  weights.import_weights(source, out, 't5x', t5_golden.TINY)
  assert opened(out).keys() == weights.shapes(t5_golden.TINY).keys()


def test_bfloat16_is_float32_by_us_and_back_the_same(t5x_tiny, tmp_path):
  ours, back = str(tmp_path / 'ours'), str(tmp_path / 'back')
  source = str(t5x_tiny / 'legacy_bf16')
  weights.import_weights(source, ours, 't5x')
  assert {t.dtype.name for t in opened(ours).values()} == {'float32'}
  weights.export_weights(ours, back, 't5x', dtype='bfloat16', step=600)
  assert_same(
    opened(f'{back}/checkpoint_600', 'target/'), opened(source, 'target/')
  )


def test_t5x_there_and_back_is_exact(t5x_tiny, tmp_path):
  ours, back = str(tmp_path / 'ours.safetensors'), str(tmp_path / 'back')
  source = str(t5x_tiny / 'legacy')
  weights.import_weights(source, ours, 't5x')
  weights.export_weights(ours, back, 't5x')
  # Step 0 is no checkpoint to T5X.
  assert [p.name for p in (tmp_path / 'back').iterdir()] == ['checkpoint_1']
  assert_same(opened(back, 'target/'), opened(source, 'target/'))
  assert opened(back)['state/step'].read() == 1


def test_hugging_face_there_and_back_is_exact(tmp_path):
  ours, back = str(tmp_path / 'ours'), str(tmp_path / 'back')
  weights.import_weights(HUGGING_FACE, ours, 'huggingface')
  weights.export_weights(ours, back, 'huggingface')
  assert_same(opened(back), opened(HUGGING_FACE))
  pickled = str(tmp_path / 'pickled.safetensors')
  weights.import_weights(
    f'{HUGGING_FACE}/pytorch_model.bin', pickled, 'huggingface'
  )
  assert_same(opened(pickled), opened(ours, 'params/'))


def test_export_of_a_run_merges_lora(tmp_path):
  config, params = run_with_lora(tmp_path / 'run')
  before = logits(config.t5, params['t5'], *tokens(64))
  plain = dataclasses.replace(config.t5, lora=None)
  for target, prefix in (('huggingface', ''), ('t5x', 'target/')):
    out = str(tmp_path / target)
    weights.export_weights(str(tmp_path / 'run'), out, target)
    back = str(tmp_path / f'{target}.safetensors')
    weights.import_weights(out, back, target, config.t5)
    after = logits(plain, nested(opened(back, 't5/')), *tokens(64))
    np.testing.assert_allclose(after, before, 0, 1e-4)
    assert not any('lora' in name for name in opened(out, prefix))
  copy = tmp_path / 'huggingface' / 'spiece.model'
  assert copy.read_bytes() == b'the vocabulary'
  assert (tmp_path / 't5x' / 'checkpoint_20').is_dir()
  # Without the update the logits are others: the test can fail.
  kernels = {
    n: t
    for n, t in opened(tmp_path / 'run', 'params/t5/').items()
    if 'lora' not in n
  }
  bare = logits(plain, nested(kernels), *tokens(64))
  assert np.abs(bare - before).max() > 1e-2


def test_lora_without_its_scale_is_refused(tmp_path):
  run_with_lora(tmp_path / 'run')
  alone = str(tmp_path / 'alone')
  shutil.copytree(tmp_path / 'run' / 'checkpoints' / '20', alone)
  with pytest.raises(MappingError, match='LoRA: expected its scale'):
    weights.export_weights(alone, str(tmp_path / 'out'), 't5x')
  # Where it lies in the run, the run's config tells.
  inside = str(tmp_path / 'run' / 'checkpoints' / '20')
  weights.export_weights(inside, str(tmp_path / 'out'), 't5x')


def test_safetensors_hold_everything_as_it_is(tmp_path):
  _, params = run_with_lora(tmp_path / 'run')
  out, back = str(tmp_path / 'all.safetensors'), str(tmp_path / 'back')
  weights.export_weights(str(tmp_path / 'run'), out, 'safetensors')
  flat = traverse_util.flatten_dict(params, sep='/')
  assert_same(
    opened(out), {n: of_array(np.asarray(x)) for n, x in flat.items()}
  )
  weights.import_weights(out, back, 'pixel-llm')
  assert_same(opened(back, 'params/'), opened(out))


@pytest.mark.parity
def test_transformers_loads_the_export_with_the_same_logits(tmp_path):
  transformers = peers.imported('transformers')
  torch = peers.imported('torch')
  config, params = run_with_lora(tmp_path / 'run')
  out = str(tmp_path / 'hf')
  weights.export_weights(str(tmp_path / 'run'), out, 'huggingface')
  model, info = transformers.T5ForConditionalGeneration.from_pretrained(
    out, output_loading_info=True
  )
  assert not any(info.values()), info
  assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
  encoder, decoder = tokens(64)
  with torch.no_grad():
    theirs = model.eval()(
      input_ids=torch.tensor(encoder).long(),
      attention_mask=torch.tensor(encoder > 0).long(),
      decoder_input_ids=torch.tensor(decoder).long(),
    ).logits.numpy()
  ours = logits(config.t5, params['t5'], encoder, decoder)
  np.testing.assert_allclose(theirs, ours, 0, 1e-4)


@pytest.mark.parity
def test_a_shard_at_a_time_from_transformers(tmp_path):
  transformers = peers.imported('transformers')
  model = transformers.T5ForConditionalGeneration.from_pretrained(HUGGING_FACE)
  model.save_pretrained(tmp_path / 'hf', max_shard_size='20KB')
  assert (tmp_path / 'hf' / 'model.safetensors.index.json').is_file()
  out = str(tmp_path / 'x.safetensors')
  weights.import_weights(str(tmp_path / 'hf'), out, 'huggingface')
  weights.import_weights(
    HUGGING_FACE, str(tmp_path / 'y.safetensors'), 'huggingface'
  )
  assert_same(opened(out), opened(tmp_path / 'y.safetensors'))


def test_t5x_loads_the_export(t5x_tiny, tmp_path):
  checkpoints = pytest.importorskip('t5x.checkpoints')
  ours, out = str(tmp_path / 'ours'), str(tmp_path / 'out')
  for folder, dtype in (('legacy', 'float32'), ('legacy_bf16', 'bfloat16')):
    weights.import_weights(str(t5x_tiny / folder), ours, 't5x', force=True)
    weights.export_weights(ours, out, 't5x', dtype=dtype, step=7, force=True)
    state = checkpoints.load_t5x_checkpoint(f'{out}/checkpoint_7')
    assert state['state']['step'] == 7
    got = traverse_util.flatten_dict(state['target'], sep='/')
    expected = opened(t5x_tiny / folder, 'target/')
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
      # T5X casts what it restores to float32.
      np.testing.assert_array_equal(
        np.asarray(got[name], np.float32), tensor.read().astype(np.float32)
      )


@pytest.mark.parametrize(
  ('size', 'arrays', 'numbers'),
  [('small', 190, 76_961_152), ('xl', 558, 2_849_757_184)],
)
def test_big_sizes_have_the_arrays_of_t5x(size, arrays, numbers):
  def fail():
    raise AssertionError('a tensor was loaded')

  shapes = weights.shapes(t5.SIZES[size])
  ours = {
    name: tensors_lib.Tensor(shape, np.dtype(np.float32), fail)
    for name, shape in shapes.items()
  }
  for table in (t5_names.T5X, t5_names.HUGGING_FACE):
    theirs, report = mapping.apply(mapping.inverse(table), ours)
    assert not report and len(theirs) == arrays
    assert sum(t.size for t in theirs.values()) == numbers
    assert mapping.convert(table, theirs, shapes).keys() == shapes.keys()


def damaged(change):
  """The arrays of T5X's names, changed."""
  arrays = t5_golden.load('t5x_tiny_params')
  change(arrays)
  return arrays


def set_nan(arrays):
  arrays['encoder/layers_1/mlp/wo/kernel'][3, 5] = np.nan


def set_infinite(arrays):
  arrays['decoder/decoder_norm/scale'][:2] = np.inf


def lose(arrays):
  del arrays['decoder/logits_dense/kernel']


def lose_layer(arrays):
  del arrays['encoder/layers_0/mlp/wo/kernel']


def grow_vocabulary(arrays):
  name = 'token_embedder/embedding'
  arrays[name] = np.concatenate([arrays[name], arrays[name][:3]])


def reshape(arrays):
  name = 'decoder/relpos_bias/rel_embedding'
  arrays[name] = arrays[name].T


def add(arrays):
  arrays['decoder/extra'] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (
      set_nan,
      't5/encoder/layers/mlp/wo/kernel: expected finite numbers, got 1 NaN '
      'or infinite ones among 1024',
    ),
    (set_infinite, 't5/decoder/decoder_norm/scale: expected finite numbers'),
    (lose, '  t5/decoder/logits_dense/kernel [16, 64]'),
    (lose_layer, 'mlp/wo/kernel: expected layer 0..1, got none of 0'),
    (grow_vocabulary, 'vocabulary: expected 64 ids, got 67'),
    (
      reshape,
      't5/decoder/relpos_bias/rel_embedding: expected [2, 32], got [32, 2]',
    ),
    (add, '1 names of the source that no rule takes:\n  decoder/extra'),
  ],
)
@pytest.mark.parametrize('out', ['out', 'out.safetensors'])
def test_what_is_wrong_is_named_and_nothing_is_overwritten(
  tmp_path, change, expected, out
):
  good, bad = str(tmp_path / 'good.npz'), str(tmp_path / 'bad.npz')
  np.savez(good, **t5_golden.load('t5x_tiny_params'))
  np.savez(bad, **damaged(change))
  out = str(tmp_path / 'place' / out)
  weights.import_weights(good, out, 't5x', t5_golden.TINY)
  before = {n: t.read() for n, t in opened(out).items()}
  with pytest.raises(ValueError) as e:
    weights.import_weights(bad, out, 't5x', t5_golden.TINY, force=True)
  assert str(e.value).startswith(f'{bad}: ')
  assert expected in str(e.value)
  assert_same(opened(out), {n: of_array(x) for n, x in before.items()})
  # Neither are parts left beside it.
  assert len(list((tmp_path / 'place').iterdir())) == 1


def test_the_rest_may_be_missing_when_allowed(tmp_path):
  bad, out = str(tmp_path / 'bad.npz'), str(tmp_path / 'x.safetensors')
  np.savez(bad, **damaged(lose))
  weights.import_weights(
    bad, out, 't5x', t5_golden.TINY, allow_missing=['.*/logits_dense/kernel']
  )
  assert len(opened(out)) == 28


def test_damage_on_the_way_leaves_what_was_there(t5x_tiny, tmp_path):
  source, out = t5x_tiny / 'legacy', tmp_path / 'out'
  weights.import_weights(str(source), str(out), 't5x')
  name = 'target.token_embedder.embedding'
  (source / 'checkpoint_600' / name / '0.0').unlink()
  before = sorted(p.name for p in tmp_path.iterdir())
  with pytest.raises(TensorFileError, match=r'embedding whole.*missing'):
    weights.import_weights(str(source), str(out), 't5x', force=True)
  assert sorted(p.name for p in tmp_path.iterdir()) == before
  assert len(opened(out)) == 29


def test_what_is_there_stays_without_force(tmp_path):
  out = tmp_path / 'out.safetensors'
  out.write_text('mine')
  for call in (weights.import_weights, weights.export_weights):
    with pytest.raises(FileExistsError, match='--force'):
      call(HUGGING_FACE, str(out), 'huggingface')
  assert out.read_text() == 'mine'
  weights.import_weights(HUGGING_FACE, str(out), 'huggingface', force=True)
  assert len(opened(out)) == 29


def test_metrics_go_along_with_the_step_that_they_are_of(tmp_path):
  run = tmp_path / 'run'
  run_with_lora(run)
  for step in (20, 10):
    (run / 'metrics.json').write_text(json.dumps({'step': step}))
    out = tmp_path / str(step)
    weights.export_weights(str(run), str(out), 'safetensors')
    assert (out / 'metrics.json').is_file() == (step == 20)


def test_force_never_costs_a_run_or_the_source(tmp_path):
  run = tmp_path / 'run'
  (run / 'checkpoints' / '7').mkdir(parents=True)
  (run / 'config.json').write_text('{}')
  source = str(tmp_path / 'source')
  shutil.copytree(HUGGING_FACE, source)
  (tmp_path / 'source' / 'logits.npz').unlink()
  (tmp_path / 'source' / 'pytorch_model.bin').unlink()
  for out, said in (
    (run, 'holds checkpoints, which'),
    (run / 'checkpoints', 'holds 7, which'),
    (source, 'holds the source'),
  ):
    with pytest.raises(FileExistsError, match=said):
      weights.import_weights(source, str(out), 'huggingface', force=True)
  assert (run / 'checkpoints' / '7').is_dir()
  assert len(opened(source)) > 29


def test_an_export_of_less_than_a_t5_is_refused(tmp_path):
  source = str(tmp_path / 'x.safetensors')
  weights.import_weights(HUGGING_FACE, source, 'huggingface')
  tensors = dict(opened(source))
  tensors = {n: of_array(t.read()) for n, t in tensors.items()}
  del tensors['t5/encoder/encoder_norm/scale']
  safetensors.write(source, tensors)
  out = str(tmp_path / 'out')
  with pytest.raises(MappingError, match='t5/encoder/encoder_norm/scale'):
    weights.export_weights(source, out, 't5x')
  with pytest.raises(ValueError, match=r'expected a \.safetensors file'):
    weights.export_weights(source, out, 'safetensors')
  with pytest.raises(ValueError, match='expected a folder for t5x'):
    weights.export_weights(source, f'{out}.safetensors', 't5x')


def test_the_config_beside_the_weights_is_read(tmp_path):
  folder = tmp_path / 'hf'
  shutil.copytree(HUGGING_FACE, folder)
  file = folder / 'config.json'
  values = json.loads(file.read_text())
  file.write_text(json.dumps(values | {'feed_forward_proj': 'relu'}))
  out = str(tmp_path / 'out')
  with pytest.raises(MappingError, match="feed_forward_proj 'gated-gelu'"):
    weights.import_weights(str(folder), out, 'huggingface')
  file.write_text('{')
  with pytest.raises(TensorFileError, match='expected JSON'):
    weights.import_weights(str(folder), out, 'huggingface')


def test_a_stack_at_a_time_is_in_memory(tmp_path):
  config = dataclasses.replace(
    t5_golden.TINY,
    emb_dim=128,
    mlp_dim=512,
    num_encoder_layers=16,
    num_decoder_layers=16,
  )
  source, out = tmp_path / 'x.safetensors', tmp_path / 'out'
  ours = {
    name: of_array(np.ones(shape, np.float32))
    for name, shape in weights.shapes(config).items()
  }
  safetensors.write(source, ours)
  total = sum(t.nbytes for t in ours.values())
  largest = max(t.nbytes for t in ours.values())
  del ours
  hugging_face = str(tmp_path / 'hf')
  weights.export_weights(str(source), hugging_face, 'huggingface', config)
  tracemalloc.start()
  try:
    weights.import_weights(
      hugging_face, f'{out}.safetensors', 'huggingface', config
    )
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  # A stack, its check, and what Python itself needs.
  assert peak < 2.5 * largest + (2 << 20) < 0.6 * total


def test_the_verbs(t5x_tiny, tmp_path, capsys):
  source, ours = str(t5x_tiny / 'legacy'), str(tmp_path / 'ours')
  assert main.main(['import', source, '--format', 't5x', '--out', ours]) == 0
  assert capsys.readouterr().out == f'{ours}: 29 tensors, 14,656 numbers\n'
  out = str(tmp_path / 'hf')
  verb = ['export', ours, '--format', 'huggingface', '--out', out]
  assert main.main(verb) == 0
  assert capsys.readouterr().out == f'{out}: 52 tensors, 14,656 numbers\n'
  small = ('--size', 'small')
  for wrong, said in (
    (verb, f'{out}: exists; --force replaces it'),
    (
      [*('import', source, '--format', 't5x'), '--out', f'{out}2', *small],
      f'{source}: vocabulary: expected 32128 ids, got 64',
    ),
    (
      ['import', f'{source}/none', '--format', 't5x', '--out', f'{out}2'],
      f'{source}/none: No such file or directory',
    ),
  ):
    assert main.main(wrong) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'pixel-llm {wrong[0]}: error: {said}')
    assert 'Traceback' not in error
  assert orbax.newest(pathlib.Path(ours)) == pathlib.Path(ours) / '0'
  assert len(t5x.read(t5x_tiny / 'legacy' / 'checkpoint_600')) == 261


def random_tensors(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: of_array(rng.normal(size=shape).astype(np.float32))
    for name, shape in shapes.items()
  }


def encoder_file(path, names, part, prefix='', config=None):
  """Writes an encoder of the tiny network by others' names; gives ours."""
  config = config or tiny.model_config()
  ours = random_tensors(weights.encoder_shapes(config, part))
  c = config.sam
  sam_sizes = c.depth, c.blocks_per_group, c.patch_size, c.position_grid
  sam_sizes += (None if config.mask is None else config.mask.depth,)
  eva_sizes = config.eva.patch_size, True, True
  table = {
    'segment-anything': lambda: sam_names.segment_anything(*sam_sizes),
    'huggingface': lambda: sam_names.hugging_face(*sam_sizes),
    'timm': lambda: eva_names.timm(*eva_sizes),
    'eva': lambda: eva_names.eva(*eva_sizes),
  }[names]()
  theirs, report = mapping.apply(mapping.inverse(table), ours)
  assert not report
  safetensors.write(path, {f'{prefix}{n}': t for n, t in theirs.items()})
  return ours


ENCODERS = [
  ('segment-anything', 'sam', ''),
  ('huggingface', 'sam', ''),
  ('timm', 'eva', ''),
  ('eva', 'eva', 'module/'),
]


@pytest.mark.parametrize(('names', 'part', 'prefix'), ENCODERS)
def test_encoders_become_the_parts_of_the_network(
  tmp_path, names, part, prefix
):
  config = dataclasses.replace(tiny.full_config(), detector=None)
  source, out = tmp_path / 'x.safetensors', str(tmp_path / 'out')
  ours = encoder_file(source, names, part, prefix, config)
  weights.import_weights(str(source), out, names, config, part=part)
  got = opened(out, 'params/')
  assert_same(got, ours)
  # By the names and shapes that the whole network has.
  example = batch_lib.Batch.zeros(dataclasses.replace(tiny.SIZES, batch=1))
  network = jax.eval_shape(
    lambda key: pixel_llm.PixelLLM(config).init(key, example)['params'],
    jax.random.key(0),
  )
  flat = traverse_util.flatten_dict(nn.unbox(network), sep='/')
  parts = {'sam': ('sam', 'prompt_encoder', 'mask_decoder'), 'eva': ('eva',)}
  parts = parts[part]
  assert {n: t.shape for n, t in got.items()} == {
    n: x.shape for n, x in flat.items() if n.split('/')[0] in parts
  }


def test_what_does_not_fit_an_encoder_is_listed(tmp_path):
  source, out = tmp_path / 'x.safetensors', tmp_path / 'out'
  ours = encoder_file(source, 'timm', 'eva')
  theirs = dict(opened(source))
  theirs['blocks.0.attn.rel_pos'] = theirs.pop('cls_token')
  theirs['pos_embed'] = of_array(np.zeros((1, 10, 16), np.float32))
  safetensors.write(tmp_path / 'bad.safetensors', theirs)
  bad = str(tmp_path / 'bad.safetensors')
  with pytest.raises(MappingError) as e:
    weights.import_weights(bad, str(out), 'timm', tiny.model_config())
  assert str(e.value).splitlines() == [
    f'{bad}: 1 names of the source that no rule takes:',
    '  blocks.0.attn.rel_pos',
    '1 names of the target that nothing gives:',
    '  eva/class_token [16]',
    '1 shapes:',
    '  eva/positions: expected [17, 16], got [10, 16]',
  ]
  assert not out.exists()
  del theirs['blocks.0.attn.rel_pos']
  theirs['pos_embed'] = opened(source)['pos_embed']
  safetensors.write(tmp_path / 'less.safetensors', theirs)
  weights.import_weights(
    str(tmp_path / 'less.safetensors'),
    str(out),
    'timm',
    tiny.model_config(),
    allow_missing=['eva/class_token'],
  )
  assert len(opened(out, 'params/')) == len(ours) - 1


def test_masks_are_taken_if_the_network_draws_them(tmp_path):
  full = tiny.full_config()
  without = dataclasses.replace(full, mask=None)
  source, out = tmp_path / 'x.safetensors', str(tmp_path / 'out')
  ours = encoder_file(source, 'segment-anything', 'sam', config=full)
  weights.import_weights(str(source), out, 'segment-anything', without)
  got = opened(out, 'params/')
  assert ours.keys() - got.keys() == {
    name for name in ours if name.startswith('mask_decoder/')
  }
  assert_same(got, {name: ours[name] for name in got})
  # Of a file without a mask decoder it is missing, unless that is allowed.
  bare = tmp_path / 'bare.safetensors'
  encoder_file(bare, 'segment-anything', 'sam', config=without)
  call = str(bare), f'{out}.safetensors', 'segment-anything', full
  with pytest.raises(
    MappingError, match='  mask_decoder/iou_token \\[1, 16\\]'
  ):
    weights.import_weights(*call)
  weights.import_weights(*call, allow_missing=['mask_decoder/.*'])
  assert opened(f'{out}.safetensors').keys() == got.keys()


def test_an_encoder_needs_a_network_that_has_it(tmp_path):
  source, out = tmp_path / 'x.safetensors', str(tmp_path / 'out')
  encoder_file(source, 'timm', 'eva')
  without = dataclasses.replace(tiny.model_config(), eva=None)
  for config, part, match in (
    (None, None, 'expected the sizes of eva, from --size or --config'),
    (without, None, 'model.eva: expected an encoder, got none'),
    (without, 'sam', 'timm: expected a part among eva, got sam'),
  ):
    with pytest.raises(ValueError, match=match):
      weights.import_weights(str(source), out, 'timm', config, part=part)


def test_the_verb_of_encoders(tmp_path, capsys):
  source, out = str(tmp_path / 'x.safetensors'), str(tmp_path / 'out')
  encoder_file(source, 'huggingface', 'sam')
  values = config_lib.to_dict(tiny.model_config().sam)
  changes = '\n'.join(
    f'    c.model.sam.{name} = {value!r}' for name, value in values.items()
  )
  experiment = tmp_path / 'experiment.py'
  experiment.write_text(
    'from configs import default\n\n'
    'def get_config():\n  c = default.get_config()\n'
    '  with c.unlocked():\n    c.model.prompt.embed_dim = 16\n'
    f'{changes}\n  return c\n'
  )
  verb = ['import', source, '--format', 'huggingface', '--part', 'sam']
  fits = ['--config', str(experiment), '--out', out]
  assert main.main([*verb, *fits]) == 0, capsys.readouterr()
  assert capsys.readouterr().out.startswith(f'{out}: 48 tensors')
  for wrong, said in (
    ([], 'huggingface: expected the sizes of sam, from --size or --config'),
    (['--size', 'xl'], '--size xl: expected one of base, large, huge for sam'),
    (['--size', 'base'], f'{source}: '),
  ):
    assert main.main([*verb, *wrong, '--out', f'{out}2']) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'pixel-llm import: error: {said}')
  assert 'expected layer 0, 1, 3, 4, 6, 7, 9, 10, got none of 3, 4, 6' in error
  # A size is all of SAM, as it was released.
  assert '  mask_decoder/mask_tokens [4, 256]\n' in error
