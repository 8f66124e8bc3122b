# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The answers of an evaluation as a file, and the scores of such a file.

A dump is JSON lines. The first is the spec: what was asked, of which data, of
which parameters, by which code. Every other is a question, in order: what
metrics compare (`target`, `prediction`) and what people look at (`answer`,
`truth`, lists of `Prediction.to_json`). Each line ends with the CRC-32 of the
rest.

Free of TensorFlow, and of any device. Scores are always made of what a dump
holds, so they are the same when they are made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from pixel_llm import config as config_lib
from pixel_llm import files
from pixel_llm.metrics import calibration
from pixel_llm.tasks import task as task_lib

Metric = Callable[[list, list], Mapping[str, float]]

FORMAT = 1
_LINE = re.compile(r'(.*), "crc32": (\d+)\}', re.DOTALL)
# Seconds between writes to a bucket, which takes files whole.
_REMOTE_SECONDS = 30


class DumpError(ValueError):
  """A dump is damaged, cut or of something else; names its file and line."""


@dataclasses.dataclass(frozen=True)
class Dump:
  """What a file of answers holds.

  Attributes:
    path: the file.
    spec: what was asked, and how.
    rows: of each question, in order: `example` (its number in the split),
      `target` and `prediction` as in `Task.metrics`, `answer` and `truth` as
      JSON of each `Prediction` (None where there is nothing to show).
  """

  path: str
  spec: dict[str, Any]
  rows: list[dict[str, Any]]

  @property
  def whole(self) -> bool:
    """All questions are answered."""
    return len(self.rows) == self.spec['questions']

  def metrics(self) -> dict[str, float]:
    """The metrics that its spec names.

    Raises:
      DumpError: one is not to be found.
    """
    return metrics(self.rows, map(self._function, self.spec['code']['metrics']))

  def _function(self, name: str) -> Metric:
    module, _, within = name.partition(':')
    # A dump must not make code run that nobody asked for.
    if module.startswith('pixel_llm.'):
      importlib.import_module(module)
    found = sys.modules.get(module)
    if not hasattr(found, within):
      raise DumpError(
        f'{self.path}:1: metric {name!r} is not there; import {module} before '
        'pixel_llm.train.scoring.score, from Python.'
      )
    return getattr(found, within)


def name(function: Callable) -> str:
  """What a spec calls a metric."""
  where = getattr(function, '__module__', None)
  return f'{where}:{getattr(function, "__qualname__", function)}'


def metrics(
  rows: Sequence[Mapping[str, Any]], functions: Iterable[Metric]
) -> dict[str, float]:
  """What metrics, as of `Task.metrics`, say of some answers."""
  targets = [row['target'] for row in rows]
  predictions = [row['prediction'] for row in rows]
  found: dict[str, float] = {}
  for metric in functions:
    found |= {k: float(v) for k, v in metric(targets, predictions).items()}
  return found


def ranks(
  rows: Sequence[Mapping[str, Any]], task: task_lib.Task
) -> list[float]:
  """How good each answer is, by `Task.rank`; zeros if the task has none."""
  if task.rank is None:
    return [0.0] * len(rows)
  targets = [row['target'] for row in rows]
  found = task.rank(targets, [row['prediction'] for row in rows])
  return [float(x) for x in found]


def reliability(
  rows: Sequence[Mapping[str, Any]], task: task_lib.Task
) -> list[tuple[float, float, int]]:
  """How often answers came true, by how sure they were.

  Returns: the mean score, the share that came true and the number of each bin
    of scores that has some; empty if the task has no `outcomes`.
  """
  if task.outcomes is None:
    return []
  targets = [row['target'] for row in rows]
  true, scores = task.outcomes(targets, [row['prediction'] for row in rows])
  if not len(scores):
    return []
  found = calibration.reliability(true, np.asarray(scores))
  return [
    (float(sure), float(share), int(count))
    for sure, share, count in zip(found.confidence, found.accuracy, found.count)
    if count
  ]


