# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints, ours and T5X's, a tensor at a time.

`manager.py` saves and restores whole states by Orbax itself. Here is what
Orbax's interface does not give: the names and shapes of a checkpoint without
its tree, any one array, and writing without holding all arrays at once.

Source: the files that orbax-checkpoint 0.12 writes.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

from flax import traverse_util

from pixel_llm.checkpoints.formats import zarr
from pixel_llm.checkpoints.tensors import (
  Tensor,
  TensorFileError,
  Tensors,
  damaged,
  part,
)

_TREE = '_METADATA'
_STEP = re.compile(r'(?:.*_)?(\d+)')
# The item under which T5X keeps its train state.
_T5X_ITEM = 'state'
_HANDLER = (
  'orbax.checkpoint._src.handlers.standard_checkpoint_handler.'
  'StandardCheckpointHandler'
)
_JSON_HANDLER = (
  'orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler'
)


def is_item(path: pathlib.Path) -> bool:
  """Whether the folder is a tree of arrays."""
  return (path / _TREE).is_file()


def items(path: pathlib.Path) -> list[str]:
  """Names of the trees of arrays that the folder of a step holds."""
  return sorted(p.name for p in path.iterdir() if is_item(p))


def steps(path: pathlib.Path) -> dict[int, pathlib.Path]:
  """The folders of the steps in a folder of checkpoints, by step, ascending.

  Folders named by steps, such as `600` or `checkpoint_600`, that hold trees
  of arrays or T5X's file `checkpoint`; those of unfinished saves are not.
  """
  found = [
    (int(match[1]), child)
    for child in path.iterdir()
    if (match := _STEP.fullmatch(child.name)) and child.is_dir()
    if (child / 'checkpoint').is_file() or items(child)
  ]
  return dict(sorted(found))


def newest(path: pathlib.Path) -> pathlib.Path | None:
  """The last of `steps`, if there is one."""
  return next(reversed(steps(path).values()), None)


def read(path: str | os.PathLike) -> dict[str, Tensor]:
  """The arrays of a checkpoint; reads their metadata only.

  Args:
    path: the folder of a step, or of one of its items.

  Returns:
    tensors by name; of a step, the item's name first, but for T5X's `state`,
    so that T5X's names are the same in both of its formats.

  Raises:
    TensorFileError: not such a checkpoint, or damaged.
    OSError: it can't be read.
  """
  root = pathlib.Path(path).absolute()
  if is_item(root):
    if root.name != 'params':
      return _read_item(root)
    return part(_read_base(root.parent), 'params/') | _read_item(root)
  names = items(root)
  if not names:
    raise TensorFileError(path, f'a folder with {_TREE}', 'none')
  if names == [_T5X_ITEM]:
    return _read_item(root / _T5X_ITEM)
  return _read_base(root) | {
    f'{item}/{name}': tensor
    for item in names
    for name, tensor in _read_item(root / item).items()
  }


def base(directory: Any, digest: str) -> Any:
  """Where parameters lie that were not trained, beside the steps (a path)."""
  return directory / f'base-{digest}'


def _read_base(step: pathlib.Path) -> dict[str, Tensor]:
  """The parameters of our own steps that were written once for all of them."""
  file = step / 'metadata' / 'metadata'
  if not file.is_file():
    return {}
  with damaged(file, 'JSON'):
    digest = json.loads(file.read_bytes()).get('base')
  if digest is None:
    return {}
  folder = base(step.parent, digest)
  if not is_item(folder):
    raise TensorFileError(
      step, f'{folder.name} beside it, with the parameters not trained', 'none'
    )
  return {f'params/{n}': t for n, t in _read_item(folder).items()}


def _read_item(path: pathlib.Path) -> dict[str, Tensor]:
  file = path / _TREE
  with damaged(file, "the JSON of Orbax's tree"):
    tree = json.loads(file.read_bytes())
    nodes = tree['tree_metadata'].values()
    leaves = {
      tuple(str(k['key']) for k in node['key_metadata']): node['value_metadata']
      for node in nodes
    }
    ocdbt, zarr3 = bool(tree['use_ocdbt']), bool(tree.get('use_zarr3'))
    # Else a chunk of zeros is left out, and a lost one is not noticed.
    zeros_kept = bool(tree.get('store_array_data_equal_to_fill_value'))
    arrays = [
      keys
      for keys, leaf in leaves.items()
      if leaf['value_type'] not in ('None', 'string')
      and not leaf.get('skip_deserialize')
    ]
  specs = {}
  for keys in arrays:
    name = '.'.join(keys)
    if ocdbt:
      kvstore = {
        'driver': 'ocdbt',
        'base': {'driver': 'file', 'path': f'{path}/'},
        'path': f'{name}/',
      }
    elif os.path.basename(name) == name:
      kvstore = {'driver': 'file', 'path': f'{path / name}/'}
    else:
      raise TensorFileError(file, 'names without slashes', repr(name))
    specs['/'.join(keys)] = {
      'driver': 'zarr3' if zarr3 else 'zarr',
      'kvstore': kvstore,
      'fill_missing_data_reads': not zeros_kept,
    }
  return zarr.open_all(path, specs)


def write(
  path: str | os.PathLike, tensors: Tensors, metadata: dict[str, Any]
) -> None:
  """Writes a step of parameters alone, as `CheckpointManager` reads it.

  Args:
    path: the folder to make; its name is the step.
    tensors: of the item `params`, by path in the tree.
    metadata: JSON values, of the item `metadata`.

  Raises:
    OSError: it can't be written.
  """
  root = pathlib.Path(path).absolute()
  params = root / 'params'
  params.mkdir(parents=True)
  nodes: dict[str, Any] = {}
  for name, tensor in tensors.items():
    keys = tuple(name.split('/'))
    zarr.write(
      {
        'driver': 'zarr',
        'kvstore': {
          'driver': 'ocdbt',
          'base': {'driver': 'file', 'path': f'{params}/'},
          'path': f'{".".join(keys)}/',
        },
        'store_data_equal_to_fill_value': True,
      },
      tensor,
      {'id': 'zstd', 'level': 1},
    )
    nodes[str(keys)] = {
      'key_metadata': [{'key': key, 'key_type': 2} for key in keys],
      'value_metadata': {
        'value_type': 'jax.Array',
        'skip_deserialize': False,
        'write_shape': list(tensor.shape),
      },
    }
  # Checked here, since Orbax would find one name within another only later.
  traverse_util.unflatten_dict(dict.fromkeys(tensors), sep='/')
  _dump(
    params / _TREE,
    {
      'tree_metadata': nodes,
      'use_ocdbt': True,
      'use_zarr3': False,
      'store_array_data_equal_to_fill_value': True,
      'custom_metadata': None,
    },
  )
  (root / 'metadata').mkdir()
  _dump(root / 'metadata' / 'metadata', metadata)
  _dump(
    root / '_CHECKPOINT_METADATA',
    {
      'item_handlers': {'metadata': _JSON_HANDLER, 'params': _HANDLER},
      'metrics': {},
      'performance_metrics': {},
      'init_timestamp_nsecs': None,
      'commit_timestamp_nsecs': None,
      'custom_metadata': {},
    },
  )


def _dump(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value))
