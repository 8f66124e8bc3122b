# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Every config file builds, by gin alike, and says what the paper did."""

import collections
import dataclasses
import functools
import json
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import pytest
from flax import linen as nn

from pixel_llm import config as config_lib
from pixel_llm import main
from pixel_llm.data import datasets
from pixel_llm.model import eva, layers, sam, t5
from pixel_llm.train import experiment, optimizer, parameters

ROOT = pathlib.Path(__file__).parents[1] / 'configs'
FILES = sorted(ROOT.glob('*.py'))
PAPER = ('narrate', 'refer', 'refer_segment', 'dense_caption', 'joint')
REFER = ROOT / 'refer.py'


def load(name, *size):
  tree = runpy.run_path(str(ROOT / f'{name}.py'))['get_config'](*size)
  return tree, config_lib.from_dict(experiment.ExperimentConfig, tree.to_dict())


@pytest.mark.parametrize('name', [f.stem for f in FILES])
def test_every_config_builds_and_is_locked(name):
  tree, config = load(name)
  with pytest.raises(AttributeError, match='learning_rat'):
    tree.optimizer.learning_rat = 1.0
  mixtures = datasets.MIXTURES | config.data.mixtures
  known = datasets.registrations(config.data.records)
  assert set(config.eval.tasks) <= set(known)
  # A mixture's tasks find their records.
  for stream in config.data.streams.values():
    assert set(mixtures.get(stream.mixture, [stream.mixture])) <= set(known)
  keys = {r.key for r in datasets.TASKS.values()}
  assert set(config.data.records) - keys <= {'scenes_expressions'}


@pytest.mark.parametrize('name', PAPER)
def test_experiments_are_short_and_say_how_to_run_them(name):
  lines = (ROOT / f'{name}.py').read_text().splitlines()
  assert len(lines) <= 50
  command = (
    f'  pixel-llm train --config configs/{name}.py --workdir runs/{name}'
  )
  assert command in lines


@pytest.mark.parametrize('name', ('default', *PAPER))
@pytest.mark.parametrize('size', t5.SIZES)
def test_a_size_changes_the_t5_and_where_it_lies_alone(name, size):
  _, config = load(name, size)
  own = config.model.t5
  own = {key: getattr(own, key) for key in ('lora', 'dtype', 'remat')}
  assert config.model.t5 == dataclasses.replace(t5.SIZES[size], **own)
  _, xl = load(name)
  model = dataclasses.replace(config.model, t5=xl.model.t5)
  assert dataclasses.replace(config, model=model, mesh=xl.mesh) == xl
  # A chip holds an xl that is not trained, no xxl.
  whole = dataclasses.replace(config.mesh, fsdp_frozen=xl.mesh.fsdp_frozen)
  assert whole == xl.mesh
  if name != 'default':
    assert config.mesh.fsdp_frozen == (size == 'xxl')


@pytest.mark.parametrize('name', ('default', *PAPER))
def test_gin_gives_the_same_tree(name):
  pytest.importorskip('gin')
  root = ROOT / 'gin'
  for size in t5.SIZES:
    files = [str(root / f'{name}.gin'), str(root / f't5_{size}.gin')]
    by_gin = config_lib.from_gin(experiment.ExperimentConfig, files)
    tree = config_lib.to_dict(load(name, size)[1])
    assert config_lib.to_dict(by_gin) == tree
    # Streams take turns in their order, which == does not look at.
    assert json.dumps(config_lib.to_dict(by_gin)) == json.dumps(tree)
  by_gin = config_lib.from_gin(experiment.ExperimentConfig, files[:1])
  assert by_gin == load(name)[1]


def run(capsys, *arguments):
  code = main.main(['config', *map(str, arguments)])
  return code, *capsys.readouterr()


def test_bindings_go_on_top_of_gin_files(capsys):
  pytest.importorskip('gin')
  code, out, _ = run(
    capsys, '--gin_file', ROOT / 'gin/refer.gin', '--json',
    '--gin.t5.T5Config.emb_dim=1024',
    '--gin.expressions/experiment.StreamConfig.batch=8',
    '--gin.experiment.ExperimentConfig.init=None',
    '--gin.InitConfig.sources={}',
  )  # fmt: skip
  # Sources without an InitConfig are bound to nothing.
  assert (code, out) == (1, '')
  code, out, _ = run(
    capsys, '--gin_file', ROOT / 'gin/refer.gin', '--json', '--diff',
    '--gin.t5.T5Config.emb_dim=1024',
    '--gin.expressions/experiment.StreamConfig.batch=8',
  )  # fmt: skip
  assert code == 0
  changed = json.loads(out)
  assert changed['model.t5.emb_dim'] == [2048, 1024]
  assert changed['data.streams.expressions'][1]['batch'] == 8


