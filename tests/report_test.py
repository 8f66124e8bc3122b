# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from PIL import Image

from pixel_llm.prediction import Prediction, Word
from pixel_llm.report import Section, write_report


def photo(seed, size=(480, 640)):
  """Texture on a gradient: about as hard to compress as a photo."""
  random = np.random.default_rng(seed)
  coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
  smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))
  noise = random.normal(0, 10, (*size, 1))
  return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def narrative(text='a small dog runs'):
  words = tuple(
    Word(w, ((9.0 * i, 9.0), (9.0 * i + 5, 20.0)))
    for i, w in enumerate(text.split())
  )
  return Prediction('narrate', 'a.jpg', (480, 640), text, words)


def referred(box):
  return Prediction('refer', 'a.jpg', (480, 640), prompt='it', box_orig=box)


def rows(page):
  """Metric name -> the text of the cells of its row."""
  found = {}
  for row in re.findall(r'<tr><th scope="row">(.*?)</tr>', page, re.S):
    cells = re.split(r'</t[hd]>(?:<td[^>]*>)?', row.replace('<br>', ' '))
    name, *values = (re.sub(r'<[^>]*>', '', c) for c in cells)
    found[name] = values
  return found


def written(path, *args, **kwargs):
  write_report(path, *args, **kwargs)
  return path.read_text(encoding='utf-8')


def test_metrics_stand_beside_targets_and_baselines(tmp_path):
  page = written(
    tmp_path / 'r.html',
    'run',
    {
      'narrate/point_l1': 0.05123,
      'narrate/point_l1_center': 0.2,
      'narrate/object_precision': 0.8,
      'caption_at/cider_d': float('nan'),
      'caption_at/cider_d_baseline': 0.25,
      'loss': 1.0,
      'loss_words': 0.5,
    },
    {
      'narrate/point_l1': ('<=', 0.06),
      'narrate/object_precision': ('>=', 0.85),
      'caption_at/cider_d': ('>', 1),
      'refer/p_at_0.5': ('>=', 0.6),
    },
  )
  assert rows(page) == {
    'narrate/point_l1': ['0.05123', '&lt;= 0.06', '✓ pass', '0.2 (center)', ''],
    'narrate/object_precision': ['0.8', '&gt;= 0.85', '✗ miss', '', ''],
    'caption_at/cider_d': ['nan', '&gt; 1', '✗ miss', '0.25', ''],
    'loss': ['1', '', '', '', ''],
    'loss_words': ['0.5', '', '', '', ''],
    'refer/p_at_0.5': ['not measured', '&gt;= 0.6', '✗ miss', '', ''],
  }


def test_an_unknown_operator_is_named_and_nothing_is_written(tmp_path):
  path = tmp_path / 'r.html'
  with pytest.raises(ValueError, match=r"target of a: expected one of .*'=='"):
    write_report(path, 'run', {'a': 1.0}, {'a': ('==', 1.0)})
  assert not path.exists()


def test_a_curve_shows_its_finite_values_in_order(tmp_path):
  steps = range(5000)
  curve = [(s, float('nan') if s % 7 == 0 else 2.0 - s / 5000) for s in steps]
  page = written(
    tmp_path / 'r.html', 'run', {}, curves={'loss': curve, 'empty': []}
  )
  (data,) = re.findall(r'data-points="([^"]*)"', page)
  points = np.array([p.split(',') for p in data.split(';')], float)
  x, y, step, value = points.T
  assert 100 < len(points) <= 340
  assert (np.diff(x) >= 0).all() and (np.diff(step) > 0).all()
  # The pixel y axis points down.
  assert (np.diff(y) >= 0).all() and (np.diff(value) < 0).all()
  assert (step[-1], value[-1]) == (4999, 1.0)
  assert 'nan' not in page.split('<section>')[2]


@pytest.mark.parametrize('values', [[3.0], [0.0, 0.0], [1e-9, 2e-9], [-5e8, 7]])
def test_any_range_has_axes(tmp_path, values):
  page = written(
    tmp_path / 'r.html', 'run', {}, curves={'c': list(enumerate(values))}
  )
  chart = page[page.index('<svg') :]
  ticks = re.findall(r'y="([\d.]+)" text-anchor="end"', chart)
  assert 3 <= len(ticks) <= 8
  assert all(0 <= float(y) <= 160 for y in ticks)


def test_scores_stand_beside_what_came_true(tmp_path):
  bins = [(0.1, 0.2, 30), (0.9, 0.85, 10)]
  page = written(tmp_path / 'r.html', 'run', {}, reliability={'refer': bins})
  assert 'ECE 0.0875 of 40' in page
  dots = re.findall(r'class="bin" cx="(.*?)" cy="(.*?)" r="(.*?)"', page)
  (x, y, r), (x2, y2, r2) = (map(float, dot) for dot in dots)
  assert x < x2 and y > y2 and r > r2  # up is true
  assert '<title>0.9: 0.85 of 10</title>' in page


def test_24_pictures_stay_small_and_stand_alone(tmp_path):
  truth = narrative('a dog')
  sections = [
    Section(
      'Narratives', [(photo(i), [narrative()], [truth]) for i in range(12)]
    ),
    Section(
      'Boxes',
      [
        (photo(i), [referred((9, 9, 99, 99))], [referred((9, 9, 90, 90))])
        for i in range(12, 24)
      ],
    ),
  ]
  path = tmp_path / 'runs' / 'r.html'
  page = written(path, 'run', {'loss': 1.0}, sections=sections)
  assert path.stat().st_size < 3e6
  assert 'http' not in page
  assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) == {'data:', '#imag'}
  names = re.findall(r'<image id="([^"]*)"', page)
  assert len(set(names)) == len(names) == 24
  # Twelve pairs of panes, each pair with one image.
  assert re.findall(r'<use href="#([^"]*)"', page) == names[:12]
  assert page.count('class="pane"') == 36
  assert [p.name for p in path.parent.iterdir()] == ['r.html']


def test_facts_are_escaped_and_long_ones_folded(tmp_path):
  evil = '<script>alert(1)</script>'
  page = written(
    tmp_path / 'r.html',
    evil,
    {evil: 1.0},
    sections=[Section(evil, [])],
    curves={evil: [(0, 1.0), (1, 2.0)]},
    facts={evil: evil, 'config': 'a=1\nb=2', 'steps': '100'},
  )
  assert page.count('<script>') == 1
  assert 'alert(1)' not in page[page.index('<script>') :]
  assert page.count('<details>') == 1
  assert '<pre>a=1\nb=2</pre>' in page
