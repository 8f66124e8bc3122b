# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Narrated scenes: a small data set of our own in the public file formats.

Nothing can be downloaded at the first run, so it is made: images of coloured
shapes, narratives with mouse traces, referring expressions and regions, as
files that the readers of the real data sets read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from pixel_llm import files
from pixel_llm.data import scene_images, scene_text, scene_voices
from pixel_llm.data.scene_images import COLORS, PATTERNS, SHAPES, SIZES, Scene

__all__ = ['COLORS', 'PATTERNS', 'SHAPES', 'SIZES', 'generate']

VERSION = 1  # of the generator: other code, other bytes
SPLITS = ('train', 'val')

_CHUNK = 32  # images of one part, the unit of work and of resuming
_QUALITY = 90
_MANIFEST = 'scenes.json'
_PARTS = '.parts'
_NARRATORS = 2  # of each image
_ABSENT = 3  # expressions of each image that mean nothing there
_DATE = '2026-01-01 00:00:00'


def generate(
  out: str,
  seed: int,
  train: int,
  val: int,
  workers: int | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes images and annotations; the same seed gives the same bytes.

  An image depends on the seed, its split and its index only, so that a larger
  set begins with the smaller one. A killed run goes on where it was when it is
  repeated; a finished one is left alone.

  Args:
    out: directory, made if need be.
    seed: not negative.
    train: images of the training split.
    val: images of the validation split.
    workers: processes, by default one a core; 1 makes none.
    progress: called with the images done and in all.

  Raises:
    ValueError: the arguments, or a directory that holds something else.
  """
  arguments = {'version': VERSION, 'seed': seed, 'train': train, 'val': val}
  for name, value in arguments.items():
    if value < 0:
      raise ValueError(f'{name}: expected a number >= 0, got {value}.')
  if not train + val:
    raise ValueError('train, val: expected at least one image, got 0 and 0.')
  root = pathlib.Path(out)
  if _finished(root, arguments):
    return

  counts = {'train': train, 'val': val}
  parts = root / _PARTS
  for folder in (
    parts,
    root / 'annotations' / 'refer',
    *(root / 'images' / split for split in SPLITS),
  ):
    folder.mkdir(parents=True, exist_ok=True)
  jobs = [
    (split, begin, min(begin + _CHUNK, counts[split]))
    for split in SPLITS
    for begin in range(0, counts[split], _CHUNK)
  ]
  done = 0
  open_jobs = []
  for job in jobs:
    if _part(root, job).exists():
      done += job[2] - job[1]
    else:
      open_jobs.append(job)
  if progress:
    progress(done, train + val)
  for job in _run(
    functools.partial(_write_part, root, seed), open_jobs, workers
  ):
    done += job[2] - job[1]
    if progress:
      progress(done, train + val)

  _write_annotations(root, jobs)
  files.write(root / 'README', _readme(arguments).encode())
  files.write(root / _MANIFEST, _json({**arguments, 'complete': True}))
  shutil.rmtree(parts)


def _finished(root: pathlib.Path, arguments: dict[str, int]) -> bool:
  """Whether there is nothing to do; claims the directory if there is."""
  manifest = root / _MANIFEST
  if not manifest.exists():
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
      raise ValueError(
        f'{root}: expected a new or empty directory, or one with scenes, found '
        f'other files and no {_MANIFEST}.'
      )
    root.mkdir(parents=True, exist_ok=True)
    files.write(manifest, _json({**arguments, 'complete': False}))
    return False
  try:
    found = json.loads(manifest.read_bytes())
    same = {name: found[name] for name in arguments} == arguments
    complete = bool(found['complete'])
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'{manifest}: expected the arguments of a set of scenes, found '
      f'something else ({e!r}).'
    ) from e
  if not same:
    raise ValueError(
      f'{root}: holds scenes of other arguments: expected {_show(arguments)}, '
      f'found {_show(found)}. Choose another directory.'
    )
  return complete


def _show(arguments: dict[str, Any]) -> str:
  return ', '.join(f'{k} {v}' for k, v in arguments.items() if k != 'complete')


Job = tuple[str, int, int]  # split, first index, index after the last


def _run(
  work: Callable[[Job], None], jobs: list[Job], workers: int | None
) -> Iterator[Job]:
  """Does the jobs, each yielded when it is done."""
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  if workers <= 1:
    for job in jobs:
      work(job)
      yield job
    return
  # Not forked: the caller may have threads (JAX, TensorFlow).
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
    futures = {pool.submit(work, job): job for job in jobs}
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
        yield futures[future]
    finally:
      pool.shutdown(cancel_futures=True)


def _part(root: pathlib.Path, job: Job) -> pathlib.Path:
  return root / _PARTS / f'{job[0]}-{job[1]:07d}-{job[2]:07d}.json'


def _write_part(root: pathlib.Path, seed: int, job: Job) -> None:
  """Makes the images of a part, then what will go into the annotations.

  The file of the part appears last and at once: where it is, so are its images.
  """
  split, begin, end = job
  rows = []
  for index in range(begin, end):
    row, jpeg = _make(seed, split, index)
    (root / 'images' / split / row['image']['file_name']).write_bytes(jpeg)
    rows.append(row)
  files.write(_part(root, job), _json(rows))


def _make(seed: int, split: str, index: int) -> tuple[dict[str, Any], bytes]:
  """One image: its annotations, still without running numbers, and its file."""
  # Streams of their own: a change of the wording leaves the pictures alone.
  entropy = (seed, SPLITS.index(split), index)
  layout, paint, text, missing = (
    np.random.Generator(np.random.PCG64(s))
    for s in np.random.SeedSequence(entropy).spawn(4)
  )
  scene = scene_images.sample(layout)
  jpeg = io.BytesIO()
  Image.fromarray(scene_images.draw(scene, paint)).save(
    jpeg, 'JPEG', quality=_QUALITY
  )

  # Even and odd: unique over the splits, whatever their sizes.
  image_id = len(SPLITS) * index + SPLITS.index(split) + 1
  row = {
    'image': {
      'license': 1,
      'file_name': f'{image_id:012d}.jpg',
      'coco_url': '',
      'height': scene.height,
      'width': scene.width,
      'date_captured': _DATE,
      'flickr_url': '',
      'id': image_id,
    },
    'objects': [_object(scene, i, image_id) for i in range(len(scene.things))],
    'captions': scene_text.captions(scene, text),
    'expressions': [
      _sentences(scene, i, text) for i in range(len(scene.things))
    ],
    'regions': [
      region
      for i in range(len(scene.things))
      for region in _regions(scene, i, image_id, text)
    ],
    'narratives': _narratives(scene, split, image_id, index == 0, text),
    'absent': scene_text.absent(scene, missing, _ABSENT),
  }
  return row, jpeg.getvalue()


def _object(scene: Scene, index: int, image_id: int) -> dict[str, Any]:
  """An annotation of `instances`, without its id."""
  thing = scene.things[index]
  left, top, right, bottom = thing.box.tolist()
  return {
    'segmentation': [thing.outline.ravel().tolist()],
    'area': round(thing.area, 4),
    'iscrowd': 0,
    'image_id': image_id,
    'bbox': [left, top, round(right - left, 2), round(bottom - top, 2)],
    'category_id': SHAPES.index(thing.look.shape) + 1,
  }


def _sentences(
  scene: Scene, index: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
  """Sentences of a REFER reference, without their ids."""
  sentences = []
  for _, sent in scene_text.refer(scene, index, rng, int(rng.integers(1, 4))):
    raw = sent
    # As typed by people: some write whole sentences.
    if rng.random() < 0.06:
      raw = raw[0].upper() + raw[1:] + '.'
    sentences.append({'tokens': sent.split(), 'raw': raw, 'sent': sent})
  return sentences


def _regions(
  scene: Scene, index: int, image_id: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
  """One or two Visual Genome regions, without their ids."""
  thing = scene.things[index]
  left, top = np.floor(thing.box[:2]).astype(int).tolist()
  right, bottom = np.ceil(thing.box[2:]).astype(int).tolist()
  phrases = dict.fromkeys(
    scene_text.name(thing.look, rng, 0.6, 0.7, article=rng.random() < 0.6)
    for _ in range(rng.integers(1, 3))
  )
  return [
    {
      'width': right - left,
      'height': bottom - top,
      'image_id': image_id,
      'phrase': phrase,
      'y': top,
      'x': left,
    }
    for phrase in phrases
  ]


def _narratives(
  scene: Scene,
  split: str,
  image_id: int,
  odd: bool,
  rng: np.random.Generator,
) -> list[str]:
  """Lines of Localized Narratives; an odd one opens as some real ones do."""
  voices = rng.choice(len(scene_text.VOICES), _NARRATORS, replace=False)
  lines = []
  for number in voices:
    voice = scene_text.VOICES[number]
    pieces = scene_text.narrative(scene, voice, rng)
    utterances = scene_voices.speak(pieces, voice, rng)
    trace = scene_voices.point(scene, utterances, voice, rng)
    timed: list[dict[str, Any]] = [
      {'utterance': u.text, 'start_time': u.start, 'end_time': u.end}
      for u in utterances
    ]
    if odd or rng.random() < 0.005:
      # Whole numbers, nothing long, and the next from the same moment.
      timed[0].update(start_time=0, end_time=0)
      timed[1].update(start_time=0)
    name = f'scenes_{split}'
    recording = f'{name}/{name}_{image_id}_{voice.annotator_id}.ogg'
    lines.append(
      json.dumps(
        {
          'dataset_id': name,
          'image_id': str(image_id),
          'annotator_id': voice.annotator_id,
          'caption': ' '.join(p.text for p in pieces),
          'timed_caption': timed,
          'traces': [
            [{'x': x, 'y': y, 't': t} for x, y, t in segment.tolist()]
            for segment in trace
          ],
          'voice_recording': recording,
        }
      )
    )
  return lines


def _write_annotations(root: pathlib.Path, jobs: list[Job]) -> None:
  """Numbers what the parts hold and writes it in every format."""
  folder = root / 'annotations'
  writer = _Numbered()
  for split in SPLITS:
    narratives = folder / f'scenes_{split}_localized_narratives.jsonl'
    expressions = folder / f'scenes_{split}_expressions.jsonl'
    writer.begin(split)
    with _replacing(narratives) as said, _replacing(expressions) as meant:
      for job in jobs:
        if job[0] == split:
          for row in json.loads(_part(root, job).read_bytes()):
            writer.add(row)
            said.writelines(f'{line}\n'.encode() for line in row['narratives'])
            meant.write(f'{json.dumps(_line(row))}\n'.encode())
    for name, values in writer.files().items():
      files.write(folder / name, _json(values))
  for name, data in writer.refer_files().items():
    files.write(folder / 'refer' / name, data)


def _line(row: dict[str, Any]) -> dict[str, Any]:
  """Expressions of an image in our own format, also those that mean nothing."""
  image, regions = row['image'], []
  for thing, sentences in zip(row['objects'], row['expressions']):
    left, top, width, height = thing['bbox']
    box = [left, top, round(left + width, 2), round(top + height, 2)]
    for sentence in sentences:
      at = {'box': box, 'mask': thing['segmentation']}
      regions.append({'text': sentence['sent'], **at})
  regions += [{'text': text, 'absent': True} for text in row['absent']]
  return {
    'image': image['file_name'],
    'image_id': str(image['id']),
    'width': image['width'],
    'height': image['height'],
    'regions': regions,
  }


class _Numbered:
  """Gives running ids to annotations, and collects them by file."""

  def __init__(self):
    self._refs: list[dict[str, Any]] = []
    self._images: list[dict[str, Any]] = []
    self._objects: list[dict[str, Any]] = []
    self._last: collections.Counter[str] = collections.Counter()

  def _id(self, kind: str) -> int:
    self._last[kind] += 1
    return self._last[kind]

  def begin(self, split: str) -> None:
    """Starts the files of a split."""
    self._split = split
    self._first = len(self._images), len(self._objects)
    self._captions: list[dict[str, Any]] = []
    self._regions: list[dict[str, Any]] = []
    self._image_data: list[dict[str, Any]] = []
    self._mdetr_images: list[dict[str, Any]] = []
    self._mdetr_objects: list[dict[str, Any]] = []

  def add(self, row: dict[str, Any]) -> None:
    """One image."""
    image = row['image']
    self._images.append(image)
    for caption in row['captions']:
      self._captions.append(
        {
          'image_id': image['id'],
          'id': self._id('caption'),
          'caption': caption,
        }
      )
    regions = [{'region_id': self._id('region'), **r} for r in row['regions']]
    self._regions.append({'regions': regions, 'id': image['id']})
    self._image_data.append(
      {
        'width': image['width'],
        'url': f'images/{self._split}/{image["file_name"]}',
        'height': image['height'],
        'image_id': image['id'],
        'coco_id': None,
        'flickr_id': None,
      }
    )
    for thing, sentences in zip(row['objects'], row['expressions']):
      thing = {**thing, 'id': self._id('object')}
      self._objects.append(thing)
      if sentences:
        self._refer(image, thing, sentences)

  def _refer(
    self,
    image: dict[str, Any],
    thing: dict[str, Any],
    sentences: list[dict[str, Any]],
  ) -> None:
    numbered = [{**s, 'sent_id': self._id('sentence')} for s in sentences]
    stem = image['file_name'].removesuffix('.jpg')
    self._refs.append(
      {
        'ann_id': thing['id'],
        'category_id': thing['category_id'],
        # As in the original: a name that no file has.
        'file_name': f'{stem}_{thing["id"]}.jpg',
        'image_id': image['id'],
        'ref_id': len(self._refs) + 1,
        'sent_ids': [s['sent_id'] for s in numbered],
        'sentences': numbered,
        'split': self._split,
      }
    )
    shape = SHAPES[thing['category_id'] - 1]
    for sentence in numbered:
      number = self._id('expression')
      spans = _spans(sentence['tokens'])
      # The word that names the thing, as a parser finds it: the first noun.
      root = next(
        i for i, w in enumerate(sentence['tokens']) if w in (shape, 'object')
      )
      self._mdetr_images.append(
        {
          'file_name': image['file_name'],
          'height': image['height'],
          'width': image['width'],
          'id': number,
          'original_id': image['id'],
          'caption': sentence['sent'],
          'dataset_name': 'scenes',
          'tokens_negative': spans[:root] + spans[root + 1 :],
        }
      )
      self._mdetr_objects.append(
        {
          'area': thing['area'],
          'iscrowd': 0,
          'image_id': number,
          'category_id': thing['category_id'],
          'id': number,
          'bbox': thing['bbox'],
          'original_id': thing['id'],
          'tokens_positive': [spans[root]],
        }
      )

  def files(self) -> dict[str, Any]:
    """What belongs into the files of the split."""
    split = self._split
    images, objects = self._first
    return {
      f'instances_{split}.json': _coco(
        self._images[images:], self._objects[objects:], categories=True
      ),
      f'captions_{split}.json': _coco(
        self._images[images:], self._captions, categories=False
      ),
      f'region_descriptions_{split}.json': self._regions,
      f'image_data_{split}.json': self._image_data,
      f'finetune_scenes_{split}.json': _coco(
        self._mdetr_images, self._mdetr_objects, categories=True
      ),
    }

  def refer_files(self) -> dict[str, bytes]:
    """The files that hold all splits."""
    return {
      'refs(scenes).p': pickle.dumps(self._refs, protocol=4),
      'instances.json': _json(
        _coco(self._images, self._objects, categories=True)
      ),
    }


def _spans(tokens: list[str]) -> list[list[int]]:
  """Begin and end character of each word of a sentence."""
  spans, at = [], 0
  for token in tokens:
    spans.append([at, at + len(token)])
    at += len(token) + 1
  return spans


def _coco(
  images: list[dict[str, Any]],
  annotations: list[dict[str, Any]],
  categories: bool,
) -> dict[str, Any]:
  """A file in COCO's form."""
  values: dict[str, Any] = {
    'info': {
      'description': 'Narrated scenes (generated)',
      'url': '',
      'version': str(VERSION),
      'year': 2026,
      'contributor': 'pixel_llm',
      'date_created': _DATE,
    },
    'licenses': [{'url': '', 'id': 1, 'name': 'Generated: free of rights'}],
  }
  if categories:
    values['categories'] = [
      {'supercategory': 'shape', 'id': i, 'name': shape}
      for i, shape in enumerate(SHAPES, start=1)
    ]
  return {**values, 'images': images, 'annotations': annotations}


def _readme(arguments: dict[str, int]) -> str:
  images = '\n'.join(
    f'  images/{split}: {arguments[split]} JPEG files' for split in SPLITS
  )
  return f"""Narrated scenes

Images of coloured shapes and what people might say about them, made by
`pixel-llm scenes` ({_show(arguments)}).
Everything is generated and free of rights. Same arguments, same bytes.

{images}
  annotations/scenes_SPLIT_localized_narratives.jsonl: Localized Narratives, \
{_NARRATORS} narratives an image, with timed utterances and mouse traces
  annotations/instances_SPLIT.json: COCO instances; a category is a shape
  annotations/captions_SPLIT.json: COCO captions, 2 an image
  annotations/refer/refs(scenes).p, instances.json: REFER, all splits; an \
expression means one thing only
  annotations/finetune_scenes_SPLIT.json: the same expressions as in MDETR
  annotations/scenes_SPLIT_expressions.jsonl: the same in the format of \
data/jsonl.md, and up to {_ABSENT} an image that mean nothing there
  annotations/region_descriptions_SPLIT.json, image_data_SPLIT.json: Visual \
Genome; a phrase names colour and shape

Shapes: {', '.join(SHAPES)}.
Colours: {', '.join(COLORS)}.
Sizes: {', '.join(SIZES)}. Patterns: {', '.join(PATTERNS)}.
Boxes and outlines are of the whole thing, also where another covers it; at \
least {scene_images.VISIBLE:.0%} of each can be seen.
Image ids are unique over the splits. Regions of a thing may share a phrase \
with another thing's.
"""


def _json(values: Any) -> bytes:
  return json.dumps(values).encode()


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[io.BufferedWriter]:
  """A file that appears under its name only once it is whole."""
  temporary = path.with_name(f'{path.name}.tmp')
  with open(temporary, 'wb') as file:
    yield file
  os.replace(temporary, path)
