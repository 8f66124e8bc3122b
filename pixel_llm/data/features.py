# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""SeqIO's view of `Batch`: task features and the converter that pads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm import batch as batch_lib


def lengths(sizes: batch_lib.BatchSizes) -> dict[str, tuple[int, ...]]:
  """`sequence_length` of our tasks: the whole shape of every feature.

  SeqIO's evaluator knows no feature without an axis: a number is [1].
  """
  return {
    name: spec.shape(sizes)[1:] or (1,)
    for name, spec in batch_lib.Batch.specs().items()
  }


def sizes_of(
  sequence_length: Mapping[str, tuple[int, ...]],
) -> batch_lib.BatchSizes:
  """The inverse of `lengths` (one example: batch 1).

  Raises:
    ValueError: a feature is missing, or the shapes contradict each other.
  """
  table: dict[str, int] = {'B': 1}
  for name, spec in batch_lib.Batch.specs().items():
    shape, dims = sequence_length.get(name), spec.dims[1:] or ('1',)
    if not isinstance(shape, (tuple, list)) or len(shape) != len(dims):
      raise ValueError(
        f'sequence_length[{name!r}]: expected the shape {" ".join(dims)} (see '
        f'features.lengths), got {shape!r}.'
      )
    for dim, size in zip(dims, shape, strict=True):
      known = int(dim) if dim.isdigit() else table.setdefault(dim, int(size))
      if known != size:
        raise ValueError(
          f'sequence_length[{name!r}]: expected {dim} = {known}, got {size}.'
        )
  if table['H'] != table['W']:
    raise ValueError(
      f'sequence_length["image"]: expected a square input, got '
      f'{table["H"]} x {table["W"]}.'
    )
  return batch_lib.BatchSizes(
    batch=1,
    image=table['H'],
    regions=table['R'],
    context=table['C'],
    length=table['L'],
    points=table['P'],
    objects=table['O'],
    mask=table['M'],
    prompt_points=table['K'],
  )


def output_features(vocabulary: Any) -> dict[str, Any]:
  """`Batch` as the output features of a SeqIO task."""
  out = {}
  for name, spec in batch_lib.Batch.specs().items():
    rank, dtype = max(1, len(spec.dims) - 1), tf.as_dtype(spec.dtype)
    if name.endswith('_tokens'):
      out[name] = seqio.Feature(
        vocabulary, add_eos=False, dtype=dtype, rank=rank
      )
    else:
      out[name] = seqio.ContinuousFeature(dtype=dtype, rank=rank)
  return out


class Vocabulary(seqio.SentencePieceVocabulary):
  """SeqIO's, which decodes the regions of an image, too."""

  def decode(self, ids: Any) -> Any:
    """A text of tokens [L], a list of texts of tokens [R, L]."""
    if np.ndim(ids) == 2:
      return [self.decode(row) for row in ids]
    return super().decode(ids)


class PixelFeatureConverter(seqio.FeatureConverter):
  """Pads the features of a task to the shape table of `Batch`.

  Task features and model features are the same; a feature that comes shorter
  is padded with zeros, one that comes longer is an error. Packing makes no
  sense for images.
  """

  TASK_FEATURES: ClassVar = {
    name: seqio.FeatureConverter.FeatureSpec(
      dtype=tf.as_dtype(spec.dtype), rank=max(1, len(spec.dims) - 1)
    )
    for name, spec in batch_lib.Batch.specs().items()
  }
  MODEL_FEATURES: ClassVar = {
    name: seqio.FeatureConverter.FeatureSpec(
      dtype=tf.as_dtype(spec.dtype), rank=len(spec.dims) - 1
    )
    for name, spec in batch_lib.Batch.specs().items()
  }
  PACKING_FEATURE_DTYPES: ClassVar = {}

  def __init__(self, pack: bool = False, **kwargs):
    if pack:
      raise ValueError('PixelFeatureConverter: expected pack=False.')
    super().__init__(pack=False, **kwargs)
    self._shapes: dict[str, tuple[int, ...]] = {}

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Any
  ) -> tf.data.Dataset:
    """Converts; lengths are the whole shapes that `lengths` gives."""
    sizes_of(task_feature_lengths)
    self._shapes = {k: tuple(v) for k, v in task_feature_lengths.items()}
    # The base class checks one sequence axis a feature.
    first = {k: v[0] if v else 1 for k, v in self._shapes.items()}
    return super().__call__(ds, first)

  def _convert_features(self, ds, task_feature_lengths):
    del task_feature_lengths
    specs = batch_lib.Batch.specs()

    def convert(features):
      out = {}
      for name, shape in self._shapes.items():
        value = features[name]
        if tuple(value.shape) != shape:  # our own tasks' are whole
          missing = tf.constant(shape) - tf.shape(value)
          value = tf.pad(value, tf.stack([tf.zeros_like(missing), missing], 1))
          value = tf.ensure_shape(value, shape)
        out[name] = value if len(specs[name].dims) > 1 else value[0]
      return out

    return ds.map(convert)

  def get_model_feature_lengths(self, task_feature_lengths):
    """The same lengths: nothing grows."""
    return {k: task_feature_lengths[k] for k in self.MODEL_FEATURES}
