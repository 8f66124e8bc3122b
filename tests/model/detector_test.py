# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Proposals against the research code's numbers; properties."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from pixel_llm import geometry, sharding
from pixel_llm.model import detector, losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CLOSE = {'atol': 1e-5, 'rtol': 1e-4}
CANVAS = (96, 96)


@pytest.fixture(scope='module', name='golden')
def golden_fixture():
  with np.load(GOLDEN / 'centernet2_box_decoder.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module', name='config')
def config_fixture(golden):
  published = json.loads(str(golden['config']))
  return detector.DetectorConfig(
    channels=published['fpn_args']['out_channels'],
    fine_channels=published['fpn_args']['in_dim'] // 2,
    tower_layers=published['centernet_head_layers'],
    tower_channels=published['centernet_head_channels'],
    groups=published['group_norm_groups'],
    ranges=tuple(map(tuple, published['fpn_range'])),
    candidates=published['pre_nms_topk_test'],
    proposals=published['post_nms_topk_test'],
    nms_threshold=published['iou_thresh'],
    box_dim=published['roi_fc_dims'][0],
    detections=published['roi_post_nms_num_detections'],
    detection_nms_threshold=published['roi_nms_threshold'],
  )


def leaves(golden, name, *kinds):
  return {kind: golden[f'params/{name}/{kind}'] for kind in kinds}


def pyramid_params(golden):
  """The published names of the pyramid under ours."""
  # Here the four parts of a cell are one axis. Flax turns the kernel of its
  # transposed convolution round.
  kernel = golden['params/fpn/simfp_3.0/kernel'][::-1, ::-1]
  kernel = kernel.reshape(4, *kernel.shape[2:]).transpose(1, 0, 2)
  params = {
    'upscale': {'kernel': kernel, **leaves(golden, 'fpn/simfp_3.0', 'bias')}
  }
  for i, (stage, first) in enumerate(((3, 1), (4, 0), (5, 1))):
    for name, index in (('in', first), ('out', first + 1)):
      theirs = f'fpn/simfp_{stage}.{index}'
      kernel = golden[f'params/{theirs}/kernel']
      if name == 'in':
        kernel = kernel[0, 0]
      params[f'level_{i}_{name}'] = {'kernel': kernel}
      params[f'level_{i}_{name}_norm'] = leaves(
        golden, f'{theirs}.norm', 'scale', 'bias'
      )
  for i, theirs in ((3, 'p6'), (4, 'p7')):
    params[f'level_{i}_out'] = leaves(
      golden, f'fpn/top_block/{theirs}', 'kernel', 'bias'
    )
  return params


def head_params(golden):
  """The published names of the head under ours."""
  head = 'proposal_generator'
  return {
    'tower_0': leaves(golden, f'{head}/bbox_tower/0', 'kernel', 'bias'),
    'tower_0_norm': leaves(golden, f'{head}/bbox_tower/1', 'scale', 'bias'),
    'center': leaves(golden, f'{head}/agn_hm', 'kernel', 'bias'),
    'sides': leaves(golden, f'{head}/bbox_pred', 'kernel', 'bias'),
    'factors': np.concatenate(
      [golden[f'params/{head}/scales.{i}/scale'] for i in range(5)]
    ),
  }


def check_names(model, params, *inputs):
  """The mapping names every parameter, and nothing else."""
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, shapes['params']
  )


def levels(golden, prefix):
  return [golden[f'{prefix}/{i}'] for i in range(5)]


def flat(maps):
  return np.concatenate([m.reshape(len(m), -1, m.shape[-1]) for m in maps], 1)


def golden_cells(golden):
  sizes = [m.shape[1:3] for m in levels(golden, 'out/fpn')]
  return detector.cells_of((6, 6), sizes, CANVAS)


