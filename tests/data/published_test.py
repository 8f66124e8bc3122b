# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A build says whether it was given all that was published."""

from __future__ import annotations

import public_formats as formats
import pytest

from pixel_llm.data import build, published, records


@pytest.fixture
def refcoco(tmp_path, monkeypatch):
  images = formats.write_images(tmp_path / 'images', ['7.jpg', '8.jpg'])
  refs, instances = formats.write_refcoco(tmp_path)
  counts = {'train': (1, 3), 'val': (1, 2), 'test': (9, None)}
  monkeypatch.setitem(published.COUNTS, 'tiny', counts)

  def run(split, **options):
    return build.build(
      'refcoco', refs, images, str(tmp_path / 'out'), split=split,
      instances=instances, **options,
    )  # fmt: skip

  return run


def test_complete(refcoco, tmp_path):
  result = refcoco('train', expect='tiny', strict=True)
  assert result.manifest['published'] == {
    'name': 'tiny',
    'complete': True,
    'images': {'expected': 1, 'found': 1},
    'texts': {'expected': 3, 'found': 3},
  }
  assert records.read_manifest(str(tmp_path / 'out'), 'train') == (
    result.manifest
  )
  assert str(result).endswith('\nComplete, as tiny was published.')


def test_a_part(refcoco, tmp_path):
  assert 'published' not in refcoco('val').manifest
  result = refcoco('val', expect='tiny')  # all built already
  assert result.built == 0 and not result.manifest['published']['complete']
  assert str(result).endswith('published: 1 of 1 images, 1 of 2 texts.')
  assert records.read_manifest(str(tmp_path / 'out'), 'val') == result.manifest
  with pytest.raises(build.BuildError, match=r'val\.manifest.*1 of 2 texts'):
    refcoco('val', expect='tiny', strict=True)


def test_bad_names(refcoco):
  with pytest.raises(ValueError, match=r"data set must be one of .*got 'none'"):
    refcoco('train', expect='none')
  with pytest.raises(
    ValueError, match=r'split of tiny must .*val, test, got .x'
  ):
    refcoco('x', expect='tiny')


def test_counts_of_papers_add_up():
  def total(prefix, column):
    return sum(
      counts[column] or 0
      for name, splits in published.COUNTS.items()
      if name.startswith(prefix)
      for counts in splits.values()
    )

  assert total('localized_narratives', 1) == 873107
  for release in ('2014', '2017'):
    assert total(f'coco_captions_{release}', 1) == 616767
    assert total(f'coco_captions_{release}', 0) == 123287
  assert total('coco_captions_karpathy', 0) == 123287
  assert total('refcocog_umd', 1) == total('refcocog_google', 1) == 95010
