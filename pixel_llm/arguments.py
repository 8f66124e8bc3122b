# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What `pixel-llm` can be told: verbs, their options, and what these may be."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping

from pixel_llm import exits

# The keys of `data.build.NAMES`, which isn't imported for `--help`.
SOURCES = (
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

_Verb = Callable[[str], argparse.ArgumentParser]


def parser(verbs: Mapping[str, Callable]) -> argparse.ArgumentParser:
  """The table of verbs.

  Args:
    verbs: what each runs, by its name; its docstring is its help.
  """
  from pixel_llm import __version__

  table = argparse.ArgumentParser(
    prog='pixel-llm',
    description='A language model whose every word knows '
    'where it is in the image.',
    epilog=f'Exit codes: 0 done, {exits.FAILED} failed, {exits.USAGE} usage, '
    f'{exits.PREEMPTED} stopped by a signal with everything saved, '
    f'{exits.STALLED} stood still, {exits.INTERRUPTED} interrupted.',
  )
  table.add_argument('--version', action='version', version=__version__)
  table.add_argument(
    '--debug', action='store_true', help='show tracebacks of all errors'
  )
  subparsers = table.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name):
    run = verbs[name]
    sub = subparsers.add_parser(name, help=run.__doc__, description=run.__doc__)
    sub.set_defaults(run=run)
    # As of Python 3.14: before it `-5,40` was taken for an option.
    sub._negative_number_matcher = re.compile(r'-\.?\d')
    return sub

  _add_data(verb)
  _add_training(verb)
  _add_asking(verb)
  _add_weights(verb)
  return table


def _add_data(verb: _Verb) -> None:
  sub = verb('scenes')
  sub.add_argument('--out', required=True, help='directory to write')
  sub.add_argument('--seed', type=int, default=0)
  sub.add_argument('--train', type=_count, default=8000, help='images')
  sub.add_argument('--val', type=_count, default=200, help='images')
  sub.add_argument('--workers', type=_count, default=os.cpu_count())

  sub = verb('build')
  sub.add_argument('name', choices=SOURCES, help='what the annotations are')
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

  sub = verb('check-data')
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

  sub = verb('show-data')
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

  sub = verb('vocabulary')
  sub.add_argument('--records', nargs='+', required=True, help='directories')
  sub.add_argument('--split', default='train')
  sub.add_argument('--text', nargs='*', default=[], help='further sentences')
  sub.add_argument('--out', required=True, help='the .model to write')
  sub.add_argument('--size', type=_count, default=512, help='pieces')


def _add_training(verb: _Verb) -> None:
  sub = verb('train')
  _add_config(sub)
  sub.add_argument('--workdir', required=True)
  sub.add_argument(
    '--programs',
    metavar='FILE',
    help='what `plan --save` compiled of this config, which is then not '
    'compiled again; it must be one that you trust',
  )
  _add_cluster(sub)

  sub = verb('precompute')
  _add_config(sub)
  sub.add_argument('--out', required=True, help='folder; data.image_maps')
  sub.add_argument('--batch', type=_count, default=32, help='images at a time')

  sub = verb('replay')
  sub.add_argument('--workdir', required=True)
  sub.add_argument('--step', type=_count, required=True, help='the first is 1')
  sub.add_argument('--json', action='store_true', help='for machines')

  sub = verb('params')
  _add_config(sub)
  sub.add_argument(
    '--depth', type=_count, default=1, help='names of a path that a part has'
  )
  sub.add_argument('--json', action='store_true', help='one line a part')

  sub = verb('config')
  _add_config(sub)
  sub.add_argument(
    '--diff', action='store_true', help='only what differs from the defaults'
  )
  sub.add_argument('--json', action='store_true', help='for machines')

  sub = verb('plan')
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
    '--save', metavar='FILE', help='for the executables: train --programs FILE'
  )
  sub.add_argument('--json', action='store_true', help='all of it in one line')

  sub = verb('evaluate')
  _add_config(sub, required=False)
  sub.add_argument('--workdir', required=True)
  sub.add_argument(
    '--step', type=_count, help='of the checkpoint; default the newest'
  )
  sub.add_argument(
    '--tasks',
    type=lambda text: text.split(','),
    default=[],
    metavar='A,B',
    help='of config eval.tasks; default all',
  )
  sub.add_argument(
    '--force', action='store_true', help='asks again what was answered before'
  )
  _add_cluster(sub)

  sub = verb('score')
  sub.add_argument(
    'dump', nargs='+', help='WORKDIR/eval/STEP, or .jsonl files of it'
  )
  sub.add_argument('--json', action='store_true', help='one line a dump')


