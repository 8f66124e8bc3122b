# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Trees as leaves by their paths, as checkpoints name them."""

from __future__ import annotations

from typing import Any

import jax
from flax import traverse_util

# How many names an error about a tree lists of each kind.
_LISTED = 20


def flat(tree: Any) -> dict[str, Any]:
  """Leaves by their paths, whose names are joined by `/`."""
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree.leaves_with_path(tree)
  }


def nested(tree: Any) -> dict[str, Any]:
  """The tree as plain dicts, without a trace of its classes and empty nodes."""
  return unflat(flat(tree))


def unflat(leaves: dict[str, Any]) -> dict[str, Any]:
  """Dicts in dicts, of leaves by their paths."""
  return traverse_util.unflatten_dict(leaves, sep='/')


def like(tree: Any, leaves: dict[str, Any]) -> Any:
  """A tree as `tree` with other leaves, by their paths."""
  return jax.tree.unflatten(
    jax.tree.structure(tree), [leaves[path] for path in flat(tree)]
  )


def difference(
  expected: dict[str, Any], got: dict[str, Any], cast: bool
) -> str:
  """What leaves by their paths lack, have too much, or have of other shapes.

  Args:
    expected: by the model.
    got: in the checkpoint.
    cast: dtypes may differ.

  Returns: whole sentences; nothing where they are alike.
  """

  def described(leaf):
    shape = tuple(leaf.shape)
    return f'{shape}' if cast else f'{shape} {leaf.dtype}'

  misshapen = [
    f'{path}: expected {described(expected[path])}, got {described(got[path])}'
    for path in expected
    if path in got and described(expected[path]) != described(got[path])
  ]
  missing = [path for path in expected if path not in got]
  unknown = [path for path in got if path not in expected]
  parts = [
    f'{title}: {"; ".join(lines[:_LISTED])}'
    + (f' and {len(lines) - _LISTED} more' if len(lines) > _LISTED else '')
    + '.'
    for title, lines in (
      ('Missing in the checkpoint', missing),
      ('Unknown to the model', unknown),
      ('Misshapen', misshapen),
    )
    if lines
  ]
  return ' '.join(parts)
