# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Image files to pixels: the one decoding and the one resize.

Training, evaluation and inference all come through here, so that the network
sees the same pixels of the same file everywhere.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
from etils import epath
from PIL import Image

try:
  import simplejpeg
except ImportError:  # of the `data` extra
  simplejpeg = None

from pixel_llm.geometry import Affine, Fit

_FORMATS = ('JPEG', 'PNG', 'WEBP')
# Pillow warns above it and refuses twice as many: 20,000 by 20,000 pixels are
# read without either, 1.2 GB of them.
Image.MAX_IMAGE_PIXELS = 20_000 * 20_000
_EXPECTED = 'expected a JPEG, PNG or WebP image'
_ORIENTATION = 0x0112
# EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
  2: lambda rgb: rgb[:, ::-1],
  3: lambda rgb: rgb[::-1, ::-1],
  4: lambda rgb: rgb[::-1],
  5: lambda rgb: rgb.swapaxes(0, 1),
  6: lambda rgb: rgb.swapaxes(0, 1)[:, ::-1],
  7: lambda rgb: rgb.swapaxes(0, 1)[::-1, ::-1],
  8: lambda rgb: rgb.swapaxes(0, 1)[::-1],
}
# What Pillow's plugins raise for files that are damaged in one way or another.
_DAMAGE = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  KeyError,
  IndexError,
  TypeError,
  OverflowError,
  struct.error,
  zlib.error,
)


class ImageError(ValueError):
  """A file is no usable image; the message names it and says what it is."""


def decode(data: bytes, name: str) -> np.ndarray:
  """Decodes an image file.

  Args:
    data: the encoded file.
    name: what to call it in errors, its path for example.

  Returns:
    [height, width, 3] uint8 RGB, upright (EXIF orientation applied); grey and
    palette images become RGB, transparent parts white, 16-bit greys 8-bit ones.

  Raises:
    ImageError: not a JPEG, PNG or WebP, truncated, damaged, or too large.
  """
  rgb = _decode_jpeg(data)
  if rgb is not None:
    return rgb
  with _open(data, name) as picture:
    with _errors(data, name):
      orientation = _orientation(picture, data)
      picture.load()
      rgb = np.array(_to_rgb(picture))
    if orientation in _UPRIGHT:
      rgb = np.ascontiguousarray(_UPRIGHT[orientation](rgb))
    return rgb


def load(path) -> np.ndarray:
  """`decode` of a file, local or on a bucket (`gs://`).

  Raises:
    ImageError: as `decode`, or the file cannot be read.
  """
  try:
    data = epath.Path(path).read_bytes()
  except OSError as e:
    reason = 'no such file' if isinstance(e, FileNotFoundError) else str(e)
    raise ImageError(f'{path}: {_EXPECTED}, found: {reason}.') from e
  return decode(data, str(path))


def size(data: bytes, name: str = 'image') -> tuple[int, int]:
  """(height, width) of the upright image, without decoding its pixels.

  Raises:
    ImageError: not a JPEG, PNG or WebP, or a damaged header.
  """
  with _open(data, name) as picture, _errors(data, name):
    width, height = picture.size
    if _orientation(picture, data) in (5, 6, 7, 8):
      return width, height
    return height, width


def prepare(rgb: np.ndarray, canvas: int) -> tuple[np.ndarray, Fit]:
  """Resizes an image into the network's square input and pads it with zeros.

  Args:
    rgb: [height, width, 3] uint8.
    canvas: side of the input, pixels.

  Returns:
    [canvas, canvas, 3] uint8, padded at bottom and right, and the `Fit` that
    maps coordinates to the original and back.
  """
  fit = Fit((rgb.shape[0], rgb.shape[1]), canvas)
  return render(rgb, fit), fit


