# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: other projects' checkpoints to ours, ours to theirs.

Everything that can be known without reading a tensor is checked first; then
tensors pass one at a time, and what is written takes its place only when it is
whole. Paths are local.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pixel_llm import config as config_lib
from pixel_llm import files
from pixel_llm.checkpoints import eva_names, mapping, sam_names, t5_names
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import (
  detection,
  orbax,
  safetensors,
  t5x,
)
from pixel_llm.checkpoints.tensors import Tensor, Tensors
from pixel_llm.model import eva, mask, pixel_llm, prompt, sam, t5

Progress = Callable[[int, int], None]
Part = Literal['t5', 'sam', 'eva']
Source = Literal[
  't5x', 'huggingface', 'segment-anything', 'timm', 'eva', 'pixel-llm'
]
Target = Literal['t5x', 'huggingface', 'safetensors']

_TABLES: dict[str, mapping.Table] = {
  't5x': t5_names.T5X,
  'huggingface': t5_names.HUGGING_FACE,
}
# Which parts there are by whose names; the first is meant when none is said.
PARTS: dict[Source, tuple[Part, ...]] = {
  't5x': ('t5',),
  'huggingface': ('t5', 'sam'),
  'segment-anything': ('sam',),
  'timm': ('eva',),
  'eva': ('eva',),
}
_DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': tensors_lib.BFLOAT16,
}
# What a folder holds that was written here.
_WRITTEN = re.compile(
  r'0|checkpoint_\d+|config\.json|model\.safetensors|spiece\.model'
)
_SAFETENSORS = '.safetensors'
_EMBEDDING = f'{t5_names.PREFIX}{t5_names.EMBEDDING}'


def import_weights(
  source: str,
  out: str,
  names: Source,
  config: t5.T5Config | pixel_llm.ModelConfig | None = None,
  *,
  part: Part | None = None,
  dtype: str = 'float32',
  allow_missing: Iterable[str] = (),
  force: bool = False,
  progress: Progress | None = None,
) -> str:
  """Writes another project's checkpoint as parameters by our names.

  Args:
    source: a file or folder of any format that is known.
    out: a `.safetensors` file, or a folder of an Orbax checkpoint of
      parameters alone, at step 0, which `CheckpointManager.restore_params`
      reads.
    names: whose names and layout the source has; `pixel-llm` changes neither.
    config: the T5, or the network with the part, that it must fit. None takes
      the sizes of a T5 off its shapes, and is an error for an encoder. Has no
      say with `pixel-llm`.
    part: what the source holds of the network, one of `PARTS` of these names,
      None for the first. With SAM's encoder come its prompt encoder and, if the
      network draws masks, its mask decoder.
    dtype: of the floating point numbers, float32 or bfloat16.
    allow_missing: regular expressions of our names that need not be there.
    force: replaces what is at `out`, if it was written by this module.
    progress: called with the tensors done and their number.

  Returns:
    what was written, in words.

  Raises:
    MappingError: names, shapes or the size of the vocabulary do not fit.
    TensorFileError: the source is damaged, or of no known format.
    ValueError: NaN or infinite numbers; a part that these names do not have,
      or that the network has not.
    OSError: something can't be read or written, or `out` exists.
  """
  part = _part(names, part)
  path = files.free(out, source, _WRITTEN, force)
  _, tensors = detection.open_tensors(source)
  if names == 'pixel-llm':
    given = tensors_lib.parameters(tensors)
  elif part != 't5':
    if not isinstance(config, pixel_llm.ModelConfig):
      raise ValueError(
        f'{names}: expected the sizes of {part}, from --size or --config.'
      )
    table, expected = _encoder(names, part, config)
    if part == 'eva':
      tensors = eva_names.contained(tensors)
    given, report = mapping.apply(table, tensors)
    report = mapping.compare(given, expected, allow_missing, report)
    if report:
      raise mapping.MappingError(f'{source}: {report}')
  else:
    if isinstance(config, pixel_llm.ModelConfig):
      config = config.t5
    if names == 't5x':
      tensors = tensors_lib.parameters(tensors)
    else:
      _check_hugging_face(pathlib.Path(source))
    with _about(source):
      given = _fitted(_TABLES[names], tensors, config, allow_missing)
  given = _watched(mapping.cast(given, _DTYPES[dtype]), source, progress)
  with files.whole(path) as unfinished:
    if path.suffix == _SAFETENSORS:
      safetensors.write(unfinished, given)
    else:
      orbax.write(unfinished / '0', given, {'source': source, 'names': names})
  return f'{out}: {_described(given)}'


