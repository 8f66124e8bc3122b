# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from flax import struct, traverse_util
from jax import export
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import exported, geometry, main, stablehlo
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints import manager as manager_lib
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import TensorFileError
from pixel_llm.model import pixel_llm, region
from pixel_llm.model.decoding import DecodingConfig
from pixel_llm.model.layers import LoraConfig
from pixel_llm.tasks import task as task_lib

ROOT = pathlib.Path(__file__).parents[1]
IMAGE, CONTEXT, LENGTH = 32, 26, 7
TEXTS = [
  'the small red ring',
  'a large blue square',
  'a green star',
  'a caption',
]


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's folder, what is in it, and what it was exported to."""

  folder: pathlib.Path
  model: pixel_llm.PixelLLM
  params: object
  decoding: DecodingConfig
  out: pathlib.Path


@struct.dataclass
class State:
  params: object
  step: object


def write_run(folder, config, decoding) -> tuple[pixel_llm.PixelLLM, object]:
  """A run of random parameters, as training leaves it."""
  folder.mkdir()
  path = str(folder / 'spiece.model')
  vocabulary_lib.train(TEXTS, path, 64)
  vocabulary = vocabulary_lib.Vocabulary(path)
  config = dataclasses.replace(
    config, t5=dataclasses.replace(config.t5, vocab_size=vocabulary.size)
  )
  model = pixel_llm.PixelLLM(config)
  example = batch_lib.Batch.zeros(dataclasses.replace(tiny.SIZES, batch=1))
  shapes = jax.eval_shape(
    lambda key: model.init(key, example)['params'], jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape).astype(np.float32)),
    nn.unbox(shapes),
  )
  sizes = {'batch': 1, 'regions': 1}
  values = {
    'model': config_lib.to_dict(config),
    'data': {'image': IMAGE, 'points': 2, 'extra_ids': 0},
    'eval': {
      'decoding': dataclasses.asdict(decoding),
      'tasks': {
        'narrate': {**sizes, 'context': CONTEXT, 'length': 5},
        'refer': {**sizes, 'context': 4, 'length': LENGTH},
      },
    },
  }
  (folder / 'config.json').write_text(json.dumps(values))
  with manager_lib.CheckpointManager(folder / 'checkpoints') as manager:
    state = State(params, jnp.int32(20))
    manager.save(20, state, {'vocabulary': vocabulary.digest})
  return model, params


@pytest.fixture(scope='module', params=['greedy', 'beams_lora_region'])
def run(request, tmp_path_factory) -> Run:
  config, beams = tiny.model_config(), 1
  if request.param != 'greedy':
    lora = LoraConfig(2, 1.5, ('query', 'value', 'out'))
    config = dataclasses.replace(
      config,
      t5=dataclasses.replace(config.t5, lora=lora),
      region=region.RegionConfig(bins=2, bin_channels=4, mlp_dim=8, cells=2),
    )
    beams = 2
  folder = tmp_path_factory.mktemp('stablehlo') / 'run'
  decoding = DecodingConfig(length=LENGTH, beams=beams)
  model, params = write_run(folder, config, decoding)
  out = folder.parent / 'out'
  said = stablehlo.export_run(str(folder), str(out))
  assert said.startswith(f'{out}: encode_image, generate, read for cpu, cuda,')
  return Run(folder, model, params, decoding, out)


@pytest.fixture
def copy(run, tmp_path) -> pathlib.Path:
  """What was exported, to be damaged."""
  return shutil.copytree(run.out, tmp_path / 'copy')


def questions(batch, regions) -> batch_lib.Batch:
  vocab = len(TEXTS) * 5
  sizes = batch_lib.BatchSizes(batch, IMAGE, regions, CONTEXT, LENGTH)
  return tiny.random_batch(sizes, seed=batch, vocab_size=vocab)


