# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`docs/scale.md`: what `pixel-llm plan` says of each size on each topology.

  python benchmarks/scale.py --results scale.jsonl
  python benchmarks/scale.py --results scale.jsonl --configs joint
  python benchmarks/scale.py --results scale.jsonl --weak
  python benchmarks/scale.py --results scale.jsonl --write

Every line is a process of its own, so that its memory is its own; what is in
the results already is not compiled again. Needs the extra `tpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
SIZES = ('base', 'large', 'xl', 'xxl')
TOPOLOGIES = ('v5e:8x8', 'v5e:16x16', 'v4:4x4x4', 'v5p:4x4x4')
# Of as many chips as their product, at the same batch a chip as the first.
WEAK = ('v5p:4x4x4', 'v5p:8x8x8', 'v5p:16x16x16')
# What is changed of the config.
RECIPES = {
  'config': (),
  'all sharded': ('--config.mesh.fsdp_frozen=True',),
  'all whole': ('--config.mesh.fsdp=False',),
  'model=4': ('--config.mesh.model=4', '--config.mesh.fsdp_frozen=False'),
  'model=8': ('--config.mesh.model=8', '--config.mesh.fsdp_frozen=False'),
}
COLUMNS = (
  'program',
  'T5',
  'topology',
  'batch',
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
  parser.add_argument('--configs', nargs='+', default=('narrate',))
  parser.add_argument('--sizes', nargs='+', default=SIZES, choices=SIZES)
  parser.add_argument('--topologies', nargs='+', default=TOPOLOGIES)
  parser.add_argument(
    '--recipes', nargs='+', default=('config',), choices=RECIPES
  )
  parser.add_argument(
    '--weak', action='store_true', help='narrate of an xl on more and more'
  )
  parser.add_argument('--write', action='store_true', help='the tables alone')
  args = parser.parse_args()
  rows = []
  if args.results.exists():
    rows = [json.loads(x) for x in args.results.read_text().splitlines()]
  if args.write:
    _write(rows)
    return 0
  keys = list(
    itertools.product(args.configs, args.sizes, args.topologies, args.recipes)
  )
  if args.weak:
    keys = [('narrate', 'xl', t, 'config') for t in WEAK]
  done = {tuple(r['key']) for r in rows}
  for config, size, topology, recipe in keys:
    batch = _chips(topology) * 4 if args.weak else None
    key = config, size, topology, recipe, batch
    if key not in done:
      row = {'key': key, 'plan': _plan(*key)}
      with args.results.open('a') as out:
        out.write(json.dumps(row) + '\n')
      for cells in _cells(row):
        print(' | '.join(cells), flush=True)
  return 0


def _chips(topology: str) -> int:
  return math.prod(int(n) for n in topology.split(':')[1].split('x'))


def _plan(
  config: str, size: str, topology: str, recipe: str, batch: int | None
):
  """What `pixel-llm plan --json` prints, or why it prints nothing."""
  command = [sys.executable, '-m', 'pixel_llm', 'plan', '--json']
  command += ['--config', f'configs/{config}.py:{size}']
  command += ['--topology', topology, *RECIPES[recipe]]
  if batch is not None:
    command += [f'--config.data.streams.narratives.batch={batch}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  lines = [x for x in done.stdout.splitlines() if x.startswith('{')]
  if not lines:
    return {'error': f'exit {done.returncode}: {done.stderr[-500:]}'}
  return json.loads(lines[-1])


def _cells(row) -> list[list[str]]:
  """Of each program a line of the table."""
  config, size, topology, recipe, batch = row['key']
  plan, gib = row['plan'], 2**30
  if 'error' in plan:
    why = plan['error'].strip().splitlines()[-1]
    head = [config, size, topology, '', recipe, why]
    return [[*head, *[''] * (len(COLUMNS) - len(head))]]
  lines = []
  for p in plan['programs']:
    memory, cost = p['memory'], p['cost']
    state = sum(memory[k] for k in ('frozen', 'trainable', 'optimizer'))
    total = sum(memory.values())
    cells = [
      f'{config} {p["name"].partition("/")[2]}',
      size,
      topology,
      str(batch or {'narrate': 256, 'joint': 128}[config]),
      recipe,
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
    took = f'{p["compile_seconds"]:.0f} s, {p["peak_rss"] / gib:.1f} GiB'
    lines.append([*cells, took])
  return lines


def _write(rows) -> None:
  """Replaces the tables between the marks in `docs/scale.md`."""
  path = ROOT / 'docs' / 'scale.md'
  text = path.read_text()
  order = lambda row: (
    row['key'][0] != 'narrate',
    SIZES.index(row['key'][1]),
    *row['key'][2:4],
  )
  weak = [r for r in rows if r['key'][4]]
  for name, own in (
    ('table', sorted((r for r in rows if not r['key'][4]), key=order)),
    ('weak', sorted(weak, key=lambda r: r['key'][4])),
  ):
    lines = [COLUMNS, ('---',) * len(COLUMNS)]
    lines += [cells for row in own for cells in _cells(row)]
    table = ''.join(f'| {" | ".join(x)} |\n' for x in lines)
    before, mark, rest = text.partition(f'<!-- {name} -->\n')
    end = '<!-- end -->\n'
    text = before + mark + table + end + rest.partition(end)[2]
  path.write_text(text)


if __name__ == '__main__':
  sys.exit(main())
