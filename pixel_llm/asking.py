# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs that ask a trained model: images in, answers out, by the thousand.

What cannot work is said before the model is loaded. What was answered is never
lost: `--jsonl` holds a line an image, whole or not there, and the same command
goes on behind the last.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import io
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from pixel_llm import exits

_FINDS = ('refer', 'segment')
# As of `Predictor.from_workdir`.
_DECODING = ('beams', 'temperature', 'top_k', 'top_p', 'seed')
_ENDINGS = ('.jpg', '.jpeg', '.png', '.webp')
_PICTURES = ('.png', '.html')

# (title, unit) -> a context with a function of what is done and its total.
Bar = Callable[
  [str, str], contextlib.AbstractContextManager[Callable[[int, int], None]]
]


def run(args: argparse.Namespace, bar: Bar) -> int:
  """Asks; a bad image is reported and costs no other.

  Args:
    args: of a verb that asks.
    bar: shows progress.

  Returns: the exit code, of failure if an image failed.

  Raises:
    ValueError: nothing can be asked so.
    OSError: something cannot be written.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    # Names of files may hold what has no UTF-8.
    sys.stdout.reconfigure(errors='backslashreplace')
  question = _question(args)
  images = find_images(args.image)
  pictures = _picture_paths(args.out, args.png, images)
  ids = _image_ids(args.image_ids, images) if args.coco else {}
  truths: dict[str, list] = {}
  if args.truth:
    if not args.out:
      raise ValueError('--truth is shown in pictures: expected --out too.')
    truths = _truths(args.truth, images)
  for path in filter(None, (args.jsonl, args.coco)):
    if os.path.isdir(path):
      raise ValueError(f'{path}: expected a file, found a folder.')
    if os.path.isfile(path) or not os.path.exists(path):  # no device
      _check_writable(pathlib.Path(path).parent)

  import jax

  from pixel_llm import files
  from pixel_llm import image as image_lib
  from pixel_llm import pictures as pictures_lib
  from pixel_llm import predictor as predictor_lib
  from pixel_llm.prediction import Prediction

  decoding = {k: vars(args).get(k) for k in _DECODING}
  decoding = {k: v for k, v in decoding.items() if v is not None}
  predictor = predictor_lib.Predictor.from_workdir(
    args.workdir,
    **decoding,
    devices=jax.local_devices() if len(images) > 1 else None,
  )
  asked = {'checkpoint': predictor.step, **question.shown, **decoding}
  results: dict[str, list[dict[str, Any]]] = {}
  with contextlib.ExitStack() as stack:
    log = None
    done: dict[str, list] = {}
    if args.jsonl:
      done = _resumed(pathlib.Path(args.jsonl), asked)
      # Unbuffered: nothing is left to write when a full disk ends the run.
      log = stack.enter_context(open(args.jsonl, 'ab', buffering=0))
    if args.coco:
      for path, rows in done.items():
        if path in images:
          answers = map(Prediction.from_json, rows)
          results[path] = [coco_result(p, ids[path]) for p in answers]
    todo = [path for path in images if path not in done]
    tell = stack.enter_context(bar(args.verb, 'images'))
    answers = predictor.ask_many(
      todo,
      question.kind,
      min(args.batch_size, max(len(todo), 1)),
      **question.asked,
    )
    failed = 0
    for i, (path, found) in enumerate(zip(todo, answers, strict=True)):
      if isinstance(found, ValueError):
        print(f'pixel-llm {args.verb}: error: {found}', file=sys.stderr)
        failed += 1
      else:
        if args.json or not (args.jsonl or args.coco):
          for p in found:
            print(to_json(p.to_json()) if args.json else _line(path, p))
        if args.out:
          image = image_lib.load(path)
          truth = truths.get(path)
          sizes = {p.size_orig for p in truth or ()} - {image.shape[:2]}
          if sizes:
            # It costs the picture its truth, not the answers.
            print(
              f'pixel-llm {args.verb}: error: --truth {args.truth}: {path} has '
              f'(height, width) {image.shape[:2]}, its truth {sizes.pop()}.',
              file=sys.stderr,
            )
            failed, truth = failed + 1, None
          pictures_lib.save(pictures[path], image, found, truth)
        if args.coco:
          results[path] = [coco_result(p, ids[path]) for p in found]
        if log is not None:
          row = {
            'image': path,
            'question': asked,
            'answers': [p.to_json() for p in found],
          }
          _append(log, f'{to_json(row)}\n'.encode())
      tell(len(images) - len(todo) + i + 1, len(images))
  if args.coco:
    ordered = [row for path in images for row in results.get(path, ())]
    files.write(args.coco, to_json(ordered))
  if failed and len(images) > 1:
    print(
      f'pixel-llm {args.verb}: {failed} of {len(images)} images failed.',
      file=sys.stderr,
    )
  return exits.FAILED if failed else exits.DONE


@dataclasses.dataclass(frozen=True)
class _Question:
  """What is asked of every image.

  Attributes:
    kind: of `Predictor.ask_many`.
    asked: its arguments.
    shown: both as JSON has them.
  """

  kind: Any
  asked: dict[str, Any]
  shown: dict[str, Any]


def _question(args: argparse.Namespace) -> _Question:
  kind = args.verb.replace('-', '_')
  asked: dict[str, Any] = {}
  shown: dict[str, Any] = {}
  if args.verb in _FINDS:
    if args.expression is None:
      args.image, args.expression = args.image[:1], args.image[1:]
      for text in args.expression:
        if os.path.isfile(text):
          raise ValueError(
            f'{text}: expected an expression, found a file; give expressions '
            'of several images by --expression.'
          )
    if not args.expression:
      raise ValueError('expected an expression behind the image.')
    asked = shown = {'expressions': args.expression}
  elif args.verb == 'caption-at':
    if not (args.box or args.point or args.mask):
      raise ValueError('expected --box, --point or --mask.')
    shown = {'boxes': args.box, 'points': args.point, 'masks': args.mask}
    asked = {
      'boxes_orig': args.box,
      'points_orig': args.point,
      'masks': [_read_mask(path) for path in args.mask],
    }
  elif args.verb == 'dense-caption':
    asked = shown = {'max': args.max, 'threshold': args.threshold}
  # As a row of `--jsonl` has it when it is read again.
  return _Question(kind, asked, json.loads(json.dumps({'kind': kind} | shown)))


def find_images(given: Sequence[str]) -> dict[str, str]:
  """The images of files, folders (all below them) and globs.

  Args:
    given: paths; what is no folder and no glob is taken as it is.

  Returns: path -> its name, below the folder or the glob if it is of one.

  Raises:
    ValueError: a folder or a glob has none.
  """
  found: dict[str, str] = {}
  for text in given:
    if os.path.isdir(text):
      paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(text)
        for name in names
        if name.lower().endswith(_ENDINGS)
      ]
      top = text
    elif os.path.exists(text) or '://' in text or not glob.has_magic(text):
      paths, top = [text], os.path.dirname(text)
    else:
      paths = [p for p in glob.glob(text, recursive=True) if os.path.isfile(p)]
      fixed = re.split(r'[*?[]', text, maxsplit=1)[0]
      top = os.path.dirname(fixed)
    if not paths:
      raise ValueError(
        f'{text}: expected images ({", ".join(_ENDINGS)}), found none.'
      )
    for path in sorted(paths):
      name = path if '://' in path else os.path.relpath(path, top or '.')
      found.setdefault(path, name)
  return found


def _picture_paths(
  out: str | None, png: bool, images: dict[str, str]
) -> dict[str, pathlib.Path]:
  """Where each image's picture goes; the folder is made and tried.

  Raises:
    ValueError: a name that is neither a picture's nor a folder's, or one
      picture for several images.
    OSError: it cannot be written there.
  """
  if out is None:
    return {}
  path = pathlib.Path(out)
  if path.suffix.lower() in _PICTURES and not path.is_dir():
    if len(images) > 1:
      raise ValueError(
        f'--out {out}: expected a folder for {len(images)} images.'
      )
    _check_writable(path.parent)
    return dict.fromkeys(images, path)
  if path.suffix and not path.is_dir():
    raise ValueError(
      f'--out {out}: expected a name that ends in .png or .html, or a folder.'
    )
  _check_writable(path)
  ending = '.png' if png else '.html'
  stems = [os.path.splitext(_below(name))[0] for name in images.values()]
  result: dict[str, pathlib.Path] = {}
  for (image, name), stem in zip(images.items(), stems, strict=True):
    # Of `a.jpg` and `a.png` each has a picture of its own.
    own = stem if stems.count(stem) == 1 else _below(name)
    result[image] = path / f'{own}{ending}'
  _check_distinct(result, f'--out {out}', 'be')
  return result


def _check_distinct(found: dict[str, Any], where: str, verb: str) -> None:
  """Raises ValueError naming the first two images that are given the same."""
  taken: dict[Any, str] = {}
  for image, value in found.items():
    if taken.setdefault(value, image) != image:
      raise ValueError(
        f'{where}: {taken[value]} and {image} would both {verb} {value}.'
      )


def _below(name: str) -> str:
  """A name that leads out of no folder."""
  return name.partition('://')[2].replace('/', '_') if '://' in name else name


def _check_writable(folder: pathlib.Path) -> None:
  """Makes the folder; raises OSError if no file can be made in it."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as e:
    raise OSError(
      e.errno, f'cannot be written: {e.strerror}', str(folder)
    ) from e


