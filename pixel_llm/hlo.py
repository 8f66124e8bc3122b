# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a compiled program does a run, read from its optimized HLO.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned network
as one layer. Here a loop counts as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_WIDTHS = {'pred': 1, 'token': 0, 'opaque': 0}
_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
)
# Move nothing by themselves; what is in them is counted on its own.
_FREE = {
  'after-all',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'get-tuple-element',
  'iota',
  'optimization-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
  'while',
}
# Products of [queries, keys] by depth in the kernels of JAX's flash attention
# that do not say what they cost.
_KERNELS = {'flash_mha_bwd_dq': 3, 'flash_mha_bwd_dkv': 4}

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_INSTRUCTION = re.compile(
  r'\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$'
)
_ARRAY = re.compile(r'\b([a-z][a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type: its dtype, dimensions and where it lies."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool

  @property
  def bytes(self) -> int:
    """Without the padding of its layout."""
    bits = re.search(r'\d+', self.dtype)
    width = _WIDTHS.get(self.dtype, int(bits[0]) / 8 if bits else 0)
    return math.ceil(math.prod(self.dims) * width)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the program.
    opcode: such as `dot`.
    arrays: what it gives, tuples flattened.
    operands: names.
    rest: the line from its operands on.
    root: whether the computation gives it.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str
  root: bool

  @property
  def source(self) -> str:
    """Path of the JAX operation that it comes from, or nothing.

    Of several that were merged, the first; without the function and the words
    that all paths have.
    """
    found = re.search(r'op_name="(?:jit\(\w+\)/)?\(?([^":]*)', self.rest)
    path = found[1] if found else ''
    return re.sub(r'PixelLLM/PixelLLM\.|while/body/|closed_call/', '', path)

  def called(self, *keys: str) -> list[str]:
    """Names of the computations in these attributes."""
    names = []
    for key in keys:
      for found in re.findall(rf'\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.rest):
        names += re.findall(r'%?([\w.\-]+)', found)
    return names


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind and size in a run.

  Attributes:
    kind: such as `all-gather`.
    devices: that take part in one.
    bytes: of the whole array that one gathers, reduces or sends.
    count: how often a run does it.
    sent: bytes that a device sends in all of them, by the best algorithm.
    source: where the first comes from.
  """

  kind: str
  devices: int
  bytes: int
  count: float
  sent: float
  source: str


@dataclasses.dataclass(frozen=True)
class Large:
  """An array that a program holds at some time."""

  bytes: int
  shape: str
  source: str


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one device does in a run.

  Attributes:
    flops: of products and convolutions; a multiplication and an addition each.
    bytes: that operations read from and write to the device's memory.
    collectives: what is exchanged, the most bytes first.
    largest: the largest arrays, beside arguments.
    uncounted: kernels of unknown cost.
  """

  flops: float
  bytes: float
  collectives: tuple[Collective, ...]
  largest: tuple[Large, ...]
  uncounted: tuple[str, ...]


def cost(text: str) -> Cost:
  """Counts a program.

  Args:
    text: `jax.stages.Compiled.as_text()`.
  """
  return _Program(text).cost()


class _Program:
  """The computations of a program, and counters of a run."""

  def __init__(self, text: str):
    self._computations: dict[str, dict[str, Instruction]] = {}
    self._entry, current = '', None
    for line in text.splitlines():
      if line.startswith('}'):
        current = None
      elif current is not None:
        if parsed := _instruction(line):
          current[parsed.name] = parsed
      elif found := _COMPUTATION.match(line):
        current = self._computations[found[2]] = {}
        if found[1]:
          self._entry = found[2]

  def cost(self) -> Cost:
    flops, moved = 0.0, 0.0
    groups: dict[tuple, list] = {}
    largest: dict[tuple, Large] = {}
    unknown, seen = set(), set()
    for computation, line, times, fused in self._run(self._entry, 1.0, False):
      arrays = self._computations[computation]
      found = _flops(line, arrays)
      if found is None:
        unknown.add(line.name.split('.')[0])
      flops += times * (found or 0)
      kind = _kind(line, computation)
      # What XLA spreads over several operations, so that others run between
      # them, stands in each of them.
      channel = re.search(r'channel_id=(\d+)', line.rest)
      if kind and not (fused and channel and channel[1] in seen):
        seen.add(channel[1] if channel else '')
        size, devices, sent = _exchange(kind, line, arrays)
        key = kind, devices, size
        group = groups.setdefault(key, [0.0, 0.0, line.source])
        group[0] += times
        group[1] += times * sent
      if not fused:
        moved += times * self._moved(line, arrays)
        if line.opcode not in _FREE:
          for array in line.arrays:
            key = array.dtype, array.dims
            if not array.on_chip and key not in largest:
              shape = f'{array.dtype}[{",".join(map(str, array.dims))}]'
              largest[key] = Large(array.bytes, shape, line.source)
    collectives = [Collective(*k, *v) for k, v in groups.items()]
    return Cost(
      flops,
      moved,
      tuple(sorted(collectives, key=lambda c: -c.sent)),
      tuple(sorted(largest.values(), key=lambda x: -x.bytes)[:8]),
      tuple(sorted(unknown)),
    )

  def _run(
    self, name: str, times: float, fused: bool
  ) -> Iterator[tuple[str, Instruction, float, bool]]:
    """(computation, instruction, how often, in a fusion) of all that runs."""
    for line in self._computations[name].values():
      yield name, line, times, fused
      if line.opcode == 'while':
        count = times * self._trips(name, line)
        for body in line.called('body'):
          yield from self._run(body, count, fused)
      elif line.opcode == 'fusion':
        for body in line.called('calls'):
          yield from self._run(body, times, True)
      elif line.opcode in ('call', 'async-start'):
        for body in line.called('to_apply', 'calls', 'called_computations'):
          yield from self._run(body, times, fused)
      elif line.opcode == 'conditional':
        # One of them runs; on a device the branches are of one cost or none.
        for body in line.called(
          'branch_computations', 'true_computation', 'false_computation'
        ):
          yield from self._run(body, times, fused)

  def _trips(self, computation: str, loop: Instruction) -> float:
    """How often a loop runs; at most, where its end depends on data."""
    known = re.search(r'known_trip_count\D*(\d+)', loop.rest)
    if known:
      return float(known[1])
    condition = self._computations[loop.called('condition')[0]]
    body = self._computations[loop.called('body')[0]]
    outer = self._computations[computation]
    trips = []
    # A comparison may be fused: its operands are then those of the fusion.
    for line in condition.values():
      limits = [_number(condition.get(o)) for o in line.operands]
      places = [_place(condition.get(o)) for o in line.operands]
      if line.opcode not in ('compare', 'fusion') or len(limits) != 2:
        continue
      limit = next((n for n in limits if n is not None), None)
      place = next((p for p in places if p is not None), None)
      if limit is None or place is None:
        continue
      step = _step(body, _element(body, None, place))
      first = _number(_element(outer, loop.operands[0], place)) or 0
      trips.append(max(0.0, math.ceil((limit - first) / step)))
    return min(trips, default=1.0)

  def _moved(self, line: Instruction, arrays: dict[str, Instruction]) -> float:
    """Bytes of the device's memory that an operation reads and writes."""
    if line.opcode in _FREE or line.opcode.endswith('-done'):
      return 0.0
    given = [a.bytes for a in line.arrays if not a.on_chip]
    if line.opcode in ('copy-start', 'slice-start'):
      # The destination, the source and a mark. A slice reads what it writes.
      to, source = line.arrays[:2]
      smaller = min(to.bytes, source.bytes)
      return float(smaller * ((not to.on_chip) + (not source.on_chip)))
    taken = [arrays[o] for o in line.operands if o in arrays]
    if line.opcode in ('dynamic-slice', 'slice', 'gather'):
      return 2.0 * sum(given)
    if line.opcode in ('dynamic-update-slice', 'scatter'):
      return 2.0 * _hbm(taken[1 if line.opcode.startswith('dyn') else -1])
    body = {}
    if line.opcode == 'fusion':
      body = self._computations[line.called('calls')[0]]
      given = [self._written(line, body)]
    total = float(sum(given))
    for i, operand in enumerate(taken):
      total += min(_hbm(operand), self._read(body, i, _hbm(operand)))
    return total

  def _read(
    self, body: dict[str, Instruction], index: int, whole: float
  ) -> float:
    """Bytes of its operand that a fusion reads: of what it slices, the slices.

    Args:
      body: of the fusion.
      index: of the operand.
      whole: bytes of all of it.
    """
    names = {
      line.name
      for line in body.values()
      if line.opcode == 'parameter' and line.rest.startswith(f'{index})')
    }
    total = 0.0 if names else whole
    for line in body.values():
      for i in (i for i, o in enumerate(line.operands) if o in names):
        if line.opcode == 'bitcast':
          names.add(line.name)
        elif line.opcode == 'fusion':
          inner = self._computations[line.called('calls')[0]]
          total += self._read(inner, i, whole)
        elif i == 0 and line.opcode in ('dynamic-slice', 'slice', 'gather'):
          total += sum(a.bytes for a in line.arrays)
        elif i or line.opcode != 'dynamic-update-slice':
          return whole
    return min(total, whole)

  def _written(
    self, fusion: Instruction, body: dict[str, Instruction]
  ) -> float:
    """Bytes that a fusion writes: of what it updates in place, the part."""
    root = next(line for line in body.values() if line.root)
    parts = root.operands if root.opcode == 'tuple' else (root.name,)
    total = 0.0
    for given, part in zip(fusion.arrays, parts):
      line = body.get(part)
      while line and line.opcode in ('bitcast', 'copy', 'convert'):
        line = body.get(line.operands[0])
      if given.on_chip:
        continue
      if line and line.opcode == 'fusion' and len(line.arrays) == 1:
        inner = self._computations[line.called('calls')[0]]
        total += min(given.bytes, self._written(line, inner))
      elif line and line.opcode == 'dynamic-update-slice':
        total += sum(a.bytes for a in body[line.operands[1]].arrays)
      else:
        total += given.bytes
    return total


def _instruction(line: str) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  root, name, given, opcode, rest = found.groups()
  end = rest.find(')')
  # Where operands come with their types, these may have parentheses.
  if '[' in rest[:end]:
    end = rest.find('), ') if '), ' in rest else len(rest)
  operands = re.findall(r'%([\w.\-]+)', rest[:end])
  return Instruction(
    name, opcode, _arrays(given), tuple(operands), rest, bool(root)
  )


def _arrays(text: str) -> tuple[Array, ...]:
  return tuple(
    Array(
      dtype,
      tuple(int(d) for d in dims.split(',') if d),
      bool(re.search(r'S\([1-9]', layout)),
    )
    for dtype, dims, layout in _ARRAY.findall(text)
  )


def _hbm(line: Instruction) -> float:
  return float(sum(a.bytes for a in line.arrays if not a.on_chip))


def _flops(line: Instruction, arrays: dict[str, Instruction]) -> float | None:
  """Of a product or convolution, else 0; None if a kernel does not say."""
  if line.opcode == 'dot':
    left = arrays[line.operands[0]].arrays[0].dims
    across = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line.rest)
    summed = [left[int(i)] for i in across[1].split(',') if i] if across else []
    return 2.0 * math.prod(line.arrays[0].dims) * math.prod(summed)
  if line.opcode == 'convolution':
    return _convolution(line, arrays)
  if line.opcode != 'custom-call':
    return 0.0
  said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', line.rest)
  if said:
    return float(said[1])
  if 'custom_call_target="tpu_custom_call"' not in line.rest:
    # A CPU's own products, by oneDNN or Eigen.
    return None if 'matmul' in line.rest.split('metadata')[0] else 0.0
  for name, products in _KERNELS.items():
    if line.name.startswith(name + '_'):
      query, key = (arrays[o].arrays[0].dims for o in line.operands[:2])
      return 2.0 * products * math.prod(query) * key[-2]
  return None


def _convolution(line: Instruction, arrays: dict[str, Instruction]) -> float:
  """Products of places that are in the input and between no dilated ones.

  TPUs compute batched products as convolutions, most of whose window is void.
  """
  dims = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', line.rest)
  assert dims is not None
  given, kernel, out = dims.groups()
  left, right = (arrays[o].arrays[0].dims for o in line.operands[:2])
  result = line.arrays[0].dims
  window = dict(re.findall(r'(\w+)=([\w\-]+)', _window(line.rest)))
  axes = [c for c in given if c.isdigit()]
  pairs = 1.0
  for i, axis in enumerate(axes):

    def number(key, default, i=i):
      return int(window[key].split('x')[i]) if key in window else default

    low = (
      int(window['pad'].split('x')[i].split('_')[0]) if 'pad' in window else 0
    )
    stride, grown = number('stride', 1), number('lhs_dilate', 1)
    spread = number('rhs_dilate', 1)
    places = (left[given.index(axis)] - 1) * grown + 1
    pairs *= sum(
      0 <= (at := o * stride + k * spread - low) < places and at % grown == 0
      for o in range(result[out.index(axis)])
      for k in range(right[kernel.index(axis)])
    )
  batch, features = result[out.index('b')], result[out.index('f')]
  summed = right[kernel.index('i')]
  groups = re.search(r'batch_group_count=(\d+)', line.rest)
  batch = batch // int(groups[1]) if groups else batch
  return 2.0 * pairs * batch * features * summed


def _window(rest: str) -> str:
  found = re.search(r'window=\{([^}]*)\}', rest)
  return found[1] if found else ''


def _kind(line: Instruction, computation: str) -> str | None:
  opcode = line.opcode.removesuffix('-start')
  if opcode not in _COLLECTIVES:
    return None
  # A TPU's name for what follows an all-reduce of which each keeps a part.
  if opcode == 'all-reduce' and 'all-reduce-scatter' in computation:
    return 'reduce-scatter'
  return opcode


def _exchange(
  kind: str, line: Instruction, arrays: dict[str, Instruction]
) -> tuple[int, int, float]:
  """(bytes of the whole array, devices of a group, bytes sent by each)."""
  devices = _devices(line.rest)
  taken = [arrays[o] for o in line.operands if o in arrays]
  size = sum(a.bytes for t in taken for a in t.arrays)
  if kind == 'collective-permute':
    return size, 2, float(size)
  if kind == 'all-gather':
    size *= devices
  part = (devices - 1) / devices
  return size, devices, size * part * (2 if kind == 'all-reduce' else 1)


def _devices(rest: str) -> int:
  """Of one group, in any of the ways that HLO writes groups."""
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', rest)
  if mesh:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', rest)
  if iota:
    return int(iota[2])
  first = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  return len(first[1].split(',')) if first else 1


def _number(line: Instruction | None) -> float | None:
  if line is None or line.opcode != 'constant':
    return None
  found = re.match(r'(-?\d+)\)', line.rest)
  return float(found[1]) if found else None


def _place(line: Instruction | None) -> int | None:
  if line is None or line.opcode != 'get-tuple-element':
    return None
  found = re.search(r'index=(\d+)', line.rest)
  return int(found[1]) if found else None


def _element(
  lines: dict[str, Instruction], name: str | None, place: int
) -> Instruction | None:
  """What is at a place of a tuple, the computation's own if it has no name."""
  line = lines.get(name or '') or next(x for x in lines.values() if x.root)
  if line.opcode != 'tuple' or place >= len(line.operands):
    return None
  found = lines.get(line.operands[place])
  while found and found.opcode in ('copy', 'bitcast'):
    found = lines.get(found.operands[0])
  return found


def _step(body: dict[str, Instruction], line: Instruction | None) -> float:
  """What a loop adds to its counter."""
  if line is None or line.opcode != 'add':
    return 1.0
  numbers = (_number(body.get(o)) for o in line.operands)
  return next((n for n in numbers if n), 1.0)


def by_kind(collectives: tuple[Collective, ...]) -> dict[str, dict[str, float]]:
  """Kind -> count and bytes that a device sends."""
  table: dict[str, dict[str, float]] = collections.defaultdict(
    lambda: {'count': 0.0, 'bytes': 0.0}
  )
  for c in collectives:
    table[c.kind]['count'] += c.count
    table[c.kind]['bytes'] += c.sent
  return dict(table)
