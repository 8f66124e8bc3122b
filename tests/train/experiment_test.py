# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which config a workdir takes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pixel_llm import config as config_lib
from pixel_llm.train import experiment

CONFIG = experiment.ExperimentConfig()


def changed(**values):
  loss = dataclasses.replace(CONFIG.loss, **values)
  return dataclasses.replace(CONFIG, loss=loss)


def test_what_is_saved_is_loaded(tmp_path):
  experiment.save(changed(point_weight=2.0), str(tmp_path))
  assert experiment.load(str(tmp_path)) == changed(point_weight=2.0)


def test_another_config_is_refused_by_what_differs(tmp_path):
  experiment.save(CONFIG, str(tmp_path))
  with pytest.raises(config_lib.ConfigError, match=r'loss.point_weight: 38.4 '):
    experiment.check(changed(point_weight=2.0), str(tmp_path))
  # How long it runs is no part of what it is.
  loop = dataclasses.replace(CONFIG.loop, steps=7)
  experiment.check(dataclasses.replace(CONFIG, loop=loop), str(tmp_path))


def test_a_config_from_before_a_field_has_its_default(tmp_path):
  experiment.save(CONFIG, str(tmp_path))
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text())
  del values['loss']['proposal_weight'], values['init']
  path.write_text(json.dumps(values))
  experiment.save(CONFIG, str(tmp_path))
  assert json.loads(path.read_text())['loss']['proposal_weight'] == 1.0
  path.write_text(json.dumps(values))
  with pytest.raises(
    config_lib.ConfigError, match=r'loss.proposal_weight: 1.0'
  ):
    experiment.check(changed(proposal_weight=3.0), str(tmp_path))


def test_a_config_of_a_later_version_is_refused(tmp_path):
  experiment.save(CONFIG, str(tmp_path))
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text())
  values['loss']['telepathy'] = 1
  path.write_text(json.dumps(values))
  with pytest.raises(
    config_lib.ConfigError, match=r'loss\.telepathy|telepathy'
  ):
    experiment.check(CONFIG, str(tmp_path))
