# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records are a function of the input; interruptions and bad rows are met."""

from __future__ import annotations

import gzip
import hashlib
import json
import pathlib
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import public_formats as formats
import pytest
from PIL import Image

from pixel_llm import arguments, example, main, masks
from pixel_llm.data import build, published, records
from pixel_llm.data.sources.source import RowError, SourceError

COUNT = 9


@pytest.fixture
def narratives(tmp_path):
  """Nine images, ten narratives."""
  names = [f'{i:012d}.jpg' for i in range(COUNT)]
  images = formats.write_images(tmp_path / 'images', names)
  rows = [formats.narrative(str(i)) for i in range(COUNT)]
  rows.append(formats.narrative('3', 2, caption='Only a ring'))
  path = formats.write_lines(tmp_path / 'ln.jsonl', rows)
  return {'name': 'localized_narratives', 'annotations': path, 'images': images}


def run(narratives, out, **options):
  return build.build(**narratives, out=str(out), split='val', **options)


def contents(directory):
  """File name -> bytes; the report apart, which names paths."""
  return {
    path.name: path.read_bytes()
    for path in sorted(pathlib.Path(directory).iterdir())
    if not path.name.endswith('report.jsonl')
  }


def report(out):
  lines = (pathlib.Path(out) / 'val.report.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


# What is written.


def test_records(narratives, tmp_path):
  result = run(narratives, tmp_path / 'out')
  manifest = result.manifest
  assert manifest == records.read_manifest(str(tmp_path / 'out'), 'val')
  assert (manifest['records'], manifest['regions']) == (9, 10)
  assert (manifest['utterances'], manifest['utterances_with_place']) == (40, 40)
  assert manifest['skipped'] == {} and report(tmp_path / 'out') == []
  names = [f'val-{i:05d}-of-00004.array_record' for i in range(4)]
  assert [s['name'] for s in manifest['shards']] == names
  for shard in manifest['shards']:
    data = (tmp_path / 'out' / shard['name']).read_bytes()
    assert shard['sha256'] == hashlib.sha256(data).hexdigest()
  assert sorted(contents(tmp_path / 'out')) == [*names, 'val.manifest.json']
  assert str(tmp_path) not in json.dumps(manifest)
  assert 'built, 9 images, 10 texts' in str(result)

  found = records.RecordSet(str(tmp_path / 'out'), 'val')
  examples = [example.from_bytes(found[i]) for i in range(len(found))]
  assert [e.image_id for e in examples] == [str(i) for i in range(COUNT)]
  assert [r.id for r in examples[3].regions] == ['3/1', '3/2']
  for i, e in enumerate(examples):
    path = pathlib.Path(narratives['images']) / f'{i:012d}.jpg'
    assert e.image == path.read_bytes()
    assert e.size == (formats.HEIGHT, formats.WIDTH)


def test_size_is_upright(narratives, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new('RGB', (30, 20)).save(
    pathlib.Path(narratives['images']) / f'{0:012d}.jpg', exif=exif
  )
  run(narratives, tmp_path / 'out')
  first = records.RecordSet(str(tmp_path / 'out'), 'val')[0]
  assert example.from_bytes(first).size == (30, 20)


def test_refcoco_and_visual_genome(tmp_path):
  images = formats.write_images(
    tmp_path / 'images', [f'{i:012d}.jpg' for i in (7, 8)]
  )
  refs, instances = formats.write_refcoco(tmp_path)
  result = build.build(
    'refcoco', refs, images, str(tmp_path / 'refs'), instances=instances
  )
  assert (result.manifest['records'], result.manifest['regions']) == (1, 3)
  regions, image_data = formats.write_visual_genome(tmp_path)
  result = build.build(
    'visual_genome', regions, images, str(tmp_path / 'vg'),
    image_data=image_data,
  )  # fmt: skip
  assert (result.manifest['records'], result.manifest['regions']) == (2, 3)
  assert result.manifest['skipped'] == {'no_image_meta': 1}
  found = records.RecordSet(str(tmp_path / 'vg'), 'train')
  box = example.from_bytes(found[0]).regions[0].box
  assert box is not None
  np.testing.assert_allclose(box, [0.1, 0.1, 0.6, 0.6], atol=1e-6)


@pytest.mark.parametrize(
  'stem,image_ids,name',
  [
    ('coco_train', ['9', '25'], '{:012d}.jpg'),
    (
      'open_images_train',
      ['000002b66c9c498e', '0000000000000025'],
      'train/{}.jpg',
    ),
    ('flickr30k_train', ['1000092795', '36979'], '{}.jpg'),
    (
      'ade20k_train',
      ['ADE_train_00000001', 'ADE_train_00000002'],
      'training/a/{}.jpg',
    ),
  ],
)
def test_narratives_of_every_image_set(tmp_path, stem, image_ids, name):
  """Shards by glob, compressed or not, and each set's image names."""
  names = [name.format(int(i) if '012d' in name else i) for i in image_ids]
  images = formats.write_images(tmp_path / 'images', names)
  for i, image_id in enumerate(image_ids):
    path = tmp_path / f'{stem}_localized_narratives-0000{i}-of-00002.jsonl'
    formats.write_lines(path, [formats.narrative(image_id)])
    if i:
      data = gzip.compress(path.read_bytes(), mtime=0)
      path.with_suffix('.jsonl.gz').write_bytes(data)
      path.unlink()
  glob = f'{tmp_path}/{stem}_localized_narratives-*-of-00002.jsonl*'
  out = str(tmp_path / 'out')
  build.build('localized_narratives', glob, images, out, strict=True)
  found = records.RecordSet(out, 'train')
  made = [example.from_bytes(found[i]) for i in range(len(found))]
  assert [e.image_id for e in made] == image_ids
  for e, file in zip(made, names, strict=True):
    assert e.image == (pathlib.Path(images) / file).read_bytes()


def test_documented_lines(tmp_path):
  """The example of data/jsonl.md is what it says."""
  text = (pathlib.Path(__file__).parents[2] / 'data/jsonl.md').read_text()
  block = text.split('```json\n')[1].split('```')[0]
  path = tmp_path / 'birds.jsonl'
  path.write_text(block)
  names = [json.loads(line)['image'] for line in block.splitlines()]
  images = formats.write_images(tmp_path / 'images', names)
  kept = {}
  for split in ('train', 'val'):
    out = str(tmp_path / 'out')
    result = build.build('jsonl', str(path), images, out, split, strict=True)
    assert result.manifest['skipped'] == {}
    found = records.RecordSet(out, split)
    for i in range(len(found)):
      made = example.from_bytes(found[i])
      kept[made.image_id] = made.regions
  assert list(kept) == ['a/robin.jpg', 'b7', 'owl.jpg']
  assert [(r.id, r.prompt) for r in kept['b7']] == [
    ('b7-1', None),
    ('b7/1', 'Which colour has it?'),
  ]
  assert masks.area(kept['owl.jpg'][0].mask or b'') == 600


def test_masks_on_a_smaller_copy(tmp_path):
  images = formats.write_images(tmp_path / 'images', ['7.jpg'], size=(20, 30))
  (tmp_path / 'a.json').write_text(json.dumps({'train': [formats.uninext(7)]}))
  images = formats.write_images(
    images, ['COCO_train2014_000000000007.jpg'], size=(20, 30)
  )
  out = str(tmp_path / 'out')
  build.build('refcoco_uninext', str(tmp_path / 'a.json'), images, out)
  made = example.from_bytes(records.RecordSet(out, 'train')[0])
  pixels = masks.decode(made.regions[0].mask or b'', made.size)
  assert pixels[2:12, 3:18].all() and pixels.sum() == 150


def test_commands_of_recipes():
  """Every build line of data/*.md is one that the command takes."""
  count = 0
  for path in (pathlib.Path(__file__).parents[2] / 'data').glob('*.md'):
    text = path.read_text().replace('\\\n', ' ')
    for line in re.findall(r'pixel-llm (build [a-z]\w+ .*)', text):
      line = re.sub(r'\$\{?split\}?', 'train', line)
      line = re.sub(r'\$\{?set\}?', 'refcoco+', line)
      line = line.replace('$partition', 'unc').replace('"$@"', '')
      args = arguments.parser(main.VERBS).parse_args(shlex.split(line))
      if args.expect is not None:
        published.check(args.expect, args.split)
      assert (args.images is None) == (args.name in build._HOLD_IMAGES), line
      count += 1
  assert count > 12


def test_names_are_those_of_the_command():
  assert tuple(build.NAMES) == arguments.SOURCES


# Determinism and resuming.


def test_same_input_same_bytes_whatever_the_workers(narratives, tmp_path):
  seen = []
  run(narratives, tmp_path / 'a')
  run(narratives, tmp_path / 'b', workers=2, progress=lambda *p: seen.append(p))
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
  assert seen[0] == (0, COUNT) and seen[-1] == (COUNT, COUNT)


def test_finished_build_does_nothing(narratives, tmp_path):
  out = tmp_path / 'out'
  first = run(narratives, out)
  stamps = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  second = run(narratives, out)
  assert first.built == 4 and second.built == 0
  assert 'already built from the same input' in str(second)
  assert second.manifest == first.manifest
  assert stamps == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}


class Killed(BaseException):
  """Stands for a signal: nothing may catch it."""


def test_interrupted_build_goes_on(narratives, tmp_path):
  out = tmp_path / 'out'

  def kill(done, total):
    if done == 6:
      raise Killed

  with pytest.raises(Killed):
    run(narratives, out, progress=kill)
  assert not (out / 'val.manifest.json').exists()
  # What a kill that lets nobody clean up leaves behind.
  (out / 'val-00002-of-00004.array_record.tmp').write_bytes(b'half')
  finished = sorted(out.glob('*.array_record'))
  assert len(finished) == 2
  stamps = [p.stat().st_mtime_ns for p in finished]

  seen = []
  result = run(narratives, out, progress=lambda *p: seen.append(p))
  assert result.built == 2
  assert stamps == [p.stat().st_mtime_ns for p in finished]
  assert seen[0] == (4, COUNT) and seen[-1] == (COUNT, COUNT)
  run(narratives, tmp_path / 'whole')
  assert contents(out) == contents(tmp_path / 'whole')


def test_interrupted_build_of_other_input_is_redone(narratives, tmp_path):
  out = tmp_path / 'out'

  def kill(done, total):
    if done == 6:
      raise Killed

  with pytest.raises(Killed):
    run(narratives, out, progress=kill)
  assert run(narratives, out, shards=3).built == 3
  run(narratives, tmp_path / 'whole', shards=3)
  assert contents(out) == contents(tmp_path / 'whole')


KILLED = """
import os, pathlib, signal, sys
from pixel_llm.data import build

one, other, images, root = sys.argv[1:]

def make(annotations, out, shards=2, progress=None):
  build.build('localized_narratives', annotations, images, out, 'val',
              shards=shards, progress=progress)
  return {p.name: p.read_bytes() for p in pathlib.Path(out).iterdir()}

def stop(done, total):
  if done == total:
    raise InterruptedError

def kill_at(moment, out):
  count = 0
  def look(event, args):
    nonlocal count
    if event in ('open', 'os.rename', 'os.remove') and out in str(args[0]):
      count += 1
      if count == moment:
        os.kill(os.getpid(), signal.SIGKILL)
  sys.addaudithook(look)

whole = {k: make(one, f'{root}/whole{k}', k) for k in (2, 3)}
wanted = make(other, f'{root}/other')
name = 'val-00000-of-00002.array_record'
assert len(wanted[name]) == len(whole[2][name]) and wanted != whole[2]
moment = killed = 0
while killed == moment:
  moment += 1
  out, shards = f'{root}/killed{moment:03}', 2 + moment % 2
  try:
    make(one, out, shards, stop)
  except InterruptedError:
    pass
  pid = os.fork()
  if not pid:
    kill_at(moment, out)
    make(other, out)
    os._exit(0)
  killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
  if os.path.exists(f'{out}/val.manifest.json'):
    assert make(other, out) == wanted, moment
  else:
    assert make(one, out, shards) == whole[shards], moment
print(killed)
"""


def test_killed_at_every_moment(narratives, tmp_path):
  """At each file that is opened, renamed or removed, over what another left."""
  paths = []
  for end in '.!':  # records of the same size
    rows = [
      formats.narrative(str(i), caption=f'In this image, a red ring{end}')
      for i in range(3)
    ]
    paths.append(formats.write_lines(tmp_path / f'{end}.jsonl', rows))
  done = subprocess.run(
    [sys.executable, '-c', KILLED, *paths, narratives['images'], str(tmp_path)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 15


@pytest.mark.parametrize('change', ['annotations', 'image', 'shards'])
def test_other_input_in_the_same_directory(narratives, tmp_path, change):
  out = tmp_path / 'out'
  run(narratives, out)
  before = contents(out)
  options = {}
  if change == 'annotations':
    with open(narratives['annotations'], 'a') as file:
      file.write('\n')
  elif change == 'image':
    formats.write_images(
      narratives['images'], ['000000000000.jpg'], size=(9, 9)
    )
  else:
    options['shards'] = 2
  with pytest.raises(
    build.BuildError, match=r'val\.manifest\.json: holds records of other input'
  ):
    run(narratives, out, **options)
  assert contents(out) == before


def test_lost_shard_is_built_again(narratives, tmp_path):
  out = tmp_path / 'out'
  run(narratives, out)
  before = contents(out)
  (out / 'val-00001-of-00004.array_record').unlink()
  assert run(narratives, out).built > 0
  assert contents(out) == before


def test_splits_share_a_directory(narratives, tmp_path):
  out = tmp_path / 'out'
  run(narratives, out)
  before = contents(out)
  build.build(**narratives, out=str(out), split='train')
  assert before.items() <= contents(out).items()
  assert run(narratives, out).built == 0


# Bad rows.


@pytest.fixture
def spoilt(narratives):
  """Every kind of bad row and image; images 0 and 4 to 8 stay good."""
  path = pathlib.Path(narratives['annotations'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows[1]['traces'][0][0]['x'] = float('nan')
  rows[2]['timed_caption'][0]['start_time'] = '0'
  rows[3]['caption'] = ''
  rows[9]['traces'] = []  # image 3, too
  rows.append(formats.narrative('99'))
  images = pathlib.Path(narratives['images'])
  for i, name in ((4, 'cut'), (5, 'text'), (6, 'empty')):
    file = images / f'{i:012d}.jpg'
    data = {'cut': file.read_bytes()[:900], 'text': b'<html>', 'empty': b''}
    file.write_bytes(data[name])
  unsorted = formats.narrative('7', 5)
  unsorted['timed_caption'][1]['start_time'] = 9.0
  unsorted['timed_caption'][1]['end_time'] = 9.5
  rows.append(unsorted)
  formats.write_lines(path, [*rows, '{"image_id": "8", oops'])
  return narratives


def test_bad_rows_are_counted_and_listed(spoilt, tmp_path):
  out = tmp_path / 'out'
  result = run(spoilt, out)
  assert result.manifest['skipped'] == {
    'empty_caption': 1,
    'image_missing': 1,
    'image_unreadable': 3,
    'no_traces': 1,
    'not_a_number': 1,
    'not_finite': 1,
    'not_json': 1,
    'unsorted_times': 1,
  }
  found = records.RecordSet(str(out), 'val')
  kept = [example.from_bytes(found[i]) for i in range(len(found))]
  assert [e.image_id for e in kept] == ['0', '7', '8']
  lines = report(out)
  assert len(lines) == 10
  by_line = {line['line']: line for line in lines}
  assert set(by_line) == {2, 3, 4, 5, 6, 7, 10, 11, 12, 13}
  for line in lines:
    assert line['file'] == spoilt['annotations']
    assert set(line) == {
      'file', 'line', 'field', 'reason', 'expected', 'found',
    }  # fmt: skip
  assert by_line[2]['field'] == 'traces[0][0].x'
  assert 'truncated: 900 bytes' in by_line[5]['found']
  assert "first bytes b'<html>'" in by_line[6]['found']
  assert '0 bytes' in by_line[7]['found']
  assert '000000000099' in by_line[11]['found']
  assert 'image_unreadable 3' in str(result)
  run(spoilt, tmp_path / 'again', workers=2)
  assert contents(out) == contents(tmp_path / 'again')
  assert report(out) == report(tmp_path / 'again')


@pytest.mark.parametrize('workers', [1, 2])
def test_strict_stops_at_the_first(spoilt, tmp_path, workers):
  out = tmp_path / 'out'
  rows = pathlib.Path(spoilt['annotations']).read_text().splitlines()
  formats.write_lines(spoilt['annotations'], rows[:-1])  # the rest is JSON
  with pytest.raises(
    RowError, match=r'ln\.jsonl, line 2, field traces\[0\]\[0\]\.x: expected'
  ):
    run(spoilt, out, strict=True, workers=workers)
  assert not list(out.glob('*.manifest.json')) and not list(out.glob('*.tmp'))


def test_strict_refuses_an_earlier_lenient_build(spoilt, tmp_path):
  run(spoilt, tmp_path / 'out')
  with pytest.raises(build.BuildError, match='built without strict'):
    run(spoilt, tmp_path / 'out', strict=True)


def test_strict_accepts_good_rows(narratives, tmp_path):
  assert run(narratives, tmp_path / 'out', strict=True).manifest['records'] == 9


def test_nothing_good(narratives, tmp_path):
  rows = [formats.narrative(str(i), traces=[]) for i in range(3)]
  formats.write_lines(narratives['annotations'], rows)
  with pytest.raises(
    build.BuildError, match=r'at least one good row, found no_traces 3\. The fi'
  ):
    run(narratives, tmp_path / 'out')
  formats.write_lines(narratives['annotations'], [])
  with pytest.raises(build.BuildError, match='found no row at all'):
    run(narratives, tmp_path / 'out')


def test_image_of_other_proportions(tmp_path):
  images = formats.write_images(
    tmp_path / 'images', ['7.jpg'], size=(formats.WIDTH, formats.HEIGHT)
  )
  formats.write_images(images, ['8.jpg'], size=(20, 30))  # a smaller copy
  regions, image_data = formats.write_visual_genome(tmp_path)
  result = build.build(
    'visual_genome', regions, images, str(tmp_path / 'out'),
    image_data=image_data,
  )  # fmt: skip
  assert result.manifest['skipped'] == {'image_size': 2, 'no_image_meta': 1}
  assert result.manifest['records'] == 1


# Bad arguments.


def test_bad_arguments(narratives, tmp_path):
  out = str(tmp_path / 'out')
  path, images = narratives['annotations'], narratives['images']
  with pytest.raises(build.BuildError, match=r"expected one of .*got 'coco'"):
    build.build('coco', path, images, out)
  with pytest.raises(SourceError, match=r'gone\*\.jsonl: no such file'):
    build.build(
      'localized_narratives', str(tmp_path / 'gone*.jsonl'), images, out
    )
  with pytest.raises(SourceError, match=r'expected the path of instances'):
    build.build('refcoco', path, images, out)
  with pytest.raises(build.BuildError, match='takes no instances'):
    build.build('localized_narratives', path, images, out, instances='x')
  with pytest.raises(build.BuildError, match='split'):
    build.build('localized_narratives', path, images, out, split='a/b')
  assert not pathlib.Path(out).exists()


def test_glob_and_file_names_that_look_like_patterns(narratives, tmp_path):
  rows = pathlib.Path(narratives['annotations']).read_text().splitlines()
  for i in range(2):
    formats.write_lines(tmp_path / f'part[{i}].jsonl', rows[i::2])
  one = narratives | {'annotations': str(tmp_path / 'part[0].jsonl')}
  assert run(one, tmp_path / 'one').manifest['records'] == 5
  both = narratives | {'annotations': str(tmp_path / 'part*.jsonl')}
  assert run(both, tmp_path / 'both').manifest['records'] == 9


LIMITED = """
import resource, signal, sys
from pixel_llm.data import build
if __name__ == '__main__':
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
  try:
    build.build('localized_narratives', *sys.argv[1:], split='val')
  except build.BuildError as e:
    print(e)
    sys.exit(3)
"""


def test_full_disk(narratives, tmp_path):
  out = tmp_path / 'out'
  assert hasattr(resource, 'RLIMIT_FSIZE') and hasattr(signal, 'SIGXFSZ')
  done = subprocess.run(
    [sys.executable, '-c', LIMITED, narratives['annotations'],
     narratives['images'], str(out)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 3, done.stderr
  assert 'val-00000-of-00004.array_record: cannot be written' in done.stdout
  assert list(out.iterdir()) == []


def test_build_needs_neither_jax_nor_tensorflow():
  code = (
    'import sys; import pixel_llm.data.build, pixel_llm.alignment; '
    'sys.exit(bool({"jax", "tensorflow"} & set(sys.modules)))'
  )
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )


# Reading.


@pytest.fixture
def record_set(narratives, tmp_path):
  run(narratives, tmp_path / 'out')
  return records.RecordSet(str(tmp_path / 'out'), 'val')


def test_random_access(record_set):
  def ids(read):
    return [example.from_bytes(r).image_id for r in read]

  assert len(record_set) == COUNT
  assert ids(record_set.read([8, 0, 3, 3, 5])) == ['8', '0', '3', '3', '5']
  assert ids(record_set) == [str(i) for i in range(COUNT)]  # ends by IndexError
  assert record_set.read([]) == []
  again = pickle.loads(pickle.dumps(record_set))
  assert again[4] == record_set[4]
  for index in (-1, COUNT):
    with pytest.raises(IndexError, match=r'in \[0, 9\), got'):
      record_set.read([index])


def test_missing_and_cut_shards(record_set, tmp_path):
  out = tmp_path / 'out'
  shard = out / 'val-00002-of-00004.array_record'
  data = shard.read_bytes()
  shard.write_bytes(data[:-1])
  with pytest.raises(
    ValueError,
    match=rf'00002-of-00004.*: expected {len(data)} bytes',
  ):
    records.RecordSet(str(out), 'val')
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=r'00002-of-00004\.array_record'):
    records.RecordSet(str(out), 'val')
  shard.write_bytes(bytes(len(data)))
  with pytest.raises(ValueError, match=r'00002-of-00004.*: damaged'):
    records.RecordSet(str(out), 'val').read(range(COUNT))


def test_missing_and_foreign_manifests(record_set, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(FileNotFoundError, match=r'test\.manifest.*here: val'):
    records.RecordSet(str(out), 'test')
  path = out / 'val.manifest.json'
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | {'schema': 99}))
  with pytest.raises(ValueError, match='expected schema 2, found 99'):
    records.read_manifest(str(out), 'val')
  path.write_text('[]')
  with pytest.raises(ValueError, match='expected a manifest'):
    records.read_manifest(str(out), 'val')


def test_moved_records_are_the_same(record_set, narratives, tmp_path):
  shutil.move(tmp_path / 'out', tmp_path / 'moved')
  moved = records.RecordSet(str(tmp_path / 'moved'), 'val')
  assert len(moved) == COUNT
  assert run(narratives, tmp_path / 'moved').built == 0
