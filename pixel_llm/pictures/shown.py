# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What is shown of a prediction, in a PNG and on a page alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from pixel_llm import masks
from pixel_llm.image import decode
from pixel_llm.prediction import FINDS, Box, Point, Prediction, Word

# Longer side of the grid on which outlines of masks are found.
_GRID = 1024


def center(word: Word) -> Point | None:
  """The word's point; a place that is not finite is shown as no place."""
  center = word.center_orig
  if center is None or not all(map(math.isfinite, center)):
    return None
  return center


def box(prediction: Prediction) -> Box | None:
  """The box answered or asked about; none of what is not there."""
  box = prediction.box_orig
  if prediction.kind == 'caption_at':
    box = prediction.prompt_box_orig
  if box is None or prediction.there is False:
    return None
  if not all(map(math.isfinite, box)):
    return None
  return _ordered(box)


def clicks(prediction: Prediction) -> list[Point]:
  """The points asked about."""
  return [
    p for p in prediction.prompt_points_orig if all(map(math.isfinite, p))
  ]


def _ordered(box: Box) -> Box:
  x0, y0, x1, y1 = box
  return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def caption(prediction: Prediction) -> str:
  """What is said of it, and that it is not there."""
  if prediction.kind not in FINDS:
    return prediction.text
  missing = ' (not there)' if prediction.there is False else ''
  return f'{prediction.prompt}{missing}'


def news(truth: Prediction, predictions: Sequence[Prediction]) -> str:
  """The true text; '' when it only repeats the expression asked about."""
  if truth.kind in FINDS and truth.prompt in {p.prompt for p in predictions}:
    return ''
  return caption(truth)


def pieces(prediction: Prediction) -> list[tuple[str, Word]]:
  """Each word with what stands before it in the text: a space or nothing."""
  if not prediction.words:
    return [('', Word(prediction.text))] if prediction.text else []
  pieces = []
  end = 0
  for word in prediction.words:
    begin = prediction.text.find(word.text, end)
    if begin < 0 or prediction.text[end:begin].strip():
      separator = ' '
    else:
      separator = ' ' if begin > end else ''
      end = begin + len(word.text)
    pieces.append((separator if pieces else '', word))
  return pieces


def is_told(prediction: Prediction) -> bool:
  """Whether its words have places of their own."""
  return prediction.kind == 'narrate'


def size_orig(
  image: np.ndarray, predictions: Iterable[Prediction]
) -> tuple[int, int]:
  """The (height, width) in which the predictions speak; the image may differ.

  Raises:
    ValueError: the predictions are of images of different sizes.
  """
  sizes = {(int(p.size_orig[0]), int(p.size_orig[1])) for p in predictions}
  if len(sizes) > 1:
    raise ValueError(
      'picture: expected predictions of one image, got the sizes '
      f'{sorted(sizes)}.'
    )
  return sizes.pop() if sizes else (image.shape[0], image.shape[1])


def rgb(image: np.ndarray | bytes) -> np.ndarray:
  """[H, W, 3] uint8 of an array, or of an encoded file, set upright."""
  if isinstance(image, bytes):
    return decode(image, 'picture')
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
    raise ValueError(
      f'picture: expected an image [H, W, 3] uint8, got {image.shape} '
      f'{image.dtype}.'
    )
  return image


def outlines(prediction: Prediction) -> list[np.ndarray]:
  """The outlines of its mask, each [corners, 2] xy, pixels of the file.

  Holes have outlines of their own: what is inside an odd number of them is
  inside the mask.
  """
  if prediction.mask_orig is None or prediction.there is False:
    return []
  pixels = masks.decode(prediction.mask_orig, prediction.size_orig)
  height, width = pixels.shape
  scale = _GRID / max(height, width)
  size = max(round(width * scale), 1), max(round(height * scale), 1)
  grid = cv2.resize(
    pixels * np.uint8(255),
    size,
    interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST,
  )
  found, _ = cv2.findContours(
    (grid > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1
  )
  back = np.array([width / size[0], height / size[1]])
  return [(line[:, 0] + 0.5) * back for line in found if len(line) > 2]
