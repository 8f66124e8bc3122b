# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Our registrations: data set x capability, and mixtures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import seqio

from pixel_llm import tasks
from pixel_llm.data import registry
from pixel_llm.tasks import narrate

# The scenes' vocabulary of colours and shapes is closed, so what a narrative
# names can be checked.
_SCENES_NARRATE = dataclasses.replace(
  tasks.NARRATE, metrics=(*tasks.NARRATE.metrics, narrate.named_objects)
)

# SeqIO task -> (key of the record set in the config, capability).
TASKS = {
  'scenes_narrate': ('scenes_narratives', _SCENES_NARRATE),
  'scenes_refer': ('scenes_refer', tasks.REFER),
  'scenes_caption_at': ('scenes_regions', tasks.CAPTION_AT),
  'coco_narrate': ('coco_narratives', tasks.NARRATE),
  'refcoco_refer': ('refcoco', tasks.REFER),
  'refcoco_plus_refer': ('refcoco+', tasks.REFER),
  'refcocog_refer': ('refcocog', tasks.REFER),
}
MIXTURES = {
  'scenes': {
    'scenes_narrate': 1.0,
    'scenes_refer': 1.0,
    'scenes_caption_at': 1.0,
  },
  'refcoco_all': {
    'refcoco_refer': 1.0,
    'refcoco_plus_refer': 1.0,
    'refcocog_refer': 1.0,
  },
  'scenes_regions': {'scenes_refer': 1.0, 'scenes_caption_at': 1.0},
}


def register(
  record_sets: Mapping[str, str], splits: tuple[str, ...] = ('train', 'val')
) -> None:
  """Adds every task whose record set is given, and the mixtures they fill.

  Args:
    record_sets: key (see `TASKS`) -> directory.
    splits: of the record sets.

  Raises:
    ValueError: a key that no task of ours reads.
  """
  known = {key for key, _ in TASKS.values()}
  for key in record_sets:
    if key not in known:
      raise ValueError(
        f'config data.records: unknown record set {key!r}; known are '
        f'{", ".join(sorted(known))}.'
      )
  added = set()
  for name, (key, task) in TASKS.items():
    if key in record_sets:
      source = registry.RecordSource(record_sets[key], splits)
      registry.add_task(name, source=source, task=task, replace=True)
      added.add(name)
  for name, rates in MIXTURES.items():
    if name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(name)
    if added >= set(rates):
      seqio.MixtureRegistry.add(name, list(rates.items()))
