# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions over their image: a PNG, or an HTML page that can be hovered.

Every word of a narrative has a color of a run that goes along the sentence, as
in the paper's figures; its dot on the image has the same hue. Ground truth is
white and dashed (boxes), or stands beside (narratives).
"""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pixel_llm import files
from pixel_llm.pictures.colors import color_run
from pixel_llm.pictures.page import (
  LINK,
  STYLE,
  figure,
  html,
  mark_of,
  overlays,
  page,
  style_of,
)
from pixel_llm.pictures.png import draw
from pixel_llm.prediction import Prediction

__all__ = [
  'LINK',
  'STYLE',
  'color_run',
  'draw',
  'figure',
  'html',
  'mark_of',
  'overlays',
  'page',
  'save',
  'style_of',
]


def save(
  path: str | os.PathLike[str],
  image: np.ndarray | bytes,
  predictions: Sequence[Prediction],
  truth: Sequence[Prediction] | None = None,
) -> None:
  """Writes `draw` or `html` to a file, by the ending of its name.

  Args:
    path: ends in .png or .html; its folder is made when it does not exist.
    image: as in `draw`.
    predictions: as in `draw`.
    truth: as in `draw`.

  Raises:
    ValueError: another ending, or as in `draw`.
    OSError: the file cannot be written; nothing is left of it then.
  """
  path = pathlib.Path(path)
  ending = path.suffix.lower()
  if ending == '.png':
    file = io.BytesIO()
    draw(image, predictions, truth).save(file, 'PNG')
    files.write(path, file.getvalue())
  elif ending == '.html':
    title = predictions[0].image if predictions else path.stem
    files.write(path, html(image, predictions, truth, title))
  else:
    raise ValueError(
      f'{path}: expected a name that ends in .png or .html, got {ending!r}.'
    )
