# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules, clipping, weight decay and freezing: path regex -> optax.

A parameter's path is its keys joined by '/', such as
`t5/encoder/layers/mlp/wi_0/kernel`. Every regex here is searched for in the
path (`re.search`), so `^t5/` anchors and `lora` finds it anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from optax import contrib

from pixel_llm import config as config_lib
from pixel_llm.train import guard
from pixel_llm.train import state as state_lib

# How many known paths an error about a regex lists.
_LISTED = 20
# Root mean square of an Adam update, to which Muon's is brought.
_UPDATE_RMS = 0.2
# Frozen parameters that may be held in few bits: those that are cast to the
# dtype of the computation anyway.
_HELD = r'(^|/)(kernel|embedding)$'


@dataclasses.dataclass(frozen=True)
class MuonConfig:
  """Muon for matrices: the momentum of the gradient, made orthogonal.

  All directions of a matrix move alike, also where inputs are correlated, as
  the pixels of a patch are. The rest of the parameters stay with AdamW.

  Source: "Muon is Scalable for LLM Training", arXiv 2502.16982: updates are
  brought to the root mean square of AdamW's, so both share a learning rate.

  Attributes:
    rate: factor of the learning rate for the parameters that it updates.
    momentum: decay of the mean of gradients (Nesterov's).
    matrices: regexes of the parameters; of those that have two or more axes,
      the last two are a matrix and the others stack matrices.
    exclude: regexes of parameters that AdamW keeps although `matrices` has
      them; by default the word logits, as an embedding's transpose.
  """

  rate: float = 1.0
  momentum: float = 0.95
  matrices: tuple[str, ...] = (r'(^|/)(kernel|lora_a|lora_b)$',)
  exclude: tuple[str, ...] = ('logits',)

  def __post_init__(self):
    _check_numbers(
      self,
      ('rate', self.rate > 0, '> 0'),
      ('momentum', 0 <= self.momentum < 1, 'in [0, 1)'),
    )
    _check_regexes(('matrices', self.matrices), ('exclude', self.exclude))


@dataclasses.dataclass(frozen=True)
class AdafactorConfig:
  """Adafactor: second moments as a row and a column of each large matrix.

  Updates are clipped to a root mean square of `clip` and scaled by that of
  their parameter, so that the learning rate is relative, as T5X has it.

  Attributes:
    decay: of the second moments, at step t, 1 - t ** -decay.
    clip: largest root mean square of an update; None for any.
    relative: scales by the parameter's root mean square, 1e-3 at least.
    factored_from: both sides of a matrix are this long if it is factored.

  Source: "Adafactor", arXiv 1804.04235.
  """

  decay: float = 0.8
  clip: float | None = 1.0
  relative: bool = True
  factored_from: int = 128

  def __post_init__(self):
    _check_numbers(
      self,
      ('decay', 0 < self.decay < 1, 'in (0, 1)'),
      ('clip', self.clip is None or self.clip > 0, '> 0, or None'),
      ('factored_from', self.factored_from >= 2, '>= 2'),
    )


