# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs and collectives of programs whose counts are known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from pixel_llm import hlo, sharding
from pixel_llm.model import eva


def compiled(function, *args, **jit):
  return hlo.cost(jax.jit(function, **jit).lower(*args).compile().as_text())


def test_a_scanned_network_counts_as_the_unrolled():
  config = dataclasses.replace(tiny.model_config().eva, depth=5)
  image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  flops = []
  for unroll in (1, 5):
    model = eva.Eva(dataclasses.replace(config, scan_unroll=unroll))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
    loss = lambda p, x, model=model: jnp.sum(model.apply(p, x) ** 2)
    flops.append(compiled(jax.grad(loss), params, image).flops)
  assert flops[0] == pytest.approx(flops[1], rel=0.03)


def test_loops_in_loops_multiply():
  def function(x, w):
    inner = lambda x, _: (x @ w, None)
    outer = lambda x, _: (jax.lax.scan(inner, x, length=3)[0] + 1, None)
    return jax.lax.scan(outer, x, length=4)[0]

  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  w = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  assert compiled(function, x, w).flops == 12 * 2 * 8 * 16 * 16


def test_collectives_of_a_sharded_product():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, model=2))

  def shape(dims, *axes):
    spec = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=spec)

  whole = sharding.replicated(mesh)
  product = lambda x, w: x @ w
  summed = compiled(
    product,
    shape((16, 64), None, 'data'),
    shape((64, 32), 'data', None),
    out_shardings=whole,
  )
  (c,) = summed.collectives
  size = 16 * 32 * 4
  assert (c.kind, c.devices, c.bytes, c.count) == ('all-reduce', 4, size, 1)
  assert c.sent == 2 * size * 3 / 4
  assert summed.flops == 2 * 16 * 64 * 32 / 4

  (c,) = compiled(
    lambda x: x * 2, shape((16, 64), 'model'), out_shardings=whole
  ).collectives
  size = 16 * 64 * 4
  assert (c.kind, c.devices, c.bytes, c.count) == ('all-gather', 2, size, 1)
  assert c.sent == size / 2


# As a TPU's compiler writes it: no count beside the loop, a batched product as
# a convolution whose window is void but for one place in eight, groups as axes
# of a mesh, memory of the chip as S(1), and a stack read a layer at a time.
TPU = """\
HloModule jit_f, is_scheduled=true

%cond (p: (s32[], f32[4,6,6])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4,6,6]{2,1,0:T(8,128)S(1)}) parameter(0)
  %n = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%slice (a: f32[6,16,16], b: s32[]) -> f32[16,16] {
  %a = f32[6,16,16]{2,1,0:T(8,128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %s = f32[1,16,16]{2,1,0:T(8,128)} dynamic-slice(%a, %b, %b, %b), x={1}
}

%body (p.1: (s32[], f32[6,16,16])) -> (s32[], f32[6,16,16]) {
  %p.1 = (s32[]{:T(128)}, f32[6,16,16]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %w = f32[6,16,16]{2,1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i.1, %two)
  %layer = f32[16,16]{1,0:T(8,128)S(1)} fusion(%w, %i.1), kind=kLoop, calls=%slice
  %r = f32[16,16]{1,0:T(8,128)S(1)} all-reduce(%layer), channel_id=1, replica_groups=mesh['data'=4,'model'=2] {'data'}, to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, f32[6,16,16]{2,1,0:T(8,128)}) tuple(%next, %w)
}

ENTRY %main (q: bf16[8,6,16], k: bf16[8,16,5]) -> bf16[8,6,5] {
  %q = bf16[8,6,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[8,16,5]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %st = f32[6,16,16]{2,1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %init = (s32[]{:T(128)}, f32[6,16,16]{2,1,0:T(8,128)}) tuple(%zero, %st)
  %loop = (s32[]{:T(128)}, f32[6,16,16]{2,1,0:T(8,128)}) while(%init), condition=%cond, body=%body
  ROOT %y = bf16[8,6,5]{2,1,0:T(8,128)(2,1)S(1)} convolution(%q, %k), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501


def test_a_tpus_program():
  cost = hlo.cost(TPU)
  assert cost.flops == 2 * 8 * 6 * 16 * 5
  (c,) = cost.collectives
  assert (c.kind, c.devices, c.bytes, c.count) == ('all-reduce', 4, 1024, 6)
  # The product reads its operands; each of six runs reads a layer, not all,
  # and counts.
  assert cost.bytes == 2 * 8 * 16 * (6 + 5) + 6 * (1024 + 4 + 12)


@pytest.mark.parametrize(
  'groups, devices',
  [
    ('{{0,1,2},{3,4,5}}', 3),
    ('[2,4]<=[8]', 4),
    ("mesh['a'=8,'b'=2] {'a','b'}", 16),
    ("mesh['a'=8] {'a':(2)4}", 4),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", 2),
  ],
)
def test_groups(groups, devices):
  text = f"""\
ENTRY %main (x: f32[10]) -> f32[10] {{
  %x = f32[10]{{0}} parameter(0)
  ROOT %y = f32[10]{{0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}
}}
"""  # noqa: E501
  assert hlo.cost(text).collectives[0].devices == devices


def test_what_a_kernel_does_not_say_is_listed():
  kernel = 'custom_call_target="tpu_custom_call"'
  text = f"""\
ENTRY %main (x: bf16[2,3,256,64]) -> bf16[2,3,256,64] {{
  %x = bf16[2,3,256,64]{{3,2,1,0}} parameter(0)
  %a = bf16[2,3,256,64]{{3,2,1,0}} custom-call(%x), {kernel}, backend_config={{"cost_estimate":{{"flops":"12"}}}}
  %flash_mha_bwd_dq_block.1 = bf16[2,3,256,64]{{3,2,1,0}} custom-call(%x, %x), {kernel}
  ROOT %mine.3 = bf16[2,3,256,64]{{3,2,1,0}} custom-call(%x), {kernel}
}}
"""  # noqa: E501
  cost = hlo.cost(text)
  assert cost.flops == 12 + 3 * 2 * 2 * 3 * 256 * 256 * 64
  assert cost.uncounted == ('mine',)
