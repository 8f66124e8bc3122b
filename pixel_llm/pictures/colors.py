# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Colors along a sentence, and of one answer among several."""

from __future__ import annotations

import math

Color = tuple[int, int, int]

INK: Color = (20, 22, 26)
PAPER: Color = (255, 255, 255)
GREY: Color = (118, 122, 130)


def color_run(count: int, lightness: float = 0.76) -> list[Color]:
  """Colors along a sentence: violet, blue, green, yellow, red.

  The hue turns evenly in OKLCH at one lightness, so that neighbors look alike,
  no color stands out and all of them can be read on the same background.

  Args:
    count: number of colors.
    lightness: OKLab L, in [0, 1].

  Returns: `count` RGB triples, 0 to 255.

  Source: B. Ottosson, "A perceptual color space for image processing" (2020),
    for the matrices.
  """
  colors = []
  for i in range(count):
    hue = math.radians(295 - 270 * i / max(count - 1, 1))
    # More would be livelier where sRGB has it, but step unevenly.
    chroma = 0.15
    rgb = _oklch(lightness, chroma, hue)
    # sRGB holds less chroma at some hues: step back until it fits.
    while chroma > 0 and not all(0 <= v <= 1 for v in rgb):
      chroma -= 0.005
      rgb = _oklch(lightness, chroma, hue)
    r, g, b = (round(255 * min(max(v, 0), 1)) for v in rgb)
    colors.append((r, g, b))
  return colors


def _oklch(lightness: float, chroma: float, hue: float) -> list[float]:
  a, b = chroma * math.cos(hue), chroma * math.sin(hue)
  long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
  medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
  short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
  linear = (
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
  )
  return [
    12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055
    for v in linear
  ]


def of_answers(count: int) -> list[tuple[Color, Color]]:
  """A bright color for the image and a dark one for text, for each."""
  # Without the pale violet at the start: a single box is red.
  bright, dark = color_run(count + 1), color_run(count + 1, 0.52)
  return list(zip(bright[1:], dark[1:], strict=True))
