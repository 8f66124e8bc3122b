# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Annotations and images -> sharded records with a manifest and a report.

The result is a function of the input alone: the same files give the same bytes
whatever the number of workers, and a build that was interrupted goes on with
the shards that are not finished.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import glob
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)
from PIL import Image

from pixel_llm import example, files, image, masks
from pixel_llm.data import published, records
from pixel_llm.data.sources.coco import Captions, RegionCaptions
from pixel_llm.data.sources.images import Member
from pixel_llm.data.sources.jsonl import Jsonl
from pixel_llm.data.sources.llava import Llava
from pixel_llm.data.sources.localized_narratives import LocalizedNarratives
from pixel_llm.data.sources.refcoco import (
  RefCoco,
  RefCocoMdetr,
  RefCocoUninext,
)
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  Source,
  SourceError,
)
from pixel_llm.data.sources.tfds import TfdsCaptions, TfdsRefCoco
from pixel_llm.data.sources.visual_genome import VisualGenome
from pixel_llm.example import Region

# main.py lists the names, too, so as not to import this for `--help`.
NAMES: dict[str, type[Source]] = {
  'coco_captions': Captions,
  'coco_captions_tfds': TfdsCaptions,
  'jsonl': Jsonl,
  'llava': Llava,
  'localized_narratives': LocalizedNarratives,
  'refcoco': RefCoco,
  'refcoco_mdetr': RefCocoMdetr,
  'refcoco_tfds': TfdsRefCoco,
  'refcoco_uninext': RefCocoUninext,
  'visual_genome': VisualGenome,
  'visual_genome_grit': RegionCaptions,
}
_HOLD_IMAGES = {'coco_captions_tfds', 'refcoco_tfds'}
# Raised when the same regions give other records, apart from the schema.
VERSION = 1
_IMAGES_PER_SHARD = 1000
_POLL_SECONDS = 0.2
_QUALITY = 90
_LONGEST = 65535  # of a JPEG
_JPEG = b'\xff\xd8\xff'
_EXCLUDED = 'excluded'
_COUNTS = ('records', 'regions', 'utterances', 'utterances_with_place')

Progress = Callable[[int, int], None]
# Identity -> the record set that has it: of some entries' ids, of bytes.
_Barred = tuple[dict[str, str], dict[str, str]]


class BuildError(ValueError):
  """The build cannot go on; what is finished stays."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a build did.

  Attributes:
    manifest: the content of the manifest.
    path: where it is.
    report: where the skipped rows are listed.
    built: shards written by this call; 0 when all was there already.
  """

  manifest: dict[str, Any]
  path: str
  report: str
  built: int

  def __str__(self) -> str:
    """A few lines for the user."""
    m = self.manifest
    done = 'built' if self.built else 'already built from the same input'
    lines = [
      f'{self.path}: {done}, {m["records"]} images, {m["regions"]} texts, '
      f'{m["utterances_with_place"]} of {m["utterances"]} utterances with a '
      f'place, {len(m["shards"])} shards.'
    ]
    if m['skipped']:
      reasons = ', '.join(f'{k} {n}' for k, n in m['skipped'].items())
      lines.append(
        f'{sum(m["skipped"].values())} rows skipped ({reasons}): see '
        f'{self.report}.'
      )
    if 'published' in m:
      lines.append(published.describe(m['published']).capitalize())
    return '\n'.join(lines)


