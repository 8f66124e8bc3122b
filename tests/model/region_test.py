# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of regions: what is sampled where, and which cells belong to a box."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_llm import sharding
from pixel_llm.model import region

CONFIG = region.RegionConfig(bins=2, bin_channels=4, mlp_dim=12, cells=3)
WHOLE = np.array([[[0, 0, 1, 1]]], np.float32)
UNIT = st.floats(0, 1, width=32)


def embed(places):
  """A fixed embedding of positions [..., 2] -> [..., 4]."""
  return jnp.concatenate([jnp.sin(places), jnp.cos(3 * places)], -1)


def read(module, features, boxes, image_boxes):
  """Both methods, as the network calls them."""
  proposals = module.propose(features, image_boxes)
  # The tests' valid images start at the corner, as all do.
  windows = proposals.reshape(len(boxes), -1, 4)
  windows = windows * jnp.tile(image_boxes[..., 2:], 2)
  return *module(features, boxes, windows, image_boxes, embed), proposals


@pytest.fixture(scope='module', name='tiny')
def tiny_fixture():
  keys = jax.random.split(jax.random.key(0), 2)
  low = jax.random.uniform(keys[0], (2, 3, 2), maxval=0.4)
  boxes = jnp.concatenate([low, low + 0.3], -1)
  inputs = (
    jax.random.normal(keys[1], (2, 4, 6, 5)),
    boxes,
    jnp.array([[[0, 0, 1, 0.75]], [[0, 0, 0.5, 1]]]),
  )
  model = region.RegionTokens(CONFIG, 7)
  init = jax.jit(lambda key, *x: model.init(key, *x, method=read))
  params = nn.unbox(init(jax.random.key(1), *inputs))
  apply = jax.jit(lambda params, *x: model.apply(params, *x, method=read))
  return apply, params, inputs


def test_shapes(tiny):
  apply, params, inputs = tiny
  own, cells, near, proposals = apply(params, *inputs)
  assert own.shape == (2, 3, 1, 7)
  assert cells.shape == (2, 1, 9, 7)
  assert near.shape == (2, 3, 9)
  assert near.dtype == bool
  assert proposals.shape == (2, 3, 3, 4)


def test_a_proposal_holds_the_centre_of_its_cell(tiny):
  apply, params, inputs = tiny
  # Whatever the parameters say.
  params = jax.tree.map(lambda x: 30 * x, params)
  proposals = apply(params, *inputs)[-1].reshape(2, 9, 4)
  middle = region.centers(WHOLE[:, 0], 3)
  assert (proposals[..., :2] <= middle).all()
  assert (proposals[..., 2:] >= middle).all()
  assert proposals.min() >= 0
  assert proposals.max() <= 1


def test_a_proposal_sees_around_its_cell_only(tiny):
  apply, params, (_, boxes, _) = tiny
  image = jnp.array([[[0, 0, 1, 1.0]]] * 2)
  features = jnp.ones((2, 9, 9, 5))
  changed = features.at[:, 0, 0].set(5)
  one = apply(params, features, boxes, image)[-1]
  other = apply(params, changed, boxes, image)[-1]
  moved = np.asarray(jnp.abs(one - other).max((0, -1)) > 1e-6)
  assert moved[0, 0]
  assert moved.sum() == 1


def test_a_cell_is_read_as_a_region_through_its_box(tiny):
  _, params, (features, boxes, image) = tiny
  model = region.RegionTokens(CONFIG, 7)

  def through(windows):
    return model.apply(params, features, boxes, windows, image, embed)

  # Cells differ from their regions by what they are themselves, and by that
  # alone: with all windows equal, from cell to cell.
  own, cells, _ = through(jnp.tile(boxes[:, :1], (1, 9, 1)))
  _, others, _ = through(jnp.tile(boxes[:, 1:2], (1, 9, 1)))
  np.testing.assert_allclose(
    cells - others,
    jnp.broadcast_to(own[:, None, 0] - own[:, None, 1], cells.shape),
    atol=1e-5,
  )


def test_what_is_read_does_not_move_the_proposals(tiny):
  apply, params, inputs = tiny
  total = lambda p: jnp.sum(jnp.sin(apply(p, *inputs)[1]))
  grads = jax.grad(total)(params)['params']
  assert not np.any(grads['proposal_conv']['kernel'])
  assert not np.any(grads['proposal_out']['kernel'])
  assert np.any(grads['mlp_in']['kernel'])


def test_centers_go_row_by_row():
  y = region.centers(jnp.array([[10.0, 20, 14, 28]]), 2)
  np.testing.assert_allclose(y, [[[11, 22], [13, 22], [11, 26], [13, 26]]])


