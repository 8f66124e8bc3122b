# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""DenseCap's mAP against cases by hand and closed forms."""

import numpy as np
import pytest

from pixel_llm.metrics import dense_caption


def _same(texts, references):
  """1 for a caption that is a reference, else 0.1."""
  return [1.0 if t in refs else 0.1 for t, refs in zip(texts, references)]


def _image(boxes, texts=None):
  texts = [f'thing {i}' for i in range(len(boxes))] if texts is None else texts
  return {'boxes': np.array(boxes, float), 'texts': texts}


def _said(boxes, scores, texts=None):
  return {**_image(boxes, texts), 'scores': np.array(scores, float)}


def _tiles(count, width=1.0):
  """Boxes side by side."""
  return np.array([[i, 0, i + width, 1] for i in range(count)]) / count


def test_the_largest_group_is_merged_first():
  # The second overlaps the first by 7 / 8 and the third by 6 / 7, they one
  # another by 6 / 8.
  boxes = np.array([[0, 0, 8, 1], [1, 0, 8, 1], [1, 0, 7, 1], [0, 2, 9, 4]])
  groups = dense_caption.merge_boxes(boxes)
  assert [g.tolist() for g in groups] == [[0, 1, 2], [3]]
  # In a chain, neighbours by 9 / 11, the next but one by 8 / 12.
  chain = np.array([[i, 0, i + 10, 1] for i in range(8)])
  groups = dense_caption.merge_boxes(chain)
  assert [g.tolist() for g in groups] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_boxes_without_area_are_groups_of_their_own():
  groups = dense_caption.merge_boxes(np.array([[1, 1, 1, 2], [1, 1, 1, 2]]))
  assert [g.tolist() for g in groups] == [[0], [1]]
  assert dense_caption.merge_boxes(np.zeros((0, 4))) == []


def test_the_truth_itself_is_perfect():
  images = [_image(_tiles(n)) for n in (1, 4, 7)]
  said = [_said(i['boxes'], np.arange(len(i['boxes']))) for i in images]
  assert dense_caption.dense_caption_map(images, said, _same) == {
    'map': 1.0,
    'detection_map': 1.0,
  }
  # In any order.
  said = [{k: v[::-1] for k, v in p.items()} for p in said[::-1]]
  images = images[::-1]
  result = dense_caption.dense_caption_map(images, said, _same)
  assert result['map'] == 1


def test_only_the_surest_of_a_thing_is_a_hit():
  tiles = _tiles(3)
  away = [tiles[1] + 5, tiles[1], tiles[0], tiles[0] + [0.02, 0, 0.02, 0]]
  said = _said(away, [0.9, 0.8, 0.3, 0.7])
  right, scores = dense_caption.hits([_image(tiles)], [said])
  assert scores.tolist() == [0.9, 0.8, 0.7, 0.3]
  assert right.tolist() == [False, True, True, False]
  none = dense_caption.hits([_image(tiles)], [_said(np.zeros((0, 4)), [])])
  assert [len(x) for x in none] == [0, 0]