@pytest.mark.parametrize(
  ('batch', 'regions'), [pytest.param(1, 1, marks=pytest.mark.slow), (3, 2)]
)
def test_equals_the_live_model(run, batch, regions):
  asked = questions(batch, regions)
  model = exported.load(str(run.out))
  features = model.encode_image(asked.image, asked.image_size)['features']
  live = jax.jit(
    lambda p, b: run.model.run(p, b.image, b.image_size, method='encode_image')
  )(run.params, asked)
  np.testing.assert_allclose(features, live, atol=1e-5, rtol=1e-5)

  given = (asked.image_size, asked.prompt_boxes, asked.encoder_input_tokens)
  got = model.generate(live, *given)
  expected = jax.jit(
    functools.partial(task_lib.generate, run.model, decoding=run.decoding)
  )(run.params, asked)
  # Or any two models would agree.
  assert len(np.unique(np.asarray(expected.points))) > 4
  np.testing.assert_array_equal(got['tokens'], expected.tokens)
  for name in ('points', 'log_probs', 'scores'):
    np.testing.assert_allclose(
      got[name], getattr(expected, name), atol=1e-5, rtol=1e-5
    )
    assert got[name].shape[:2] == (batch, regions)

  # By name, in any order.
  got = model.read(
    decoder_target_tokens=asked.decoder_target_tokens,
    encoder_input_tokens=asked.encoder_input_tokens,
    prompt_boxes=asked.prompt_boxes,
    image_size=asked.image_size,
    features=live,
  )
  expected = jax.jit(functools.partial(task_lib.read, run.model))(
    run.params, asked
  )
  np.testing.assert_allclose(got['points'], expected.points, atol=1e-5)
  np.testing.assert_allclose(got['scores'], expected.scores, atol=1e-4)
  box = geometry.answer_box(
    asked.decoder_target_tokens, np.clip(np.asarray(expected.points), 0, 1)
  )
  np.testing.assert_allclose(got['boxes'], box, atol=1e-5)


@pytest.mark.parametrize('name', exported.MODULES)
def test_a_module_runs_on_all_three_platforms_and_no_other(run, name):
  data = (run.out / f'{name}{exported.SUFFIX}').read_bytes()
  module = export.deserialize(bytearray(data))
  assert module.platforms == ('cpu', 'cuda', 'tpu')
  model = exported.load(str(run.out))
  inputs = model.manifest['modules'][name]['inputs']
  sizes = {'b': 2, 'r': 3}
  args = [
    jax.ShapeDtypeStruct(
      tuple(sizes.get(d, d) for d in x['shape']), jnp.dtype(x['dtype'])
    )
    for x in inputs.values()
  ]
  params = {
    n: jax.ShapeDtypeStruct(t.shape, t.dtype)
    for n, t in safetensors.read(run.out / exported.PARAMETERS).items()
  }
  for platform in ('cpu', 'cuda', 'tpu'):
    lowered = export.export(jax.jit(module.call), platforms=(platform,))(
      params, *args
    )
    for out in jax.tree.leaves(lowered.out_avals):
      assert out.shape[0] == 2
  with pytest.raises(ValueError, match='rocm'):
    export.export(jax.jit(module.call), platforms=('rocm',))(params, *args)


def test_parameters_are_beside_the_modules_and_not_in_them(run):
  flat = traverse_util.flatten_dict(run.params, sep='/')
  tensors = safetensors.read(run.out / exported.PARAMETERS)
  assert tensors.keys() == flat.keys()
  for name, x in flat.items():
    np.testing.assert_array_equal(tensors[name].read(), x)
  if any(name.endswith('lora_a') for name in flat):
    # LoRA is in the program, not merged: another one's would run as well.
    model = exported.load(str(run.out))
    changed = shutil.copytree(run.out, run.out.parent / 'changed')
    zeros = {
      n: dataclasses.replace(t, load=lambda t=t: np.zeros_like(t.read()))
      if n.endswith('lora_b')
      else t
      for n, t in tensors.items()
    }
    safetensors.write(changed / exported.PARAMETERS, zeros)
    renew_digest(changed, exported.PARAMETERS)
    asked = questions(1, 1)
    features = model.encode_image(asked.image, asked.image_size)['features']
    points = [
      m.read(
        features,
        asked.image_size,
        asked.prompt_boxes,
        asked.encoder_input_tokens,
        asked.decoder_target_tokens,
      )['points']
      for m in (model, exported.load(str(changed)))
    ]
    assert np.abs(points[0] - points[1]).max() > 1e-3