@pytest.mark.parametrize(
  ('binding', 'said'),
  [
    ('t5.T5Config.emb_dimm=3', "doesn't have a parameter named 'emb_dimm'"),
    ('t5.T5Confg.emb_dim=3', "No configurable matching 't5.T5Confg'"),
    ('t5.T5Config.emb_dim=3.5', 'emb_dim: expected int, got float 3.5'),
    ("eva.EvaConfig.width='x'", "EvaConfig.width: expected int, got str 'x'"),
    ('eva.EvaConfig.num_heads=3', 'width 1024 over num_heads 3'),
    ('t5.T5Config.emb_dim=[3', 't5.T5Config.emb_dim=[3'),
    ('t5.T5Config.emb_dim=xl', "Failed to parse token 'xl'"),
    ('mask.MaskConfig.width=8', 'MaskConfig: bound (width) but used nowhere'),
    ('xs/experiment.StreamConfig.batch=8', 'bound (batch) but used nowhere'),
    ('BATCH=8', 'gin BATCH: bound (value) but used nowhere'),
    ('experiment.DataConfig.mixtures={"a": 1}', 'data.mixtures.a: expected a'),
  ],
)
def test_wrong_gin_is_the_users_mistake(capsys, binding, said):
  pytest.importorskip('gin')
  file = ROOT / 'gin/refer.gin'
  code, out, error = run(capsys, '--gin_file', file, f'--gin.{binding}')
  assert (code, out) == (1, '')
  assert error.startswith('pixel-llm config: error: ')
  assert said in error


def test_a_wrong_gin_file_names_its_line(capsys, tmp_path, monkeypatch):
  pytest.importorskip('gin')
  monkeypatch.chdir(ROOT.parent)
  path = tmp_path / 'mine.gin'
  path.write_text(
    'from __gin__ import dynamic_registration\n'
    'from pixel_llm.model import t5\n'
    "include 'configs/gin/narrate.gin'\n"
    't5.T5Config.emb_dim = 8\n'
    't5.T5Config.width = 8\n'
  )
  code, _, error = run(capsys, '--gin_file', path)
  assert code == 1
  assert f'"{path}", line 5' in error
  code, _, error = run(capsys, '--gin_file', tmp_path / 'none.gin')
  assert (code, 'none.gin: no such file' in error) == (1, True)
  code, _, error = run(capsys, '--gin_file', path, '--config.seed=1')
  assert (code, 'expected --gin.KEY=VALUE' in error) == (1, True)


