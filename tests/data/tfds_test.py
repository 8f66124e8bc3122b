# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow Datasets wrote becomes the same records."""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import public_formats as formats
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from pixel_llm import example, masks
from pixel_llm.data import build, records
from pixel_llm.data.sources.source import SourceError
from pixel_llm.data.sources.tfds import TfdsRefCoco

F = tfds.features
SIZE = formats.HEIGHT, formats.WIDTH
# As `ref_coco` and `coco_captions` of tensorflow_datasets 4.9 declare them.
THING = {
  'id': np.int64,
  'area': np.int64,
  'bbox': F.BBoxFeature(),
  'label': np.int64,
}
EXPRESSIONS = F.Sequence({'refexp_id': np.int64, 'raw': F.Text()})
REF_COCO = {
  'image': F.Image(encoding_format='jpeg'),
  'image/id': np.int64,
  'objects': F.Sequence(
    {
      **THING,
      'gt_box_index': np.int64,
      'mask': F.Image(encoding_format='png'),
      'refexp': EXPRESSIONS,
    }
  ),
  'coco_annotations': F.Sequence(THING),
}
CAPTIONS = {
  'image': F.Image(encoding_format='jpeg'),
  'image/filename': F.Text(),
  'image/id': np.int64,
  'captions': F.Sequence({'text': np.str_, 'id': np.int64}),
}


def encoded(pixels, kind):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  file.seek(0)
  return file


def jpeg(seed):
  rng = np.random.default_rng(seed)
  return encoded(rng.integers(0, 255, (*SIZE, 3), np.uint8), 'JPEG')


def square():
  inside = np.zeros(SIZE, bool)
  inside[4:24, 6:36] = True
  return inside


def thing(expressions, box=(0.1, 0.1, 0.6, 0.6)):
  return {
    'id': 70,
    'area': 600,
    'bbox': F.BBox(*map(float, box)),
    'label': 3,
    'gt_box_index': 0,
    'mask': encoded(square(), 'PNG'),
    'refexp': [{'refexp_id': i, 'raw': text} for i, text in expressions],
  }


def prepared(directory, features, rows, name='ref_coco-train'):
  """The folder of a version, as its builder leaves it; returns the files."""
  features = F.FeaturesDict(features)
  directory = pathlib.Path(directory)
  directory.mkdir(exist_ok=True)
  features.save_config(directory)
  for i in range(2):
    path = directory / f'{name}.tfrecord-0000{i}-of-00002'
    with tf.io.TFRecordWriter(str(path)) as writer:
      for row in rows[i::2]:
        writer.write(features.serialize_example(row))
  return str(directory / f'{name}.tfrecord*')


def ref_coco(tmp_path, *things_of_images):
  rows = [
    {
      'image': jpeg(i),
      'image/id': 7 + i,
      'objects': things,
      'coco_annotations': [],
    }
    for i, things in enumerate(things_of_images)
  ]
  return prepared(tmp_path / '1.1.0', REF_COCO, rows)


def built(name, path, out):
  result = build.build(name, path, None, str(out))
  found = records.RecordSet(str(out), 'train')
  examples = [example.from_bytes(found[i]) for i in range(len(found))]
  return {e.image_id: e for e in examples}, result.manifest


def test_ref_coco(tmp_path):
  path = ref_coco(
    tmp_path,
    [thing([(5, 'The  größte ring'), (6, 'red')]), thing([])],
    [thing([(9, 'left')], box=(0.5, 0.25, 1, 1))],
    [thing([(10, 'right')])],
  )
  examples, manifest = built('refcoco_tfds', path, tmp_path / 'out')
  assert manifest['skipped'] == {}
  assert sorted(examples) == ['7', '8', '9']
  assert examples['7'].image == jpeg(0).getvalue()
  first, second = examples['7'].regions
  assert [(r.id, r.text) for r in (first, second)] == [
    ('5', 'The größte ring'),
    ('6', 'red'),
  ]
  np.testing.assert_allclose(first.box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)
  np.testing.assert_array_equal(masks.decode(first.mask or b'', SIZE), square())
  (left,) = examples['8'].regions  # yxyx there, xyxy here
  np.testing.assert_allclose(left.box, [0.25, 0.5, 1, 1], atol=1e-6)


def test_masks_have_one_size(tmp_path):
  small = thing([(6, 'b')]) | {'mask': encoded(np.eye(3, dtype=bool), 'PNG')}
  path = ref_coco(tmp_path, [thing([(5, 'a')]), small], [thing([(7, 'c')])])
  examples, manifest = built('refcoco_tfds', path, tmp_path / 'out')
  assert [r.id for r in examples['7'].regions] == ['5']
  assert manifest['skipped'] == {'bad_mask': 1}


