# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`pixel-llm VERB`: a thin table of verbs; the work lives in the rooms.

A verb's room is imported when the verb is called, so that `--help` is quick
and inference never meets TensorFlow.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback

from pixel_llm import arguments, exits

# Verbs whose config's leaves are changed by further options.
CHANGING = (
  'train',
  'precompute',
  'params',
  'config',
  'show-data',
  'plan',
  'evaluate',
)


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; returns the exit code."""
  # TensorFlow's start-up messages speak of devices it must not touch.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  words = sys.argv[1:] if argv is None else argv
  parser = arguments.parser(VERBS)
  # Apache Beam's options are not ours, and not images named like options.
  after = []
  if '--' in words and 'build' in words[:2]:
    cut = words.index('--')
    words, after = words[:cut], words[cut + 1 :]
  known, rest = parser.parse_known_args(words)
  if after and known.runner is None:
    parser.error(f'without --runner, unrecognized: {" ".join(after)}')
  if rest and known.verb not in CHANGING:
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  known.rest, known.runner_options = rest, after
  try:
    return known.run(known) or 0
  except KeyboardInterrupt:
    print('pixel-llm: interrupted', file=sys.stderr)
    return _end(exits.INTERRUPTED, 'interrupted')
  except BrokenPipeError:
    sys.stderr.close()
    return exits.FAILED
  except Exception as e:
    message = _message(e)
    if not known.debug and _is_users(e):
      print(f'pixel-llm {known.verb}: error: {message}', file=sys.stderr)
      code = _end(exits.FAILED, message)
      if _hangs(e):
        # A thread that the disk does not answer could not be waited for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
      return code
    if _store():
      traceback.print_exc()
    _end(exits.FAILED, f'{type(e).__name__}: {e}')
    raise


def _end(code: int, message: str) -> int:
  """The exit code; in a cluster the end of all its processes."""
  if _store():
    from pixel_llm.train import watchdog

    watchdog.leave(code, message)
  return code


def _store():
  """Where processes of a cluster speak, if this is one of them, or None."""
  store = sys.modules.get('pixel_llm.train.store')
  return store if store is not None and store.joined() else None


def _is_users(error: Exception) -> bool:
  """Whether an error speaks to the user, not to the programmer.

  Rooms raise ValueError and its kin with whole sentences for bad input; a bug
  raises what it raises, with its traceback.
  """
  if isinstance(error, (ValueError, OSError, FloatingPointError)):
    return True
  # Importing Orbax takes longer than most verbs take to fail.
  from pixel_llm.checkpoints import manager

  return isinstance(error, manager.CheckpointError)


def _hangs(error: Exception) -> bool:
  """Whether threads are left that the process could wait for at its end."""
  manager = sys.modules.get('pixel_llm.checkpoints.manager')
  return manager is not None and isinstance(error, manager.HungSaveError)


def _message(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    where = f'{error.filename}: ' if error.filename else ''
    return f'{where}{error.strerror}'
  return str(error)


def scenes(args: argparse.Namespace) -> None:
  """Generates the narrated scenes."""
  from pixel_llm.data import scenes as scenes_lib

  with _bar('scenes') as progress:
    scenes_lib.generate(
      args.out,
      seed=args.seed,
      train=args.train,
      val=args.val,
      workers=args.workers,
      progress=progress,
    )


def build(args: argparse.Namespace) -> None:
  """Builds records from annotation files and images."""
  from pixel_llm.data import build as build_lib

  with _bar(f'{args.name} {args.split}') as progress:
    manifest = build_lib.build(
      args.name,
      args.annotations,
      args.images,
      args.out,
      split=args.split,
      instances=args.instances,
      image_data=args.image_data,
      splits=args.splits,
      expect=args.expect,
      max_side=args.max_side,
      quality=args.quality,
      exclude=args.exclude,
      strict=args.strict,
      workers=args.workers,
      runner=args.runner,
      runner_options=args.runner_options,
      shards=args.shards,
      progress=progress,
    )
  print(manifest)


def check_data(args: argparse.Namespace) -> int:
  """Says what records or JSON lines hold, and all that is wrong with them."""
  from pixel_llm.data import check

  with _bar('check', 'images') as progress:
    result = check.check(
      args.path,
      split=args.split,
      images=args.images,
      vocabulary=args.vocabulary,
      against=args.against,
      decode=not args.no_decode,
      most=args.most,
      out=args.json,
      progress=progress,
    )
  print(result)
  return exits.FAILED if result.reasons else 0


def show_data(args: argparse.Namespace) -> None:
  """Draws what the network gets in training, beside the records it is from."""
  # Of JAX only its types are used.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  configured = args.config is not None or args.gin_file
  if bool(configured) == bool(args.records):
    raise ValueError('expected either --config or --records.')
  if args.records and args.rest:
    raise ValueError(f'{" ".join(args.rest)}: expected a --config to change.')
  if (args.vocabulary is None) == bool(args.records):
    raise ValueError('expected --vocabulary with --records, and only there.')
  from pixel_llm.train import experiment

  # Room for the paper's narratives and expressions, and for all the rest.
  shape = experiment.EvalTaskConfig(
    regions=4, context=40, length=128, objects=64, mask=96, prompt_points=1
  )
  if not configured:
    config = experiment.ExperimentConfig(
      data=experiment.DataConfig(
        records=dict(args.records), vocabulary=args.vocabulary, extra_ids=0
      )
    )
  else:
    config = _experiment(args)
    shape = config.eval.tasks.get(args.task, shape)
  from pixel_llm import sheet
  from pixel_llm.data import loader
  from pixel_llm.train import loop

  loop.prepare_data(config)
  streams = {
    name: loader.Stream(s.mixture, config.data.sizes(s), s.rate)
    for name, s in config.data.streams.items()
  }
  with _bar('show', 'images') as progress:
    said = sheet.write_sheet(
      args.out,
      args.task,
      streams,
      config.data.sizes(shape),
      seed=config.seed if args.seed is None else args.seed,
      split=args.split,
      step=args.step,
      count=args.count,
      progress=progress,
    )
  print(said)


def vocabulary(args: argparse.Namespace) -> None:
  """Trains a small SentencePiece vocabulary on the texts of record sets."""
  from pixel_llm import example
  from pixel_llm import vocabulary as vocabulary_lib
  from pixel_llm.data import records

  if os.path.exists(args.out):
    size = vocabulary_lib.Vocabulary(args.out).size
    print(f'{args.out}: there already, {size} pieces')
    return

  def texts():
    for directory in args.records:
      record_set = records.RecordSet(directory, args.split)
      for i in range(len(record_set)):
        for region in example.from_bytes(record_set[i]).regions:
          yield region.text

  vocabulary_lib.train([*texts(), *args.text], args.out, args.size)
  print(f'{args.out}: {vocabulary_lib.Vocabulary(args.out).size} pieces')


def train(args: argparse.Namespace) -> int:
  """Trains; the same command goes on after an interruption."""
  config = _experiment(args)
  with _member(args, config) as watchdog:
    from pixel_llm.train import loop
    from pixel_llm.train import watchdog as watchdog_lib

    programs = None
    if args.programs:
      from pixel_llm import plan as plan_lib

      programs = plan_lib.load(args.programs, config)
    trainer = loop.Trainer(config, args.workdir, programs=programs)
    with (
      trainer.checkpoints,
      watchdog_lib.telling(),
      _bar('train', 'steps') as progress,
    ):
      try:
        trainer.train(progress, watchdog)
      except loop.Preempted as e:
        print(f'pixel-llm train: {e}', file=sys.stderr)
        return exits.PREEMPTED
  return exits.DONE


def _member(args: argparse.Namespace, config):
  """This process as one of the cluster that it finds, or alone."""
  from pixel_llm.train import cluster
  from pixel_llm.train import place as place_lib

  place = None
  if not args.no_cluster:
    place = place_lib.find(
      args.coordinator,
      args.num_processes,
      args.process_id,
      args.local_devices,
      args.start_timeout,
    )
  return cluster.member(place, config, args.workdir, args.start_timeout)


def precompute(args: argparse.Namespace) -> None:
  """Writes the maps of frozen image encoders, which training then reads."""
  config = _experiment(args)
  from pixel_llm.train import loop
  from pixel_llm.train import precompute as precompute_lib

  loop.prepare_data(config)
  with _bar('precompute', 'images') as progress:
    precompute_lib.precompute(
      config, args.out, args.batch, config.loop.workers, progress=progress
    )


def replay(args: argparse.Namespace) -> None:
  """Runs one step of a run once more, and says what each example cost."""
  from pixel_llm.train import experiment, loop
  from pixel_llm.train import replay as replay_lib

  trainer = loop.Trainer(
    experiment.load(args.workdir), args.workdir, lambda line: None
  )
  with trainer.checkpoints, _bar('replay', 'steps') as progress:
    found = replay_lib.replay(trainer, args.step, progress)
  print(json.dumps(found.to_json()) if args.json else found)


def params(args: argparse.Namespace) -> None:
  """Counts the parameters of a config; allocates none."""
  # Shapes alone: an accelerator would be taken for nothing.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  config = _experiment(args)
  from pixel_llm.train import parameters

  parts = parameters.parts(config, args.depth)
  if args.json:
    for part in (*parts, parameters.total(parts)):
      print(json.dumps(dataclasses.asdict(part)))
  else:
    print(parameters.table(parts))


def config(args: argparse.Namespace) -> None:
  """Prints an experiment with all that it takes from the defaults."""
  values = _experiment(args)
  from pixel_llm import config as config_lib
  from pixel_llm.train import experiment

  default, values = (
    config_lib.to_dict(c) for c in (experiment.ExperimentConfig(), values)
  )
  if args.json:
    if args.diff:
      values = {k: v for k, *v in config_lib.changes(default, values)}
    print(json.dumps(values, indent=2))
  elif args.diff:
    for line in config_lib.difference(default, values):
      print(line)
  else:
    for path, value in config_lib.leaves(values):
      print(f'{path} = {value!r}')


def plan(args: argparse.Namespace) -> int:
  """Compiles a config for a TPU topology: memory, time, what to change."""
  # The chips are named, not there.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  from pixel_llm import plan as plan_lib
  from pixel_llm.train import config_files

  config = config_files.read(args.config, args.rest)

  if args.mesh:
    config = dataclasses.replace(
      config, mesh=dataclasses.replace(config.mesh, **args.mesh)
    )
  made = plan_lib.make(
    config,
    args.topology,
    train=args.train or not (args.decode or args.eval),
    decode=args.decode,
    read=args.eval,
    save=args.save,
  )
  print(plan_lib.to_json(made) if args.json else plan_lib.text(made))
  return 0 if all(p.fits for p in made.programs) else exits.FAILED


def evaluate(args: argparse.Namespace) -> None:
  """Evaluates a checkpoint; writes answers, scores and a report."""
  config = None
  if args.config or args.gin_file:
    config = _experiment(args)
  elif args.rest:
    raise ValueError(f'{" ".join(args.rest)}: expected a --config to change.')
  from pixel_llm.train import experiment

  trained = experiment.load(args.workdir)
  with _member(args, config or trained) as watchdog:
    if _store():
      # JAX holds it back for those who have something to save.
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import jax

    from pixel_llm.train import results

    with _bar('evaluate', 'questions') as bar:

      def progress(_, done, total):
        watchdog.alive()
        bar(done, total)

      metrics, report = results.run(
        args.workdir, config, args.step, args.tasks, args.force, progress
      )
    if jax.process_index() == 0:
      _print_metrics(metrics, results.targets((config or trained).eval))
      print(f'report: {report}')


def score(args: argparse.Namespace) -> None:
  """Makes the scores of an evaluation again, of the answers that it kept."""
  from pixel_llm.train import scoring

  found = {}
  for path in scoring.dumps(args.dump):
    dump, metrics = scoring.score(path)
    name = dump.spec['task']
    if args.json:
      row = {'dump': path, 'spec': scoring.digest(dump.spec), 'task': name}
      print(json.dumps({**row, 'metrics': metrics}))
    elif name in found:
      raise ValueError(f'{path}: a second dump of {name}; score it by itself.')
    found[name] = dump.spec['capability'], metrics
  if not args.json:
    _print_metrics(scoring.flat(found), {})


def narrate(args: argparse.Namespace) -> int:
  """Narrates images: every word with its place."""
  return _ask(args)


def caption(args: argparse.Namespace) -> int:
  """Captions whole images."""
  return _ask(args)


def caption_at(args: argparse.Namespace) -> int:
  """Captions boxes, points or masks of images."""
  return _ask(args)


def refer(args: argparse.Namespace) -> int:
  """Finds what expressions refer to."""
  return _ask(args)


def segment(args: argparse.Namespace) -> int:
  """Finds the pixels of what expressions refer to."""
  return _ask(args)


def dense_caption(args: argparse.Namespace) -> int:
  """Finds all things of images, and captions each."""
  return _ask(args)


def _ask(args: argparse.Namespace) -> int:
  from pixel_llm import asking

  return asking.run(args, _bar)


def app(args: argparse.Namespace) -> None:
  """Serves a local web page on which a model is asked."""
  try:
    from pixel_llm.app import server
  except ModuleNotFoundError as e:
    if e.name not in ('starlette', 'uvicorn'):
      raise
    raise ValueError(
      f"{e.name} is not installed: pip install 'pixel-llm[app]'."
    ) from e
  server.run(args.workdir, args.host, args.port)


def inspect(args: argparse.Namespace) -> None:
  """Shows the names, shapes and dtypes of a file of tensors; loads none."""
  from pixel_llm.checkpoints import inspection
  from pixel_llm.checkpoints.formats import detection

  words, tensors = detection.open_tensors(args.path)
  if args.json:
    print(json.dumps(inspection.to_json(args.path, words, tensors)))
    return
  print(f'{args.path}: {words}')
  print(inspection.to_text(tensors, args.depth))


def import_(args: argparse.Namespace) -> None:
  """Writes the checkpoint of another project as parameters of ours."""
  from pixel_llm import weights

  parts = weights.PARTS.get(args.format, ('t5',))
  part = args.part or parts[0]
  config = _t5_config(args) if part == 't5' else _model_config(args, part)
  with _bar('import', 'tensors') as progress:
    written = weights.import_weights(
      args.source,
      args.out,
      args.format,
      config,
      part=args.part,
      dtype=args.dtype,
      allow_missing=args.allow_missing,
      force=args.force,
      progress=progress,
    )
  print(written)


def export(args: argparse.Namespace) -> None:
  """Writes our parameters as others read them, or a run as programs."""
  if args.format in ('stablehlo', 'savedmodel'):
    _export_programs(args)
    return
  from pixel_llm import weights

  config = _t5_config(args)
  with _bar('export', 'tensors') as progress:
    written = weights.export_weights(
      args.source,
      args.out,
      args.format,
      config,
      dtype=args.dtype,
      step=args.step,
      force=args.force,
      progress=progress,
    )
  print(written)


def _export_programs(args: argparse.Namespace) -> None:
  for name in ('config', 'size', 'dtype', 'step'):
    if getattr(args, name) is not None:
      raise ValueError(
        f'--{name}: --format {args.format} takes it from the source; leave it '
        'out.'
      )
  if args.format == 'savedmodel':
    from pixel_llm import savedmodel

    print(savedmodel.convert(args.source, args.out, force=args.force))
    return
  from pixel_llm import stablehlo

  with _bar('export', 'modules') as progress:
    written = stablehlo.export_run(
      args.source, args.out, force=args.force, progress=progress
    )
  print(written)


def _t5_config(args: argparse.Namespace):
  """The T5 of `--config` or `--size`; None without either."""
  if args.config is not None:
    from pixel_llm.train import config_files

    return config_files.read(args.config).model.t5
  if args.size is None:
    return None
  from pixel_llm.model import t5

  return _size(t5.SIZES, args.size, 't5')


def _model_config(args: argparse.Namespace, part: str):
  """The network with the part of `--config` or `--size`, else None."""
  if args.config is not None:
    from pixel_llm.train import config_files

    return config_files.read(args.config).model
  if args.size is None:
    return None
  from pixel_llm.model import eva, mask, pixel_llm, sam

  # All sizes of SAM have the same mask decoder.
  if part == 'sam':
    size = _size(sam.SIZES, args.size, part)
    return pixel_llm.ModelConfig(sam=size, mask=mask.MaskConfig())
  return pixel_llm.ModelConfig(eva=_size(eva.SIZES, args.size, part))


def _size(sizes, size: str, part: str):
  if size not in sizes:
    raise ValueError(
      f'--size {size}: expected one of {", ".join(sizes)} for {part}.'
    )
  return sizes[size]


def _experiment(args: argparse.Namespace):
  """The experiment of `--config` or `--gin_file`, with its changes."""
  from pixel_llm.train import config_files

  if args.gin_file:
    return config_files.read_gin(args.gin_file, args.rest)
  return config_files.read(args.config, args.rest)


def _print_metrics(metrics: dict[str, float], targets) -> None:
  for name, value in metrics.items():
    if name == 'step':
      continue
    mark = ''
    if name in targets:
      sign, bound = targets[name]
      met = value >= bound if sign == '>=' else value <= bound
      mark = f'   {"reached" if met else "MISSED"}: {sign} {bound:g}'
    print(f'{name:36} {value:8.4f}{mark}')


@contextlib.contextmanager
def _bar(title: str, unit: str = ''):
  """A progress bar with an ETA; quiet without a terminal, or if not first."""
  from rich import progress as rich_progress

  columns = (
    rich_progress.TextColumn('{task.description}'),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TextColumn(unit),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TextColumn('ETA'),
    rich_progress.TimeRemainingColumn(),
  )
  store = _store()
  first = store is None or store.is_first()
  terminal = sys.stderr.isatty() or sys.stdout.isatty()
  with rich_progress.Progress(
    *columns, disable=not first or not terminal
  ) as bar:
    task = bar.add_task(title, total=None)
    yield lambda done, total: bar.update(task, completed=done, total=total)


VERBS = {
  run.__name__.strip('_').replace('_', '-'): run
  for run in (
    scenes,
    build,
    check_data,
    show_data,
    vocabulary,
    train,
    precompute,
    replay,
    params,
    config,
    plan,
    evaluate,
    score,
    narrate,
    caption,
    caption_at,
    refer,
    segment,
    dense_caption,
    app,
    inspect,
    import_,
    export,
  )
}


if __name__ == '__main__':
  sys.exit(main())