def test_without_gin_the_error_says_what_to_install(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gin', None)
  code, _, error = run(capsys, '--gin_file', ROOT / 'gin/refer.gin')
  assert (code, "pip install 'pixel-llm[gin]'" in error) == (1, True)


def test_the_tree_is_printed_whole(capsys):
  code, out, _ = run(capsys, '--config', f'{REFER}:base', '--config.seed=7')
  assert code == 0
  lines = dict(line.split(' = ', 1) for line in out.splitlines())
  assert lines['model.t5.emb_dim'] == '768'
  assert lines['seed'] == '7'
  assert lines['eval.targets'] == '()'
  config = dataclasses.replace(load('refer', 'base')[1], seed=7)
  assert len(lines) == len(list(config_lib.leaves(config_lib.to_dict(config))))
  code, out, _ = run(
    capsys, '--config', f'{REFER}:base', '--config.seed=7', '--json'
  )
  values = json.loads(out)
  assert config_lib.from_dict(experiment.ExperimentConfig, values) == config


def test_differences_from_the_defaults_are_printed(capsys):
  code, out, _ = run(capsys, '--config', ROOT / 'default.py', '--diff')
  assert (code, out) == (0, '')
  override = '--config.data.streams.expressions.mask=4'
  code, out, _ = run(capsys, '--config', REFER, '--diff', override)
  assert code == 0
  assert 'optimizer.learning_rate: 0.001 -> 5e-05' in out.splitlines()
  # Of a stream's fields the file gives some; all may be changed.
  assert "'mask': 4" in out


@pytest.mark.parametrize(
  ('config', 'override', 'said'),
  [
    ('refer.py:huge', (), 'expected one of small, base, large, xl, xxl'),
    ('demo.py:base', (), 'demo.py:base: TypeError: get_config() takes 0'),
    ('none.py:base', (), 'none.py:base: no such file'),
    (
      'refer.py',
      ('optimizer.learning_rat=1', 'los.x=1'),
      "config optimizer.learning_rat: unknown key 'learning_rat'. Did you mean",
    ),
    ('refer.py', ('los.x=1',), "config los: unknown key 'los'"),
    ('refer.py', ('model.mask.width=1',), 'model.mask has no keys; it is None'),
    ('refer.py', ('seed.x=1',), 'config seed.x: seed has no keys; it is 0'),
    ('refer.py', ('seed=x',), 'seed=x'),
    ('refer.py', ('model.eva.num_heads=3',), 'config model.eva: eva: width 10'),
  ],
)
def test_wrong_keys_and_values_name_their_path(capsys, config, override, said):
  overrides = [f'--config.{o}' for o in override]
  code, out, error = run(capsys, '--config', f'{ROOT}/{config}', *overrides)
  assert (code, out) == (1, '')
  assert said in error


def test_printing_a_config_imports_neither_gin_nor_tensorflow():
  code = (
    'import pixel_llm.main as m, contextlib, io, sys\n'
    'with contextlib.redirect_stdout(io.StringIO()):\n'
    f'  m.main(["config", "--config", {str(REFER)!r}, "--config.seed=1"])\n'
    'print(*sys.modules)'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True, text=True, check=True, cwd=ROOT.parent,
  ).stdout  # fmt: skip
  assert 'ml_collections' in out.split()
  assert not set(out.split()) & {'gin', 'tensorflow', 'seqio', 't5x'}


def test_narrate_is_the_papers():
  _, config = load('narrate')
  model = config.model
  half = dict(dtype='bfloat16')
  large = dataclasses.replace(eva.SIZES['large'], remat='full', **half)
  assert model.eva == large
  assert model.sam == dataclasses.replace(sam.SIZES['huge'], **half)
  assert model.region is None
  assert model.t5.lora == layers.LoraConfig(32, 2.0, ('query', 'value'))
  extractor = model.extractor
  assert (extractor.depth, extractor.width) == (6, 512)
  assert (extractor.num_queries, extractor.out_dim) == (32, 1024)
  assert (model.regression.depth, model.regression.points) == (4, 2)
  rate = optimizer.schedule(config.optimizer, config.loop.steps)
  assert float(rate(249)) == pytest.approx(5e-5)
  assert float(rate(125 - 1)) == pytest.approx(2.5e-5)
  assert float(rate(10_000)) == 0


# Batch, steps, peak rate, warm-up, weight decay, beams.
@pytest.mark.parametrize(
  ('name', 'recipe'),
  [
    ('narrate', (256, 10_000, 5e-5, 250, 0, 4)),
    ('refer', (64, 120_000, 5e-5, 1000, 0, 3)),
    ('refer_segment', (64, 60_000, 5e-5, 500, 0, 3)),
    ('dense_caption', (64, 40_000, 1e-4, 1000, 0.05, 1)),
    ('joint', (128, 240_000, 1e-4, 2000, 0.05, 4)),
  ],
)
def test_recipes_are_the_published_ones(name, recipe):
  _, config = load(name)
  (batch,) = {s.batch for s in config.data.streams.values()}
  o = config.optimizer
  got = (batch, config.loop.steps, o.learning_rate, o.warmup_steps)
  assert (*got, o.weight_decay, config.eval.decoding.beams) == recipe


def test_joint_has_the_published_rates_in_fewer_tokens():
  _, config = load('joint')
  rates = collections.Counter()
  tokens = padded = 0
  for stream in config.data.streams.values():
    members = config.data.mixtures.get(stream.mixture, {stream.mixture: 1.0})
    for task, rate in members.items():
      rates[task] += stream.rate * rate / sum(members.values())
    visual = config.model.extractor.num_queries
    a_region = visual + stream.context + stream.length
    tokens += stream.rate * stream.regions * a_region
    padded += stream.rate * 16 * (visual + 32 + 128)
  assert rates == pytest.approx(datasets.MIXTURES['joint'])
  assert round(tokens / padded, 2) == 0.55


@functools.cache
def shapes():
  """Parameters of a network with all parts of the experiments."""
  model = dataclasses.replace(
    load('joint', 'small')[1].model, mask=load('refer_segment')[1].model.mask
  )
  config = experiment.ExperimentConfig(model=model)
  return nn.unbox(jax.eval_shape(parameters.init_fn(config), jax.random.key(0)))


@pytest.mark.parametrize('name', PAPER)
def test_regexes_mean_parameters(name):
  _, config = load(name)
  absent = {'detector'} if config.model.detector is None else set()
  if config.model.mask is None:
    absent |= {'mask_decoder', 'mask_adapter'}
  tree = {k: v for k, v in shapes().items() if k not in absent}
  optimizer.make(config.optimizer, config.loop.steps, tree)  # else raises
  trained = optimizer.trainable_mask(config.optimizer, tree)
  parts = {k for k in tree if any(jax.tree.leaves(trained[k]))}
  want = {
    'refer_segment': {'mask_adapter', 'regression'},
    'dense_caption': {'eva', 'extractor', 'projection', 't5', 'detector'},
  }.get(name, set(tree) - {'sam', 'prompt_encoder'})
  assert parts == want
  lora = [
    path
    for path, keep in zip(paths(trained['t5']), jax.tree.leaves(trained['t5']))
    if keep
  ]
  assert all(re.search('/lora_[ab]$', path) for path in lora)
  # What a start lacks is drawn.
  given = {'eva', 't5', 'sam', 'prompt_encoder'}
  if not given & set(config.init.sources) - {'sam'}:
    given |= {'extractor', 'projection', 'regression'}
    given |= {'mask_decoder'} & set(tree)
  missing = config.init.allow_missing
  drawn = {
    path.partition('/')[0]
    for path in paths(tree)
    if any(re.search(regex, path) for regex in missing)
  }
  assert drawn - {'t5'} == set(tree) - given
  assert all(any(re.search(r, path) for path in paths(tree)) for r in missing)


def paths(tree):
  return [
    jax.tree_util.keystr(k, simple=True, separator='/')
    for k, _ in jax.tree.leaves_with_path(tree)
  ]