@pytest.mark.parametrize('found', range(8))
def test_a_share_found_scores_that_share(found):
  tiles = _tiles(7)
  said = _said(tiles[:found], np.ones(found))
  result = dense_caption.dense_caption_map([_image(tiles)], [said], _same)
  # Recalls of 0, 0.01, ... up to the share, and 0.99 at most.
  expected = min(found * 100 // 7 + 1, 100) / 100 if found else 0
  assert list(result.values()) == pytest.approx([expected] * 2)


def test_recall_of_exactly_a_hundredth_counts():
  tiles = _tiles(100)
  for found in (7, 29, 57, 58):
    said = _said(tiles[:found], np.ones(found))
    result = dense_caption.dense_caption_map([_image(tiles)], [said])
    assert result == {'detection_map': pytest.approx((found + 1) / 100)}


def test_surer_wrong_ones_lower_precision():
  image = _image([[0, 0, 1, 1]])
  boxes = [[5, 5, 6, 6], [7, 7, 8, 8], [0, 0, 1, 1]]
  result = dense_caption.dense_caption_map(
    [image], [_said(boxes, [0.9, 0.8, 0.7])], _same
  )
  assert result['detection_map'] == pytest.approx(1 / 3)
  # Wrong ones that are less sure cost nothing.
  result = dense_caption.dense_caption_map(
    [image], [_said(boxes, [0.1, 0.2, 0.7], ['', '', 'thing 0'])], _same
  )
  assert result == {'map': 1.0, 'detection_map': 1.0}


def test_surest_first_is_over_all_images():
  images = [_image([[0, 0, 1, 1]]), _image([[0, 0, 1, 1]])]
  miss, hit = [[5, 5, 6, 6]], [[0, 0, 1, 1]]
  said = [_said(miss, [0.9]), _said(hit, [0.5])]
  result = dense_caption.dense_caption_map(images, said)
  # One of two found, at precision 1 / 2.
  assert result['detection_map'] == pytest.approx(0.51 / 2)


def test_each_threshold_counts():
  image = _image([[0, 0, 100, 1]])
  said = _said([[0, 0, 55, 1]], [1], ['so so'])
  table = dense_caption.average_precisions(
    [image], [said], lambda texts, references: [0.12]
  )
  # IoU 0.55 is above the first three; 0.12 above -1, 0, 0.05 and 0.1.
  expected = np.outer([1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(table, expected)
  scores = dense_caption.dense_caption_map(
    [image], [said], lambda texts, references: [0.12]
  )
  assert scores == {
    'map': pytest.approx(3 / 5 * 3 / 6),
    'detection_map': pytest.approx(3 / 5),
  }


def test_thresholds_of_iou_are_met_and_of_text_exceeded():
  image = _image([[0, 0, 10, 1]])
  table = dense_caption.average_precisions(
    [image], [_said([[0, 0, 5, 1]], [1])], lambda texts, references: [0.0]
  )
  assert table[:, 0].tolist() == [1, 1, 1, 0, 0]
  assert not table[:, 1:].any()


def test_only_the_first_that_comes_to_a_box_can_be_right():
  image = _image([[0, 0, 10, 1]])
  # The surest barely touches the box, and takes it.
  said = _said([[9, 0, 20, 1], [0, 0, 10, 1]], [0.9, 0.8])
  assert dense_caption.dense_caption_map([image], [said]) == {
    'detection_map': 0.0
  }
  said['scores'] = np.array([0.8, 0.9])
  assert dense_caption.dense_caption_map([image], [said]) == {
    'detection_map': 1.0
  }


def test_merged_boxes_have_their_mean_and_all_their_captions():
  image = _image([[0, 0, 10, 1], [0, 0, 8, 1]], ['a ring', 'a red ring'])
  asked = []

  def remember(texts, references):
    asked.append((list(texts), [list(r) for r in references]))
    return [1.0] * len(texts)

  said = _said([[0, 0, 9, 1], [20, 0, 21, 1]], [0.9, 0.5], ['ring', 'x'])
  result = dense_caption.dense_caption_map([image], [said], remember)
  assert result == {'map': 1.0, 'detection_map': 1.0}
  # Once, and only of what was found.
  assert asked == [(['ring'], [['a ring', 'a red ring']])]


def test_empty_and_broken_answers():
  image = _image(_tiles(2))
  none = _said(np.zeros((0, 4)), [])
  assert dense_caption.dense_caption_map([image], [none], _same) == {
    'map': 0.0,
    'detection_map': 0.0,
  }
  broken = [[np.nan, 0, 1, 1], [1, 1, 0, 0], [0.2, 0.2, 0.2, 0.9]]
  said = _said(broken, [0.9, 0.8, 0.7])
  assert dense_caption.dense_caption_map([image], [said]) == {
    'detection_map': 0.0
  }
  # An image with nothing in it: what is said of it is wrong.
  nothing = _image(np.zeros((0, 4)))
  both = [_said([[0, 0, 1, 1]], [0.9]), _said(_tiles(2), [0.5, 0.5])]
  result = dense_caption.dense_caption_map([nothing, image], both)
  assert result['detection_map'] == pytest.approx(2 / 3)


def test_order_of_images_and_units_are_irrelevant():
  rng = np.random.default_rng(0)
  images, said = [], []
  for _ in range(6):
    corners = rng.random((5, 2))
    boxes = np.concatenate([corners, corners + rng.random((5, 2))], axis=-1)
    images.append(_image(boxes))
    moved = boxes + rng.normal(0, 0.05, boxes.shape)
    texts = [f'thing {i % 3}' for i in range(5)]
    said.append(_said(moved, rng.random(5), texts))
  first = dense_caption.dense_caption_map(images, said, _same)
  assert 0 < first['map'] < first['detection_map'] < 1
  order = rng.permutation(6)
  images = [{**images[i], 'boxes': images[i]['boxes'] * 640} for i in order]
  said = [{**said[i], 'boxes': said[i]['boxes'] * 640} for i in order]
  second = dense_caption.dense_caption_map(images, said, _same)
  assert second == pytest.approx(first)


def test_errors_say_what_was_expected():
  with pytest.raises(ValueError, match='as many predictions'):
    dense_caption.dense_caption_map([_image(_tiles(1))], [])
  with pytest.raises(ValueError, match='none of 1 images has a box'):
    empty = np.zeros((0, 4))
    dense_caption.dense_caption_map([_image(empty)], [_said(empty, [])])
  with pytest.raises(ValueError, match=r'image 0: .* got 1 for 2'):
    dense_caption.dense_caption_map(
      [_image(_tiles(2), ['a'])], [_said(_tiles(1), [1])]
    )
