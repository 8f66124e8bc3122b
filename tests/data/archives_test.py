# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Images in zips and tars: the same records, nothing unpacked."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import tarfile
import zipfile

import public_formats as formats
import pytest

from pixel_llm import image
from pixel_llm.data import build
from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images

NAMES = [f'train2017/{i:012d}.jpg' for i in range(5)]


@pytest.fixture
def folder(tmp_path):
  return formats.write_images(tmp_path / 'folder', NAMES)


def zipped(folder, path, method=zipfile.ZIP_DEFLATED, names=NAMES):
  with zipfile.ZipFile(path, 'w', method) as archive:
    archive.mkdir('train2017')
    archive.writestr('readme.txt', 'no image')
    for name in names:
      archive.write(os.path.join(folder, name), name)
  return str(path)


def tarred(folder, path, mode='w', names=NAMES, **options):
  with tarfile.open(path, mode, **options) as archive:
    for name in names:
      archive.add(os.path.join(folder, name), name)
  return str(path)


def contents(directory):
  return {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}


def make(images, out, annotations='ln.jsonl', **options):
  """Builds beside `out`; its bytes by name."""
  path = pathlib.Path(out).with_name(annotations)
  formats.write_lines(path, [formats.narrative(str(i)) for i in range(5)])
  result = build.build(
    'localized_narratives', str(path), images, str(out), **options
  )
  return result, contents(out)


# The same records.


@pytest.mark.parametrize(
  'pack',
  [
    lambda f, t: zipped(f, t / 'a.zip'),
    lambda f, t: zipped(f, t / 'a.zip', zipfile.ZIP_STORED),
    lambda f, t: tarred(f, t / 'a.tar', format=tarfile.PAX_FORMAT),
    lambda f, t: tarred(f, t / 'a.tar', format=tarfile.GNU_FORMAT),
    lambda f, t: [
      zipped(f, t / 'a.zip', names=NAMES[:2]),
      tarred(f, t / 'b.tar', names=NAMES[2:]),
    ],
  ],
)
def test_same_bytes_as_from_the_folder(folder, tmp_path, pack):
  _, whole = make(folder, tmp_path / 'whole', strict=True)
  images = pack(folder, tmp_path)
  before = set(tmp_path.rglob('*'))
  _, found = make(images, tmp_path / 'out', strict=True, workers=2)
  assert found == whole
  # A build of the folder is one of the archive.
  assert make(images, tmp_path / 'whole')[0].built == 0
  made = set(tmp_path.rglob('*')) - before
  assert {p.relative_to(tmp_path).parts[0] for p in made} == {'out'}


def test_prefixed_zip_and_long_names(folder, tmp_path):
  long = f'{"a" * 90}/{"b" * 90}/000000000000.jpg'
  path = pathlib.Path(folder) / long
  path.parent.mkdir(parents=True)
  data = (pathlib.Path(folder) / NAMES[0]).read_bytes()
  path.write_bytes(data)
  for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
    tar = tarred(folder, tmp_path / 'a.tar', names=[long], format=format)
    found, _ = Images(tar).find('0', '000000000000')
    assert found is not None and found.read() == data
    assert str(found) == f'{tar}/{long}'
  packed = pathlib.Path(zipped(folder, tmp_path / 'a.zip')).read_bytes()
  (tmp_path / 'b.zip').write_bytes(b'PK, then a program' + packed)
  found, _ = Images(str(tmp_path / 'b.zip')).find('000000000003')
  path = pathlib.Path(folder) / NAMES[3]
  assert found is not None and found.read() == path.read_bytes()


def test_lookup_in_archives(folder, tmp_path):
  one, other = (zipped(folder, tmp_path / f'{n}.zip') for n in 'ab')
  images = Images([one, other])
  found, missing = images.find('000000000001')
  assert found is None and missing == (
    f'2 files of that name: {one}/{NAMES[1]}, {other}/{NAMES[1]}'
  )
  found, missing = images.find('9')
  assert found is None and missing == f'none of 9 in {one}, {other}'
  images = Images(one)
  for name in ('000000000001', '000000000001.jpg', NAMES[1]):
    found, _ = images.find(name)
    assert str(found) == f'{one}/{NAMES[1]}'
  assert images.find('val2017/000000000001.jpg')[0] is None
  assert images.find('readme')[0] is None
  found = pickle.loads(pickle.dumps(images)).find(NAMES[1])[0]
  assert found.read() == (pathlib.Path(folder) / NAMES[1]).read_bytes()


# Bad members cost one image.