def test_the_manifest_says_what_goes_in_and_comes_out(run):
  manifest = json.loads((run.out / exported.MANIFEST).read_text())
  modules = manifest['modules']
  assert modules['encode_image']['inputs']['image'] == {
    'shape': ['b', IMAGE, IMAGE, 3],
    'dtype': 'uint8',
    'meaning': 'RGB, zero-padded bottom and right',
  }
  shapes = {
    name: {n: x['shape'] for n, x in module['outputs'].items()}
    for name, module in modules.items()
  }
  assert shapes['generate']['tokens'] == ['b', 'r', LENGTH]
  assert shapes['generate']['points'] == ['b', 'r', LENGTH, 2, 2]
  assert shapes['read']['boxes'] == ['b', 'r', 4]
  assert modules['read']['inputs'].keys() >= {'features', 'prompt_boxes'}
  assert (
    'normalized to the valid image' in manifest['conventions']['coordinates']
  )
  assert manifest['versions']['jax'] == jax.__version__
  assert manifest['decoding'] == dataclasses.asdict(run.decoding)
  assert manifest['config'] == json.loads(
    (run.folder / 'config.json').read_text()
  )
  for module in modules.values():
    assert module['platforms'] == ['cpu', 'cuda', 'tpu']
    assert module['calling_convention_version'] >= 9
  names = {p.name for p in run.out.iterdir()}
  assert names == {exported.MANIFEST, *manifest['sha256']}
  vocabulary = (run.out / exported.VOCABULARY).read_bytes()
  assert vocabulary == (run.folder / 'spiece.model').read_bytes()


