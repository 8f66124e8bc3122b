# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Things worth a caption: CenterNet's proposals on a feature pyramid.

`FeaturePyramid` makes maps of five sizes from the image's one; `ProposalHead`
says of each cell whether a thing has its centre there, and how far its sides
are. `propose` turns that into boxes, `assign` true boxes into what the head
should have said. `BoxHead` looks at each box again, and `detect` keeps the
boxes that hold a thing. `Detector` is all of it.

Source: CenterNet2 (arXiv 2103.07461), the pyramid of ViTDet (arXiv 2203.16527),
section 3; scenic `projects/baselines/centernet` and pixel_llm,
`modeling/box_decoder.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from pixel_llm.model import layers, mask, roi

Array = jax.Array

# Side of a level's cells in sides of the image's cells.
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
  """Numbers of the proposals; the defaults are those of dense captioning.

  Attributes:
    channels: of every level of the pyramid.
    fine_channels: of the finest level when it is made.
    tower_layers: convolutions between a level and what is said of it.
    tower_channels: of these.
    groups: of their norms.
    ranges: of each level, least and largest half diagonal of its things, in
      pixels of the padded input.
    overlap: a cell so near the centre of a thing that a box of the same size
      there would have this IoU with it counts little as background.
    radius: that nearness at least, pixels.
    candidates: likeliest cells whose boxes are looked at.
    proposals: boxes given.
    train_candidates: as `candidates`, in training.
    train_proposals: as `proposals`, in training.
    samples: boxes an image that `BoxHead` learns from.
    thing_share: of them, how many at most hold a thing.
    match_threshold: IoU with a thing from which a box holds it.
    nms_threshold: IoU above which the less likely of two boxes is dropped.
    bins: side of the grid of parts that `BoxHead` reads of a box.
    box_dim: its hidden width.
    detections: boxes kept at last.
    detection_score: below it no box is kept.
    detection_nms_threshold: as `nms_threshold`, of these.
    dtype: compute dtype.
  """

  channels: int = 256
  fine_channels: int = 384
  tower_layers: int = 4
  tower_channels: int = 256
  groups: int = 32
  ranges: tuple[tuple[float, float], ...] = (
    (0.0, 40.0),
    (32.0, 80.0),
    (64.0, 160.0),
    (128.0, 320.0),
    (256.0, 50000.0),
  )
  overlap: float = 0.8
  radius: float = 4.0
  candidates: int = 1000
  proposals: int = 256
  train_candidates: int = 2000
  train_proposals: int = 1000
  samples: int = 512
  thing_share: float = 0.25
  match_threshold: float = 0.6
  nms_threshold: float = 0.9
  bins: int = 7
  box_dim: int = 1024
  detections: int = 100
  detection_score: float = 0.05
  detection_nms_threshold: float = 0.5
  dtype: str = 'float32'

  def __post_init__(self):
    if len(self.ranges) != len(SCALES):
      raise ValueError(
        f'DetectorConfig.ranges: expected one for each of {len(SCALES)} '
        f'levels, got {len(self.ranges)}.'
      )
    if self.tower_channels % self.groups:
      raise ValueError(
        f'DetectorConfig.tower_channels: expected a multiple of groups = '
        f'{self.groups}, got {self.tower_channels}.'
      )
    for prefix in ('', 'train_'):
      proposals, candidates = (
        getattr(self, prefix + name) for name in ('proposals', 'candidates')
      )
      if not 1 <= proposals <= candidates:
        raise ValueError(
          f'DetectorConfig.{prefix}proposals: expected 1 to '
          f'{prefix}candidates = {candidates}, got {proposals}.'
        )
    if not 1 <= self.detections <= self.proposals:
      raise ValueError(
        f'DetectorConfig.detections: expected 1 to proposals = '
        f'{self.proposals}, got {self.detections}.'
      )


def _conv(config, size, *, name, **kwargs):
  """A 3 x 3 convolution that keeps the size; small, so whole everywhere."""
  init = kwargs.pop('init', layers.DEFAULT_INIT)
  bias = nn.initializers.constant(kwargs.pop('bias', 0.0))
  return nn.Conv(
    size,
    (3, 3),
    padding=1,
    dtype=jnp.dtype(kwargs.pop('dtype', config.dtype)),
    kernel_init=nn.with_logical_partitioning(
      init, ('height', 'width', 'unsharded', 'channels')
    ),
    bias_init=nn.with_logical_partitioning(bias, ('channels',)),
    name=name,
    **kwargs,
  )


class FeaturePyramid(nn.Module):
  """Maps of five sizes, of which the second has the size of the image's."""

  config: DetectorConfig

  @nn.compact
  def __call__(self, features: Array) -> list[Array]:
    """[B, h, w, C] -> five of [B, h_i, w_i, channels], the finest first."""
    config = self.config
    fine = mask.Upscale(config.fine_channels, config.dtype, name='upscale')(
      features
    )
    # Reference: the published pool drops the last cell of an odd side, and the
    # things there; here it is pooled with nothing.
    coarse = nn.max_pool(features, (2, 2), strides=(2, 2), padding='SAME')
    pyramid = []
    for i, x in enumerate((_lay_out(fine), features, coarse)):
      x = layers.Dense(
        config.channels,
        ('embed', 'unsharded'),
        dtype=config.dtype,
        name=f'level_{i}_in',
      )(x)
      x = layers.LayerNorm(1e-6, config.dtype, name=f'level_{i}_in_norm')(x)
      x = _conv(config, config.channels, name=f'level_{i}_out', use_bias=False)(
        x
      )
      x = layers.LayerNorm(1e-6, config.dtype, name=f'level_{i}_out_norm')(x)
      pyramid.append(x)
    for i in (3, 4):
      x = nn.relu(pyramid[-1]) if i == 4 else pyramid[-1]
      x = _conv(config, config.channels, name=f'level_{i}_out', strides=2)(x)
      pyramid.append(x)
    return pyramid


def _lay_out(x: Array) -> Array:
  """[B, h, w, 4, C], 2 x 2 parts of each cell -> [B, 2 * h, 2 * w, C]."""
  batch, height, width, _, channels = x.shape
  x = jnp.reshape(x, (batch, height, width, 2, 2, channels))
  x = jnp.transpose(x, (0, 1, 3, 2, 4, 5))
  return jnp.reshape(x, (batch, 2 * height, 2 * width, channels))


class ProposalHead(nn.Module):
  """Likeness to a centre and distances to the sides, of every cell.

  The same for all levels but for a factor of the distances.
  """

  config: DetectorConfig

  @nn.compact
  def __call__(self, pyramid: list[Array]) -> tuple[Array, Array]:
    """Reads every level.

    Args:
      pyramid: [B, h_i, w_i, channels] each.

    Returns:
      Logits [B, cells] and distances [B, cells, 4] to the left, upper, right
      and lower side, in sides of a cell, both float32; `cells_of` says where
      which cell is.
    """
    config = self.config
    small = nn.initializers.normal(0.01)
    tower = []
    for i in range(config.tower_layers):
      conv = _conv(config, config.tower_channels, init=small, name=f'tower_{i}')
      norm = nn.GroupNorm(
        config.groups,
        dtype=jnp.dtype(config.dtype),
        scale_init=nn.with_logical_partitioning(
          nn.initializers.ones, ('channels',)
        ),
        bias_init=nn.with_logical_partitioning(
          nn.initializers.zeros, ('channels',)
        ),
        name=f'tower_{i}_norm',
      )
      tower += [conv, norm, nn.relu]
    outs = {'init': small, 'dtype': 'float32'}
    # At first a cell is a centre with probability 0.01, its box 16 cells wide.
    center = _conv(config, 1, bias=-4.6, name='center', **outs)
    sides = _conv(config, 4, bias=8.0, name='sides', **outs)
    factors = self.param(
      'factors',
      nn.with_logical_partitioning(nn.initializers.ones, ('unsharded',)),
      (len(SCALES),),
    )
    factors = jnp.asarray(factors)
    logits, distances = [], []
    for i, x in enumerate(pyramid):
      for layer in tower:
        x = layer(x)
      logits.append(jnp.reshape(center(x), (len(x), -1)))
      y = nn.relu(sides(x) * factors[i])
      distances.append(jnp.reshape(y, (len(x), -1, 4)))
    return jnp.concatenate(logits, axis=1), jnp.concatenate(distances, axis=1)


@dataclasses.dataclass(frozen=True)
class Cells:
  """Where the cells of all levels are; NumPy, as shapes are static.

  Attributes:
    index: [cells, 2] int, (column, row) in the level.
    count: [cells, 2] int, (columns, rows) of the level.
    level: [cells] int.
    side: [cells, 2] float32, width and height, pixels of the padded input.
  """

  index: np.ndarray
  count: np.ndarray
  level: np.ndarray
  side: np.ndarray

  @property
  def centers(self) -> np.ndarray:
    """[cells, 2] float32 xy, pixels of the padded input."""
    return (self.index + np.float32(0.5)) * self.side


def cells_of(
  grid: tuple[int, int], sizes: list[tuple[int, int]], canvas: tuple[int, int]
) -> Cells:
  """The cells of a pyramid, level by level and row by row.

  Reference: the research code takes cells of 8, 16 .. 128 pixels whatever the
  grid is. Its features lie on 27 x 27 cells of 384 pixels, 14.2 each, so there
  a thing is looked for, and read, up to an eighth of the image away from where
  it is seen. Here cells are as large as they are.

  Args:
    grid: (height, width) of the image's features.
    sizes: (height, width) of each level.
    canvas: (height, width) of the padded input, pixels.
  """
  parts = []
  side = np.asarray([canvas[1] / grid[1], canvas[0] / grid[0]], np.float32)
  for level, (height, width) in enumerate(sizes):
    index = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    index = index.reshape(-1, 2)
    parts.append(
      (
        index,
        np.broadcast_to([width, height], index.shape),
        np.full(len(index), level),
        np.broadcast_to(side * np.float32(SCALES[level]), index.shape),
      )
    )
  return Cells(*(np.concatenate(column) for column in zip(*parts)))


def propose(
  logits: Array,
  distances: Array,
  cells: Cells,
  image_size: Array,
  config: DetectorConfig,
  train: bool = False,
) -> tuple[Array, Array, Array]:
  """The likeliest boxes that are not the same.

  Args:
    logits: [B, cells] from `ProposalHead`.
    distances: [B, cells, 4], from there too.
    cells: of its pyramid.
    image_size: [B, 2] int32 valid (height, width), pixels.
    config: how many, and how alike.
    train: as many as in training.

  Returns:
    Boxes [B, proposals, 4] xyxy, pixels of the padded input, clipped to the
    valid image; their probabilities [B, proposals]; and [B, proposals] bool,
    which there are, the likeliest first.
  Reference: the research code clips to the padded input.
  """
  candidates, proposals = config.candidates, config.proposals
  if train:
    candidates, proposals = config.train_candidates, config.train_proposals
  count = min(candidates, logits.shape[1])
  logits, index = jax.lax.top_k(logits, count)
  center = jnp.asarray(cells.centers)[index]
  side = jnp.asarray(cells.side)[index]
  distances = jnp.take_along_axis(distances, index[..., None], axis=1)
  low = center - distances[..., :2] * side
  high = center + distances[..., 2:] * side
  boxes = jnp.concatenate([low, high], axis=-1)
  keep = roi.nms(
    boxes, logits, jnp.ones(logits.shape, bool), config.nms_threshold
  )
  index, there = roi.best(logits, keep, min(proposals, count))
  boxes = jnp.take_along_axis(boxes, index[..., None], axis=1)
  scores = nn.sigmoid(jnp.take_along_axis(logits, index, axis=1))
  limit = jnp.asarray(image_size[:, None, ::-1], boxes.dtype)
  limit = jnp.concatenate([limit, limit], axis=-1)
  return jnp.clip(boxes, 0, limit), scores, there


@dataclasses.dataclass(frozen=True)
class Targets:
  """What `ProposalHead` should say.

  Attributes:
    heat: [B, cells] in [0, 1], nearness to the centre of a thing.
    is_center: [B, cells] bool, the cell that a centre lies in.
    distances: [B, cells, 4], in sides of the cell.
    has_box: [B, cells] bool, where distances are asked for: cells of a thing
      that have its centre or touch the cell that has it.
  """

  heat: Array
  is_center: Array
  distances: Array
  has_box: Array


def assign(
  boxes_px: Array, weights: Array, cells: Cells, config: DetectorConfig
) -> Targets:
  """What the head should say of these boxes.

  Args:
    boxes_px: [B, R, 4] xyxy, pixels of the padded input.
    weights: [B, R]; a box of weight 0 is not there.
    cells: of the pyramid.
    config: which level has which boxes, and how far a centre reaches.

  Source: CenterNet2 (arXiv 2103.07461), section 3.2.
  """
  at, side = (
    jnp.asarray(x)[None, :, None] for x in (cells.centers, cells.side)
  )
  low, high = boxes_px[:, None, :, :2], boxes_px[:, None, :, 2:]
  area = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
  center = (low + high) / 2
  there = (weights[:, None] > 0) & (area > 0)

  ranges = jnp.asarray(config.ranges, jnp.float32)[cells.level]
  half = jnp.linalg.norm(high - low, axis=-1) / 2
  there &= (half >= ranges[None, :, :1]) & (half <= ranges[None, :, 1:])
  away = jnp.abs(
    jnp.floor(center / side) - jnp.asarray(cells.index)[None, :, None]
  )
  is_center = jnp.all(away == 0, axis=-1) & there

  known = (weights[:, None] > 0) & (area > 0)
  reach = (1 - config.overlap) / (1 + config.overlap)
  reach = jnp.maximum(2 * reach**2 * area, config.radius**2)
  distance = jnp.sum((at - center) ** 2, axis=-1) / reach
  # A cell that is not the centre's is never wholly it.
  distance = jnp.where(is_center, 0.0, jnp.maximum(distance, 1e-6))
  distance = jnp.where(known, distance, jnp.inf)

  sides = jnp.concatenate([at - low, high - at], axis=-1)
  inside = jnp.min(sides, axis=-1) > 0
  near = jnp.all(away <= 1, axis=-1) & inside & there
  best = jnp.argmin(jnp.where(near, distance, jnp.inf), axis=-1)
  sides = sides / jnp.concatenate([side, side], axis=-1)
  sides = jnp.take_along_axis(sides, best[..., None, None], axis=2)[:, :, 0]
  has_box = jnp.any(near, axis=-1)
  return Targets(
    heat=jnp.exp(-jnp.min(distance, axis=-1)),
    is_center=jnp.any(is_center, axis=-1),
    distances=jnp.where(has_box[..., None], sides, 0.0),
    has_box=has_box,
  )


def read_boxes(
  pyramid: list[Array],
  boxes_px: Array,
  grid: tuple[int, int],
  canvas: tuple[int, int],
  config: DetectorConfig,
) -> Array:
  """What the pyramid shows in each part of boxes.

  A box of 224 pixels is read in the level of the image's size, one twice as
  large in the next.

  Args:
    pyramid: from `FeaturePyramid`.
    boxes_px: [B, R, 4] xyxy, pixels of the padded input.
    grid: (height, width) of the image's features.
    canvas: (height, width) of the padded input, pixels.
    config: how many parts.

  Returns: [B, R, bins, bins, channels].
  Source: arXiv 1612.03144, equation 1.
  """
  sides = jnp.maximum(boxes_px[..., 2:] - boxes_px[..., :2], 0)
  size = jnp.sqrt(jnp.prod(sides, axis=-1))
  levels = jnp.floor(1 + jnp.log2(size / 224 + 1e-8))
  levels = jnp.clip(levels, 0, len(pyramid) - 1)
  height, width = canvas
  return roi.multilevel_roi_align(
    pyramid,
    boxes_px / jnp.asarray([[[width, height] * 2]], boxes_px.dtype),
    levels,
    config.bins,
    counts=[(grid[0] / scale, grid[1] / scale) for scale in SCALES],
  )


class BoxHead(nn.Module):
  """Does a box hold a thing, and where exactly is it.

  Source: arXiv 1504.08083, one class.
  Reference: the research code has a logit for the background too, of which the
  difference alone matters.
  """

  config: DetectorConfig

  @nn.compact
  def __call__(self, parts: Array) -> tuple[Array, Array]:
    """[B, R, bins, bins, channels] -> logits [B, R], moves [B, R, 4]."""
    config = self.config
    x = jnp.reshape(parts, (*parts.shape[:2], -1))
    for i, axes in enumerate((('embed', 'mlp'), ('mlp', 'embed'))):
      x = layers.Dense(
        config.box_dim, axes, True, config.dtype, name=f'mlp_{i}'
      )(x)
      x = nn.relu(x)
    out = ('embed', 'unsharded')
    logits = layers.Dense(
      1, out, True, kernel_init=nn.initializers.normal(0.01), name='thing'
    )(x)
    moves = layers.Dense(
      4, out, True, kernel_init=nn.initializers.normal(0.001), name='moves'
    )(x)
    return logits[..., 0], moves


def move(boxes: Array, moves: Array) -> Array:
  """Moves and stretches boxes.

  Args:
    boxes: [..., 4] xyxy.
    moves: [..., 4]: of the centre, in tenths of the sides, and the logarithm of
      the stretch, in fifths; x before y.

  Returns: [..., 4] xyxy.
  Source: arXiv 1311.2524, appendix C, with the scales and the limit of
    Detectron2.
  """
  low, high = boxes[..., :2], boxes[..., 2:]
  sides = high - low
  center = (low + high) / 2 + moves[..., :2] / 10 * sides
  stretch = jnp.exp(jnp.minimum(moves[..., 2:] / 5, np.log(1000 / 16)))
  half = stretch * sides / 2
  return jnp.concatenate([center - half, center + half], axis=-1)


def moves_to(boxes: Array, others: Array) -> Array:
  """What `move` needs to make `others` of `boxes`; 0 where either is empty.

  Args:
    boxes: [..., 4] xyxy.
    others: [..., 4] xyxy.

  Returns: [..., 4].
  """
  sides = boxes[..., 2:] - boxes[..., :2]
  other_sides = others[..., 2:] - others[..., :2]
  both = jnp.all((sides > 0) & (other_sides > 0), axis=-1, keepdims=True)
  sides, other_sides = (jnp.where(both, s, 1.0) for s in (sides, other_sides))
  away = (others[..., :2] + others[..., 2:]) - (boxes[..., :2] + boxes[..., 2:])
  moves = jnp.concatenate(
    [5 * away / sides, 5 * jnp.log(other_sides / sides)], axis=-1
  )
  return jnp.where(both, moves, 0.0)


def match(
  boxes: Array, true_boxes: Array, weights: Array, threshold: float
) -> tuple[Array, Array]:
  """Which true box each box is of.

  Args:
    boxes: [B, N, 4] xyxy.
    true_boxes: [B, R, 4] xyxy, in the same unit.
    weights: [B, R]; a box of weight 0 is not there.
    threshold: IoU from which a box is of a thing.

  Returns:
    Index [B, N] int32 of the most alike, the first of equals; and [B, N] bool,
    whether it is alike enough.
  """
  overlap, union = roi.pairwise_overlap(boxes, true_boxes)
  overlap = jnp.where(weights[:, None] > 0, overlap, 0.0)
  iou = overlap / jnp.where(union > 0, union, 1.0)
  return jnp.argmax(iou, axis=-1), jnp.max(iou, axis=-1) >= threshold


def detect(
  boxes_px: Array,
  scores: Array,
  there: Array,
  logits: Array,
  moves: Array,
  image_size: Array,
  config: DetectorConfig,
) -> tuple[Array, Array, Array]:
  """The boxes that hold a thing.

  Args:
    boxes_px: [B, R, 4] from `propose`.
    scores: [B, R], from there too.
    there: [B, R] bool, from there too.
    logits: [B, R] from `BoxHead`.
    moves: [B, R, 4], from there too.
    image_size: [B, 2] int32 valid (height, width), pixels.
    config: how many, how sure and how alike.

  Returns:
    Boxes [B, detections, 4] xyxy, pixels of the padded input, clipped to the
    valid image; their scores [B, detections], the geometric mean of both
    stages; and [B, detections] bool, which there are, the best first.
  """
  limit = jnp.asarray(image_size[:, None, ::-1], boxes_px.dtype)
  limit = jnp.concatenate([limit, limit], axis=-1)
  boxes_px = jnp.clip(move(boxes_px, moves), 0, limit)
  scores = jnp.sqrt(nn.sigmoid(logits) * scores)
  valid = there & (scores > config.detection_score)
  keep = roi.nms(boxes_px, scores, valid, config.detection_nms_threshold)
  index, there = roi.best(scores, keep, min(config.detections, scores.shape[1]))
  boxes_px = jnp.take_along_axis(boxes_px, index[..., None], axis=1)
  return boxes_px, jnp.take_along_axis(scores, index, axis=1), there


@struct.dataclass
class Seen:
  """What the detector says of images whose things are known, and should say.

  Attributes:
    logits: [B, cells] from `ProposalHead`.
    distances: [B, cells, 4], from there too.
    heat, is_center, target_distances, has_box: what these should be, see
      `Targets`.
    boxes_px: [B, S, 4] xyxy, pixels of the padded input, that `BoxHead` read.
    box_weights: [B, S], 1, or 0 where there were fewer boxes.
    box_logits: [B, S] from `BoxHead`.
    box_moves: [B, S, 4], from there too.
    is_thing: [B, S] bool, what the logits should be.
    target_moves: [B, S, 4], what the moves of things should be.
  """

  logits: Array
  distances: Array
  heat: Array
  is_center: Array
  target_distances: Array
  has_box: Array
  boxes_px: Array
  box_weights: Array
  box_logits: Array
  box_moves: Array
  is_thing: Array
  target_moves: Array


def sample(
  is_thing: Array, there: Array, config: DetectorConfig, key: Array | None
) -> tuple[Array, Array]:
  """The boxes to learn from: some with things, the others without.

  Args:
    is_thing: [B, N] bool.
    there: [B, N] bool; other boxes are not drawn.
    config: how many.
    key: of the draw; None takes the first ones.

  Returns:
    Their indices [B, samples] int32, those of things first, and [B, samples]
    bool, which were drawn at all; as many as there are if that is fewer.
  Source: arXiv 1504.08083, section 2.3.
  """
  batch, count = is_thing.shape
  size = min(config.samples, count)
  # In [0, 1), the order within each group.
  order = jnp.broadcast_to(jnp.arange(count) / count, (batch, count))
  if key is not None:
    order = jax.random.uniform(key, (batch, count))
  things = is_thing & there
  rank = jnp.argsort(jnp.argsort(jnp.where(things, order, 1.0), axis=1), axis=1)
  few = rank < int(size * config.thing_share)
  group = jnp.where(
    things, jnp.where(few, 0, 2), jnp.where(there & ~is_thing, 1, 2)
  )
  _, index = jax.lax.top_k(-(group + order), size)
  return index, jnp.take_along_axis(group, index, axis=1) < 2


class Detector(nn.Module):
  """Finds the things of an image that are worth a caption."""

  config: DetectorConfig

  def setup(self):
    """Makes the parts."""
    self.pyramid = FeaturePyramid(self.config)
    self.proposal_head = ProposalHead(self.config)
    self.box_head = BoxHead(self.config)

  def _look(self, features: Array, canvas: tuple[int, int]):
    pyramid = self.pyramid(features)
    sizes = [(x.shape[1], x.shape[2]) for x in pyramid]
    cells = cells_of((features.shape[1], features.shape[2]), sizes, canvas)
    return pyramid, cells, *self.proposal_head(pyramid)

  def _read(self, pyramid, boxes_px, features, canvas):
    grid = features.shape[1], features.shape[2]
    return self.box_head(
      read_boxes(pyramid, boxes_px, grid, canvas, self.config)
    )

  def __call__(
    self, features: Array, image_size: Array, canvas: tuple[int, int]
  ) -> tuple[Array, Array, Array]:
    """Detects.

    Args:
      features: [B, h, w, C] of the image.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.

    Returns: boxes, scores and which there are, see `detect`.
    """
    pyramid, cells, logits, distances = self._look(features, canvas)
    boxes, scores, there = propose(
      logits, distances, cells, image_size, self.config
    )
    logits, moves = self._read(pyramid, boxes, features, canvas)
    return detect(boxes, scores, there, logits, moves, image_size, self.config)

  def learn(
    self,
    features: Array,
    image_size: Array,
    canvas: tuple[int, int],
    things_px: Array,
    weights: Array,
    key: Array | None = None,
  ) -> Seen:
    """What is said of images whose things are known, and should be.

    The second stage reads proposals, and the things' own boxes, of which some
    are drawn; no gradient reaches the proposals through it.

    Args:
      features: [B, h, w, C] of the image.
      image_size: [B, 2] int32 valid (height, width), pixels.
      canvas: (height, width) of the padded input, pixels.
      things_px: [B, O, 4] xyxy, pixels of the padded input.
      weights: [B, O]; a thing of weight 0 is not there.
      key: of the draw; None takes the likeliest proposals.
    """
    config = self.config
    pyramid, cells, logits, distances = self._look(features, canvas)
    targets = assign(things_px, weights, cells, config)
    boxes, _, there = jax.lax.stop_gradient(
      propose(logits, distances, cells, image_size, config, train=True)
    )
    boxes = jnp.concatenate([things_px, boxes], axis=1)
    there = jnp.concatenate([weights > 0, there], axis=1)
    index, is_thing = match(boxes, things_px, weights, config.match_threshold)
    drawn, there = sample(is_thing, there, config, key)
    boxes = jnp.take_along_axis(boxes, drawn[..., None], axis=1)
    index = jnp.take_along_axis(index, drawn, axis=1)
    matched = jnp.take_along_axis(things_px, index[..., None], axis=1)
    box_logits, box_moves = self._read(pyramid, boxes, features, canvas)
    return Seen(
      logits=logits,
      distances=distances,
      heat=targets.heat,
      is_center=targets.is_center,
      target_distances=targets.distances,
      has_box=targets.has_box,
      boxes_px=boxes,
      box_weights=jnp.asarray(there, jnp.float32),
      box_logits=box_logits,
      box_moves=box_moves,
      is_thing=jnp.take_along_axis(is_thing, drawn, axis=1) & there,
      target_moves=moves_to(boxes, matched),
    )