def test_bad_rows_of_ref_coco(tmp_path):
  path = ref_coco(
    tmp_path,
    [
      thing([(5, ' '), (6, 'red'), (6, 'again')]),
      thing([(7, 'a'), (8, 'b')], box=(0.5, 0.5, 0.5, 1)),
    ],
    [thing([(9, 'left')])],
  )
  examples, manifest = built('refcoco_tfds', path, tmp_path / 'out')
  assert [r.id for r in examples['7'].regions] == ['6']
  assert manifest['skipped'] == {'bad_box': 2, 'duplicate': 1, 'empty_text': 1}
  lines = (tmp_path / 'out' / 'train.report.jsonl').read_text().splitlines()
  fields = {json.loads(line)['field'] for line in lines}
  assert fields == {
    '[0].objects[0].refexp[0].raw',
    '[0].objects[0].refexp[2].id',
    '[0].objects[1].bbox',
  }


def test_coco_captions(tmp_path):
  rows = [
    {
      'image': jpeg(i),
      'image/filename': f'{i}.jpg',
      'image/id': i,
      'captions': [{'text': f'Ring {i}.', 'id': 10 * i}],
    }
    for i in range(3)
  ]
  path = prepared(tmp_path / '1.1.0', CAPTIONS, rows, 'coco_captions-train')
  examples, _ = built('coco_captions_tfds', path, tmp_path / 'out')
  found = {k: (r.id, r.text) for k, e in examples.items() for r in e.regions}
  assert found == {str(i): (str(10 * i), f'Ring {i}.') for i in range(3)}


def test_bad_files(tmp_path):
  path = ref_coco(tmp_path, [thing([(5, 'a')])], [thing([(6, 'b')])])
  first = pathlib.Path(path.replace('*', '-00000-of-00002'))
  with pytest.raises(build.BuildError, match='good row, found missing_field 2'):
    built('coco_captions_tfds', path, tmp_path / 'out')
  with pytest.raises(build.BuildError, match='expected no images'):
    build.build('refcoco_tfds', path, str(tmp_path), str(tmp_path / 'out'))
  data = first.read_bytes()
  first.write_bytes(data[:-9])
  with pytest.raises(SourceError, match=r'00000-of-00002: .* within record 0'):
    built('refcoco_tfds', path, tmp_path / 'out')
  first.write_bytes(data[:12] + b'\xff' * (len(data) - 12))
  examples, manifest = built('refcoco_tfds', path, tmp_path / 'new')
  assert list(examples) == ['8']
  assert manifest['skipped'] == {'not_an_example': 1}


@pytest.mark.parametrize(
  'name,values,reason',
  [
    ('objects/refexp/refexp_id/ragged_flat_values', [1], 'bad_count'),
    ('objects/bbox', [0.0] * 5, 'bad_count'),
    ('objects/bbox', [0.0, 0.0, float('nan'), 1.0], 'not_finite'),
    ('objects/mask', [b'PNG'], 'bad_mask'),
    ('objects/refexp/raw/ragged_flat_values', [1, 2], 'not_a_string'),
    ('objects/refexp/raw/ragged_flat_values', [b'r\xf6t', b'b'], 'not_unicode'),
    ('image', [b'1', b'2'], 'bad_count'),
    ('image', [3], 'not_bytes'),
    ('image/id', [], 'bad_count'),
    ('image/id', [0.5], 'not_a_string'),
  ],
)
def test_bad_features(tmp_path, name, values, reason):
  path = ref_coco(tmp_path, [thing([(5, 'a'), (6, 'b')])])
  first = path.replace('*', '-00000-of-00002')
  (record,) = tf.data.TFRecordDataset(first).as_numpy_iterator()
  row = tf.train.Example.FromString(record)
  feature = row.features.feature[name]
  feature.Clear()
  kind = {int: 'int64_list', float: 'float_list', bytes: 'bytes_list'}
  if values:
    getattr(feature, kind[type(values[0])]).value.extend(values)
  with tf.io.TFRecordWriter(first) as writer:
    writer.write(row.SerializeToString())
  source = TfdsRefCoco([first], '', 'train', {})
  entries, problems = source.index()
  items = [source.read(entry) for entry in entries]
  problems += [p for item in items for p in item.problems]
  kept = sum(len(item.regions) for item in items)
  assert {p.reason for p in problems} == {reason}
  # The record as a whole, or each of its two expressions.
  assert kept + len(problems) in (1, 2)
