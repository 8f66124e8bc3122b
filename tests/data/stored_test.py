# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which images a build takes, and in which form it stores them."""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import public_formats as formats
import pytest
from PIL import Image

from pixel_llm import example, image, main, masks
from pixel_llm.data import build, records


def examples(out, split='train'):
  found = records.RecordSet(str(out), split)
  return {e.image_id: e for e in map(example.from_bytes, found)}


def line(name, size, mask=None):
  region = {'text': 'a ring', 'box': [0, 0, size[1] / 2, size[0]]}
  if mask is not None:
    region['mask'] = mask
  return {
    'image': name, 'height': size[0], 'width': size[1], 'regions': [region],
  }  # fmt: skip


def make(tmp_path, rows, out='out', **options):
  path = formats.write_lines(tmp_path / 'rows.jsonl', rows)
  images = str(tmp_path / 'images')
  return build.build('jsonl', path, images, str(tmp_path / out), **options)


def write(tmp_path, name, picture, **options):
  path = tmp_path / 'images' / name
  path.parent.mkdir(exist_ok=True)
  picture.save(path, **options)
  return path


def gradient(height, width):
  """Smooth, so that JPEG and resizing keep it."""
  y, x = np.mgrid[:height, :width]
  rgb = np.stack([255 * x / width, 255 * y / height, 0 * x + 99], -1)
  return Image.fromarray(rgb.astype(np.uint8))


# Stored images.


def test_every_kind_of_file(tmp_path):
  """Files are kept as they are; with a bound all are small JPEGs."""
  turned = Image.Exif()
  turned[0x0112] = 6
  picture = gradient(60, 90)
  grey16 = np.linspace(0, 65535, 5400).reshape(60, 90).astype(np.uint16)
  files = {
    'rgb.jpg': (picture, {}),
    'turned.jpg': (picture, {'exif': turned}),
    'cmyk.jpg': (picture.convert('CMYK'), {}),
    'grey.jpg': (picture.convert('L'), {}),
    'grey16.png': (Image.fromarray(grey16), {}),
    'alpha.png': (picture.convert('RGBA'), {}),
    'palette.png': (picture.convert('P'), {}),
    'web.webp': (picture, {'lossless': True}),
    'small.jpg': (picture.resize((45, 30)), {}),
    'small.png': (picture.resize((45, 30)), {}),
  }
  paths = {k: write(tmp_path, k, p, **o) for k, (p, o) in files.items()}
  rows = [line(k, (90, 60) if k == 'turned.jpg' else (60, 90)) for k in files]
  assert not make(tmp_path, rows, strict=True).manifest['skipped']
  made = examples(tmp_path / 'out')
  for name, path in paths.items():
    assert made[name].image == path.read_bytes()
    assert made[name].size == image.load(path).shape[:2]

  options = {'max_side': 45, 'quality': 80, 'strict': True}
  manifest = make(tmp_path, rows, 'small', **options).manifest
  assert (manifest['max_side'], manifest['quality']) == (45, 80)
  small = examples(tmp_path / 'small')
  for name, e in small.items():
    assert e.image.startswith(b'\xff\xd8\xff')
    rgb = image.decode(e.image, name)
    assert e.size == rgb.shape[:2]
    assert e.size == ((45, 30) if name == 'turned.jpg' else (30, 45))
    height, width = e.size
    upright = Image.fromarray(image.load(paths[name])).resize((width, height))
    np.testing.assert_allclose(
      rgb.astype(int), np.asarray(upright).astype(int), atol=24
    )
    np.testing.assert_array_equal(e.regions[0].box, [0, 0, 0.5, 1])
  assert small['small.jpg'].image == paths['small.jpg'].read_bytes()
  with Image.open(io.BytesIO(small['turned.jpg'].image)) as stored:
    assert 0x0112 not in stored.getexif()

  make(tmp_path, rows, 'again', workers=2, **options)
  for path in (tmp_path / 'small').iterdir():
    assert path.read_bytes() == (tmp_path / 'again' / path.name).read_bytes()


def test_masks_follow_the_stored_image(tmp_path):
  write(tmp_path, 'a.jpg', gradient(40, 60))
  # The right half, on the claimed grid, which is twice the file's.
  counts = [80 * 60, 80 * 60]
  row = line('a.jpg', (80, 120), {'size': [80, 120], 'counts': counts})
  make(tmp_path, [row], strict=True, max_side=30)
  made = examples(tmp_path / 'out')['a.jpg']
  assert made.size == (20, 30)
  pixels = masks.decode(made.regions[0].mask or b'', made.size)
  assert pixels[:, 15:].all() and not pixels[:, :15].any()


