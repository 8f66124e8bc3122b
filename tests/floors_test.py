# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""What may import what (ARCHITECTURE.md, Floors)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'pixel_llm'
FLOOR_0 = {
  'alignment',
  'augmentation',
  'batch',
  'chips',
  'compiled',
  'config',
  'example',
  'exits',
  'files',
  'geometry',
  'hlo',
  'image',
  'masks',
  'prediction',
  'sharding',
  'version',
  'vocabulary',
}
# Room -> rooms it may import, itself included.
ALLOWED = {
  **dict.fromkeys(FLOOR_0, FLOOR_0),
  'model': FLOOR_0 | {'model'},
  'metrics': FLOOR_0 | {'metrics'},
  'checkpoints': FLOOR_0 | {'checkpoints'},
  'tasks': FLOOR_0 | {'model', 'metrics', 'checkpoints', 'tasks'},
}
ALLOWED['data'] = ALLOWED['tasks'] | {'data'}
ALLOWED['places'] = FLOOR_0
ALLOWED['loading'] = ALLOWED['tasks']
ALLOWED['predictor'] = ALLOWED['tasks'] | {'loading', 'places'}
ALLOWED['weights'] = ALLOWED['tasks']
ALLOWED['exported'] = FLOOR_0 | {'checkpoints'}
ALLOWED['savedmodel'] = FLOOR_0 | {'exported'}
ALLOWED['stablehlo'] = ALLOWED['tasks'] | {'predictor', 'exported'}
ALLOWED['pictures'] = FLOOR_0 | {'pictures'}
ALLOWED['report'] = FLOOR_0 | {'pictures'}
ALLOWED['sheet'] = ALLOWED['data'] | {'pictures'}
ALLOWED['train'] = ALLOWED['data'] | {'train', 'pictures', 'report'}
ALLOWED['plan'] = ALLOWED['train'] | {'plan'}
ALLOWED['asking'] = ALLOWED['predictor'] | {'predictor', 'pictures', 'asking'}
ALLOWED['app'] = ALLOWED['asking'] - {'asking'} | {'app'}
ALLOWED['arguments'] = {'exits', '__init__', 'arguments'}
ALLOWED['main'] = ALLOWED['plan'] | {
  'app',
  'arguments',
  'asking',
  'predictor',
  'weights',
  'stablehlo',
  'savedmodel',
  'sheet',
}
ALLOWED['t5x_model'] = ALLOWED['train']
ALLOWED['__main__'] = {'main'}
ALLOWED['__init__'] = {'batch', 'predictor', 'prediction'}
# The only files that may import TensorFlow or what brings it in.
TENSORFLOW = {'tensorflow', 'seqio', 'tensorflow_datasets', 'clu', 't5x'}
MAY_TENSORFLOW = {
  'data/features.py',
  'data/loader.py',
  'data/registry.py',
  'data/datasets.py',
  'data/sources/tfds.py',
  'train/loop.py',
  'train/writers.py',
  'savedmodel.py',
  't5x_model.py',
}
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(path):
  """Dotted names that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


@pytest.mark.parametrize(
  'path', FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES]
)
def test_imports_stay_on_their_floors(path):
  relative = path.relative_to(PACKAGE)
  room = relative.parts[0].removesuffix('.py')
  for name in imports(path):
    parts = name.split('.')
    if parts[0] == 'pixel_llm' and parts[1] != '__version__':
      assert parts[1] in ALLOWED[room], f'{relative} imports {name}'
    if parts[0] in TENSORFLOW:
      assert str(relative) in MAY_TENSORFLOW, f'{relative} imports {name}'
    if parts[0] == 't5x':
      assert room == 't5x_model', f'{relative} imports {name}'


def test_configs_import_only_the_experiment_and_named_sizes():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in imports(path):
      assert name.split('.')[0] in ('configs', 'ml_collections', 'pixel_llm')
      if name.startswith('pixel_llm'):
        assert name in (
          'pixel_llm.config',
          'pixel_llm.train.experiment',
          'pixel_llm.model.eva',
          'pixel_llm.model.sam',
          'pixel_llm.model.t5',
        )


def loaded_after(code):
  out = subprocess.run(
    [sys.executable, '-c', f'{code}; import sys; print(*sys.modules)'],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  return set(out.stdout.split())


@pytest.mark.parametrize(
  'code',
  [
    'import pixel_llm, pixel_llm.predictor, pixel_llm.pictures',
    'import pixel_llm.weights',
    'import pixel_llm.stablehlo',
    'import pixel_llm.train.experiment, pixel_llm.data.build',
    'import pixel_llm.train.scoring',
  ],
)
def test_inference_and_building_never_meet_tensorflow(code):
  assert not loaded_after(code) & {'tensorflow', 't5x', 'seqio'}


def test_help_imports_no_heavy_room():
  code = (
    'import pixel_llm.main as m, contextlib, io\n'
    'with contextlib.redirect_stdout(io.StringIO()), '
    'contextlib.suppress(SystemExit): m.main(["--help"])\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', code + 'import sys; print(*sys.modules)'],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  assert not set(out.stdout.split()) & {'jax', 'numpy', 'tensorflow', 'rich'}