@dataclasses.dataclass(frozen=True)
class LayerDecayConfig:
  """Learning rates that fall from layer to layer downwards.

  Of N stacked layers, layer i (from 0, the first above the input) has a factor
  of `decay ** (N - i)`, what is below them `decay ** (N + 1)`.

  Attributes:
    decay: from a layer to the one below it.
    stack: regex of the parameters whose axis 0 counts layers.
    stem: regex of what is below the stack.

  Source: scenic pixel_llm, `layerwise_decay`, which follows MAE's fine-tuning.
  """

  decay: float = 0.8
  stack: str = '^eva/blocks/'
  stem: str = '^eva/(class_token|patch_embed|positions)'

  def __post_init__(self):
    _check_numbers(self, ('decay', 0 < self.decay <= 1, 'in (0, 1]'))
    _check_regexes(('stack', (self.stack,)), ('stem', (self.stem,)))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, Muon with it, or Adafactor; linear warm-up and cosine decay.

  Attributes:
    learning_rate: the peak.
    warmup_steps: steps of linear warm-up; 0 starts at the peak.
    final_fraction: the cosine ends at this fraction of the peak.
    weight_decay: decoupled, scaled by the learning rate as in AdamW.
    no_decay: regexes of parameters without weight decay; by default norm
      scales, biases, position tables, frequencies and token embeddings. They
      need not match.
    b1: decay of the mean of gradients.
    b2: decay of the mean of squared gradients.
    eps: added to the root of the latter.
    clip_norm: largest global norm of the trainable gradients; None for any.
    multipliers: (regex, factor) of the learning rate; the first regex that is
      found in a path applies, the rest of the parameters have factor 1.
    freeze: regexes of parameters that are not trained.
    frozen_dtype: of the frozen kernels and token embeddings, which are most of
      a large model; 'bfloat16' halves them. What is trained is float32 always,
      and so are norms, biases and positions.
    muon: updates matrices in AdamW's place; None is AdamW alone.
    adafactor: takes AdamW's place; None is AdamW.
    layer_decay: of the learning rate downwards; None is none.
    ema: decay of the mean of trained parameters that evaluation, export and
      prediction take in their place; 0 is none. At step t it is at most
      (1 + t) / (10 + t).
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  final_fraction: float = 0.0
  weight_decay: float = 0.05
  no_decay: tuple[str, ...] = (
    r'(^|/)(scale|bias)$',
    'position',
    'embedding',
    'frequencies',
  )
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  clip_norm: float | None = 1.0
  multipliers: tuple[tuple[str, float], ...] = ()
  freeze: tuple[str, ...] = ()
  frozen_dtype: Literal['float32', 'bfloat16'] = 'float32'
  muon: MuonConfig | None = None
  adafactor: AdafactorConfig | None = None
  layer_decay: LayerDecayConfig | None = None
  ema: float = 0.0

  def __post_init__(self):
    if self.muon is not None and self.adafactor is not None:
      raise ValueError('muon, adafactor: expected one of them, got both.')
    _check_numbers(
      self,
      ('learning_rate', self.learning_rate > 0, '> 0'),
      ('warmup_steps', self.warmup_steps >= 0, '>= 0'),
      ('final_fraction', 0 <= self.final_fraction <= 1, 'in [0, 1]'),
      ('weight_decay', self.weight_decay >= 0, '>= 0'),
      ('b1', 0 <= self.b1 < 1, 'in [0, 1)'),
      ('b2', 0 <= self.b2 < 1, 'in [0, 1)'),
      ('eps', self.eps > 0, '> 0'),
      (
        'clip_norm',
        self.clip_norm is None or self.clip_norm > 0,
        '> 0, or None for no clipping',
      ),
      ('ema', 0 <= self.ema < 1, 'in [0, 1)'),
    )
    _check_regexes(
      ('no_decay', self.no_decay),
      ('multipliers', tuple(regex for regex, _ in self.multipliers)),
      ('freeze', self.freeze),
    )


def _check_numbers(config: Any, *checks: tuple[str, bool, str]) -> None:
  for name, fits, expected in checks:
    if not fits:
      raise ValueError(
        f'{name}: expected {expected}, got {getattr(config, name)!r}.'
      )


def _check_regexes(*fields: tuple[str, tuple[str, ...]]) -> None:
  for name, regexes in fields:
    for regex in regexes:
      try:
        re.compile(regex)
      except re.error as e:
        raise ValueError(f'{name}: {regex!r} is no regex: {e}.') from e


def schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], jax.Array]:
  """The learning rate as a function of the step, counted from 0.

  Linear from `1 / warmup_steps` of the peak at step 0 to the peak at step
  `warmup_steps - 1`, then half a cosine from the peak at `warmup_steps` to
  `final_fraction` of it at `steps` (one past the last step, so that no step is
  taken at rate 0).

  Args:
    config: peak, warm-up and floor.
    steps: of the whole training; not more than the warm-up gives warm-up only.

  Returns:
    step (int scalar, may be traced) -> float32 scalar.
  """
  warmup = config.warmup_steps

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    # Reference: the research code's first step has rate 0 and so does nothing.
    rising = (step + 1) / max(warmup, 1)
    done = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
    falling = config.final_fraction + (1 - config.final_fraction) * cosine
    return config.learning_rate * jnp.where(step < warmup, rising, falling)

  return rate


