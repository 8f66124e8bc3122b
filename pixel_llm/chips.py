# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What devices can do at most, and what a program asks of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What is published of a chip.

  Attributes:
    hbm: bytes of memory.
    flops: peak a second in bfloat16, of dense products.
    bandwidth: bytes a second to and from the memory.
    links: bytes a second that it sends to other chips on all its links, half
      of the bidirectional number.
    dimensions: of the torus; 0 for none.
  """

  hbm: float
  flops: float
  bandwidth: float
  links: float
  dimensions: int = 0


# By the names of topologies. Source: Google Cloud's documentation of each TPU,
# "System architecture".
CHIPS = {
  'v4': Chip(32 * _GIB, 275e12, 1228e9, 300e9, 3),
  'v5e': Chip(16 * _GIB, 197e12, 819e9, 200e9, 2),
  'v5p': Chip(95 * _GIB, 459e12, 2765e9, 600e9, 3),
  'v6e': Chip(32 * _GIB, 918e12, 1638e9, 400e9, 2),
}
# By a part of `Device.device_kind`, the first that is found. Source: NVIDIA's
# data sheets; FLOPs are without sparsity.
_KINDS = {
  'TPU v4': CHIPS['v4'],
  'TPU v5 lite': CHIPS['v5e'],
  'TPU v5e': CHIPS['v5e'],
  'TPU v5': CHIPS['v5p'],
  'TPU v6': CHIPS['v6e'],
  'A100-SXM4-40GB': Chip(40e9, 312e12, 1555e9, 300e9),
  'A100-PCIE-40GB': Chip(40e9, 312e12, 1555e9, 300e9),
  'A100': Chip(80e9, 312e12, 2039e9, 300e9),
  'H100 PCIe': Chip(80e9, 756e12, 2000e9, 300e9),
  'H100 NVL': Chip(94e9, 835e12, 3900e9, 300e9),
  'H100': Chip(80e9, 989e12, 3350e9, 450e9),
  'H200 NVL': Chip(141e9, 835e12, 4800e9, 450e9),
  'H200': Chip(141e9, 989e12, 4800e9, 450e9),
}


def of_kind(kind: str) -> Chip | None:
  """The chip of a `Device.device_kind`; None if it is not known.

  A v4 chip is one device, as JAX has it but for single cores.
  """
  return next((chip for part, chip in _KINDS.items() if part in kind), None)


def model_flops(jaxpr: Any) -> float:
  """FLOPs of the products and convolutions of a program, all devices'.

  Fused kernels count as what they compute without fusing, and loops as often
  as they run, which `cost_analysis` of a compiled program counts once; a loop
  whose end depends on data counts once here, too.

  Args:
    jaxpr: `jax.jit(f).trace(...).jaxpr` or `jax.make_jaxpr(f)(...)`, or one
      without constants.
  """
  total = 0.0
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      (summed, _), _ = params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      size = math.prod(left[i] for i in summed)
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * size
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      out = params['dimension_numbers'].rhs_spec[0]
      size = math.prod(kernel) / kernel[out]
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * size
    elif name == 'cond':
      total += max(model_flops(b) for b in params['branches'])
    elif name != 'pallas_call':
      inner = sum(
        model_flops(p)
        for p in params.values()
        if hasattr(getattr(p, 'jaxpr', p), 'eqns')
      )
      total += inner * params.get('length', 1) if name == 'scan' else inner
  return total
