# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Narrated scenes: which things are where, and how they look.

A thing is shape x colour x size x pattern. Colours are saturated and far apart,
backgrounds muted, and the two sizes leave a gap, so that a small network at 64
pixels can tell them: what is hard about a scene is meant to be its words.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
# Name -> (sRGB of the thing, sRGB of its stripes and dots).
_PAINT = {
  'red': ((218, 24, 32), (255, 168, 168)),
  'green': ((22, 150, 48), (150, 235, 150)),
  'blue': ((28, 66, 222), (150, 196, 255)),
  'yellow': ((252, 224, 24), (168, 140, 0)),
  'purple': ((132, 30, 168), (226, 166, 246)),
  'orange': ((252, 130, 10), (158, 70, 0)),
  'white': ((248, 248, 248), (146, 150, 158)),
  'black': ((16, 16, 20), (128, 130, 136)),
}
COLORS = tuple(_PAINT)
SIZES = ('small', 'large')
PATTERNS = ('plain', 'striped', 'dotted')
BACKGROUNDS = ('grey', 'brown', 'beige')

# Diameters as parts of the image's shorter side.
DIAMETERS = {'small': (0.28, 0.34), 'large': (0.46, 0.56)}
# At least so much of the longer side: what a network sees of a long image.
SMALLEST = 0.2
VISIBLE = 0.6  # of every thing, at least

_SIDE = (96, 192)  # the longer side, pixels
_COUNT = (0.25, 0.3, 0.2, 0.13, 0.08, 0.04)  # of 1 to 6 things
_LARGE = (0.5, 0.5, 0.5, 0.35, 0.25, 0.2)  # share of large things, by count
_PATTERNED = 0.5  # share of things that are striped or dotted
_DISTRACTOR = 0.5
_CROWDED = 0.35  # share of scenes whose things may hide one another
_TILT = {'square': 0.2, 'triangle': 0.2, 'star': 0.3, 'cross': 0.2}  # radians
# Name -> range of hue, saturation and value, each of 1.
_MUTED = {
  'grey': ((0.0, 1.0), (0.0, 0.04), (0.45, 0.66)),
  'brown': ((0.06, 0.09), (0.25, 0.36), (0.42, 0.52)),
  'beige': ((0.09, 0.12), (0.16, 0.24), (0.66, 0.74)),
}
_FINE = 3  # supersampling
_RIM = 0.86  # patterns end there, of the way from the middle to the outline


@dataclasses.dataclass(frozen=True)
class Look:
  """The four attributes that words can name."""

  shape: str
  color: str
  size: str
  pattern: str


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
  """One thing.

  Attributes:
    look: its attributes.
    outline: [corners, 2] float64 xy, pixels of the image: one closed loop,
      which for a ring goes around, crosses to the hole, and back around it.
    rgb: of its surface.
    shade: of its stripes or dots.
    grain: angle of stripes or rows of dots, radians.
    phase: [2] float64 offset of the pattern, parts of its period.
  """

  look: Look
  outline: np.ndarray
  rgb: tuple[int, int, int]
  shade: tuple[int, int, int]
  grain: float
  phase: np.ndarray

  @functools.cached_property
  def box(self) -> np.ndarray:
    """[4] xyxy, pixels: tight to the whole outline, whatever covers it."""
    low, high = self.outline.min(axis=0), self.outline.max(axis=0)
    return np.concatenate([low, high])

  @functools.cached_property
  def center(self) -> tuple[float, float]:
    """The xy of the middle of the box, pixels."""
    left, top, right, bottom = self.box.tolist()
    return (left + right) / 2, (top + bottom) / 2

  @functools.cached_property
  def diameter(self) -> float:
    """The longer side of the box, pixels."""
    return float((self.box[2:] - self.box[:2]).max())

  @property
  def area(self) -> float:
    """Square pixels inside the outline; the hole of a ring is outside."""
    x, y = self.outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """What is in an image.

  Attributes:
    width: pixels.
    height: pixels.
    background: its tone, of `BACKGROUNDS`.
    things: from the one furthest behind to the one in front.
  """

  width: int
  height: int
  background: str
  things: tuple[Thing, ...]


