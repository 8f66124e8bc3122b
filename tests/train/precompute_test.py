# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import json

import jax
import numpy as np
import pytest
import scene_records

from pixel_llm import augmentation
from pixel_llm import config as config_lib
from pixel_llm.train import experiment, loop, optimizer, precompute

TRAIN = 7


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp('maps')
  config = scene_records.experiment(root, train=TRAIN)
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data,
      augmentation={'scenes_refer': augmentation.Augmentation(flip=0.5)},
      image_maps=str(root / 'maps'),
    ),
    optimizer=optimizer.OptimizerConfig(freeze=('^sam/',)),
    loop=experiment.LoopConfig(steps=2, log_every=1, checkpoint_every=2),
  )


def run(config, monkeypatch):
  monkeypatch.setattr(precompute, '_ROWS_PER_SHARD', 3)
  lines = []
  loop.prepare_data(config)
  precompute.precompute(
    config, config.data.image_maps, batch=8, log=lines.append
  )
  return lines


def trainer(config, workdir, lines):
  return loop.Trainer(config, str(workdir), lines.append, jax.devices()[:1])


def test_training_reads_what_the_encoder_makes(config, monkeypatch, tmp_path):
  lines = run(config, monkeypatch)
  folder = f'{config.data.image_maps}/scenes_narrate'
  assert lines == [
    'scenes_refer: augmented, so its images are encoded at every step',
    f'{folder}: maps of sam of {TRAIN} images',
  ]
  lines = []
  made = trainer(config, tmp_path / 'run', lines)
  loader = made.loader()
  assert lines[-2:] == [
    'stream narrate: maps of sam are read',
    'stream refer encodes its images at every step: scenes_refer is augmented',
  ]
  params = made.create().params
  encode = jax.jit(
    lambda image, size: made.model.run(
      params, image, size, method='encode_maps'
    )
  )
  batches = loader.batches(0)
  for _ in range(2):
    name, batch = next(batches)
    if name == 'refer':
      assert batch.image_maps is None
      continue
    expected = encode(batch.image, batch.image_size)['sam']
    assert list(batch.image_maps) == ['sam'] and np.any(np.asarray(expected))
    np.testing.assert_allclose(
      batch.image_maps['sam'], expected, atol=1e-5, strict=True
    )
  batches.close()
  with made.checkpoints:
    made.train()
  plain = dataclasses.replace(
    config, data=dataclasses.replace(config.data, image_maps='')
  )
  without = trainer(plain, tmp_path / 'plain', lines)
  with without.checkpoints:
    without.train()
  left, right = (
    json.loads((tmp_path / name / 'curves.json').read_text())
    for name in ('run', 'plain')
  )
  for a, b in zip(left, right, strict=True):
    for key in a:
      if key.endswith(('loss', 'norm', '_l1')):
        assert a[key] == pytest.approx(b[key], rel=1e-4)
  other = dataclasses.replace(config, seed=1)
  other = trainer(other, tmp_path / 'other', lines)
  with (
    other.checkpoints,
    pytest.raises(config_lib.ConfigError, match=r'parameters\.sam'),
  ):
    other.train()
  model = dataclasses.replace(config.model.sam, window_size=1)
  other = dataclasses.replace(
    config, model=dataclasses.replace(config.model, sam=model)
  )
  with pytest.raises(config_lib.ConfigError, match='window_size: 2 -> 1'):
    precompute.open_streams(other, lines.append)


def test_it_goes_on_where_it_was(config, monkeypatch, tmp_path):
  data = dataclasses.replace(config.data, image_maps=str(tmp_path))
  config = dataclasses.replace(config, data=data)
  run(config, monkeypatch)
  folder = tmp_path / 'scenes_narrate'
  shards = sorted(folder.glob('*.array_record'))
  before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in shards]
  assert len(shards) == 3
  shards[1].unlink()
  (folder / 'train.manifest.json').unlink()
  run(config, monkeypatch)
  after = [(p.read_bytes(), p.stat().st_mtime_ns) for p in shards]
  assert [a[0] for a in after] == [b[0] for b in before]
  assert [a == b for a, b in zip(after, before)] == [True, False, True]
  other = dataclasses.replace(config, seed=3)
  with pytest.raises(config_lib.ConfigError, match='of another config or data'):
    run(other, monkeypatch)


def test_nothing_frozen_is_told(config, monkeypatch):
  other = dataclasses.replace(config, optimizer=optimizer.OptimizerConfig())
  with pytest.raises(config_lib.ConfigError, match='found no encoder'):
    run(other, monkeypatch)
  path = dataclasses.replace(config.model.eva, drop_path_rate=0.5)
  frozen = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, eva=path),
    optimizer=optimizer.OptimizerConfig(freeze=('^sam/', '^eva/')),
  )
  assert precompute.frozen_encoders(frozen) == ('sam',)
