# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which format a path is, by what lies there."""

from __future__ import annotations

import errno
import os
import pathlib

from pixel_llm.checkpoints.formats import npz, orbax, safetensors, t5x, torch
from pixel_llm.checkpoints.tensors import Tensor, TensorFileError

_FORMATS = (
  'safetensors, .npz, .pth/.pt/.bin of PyTorch, a *.index.json of Hugging '
  'Face, or a folder of Hugging Face, T5X, Orbax or a run'
)
# What a folder of Hugging Face holds, the preferred first.
_HUGGING_FACE = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)


def open_tensors(
  path: str | os.PathLike, step: int | None = None
) -> tuple[str, dict[str, Tensor]]:
  """Opens a file or folder of tensors of any known format.

  Args:
    path: local.
    step: of a folder of checkpoints or of a run's folder; None takes the
      newest, and anything that has no steps.

  Returns:
    the format in words, and tensors by name; none is loaded.

  Raises:
    FileNotFoundError: nothing is there.
    TensorFileError: of no known format, or damaged, or without that step.
    OSError: it can't be read.
  """
  path = pathlib.Path(path)
  if step is not None and path.exists():
    path = _step(path, step)
  if path.is_dir():
    return _open_folder(path)
  if not path.exists():
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  if path.name.endswith('.safetensors.index.json'):
    return 'safetensors, sharded', safetensors.read_index(
      path, safetensors.read
    )
  if path.name.endswith('.bin.index.json'):
    return 'PyTorch, sharded', safetensors.read_index(path, torch.read)
  if path.suffix == '.safetensors':
    return 'safetensors', safetensors.read(path)
  if path.suffix == '.npz':
    return 'npz', npz.read(path)
  if path.suffix in ('.pth', '.pt', '.bin'):
    return 'PyTorch', torch.read(path)
  raise TensorFileError(path, _FORMATS, f'a file {path.suffix or path.name!r}')


def _step(path: pathlib.Path, step: int) -> pathlib.Path:
  found: dict[int, pathlib.Path] = {}
  for folder in (path, path / 'checkpoints'):
    if not found and folder.is_dir():
      found = orbax.steps(folder)
  if step not in found:
    steps = f'those of {", ".join(map(str, found))}' if found else 'none'
    raise TensorFileError(path, f'a checkpoint of step {step}', steps)
  return found[step]


def _open_folder(path: pathlib.Path) -> tuple[str, dict[str, Tensor]]:
  if orbax.is_item(path) or orbax.items(path):
    return 'Orbax', orbax.read(path)
  if (path / 'checkpoint').is_file():
    return 'T5X', t5x.read(path)
  for name in _HUGGING_FACE:
    if (path / name).is_file():
      return open_tensors(path / name)
  for folder in (path, path / 'checkpoints'):
    step = orbax.newest(folder) if folder.is_dir() else None
    if step is not None:
      return open_tensors(step)
  files = [
    p for p in path.iterdir() if p.suffix in ('.safetensors', '.npz', '.pth')
  ]
  if len(files) == 1:
    return open_tensors(files[0])
  found = ', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'
  raise TensorFileError(path, _FORMATS, f'a folder of {found}')
