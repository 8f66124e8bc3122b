# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from etils import epath


def write(path: epath.PathLike, data: bytes | str) -> None:
  """Writes a file whole or not at all; an older one stays until then.

  Args:
    path: the file, local or on a bucket; its folder is made when it does not
      exist. Devices and pipes, as /dev/stdout, are written to as they are.
    data: its bytes, or text to write as UTF-8.

  Raises:
    OSError: the file, which the error names, cannot be written; what was
      there before is still there.
  """
  if isinstance(data, str):
    # Captions from JSON may hold half a surrogate pair, which has no UTF-8.
    data = data.encode(errors='xmlcharrefreplace')
  path = epath.Path(path)
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    if os.path.exists(path) and not (
      os.path.isfile(path) or os.path.isdir(path)
    ):
      with open(path, 'wb') as file:
        file.write(data)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
  except OSError as e:
    part.unlink(missing_ok=True)
    # A full disk is reported without a name, and `part` would puzzle users.
    raise OSError(e.errno, e.strerror, str(path)) from e


def free(
  out: str, source: str, written: re.Pattern[str], force: bool
) -> pathlib.Path:
  """Where to write, if that costs nothing that the caller did not write.

  Args:
    out: a file or folder, local.
    source: what is read; a folder that holds it is not replaced.
    written: names of what the caller writes into a folder.
    force: replaces what is at `out`, if it is a file, or a folder that holds
      nothing but `written`.

  Raises:
    FileExistsError: `out` exists, and may not be replaced.
  """
  path = pathlib.Path(out)
  if not path.exists():
    return path
  if not force:
    raise FileExistsError(errno.EEXIST, 'exists; --force replaces it', out)
  if path.is_dir():
    # A slip of the hand must not cost a run.
    names = sorted(p.name for p in path.iterdir())
    others = [name for name in names if not written.fullmatch(name)]
    if others:
      raise FileExistsError(
        errno.EEXIST, f'holds {others[0]}, which --force does not replace', out
      )
    if pathlib.Path(source).resolve().is_relative_to(path.resolve()):
      raise FileExistsError(errno.EEXIST, 'holds the source', out)
  return path


@contextlib.contextmanager
def whole(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write so that `out` is whole or what it was before.

  Args:
    out: a file or folder, local; what was there is replaced at the end.

  Yields:
    a path beside it, where nothing is yet.
  """
  part = out.with_name(f'.{out.name}.{os.getpid()}.part')
  old = out.with_name(f'.{out.name}.{os.getpid()}.old')
  out.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield part
    if out.exists():
      out.rename(old)
    try:
      part.rename(out)
    except BaseException:
      if old.exists():
        old.rename(out)
      raise
    _remove(old)
  finally:
    _remove(part)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
