// SPDX-FileCopyrightText: 2026 The pixel_llm authors
// SPDX-License-Identifier: Apache-2.0
// Asks the server about an image, and shows what it says.
import { link } from './pictures.js';

const $ = id => document.getElementById(id);
const asking = [...document.querySelectorAll('[data-kind]')];
const corners = ['x0', 'y0', 'x1', 'y1'].map($);
const drawn = () => document.querySelector('[name=draws]:checked').value;

let model = null;
let image = null; // {file, name, id, width, height, url}
let answers = [];
let points = [];
let running = null; // what is waited for, the last that was begun

function tell(sentence, bad = false) {
  $('status').textContent = sentence;
  $('status').classList.toggle('bad', bad);
}

async function send(path, body) {
  let response;
  try {
    response = await fetch(path, { method: 'POST', body });
  } catch {
    throw new Error('The server does not answer; is it still running?');
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const error = new Error(said.error ?? `The server says ${response.status}.`);
  error.status = response.status;
  throw error;
}

// About the image; sent again if the server has forgotten it.
async function about(asked, path, value) {
  const post = () =>
    send(`api/images/${asked.id}/${path}`, JSON.stringify(value));
  try {
    return await post();
  } catch (error) {
    if (error.status !== 404) throw error;
    await upload(asked.file);
    return post();
  }
}

async function upload(file) {
  const name = encodeURIComponent(file.name);
  return (await send(`api/images?name=${name}`, file)).json();
}

// Does one thing; what was begun before is not shown any more.
async function run(sentence, job) {
  const own = running = {};
  const current = () => running === own;
  tell(sentence);
  $('frame').ariaBusy = 'true';
  try {
    await job(current);
  } catch (error) {
    if (current()) tell(error.message, true);
  }
  if (!current()) return;
  running = null;
  $('frame').ariaBusy = 'false';
}

function choose(file) {
  if (!file) return;
  run(`Looking at ${file.name} …`, async current => {
    if (file.size > model.max_bytes) {
      throw new Error(`${file.name}: expected at most ` +
        `${model.max_bytes >> 20} MB, got ${Math.ceil(file.size / 2 ** 20)}.`);
    }
    const { id, image_size: size } = await upload(file);
    if (!current()) return;
    if (image) URL.revokeObjectURL(image.url);
    image = { file, name: file.name, id, url: URL.createObjectURL(file),
      ...size };
    $('image').src = image.url;
    $('image').alt = image.name;
    $('picture').hidden = false;
    $('picture').style.setProperty('--ratio', size.width / size.height);
    $('draft').setAttribute('viewBox', `0 0 ${size.width} ${size.height}`);
    for (const input of corners) input.value = '';
    points = [];
    draft();
    await show([]);
    tell(`${image.name}: ${size.width} × ${size.height} pixels.`);
  });
}

function ask(kind, question, what) {
  if (!image) return;
  const asked = image;
  run(`${what} …`, async current => {
    const response = await about(asked, kind, question);
    const found = await response.json();
    if (!current()) return;
    await show(found);
    const one = found.length === 1 ? found[0] : null;
    const sure = one && one.confidence !== null
      ? ` Confidence ${one.confidence.toFixed(2)}.` : '';
    const said = one
      ? (one.there === false ? 'not there' : 'answered')
      : `${found.length} found`;
    tell(`${what}: ${said}.${sure}`);
  });
}

async function show(found) {
  const { marks, text } = found.length
    ? await (await about(image, 'overlay', found)).json()
    : { marks: '', text: '' };
  answers = found;
  $('draft').innerHTML = '';
  // A new stage, without what the last answers listened to.
  const stage = document.querySelector('.stage');
  const fresh = stage.cloneNode(false);
  fresh.setAttribute('viewBox', `0 0 ${image.width} ${image.height}`);
  fresh.innerHTML = marks;
  stage.replaceWith(fresh);
  $('said').innerHTML = text;
  const pane = document.querySelector('.pane');
  pane.querySelector('.where').textContent = '';
  link(pane);
  const words = [...$('said').querySelectorAll('.word[data-key]')];
  words.forEach((word, i) => {
    word.tabIndex = i ? -1 : 0;
    word.setAttribute('role', 'option');
  });
  const list = $('said').querySelector('.said');
  if (words.length) {
    list.setAttribute('role', 'listbox');
    list.setAttribute('aria-label', 'Answer; arrow keys go through it');
  }
  enable();
}

function enable() {
  for (const button of asking) {
    button.disabled = !image || model.lacks[button.dataset.kind] !== null;
  }
  $('json').disabled = $('png').disabled = !answers.length;
}

function save(blob, ending) {
  const a = document.createElement('a');
  a.href = URL.createObjectURL(blob);
  a.download = `${image.name.replace(/\.\w+$/, '')}.${ending}`;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 10000);
}

// What will be asked about, white over the image.
function draft() {
  const box = corners.map(input => parseFloat(input.value));
  const [x0, y0, x1, y1] = box;
  let shapes = '';
  if (image && box.every(Number.isFinite) && x0 < x1 && y0 < y1) {
    const at = `x="${x0}" y="${y0}" width="${x1 - x0}" height="${y1 - y0}"`;
    shapes = `<rect class="under" ${at}/><rect ${at}/>`;
  }
  const radius = image ? Math.max(image.width, image.height) * 0.01 : 0;
  for (const [x, y] of points) {
    shapes += `<circle cx="${x}" cy="${y}" r="${radius}"/>`;
  }
  $('draft').innerHTML = shapes;
  $('points').textContent = points.length
    ? points.map(([x, y]) => `(${x}, ${y})`).join(' ') : 'No points';
}