def export_weights(
  source: str,
  out: str,
  target: Target,
  config: t5.T5Config | None = None,
  *,
  dtype: str | None = None,
  step: int | None = None,
  force: bool = False,
  progress: Progress | None = None,
) -> str:
  """Writes our parameters as others read them.

  Args:
    source: a run's folder, an Orbax checkpoint or safetensors by our names.
    out: for `t5x` a folder, which will hold `checkpoint_<step>`; for
      `huggingface` a folder with `config.json` and `model.safetensors`; else
      a `.safetensors` file, or, of a run, a folder of all that
      `Predictor.from_workdir` needs.
    target: T5X and Hugging Face get the T5 alone, by their names and its LoRA
      merged; safetensors all parameters as they are.
    config: of the T5; None takes a run's own, else the sizes off the shapes.
    dtype: of the floating point numbers; None leaves them as they are.
    step: that T5X reads; None takes the checkpoint's, at least 1, since T5X
      takes 0 for no checkpoint.
    force: replaces what is at `out`, if it was written by this module.
    progress: called with the tensors done and their number.

  Returns:
    what was written, in words.

  Raises:
    MappingError: names or shapes do not fit, or LoRA has no scale.
    TensorFileError: the source is damaged, or of no known format.
    ValueError: NaN or infinite numbers, or an `out` of another name.
    OSError: something can't be read or written, or `out` exists.
  """
  path = files.free(out, source, _WRITTEN, force)
  is_file = path.suffix == _SAFETENSORS
  if is_file and target != 'safetensors':
    raise ValueError(f'--out {out}: expected a folder for {target}.')
  run = _run_of(pathlib.Path(source))
  if target == 'safetensors' and not is_file and run is None:
    raise ValueError(
      f'--out {out}: expected a {_SAFETENSORS} file, or a folder if the source '
      f'is a run; {source} is of none.'
    )
  _, tensors = detection.open_tensors(source)
  given = tensors_lib.parameters(tensors)
  config = config or _config_of_run(pathlib.Path(source))
  if target != 'safetensors':
    with _about(source):
      given = _merged(given, config)
      config = config or _config_of_shapes(given)
      given = _by_names(_TABLES[target], given, config)
  if dtype is not None:
    given = mapping.cast(given, _DTYPES[dtype])
  given = _watched(given, source, progress)
  with files.whole(path) as part:
    if is_file:
      safetensors.write(part, given, {'format': 'np'})
    elif target == 'safetensors':
      assert run is not None
      part.mkdir()
      safetensors.write(part / 'model.safetensors', given, {'format': 'np'})
      for name in ('config.json', 'spiece.model'):
        shutil.copy(run / name, part / name)
      # What was found of it: predictors take their threshold from there.
      metrics, at = run / 'metrics.json', tensors.get('train/step')
      kept = _json(metrics) if metrics.is_file() else {}
      if at is not None and kept.get('step') == int(at.read()):
        shutil.copy(metrics, part / metrics.name)
    elif target == 'huggingface':
      assert config is not None
      _write_hugging_face(part, pathlib.Path(source), given, config)
    else:
      step = _step(tensors) if step is None else step
      given = {f'target/{name}': tensor for name, tensor in given.items()}
      given['state/step'] = tensors_lib.of_array(np.array(step, np.int32))
      t5x.write(part / f'checkpoint_{step}', given)
  return f'{out}: {_described(given)}'


def shapes(config: t5.T5Config) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of the T5, by its name in the whole network."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return _shapes(t5.T5(config), t5_names.PREFIX, None, tokens, tokens)


