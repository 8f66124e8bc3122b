# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import collections
import dataclasses
import itertools
import shutil
import threading

import jax
import numpy as np
import pytest
import scene_records
import seqio

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import image, sharding, tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.data import (
  datasets,
  features,
  loader,
  records,
  registry,
)
from pixel_llm.tasks import task as task_lib

SIZES = batch_lib.BatchSizes(batch=4, image=32, regions=2, context=8, length=24)
SMALL = batch_lib.BatchSizes(batch=2, image=32, regions=3, context=8, length=8)


@pytest.fixture(scope='module')
def registered(tmp_path_factory):
  """Tasks over 10 training scenes, by the real path from files to SeqIO."""
  root = tmp_path_factory.mktemp('scenes')
  scene_records.make(root, seed=3, train=10, val=4)
  path = str(root / 'v.model')
  vocabulary_lib.train(['a red ring on the left of a blue star.'] * 5, path, 60)
  registry.use_vocabulary(vocabulary_lib.Vocabulary(path))
  datasets.register(
    {
      'scenes_narratives': str(root / 'narratives'),
      'scenes_refer': str(root / 'refer'),
      'scenes_regions': str(root / 'regions'),
    },
    augmentation={
      'scenes_refer': Augmentation(scale=(0.75, 1.25)),
      'scenes_caption_at': Augmentation(0.5, (0.3, 2.0), click=0.5),
    },
  )
  datasets.add_mixtures({'uneven': {'scenes_refer': 3, 'scenes_caption_at': 1}})
  return root


# As the paper changes its data, and members of unequal share.
AUGMENTED = {
  'narrate': loader.Stream('scenes_narrate', SIZES, 1.0),
  'regions': loader.Stream(
    'uneven',
    dataclasses.replace(
      SMALL, batch=4, objects=5, mask=8, prompt_points=1, context=10
    ),
    2.0,
  ),
}
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


def joined(parts):
  """The global batches of several hosts."""
  names = [[n for n, _ in part] for part in parts]
  assert all(n == names[0] for n in names)
  return [
    (
      steps[0][0],
      jax.tree.map(lambda *x: np.concatenate(x), *(b for _, b in steps)),
    )
    for steps in zip(*parts, strict=True)
  ]


@pytest.mark.parametrize('hosts', [2, 4])
def test_batches_do_not_depend_on_the_hosts(registered, hosts):
  whole = take(5, streams=AUGMENTED)
  assert_same(joined(hosts_take(hosts, 5)), whole)


def hosts_take(hosts, count, start=0):
  return [
    take(count, start, process=(i, hosts), streams=AUGMENTED)
    for i in range(hosts)
  ]


def test_hosts_may_change_after_a_kill_at_any_step(registered):
  whole = take(6, streams=AUGMENTED)
  for step, hosts in ((1, 4), (2, 1), (3, 2), (5, 4)):
    rest = joined(hosts_take(hosts, 6 - step, step))
    assert_same(rest, whole[step:])


def test_batches_do_not_depend_on_the_workers(registered):
  whole = take(4, streams=AUGMENTED)
  for workers in (1, 3):
    batches = loader.Loader(AUGMENTED, 0, process=(0, 1), workers=workers)
    assert_same(list(itertools.islice(batches.batches(0), 4)), whole)


def test_slots_say_which_examples_a_batch_has(registered):
  found = loader.Loader(AUGMENTED, 0, process=(0, 1))
  for step, (name, batch) in enumerate(take(6, streams=AUGMENTED)):
    stream, slots = found.slots(step)
    assert stream == name
    for row, slot in enumerate(slots):
      entry = registry.task_of(slot.task)
      expected = task_lib.training_features(
        entry.task,
        entry.sequence.example('train', slot.index),
        entry.vocabulary,
        AUGMENTED[name].sizes,
        entry.augmentation,
        slot.seed,
      )
      for field, value in expected.items():
        np.testing.assert_array_equal(getattr(batch, field)[row], value)


def test_every_epoch_of_every_member_has_each_example_once(registered):
  """10 scenes a member; two thirds of the steps are of the mixture."""
  found = loader.Loader(AUGMENTED, 5, process=(0, 1))
  seen = collections.defaultdict(list)
  for step in range(180):
    for slot in found.slots(step)[1]:
      seen[slot.task].append(slot.index)
  # 60 steps of 4, and 120 of 4 shared out 3 : 1.
  assert {k: len(v) for k, v in seen.items()} == {
    'scenes_narrate': 240,
    'scenes_refer': 360,
    'scenes_caption_at': 120,
  }
  for indices in seen.values():
    epochs = np.reshape(indices, (-1, 10))
    np.testing.assert_array_equal(
      np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1))
    )
    assert len(np.unique(epochs, axis=0)) > len(epochs) * 0.9


def test_far_positions_are_as_near_as_the_first(registered):
  found = loader.Loader(AUGMENTED, 0, process=(0, 1))
  step = 10**9
  (name, batch), (_, later) = take(2, start=step, streams=AUGMENTED)
  assert found.slots(step)[0] == name
  assert_same(take(1, start=step + 1, streams=AUGMENTED)[0:1], [(_, later)])
  batch.check(AUGMENTED[name].sizes)


