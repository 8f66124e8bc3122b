# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, masks, tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.tasks import answer, refer
from pixel_llm.tasks import task as task_lib

TEXT = 'a red ring and a blue star'
SIZES = batch_lib.BatchSizes(
  batch=1, image=32, regions=3, context=12, length=12
)


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('v') / 'v.model')
  texts = [TEXT, *tasks.NARRATE.prompts[:1], *tasks.CAPTION_AT.prompts] * 5
  vocabulary_lib.train(texts, path, 90)
  return vocabulary_lib.Vocabulary(path)


def region(box=None):
  """A narrative: 'red ring' at one place, 'blue star' at another."""
  return example_lib.Region(
    'r1',
    TEXT,
    box=box,
    spans=np.asarray([[0, 10], [11, 14], [15, 26]], np.int32),
    span_boxes=np.asarray(
      [[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], [0.5, 0.6, 0.7, 0.8]], np.float32
    ),
    span_centers=np.zeros((3, 2), np.float32),
    span_weights=np.asarray([1, 0, 1], np.float32),
  )


BOX = np.asarray([0.25, 0.5, 0.75, 1.0], np.float32)


def test_narrate_gives_each_token_its_utterances_box(vocabulary):
  row = task_lib.row(tasks.NARRATE, region(), vocabulary, SIZES)
  ids, spans = vocabulary.encode_with_spans(TEXT)
  for i, (begin, end) in enumerate(spans):
    word = TEXT[begin:end]
    if begin < 10:
      expected, weight = [[0.1, 0.2], [0.3, 0.4]], 1
    elif begin < 14:
      expected, weight = [[0, 0], [0, 0]], 0
    else:
      expected, weight = [[0.5, 0.6], [0.7, 0.8]], 1
    assert row['point_weights'][i] == weight, word
    np.testing.assert_allclose(row['points'][i], expected)
  assert row['decoder_target_tokens'][len(ids)] == vocabulary_lib.EOS_ID
  assert row['point_weights'][len(ids) :].sum() == 0
  assert row['decoder_loss_weights'].sum() == len(ids) + 1
  np.testing.assert_array_equal(row['prompt_boxes'], [0, 0, 1, 1])


def test_refer_weighs_the_place_of_the_last_token_most(vocabulary):
  row = task_lib.row(tasks.REFER, region(BOX), vocabulary, SIZES)
  count = len(vocabulary.encode(TEXT))
  assert row['decoder_loss_weights'].sum() == 0
  weights = row['point_weights']
  assert weights[count - 1] == 1
  np.testing.assert_allclose(weights[: count - 1], refer.EARLIER)
  assert not weights[count:].any()
  for points in row['points'][:count]:
    np.testing.assert_allclose(points.reshape(4), BOX)
  prompt = row['encoder_input_tokens']
  assert prompt[:count].tolist() == vocabulary.encode(TEXT)
  assert prompt[count] == vocabulary_lib.EOS_ID


def test_refer_says_whether_it_is_there(vocabulary):
  absent = example_lib.Region('r2', TEXT, absent=True)
  bare = example_lib.Region('r3', TEXT)
  rows = [
    task_lib.row(tasks.REFER, r, vocabulary, SIZES)
    for r in (region(BOX), absent, bare)
  ]
  assert [float(r['presence']) for r in rows] == [1, 0, 0]
  assert [float(r['presence_weights']) for r in rows] == [1, 1, 0]
  assert not rows[1]['point_weights'].any() and not rows[1]['box_weights']
  for task in (tasks.REFER, tasks.SEGMENT):
    assert task.usable(absent) and not task.usable(bare)
  example = example_lib.Example(b'', 'i', (4, 6), (absent,))
  target = task_lib.target(example, [0])
  assert target['presence'] == 0 and target['weight'] == 0
  assert not masks.decode(target['mask'], (4, 6)).any()


def test_a_cut_answer_keeps_its_end_and_its_place(vocabulary):
  sizes = batch_lib.BatchSizes(
    batch=1, image=32, regions=1, context=4, length=3
  )
  row = task_lib.row(tasks.REFER, region(BOX), vocabulary, sizes)
  assert row['decoder_target_tokens'][-1] == vocabulary_lib.EOS_ID
  np.testing.assert_allclose(row['point_weights'], [refer.EARLIER, 1, 0])
  box = geometry.answer_box(row['decoder_target_tokens'], row['points'])
  np.testing.assert_allclose(box, BOX)


def test_caption_at_asks_by_the_box_and_weighs_words(vocabulary):
  row = task_lib.row(tasks.CAPTION_AT, region(BOX), vocabulary, SIZES)
  np.testing.assert_array_equal(row['prompt_boxes'], BOX)
  assert row['decoder_loss_weights'].sum() > 0
  assert row['point_weights'].sum() == 0