def test_a_ramp_is_read_at_the_centers():
  # Cells of an image whose features are their own positions.
  height, width = 16, 24
  y, x = np.meshgrid(
    (np.arange(height) + 0.5) / height,
    (np.arange(width) + 0.5) / width,
    indexing='ij',
  )
  features = np.stack([x, y], -1).astype(np.float32)[None]
  # Narrower and wider than cells, away from the border.
  boxes = np.array([[[0.4, 0.5, 0.43, 0.54], [0.3, 0.3, 0.7, 0.75]]], 'f')
  for grid in (1, 2, 3):
    # Bins of several cells are read to within the fourth of a cell.
    np.testing.assert_allclose(
      region.sample(features, boxes, grid),
      region.centers(boxes, grid),
      atol=0.25 / height,
    )
  one = region.sample(features, boxes[:, :1], 3)
  np.testing.assert_allclose(one, region.centers(boxes[:, :1], 3), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(UNIT, min_size=4, max_size=4), st.integers(1, 5))
def test_sampling_neither_adds_nor_takes(corners, grid):
  x0, y0, x1, y1 = corners
  box = np.array([[[min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]]], 'f')
  y = region.sample(np.ones((1, 3, 5, 1), 'f'), box, grid)
  np.testing.assert_allclose(y, 1, atol=1e-5)


def test_no_cell_of_a_box_is_passed_over():
  features = np.eye(64, dtype='f').reshape(1, 8, 8, 64)
  for grid in (1, 2, 3):
    read = region.sample(features, WHOLE, grid)[0, 0].sum(0)
    assert (np.asarray(read) > 0).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(UNIT, min_size=4, max_size=4), st.integers(1, 7))
def test_every_box_in_the_image_has_a_cell(corners, cells):
  x0, y0, x1, y1 = corners
  image = np.array([[[0, 0, 1, 0.5]]], 'f')
  box = [min(x0, x1), min(y0, y1) / 2, max(x0, x1), max(y0, y1) / 2]
  near = region._near(np.array([[box]], 'f'), image, cells)
  assert near.any()


def test_the_whole_image_has_every_cell_and_a_box_only_its_own():
  boxes = np.array([[[0, 0, 1, 1], [0.05, 0.3, 0.2, 0.9]]], 'f')
  near = np.asarray(region._near(boxes, WHOLE, 4)).reshape(2, 4, 4)
  assert near[0].all()
  np.testing.assert_array_equal(near[1].any(0), [True, False, False, False])
  np.testing.assert_array_equal(near[1].any(1), [False, True, True, True])


def test_a_region_sees_its_box_and_cells_see_none(tiny):
  apply, params, inputs = tiny
  features, boxes, image = inputs
  own, cells, *_ = apply(params, *inputs)
  moved = boxes.at[:, 1].add(0.2)
  other, same, *_ = apply(params, features, moved, image)
  np.testing.assert_array_equal(cells, same)
  np.testing.assert_array_equal(own[:, 0], other[:, 0])
  assert np.abs(own[:, 1] - other[:, 1]).max() > 1e-3


def test_gradients_reach_every_parameter(tiny):
  apply, params, inputs = tiny

  def total(params):
    own, cells, _, proposals = apply(params, *inputs)
    return sum(jnp.sum(jnp.sin(x)) for x in (own, cells, proposals))

  grads = jax.grad(total)(params)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(g).max() > 1e-6, jax.tree_util.keystr(path)


def test_every_parameter_has_known_axes(tiny):
  *_, inputs = tiny
  model = region.RegionTokens(CONFIG, 7)
  init = lambda key, *x: model.init(key, *x, method=read)
  boxed = jax.eval_shape(init, jax.random.key(0), *inputs)
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for leaf in jax.tree.leaves(boxed, is_leaf=is_boxed):
    assert is_boxed(leaf)
    assert set(leaf.names) <= sharding.AXIS_NAMES
    nn.logical_to_mesh_axes(leaf.names, sharding.RULES)


@pytest.mark.parametrize('name', ['bins', 'bin_channels', 'mlp_dim', 'cells'])
def test_impossible_numbers_are_refused(name):
  with pytest.raises(ValueError, match=f'RegionConfig.{name}: expected'):
    region.RegionConfig(**{name: 0})


def test_what_is_pointed_at_is_what_the_cell_proposes():
  boxes = np.arange(36, dtype=np.float32).reshape(1, 3, 3, 4) / 36
  points = np.float32([[[0.5, 0.1], [0.9, 0.9]], [[1, 1], [0.2, 0.4]]])[None]
  labels = np.int32([[[1, 1], [-1, 1]]])
  got = region.pointed_box(boxes, points, labels)
  np.testing.assert_array_equal(got[0], [boxes[0, 0, 1], boxes[0, 1, 0]])
  got = region.pointed_box(boxes, points, np.int32([[[0, 1], [0, -1]]]))
  np.testing.assert_array_equal(got[0], [boxes[0, 2, 2], [0, 0, 1, 1]])
