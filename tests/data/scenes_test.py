# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pixel_llm import masks
from pixel_llm.data import (
  align,
  scene_images,
  scene_text,
  scene_voices,
  scenes,
)
from pixel_llm.data.sources import (
  coco,
  localized_narratives,
  refcoco,
  source,
)
from pixel_llm.metrics import objects

# Enough for each split to have more than one part.
SEED, TRAIN, VAL = 5, 40, 5
SPLITS = {'train': TRAIN, 'val': VAL}


def digest(root: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('scenes') / 'new'
  scenes.generate(str(out), SEED, TRAIN, VAL, workers=1)
  return out


@pytest.fixture(scope='module')
def samples() -> list[scene_images.Scene]:
  return [
    scene_images.sample(np.random.default_rng((1, i))) for i in range(250)
  ]


def read(root: pathlib.Path, name: str):
  return json.loads((root / 'annotations' / name).read_bytes())


def rows(root: pathlib.Path, split: str) -> list[dict]:
  name = f'scenes_{split}_localized_narratives.jsonl'
  lines = (root / 'annotations' / name).read_text().splitlines()
  return [json.loads(line) for line in lines]


def plain_words(text: str) -> list[str]:
  return re.findall(r'\w+', text.lower())


# Directories.


def test_bytes_do_not_depend_on_workers(root, tmp_path):
  scenes.generate(str(tmp_path), SEED, TRAIN, VAL, workers=2)
  assert digest(tmp_path) == digest(root)


def test_other_seed_other_images(root, tmp_path):
  scenes.generate(str(tmp_path), SEED + 1, 2, 0, workers=1)
  ours = digest(tmp_path / 'images')
  assert len(ours) == 2
  assert not set(ours.values()) & set(digest(root / 'images').values())


def test_larger_set_begins_with_the_smaller(root, tmp_path):
  scenes.generate(str(tmp_path), SEED, 3, 2, workers=1)
  assert digest(tmp_path / 'images').items() <= digest(root / 'images').items()
  for split, count in (('train', 3), ('val', 2)):
    assert rows(tmp_path, split) == rows(root, split)[: 2 * count]


@pytest.mark.parametrize('images_before', [0, 40])
def test_killed_and_repeated(root, tmp_path, images_before):
  class Killed(BaseException):
    pass

  def kill(done, total):
    assert total == TRAIN + VAL
    if done >= images_before:
      raise Killed

  with pytest.raises(Killed):
    scenes.generate(str(tmp_path), SEED, TRAIN, VAL, 1, kill)
  # What a process that is cut off in the middle of an image leaves.
  (tmp_path / 'images/val/000000000002.jpg').write_bytes(b'\xff\xd8')
  calls = []
  scenes.generate(
    str(tmp_path), SEED, TRAIN, VAL, 1, lambda *call: calls.append(call)
  )
  assert calls[0][0] >= images_before
  assert calls[-1] == (TRAIN + VAL, TRAIN + VAL)
  assert digest(tmp_path) == digest(root)


def test_killed_while_annotations_are_written(root, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(scenes._Numbered, 'files', fail)
    with pytest.raises(OSError, match='No space'):
      scenes.generate(str(tmp_path), SEED, TRAIN, VAL, 1)
  scenes.generate(str(tmp_path), SEED, TRAIN, VAL, 1)
  assert digest(tmp_path) == digest(root)


def test_finished_directory_is_left_alone(root):
  before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
  scenes.generate(str(root), SEED, TRAIN, VAL)
  assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}


def test_directory_of_other_arguments(root):
  with pytest.raises(ValueError, match=r'expected .*seed 6.*found .*seed 5'):
    scenes.generate(str(root), SEED + 1, TRAIN, VAL)


def test_directory_of_other_files(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(ValueError, match=r'no scenes\.json'):
    scenes.generate(str(tmp_path), SEED, TRAIN, VAL)
  (tmp_path / 'scenes.json').write_text('[1]')
  with pytest.raises(ValueError, match=r'scenes\.json: expected'):
    scenes.generate(str(tmp_path), SEED, TRAIN, VAL)
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [((-1, 1, 1), 'seed'), ((0, 1, -2), 'val'), ((0, 0, 0), 'train, val')],
)
def test_arguments(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    scenes.generate(str(tmp_path / 'new'), *arguments)
  assert not (tmp_path / 'new').exists()


def test_imports_are_light():
  code = (
    'import sys, pixel_llm.data.scenes; '
    'sys.exit(bool({"jax", "tensorflow", "flax"} & set(sys.modules)))'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# Formats: the key sets are those of the public files.


def test_localized_narratives(root):
  for split, count in SPLITS.items():
    found = rows(root, split)
    names = collections.Counter(row['image_id'] for row in found)
    assert len(names) == count
    assert set(names.values()) == {2}
    for row in found:
      assert row.keys() == {
        'dataset_id', 'image_id', 'annotator_id', 'caption', 'timed_caption',
        'traces', 'voice_recording',
      }  # fmt: skip
      assert row['dataset_id'] == f'scenes_{split}'
      assert type(row['annotator_id']) is int
      assert row['voice_recording'].endswith(
        f'_{row["image_id"]}_{row["annotator_id"]}.ogg'
      )
      image = f'images/{split}/{int(row["image_id"]):012d}.jpg'
      assert (root / image).exists()
      assert row['caption'].endswith('.')
      assert len(row['caption'].split()) <= 45
      for timed in row['timed_caption']:
        assert timed.keys() == {'utterance', 'start_time', 'end_time'}
        assert 0 <= timed['start_time'] <= timed['end_time']
      starts = [timed['start_time'] for timed in row['timed_caption']]
      assert starts == sorted(starts)
      assert all(row['traces'])
      points = [p for segment in row['traces'] for p in segment]
      assert all(p.keys() == {'x', 'y', 't'} for p in points)
      assert (np.diff([p['t'] for p in points]) > 0).all()
      seconds = points[-1]['t'] - points[0]['t']
      assert len(points) / seconds <= 70
    people = {(row['image_id'], row['annotator_id']) for row in found}
    assert len(people) == len(found)


def test_oddities_of_real_narratives_occur(root):
  train = rows(root, 'train')
  first = [t['start_time'] for row in train for t in row['timed_caption'][:1]]
  assert {int, float} == set(map(type, first))
  empty = sum(
    t['start_time'] == t['end_time'] for r in train for t in r['timed_caption']
  )
  assert 0 < empty < 0.03 * sum(len(r['timed_caption']) for r in train)
  assert any(len(row['traces']) > 1 for row in train)
  outside = [
    any(not 0 <= p[a] <= 1 for s in row['traces'] for p in s for a in 'xy')
    for row in train
  ]
  assert 0.05 < np.mean(outside) < 0.7
  counts = [len(plain_words(t['utterance'])) for t in train[0]['timed_caption']]
  assert max(counts) > 1


def test_utterances_are_the_caption(root):
  exact = 0
  for row in rows(root, 'train'):
    said = ' '.join(timed['utterance'] for timed in row['timed_caption'])
    assert plain_words(said) == plain_words(row['caption'])
    exact += said == row['caption']
  assert 0 < exact < 2 * TRAIN


def test_our_reader_takes_every_narrative(root):
  name = 'annotations/scenes_val_localized_narratives.jsonl'
  reader = localized_narratives.LocalizedNarratives(
    [str(root / name)], str(root / 'images'), 'val', None
  )
  entries, problems = reader.index()
  assert not problems
  assert len(entries) == VAL
  for entry in entries:
    item = reader.read(entry)
    assert not item.problems
    assert len(item.regions) == 2
    for _, region in item.regions:
      assert (region.spans >= 0).all()
      # Of short ones too, at most one is said before the pointer comes.
      missing = (region.span_weights == 0).sum()
      assert missing <= max(1, 0.1 * len(region.span_weights))


def test_images(root):
  for split, count in SPLITS.items():
    images = read(root, f'instances_{split}.json')['images']
    assert len(images) == count
    for image in images:
      file = root / 'images' / split / image['file_name']
      with Image.open(file) as opened:
        assert opened.format == 'JPEG'
        assert opened.size == (image['width'], image['height'])
        opened.load()
      assert 96 <= max(opened.size) <= 192
      # Sides are whole pixels.
      assert 0.49 <= opened.width / opened.height <= 2.05


def test_coco(root):
  ids, image_ids = [], []
  for split in SPLITS:
    instances = read(root, f'instances_{split}.json')
    captions = read(root, f'captions_{split}.json')
    assert instances.keys() == {
      'info', 'licenses', 'categories', 'images', 'annotations',
    }  # fmt: skip
    assert captions.keys() == {'info', 'licenses', 'images', 'annotations'}
    assert captions['images'] == instances['images']
    sizes = {}
    for image in instances['images']:
      assert image.keys() == {
        'license', 'file_name', 'coco_url', 'height', 'width', 'date_captured',
        'flickr_url', 'id',
      }  # fmt: skip
      sizes[image['id']] = image['width'], image['height']
    image_ids += sizes
    names = {c['id']: c['name'] for c in instances['categories']}
    assert tuple(names.values()) == scenes.SHAPES
    for thing in instances['annotations']:
      assert thing.keys() == {
        'segmentation', 'area', 'iscrowd', 'image_id', 'bbox', 'category_id',
        'id',
      }  # fmt: skip
      assert thing['category_id'] in names
      left, top, width, height = thing['bbox']
      assert left >= 0
      assert top >= 0
      assert left + width <= sizes[thing['image_id']][0]
      assert top + height <= sizes[thing['image_id']][1]
      (polygon,) = thing['segmentation']
      xy = np.array(polygon).reshape(-1, 2)
      low, high = xy.min(axis=0), xy.max(axis=0)
      np.testing.assert_allclose([left, top], low, atol=0.011)
      np.testing.assert_allclose([width, height], high - low, atol=0.011)
      assert 0 < thing['area'] <= width * height + 0.1
      ids.append(thing['id'])
    for caption in captions['annotations']:
      assert caption.keys() == {'image_id', 'id', 'caption'}
      assert caption['image_id'] in sizes
  assert ids == list(range(1, len(ids) + 1))
  assert len(set(image_ids)) == TRAIN + VAL


def test_refer(root):
  folder = root / 'annotations/refer'
  refs = pickle.loads((folder / 'refs(scenes).p').read_bytes())
  instances = json.loads((folder / 'instances.json').read_bytes())
  things = {thing['id']: thing for thing in instances['annotations']}
  images = {image['id']: image for image in instances['images']}
  assert len(images) == TRAIN + VAL
  assert {ref['split'] for ref in refs} == set(SPLITS)
  sent_ids = []
  for ref in refs:
    assert ref.keys() == {
      'ann_id', 'category_id', 'file_name', 'image_id', 'ref_id', 'sent_ids',
      'sentences', 'split',
    }  # fmt: skip
    thing = things[ref['ann_id']]
    assert thing['image_id'] == ref['image_id']
    assert thing['category_id'] == ref['category_id']
    name = images[ref['image_id']]['file_name']
    assert (root / 'images' / ref['split'] / name).exists()
    assert ref['sent_ids'] == [s['sent_id'] for s in ref['sentences']]
    assert 1 <= len(ref['sentences']) <= 3
    for sentence in ref['sentences']:
      assert sentence.keys() == {'raw', 'sent', 'sent_id', 'tokens'}
      assert ' '.join(sentence['tokens']) == sentence['sent']
      assert plain_words(sentence['raw']) == sentence['tokens']
    sent_ids += ref['sent_ids']
  assert len(set(sent_ids)) == len(sent_ids)
  assert len(refs) > 0.95 * len(things)


def test_mdetr(root):
  refs = pickle.loads((root / 'annotations/refer/refs(scenes).p').read_bytes())
  for split in SPLITS:
    values = read(root, f'finetune_scenes_{split}.json')
    boxes = {
      a['id']: a['bbox']
      for a in read(root, f'instances_{split}.json')['annotations']
    }
    expected = [
      (r['image_id'], r['ann_id'], s['sent'])
      for r in refs
      for s in r['sentences']
      if r['split'] == split
    ]
    found = []
    for image, thing in zip(
      values['images'], values['annotations'], strict=True
    ):
      assert image.keys() == {
        'file_name', 'height', 'width', 'id', 'original_id', 'caption',
        'dataset_name', 'tokens_negative',
      }  # fmt: skip
      assert thing.keys() == {
        'area', 'iscrowd', 'image_id', 'category_id', 'id', 'bbox',
        'original_id', 'tokens_positive',
      }  # fmt: skip
      assert thing['image_id'] == thing['id'] == image['id']
      assert thing['bbox'] == boxes[thing['original_id']]
      ((begin, end),) = thing['tokens_positive']
      shape = scenes.SHAPES[thing['category_id'] - 1]
      assert image['caption'][begin:end] in (shape, 'object')
      words = [image['caption'][a:b] for a, b in image['tokens_negative']]
      assert len(words) == len(image['caption'].split()) - 1
      found.append(
        (image['original_id'], thing['original_id'], image['caption'])
      )
    assert found == expected


def test_visual_genome(root):
  for split, count in SPLITS.items():
    regions = read(root, f'region_descriptions_{split}.json')
    data = read(root, f'image_data_{split}.json')
    assert len(regions) == len(data) == count
    for values, image in zip(regions, data):
      assert values.keys() == {'regions', 'id'}
      assert image.keys() == {
        'width', 'url', 'height', 'image_id', 'coco_id', 'flickr_id',
      }  # fmt: skip
      assert (root / image['url']).exists()
      assert values['id'] == image['image_id']
      for region in values['regions']:
        assert region.keys() == {
          'region_id', 'width', 'height', 'image_id', 'phrase', 'y', 'x',
        }  # fmt: skip
        assert region['image_id'] == image['image_id']
        numbers = [region[k] for k in ('x', 'y', 'width', 'height')]
        assert {type(n) for n in numbers} == {int}
        source.box(
          source.Row('vg', None), numbers, (image['height'], image['width'])
        )
        assert objects.mentions(region['phrase']).total() == 1


def test_files_agree_on_what_is_there(root):
  """Narratives, captions and regions name the shapes of the instances."""
  instances = read(root, 'instances_train.json')['annotations']
  shapes = collections.defaultdict(collections.Counter)
  for thing in instances:
    name = scenes.SHAPES[thing['category_id'] - 1]
    shapes[thing['image_id']][name] += 1
  texts = [(int(r['image_id']), r['caption']) for r in rows(root, 'train')]
  captions = read(root, 'captions_train.json')['annotations']
  texts += [(c['image_id'], c['caption']) for c in captions]
  pairs = collections.defaultdict(set)
  for image_id, text in texts:
    named = objects.mentions(text)
    found = collections.Counter()
    for (_, shape), number in named.items():
      found[shape] += number
    assert found == shapes[image_id], text
    pairs[image_id].add(tuple(sorted(named.items())))
  assert all(len(p) == 1 for p in pairs.values())


def test_words_are_few(root):
  texts = [r['caption'] for r in rows(root, 'train')]
  for name in ('captions', 'finetune_scenes'):
    key = 'images' if name == 'finetune_scenes' else 'annotations'
    texts += [v['caption'] for v in read(root, f'{name}_train.json')[key]]
  vocabulary = {w for text in texts for w in plain_words(text)}
  assert 50 < len(vocabulary) < 160


# What is there.


def test_the_metric_knows_our_words():
  assert scenes.COLORS == objects.COLORS
  assert scenes.SHAPES == objects.SHAPES


def test_counts_and_distractors(samples):
  counts = np.array([len(s.things) for s in samples])
  assert set(counts) == {1, 2, 3, 4, 5, 6}
  assert 2.2 < counts.mean() < 2.9

  def alike(a, b):
    return sum(
      getattr(a, n) == getattr(b, n)
      for n in ('shape', 'color', 'size', 'pattern')
    )

  close = [
    any(
      alike(a.look, b.look) == 3 for a in s.things for b in s.things if a != b
    )
    for s in samples
    if len(s.things) > 1
  ]
  assert 0.4 < np.mean(close) < 0.75


def test_sizes_leave_a_gap(samples):
  for scene in samples:
    shorter = min(scene.width, scene.height)
    for thing in scene.things:
      ratio = thing.diameter / shorter
      if thing.look.size == 'small':
        assert 0.26 < ratio < 0.42
      else:
        assert 0.44 < ratio < 0.58
      assert thing.diameter > 0.19 * max(scene.width, scene.height)


def test_most_of_everything_can_be_seen(samples):
  parts = [p for scene in samples for p in scene_images.visible(scene)]
  assert min(parts) >= scene_images.VISIBLE
  assert 0.03 < np.mean(np.array(parts) < 0.99) < 0.4


def test_boxes_are_tight_to_what_is_drawn(samples):
  shifts = []
  for scene in samples[:40]:
    for thing in scene.things:
      empty = scene_images.Scene(scene.width, scene.height, 'grey', ())
      alone = scene_images.Scene(scene.width, scene.height, 'grey', (thing,))
      difference = np.abs(
        scene_images.draw(alone, np.random.default_rng(0)).astype(int)
        - scene_images.draw(empty, np.random.default_rng(0))
      ).max(axis=-1)
      rows_, columns = np.nonzero(difference > 8)
      drawn = [
        columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1,
      ]  # fmt: skip
      # A pixel that the outline cuts may be too faint to count.
      np.testing.assert_allclose(drawn, thing.box, atol=1.6)
      shifts.append((drawn - thing.box).reshape(2, 2).mean(axis=0))
  assert np.abs(np.mean(shifts, axis=0)).max() < 0.2


def test_colors_are_what_they_are_called(samples):
  """Most of a thing's visible pixels are nearest to its own colour."""
  paint = np.array([scene_images._PAINT[c][0] for c in scenes.COLORS])
  wrong = []
  for scene in samples[:40]:
    image = scene_images.draw(scene, np.random.default_rng(0)).astype(int)
    thing = scene.things[-1]  # in front
    mask = scene_images._mask(thing, scene.width, scene.height)
    distance = np.abs(image[mask][:, None] - paint[None]).sum(axis=-1)
    named = np.bincount(distance.argmin(axis=-1), minlength=len(paint))
    wrong.append(scenes.COLORS[named.argmax()] != thing.look.color)
  assert not any(wrong)


# What is said.


def test_expressions_mean_one_thing(samples):
  kinds = collections.Counter()
  missing = total = 0
  for i, scene in enumerate(samples):
    rng = np.random.default_rng((2, i))
    for index in range(len(scene.things)):
      found = scene_text.refer(scene, index, rng, 3)
      total += 1
      missing += not found
      for expression, text in found:
        for strict in (True, False):
          assert scene_text.matches(expression, scene, strict) == [index]
        # Every word of the structure is said.
        for name in ('shape', 'color', 'pattern'):
          said = getattr(expression, name)
          assert said is None or said in text.split()
        place = expression.place and 'place'
        kinds['relation' if expression.relation else place or 'look'] += 1
        assert text == text.lower()
  assert missing < 0.02 * total
  assert min(kinds[k] / kinds.total() for k in ('look', 'relation')) > 0.15
  assert kinds['place'] > 0


def test_what_is_absent_is_nowhere(samples):
  words, total = collections.Counter(), 0
  for i, scene in enumerate(samples):
    found = scene_text.absent(scene, np.random.default_rng((3, i)), 3)
    total += len(found)
    for text in found:
      said = text.split()
      kinds = {
        name: [w for w in said if w in choices]
        for name, choices in scene_text._CHANGED.items()
      }
      # Of two that are named, one at least is not there.
      words['anchored'] += len(kinds['shape']) > 1
      if all(len(found) < 2 for found in kinds.values()):
        words['alone'] += 1
        assert not any(
          all(getattr(thing.look, k) in v for k, v in kinds.items() if v)
          for thing in scene.things
        )
  assert total > 2.9 * len(samples)
  assert min(words['alone'], words['anchored']) > 0.2 * total


def test_expressions_in_our_own_format(root):
  lines = read_lines(root, 'scenes_val_expressions.jsonl')
  refs = [
    sentence['sent']
    for ref in pickle.loads(
      (root / 'annotations/refer/refs(scenes).p').read_bytes()
    )
    if ref['split'] == 'val'
    for sentence in ref['sentences']
  ]
  regions = [r for line in lines for r in line['regions']]
  assert sorted(r['text'] for r in regions if 'box' in r) == sorted(refs)
  assert all('mask' in r for r in regions if 'box' in r)
  absent = [r for r in regions if r.get('absent')]
  assert len(absent) + len(refs) == len(regions)
  assert len(absent) > 2 * len(lines)


def read_lines(root, name):
  text = (root / 'annotations' / name).read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_matches_on_a_scene_by_hand():
  def thing(shape, color, size, x, y):
    look = scene_images.Look(shape, color, size, 'plain')
    side = {'small': 20, 'large': 36}[size] / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side
    return scene_images.Thing(
      look, corners + np.array([x, y]), (0, 0, 0), (9, 9, 9), 0.0, np.zeros(2)
    )

  scene = scene_images.Scene(
    100, 100, 'grey',
    (
      thing('ring', 'red', 'small', 20, 20),
      thing('ring', 'red', 'small', 80, 24),
      thing('star', 'green', 'large', 50, 22),
      thing('ring', 'blue', 'large', 45, 75),
    ),
  )  # fmt: skip
  e = scene_text.Expression
  star = e(shape='star')

  def both(expression):
    return [
      scene_text.matches(expression, scene, strict) for strict in (True, False)
    ]

  assert both(e(shape='ring')) == [[0, 1, 3]] * 2
  assert both(e(shape='ring', color='red')) == [[0, 1]] * 2
  assert both(e(shape='ring', size='large')) == [[3]] * 2
  assert both(e('ring', 'red', place='left')) == [[0]] * 2
  assert both(e('ring', place='bottom')) == [[3]] * 2
  # Neither is clearly higher.
  assert both(e('ring', 'red', place='top')) == [[], []]
  assert both(e('ring', place='largest')) == [[3]] * 2
  assert both(e('ring', 'red', place='largest')) == [[], []]
  assert both(e('ring', relation='right of', anchor=star)) == [[1]] * 2
  # The blue ring is left of it by a little: nobody should be asked.
  left = e('ring', relation='left of', anchor=star)
  assert both(left) == [[0], [0, 3]]
  assert not scene_text.means(left, scene, 0)
  assert both(e('star', relation='above', anchor=e('ring', 'red'))) == [[], []]


def test_narratives_name_each_thing_once(samples):
  lengths = collections.defaultdict(list)
  for i, scene in enumerate(samples):
    rng = np.random.default_rng((3, i))
    voice = scene_text.VOICES[i % len(scene_text.VOICES)]
    pieces = scene_text.narrative(scene, voice, rng)
    caption = ' '.join(piece.text for piece in pieces)
    looks = collections.Counter(
      (t.look.color, t.look.shape) for t in scene.things
    )
    assert objects.mentions(caption) == looks, caption
    named = [
      piece.target
      for piece in pieces
      if isinstance(piece.target, int) and objects.mentions(piece.text)
    ]
    assert named == scene_text.order(scene, voice.habit)
    for piece in pieces:
      if objects.mentions(piece.text):
        look = scene.things[piece.target].look
        assert list(objects.mentions(piece.text)) == [(look.color, look.shape)]
    lengths[len(scene.things)].append(len(caption.split()))
  means = [np.mean(lengths[n]) for n in range(1, 7)]
  assert means == sorted(means)
  assert max(max(n) for n in lengths.values()) <= scene_text.MAX_WORDS


def test_pointer_is_where_the_words_are(samples):
  """As the builder sees it: 16 samples of the trace over each utterance."""
  distances, extents, hits = [], [], []
  for i, scene in enumerate(samples[:120]):
    rng = np.random.default_rng((4, i))
    voice = scene_text.VOICES[i % len(scene_text.VOICES)]
    pieces = scene_text.narrative(scene, voice, rng)
    utterances = scene_voices.speak(pieces, voice, rng)
    segments = scene_voices.point(scene, utterances, voice, rng)
    trace = np.concatenate(segments)
    assert (np.diff(trace[:, 2]) > 0).all()
    times = np.array([(u.start, u.end) for u in utterances])
    boxes, centers, _ = align.utterance_places(trace, times)
    size = np.array([scene.width, scene.height])
    for index, thing in enumerate(scene.things):
      about = [j for j, u in enumerate(utterances) if u.target == index]
      low, high = thing.box.reshape(2, 2) / size
      middle, half = (low + high) / 2, (high - low) / 2
      weights = times[about, 1] - times[about, 0] + 1e-6
      mean = np.average(centers[about], axis=0, weights=weights)
      hits.append((np.abs(mean - middle) <= 1.1 * half).all())
      distances.append(np.abs(centers[about] - middle).mean())
      longest = about[int(np.argmax(weights))]
      extents.append((boxes[longest, 2:] - boxes[longest, :2]) / (2 * half))
  assert np.mean(hits) > 0.98
  assert np.mean(distances) < 0.03
  assert (np.abs(np.median(extents, axis=0) - 0.85) < 0.25).all()


# The builders' sources of the same scenes.


def texts(root, kind, name, split, **extras):
  """What a source finds: every region, none of them bad."""
  annotations = root / 'annotations'
  extras = {k: str(annotations / v) for k, v in extras.items()}
  images = str(root / 'images' / split)
  src = kind([str(annotations / name)], images, split, extras)
  entries, problems = src.index()
  items = [src.read(entry) for entry in entries]
  assert not problems and not any(item.problems for item in items)
  assert all(entry.image for entry in entries)
  return [
    (entry.image_id, region, item.size)
    for entry, item in zip(entries, items, strict=True)
    for _, region in item.regions
  ]


def test_refer_and_mdetr_say_the_same(root):
  for split in SPLITS:
    refer = texts(
      root, refcoco.RefCoco, 'refer/refs(scenes).p', split,
      instances='refer/instances.json',
    )  # fmt: skip
    mdetr = texts(
      root, refcoco.RefCocoMdetr, f'finetune_scenes_{split}.json', split
    )
    assert len(refer) == len(mdetr) > len(rows(root, split))

    def key(found):
      image_id, region, _ = found
      folded = ''.join(c for c in region.text.lower() if c.isalnum())
      return image_id, folded, region.box.round(3).tolist()

    assert sorted(map(key, refer)) == sorted(map(key, mdetr))
    for _, region, size in refer:
      pixels_of = masks.decode(region.mask, size)
      y, x = pixels_of.nonzero()
      found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
      scale = [size[1], size[0], size[1], size[0]]
      np.testing.assert_allclose(found, region.box * scale, atol=1.5)


def test_captions_of_whole_images(root):
  for split, count in SPLITS.items():
    found = texts(root, coco.Captions, f'captions_{split}.json', split)
    assert len({image_id for image_id, _, _ in found}) == count
    assert all(region.box is None for _, region, _ in found)