def test_features_fill_the_shape_table(vocabulary):
  file = io.BytesIO()
  Image.new('RGB', (40, 20), (200, 10, 30)).save(file, 'PNG')
  example = example_lib.Example(
    file.getvalue(), 'i', (20, 40), (region(), region())
  )
  features = task_lib.features(
    tasks.NARRATE, example, vocabulary, SIZES, [1, 0]
  )
  batch = batch_lib.Batch(**{k: v[None] for k, v in features.items()})
  batch.check(SIZES)
  assert features['image_size'].tolist() == [16, 32]
  assert features['image'][16:].max() == 0
  assert features['decoder_loss_weights'][2].sum() == 0


def photo(size=(20, 40)):
  """A PNG whose pixels all differ."""
  y, x = np.mgrid[: size[0], : size[1]]
  rgb = np.stack([y * 6, x * 6, x + y], -1).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(rgb).save(file, 'PNG')
  return file.getvalue()


def trained(task, example, vocabulary, sizes=SIZES, seed=0, **augmentation):
  return task_lib.training_features(
    task, example, vocabulary, sizes, Augmentation(**augmentation), seed
  )


def test_training_is_a_function_of_its_seed(vocabulary):
  regions = tuple(
    dataclasses.replace(region(BOX), id=str(i), text=f'{TEXT} {"ring " * i}')
    for i in range(8)
  )
  example = example_lib.Example(photo(), 'i', (20, 40), regions)
  how = dict(flip=0.5, scale=(0.5, 2.0), click=0.5)
  sizes = dataclasses.replace(SIZES, prompt_points=2, length=60)
  first, again, other = (
    trained(tasks.CAPTION_AT, example, vocabulary, sizes, seed, **how)
    for seed in (3, 3, 2)
  )
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
  assert np.any(first['image'] != other['image'])
  assert np.any(
    first['decoder_target_tokens'] != other['decoder_target_tokens']
  )
  texts = {tuple(row) for row in first['decoder_target_tokens']}
  assert len(texts) == 3


def test_without_augmentation_training_sees_what_evaluation_sees(vocabulary):
  example = example_lib.Example(photo(), 'i', (20, 40), (region(BOX),))
  plain = task_lib.features(tasks.REFER, example, vocabulary, SIZES, [0])
  for name, value in trained(tasks.REFER, example, vocabulary).items():
    np.testing.assert_array_equal(value, plain[name], name)


def test_regions_out_of_sight_are_not_asked_about(vocabulary):
  corner = np.asarray([0, 0, 0.2, 0.2], np.float32)
  example = example_lib.Example(
    photo(), 'i', (20, 40), (region(corner), region(BOX))
  )
  asked = set()
  for seed in range(20):
    out = trained(tasks.REFER, example, vocabulary, seed=seed, scale=(2.0, 2.0))
    asked.add(int(out['box_weights'].sum()))
    # What is asked about is inside, and turned over never.
    boxes = out['boxes'][out['box_weights'] > 0]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min(initial=0) >= 0 and boxes.max(initial=0) <= 1
  assert asked == {1, 2}


def test_segment_has_the_mask_where_the_box_is(vocabulary):
  size = (20, 40)
  pixels = np.zeros(size, np.uint8)
  pixels[10:20, 10:30] = 1  # BOX
  thing = dataclasses.replace(region(BOX), mask=masks.encode(pixels))
  example = example_lib.Example(
    photo(size), 'i', size, (thing, region(BOX), region())
  )
  sizes = dataclasses.replace(SIZES, mask=32)
  assert tasks.SEGMENT.questions(example) == [[0]]
  for seed in range(8):
    out = trained(
      tasks.SEGMENT,
      example,
      vocabulary,
      sizes,
      seed,
      flip=0.5,
      scale=(0.5, 1.5),
    )
    assert out['mask_weights'].tolist() == [1, 0, 0]
    height, width = out['image_size']
    box = out['boxes'][0] * np.tile([width, height], 2)
    ys, xs = np.nonzero(out['masks'][0])
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(found, box, atol=0.75)


def test_dense_caption_lists_each_thing_once(vocabulary):
  sizes = dataclasses.replace(SIZES, objects=3)
  boxes = [BOX, BOX / 2, BOX]
  example = example_lib.Example(
    photo(), 'i', (20, 40), (*(region(b) for b in boxes), region())
  )
  out = trained(tasks.DENSE_CAPTION, example, vocabulary, sizes)
  assert out['object_weights'].tolist() == [1, 1, 0]
  assert out['detection_weights'] == 1
  assert {tuple(b) for b in out['objects'][:2]} == {tuple(BOX), tuple(BOX / 2)}
  assert out['decoder_loss_weights'].any(axis=1).sum() == 3
  few = dataclasses.replace(SIZES, objects=1)
  out = trained(tasks.DENSE_CAPTION, example, vocabulary, few)
  assert out['object_weights'].tolist() == [1] and not out['detection_weights']
  out = trained(tasks.CAPTION_AT, example, vocabulary, sizes)
  assert not out['object_weights'].any() and not out['detection_weights']


