# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Counts against the published ones, and against real parameters."""

import json
import pathlib

import jax
import pytest
import tiny

from pixel_llm import main
from pixel_llm.train import experiment, optimizer, parameters

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
TINY = experiment.ExperimentConfig(
  model=tiny.model_config(),
  data=experiment.DataConfig(image=32),
  optimizer=optimizer.OptimizerConfig(freeze=('^sam/', 'bias$')),
)


def test_counts_are_those_of_real_parameters():
  _, params = tiny.init(TINY.model)
  parts = parameters.parts(TINY)
  assert [p.name for p in parts] == sorted(params)
  for part in parts:
    leaves = jax.tree.leaves_with_path(params[part.name])
    assert part.count == sum(x.size for _, x in leaves)
    assert part.bytes == sum(x.nbytes for _, x in leaves)
    biases = sum(x.size for k, x in leaves if k[-1].key == 'bias')
    want = 0 if part.name == 'sam' else part.count - biases
    assert part.trained == want
  assert 0 < parameters.total(parts).share < 1


def test_deeper_parts_have_the_same_sum():
  parts = parameters.parts(TINY)
  deep = parameters.parts(TINY, depth=3)
  assert len(deep) > len(parts)
  assert parameters.total(deep) == parameters.total(parts)
  encoder = sum(p.count for p in deep if p.name.startswith('t5/encoder/'))
  (whole,) = (
    p for p in parameters.parts(TINY, depth=2) if p.name == 't5/encoder'
  )
  assert whole.count == encoder


# T5 XL's own count is T5X's, SAM's that of the released ViT-H without prompt
# encoder and mask decoder. Each of 24 + 2 x 24 attentions has LoRA on query and
# value: rank 32 times the width of 2048, in and out. What is trained and what
# is frozen is, to 0.6 million, what was counted in the research code: 369.9 and
# 3,486.8 million; it trains an output for image cells that nothing reads.
def test_the_papers_setting(capsys):
  arguments = ['params', '--config', str(CONFIGS / 'narrate.py'), '--json']
  assert main.main(arguments) == 0
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  parts = {x['name']: x for x in lines}
  lora = (24 + 2 * 24) * 2 * 32 * (2048 + 2048)
  assert parts['t5']['count'] == 2_849_757_184 + lora
  assert parts['t5']['trained'] == lora
  assert parts['sam']['count'] == 641_090_608 - 6_220 - 4_058_340
  assert parts['sam']['trained'] == parts['prompt_encoder']['trained'] == 0
  assert parts['eva']['trained'] == parts['eva']['count'] == 303_268_800
  everything = parts['all']
  frozen = everything['count'] - everything['trained']
  # Of what is frozen, the kernels and tables are bfloat16: nearly all of it.
  held = 2 * frozen + 4 * everything['trained']
  assert held < everything['bytes'] < 1.002 * held
  assert frozen == pytest.approx(3_486.8e6, abs=0.05e6)
  assert everything['trained'] == pytest.approx(369.9e6, abs=0.6e6)


def test_a_table_of_parts(capsys):
  arguments = ['params', '--config', f'{CONFIGS}/narrate.py:base']
  overrides = ['--config.model.t5.lora.rank=8', '--config.loop.steps=7']
  assert main.main([*arguments, *overrides]) == 0
  rows = [x.split() for x in capsys.readouterr().out.splitlines()]
  assert rows[0] == ['part', 'parameters', 'memory', 'trained', 'share']
  cells = {row[0]: row[1:] for row in rows[1:]}
  lora = (12 + 2 * 12) * 2 * 8 * (768 + 768)
  assert cells['t5'][0] == f'{247_577_856 + lora:,}'
  assert cells['t5'][-2:] == [f'{lora:,}', '0.4%']
  assert cells['sam'][1:3] == ['1.20', 'GiB']
  assert len({len(row) for row in rows[1:]}) == 1


def test_a_regex_that_freezes_nothing_is_the_users_mistake(tmp_path, capsys):
  path = tmp_path / 'bad.py'
  path.write_text(
    f'import runpy\n\n\ndef get_config():\n'
    f'  config = runpy.run_path({str(CONFIGS / "default.py")!r})\n'
    f"  config = config['get_config']()\n"
    f"  config.optimizer.freeze = ('^smm/',)\n"
    f'  return config\n'
  )
  assert main.main(['params', '--config', str(path)]) == 1
  error = capsys.readouterr().err
  assert "freeze[0]: '^smm/' is found in no parameter" in error
