# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Narrated scenes: when each word is said and where the mouse is meanwhile.

As in Localized Narratives, speech comes as utterances of one or several words
with times to a tenth of a second, the mouse as segments of points at about
60 Hz, and the two do not quite agree.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from pixel_llm.data.scene_images import Scene
from pixel_llm.data.scene_text import Piece, Voice

_RATE = 60.0  # points a second
_LATE = 0.2  # seconds that the pointer is early or late, at most
_TURN = 0.55  # seconds for once around a thing
_OUT = 0.15  # seconds from the middle of a thing outwards
_TREMOR = 0.004


@dataclasses.dataclass(frozen=True)
class Utterance:
  """Words of the transcript.

  Attributes:
    text: as transcribed: perhaps in lower case, perhaps without punctuation.
    start: seconds.
    end: seconds.
    target: what the words name, see `scene_text.Piece`.
  """

  text: str
  start: float
  end: float
  target: int | str | None


def speak(
  pieces: list[Piece], voice: Voice, rng: np.random.Generator
) -> list[Utterance]:
  """Cuts a narrative into timed utterances, in order of time."""
  groups: list[tuple[list[str], int | str | None]] = []
  for piece in pieces:
    chunk: list[str] = []
    # Of what names a thing more is said in one breath.
    cut = 0.4 if piece.target is None else 0.2
    spoken = piece.text.split()
    joined = bool(groups) and groups[-1][0] == ['and'] and rng.random() < 0.35
    if joined:
      groups.pop()
      spoken.insert(0, 'and')
    for i, word in enumerate(spoken):
      if chunk and rng.random() < cut and not (joined and i == 1):
        groups.append((chunk, piece.target))
        chunk = []
      chunk.append(word)
    groups.append((chunk, piece.target))

  utterances = []
  now = rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0
  for spoken, target in groups:
    length = voice.tempo * sum(0.5 + 0.1 * len(word) for word in spoken)
    end = now + max(length * rng.uniform(0.85, 1.2), 0.12)
    start_time, end_time = round(now, 1), round(end, 1)
    if target is None and rng.random() < 0.01:
      end_time = start_time
    text = ' '.join(spoken)
    utterances.append(
      Utterance(_transcribed(text, voice), start_time, end_time, target)
    )
    now = end
    if text.endswith('.'):
      now += rng.uniform(0.2, 0.7)
    elif rng.random() < 0.3:
      now += rng.uniform(0.05, 0.25)
  return utterances


def _transcribed(text: str, voice: Voice) -> str:
  if voice.lower:
    text = text.lower()
  return text.replace(',', '').replace('.', '') if voice.bare else text


@dataclasses.dataclass(frozen=True)
class _Stay:
  """The pointer at one target: from when to when, and how it moves there.

  Attributes:
    begin: seconds.
    end: seconds.
    middle: [2] xy, normalized.
    reach: [2], half the extent of the movement, normalized.
    first: angle at which it starts, radians.
    times: when `turns` are completed, seconds.
    turns: whole turns, so that the mean during an utterance is the middle.
  """

  begin: float
  end: float
  middle: np.ndarray
  reach: np.ndarray
  first: float
  times: list[float]
  turns: list[float]

  def at(self, t: np.ndarray, circles: bool) -> np.ndarray:
    """[times, 2] xy."""
    angle = 2 * math.pi * np.interp(t, self.times, self.turns) + self.first
    x = np.cos(angle) if circles else np.sin(2 * angle)
    # Outwards from near the middle, where it waits for the words to come.
    far = np.clip(0.2 + (t - self.begin) / _OUT, 0.2, 1)
    reach = self.reach * far[:, None]
    return self.middle + reach * np.stack([x, np.sin(angle)], axis=-1)


