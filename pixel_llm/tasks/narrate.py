# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Narrate: a long caption in which every word has its place.

Source: paper section 3.4, pre-training on Localized Narratives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import logging

from pixel_llm import alignment
from pixel_llm import example as example_lib
from pixel_llm.metrics import captions, objects, points, ptb, traces
from pixel_llm.metrics import meteor as meteor_metric
from pixel_llm.tasks import task as task_lib

# Source: scenic pixel_llm, `pixel_llm_t5_trace.py`. Evaluation asks the
# first. Reference: typing errors are put right.
PROMPTS = (
  'A long image caption: ',
  'A long image description: ',
  'Write a long description for the image. ',
  'Write a long description for the photo. ',
  'Provide a long description of what is presented in the photo. ',
  'Describe the content of the image in detail. ',
  'Can you in detail explain what you see in the image? ',
  'Could you use a few sentences to describe what you perceive in the photo? ',
  'Please provide a long depiction of the picture. ',
  'Using language, provide a long account of the image. ',
  'Use a few sentences to illustrate what is happening in the picture. ',
)


# All texts of an image answer the one question about it.
GROUPS = task_lib.alike(lambda region: None)


def question(region: example_lib.Region) -> task_lib.Question:
  """The narrative; a token's place is the trace's box while it was said."""

  def token_boxes(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes, _, weights = alignment.token_places(region, spans, 'text')
    return boxes, weights

  return task_lib.Question(answer=region.text, token_boxes=token_boxes)


def word_points(targets: list, predictions: list) -> dict[str, float]:
  """Word-point L1 of the read narratives, and of the image's centre."""
  return {
    **points.word_point_l1(targets, predictions),
    **points.word_point_l1_center(targets, predictions),
  }


def written_points(targets: list, predictions: list) -> dict[str, float]:
  """Where the words of the written narrative are, and which were found.

  Nothing, where places of written words are not among the predictions.
  """
  if not all('written_points' in p for p in predictions):
    return {}
  written = [
    {'tokens': p['written_tokens'], 'points': p['written_points']}
    for p in predictions
  ]
  return {
    **points.generated_point_l1(targets, written),
    **points.grounding_recall(targets, written),
    **traces.trace_lbm(targets, written),
  }


def has_meteor() -> bool:
  """Whether METEOR's data is installed; a note, once, where it is not."""
  if not (found := meteor_metric.installed()):
    logging.log_first_n(
      logging.WARNING,
      'METEOR is left out: its data comes with pycocoevalcap, which is not '
      "installed: pip install 'pixel-llm[metrics]'.",
      1,
    )
  return found


def meteor(
  references: Sequence[Sequence[str]], written: Sequence[str]
) -> dict[str, float]:
  """METEOR; nothing, with a note, where its data is not installed."""
  return meteor_metric.meteor(references, written) if has_meteor() else {}


def caption_scores(targets: list, predictions: list) -> dict[str, float]:
  """Scores of the written text; CIDEr-D and BLEU-4 of the baseline caption."""
  references = [t['texts'] for t in targets]
  written = [p['text'] for p in predictions]
  return {
    **captions.cider_d(references, written),
    'bleu_4': captions.bleu(references, written)['bleu_4'],
    **captions.rouge_l(references, written),
    **meteor(references, written),
    **captions.caption_baseline(references, written),
  }


def cider_d(targets: list, predictions: list) -> Sequence[float]:
  """CIDEr-D of each written text."""
  tokens = lambda texts: [ptb.tokenize(text) for text in texts]
  return captions.cider_d_scores(
    [tokens(t['texts']) for t in targets],
    tokens(p['text'] for p in predictions),
  ).tolist()


def named_objects(targets: list, predictions: list) -> dict[str, float]:
  """Precision and recall of the coloured shapes that the text names."""
  references = [t['texts'] for t in targets]
  written = [p['text'] for p in predictions]
  return {
    **objects.object_precision(references, written),
    **objects.object_recall(references, written),
  }


NARRATE = task_lib.Task(
  name='narrate',
  question=question,
  prompts=PROMPTS,
  word_weight=1.0,
  point_weight=1.0,
  generates=True,
  reads=True,
  groups=GROUPS,
  metrics=(word_points, written_points, caption_scores),
  rank=cider_d,
)
