# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading

import asked
import pytest
import tiny
from PIL import Image

from pixel_llm.predictor import Predictor

pytest.importorskip('starlette', reason='the extra `app` is not installed')
pytest.importorskip('uvicorn', reason='the extra `app` is not installed')

from pixel_llm.app import server as server_lib


class Serving:
  """A server in this process."""

  def __init__(self, predictor):
    self.socket = socket.create_server(('127.0.0.1', 0))
    self.port = self.socket.getsockname()[1]
    self.server = server_lib.server(server_lib.create(predictor))
    self.thread = threading.Thread(
      target=self.server.run, kwargs={'sockets': [self.socket]}
    )
    self.thread.start()

  def end(self):
    self.server.should_exit = True
    self.thread.join()
    self.socket.close()

  def request(self, path, body=None, **headers):
    """(status, bytes) of a GET, or a POST with a body."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port)
    if isinstance(body, (dict, list)):
      body = json.dumps(body)
    method = 'GET' if body is None else 'POST'
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data

  def asks(self, path, body=None, **headers):
    status, data = self.request(path, body, **headers)
    return status, json.loads(data)


def png(rgb):
  file = io.BytesIO()
  Image.fromarray(rgb).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return asked.make(tmp_path_factory.mktemp('asked') / 'full')


@pytest.fixture(scope='module')
def predictor(folder):
  # Random parameters say one word unless they are drawn from.
  return Predictor.from_workdir(str(folder), beams=1, temperature=1, seed=2)


@pytest.fixture(scope='module')
def served(predictor):
  serving = Serving(predictor)
  yield serving
  serving.end()


@pytest.fixture
def sent(served):
  """The path of an image that the server has."""
  status, found = served.asks('/api/images?name=a.png', png(asked.picture()))
  assert status == 200, found
  assert found['image_size'] == {'width': 90, 'height': 60}
  return f'/api/images/{found["id"]}'


def test_answers_are_those_of_the_predictor(served, sent, predictor):
  predictor.set_image(asked.picture(), 'a.png')
  box, points = [5, 6, 40.5, 30], [[20, 30], [40, 6]]
  for path, question, expected in (
    ('narrate', {}, [predictor.narrate()]),
    (
      'caption_at',
      {'boxes': [box], 'points': [points]},
      predictor.caption_at([box], [points]),
    ),
    (
      'segment',
      {'expressions': ['a red ring']},
      predictor.segment(['a red ring']),
    ),
    ('dense_caption', {'threshold': 0}, predictor.dense_caption()),
  ):
    status, found = served.asks(f'{sent}/{path}', question)
    assert status == 200, found
    assert found == [p.to_json() for p in expected]
    status, picture = served.request(f'{sent}/picture', found)
    assert status == 200
    assert Image.open(io.BytesIO(picture)).format == 'PNG'
    status, overlay = served.asks(f'{sent}/overlay', found)
    assert status == 200 and set(overlay) == {'marks', 'text'}


def test_an_image_is_encoded_once_and_the_first_forgotten(predictor):
  looked = server_lib._Asked(predictor)
  keys = []
  for seed in range(server_lib._MAX_IMAGES + 1):
    data = png(asked.picture(seed, (8, 8)))
    keys.append(looked.add(data, 'a')['id'])
    view = looked._find(keys[-1])[0]
    assert looked.add(data, 'a')['id'] == keys[-1]
    assert looked._find(keys[-1])[0] is view
  with pytest.raises(server_lib.HTTPException, match='send it again'):
    looked.ask(keys[0], 'caption', {})


@pytest.mark.parametrize(
  ('kind', 'question', 'said'),
  [
    ('refer', {'expressions': ['']}, 'expression 0: expected some words'),
    ('refer', {'expressions': ['red ' * 10_000]}, 'at most 512 tokens'),
    ('refer', {'expressions': []}, 'a list of texts'),
    ('refer', {'expressions': ['a'] * 65}, 'at most 64'),
    ('refer', {'expressions': [3]}, 'a list of texts'),
    ('refer', {'expression': 'a'}, "['expressions']"),
    ('narrate', [], 'expected a JSON object'),
    ('caption_at', {}, 'a box or points'),
    ('caption_at', {'boxes': [[9, 0, 1, 4]]}, 'the size of a.png'),
    ('caption_at', {'boxes': [[0, 0, 91, 4]]}, 'the size of a.png'),
    ('caption_at', {'boxes': [[0, 0, '9', 4]]}, '4 numbers'),
    ('caption_at', {'points': [[]]}, '1 to 16'),
    ('caption_at', {'points': [[[1, float('nan')]]]}, '2 numbers'),
    ('dense_caption', {'max': 0}, 'expected at least 1'),
    ('dense_caption', {'max': 'all'}, 'expected a number'),
    ('picture', [{}], 'missing'),
    ('picture', {}, 'a list'),
  ],
)
def test_questions_that_cannot_be_asked(served, sent, kind, question, said):
  status, found = served.asks(f'{sent}/{kind}', question)
  assert status == 400
  assert said in found['error']


def test_what_is_not_there(served, sent):
  assert served.asks(f'{sent}/paint', {})[0] == 404
  assert 'send it again' in served.asks('/api/images/0/caption', {})[1]['error']
  assert served.request('/../server.py')[0] == 404
  assert served.request('/%2e%2e/server.py')[0] == 404
  assert served.asks(f'{sent}/refer', b'{"expressions"')[0] == 400
  assert served.asks(f'{sent}/refer', b'[' * 100_000)[0] == 400


def test_bad_files_are_refused_in_a_sentence(served):
  whole = png(asked.picture())
  for data, said in (
    (b'', 'an empty file'),
    (b'GIF89a and more', 'first bytes'),
    (whole[: len(whole) // 2], 'b.png: expected a JPEG, PNG or WebP'),
  ):
    status, found = served.asks('/api/images?name=b.png', data)
    assert status == 400 and said in found['error']


def test_uploads_are_bounded(served):
  for body in (b'', iter([bytes(1 << 20)] * 32 + [b'x'])):
    length = {'Content-Length': str(33 << 20)} if body == b'' else {}
    status, found = served.asks('/api/images', body, **length)
    assert status == 413 and 'at most 32 MB' in found['error']
  large = io.BytesIO()
  Image.new('1', (10_000, 5_001)).save(large, 'PNG')
  status, found = served.asks('/api/images', large.getvalue())
  assert status == 413 and '50,000,000 pixels' in found['error']


def test_other_sites_are_refused(served):
  for headers, status in (
    ({'Host': 'evil.example'}, 421),
    ({'Host': '[bad'}, 421),
    ({'Host': '127.0.0.1.evil.example'}, 421),
    ({'Origin': 'https://evil.example'}, 403),
    ({'Origin': 'null'}, 403),
    ({'Host': f'localhost:{served.port}'}, 200),
    ({'Origin': f'http://127.0.0.1:{served.port}'}, 200),
  ):
    assert served.request('/api/model', **headers)[0] == status, headers


def test_the_page_is_served_while_the_model_works(predictor, monkeypatch):
  begun, go = threading.Event(), threading.Event()
  asks = []

  def slow(self):
    asks.append(threading.current_thread())
    begun.set()
    go.wait(60)
    raise ValueError('done')

  monkeypatch.setattr(Predictor, 'narrate', slow)
  serving = Serving(predictor)
  try:
    key = serving.asks('/api/images', png(asked.picture()))[1]['id']
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      both = [
        pool.submit(serving.asks, f'/api/images/{key}/narrate', {})
        for _ in range(2)
      ]
      assert begun.wait(60)
      assert serving.request('/')[0] == 200
      assert len(asks) == 1
      go.set()
      assert [f.result()[0] for f in both] == [400, 400]
    assert len(set(asks)) == 1
  finally:
    go.set()
    serving.end()


def test_a_port_that_is_taken_is_told(served):
  with pytest.raises(ValueError, match=f'--port {served.port}: Address alr'):
    server_lib.run('nowhere', '127.0.0.1', served.port)
  with pytest.raises(ValueError, match='0 to 65535'):
    server_lib.run('nowhere', '127.0.0.1', 65536)


@pytest.fixture(scope='module')
def browser():
  api = pytest.importorskip('playwright.sync_api')
  chromium = shutil.which('chromium') or shutil.which('google-chrome')
  if chromium is None:
    pytest.skip('no Chromium is installed')
  with api.sync_playwright() as playwright:
    found = playwright.chromium.launch(
      executable_path=chromium, args=['--no-sandbox']
    )
    yield found
    found.close()


@pytest.fixture
def page(browser, served):
  """The page; a test fails for whatever its console complains of."""
  page = browser.new_page(viewport={'width': 1100, 'height': 800})
  page.set_default_timeout(120_000)
  said = []
  page.on('pageerror', lambda e: said.append(str(e)))
  page.on('console', lambda m: said.append(m.text))
  page.goto(f'http://127.0.0.1:{served.port}/')
  yield page
  page.close()
  # The server's refusals are logged by the browser.
  assert [s for s in said if 'server responded with a status' not in s] == []


def choose(page, data, name='a.png'):
  page.get_by_label('Image', exact=True).set_input_files(
    [{'name': name, 'mimeType': 'image/png', 'buffer': data}]
  )


def status(page, text):
  """Waits for what the status line says."""
  page.locator('#status', has_text=text).wait_for()


def downloaded(page, name):
  with page.expect_download() as download:
    page.get_by_role('button', name=name).click()
  return download.value.path().read_bytes()


def test_a_narrative_in_the_browser(page, served, predictor):
  narrate = page.get_by_role('button', name='Narrate')
  assert narrate.is_disabled()
  choose(page, png(asked.picture()))
  status(page, 'a.png: 90 × 60 pixels')
  before = page.locator('#frame').bounding_box()
  narrate.focus()
  page.keyboard.press('Enter')
  status(page, 'Narrate: answered')
  assert page.locator('#frame').bounding_box() == before
  words = page.locator('#said [role=option]')
  predictor.set_image(asked.picture(), 'a.png')
  expected = predictor.narrate()
  assert len(expected.words) > 1
  assert words.all_inner_texts() == [w.text for w in expected.words]

  # Word to point, point to word.
  words.nth(1).hover()
  assert page.locator('.mark.hit').get_attribute('data-key') == '1'
  page.locator('.mark[data-key="0"] circle').hover(force=True)
  assert 'hit' in words.nth(0).get_attribute('class')

  # The words are one stop of the tab key, and arrows go through them.
  page.get_by_role('button', name='Download PNG').focus()
  page.keyboard.press('Tab')
  page.keyboard.press('ArrowRight')
  assert words.nth(1).evaluate('w => w === document.activeElement')
  assert page.locator('.where').inner_text().startswith(expected.words[1].text)
  page.keyboard.press('End')
  assert words.last.evaluate('w => w === document.activeElement')

  found = json.loads(downloaded(page, 'Download JSON'))
  assert found == [expected.to_json()]
  # An image that the server has forgotten is sent again.
  for seed in range(1, server_lib._MAX_IMAGES + 1):
    served.asks('/api/images', png(asked.picture(seed)))
  assert Image.open(io.BytesIO(downloaded(page, 'Download PNG'))).width >= 800


def test_parts_in_the_browser(page):
  choose(page, png(asked.picture()))
  status(page, '90 × 60')
  at = page.locator('#picture').bounding_box()

  def corner(x, y):
    return at['x'] + at['width'] * x, at['y'] + at['height'] * y

  page.mouse.move(*corner(0.8, 0.9))
  page.mouse.down()
  page.mouse.move(*corner(0.5, 0.5), steps=3)
  page.mouse.up()
  status(page, 'Caption of the box: answered')
  (found,) = json.loads(downloaded(page, 'Download JSON'))
  assert found['prompt_box'] == pytest.approx([45, 30, 72, 54], abs=0.5)

  # The same by numbers; a box that is none is told.
  for name, value in (('left', 1), ('top', 2), ('right', 30), ('bottom', 95)):
    page.get_by_label(name, exact=True).fill(str(value))
  page.keyboard.press('Enter')
  status(page, 'the size of a.png')
  assert page.locator('#picture').bounding_box() == at
  page.get_by_label('bottom').fill('40')
  page.keyboard.press('Enter')
  status(page, 'Caption of the box: answered')
  (found,) = json.loads(downloaded(page, 'Download JSON'))
  assert found['prompt_box'] == pytest.approx([1, 2, 30, 40], abs=0.01)

  page.get_by_label('sets points').check()
  page.mouse.click(*corner(0.5, 0.5))
  page.get_by_label('x', exact=True).fill('9')
  page.get_by_label('y', exact=True).fill('6')
  page.keyboard.press('Enter')
  page.get_by_role('button', name='Caption the points').click()
  status(page, 'Caption of the points: answered')
  (found,) = json.loads(downloaded(page, 'Download JSON'))
  assert found['prompt_points'][1] == pytest.approx([9, 6], abs=0.01)
  assert found['prompt_points'][0] == pytest.approx([45, 30], abs=0.5)


def test_words_and_things_in_the_browser(page):
  file = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 6  # Lies on its side.
  Image.fromarray(asked.picture()).save(file, 'JPEG', exif=exif)
  choose(page, file.getvalue(), 'b.jpg')
  status(page, '60 × 90')
  size = 'x => [x.naturalWidth, x.naturalHeight]'
  assert page.locator('#image').evaluate(size) == [60, 90]
  page.get_by_role('button', name='Find its box').click()
  status(page, 'Write first what to find')
  text = page.get_by_label('Find by words')
  text.fill('a <b>red</b> ring')
  text.press('Enter')
  status(page, 'a <b>red</b> ring”: answered')
  assert page.locator('#said [role=option]').count() <= 1
  page.get_by_role('button', name='Find its pixels').click()
  page.locator('.stage path').wait_for()
  page.get_by_role('button', name='List things').click()
  status(page, 'List things: ')
  found = json.loads(downloaded(page, 'Download JSON'))
  assert {p['kind'] for p in found} == {'dense_caption'}
  assert page.locator('.stage .mark').count() == len(found)


def test_a_dropped_file_that_is_no_image(page):
  drop = """(text) => {
    const data = new DataTransfer();
    data.items.add(new File([text], 'notes.txt'));
    dispatchEvent(new DragEvent('drop', {dataTransfer: data}));
  }"""
  page.locator('#json:disabled').wait_for()
  page.evaluate(drop, 'no image')
  status(page, 'notes.txt: expected a JPEG, PNG or WebP image')
  assert page.get_by_role('button', name='Narrate').is_disabled()


@contextlib.contextmanager
def opened(browser, folder):
  """The page of another model, with an image on it."""
  serving = Serving(Predictor.from_workdir(str(folder)))
  page = browser.new_page()
  try:
    page.goto(f'http://127.0.0.1:{serving.port}/')
    choose(page, png(asked.picture()))
    status(page, '90 × 60')
    yield page
  finally:
    page.close()
    serving.end()


def test_what_the_model_lacks_is_disabled_with_the_reason(browser, tmp_path):
  folder = asked.make(tmp_path / 'plain', tiny.model_config())
  with opened(browser, folder) as page:
    assert page.get_by_role('button', name='Narrate').is_enabled()
    for name, reason in (
      ('List things', 'this model has no detector'),
      ('Find its pixels', 'this model has no mask decoder'),
    ):
      button = page.get_by_role('button', name=name)
      assert button.is_disabled()
      why = page.locator(f'#{button.get_attribute("aria-describedby")}')
      assert reason in why.inner_text()


def test_what_is_not_in_the_image_is_said_in_the_browser(browser, tmp_path):
  folder = asked.make(tmp_path / 'full')
  said = {}
  for threshold in (0.0, 1.0):
    metrics = {'step': 3, 'refer/presence_threshold': threshold}
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    with opened(browser, folder) as page:
      text = page.get_by_label('Find by words')
      text.fill('a red ring')
      text.press('Enter')
      status(page, 'Confidence')
      said[threshold] = page.locator('#status').inner_text()
  assert '“a red ring”: answered. Confidence 0.' in said[0.0]
  assert '“a red ring”: not there. Confidence 0.' in said[1.0]


def test_the_verb_serves_until_it_is_interrupted(folder):
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'pixel_llm', 'app'),
      *('--workdir', folder, '--port', '0'),
    ],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
  )
  try:
    port = int(process.stdout.readline().split()[0].rsplit(':', 1)[1])
    connection = http.client.HTTPConnection('127.0.0.1', port)
    connection.request('GET', '/')
    assert b'app.js' in connection.getresponse().read()
    connection.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
  finally:
    process.kill()
    process.communicate()