def test_pyramid_equals_the_golden(golden, config):
  model = detector.FeaturePyramid(config)
  params = pyramid_params(golden)
  features = golden['in/image_embeddings']
  check_names(model, params, features)
  pyramid = jax.jit(model.apply)({'params': params}, features)
  for ours, theirs in zip(pyramid, levels(golden, 'out/fpn'), strict=True):
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_head_equals_the_golden(golden, config):
  model = detector.ProposalHead(config)
  params = head_params(golden)
  pyramid = levels(golden, 'out/fpn')
  check_names(model, params, pyramid)
  logits, distances = jax.jit(model.apply)({'params': params}, pyramid)
  theirs = flat(levels(golden, 'out/test/heatmaps'))[..., 0]
  np.testing.assert_allclose(logits, theirs, **CLOSE)
  theirs = flat(levels(golden, 'out/test/box_regs'))
  np.testing.assert_allclose(distances, theirs, **CLOSE)


def golden_outputs(golden):
  return (
    flat(levels(golden, 'out/test/heatmaps'))[..., 0],
    flat(levels(golden, 'out/test/box_regs')),
    golden_cells(golden),
  )


def test_candidates_equal_the_golden(golden, config):
  # Nothing overlaps wholly, nothing is clipped: all candidates are proposals.
  every = dataclasses.replace(config, nms_threshold=1.0, proposals=60)
  size = np.full((2, 2), 96)
  boxes, scores, there = detector.propose(*golden_outputs(golden), size, every)
  assert np.asarray(there).all()
  np.testing.assert_allclose(scores, golden['out/peaks/scores'], **CLOSE)
  clipped = np.clip(golden['out/peaks/boxes'], 0, 96)
  np.testing.assert_allclose(boxes, clipped, atol=1e-4)


def test_proposals_equal_the_golden(golden, config):
  size = np.full((2, 2), 96)
  boxes, scores, there = detector.propose(*golden_outputs(golden), size, config)
  assert boxes.shape == (2, 16, 4)
  assert np.asarray(there).all()
  np.testing.assert_allclose(scores, golden['out/proposals/scores'], **CLOSE)
  clipped = np.clip(golden['out/proposals/boxes'], 0, 96)
  np.testing.assert_allclose(boxes, clipped, atol=1e-4)


def test_losses_equal_the_golden(golden, config):
  logits, distances, cells = golden_outputs(golden)
  weights = (golden['in/gt_classes'] > 0).astype(np.float32)
  targets = detector.assign(golden['in/gt_boxes'], weights, cells, config)
  images = np.ones(2, np.float32)
  hit, miss, count = losses.center_loss(
    logits, targets.heat, targets.is_center, images
  )
  sides, cells_with_box = losses.side_loss(
    distances, targets.distances, targets.has_box, images
  )
  values = {
    'hm_norm': count / 2,
    'pos_loss': hit / count,
    'neg_loss': miss / count,
    'reg_norm': cells_with_box / 2,
    'reg_loss': sides / cells_with_box,
  }
  for name, value in values.items():
    np.testing.assert_allclose(
      value, golden[f'out/train/{name}'], rtol=1e-4, err_msg=name
    )
  # The rest of the published loss is that of the second stage.
  rest = sum(
    golden[f'out/train/stage0_roi_{name}_loss'] for name in ('cls', 'reg')
  )
  total = 0.5 * (values['pos_loss'] + values['neg_loss']) + values['reg_loss']
  np.testing.assert_allclose(
    total + rest, golden['out/train/det_loss'], rtol=1e-4
  )


def box_head_params(golden):
  """The published names of the second stage under ours."""
  head = 'roi_heads/box_head.0'
  scores = leaves(golden, f'{head}/cls_score', 'kernel', 'bias')
  return {
    'mlp_0': leaves(golden, f'{head}/fc1', 'kernel', 'bias'),
    'mlp_1': leaves(golden, f'{head}/fc2', 'kernel', 'bias'),
    # A thing's logit less the background's.
    'thing': {k: np.diff(v, axis=-1) for k, v in scores.items()},
    'moves': leaves(golden, f'{head}/bbox_pred', 'kernel', 'bias'),
  }


def fading_roi_align(features, box, size, samples=2):
  """RoIAlign of one box in cells as the research code has it: zeros outside."""
  height, width, channels = features.shape
  padded = np.zeros((height + 4, width + 4, channels))
  padded[2:-2, 2:-2] = features
  at = (np.arange(size * samples) + 0.5) / (size * samples)

  def weights(low, high, cells):
    # Far outside there are zeros too.
    at_cells = np.clip(low + (high - low) * at - 0.5, -2, cells + 1) + 2
    away = np.abs(at_cells[:, None] - np.arange(cells + 4))
    return np.maximum(1 - away, 0).reshape(size, samples, -1).mean(1)

  down = weights(box[1], box[3], height)
  across = weights(box[0], box[2], width)
  return np.einsum('ih,jw,hwc->ijc', down, across, padded)


