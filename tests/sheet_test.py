# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The contact sheet shows what the loader gives, to the pixel."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import pathlib
import re

import numpy as np
import pytest
import scene_records
from PIL import Image

from pixel_llm import batch as batch_lib
from pixel_llm import main, sheet
from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.data import datasets, loader, registry

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Records of 6 scenes and a vocabulary."""
  root = tmp_path_factory.mktemp('scenes')
  scene_records.make(root, seed=3, train=6, val=2)
  # Few pieces, so that words have several tokens.
  path = str(root / 'v.model')
  vocabulary_lib.train(['a red ring on the left of a blue star.'] * 5, path, 60)
  return root


class Page(html.parser.HTMLParser):
  """Panes: their marks by key, the words that have one, their texts."""

  def __init__(self, text):
    super().__init__()
    self.panes, self.images, self.links = [], {}, []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    a = dict(attributes)
    kinds = (a.get('class') or '').split()
    self.links += [a[k] for k in ('href', 'src') if k in a]
    if 'pane' in kinds:
      self.panes.append({'marks': {}, 'words': [], 'text': ''})
    if tag == 'image' and 'id' in a:
      self.images[a['id']] = pixels(a['href'])
    if 'mark' in kinds:
      box = np.array(a['data-box'].split(), float)
      self.panes[-1]['marks'][a['data-key']] = box
    if 'word' in kinds and 'data-key' in a:
      self.panes[-1]['words'].append(a['data-key'])

  def handle_data(self, data):
    if self.panes:
      self.panes[-1]['text'] += data


def pixels(link):
  data = base64.b64decode(link.partition('base64,')[2])
  return np.asarray(Image.open(io.BytesIO(data)))


def show(capsys, *arguments):
  assert main.main(['show-data', *map(str, arguments)]) == 0
  return capsys.readouterr().out


def batch_of(root, task, sizes, step=0):
  registry.use_vocabulary(vocabulary_lib.Vocabulary(str(root / 'v.model')))
  datasets.register(
    {'scenes_narratives': str(root / 'narratives')}
    | {'scenes_refer': str(root / 'refer')}
  )
  loaded = loader.Loader({'x': loader.Stream(task, sizes)}, 0, process=(0, 1))
  return loaded, next(loaded.batches(step))[1]


DEFAULT = batch_lib.BatchSizes(
  batch=3,
  image=384,
  regions=4,
  context=40,
  length=128,
  objects=64,
  mask=96,
  prompt_points=1,
)


@pytest.mark.parametrize(
  'task,key,folder',
  [
    ('scenes_narrate', 'scenes_narratives', 'narratives'),
    ('scenes_refer', 'scenes_refer', 'refer'),
  ],
)
def test_sheet_is_the_batch(root, tmp_path, capsys, task, key, folder):
  out = tmp_path / 'sheet.html'
  said = show(
    capsys, task, '--records', f'{key}={root / folder}', '--vocabulary',
    root / 'v.model', '--count', 3, '--step', 2, '--out', out,
  )  # fmt: skip
  assert said == f'{out}: 3 images of {task}, steps 2 to 2\n'
  page = Page(out.read_text())
  # Nothing is loaded from elsewhere.
  assert all(re.match('data:|#', link) for link in page.links)
  _, batch = batch_of(root, task, DEFAULT, step=2)
  vocabulary = vocabulary_lib.Vocabulary(str(root / 'v.model'))
  panes = iter(p for p in page.panes if 'loss weights: ' in p['text'])
  count = 0
  for i in range(3):
    np.testing.assert_array_equal(page.images[f'image-{i}'], batch.image[i])
    size = batch.image_size[i][::-1]
    for r in range(4):
      tokens = batch.decoder_target_tokens[i, r]
      if not tokens.any():
        continue
      pane = next(panes)
      placed = np.flatnonzero(batch.point_weights[i, r])
      assert [k for k in pane['words'] if k.isdigit()] == [*map(str, placed)]
      for k in placed:
        points = batch.points[i, r, k] * size
        np.testing.assert_allclose(
          pane['marks'][str(k)], points.ravel(), atol=0.01
        )
        count += 1
      # The same letters; a token is cut off the word before it nowhere.
      shown = re.sub(r'0\.3|\s|␣', '', pane['text'])
      written = ''.join(w for w, _, _ in vocabulary.words(tokens))
      assert f'{written}⏎' in shown
      box = pane['marks'].get('box-0')
      assert (box is not None) == (batch.box_weights[i, r] > 0)
      if box is not None:
        expected = batch.boxes[i, r].reshape(2, 2) * size
        np.testing.assert_allclose(box, expected.ravel(), atol=0.01)
  assert next(panes, None) is None and count > 10


def test_rows_of_training(root, tmp_path, capsys):
  """With a config: the streams' batches, of large ones the first rows."""
  config = tmp_path / 'configs' / 'small.py'
  config.parent.mkdir()
  config.write_text(
    f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from configs import demo
def get_config():
  config = demo.get_config()
  data = config.data
  with config.unlocked():
    data.records = dict(
      scenes_narratives={str(root / 'narratives')!r},
      scenes_refer={str(root / 'refer')!r},
      scenes_regions={str(root / 'regions')!r},
    )
    data.vocabulary = {str(root / 'v.model')!r}
    sizes = dict(batch=6, context=6, length=20)
    data.streams = dict(
      a=dict(mixture='scenes_narrate', regions=1, **sizes),
      b=dict(mixture='scenes_regions', regions=2, **sizes),
    )
    config.seed = 4
  return config
"""
  )
  out = tmp_path / 'sheet.html'
  show(
    capsys, 'scenes_refer', '--config', config, '--config.data.image=32',
    '--count', 2, '--step', 5, '--out', out,
  )  # fmt: skip
  text = out.read_text()
  images = Page(text).images
  streams = {
    'a': loader.Stream(
      'scenes_narrate',
      batch_lib.BatchSizes(batch=6, image=32, regions=1, context=6, length=20),
    ),
    'b': loader.Stream(
      'scenes_regions',
      batch_lib.BatchSizes(batch=6, image=32, regions=2, context=6, length=20),
    ),
  }
  whole = loader.Loader(streams, 4, process=(0, 1))
  shown = re.findall(r'<h2>step (\d+) \(b\), row (\d+): scenes_refer,', text)
  batches = dict(zip(range(5, 9), whole.batches(5)))
  assert len(shown) == 2
  for n, (step, row) in enumerate(shown):
    name, batch = batches[int(step)]
    assert name == 'b'
    assert whole.slots(int(step))[1][int(row)].task == 'scenes_refer'
    np.testing.assert_array_equal(images[f'image-{n}'], batch.image[int(row)])


def test_all_that_a_batch_can_hold(root):
  sizes = batch_lib.BatchSizes(
    batch=1,
    image=32,
    regions=3,
    context=4,
    length=8,
    objects=2,
    mask=4,
    prompt_points=2,
  )
  loaded, batch = batch_of(root, 'scenes_narrate', sizes)
  slot = loaded.slots(0)[1][0]
  plain = sheet.section('x', 'i', batch, 0, slot, 'train')
  # Texts of about forty tokens have eight: the rest is shown as cut.
  assert plain.count('class="cut" title=') == 4
  assert '2 of 3 regions, the others empty' in plain
  assert 'not a text of the record' not in plain
  assert plain.count('asked about the whole image') == 2

  half = np.float32([0, 0, 0.5, 0.5])
  changed = dataclasses.replace(
    batch,
    prompt_boxes=np.tile(half, (1, 3, 1)),
    prompt_box_weights=np.float32([[1, 0, 0]]),
    prompt_points=np.full((1, 3, 2, 2), 0.5, np.float32),
    prompt_labels=np.int32([[[1, -1], [0, 0], [0, 0]]]),
    masks=np.tile(np.eye(4, dtype=np.uint8), (1, 3, 1, 1)),
    mask_weights=np.float32([[0, 0.5, 0]]),
    objects=np.stack([[half, half + 0.5]]),
    object_weights=np.float32([[0, 1]]),
    decoder_target_tokens=np.where(
      batch.decoder_target_tokens > 1, 9, batch.decoder_target_tokens
    ),
  )
  text = sheet.section('x', 'i', changed, 0, slot, 'train')
  first, second, objects, *_ = Page(text).panes
  height, width = batch.image_size[0]
  np.testing.assert_allclose(
    first['marks']['asked-0'], [0, 0, width / 2, height / 2], atol=0.01
  )
  assert f'point on it: ({width / 2:.1f}, {height / 2:.1f})' in first['text']
  assert 'point not on it' in first['text']
  assert text.count('class="click under"') == text.count('class="click "') == 2
  assert 'no box is asked about' in second['text']
  assert 'mask of 4 of 16 cells, weight 0.5' in second['text']
  overlays = re.findall('<image class="pixels" width.*? href="(.*?)"', text)
  assert len(overlays) == 1
  np.testing.assert_array_equal(pixels(overlays[0])[..., 3] > 0, np.eye(4) > 0)
  assert '1 objects, room for 2; detection weighs 0' in objects['text']
  np.testing.assert_allclose(
    objects['marks']['object 0-0'],
    [width / 2, height / 2, width, height],
    atol=0.01,
  )
  assert text.count('not a text of the record as it is there') == 2


@pytest.mark.parametrize(
  'arguments,message',
  [
    (['scenes_narate'], "task 'scenes_narate'; there are.*scenes_narrate"),
    (['scenes_narrate', '--split', 'tst'], "no split 'tst'; there are train"),
    (['scenes_narrate', '--config', 'x.py'], 'either --config or --records'),
    (['scenes_narrate', '--config.seed=1'], 'expected a --config to change'),
    (['x_narrate', '--records', 'x=nowhere'], 'nowhere: expected what'),
  ],
)
def test_bad_input(root, tmp_path, capsys, arguments, message):
  if '--records' not in arguments:
    records = f'scenes_narratives={root / "narratives"}'
    arguments = [*arguments, '--records', records]
  out = tmp_path / 'x.html'
  common = ['--vocabulary', str(root / 'v.model'), '--out', str(out)]
  assert main.main(['show-data', *arguments, *common]) == 1
  assert re.search(message, capsys.readouterr().err)
  assert not out.exists()


@pytest.mark.parametrize(
  'arguments',
  [
    ['t', '--records', 'x', '--out', 'o'],
    ['t', '--step', '-1', '--out', 'o'],
    ['t', '--config', 'c'],
  ],
)
def test_usage(arguments, capsys):
  with pytest.raises(SystemExit) as end:
    main.main(['show-data', *arguments])
  assert end.value.code == 2
  assert 'show-data' in capsys.readouterr().err


@pytest.mark.parametrize('verb', ['show-data', 'check-data'])
def test_help(verb, capsys):
  with pytest.raises(SystemExit) as end:
    main.main([verb, '--help'])
  assert end.value.code == 0
  assert '--split' in capsys.readouterr().out