def sample(rng: np.random.Generator) -> Scene:
  """A random scene.

  Args:
    rng: consumed; the scene depends on nothing else.
  """
  longer = int(rng.integers(_SIDE[0], _SIDE[1] + 1))
  aspect = 2 ** rng.triangular(-1, 0, 1)
  width = longer if aspect >= 1 else round(longer * aspect)
  height = longer if aspect < 1 else round(longer / aspect)
  looks = _looks(rng, int(rng.choice(len(_COUNT), p=_COUNT)) + 1)
  layout = _Layout(width, height, rng.random() < _CROWDED)
  for look in looks:
    layout.add(rng, look)
  return Scene(width, height, _pick(rng, BACKGROUNDS), tuple(layout.things))


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
  """Paints a scene.

  Args:
    scene: what to paint.
    rng: for the background's texture.

  Returns: [height, width, 3] uint8, sRGB.
  """
  image = Image.fromarray(_background(scene, rng))
  for thing in scene.things:
    left, top = np.floor(thing.box[:2]).astype(int)
    right, bottom = np.ceil(thing.box[2:]).astype(int)
    size = ((right - left) * _FINE, (bottom - top) * _FINE)
    mask = Image.new('L', size)
    # Pillow's polygons are in pixel centres, ours in pixel corners.
    corners = (thing.outline - (left, top)) * _FINE
    ImageDraw.Draw(mask).polygon(_corners(corners), fill=255)
    paint = Image.new('RGB', size, thing.rgb)
    if thing.look.pattern != 'plain':
      # A rim stays plain: the shape would fray where the shade meets the edge.
      middle = corners.min(axis=0) / 2 + corners.max(axis=0) / 2
      inside = Image.new('L', size)
      ImageDraw.Draw(inside).polygon(
        _corners(middle + _RIM * (corners - middle)), fill=1
      )
      paint.paste(
        thing.shade,
        mask=Image.fromarray(np.asarray(inside) * _pattern(thing, size)),
      )
    image.paste(paint.reduce(_FINE), (int(left), int(top)), mask.reduce(_FINE))
  return np.asarray(image)


def visible(scene: Scene) -> list[float]:
  """The part of each thing that no other thing covers."""
  seen: list[np.ndarray] = []
  whole = []
  for thing in scene.things:
    mask = _mask(thing, scene.width, scene.height)
    seen = [s & ~mask for s in seen] + [mask]
    whole.append(mask.sum())
  return [float(s.sum() / w) for s, w in zip(seen, whole)]


def _looks(rng: np.random.Generator, count: int) -> list[Look]:
  """Attributes of each thing; often two differ in exactly one."""
  looks = [
    Look(
      shape=_pick(rng, SHAPES),
      color=_pick(rng, COLORS),
      size=SIZES[int(rng.random() < _LARGE[count - 1])],
      pattern=(
        _pick(rng, PATTERNS[1:]) if rng.random() < _PATTERNED else PATTERNS[0]
      ),
    )
    for _ in range(count)
  ]
  if count > 1 and rng.random() < _DISTRACTOR:
    first, second = rng.choice(count, 2, replace=False)
    name, values = [
      ('shape', SHAPES),
      ('color', COLORS),
      ('size', SIZES),
      ('pattern', PATTERNS),
    ][rng.integers(4)]
    others = [v for v in values if v != getattr(looks[first], name)]
    looks[second] = dataclasses.replace(
      looks[first], **{name: _pick(rng, others)}
    )
  return looks


class _Layout:
  """Finds room for things, one in front of the other."""

  def __init__(self, width: int, height: int, crowded: bool):
    self.things: list[Thing] = []
    self._width, self._height, self._crowded = width, height, crowded
    self._visible: list[np.ndarray] = []
    self._whole: list[int] = []

  def add(self, rng: np.random.Generator, look: Look) -> None:
    """Adds a thing; a smaller one, or none, where there is no room."""
    small = dataclasses.replace(look, size='small')
    for candidate, crowded in (
      (look, self._crowded),
      (small, self._crowded),
      (small, True),
    ):
      thing = _thing(rng, candidate, self._width, self._height)
      half = (thing.box[2:] - thing.box[:2]) / 2
      room = np.array([self._width, self._height]) - 2 * half - 2
      for place in half + 1 + rng.random((40, 2)) * room:
        if self._fits(np.concatenate([place - half, place + half]), crowded):
          # Hundredths of a pixel, as in the files.
          outline = np.round(thing.outline + place, 2)
          if self._put(dataclasses.replace(thing, outline=outline)):
            return

  def _fits(self, box: np.ndarray, crowded: bool) -> bool:
    return crowded or not any(_touch(t.box, box) for t in self.things)

  def _put(self, thing: Thing) -> bool:
    """Adds the thing unless too much of another would be hidden."""
    touched = [i for i, t in enumerate(self.things) if _touch(t.box, thing.box)]
    # What is of one colour would melt into one thing.
    if any(self.things[i].look.color == thing.look.color for i in touched):
      return False
    mask = _mask(thing, self._width, self._height)
    left = {i: self._visible[i] & ~mask for i in touched}
    if any(v.sum() < VISIBLE * self._whole[i] for i, v in left.items()):
      return False
    for i, seen in left.items():
      self._visible[i] = seen
    self.things.append(thing)
    self._visible.append(mask)
    self._whole.append(int(mask.sum()))
    return True