def fading_parts(golden, boxes):
  """What the research code's second stage reads."""
  pyramid = levels(golden, 'out/fpn')
  sides = boxes[..., 2:] - boxes[..., :2]
  level = np.floor(4 + np.log2(np.sqrt(sides.prod(-1)) / 224 + 1e-8))
  level = np.clip(level, 3, 7).astype(int)
  return np.stack(
    [
      [
        fading_roi_align(pyramid[i - 3][image], box / 2**i, 7)
        for box, i in zip(boxes[image], level[image])
      ]
      for image in range(2)
    ]
  ).astype(np.float32)


def test_detections_equal_the_golden(golden, config):
  boxes = np.clip(golden['out/proposals/boxes'], 0, 96)
  scores = golden['out/proposals/scores']
  size = np.full((2, 2), 96)
  parts = fading_parts(golden, boxes)
  model = detector.BoxHead(config)
  params = box_head_params(golden)
  check_names(model, params, parts)
  logits, moves = jax.jit(model.apply)({'params': params}, parts)
  found, scores, there = detector.detect(
    boxes, scores, np.ones(scores.shape, bool), logits, moves, size, config
  )
  there = np.asarray(there)
  np.testing.assert_array_equal(there.sum(1), golden['out/test/num_detections'])
  np.testing.assert_allclose(
    np.asarray(scores)[there],
    golden['out/test/detection_scores'][there],
    **CLOSE,
  )
  np.testing.assert_allclose(
    np.asarray(found)[there],
    golden['out/test/detection_boxes'][there],
    atol=1e-3,
  )


def test_matches_equal_the_golden(golden):
  boxes = np.clip(golden['out/proposals/boxes'], 0, 96)
  index, is_thing = detector.match(
    boxes, golden['in/gt_boxes'], golden['in/gt_classes'], 0.6
  )
  np.testing.assert_array_equal(index, golden['out/match_gt/idx'])
  np.testing.assert_array_equal(is_thing, golden['out/match_gt/classes'] > 0)


def test_losses_of_the_second_stage_equal_the_golden(golden, config):
  # All proposals and the true boxes, of which one is padding.
  boxes, true = golden['out/train/last_proposals'], golden['in/gt_boxes']
  index, is_thing = detector.match(boxes, true, golden['in/gt_classes'], 0.6)
  assert np.asarray(is_thing).sum() == 5
  targets = detector.moves_to(
    boxes, np.take_along_axis(true, np.asarray(index)[..., None], 1)
  )
  weights = geometry.box_area(boxes) > 0
  assert weights.sum() == 37
  logits, moves = detector.BoxHead(config).apply(
    {'params': box_head_params(golden)}, fading_parts(golden, boxes)
  )
  wrong, away, weight = losses.box_loss(
    logits, moves, targets, is_thing, weights
  )
  want = {
    name: golden[f'out/train/stage0_roi_{name}_loss'] for name in ('cls', 'reg')
  }
  np.testing.assert_allclose(wrong / weight, want['cls'], rtol=1e-4)
  np.testing.assert_allclose(away / boxes[..., 0].size, want['reg'], rtol=1e-4)


def test_boxes_that_weigh_nothing_match_nothing_and_cost_nothing():
  boxes = np.asarray([[[0, 0, 4, 4], [1, 1, 5, 5], [9, 9, 9, 9]]], np.float32)
  same, weights = boxes.copy(), np.asarray([[1.0, 0.0, 1.0]])
  index, is_thing = detector.match(boxes, same, weights, 0.6)
  assert index.tolist() == [[0, 0, 0]]
  assert is_thing.tolist() == [[True, False, False]]
  logits = np.asarray([[1.0, -2.0, 3.0]])
  moves = np.asarray([[[1.0, 2, 3, 4]] * 3])
  wrong, away, weight = losses.box_loss(
    logits, moves, 0 * moves, is_thing, weights
  )
  np.testing.assert_allclose(
    wrong, np.log1p(np.exp(-1.0)) + np.log1p(np.exp(3.0)), rtol=1e-5
  )
  assert (float(away), float(weight)) == (10, 2)