def _image_ids(
  path: str | None, images: dict[str, str]
) -> dict[str, int | str]:
  """Of each image its id in COCO's results.

  Raises:
    ValueError: not such a file, or an image is not in it.
  """
  if path is None:
    ids = {p: _id_of_name(os.path.basename(name)) for p, name in images.items()}
    _check_distinct(ids, '--coco without --image-ids', 'have the id')
    return ids
  try:
    with open(path, encoding='utf-8') as file:
      values = json.load(file)
    if 'images' in values:
      values = {i['file_name']: i['id'] for i in values['images']}
    table = {str(name): number for name, number in values.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(
      f'{path}: expected JSON of file names and ids, or with images of '
      f'file_name and id, found: {e!r}.'
    ) from e
  ids = {}
  for image, name in images.items():
    key = _key(table, image, name)
    if key is None:
      raise ValueError(f'{path}: no id of {name}.')
    ids[image] = table[key]
  return ids


def _key(table: dict[str, Any], image: str, name: str) -> str | None:
  """What a table of a user's calls an image: path, name below, or file name."""
  names = (image, name, os.path.basename(name))
  return next((n for n in names if n in table), None)


def _truths(path: str, images: dict[str, str]) -> dict[str, list]:
  """Of each image that the file has what should be answered about it.

  Raises:
    ValueError: a line is no truth, or none is of any of the images.
  """
  from pixel_llm.prediction import Prediction

  found: dict[str, list] = {}
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      try:
        row = json.loads(line)
        answers = [Prediction.from_json(a) for a in row['answers']]
        found.setdefault(str(row['image']), []).extend(answers)
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
          f'{path}:{number}: expected a line as --jsonl writes it, of an image '
          f'and its answers, found {line[:60]!r}: {e}.'
        ) from e
  result = {}
  for image, name in images.items():
    key = _key(found, image, name)
    if key is not None:
      result[image] = found[key]
  if not result:
    raise ValueError(f'{path}: no truth of any image that is asked about.')
  return result


