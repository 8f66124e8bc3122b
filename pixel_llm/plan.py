# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a run takes on a TPU: its programs, compiled on any machine.

The training step and what evaluation runs are compiled ahead of time, as the
loop and the evaluator compile them, for chips that are named and not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import pickle
import re
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib
from flax import linen as nn
from jax.experimental import serialize_executable, topologies
from jax.experimental.compilation_cache import compilation_cache

from pixel_llm import batch as batch_lib
from pixel_llm import chips, files, hlo, sharding
from pixel_llm import config as config_lib
from pixel_llm.model import pixel_llm
from pixel_llm.tasks import task as task_lib
from pixel_llm.train import experiment, parameters, telemetry
from pixel_llm.train import optimizer as optimizer_lib
from pixel_llm.train import state as state_lib
from pixel_llm.train import step as step_lib

_GIB = 2**30
_PARTS = (
  'eva',
  'sam',
  'extractor',
  't5',
  'regression',
  'region',
  'mask',
  'presence',
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device, by class.

  Attributes:
    frozen: parameters that are not trained; without training, all of them.
    trainable: parameters that are.
    optimizer: its state.
    batch: inputs of the step.
    padding: of the layouts of these, less what the program leaves out.
    temporaries: activations and all else that lives during a run.
    outputs: what takes no input's place.
    code: the program.
  """

  frozen: int = 0
  trainable: int = 0
  optimizer: int = 0
  batch: int = 0
  padding: int = 0
  temporaries: int = 0
  outputs: int = 0
  code: int = 0

  @property
  def total(self) -> int:
    """All of it at once."""
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program; numbers are of one device and one run.

  Attributes:
    name: `train/STREAM`, `decode/TASK` or `eval/TASK`.
    memory: at its peak.
    limit: bytes that the compiler may use; None is unknown.
    fits: whether it compiles within them.
    refusal: what the compiler says where it does not.
    cost: what it does; None if it does not compile or is not read.
    unread: why a program that compiled is not read.
    model_flops: of the network without what remat computes again.
    seconds: by the peak of each: `compute`, `memory`, `links`, and `roofline`,
      the longest of them; none without a known chip.
    mfu: share of the peak that `model_flops` in `roofline` seconds are.
    xla_seconds: the compiler's own estimate; None where it is not usable.
    compile_seconds: to trace and compile.
    peak_rss: bytes of the process until then.
    advice: what to change.
  """

  name: str
  memory: Memory
  limit: float | None
  fits: bool
  refusal: str
  cost: hlo.Cost | None
  unread: str
  model_flops: float
  seconds: dict[str, float]
  mfu: float | None
  xla_seconds: float | None
  compile_seconds: float
  peak_rss: int
  advice: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The programs of a config on a topology."""

  topology: str
  mesh: dict[str, int]
  jax: str
  compiler: str
  programs: tuple[Program, ...]

  def to_json(self) -> dict[str, Any]:
    """As `--json` prints it."""
    return dataclasses.asdict(self)


def make(
  config: experiment.ExperimentConfig,
  topology: str,
  *,
  train: bool = True,
  decode: bool = False,
  read: bool = False,
  save: str | None = None,
) -> Plan:
  """Compiles the programs of a config.

  Args:
    config: the experiment.
    topology: chips and their grid such as `v5e:8x8`, or `cpu:8`.
    train: the training step of every stream.
    decode: `tasks.task.generate` of every evaluation task.
    read: `tasks.task.read` of every evaluation task.
    save: a file for the executables, which `load` reads.

  Raises:
    ValueError: no such topology, it or the batch does not fit the mesh,
      libtpu is missing, or what is saved would not fit the run.
  """
  if save and config.data.image_maps:
    raise ValueError(
      '--save: a step is compiled without data.image_maps; train compiles one '
      'that reads them.'
    )
  devices = topology_devices(topology)
  mesh = sharding.make_mesh(config.mesh, devices)
  chip = chips.CHIPS.get(topology.split(':')[0])
  executables: dict[str, Any] = {}
  programs = []
  for name, lower, classes, flops in _programs(
    config, mesh, train, decode, read
  ):
    with _anew() if save else contextlib.nullcontext():
      program, compiled = _compile(
        name, lower, classes, flops, chip, config, mesh
      )
    programs.append(program)
    if save and compiled is not None:
      executables[name] = serialize_executable.serialize(compiled)
  version = ' '.join(devices[0].client.platform_version.split('\n'))
  if save:
    unfit = [p.name for p in programs if not p.fits]
    if unfit:
      raise ValueError(
        f'--save {save}: {", ".join(unfit)} does not fit; nothing is saved. '
        + ' '.join(a for p in programs for a in p.advice)
      )
    kept = {
      'config': config_lib.to_dict(config),
      'topology': topology,
      'devices': len(devices),
      'jax': jax.__version__,
      'compiler': version,
      'executables': executables,
    }
    files.write(save, pickle.dumps(kept))
  return Plan(
    topology, dict(mesh.shape), jax.__version__, version, tuple(programs)
  )


@contextlib.contextmanager
def _anew() -> Iterator[None]:
  """Nothing comes of JAX's cache; a CPU's program from there saves broken."""
  before = jax.config.jax_enable_compilation_cache  # pyright: ignore
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def load(
  path: str, config: experiment.ExperimentConfig, devices: list | None = None
) -> dict[str, Callable[..., Any]]:
  """The executables of `make(save=...)`, on the devices they are for.

  It unpickles the file, so it must be one that you trust.

  Args:
    path: the file.
    config: of the run; it must be that of the file.
    devices: default `jax.devices()`.

  Returns: name of the program -> what `jax.jit` of it would run.

  Raises:
    ValueError: the file is none of `make`, of another config or version, or
      for other devices.
  """
  try:
    kept = pickle.loads(pathlib.Path(path).read_bytes())
    kept['executables'].items()
  except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as e:
    raise ValueError(
      f'{path}: expected what `pixel-llm plan --save` wrote: {e!r}.'
    ) from e
  lines = config_lib.difference(kept['config'], config_lib.to_dict(config))
  if lines:
    raise ValueError(
      f'{path} was compiled for another config (there -> here):\n  '
      + '\n  '.join(lines)
    )
  if kept['jax'] != jax.__version__:
    raise ValueError(
      f'{path} was compiled by jax {kept["jax"]}, this is {jax.__version__}.'
    )
  devices = jax.devices() if devices is None else devices
  if len(devices) != kept['devices']:
    raise ValueError(
      f'{path} was compiled for {kept["topology"]}, {kept["devices"]} devices, '
      f'but there are {len(devices)}.'
    )
  return {
    name: serialize_executable.deserialize_and_load(
      *parts, execution_devices=devices
    )
    for name, parts in kept['executables'].items()
  }


def topology_devices(topology: str) -> list:
  """The devices of a topology, in the order that a mesh takes them.

  Raises:
    ValueError: there is no such, or libtpu is missing.
  """
  kind, _, grid = topology.partition(':')
  known = ', '.join(chips.CHIPS)
  if kind == 'cpu' and grid.isdigit() and int(grid):
    return _cpus(int(grid))
  chip = chips.CHIPS.get(kind)
  if chip is None or not re.fullmatch(r'\d+(x\d+)+', grid):
    raise ValueError(
      f'--topology {topology}: expected KIND:GRID with a kind among {known} '
      'and a grid such as 8x8 (v5e, v6e) or 4x4x4 (v4, v5p), or cpu:N.'
    )
  sides = [int(n) for n in grid.split('x')]
  if len(sides) != chip.dimensions:
    raise ValueError(
      f'--topology {topology}: {kind} is a torus of {chip.dimensions} '
      f'dimensions, expected {kind}:{"x".join(["4"] * chip.dimensions)} or '
      'alike.'
    )
  # A v4 chip is one device, as on a pod; libtpu's default is one a core.
  options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
  try:
    found = topologies.get_topology_desc(
      topology_name=topology, platform='tpu', **options
    )
  except Exception as e:
    if 'not installed' in str(e) or 'cannot open' in str(e):
      raise ValueError(
        f'--topology {topology}: needs the TPU compiler, which runs on any '
        "Linux machine: pip install 'jax[tpu]' (the libtpu of this jax), or "
        'set TPU_LIBRARY_PATH to a libtpu.so; cpu:N needs none.'
      ) from e
    if 'lockfile' in str(e):
      raise ValueError(
        f'--topology {topology}: another process has libtpu, which one at a '
        'time may use; wait for its end.'
      ) from e
    raise ValueError(
      f'--topology {topology}: the TPU compiler refuses it: '
      f'{str(e).splitlines()[0]}'
    ) from e
  return list(found.devices)


def _cpus(count: int) -> list:
  # Has an effect only before the first use of JAX.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', count)
  devices = jax.devices('cpu')
  if len(devices) < count:
    raise ValueError(
      f'--topology cpu:{count}: this process has {len(devices)} devices.'
    )
  return devices[:count]


def _programs(
  config: experiment.ExperimentConfig,
  mesh: jax.sharding.Mesh,
  train: bool,
  decode: bool,
  read: bool,
) -> Iterator[tuple[str, Callable, dict[str, int], float]]:
  """(name, how to lower it, bytes of its inputs, FLOPs of the network)."""
  model = pixel_llm.PixelLLM(config.model)
  init = parameters.init_fn(config)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  mask = optimizer_lib.trainable_mask(config.optimizer, shapes)
  optimizer = optimizer_lib.make(config.optimizer, config.loop.steps, shapes)
  state = state_lib.abstract(init, optimizer, mask, mesh, config.mesh)
  trainable, frozen = state_lib.split(state.params, mask)
  classes = {
    'frozen': _bytes(frozen),
    'trainable': _bytes(trainable),
    'optimizer': _bytes(state.opt_state) + _bytes(state.step),
  }

  def batch(field, shape):
    if shape.batch % mesh.shape['data']:
      raise ValueError(
        f'config {field}.batch = {shape.batch}: expected a multiple of the '
        f'{mesh.shape["data"]} devices along data.'
      )
    where = sharding.batch_sharding(mesh)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      batch_lib.Batch.shapes(config.data.sizes(shape)),
    )

  def lower(function, *args, **jit):
    with sharding.placed(mesh, config.mesh):
      return jax.jit(function, **jit).lower(*args)

  def count(function, *args):
    return chips.model_flops(jax.make_jaxpr(function)(*args)) / mesh.size

  # As `train.loop.Trainer.train` compiles it.
  step = step_lib.make(config, model, mask, optimizer)
  plain = step_lib.make(
    config,
    pixel_llm.PixelLLM(telemetry.without_remat(config.model)),
    mask,
    optimizer,
  )
  for name, stream in config.data.streams.items() if train else ():
    given = batch(f'data.streams.{name}', stream)
    yield (
      f'train/{name}',
      functools.partial(
        lower,
        step,
        state,
        given,
        donate_argnums=0,
      ),
      {**classes, 'batch': _bytes(given)},
      count(plain, state, given),
    )
  # As `train.evaluate.Evaluator` compiles them.
  held = {'frozen': _bytes(state.params)}
  for name, shape in config.eval.tasks.items():
    if not (decode or read):
      break
    sizes = config.data.sizes(shape)
    given = batch(f'eval.tasks.{name}', shape)
    bytes_in = {**held, 'batch': _bytes(given)}
    if decode:
      rows = jax.ShapeDtypeStruct(
        (sizes.batch, sizes.regions),
        'int32',
        sharding=sharding.batch_sharding(mesh),
      )
      decoding = dataclasses.replace(config.eval.decoding, length=sizes.length)
      run = lambda params, batch, rows, decoding=decoding: task_lib.generate(
        model, params, batch, decoding, rows=rows
      )
      yield (
        f'decode/{name}',
        functools.partial(lower, run, state.params, given, rows),
        {**bytes_in, 'batch': bytes_in['batch'] + _bytes(rows)},
        count(run, state.params, given, rows),
      )
    if read:
      run = functools.partial(task_lib.read, model)
      yield (
        f'eval/{name}',
        functools.partial(lower, run, state.params, given),
        bytes_in,
        count(run, state.params, given),
      )


def _bytes(tree: Any) -> int:
  """That a device holds of a tree of `ShapeDtypeStruct`s with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _compile(
  name: str,
  lower: Callable,
  classes: dict[str, int],
  flops: float,
  chip: chips.Chip | None,
  config: experiment.ExperimentConfig,
  mesh: jax.sharding.Mesh,
) -> tuple[Program, Any]:
  """Compiles one, also where the compiler refuses it for its memory."""
  start = time.perf_counter()
  lowered = lower()
  compiled, refusal, limit = None, '', chip and chip.hbm
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    refusal = str(e).splitlines()[0]
  seconds = time.perf_counter() - start
  cost, unread, xla_seconds, times, mfu = None, '', None, {}, None
  if compiled is None:
    held = sum(classes.values())
    memory = Memory(**classes, temporaries=_refused(refusal, held))
    fits = False
  else:
    found = compiled.memory_analysis()
    memory = Memory(
      **classes,
      padding=found.argument_size_in_bytes - sum(classes.values()),
      temporaries=found.temp_size_in_bytes,
      outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
      code=found.generated_code_size_in_bytes,
    )
    fits = chip is None or memory.total <= chip.hbm
    try:
      cost = hlo.cost(compiled.as_text())
    except jax.errors.JaxRuntimeError as e:
      # The program of a newer libtpu may have what this jaxlib does not know.
      unread = (
        f'jaxlib {jaxlib.__version__} cannot read this program of libtpu; '
        "pip install 'jax[tpu]' has the one that it knows: "
        f'{str(e).splitlines()[0]}'
      )
    estimate = (compiled.cost_analysis() or {}).get('optimal_seconds', 0.0)
    xla_seconds = estimate if estimate > 0 and chip else None
    if chip and cost:
      times = {
        'compute': cost.flops / chip.flops,
        'memory': cost.bytes / chip.bandwidth,
        'links': sum(c.sent for c in cost.collectives) / chip.links,
      }
      times['roofline'] = max(times.values())
      mfu = flops / times['roofline'] / chip.flops
  program = Program(
    name=name,
    memory=memory,
    limit=limit,
    fits=fits,
    refusal=refusal,
    cost=cost,
    unread=unread,
    model_flops=flops,
    seconds=times,
    mfu=mfu,
    xla_seconds=xla_seconds,
    compile_seconds=seconds,
    peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    advice=() if fits else _advice(name, memory, config, mesh),
  )
  return program, compiled


def _refused(refusal: str, held: int) -> int:
  """Bytes of temporaries that the TPU compiler has no room for.

  It says either how much they are or how much all is, then what there is.
  """
  sizes = [
    float(n) * 2 ** (10 * ' KMGT'.index(unit))
    for n, unit in re.findall(r'([\d.]+)([KMGT])\b', refusal)
  ]
  most = sizes[0] if sizes else 0.0
  return int(most if 'temporaries' in refusal else max(0.0, most - held))


def _advice(
  name: str,
  memory: Memory,
  config: experiment.ExperimentConfig,
  mesh: jax.sharding.Mesh,
) -> tuple[str, ...]:
  """What makes it smaller, as overrides with what each saves, if known."""
  out = []
  data = mesh.shape['data']
  state = memory.frozen + memory.trainable + memory.optimizer
  if not config.mesh.fsdp and data > 1:
    saved = state * (1 - 1 / data)
    out.append(
      f'--config.mesh.fsdp=True shards what every chip holds whole: up to '
      f'{_size(saved)} less.'
    )
  if config.optimizer.frozen_dtype == 'float32' and memory.frozen:
    out.append(
      '--config.optimizer.frozen_dtype=bfloat16 halves the frozen: up to '
      f'{_size(memory.frozen / 2)} less.'
    )
  parts = {
    n: part for n in _PARTS if (part := getattr(config.model, n)) is not None
  }
  wide = [n for n, p in parts.items() if getattr(p, 'dtype', '') == 'float32']
  if wide:
    out.append(
      ' '.join(f'--config.model.{n}.dtype=bfloat16' for n in wide)
      + ' halves their activations.'
    )
  if name.startswith('train/'):
    kept = [n for n, p in parts.items() if getattr(p, 'remat', '') == 'none']
    if kept:
      out.append(
        ' '.join(f'--config.model.{n}.remat=full' for n in kept)
        + ' keeps the inputs of blocks alone; of parts that are not trained '
        'it changes nothing.'
      )
    stream = name.split('/')[1]
    size = config.data.streams[stream].batch
    if size // 2 % data == 0:
      out.append(
        f'--config.data.streams.{stream}.batch={size // 2} halves the '
        'activations and changes the recipe.'
      )
  heads = config.model.t5.num_heads
  if data % 2 == 0 and heads % (2 * mesh.shape['model']) == 0:
    wider = 2 * mesh.shape['model']
    out.append(
      f'--mesh data={data // 2},model={wider} shards kernels and heads over '
      f'{wider} chips.'
    )
  return tuple(out)


def _size(size: float) -> str:
  return f'{size / _GIB:.2f} GiB'


def text(plan: Plan) -> str:
  """For a terminal."""
  mesh = ' x '.join(f'{k} {v}' for k, v in plan.mesh.items())
  lines = [f'{plan.topology}, mesh {mesh}; jax {plan.jax}, {plan.compiler}']
  for p in plan.programs:
    lines += ['', *_program_lines(p)]
  return '\n'.join(lines)


def _program_lines(p: Program) -> Iterator[str]:
  yield f'{p.name}, a chip and run:'
  for field in dataclasses.fields(p.memory):
    yield f'  {field.name:12} {_size(getattr(p.memory, field.name)):>12}'
  of = ''
  if p.limit:
    left = p.limit - p.memory.total
    of = f' of {_size(p.limit)}, {_size(abs(left))} ' + (
      'to spare' if left >= 0 else 'too much'
    )
  yield f'  {"all":12} {_size(p.memory.total):>12}{of}'
  if p.refusal:
    yield f'  does not fit: {p.refusal}'
  if p.unread:
    yield (
      f'  {p.model_flops / 1e12:.3f} TFLOP of the network; the rest is not '
      f'known: {p.unread}'
    )
  if p.cost:
    yield from _cost_lines(p, p.cost)
  yield (
    f'  compiled in {p.compile_seconds:.0f} s, at most '
    f'{_size(p.peak_rss)} of memory'
  )
  for advice in p.advice:
    yield f'  try {advice}'


def _cost_lines(p: Program, cost: hlo.Cost) -> Iterator[str]:
  yield (
    f'  {cost.flops / 1e12:.3f} TFLOP ({p.model_flops / 1e12:.3f} of the '
    f'network), {cost.bytes / 1e9:.2f} GB moved'
  )
  for kind, of in hlo.by_kind(cost.collectives).items():
    yield f'  {kind}: {of["count"]:.0f}, {of["bytes"] / 1e9:.3f} GB sent'
  for c in cost.collectives[:3]:
    yield (
      f'    {c.kind} of {c.bytes / 2**20:.1f} MiB over {c.devices}, '
      f'{c.count:.0f} times: {c.source}'
    )
  yield '  largest arrays:'
  for x in cost.largest[:5]:
    yield f'    {x.bytes / 2**20:8.1f} MiB {x.shape} {x.source}'
  if cost.uncounted:
    yield f'  of unknown cost: {", ".join(cost.uncounted)}'
  if p.seconds:
    times = ', '.join(f'{k} {v:.4f} s' for k, v in p.seconds.items())
    own = 'none' if p.xla_seconds is None else f'{p.xla_seconds:.4f} s'
    yield f"  at the peaks: {times}; XLA's estimate: {own}"
    yield f'  MFU at most {p.mfu:.1%}'


def to_json(plan: Plan) -> str:
  """One line."""
  return json.dumps(plan.to_json())
