# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Files that an experiment is written in: ml_collections' or gin's."""

from __future__ import annotations

import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from pixel_llm import config as config_lib
from pixel_llm.train import experiment


def read(
  path: str, overrides: Sequence[str] = ()
) -> experiment.ExperimentConfig:
  """The experiment of an ml_collections file.

  Args:
    path: of the file, which defines `get_config()`; or FILE:ARGUMENT of it.
    overrides: of the form `--config.a.b=value`.

  Raises:
    ConfigError: the file can't be loaded, or a key or value does not fit.
  """
  from pixel_llm import config as config_lib

  _check_overrides('--config.', overrides)
  values = _load_config_file(path).to_dict()
  config = config_lib.from_dict(experiment.ExperimentConfig, values)
  if not overrides:
    return config
  # Whole again: files may leave out what is as by default.
  tree = config_dict.ConfigDict(config_lib.to_dict(config)).lock()
  for argument in overrides:
    _check_key(tree, argument.removeprefix('--config.').partition('=')[0])
  parsed = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', tree, flag_values=parsed, sys_argv=['pixel-llm', *overrides]
    )
    parsed(['pixel-llm', *overrides])
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise config_lib.ConfigError(
      f'{" ".join(overrides)}: {e.args[0] if e.args else e!s}'
    ) from e
  # The flags have changed it in place.
  return config_lib.from_dict(experiment.ExperimentConfig, tree.to_dict())


def read_gin(
  paths: list[str], overrides: Sequence[str] = ()
) -> experiment.ExperimentConfig:
  """The experiment of gin files, the later on top.

  Args:
    paths: the files.
    overrides: of the form `--gin.a.B.c=value`.

  Raises:
    ConfigError: a file can't be loaded, or a key or value does not fit.
  """
  _check_overrides('--gin.', overrides)
  return config_lib.from_gin(
    experiment.ExperimentConfig,
    paths,
    [argument.removeprefix('--gin.') for argument in overrides],
  )


def _check_overrides(prefix: str, overrides: Sequence[str]) -> None:
  for argument in overrides:
    if not argument.startswith(prefix) or '=' not in argument:
      raise config_lib.ConfigError(
        f'argument {argument!r}: expected {prefix}KEY=VALUE.'
      )


def _check_key(tree, path: str) -> None:
  """Raises ConfigError with the path of the first key that is not there."""
  keys = path.split('.')
  for i, key in enumerate(keys):
    if not hasattr(tree, 'keys'):
      parent = '.'.join(keys[:i])
      raise config_lib.ConfigError(
        f'config {parent}.{key}: {parent} has no keys; it is {tree!r}.'
      )
    name = key.partition('[')[0]  # of a tuple, `key[0]`
    if name not in tree:
      where = '.'.join(keys[: i + 1])
      raise config_lib.ConfigError(
        config_lib.unknown_key(where, name, list(tree.keys()))
      )
    tree = tree[name]


def _load_config_file(path: str):
  """What `get_config()` of a Python file gives, `get_config('a')` of `path:a`.

  Raises:
    ConfigError: naming the line of the file that failed.
  """
  given, arguments = path, []
  if not os.path.isfile(path) and ':' in path:
    path, *arguments = path.rsplit(':', 1)
  if not os.path.isfile(path):
    raise config_lib.ConfigError(f'--config {given}: no such file.')
  # Configs import `configs.default`, wherever they lie.
  root = str(pathlib.Path(path).resolve().parent.parent)
  if root not in sys.path:
    sys.path.insert(0, root)
  try:
    return runpy.run_path(path)['get_config'](*arguments)
  except Exception as e:
    lines = [
      f.lineno
      for f in traceback.extract_tb(e.__traceback__)
      if f.filename == path
    ]
    where = f'line {lines[-1]}: ' if lines else ''
    what = (
      'it defines no get_config()'
      if isinstance(e, KeyError) and e.args == ('get_config',)
      else f'{type(e).__name__}: {e}'
    )
    raise config_lib.ConfigError(f'--config {given}: {where}{what}') from e
