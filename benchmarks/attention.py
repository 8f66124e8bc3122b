# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""EVA-02's blocks compiled for a TPU: fused attention against XLA's.

Compiles the gradient of some blocks of EVA-02-L at 384 px in bfloat16 for a
TPU topology, on any machine, and prints what XLA's compiler says of both.

Needs `pip install libtpu` beside pixel_llm.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import topologies

from pixel_llm import sharding
from pixel_llm.model import eva, layers


def main() -> int:
  """Prints one line a kind of attention and remat."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--model', type=int, default=2, help='of the mesh')
  parser.add_argument('--batch', type=int, default=16, help='images in all')
  parser.add_argument('--depth', type=int, default=4, help='blocks')
  args = parser.parse_args()
  devices = topologies.get_topology_desc(
    topology_name=args.topology, platform='tpu'
  ).devices
  mesh = sharding.make_mesh(
    sharding.MeshConfig(model=args.model), list(devices)
  )
  print(
    f'{args.topology}, mesh {dict(mesh.shape)}, batch {args.batch}, '
    f'{args.depth} blocks; jax {jax.__version__}; a chip:'
  )
  fits = layers.fits_flash
  for remat in ('none', 'full'):
    for name, used in (('fused', fits), ('XLA', lambda *x: False)):
      layers.fits_flash = used
      start = time.perf_counter()
      compiled = _compile(args, mesh, remat)
      seconds = time.perf_counter() - start
      text = compiled.as_text()
      print(
        f'remat {remat}, {name:5}: temporaries '
        f'{compiled.memory_analysis().temp_size_in_bytes / 2**30:.3f} GiB, '
        f'{compiled.cost_analysis()["bytes accessed"] / 1e9:.2f} GB moved, '
        f'{text.count("tpu_custom_call")} kernels, '
        f'{text.count("all-reduce(")} all-reduces, '
        f'{text.count("all-gather(")} all-gathers; compiled in {seconds:.0f} s',
        flush=True,
      )
  return 0


def _compile(args, mesh, remat):
  config = dataclasses.replace(
    eva.EvaConfig(), dtype='bfloat16', depth=args.depth, remat=remat
  )
  model = eva.Eva(config)
  shape = (384, 384, 3)
  boxed = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), 'float32')
  )
  shardings = sharding.state_shardings(boxed, mesh, sharding.RULES)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    shardings,
  )
  image = jax.ShapeDtypeStruct(
    (args.batch, *shape), 'float32', sharding=sharding.batch_sharding(mesh)
  )

  def loss(params, image):
    y = jnp.asarray(model.apply(params, image), jnp.float32)
    return jnp.sum(jnp.square(y))

  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    return jax.jit(jax.grad(loss)).lower(params, image).compile()


if __name__ == '__main__':
  sys.exit(main())
