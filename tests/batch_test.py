# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import batch as batch_lib

# No two sizes are equal, so that a swapped dimension shows.
SIZES = batch_lib.BatchSizes(
  batch=2,
  image=28,
  regions=3,
  context=5,
  length=7,
  points=4,
  objects=6,
  mask=8,
  prompt_points=9,
)


def test_table_is_the_shapes():
  zeros = batch_lib.Batch.zeros(SIZES)
  shapes = {name: getattr(zeros, name).shape for name in zeros.specs()}
  assert shapes == {
    'image': (2, 28, 28, 3),
    'image_size': (2, 2),
    'prompt_boxes': (2, 3, 4),
    'prompt_box_weights': (2, 3),
    'prompt_points': (2, 3, 9, 2),
    'prompt_labels': (2, 3, 9),
    'encoder_input_tokens': (2, 3, 5),
    'decoder_target_tokens': (2, 3, 7),
    'decoder_loss_weights': (2, 3, 7),
    'points': (2, 3, 7, 4, 2),
    'point_weights': (2, 3, 7),
    'boxes': (2, 3, 4),
    'box_weights': (2, 3),
    'masks': (2, 3, 8, 8),
    'mask_weights': (2, 3),
    'presence': (2, 3),
    'presence_weights': (2, 3),
    'objects': (2, 6, 4),
    'object_weights': (2, 6),
    'detection_weights': (2,),
  }
  assert zeros.image.dtype == np.uint8
  assert zeros.decoder_target_tokens.dtype == np.int32
  assert not any(np.any(x) for x in jax.tree.leaves(zeros))


def test_every_row_has_a_known_dimension_dtype_and_meaning():
  names = set(SIZES.table())
  for name, spec in batch_lib.Batch.specs().items():
    assert all(d in names or d.isdigit() for d in spec.dims), name
    assert np.dtype(spec.dtype).name == spec.dtype
    assert spec.meaning
  assert set(SIZES.table().values()) == {2, 28, 3, 5, 7, 4, 6, 8, 9}


def test_shapes_are_those_of_zeros():
  zeros, shapes = batch_lib.Batch.zeros(SIZES), batch_lib.Batch.shapes(SIZES)
  assert jax.tree.structure(zeros) == jax.tree.structure(shapes)
  assert all(
    (a.shape, a.dtype) == (b.shape, b.dtype)
    for a, b in zip(jax.tree.leaves(zeros), jax.tree.leaves(shapes))
  )


def test_batch_goes_through_jit_and_keeps_its_type():
  batch = batch_lib.Batch.zeros(SIZES)
  got = jax.jit(lambda b: dataclasses.replace(b, boxes=b.boxes + 1))(batch)
  assert isinstance(got, batch_lib.Batch)
  got.check(SIZES)
  assert jnp.all(got.boxes == 1)
  assert not jnp.any(got.prompt_boxes)


@pytest.mark.parametrize('field', list(batch_lib.Batch.specs()))
def test_check_names_the_field_expected_and_got(field):
  batch = batch_lib.Batch.zeros(SIZES)
  batch.check(SIZES)
  value = getattr(batch, field)
  for wrong, said in (
    (value[:1], r'got \(1,'),
    (value.astype(np.float64), 'got .* float64'),
    (None, 'got '),
  ):
    with pytest.raises(ValueError, match=rf'Batch\.{field} \[B.*{said}'):
      dataclasses.replace(batch, **{field: wrong}).check(SIZES)


def test_check_refuses_a_list():
  batch = batch_lib.Batch.zeros(SIZES)
  with pytest.raises(ValueError, match=r'Batch\.image_size'):
    dataclasses.replace(batch, image_size=batch.image_size.tolist()).check(
      SIZES
    )


def test_batch_of_other_sizes_is_refused():
  other = dataclasses.replace(SIZES, length=8)
  with pytest.raises(ValueError, match='decoder_target_tokens'):
    batch_lib.Batch.zeros(SIZES).check(other)


def test_absent_output_is_no_leaf():
  assert jax.tree.leaves(batch_lib.Output()) == []
  output = batch_lib.Output(points=jnp.zeros((1, 1, 2, 1, 2)))
  assert len(jax.tree.leaves(output)) == 1
