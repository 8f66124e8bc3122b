# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Throughput and peak memory of `pixel-llm build`, by the number of rows.

Makes up Localized Narratives (a narrative of 40 words over a trace of 500
points, 27 kB of JSON) and Visual Genome's region descriptions (50 an image),
whose images are all links to one small JPEG, and builds each with 10,000 and
with 100,000 rows.

  python benchmarks/build.py --rows 10000 100000 --dir runs/build
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pathlib
import platform
import random
import resource
import shutil
import subprocess
import sys
import time

from PIL import Image

_WORDS, _POINTS, _SECONDS = 40, 500, 20.0
_REGIONS = 50  # of an image of Visual Genome
_NARRATIVES = 1.1  # of an image, about as COCO's
_HEIGHT, _WIDTH = 48, 64
_POLL_SECONDS = 0.05


def main() -> None:
  """Makes, builds and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', type=int, nargs='+', default=[10_000, 100_000])
  parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
  parser.add_argument(
    '--sets', nargs='+', choices=sorted(_SETS), default=sorted(_SETS)
  )
  parser.add_argument('--dir', required=True, help='to make, for the files')
  args = parser.parse_args()
  root = pathlib.Path(args.dir)
  if root.exists():
    parser.error(f'--dir {root}: exists; expected a folder to make')
  print(
    f'{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, '
    f'Python {platform.python_version()}; peak memory is the largest '
    'resident set, of the parent and of the largest worker'
  )
  print(
    '| rows of | rows | images | workers | seconds | CPU s | rows/s | '
    'images/s | parent MiB | worker MiB |\n' + '| --- ' * 10 + '|'
  )
  for name in args.sets:
    for rows in args.rows:
      folder = root / f'{name}-{rows}'
      images, command = _SETS[name](folder, rows)
      for workers in args.workers:
        out = folder / f'records-{workers}'
        seconds, cpu, parent, worker = _run(
          [*command, '--out', str(out), '--workers', str(workers), '--strict']
        )
        manifest = json.loads((out / 'train.manifest.json').read_bytes())
        assert (manifest['regions'], manifest['records']) == (rows, images)
        print(
          f'| {name} | {rows} | {images} | {workers} | {seconds:.0f} | '
          f'{cpu:.0f} | '
          f'{rows / seconds:.0f} | {images / seconds:.0f} | '
          f'{parent / 2**20:.0f} | {worker / 2**20:.0f} |',
          flush=True,
        )
      shutil.rmtree(folder)  # gigabytes


def _narratives(folder: pathlib.Path, rows: int) -> tuple[int, list[str]]:
  """Writes JSON lines; images, and the command that builds them."""
  path, images = _write_narratives(folder, rows, open)
  return images, _command('localized_narratives', path, folder)


def _narratives_gz(folder: pathlib.Path, rows: int) -> tuple[int, list[str]]:
  path, images = _write_narratives(folder, rows, gzip.open)
  return images, _command('localized_narratives', path, folder)


def _write_narratives(folder, rows, opened) -> tuple[pathlib.Path, int]:
  rng = random.Random(0)
  images = int(rows / _NARRATIVES)
  _write_images(folder, images)
  # A few traces, so that making them up does not take longest.
  tails = [_tail(rng) for _ in range(100)]
  path = folder / ('a.jsonl' if opened is open else 'a.jsonl.gz')
  with opened(path, 'wt') as file:
    for i in range(rows):
      row = {'dataset_id': 'made up', 'image_id': str(i % images)}
      start = json.dumps(row | {'annotator_id': i // images})
      file.write(f'{start[:-1]}, {tails[i % len(tails)]}\n')
  return path, images


def _tail(rng: random.Random) -> str:
  """Caption, timed caption and traces of a row, as JSON without the braces."""
  words = [f'{rng.choice("abcdefgh") * rng.randint(2, 9)}' for _ in range(40)]
  each = _SECONDS / len(words)
  return json.dumps(
    {
      'caption': ' '.join(words),
      'timed_caption': [
        {
          'utterance': w,
          'start_time': round(k * each, 2),
          'end_time': round(k * each + each, 2),
        }
        for k, w in enumerate(words)
      ],
      'traces': [
        [
          {
            'x': round(rng.random(), 4),
            'y': round(rng.random(), 4),
            't': round(k * _SECONDS / _POINTS, 3),
          }
          for k in range(_POINTS)
        ]
      ],
      'voice_recording': 'none',
    }
  )[1:]


def _regions(folder: pathlib.Path, rows: int) -> tuple[int, list[str]]:
  """Writes region descriptions and `image_data.json`."""
  rng = random.Random(0)
  images = rows // _REGIONS
  _write_images(folder, images)
  values = []
  for i in range(images):
    regions = [
      {
        'region_id': i * _REGIONS + k,
        'image_id': i,
        'phrase': f'the {rng.choice("abcdefgh") * 5} thing number {k}',
        'x': rng.randrange(_WIDTH - 1),
        'y': rng.randrange(_HEIGHT - 1),
        'width': 9,
        'height': 9,
      }
      for k in range(_REGIONS)
    ]
    values.append({'id': i, 'regions': regions})
  path, meta = folder / 'region_descriptions.json', folder / 'image_data.json'
  path.write_text(json.dumps(values))
  sizes = {'height': _HEIGHT, 'width': _WIDTH, 'coco_id': None}
  meta.write_text(json.dumps([{'image_id': i, **sizes} for i in range(images)]))
  command = _command('visual_genome', path, folder)
  return images, [*command, '--image-data', str(meta)]


_SETS = {
  'narratives': _narratives,
  'narratives.gz': _narratives_gz,
  'regions': _regions,
}


def _write_images(folder: pathlib.Path, count: int) -> None:
  (folder / 'images').mkdir(parents=True)
  first = folder / 'images' / '0.jpg'
  Image.new('RGB', (_WIDTH, _HEIGHT), 'gray').save(first)
  for i in range(1, count):
    # A file has at most some ten thousands of links.
    if i % 10_000 == 0:
      shutil.copy(first, folder / 'images' / f'{i}.jpg')
      first = folder / 'images' / f'{i}.jpg'
    else:
      os.link(first, folder / 'images' / f'{i}.jpg')


def _command(
  name: str, annotations: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  return [
    sys.executable, '-m', 'pixel_llm', 'build', name,
    '--annotations', str(annotations), '--images', str(folder / 'images'),
  ]  # fmt: skip


def _run(command: list[str]) -> tuple[float, float, int, int]:
  """Seconds, of CPUs too, and peak bytes of the parent and a worker."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  before = time.perf_counter()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  peaks: dict[int, int] = {}
  while process.poll() is None:
    for pid in [process.pid, *_children(process.pid)]:
      peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
    time.sleep(_POLL_SECONDS)
  seconds = time.perf_counter() - before
  if process.returncode:
    sys.exit(f'{" ".join(command)} failed')
  now = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
  parent = peaks.pop(process.pid)
  return seconds, cpu, parent, max(peaks.values(), default=0)


def _children(pid: int) -> list[int]:
  try:
    tasks = pathlib.Path(f'/proc/{pid}/task').iterdir()
    text = ' '.join((t / 'children').read_text() for t in tasks)
  except OSError:  # it has just ended
    return []
  return [int(child) for child in text.split()]


def _peak(pid: int) -> int:
  """Linux's record of the largest resident set so far, bytes."""
  try:
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return 0
  for line in text.splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) * 1024
  return 0


if __name__ == '__main__':
  main()
