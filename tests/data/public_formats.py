# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Small files in the public annotation formats, for the tests of sources."""

from __future__ import annotations

import json
import pathlib
import pickle

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60


def write_images(directory, names, size=(HEIGHT, WIDTH)):
  directory = pathlib.Path(directory)
  for i, name in enumerate(names):
    rgb = np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8)
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
  return str(directory)


def narrative(image_id='7', annotator_id=1, **changes):
  """A row of Localized Narratives; `changes` replace fields, None drops."""
  row = {
    'dataset_id': 'mscoco_val2017',
    'image_id': image_id,
    'annotator_id': annotator_id,
    'caption': 'In this image, a red ring.',
    'timed_caption': [
      {'utterance': 'In this', 'start_time': 0.0, 'end_time': 0.0},
      {'utterance': 'image', 'start_time': 0, 'end_time': 1},
      {'utterance': 'a red', 'start_time': 1.0, 'end_time': 2.0},
      {'utterance': 'ring', 'start_time': 2.0, 'end_time': 3.0},
    ],
    'traces': [
      [{'x': 0.1, 'y': 0.2, 't': 0.0}, {'x': 0.5, 'y': 0.2, 't': 1.0}],
      [{'x': 0.5, 'y': 0.6, 't': 2.0}, {'x': 1.5, 'y': 0.6, 't': 3.0}],
    ],
    'voice_recording': 'coco_val/coco_val_7_1.ogg',
  }
  row.update(changes)
  return {k: v for k, v in row.items() if v is not None}


def write_lines(path, rows):
  """JSON lines; a string is written as it is."""
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  pathlib.Path(path).write_text('\n'.join(lines) + '\n')
  return str(path)


def write_refcoco(directory, refs=None, instances=None):
  """`refs(test).p` and `instances.json`; returns their paths."""
  directory = pathlib.Path(directory)
  if refs is None:
    refs = [
      reference(7, 70, [1, 2]),
      reference(8, 80, [3], split='val'),
      reference(7, 71, [4]),
    ]
  if instances is None:
    instances = {
      'images': [coco_image(7), coco_image(8)],
      'annotations': [
        {'id': 70, 'image_id': 7, 'bbox': [6.0, 4.0, 30.0, 20.0]},
        {'id': 71, 'image_id': 7, 'bbox': [48.0, 0.0, 99.0, 40.0]},
        {'id': 80, 'image_id': 8, 'bbox': [0, 0, WIDTH, HEIGHT]},
      ],
    }
  refs_path = directory / 'refs(test).p'
  refs_path.write_bytes(pickle.dumps(refs, protocol=2))
  instances_path = directory / 'instances.json'
  instances_path.write_text(json.dumps(instances))
  return str(refs_path), str(instances_path)


def coco_image(image_id, **changes):
  return {
    'id': image_id,
    'file_name': f'COCO_train2014_{image_id:012d}.jpg',
    'height': HEIGHT,
    'width': WIDTH,
  } | changes


def reference(image_id, ann_id, sentences, split='train'):
  return {
    'image_id': image_id,
    'ann_id': ann_id,
    'split': split,
    'ref_id': ann_id,
    'category_id': 1,
    'file_name': f'COCO_train2014_{image_id:012d}_{ann_id}.jpg',
    'sent_ids': sentences,
    'sentences': [
      {
        'sent_id': i,
        'raw': f'The  ring, number {i}.',
        'sent': f'the ring number {i}',
        'tokens': ['the', 'ring'],
      }
      for i in sentences
    ],
  }


def write_visual_genome(directory, descriptions=None, image_data=None):
  """`region_descriptions.json` and `image_data.json`; returns their paths."""
  directory = pathlib.Path(directory)
  if descriptions is None:
    descriptions = [
      {'id': 7, 'regions': [vg_region(1), vg_region(2, phrase=' a\n  ring ')]},
      {'id': 8, 'regions': [vg_region(3, image_id=8)]},
      {'id': 9, 'regions': [vg_region(4, image_id=9)]},
    ]
  if image_data is None:
    image_data = [
      {
        'image_id': i,
        'height': HEIGHT,
        'width': WIDTH,
        'url': f'https://example.org/VG_100K/{i}.jpg',
      }
      for i in (7, 8)
    ]
  paths = []
  for name, values in (
    ('region_descriptions', descriptions),
    ('image_data', image_data),
  ):
    path = directory / f'{name}.json'
    path.write_text(json.dumps(values))
    paths.append(str(path))
  return tuple(paths)


def vg_region(region_id, image_id=7, **changes):
  return {
    'region_id': region_id,
    'image_id': image_id,
    'x': 6,
    'y': 4,
    'width': 30,
    'height': 20,
    'phrase': 'a ring',
  } | changes


def write_json(path, values):
  pathlib.Path(path).write_text(json.dumps(values))
  return str(path)


def coco_file(images, annotations):
  return {'info': {'year': 2017}, 'images': images, 'annotations': annotations}


SQUARE = [[6, 4, 36, 4, 36, 24, 6, 24]]  # the pixels of `vg_region`


def mdetr(expression_id, image_id=7, **changes):
  """An expression as MDETR has it: an element of images, and its box."""
  image = coco_image(image_id) | {
    'id': expression_id,
    'original_id': image_id,
    'caption': f'the ring number {expression_id}',
    'dataset_name': 'refcoco',
    'tokens_negative': [[0, 3]],
  }
  annotation = {
    'id': expression_id,
    'image_id': expression_id,
    'original_id': 70,
    'bbox': [6, 4, 30, 20],
    'iscrowd': 0,
    'category_id': 1,
    'tokens_positive': [[4, 8]],
  }
  for key, value in changes.items():
    (annotation if key in ('bbox', 'segmentation') else image)[key] = value
  return image, annotation


def uninext(image_id=7, **changes):
  """A thing as UNINEXT has it."""
  return {
    'image_id': image_id,
    'height': HEIGHT,
    'width': WIDTH,
    'bbox': [6, 4, 30, 20],
    'mask': SQUARE,
    'category_id': 0,
    'expressions': ['the ring', 'red one'],
  } | changes


def conversation(image='coco/train2017/000000000007.jpg', **changes):
  """A row of LLaVA-Instruct; `changes` replace fields, None drops."""
  row = {
    'id': '000000000007',
    'image': image,
    'conversations': [
      {'from': 'human', 'value': '<image>\nWhat is this?'},
      {'from': 'gpt', 'value': 'A red ring.'},
      {'from': 'human', 'value': 'Is it large?'},
      {'from': 'gpt', 'value': 'It is.\n\nVery.'},
    ],
  }
  row.update(changes)
  return {k: v for k, v in row.items() if v is not None}
