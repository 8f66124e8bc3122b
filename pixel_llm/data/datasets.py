# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Our registrations: data set x capability, and mixtures of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import seqio

from pixel_llm import tasks
from pixel_llm.augmentation import Augmentation
from pixel_llm.config import ConfigError
from pixel_llm.data import registry
from pixel_llm.tasks import narrate
from pixel_llm.tasks import task as task_lib

# The published ones, of scenic pixel_llm's configs. Narratives and instructions
# are not changed: they speak of the whole image.
_AS_IT_IS = Augmentation()
_CROPPED = Augmentation(scale=(0.75, 1.25))
_SCALED = Augmentation(flip=0.5, scale=(0.1, 2.0))


@dataclasses.dataclass(frozen=True)
class Registration:
  """A record set's key in the config, a capability, and how it is trained."""

  key: str
  task: task_lib.Task
  augmentation: Augmentation = _AS_IT_IS


# The scenes' vocabulary of colours and shapes is closed, so what a narrative
# names can be checked; their own vocabulary has the first prompt's words alone.
_SCENES_NARRATE = dataclasses.replace(
  tasks.NARRATE,
  prompts=tasks.NARRATE.prompts[:1],
  metrics=(*tasks.NARRATE.metrics, narrate.named_objects),
)

TASKS = {
  'scenes_narrate': Registration('scenes_narratives', _SCENES_NARRATE),
  'scenes_refer': Registration('scenes_refer', tasks.REFER),
  'scenes_segment': Registration('scenes_refer', tasks.SEGMENT),
  'scenes_caption_at': Registration('scenes_regions', tasks.CAPTION_AT),
  'scenes_dense_caption': Registration('scenes_regions', tasks.DENSE_CAPTION),
  'coco_narrate': Registration('coco_narratives', tasks.NARRATE),
  'flickr30k_narrate': Registration('flickr30k_narratives', tasks.NARRATE),
  'ade20k_narrate': Registration('ade20k_narratives', tasks.NARRATE),
  'open_images_narrate': Registration('open_images_narratives', tasks.NARRATE),
  'coco_caption': Registration('coco_captions', tasks.CAPTION, _CROPPED),
  'refcoco_refer': Registration('refcoco', tasks.REFER, _CROPPED),
  'refcoco_plus_refer': Registration('refcoco+', tasks.REFER, _CROPPED),
  'refcocog_refer': Registration('refcocog', tasks.REFER, _CROPPED),
  'refcoco_segment': Registration('refcoco', tasks.SEGMENT, _CROPPED),
  'refcoco_plus_segment': Registration('refcoco+', tasks.SEGMENT, _CROPPED),
  'refcocog_segment': Registration('refcocog', tasks.SEGMENT, _CROPPED),
  'refcocog_caption_at': Registration('refcocog', tasks.CAPTION_AT, _CROPPED),
  'flickr30k_refer': Registration(
    'flickr30k_expressions', tasks.REFER, _CROPPED
  ),
  'mixed_coco_refer': Registration(
    'mixed_coco_expressions', tasks.REFER, _CROPPED
  ),
  'mixed_vg_refer': Registration('mixed_vg_expressions', tasks.REFER, _CROPPED),
  'mixed_coco_segment': Registration(
    'mixed_coco_expressions', tasks.SEGMENT, _CROPPED
  ),
  'vg_caption_at': Registration('visual_genome', tasks.CAPTION_AT, _SCALED),
  'vg_dense_caption': Registration(
    'visual_genome', tasks.DENSE_CAPTION, _SCALED
  ),
  'llava_instruct': Registration('llava', tasks.INSTRUCT),
}
MIXTURES = {
  'scenes': {
    'scenes_narrate': 1.0,
    'scenes_refer': 1.0,
    'scenes_caption_at': 1.0,
  },
  'scenes_regions': {'scenes_refer': 1.0, 'scenes_caption_at': 1.0},
  # Reference: there the three are one set of images, each with all of its
  # expressions.
  'refcoco_all': {
    'refcoco_refer': 1.0,
    'refcoco_plus_refer': 1.0,
    'refcocog_refer': 1.0,
  },
  'refcoco_all_segment': {
    'refcoco_segment': 1.0,
    'refcoco_plus_segment': 1.0,
    'refcocog_segment': 1.0,
  },
  # Pre-training, and training of all at once, as published.
  'narrate': {'coco_caption': 1.0, 'coco_narrate': 2.0},
  'joint': {
    'coco_caption': 3.0,
    'coco_narrate': 1.0,
    'flickr30k_refer': 1.0,
    'mixed_coco_refer': 5.0,
    'mixed_vg_refer': 1.0,
    'vg_dense_caption': 5.0,
    'llava_instruct': 5.0,
  },
}
# Every record set can be asked anything that its records have: a key which is
# not in the table above gets a task `<key>_<capability>` for each of these.
CAPABILITIES = (
  tasks.NARRATE,
  tasks.REFER,
  tasks.SEGMENT,
  tasks.CAPTION_AT,
  tasks.DENSE_CAPTION,
  tasks.CAPTION,
  tasks.INSTRUCT,
)


