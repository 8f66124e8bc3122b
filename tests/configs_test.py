# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Every config file builds, and the paper's says what the paper did."""

import pathlib
import runpy

import pytest

from pixel_llm import config as config_lib
from pixel_llm.data import datasets
from pixel_llm.model import eva, layers, sam, t5
from pixel_llm.train import experiment, optimizer

ROOT = pathlib.Path(__file__).parents[1] / 'configs'
FILES = sorted(ROOT.glob('*.py'))


def load(name):
  tree = runpy.run_path(str(ROOT / f'{name}.py'))['get_config']()
  return tree, config_lib.from_dict(experiment.ExperimentConfig, tree.to_dict())


@pytest.mark.parametrize('name', [f.stem for f in FILES])
def test_every_config_builds_and_is_locked(name):
  tree, config = load(name)
  with pytest.raises(AttributeError, match='learning_rat'):
    tree.optimizer.learning_rat = 1.0
  for task in config.eval.tasks:
    assert task in datasets.TASKS
  for stream in config.data.streams.values():
    assert stream.mixture in datasets.TASKS | datasets.MIXTURES
  keys = {r.key for r in datasets.TASKS.values()}
  assert set(config.data.records) <= keys
  # A mixture's tasks find their records.
  for stream in config.data.streams.values():
    members = datasets.MIXTURES.get(stream.mixture, {stream.mixture: 1.0})
    for task in members:
      assert datasets.TASKS[task].key in config.data.records


def test_narrate_is_the_papers():
  _, config = load('narrate')
  model = config.model
  assert model.eva == eva.SIZES['large']
  assert model.sam == sam.SIZES['huge']
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


def test_narrate_base_has_the_base_sizes_and_the_papers_lora():
  _, config = load('narrate_base')
  assert config.model.eva == eva.SIZES['base']
  assert config.model.sam == sam.SIZES['base']
  assert config.model.t5.emb_dim == t5.SIZES['base'].emb_dim
  assert config.model.t5.lora == load('narrate')[1].model.t5.lora


def test_refer_differs_from_narrate_in_its_recipe_alone():
  narrate, refer = load('narrate')[1], load('refer')[1]
  assert refer.model == narrate.model
  assert refer.loss == narrate.loss
  assert refer.optimizer.freeze == narrate.optimizer.freeze
  assert refer.loop.steps == 120_000
