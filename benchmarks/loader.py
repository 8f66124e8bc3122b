# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""From records to ready batches: examples a second of a core, and starting.

  python benchmarks/loader.py --scenic DIR --dmvr DIR
  python benchmarks/loader.py --scale

Images of 640 x 480 (JPEG, about 120 kB), narratives of 36 words, 384 px,
batches of 16; flip, scale 0.75 to 1.25 and crop. DIR are checkouts of
google-research/scenic and google-deepmind/dmvr, whose chain of operations for
narratives runs as it is on the same images; Grain and PyTorch do the same with
Pillow and SentencePiece, without placing words, if they are installed. All run
in this process, in turn, with one worker; CPU seconds of all threads count, and
of each the best of `--runs`.

`--scale` measures how long the first batch takes at positions up to 10**9, and
memory, with an index of as many rows as COCO's narratives and of 10**9.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import seqio
import tensorflow as tf
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import example as example_lib
from pixel_llm import tasks
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.augmentation import Augmentation
from pixel_llm.data import build, loader, records, registry

SIDE, BATCH, WORDS, LENGTH, CONTEXT = 384, 16, 36, 128, 8
SIZES = batch_lib.BatchSizes(
  batch=BATCH, image=SIDE, regions=1, context=CONTEXT, length=LENGTH
)
AUGMENTATION = Augmentation(flip=0.5, scale=(0.75, 1.25))
LEXICON = """
  a the in on of and with there is are we can see man woman dog tree grass sky
  red green blue white black small large left right front behind table chair
  standing sitting holding looking water road car building window
"""


