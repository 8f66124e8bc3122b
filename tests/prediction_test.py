# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import copy
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel_llm import masks, prediction
from pixel_llm.prediction import Prediction, Word

try:
  import jsonschema
except ImportError:  # of the `dev` extra
  jsonschema = None

NARRATIVE = Prediction(
  kind='narrate',
  image='dog.jpg',
  size_orig=(480, 640),
  text='a dog.',
  words=(
    Word('a'),
    Word('dog.', points_orig=((10.0, 20.5), (30.0, 60.25)), score=-0.125),
  ),
  score=-1.5,
)


def test_a_word_has_the_mean_and_the_box_of_its_points():
  word = Word('dog', points_orig=((30.0, 20.0), (10.0, 60.0)))
  assert word.center_orig == (20.0, 40.0)
  assert word.box_orig == (10.0, 20.0, 30.0, 60.0)


def test_a_word_without_points_has_no_place():
  assert Word('a').center_orig is None
  assert Word('a').box_orig is None


def test_json_names_its_keys_and_keeps_xy_apart():
  row = NARRATIVE.to_json()
  assert list(row) == [
    'kind', 'image', 'image_size', 'text', 'score', 'confidence', 'there',
    'prompt', 'prompt_box', 'prompt_points', 'box', 'mask', 'words',
  ]  # fmt: skip
  assert row['image_size'] == {'width': 640, 'height': 480}
  assert row['words'][1] == {
    'text': 'dog.',
    'score': -0.125,
    'confidence': 0.8825,
    'points': [[10.0, 20.5], [30.0, 60.25]],
    'center': [20.0, 40.38],
  }
  assert row['words'][0]['center'] is None
  assert row['box'] is None


cents = st.integers(-(10**6), 10**6).map(lambda i: i / 100)
points = st.tuples(cents, cents)
boxes = st.none() | st.tuples(cents, cents, cents, cents)
scores = st.integers(-(10**6), 0).map(lambda i: i / 10000)
MASK = masks.encode(np.eye(3, 4))


@given(
  st.builds(
    Prediction,
    kind=st.sampled_from(
      ['narrate', 'caption', 'caption_at', 'refer', 'segment', 'dense_caption']
    ),
    image=st.text(),
    size_orig=st.just((3, 4)),
    prompt_points_orig=st.lists(points, max_size=3).map(tuple),
    mask_orig=st.sampled_from([None, MASK]),
    confidence=st.none() | st.integers(0, 10000).map(lambda i: i / 10000),
    there=st.none() | st.booleans(),
    text=st.text(),
    words=st.lists(
      st.builds(
        Word,
        text=st.text(),
        points_orig=st.lists(points, max_size=3).map(tuple),
        score=scores,
      ),
      max_size=3,
    ).map(tuple),
    box_orig=boxes,
    prompt=st.text(),
    prompt_box_orig=boxes,
    score=scores,
  )
)
def test_json_and_back_is_the_identity(prediction):
  row = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
  assert Prediction.from_json(row) == prediction
  validate(row)


def validate(row):
  """By the published schema, where `jsonschema` (extra `dev`) is there."""
  if jsonschema is not None:
    jsonschema.Draft202012Validator(SCHEMA).validate(row)


SCHEMA = json.loads(
  pathlib.Path(prediction.__file__)
  .with_name('prediction.schema.json')
  .read_text()
)


def test_the_schema_is_one_and_refuses_what_is_none():
  pytest.importorskip('jsonschema')
  validator = jsonschema.Draft202012Validator
  validator.check_schema(SCHEMA)
  good = NARRATIVE.to_json()
  validate(good)
  for change in (
    {'kind': 'guess'},
    {'confidence': 1.5},
    {'there': 'no'},
    {'box': [1, 2, 3]},
    {'mask': {'size': [1, 2], 'counts': 'a b'}},
    {'extra': 1},
  ):
    assert not validator(SCHEMA).is_valid(good | change)
  for key in good:
    assert not validator(SCHEMA).is_valid(
      {k: good[k] for k in good if k != key}
    )


def test_a_mask_of_another_size_or_form_is_refused():
  row = Prediction('segment', 'x', (3, 4), mask_orig=MASK).to_json()
  assert row['mask']['size'] == [3, 4]
  wrong = row | {'mask': row['mask'] | {'size': [4, 3]}}
  with pytest.raises(ValueError, match=r'RLE of the size \[3, 4\]'):
    Prediction.from_json(wrong)
  wrong = row | {'mask': row['mask'] | {'counts': '0'}}
  with pytest.raises(ValueError, match='prediction mask: expected run lengths'):
    Prediction.from_json(wrong)


def test_numpy_numbers_become_plain_json_of_two_decimals():
  point = np.float32(1 / 3)
  prediction = Prediction(
    kind='refer',
    image='x',
    size_orig=(np.int64(4), np.int64(5)),  # pyright: ignore
    box_orig=(point, point, np.float32(2), np.float32(3)),  # pyright: ignore
    score=np.float32(-0.1),  # pyright: ignore
  )
  row = json.loads(json.dumps(prediction.to_json()))
  assert row['box'] == [0.33, 0.33, 2.0, 3.0]
  assert row['image_size'] == {'width': 5, 'height': 4}
  assert row['score'] == -0.1


def test_what_json_cannot_hold_is_named():
  nan = Word('dog', points_orig=((float('nan'), 1.0),))
  prediction = Prediction('narrate', 'x', (4, 5), 'dog', (nan,))
  with pytest.raises(ValueError, match=r"words\[0\] \('dog'\).points.*nan"):
    prediction.to_json()


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda r: r.pop('text'), 'prediction text: missing'),
    (lambda r: r.update(kind='guess'), "expected one of narrate.*'guess'"),
    (lambda r: r.update(box=[1, 2, 3]), 'prediction box: expected 4 numbers'),
    (lambda r: r.update(score='high'), 'prediction score: expected a number'),
    (lambda r: r.update(words='dog'), 'prediction words: expected list'),
    (lambda r: r['image_size'].pop('width'), 'image_size.width: missing'),
    (lambda r: r['image_size'].update(width=0), 'at least one pixel'),
    (
      lambda r: r['words'][1].update(points=[['1', '2']]),
      r"words\[1\].points: expected a number, got '1'",
    ),
    (lambda r: r['words'].append(3), r'words\[2\]: expected an object'),
  ],
)
def test_a_field_that_does_not_fit_is_named(change, message):
  row = copy.deepcopy(NARRATIVE.to_json())
  change(row)
  with pytest.raises(ValueError, match=message):
    Prediction.from_json(row)
