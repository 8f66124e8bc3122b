# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: its time beside the steps, and the time to the first.

  python -m benchmarks.loop --dir runs/loop             # the demo's network
  python -m benchmarks.loop --dir runs/loop --features  # maps made before
  python -m benchmarks.loop --dir runs/loop --processes # one and two of them

Scenes and their records are made in `--dir` and kept there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from configs import demo
from pixel_llm import config as config_lib
from pixel_llm import sharding
from pixel_llm.data import loader as loader_lib
from pixel_llm.model import eva, sam
from pixel_llm.train import experiment, loop, precompute

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = 256


def prepare(root: pathlib.Path) -> experiment.ExperimentConfig:
  """The demo's config on a few scenes."""
  scenes, records = root / 'scenes', root / 'records'
  if not (records / 'spiece.model').exists():
    pixel_llm = str(pathlib.Path(sys.executable).with_name('pixel-llm'))
    run = lambda args: subprocess.run(args, check=True, env=environment())
    few = ['--train', str(IMAGES), '--val', '8']
    run([pixel_llm, 'scenes', '--out', str(scenes), *few])
    script = str(ROOT / 'data' / 'scenes.sh')
    run(['sh', script, str(scenes), str(records), pixel_llm])
  values = demo.get_config()
  with values.unlocked():
    values.data.vocabulary = str(records / 'spiece.model')
    for key, path in values.data.records.items():
      values.data.records[key] = str(records / pathlib.Path(path).name)
  return config_lib.from_dict(experiment.ExperimentConfig, values.to_dict())


def environment() -> dict[str, str]:
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  return {**os.environ, 'PYTHONPATH': path}


def trainer(config, workdir: pathlib.Path) -> loop.Trainer:
  return loop.Trainer(config, str(workdir), log=lambda line: None)


