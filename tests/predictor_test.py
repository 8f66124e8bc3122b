# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import io
import json

import asked
import jax
import numpy as np
import pytest
import tiny
from etils import epath
from PIL import Image

from pixel_llm import image as image_lib
from pixel_llm import loading, masks, weights
from pixel_llm.checkpoints import mapping
from pixel_llm.predictor import Predictor


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return asked.make(tmp_path_factory.mktemp('asked') / 'full')


@pytest.fixture(scope='module')
def predictor(folder):
  return Predictor.from_workdir(str(folder))


def assert_same(left, right):
  """Equal answers, numbers but for the last bits."""
  left, right = ([p.to_json() for p in x] for x in (left, right))
  flat = [jax.tree.leaves_with_path(x) for x in (left, right)]
  assert [k for k, _ in flat[0]] == [k for k, _ in flat[1]]
  for (key, a), (_, b) in zip(*flat):
    if isinstance(a, float):
      assert a == pytest.approx(b, abs=2e-2), key
    else:
      assert a == b, key


def test_every_question_of_one_image(predictor):
  predictor.set_image(asked.picture(), 'noise')
  said = predictor.narrate(), predictor.caption()
  assert [p.kind for p in said] == ['narrate', 'caption']
  assert all(0 < p.confidence <= 1 for p in said)
  assert all(w.points_orig for w in said[0].words)
  found = predictor.refer(['a red ring', 'the star'])
  assert [p.prompt for p in found] == ['a red ring', 'the star']
  for p in found:
    x0, y0, x1, y1 = p.box_orig
    assert 0 <= x0 <= x1 <= 90 and 0 <= y0 <= y1 <= 60


def test_the_second_process_does_not_trace_for_shapes(folder, monkeypatch):
  first = Predictor.from_workdir(str(folder))

  def refused(*args, **kwargs):
    raise AssertionError('traced again')

  monkeypatch.setattr(type(first.model), 'init', refused)
  second = Predictor.from_workdir(str(folder))
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_many_regions_of_a_call_are_each_as_alone(predictor, monkeypatch):
  predictor.set_image(asked.picture())
  mask = np.zeros((60, 90), bool)
  mask[5:20, 30:50] = True
  boxes, points = [(0, 0, 30, 20), (10.5, 2, 90, 60)], [[(5, 6), (7, 8)]]
  together = predictor.caption_at(boxes, points, [mask])
  assert np.allclose(together[2].prompt_points_orig, points[0], atol=1e-3)
  assert together[3].prompt_box_orig == pytest.approx((30, 5, 50, 20))
  # More than are asked at once take turns.
  monkeypatch.setattr('pixel_llm.predictor._MOST_REGIONS', 1)
  assert_same(predictor.caption_at(boxes, points, [mask]), together)


def test_all_things_have_boxes_captions_and_scores(predictor):
  predictor.set_image(asked.picture())
  things = predictor.dense_caption()
  assert len(things) > 1
  scores = [p.confidence for p in things]
  assert scores == sorted(scores, reverse=True)
  for p in things:
    x0, y0, x1, y1 = p.box_orig
    assert 0 <= x0 <= x1 <= 90 and 0 <= y0 <= y1 <= 60
    assert p.kind == 'dense_caption' and p.prompt_box_orig is None
  caption = predictor.caption_at([things[0].box_orig])[0]
  assert caption.text == things[0].text
  assert_same(predictor.dense_caption(max=1), things[:1])
  assert_same(
    predictor.dense_caption(threshold=scores[1]),
    [p for p in things if p.confidence >= scores[1]],
  )


def test_what_is_there_is_as_the_evaluation_of_the_run_found(tmp_path):
  folder = asked.make(tmp_path / 'run')

  def ask():
    predictor = Predictor.from_workdir(str(folder))
    predictor.set_image(asked.picture())
    return predictor.refer(['a red ring'])[0]

  found = ask()
  assert 0 < found.confidence < 1
  assert found.there is (found.confidence >= 0.5)
  for threshold in (found.confidence - 0.01, found.confidence + 0.01):
    metrics = {'step': 3, 'refer/presence_threshold': threshold}
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    assert ask().there is (found.confidence >= threshold)
  (folder / 'metrics.json').write_text('[')
  assert ask().there is found.there


