# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""PixelLLM under T5X's own `train.py`, `eval.py` and `infer.py`.

Network, features, losses, answers and first parameters are those of our own
loop; loop, mesh, data order and checkpoints are T5X's. The files `t5x_*.gin` in
`configs/gin` put both together. T5X has no release: it is a checkout.

Source: T5X at cc342d4, `t5x/models.py`, `t5x/train.py`, `t5x/utils.py`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import clu.metrics
import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct, traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec
from t5x import (  # pyright: ignore[reportMissingImports]
  adafactor,
  models,
  optimizers,
  partitioning,
  utils,
)

from pixel_llm import batch as batch_lib
from pixel_llm import config as config_lib
from pixel_llm import sharding
from pixel_llm.checkpoints import initialization
from pixel_llm.data import features
from pixel_llm.model import losses, pixel_llm
from pixel_llm.tasks import task as task_lib
from pixel_llm.train import experiment, loop, parameters
from pixel_llm.train import optimizer as optimizer_lib
from pixel_llm.train import state as state_lib
from pixel_llm.train import step as step_lib

Params = Any
# Arrays by the fields of `Batch`.
Features = Mapping[str, jax.Array]


@struct.dataclass
class Mean(clu.metrics.Average):
  """A weighted mean over batches; 0 where nothing had weight."""

  total: Any
  count: Any

  def compute(self):
    """The mean so far."""
    return losses.mean(self.total, self.count)


class FeatureConverter(features.PixelFeatureConverter):
  """Ours, but for features that have no elements, such as masks of side 0.

  T5X unbatches, and TensorFlow's `unbatch` ends the process at them.
  """

  def __call__(self, ds, task_feature_lengths):
    """Converts; see the base class."""
    return (
      super()
      .__call__(ds, task_feature_lengths)
      .map(lambda row: {k: v for k, v in row.items() if 0 not in v.shape})
    )


def _batch(given: Features) -> batch_lib.Batch:
  """What `FeatureConverter` left of a batch, with what it left out."""
  b, r = given['encoder_input_tokens'].shape[:2]
  sizes = batch_lib.BatchSizes(b, image=1, regions=r, context=1, length=1)
  return dataclasses.replace(batch_lib.Batch.zeros(sizes), **given)