def test_boxes_within_the_image_are_read_as_published(golden, config):
  # At the border ours do not fade.
  pyramid = levels(golden, 'out/fpn')
  rng = np.random.default_rng(8)
  corners = np.sort(rng.uniform(10, 86, (2, 4, 2, 2)), axis=2)
  boxes = corners.reshape(2, 4, 4).astype(np.float32)
  parts = detector.read_boxes(pyramid, boxes, (6, 6), CANVAS, config)
  parts = np.asarray(parts)
  for image in range(2):
    for box, got in zip(boxes[image], parts[image]):
      want = fading_roi_align(pyramid[0][image], box / 8, 7)
      np.testing.assert_allclose(got, want, **CLOSE)


def test_boxes_are_read_where_they_are_seen():
  # Features are their own places; the coarse levels reach beyond the canvas.
  cells = odd_cells()
  pyramid = []
  for i in range(5):
    width, height = cells.count[cells.level == i][0]
    places = cells.centers[cells.level == i].reshape(1, height, width, 2)
    pyramid.append(places.astype(np.float32))
  boxes = np.asarray(
    [[[150, 160, 210, 200], [40, 60, 300, 330], [100, 100, 180, 350]]], 'f'
  )
  parts = detector.read_boxes(pyramid, boxes, (27, 27), (384, 384), CONFIG)
  np.testing.assert_allclose(
    np.asarray(parts).mean((2, 3)),
    (boxes[..., :2] + boxes[..., 2:]) / 2,
    rtol=1e-4,
  )


def test_moving_by_what_differs_gives_the_other_box():
  rng = np.random.default_rng(7)
  corners = np.sort(rng.uniform(0, 90, (2, 6, 2, 2)), axis=2).reshape(2, 6, 4)
  boxes, others = corners
  moves = detector.moves_to(boxes, others)
  np.testing.assert_allclose(detector.move(boxes, moves), others, rtol=1e-4)
  np.testing.assert_allclose(detector.move(boxes, 0 * moves), boxes, rtol=1e-5)


# --- Where the published grid is off


def odd_cells(grid=27, canvas=384):
  sizes = [(54, 54), (27, 27), (14, 14), (7, 7), (4, 4)]
  return detector.cells_of((grid, grid), sizes, (canvas, canvas))


def test_cells_are_as_large_as_they_are():
  cells = odd_cells()
  # The image's own cells and the finer ones cover the canvas to its end.
  for level in (0, 1):
    of_level = cells.level == level
    end = cells.centers[of_level].max(0) + cells.side[of_level][0] / 2
    np.testing.assert_allclose(end, [384, 384], rtol=1e-6)
  # The coarser ones cover it too, and lie over those they are made of.
  for level in (2, 3, 4):
    of_level = cells.level == level
    assert (
      cells.centers[of_level].max(0) + cells.side[of_level][0] / 2 > 383
    ).all()
    first = cells.centers[of_level][0]
    np.testing.assert_allclose(first, cells.side[of_level][0] / 2, rtol=1e-6)


def test_the_published_grid_is_an_eighth_off():
  # Its cells of 16 pixels, in units of where they are seen: 27 * 16 = 432.
  ours = odd_cells().centers[odd_cells().level == 1]
  theirs = (odd_cells().index[odd_cells().level == 1] + 0.5) * 16
  np.testing.assert_allclose(theirs / ours, 1.125, rtol=1e-6)


def test_a_pyramid_of_an_odd_grid_keeps_its_last_cells(config):
  model = detector.FeaturePyramid(config)
  features = np.random.default_rng(0).normal(size=(1, 5, 7, 8)).astype('f')
  params = model.init(jax.random.key(0), features)
  run = jax.jit(model.apply)
  pyramid = run(params, features)
  sizes = [p.shape[1:3] for p in pyramid]
  assert sizes == [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1)]
  moved = features.copy()
  moved[:, -1, -1] += 100
  for before, after in zip(pyramid, run(params, moved)):
    assert np.abs(after[:, -1, -1] - before[:, -1, -1]).max() > 1e-3


