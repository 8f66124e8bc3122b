# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

from __future__ import annotations

import os

from etils import epath


def write(path: epath.PathLike, data: bytes | str) -> None:
  """Writes a file whole or not at all; an older one stays until then.

  Args:
    path: the file, local or on a bucket; its folder is made when it does not
      exist.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
  except OSError as e:
    part.unlink(missing_ok=True)
    # A full disk is reported without a name, and `part` would puzzle users.
    raise OSError(e.errno, e.strerror, str(path)) from e