def _thing(
  rng: np.random.Generator, look: Look, width: int, height: int
) -> Thing:
  """A thing around the origin."""
  low, high = DIAMETERS[look.size]
  diameter = min(width, height) * rng.uniform(low, high)
  diameter = max(diameter, SMALLEST * max(width, height))
  tilt = _TILT.get(look.shape, 0.0)
  rgb, shade = (
    tuple(np.clip(np.array(c) + rng.integers(-8, 9, 3), 0, 255).tolist())
    for c in _PAINT[look.color]
  )
  return Thing(
    look=look,
    outline=_outline(look.shape, rng.uniform(-tilt, tilt)) * diameter,
    rgb=rgb,
    shade=shade,
    grain=rng.uniform(0, math.pi),
    phase=rng.random(2),
  )


def _outline(shape: str, tilt: float) -> np.ndarray:
  """[corners, 2] xy; the box is centred on 0 and its longer side is 1."""
  if shape in ('circle', 'ring'):
    corners = _polygon(32)
  elif shape == 'square':
    corners = _polygon(4, math.pi / 4)
  elif shape == 'triangle':
    corners = _polygon(3, -math.pi / 2)
  elif shape == 'star':
    corners = _polygon(10, -math.pi / 2)
    corners[1::2] *= 0.48
  else:
    arm = np.array([[1, -0.36], [1, 0.36], [0.36, 0.36]])
    turns = [np.array([[0, 1], [-1, 0]])] * 4
    corners = np.concatenate(
      [arm @ np.linalg.matrix_power(turn, i) for i, turn in enumerate(turns)]
    )
  cos, sin = math.cos(tilt), math.sin(tilt)
  corners = corners @ np.array([[cos, sin], [-sin, cos]])
  low, high = corners.min(axis=0), corners.max(axis=0)
  corners = (corners - (low + high) / 2) / (high - low).max()
  if shape == 'ring':
    around = np.concatenate([corners, corners[:1]])
    corners = np.concatenate([around, 0.54 * around[::-1]])
  return corners


def _polygon(corners: int, first: float = 0.0) -> np.ndarray:
  angle = first + np.arange(corners) * (2 * math.pi / corners)
  return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _mask(thing: Thing, width: int, height: int) -> np.ndarray:
  """[height, width] bool."""
  mask = Image.new('L', (width, height))
  ImageDraw.Draw(mask).polygon(_corners(thing.outline), fill=1)
  return np.asarray(mask, bool)


def _corners(outline: np.ndarray) -> list[float]:
  """For Pillow, to whom a whole number is a pixel's centre."""
  return (outline - 0.5).ravel().tolist()


def _touch(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether boxes overlap or nearly do."""
  return bool((a[:2] < b[2:] + 2).all() and (b[:2] < a[2:] + 2).all())


def _pattern(thing: Thing, size: tuple[int, int]) -> np.ndarray:
  """[height, width] uint8, 255 where the shade goes; of `size`.

  A thing has about three stripes when it is small, four when large: finer ones
  would vanish when the image is shrunk.
  """
  parts = 2.7 if thing.look.size == 'small' else 3.8
  scale = parts / (thing.diameter * _FINE)
  x = np.arange(size[0], dtype=np.float32) * scale
  y = np.arange(size[1], dtype=np.float32)[:, None] * scale
  cos, sin = math.cos(thing.grain), math.sin(thing.grain)
  u = _wrap(x * cos + y * sin + thing.phase[0])
  if thing.look.pattern == 'striped':
    inside = abs(u) < 0.2
  else:
    v = _wrap(y * cos - x * sin + thing.phase[1])
    inside = u * u + v * v < 0.3**2
  return inside * np.uint8(255)


def _wrap(x: np.ndarray) -> np.ndarray:
  return x - np.rint(x)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
  """[height, width, 3] uint8: a muted gradient with a faint texture."""
  height, width = scene.height, scene.width
  ranges = _MUTED[scene.background]
  ends = [
    np.array(
      colorsys.hsv_to_rgb(*(rng.uniform(low, high) for low, high in ranges)),
      np.float32,
    )
    for _ in range(2)
  ]
  x = np.linspace(-1, 1, width, dtype=np.float32)
  y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
  angle = rng.uniform(0, 2 * math.pi)
  along = (x * math.cos(angle) + y * math.sin(angle)) / 2.9 + 0.5

  def noise(*size: int) -> np.ndarray:
    return rng.standard_normal(size, dtype=np.float32)

  def enlarged(coarse: np.ndarray) -> np.ndarray:
    return np.asarray(
      Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    )

  light = 2.5 * noise(height, width)
  texture = rng.integers(4)
  if texture == 1:  # stripes
    waves = 2 * math.pi / rng.uniform(0.08, 0.3)
    grain = rng.uniform(0, math.pi)
    across = x * (width / height * math.cos(grain)) + y * math.sin(grain)
    light += 6 * np.sin(waves * across)
  elif texture == 2:  # blotches
    light += enlarged(10 * noise(5, 5))
  elif texture == 3:  # grain
    light += enlarged(6 * noise(height // 2, width // 2))
  tone = 255 * (ends[0] + along[..., None] * (ends[1] - ends[0]))
  return np.clip(tone + light[..., None], 0, 255).astype(np.uint8)


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
  return values[int(rng.integers(len(values)))]
