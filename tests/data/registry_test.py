# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import io
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import peers
import pytest
import seqio
import tensorflow as tf
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.data import features, loader, registry
from pixel_llm.example import Example, Region

SIZES = batch_lib.BatchSizes(batch=2, image=32, regions=2, context=8, length=8)
BOX = np.asarray([0.25, 0.25, 0.75, 0.75], np.float32)
COUNT = 5


def photo(number):
  pixels = np.full((20, 40, 3), 10 * number, np.uint8)
  pixels[5:15, 10:30] = 200
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, 'PNG')
  return data.getvalue()


def to_example(row):
  text = row['text'].decode() if isinstance(row['text'], bytes) else row['text']
  box = np.asarray(row['place']['box'], np.float32)
  regions = (Region('a', text, box=box), Region('b', 'a star'))
  return Example(row['image'], f'{int(row["id"])}', (20, 40), regions)


ROWS = [
  {'id': i, 'image': photo(i), 'text': 'a red ring', 'place': {'box': BOX}}
  for i in range(COUNT)
]


def stream(split, shuffle_files, seed=None):
  """A SeqIO source that is read from its beginning."""
  del split, shuffle_files, seed
  return tf.data.Dataset.from_tensor_slices(
    {
      'id': [r['id'] for r in ROWS],
      'image': [r['image'] for r in ROWS],
      'text': [r['text'] for r in ROWS],
      'place': {'box': np.stack([r['place']['box'] for r in ROWS])},
    }
  )


@pytest.fixture(scope='module', autouse=True)
def vocabulary(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('v') / 'v.model')
  vocabulary_lib.train(['a red ring', 'a star'] * 5, path, 20)
  registry.use_vocabulary(vocabulary_lib.Vocabulary(path))
  return path


def add(name, source, **options):
  return registry.add_task(
    name,
    source,
    tasks.REFER,
    to_example,
    augmentation=Augmentation(flip=0.5, scale=(0.5, 1.5)),
    replace=True,
    **options,
  )


def rows(name, split, **options):
  ds = seqio.get_dataset(
    name,
    task_feature_lengths=features.lengths(SIZES),
    dataset_split=split,
    feature_converter=features.PixelFeatureConverter(),
    **options,
  )
  return list(ds.as_numpy_iterator())


def is_plain(row):
  """The image is on the canvas as evaluation sees it."""
  return row['image_size'].tolist() == [16, 32] and np.allclose(
    row['boxes'][0], BOX
  )


def test_a_sequence_is_a_task():
  add('list_refer', registry.SequenceSource({'train': ROWS, 'val': ROWS}))
  val = rows('list_refer', 'val', shuffle=False)
  assert len(val) == COUNT and all(map(is_plain, val))
  assert [r['box_weights'].tolist() for r in val] == [[1, 0]] * COUNT
  # The top left pixel says which is which.
  assert [int(r['image'][0, 0, 0]) for r in val] == [0, 10, 20, 30, 40]
  train = rows('list_refer', 'train', shuffle=True, seed=1)
  assert not all(map(is_plain, train))
  again = rows('list_refer', 'train', shuffle=True, seed=1)
  other = rows('list_refer', 'train', shuffle=True, seed=2)
  same = lambda a, b: all(
    np.array_equal(x['image'], y['image']) for x, y in zip(a, b, strict=True)
  )
  assert same(train, again) and not same(train, other)
  shards = [
    rows(
      'list_refer',
      'val',
      shuffle=False,
      shard_info=seqio.ShardInfo(index=i, num_shards=2),
    )
    for i in range(2)
  ]
  assert [len(s) for s in shards] == [3, 2]


def test_other_sources_of_seqio_are_for_seqio():
  source = seqio.FunctionDataSource(
    stream, splits=('train',), num_input_examples={'train': COUNT}
  )
  add('stream_refer', source)
  found = rows('stream_refer', 'train', shuffle=False)
  assert len(found) == COUNT
  assert all(r['decoder_target_tokens'].any() for r in found)
  streams = {'s': loader.Stream('stream_refer', SIZES)}
  with pytest.raises(
    ValueError, match=r'stream_refer: a FunctionDataSource is'
  ):
    loader.Loader(streams, 0, process=(0, 1))


def test_what_lacks_an_example_is_refused():
  with pytest.raises(ValueError, match='x_refer: a SequenceSource needs to_ex'):
    registry.add_task(
      'x_refer', registry.SequenceSource({'train': ROWS}), tasks.REFER
    )
  source = add('list_refer', registry.SequenceSource({'train': ROWS})).source
  with pytest.raises(ValueError, match="no split 'test'; there are train"):
    source.rows('test')
  with pytest.raises(ValueError, match="no task 'y_refer'"):
    registry.task_of('y_refer')


@pytest.mark.parity
def test_seqio_caches_our_tasks_offline(vocabulary, tmp_path):
  peers.imported('apache_beam')
  here = pathlib.Path(__file__)
  root = str(here.parents[2])
  (tmp_path / 'cached_module.py').write_text(
    textwrap.dedent(f"""
      import sys
      sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[1])!r}]
      import registry_test as here
      from pixel_llm import vocabulary
      from pixel_llm.data import registry
      registry.use_vocabulary(vocabulary.Vocabulary({vocabulary!r}))
      rows = registry.SequenceSource({{'train': here.ROWS, 'val': here.ROWS}})
      here.add('cached_refer', rows)
    """)
  )
  subprocess.run(
    [
      sys.executable,
      '-m',
      'seqio.scripts.cache_tasks_main',
      '--tasks=^cached_refer$',
      f'--output_cache_dir={tmp_path / "cache"}',
      '--module_import=cached_module',
      '--pipeline_options=--runner=DirectRunner',
    ],
    check=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), root])},
  )
  add('cached_refer', registry.SequenceSource({'train': ROWS, 'val': ROWS}))
  seqio.add_global_cache_dirs([str(tmp_path / 'cache')])
  stats = json.loads(
    (tmp_path / 'cache' / 'cached_refer' / 'stats.train.json').read_text()
  )
  assert stats['examples'] == COUNT
  for split in ('train', 'val'):
    live = rows('cached_refer', split, shuffle=False, seed=3)
    cached = rows('cached_refer', split, shuffle=False, seed=3, use_cached=True)
    assert all(map(is_plain, cached)) == (split == 'val')
    key = lambda r: r['image'].tobytes()
    if split == 'val':
      assert sorted(map(key, cached)) == sorted(map(key, live))
