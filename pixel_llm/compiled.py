# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk, by JAX, so that the next process has them."""

from __future__ import annotations

import os
import pathlib
import tempfile

import jax
from jax.experimental.compilation_cache import compilation_cache

# Where the process's last run keeps them.
_KEPT: list[str | None] = []


def keep(folder: str | None) -> None:
  """Has JAX keep compiled programs, unless it was told where before.

  Args:
    folder: local or a bucket's; None keeps none.
  """
  given = jax.config.jax_compilation_cache_dir  # pyright: ignore
  if given is not None and given not in _KEPT:
    return
  _KEPT[:] = [folder]
  jax.config.update('jax_compilation_cache_dir', folder)
  # What was compiled before decided where the cache is, or that there is none.
  compilation_cache.reset_cache()


def keep_beside(workdir: str) -> None:
  """Keeps those that ask a model in `compile_cache/` of its folder.

  Where that cannot be written it is `pixel_llm/` of the user's cache
  (`XDG_CACHE_HOME`), and where that cannot either, none are kept.
  """
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folders = [pathlib.Path(home) / 'pixel_llm']
  if '://' not in workdir:
    folders.insert(0, pathlib.Path(workdir) / 'compile_cache')
  for folder in folders:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        break
    except OSError:
      continue
  else:
    return
  keep(str(folder.absolute()))
  if jax.config.jax_compilation_cache_dir in _KEPT:  # pyright: ignore
    # Many small programs make a first answer late.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