def point(
  scene: Scene,
  utterances: list[Utterance],
  voice: Voice,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """The mouse trace.

  Args:
    scene: where the things are.
    utterances: what is said when.
    voice: whether the pointer circles or scribbles.
    rng: chooses.

  Returns: segments [points, 3] of x, y (normalized, sometimes beyond the image)
    and t (seconds, increasing).
  """
  stays = _stays(scene, utterances, rng)
  last = utterances[-1].end + rng.uniform(0, 0.3)
  steps = int(last * _RATE * 1.2) + 8
  t = 0.01 + np.cumsum(rng.uniform(0.6, 1.4, steps)) / _RATE
  t = t[t < max(last, 0.2)]
  xy = np.empty((len(t), 2))
  lifted = np.zeros(len(t), bool)

  # In from nearby, or over the border in a third of narratives.
  place = stays[0].middle + rng.normal(0, 0.08, 2)
  if rng.random() < 0.35:
    place[rng.integers(2)] = rng.choice([-0.06, 1.05])
  gone = 0.0
  for stay in stays:
    start = stay.at(np.array([stay.begin]), voice.circles)[0]
    # Move, then wait there for the words to come.
    leave = gone + max(stay.begin - gone - 0.4, 0) * rng.uniform(0, 0.15)
    length = min(stay.begin - leave, rng.uniform(0.15, 0.4))
    way = (t >= gone) & (t < stay.begin)
    part = np.clip((t[way] - leave) / max(length, 1e-3), 0, 1)[:, None]
    xy[way] = place + (start - place) * part**2 * (3 - 2 * part)
    if gone and length > 0.1 and rng.random() < 0.25:
      lifted |= (t > leave) & (t < leave + length)
    here = (t >= stay.begin) & (t < stay.end)
    xy[here] = stay.at(t[here], voice.circles)
    place, gone = stay.at(np.array([stay.end]), voice.circles)[0], stay.end
  xy[t >= gone] = place

  tremor = rng.standard_normal((2, len(t) + 6))
  window = np.hanning(9)[1:-1]
  window *= _TREMOR / np.linalg.norm(window)
  for axis in range(2):
    xy[:, axis] += np.convolve(tremor[axis], window, mode='valid')
  trace = np.column_stack([np.round(xy, 4), np.round(t, 3)])
  cuts = np.flatnonzero(np.diff(lifted.astype(np.int8)))
  return [
    segment
    for segment, up in zip(
      np.split(trace, cuts + 1), np.split(lifted, cuts + 1)
    )
    if not up[0]
  ]


def _stays(
  scene: Scene, utterances: list[Utterance], rng: np.random.Generator
) -> list[_Stay]:
  """Where the pointer will be, for each run of words about one target."""
  size = np.array([scene.width, scene.height])
  stays: list[_Stay] = []
  gone = 0.05
  for target, run in itertools.groupby(utterances, key=lambda u: u.target):
    said = list(run)
    if target is None:
      continue
    if isinstance(target, int):
      box = scene.things[target].box.reshape(2, 2) / size
      middle = box.mean(axis=0) + 0.04 * rng.standard_normal(2) * (
        box[1] - box[0]
      )
      reach = (box[1] - box[0]) / 2 * rng.uniform(0.65, 1.0, 2)
      late, turn = rng.uniform(-_LATE, _LATE), _TURN
    else:
      middle = rng.normal(0.5, 0.03, 2)
      reach = rng.uniform(0.3, 0.55, 2)
      late, turn = 0.0, 1.5
    times, turns = [said[0].start], [0.0]
    for utterance in said:
      length = utterance.end - utterance.start
      times += [utterance.start, utterance.end]
      turns += [turns[-1], turns[-1] + max(round(length / turn), 1)]
    begin = max(said[0].start + late, gone + 0.1)
    end = max(said[-1].end + rng.uniform(-0.1, 0.15), begin + 0.1)
    # Most begin at the top, clockwise.
    first = rng.normal(-math.pi / 2, 0.4)
    stays.append(_Stay(begin, end, middle, reach, first, times, turns))
    gone = end
  return stays