def render(
  rgb: np.ndarray, fit: Fit, out: np.ndarray | None = None
) -> np.ndarray:
  """What is seen of an image, on the canvas.

  Bilinear, on uint8. What is twice as large or more is halved before, each
  pixel the mean of its four, until it is not. (Reference: it never is, so that
  large images alias; for images of 640 pixels at 384 both do the same.)

  Args:
    rgb: [height, width, 3] uint8.
    fit: what part of it, on whole pixels of it, how large, turned over or not.
    out: canvas to write into.

  Returns:
    [canvas, canvas, 3] uint8, padded at bottom and right.
  """
  height, width = fit.size
  part, flipped = rgb, False
  if fit.affine != Affine():
    flipped = fit.affine.scale[0] < 0
    x0, y0, x1, y1 = fit.seen
    part = rgb[y0:y1, x0:x1]
  while part.shape[0] >= 2 * height and part.shape[1] >= 2 * width:
    halves = ((part.shape[1] + 1) // 2, (part.shape[0] + 1) // 2)
    part = cv2.resize(part, halves, interpolation=cv2.INTER_AREA)
  if out is None:
    out = np.empty((fit.canvas, fit.canvas, 3), np.uint8)
  out[height:], out[:height, width:] = 0, 0
  valid = out[:height, :width]
  made = cv2.resize(
    part, (width, height), dst=valid, interpolation=cv2.INTER_LINEAR
  )
  if flipped:
    valid[...] = cv2.flip(made, 1)
  elif not np.may_share_memory(made, valid):
    valid[...] = made
  return out


def _open(data: bytes, name: str) -> Image.Image:
  with _errors(data, name):
    return Image.open(io.BytesIO(data), formats=_FORMATS)


@contextlib.contextmanager
def _errors(data: bytes, name: str):
  """Turns what Pillow raises into one error that says what was found."""
  try:
    yield
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise ImageError(
      f'{name}: {_EXPECTED} of a size that fits in memory, found: {e}'
    ) from e
  except _DAMAGE as e:
    if not data:
      found = 'an empty file (0 bytes)'
    elif isinstance(e, Image.UnidentifiedImageError):
      found = f'{len(data)} bytes, first bytes {data[:12]!r}'
    elif 'truncated' in str(e).lower():
      found = f'truncated: {len(data)} bytes, then nothing ({e})'
    else:
      found = f'damaged: {len(data)} bytes ({type(e).__name__}: {e})'
    raise ImageError(f'{name}: {_EXPECTED}, found: {found}.') from e


def _decode_jpeg(data: bytes) -> np.ndarray | None:
  """The pixels straight from libjpeg-turbo, Pillow's own to the last bit.

  Returns:
    None where Pillow has to look itself: no JPEG of grey or colour, EXIF, a
    suspicious size, damage, or no `simplejpeg`, which saves a third of it.
  """
  if simplejpeg is None or data[:2] != b'\xff\xd8' or b'Exif\0\0' in data:
    return None
  try:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    most = Image.MAX_IMAGE_PIXELS
    if colors in ('CMYK', 'YCCK') or (most and int(height) * int(width) > most):
      return None
    return simplejpeg.decode_jpeg(data, 'RGB')
  except ValueError:
    return None


def _orientation(picture: Image.Image, data: bytes) -> int:
  """EXIF orientation, 1 (upright) when there is none or it is damaged."""
  try:
    # A PNG may hold its EXIF behind the pixels, and Pillow decodes them all to
    # look there; worth it only when such a chunk exists.
    behind = picture.format != 'PNG' or b'eXIf' in data
    exif = picture.getexif() if behind else Image.Image.getexif(picture)
    return int(exif.get(_ORIENTATION, 1))
  except _DAMAGE as e:
    if 'truncated' in str(e).lower():
      raise
    return 1


def _to_rgb(picture: Image.Image) -> Image.Image:
  """Any of Pillow's modes as RGB, transparent parts on white."""
  if picture.mode.startswith('I'):
    # Pillow would clip 16-bit greys at 255 instead of scaling them.
    grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
    scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(scaled).convert('RGB')
  if 'A' in picture.getbands() or 'transparency' in picture.info:
    over = picture.convert('RGBA')
    white = Image.new('RGBA', over.size, 'white')
    return Image.alpha_composite(white, over).convert('RGB')
  return picture.convert('RGB')