@pytest.fixture(name='torn')
def torn_fixture(registered, tmp_path):
  """Narratives of which one image is cut short and one record is no record."""
  folder = tmp_path / 'torn'
  shutil.copytree(registered / 'narratives', folder)
  source = records.RecordSet(str(folder), 'train')
  rows = [source[i] for i in range(len(source))]
  third = example_lib.from_bytes(rows[3])
  rows[3] = example_lib.to_bytes(
    dataclasses.replace(third, image=third.image[: len(third.image) // 2])
  )
  rows[7] = b'no record'
  registry.add_task(
    'torn_narrate',
    registry.SequenceSource(
      {'train': rows, 'none': []}, example_lib.from_bytes
    ),
    tasks.NARRATE,
    replace=True,
  )
  return rows, third.image_id


def test_what_is_damaged_is_passed_over_and_nothing_moves(torn):
  rows, torn_id = torn
  streams = {'s': loader.Stream('torn_narrate', SIZES)}
  found = loader.Loader(streams, 0, process=(0, 1), max_damaged=100)
  got = list(itertools.islice(found.batches(0), 5))
  empty = 0
  for step, (_, batch) in enumerate(got):
    for row, slot in enumerate(found.slots(step)[1]):
      if slot.index in (3, 7):
        empty += 1
        for name in ('decoder_loss_weights', 'point_weights', 'image'):
          assert not getattr(batch, name)[row].any()
        assert batch.image_size[row].tolist() == [SIZES.image] * 2
        assert batch.prompt_box_weights[row].all()
      else:
        entry = registry.task_of('torn_narrate')
        expected = task_lib.training_features(
          entry.task,
          example_lib.from_bytes(rows[slot.index]),
          entry.vocabulary,
          SIZES,
          entry.augmentation,
          slot.seed,
        )
        np.testing.assert_array_equal(batch.image[row], expected['image'])
  assert empty == 4  # two epochs
  assert len(found.damaged) >= empty
  assert all(m.startswith('torn_narrate, row ') for m in found.damaged)
  text = '\n'.join(found.damaged)
  assert f'{torn_id}: expected a JPEG' in text and 'truncated' in text
  assert 'record of 9 bytes: not a canonical example' in text


def test_too_much_damage_ends_with_the_reason(torn):
  streams = {'s': loader.Stream('torn_narrate', SIZES)}
  found = loader.Loader(streams, 0, process=(0, 1))
  with pytest.raises((example_lib.DamagedError, image.ImageError)):
    list(itertools.islice(found.batches(0), 5))


def test_a_split_without_rows_is_refused(torn):
  streams = {'s': loader.Stream('torn_narrate', SIZES)}
  with pytest.raises(ValueError, match="torn_narrate: expected rows in 'none'"):
    loader.Loader(streams, 0, 'none', process=(0, 1))
  with pytest.raises(
    ValueError, match="no split 'test'; there are train, none"
  ):
    loader.Loader(streams, 0, 'test', process=(0, 1))


def test_a_bug_of_to_example_is_no_damage(registered):
  def broken(row):
    raise KeyError('caption')

  registry.add_task(
    'broken_narrate',
    registry.SequenceSource({'train': [1, 2, 3]}),
    tasks.NARRATE,
    to_example=broken,
    replace=True,
  )
  streams = {'s': loader.Stream('broken_narrate', SIZES)}
  found = loader.Loader(streams, 0, process=(0, 1), max_damaged=100)
  with pytest.raises(KeyError, match='caption'):
    next(found.batches(0))


def test_batches_come_to_the_device_in_order(registered):
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:4])
  batches = loader.Loader(AUGMENTED, 0, process=(0, 1)).batches(0)
  ahead = loader.on_device(batches, sharding.batch_sharding(mesh))
  got = list(itertools.islice(ahead, 5))
  ahead.close()
  assert all(isinstance(b.image, jax.Array) for _, b in got)
  assert_same(got, take(5, streams=AUGMENTED))
  assert not [t for t in threading.enumerate() if t.name == 'on_device']


def test_an_error_on_the_way_to_the_device_arrives(registered):
  def broken():
    yield from itertools.islice(
      loader.Loader(AUGMENTED, 0, process=(0, 1)).batches(0), 1
    )
    raise ValueError('here')

  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:4])
  ahead = loader.on_device(broken(), sharding.batch_sharding(mesh))
  next(ahead)
  with pytest.raises(ValueError, match='here'):
    next(ahead)


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
    shapes = {k: v.shape(SIZES)[1:] for k, v in batch_lib.Batch.specs().items()}
    assert {k: v.shape for k, v in row.items()} == shapes
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


def test_record_sets_of_ones_own_can_be_asked_anything(registered):
  datasets.register({'mine': str(registered / 'refer')})
  names = {n for n in seqio.TaskRegistry.names() if n.startswith('mine_')}
  assert names == {f'mine_{t.name}' for t in datasets.CAPABILITIES}
  streams = {'s': loader.Stream('mine_segment', SMALL)}
  batch = take(1, streams=streams)[0][1]
  assert batch.box_weights.any()


def test_names_that_are_no_task_are_refused(registered):
  given = {'scenes_refer': str(registered / 'refer')}
  with pytest.raises(ValueError, match=r'augmentation.refer: expected a task'):
    datasets.register(given, augmentation={'refer': Augmentation()})
  with pytest.raises(ValueError, match=r'prompts.x: expected .*scenes_refer'):
    datasets.register(given, prompts={'x': ('a',)})
  with pytest.raises(
    ValueError, match=r'scenes_refer: expected at least one t'
  ):
    datasets.register(given, prompts={'scenes_refer': ()})
  with pytest.raises(ValueError, match=r'mixtures.m.nothing: expected a posit'):
    datasets.add_mixtures({'m': {'nothing': 1.0}})
  with pytest.raises(ValueError, match=r'mixtures.m.scenes_refer: .*got 0'):
    datasets.add_mixtures({'m': {'scenes_refer': 0.0}})
  with pytest.raises(FileNotFoundError, match='found no manifest'):
    datasets.register({'mine': str(registered / 's')})