def encoder_shapes(
  config: pixel_llm.ModelConfig, part: Part
) -> dict[str, tuple[int, ...]]:
  """Shapes of what is imported with an image encoder, by name.

  Args:
    config: of the whole network.
    part: `sam`, with which come the location prompt encoder and, if there is
      one, the mask decoder; or `eva`.

  Raises:
    ValueError: the network has no such encoder.
  """
  if part == 'sam' and config.sam is not None:
    pixels = jnp.zeros((1, config.sam.patch_size, config.sam.patch_size, 3))
    encoder = prompt.LocationPromptEncoder(config.prompt)
    boxes = jnp.zeros((1, 4)), (1, 1)
    found = _shapes(sam.Sam(config.sam), sam_names.PREFIX, pixels) | _shapes(
      encoder, sam_names.PROMPT_PREFIX, *boxes, method='boxes'
    )
    if config.mask is not None:
      cell = jnp.zeros((1, 1, 1, config.mask.width))
      decoder = mask.MaskDecoder(config.mask)
      found |= _shapes(decoder, sam_names.MASK_PREFIX, cell, cell[0], cell)
    return found
  if part == 'eva' and config.eva is not None:
    pixels = jnp.zeros((1, config.eva.patch_size, config.eva.patch_size, 3))
    return _shapes(eva.Eva(config.eva), eva_names.PREFIX, pixels)
  raise ValueError(f'model.{part}: expected an encoder, got none.')


def _shapes(module: nn.Module, prefix: str, *args: Any, **kwargs: Any):
  tree = jax.eval_shape(
    lambda key: module.init(key, *args, **kwargs)['params'], jax.random.key(0)
  )
  flat: Any = traverse_util.flatten_dict(nn.unbox(tree), sep='/')
  return {f'{prefix}{name}': x.shape for name, x in flat.items()}


def _part(names: Source, part: Part | None) -> Part:
  """The part that is meant, checked to be had by these names."""
  parts = PARTS.get(names, ())
  if part is None or names == 'pixel-llm':
    return parts[0] if parts else 't5'
  if part not in parts:
    raise ValueError(
      f'{names}: expected a part among {", ".join(parts)}, got {part}.'
    )
  return part


def _encoder(
  names: Source, part: Part, config: pixel_llm.ModelConfig
) -> tuple[mapping.Table, dict[str, tuple[int, ...]]]:
  """The table of an image encoder, and the shapes that it must give."""
  expected = encoder_shapes(config, part)
  if part == 'sam' and config.sam is not None:
    tables = {
      'segment-anything': sam_names.segment_anything,
      'huggingface': sam_names.hugging_face,
    }
    c = config.sam
    sizes = c.depth, c.blocks_per_group, c.patch_size, c.position_grid
    mask_depth = config.mask.depth if config.mask is not None else None
    return tables[names](*sizes, mask_depth), expected
  assert config.eva is not None
  tables = {'timm': eva_names.timm, 'eva': eva_names.eva}
  c = config.eva
  has_norm = c.mlp_norm_epsilon is not None
  return tables[names](c.patch_size, has_norm, c.final_norm), expected


def _fitted(
  table: mapping.Table,
  tensors: Tensors,
  config: t5.T5Config | None,
  allow_missing: Iterable[str],
) -> dict[str, Tensor]:
  """The tensors by our names, checked against the shapes of the T5."""
  given, report = mapping.apply(table, tensors)
  if config is None:
    if report:
      raise mapping.MappingError(str(report))
    config = _config_of_shapes(given)
  # Others' checkpoints hold no low-rank updates of ours.
  expected = shapes(_without_lora(config))
  report = mapping.compare(given, expected, allow_missing, report)
  if report:
    raise mapping.MappingError(f'{_vocabulary(given, config)}{report}')
  return {name: given[name] for name in expected if name in given}


def _vocabulary(given: Tensors, config: t5.T5Config) -> str:
  """What to say first of a table of another number of words."""
  table = given.get(_EMBEDDING)
  if table is None or table.shape[:1] == (config.vocab_size,):
    return ''
  return (
    f'vocabulary: expected {config.vocab_size} ids, got '
    f'{table.shape[0] if table.shape else "a scalar"}\n'
  )


def _by_names(
  table: mapping.Table, given: Tensors, config: t5.T5Config
) -> dict[str, Tensor]:
  """The T5 among our tensors by another's names, checked to be whole."""
  ours = {n: t for n, t in given.items() if n.startswith(t5_names.PREFIX)}
  report = mapping.compare(ours, shapes(_without_lora(config)))
  if report:
    raise mapping.MappingError(str(report))
  theirs, report = mapping.apply(mapping.inverse(table), ours)
  if report:
    raise mapping.MappingError(str(report))
  return theirs


