# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of a new run from other checkpoints, each straight to its place.

What fits is known from names, shapes and dtypes alone, so everything that does
not is one error before a tensor is read. Then tensors pass through host memory
one at a time, onto the mesh as their sharding says. Paths are local.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax

from pixel_llm import config as config_lib
from pixel_llm.checkpoints import mapping, t5_names, trees
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import detection
from pixel_llm.checkpoints.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """A checkpoint by our names, and what of it is taken.

  A parameter's name is its keys joined by '/'; regexes are searched for in it,
  as in `optimizer`: `^t5/` is the T5, `lora` is found anywhere.

  Attributes:
    path: a file such as `.safetensors`, an Orbax checkpoint of parameters as
      `pixel-llm import` writes it, a run's workdir or its checkpoints, or a
      checkpoint by T5X: of this network, or of a T5 1.1 alone.
    step: of the checkpoints in the folder; None takes the newest.
    take: regexes of the parameters to take; empty takes all.
    leave_out: regexes of those not to take all the same.
    cast: whether floating point numbers of another dtype than the model's are
      converted; else they are an error.
  """

  path: str = ''
  step: int | None = None
  take: tuple[str, ...] = ()
  leave_out: tuple[str, ...] = ()
  cast: bool = False

  def __post_init__(self):
    if not self.path:
      raise ValueError('path: expected a file or folder, got none.')
    _check_regexes('take', self.take)
    _check_regexes('leave_out', self.leave_out)


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """Where the parameters of a new run come from; the rest are drawn.

  Attributes:
    sources: name -> a checkpoint; no two may give the same parameter.
    allow_missing: regexes of the parameters that are drawn from the seed when
      no source gives them; any other that none gives is an error.
  """

  sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
  allow_missing: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.sources:
      raise ValueError('sources: expected at least one, got none.')
    _check_regexes('allow_missing', self.allow_missing)


def open_sources(config: InitConfig, abstract: Any) -> dict[str, Tensors]:
  """The tensors to take by source, checked against the model; none is read.

  Args:
    config: the sources.
    abstract: the tree of parameters; leaves have shape and dtype.

  Returns:
    by source, tensors by the parameter's name and of its shape and dtype; each
    raises a ValueError that names it when it is read and not finite.

  Raises:
    MappingError: names, shapes or dtypes do not fit, or a regex is found
      nowhere; the message lists all of it, for all sources.
    ConfigError: a source is not there.
    TensorFileError: a source is damaged, or of no known format.
    OSError: a source can't be read.
  """
  expected = trees.flat(abstract)
  problems: list[str] = []
  result: dict[str, Tensors] = {}
  for key, source in config.sources.items():
    taken, lines = _taken(source, _opened(key, source), expected)
    if lines:
      problems.append(f'init.sources.{key}: {source.path}: {lines}')
    result[key] = taken
  lines = _together(config, result, expected)
  if lines:
    problems.append(f'init: {lines}')
  if problems:
    raise mapping.MappingError('\n'.join(problems))
  return result


def place(tensors: Tensors, abstract: Any) -> Any:
  """Reads tensors onto the mesh, one in host memory at a time.

  Every process reads every tensor, and keeps the parts of its own devices.

  Args:
    tensors: by the parameter's name, of its shape and dtype.
    abstract: the tree of parameters; leaves have shape, dtype and sharding.

  Returns:
    the tree with arrays where there was a tensor, and None elsewhere.

  Raises:
    TensorFileError: a file is damaged.
    ValueError: a tensor is not of the shape or dtype that it announced.
    OSError: a file can't be read.
    And what reading the tensors raises else.
  """
  leaves = trees.flat(abstract)
  # In the order of the files, not of the tree.
  placed = {n: _placed(t.read(), leaves[n]) for n, t in tensors.items()}
  return trees.like(abstract, {n: placed.get(n) for n in leaves})


def _placed(array, leaf) -> jax.Array:
  result = jax.make_array_from_callback(
    array.shape, leaf.sharding, lambda index: array[index]
  )
  # Else several would be in host memory while they are under way.
  return result.block_until_ready()


def _opened(key: str, source: SourceConfig) -> dict[str, tensors_lib.Tensor]:
  if not pathlib.Path(source.path).exists():
    raise config_lib.ConfigError(
      f'config init.sources.{key}.path: {source.path}: no such file or folder.'
    )
  _, tensors = detection.open_tensors(source.path, source.step)
  tensors = tensors_lib.parameters(tensors)
  if t5_names.EMBEDDING not in tensors:
    return tensors
  tensors, report = mapping.apply(t5_names.T5X, tensors)
  if report:
    raise mapping.MappingError(f'init.sources.{key}: {source.path}: {report}')
  return tensors


def _taken(
  source: SourceConfig, tensors: Tensors, expected: Mapping[str, Any]
) -> tuple[Tensors, str]:
  """(what is taken of a source, what is wrong with it)."""
  taken = {
    name: tensor
    for name, tensor in tensors.items()
    if (not source.take or _found(source.take, name))
    and not _found(source.leave_out, name)
  }
  lost = [
    f'{field} {regex!r}'
    for field in ('take', 'leave_out')
    for regex in getattr(source, field)
    if not any(re.search(regex, name) for name in tensors)
  ]
  shapes = {n: x.shape for n, x in expected.items() if n in taken}
  report = mapping.compare(taken, shapes)
  if source.cast:
    taken = {
      name: mapping.cast({name: tensor}, expected[name].dtype)[name]
      if name in expected
      else tensor
      for name, tensor in taken.items()
    }
  report = dataclasses.replace(
    report,
    unfound=tuple(lost),
    mistyped=tuple(
      f'{name}: expected {expected[name].dtype}, got {tensor.dtype}'
      for name, tensor in taken.items()
      if name in expected and tensor.dtype != expected[name].dtype
    ),
  )
  lines = str(report)
  if taken and not shapes:
    lines += (
      '\nNo name is one of the model; `pixel-llm import` converts the '
      'checkpoints of others.'
    )
  elif not taken and not lost:
    lines += 'expected parameters to take, got none'
  return mapping.finite(taken, source.path), lines


def _together(
  config: InitConfig, taken: Mapping[str, Tensors], expected: Mapping[str, Any]
) -> str:
  """What is wrong with the sources taken together."""
  givers: dict[str, list[str]] = {}
  for key, tensors in taken.items():
    for name in tensors:
      givers.setdefault(name, []).append(key)
  report = mapping.Report(
    missing=tuple(
      f'{name} {list(leaf.shape)}'
      for name, leaf in expected.items()
      if name not in givers and not _found(config.allow_missing, name)
    ),
    repeated=tuple(
      f'{name}: {", ".join(keys)}'
      for name, keys in givers.items()
      if len(keys) > 1
    ),
    unfound=tuple(
      f'allow_missing {regex!r}'
      for regex in config.allow_missing
      if not any(re.search(regex, name) for name in expected)
    ),
  )
  return str(report)


def _found(regexes: tuple[str, ...], name: str) -> bool:
  return any(re.search(regex, name) for regex in regexes)


def _check_regexes(field: str, regexes: tuple[str, ...]) -> None:
  for regex in regexes:
    try:
      re.compile(regex)
    except re.error as e:
      raise ValueError(f'{field}: {regex!r} is no regex: {e}.') from e