def photo(rng: np.random.Generator) -> bytes:
  """A JPEG with detail at all scales, of about 120 kB."""
  rgb = np.zeros((480, 640, 3))
  for step in (160, 80, 40, 20, 8, 4, 2, 1):
    noise = rng.normal(size=(480 // step, 640 // step, 3))
    rgb += noise.repeat(step, 0).repeat(step, 1) * 6 * step**0.35
  out = io.BytesIO()
  Image.fromarray(np.clip(rgb + 120, 0, 255).astype(np.uint8)).save(
    out, 'JPEG', quality=90
  )
  return out.getvalue()


def generate(root: pathlib.Path, count: int) -> str:
  """Records of COCO-like photos and narratives; the vocabulary's path."""
  rng = np.random.default_rng(0)
  (root / 'images').mkdir()
  lines = []
  for i in range(count):
    (root / 'images' / f'{i:012}.jpg').write_bytes(photo(rng))
    words = rng.choice(LEXICON.split(), WORDS).tolist()
    starts = np.arange(WORDS) * 0.4
    walk = np.clip(0.5 + np.cumsum(rng.normal(0, 0.01, (700, 2)), 0), 0, 1)
    trace = [
      {'x': float(x), 'y': float(y), 't': float(t)}
      for (x, y), t in zip(walk, np.linspace(0, WORDS * 0.4, 700), strict=True)
    ]
    timed = [
      {'utterance': w, 'start_time': float(s), 'end_time': float(s) + 0.3}
      for w, s in zip(words, starts, strict=True)
    ]
    lines.append(
      json.dumps(
        {
          'dataset_id': 'made',
          'image_id': str(i),
          'annotator_id': 0,
          'caption': ' '.join(words),
          'timed_caption': timed,
          'traces': [trace],
        }
      )
    )
  (root / 'a.jsonl').write_text('\n'.join(lines))
  texts = [json.loads(line)['caption'] for line in lines]
  texts += [' '.join(tasks.NARRATE.prompts)] * 20
  path = str(root / 'v.model')
  vocabulary_lib.train(texts, path, 200)
  build.build(
    'localized_narratives',
    str(root / 'a.jsonl'),
    str(root / 'images'),
    str(root / 'records'),
  )
  registry.use_vocabulary(vocabulary_lib.Vocabulary(path))
  return path


# What is timed: functions that give an iterator of batches.


def ours(root: pathlib.Path) -> Iterator:
  """The training loader on records."""
  registry.add_task(
    'made_narrate',
    registry.RecordSource(str(root / 'records')),
    tasks.NARRATE,
    augmentation=AUGMENTATION,
    replace=True,
  )
  streams = {'s': loader.Stream('made_narrate', SIZES)}
  return loader.Loader(streams, 0, process=(0, 1), workers=1).batches(0)


def theirs(root: pathlib.Path, vocabulary: str) -> Iterator:
  """The research code's chain for narratives, with its flip beside it."""
  from scenic.projects.pixel_llm import tokenizers
  from scenic.projects.pixel_llm.io import ops
  from scenic.projects.t5 import tokenizer

  tokenizers.t5_tokenizer = tokenizer
  tokenizer.SP_MODEL_PATH = vocabulary
  write_tfrecords(root)
  # Its flexio makes these of the specification in its config.
  chain = [
    ops.DecodeLocalizedNarrativesAnnotations('t5', 1, LENGTH, 2),
    ops.RandomHorizontalFlip(),
    ops.RandomRatioResize(*AUGMENTATION.scale, SIDE),
    ops.FixedSizeCrop(SIDE),
    ops.InitPaddingMask(),
    ops.PadImages(SIDE, SIDE),
    ops.PadCaptionAnnotations(1),
    ops.PadLocoAnnotations(1, 2),
    ops.AddPromptTokens('t5', 1, list(tasks.NARRATE.prompts), CONTEXT, True),
    ops.AddPromptBoxes(),
    ops.AddTaskMask(['point', 'caption']),
  ]
  text, numbers = (
    tf.io.VarLenFeature(tf.string),
    tf.io.VarLenFeature(tf.float32),
  )

  def parse(record):
    context, sequence = tf.io.parse_single_sequence_example(
      record,
      {
        'image/encoded': tf.io.FixedLenFeature([], tf.string),
        'image/id': text,
        'caption/string': text,
      },
      {
        'caption/utterance': text,
        'caption/center': numbers,
        'caption/bbox': numbers,
      },
    )
    features = {**context, **sequence}
    for op in chain:
      features = op(features)
    return features

  ds = tf.data.TFRecordDataset(str(root / 'theirs.tfrecord')).repeat()
  ds = ds.map(parse, num_parallel_calls=1).batch(BATCH, drop_remainder=True)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  return iter(ds.prefetch(2).with_options(options))


def write_tfrecords(root: pathlib.Path) -> None:
  """The records as its builder writes them."""
  source = records.RecordSet(str(root / 'records'), 'train')
  whole = lambda value: tf.train.Feature(
    bytes_list=tf.train.BytesList(value=[value])
  )
  with tf.io.TFRecordWriter(str(root / 'theirs.tfrecord')) as writer:
    for record in source:
      example = example_lib.from_bytes(record)
      region = example.regions[0]
      said = [region.text[a:b].encode() for a, b in region.spans]
      lists = tf.train.FeatureLists(
        feature_list={
          'caption/utterance': tf.train.FeatureList(
            feature=[
              tf.train.Feature(bytes_list=tf.train.BytesList(value=said))
            ]
          ),
          **{
            name: tf.train.FeatureList(
              feature=[
                tf.train.Feature(
                  float_list=tf.train.FloatList(value=values.ravel())
                )
              ]
            )
            for name, values in (
              ('caption/center', region.span_centers),
              ('caption/bbox', region.span_boxes),
            )
          },
        }
      )
      writer.write(
        tf.train.SequenceExample(
          context=tf.train.Features(
            feature={
              'image/encoded': whole(example.image),
              'image/id': whole(example.image_id.encode()),
              'caption/string': whole(region.text.encode()),
            }
          ),
          feature_lists=lists,
        ).SerializeToString()
      )


class Rows:
  """The same examples for Grain and PyTorch: Pillow, and SentencePiece."""

  def __init__(self, root: pathlib.Path, vocabulary: str):
    self._rows = records.RecordSet(str(root / 'records'), 'train')
    self._vocabulary = vocabulary_lib.Vocabulary(vocabulary)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    example = example_lib.from_bytes(self._rows[index])
    rng = np.random.default_rng(index)
    picture = Image.open(io.BytesIO(example.image)).convert('RGB')
    longer = int(SIDE * rng.uniform(*AUGMENTATION.scale))
    scale = longer / max(picture.size)
    size = [round(s * scale) for s in picture.size]
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    x, y = (int(rng.uniform(0, max(0, s - SIDE) + 1)) for s in size)
    picture = picture.crop(
      (x, y, min(x + SIDE, size[0]), min(y + SIDE, size[1]))
    )
    if rng.random() < 0.5:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[: picture.height, : picture.width] = np.asarray(picture)
    ids = self._vocabulary.encode(example.regions[0].text)[: LENGTH - 1]
    tokens = np.zeros(LENGTH, np.int32)
    tokens[: len(ids) + 1] = [*ids, 1]
    return {'image': canvas, 'tokens': tokens}


def grains(root: pathlib.Path, vocabulary: str) -> Iterator:
  """Grain, one thread."""
  import grain

  ds = grain.MapDataset.source(Rows(root, vocabulary)).seed(0).shuffle()
  ds = ds.repeat().to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=32)
  )
  return iter(ds.batch(BATCH))


