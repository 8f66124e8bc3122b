# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-Instruct: questions about an image, and answers."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pixel_llm.data.sources import source
from pixel_llm.data.sources.images import Images, image_names
from pixel_llm.data.sources.source import (
  Entry,
  Item,
  Problem,
  Row,
  RowError,
  Slice,
)
from pixel_llm.example import Region

_TOKEN = '<image>'


class Llava:
  """`llava_instruct_150k.json`, `llava_v1_5_mix665k.json` and their kin.

  Each answer (`gpt`) becomes a region whose `prompt` is the question before it,
  without `<image>`; what was said earlier in the conversation is left out, as
  the research code does. Ids are file, row and turn, since those of the file
  name images. Rows without an image are skipped (`no_image`).

  Args:
    annotations: the JSON files.
    images: directory or archives of the image files.
    split: unused; the files are the split.
    extras: none.

  Source: Liu et al., "Visual Instruction Tuning".
  """

  version = 1
  extras: tuple[str, ...] = ()

  def __init__(
    self,
    annotations: list[str],
    images: str | Sequence[str],
    split: str,
    extras: Mapping[str, str],
  ):
    del split, extras
    self._annotations, self._images = annotations, images

  def index(self) -> tuple[list[Entry], list[Problem]]:
    """Images in order of first appearance."""
    images = Images(self._images)
    groups: dict[str, tuple[str, list[Slice]]] = {}
    problems = []
    for path in self._annotations:
      for i, (offset, length, value) in enumerate(source.read_array(path)):
        row = Row(path, None, f'[{i}]')
        try:
          name = _image(row, value)
        except RowError as e:
          problems.append(e.problem)
        else:
          _, rows = groups.setdefault(_image_id(name), (name, []))
          rows.append(Slice(row, offset, length))
    entries = []
    for image_id, (name, rows) in groups.items():
      found, missing = images.find(*_names(name))
      entries.append(Entry(image_id, found, missing, tuple(rows)))
    return entries, problems

  def read(self, entry: Entry) -> Item:
    """The answers about one image."""
    regions: list[tuple[Row, Region]] = []
    problems: list[Problem] = []
    for piece in entry.rows:
      row = piece.row
      try:
        value = piece.value()
        turns = source.items(
          row.at('conversations'), source.field(row, value, 'conversations')
        )
      except RowError as e:
        problems.append(e.problem)
        continue
      prefix = f'{pathlib.Path(row.file).stem}/{row.field[1:-1]}'
      _answers(row.at('conversations'), turns, prefix, regions, problems)
    return Item(tuple(regions), tuple(problems))


def _answers(
  row: Row,
  turns: list[Any],
  prefix: str,
  regions: list[tuple[Row, Region]],
  problems: list[Problem],
) -> None:
  """Adds the answers of a conversation, and what is none."""
  question: tuple[Row, str] | None = None
  for i, turn in enumerate([*turns, None]):
    at = row.at(f'[{i}]')
    try:
      speaker = 'end'
      if i < len(turns):
        speaker = source.field(at, turn, 'from')
      if speaker in ('human', 'end') and question is not None:
        asked = question[0]
        question = None
        problems.append(
          Problem(asked, 'no_answer', 'an answer of gpt after it', 'none')
        )
      if speaker == 'human':
        question = at, _text(at, turn)
      elif speaker == 'gpt':
        if question is None:
          raise RowError(at, 'no_question', 'a question before it', 'none')
        asked, question = question[1], None
        regions.append(
          (at, Region(id=f'{prefix}/{i}', text=_text(at, turn), prompt=asked))
        )
      elif speaker != 'end':
        raise RowError(
          at.at('from'), 'unknown_speaker', 'human or gpt', source.show(speaker)
        )
    except RowError as e:
      problems.append(e.problem)


def _text(row: Row, turn: Any) -> str:
  value = source.field(row, turn, 'value')
  if isinstance(value, str):
    value = value.replace(_TOKEN, '')
  return source.text(row.at('value'), value)


def _image(row: Row, value: Any) -> str:
  """The name of the one image that a conversation is about."""
  name = source.field(row, value, 'image', 'no_image')
  if isinstance(name, list):
    if len(name) != 1:
      raise RowError(
        row.at('image'), 'several_images', 'one image', source.show(name)
      )
    name = name[0]
  return source.text(row.at('image'), name)


def _is_coco(stem: str) -> bool:
  return len(stem) == 12 and stem.isdigit()


def _image_id(name: str) -> str:
  """COCO's number where it is one of COCO's, else the whole name."""
  stem = os.path.splitext(os.path.basename(name))[0]
  return str(int(stem)) if _is_coco(stem) else name


def _names(name: str) -> list[str]:
  """Names of the file; folders before it count but for COCO's.

  The mixture has images of many data sets, whose bare names collide.
  """
  base = os.path.basename(name)
  stem = os.path.splitext(base)[0]
  parts = name.split('/')
  names = ['/'.join(parts[i:]) for i in range(max(1, len(parts) - 1))]
  return [*names, base, *image_names(stem)] if _is_coco(stem) else names
