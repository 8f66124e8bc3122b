# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A web page on which a model is asked, for the person at this machine.

Images come in the body of a request and are kept in memory alone; nothing that
is sent is ever a path. All work is done by one thread, a question after the
other, so that the server answers meanwhile.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import copy
import hashlib
import io
import ipaddress
import json
import pathlib
import socket
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pixel_llm import image as image_lib
from pixel_llm import pictures
from pixel_llm.prediction import Kind, Prediction
from pixel_llm.predictor import Predictor

MAX_BYTES = 32 << 20
MAX_PIXELS = 50_000_000
# Of questions, and of answers whose picture is wanted.
MAX_JSON = 8 << 20
# Expressions or regions of a question, and points of a region.
_MAX_ASKED, _MAX_POINTS = 64, 16
# Images whose features are kept, the last that were asked about.
_MAX_IMAGES = 8
_FIELDS = {
  'caption_at': ('boxes', 'points'),
  'refer': ('expressions',),
  'segment': ('expressions',),
  'dense_caption': ('max', 'threshold'),
}
# The page's own files and no others; colors are attributes of its marks.
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "style-src-attr 'unsafe-inline'; img-src 'self' blob: data:; "
  "connect-src 'self'; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'"
)


def run(workdir: str, host: str, port: int) -> None:
  """Loads a run's model and serves the page until it is interrupted.

  Args:
    workdir: as of `Predictor.from_workdir`.
    host: address to listen at.
    port: 0 takes a free one.

  Raises:
    ValueError: no such address or port, or as `Predictor.from_workdir`.
    OSError: it cannot be listened at, or there is no run.
  """
  with _listen(host, port) as listening:
    predictor = Predictor.from_workdir(workdir)
    shown = f'[{host}]' if ':' in host else host
    address = f'http://{shown}:{listening.getsockname()[1]}'
    print(f'{address} (Ctrl-C ends it)', flush=True)
    try:
      server(create(predictor, host)).run(sockets=[listening])
    except KeyboardInterrupt:
      print('ended', file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
  if port > 65535:
    raise ValueError(f'--port: expected 0 to 65535, got {port}.')
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)
  except (OSError, UnicodeError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise ValueError(f'--host {host} --port {port}: {reason}.') from e


def server(app: Starlette) -> uvicorn.Server:
  """What serves an app, with bounds."""
  return uvicorn.Server(
    uvicorn.Config(
      app,
      lifespan='off',
      ws='none',
      log_level='warning',
      access_log=False,
      server_header=False,
      limit_concurrency=32,
      timeout_graceful_shutdown=1,
    )
  )


def create(predictor: Predictor, host: str = '127.0.0.1') -> Starlette:
  """The page and what it asks, as JSON.

  - `GET /api/model`: what the model lacks by kind, its step, bounds.
  - `POST /api/images?name=`: the file as body; its `id` and `image_size`.
  - `POST /api/images/{id}/{kind}`: the arguments of the predictor's method
    (`boxes`, `points`; `expressions`; `max`, `threshold`); a list of
    `Prediction.to_json`.
  - `POST /api/images/{id}/picture` and `.../overlay`: such a list; a PNG, or
    marks and text for the page.

  What is refused is `{"error": sentence}`.

  Args:
    predictor: of the model; the image that it looks at stays.
    host: a name that requests may give the server, beside localhost and
      addresses.
  """
  asked = _Asked(predictor)
  thread = concurrent.futures.ThreadPoolExecutor(1, 'model')

  async def work(function: Callable[..., Any], *args: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(thread, function, *args)

  async def model(request: Request) -> Response:
    return JSONResponse(
      {
        'step': predictor.step,
        'lacks': {kind: predictor.lacks(kind) for kind in get_args(Kind)},
        'max_bytes': MAX_BYTES,
      }
    )

  async def images(request: Request) -> Response:
    data = await _body(request, MAX_BYTES)
    name = request.query_params.get('name', '')
    name = ''.join(c for c in name if c.isprintable())[:200] or 'image'
    return JSONResponse(await work(asked.add, data, name))

  async def ask(request: Request) -> Response:
    kind = request.path_params['kind']
    if kind not in get_args(Kind):
      raise HTTPException(404, f'{kind}: no such question.')
    question = _question(kind, await _json(request))
    key = request.path_params['id']
    return JSONResponse(await work(asked.ask, key, kind, question))

  async def picture(request: Request) -> Response:
    args = request.path_params['id'], await _json(request)
    return Response(await work(asked.picture, *args), media_type='image/png')

  async def overlay(request: Request) -> Response:
    args = request.path_params['id'], await _json(request)
    return JSONResponse(await work(asked.overlay, *args))

  async def style(request: Request) -> Response:
    return Response(pictures.STYLE, media_type='text/css')

  async def script(request: Request) -> Response:
    code = pictures.LINK + 'export {link};'
    return Response(code, media_type='text/javascript')

  return Starlette(
    routes=[
      Route('/api/model', model),
      Route('/api/images', images, methods=['POST']),
      Route('/api/images/{id}/picture', picture, methods=['POST']),
      Route('/api/images/{id}/overlay', overlay, methods=['POST']),
      Route('/api/images/{id}/{kind}', ask, methods=['POST']),
      Route('/pictures.css', style),
      Route('/pictures.js', script),
      Mount(
        '/',
        StaticFiles(
          directory=pathlib.Path(__file__).parent / 'static', html=True
        ),
      ),
    ],
    middleware=[Middleware(_Guard, host=host)],
    exception_handlers={
      HTTPException: _refused,
      ValueError: _refused,
      Exception: _failed,
    },
  )


class _Asked:
  """The images that were sent, each encoded once; called by one thread."""

  def __init__(self, predictor: Predictor):
    self._predictor = predictor
    # Id -> who looks at the image, and the file.
    self._images: collections.OrderedDict[str, tuple[Predictor, bytes]]
    self._images = collections.OrderedDict()

  def add(self, data: bytes, name: str) -> dict[str, Any]:
    """Encodes an image, unless it is there."""
    height, width = image_lib.size(data, name)
    if height * width > MAX_PIXELS:
      raise HTTPException(
        413,
        f'{name}: expected at most {MAX_PIXELS:,} pixels, got {width} x '
        f'{height}.',
      )
    key = hashlib.sha256(f'{name}\n'.encode() + data).hexdigest()[:32]
    if key not in self._images:
      # Another view of the same parameters and programs.
      view = copy.copy(self._predictor)
      view.set_image(image_lib.decode(data, name), name)
      self._images[key] = view, data
    self._images.move_to_end(key)
    while len(self._images) > _MAX_IMAGES:
      self._images.popitem(last=False)
    return {'id': key, 'image_size': {'width': width, 'height': height}}

  def ask(
    self, key: str, kind: Kind, question: dict[str, Any]
  ) -> list[dict[str, Any]]:
    """The answers to a question."""
    found = getattr(self._find(key)[0], kind)(**question)
    found = [found] if isinstance(found, Prediction) else found
    return [p.to_json() for p in found]

  def picture(self, key: str, answers: Any) -> bytes:
    """A PNG of answers over their image."""
    data = self._find(key)[1]
    file = io.BytesIO()
    pictures.draw(data, self._read(data, answers)).save(file, 'PNG')
    return file.getvalue()

  def overlay(self, key: str, answers: Any) -> dict[str, str]:
    """The marks of answers, SVG, and their text, HTML, tied to them."""
    data = self._find(key)[1]
    made = pictures.overlays(
      self._read(data, answers), (), image_lib.size(data)
    )
    marks, text = made[0] if made else ('', '')
    return {'marks': marks, 'text': text}

  def _find(self, key: str) -> tuple[Predictor, bytes]:
    if key not in self._images:
      raise HTTPException(404, 'The image is not kept any more: send it again.')
    self._images.move_to_end(key)
    return self._images[key]

  def _read(self, data: bytes, answers: Any) -> list[Prediction]:
    if not isinstance(answers, list):
      raise ValueError('answers: expected a list of them.')
    found = [Prediction.from_json(row) for row in answers]
    size = image_lib.size(data)
    for p in found:
      if tuple(p.size_orig) != size:
        raise ValueError(
          f'answers: expected some about this image of {size[1]} x {size[0]}.'
        )
    return found


class _Guard:
  """Refuses what other sites send, and lets pages load nothing of others.

  A site whose name turns into this machine's address (DNS rebinding) still
  names itself in `Host`; one that posts here names itself in `Origin`.
  """

  def __init__(self, app: Any, host: str):
    self._app, self._host = app, host.lower()

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    headers = Headers(scope=scope)
    host = headers.get('host', '')
    origin = headers.get('origin')
    if not self._is_ours(host):
      answer = _error(421, 'This server has another name.')
      return await answer(scope, receive, send)
    if origin is not None and origin.partition('://')[2] != host:
      answer = _error(403, 'Other sites cannot ask here.')
      return await answer(scope, receive, send)

    async def guarded(message: Any) -> None:
      if message['type'] == 'http.response.start':
        MutableHeaders(scope=message).update(
          {
            'Content-Security-Policy': _POLICY,
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
            'Cache-Control': 'no-cache',
          }
        )
      await send(message)

    return await self._app(scope, receive, guarded)

  def _is_ours(self, host: str) -> bool:
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname or ''
      if name in ('localhost', self._host):
        return True
      ipaddress.ip_address(name)  # An address is no name that can turn.
      return True
    except ValueError:
      return False


def _error(status: int, sentence: str) -> Response:
  return JSONResponse({'error': sentence}, status)


async def _refused(request: Request, error: Exception) -> Response:
  if isinstance(error, HTTPException):
    return _error(error.status_code, error.detail)
  return _error(400, str(error))


async def _failed(request: Request, error: Exception) -> Response:
  return _error(500, 'The server failed; what it prints says where.')


async def _body(request: Request, most: int) -> bytes:
  size = request.headers.get('content-length', '')
  data = bytearray()
  if not size.isdecimal() or int(size) <= most:
    # To its end, or the client may not look at the answer.
    async for chunk in request.stream():
      data += chunk if len(data) <= most else b''
    if len(data) <= most:
      return bytes(data)
  raise HTTPException(413, f'Expected at most {most >> 20} MB, got more.')


async def _json(request: Request) -> Any:
  try:
    return json.loads(await _body(request, MAX_JSON))
  except (ValueError, RecursionError) as e:
    raise ValueError(f'question: expected JSON ({e}).') from e


def _question(kind: Kind, values: Any) -> dict[str, Any]:
  """The arguments of the predictor's method; it checks what they say."""
  fields = _FIELDS.get(kind, ())
  if not isinstance(values, dict) or not set(values) <= set(fields):
    raise ValueError(
      f'{kind}: expected a JSON object of {list(fields)}, got '
      f'{str(values)[:80]}.'
    )
  if kind in ('refer', 'segment'):
    texts = _list(values, 'expressions')
    if not texts or not all(isinstance(text, str) for text in texts):
      raise ValueError('expressions: expected a list of texts.')
    return {'expressions': texts}
  if kind == 'caption_at':
    boxes, points = _list(values, 'boxes'), _list(values, 'points')
    if not boxes and not points:
      raise ValueError('caption_at: expected a box or points.')
    for box in boxes:
      _numbers(box, 'box', 4)
    for group in points:
      if not isinstance(group, list) or not 0 < len(group) <= _MAX_POINTS:
        raise ValueError(f'points: expected lists of 1 to {_MAX_POINTS}.')
      for point in group:
        _numbers(point, 'point', 2)
    return {'boxes_orig': boxes, 'points_orig': points}
  for name, types in (('max', int), ('threshold', (int, float))):
    value = values.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, types):
      raise ValueError(f'{name}: expected a number, got {value!r:.40}.')
  return values


def _list(values: dict[str, Any], name: str) -> list[Any]:
  found = values.get(name, [])
  if not isinstance(found, list) or len(found) > _MAX_ASKED:
    raise ValueError(f'{name}: expected a list of at most {_MAX_ASKED}.')
  return found


def _numbers(values: Any, name: str, count: int) -> None:
  if (
    not isinstance(values, list)
    or len(values) != count
    or not all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in values)
  ):
    raise ValueError(
      f'{name}: expected {count} numbers in pixels, got {str(values)[:80]}.'
    )
