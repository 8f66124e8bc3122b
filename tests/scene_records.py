# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records of a few scenes, by the real path from annotation files."""

import json
import pathlib

import seqio
import tiny

from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import build, features, scenes
from pixel_llm.train import evaluate
from pixel_llm.train import experiment as experiment_lib


def make(root: pathlib.Path, seed: int, train: int, val: int) -> pathlib.Path:
  """Builds `narratives`, `refer` and `regions` below `root`, both splits.

  Returns: the folder of the annotations.
  """
  scenes.generate(str(root / 's'), seed=seed, train=train, val=val, workers=1)
  annotations = root / 's' / 'annotations'
  refer = annotations / 'refer'
  for split in ('train', 'val'):
    for name, out, file, extras in (
      (
        'localized_narratives',
        'narratives',
        annotations / f'scenes_{split}_localized_narratives.jsonl',
        {},
      ),
      (
        'refcoco',
        'refer',
        refer / 'refs(scenes).p',
        {'instances': str(refer / 'instances.json')},
      ),
      (
        'visual_genome',
        'regions',
        annotations / f'region_descriptions_{split}.json',
        {'image_data': str(annotations / f'image_data_{split}.json')},
      ),
    ):
      build.build(
        name,
        str(file),
        str(root / 's' / 'images' / split),
        str(root / out),
        split=split,
        **extras,
      )
  return annotations


def experiment(
  root: pathlib.Path,
  tasks: tuple[str, ...] = ('narrate', 'refer'),
  train: int = 6,
  batch: int = 8,
) -> experiment_lib.ExperimentConfig:
  """The smallest network on scenes made below `root`.

  Each task is a stream, and an evaluation, by its name; all else is as by
  default.
  """
  annotations = make(root, seed=1, train=train, val=3)
  lines = (annotations / 'scenes_train_localized_narratives.jsonl').read_text()
  texts = [json.loads(line)['caption'] for line in lines.splitlines()]
  path = str(root / 'v.model')
  vocabulary_lib.train(texts, path, 64)
  size = {'batch': batch, 'regions': 2, 'context': 6, 'length': 12}
  folders = {'narrate': 'narratives', 'refer': 'refer'}
  return experiment_lib.ExperimentConfig(
    model=tiny.model_config(64),
    data=experiment_lib.DataConfig(
      records={f'scenes_{folders[t]}': str(root / folders[t]) for t in tasks},
      vocabulary=path,
      extra_ids=0,
      image=32,
      streams={
        t: experiment_lib.StreamConfig(f'scenes_{t}', **size) for t in tasks
      },
    ),
    eval=experiment_lib.EvalConfig(
      tasks={
        f'scenes_{t}': experiment_lib.EvalTaskConfig(**size) for t in tasks
      }
    ),
  )


def seqio_metrics(config, model, mesh, params, name):
  """What SeqIO's own evaluator says of a task, in batches of its size."""
  seqios = seqio.Evaluator(
    name,
    feature_converter=features.PixelFeatureConverter(),
    eval_split='val',
    sequence_length=features.lengths(
      config.data.sizes(config.eval.tasks[name])
    ),
    target_field_name='decoder_target_tokens',
    logger_cls=(),
  )
  metrics, _ = seqios.evaluate(
    compute_metrics=True,
    predict_with_aux_fn=evaluate.seqio_fn(config, model, mesh, params, name),
  )
  return metrics.result()[name]