def test_a_threshold_is_of_the_step_that_was_evaluated(tmp_path):
  path = epath.Path(tmp_path / 'metrics.json')
  path.write_text('{"step": 3, "refer/presence_threshold": 0.7}')
  assert loading.thresholds(path, 3) == {'refer': 0.7}
  assert loading.thresholds(path, None) == {'refer': 0.7}
  assert loading.thresholds(path, 4) == {}


def test_a_mask_is_of_the_file(predictor):
  predictor.set_image(asked.picture(size=(61, 97)))
  (found,) = predictor.segment(['a red ring'])
  pixels = masks.decode(found.mask_orig, (61, 97))
  assert pixels.shape == (61, 97)
  # Of another program than the same box alone, so not to the last bit.
  box = predictor.refer(['a red ring'])[0].box_orig
  np.testing.assert_allclose(found.box_orig, box, rtol=1e-4)


@pytest.mark.parametrize(
  'kind, question',
  [
    ('narrate', {}),
    ('segment', {'expressions': ['a star']}),
    ('dense_caption', {'max': 1}),
  ],
)
def test_many_images_are_each_as_one(predictor, kind, question):
  images = [asked.picture(i, (40 + 7 * i, 50)) for i in range(3)]
  many = list(predictor.ask_many(images, kind, batch_size=2, **question))
  for image, answers in zip(images, many, strict=True):
    predictor.set_image(image, answers[0].image)
    alone = getattr(predictor, kind)(**question)
    assert_same(answers, alone if isinstance(alone, list) else [alone])


@pytest.mark.slow
def test_draws_do_not_depend_on_company(folder):
  predictor = Predictor.from_workdir(str(folder), temperature=1.0, seed=3)
  images = [asked.picture(i) for i in range(2)]
  many = predictor.ask_many(images, 'narrate', batch_size=2)
  texts = [p.text for (p,) in many]
  for image, text in zip(images, texts, strict=True):
    predictor.set_image(image)
    assert predictor.narrate().text == text


def test_devices_share_a_batch(folder, predictor):
  both = Predictor.from_workdir(str(folder), devices=jax.devices()[:2])
  images = [asked.picture(i) for i in range(3)]
  question = {'expressions': ['a star']}
  one, two = (
    [p for (p,) in x.ask_many(images, 'segment', batch_size=2, **question)]
    for x in (predictor, both)
  )
  assert_same(one, two)
  both.set_image(images[1], one[1].image)
  assert_same(both.segment(['a star']), one[1:2])


def test_a_damaged_image_costs_no_other(predictor, tmp_path):
  paths = [tmp_path / f'{name}.png' for name in 'abc']
  for i, path in enumerate(paths):
    Image.fromarray(asked.picture(i)).save(path)
  paths[1].write_bytes(paths[1].read_bytes()[:500])
  answers = list(
    predictor.ask_many(map(str, paths), 'refer', expressions=['x a'])
  )
  assert [type(a) for a in answers] == [list, image_lib.ImageError, list]
  assert 'b.png' in str(answers[1])
  assert [answers[i][0].image for i in (0, 2)] == [str(paths[0]), str(paths[2])]


def test_a_box_that_one_image_has_no_room_for(predictor):
  images = [asked.picture(size=(30, 30)), asked.picture(size=(60, 60))]
  few, whole = predictor.ask_many(
    images, 'caption_at', batch_size=2, boxes_orig=[(0, 0, 50, 50)]
  )
  assert '<= 30' in str(few) and isinstance(whole, list)


def encoded(mode, size=(9, 7)):
  picture = Image.fromarray(asked.picture(size=size)).convert('L')
  if mode.startswith('I'):
    picture = Image.fromarray(np.asarray(picture, np.uint16) * 257)
  else:
    picture = picture.convert(mode)
  file = io.BytesIO()
  picture.save(file, 'JPEG' if mode == 'CMYK' else 'PNG')
  return file.getvalue()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_files_of_any_mode(predictor, tmp_path, mode):
  (tmp_path / 'x').write_bytes(encoded(mode))
  predictor.set_image(str(tmp_path / 'x'))
  assert predictor.refer(['a star'])[0].size_orig == (9, 7)


@pytest.mark.parametrize('size', [(1, 1), (1, 20000), (20000, 3)])
def test_sides_of_any_length(predictor, size):
  predictor.set_image(np.zeros((*size, 3), np.uint8))
  (found,) = predictor.segment(['a star'])
  assert masks.decode(found.mask_orig, size).shape == size
  height, width = size
  assert predictor.caption_at([(0, 0, width, height)])[0].size_orig == size


