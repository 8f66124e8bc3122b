# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Image files by the names of data sets: in folders, zips and tars."""

from __future__ import annotations

import dataclasses
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from pixel_llm import image
from pixel_llm.data.sources.source import SourceError

_IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
# gzip, bzip2, xz, zstandard.
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')
# Of a zip's member: flags, and lengths of the name and the extra field.
_ZIP_HEADER = struct.Struct('<6xH18xHH')


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """A file in a zip or tar, read from its place in there.

  Attributes:
    archive: path of the archive.
    name: within it.
    offset: of its local header in a zip, of its bytes in a tar.
    size: of the file.
    packed: bytes that it takes in the archive.
    method: of compression, zip's number; None in a tar.
    crc: CRC-32 of the file; None in a tar.
  """

  archive: str
  name: str
  offset: int
  size: int
  packed: int
  method: int | None
  crc: int | None

  def __str__(self) -> str:
    """As if the archive was a folder."""
    return f'{self.archive}/{self.name}'

  def read(self) -> bytes:
    """The file.

    Raises:
      ImageError: it is damaged, encrypted, or compressed in a rare way.
      OSError: the archive cannot be read.
    """
    with open(self.archive, 'rb') as file:
      file.seek(self.offset)
      if self.method is not None:
        header = file.read(_ZIP_HEADER.size)
        if header[:4] != b'PK\3\4' or len(header) != _ZIP_HEADER.size:
          self._fail('no header of a member at its place')
        flags, name, extra = _ZIP_HEADER.unpack(header)
        if flags & 1:
          self._fail('an encrypted member')
        file.seek(name + extra, os.SEEK_CUR)
      data = file.read(self.packed)
    if len(data) != self.packed:
      self._fail(f'the end of the archive after {len(data)} bytes')
    if self.method == zipfile.ZIP_DEFLATED:
      try:
        # One more than there should be tells that there is more.
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflate.decompress(data, self.size + 1)
      except zlib.error as e:
        self._fail(f'a damaged member ({e})')
    elif self.method not in (None, zipfile.ZIP_STORED):
      self._fail(f'compression {self.method}; only stored and deflated is read')
    if self.crc is not None and zlib.crc32(data) != self.crc:
      self._fail('a damaged member (wrong CRC-32)')
    return data

  def _fail(self, found: str) -> NoReturn:
    raise image.ImageError(
      f'{self}: expected a member of {self.size} bytes, found: {found}.'
    )


class Images:
  """Image files, looked up by the names data sets use.

  Args:
    paths: a directory, a zip or a tar, or several of these. Directories are
      searched recursively, once; archives are listed once.

  Raises:
    SourceError: nothing there, a damaged archive, or no image in it.
  """

  def __init__(self, paths: str | Sequence[str]):
    paths = [paths] if isinstance(paths, str) else paths
    self._paths = ', '.join(paths)
    self._files: dict[str, list[str | Member]] = {}
    for path in paths:
      empty = True
      for name, file in _files(path):
        stem, suffix = os.path.splitext(os.path.basename(name))
        if suffix.lower() in _IMAGE_SUFFIXES:
          self._files.setdefault(stem, []).append(file)
          empty = False
      if empty:
        raise SourceError(
          f'images {path}: expected JPEG, PNG or WebP files in it or below, '
          'found none.'
        )

  def find(self, *names: str) -> tuple[str | Member | None, str]:
    """The file of the first name that exists.

    Args:
      *names: stems or file names, with or without a folder before them.

    Returns:
      file and '', or None and what was looked for (or which files compete).
    """
    for name in names:
      folder, base = os.path.split(name)
      stem, suffix = os.path.splitext(base)
      if suffix.lower() not in _IMAGE_SUFFIXES:
        stem, suffix = base, ''
      found = [
        file
        for file in self._files.get(stem, ())
        if str(file).endswith(suffix)
        and (not folder or _is_below(str(file), folder))
      ]
      if len(found) == 1:
        return found[0], ''
      if found:
        shown = ', '.join(map(str, found[:3]))
        return None, f'{len(found)} files of that name: {shown}'
    tried = ', '.join(dict.fromkeys(names))
    return None, f'none of {tried} in {self._paths}'


def _files(path: str) -> Iterator[tuple[str, str | Member]]:
  """Names and files of a directory or an archive."""
  try:
    if os.path.isdir(path):
      for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        yield from (
          (name, os.path.join(folder, name)) for name in sorted(names)
        )
      return
    with open(path, 'rb') as file:
      start = file.read(6)
    if start.startswith(_COMPRESSED):
      raise SourceError(
        f'images {path}: expected a directory, a .zip or a .tar, found a '
        'compressed file, of which an image could only be read through all '
        'before it; decompress it to a .tar, which is read where it lies.'
      )
    for member in (_zip if start.startswith(b'PK') else _tar)(path):
      yield member.name, member
  except OSError as e:
    raise SourceError(
      f'images {path}: expected a directory, a .zip or a .tar: {e.strerror}.'
    ) from e


def _zip(path: str) -> Iterator[Member]:
  try:
    with zipfile.ZipFile(path) as archive:
      for info in archive.infolist():
        if not info.is_dir():
          yield Member(
            path,
            info.filename,
            info.header_offset,
            info.file_size,
            info.compress_size,
            info.compress_type,
            info.CRC,
          )
  except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
    raise SourceError(
      f'images {path}: expected a whole zip archive, found: {e}.'
    ) from e


def _tar(path: str) -> Iterator[Member]:
  last = ''
  try:
    with tarfile.open(path, 'r:') as archive:
      while (info := archive.next()) is not None:
        # It would keep all of them.
        archive.members = []  # pyright: ignore
        last = f' after {info.name}'
        if info.isreg() and not info.issparse():
          yield Member(
            path, info.name, info.offset_data, info.size, info.size, None, None
          )
      end = archive.offset
    with open(path, 'rb') as file:
      file.seek(end)
      # It also ends the list, silently, at a damaged header.
      if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError('no end of the archive')
  except (tarfile.TarError, ValueError) as e:
    raise SourceError(
      f'images {path}: expected a whole tar archive, found: {e}{last}.'
    ) from e


def _is_below(path: str, folder: str) -> bool:
  """Whether the last folders before a file are these."""
  return (os.sep + os.path.dirname(path)).endswith(os.sep + folder)


def image_names(image_id: str) -> list[str]:
  """The names under which data sets store the image of an id."""
  if not image_id.isdigit():
    return [image_id]
  coco = image_id.zfill(12)
  return [
    image_id,
    coco,
    f'COCO_train2014_{coco}',
    f'COCO_val2014_{coco}',
    f'COCO_test2014_{coco}',
  ]