def test_long_thin_image(tmp_path):
  write(tmp_path, 'a.png', gradient(2, 900))
  make(tmp_path, [line('a.png', (2, 900))], strict=True, max_side=30)
  assert examples(tmp_path / 'out')['a.png'].size == (1, 30)


def test_other_bound_in_the_same_place(tmp_path):
  write(tmp_path, 'a.png', gradient(20, 30))
  rows = [line('a.png', (20, 30))]
  make(tmp_path, rows, max_side=30)
  assert make(tmp_path, rows, max_side=30, quality=90).built == 0
  for options in ({}, {'max_side': 29}, {'max_side': 30, 'quality': 91}):
    with pytest.raises(build.BuildError, match='other input or arguments'):
      make(tmp_path, rows, **options)


@pytest.mark.parametrize(
  'options,message',
  [
    ({'quality': 90}, 'quality 90 needs max_side'),
    ({'max_side': 0}, r'max_side from 1 to 65535 pixels, got 0'),
    ({'max_side': 70000}, r'max_side from 1 to 65535 pixels, got 70000'),
    ({'max_side': 9, 'quality': 0}, r'quality from 1 to 100, got 0'),
    ({'max_side': 9, 'quality': 101}, r'quality from 1 to 100, got 101'),
  ],
)
def test_bad_bounds(tmp_path, options, message):
  write(tmp_path, 'a.png', gradient(20, 30))
  with pytest.raises(build.BuildError, match=message):
    make(tmp_path, [line('a.png', (20, 30))], **options)
  assert not (tmp_path / 'out').exists()


def test_mixed_up_sides_are_told(tmp_path):
  write(tmp_path, 'a.png', gradient(20, 30))
  write(tmp_path, 'b.png', gradient(20, 30))
  rows = [line('a.png', (30, 20)), line('b.png', (20, 90))]
  rows.append(line('c.png', (20, 30)))
  write(tmp_path, 'c.png', gradient(20, 30))
  result = make(tmp_path, rows)
  lines = pathlib.Path(result.report).read_text().splitlines()
  mixed, other = (json.loads(text)['found'] for text in lines)
  assert mixed.endswith('a.png of 20 x 30: height and width are mixed up, '
                        'or the file is turned')  # fmt: skip
  assert other.endswith('b.png of 20 x 30')


# Images that are left out.


@pytest.fixture
def narratives(tmp_path):
  """COCO's images 1 to 6, all different, each with a narrative."""
  names = [f'{i:012d}.jpg' for i in range(7)]
  images = formats.write_images(tmp_path / 'coco', names)
  rows = [formats.narrative(str(i)) for i in range(1, 7)]
  path = formats.write_lines(tmp_path / 'ln.jsonl', rows)
  return {'name': 'localized_narratives', 'annotations': path, 'images': images}


def refs(tmp_path, *only):
  """Image 7 in train; another file of 3, and one with 2's bytes, in val."""
  images = str(tmp_path / 'refs')
  (tmp_path / 'refs').mkdir()
  for i in (7, 3):
    gradient(40, 60 + i).save(tmp_path / 'refs' / f'{i:012d}.jpg')
  copy = tmp_path / 'coco' / '000000000002.jpg'
  (tmp_path / 'refs' / 'copy.jpg').write_bytes(copy.read_bytes())
  for split, names in (
    ('train', ['000000000007.jpg']),
    ('val', ['copy.jpg', '000000000003.jpg']),
  ):
    if only and split not in only:
      continue
    widths = {'000000000007.jpg': 67, '000000000003.jpg': 63, 'copy.jpg': 60}
    rows = [line(name, (40, widths[name])) for name in names]
    path = formats.write_lines(tmp_path / f'{split}.jsonl', rows)
    build.build('jsonl', path, images, str(tmp_path / 'ref'), split)
  return str(tmp_path / 'ref')


def test_excluded_by_id_and_by_bytes(narratives, tmp_path):
  ref = refs(tmp_path)
  out = tmp_path / 'out'
  options = {'exclude': [f'{ref}:val'], 'strict': True}
  result = build.build(**narratives, out=str(out), **options)
  assert list(examples(out)) == ['1', '4', '5', '6']
  assert result.manifest['skipped'] == {'excluded': 2}
  assert 'rows skipped (excluded 2)' in str(result)
  lines = pathlib.Path(result.report).read_text().splitlines()
  two, three = map(json.loads, lines)
  assert (two['line'], three['line']) == (2, 3)
  assert two['expected'] == f'an image that is not in {ref}, split val'
  assert two['found'].startswith('image 2, of the same sha256 ')
  assert three['found'] == 'image 3, of the same id 3'
  left = records.identities(str(out), 'train')
  assert not left.keys() & records.identities(ref, 'val').keys()

  assert build.build(**narratives, out=str(out), **options).built == 0
  build.build(**narratives, out=str(tmp_path / 'b'), workers=2, **options)
  for path in out.iterdir():
    assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()


