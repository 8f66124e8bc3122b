# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A trained run as programs that need none of our model's code.

`jax.export` lowers each function to StableHLO for all platforms at once, with
the numbers of images and of regions left open. Parameters are arguments, and
stored once. `exported.py` runs what is written here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax import export

from pixel_llm import __version__, exported, files, geometry
from pixel_llm import batch as batch_lib
from pixel_llm import predictor as predictor_lib
from pixel_llm.checkpoints import tensors as tensors_lib
from pixel_llm.checkpoints.formats import safetensors
from pixel_llm.tasks import task as task_lib

Progress = Callable[[int, int], None]

PLATFORMS = ('cpu', 'cuda', 'tpu')
_WRITTEN = re.compile(
  '|'.join(
    [
      *map(re.escape, (exported.MANIFEST, exported.PARAMETERS)),
      re.escape(exported.VOCABULARY),
      rf'({"|".join(exported.MODULES)}){re.escape(exported.SUFFIX)}',
    ]
  )
)
_MEANINGS = {
  **{name: spec.meaning for name, spec in batch_lib.Batch.specs().items()},
  'features': 'of the image, what encode_image gives',
  'tokens': 'what is said, end token kept, 0 after it',
  'log_probs': 'of each token',
  'scores': 'of the answer: the sum of log_probs when it is read or written '
  'greedily, over the length penalty when written by beams',
  'points': 'xy of each token, normalized to the valid image; may lie a little '
  'outside of it',
  'boxes': 'xyxy of the points of the last token before the end, clipped to '
  'the valid image, which has the corners 0, 0 and 1, 1',
}
_CONVENTIONS = {
  'coordinates': 'normalized to the valid image, in [0, 1], x before y, boxes '
  'xyxy; the valid image is the top left image_size of the padded input',
  'symbols': 'b images and r regions of each may be any number from 1 on; a '
  'module is compiled for each pair',
  'parameters': f'the first argument is all of {exported.PARAMETERS}, a '
  'dictionary by name',
}


