# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Any JPEG, PNG or WebP decodes upright; anything else is a clear error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pixel_llm import image


def smooth(height, width):
  """A picture that JPEG keeps well, with no symmetry."""
  y, x = np.mgrid[0:height, 0:width]
  return np.stack(
    [255 * x / width, 255 * y / height, 255 * x * y / (width * height)], axis=-1
  ).astype(np.uint8)


def encode(picture, form='PNG', **options):
  if isinstance(picture, np.ndarray):
    picture = Image.fromarray(picture)
  out = io.BytesIO()
  picture.save(out, form, **options)
  return out.getvalue()


@pytest.mark.parametrize(
  'form,options',
  [
    ('PNG', {}),
    ('WEBP', {'lossless': True}),
    ('JPEG', {'quality': 98}),
    ('JPEG', {'quality': 98, 'progressive': True}),
  ],
)
def test_formats(form, options):
  rgb = smooth(40, 60)
  decoded = image.decode(encode(rgb, form, **options), 'a file')
  assert decoded.shape == (40, 60, 3) and decoded.dtype == np.uint8
  assert decoded.flags.writeable
  assert np.abs(decoded.astype(int) - rgb).mean() < 2


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(form, orientation):
  upright = smooth(40, 60)
  # What a camera stores so that the orientation makes it upright.
  stored = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
  }[orientation](upright)
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {'lossless': True} if form == 'WEBP' else {}
  data = encode(np.ascontiguousarray(stored), form, exif=exif, **options)
  decoded = image.decode(data, 'photo')
  assert np.abs(decoded.astype(int) - upright).mean() < 4
  assert image.size(data) == (40, 60)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_exif_is_ignored():
  data = encode(
    smooth(8, 9), 'JPEG', exif=b'Exif\0\0' + b'MM\0*\xff\xff\xff\xf0'
  )
  assert image.decode(data, 'photo').shape == (8, 9, 3)
  assert image.size(data) == (8, 9)


def test_grey_and_palette():
  grey = smooth(8, 9)[..., 0]
  decoded = image.decode(encode(grey), 'grey')
  np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, -1))
  bits = Image.fromarray(grey > 100)
  assert set(np.unique(image.decode(encode(bits), '1'))) == {0, 255}
  palette = Image.fromarray(smooth(8, 9)).quantize(16)
  np.testing.assert_array_equal(
    image.decode(encode(palette), 'P'), np.asarray(palette.convert('RGB'))
  )


def test_sixteen_bit_grey_is_scaled_not_clipped():
  grey = np.linspace(0, 65535, 72).reshape(8, 9).astype(np.uint16)
  decoded = image.decode(encode(Image.fromarray(grey)), '16 bit')
  np.testing.assert_allclose(decoded[..., 1], grey / 257, atol=0.51)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA'])
def test_transparent_is_white(mode):
  alpha = np.zeros((8, 9), np.uint8)
  alpha[:, 5:] = 255
  picture = Image.fromarray(np.zeros((8, 9, 3), np.uint8))
  picture.putalpha(Image.fromarray(alpha))
  if mode == 'PA':
    picture = picture.quantize(4)
  else:
    picture = picture.convert(mode)
  decoded = image.decode(encode(picture), mode)
  assert (decoded[:, :5] == 255).all() and (decoded[:, 5:] == 0).all()


def test_transparent_colour_of_rgb_and_grey():
  rgb = np.zeros((4, 4, 3), np.uint8)
  rgb[0] = 7
  data = encode(rgb, transparency=(7, 7, 7))
  assert (image.decode(data, 'tRNS')[0] == 255).all()
  data = encode(rgb[..., 0], transparency=7)
  assert (image.decode(data, 'tRNS')[0] == 255).all()


def test_cmyk_jpeg():
  cmyk = Image.fromarray(smooth(16, 16)).convert('CMYK')
  decoded = image.decode(encode(cmyk, 'JPEG', quality=98), 'cmyk')
  assert np.abs(decoded.astype(int) - smooth(16, 16)).mean() < 6


