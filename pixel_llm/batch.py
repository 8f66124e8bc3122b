# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What travels between disk and loss (`Batch`) and after it (`Output`).

The declaration of `Batch` is the one table of shapes, dtypes and units: SeqIO's
feature lengths, the zero batch for initialization, shardings and host-side
checks all come from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import struct

# jax.Array on the device, np.ndarray on the host, tracers and shapes between.
Array = Any


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One row of the shape table: named dimensions, dtype and meaning."""

  dims: tuple[str, ...]
  dtype: str
  meaning: str

  def shape(self, sizes: BatchSizes) -> tuple[int, ...]:
    """The dimensions as numbers."""
    table = sizes.table()
    return tuple(int(d) if d.isdigit() else table[d] for d in self.dims)


def array(dims: str, dtype: str, meaning: str) -> Any:
  """Declares a field of `Batch`: `array('B R 4', 'float32', 'xyxy')`."""
  return dataclasses.field(
    default=None,  # pyright: ignore
    metadata={'spec': ArraySpec(tuple(dims.split()), dtype, meaning)},
  )


@dataclasses.dataclass(frozen=True)
class BatchSizes:
  """The numbers behind the dimension names of `Batch`.

  Attributes:
    batch: B, images.
    image: H and W, pixels of the padded square input.
    regions: R, regions (prompts) an image.
    context: C, text prompt tokens a region.
    length: L, target tokens a region, end token included.
    points: P, points a token.
    objects: O, things to detect an image; 0 for none.
    mask: M, side of the true masks, which cover the padded input; 0 for none.
    prompt_points: K, points of a location prompt; 0 for boxes alone.
  """

  batch: int = 8
  image: int = 384
  regions: int = 1
  context: int = 8
  length: int = 128
  points: int = 2
  objects: int = 0
  mask: int = 0
  prompt_points: int = 0

  def table(self) -> dict[str, int]:
    """Dimension name -> size."""
    return {
      'B': self.batch,
      'H': self.image,
      'W': self.image,
      'R': self.regions,
      'C': self.context,
      'L': self.length,
      'P': self.points,
      'O': self.objects,
      'M': self.mask,
      'K': self.prompt_points,
    }


@struct.dataclass
class Batch:
  """One batch of images with the questions asked of each.

  B images, R regions each, C prompt tokens, L target tokens, P points a token;
  K points of a prompt, O things to detect, masks of M x M. An unmarked
  coordinate is normalized to the valid image, in [0, 1]; x before y; boxes are
  xyxy. A missing thing has weight 0, never a sentinel value.
  """

  image: Array = array('B H W 3', 'uint8', 'RGB, zero-padded bottom and right')
  image_size: Array = array('B 2', 'int32', 'valid (height, width), pixels')
  prompt_boxes: Array = array(
    'B R 4', 'float32', 'xyxy; the whole image when there is no prompt'
  )
  prompt_box_weights: Array = array(
    'B R', 'float32', '0: points alone say where (if K > 0)'
  )
  prompt_points: Array = array('B R K 2', 'float32', 'xy pointed at')
  prompt_labels: Array = array(
    'B R K', 'int32', '1: on what is meant, -1: not on it, 0: no point'
  )
  encoder_input_tokens: Array = array(
    'B R C', 'int32', 'text prompt, 0 is padding'
  )
  decoder_target_tokens: Array = array(
    'B R L', 'int32', 'what to say, 0 is padding; inputs are its right shift'
  )
  decoder_loss_weights: Array = array('B R L', 'float32', '0 turns a word off')
  points: Array = array('B R L P 2', 'float32', 'xy of each word')
  point_weights: Array = array('B R L', 'float32', '0: this word has no place')
  boxes: Array = array('B R 4', 'float32', 'xyxy of the answer')
  box_weights: Array = array('B R', 'float32', '0: the answer has no box')
  masks: Array = array(
    'B R M M', 'uint8', '1 in the answer, on a grid of the padded input'
  )
  mask_weights: Array = array('B R', 'float32', '0: the answer has no mask')
  presence: Array = array(
    'B R', 'float32', '1: what is asked for is in the image, 0: it is not'
  )
  presence_weights: Array = array(
    'B R', 'float32', '0: nobody says whether it is'
  )
  objects: Array = array('B O 4', 'float32', 'xyxy of what there is to detect')
  object_weights: Array = array('B O', 'float32', '0: there is no such thing')
  detection_weights: Array = array(
    'B', 'float32', '0: not every thing of the image is in `objects`'
  )

  # A dict of maps of frozen encoders, `eva` or `sam` [B, h, w, channels], that
  # were made before and are not made again; None has all of them made.
  image_maps: Array = None

  @classmethod
  def specs(cls) -> dict[str, ArraySpec]:
    """Field name -> its row of the table, in declaration order."""
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata['spec'] for f in fields if f.metadata}

  @classmethod
  def zeros(cls, sizes: BatchSizes) -> Batch:
    """A batch of zeros (NumPy) of the given sizes, for initialization."""
    return cls(
      **{
        name: np.zeros(spec.shape(sizes), spec.dtype)
        for name, spec in cls.specs().items()
      }
    )

  @classmethod
  def shapes(cls, sizes: BatchSizes) -> Batch:
    """The same as `jax.ShapeDtypeStruct`s: nothing is allocated."""
    return cls(
      **{
        name: jax.ShapeDtypeStruct(spec.shape(sizes), spec.dtype)
        for name, spec in cls.specs().items()
      }
    )

  def check(self, sizes: BatchSizes) -> None:
    """Raises ValueError naming the first field off the shape table."""
    for name, spec in self.specs().items():
      value = getattr(self, name)
      expected = (spec.shape(sizes), np.dtype(spec.dtype))
      got = (tuple(np.shape(value)), np.dtype(getattr(value, 'dtype', None)))
      if expected != got:
        raise ValueError(
          f'Batch.{name} [{" ".join(spec.dims)}]: expected shape '
          f'{expected[0]} {expected[1]}, got {got[0]} {got[1]}.'
        )


@struct.dataclass
class Output:
  """What the network says of a batch; absent parts are None.

  Attributes:
    logits: [B, R, L, vocab] float32, word logits (teacher forcing only).
    hidden: [B, R, L, width], the decoder's last hidden state.
    points: [B, R, L, P, 2], predicted xy of each token, normalized.
    tokens: [B, R, L] int32, decoded tokens, end token kept, 0 after it
      (decoding only).
    log_probs: [B, R, L], log probability of each decoded token.
    scores: [B, R], score of the decoded sequence.
    proposals: [B, cells, cells, 4] xyxy, normalized: the box of what each cell
      of the image is part of (teacher forcing with `ModelConfig.region` only).
    mask_logits: [B, R, masks, h, w] float32, on a grid of the padded input
      (teacher forcing with `ModelConfig.mask` only).
    mask_ious: [B, R, masks] float32, predicted IoU of each mask.
    presence: [B, R] float32, logits of whether what is asked for is in the
      image (with `ModelConfig.presence` only, if the answer is given).
    seen: `model.detector.Seen` (teacher forcing with `ModelConfig.detector` and
      `Batch.objects` only).
  """

  logits: Array = None
  hidden: Array = None
  points: Array = None
  tokens: Array = None
  log_probs: Array = None
  scores: Array = None
  proposals: Array = None
  mask_logits: Array = None
  mask_ious: Array = None
  presence: Array = None
  seen: Any = None