def export_run(
  workdir: str,
  out: str,
  *,
  beams: int | None = None,
  force: bool = False,
  progress: Progress | None = None,
) -> str:
  """Writes the newest checkpoint of a run as modules of `jax.export`.

  Lengths of texts are those that the run's evaluation tasks have: the longest
  of their prompts and of their answers.

  Args:
    workdir: a run's folder.
    out: the folder to write, local.
    beams: of decoding; None takes the config's.
    force: replaces what is at `out`, if it was written by this function.
    progress: called with the modules done and their number.

  Returns:
    what was written, in words.

  Raises:
    FileNotFoundError: no run there.
    CheckpointError: no checkpoint, or it does not fit its config.
    ConfigError: the config or the vocabulary is damaged.
    OSError: something can't be written, or `out` exists.
  """
  path = files.free(out, workdir, _WRITTEN, force)
  run = predictor_lib.Predictor.from_workdir(workdir, beams)
  config = json.loads((epath.Path(workdir) / 'config.json').read_text())
  flat: dict[str, Any] = traverse_util.flatten_dict(run.params, sep='/')
  with files.whole(path) as part:
    part.mkdir()
    modules = {}
    functions = _functions(run, config)
    for name, (function, inputs) in functions.items():
      module = _module(function, flat, inputs)
      data = module.serialize()
      (part / f'{name}{exported.SUFFIX}').write_bytes(data)
      modules[name] = _signature(module, inputs)
      if progress is not None:
        progress(len(modules), len(functions))
    safetensors.write(
      part / exported.PARAMETERS,
      {n: tensors_lib.of_array(np.asarray(x)) for n, x in flat.items()},
      {'format': 'np'},
    )
    vocabulary = epath.Path(run.vocabulary.path).read_bytes()
    (part / exported.VOCABULARY).write_bytes(vocabulary)
    manifest = {
      'format': exported.FORMAT,
      'conventions': _CONVENTIONS,
      'modules': modules,
      'extra_ids': run.vocabulary.extra_ids,
      'decoding': vars(run.decoding),
      'config': config,
      'versions': {
        'pixel_llm': __version__,
        **{name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax')},
      },
      'sha256': {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(part.iterdir())
      },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (part / exported.MANIFEST).write_text(f'{text}\n')
  numbers = sum(x.size for x in flat.values())
  return (
    f'{out}: {", ".join(modules)} for {", ".join(PLATFORMS)}; '
    f'{len(flat)} tensors, {numbers:,} numbers'
  )


def _functions(
  run: predictor_lib.Predictor, config: dict[str, Any]
) -> dict[str, tuple[Callable, dict[str, jax.ShapeDtypeStruct]]]:
  """Name -> (function of parameters and inputs, its inputs' shapes)."""
  model, canvas, length = run.model, run.image_size, run.decoding.length
  tasks = config['eval']['tasks'].values()
  context = max(
    (t['context'] for t in tasks), default=batch_lib.BatchSizes().context
  )
  b, r = export.symbolic_shape('b, r')
  specs = batch_lib.Batch.specs()
  sizes = {'B': b, 'R': r, 'H': canvas, 'W': canvas, 'C': context, 'L': length}

  def inputs(*names):
    return {
      name: jax.ShapeDtypeStruct(
        tuple(int(d) if d.isdigit() else sizes[d] for d in specs[name].dims),
        specs[name].dtype,
      )
      for name in names
    }

  def encode_image(params, image, image_size):
    features = model.run(params, image, image_size, method='encode_image')
    return {'features': features}

  def batch(image_size, prompt_boxes, prompt, answer=None):
    # Of encoded images the shape alone is asked for.
    return batch_lib.Batch(
      image=jnp.zeros((1, canvas, canvas, 3), jnp.uint8),
      image_size=image_size,
      prompt_boxes=prompt_boxes,
      encoder_input_tokens=prompt,
      decoder_target_tokens=answer,
    )

  def generate(params, features, *asked):
    output = task_lib.generate(
      model, params, batch(*asked), run.decoding, features
    )
    return {
      'tokens': output.tokens,
      'log_probs': output.log_probs,
      'scores': output.scores,
      'points': output.points,
    }

  def read(params, features, *asked):
    output = task_lib.read(model, params, batch(*asked), features)
    box = geometry.answer_box(output.tokens, jnp.clip(output.points, 0, 1))
    return {
      'log_probs': output.log_probs,
      'scores': output.scores,
      'points': output.points,
      'boxes': box,
    }

  images = inputs('image', 'image_size')
  one = batch_lib.Batch.shapes(batch_lib.BatchSizes(1, canvas))
  shapes = jax.eval_shape(encode_image, run.params, one.image, one.image_size)[
    'features'
  ]
  features = {
    'features': jax.ShapeDtypeStruct((b, *shapes.shape[1:]), shapes.dtype)
  }
  asked = features | inputs(
    'image_size', 'prompt_boxes', 'encoder_input_tokens'
  )
  return {
    'encode_image': (encode_image, images),
    'generate': (generate, asked),
    'read': (read, asked | inputs('decoder_target_tokens')),
  }


def _module(
  function: Callable,
  flat: dict[str, Any],
  inputs: dict[str, jax.ShapeDtypeStruct],
) -> export.Exported:
  """Lowers a function; its parameters come as a dictionary by name."""

  def by_name(flat, *args):
    return function(traverse_util.unflatten_dict(flat, sep='/'), *args)

  by_name.__name__ = function.__name__
  params = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in flat.items()}
  lower = export.export(jax.jit(by_name), platforms=PLATFORMS)
  return lower(params, *inputs.values())


def _signature(
  module: export.Exported, inputs: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
  """What the manifest says of a module."""

  def described(name, x):
    return {
      'shape': [d if isinstance(d, int) else str(d) for d in x.shape],
      'dtype': str(x.dtype),
      'meaning': _MEANINGS[name],
    }

  outputs = jax.tree.unflatten(module.out_tree, module.out_avals)
  return {
    'inputs': {name: described(name, x) for name, x in inputs.items()},
    'outputs': {name: described(name, x) for name, x in outputs.items()},
    'platforms': list(module.platforms),
    'calling_convention_version': module.calling_convention_version,
  }