def test_whatever_form_the_bytes_have(narratives, tmp_path):
  """By what the file holds and by what is stored."""
  ref = refs(tmp_path)
  small = tmp_path / 'small'
  build.build(**narratives, out=str(small), split='val', max_side=30)
  for exclude in ([f'{ref}:val'], [str(small)]):
    out = tmp_path / f'out{len(exclude[0])}'
    rows = [line('000000000002.jpg', (40, 60)), line('b.jpg', (40, 60))]
    b = pathlib.Path(narratives['images']) / '000000000002.jpg'
    (b.parent / 'b.jpg').write_bytes(b.read_bytes())
    (b.parent / 'new.png').unlink(missing_ok=True)
    gradient(40, 60).save(b.parent / 'new.png')
    rows.append(line('new.png', (40, 60)))
    path = formats.write_lines(tmp_path / 'rows.jsonl', rows)
    build.build(
      'jsonl', path, narratives['images'], str(out), max_side=30,
      exclude=exclude,
    )  # fmt: skip
    assert list(examples(out)) == ['new.png']


def test_excluded_sets_identify_the_build(narratives, tmp_path):
  ref = refs(tmp_path)
  out = str(tmp_path / 'out')
  build.build(**narratives, out=out, exclude=[ref])
  assert list(examples(out)) == ['1', '4', '5', '6']
  (tmp_path / 'ref').rename(tmp_path / 'moved')
  ref = str(tmp_path / 'moved')
  both = [f'{ref}:val', f'{ref}:train', ref]
  assert build.build(**narratives, out=out, exclude=both).built == 0
  for exclude in ([], [f'{ref}:val']):
    with pytest.raises(build.BuildError, match='other input or arguments'):
      build.build(**narratives, out=out, exclude=exclude)


def test_splits_of_one_place(narratives, tmp_path):
  """The other splits of the place itself may be left out, not the own."""
  out = str(tmp_path / 'out')
  some = formats.write_lines(
    tmp_path / 'val.jsonl', [formats.narrative(str(i)) for i in (1, 2)]
  )
  build.build(**narratives | {'annotations': some}, out=out, split='val')
  for _ in range(2):
    build.build(**narratives, out=out, split='train', exclude=[out])
  assert list(examples(out)) == ['3', '4', '5', '6']
  with pytest.raises(build.BuildError, match='holds only what is built'):
    build.build(
      **narratives, out=str(tmp_path / 'ref'), exclude=[refs(tmp_path, 'train')]
    )
  with pytest.raises(build.BuildError, match='is what is built'):
    build.build(**narratives, out=out, exclude=[f'{out}:train'])


def test_nothing_to_exclude(narratives, tmp_path, capsys):
  ref = refs(tmp_path)
  out = str(tmp_path / 'out')
  arguments = [
    'build', narratives['name'], '--annotations', narratives['annotations'],
    '--images', narratives['images'], '--out', out, '--exclude',
  ]  # fmt: skip
  for exclude, message in (
    (f'{ref}:testA', 'splits here: train, val'),
    (str(tmp_path / 'coco'), 'coco: expected what `pixel-llm build` writes'),
    (str(tmp_path / 'nowhere'), 'found no manifest'),
  ):
    assert main.main([*arguments, exclude]) == 1
    assert message in capsys.readouterr().err
  assert main.main([*arguments, f'{ref}:train', ref, '--max-side', '30']) == 0
  assert 'excluded 2' in capsys.readouterr().out


def test_visual_genome_knows_its_coco_images(narratives, tmp_path):
  out = tmp_path / 'ln'
  build.build(**narratives, out=str(out))
  images = formats.write_images(tmp_path / 'vg', ['77.jpg', '88.jpg'], (20, 30))
  regions, image_data = formats.write_visual_genome(tmp_path)
  text = pathlib.Path(regions).read_text()
  meta = json.loads(pathlib.Path(image_data).read_text())
  changes = {'7': (77, 5), '8': (88, None)}
  for values in meta:
    values['image_id'], values['coco_id'] = changes[str(values['image_id'])]
  pathlib.Path(image_data).write_text(json.dumps(meta))
  for old, (new, _) in changes.items():
    text = text.replace(f'"id": {old},', f'"id": {new},')
  pathlib.Path(regions).write_text(text)
  result = build.build(
    'visual_genome', regions, images, str(tmp_path / 'out'),
    image_data=image_data, exclude=[str(out)],
  )  # fmt: skip
  assert list(examples(tmp_path / 'out')) == ['88']
  assert result.manifest['skipped']['excluded'] == 2