def build(
  name: str,
  annotations: str,
  images: str | Sequence[str] | None,
  out: str,
  split: str = 'train',
  instances: str | None = None,
  image_data: str | None = None,
  splits: str | None = None,
  expect: str | None = None,
  max_side: int | None = None,
  quality: int | None = None,
  exclude: Sequence[str] = (),
  strict: bool = False,
  workers: int = 1,
  runner: str | None = None,
  runner_options: Sequence[str] = (),
  shards: int | None = None,
  progress: Progress | None = None,
) -> Result:
  """Builds the records of one split of a data set.

  Writes `<split>-00000-of-00004.array_record` and so on, then
  `<split>.report.jsonl` (every skipped row), then `<split>.manifest.json`,
  each whole or not at all. Images are stored as they are in their files; with
  `max_side`, those that are no JPEG or have a longer side are written anew.

  Whether an image file changed is told by its name and size.

  Args:
    name: one of `NAMES`.
    annotations: a file or a glob.
    images: directory, zip or tar of the image files, or several of these;
      directories are searched recursively. None where the annotations hold
      them (names with `tfds`).
    out: directory for the records; made when it is not there.
    split: names the output; where the annotations are of several splits, also
      those to take.
    instances: refcoco's `instances.json`.
    image_data: visual_genome's `image_data.json`.
    splits: visual_genome's lists of image ids, `densecap_splits.json`.
    expect: a data set of `published.COUNTS`; the manifest says whether all of
      its split was given.
    max_side: pixels; the longer side that a stored image may have.
    quality: of the JPEGs that `max_side` writes, 1 to 100, default 90.
    exclude: record sets, `DIR` or `DIR:SPLIT`, whose images are left out, as
      of `records.identities`; without a split all that `DIR` has, but for the
      one that is built.
    strict: stop at the first bad row instead of skipping it, and if not all was
      given that is expected.
    workers: processes; the result does not depend on it. A script that asks
      for several needs the usual `if __name__ == '__main__':`.
    runner: of Apache Beam, which then takes the place of `workers`. Its workers
      find every path of this call under the same name.
    runner_options: options of the pipeline, `--project=...`.
    shards: number of files; default one per thousand images, at least four.
    progress: called with images done and in all.

  Raises:
    SourceError: an input file cannot be used at all.
    RowError: the first bad row, when `strict`.
    BuildError: `out` holds a build of something else, nothing is good, or, when
      `strict`, not all is there that is expected.
  """
  if expect is not None:
    published.check(expect, split)
  given = {'instances': instances, 'image_data': image_data, 'splits': splits}
  extras = {k: path for k, path in given.items() if path is not None}
  options = _options(max_side, quality)
  excluded = _excluded(exclude, out, split)
  if excluded:
    options['exclude'] = sorted(e.name for e in excluded)
  source = _source(name, annotations, images, split, extras)
  files = _expand(annotations) + list(extras.values())
  entries, problems = source.index()
  if strict and problems:
    raise _error(problems[0])
  if not entries:
    raise BuildError(_nothing(annotations, problems))
  if shards is None:
    shards = max(4, -(-len(entries) // _IMAGES_PER_SHARD))
  shards = min(shards, len(entries))
  inputs, key = _digest(name, source, split, shards, files, entries, options)

  directory = pathlib.Path(out)
  directory.mkdir(parents=True, exist_ok=True)
  finished = _finished(directory, split, key, name)
  if finished is not None:
    if strict and finished.manifest['skipped'].keys() - {_EXCLUDED}:
      lines = pathlib.Path(finished.report).read_text().splitlines()
      line = next(x for x in lines if json.loads(x)['reason'] != _EXCLUDED)
      raise BuildError(
        f'{finished.path} was built without strict and skipped rows, the '
        f'first: {line}'
      )
    return _compare(finished, expect, split, len(entries), strict)

  barred = {k: e.label for e in excluded for k in e.identities()}
  contents = {k: v for k, v in barred.items() if k.startswith('sha256 ')}
  jobs = []
  for i in range(shards):
    begin, end = (len(entries) * k // shards for k in (i, i + 1))
    path = directory / f'{split}-{i:05d}-of-{shards:05d}.array_record'
    part = tuple(entries[begin:end])
    ids = {k for entry in part for k in _ids(entry)} & barred.keys()
    jobs.append(
      _Job(
        source=source,
        entries=part,
        path=str(path),
        key=key,
        strict=strict,
        max_side=max_side,
        quality=quality or _QUALITY,
        barred=({k: barred[k] for k in ids}, contents),
      )
    )
  done = {job.path: _load_sidecar(job.path, key) for job in jobs}
  todo = [job for job in jobs if done[job.path] is None]
  before = sum(len(job.entries) for job in jobs) - sum(
    len(job.entries) for job in todo
  )
  if runner is not None:
    built = _run_beam(todo, runner, runner_options)
  else:
    built = _run(todo, workers, before, len(entries), progress)
  for shard in built:
    done[shard['path']] = shard
  result = _finish(
    directory,
    split,
    name,
    source,
    inputs,
    options,
    key,
    problems,
    [done[job.path] or {} for job in jobs],
    len(todo),
    annotations,
    strict,
  )
  return _compare(result, expect, split, len(entries), strict)


# The input.


def _source(
  name: str,
  annotations: str,
  images: str | Sequence[str] | None,
  split: str,
  extras: dict[str, str],
) -> Source:
  if name not in NAMES:
    raise BuildError(
      f'build: expected one of {", ".join(NAMES)}, got {name!r}.'
    )
  if not split or set(split) & set('/\\*?[]'):
    raise BuildError(
      f'build: expected a split that can name a file, got {split!r}.'
    )
  builder = NAMES[name]
  for option, value in extras.items():
    if option not in builder.extras:
      raise BuildError(f'build {name}: takes no {option}, got {value!r}.')
  if (images is None) != (name in _HOLD_IMAGES):
    wanted = 'no images' if images is not None else 'a directory of images'
    raise BuildError(f'build {name}: expected {wanted}, got {images!r}.')
  return builder(_expand(annotations), images or '', split, extras)


def _expand(annotations: str) -> list[str]:
  # Names such as refs(umd).p or a[1].jsonl are files first, patterns second.
  if os.path.isfile(annotations):
    return [annotations]
  paths = sorted(p for p in glob.glob(annotations) if os.path.isfile(p))
  if not paths:
    raise SourceError(f'annotations {annotations}: no such file.')
  return paths


def _digest(
  name: str,
  source: Source,
  split: str,
  shards: int,
  files: list[str],
  entries: list[Entry],
  options: dict[str, Any],
) -> tuple[dict[str, Any], str]:
  """What identifies the build: inputs by name and content, and a digest."""
  listing = hashlib.sha256()
  for entry in entries:
    found = None
    if entry.image is not None:
      # The same from a folder and from an archive of it.
      found = [os.path.basename(str(entry.image)), _size(entry.image)]
    listing.update(json.dumps([entry.image_id, found]).encode() + b'\n')
  inputs = {
    'annotations': [
      {'name': os.path.basename(path), 'sha256': _sha256(path)}
      for path in files
    ],
    'images': listing.hexdigest(),
  }
  arguments = {
    'builder': name,
    'version': [VERSION, source.version],
    'schema': example.SCHEMA,
    'split': split,
    'shards': shards,
    'inputs': inputs,
    **options,
  }
  text = json.dumps(arguments, sort_keys=True)
  return inputs, hashlib.sha256(text.encode()).hexdigest()


def _size(file: str | Member) -> int | None:
  if isinstance(file, Member):
    return file.size
  try:
    return os.path.getsize(file)
  except OSError:
    return None


def _sha256(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _options(max_side: int | None, quality: int | None) -> dict[str, Any]:
  """What changes the stored images, by name; empty when nothing does."""
  if max_side is None:
    if quality is not None:
      raise BuildError(f'build: quality {quality} needs max_side.')
    return {}
  quality = _QUALITY if quality is None else quality
  if not 1 <= max_side <= _LONGEST:
    raise BuildError(
      f'build: expected max_side from 1 to {_LONGEST} pixels, got {max_side}.'
    )
  if not 1 <= quality <= 100:
    raise BuildError(f'build: expected quality from 1 to 100, got {quality}.')
  return {'max_side': max_side, 'quality': quality}


@dataclasses.dataclass(frozen=True)
class _RecordSet:
  """A split whose images are left out."""

  directory: str
  split: str

  @property
  def label(self) -> str:
    return f'{self.directory}, split {self.split}'

  @property
  def name(self) -> list[str]:
    """What identifies it: split and content, wherever it lies."""
    manifest = records.read_manifest(self.directory, self.split)
    return [self.split, manifest['digest']]

  def identities(self) -> dict[str, str]:
    return records.identities(self.directory, self.split)


def _excluded(exclude: Sequence[str], out: str, split: str) -> list[_RecordSet]:
  """The splits that are meant, each once."""
  found: dict[_RecordSet, None] = {}
  for given in exclude:
    directory, splits = given, []
    if not os.path.isdir(given) and ':' in given:
      directory, _, only = given.rpartition(':')
      splits = [only]
    own = os.path.realpath(directory) == os.path.realpath(out)
    if own and splits == [split]:
      raise BuildError(f'exclude {given}: is what is built.')
    if not splits:
      splits = [
        s for s in records.splits(directory) if not (own and s == split)
      ]
    if not splits:
      raise BuildError(f'exclude {given}: holds only what is built.')
    for name in splits:
      found[_RecordSet(directory, name)] = None
  return list(found)


def _ids(entry: Entry) -> list[str]:
  return [records.identity(x) for x in (entry.image_id, *entry.also)]


# One shard.


@dataclasses.dataclass(frozen=True)
class _Job:
  source: Source
  entries: tuple[Entry, ...]
  path: str
  key: str
  strict: bool
  max_side: int | None
  quality: int
  barred: _Barred


def _build_shard(job: _Job, step: Callable[[], None]) -> dict[str, Any]:
  """Writes one shard and its sidecar; returns the sidecar's content."""
  # Of its own: some runners of Beam try a shard twice at the same time.
  temporary = f'{job.path}.{uuid.uuid4().hex}.tmp'
  try:
    writer = ArrayRecordWriter(temporary, records.WRITER_OPTIONS)
    try:
      counts, problems = _write_records(writer, job, step)
    finally:
      writer.close()
    _verify(temporary, counts['records'])
    shard = {
      'key': job.key,
      'path': job.path,
      **{name: counts[name] for name in _COUNTS},
      'bytes': os.path.getsize(temporary),
      'sha256': _sha256(temporary),
      'problems': [_report_line(p) for p in problems],
    }
    # It may speak of another build's shard, which has this one's size.
    pathlib.Path(_sidecar(job.path)).unlink(missing_ok=True)
    os.replace(temporary, job.path)
  except RuntimeError as e:  # what the writer raises, for a full disk too
    raise BuildError(f'{job.path}: cannot be written ({e}).') from e
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)
  _write(_sidecar(job.path), json.dumps(shard))
  return shard


def _write_records(
  writer: Any, job: _Job, step: Callable[[], None]
) -> tuple[collections.Counter[str], list[Problem]]:
  counts: collections.Counter[str] = collections.Counter()
  problems: list[Problem] = []
  for entry in job.entries:
    item = job.source.read(entry)
    made, bad = make(entry, item, job.max_side, job.quality, job.barred)
    problems += bad
    if job.strict and (wrong := [p for p in bad if p.reason != _EXCLUDED]):
      raise _error(wrong[0])
    if made is not None:
      writer.write(example.to_bytes(made))
      weights = [region.span_weights for region in made.regions]
      counts['records'] += 1
      counts['regions'] += len(weights)
      counts['utterances'] += sum(map(len, weights))
      counts['utterances_with_place'] += sum(
        int((w > 0).sum()) for w in weights
      )
    step()
  return counts, problems


def make(
  entry: Entry,
  item: Item,
  max_side: int | None = None,
  quality: int = _QUALITY,
  barred: _Barred = ({}, {}),
) -> tuple[example.Example | None, list[Problem]]:
  """The example of an image, None when nothing of it is good.

  Args:
    entry: the image.
    item: what its source reads of it.
    max_side: as of `build`.
    quality: as of `build`.
    barred: identities that it may not have.

  Returns: the example, and the rows that are lost.
  """
  problems = list(item.problems)
  if not item.regions:
    return None, problems
  try:
    _check_barred(barred, entry, _ids(entry))
    data, rgb = _image(entry, item.image, item.size)
    _check_barred(barred, entry, [records.content(data)])
    stored, size = _stored(data, rgb, max_side, quality)
    if stored is not data:
      _check_barred(barred, entry, [records.content(stored)])
  except _BadImage as e:
    problems += [
      Problem(row, e.reason, e.expected, e.found) for row, _ in item.regions
    ]
    return None, problems
  grid = item.size or (rgb.shape[0], rgb.shape[1])
  return example.Example(
    image=stored,
    image_id=entry.image_id,
    size=size,
    regions=tuple(_resized(region, grid, size) for _, region in item.regions),
  ), problems


def _check_barred(barred: _Barred, entry: Entry, keys: list[str]) -> None:
  """Refuses an image that is also in a record set to keep apart from."""
  for key in keys:
    for sets in barred:
      if key in sets:
        raise _BadImage(
          _EXCLUDED,
          f'an image that is not in {sets[key]}',
          f'image {entry.image_id}, of the same {key}',
        )


def _stored(
  data: bytes, rgb: np.ndarray, max_side: int | None, quality: int
) -> tuple[bytes, tuple[int, int]]:
  """What is kept of a file, and its upright (height, width)."""
  height, width = rgb.shape[:2]
  if max_side is None or (
    data.startswith(_JPEG) and max(height, width) <= max_side
  ):
    return data, (height, width)
  scale = min(1, max_side / max(height, width))
  height, width = (max(1, round(side * scale)) for side in (height, width))
  # Nothing is done to an image that has the size.
  picture = Image.fromarray(rgb).resize(
    (width, height), Image.Resampling.LANCZOS
  )
  out = io.BytesIO()
  picture.save(out, 'JPEG', quality=quality)
  return out.getvalue(), (height, width)


def _resized(
  region: Region, claimed: tuple[int, int], size: tuple[int, int]
) -> Region:
  """The region with its mask on the stored grid: a copy may be smaller."""
  if region.mask is None or claimed == size:
    return region
  mask = masks.resize(region.mask, claimed, size)
  return dataclasses.replace(region, mask=mask)


class _BadImage(ValueError):
  def __init__(self, reason: str, expected: str, found: str):
    super().__init__(found)
    self.reason, self.expected, self.found = reason, expected, found


def _image(
  entry: Entry, held: bytes | None, claimed: tuple[int, int] | None
) -> tuple[bytes, np.ndarray]:
  """The file's bytes and its upright pixels."""
  wanted = f'the image file of {entry.image_id!r}'
  where = str(entry.image or f'the image of {entry.image_id!r}')
  try:
    if held is not None:
      data = held
    elif entry.image is None:
      raise _BadImage('image_missing', wanted, entry.missing)
    elif isinstance(entry.image, Member):
      data = entry.image.read()
    else:
      data = pathlib.Path(entry.image).read_bytes()
    # All of it: the header of a truncated file looks well.
    rgb = image.decode(data, where)
  except OSError as e:
    raise _BadImage('image_missing', wanted, f'{where}: {e.strerror}') from e
  except image.ImageError as e:
    raise _BadImage('image_unreadable', wanted, str(e)) from e
  height, width = rgb.shape[:2]
  if claimed is not None and not _fits((height, width), claimed):
    hint = ''
    if _fits((width, height), claimed):
      hint = ': height and width are mixed up, or the file is turned'
    raise _BadImage(
      'image_size',
      f'an image of {claimed[0]} x {claimed[1]} (height x width) or of '
      'its proportions',
      f'{where} of {height} x {width}{hint}',
    )
  return data, rgb


def _fits(size: tuple[int, int], claimed: tuple[int, int]) -> bool:
  """A copy of another size will do; other proportions move every box."""
  height, width = size
  expected = width * claimed[0] / claimed[1]
  tolerance = 1 + 0.5 * max(width / claimed[1], height / claimed[0])
  return abs(height - expected) <= tolerance


def _verify(path: str, count: int) -> None:
  """A full disk may leave a file that looks complete: reads its index back."""
  try:
    reader = ArrayRecordReader(path)
    found = reader.num_records()
    reader.close()
  except (RuntimeError, OSError) as e:
    raise BuildError(
      f'{path}: expected {count} records, cannot be read back ({e}); is the '
      'disk full?'
    ) from e
  if found != count:
    raise BuildError(
      f'{path}: expected {count} records, found {found}; is the disk full?'
    )


# All shards.


_counter: Any = None


def _start_worker(counter: Any) -> None:
  global _counter
  _counter = counter


def _count() -> None:
  with _counter.get_lock():
    _counter.value += 1


def _work(job: _Job) -> dict[str, Any]:
  return _build_shard(job, _count)


def _run(
  jobs: list[_Job],
  workers: int,
  before: int,
  total: int,
  progress: Progress | None,
) -> Iterator[dict[str, Any]]:
  """Builds shards, in this process or in several; results in their order."""
  report = progress or (lambda done, total: None)
  report(before, total)
  if workers <= 1 or len(jobs) <= 1:
    done = before

    def step():
      nonlocal done
      done += 1
      report(done, total)

    for job in jobs:
      yield _build_shard(job, step)
    return
  # Spawned, not forked: the caller may run threads (JAX, TensorFlow).
  context = multiprocessing.get_context('spawn')
  counter = context.Value('q', 0)
  executor = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(jobs)), context, _start_worker, (counter,)
  )
  try:
    futures = [executor.submit(_work, job) for job in jobs]
    for future in futures:
      while True:
        finished, _ = concurrent.futures.wait([future], _POLL_SECONDS)
        report(before + counter.value, total)
        if finished:
          break
      try:
        yield future.result()
      except concurrent.futures.BrokenExecutor as e:
        raise BuildError(
          'build: a worker process died (out of memory?); finished shards '
          'stay, so that running it again goes on from there.'
        ) from e
  finally:
    executor.shutdown(cancel_futures=True)


def _run_beam(
  jobs: list[_Job], runner: str, options: Sequence[str]
) -> list[dict[str, Any]]:
  """Builds shards in a pipeline; what they need is left as files for it."""
  try:
    import apache_beam as beam  # pyright: ignore
    from apache_beam.options import pipeline_options  # pyright: ignore
  except ImportError as e:
    raise BuildError(
      f'build: runner {runner} needs Apache Beam, found: {e}; pip install '
      "'pixel-llm[beam]'."
    ) from e
  for job in jobs:
    files.write(_job_path(job), pickle.dumps(job))
  try:
    given = pipeline_options.PipelineOptions(list(options))
    with beam.Pipeline(runner, given) as pipeline:
      _ = (
        pipeline
        | beam.Create([_job_path(job) for job in jobs])
        | beam.Reshuffle()
        | beam.Map(_work_file)
      )
    return [_beam_result(job, runner) for job in jobs]
  except (BuildError, RowError, OSError):
    raise
  except Exception as e:
    raise BuildError(
      f'build: runner {runner} failed; finished shards stay, so that running '
      f'it again goes on from there. It says: {e}'
    ) from e
  finally:
    for job in jobs:
      pathlib.Path(_job_path(job)).unlink(missing_ok=True)


def _job_path(job: _Job) -> str:
  return f'{job.path}.job'


def _work_file(path: str) -> None:
  """Builds the shard of a job's file, which it replaces by the error if any."""
  job = pickle.loads(pathlib.Path(path).read_bytes())
  if isinstance(job, _Job):
    try:
      _build_shard(job, lambda: None)
    except (BuildError, RowError, OSError) as e:
      # Beam would try again, and tell with its own traceback.
      files.write(path, pickle.dumps(e))


def _beam_result(job: _Job, runner: str) -> dict[str, Any]:
  shard = _load_sidecar(job.path, job.key)
  if shard is not None:
    return shard
  error = pickle.loads(pathlib.Path(_job_path(job)).read_bytes())
  if isinstance(error, Exception):
    raise error
  raise BuildError(
    f'{job.path}: expected that {runner} writes it, found nothing; do its '
    'workers see the same folder under that name?'
  )


# The output.


def _sidecar(path: str) -> str:
  return f'{path}.json'


def _load_sidecar(path: str, key: str) -> dict[str, Any] | None:
  """What a finished shard says of itself; None when it is to be built."""
  try:
    shard = json.loads(pathlib.Path(_sidecar(path)).read_bytes())
    if shard['key'] == key and os.path.getsize(path) == shard['bytes']:
      return {**shard, 'path': path}
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return None


def _clean(directory: pathlib.Path, split: str, shards: set[str]) -> None:
  """Removes what killed builds left beside the shards of a finished one."""
  for pattern in (
    f'{split}-[0-9][0-9][0-9][0-9][0-9]-of-*.array_record*',
    f'.{split}-[0-9]*.part',
    f'.{split}.*.part',
  ):
    for path in directory.glob(pattern):
      if path.name not in shards:
        path.unlink()


def _finished(
  directory: pathlib.Path, split: str, key: str, name: str
) -> Result | None:
  """The result of an earlier build of the same input, None without one."""
  path = records.manifest_path(str(directory), split)
  if not path.exists():
    return None
  advice = (
    f'give another output directory, or delete {split}-* and {split}.* there'
  )
  try:
    manifest = records.read_manifest(str(directory), split)
  except ValueError as e:
    raise BuildError(f'{e} To do so, {advice}.') from e
  if manifest.get('arguments') != key:
    raise BuildError(
      f'{path}: holds records of other input or arguments (builder '
      f'{manifest.get("builder", {}).get("name")}, here {name}); {advice}.'
    )
  try:
    records.RecordSet(str(directory), split)
  except (FileNotFoundError, ValueError):
    path.unlink()  # shards were lost: the same bytes come again
    return None
  _clean(directory, split, {shard['name'] for shard in manifest['shards']})
  return Result(manifest, str(path), str(_report_path(directory, split)), 0)


def _finish(
  directory: pathlib.Path,
  split: str,
  name: str,
  source: Source,
  inputs: dict[str, Any],
  options: dict[str, Any],
  key: str,
  problems: list[Problem],
  shards: list[dict[str, Any]],
  built: int,
  annotations: str,
  strict: bool,
) -> Result:
  """Writes report and manifest, then drops the sidecars."""
  lines = [_report_line(p) for p in problems]
  lines += [line for shard in shards for line in shard['problems']]
  wrong = [line for line in lines if line['reason'] != _EXCLUDED]
  if strict and wrong:
    raise _error(_problem(wrong[0]))
  total = {k: sum(shard[k] for shard in shards) for k in _COUNTS}
  report = _report_path(directory, split)
  _write(str(report), ''.join(json.dumps(line) + '\n' for line in lines))
  if not total['records']:
    raise BuildError(
      _nothing(annotations, [_problem(line) for line in lines])
      + f' All are listed in {report}.'
    )
  table = [
    {'name': os.path.basename(s['path'])}
    | {k: s[k] for k in ('records', 'bytes', 'sha256')}
    for s in shards
  ]
  manifest = {
    'schema': example.SCHEMA,
    'builder': {'name': name, 'version': [VERSION, source.version]},
    'split': split,
    'arguments': key,
    'inputs': inputs,
    **options,
    **total,
    'skipped': dict(
      sorted(collections.Counter(line['reason'] for line in lines).items())
    ),
    'shards': table,
    'digest': hashlib.sha256(
      json.dumps(table, sort_keys=True).encode()
    ).hexdigest(),
  }
  path = records.manifest_path(str(directory), split)
  _write(str(path), json.dumps(manifest, indent=2) + '\n')
  _clean(directory, split, {shard['name'] for shard in table})
  return Result(manifest, str(path), str(report), built)


def _compare(
  result: Result, expect: str | None, split: str, images: int, strict: bool
) -> Result:
  """Adds to the manifest whether the input is all that was published."""
  if expect is None:
    return result
  manifest = result.manifest
  texts = manifest['regions'] + sum(manifest['skipped'].values())
  comparison = published.compare(expect, split, images, texts)
  if manifest.get('published') != comparison:
    manifest['published'] = comparison
    _write(result.path, json.dumps(manifest, indent=2) + '\n')
  if strict and not comparison['complete']:
    raise BuildError(f'{result.path}: {published.describe(comparison)}')
  return result


def _report_path(directory: pathlib.Path, split: str) -> pathlib.Path:
  return directory / f'{split}.report.jsonl'


def _report_line(problem: Problem) -> dict[str, Any]:
  return {
    'file': problem.row.file,
    'line': problem.row.line,
    'field': problem.row.field,
    'reason': problem.reason,
    'expected': problem.expected,
    'found': problem.found,
  }


def _problem(line: dict[str, Any]) -> Problem:
  return Problem(
    Row(line['file'], line['line'], line['field']),
    line['reason'],
    line['expected'],
    line['found'],
  )


def _error(problem: Problem) -> RowError:
  return RowError(problem.row, problem.reason, problem.expected, problem.found)


def _nothing(annotations: str, problems: list[Problem]) -> str:
  counts = collections.Counter(p.reason for p in problems)
  reasons = ', '.join(f'{k} {n}' for k, n in sorted(counts.items()))
  first = f' The first: {problems[0]}' if problems else ''
  return (
    f'annotations {annotations}: expected at least one good row, found '
    f'{reasons or "no row at all"}.{first}'
  )


def _write(path: str, text: str) -> None:
  try:
    files.write(path, text)
  except OSError as e:
    raise BuildError(f'{path}: cannot be written ({e.strerror}).') from e
