# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk, so that the next process has them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from pixel_llm import files, version

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


def remembered(what: str, make: Callable[[], Any]) -> Any:
  """What tracing finds out, beside the programs of which it is found out.

  It is made anew by other code of ours, where no programs are kept or they
  are in a bucket, and where what is kept is damaged.

  Args:
    what: all that it depends on but our code.
    make: makes it, of what JSON can hold.
  """
  folder = jax.config.jax_compilation_cache_dir  # pyright: ignore
  if folder is None or '://' in folder:
    return make()
  key = hashlib.sha256(f'{version.digest()}\n{what}'.encode()).hexdigest()
  path = pathlib.Path(folder) / f'traced-{key[:32]}.json'
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError):
    found = make()
  # Full, or not ours: the next process makes it again.
  with contextlib.suppress(OSError):
    files.write(path, json.dumps(found))
  return found
