# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Runs what `pixel-llm export RUN --format stablehlo` wrote.

Needs jax, but neither Flax nor the model's code: the modules are programs, and
the manifest beside them says what goes in and what comes out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from pixel_llm import vocabulary as vocabulary_lib
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.checkpoints.tensors import TensorFileError, damaged

FORMAT = 1
MANIFEST = 'manifest.json'
PARAMETERS = 'parameters.safetensors'
VOCABULARY = 'spiece.model'
MODULES = ('encode_image', 'generate', 'read')
# Of a serialized module, as `jax.export` writes it.
SUFFIX = '.jax_export'
_EXPECTED = 'a folder that `pixel-llm export --format stablehlo` wrote'

Function = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Exported:
  """The functions of an exported run.

  Each takes the inputs that `manifest['modules'][name]['inputs']` lists, in
  that order or by name, and gives its outputs by name. It is compiled when it
  is first called with arrays of new sizes.

  Attributes:
    manifest: shapes, dtypes, units, config and versions.
    vocabulary: of the words.
    encode_image: images -> features, for any number of questions.
    generate: features and prompts -> written answers with their points.
    read: features, prompts and answers -> points and a box.
    parameters: by name, the first argument of each module.
    modules: name -> the program itself.
  """

  manifest: dict[str, Any]
  vocabulary: vocabulary_lib.Vocabulary
  parameters: dict[str, jax.Array]
  modules: dict[str, export.Exported]
  encode_image: Function
  generate: Function
  read: Function

  @property
  def canvas(self) -> int:
    """Side of the padded square input, pixels."""
    return self._shape('encode_image', 'image')[1]

  def prompts(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """`encoder_input_tokens` of texts.

    Args:
      texts: of each image as many as the others have.

    Returns: [batch, regions, context] int32.

    Raises:
      ValueError: a text is too long for the module.
    """
    shape = self._shape('generate', 'encoder_input_tokens')
    return self._tokens(texts, shape[-1])

  def answers(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """`decoder_target_tokens` of texts: [batch, regions, length] int32.

    Raises:
      ValueError: a text is too long for the module.
    """
    shape = self._shape('read', 'decoder_target_tokens')
    return self._tokens(texts, shape[-1])

  def _shape(self, module: str, name: str) -> list:
    return self.manifest['modules'][module]['inputs'][name]['shape']

  def _tokens(self, texts: Sequence[Sequence[str]], length: int) -> np.ndarray:
    out = np.zeros((len(texts), len(texts[0]), length), np.int32)
    for i, row in enumerate(texts):
      for j, text in enumerate(row):
        ids = [*self.vocabulary.encode(text), vocabulary_lib.EOS_ID]
        if len(ids) > length:
          raise ValueError(
            f'{text!r}: expected at most {length} tokens with the end token, '
            f'got {len(ids)}.'
          )
        out[i, j, : len(ids)] = ids
    return out


def load(folder: str) -> Exported:
  """Loads what `pixel-llm export --format stablehlo` wrote.

  Args:
    folder: local.

  Raises:
    FileNotFoundError: no export there, or a file of it is missing.
    TensorFileError: a file is damaged, or of a later version.
  """
  root = pathlib.Path(folder)
  manifest = _manifest(root / MANIFEST)
  for name, digest in manifest['sha256'].items():
    with open(root / name, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != digest:
      raise TensorFileError(
        root / name, f'SHA-256 {digest[:12]}, as its manifest says', found[:12]
      )
  tensors = safetensors.read(root / PARAMETERS)
  params = {name: jax.numpy.asarray(t.read()) for name, t in tensors.items()}
  vocabulary = vocabulary_lib.Vocabulary(
    str(root / VOCABULARY), manifest['extra_ids']
  )
  modules = {name: _module(root / f'{name}{SUFFIX}') for name in MODULES}
  functions = {
    name: _function(name, module, manifest['modules'][name], params)
    for name, module in modules.items()
  }
  return Exported(manifest, vocabulary, params, modules, **functions)


def _manifest(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file; expected {_EXPECTED}.')
  with damaged(path, 'the manifest of an export'):
    manifest = json.loads(path.read_text())
    version = manifest['format']
    files = {PARAMETERS, VOCABULARY, *(f'{m}{SUFFIX}' for m in MODULES)}
    missing = files - manifest['sha256'].keys()
    # What loading needs; the rest is for people.
    _ = manifest['extra_ids'], [manifest['modules'][m] for m in MODULES]
  if version != FORMAT:
    raise TensorFileError(path, f'format {FORMAT}', f'{version!r}')
  if missing:
    raise TensorFileError(path, f'a digest of {sorted(missing)[0]}', 'none')
  return manifest


def _module(path: pathlib.Path) -> export.Exported:
  with damaged(path, 'a module of jax.export'):
    return export.deserialize(bytearray(path.read_bytes()))


def _function(
  name: str,
  module: export.Exported,
  signature: dict[str, Any],
  params: dict[str, jax.Array],
) -> Function:
  """The module as a function of its inputs alone."""
  call = jax.jit(module.call)
  inputs = list(signature['inputs'])

  def function(*args, **kwargs):
    given = dict(zip(inputs, args)) | kwargs
    if set(given) != set(inputs) or len(args) + len(kwargs) != len(inputs):
      raise TypeError(
        f'{name}: expected {", ".join(inputs)}, got {len(args)} in order '
        f'and {sorted(kwargs)} by name.'
      )
    return call(params, *(jax.numpy.asarray(given[x]) for x in inputs))

  return function