def make(
  config: OptimizerConfig,
  steps: int,
  params: Any,
  withhold: bool = False,
  spike: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """`unguarded` in a `guard`.

  Args:
    config: the numbers.
    steps: of the whole training.
    params: the full tree, abstract or not; read for its paths only.
    withhold: bad steps change nothing; see `guard.guarded`.
    spike: what is one.

  Raises:
    ConfigError: as `unguarded`.
  """
  return guard.guarded(unguarded(config, steps, params), withhold, spike)


def unguarded(
  config: OptimizerConfig, steps: int, params: Any
) -> optax.GradientTransformation:
  """The optimizer of the trainable part of `params`.

  Clipping sees the trainable gradients only. Multipliers scale the whole
  update, weight decay included, as a learning rate of its own would.

  Args:
    config: the numbers.
    steps: of the whole training.
    params: the full tree, abstract or not; read for its paths only.

  Returns:
    A transformation over the trainable tree that `state.split` gives.

  Raises:
    ConfigError: a regex of `freeze` or `multipliers` matches nothing.
  """
  mask = trainable_mask(config, params)
  trainable = [p for p, keep in _leaves(mask) if keep]
  for i, (regex, _) in enumerate(config.multipliers):
    _check_matches(f'multipliers[{i}]', regex, trainable, 'trainable parameter')
  layers = config.layer_decay
  depth = 0
  if layers is not None:
    for name, regex in (('stack', layers.stack), ('stem', layers.stem)):
      what = 'trainable parameter'
      _check_matches(f'layer_decay.{name}', regex, trainable, what)
    depths = {
      leaf.shape[0]
      for path, leaf in _leaves(params)
      if re.search(layers.stack, path)
    }
    if len(depths) > 1:
      raise config_lib.ConfigError(
        f'config optimizer.layer_decay.stack: {layers.stack!r} finds stacks of '
        f'{sorted(depths)} layers; expected one depth.'
      )
    (depth,) = depths

  def decays(tree):
    return _map_paths(
      lambda path: not any(re.search(r, path) for r in config.no_decay), tree
    )

  def scale(keys, update):
    path = _path(keys)
    found = (f for regex, f in config.multipliers if re.search(regex, path))
    update = update * next(found, 1.0)
    if layers is None:
      return update
    if re.search(layers.stack, path):
      of_layers = layers.decay ** np.arange(depth, 0, -1, dtype=np.float32)
      return update * of_layers.reshape(-1, *[1] * (update.ndim - 1))
    if re.search(layers.stem, path):
      return update * layers.decay ** (depth + 1)
    return update

  def scaled(updates, params):
    del params
    return jax.tree.map_with_path(scale, updates)

  direction = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  if config.adafactor is not None:
    direction = _adafactor(config.adafactor)
  if config.muon is not None:
    direction = optax.partition(
      {'adam': direction, 'muon': _muon(config.muon)},
      functools.partial(_directions, config.muon),
    )
  parts = [
    direction,
    optax.add_decayed_weights(config.weight_decay, mask=decays),
    optax.stateless(scaled),
    optax.scale_by_learning_rate(schedule(config, steps)),
  ]
  if config.clip_norm is not None:
    parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.ema:
    parts.append(_averaging(config.ema))
  return optax.chain(*parts)


class AverageState(NamedTuple):
  """The decaying mean of trained parameters.

  Attributes:
    count: int32 scalar, steps in it.
    average: tree of the trainable parameters.
  """

  count: Any
  average: Any


def _averaging(decay: float) -> optax.GradientTransformation:
  """Follows what the updates make of the parameters; changes no update.

  Source: `tf.train.ExponentialMovingAverage` with `num_updates`.
  """

  def update(updates, state, params: Any = None):
    kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
    average = jax.tree.map(
      lambda mean, p: kept * mean + (1 - kept) * p,
      state.average,
      optax.apply_updates(params, updates),
    )
    return updates, AverageState(state.count + 1, average)

  return optax.GradientTransformation(
    lambda params: AverageState(
      jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params)
    ),
    update,
  )


def swap_average(state: state_lib.TrainState) -> state_lib.TrainState:
  """Trained parameters and their mean in each other's place.

  Twice is what it was; without a mean nothing changes.
  """
  last = state.opt_state.inner[-1]
  if not isinstance(last, AverageState):
    return state
  mask = jax.tree.map(
    lambda x: x is not None, last.average, is_leaf=lambda x: x is None
  )
  trained, frozen = state_lib.split(state.params, mask)
  inner = (*state.opt_state.inner[:-1], last._replace(average=trained))
  return dataclasses.replace(
    state,
    params=state_lib.merge(last.average, frozen),
    opt_state=state.opt_state._replace(inner=inner),
  )


def _adafactor(config: AdafactorConfig) -> optax.GradientTransformation:
  parts = [
    optax.scale_by_factored_rms(
      decay_rate=config.decay, min_dim_size_to_factor=config.factored_from
    )
  ]
  if config.clip is not None:
    parts.append(optax.clip_by_block_rms(config.clip))
  if config.relative:
    parts.append(optax.scale_by_param_block_rms())
  return optax.chain(*parts)


