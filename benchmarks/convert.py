# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of `pixel-llm import` and `export` of a large T5.

Writes a made-up checkpoint by Hugging Face's names, in shards as the hub has
them, imports it as Orbax parameters and exports these to T5X and back to
Hugging Face's layout, each in a process of its own.

  python benchmarks/convert.py --size xl --dtype bfloat16 --dir runs/convert
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
import zlib

import numpy as np

from pixel_llm import weights
from pixel_llm.checkpoints import mapping, t5_names
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import BFLOAT16, Tensor
from pixel_llm.model import t5

_SHARD_BYTES = 2 << 30


def main() -> None:
  """Makes, converts and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', choices=sorted(t5.SIZES), default='large')
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='bfloat16'
  )
  parser.add_argument('--dir', required=True, help='to make, for the files')
  args = parser.parse_args()
  root = pathlib.Path(args.dir)
  if root.exists():
    parser.error(f'--dir {root}: exists; expected a folder to make')
  total, largest = _make(root / 'source', t5.SIZES[args.size], args.dtype)
  print(
    f'T5 1.1 {args.size}, {args.dtype}: {total / 2**30:.2f} GiB, largest '
    f'parameter (a stack of layers) {largest / 2**30:.2f} GiB; '
    f'{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, '
    f'Python {platform.python_version()}'
  )
  orbax = root / 'orbax'
  common = ['--dtype', args.dtype, '--size', args.size]
  for verb, source, target, name in (
    ('import', root / 'source', orbax, 'huggingface'),
    ('export', orbax, root / 't5x', 't5x'),
    ('export', orbax, root / 'huggingface', 'huggingface'),
  ):
    command = [verb, str(source), '--out', str(target), '--format', name]
    seconds, peak = _run([*command, *common])
    print(
      f'{verb} {name}: {seconds:.0f} s, {total / seconds / 2**20:.0f} MiB/s, '
      f'peak memory {peak / 2**30:.2f} GiB'
    )
  same = all(
    np.array_equal(a.read().view(np.uint8), b.read().view(np.uint8))
    for a, b in _pairs(root / 'source', root / 'huggingface')
  )
  print(f'what came back is bit for bit what went in: {same}')
  if not same:
    sys.exit(1)


def _make(
  folder: pathlib.Path, config: t5.T5Config, dtype: str
) -> tuple[int, int]:
  """Writes the shards and their index; bytes in all and of the largest leaf."""
  item = BFLOAT16 if dtype == 'bfloat16' else np.dtype(np.float32)

  def draw(name, shape):
    def load():
      rng = np.random.default_rng(zlib.crc32(name.encode()))
      return rng.standard_normal(shape, np.float32).astype(item)

    return Tensor(shape, item, load)

  ours = {n: draw(n, shape) for n, shape in weights.shapes(config).items()}
  names, report = mapping.apply(mapping.inverse(t5_names.HUGGING_FACE), ours)
  assert not report, report
  # Not slices of drawn stacks, each of which would be drawn for each layer.
  theirs = {name: draw(name, t.shape) for name, t in names.items()}
  shards: list[dict[str, Tensor]] = [{}]
  for name, tensor in theirs.items():
    held = sum(t.nbytes for t in shards[-1].values())
    if shards[-1] and held + tensor.nbytes > _SHARD_BYTES:
      shards.append({})
    shards[-1][name] = tensor
  folder.mkdir(parents=True)
  places = {}
  for i, shard in enumerate(shards, 1):
    file = f'model-{i:05}-of-{len(shards):05}.safetensors'
    safetensors.write(folder / file, shard, {'format': 'pt'})
    places |= dict.fromkeys(shard, file)
  index = {'metadata': {}, 'weight_map': places}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  largest = max(math.prod(t.shape) * item.itemsize for t in ours.values())
  return sum(t.nbytes for t in theirs.values()), largest


def _run(arguments: list[str]) -> tuple[float, int]:
  """Seconds, and bytes of the largest resident set, of a `pixel-llm` call."""
  before = time.perf_counter()
  process = subprocess.Popen([sys.executable, '-m', 'pixel_llm', *arguments])
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'pixel-llm {" ".join(arguments)} failed')
  return time.perf_counter() - before, usage.ru_maxrss * 1024


def _pairs(one: pathlib.Path, other: pathlib.Path):
  from pixel_llm.checkpoints.formats import detection

  _, left = detection.open_tensors(one)
  _, right = detection.open_tensors(other)
  assert left.keys() == right.keys()
  return ((left[name], right[name]) for name in left)


if __name__ == '__main__':
  main()
