# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that are full or hang; only root may have them."""

import contextlib
import shutil
import subprocess

import pytest


@contextlib.contextmanager
def small(path):
  """A file system of 1 MB.

  Only root may mount one; elsewhere no disk is really full, and the test is
  skipped rather than played with a mock.
  """
  path.mkdir()
  made = (
    shutil.which('mount')
    and subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(path)],
      capture_output=True,
      check=False,
    ).returncode
    == 0
  )
  if not made:
    pytest.skip('may not mount a tmpfs here')
  try:
    yield path
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)


@contextlib.contextmanager
def hanging(path):
  """A file system that stops to answer when it is frozen, as NFS may."""
  path.mkdir()
  image = path.with_suffix('.img')
  with open(image, 'wb') as file:
    file.truncate(16 << 20)
  commands = (['mkfs.ext4', '-q', image], ['mount', '-o', 'loop', image, path])
  if not all(
    shutil.which(c[0]) and subprocess.run(c, check=False).returncode == 0
    for c in (*commands, ['fsfreeze', '-f', path], ['fsfreeze', '-u', path])
  ):
    pytest.skip('may not mount and freeze a file system here')
  try:
    yield path
  finally:
    subprocess.run(['fsfreeze', '-u', path], capture_output=True, check=False)
    subprocess.run(['umount', '-l', path], check=True)


def freeze(path):
  """Writes to it do not return from now on."""
  subprocess.run(['fsfreeze', '-f', path], check=True)


def thaw(path):
  """They do."""
  subprocess.run(['fsfreeze', '-u', path], check=True)