def _merged(given: Tensors, config: t5.T5Config | None) -> dict[str, Tensor]:
  ours = tensors_lib.part(given, t5_names.PREFIX)
  ours = {f'{t5_names.PREFIX}{name}': t for name, t in ours.items()}
  if not any(name.endswith('/lora_a') for name in ours):
    return ours
  if config is None or config.lora is None:
    raise mapping.MappingError(
      'LoRA: expected its scale from --config or from the config.json of a '
      'run, got none.'
    )
  return mapping.merge_lora(ours, config.lora.scale)


def _without_lora(config: t5.T5Config) -> t5.T5Config:
  return dataclasses.replace(config, lora=None)


def _config_of_shapes(given: Tensors) -> t5.T5Config:
  return dataclasses.replace(t5.T5Config(), **t5_names.sizes(given))


def _watched(
  tensors: Tensors, source: str, progress: Progress | None
) -> dict[str, Tensor]:
  """The tensors, each checked to be finite and counted when it is read."""
  done = 0

  def watched(tensor: Tensor) -> Tensor:
    def load():
      nonlocal done
      array = tensor.read()
      done += 1
      if progress is not None:
        progress(done, len(tensors))
      return array

    return Tensor(tensor.shape, tensor.dtype, load)

  checked = mapping.finite(tensors, source)
  return {name: watched(tensor) for name, tensor in checked.items()}


@contextlib.contextmanager
def _about(source: str):
  """Names the source in what the mapping says."""
  try:
    yield
  except mapping.MappingError as e:
    raise mapping.MappingError(f'{source}: {e}') from e


def _check_hugging_face(source: pathlib.Path) -> None:
  """Checks the `config.json` of a folder of Hugging Face, if there is one."""
  file = (source if source.is_dir() else source.parent) / 'config.json'
  if not file.is_file():
    return
  values = _json(file)
  with _about(str(file.parent)):
    t5_names.check_hugging_face_config(values)


def _run_of(source: pathlib.Path) -> pathlib.Path | None:
  """The folder of the run that a checkpoint is of, if it is of one."""
  folders = [source, *source.absolute().parents]
  # The run itself, its folder of checkpoints, or one of them.
  runs = [source, *(f.parent for f in folders[:2] if f.name == 'checkpoints')]
  for run in runs:
    file = run / 'config.json'
    model = _json(file).get('model') if file.is_file() else None
    if isinstance(model, dict) and 't5' in model:
      return run
  return None


def _config_of_run(source: pathlib.Path) -> t5.T5Config | None:
  """The T5 of the run that a checkpoint is of, if it is of one."""
  run = _run_of(source)
  if run is None:
    return None
  model = _json(run / 'config.json')['model']
  return config_lib.from_dict(t5.T5Config, model['t5'], 'model.t5')


def _json(file: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(file.read_text())
  except ValueError as e:
    raise tensors_lib.TensorFileError(file, 'JSON', str(e)) from e
  if not isinstance(values, dict):
    raise tensors_lib.TensorFileError(
      file, 'a JSON object', type(values).__name__
    )
  return values


def _write_hugging_face(
  part: pathlib.Path, source: pathlib.Path, given: Tensors, config: t5.T5Config
) -> None:
  part.mkdir()
  # Readers of Hugging Face refuse files that do not say whose layout it is.
  safetensors.write(part / 'model.safetensors', given, {'format': 'pt'})
  dtype = given['shared.weight'].dtype.name
  values = t5_names.hugging_face_config(
    vars(config), config.dropout_rate, dtype
  )
  (part / 'config.json').write_text(json.dumps(values, indent=2) + '\n')
  # The vocabulary of a run goes along.
  if (source / 'spiece.model').is_file():
    shutil.copy(source / 'spiece.model', part / 'spiece.model')


def _step(tensors: Tensors) -> int:
  step = tensors.get('train/step')
  return max(1, int(step.read())) if step is not None else 1


def _described(tensors: Tensors) -> str:
  numbers = sum(t.size for t in tensors.values())
  return f'{len(tensors)} tensors, {numbers:,} numbers'
