# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""How large the splits of public data sets are, to tell a part from the whole.

Sources: RefCOCO's images and COCO's captions by Karpathy's splits from
TensorFlow Datasets' catalogue, RefCOCO's expressions from the papers that
report on it; Localized Narratives from its paper, whose total of 873,107 these
add up to; Visual Genome and UNINEXT from DenseCap's and GRiT's splits as scenic
pixel_llm, `configs/common.py` counts them.
"""

from __future__ import annotations

from typing import Any

# Data set -> split -> images and texts; None is not known.
COUNTS: dict[str, dict[str, tuple[int, int | None]]] = {
  'coco_captions_2014': {'train': (82783, 414113), 'val': (40504, 202654)},
  'coco_captions_2017': {'train': (118287, 591753), 'val': (5000, 25014)},
  'coco_captions_karpathy': {
    'train': (82783, 414113),
    'restval': (30504, None),
    'val': (5000, 25010),
    'test': (5000, 25010),
  },
  'localized_narratives_ade20k': {'train': (20210, 20529), 'val': (2000, 2000)},
  'localized_narratives_coco': {'train': (118287, 134272), 'val': (5000, 8573)},
  'localized_narratives_flickr30k': {
    'train': (29783, 30546),
    'val': (1000, 1009),
    'test': (1000, 1023),
  },
  'localized_narratives_open_images': {
    'train': (504413, 507444),
    'val': (41620, 41691),
    'test': (125436, 126020),
  },
  'refcoco_google': {
    'train': (19213, None),
    'val': (4559, None),
    'test': (4527, None),
  },
  'refcoco_unc': {
    'train': (16994, 120624),
    'val': (1500, 10834),
    'testA': (750, 5657),
    'testB': (750, 5095),
  },
  'refcoco+_unc': {
    'train': (16992, 120191),
    'val': (1500, 10758),
    'testA': (750, 5726),
    'testB': (750, 4889),
  },
  'refcocog_google': {'train': (24698, 85474), 'val': (4650, 9536)},
  'refcocog_umd': {
    'train': (21899, 80512),
    'val': (1300, 4896),
    'test': (2600, 9602),
  },
  'uninext_flickr30k': {'train': (29778, None)},
  'uninext_mixed': {'train': (28158 + 106635, None)},
  'visual_genome_densecap': {
    'train': (77398, None),
    'val': (5000, None),
    'test': (5000, None),
  },
  'visual_genome_grit': {'train': (77396, None), 'test': (5000, None)},
}


def check(name: str, split: str) -> None:
  """Refuses a data set or split that the table has not.

  Raises:
    ValueError: so it is.
  """
  known = COUNTS.get(name, {})
  if split not in known:
    what = f'a split of {name}' if known else 'a data set'
    raise ValueError(
      f'expect: {what} must be one of {", ".join(known or COUNTS)}, got '
      f'{split if known else name!r}.'
    )


def compare(name: str, split: str, images: int, texts: int) -> dict[str, Any]:
  """What was found beside what was published, for a manifest.

  Args:
    name: a key of `COUNTS`.
    split: of it.
    images: with a text, found.
    texts: found, bad ones included.

  Returns:
    `name`, `complete`, and `images` and `texts` with `expected` and `found`.
  """
  found = {'images': images, 'texts': texts}
  counts = {
    k: {'expected': n, 'found': found[k]}
    for k, n in zip(found, COUNTS[name][split], strict=True)
    if n is not None
  }
  complete = all(c['expected'] == c['found'] for c in counts.values())
  return {'name': name, 'complete': complete, **counts}


def describe(comparison: dict[str, Any]) -> str:
  """The comparison in a sentence."""
  if comparison['complete']:
    return f'complete, as {comparison["name"]} was published.'
  parts = [
    f'{c["found"]} of {c["expected"]} {k}'
    for k, c in comparison.items()
    if isinstance(c, dict)
  ]
  return f'not {comparison["name"]} as published: {", ".join(parts)}.'
