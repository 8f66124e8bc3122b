# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""A language model whose every word knows where it is in the image.

The public names are imported when they are first used, so that importing the
package costs nothing.
"""

import importlib

__version__ = '0.1.0'

_HOMES = {
  'Batch': 'pixel_llm.batch',
  'ModelConfig': 'pixel_llm.model.pixel_llm',
  'PixelLLM': 'pixel_llm.model.pixel_llm',
  'Prediction': 'pixel_llm.prediction',
  'Predictor': 'pixel_llm.predictor',
  'tasks': 'pixel_llm',
}
__all__ = ['__version__', *_HOMES]


def __getattr__(name: str):
  if name == 'tasks':
    return importlib.import_module('pixel_llm.tasks')
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