class Model(models.BaseModel):
  """What T5X calls of a model.

  The loss is a mean over the batch, so that T5X's `num_microbatches` of n,
  which adds gradients up, makes them n times larger.

  Args:
    config: the experiment: of it `model`, `data`, `loss`, `eval.decoding`,
      `init` and what the functions here are given. Its tasks are registered.
    optimizer_def: T5X's; None for `eval.py` and `infer.py`.

  Raises:
    ConfigError: the config contradicts itself or its data.
  """

  FEATURE_CONVERTER_CLS: ClassVar = FeatureConverter

  def __init__(
    self, config: experiment.ExperimentConfig, optimizer_def: Any = None
  ):
    super().__init__(optimizer_def)
    # By gin: it checks names alone.
    self.config = config_lib.from_dict(
      experiment.ExperimentConfig, config_lib.to_dict(config)
    )
    vocabulary = loop.prepare_data(self.config)
    self.input_vocabulary = self.output_vocabulary = features.Vocabulary(
      vocabulary.path, vocabulary.extra_ids
    )
    self.module = pixel_llm.PixelLLM(self.config.model)

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> Any:
    """Parameters and, beside them, the names of their axes as T5X has them."""
    del input_shapes, input_types  # parameters do not depend on them
    with nn.logical_axis_rules(()):
      boxed = parameters.init_fn(self.config)(rng)
      params = nn.unbox(boxed)
    axes = {
      (*keys[:-1], f'{keys[-1]}_axes'): flax_partitioning.AxisMetadata(spec)
      for keys, spec in traverse_util.flatten_dict(
        nn.get_partition_spec(boxed)
      ).items()
    }
    return flax.core.freeze(
      {'params': params, 'params_axes': traverse_util.unflatten_dict(axes)}
    )

  def loss_fn(
    self, params: Params, batch: Features, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, clu.metrics.Metric]]:
    """The loss of `train.step`, and its terms as metrics."""
    terms = step_lib.loss_terms(
      flax.core.unfreeze(params),
      self.module,
      _batch(batch),
      self.config.loss,
      dropout_rng,
    )
    loss = sum(
      (f * losses.mean(total, w) for f, total, w in terms.values()),
      start=jnp.zeros(()),
    )
    metrics = {name: Mean(total, w) for name, (_, total, w) in terms.items()}
    return loss, {'loss': Mean(loss, jnp.ones(())), **metrics}

  def predict_batch_with_aux(
    self,
    params: Params,
    batch: Features,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Writes every region's answer, and reads the true one.

    Args:
      params: parameters.
      batch: what is asked, and answered.
      rng: of what is drawn, if `eval.decoding` draws.

    Returns:
      Tokens [B, R, L] of the written answers; `written_tokens`, the same, their
      points `written_points` [B, R, L, P, 2] and `scores` [B, R]; `tokens` and
      `points` of the true answers as they were read, by which our tasks'
      metrics judge places; `presence` [B, R] logits where there is the head.
      Masks are not drawn: T5X does not say which task asks.
    """
    params, asked = flax.core.unfreeze(params), _batch(batch)
    b, r, length = asked.decoder_target_tokens.shape
    image = self.module.run(
      params, asked.image, asked.image_size, method='encode_image'
    )
    rows = jnp.arange(b * r).reshape(b, r)
    if rng is not None:
      rows += jax.random.randint(rng, (), 0, 2**30)
    decoding = dataclasses.replace(self.config.eval.decoding, length=length)
    said = task_lib.generate(self.module, params, asked, decoding, image, rows)
    found = task_lib.read(self.module, params, asked, image)
    return said.tokens, {
      'written_points': said.points,
      'written_tokens': said.tokens,
      'scores': said.scores,
      'tokens': found.tokens,
      'points': found.points,
      **({} if found.presence is None else {'presence': found.presence}),
    }

  def score_batch(self, params: Params, batch: Features) -> jax.Array:
    """[B, R], the log probability of each given answer."""
    asked = _batch(batch)
    params = flax.core.unfreeze(params)
    return task_lib.read(self.module, params, asked).scores


class TrainStateInitializer(utils.TrainStateInitializer):
  """T5X's, with first parameters from the sources of `config.init`.

  They may be the encoders and the T5 that `pixel-llm import` wrote, or T5X's
  own text-only checkpoint. (T5X's `assignment_map` can't load that one: our
  layers are stacked. It can load checkpoints of this network into another.)
  """

  def __init__(self, optimizer_def: Any, init_fn: Any, *args, **kwargs):
    super().__init__(optimizer_def, init_fn, *args, **kwargs)
    self._init = init_fn.__self__.config.init

  def from_scratch(self, init_rng: jax.Array) -> Any:
    """A state at step 0.

    Raises:
      MappingError: sources do not fit the model.
      TensorFileError: one is damaged, or of no known format.
      ValueError: one has NaN or infinite numbers.
    """
    if self._init is None:
      return super().from_scratch(init_rng)
    sources = initialization.open_sources(
      self._init, self.global_train_state_shape.params
    )
    tensors = {n: t for s in sources.values() for n, t in s.items()}
    state = super().from_scratch(init_rng)
    given = initialization.place(tensors, state.params)
    return state.replace_params(state_lib.merge(given, state.params))


class Partitioner(partitioning.PjitPartitioner):
  """T5X's, with the rules of `config.mesh` and its `model` axis.

  A dimension that its mesh axis does not divide stays whole, as in our own
  loop; to T5X it is an error.

  Args:
    config: the experiment.
    **kwargs: T5X's.
  """

  def __init__(self, config: experiment.ExperimentConfig, **kwargs):
    kwargs = {'num_partitions': config.mesh.model, **kwargs}
    super().__init__(logical_axis_rules=config.mesh.rules(), **kwargs)

  def get_mesh_axes(self, train_state: Any) -> Any:
    """The state with a `PartitionSpec` or None in each leaf's place."""
    axes = super().get_mesh_axes(train_state)

    def flat(state) -> dict[Any, Any]:
      return traverse_util.flatten_dict(
        state.state_dict(), keep_empty_nodes=True
      )

    leaves = flat(train_state)

    def fit(size, axis):
      names = axis if isinstance(axis, tuple) else (axis,)
      parts = math.prod(self.mesh.shape[n] for n in names if n is not None)
      return axis if size % parts == 0 else None

    specs = {
      keys: PartitionSpec(*map(fit, leaves[keys].shape, spec))
      if isinstance(spec, PartitionSpec)
      else spec
      for keys, spec in flat(axes).items()
    }
    return axes.restore_state(traverse_util.unflatten_dict(specs))


def lengths(
  config: experiment.ExperimentConfig, name: str, evaluation: bool = False
) -> dict[str, tuple[int, ...]]:
  """T5X's `TASK_FEATURE_LENGTHS`: the whole shapes of the features.

  Args:
    config: the experiment.
    name: of a task or mixture of `data.streams`.
    evaluation: of `eval.tasks` instead.

  Raises:
    ConfigError: there is no such task.
  """
  return features.lengths(config.data.sizes(_shape(config, name, evaluation)))


def batch_size(
  config: experiment.ExperimentConfig, name: str, evaluation: bool = False
) -> int:
  """T5X's `BATCH_SIZE`; see `lengths`."""
  return _shape(config, name, evaluation).batch


def _shape(config, name, evaluation):
  where = 'eval.tasks' if evaluation else 'data.streams'
  streams = {s.mixture: s for s in config.data.streams.values()}
  known = config.eval.tasks if evaluation else streams
  if name not in known:
    raise config_lib.ConfigError(
      f'MIXTURE_OR_TASK_NAME {name!r}: expected a task or mixture of the '
      f"config's {where}: {', '.join(sorted(known)) or 'there is none'}."
    )
  return known[name]


def schedule(config: experiment.ExperimentConfig, steps: int) -> Callable:
  """The learning rate of `optimizer` as T5X logs it."""
  return optimizer_lib.schedule(config.optimizer, steps)


def optimizer(config: experiment.ExperimentConfig, steps: int) -> Any:
  """The AdamW of `config.optimizer`, with all that it says, as T5X has it.

  Args:
    config: the experiment.
    steps: of the whole training.

  Raises:
    ConfigError: it is not AdamW, or a regex matches nothing.
  """
  for field in ('muon', 'adafactor'):
    if getattr(config.optimizer, field) is not None:
      raise config_lib.ConfigError(
        f'config optimizer.{field}: expected None under T5X, whose state of it '
        'is another; for its Adafactor see configs/gin/t5x_adafactor.gin.'
      )

  def trained(params):
    return optimizer_lib.trainable_mask(config.optimizer, params)

  def frozen(params):
    return jax.tree.map(operator.not_, trained(params))

  ours = optimizer_lib.unguarded(config.optimizer, steps, _abstract(config))
  return optimizers.OptaxWrapper(
    optax.chain(
      optax.masked(ours, trained), optax.masked(optax.set_to_zero(), frozen)
    )
  )


class Adafactor(adafactor.Adafactor):
  """T5X's, of the parameters that `optimizer.freeze` leaves.

  (T5X's `MultiOptimizer` does that too, but what it saves by Orbax can't be
  restored.)

  Args:
    config: the experiment; of its optimizer `freeze` alone counts.
    **kwargs: T5X's.

  Raises:
    ConfigError: a regex matches nothing.
  """

  def __init__(self, config: experiment.ExperimentConfig, **kwargs):
    # Axes that T5X does not know are not factored.
    rules = dict.fromkeys(sharding.AXIS_NAMES, adafactor.FactorDim.NONE)
    rules |= dict(adafactor.standard_logical_factor_rules())
    super().__init__(logical_factor_rules=rules, **kwargs)
    mask = optimizer_lib.trainable_mask(config.optimizer, _abstract(config))
    self._trained: dict[Any, Any] = traverse_util.flatten_dict(mask, sep='/')

  def init_param_state(self, param, path):
    """The slots of a parameter: numbers that are not used, if it is frozen."""
    if self._trained[path]:
      return super().init_param_state(param, path)
    return adafactor._AdafactorParamState(*(jnp.zeros((1,)) for _ in range(4)))

  def apply_param_gradient(self, step, hyper_params, param, state, grad, path):
    """The parameter and its slots after a step."""
    if not self._trained[path]:
      return param, state
    return super().apply_param_gradient(
      step, hyper_params, param, state, grad, path
    )


def _abstract(config: experiment.ExperimentConfig) -> Any:
  init = parameters.init_fn(config)
  return nn.unbox(jax.eval_shape(init, jax.random.key(0)))
