# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Dataclass tree <-> plain dict, exact in both directions; or by gin.

The dataclasses hold the defaults; a config file changes a few leaves of
`ConfigDict(to_dict(ExperimentConfig()))`, and `from_dict` brings the tree back,
refusing what does not fit with the path of the key. Files of gin bind the
fields of the same dataclasses, which know nothing of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar('T')


class ConfigError(ValueError):
  """A key or value of a config does not fit; the message names its path."""


def to_dict(config: Any) -> Any:
  """The dataclass tree as nested dicts; tuples stay tuples."""
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    return {
      f.name: to_dict(getattr(config, f.name))
      for f in dataclasses.fields(config)
    }
  if isinstance(config, (tuple, list)):
    return tuple(to_dict(v) for v in config)
  if isinstance(config, dict):
    return {k: to_dict(v) for k, v in config.items()}
  return config


def from_dict(cls: type[T], values: dict[str, Any], path: str = '') -> T:
  """Builds `cls` from nested dicts, checking every key and type.

  Args:
    cls: a dataclass; fields may be dataclasses, `X | None`, tuples, dicts and
      scalars.
    values: nested dict; missing keys keep their defaults.
    path: prefix of the paths in errors.

  Raises:
    ConfigError: an unknown key (with the known ones) or an ill-typed value.
  """
  if not isinstance(values, dict):
    raise ConfigError(
      f'config {path or "root"}: expected the fields of {cls.__name__}, got '
      f'{values!r}.'
    )
  hints = typing.get_type_hints(cls)
  known = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore
  arguments = {}
  for key, value in values.items():
    where = f'{path}.{key}' if path else str(key)
    if key not in known:
      raise ConfigError(unknown_key(where, key, known))
    arguments[key] = _cast(hints[key], value, where)
  try:
    return cls(**arguments)
  except ConfigError:
    raise
  except (TypeError, ValueError) as e:
    raise ConfigError(f'config {path or "root"}: {e}') from e