# --- What is asked for


CONFIG = detector.DetectorConfig(
  channels=8,
  fine_channels=6,
  tower_layers=1,
  tower_channels=8,
  groups=4,
  candidates=20,
  proposals=10,
  nms_threshold=0.9,
  bins=3,
  box_dim=8,
  detections=5,
)


def random_things(seed=0, count=5):
  """A large thing and others that share no cell of a level with one another.

  A cell has one box: of two things whose centres it has, the nearer's.
  """
  rng = np.random.default_rng(seed)
  where = rng.permuted(np.tile(np.arange(9), (2, 1)), axis=1)[:, :count]
  center = 64 + 128 * np.stack([where % 3, where // 3], -1)
  center = center + rng.uniform(-4, 4, center.shape)
  half = rng.uniform(10, 30, (2, count, 1)) * rng.uniform(1, 2, (2, count, 2))
  center[:, 0], half[:, 0] = [190, 195], [150, 170]
  boxes = np.concatenate([center - half, center + half], -1)
  return boxes.astype(np.float32), np.ones((2, count), np.float32)


def test_a_head_that_says_what_it_should_gives_the_boxes_back():
  boxes, weights = random_things()
  cells = odd_cells()
  config = dataclasses.replace(CONFIG, candidates=200, proposals=60)
  targets = detector.assign(boxes, weights, cells, config)
  logits = np.where(targets.is_center, 10.0, -10.0).astype(np.float32)
  size = np.full((2, 2), 384)
  found, scores, there = (
    np.asarray(x)
    for x in detector.propose(logits, targets.distances, cells, size, config)
  )
  for image in range(2):
    likely = found[image][there[image] & (scores[image] > 0.5)]
    iou = geometry.pairwise_iou(boxes[image], likely)
    assert (iou.max(1) > 0.999).all()
    assert (iou.max(0) > 0.999).all()


def test_each_thing_has_its_centre_where_it_is():
  boxes, weights = random_things(1, 1)
  cells = odd_cells()
  targets = detector.assign(boxes, weights, cells, CONFIG)
  center = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2
  for image in range(2):
    at = np.flatnonzero(targets.is_center[image])
    # A thing may belong to two levels that share its size.
    assert 1 <= len(at) <= 2
    away = np.abs(cells.centers[at] - center[image])
    assert (away <= cells.side[at] / 2 + 1e-3).all()
    assert (np.asarray(targets.heat[image])[at] == 1).all()


def test_boxes_of_weight_zero_and_empty_boxes_are_not_there():
  boxes, weights = random_things(2)
  cells = odd_cells()
  without = detector.assign(boxes[:, :3], weights[:, :3], cells, CONFIG)
  weights[:, 3] = 0
  boxes[:, 4, 2:] = boxes[:, 4, :2]
  targets = detector.assign(boxes, weights, cells, CONFIG)
  for field in dataclasses.fields(targets):
    np.testing.assert_allclose(
      getattr(targets, field.name), getattr(without, field.name), atol=1e-6
    )
  nothing = detector.assign(boxes, 0 * weights, cells, CONFIG)
  assert not np.any(nothing.heat)
  assert not np.any(nothing.is_center) and not np.any(nothing.has_box)


def test_targets_are_distances_to_the_sides():
  boxes, weights = random_things(3)
  cells = odd_cells()
  targets = detector.assign(boxes, weights, cells, CONFIG)
  for image in range(2):
    at = np.flatnonzero(targets.has_box[image])
    assert len(at)
    distances = np.asarray(targets.distances[image])[at]
    assert (distances > 0).all()
    center, side = cells.centers[at], cells.side[at]
    made = np.concatenate(
      [
        center - distances[:, :2] * side,
        center + distances[:, 2:] * side,
      ],
      -1,
    )
    assert (geometry.pairwise_iou(made, boxes[image]).max(1) > 0.999).all()


def test_side_loss_is_that_of_boxes():
  rng = np.random.default_rng(4)
  made, true = rng.uniform(0.1, 3, (2, 1, 6, 4)).astype(np.float32)
  has_box = np.asarray([[1, 1, 1, 0, 1, 1]], bool)
  loss, count = losses.side_loss(made, true, has_box, np.ones(1))
  signs = np.asarray([-1, -1, 1, 1])
  made, true = (x[0] * signs for x in (made, true))
  hull = np.concatenate(
    [np.minimum(made, true)[:, :2], np.maximum(made, true)[:, 2:]], -1
  )
  iou = geometry.box_iou(made, true)
  union = (geometry.box_area(made) + geometry.box_area(true)) / (1 + iou)
  hull = geometry.box_area(hull)
  want = (1 - iou + (hull - union) / hull)[has_box[0]].sum()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert float(count) == 5


def test_images_of_weight_zero_cost_nothing():
  rng = np.random.default_rng(5)
  logits = rng.normal(size=(2, 7)).astype(np.float32)
  heat = rng.random((2, 7)).astype(np.float32)
  is_center = heat > 0.7
  distances = rng.uniform(0.1, 3, (2, 7, 4)).astype(np.float32)
  weights = np.asarray([0.0, 1.0], np.float32)
  for loss, arrays in (
    (losses.center_loss, (logits, heat, is_center)),
    (losses.side_loss, (distances, distances[::-1], is_center)),
  ):
    whole = loss(*arrays, weights)
    alone = loss(*(a[1:] for a in arrays), weights[1:])
    np.testing.assert_allclose(whole, alone, rtol=1e-6)
    nothing = loss(*arrays, 0 * weights)
    assert float(losses.mean(nothing[0], nothing[-1])) == 0


@pytest.fixture(scope='module', name='tiny')
def tiny_fixture():
  features = np.random.default_rng(6).normal(size=(2, 4, 4, 5)).astype('f')
  pyramid, head = detector.FeaturePyramid(CONFIG), detector.ProposalHead(CONFIG)
  params = {'pyramid': pyramid.init(jax.random.key(0), features)}
  maps = pyramid.apply(params['pyramid'], features)
  params['head'] = head.init(jax.random.key(1), maps)
  parts = jnp.ones((1, 2, 3, 3, 8))
  params['box'] = detector.BoxHead(CONFIG).init(jax.random.key(2), parts)

  def run(params, features):
    return head.apply(
      params['head'], pyramid.apply(params['pyramid'], features)
    )

  return run, params, features


def test_every_parameter_has_known_axes(tiny):
  _, params, _ = tiny
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for leaf in jax.tree.leaves(params, is_leaf=is_boxed):
    assert is_boxed(leaf)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= sharding.AXIS_NAMES
    nn.logical_to_mesh_axes(leaf.names, sharding.RULES)


def test_gradients_reach_every_parameter(tiny):
  run, params, features = tiny

  boxes = jnp.asarray([[[5.0, 5, 60, 50], [20, 30, 90, 80]]] * 2)

  def total(params):
    logits, distances = run(params, features)
    pyramid = detector.FeaturePyramid(CONFIG).apply(params['pyramid'], features)
    parts = detector.read_boxes(pyramid, boxes, (4, 4), CANVAS, CONFIG)
    said = detector.BoxHead(CONFIG).apply(params['box'], parts)
    leaves = jax.tree.leaves((logits, distances, said))
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

  grads = jax.jit(jax.grad(total))(nn.unbox(params))
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


def draw(is_thing, there, key, **numbers):
  config = dataclasses.replace(CONFIG, **numbers)
  index, drawn = detector.sample(
    np.asarray([is_thing]), np.asarray([there]), config, key
  )
  return np.asarray(index)[0], np.asarray(drawn)[0]


def test_things_are_drawn_up_to_their_share():
  is_thing, there = np.arange(40) % 4 == 0, np.arange(40) != 8
  drawn = {'samples': 16, 'thing_share': 0.25}
  index, real = draw(is_thing, there, None, **drawn)
  assert real.all()
  assert index.tolist() == [
    0,
    4,
    12,
    16,
    1,
    2,
    3,
    5,
    6,
    7,
    *range(9, 12),
    13,
    14,
    15,
  ]
  sets = []
  for seed in range(20):
    index, real = draw(is_thing, there, jax.random.key(seed), **drawn)
    assert real.all()
    assert len(set(index)) == 16
    assert 8 not in index
    assert is_thing[index].tolist() == [True] * 4 + [False] * 12
    sets.append(tuple(index))
  assert len(set(sets)) == 20
  assert set(np.concatenate(sets)) == set(range(40)) - {8}


def test_fewer_boxes_than_samples_are_all_drawn():
  is_thing, there = np.arange(6) < 4, np.arange(6) != 5
  index, real = draw(is_thing, there, None, samples=16, thing_share=0.5)
  # Three things at most of six, and one without that is there.
  assert index[real].tolist() == [0, 1, 2, 4]


@pytest.fixture(scope='module', name='learned')
def learned_fixture():
  """A detector that has learned where four things are."""
  config = dataclasses.replace(CONFIG, detection_score=0.3)
  model = detector.Detector(config)
  rng = np.random.default_rng(3)
  features = rng.normal(size=(2, 6, 6, 8)).astype('f')
  size = np.asarray([[96, 96], [96, 80]], np.int32)
  things = np.float32(
    [[[8, 8, 40, 40], [48, 50, 90, 90]], [[6, 40, 70, 92], [0, 0, 0, 0]]]
  )
  weights = np.float32([[1, 1], [1, 0]])
  given = (features, size, CANVAS, things, weights)
  init = jax.jit(lambda key: model.init(key, *given, method='learn')['params'])
  params = nn.unbox(init(jax.random.key(0)))
  adam = optax.adam(3e-3)

  @jax.jit
  def update(params, state, key):
    def loss_of(params):
      seen = model.apply({'params': params}, *given, key, method='learn')
      return sum(
        losses.mean(*p) for p in losses.detection_loss(seen, jnp.ones(2))
      )

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = adam.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  state, curve = adam.init(params), []
  for step in range(150):
    params, state, loss = update(params, state, jax.random.key(step))
    curve.append(float(loss))
  return model, params, given, curve


def test_a_detector_learns_where_things_are(learned):
  model, params, (features, size, _, things, _), curve = learned
  assert curve[-1] < 0.2 * curve[0]
  found, scores, there = jax.jit(
    lambda params: model.apply({'params': params}, features, size, CANVAS)
  )(params)
  found = [np.asarray(f)[t] for f, t in zip(found, np.asarray(there))]
  assert [len(f) for f in found] == [2, 1]
  assert np.asarray(scores)[np.asarray(there)].min() > 0.5
  for boxes, true in zip(found, (things[0], things[1, :1])):
    assert (geometry.pairwise_iou(boxes, true).max(0) > 0.8).all()


def test_images_not_wholly_labelled_teach_nothing(learned):
  model, params, (features, size, _, things, weights), _ = learned

  def loss_of(features, weight):
    given = (features, size, CANVAS, things, weights)
    seen = model.apply({'params': params}, *given, method='learn')
    return [losses.mean(*p) for p in losses.detection_loss(seen, weight)]

  loss_of = jax.jit(loss_of)
  other = np.stack([features[0], -features[1]])
  first = np.float32([1, 0])
  for a, b in zip(loss_of(features, first), loss_of(other, first)):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  assert [float(x) for x in loss_of(features, 0 * first)] == [0] * 4
  assert sum(loss_of(other, 1 - first)) > 2 * sum(loss_of(features, 1 - first))


def test_at_first_little_is_a_centre_and_boxes_are_sixteen_cells_wide(tiny):
  run, params, features = tiny
  logits, distances = jax.jit(run)(nn.unbox(params), features)
  assert np.abs(nn.sigmoid(logits) - 0.01).max() < 0.01
  assert np.abs(distances - 8).max() < 1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'ranges': ((0.0, 1.0),)}, r'ranges: expected one for each of 5.*got 1'),
    ({'groups': 3}, r'tower_channels: expected a multiple of groups = 3'),
    ({'detections': 11}, r'detections: expected 1 to proposals = 10, got 11'),
    ({'proposals': 21}, r'proposals: expected 1 to candidates = 20, got 21'),
    ({'train_proposals': 2001}, r'train_proposals: .* train_candidates = 2000'),
  ],
)
def test_impossible_numbers_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)