@pytest.mark.parametrize(
  'ask, message',
  [
    (lambda p: p.refer(['']), "expression 0: expected some words, got ''"),
    (lambda p: p.refer(['a', ' \n']), 'expression 1: expected some words'),
    (lambda p: p.refer(['ring ' * 2000]), 'at most 512 tokens, got .*10000 ch'),
    (lambda p: p.segment(['a \ud83d']), 'expression 0: expected text'),
    (lambda p: p.refer('a star'), 'expected a list of them'),
    (lambda p: p.caption_at([(5, 5, 5, 9)]), r'0 <= x0 < x1 <= 90'),
    (lambda p: p.caption_at([(0, 0, 9, 61)]), 'y1 <= 60, the size of noise'),
    (lambda p: p.caption_at([(0, 0, np.nan, 9)]), 'box 0,0,nan,9'),
    (lambda p: p.caption_at(points_orig=[(1, 61)]), 'point 1,61: expected x,y'),
    (
      lambda p: p.caption_at(points_orig=[(1, 2, 3)]),
      'expected x, y or a list',
    ),
    (lambda p: p.caption_at(masks=[np.zeros((60, 90))]), 'not zero, got none'),
    (lambda p: p.caption_at(masks=[np.ones((9, 9))]), r'\[60, 90\], the size'),
    (lambda p: p.dense_caption(max=0), 'max: expected at least 1, got 0'),
    (lambda p: p.dense_caption(threshold=2), 'threshold: expected 0 to 1'),
    (lambda p: p.ask_many([], 'guess'), "expected one of narrate.*'guess'"),
  ],
)
def test_what_cannot_be_asked_is_told(predictor, ask, message):
  predictor.set_image(asked.picture(), 'noise')
  with pytest.raises(ValueError, match=message):
    ask(predictor)


def test_emoji_and_braces_are_asked(predictor):
  predictor.set_image(asked.picture())
  texts = ['a 🐕 {text}', '紅い輪']
  assert [p.prompt for p in predictor.refer(texts)] == texts


def test_nothing_is_asked_before_an_image(folder):
  with pytest.raises(ValueError, match='call set_image first'):
    Predictor.from_workdir(str(folder)).narrate()


def test_a_part_that_is_not_there_is_named(tmp_path):
  config = tiny.model_config()
  predictor = Predictor.from_workdir(str(asked.make(tmp_path, config)))
  predictor.set_image(asked.picture())
  with pytest.raises(ValueError, match=r'no mask decoder: model\.mask of'):
    predictor.segment(['a star'])
  with pytest.raises(ValueError, match=r'no detector: model\.detector of'):
    predictor.dense_caption()
  with pytest.raises(ValueError, match=r'no mask decoder'):
    predictor.ask_many([], 'segment', expressions=['a star'])


def test_parameters_of_another_network_are_refused(tmp_path, folder):
  small = asked.make(tmp_path / 'small', tiny.model_config())
  (small / 'model.safetensors').write_bytes(
    (folder / 'model.safetensors').read_bytes()
  )
  with pytest.raises(mapping.MappingError, match='mask_decoder/'):
    Predictor.from_workdir(str(small))
  (small / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match='expected safetensors'):
    Predictor.from_workdir(str(small))
  (small / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='no checkpoint there yet'):
    Predictor.from_workdir(str(small))
  with pytest.raises(FileNotFoundError, match=r'config\.json: no such file'):
    Predictor.from_workdir(str(tmp_path))


def test_an_exported_folder_is_asked_alike(predictor, folder, tmp_path):
  out = tmp_path / 'out'
  weights.export_weights(str(folder), str(out), 'safetensors')
  exported = Predictor.from_workdir(str(out))
  found = []
  for asked_of in (predictor, exported):
    asked_of.set_image(asked.picture())
    found.append(asked_of.segment(['a star']))
  assert_same(*found)


def test_prompts_have_the_room_for_points_of_evaluation(tmp_path):
  shape = {'length': 6, 'prompt_points': 1}
  tasks = {'x_caption_at': shape, 'x_refer': {'length': 6}}
  folder = asked.make(tmp_path, tiny.model_config(), tasks)
  predictor = Predictor.from_workdir(str(folder))
  assert predictor._prompt_points == {
    'caption_at': 1,
    'refer': 0,
    'dense_caption': 1,
  }