def torchs(root: pathlib.Path, vocabulary: str) -> Iterator:
  """PyTorch's DataLoader, in this process."""
  import torch
  from torch.utils.data import DataLoader

  torch.set_num_threads(1)
  data = DataLoader(Rows(root, vocabulary), BATCH, shuffle=True, drop_last=True)
  return itertools.chain.from_iterable(itertools.repeat(data))


def measure(batches: Iterator, count: int) -> tuple[float, float]:
  """CPU and wall seconds an example."""
  for _ in range(4):
    next(batches)
  cpu, wall = time.process_time(), time.perf_counter()
  for _ in range(count):
    next(batches)
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return cpu / count / BATCH, wall / count / BATCH


def speed(args: argparse.Namespace, root: pathlib.Path) -> None:
  """The table."""
  vocabulary = generate(root, args.images)
  size = np.mean([p.stat().st_size for p in (root / 'images').iterdir()])
  print(
    f'{args.images} images of {size / 1000:.0f} kB, {WORDS} words, batches of '
    f'{BATCH} at {SIDE} px; best of {args.runs} runs of {args.batches} batches'
  )
  sides: dict[str, Callable[[], Iterator]] = {'pixel_llm': lambda: ours(root)}
  if args.scenic:
    sides['research code'] = lambda: theirs(root, vocabulary)
  for name, make in (('grain', grains), ('torch', torchs)):
    try:
      version = __import__(name).__version__
    except ImportError:
      print(f'{name}: not installed')
      continue
    sides[f'{name} {version}'] = lambda make=make: make(root, vocabulary)
  best: dict[str, tuple[float, float]] = {}
  for _ in range(args.runs):
    for name, make in sides.items():
      batches = make()
      found = measure(batches, args.batches)
      del batches
      best[name] = min(best.get(name, (np.inf, np.inf)), found)
  base = best['pixel_llm'][0]
  print(
    '                     CPU ms/example  examples/s of a core  wall/s  ours'
  )
  for name, (cpu, wall) in best.items():
    print(
      f'{name:20} {cpu * 1e3:14.2f} {1 / cpu:21.0f} {1 / wall:7.0f} '
      f'{cpu / base:5.2f} x'
    )


class Repeated:
  """As many rows as asked for, of one record."""

  def __init__(self, record: bytes, count: int):
    self._record, self._count = record, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < self._count:
      raise IndexError(index)
    return self._record


def scale(root: pathlib.Path) -> None:
  """Start and memory against position and size."""
  generate(root, 4)
  record = records.RecordSet(str(root / 'records'), 'train')[0]
  members = {
    'coco_made': (118_287, 1.0),
    'web_made': (10**9, 3.7),
    'small_made': (5_000, 0.01),
  }
  for name, (count, _) in members.items():
    registry.add_task(
      name,
      registry.SequenceSource(
        {'train': Repeated(record, count)}, example_lib.from_bytes
      ),
      tasks.NARRATE,
      augmentation=AUGMENTATION,
      replace=True,
    )
  seqio.MixtureRegistry.add('made', [(k, r) for k, (_, r) in members.items()])
  print('mixture            step  first batch, s  peak RSS, MB')
  for mixture in ('coco_made', 'made'):
    for step in (0, 1000, 10**6, 10**9):
      streams = {'s': loader.Stream(mixture, SIZES)}
      began = time.perf_counter()
      batches = loader.Loader(streams, 0, process=(0, 1)).batches(step)
      next(batches)
      seconds = time.perf_counter() - began
      batches.close()
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
      print(f'{mixture:12} {step:10} {seconds:15.2f} {peak:13.0f}')


def main() -> None:
  """Prints what it ran against, and the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scenic', help='checkout of google-research/scenic')
  parser.add_argument('--dmvr', help='checkout of google-deepmind/dmvr')
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--batches', type=int, default=24)
  parser.add_argument('--runs', type=int, default=5)
  parser.add_argument('--scale', action='store_true')
  args = parser.parse_args()
  print(
    f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, '
    f'load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, '
    f'TensorFlow {tf.__version__}, seqio {seqio.__version__}'
  )
  if args.scenic:
    # Its tokenizer's base class imports one that is not used here.
    sys.modules['clip'] = types.ModuleType('clip')
    sys.modules['clip.simple_tokenizer'] = types.ModuleType('simple_tokenizer')
    sys.path[:0] = [args.scenic, args.dmvr]
    for path in (args.scenic, args.dmvr):
      head = subprocess.run(
        ['git', '-C', path, 'rev-parse', '--short', 'HEAD'],
        capture_output=True,
        text=True,
        check=False,
      ).stdout.strip()
      print(f'{path}: {head or "no checkout of git"}')
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    scale(root) if args.scale else speed(args, root)


if __name__ == '__main__':
  main()
