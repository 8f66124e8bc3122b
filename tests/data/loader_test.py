# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import itertools

import numpy as np
import pytest
import seqio

from pixel_llm import batch as batch_lib
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import build, datasets, features, loader, registry, scenes

SIZES = batch_lib.BatchSizes(batch=4, image=32, regions=2, context=8, length=24)
SMALL = batch_lib.BatchSizes(batch=2, image=32, regions=3, context=8, length=8)


@pytest.fixture(scope='module')
def registered(tmp_path_factory):
  """Tasks over 10 training scenes, by the real path from files to SeqIO."""
  root = tmp_path_factory.mktemp('scenes')
  scenes.generate(str(root / 's'), seed=3, train=10, val=4, workers=1)
  annotations = root / 's' / 'annotations'
  for split in ('train', 'val'):
    images = str(root / 's' / 'images' / split)
    build.build(
      'localized_narratives',
      str(annotations / f'scenes_{split}_localized_narratives.jsonl'),
      images,
      str(root / 'narratives'),
      split=split,
    )
    build.build(
      'refcoco',
      str(annotations / 'refer' / 'refs(scenes).p'),
      images,
      str(root / 'refer'),
      split=split,
      instances=str(annotations / 'refer' / 'instances.json'),
    )
    build.build(
      'visual_genome',
      str(annotations / f'region_descriptions_{split}.json'),
      images,
      str(root / 'regions'),
      split=split,
      image_data=str(annotations / f'image_data_{split}.json'),
    )
  path = str(root / 'v.model')
  vocabulary_lib.train(['a red ring on the left of a blue star.'] * 5, path, 60)
  registry.use_vocabulary(vocabulary_lib.Vocabulary(path))
  datasets.register(
    {
      'scenes_narratives': str(root / 'narratives'),
      'scenes_refer': str(root / 'refer'),
      'scenes_regions': str(root / 'regions'),
    }
  )
  return root


STREAMS = {
  'narrate': loader.Stream('scenes_narrate', SIZES, 1.0),
  'regions': loader.Stream('scenes_regions', SMALL, 2.0),
}


def take(count, start=0, seed=0, process=(0, 1), streams=None):
  batches = loader.Loader(streams or STREAMS, seed, process=process).batches(
    start
  )
  return list(itertools.islice(batches, count))


def assert_same(left, right):
  assert [n for n, _ in left] == [n for n, _ in right]
  for (_, a), (_, b) in zip(left, right, strict=True):
    for name in batch_lib.Batch.specs():
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_batches_have_the_shapes_of_their_streams(registered):
  names = set()
  for name, batch in take(6):
    batch.check(STREAMS[name].sizes)
    names.add(name)
  assert names == {'narrate', 'regions'}


def test_resuming_at_a_step_equals_running_to_it(registered):
  whole = take(9)
  assert_same(take(4, start=5), whole[5:])
  assert_same(take(9), whole)


def test_the_seed_changes_the_order(registered):
  left, right = take(2, seed=0), take(2, seed=1)
  assert np.any(left[1][1].image != right[1][1].image)


def test_hosts_share_the_same_global_batches(registered):
  whole = take(4)
  halves = [take(4, process=(i, 2)) for i in range(2)]
  for step, (_, batch) in enumerate(whole):
    joined = np.concatenate([h[step][1].image for h in halves])
    np.testing.assert_array_equal(joined, batch.image)


def test_an_epoch_has_every_example_once(registered):
  streams = {'narrate': loader.Stream('scenes_narrate', SIZES)}
  images = np.concatenate([b.image for _, b in take(5, streams=streams)])
  epochs = images.reshape(2, 10, -1)
  for epoch in epochs:
    assert len(np.unique(epoch, axis=0)) == 10
  assert np.any(epochs[0] != epochs[1])


def test_a_mixture_is_mixed_within_a_batch(registered):
  streams = {'regions': loader.Stream('scenes_regions', SMALL)}
  _, batch = take(1, streams=streams)[0]
  # Referring expressions weigh points and no words, captions the reverse.
  words = batch.decoder_loss_weights.sum((1, 2)) > 0
  points = batch.point_weights.sum((1, 2)) > 0
  assert sorted(words.tolist()) == [False, True]
  np.testing.assert_array_equal(words, ~points)


def test_seqio_itself_reads_our_tasks(registered):
  lengths = features.lengths(SIZES)
  ds = seqio.get_dataset(
    'scenes_narrate',
    task_feature_lengths=lengths,
    dataset_split='val',
    shuffle=False,
    feature_converter=features.PixelFeatureConverter(),
  )
  rows = list(ds.as_numpy_iterator())
  assert len(rows) == 4
  for row in rows:
    assert {k: v.shape for k, v in row.items()} == lengths
  task = seqio.TaskRegistry.get('scenes_narrate')
  assert task.num_input_examples('train') == 10
  assert set(seqio.MixtureRegistry.get('scenes').tasks) == {
    seqio.TaskRegistry.get(n) for n in datasets.MIXTURES['scenes']
  }


def test_unknown_mixture_lists_the_known(registered):
  streams = {'x': loader.Stream('scenes_narate', SIZES)}
  with pytest.raises(ValueError, match=r"'scenes_narate'; there are.*narrate"):
    loader.Loader(streams, 0)


def test_batch_must_divide_by_the_hosts(registered):
  with pytest.raises(ValueError, match='batch 4 does not divide by 3 hosts'):
    loader.Loader({'n': STREAMS['narrate']}, 0, process=(0, 3))


def test_lengths_and_sizes_are_inverse():
  assert features.sizes_of(features.lengths(SIZES)) == batch_lib.BatchSizes(
    batch=1, image=32, regions=2, context=8, length=24
  )
  lengths = features.lengths(SIZES)
  with pytest.raises(ValueError, match=r"'points'\]: expected L = 24, got 9"):
    features.sizes_of({**lengths, 'points': (2, 9, 2, 2)})
  with pytest.raises(ValueError, match=r"'image'\]: expected the shape H W 3"):
    features.sizes_of({**lengths, 'image': 32})


def test_unknown_record_set_is_refused():
  with pytest.raises(ValueError, match="unknown record set 'scene_narr"):
    datasets.register({'scene_narratives': 'x'})
