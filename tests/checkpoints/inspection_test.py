# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np

from pixel_llm import main
from pixel_llm.checkpoints import inspection
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import Tensor, of_array

ROOT = pathlib.Path(__file__).parents[2]


def fail():
  raise AssertionError('a tensor was loaded')


def make(**shapes):
  return {
    name.replace('__', '.'): Tensor(shape, np.dtype(np.float32), fail)
    for name, shape in shapes.items()
  }


def lines(text):
  return [' '.join(line.split()) for line in text.splitlines()]


def test_a_tree_of_shapes_dtypes_and_sizes():
  tensors = make(a__w=(2, 3), a__b=(3,), c=()) | {
    'half': Tensor((500,), np.dtype(ml_dtypes.bfloat16), fail)
  }
  assert lines(inspection.to_text(tensors)) == [
    'a 2 tensors 9 36 B',
    'b float32 [3] 3 12 B',
    'w float32 [2, 3] 6 24 B',
    'c float32 [] 1 4 B',
    'half bfloat16 [500] 500 1.0 kB',
    '',
    'bfloat16 1 tensor 500 1.0 kB',
    'float32 3 tensors 10 40 B',
    'total 4 tensors 510 1.0 kB',
  ]


def test_layers_alike_are_one_line():
  layers = {f'h.{i}.w': (4,) for i in range(12)} | {'h.12.w': (5,)}
  shown = lines(inspection.to_text(make(**layers)))
  assert shown[:5] == [
    'h 13 tensors 53 212 B',
    '0..11 (12 alike) 12 tensors 48 192 B',
    'w float32 [4] 4 16 B',
    '12 1 tensor 5 20 B',
    'w float32 [5] 5 20 B',
  ]


def test_depth_sums_up_what_is_below():
  tensors = make(a__b__c=(2,), a__d=(3,))
  shown = lines(inspection.to_text(tensors, depth=2))
  assert shown[:3] == [
    'a 2 tensors 5 20 B',
    'b 1 tensor 2 8 B',
    'd float32 [3] 3 12 B',
  ]
  assert lines(inspection.to_text(tensors, depth=1))[1] == ''


def test_the_verb_shows_a_checkpoint(t5x_tiny, capsys):
  path = str(t5x_tiny / 'legacy_bf16')
  assert main.main(['inspect', path, '--depth', '3']) == 0
  shown = lines(capsys.readouterr().out)
  assert shown[0] == f'{path}: T5X'
  assert 'layers_0..1 (2 alike) 18 tensors 5,184 10.4 kB' in shown
  assert main.main(['inspect', path, '--json']) == 0
  value = json.loads(capsys.readouterr().out)
  assert value['format'] == 'T5X'
  assert len(value['tensors']) == 261
  assert value['bytes'] == sum(t['bytes'] for t in value['tensors'])
  name = 'target/token_embedder/embedding'
  assert [t for t in value['tensors'] if t['name'] == name] == [
    {'name': name, 'shape': [64, 16], 'dtype': 'bfloat16', 'bytes': 2048}
  ]


def test_the_verb_names_what_is_wrong(tmp_path, capsys):
  (tmp_path / 'x.npz').write_bytes(b'PK noise')
  for path, said in (
    ('x.npz', 'expected a whole .npz file'),
    ('none', 'No such file or directory'),
    ('.', 'a folder of x.npz'),
  ):
    assert main.main(['inspect', str(tmp_path / path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'pixel-llm inspect: error: {tmp_path}')
    assert len(error.splitlines()) == 1
    if path != '.':
      assert said in error


def test_the_verb_needs_neither_tensorflow_nor_orbax(tmp_path):
  safetensors.write(tmp_path / 'x.safetensors', {'x': of_array(np.ones(2))})
  code = (
    'import sys; from pixel_llm import main; '
    'main.main(["inspect", sys.argv[1]]); print(*sys.modules)'
  )
  out = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'x.safetensors'],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  loaded = set(out.stdout.splitlines()[-1].split())
  assert not loaded & {'tensorflow', 'orbax.checkpoint', 'torch', 'seqio'}