def _directions(config: MuonConfig, params: Any) -> Any:
  """'muon' or 'adam' for each leaf."""

  def choose(keys, leaf):
    path = _path(keys)
    found = lambda regexes: any(re.search(r, path) for r in regexes)
    matrix = leaf.ndim > 1 and found(config.matrices)
    return 'muon' if matrix and not found(config.exclude) else 'adam'

  return jax.tree.map_with_path(choose, params)


def _muon(config: MuonConfig) -> optax.GradientTransformation:
  """Directions of the parameters that `_directions` calls 'muon'."""

  def scaled(updates, params):
    del params
    # An orthogonal [m, n] has a mean square of 1 / max(m, n).
    return jax.tree.map(
      lambda u: u * (config.rate * _UPDATE_RMS * max(u.shape[-2:]) ** 0.5),
      updates,
    )

  return optax.chain(
    optax.trace(config.momentum, nesterov=True),
    optax.stateless(_orthogonal),
    optax.stateless(scaled),
  )


def _orthogonal(updates: Any, params: Any) -> Any:
  """Each matrix [..., m, n] made orthogonal, those of one shape together.

  One by one, the many small matrices of a network are thousands of products,
  slower to compile and slower to run.
  """
  del params
  leaves, structure = jax.tree.flatten(updates)
  groups: dict[tuple[int, int], list[int]] = {}
  for i, x in enumerate(leaves):
    groups.setdefault(x.shape[-2:], []).append(i)
  stacks = {
    shape: jnp.concatenate([leaves[i].reshape(-1, *shape) for i in members])
    for shape, members in groups.items()
  }
  # Optax's, of which only the iteration is wanted: momentum was before.
  muon = contrib.scale_by_muon(
    beta=0.0,
    nesterov=False,
    weight_dimension_numbers=dict.fromkeys(
      stacks, contrib.MuonDimensionNumbers(1, 2)
    ),
  )
  done: Any = muon.update(stacks, muon.init(stacks))[0]
  for shape, members in groups.items():
    first = 0
    for i in members:
      count = math.prod(leaves[i].shape[:-2])
      part = done[shape][first : first + count]
      leaves[i] = part.reshape(leaves[i].shape)
      first += count
  return jax.tree.unflatten(structure, leaves)


def trainable_mask(config: OptimizerConfig, params: Any) -> Any:
  """True where a parameter is trained: a bool for each leaf of `params`.

  Args:
    config: `freeze` holds the regexes.
    params: the full unboxed tree, abstract or not.

  Raises:
    ConfigError: a regex matches nothing, or all parameters are frozen.
  """
  paths = [path for path, _ in _leaves(params)]
  for i, regex in enumerate(config.freeze):
    _check_matches(f'freeze[{i}]', regex, paths, 'parameter')
  mask = _map_paths(
    lambda path: not any(re.search(r, path) for r in config.freeze), params
  )
  if not any(jax.tree.leaves(mask)):
    raise config_lib.ConfigError(
      f'config optimizer.freeze: {config.freeze!r} freezes all '
      f'{len(paths)} parameters; nothing is left to train.'
    )
  return mask


def hold_frozen(config: OptimizerConfig, params: Any) -> Any:
  """Casts frozen kernels and token embeddings to `frozen_dtype`.

  Args:
    config: what is frozen, and how it is held.
    params: the full tree; leaves may be in `nn.LogicallyPartitioned` boxes.

  Returns: the same tree but for the dtype of those leaves.
  """
  dtype = jnp.dtype(config.frozen_dtype)
  boxed = lambda x: isinstance(x, meta.AxisMetadata)
  bare = jax.tree.map(
    lambda x: x.value if boxed(x) else x, params, is_leaf=boxed
  )

  def hold(keys, leaf, trained):
    if trained or not re.search(_HELD, _path(keys)):
      return leaf
    if boxed(leaf):
      return leaf.replace(value=jnp.asarray(leaf.value, dtype))
    return jnp.asarray(leaf, dtype)

  return jax.tree.map_with_path(
    hold, params, trainable_mask(config, bare), is_leaf=boxed
  )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)]


def _map_paths(fn: Callable[[str], Any], tree: Any) -> Any:
  return jax.tree.map_with_path(lambda keys, _: fn(_path(keys)), tree)


def _path(keys: Any) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def _check_matches(
  field: str, regex: str, paths: Sequence[str], what: str
) -> None:
  if any(re.search(regex, path) for path in paths):
    return
  listed = ', '.join(paths[:_LISTED])
  more = len(paths) - _LISTED
  rest = f' and {more} more' if more > 0 else ''
  raise config_lib.ConfigError(
    f'config optimizer.{field}: {regex!r} is found in no {what}. Known '
    f'paths: {listed}{rest}.'
  )