def test_a_box_may_be_asked_by_a_click_in_it(vocabulary):
  example = example_lib.Example(photo(), 'i', (20, 40), (region(BOX),))
  sizes = dataclasses.replace(SIZES, prompt_points=2)
  out = trained(tasks.CAPTION_AT, example, vocabulary, sizes, click=1.0)
  assert out['prompt_box_weights'][0] == 0
  assert out['prompt_labels'][0].tolist() == [1, 0]
  x, y = out['prompt_points'][0, 0]
  assert BOX[0] <= x <= BOX[2] and BOX[1] <= y <= BOX[3]
  # The whole image is no place to click at.
  out = trained(tasks.REFER, example, vocabulary, sizes, click=1.0)
  assert out['prompt_box_weights'][0] == 1 and not out['prompt_labels'].any()


def test_clicks_of_a_record_ask(vocabulary):
  points = np.asarray([[0.2, 0.3], [0.4, 0.5]], np.float32)
  clicked = dataclasses.replace(region(), points=points)
  sizes = dataclasses.replace(SIZES, prompt_points=3)
  row = task_lib.row(tasks.CAPTION_AT, clicked, vocabulary, sizes)
  assert row['prompt_labels'].tolist() == [1, 1, 0]
  np.testing.assert_array_equal(row['prompt_points'][:2], points)
  assert row['prompt_box_weights'] == 0
  with pytest.raises(ValueError, match='prompt_points of at least 1'):
    task_lib.row(tasks.CAPTION_AT, clicked, vocabulary, SIZES)


def test_prompts():
  asked = dataclasses.replace(region(), prompt='What is {text}?')
  assert tasks.INSTRUCT.prompt(asked) == 'Question: What is {text}? Answer: '
  assert tasks.REFER.prompt(asked) == TEXT
  rng = np.random.default_rng(0)
  drawn = {tasks.CAPTION.prompt(asked, rng) for _ in range(200)}
  assert drawn == set(tasks.CAPTION.prompts)
  assert tasks.CAPTION.prompt(asked) == tasks.CAPTION.prompts[0]


def test_groups():
  example = example_lib.Example(
    b'', 'i', (2, 2), (region(BOX), region(BOX / 2), region(BOX))
  )
  assert tasks.NARRATE.groups(example) == [[0, 1, 2]]
  assert tasks.REFER.groups(example) == [[0], [1], [2]]
  assert tasks.CAPTION_AT.groups(example) == [[0, 2], [1]]
  answers = tuple(
    dataclasses.replace(region(), prompt=p) for p in ('a?', None, 'b?', 'a?')
  )
  example = example_lib.Example(b'', 'i', (2, 2), answers)
  assert tasks.INSTRUCT.questions(example) == [[0, 3], [2]]
  assert tasks.REFER.questions(example) == []


def test_answers_leave_in_pixels_of_the_original_file(vocabulary):
  row = task_lib.row(tasks.REFER, region(BOX), vocabulary, SIZES)
  output = batch_lib.Output(
    tokens=row['decoder_target_tokens'],
    points=row['points'],
    log_probs=np.zeros(12),
    scores=-1.5,
  )
  found = answer.prediction(
    tasks.REFER,
    region(BOX),
    output=output,
    vocabulary=vocabulary,
    image='x.jpg',
    size_orig=(200, 400),
  )
  assert found.box_orig == (100, 100, 300, 200)
  assert found.prompt == TEXT and found.score == -1.5


def test_a_word_of_several_tokens_has_one_place(vocabulary):
  row = task_lib.row(tasks.NARRATE, region(), vocabulary, SIZES)
  output = batch_lib.Output(
    tokens=row['decoder_target_tokens'],
    points=row['points'],
    log_probs=np.full(12, -0.5),
    scores=-3.0,
  )
  found = answer.prediction(
    tasks.NARRATE,
    region(),
    output=output,
    vocabulary=vocabulary,
    image='x.jpg',
    size_orig=(100, 100),
    placed=row['point_weights'] > 0,
  )
  assert found.text == TEXT
  assert [w.text for w in found.words] == TEXT.split()
  np.testing.assert_allclose(found.words[1].box_orig, (10, 20, 30, 40))
  assert found.words[3].points_orig == ()
  np.testing.assert_allclose(found.words[6].box_orig, (50, 60, 70, 80))


def test_points_of_a_box():
  np.testing.assert_allclose(
    task_lib.boxes_to_points(BOX, 2), [[0.25, 0.5], [0.75, 1.0]]
  )
  np.testing.assert_allclose(task_lib.boxes_to_points(BOX, 1), [[0.5, 0.75]])
  with pytest.raises(ValueError, match='expected 1 or 2, got 3'):
    task_lib.boxes_to_points(BOX, 3)
