# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Programs of `stablehlo.py` as a TensorFlow SavedModel.

Each module is a signature of its name, that takes and gives what the manifest
says, by name; the parameters are variables, stored once. TensorFlow holds the
same StableHLO and runs it by XLA.
"""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import Any

import numpy as np

from pixel_llm import exported, files

_EXTRA = 'assets.extra'
_WRITTEN = re.compile(
  rf'saved_model\.pb|fingerprint\.pb|variables|assets|{re.escape(_EXTRA)}'
)


def convert(source: str, out: str, *, force: bool = False) -> str:
  """Writes a SavedModel.

  Args:
    source: what `stablehlo.export_run` wrote.
    out: the folder to write, local; `assets.extra` has the manifest and the
      vocabulary.
    force: replaces what is at `out`, if it was written by this function.

  Returns:
    what was written, in words.

  Raises:
    ModuleNotFoundError: TensorFlow is not installed.
    FileNotFoundError: no programs at `source`.
    TensorFileError: a file there is damaged.
    OSError: something can't be written, or `out` exists.
  """
  try:
    import tensorflow as tf
    from jax.experimental import jax2tf
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      "a SavedModel needs TensorFlow: pip install 'pixel_llm[data]'.",
      name=e.name,
    ) from e
  path = files.free(out, source, _WRITTEN, force)
  programs = exported.load(source)
  # JAX may have the accelerator; here nothing is computed.
  tf.config.set_visible_devices([], 'GPU')
  root: Any = tf.Module()
  root.parameters = {
    name: tf.Variable(tf.convert_to_tensor(np.asarray(value)), name=name)
    for name, value in programs.parameters.items()
  }

  def signature(name):
    described = programs.manifest['modules'][name]
    inputs = described['inputs']
    shapes = [f'({", ".join(map(str, x["shape"]))})' for x in inputs.values()]
    call = jax2tf.convert(
      programs.modules[name].call,
      polymorphic_shapes=[None, *shapes],
      with_gradient=False,
      native_serialization_platforms=described['platforms'],
    )
    # TensorFlow's own dictionary, which tracks variables, is none to JAX.
    return tf.function(
      lambda *args: call(dict(root.parameters), *args),
      input_signature=[
        tf.TensorSpec(
          [d if isinstance(d, int) else None for d in x['shape']],
          x['dtype'],
          name,
        )
        for name, x in inputs.items()
      ],
      autograph=False,
    )

  functions = {name: signature(name) for name in exported.MODULES}
  with files.whole(path) as part:
    tf.saved_model.save(root, str(part), functions)
    extra = part / _EXTRA
    extra.mkdir()
    for name in (exported.MANIFEST, exported.VOCABULARY):
      shutil.copy(pathlib.Path(source) / name, extra)
  return f'{out}: {", ".join(functions)} as signatures of a SavedModel'
