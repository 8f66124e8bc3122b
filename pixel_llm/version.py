# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which code this is, to the byte."""

from __future__ import annotations

import functools
import hashlib
import pathlib


@functools.cache
def digest() -> str:
  """16 hexadecimal digits of the names and bytes of the package's sources."""
  root = pathlib.Path(__file__).parent
  found = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    found.update(f'{path.relative_to(root).as_posix()} {content}\n'.encode())
  return found.hexdigest()[:16]