def registrations(record_sets: Iterable[str]) -> dict[str, Registration]:
  """The tasks of record sets, by name.

  Args:
    record_sets: keys of `TASKS`; one of your own has every capability.
  """
  keys = list(record_sets)
  known = {r.key for r in TASKS.values()}
  own = {
    f'{key}_{task.name}': Registration(key, task)
    for key in keys
    if key not in known
    for task in CAPABILITIES
  }
  return {k: r for k, r in (TASKS | own).items() if r.key in keys}


def register(
  record_sets: Mapping[str, str],
  augmentation: Mapping[str, Augmentation] | None = None,
  prompts: Mapping[str, Sequence[str]] | None = None,
) -> None:
  """Adds every task whose record set is given, and the mixtures they fill.

  Args:
    record_sets: key (of `TASKS`, or one of your own) -> directory.
    augmentation: task -> instead of ours.
    prompts: task -> instead of ours; the first is for evaluation.

  Raises:
    ConfigError: a name in `augmentation` or `prompts` is no task of
      `record_sets`, or a task has no prompt.
    FileNotFoundError: a directory has no records.
  """
  given = registrations(record_sets)
  for option, values in (('augmentation', augmentation), ('prompts', prompts)):
    for name in values or {}:
      if name not in given:
        raise ConfigError(
          f'config data.{option}.{name}: expected a task of data.records: '
          f'{", ".join(sorted(given)) or "there is none"}.'
        )
  open_ = functools.cache(registry.RecordSource)
  for name, registration in given.items():
    task = registration.task
    if prompts and name in prompts:
      if not prompts[name]:
        raise ConfigError(
          f'config data.prompts.{name}: expected at least one text, got none.'
        )
      task = dataclasses.replace(task, prompts=tuple(prompts[name]))
    registry.add_task(
      name,
      source=open_(record_sets[registration.key]),
      task=task,
      augmentation=(augmentation or {}).get(name, registration.augmentation),
      replace=True,
    )
  for name, rates in MIXTURES.items():
    if name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(name)
    if set(given) >= set(rates):
      seqio.MixtureRegistry.add(name, list(rates.items()))


def add_mixtures(mixtures: Mapping[str, Mapping[str, float]]) -> None:
  """Adds those of a config, of tasks that are there by now.

  Args:
    mixtures: name -> task -> rate.

  Raises:
    ConfigError: a task is unknown, or a rate is no positive number.
  """
  known = seqio.TaskRegistry.names()
  for name, rates in mixtures.items():
    for task, rate in rates.items():
      if task not in known or not 0 < rate < math.inf:
        raise ConfigError(
          f'config data.mixtures.{name}.{task}: expected a positive rate of a '
          f'known task ({", ".join(sorted(known))}), got {rate}.'
        )
    if name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, [(k, float(v)) for k, v in rates.items()])