@pytest.mark.parametrize(
  'form,options',
  [
    ('JPEG', {}),
    ('JPEG', {'progressive': True}),
    ('PNG', {}),
    ('WEBP', {}),
  ],
)
def test_truncated_is_an_error_never_grey_pixels(form, options):
  noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
  data = encode(noise, form, **options)
  whole = image.decode(data, 'whole')
  errors = 0
  for end in range(0, len(data), max(1, len(data) // 40)):
    try:
      cut = image.decode(data[:end], 'cut.jpg')
    except image.ImageError as e:
      errors += 1
      assert str(e).startswith('cut.jpg: expected a JPEG, PNG or WebP')
    else:
      np.testing.assert_array_equal(cut, whole)  # only the end mark is gone
  assert errors >= 39


@pytest.mark.parametrize(
  'data,found',
  [
    (b'', r'an empty file \(0 bytes\)'),
    (b'<html>not found</html>', r"first bytes b'<html>not fo'"),
    (encode(smooth(8, 9), 'GIF'), "first bytes b'GIF8"),
    (encode(smooth(64, 64), 'JPEG')[:700], 'truncated: 700 bytes'),
  ],
)
def test_errors_say_what_was_found(data, found):
  with pytest.raises(image.ImageError, match=f'images/1.jpg: .*{found}'):
    image.decode(data, 'images/1.jpg')


def test_bomb_and_missing_file(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  with pytest.raises(image.ImageError, match=r'bomb\.png: .*fits in memory'):
    image.decode(encode(smooth(20, 20)), 'bomb.png')
  with pytest.raises(image.ImageError, match=r'gone\.jpg: .*no such file'):
    image.load(tmp_path / 'gone.jpg')


def test_load(tmp_path):
  (tmp_path / 'a.png').write_bytes(encode(smooth(8, 9)))
  np.testing.assert_array_equal(image.load(tmp_path / 'a.png'), smooth(8, 9))


@pytest.mark.parametrize(
  'height,width', [(30, 60), (60, 30), (64, 64), (1, 90)]
)
def test_prepare_pads_bottom_and_right(height, width):
  rgb = np.full((height, width, 3), 200, np.uint8)
  out, fit = image.prepare(rgb, 64)
  assert out.shape == (64, 64, 3) and out.dtype == np.uint8
  valid_height, valid_width = fit.size
  assert (out[:valid_height, :valid_width] == 200).all()
  assert not out[valid_height:].any() and not out[:, valid_width:].any()


def test_prepare_keeps_what_fits_already():
  rgb = smooth(64, 48)
  out, fit = image.prepare(rgb, 64)
  np.testing.assert_array_equal(out[:, :48], rgb)
  assert fit.original == fit.size == (64, 48)


def test_prepare_antialiases():
  # A checkerboard of single pixels shrinks to its mean, not to black or white.
  board = np.indices((128, 128)).sum(0) % 2 * 255
  rgb = np.repeat(board[..., None], 3, -1).astype(np.uint8)
  out, _ = image.prepare(rgb, 32)
  assert np.abs(out[2:-2, 2:-2].astype(int) - 127).max() < 8


def test_prepare_moves_pixels_where_fit_says():
  rgb = np.zeros((90, 60, 3), np.uint8)
  rgb[30:60, 20:40] = 255
  out, fit = image.prepare(rgb, 36)
  rows, columns = np.nonzero(out[..., 0] > 127)
  expected = fit.to_px(fit.from_orig(np.array([20, 30, 40, 60])))
  np.testing.assert_allclose(
    [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
    expected,
    atol=0.5,
  )


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize(
  'options',
  [
    {'subsampling': 0},
    {'subsampling': 2},
    {'progressive': True, 'quality': 95},
    {'optimize': True, 'quality': 30},
  ],
)
def test_jpegs_are_pillows_to_the_last_bit(mode, options):
  pytest.importorskip('simplejpeg')
  rng = np.random.default_rng(0)
  small = rng.integers(0, 255, (9, 11, 3), np.uint8)
  picture = Image.fromarray(small).resize((83, 61)).convert(mode)
  data = io.BytesIO()
  picture.save(data, 'JPEG', **options)
  expected = np.asarray(Image.open(data).convert('RGB'))
  found = image.decode(data.getvalue(), 'x.jpg')
  np.testing.assert_array_equal(found, expected)
  # It is not Pillow's own decoding that was compared.
  assert image._decode_jpeg(data.getvalue()) is not None
