# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records of a few scenes, by the real path from annotation files."""

import pathlib

from pixel_llm.data import build, scenes


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