def test_the_example_of_the_readme_runs_without_the_model(run, tmp_path):
  readme = (ROOT / 'README.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
  (code,) = (b for b in blocks if 'exported.load' in b)
  pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'photo.jpg')
  (tmp_path / 'programs').mkdir()
  shutil.copytree(run.out, tmp_path / 'programs' / 'demo')
  code += (
    'import sys\n'
    'print("shape", *points_orig.shape)\n'
    'print("modules", *sys.modules)\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', f'import sys; sys.path[0] = {str(ROOT)!r}\n{code}'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert out.returncode == 0, out.stderr
  lines = out.stdout.splitlines()
  assert lines[0].strip()
  assert lines[-2] == f'shape {LENGTH} 2 2'
  modules = set(lines[-1].split()[1:])
  assert 'pixel_llm.exported' in modules
  for name in ('pixel_llm.model', 'pixel_llm.tasks', 'pixel_llm.predictor'):
    assert name not in modules
  assert not modules & {'tensorflow', 'flax', 'orbax', 'seqio'}


def test_texts_become_tokens_that_fit(run):
  model = exported.load(str(run.out))
  assert model.canvas == IMAGE
  ids = model.vocabulary.encode('a green star')
  tokens = model.prompts([['a green star', '']])
  assert tokens.shape == (1, 2, CONTEXT)
  assert tokens[0, 0].tolist()[: len(ids) + 1] == [*ids, 1]
  assert tokens[0, 1].tolist() == [1] + [0] * (CONTEXT - 1)
  assert model.answers([['a']]).shape == (1, 1, LENGTH)
  with pytest.raises(ValueError, match=f'expected at most {LENGTH} tokens'):
    model.answers([['a green star ' * 4]])


def test_wrong_inputs_are_refused(run):
  model = exported.load(str(run.out))
  asked = questions(1, 1)
  with pytest.raises(TypeError, match='encode_image: expected image, image_si'):
    model.encode_image(asked.image)
  with pytest.raises(TypeError, match='encode_image: expected image, image_si'):
    model.encode_image(asked.image, image=asked.image)
  with pytest.raises(ValueError, match=r'(?i)shape'):
    model.encode_image(asked.image[:, :16], asked.image_size)


def renew_digest(folder, name):
  path = folder / exported.MANIFEST
  manifest = json.loads(path.read_text())
  digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
  manifest['sha256'][name] = digest
  path.write_text(json.dumps(manifest))


def test_damage_is_named(copy):
  def refused(name, match, error=TensorFileError):
    with pytest.raises(error, match=match) as e:
      exported.load(str(copy))
    assert name in str(e.value)

  def flip(name):
    data = bytearray((copy / name).read_bytes())
    data[-9] ^= 1
    (copy / name).write_bytes(data)

  for name in (exported.PARAMETERS, 'read.jax_export', exported.VOCABULARY):
    flip(name)
    refused(name, 'expected SHA-256')
    flip(name)
  exported.load(str(copy))

  module = copy / 'generate.jax_export'
  module.write_bytes(module.read_bytes()[:1000])
  refused(module.name, 'expected SHA-256')
  renew_digest(copy, module.name)
  refused(module.name, 'expected a module of jax.export')
  module.unlink()
  refused(module.name, 'No such file', FileNotFoundError)

  path = copy / exported.MANIFEST
  manifest = json.loads(path.read_text())
  for changed, match in (
    ('{', 'expected the manifest of an export'),
    (json.dumps(manifest | {'format': 2}), 'expected format 1, got 2'),
    (json.dumps(manifest | {'sha256': {}}), 'expected a digest of'),
  ):
    path.write_text(changed)
    refused(path.name, match)
  path.unlink()
  refused(path.name, 'expected a folder that `pixel-llm', FileNotFoundError)


def test_the_verb_refuses_what_it_cannot_do(run, copy, tmp_path, capsys):
  out = str(tmp_path / 'new')
  verb = ['export', str(run.folder), '--format', 'stablehlo', '--out']
  for arguments, said in (
    ([*verb, str(copy)], f'{copy}: exists; --force replaces it'),
    (
      [*verb, str(run.folder), '--force'],
      f'{run.folder}: holds checkpoints, which --force does not replace',
    ),
    ([*verb, out, '--dtype', 'bfloat16'], '--dtype: --format stablehlo takes'),
    (
      ['export', f'{out}2', '--format', 'stablehlo', '--out', out],
      f'{out}2/config.json: no such file',
    ),
  ):
    assert main.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'pixel-llm export: error: {said}')
  assert not pathlib.Path(out).exists()
  exported.load(str(copy))


@pytest.mark.slow
@pytest.mark.parametrize('run', ['greedy'], indirect=True)
def test_a_savedmodel_says_what_the_programs_say(run, tmp_path, capsys):
  tf = pytest.importorskip('tensorflow')
  out = tmp_path / 'savedmodel'
  verb = ['export', str(run.out), '--format', 'savedmodel', '--out', str(out)]
  assert main.main(verb) == 0
  assert 'encode_image, generate, read as signatures' in capsys.readouterr().out
  extra = out / 'assets.extra'
  for name in (exported.MANIFEST, exported.VOCABULARY):
    assert (extra / name).read_bytes() == (run.out / name).read_bytes()
  programs = exported.load(str(run.out))
  loaded = tf.saved_model.load(str(out)).signatures
  asked = questions(2, 3)
  given = {}
  for name in exported.MODULES:
    for field in programs.manifest['modules'][name]['inputs']:
      if field != 'features':
        given[field] = getattr(asked, field)
    inputs = {
      field: given[field]
      for field in programs.manifest['modules'][name]['inputs']
    }
    want = getattr(programs, name)(**inputs)
    got = loaded[name](**{k: tf.constant(v) for k, v in inputs.items()})
    assert set(got) == set(want)
    for key, value in want.items():
      np.testing.assert_allclose(got[key], value, atol=1e-5, err_msg=key)
    given['features'] = given.get('features', want.get('features'))

  assert main.main(verb) == 1
  assert 'exists; --force replaces it' in capsys.readouterr().err
  assert main.main([*verb, '--force']) == 0
  verb[1] = str(run.folder)
  assert main.main([*verb, '--force']) == 1
  error = capsys.readouterr().err
  assert 'manifest.json: no such file; expected a folder that' in error
