# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Regression head against the research code's numbers; properties."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pixel_llm import sharding
from pixel_llm.model import regression

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CONFIG = regression.RegressionConfig(hidden_dim=48, depth=4, points=2)


@pytest.fixture(scope='module', name='golden')
def golden_fixture():
  with np.load(GOLDEN / 'mlp_point_predictor.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module', name='params')
def params_fixture(golden):
  """The published names under ours."""
  names = {f'dense_{i}': f'mlp/layers.{i}' for i in range(3)}
  params = {
    ours: {k: golden[f'params/{theirs}/{k}'] for k in ('kernel', 'bias')}
    for ours, theirs in names.items()
  }
  params['norm'] = {
    k: golden[f'params/LayerNorm_0/{k}'] for k in ('scale', 'bias')
  }
  # [points, (x, y, two unused logits)]: keep the coordinates.
  kernel = golden['params/mlp/layers.3/kernel'].reshape(48, 2, 4)
  bias = golden['params/mlp/layers.3/bias'].reshape(2, 4)
  params['out'] = {
    'kernel': kernel[:, :, :2].reshape(48, 4),
    'bias': bias[:, :2].reshape(4),
  }
  return {'params': params}


def test_points_equal_the_golden(golden, params):
  head = regression.RegressionHead(CONFIG)
  hidden = golden['in/text_feat']
  shapes = nn.unbox(jax.eval_shape(head.init, jax.random.key(0), hidden))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  points = head.apply(params, hidden)
  np.testing.assert_allclose(
    points, golden['out/point_coords'], atol=1e-5, rtol=1e-4
  )


def test_a_word_is_read_alone(golden, params):
  head = regression.RegressionHead(CONFIG)
  hidden = golden['in/text_feat']
  points = head.apply(params, hidden)
  alone = head.apply(params, hidden[1, 2, 4])
  assert alone.shape == (2, 2)
  np.testing.assert_allclose(alone, points[1, 2, 4], atol=1e-6)


def test_points_are_float32_whatever_the_dtype(golden, params):
  config = regression.RegressionConfig(48, 4, 2, dtype='bfloat16')
  points = regression.RegressionHead(config).apply(
    params, golden['in/text_feat']
  )
  assert points.dtype == jnp.float32
  np.testing.assert_allclose(points, golden['out/point_coords'], atol=0.03)


@pytest.mark.parametrize('depth', [1, 2, 5])
def test_every_parameter_has_known_axes_that_a_mesh_can_hold(depth):
  config = regression.RegressionConfig(hidden_dim=4, depth=depth, points=3)
  head = regression.RegressionHead(config)
  points, boxed = jax.eval_shape(
    head.init_with_output, jax.random.key(0), jnp.ones((1, 6))
  )
  assert points.shape == (1, 3, 2)
  is_boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
  leaves = jax.tree.leaves(boxed, is_leaf=is_boxed)
  assert len(leaves) == 2 * (depth + 1)
  for leaf in leaves:
    assert is_boxed(leaf)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= sharding.AXIS_NAMES
    nn.logical_to_mesh_axes(leaf.names, sharding.RULES)


def test_a_head_without_layers_is_refused():
  with pytest.raises(ValueError, match='depth: expected at least 1, got 0'):
    regression.RegressionConfig(depth=0)