def score(path: str) -> tuple[Dump, dict[str, float]]:
  """A whole dump and its metrics.

  Raises:
    DumpError: see `read`, it is not whole, or a metric is not to be found.
    FileNotFoundError: there is none.
  """
  dump = read(path)
  if not dump.whole:
    raise DumpError(
      f'{path}:{len(dump.rows) + 2}: cut: expected {dump.spec["questions"]} '
      f'answers, found {len(dump.rows)}; the `pixel-llm evaluate` that began '
      'it goes on with it.'
    )
  return dump, dump.metrics()


def flat(
  found: Mapping[str, tuple[str, Mapping[str, float]]],
) -> dict[str, float]:
  """`<capability>/<metric>`; `<SeqIO task>/<metric>` where two share one.

  Args:
    found: SeqIO task -> its capability and metrics.
  """
  names = [capability for capability, _ in found.values()]
  return {
    f'{capability if names.count(capability) == 1 else task}/{k}': v
    for task, (capability, values) in found.items()
    for k, v in values.items()
  }


def dumps(paths: Sequence[str]) -> list[str]:
  """Those files, and all dumps of those that are folders, by name.

  Raises:
    FileNotFoundError: a folder has none.
  """
  found: list[str] = []
  for path in paths:
    if epath.Path(path).is_dir():
      own = sorted(str(p) for p in epath.Path(path).glob('*.jsonl'))
      if not own:
        raise FileNotFoundError(
          f'{path}: no *.jsonl there; expected the folder of an evaluation, '
          'WORKDIR/eval/STEP.'
        )
      found += own
    else:
      found.append(path)
  return found


