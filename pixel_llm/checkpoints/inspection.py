# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a file of tensors holds, as a tree in text and as JSON."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pixel_llm.checkpoints.tensors import Tensor, Tensors

_NUMBERED = re.compile(r'(.*?)(\d+)')
_UNITS = ('B', 'kB', 'MB', 'GB', 'TB')


@dataclasses.dataclass
class _Node:
  """A part of the tree: a tensor, or further parts by name."""

  tensor: Tensor | None = None
  children: dict[str, _Node] = dataclasses.field(default_factory=dict)

  def tensors(self) -> Iterator[Tensor]:
    if self.tensor is not None:
      yield self.tensor
    for child in self.children.values():
      yield from child.tensors()

  def signature(self) -> Any:
    """Equal for parts that differ in their values only."""
    return self.tensor, [(n, c.signature()) for n, c in self.children.items()]


def to_json(path: str, words: str, tensors: Tensors) -> dict[str, Any]:
  """Everything about the tensors but their values.

  Args:
    path: where they are.
    words: their format.
    tensors: by name.
  """
  return {
    'path': path,
    'format': words,
    'tensors': [
      {
        'name': name,
        'shape': list(tensor.shape),
        'dtype': tensor.dtype.name,
        'bytes': tensor.nbytes,
      }
      for name, tensor in tensors.items()
    ],
    'numbers': sum(t.size for t in tensors.values()),
    'bytes': sum(t.nbytes for t in tensors.values()),
  }


def to_text(tensors: Tensors, depth: int | None = None) -> str:
  """The tree of names, split at slashes and dots.

  Numbered neighbours that differ in their values only, as the layers of a
  network do, are one line: `layers_0..23 (24 alike)`.

  Args:
    tensors: by name.
    depth: levels to show; what is below is summed up. None shows all.
  """
  root = _Node()
  for name, tensor in tensors.items():
    node = root
    for part in re.split(r'[/.]', name):
      node = node.children.setdefault(part, _Node())
    node.tensor = tensor
  rows = list(_rows(root, '', depth))
  by_dtype = collections.defaultdict(list)
  for tensor in tensors.values():
    by_dtype[tensor.dtype.name].append(tensor)
  rows += [('', '', '', '')]
  rows += [(name, *_summary(ts)) for name, ts in sorted(by_dtype.items())]
  rows += [('total', *_summary(tensors.values()))]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  return '\n'.join(
    f'{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  '
    f'{d:>{widths[3]}}'.rstrip()
    for a, b, c, d in rows
  )


def _rows(
  node: _Node, indent: str, depth: int | None
) -> Iterator[tuple[str, str, str, str]]:
  if depth is not None and depth <= 0:
    return
  below = None if depth is None else depth - 1
  children = sorted(node.children.items(), key=lambda item: _natural(item[0]))
  for (stem, _), group in itertools.groupby(children, _alike):
    alike = list(group)
    (name, child), count = alike[0], len(alike)
    if stem is not None and count > 1:
      last = alike[-1][0].removeprefix(stem)
      name = f'{name}..{last} ({count} alike)'
    if child.children:
      yield indent + name, *_summary([t for _, c in alike for t in c.tensors()])
      yield from _rows(child, indent + '  ', below)
    elif child.tensor is not None:
      tensor = child.tensor
      what = f'{tensor.dtype.name} {list(tensor.shape)}'
      _, numbers, size = _summary([t for _, c in alike for t in c.tensors()])
      yield indent + name, what, numbers, size


def _alike(item: tuple[str, _Node]) -> tuple[str | None, Any]:
  """What numbered neighbours share; a name of its own for any other."""
  name, node = item
  match = _NUMBERED.fullmatch(name)
  return (match[1], node.signature()) if match else (None, name)


def _natural(name: str) -> list[Any]:
  """Sorts `layers_10` after `layers_9`."""
  parts = re.split(r'(\d+)', name)
  return [int(p) if p.isdigit() else p for p in parts]


def _summary(tensors: Iterable[Tensor]) -> tuple[str, str, str]:
  tensors = list(tensors)
  size, unit = float(sum(t.nbytes for t in tensors)), 0
  while size >= 1000 and unit < len(_UNITS) - 1:
    size, unit = size / 1000, unit + 1
  digits = 1 if unit else 0
  plural = '' if len(tensors) == 1 else 's'
  return (
    f'{len(tensors)} tensor{plural}',
    f'{sum(t.size for t in tensors):,}',
    f'{size:.{digits}f} {_UNITS[unit]}',
  )