def _id_of_name(name: str) -> int | str:
  """The number of `000000391895.jpg` or `COCO_val2014_000000391895.jpg`."""
  last = os.path.splitext(name)[0].rpartition('_')[2]
  return int(last) if last.isascii() and last.isdigit() else name


def _resumed(
  path: pathlib.Path, asked: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
  """Image -> answers that are there; a line that was cut off is taken away.

  Raises:
    ValueError: a line is none of ours, or answers another question.
  """
  if not path.is_file():
    return {}  # Or it is a device, which has no end to go on behind.
  data = path.read_bytes()
  whole = data.rfind(b'\n') + 1
  if whole < len(data):
    os.truncate(path, whole)
  found = {}
  for number, line in enumerate(data[:whole].splitlines(), 1):
    try:
      row = json.loads(line)
      image, theirs, answers = row['image'], row['question'], row['answers']
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(
        f'{path}:{number}: expected a line that --jsonl wrote, found '
        f'{line[:60]!r}.'
      ) from e
    if theirs != asked:
      raise ValueError(
        f'{path}:{number}: expected answers to {to_json(asked)}, found those '
        f'to {to_json(theirs)}; give another --jsonl.'
      )
    found[image] = answers
  return found


def _append(file: io.FileIO, line: bytes) -> None:
  """Raises OSError, which names the file, if not all of the line is there."""
  left = memoryview(line)
  try:
    while left:
      left = left[file.write(left) :]
  except OSError as e:
    raise OSError(e.errno, e.strerror, file.name) from e


def coco_result(prediction, image_id: int | str) -> dict[str, Any]:
  """An answer as COCO's tools read results.

  A text about the whole image is a `caption`; with a box, of category 1, it is
  `text`, since readers take what has a caption for nothing else.
  """
  p = prediction
  result: dict[str, Any] = {'image_id': image_id}
  box = p.box_orig or p.prompt_box_orig
  if box is None:
    return result | {'caption': p.text}
  # As in the JSON of the answer, so that one read from there is the same.
  x0, y0, x1, y1 = (round(v, 2) for v in box)
  result |= {
    'category_id': 1,
    'bbox': [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
    'score': 1.0 if p.confidence is None else round(p.confidence, 4),
  }
  if p.mask_orig is not None:
    result['segmentation'] = p.to_json()['mask']
  return result | ({'expression': p.prompt} if p.prompt else {'text': p.text})


def to_json(value: Any) -> str:
  """JSON in one line; what has no UTF-8 is escaped."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False)
  try:
    text.encode()
  except UnicodeEncodeError:
    return json.dumps(value, allow_nan=False)
  return text


def _line(path: str, p) -> str:
  """An answer for people."""
  if p.box_orig is None:
    return f'{path}: {p.text}'
  sure = '' if p.confidence is None else f' ({p.confidence:.2f})'
  box = ', '.join(f'{v:.1f}' for v in p.box_orig)
  where = 'not there' if p.there is False else box
  return f'{path}: {p.prompt or p.text}: {where}{sure}'


def _read_mask(path: str):
  """[height, width] bool, where a mask's file is not zero (or transparent).

  Raises:
    ValueError: it cannot be read.
  """
  import numpy as np
  from PIL import Image

  try:
    with Image.open(path) as picture:
      bands = picture.getbands()
      pixels = np.asarray(picture)
  except (OSError, ValueError, SyntaxError) as e:
    raise ValueError(f'--mask {path}: expected an image, found: {e}.') from e
  if pixels.ndim == 2:
    return pixels != 0
  if 'A' in bands:
    return (pixels[..., :-1] != 0).any(-1) & (pixels[..., -1] != 0)
  return (pixels != 0).any(-1)