function askBox() {
  const box = corners.map(input => parseFloat(input.value));
  if (!box.every(Number.isFinite)) {
    tell('A box is four numbers, in pixels: left, top, right, bottom.', true);
    corners.find(input => !Number.isFinite(parseFloat(input.value))).focus();
    return;
  }
  ask('caption_at', { boxes: [box] }, 'Caption of the box');
}

function askPoints() {
  if (points.length) {
    ask('caption_at', { points: [points] }, 'Caption of the points');
  } else {
    tell('Set a point first, by the pointer or by its numbers.', true);
  }
}

function askText(kind) {
  const text = $('text').value.trim();
  if (text) return ask(kind, { expressions: [text] }, `“${text}”`);
  tell('Write first what to find.', true);
  $('text').focus();
}

// Pixels of the file under the pointer, to a tenth.
function place(event) {
  const { left, top, width, height } = $('picture').getBoundingClientRect();
  const to = (value, side) =>
    Math.round(Math.min(Math.max(value, 0), 1) * side * 10) / 10;
  return [to((event.clientX - left) / width, image.width),
    to((event.clientY - top) / height, image.height)];
}

function draw() {
  const picture = $('picture');
  let start = null;
  picture.addEventListener('pointerdown', event => {
    if (event.button) return;
    if (drawn() === 'points') {
      points.push(place(event));
      return draft();
    }
    start = place(event);
    picture.setPointerCapture(event.pointerId);
  });
  const move = event => {
    const end = place(event);
    const box = [0, 1].map(i => Math.min(start[i], end[i]))
      .concat([0, 1].map(i => Math.max(start[i], end[i])));
    corners.forEach((input, i) => { input.value = box[i]; });
    draft();
    return box;
  };
  picture.addEventListener('pointermove', event => { if (start) move(event); });
  picture.addEventListener('pointerup', event => {
    if (!start) return;
    const [x0, y0, x1, y1] = move(event);
    start = null;
    if (x0 < x1 && y0 < y1) return askBox();
    for (const input of corners) input.value = '';
    draft();
  });
  picture.addEventListener('pointercancel', () => { start = null; });
}

function listen() {
  $('file').addEventListener('change', event => choose(event.target.files[0]));
  const frame = $('frame');
  // Anywhere, so that a file that misses the frame does not replace the page.
  addEventListener('dragover', event => {
    event.preventDefault();
    frame.classList.add('over');
  });
  addEventListener('dragleave', () => frame.classList.remove('over'));
  addEventListener('drop', event => {
    event.preventDefault();
    frame.classList.remove('over');
    choose(event.dataTransfer.files[0]);
  });
  for (const button of document.querySelectorAll('.tools > section .row > ' +
    '[data-kind]')) {
    const { kind } = button.dataset;
    if (kind === 'segment') button.addEventListener('click', () => askText(kind));
    else if (kind !== 'refer') {
      button.addEventListener('click',
        () => ask(kind, {}, button.textContent));
    }
  }
  const submit = (form, job) => $(form).addEventListener('submit', event => {
    event.preventDefault();
    job();
  });
  submit('box-form', askBox);
  submit('text-form', () => askText('refer'));
  submit('point-form', () => {
    const point = ['x', 'y'].map(id => parseFloat($(id).value));
    if (!point.every(Number.isFinite)) {
      return tell('A point is two numbers, in pixels: x, y.', true);
    }
    points.push(point);
    $('x').value = $('y').value = '';
    draft();
  });
  $('ask-points').addEventListener('click', askPoints);
  $('clear').addEventListener('click', () => { points = []; draft(); });
  for (const input of corners) input.addEventListener('input', draft);
  $('json').addEventListener('click', () => save(new Blob(
    [JSON.stringify(answers, null, 2)], { type: 'application/json' }), 'json'));
  $('png').addEventListener('click', () => run('Drawing …', async () => {
    const response = await about(image, 'picture', answers);
    save(await response.blob(), 'png');
    tell('Drawn.');
  }));
  // One stop of the tab key for all words; arrows go from one to the next.
  $('said').addEventListener('keydown', event => {
    const words = [...$('said').querySelectorAll('.word[data-key]')];
    const at = words.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1,
      ArrowUp: at - 1, Home: 0, End: words.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    if (!words[to]) return;
    words[at].tabIndex = -1;
    words[to].tabIndex = 0;
    words[to].focus();
  });
  draw();
}

async function begin() {
  try {
    model = await (await fetch('api/model')).json();
  } catch {
    return tell('The server does not answer; is it still running?', true);
  }
  $('model').textContent = model.step === null ? '' : `step ${model.step}`;
  for (const button of asking) {
    const reason = model.lacks[button.dataset.kind];
    if (reason === null) continue;
    const why = document.createElement('p');
    why.className = 'why';
    why.id = `why-${button.dataset.kind}`;
    why.textContent = `${button.textContent}: ${reason}`;
    button.closest('.row').after(why);
    button.setAttribute('aria-describedby', why.id);
  }
  enable();
  listen();
}

begin();