def unknown_key(path: str, key: str, known: list[str]) -> str:
  """The message for a key that does not exist: nearest and all known keys."""
  near = difflib.get_close_matches(key, known, 1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return (
    f'config {path}: unknown key {key!r}.{hint} Known keys here: '
    f'{", ".join(sorted(known))}.'
  )


def _cast(hint: Any, value: Any, path: str) -> Any:
  origin = typing.get_origin(hint)
  if hint is Any:
    return value
  if origin in (typing.Union, types.UnionType):
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if value is None:
      if len(options) == len(typing.get_args(hint)):
        raise ConfigError(f'config {path}: expected {hint}, got None.')
      return None
    errors = []
    for option in options:
      try:
        return _cast(option, value, path)
      except ConfigError as e:
        errors.append(e)
    raise errors[0]
  if dataclasses.is_dataclass(hint):
    if isinstance(value, typing.cast(type, hint)):
      return value
    return from_dict(typing.cast(type, hint), value, path)
  if origin in (tuple, list):
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
      raise ConfigError(f'config {path}: expected a tuple, got {value!r}.')
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
      args = (args[0],) * len(value)
    if len(args) != len(value):
      raise ConfigError(
        f'config {path}: expected {len(args)} values, got {len(value)}.'
      )
    return tuple(
      _cast(a, v, f'{path}[{i}]') for i, (a, v) in enumerate(zip(args, value))
    )
  if origin is dict:
    if not isinstance(value, dict):
      raise ConfigError(f'config {path}: expected a dict, got {value!r}.')
    key_hint, value_hint = typing.get_args(hint)
    return {
      _cast(key_hint, k, path): _cast(value_hint, v, f'{path}.{k}')
      for k, v in value.items()
    }
  if origin is typing.Literal:
    if value not in typing.get_args(hint):
      raise ConfigError(
        f'config {path}: expected one of '
        f'{", ".join(map(repr, typing.get_args(hint)))}, got {value!r}.'
      )
    return value
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  bool_for_int = hint is int and isinstance(value, bool)
  if not isinstance(value, hint) or bool_for_int:
    raise ConfigError(
      f'config {path}: expected {hint.__name__}, got '
      f'{type(value).__name__} {value!r}.'
    )
  return value


def from_gin(
  cls: type[T], files: Sequence[str], bindings: Sequence[str] = ()
) -> T:
  """Builds `cls` by gin.

  Files name classes by modules that they import (`dynamic_registration`) or by
  `module.Class`, as bindings do. They include others by paths from two folders
  above the given one (the root, of ours), from its own, or from where one is.

  Args:
    cls: a dataclass, as for `from_dict`.
    files: of gin, the later ones on top.
    bindings: `t5.T5Config.emb_dim=2048`, on top of the files.

  Raises:
    ConfigError: a name or value does not fit, a binding binds nothing of the
      tree, or gin is not installed.
  """
  try:
    import gin  # pyright: ignore
    import gin.config as state  # pyright: ignore
  except ImportError as e:
    raise ConfigError("gin: expected `pip install 'pixel-llm[gin]'`.") from e
  gin.clear_config(clear_constants=True)
  folders = state._LOCATION_PREFIXES
  before, silenced = list(folders), logging.root.manager.disable
  logging.disable(logging.ERROR)  # of every place where a file is not
  try:
    for known in _dataclasses(cls):
      gin.register(known, module=known.__module__)
    for file in files:
      if not os.path.isfile(file):
        raise ConfigError(f'gin file {file}: no such file.')
      folder = os.path.dirname(os.path.abspath(file))
      root = os.path.dirname(os.path.dirname(folder))
      folders[:] = [root, folder, *before]
      _by_gin(f'gin file {file}', lambda file=file: gin.parse_config_file(file))
    for binding in bindings:
      _by_gin(f'gin {binding}', lambda text=binding: gin.parse_config(text))
    _check_scalars(cls, state._CONFIG)
    tree = _by_gin('gin', gin.get_configurable(cls))
    _check_used(state._CONFIG, state._OPERATIVE_CONFIG)
  finally:
    gin.clear_config(clear_constants=True)
    folders[:] = before
    logging.disable(silenced)
  # Gin checks names alone. The order of streams is that of a ConfigDict.
  return from_dict(cls, _sorted(to_dict(tree)))


def _sorted(values: Any) -> Any:
  if not isinstance(values, dict):
    return values
  return {k: _sorted(v) for k, v in sorted(values.items())}


def _by_gin(where: str, call: Callable[[], Any]) -> Any:
  try:
    return call()
  except Exception as e:  # what a binding makes code raise
    raise ConfigError(f'{where}: {" ".join(str(e).split())}') from e


def _check_scalars(cls: type, bound: dict) -> None:
  """Types, before a constructor stumbles over them."""
  known = {f'{c.__module__}.{c.__name__}': c for c in _dataclasses(cls)}
  for (_, name), values in bound.items():
    hints = typing.get_type_hints(known[name]) if name in known else {}
    for field, value in values.items():
      if field in hints and isinstance(value, (bool, int, float, str)):
        _cast(hints[field], value, f'{name}.{field}')


def _check_used(bound: dict, used: dict) -> None:
  """No binding is of what is not in the tree; keys are (scope, class)."""
  for (scope, name), values in bound.items():
    if not any(
      name == other and f'{within}/'.startswith(f'{scope}/' if scope else '')
      for within, other in used
    ):
      macro = name == 'gin.macro'
      key = scope if macro else '/'.join(filter(None, (scope, name)))
      raise ConfigError(
        f'gin {key}: bound ({", ".join(values)}) but used nowhere; expected '
        + (f'%{key}' if macro else f'@{key}()')
        + ' somewhere, or no such binding.'
      )


def _dataclasses(hint: Any) -> set[type]:
  """Those that a tree of this type can hold."""
  if not dataclasses.is_dataclass(hint):
    return set().union(*map(_dataclasses, typing.get_args(hint)))
  hints = typing.get_type_hints(hint).values()
  return {typing.cast(type, hint)}.union(*map(_dataclasses, hints))


def leaves(values: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Path and value of each leaf of nested dicts; an empty dict is one."""
  if isinstance(values, dict) and values:
    for key, value in values.items():
      yield from leaves(value, f'{path}.{key}' if path else str(key))
  else:
    yield path, values


def changes(
  left: Any, right: Any, path: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """Path and both values of what differs between two nested dicts."""
  if isinstance(left, dict) and isinstance(right, dict):
    for key in sorted({*left, *right}):
      where = f'{path}.{key}' if path else str(key)
      yield from changes(left.get(key), right.get(key), where)
  elif left != right:
    yield path, left, right


def difference(left: Any, right: Any) -> list[str]:
  """`changes` as `path: left -> right`."""
  return [f'{path}: {a!r} -> {b!r}' for path, a, b in changes(left, right)]
