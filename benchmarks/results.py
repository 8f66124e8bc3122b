# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`docs/results.md`: what a run that was trained and evaluated has reached.

  make demo-joint
  python benchmarks/results.py --workdir runs/demo_joint

Reads metrics.json, curves.json and report.html of the run, asks it about an
image of its scenes by the verbs of `pixel-llm`, and writes the page with its
pictures. The curves are the report's, as Chromium shows them (extra `dev`).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys

from PIL import Image

from pixel_llm import report
from pixel_llm.train import experiment, results

ROOT = pathlib.Path(__file__).parents[1]
OUT = ROOT / 'docs' / 'results'
# In steps of training, these say what is learned; the report has all.
CURVES = (
  'narratives/point_l1',
  'narratives/word_loss',
  'things/word_loss',
  'things/center_loss',
  'things/move_loss',
  'expressions/point_l1',
  'expressions/mask_dice',
  'expressions/presence_loss',
  'learning_rate',
)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument(
    '--image',
    type=int,
    default=2,
    help='of the validation scenes (%(default)s)',
  )
  args = parser.parse_args()
  found = results.read_metrics(str(args.workdir))
  if not found:
    parser.error(f'{args.workdir}: not evaluated yet (pixel-llm evaluate).')
  config = experiment.load(str(args.workdir))
  OUT.mkdir(parents=True, exist_ok=True)
  screenshot(args.workdir / 'report.html', OUT / 'curves.png')
  shown = [ask(c, args.workdir) for c in questions(args.workdir, args.image)]
  spent = json.loads((args.workdir / 'goodput.json').read_text())['seconds']
  metrics = {k: v for k, v in found.items() if k != 'step'}
  text = page(
    report.markdown(metrics, results.targets(config.eval)),
    '\n'.join(shown),
    int(found['step']),
    spent,
  )
  (ROOT / 'docs' / 'results.md').write_text(text)
  return 0


def questions(workdir: pathlib.Path, number: int) -> list[list[str]]:
  """Verbs and arguments, the picture's name the first."""
  scenes = workdir / 'scenes'
  file = scenes / 'annotations' / 'scenes_val_expressions.jsonl'
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  row = next((r for r in rows if int(r['image_id']) == number), None)
  if row is None:
    raise SystemExit(f'{file}: no image {number}.')
  image = str(scenes / 'images' / 'val' / row['image'])
  there = [r for r in row['regions'] if 'box' in r]
  absent = [r['text'] for r in row['regions'] if 'box' not in r]
  texts = [r['text'] for r in there]
  boxes = [','.join(f'{v:g}' for v in r['box']) for r in there]
  return [
    ['narrate', image],
    ['refer', image, texts[0], *absent[:1]],
    ['segment', image, texts[-1]],
    ['caption-at', image, '--box', *dict.fromkeys(boxes)],
    ['dense-caption', image, '--threshold', '0.5'],
  ]


def ask(command: list[str], workdir: pathlib.Path) -> str:
  """Runs a verb; its picture and the command as Markdown."""
  name = f'{command[0]}.png'
  call = ['pixel-llm', *command, '--workdir', str(workdir)]
  call += ['--out', f'docs/results/{name}']
  print(shlex.join(call), flush=True)
  # The code beside this file, whatever is on the path.
  module = [sys.executable, '-m', 'pixel_llm', *call[1:]]
  subprocess.run(module, check=True, cwd=ROOT)
  # A third of its size, and looks the same.
  Image.open(OUT / name).quantize(96).save(OUT / name, optimize=True)
  return f'```sh\n{shlex.join(call)}\n```\n\n![{command[0]}](results/{name})\n'


def screenshot(page_file: pathlib.Path, out: pathlib.Path) -> None:
  """The curves that matter, as a browser shows them in the report."""
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=shutil.which('chromium'), args=['--no-sandbox']
    )
    tab = browser.new_page(viewport={'width': 1080, 'height': 900})
    tab.goto(page_file.resolve().as_uri())
    tab.evaluate(
      """names => {
        for (const chart of document.querySelectorAll('.chart'))
          if (!names.includes(chart.querySelector('svg').ariaLabel))
            chart.remove();
      }""",
      list(CURVES),
    )
    # The first: diagrams of scores come behind.
    tab.locator('.curves').first.screenshot(path=str(out))
    browser.close()


def page(table: str, shown: str, step: int, spent: dict[str, float]) -> str:
  """The text of `docs/results.md`."""
  minutes = sum(spent.values()) / 60
  parts = ', '.join(
    f'{k} {v / 60:.1f}' for k, v in spent.items() if round(v / 60, 1)
  )
  return f"""\
# What the joint demo reaches

`make demo-joint` makes 8,000 narrated scenes, trains one small network of all
capabilities (`configs/demo_joint.py`) and evaluates it on 200 scenes of
validation. This page is made of such a run by

```sh
make demo-joint
.venv/bin/python benchmarks/results.py --workdir runs/demo_joint
```

Trained {step:,} steps in {minutes:.0f} minutes ({parts}) on
{os.cpu_count()} cores ({platform.machine()}).

## Metrics

As `pixel-llm evaluate --workdir runs/demo_joint` prints them, with the targets
of `configs/demo_joint.py`.

{table}
## Curves

Of training, by streams; `runs/demo_joint/report.html` has all of them, and the
best, worst and random answers of each task beside the truth.

![curves](results/curves.png)

## Pictures

{shown}"""


if __name__ == '__main__':
  sys.exit(main())
