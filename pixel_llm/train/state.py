# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What training carries from step to step, and its trainable part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from pixel_llm import sharding


@struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 scalar, steps taken.
    params: the whole tree, frozen parameters included.
    opt_state: optimizer state of the trainable parameters only.
  """

  step: Any
  params: Any
  opt_state: Any


def split(params: Any, mask: Any) -> tuple[Any, Any]:
  """(trainable, frozen): `params` twice, each with None for the other's leaves.

  None is an empty tree to JAX, so gradients and optimizer state exist for the
  leaves of the part that is differentiated, and for nothing else.

  Args:
    params: the whole tree.
    mask: bool a leaf, True where trainable.
  """
  trainable = jax.tree.map(lambda keep, p: p if keep else None, mask, params)
  frozen = jax.tree.map(lambda keep, p: None if keep else p, mask, params)
  return trainable, frozen


def merge(trainable: Any, frozen: Any) -> Any:
  """The whole tree from the two that `split` gave."""
  return jax.tree.map(
    lambda t, f: f if t is None else t,
    trainable,
    frozen,
    is_leaf=lambda x: x is None,
  )


def abstract_params(
  init_fn: Callable[[jax.Array], Any],
  mask: Any,
  mesh: Mesh,
  config: sharding.MeshConfig,
) -> Any:
  """The parameters alone; see `abstract`."""
  with _unconstrained():
    boxed = jax.eval_shape(init_fn, jax.random.key(0))
    trained, frozen = (
      sharding.state_shardings(boxed, mesh, config.rules(trained))
      for trained in (True, False)
    )
    shardings = jax.tree.map(
      lambda keep, t, f: t if keep else f, mask, trained, frozen
    )
    return _place(nn.unbox(boxed), shardings)


def abstract(
  init_fn: Callable[[jax.Array], Any],
  optimizer: optax.GradientTransformation,
  mask: Any,
  mesh: Mesh,
  config: sharding.MeshConfig,
) -> TrainState:
  """The state as `ShapeDtypeStruct`s with shardings; nothing is allocated.

  Args:
    init_fn: key -> params, leaves in `nn.LogicallyPartitioned` boxes.
    optimizer: of the trainable parameters.
    mask: bool a leaf of the unboxed params, True where trainable.
    mesh: where the state lives.
    config: of the mesh; how parameters lie on it.

  Returns:
    What `create` would give, for restoring a checkpoint into. Optimizer state
    of a parameter lies as its parameter does; the rest of it and the step are
    whole on every device.
  """
  params = abstract_params(init_fn, mask, mesh, config)
  trainable, _ = split(params, mask)
  whole = sharding.replicated(mesh)

  parameters = dict(jax.tree.leaves_with_path(trainable))

  def like_parameter(path, leaf):
    # A parameter's state is found by the end of its path. One that summarizes
    # the parameter, such as a row mean, cannot lie as the parameter does.
    own = (parameters.get(path[i:]) for i in range(len(path)))
    parameter = next((p for p in own if p is not None), None)
    if parameter is None or leaf.shape != parameter.shape:
      return _place(leaf, whole)
    return _place(leaf, parameter.sharding)

  opt_state = jax.tree.map_with_path(
    like_parameter, jax.eval_shape(optimizer.init, trainable)
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  return TrainState(step=step, params=params, opt_state=opt_state)


def create(
  init_fn: Callable[[jax.Array], Any],
  optimizer: optax.GradientTransformation,
  mask: Any,
  mesh: Mesh,
  config: sharding.MeshConfig,
  key: jax.Array,
  given: Any = None,
) -> TrainState:
  """A fresh state at step 0, sharded from its first moment.

  Args:
    init_fn: key -> params, leaves in `nn.LogicallyPartitioned` boxes.
    optimizer: of the trainable parameters.
    mask: bool a leaf of the unboxed params, True where trainable.
    mesh: where the state lives.
    config: of the mesh; how parameters lie on it.
    key: of the random initialization.
    given: parameters that are not drawn, on the mesh as `abstract` says; the
      tree of all of them with None for the others. They are not copied.
      Default none. What is drawn does not depend on what is given.
  """
  leaves = abstract(init_fn, optimizer, mask, mesh, config)
  if given is None:
    given = jax.tree.map(lambda _: None, leaves.params)

  def init(key, given):
    drawn = nn.unbox(init_fn(key))
    trainable, _ = split(merge(given, drawn), mask)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=_others(given, drawn),
      opt_state=optimizer.init(trainable),
    )

  shardings = jax.tree.map(
    lambda leaf: leaf.sharding,
    dataclasses.replace(leaves, params=_others(given, leaves.params)),
  )
  with _unconstrained():
    state = jax.jit(init, out_shardings=shardings)(key, given)
  return dataclasses.replace(state, params=merge(given, state.params))


def _others(given: Any, params: Any) -> Any:
  """`params` with None for the leaves that are given."""
  return jax.tree.map(
    lambda g, p: p if g is None else None,
    given,
    params,
    is_leaf=lambda x: x is None,
  )


def _unconstrained():
  # Under a caller's mesh and rules Linen would constrain each parameter as it
  # is unboxed, and refuse a dimension that its mesh axis does not divide; here
  # `state_shardings` alone decides.
  return nn.logical_axis_rules(())


def _place(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    tree,
    shardings,
  )