def test_bad_members(folder, tmp_path):
  path = pathlib.Path(zipped(folder, tmp_path / 'a.zip', zipfile.ZIP_STORED))
  data = bytearray(path.read_bytes())
  with zipfile.ZipFile(path) as archive:
    infos = [archive.getinfo(name) for name in NAMES]
  begin = [i.header_offset + 30 + len(i.filename) for i in infos]
  data[begin[0] + 99] ^= 1  # the pixels of one
  data[infos[1].header_offset] ^= 1  # the header of another
  data[infos[2].header_offset + 6] |= 1  # said to be encrypted
  path.write_bytes(data)
  with zipfile.ZipFile(path, 'a', zipfile.ZIP_BZIP2) as archive:
    archive.write(os.path.join(folder, NAMES[0]), 'bzip2.png')
  result, _ = make(str(path), tmp_path / 'out')
  assert result.manifest['records'] == 2
  assert result.manifest['skipped'] == {'image_unreadable': 3}
  lines = pathlib.Path(result.report).read_text().splitlines()
  found = [json.loads(line)['found'] for line in lines]
  for text, name, what in zip(
    found, NAMES, ('wrong CRC-32', 'no header', 'an encrypted member')
  ):
    assert text.startswith(f'{path}/{name}: expected a member of')
    assert what in text
  member, _ = Images(str(path)).find('bzip2')
  with pytest.raises(image.ImageError, match=r'bzip2\.png: .*compression 12'):
    member.read()


def test_damaged_deflate(folder, tmp_path):
  path = pathlib.Path(zipped(folder, tmp_path / 'a.zip'))
  data = bytearray(path.read_bytes())
  member, _ = Images(str(path)).find('000000000001')
  start = member.offset + 30 + len(NAMES[1])
  data[start : start + member.packed] = b'\xff' * member.packed
  path.write_bytes(data)
  with pytest.raises(image.ImageError, match=r'0001\.jpg: .*damaged member \('):
    member.read()
  path.write_bytes(data[: start + 9])
  with pytest.raises(image.ImageError, match=r'0001\.jpg: .*after 9 bytes'):
    member.read()


def test_archive_that_went_away(folder, tmp_path):
  path = tarred(folder, tmp_path / 'a.tar')

  def remove(done, total):
    if done == 2:
      os.unlink(path)

  result, _ = make(path, tmp_path / 'out', progress=remove)
  assert result.manifest['skipped'] == {'image_missing': 3}


# Bad archives.


@pytest.mark.parametrize('kept', [0.2, 0.55, 0.99])
def test_cut_zip(folder, tmp_path, kept):
  path = pathlib.Path(zipped(folder, tmp_path / 'a.zip'))
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * kept)])
  with pytest.raises(
    source.SourceError, match=r'a\.zip: expected a whole zip archive, found'
  ):
    Images(str(path))


def test_cut_and_damaged_tar(folder, tmp_path):
  path = pathlib.Path(tarred(folder, tmp_path / 'a.tar'))
  data = path.read_bytes()
  with tarfile.open(path) as archive:
    last = archive.getmember(NAMES[-1])
  damaged = bytearray(data)
  damaged[last.offset + 3] ^= 1
  for bad in (
    data[: last.offset_data + 9],  # in the last file
    data[: last.offset + 9],  # in a header
    data[: last.offset],  # between two
    damaged,
  ):
    path.write_bytes(bad)
    with pytest.raises(
      source.SourceError,
      match=r'a\.tar: expected a whole tar archive, found: .* after train2017/',
    ):
      Images(str(path))


def test_what_is_no_archive(folder, tmp_path):
  for mode, name in (('w:gz', 'a.tar.gz'), ('w:bz2', 'a.tar'), ('w:xz', 'a')):
    path = tarred(folder, tmp_path / name, mode)
    with pytest.raises(
      source.SourceError, match=rf'{name}: .*decompress it to a \.tar'
    ):
      Images(path)
  (tmp_path / 'page.zip').write_text('<html>')
  with pytest.raises(source.SourceError, match=r'page\.zip: expected a whole'):
    Images(str(tmp_path / 'page.zip'))
  (tmp_path / 'empty.tar').write_bytes(b'')
  with pytest.raises(source.SourceError, match=r'empty\.tar: expected a whole'):
    Images(str(tmp_path / 'empty.tar'))
  for path in (
    zipped(folder, tmp_path / 'none.zip', names=[]),
    tarred(folder, tmp_path / 'none.tar', names=[]),
  ):
    with pytest.raises(source.SourceError, match=r'none\..*found none'):
      Images([folder, path])