def _add_asking(verb: _Verb) -> None:
  finds = ('refer', 'segment')
  for name in (
    'narrate',
    'caption',
    'caption-at',
    'refer',
    'segment',
    'dense-caption',
  ):
    sub = verb(name)
    add = sub.add_argument
    add(
      'image',
      nargs='+',
      help='files (JPEG, PNG or WebP), folders or globs'
      + ('; without --expression IMAGE EXPRESSION...' if name in finds else ''),
    )
    if name in finds:
      add('--expression', nargs='+', action='extend', metavar='TEXT')
    if name == 'caption-at':
      add(
        '--box',
        type=_box,
        nargs='+',
        action='extend',
        default=[],
        metavar='X0,Y0,X1,Y1',
        help='in pixels of the file',
      )
      add(
        '--point',
        type=_points,
        nargs='+',
        action='extend',
        default=[],
        metavar='X,Y',
        help='in pixels of the file; several on one thing are X,Y:X,Y',
      )
      add(
        '--mask',
        nargs='+',
        action='extend',
        default=[],
        metavar='FILE',
        help="an image of the file's size, not zero inside",
      )
    if name == 'dense-caption':
      add('--max', type=_count, help='things of an image, the surest first')
      add(
        '--threshold',
        type=float,
        default=0.0,
        help='least confidence of a thing, 0 to 1',
      )
    add('--workdir', required=True, help='of a trained run, or an export of it')
    add('--batch-size', type=_count, default=8, help='images at a time')
    add('--json', action='store_true', help='one line of JSON an answer')
    add(
      '--jsonl',
      metavar='FILE',
      help='for a line of JSON an image; images that it has are not asked of',
    )
    add('--coco', metavar='FILE', help="for a JSON list of COCO's results")
    add(
      '--image-ids',
      metavar='FILE',
      help='JSON: file name -> image id, or a COCO file with images; default '
      'the number that the name is, else the name',
    )
    add('--out', help='a .png or .html, or a folder for one an image')
    add('--png', action='store_true', help='PNG instead of HTML in that folder')
    add(
      '--truth',
      metavar='FILE',
      help='what should be answered, in lines as --jsonl writes them, for '
      'pictures to show beside it',
    )
    if name not in finds:
      _add_decoding(sub)

  add = verb('app').add_argument
  add('--workdir', required=True, help='of a trained run, or an export of it')
  add('--host', default='127.0.0.1', help='address to listen at (%(default)s)')
  add('--port', type=_natural, default=8000, help='0 takes any (%(default)s)')


def _add_weights(verb: _Verb) -> None:
  sub = verb('inspect')
  sub.add_argument(
    'path',
    help='safetensors, npz, .pth/.pt/.bin, or a folder of Hugging Face, T5X, '
    'Orbax or a run',
  )
  sub.add_argument('--depth', type=_count, help='levels of the tree to show')
  sub.add_argument('--json', action='store_true', help='all of it as JSON')

  for name, formats in (
    (
      'import',
      ('t5x', 'huggingface', 'segment-anything', 'timm', 'eva', 'pixel-llm'),
    ),
    (
      'export',
      ('t5x', 'huggingface', 'safetensors', 'stablehlo', 'savedmodel'),
    ),
  ):
    sub = verb(name)
    importing = name == 'import'
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


def _floats(text: str, count: int, expected: str) -> tuple[float, ...]:
  try:
    values = tuple(float(v) for v in text.split(','))
  except ValueError:
    values = ()
  if len(values) != count:
    raise argparse.ArgumentTypeError(
      f'expected {expected} in pixels of the file, got {text!r}'
    )
  return values


def _box(text: str) -> tuple[float, ...]:
  return _floats(text, 4, 'x0,y0,x1,y1')


def _points(text: str) -> list[tuple[float, ...]]:
  return [_floats(part, 2, 'x,y') for part in text.split(':')]


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
