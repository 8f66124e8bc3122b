# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Packages of others that tests compare with; tests skip without them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

import pytest


def imported(name: str) -> Any:
  """The package; skips the test, with a reason, where it isn't installed."""
  for needed in ('torch', name):
    if importlib.util.find_spec(needed) is None:
      pytest.skip(f'{needed} is not installed; `make parity` installs it')
  with warnings.catch_warnings():
    # Theirs, of one another.
    warnings.simplefilter('ignore')
    _import_torchvision()
    return importlib.import_module(name)


@functools.cache
def _import_torchvision() -> Any:
  """Makes torchvision importable though it be built for another PyTorch.

  Its operators are then missing, and with them the names that it wants to add
  to on import; none of what is compared here calls them. The return value
  keeps those names alive.
  """
  if importlib.util.find_spec('torchvision') is None:
    return None
  torch = importlib.import_module('torch')
  try:
    return importlib.import_module('torchvision')
  except RuntimeError:
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(
        f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
      )
    importlib.import_module('torchvision')
    return library


def randomize(module: Any, seed: int = 0) -> None:
  """Random parameters for a module of PyTorch, none at its initial value."""
  torch = imported('torch')
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in module.named_parameters():
      noise = torch.randn(x.shape, generator=generator)
      if x.ndim > 1 and name.endswith('weight') and x.shape[0] > 1:
        x.copy_(noise / x[0].numel() ** 0.5)
      elif 'norm' in name and name.endswith('weight'):
        x.copy_(1 + 0.1 * noise)
      else:
        x.copy_(0.3 * noise)