def digest(value: Any) -> str:
  """16 hexadecimal digits of a value that JSON can hold."""
  text = json.dumps(config_lib.to_dict(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(row: Mapping[str, Any]) -> str:
  """A line, without its end."""
  body = json.dumps(_plain(row))
  return f'{body[:-1]}, "crc32": {zlib.crc32(body.encode())}}}'


def decode(line: str) -> dict[str, Any]:
  """What `encode` made the line of: lists of numbers are arrays.

  Raises:
    ValueError: the line is damaged.
  """
  match = _LINE.fullmatch(line)
  if match is None:
    raise ValueError('expected a JSON object that ends with its crc32')
  body = match[1] + '}'
  if zlib.crc32(body.encode()) != int(match[2]):
    raise ValueError('its crc32 is not that of its content')
  return {k: _arrays(k, v) for k, v in json.loads(body).items()}


def read(path: str) -> Dump:
  """A dump, whole or as far as it came; a last line without its end is left.

  Raises:
    DumpError: a line is damaged or out of place, or it is no dump.
    FileNotFoundError: there is none.
  """
  lines = _lines(epath.Path(path))
  rows: list[dict[str, Any]] | None = None
  try:
    spec = decode(next(lines, ''))['spec']
    if spec['format'] != FORMAT:
      raise ValueError(f'expected format {FORMAT}, found {spec["format"]}')
    rows = []
    for line in lines:
      row = decode(line)
      if row.pop('n') != len(rows) or len(rows) == spec['questions']:
        raise ValueError(
          f'expected question {len(rows)} of {spec["questions"]}, found another'
        )
      rows.append(row)
  except (ValueError, KeyError, TypeError) as e:
    at = 1 if rows is None else len(rows) + 2
    why = f'no {e}' if isinstance(e, KeyError) else e
    raise DumpError(f'{path}:{at}: damaged, or no dump: {why}.') from e
  return Dump(str(path), spec, rows)


class Rows:
  """Answers as a dump would hold them, in memory alone.

  Attributes:
    rows: the answers so far, as they read.
    begun: how many were there before.
  """

  def __init__(self):
    self.rows: list[dict[str, Any]] = []
    self.begun = 0

  def add(self, row: dict[str, Any]) -> str:
    """The answer to the next question; returns its line."""
    line = encode({'n': len(self.rows), **row})
    self.rows.append(decode(line))
    del self.rows[-1]['n']
    return line

  def close(self) -> None:
    """No more answers come."""


class Writer(Rows):
  """Writes a dump line by line, and goes on with one that was begun.

  Args:
    path: the file.
    spec: of the evaluation.
    replace: a dump of another spec is thrown away.
    log: gets a line about a dump that other code began.

  Raises:
    DumpError: there is a dump of another spec, or a damaged one.
  """

  def __init__(
    self,
    path: str,
    spec: dict[str, Any],
    replace: bool,
    log: Callable[[str], None],
  ):
    super().__init__()
    self._path, self._due = epath.Path(path), 0.0
    spec = json.loads(json.dumps(spec))  # as it reads
    if self._path.exists() and not replace:
      there = read(path)
      if self._goes_on(there, spec, log):
        spec, self.rows = there.spec, there.rows
    self.spec, self.begun = spec, len(self.rows)
    if not self.rows:
      files.write(self._path, encode({'spec': spec}) + '\n')
    elif not _ended(self._path):
      kept = [x for _, x in zip(range(1 + self.begun), _lines(self._path))]
      files.write(self._path, ''.join(f'{x}\n' for x in kept))
    self._file = self._path.open('ab')

  def _goes_on(self, there: Dump, spec: dict[str, Any], log) -> bool:
    """Whether it is of this spec, or was made whole by other code."""
    changed = list(config_lib.changes(there.spec, spec))
    other = [c for c in changed if not c[0].startswith('code.')]
    if other:
      lines = (f'{at}: {a!r} -> {b!r}' for at, a, b in other)
      raise DumpError(
        f'{there.path}:1: answers to another evaluation; --force replaces it. '
        'It differs by (there -> here):\n  ' + '\n  '.join(lines)
      )
    if changed and there.whole:
      log(f'{there.path}: answered by other code; --force asks again')
    elif changed:
      log(f'{there.path}: begun by other code: begins again')
    return there.whole or not changed

  def add(self, row: dict[str, Any]) -> str:
    """The answer to the next question; returns its line."""
    line = super().add(row)
    self._file.write(line.encode() + b'\n')
    if time.monotonic() >= self._due:
      self._file.flush()
      if '://' in str(self._path):
        self._due = time.monotonic() + _REMOTE_SECONDS
    return line

  def close(self) -> None:
    """Everything is in the file."""
    self._file.close()


def _lines(path: epath.Path) -> Iterator[str]:
  """The lines that have their end, without it."""
  with path.open('rb') as file:
    for line in file:
      if line.endswith(b'\n'):
        # What is no UTF-8 fails by its crc32.
        yield line[:-1].decode(errors='replace')


def _ended(path: epath.Path) -> bool:
  """Whether the last line has its end."""
  with path.open('rb') as file:
    file.seek(-1, 2)
    return file.read() == b'\n'


def _plain(value: Any) -> Any:
  """As JSON has it; float32 by the fewest digits that say which it is."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, bytes):
    return {'rle': value.decode('ascii')}
  if isinstance(value, (np.ndarray, np.generic)):
    value = np.asarray(value)
    if not value.size:
      return {'empty': list(value.shape)}
    if value.dtype.kind == 'f':
      value = value.astype(np.float32).astype('U').astype(np.float64)
    return value.tolist()
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  return value


def _arrays(key: str, value: Any) -> Any:
  """Undoes `_plain` in what metrics compare."""
  if key not in ('target', 'prediction'):
    return value
  return {k: _array(v) for k, v in value.items()}


def _array(value: Any) -> Any:
  if isinstance(value, dict):
    if 'empty' in value:
      return np.zeros(value['empty'], np.float32)
    if 'rle' in value:
      return value['rle'].encode('ascii')
  first = value
  while isinstance(first, list) and first:
    first = first[0]
  if isinstance(value, list) and isinstance(first, (int, float)):
    return np.asarray(value, np.int32 if type(first) is int else np.float32)
  return value
