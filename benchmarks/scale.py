# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`docs/scale.md`: what `pixel-llm plan` says of each size on each topology.

  python benchmarks/scale.py --results scale.jsonl --sizes base xl
  python benchmarks/scale.py --results scale.jsonl --write

Every line is a process of its own, so that its memory is its own; what is in
the results already is not compiled again. Needs the
extra `tpu`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

from pixel_llm.model import t5

ROOT = pathlib.Path(__file__).parents[1]
SIZES = ('base', 'large', 'xl', 'xxl')
TOPOLOGIES = ('v5e:8x8', 'v5e:16x16', 'v4:4x4x4', 'v5p:4x4x4')
LEAN = (
  *(
    f'--config.model.{part}.dtype=bfloat16'
    for part in ('eva', 'sam', 'extractor', 't5', 'regression')
  ),
  '--config.model.eva.remat=full',
  '--config.model.t5.remat=full',
  '--config.optimizer.frozen_dtype=bfloat16',
)
# What is changed of `configs/narrate.py`, which shards the state (FSDP).
RECIPES = {
  'config': (),
  'lean': LEAN,
  'lean, replicated': (*LEAN, '--config.mesh.fsdp=False'),
}
COLUMNS = (
  'T5',
  'topology',
  'recipe',
  'state',
  'temporaries',
  'all, of HBM',
  'TFLOP (network)',
  'moved',
  'sent',
  'compute / memory / links',
  'MFU <=',
  'compiled',
)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--results', required=True, type=pathlib.Path)
  parser.add_argument('--sizes', nargs='+', default=SIZES, choices=t5.SIZES)
  parser.add_argument('--topologies', nargs='+', default=TOPOLOGIES)
  parser.add_argument(
    '--recipes', nargs='+', default=('lean',), choices=RECIPES
  )
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--write', action='store_true', help='the table alone')
  args = parser.parse_args()
  rows = []
  if args.results.exists():
    rows = [json.loads(x) for x in args.results.read_text().splitlines()]
  if args.write:
    _write(rows)
    return 0
  done = {(r['size'], r['topology'], r['recipe'], r['batch']) for r in rows}
  for size in args.sizes:
    for topology in args.topologies:
      for recipe in args.recipes:
        key = size, topology, recipe, args.batch
        if key in done:
          continue
        row = dict(zip(('size', 'topology', 'recipe', 'batch'), key))
        row['plan'] = _plan(*key)
        with args.results.open('a') as out:
          out.write(json.dumps(row) + '\n')
        print(' | '.join(_cells(row)), flush=True)
  return 0


def _plan(size: str, topology: str, recipe: str, batch: int):
  """What `pixel-llm plan --json` prints, or why it prints nothing."""
  default = dataclasses.asdict(t5.T5Config())
  command = [sys.executable, '-m', 'pixel_llm', 'plan', '--json']
  command += ['--config', 'configs/narrate.py', '--topology', topology]
  command += [
    f'--config.model.t5.{k}={v}'
    for k, v in dataclasses.asdict(t5.SIZES[size]).items()
    if v != default[k]
  ]
  command += [f'--config.data.streams.narratives.batch={batch}']
  command += RECIPES[recipe]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  lines = [x for x in done.stdout.splitlines() if x.startswith('{')]
  if not lines:
    return {'error': f'exit {done.returncode}: {done.stderr[-500:]}'}
  return json.loads(lines[-1])


def _cells(row) -> list[str]:
  plan = row['plan']
  head = [row['size'], row['topology'], row['recipe']]
  if 'error' in plan:
    return [*head, plan['error'].splitlines()[-1], *[''] * (len(COLUMNS) - 4)]
  (p,) = plan['programs']
  memory, cost, gib = p['memory'], p['cost'], 2**30
  state = sum(memory[k] for k in ('frozen', 'trainable', 'optimizer'))
  total = sum(memory.values())
  cells = [
    *head,
    f'{state / gib:.2f}',
    f'{memory["temporaries"] / gib:.2f}',
    f'{total / gib:.2f} of {p["limit"] / gib:.0f}'
    + ('' if p['fits'] else ': **refused**'),
  ]
  if cost is None:
    cells += [f'({p["model_flops"] / 1e12:.2f})', '', '', '', '']
  else:
    sent = sum(c['sent'] for c in cost['collectives'])
    times = p['seconds']
    cells += [
      f'{cost["flops"] / 1e12:.2f} ({p["model_flops"] / 1e12:.2f})',
      f'{cost["bytes"] / 1e9:.0f}',
      f'{sent / 1e9:.2f}',
      ' / '.join(f'{times[k]:.3f}' for k in ('compute', 'memory', 'links')),
      f'{p["mfu"]:.0%}',
    ]
  return [
    *cells,
    f'{p["compile_seconds"]:.0f} s, {p["peak_rss"] / gib:.1f} GiB',
  ]


def _write(rows) -> None:
  """Replaces the table between the marks in `docs/scale.md`."""
  path = ROOT / 'docs' / 'scale.md'
  begin, end = '<!-- table -->\n', '<!-- end -->\n'
  before, _, rest = path.read_text().partition(begin)
  after = rest.partition(end)[2]
  order = lambda r: (
    SIZES.index(r['size']) if r['size'] in SIZES else -1,
    r['topology'],
    list(RECIPES).index(r['recipe']),
  )
  lines = [COLUMNS, ('---',) * len(COLUMNS)]
  lines += [_cells(r) for r in sorted(rows, key=order)]
  table = ''.join(f'| {" | ".join(x)} |\n' for x in lines)
  path.write_text(before + begin + table + end + after)


if __name__ == '__main__':
  sys.exit(main())