def overhead(config, root: pathlib.Path, steps: int) -> None:
  """Steps alone, then as the loop takes them."""
  workdir = root / 'overhead'
  shutil.rmtree(workdir, ignore_errors=True)
  config = dataclasses.replace(
    config,
    loop=dataclasses.replace(
      config.loop, steps=steps, log_every=steps // 4, checkpoint_every=steps
    ),
  )
  made = trainer(config, workdir)
  alone, state = steps_alone(made, steps // 4)
  del state
  with made.checkpoints:
    made.train()
  rows = json.loads((workdir / 'curves.json').read_text())[1:]
  mean = lambda key: np.mean([r.get(key, 0.0) for r in rows])
  pace = mean('run/seconds_per_step')
  print(
    f'steps alone {alone * 1e3:.1f} ms; of the loop {pace * 1e3:.1f} ms, '
    f'{pace / alone - 1:+.1%}'
  )
  kinds = sorted({k for r in rows for k in r if k.startswith('time/')})
  print('shares: ' + ', '.join(f'{k[5:]} {mean(k):.2%}' for k in kinds))
  not_steps = 1 - mean('time/step')
  print(f'not in steps: {not_steps:.2%}')


def steps_alone(made: loop.Trainer, steps: int):
  """Seconds a step on batches that are there, streams at their rates."""
  state, step_fn = made.create(), made.step_fn()
  loader = made.loader()
  batches = loader.batches(0)
  place = sharding.batch_sharding(made.mesh)
  held = [next(batches) for _ in range(4 * len(loader.streams))]
  batches.close()
  with made.placed():
    there = [loader_lib.to_device(batch, place) for _, batch in held]
    for batch in there:  # all streams are compiled
      state, metrics = step_fn(state, batch)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    for i in range(steps):
      state, metrics = step_fn(state, there[i % len(there)])
    jax.block_until_ready((state, metrics))
  return (time.perf_counter() - begun) / steps, state


def first_step(config, root: pathlib.Path) -> None:
  """Processes that take a step of each stream, with programs on disk or not."""
  cache = root / 'programs'
  shutil.rmtree(cache, ignore_errors=True)
  for title, path in (
    ('no cache', ''),
    ('empty cache', str(cache.absolute())),
    ('warm cache', str(cache.absolute())),
  ):
    small = dataclasses.replace(
      config,
      loop=dataclasses.replace(config.loop, steps=4, compile_cache=path),
    )
    begun = time.perf_counter()
    workdir = run_processes(small, root / 'first', 1)
    seconds = time.perf_counter() - begun
    spent = json.loads((workdir / 'goodput.json').read_text())['seconds']
    print(
      f'{title:12} compile {spent["compile"]:5.1f} s of '
      f'{len(small.data.streams)} programs, start {spent["start"]:.1f} s, '
      f'process {seconds:.1f} s'
    )


def run_processes(config, workdir: pathlib.Path, count: int) -> pathlib.Path:
  """Trains from the beginning."""
  shutil.rmtree(workdir, ignore_errors=True)
  workdir.mkdir()
  file = workdir.with_suffix('.py')
  values = json.dumps(json.dumps(config_lib.to_dict(config)))
  file.write_text(
    'import json\nimport ml_collections\ndef get_config():\n'
    f'  return ml_collections.ConfigDict(json.loads({values}))\n'
  )
  train = [sys.executable, '-m', 'pixel_llm', 'train', '--config', str(file)]
  train += ['--workdir', str(workdir), '--num-processes', str(count)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    train += ['--coordinator', f'localhost:{free.getsockname()[1]}']
  processes = [
    subprocess.Popen(
      [*train, f'--process-id={i}'],
      env=environment(),
      stdout=subprocess.DEVNULL,
    )
    for i in range(count)
  ]
  if any(list(map(subprocess.Popen.wait, processes))):
    raise SystemExit('a process failed.')
  return workdir


def efficiency(config, root: pathlib.Path, steps: int) -> None:
  """The same batches by one process, and by two, on all cores."""
  streams = {
    name: dataclasses.replace(stream, batch=2 * stream.batch)
    for name, stream in config.data.streams.items()
  }
  paces = []
  for count in (1, 2):
    one = dataclasses.replace(
      config,
      data=dataclasses.replace(config.data, streams=streams),
      mesh=sharding.MeshConfig(data=count),
      loop=dataclasses.replace(
        config.loop, steps=steps, log_every=steps // 4, checkpoint_every=steps
      ),
    )
    workdir = run_processes(one, root / 'processes', count)
    rows = json.loads((workdir / 'curves.json').read_text())[1:]
    paces.append(np.mean([r['run/seconds_per_step'] for r in rows]))
    print(f'{count} processes: {paces[-1] * 1e3:.1f} ms a step', flush=True)
  print(f'efficiency {paces[0] / paces[1]:.1%}')


def features(config, root: pathlib.Path, steps: int) -> None:
  """Steps with SAM's maps made at each step, and made before."""
  size = 224
  model = dataclasses.replace(
    config.model,
    eva=eva.EvaConfig(
      width=192, depth=6, num_heads=3, mlp_dim=512, drop_path_rate=0.0
    ),
    sam=sam.SamConfig(
      width=192,
      depth=6,
      num_heads=3,
      mlp_dim=768,
      blocks_per_group=3,
      position_grid=size // 16,
    ),
    prompt=dataclasses.replace(config.model.prompt, embed_dim=128),
    extractor=dataclasses.replace(
      config.model.extractor, num_queries=32, depth=2, width=128
    ),
    region=None,
    t5=dataclasses.replace(
      config.model.t5,
      emb_dim=256,
      num_heads=4,
      head_dim=64,
      mlp_dim=512,
      num_encoder_layers=4,
      num_decoder_layers=4,
    ),
  )
  stream = dataclasses.replace(
    config.data.streams['narratives'], batch=8, regions=1
  )
  config = dataclasses.replace(
    config,
    model=model,
    data=dataclasses.replace(
      config.data, image=size, streams={'narratives': stream}
    ),
    optimizer=dataclasses.replace(
      config.optimizer, muon=None, multipliers=(), freeze=('^sam/',)
    ),
  )
  out = root / 'maps'
  shutil.rmtree(out, ignore_errors=True)
  loop.prepare_data(config)
  begun = time.perf_counter()
  precompute.precompute(config, str(out))
  seconds = time.perf_counter() - begun
  size = sum(p.stat().st_size for p in out.rglob('*.array_record'))
  print(
    f'made in {seconds:.1f} s, compiling included; {size / IMAGES / 1e3:.0f} '
    'kB an image'
  )
  read = dataclasses.replace(
    config, data=dataclasses.replace(config.data, image_maps=str(out))
  )
  found = {}
  for title, one in (('encoded', config), ('read', read)):
    workdir = root / 'features'
    shutil.rmtree(workdir, ignore_errors=True)
    made = trainer(one, workdir)
    found[title] = [steps_alone(made, steps)[0] for _ in range(3)]
    print(f'{title}: {min(found[title]):.3f} s a step of {found[title]}')
  ratio = min(found['encoded']) / min(found['read'])
  print(f'{ratio:.2f} times as fast')


def main() -> None:
  """Prints what it ran on, and the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--dir', required=True)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--features', action='store_true')
  parser.add_argument('--processes', action='store_true')
  args = parser.parse_args()
  print(
    f'{platform.machine()}, {os.cpu_count()} cores, load '
    f'{os.getloadavg()[0]:.1f}; JAX {jax.__version__}, '
    f'{jax.devices()[0].device_kind}'
  )
  root = pathlib.Path(args.dir)
  root.mkdir(parents=True, exist_ok=True)
  config = prepare(root)
  if args.features:
    features(config, root, args.steps // 10)
    return
  if args.processes:
    efficiency(config, root, args.steps)
    return
  first_step(config, root)
  overhead(config, root, args.steps)


if __name__ == '__main__':
  main()
