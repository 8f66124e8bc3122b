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
import pathlib
import signal
import sys
import traceback

from pixel_llm import exits

# The keys of `data.build.NAMES`, which isn't imported for `--help`.
_SOURCES = (
  'coco_captions',
  'coco_captions_tfds',
  'jsonl',
  'llava',
  'localized_narratives',
  'refcoco',
  'refcoco_mdetr',
  'refcoco_tfds',
  'refcoco_uninext',
  'visual_genome',
  'visual_genome_grit',
)
# Options of the verbs that write text, as of `Predictor.from_workdir`.
_DECODING = ('beams', 'temperature', 'top_k', 'top_p', 'seed')


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; returns the exit code."""
  # TensorFlow's start-up messages speak of devices it must not touch.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  arguments = sys.argv[1:] if argv is None else argv
  parser = _parser()
  # Apache Beam's options are not ours, and not images named like options.
  after = []
  if '--' in arguments and 'build' in arguments[:2]:
    cut = arguments.index('--')
    arguments, after = arguments[:cut], arguments[cut + 1 :]
  known, rest = parser.parse_known_args(arguments)
  if after and known.runner is None:
    parser.error(f'without --runner, unrecognized: {" ".join(after)}')
  if rest and known.run not in (
    train,
    precompute,
    params,
    config,
    show_data,
    plan,
  ):
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
    if _cluster():
      traceback.print_exc()
    _end(exits.FAILED, f'{type(e).__name__}: {e}')
    raise


def _end(code: int, message: str) -> int:
  """The exit code; in a cluster the end of all its processes."""
  if cluster := _cluster():
    cluster.leave(code, message)
  return code


def _cluster():
  """The room of the cluster that this process is in, or None."""
  cluster = sys.modules.get('pixel_llm.train.cluster')
  return cluster if cluster is not None and cluster.joined() else None


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
    from pixel_llm.train import cluster, loop

    trainer = loop.Trainer(config, args.workdir)
    with (
      trainer.checkpoints,
      cluster.telling(),
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

  place = None
  if not args.no_cluster:
    place = cluster.find(
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
  config = _read_config(args.config, args.rest)
  from pixel_llm import plan as plan_lib

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
  """Evaluates the newest checkpoint; writes metrics.json and report.html."""
  from pixel_llm.train import experiment
  from pixel_llm.train import results as results_lib

  config = experiment.load(args.workdir)
  report = pathlib.Path(args.workdir) / 'report.html'
  with _member(args, config) as watchdog:
    if _cluster():
      # JAX holds it back for those who have something to save.
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import jax

    from pixel_llm.checkpoints import manager

    with manager.CheckpointManager(
      pathlib.Path(args.workdir) / 'checkpoints', read_only=True
    ) as reader:
      newest = reader.latest_step()
    metrics = results_lib.read_metrics(args.workdir)
    if metrics.get('step') != newest or not report.exists() or args.force:
      metrics = _evaluate(config, args.workdir, watchdog)
    if jax.process_index() == 0:
      _print_metrics(metrics, results_lib.targets(config.eval))
      print(f'report: {report}')


def _evaluate(config, workdir: str, watchdog) -> dict[str, float]:
  import jax

  from pixel_llm.train import loop
  from pixel_llm.train import results as results_lib

  trainer = loop.Trainer(config, workdir)
  with trainer.checkpoints:
    step, params = trainer.restore_params()
    with _bar('evaluate', 'questions') as bar:

      def progress(_, done, total):
        watchdog.alive()
        bar(done, total)

      results = trainer.evaluate(params, step, progress=progress)
  metrics = {'step': step, **results_lib.flat_metrics(results)}
  count = sum(x.size for x in jax.tree.leaves(params))
  if jax.process_index() == 0:
    results_lib.write_report(workdir, step, config, results, count)
    # Last: its step is the mark that the report is of this checkpoint.
    results_lib.write_metrics(workdir, step, metrics)
  return metrics


def narrate(args: argparse.Namespace) -> int:
  """Narrates images."""
  return _predict(args, lambda p: [p.narrate()])


def refer(args: argparse.Namespace) -> int:
  """Finds what expressions refer to."""
  args.image = [args.image]
  return _predict(args, lambda p: p.refer(args.expression))


def caption_at(args: argparse.Namespace) -> int:
  """Captions boxes of an image."""
  args.image = [args.image]
  return _predict(args, lambda p: p.caption_at(args.box))


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
    return _read_config(args.config, []).model.t5
  if args.size is None:
    return None
  from pixel_llm.model import t5

  return _size(t5.SIZES, args.size, 't5')


def _model_config(args: argparse.Namespace, part: str):
  """The network with the part of `--config` or `--size`, else None."""
  if args.config is not None:
    return _read_config(args.config, []).model
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


def _predict(args: argparse.Namespace, ask) -> int:
  """Asks about every image; a bad image is reported and costs no other."""
  from pixel_llm import image as image_lib
  from pixel_llm import pictures
  from pixel_llm import predictor as predictor_lib

  if (
    args.out
    and len(args.image) == 1
    and not args.out.endswith(('.png', '.html'))
  ):
    raise ValueError(
      f'--out {args.out}: expected a name that ends in .png or .html.'
    )
  # `refer` reads what it is given and decodes nothing.
  decoding = {k: vars(args)[k] for k in _DECODING if k in args}
  predictor = predictor_lib.Predictor.from_workdir(args.workdir, **decoding)
  failed = 0
  for path in args.image:
    try:
      predictor.set_image(path)
    except image_lib.ImageError as e:
      print(f'pixel-llm {args.verb}: error: {e}', file=sys.stderr)
      failed += 1
      continue
    predictions = ask(predictor)
    for p in predictions:
      if args.json:
        print(json.dumps(p.to_json(), ensure_ascii=False))
      elif p.box_orig is not None:
        print(
          f'{path}: {p.prompt}: ' + ', '.join(f'{v:.1f}' for v in p.box_orig)
        )
      else:
        print(f'{path}: {p.text}')
    if args.out:
      out = pathlib.Path(args.out)
      if len(args.image) > 1:
        out.mkdir(parents=True, exist_ok=True)
        out = out / f'{pathlib.Path(path).stem}.html'
      pictures.save(str(out), image_lib.load(path), predictions)
  return exits.FAILED if failed else 0


def _experiment(args: argparse.Namespace):
  """The experiment of `--config` or `--gin_file`, with its changes.

  Raises:
    ConfigError: a file can't be loaded, or a key or value does not fit.
  """
  if not args.gin_file:
    return _read_config(args.config, args.rest)
  from pixel_llm import config as config_lib
  from pixel_llm.train import experiment

  _check_overrides('--gin.', args.rest)
  return config_lib.from_gin(
    experiment.ExperimentConfig,
    args.gin_file,
    [argument.removeprefix('--gin.') for argument in args.rest],
  )


def _check_overrides(prefix: str, overrides: list[str]) -> None:
  from pixel_llm import config as config_lib

  for argument in overrides:
    if not argument.startswith(prefix) or '=' not in argument:
      raise config_lib.ConfigError(
        f'argument {argument!r}: expected {prefix}KEY=VALUE.'
      )


def _read_config(path: str, overrides: list[str]):
  """The experiment of a config file with `--config.a.b=value` changes.

  Raises:
    ConfigError: the file can't be loaded, or a key or value does not fit.
  """
  from absl import flags
  from ml_collections import config_dict, config_flags

  from pixel_llm import config as config_lib
  from pixel_llm.train import experiment

  _check_overrides('--config.', overrides)
  values = _load_config_file(path).to_dict()
  config = config_lib.from_dict(experiment.ExperimentConfig, values)
  if not overrides:
    return config
  # Whole again: files may leave out what is as by default.
  tree = config_dict.ConfigDict(config_lib.to_dict(config)).lock()
  for argument in overrides:
    _check_key(tree, argument.removeprefix('--config.').partition('=')[0])
  parsed = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', tree, flag_values=parsed, sys_argv=['pixel-llm', *overrides]
    )
    parsed(['pixel-llm', *overrides])
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise config_lib.ConfigError(
      f'{" ".join(overrides)}: {e.args[0] if e.args else e!s}'
    ) from e
  # The flags have changed it in place.
  return config_lib.from_dict(experiment.ExperimentConfig, tree.to_dict())


def _check_key(tree, path: str) -> None:
  """Raises ConfigError with the path of the first key that is not there."""
  from pixel_llm import config as config_lib

  keys = path.split('.')
  for i, key in enumerate(keys):
    if not hasattr(tree, 'keys'):
      parent = '.'.join(keys[:i])
      raise config_lib.ConfigError(
        f'config {parent}.{key}: {parent} has no keys; it is {tree!r}.'
      )
    name = key.partition('[')[0]  # of a tuple, `key[0]`
    if name not in tree:
      where = '.'.join(keys[: i + 1])
      raise config_lib.ConfigError(
        config_lib.unknown_key(where, name, list(tree.keys()))
      )
    tree = tree[name]


def _load_config_file(path: str):
  """What `get_config()` of a Python file gives, `get_config('a')` of `path:a`.

  Raises:
    ConfigError: naming the line of the file that failed.
  """
  import runpy
  import traceback

  from pixel_llm import config as config_lib

  given, arguments = path, []
  if not os.path.isfile(path) and ':' in path:
    path, *arguments = path.rsplit(':', 1)
  if not os.path.isfile(path):
    raise config_lib.ConfigError(f'--config {given}: no such file.')
  # Configs import `configs.default`, wherever they lie.
  root = str(pathlib.Path(path).resolve().parent.parent)
  if root not in sys.path:
    sys.path.insert(0, root)
  try:
    return runpy.run_path(path)['get_config'](*arguments)
  except Exception as e:
    lines = [
      f.lineno
      for f in traceback.extract_tb(e.__traceback__)
      if f.filename == path
    ]
    where = f'line {lines[-1]}: ' if lines else ''
    what = (
      'it defines no get_config()'
      if isinstance(e, KeyError) and e.args == ('get_config',)
      else f'{type(e).__name__}: {e}'
    )
    raise config_lib.ConfigError(f'--config {given}: {where}{what}') from e


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
  cluster = _cluster()
  first = cluster is None or cluster.is_first()
  terminal = sys.stderr.isatty() or sys.stdout.isatty()
  with rich_progress.Progress(
    *columns, disable=not first or not terminal
  ) as bar:
    task = bar.add_task(title, total=None)
    yield lambda done, total: bar.update(task, completed=done, total=total)


def _box(text: str) -> tuple[float, float, float, float]:
  try:
    values = tuple(float(v) for v in text.split(','))
  except ValueError:
    values = ()
  if len(values) != 4:
    raise argparse.ArgumentTypeError(
      f'expected x0,y0,x1,y1 in pixels of the file, got {text!r}'
    )
  return values


def _count(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f'expected a whole number from 1 on, got {text!r}'
    )
  return int(text)


def _natural(text: str) -> int:
  if not text.isdigit():
    raise argparse.ArgumentTypeError(
      f'expected a whole number from 0 on, got {text!r}'
    )
  return int(text)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(_natural(part) for part in text.split(','))


def _mesh(text: str) -> dict[str, int]:
  pairs = [part.partition('=') for part in text.split(',')]
  if not all(k in ('data', 'model') and v.isdigit() for k, _, v in pairs):
    raise argparse.ArgumentTypeError(
      f'expected data=N,model=N or one of them, got {text!r}'
    )
  return {k: int(v) for k, _, v in pairs}


def _record_set(text: str) -> tuple[str, str]:
  key, _, directory = text.partition('=')
  if not key or not directory:
    raise argparse.ArgumentTypeError(f'expected KEY=DIR, got {text!r}')
  return key, directory


def _add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
  group = parser.add_mutually_exclusive_group(required=required)
  group.add_argument(
    '--config',
    help='an ml_collections file, or FILE:SIZE of T5; change leaves with '
    '--config.loop.steps=100',
  )
  group.add_argument(
    '--gin_file',
    action='append',
    help='a gin file instead, or several, the later on top; change leaves with '
    '--gin.experiment.LoopConfig.steps=100',
  )


def _add_cluster(sub: argparse.ArgumentParser) -> None:
  """Which processes run together; what is not given is found."""
  group = sub.add_argument_group(
    'cluster',
    'TPU pods, SLURM, Open MPI and JobSets are found without any of these '
    '(launch/README.md).',
  )
  group.add_argument(
    '--coordinator', metavar='HOST:PORT', help='where process 0 listens'
  )
  group.add_argument('--num-processes', type=_count, metavar='N')
  group.add_argument(
    '--process-id', type=_natural, metavar='I', help='of this one, from 0 on'
  )
  group.add_argument(
    '--local-devices',
    type=_numbers,
    metavar='I,I,...',
    help='the GPUs of this process, where several share a machine',
  )
  group.add_argument(
    '--no-cluster', action='store_true', help='alone, whatever is found'
  )
  group.add_argument(
    '--start-timeout',
    type=_count,
    default=60,
    metavar='SECONDS',
    help='for all processes to be there; default 60',
  )


def _add_decoding(sub: argparse.ArgumentParser) -> None:
  """How words are chosen; what is not given is the run's config's."""
  group = sub.add_argument_group('decoding')
  group.add_argument(
    '--beams', type=_count, help='hypotheses of beam search; 1 is greedy'
  )
  group.add_argument(
    '--temperature',
    type=float,
    help='above 0 draws words instead of taking the likeliest',
  )
  group.add_argument(
    '--top-k', type=_count, help='draws among so many of the likeliest tokens'
  )
  group.add_argument(
    '--top-p',
    type=float,
    help='draws among the likeliest tokens that have so much probability',
  )
  group.add_argument(
    '--seed', type=int, help='of the draws; equal seeds give equal answers'
  )


def _parser() -> argparse.ArgumentParser:
  """The table of verbs."""
  from pixel_llm import __version__

  parser = argparse.ArgumentParser(
    prog='pixel-llm',
    description='A language model whose every word knows '
    'where it is in the image.',
    epilog=f'Exit codes: 0 done, {exits.FAILED} failed, {exits.USAGE} usage, '
    f'{exits.PREEMPTED} stopped by a signal with everything saved, '
    f'{exits.STALLED} stood still, {exits.INTERRUPTED} interrupted.',
  )
  parser.add_argument('--version', action='version', version=__version__)
  parser.add_argument(
    '--debug', action='store_true', help='show tracebacks of all errors'
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name, run):
    sub = verbs.add_parser(name, help=run.__doc__, description=run.__doc__)
    sub.set_defaults(run=run)
    return sub

  sub = verb('scenes', scenes)
  sub.add_argument('--out', required=True, help='directory to write')
  sub.add_argument('--seed', type=int, default=0)
  sub.add_argument('--train', type=_count, default=8000, help='images')
  sub.add_argument('--val', type=_count, default=200, help='images')
  sub.add_argument('--workers', type=_count, default=os.cpu_count())

  sub = verb('build', build)
  sub.add_argument('name', choices=_SOURCES, help='what the annotations are')
  sub.add_argument('--annotations', required=True, help='file or glob')
  sub.add_argument(
    '--images',
    nargs='+',
    action='extend',
    help='directories, .zip and .tar files (read where they are, not '
    'unpacked); none for names with tfds',
  )
  sub.add_argument('--out', required=True, help='directory of the records')
  sub.add_argument('--split', default='train')
  sub.add_argument('--instances', help='instances.json (refcoco)')
  sub.add_argument('--image-data', help='image_data.json (visual_genome)')
  sub.add_argument('--splits', help='densecap_splits.json (visual_genome)')
  sub.add_argument(
    '--expect',
    metavar='DATASET',
    help='says whether all of its split is there, by published counts: '
    'refcoco_unc, localized_narratives_coco, ...; any other name lists them',
  )
  sub.add_argument(
    '--max-side',
    type=_count,
    metavar='PIXELS',
    help='store images that are no JPEG, or whose longer side is above this, '
    'as JPEGs of at most this; default: every file as it is',
  )
  sub.add_argument(
    '--quality', type=_count, help='of those JPEGs, 1 to 100; default 90'
  )
  sub.add_argument(
    '--exclude',
    nargs='+',
    action='extend',
    default=[],
    metavar='DIR[:SPLIT]',
    help='leave out images that are in these records, as those of RefCOCO '
    'that a model is tested on; without a split, in any',
  )
  sub.add_argument(
    '--strict',
    action='store_true',
    help='stop at the first bad row, and if not all is there',
  )
  sub.add_argument('--workers', type=_count, default=os.cpu_count())
  sub.add_argument(
    '--runner',
    help='of Apache Beam instead of --workers: DataflowRunner, FlinkRunner, '
    'SparkRunner, ...; its workers must see all paths under the same names. '
    'Its options come last, after --',
  )
  sub.add_argument(
    '--shards',
    type=_count,
    help='files; default one per thousand images, at least four',
  )

  sub = verb('check-data', check_data)
  sub.add_argument(
    'path',
    nargs='+',
    help='a folder that `build` wrote, or JSON lines (data/jsonl.md)',
  )
  sub.add_argument('--split', help='only this one; default all')
  sub.add_argument(
    '--images',
    nargs='+',
    action='extend',
    help='directories, .zip and .tar files of the images of JSON lines, '
    'checked too',
  )
  sub.add_argument(
    '--vocabulary', help='SentencePiece model; counts tokens with it'
  )
  sub.add_argument(
    '--against',
    nargs='+',
    action='extend',
    default=[],
    metavar='DIR[:SPLIT]',
    help='records that must have no image of these',
  )
  sub.add_argument(
    '--no-decode',
    action='store_true',
    help="read only the headers of the records' images",
  )
  sub.add_argument(
    '--most', type=_count, default=20, help='problems that are shown'
  )
  sub.add_argument(
    '--json', metavar='FILE', help='for all problems and the statistics'
  )

  sub = verb('show-data', show_data)
  sub.add_argument('task', help='SeqIO task or mixture')
  _add_config(sub, required=False)
  sub.add_argument(
    '--records',
    nargs='+',
    type=_record_set,
    default=[],
    metavar='KEY=DIR',
    help="instead of a config: record sets by their keys in a config's "
    'data.records',
  )
  sub.add_argument('--vocabulary', help='with --records: SentencePiece model')
  sub.add_argument('--out', required=True, help='the .html to write')
  sub.add_argument('--split', default='train')
  sub.add_argument(
    '--step', type=_natural, default=0, help='of training, from 0 on'
  )
  sub.add_argument('--count', type=_count, default=8, help='images')
  sub.add_argument(
    '--seed', type=int, help="of order and choices; default the config's"
  )

  sub = verb('vocabulary', vocabulary)
  sub.add_argument('--records', nargs='+', required=True, help='directories')
  sub.add_argument('--split', default='train')
  sub.add_argument('--text', nargs='*', default=[], help='further sentences')
  sub.add_argument('--out', required=True, help='the .model to write')
  sub.add_argument('--size', type=_count, default=512, help='pieces')

  sub = verb('train', train)
  _add_config(sub)
  sub.add_argument('--workdir', required=True)
  _add_cluster(sub)

  sub = verb('precompute', precompute)
  _add_config(sub)
  sub.add_argument('--out', required=True, help='folder; data.image_maps')
  sub.add_argument('--batch', type=_count, default=32, help='images at a time')

  sub = verb('replay', replay)
  sub.add_argument('--workdir', required=True)
  sub.add_argument('--step', type=_count, required=True, help='the first is 1')
  sub.add_argument('--json', action='store_true', help='for machines')

  sub = verb('params', params)
  _add_config(sub)
  sub.add_argument(
    '--depth', type=_count, default=1, help='names of a path that a part has'
  )
  sub.add_argument('--json', action='store_true', help='one line a part')

  sub = verb('config', config)
  _add_config(sub)
  sub.add_argument(
    '--diff', action='store_true', help='only what differs from the defaults'
  )
  sub.add_argument('--json', action='store_true', help='for machines')

  sub = verb('plan', plan)
  _add_config(sub)
  sub.add_argument(
    '--topology',
    required=True,
    help='v5e:8x8, v6e:16x16, v4:4x4x4, v5p:4x4x4 and alike, which need '
    'libtpu; or cpu:N',
  )
  sub.add_argument(
    '--mesh',
    type=_mesh,
    metavar='data=N,model=N',
    help="instead of the config's",
  )
  sub.add_argument(
    '--train',
    action='store_true',
    help='the training step, as without --decode and --eval',
  )
  sub.add_argument(
    '--decode', action='store_true', help='what writes answers in evaluation'
  )
  sub.add_argument(
    '--eval', action='store_true', help='what reads answers in evaluation'
  )
  sub.add_argument(
    '--save', metavar='FILE', help='for the executables (pixel_llm.plan.load)'
  )
  sub.add_argument('--json', action='store_true', help='all of it in one line')

  sub = verb('evaluate', evaluate)
  sub.add_argument('--workdir', required=True)
  sub.add_argument(
    '--force',
    action='store_true',
    help='again, though this checkpoint was evaluated',
  )
  _add_cluster(sub)

  for name, run in (
    ('narrate', narrate),
    ('refer', refer),
    ('caption-at', caption_at),
  ):
    sub = verb(name, run)
    sub.add_argument(
      'image', nargs='+' if run is narrate else None, help='JPEG, PNG or WebP'
    )
    if run is refer:
      sub.add_argument('expression', nargs='+')
    if run is caption_at:
      sub.add_argument(
        '--box',
        type=_box,
        nargs='+',
        required=True,
        help='x0,y0,x1,y1 in pixels of the file',
      )
    sub.add_argument('--workdir', required=True, help='of a trained run')
    sub.add_argument(
      '--json', action='store_true', help='one line of JSON an answer'
    )
    sub.add_argument(
      '--out', help='a .png or .html; a directory for several images'
    )
    if run is not refer:
      _add_decoding(sub)

  sub = verb('inspect', inspect)
  sub.add_argument(
    'path',
    help='safetensors, npz, .pth/.pt/.bin, or a folder of Hugging Face, T5X, '
    'Orbax or a run',
  )
  sub.add_argument('--depth', type=_count, help='levels of the tree to show')
  sub.add_argument('--json', action='store_true', help='all of it as JSON')

  for name, run, formats in (
    (
      'import',
      import_,
      ('t5x', 'huggingface', 'segment-anything', 'timm', 'eva', 'pixel-llm'),
    ),
    (
      'export',
      export,
      ('t5x', 'huggingface', 'safetensors', 'stablehlo', 'savedmodel'),
    ),
  ):
    sub = verb(name, run)
    importing = run is import_
    sub.add_argument(
      'source',
      help='any file or folder that `inspect` shows'
      if importing
      else 'a run, a checkpoint of ours or safetensors by our names; '
      'for stablehlo a run, for savedmodel what stablehlo wrote',
    )
    sub.add_argument(
      '--format',
      required=True,
      choices=formats,
      help='whose names and layout the source has'
      if importing
      else 'what to write',
    )
    sub.add_argument(
      '--out',
      required=True,
      help='a .safetensors file, or the folder of an Orbax checkpoint'
      if importing
      else 'the folder, or the .safetensors file, to write',
    )
    if importing:
      sub.add_argument(
        '--part',
        choices=('t5', 'sam', 'eva'),
        help='what it holds of the network, where the format leaves it open: '
        'huggingface may be t5, as if nothing is said, or sam',
      )
    which = sub.add_mutually_exclusive_group()
    which.add_argument(
      '--config', help='an experiment, whose network it must fit'
    )
    sizes = ('small', 'base', 'large', 'xl', 'xxl')
    which.add_argument(
      '--size',
      # Which there are depends on the part.
      choices=None if importing else sizes,
      help='what it must fit: T5 1.1 small to xxl, SAM base to huge, EVA-02 '
      'tiny to large'
      if importing
      else 'the T5 1.1 that it must fit',
    )
    sub.add_argument(
      '--dtype',
      choices=('float32', 'bfloat16'),
      default='float32' if importing else None,
      help='of the numbers',
    )
    if importing:
      sub.add_argument(
        '--allow-missing',
        nargs='+',
        default=[],
        metavar='REGEX',
        help='names of ours that may be missing',
      )
    else:
      sub.add_argument('--step', type=_count, help='of the T5X checkpoint')
    sub.add_argument(
      '--force', action='store_true', help='replace what is at --out'
    )
  return parser


if __name__ == '__main__':
  sys.exit(main())
