# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import io

import numpy as np
import pytest
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import geometry, tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.tasks import answer, refer
from pixel_llm.tasks import task as task_lib

TEXT = 'a red ring and a blue star'
SIZES = batch_lib.BatchSizes(
  batch=1, image=32, regions=3, context=12, length=12
)


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('v') / 'v.model')
  texts = [TEXT, tasks.narrate.PROMPT, tasks.caption_at.PROMPT] * 5
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


def test_sampled_regions_are_a_function_of_the_seed():
  draws = [task_lib.sample_regions(20, 5, seed) for seed in (1, 1, 2)]
  assert draws[0] == draws[1] != draws[2]
  assert len(set(draws[0])) == 5
  assert sorted(task_lib.sample_regions(3, 5, 0)) == [0, 1, 2]


def test_groups():
  example = example_lib.Example(
    b'', 'i', (2, 2), (region(BOX), region(BOX / 2), region(BOX))
  )
  assert tasks.NARRATE.groups(example) == [[0, 1, 2]]
  assert tasks.REFER.groups(example) == [[0], [1], [2]]
  assert tasks.CAPTION_AT.groups(example) == [[0, 2], [1]]


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
    tasks.REFER.question(region(BOX)),
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
    tasks.NARRATE.question(region()),
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
