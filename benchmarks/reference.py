# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""The network against the published research code, at one small size.

  python benchmarks/reference.py --scenic DIR --t5x DIR

DIR are checkouts of google-research/scenic and google-research/t5x, which are
imported as they are: what they import for data, files and metrics is left out,
and nothing of what is timed is changed. Both networks have the same random
weights and inputs and run in this process on the CPU, jitted, in turn; of each
the fastest run counts. Losses, gradients, features, tokens and points are
compared; a difference is an error. Needs `pip install einops` beside
pixel_llm.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pixel_llm import batch as batch_lib
from pixel_llm.checkpoints import scenic_names
from pixel_llm.model import decoding, eva, pixel_llm, prompt, sam, t5
from pixel_llm.model.layers import LoraConfig
from pixel_llm.tasks import task
from pixel_llm.train import experiment, optimizer, step
from pixel_llm.train import state as state_lib

BATCH, SIDE, LENGTH, CONTEXT = 8, 224, 64, 8
VOCAB, WIDTH, DEPTH, QUERIES = 1024, 192, 6, 32
T5_DIM, T5_DEPTH, T5_HEADS, T5_MLP, RANK = 256, 4, 4, 512, 8
BLOCKS_PER_GROUP = 3
GLOBAL = tuple(range(BLOCKS_PER_GROUP - 1, DEPTH, BLOCKS_PER_GROUP))
WINDOWED = tuple(i for i in range(DEPTH) if i not in GLOBAL)
# The published recipe of narratives.
RATE, WARMUP, STEPS = 5e-5, 250, 10_000
PARTS = ('train', 'dropout', 'encode', 'greedy', 'beam')
BEAMS = {'greedy': 1, 'beam': 4}
# What the research code imports and nothing here calls. T5X's own package
# imports its training loop; `models` and `checkpoints` are named in passing.
ABSENT = (
  'clu.metric_writers',
  'flax.training.checkpoints',
  'scenic.common_lib.debug_utils',
  'scenic.dataset_lib.dataset_utils',
  'scenic.dataset_lib.datasets',
  't5x.checkpoints',
  't5x.models',
  'tensorflow',
  'tensorflow.io',
)


# --- Both sides, built


class _Absent(types.ModuleType):
  """A module whose every name is an empty class."""

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    return type(name, (), {})


def import_reference(scenic: pathlib.Path, t5x: pathlib.Path) -> Any:
  """The modules of the research code that are run here."""
  for folder, part in (
    (scenic, 'scenic/projects/pixel_llm'),
    (t5x, 't5x/examples/t5'),
  ):
    if not (folder / part).is_dir():
      raise SystemExit(f'{folder}: expected a checkout with {part}, got none.')
    sys.path.append(str(folder))
  for name in ABSENT:
    sys.modules[name] = _Absent(name)
  package: Any = types.ModuleType('t5x')
  package.__path__ = [str(t5x / 't5x')]
  sys.modules['t5x'] = package

  from scenic.projects.pixel_llm import partition_utils
  from scenic.projects.pixel_llm.configs.t5 import pixel_llm_t5_trace
  from scenic.projects.pixel_llm.modeling import pixel_llm as model
  from scenic.projects.pixel_llm.modeling import utils
  from scenic.projects.t5 import model as t5_model
  from scenic.train_lib import lr_schedules

  return types.SimpleNamespace(
    partition=partition_utils,
    config=pixel_llm_t5_trace.get_config,
    model=model,
    features=utils,
    t5=t5_model,
    schedules=lr_schedules,
  )


def reference_config(reference: Any, dropout: bool = False) -> Any:
  """Their config of narratives with these sizes.

  One point a prompt, which its box then replaces: with the published four, a
  box's two corners are followed by three copies of SAM's "no mask" embedding.
  """
  config = reference.config()
  model = config.model
  for name in ('git', 'sam'):
    args = model[f'{name}_backbone_args']
    args.update(embed_dim=WIDTH, depth=DEPTH, num_heads=3)
    args.drop_path_rate *= dropout
    model[f'{name}_preprocess_args'].image_size = (SIDE, SIDE)
  model.sam_backbone_args.window_block_indexes = WINDOWED
  model.sam_backbone_args.img_size = SIDE
  model.prompt_adapter_args.update(
    depth=2, transformer_dim=128, output_dim=T5_DIM
  )
  model.visual_project_layers_args.emb_dim = T5_DIM
  model.text_decoder_args.dropout_rate *= dropout
  model.text_decoder_args.update(
    vocab_size=VOCAB,
    encoder_lora_rank=RANK,
    decoder_lora_rank=RANK,
  )
  model.vocab_size = VOCAB
  model.max_caption_length = LENGTH
  model.box_points_per_side = 1
  reference.t5.CONFIGS[model.text_decoder_name].update(
    emb_dim=T5_DIM,
    num_heads=T5_HEADS,
    num_encoder_layers=T5_DEPTH,
    num_decoder_layers=T5_DEPTH,
    head_dim=64,
    mlp_dim=T5_MLP,
  )
  return config


def our_config(dropout: bool = False) -> pixel_llm.ModelConfig:
  """The same network."""
  return pixel_llm.ModelConfig(
    eva=eva.EvaConfig(
      width=WIDTH,
      depth=DEPTH,
      num_heads=3,
      mlp_dim=int(WIDTH * 8 / 3),
      drop_path_rate=0.1 * dropout,
    ),
    sam=sam.SamConfig(
      width=WIDTH,
      depth=DEPTH,
      num_heads=3,
      mlp_dim=4 * WIDTH,
      blocks_per_group=BLOCKS_PER_GROUP,
      position_grid=SIDE // 16,
    ),
    extractor=prompt.ExtractorConfig(
      depth=2,
      width=128,
      num_queries=QUERIES,
      out_dim=T5_DIM,
    ),
    t5=t5.T5Config(
      vocab_size=VOCAB,
      emb_dim=T5_DIM,
      num_heads=T5_HEADS,
      mlp_dim=T5_MLP,
      num_encoder_layers=T5_DEPTH,
      num_decoder_layers=T5_DEPTH,
      dropout_rate=0.1 * dropout,
      lora=LoraConfig(rank=RANK, scale=2.0, projections=('query', 'value')),
    ),
  )


def straight(config: pixel_llm.ModelConfig, *parts: str) -> Any:
  """The network with straight-line code for the layers of these parts."""
  return pixel_llm.PixelLLM(
    dataclasses.replace(
      config,
      **{
        part: dataclasses.replace(getattr(config, part), scan_unroll=DEPTH)
        for part in parts
      },
    )
  )


# --- Weights


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Random weights by the research code's names, none at its first value.

  Words differ by several nats, the one that was just read is unlikely (the
  research code's greedy search forbids it, ours does not), and neither padding
  nor the end is ever likely, so that every search writes all of its tokens.
  """
  rng = np.random.default_rng(0)
  result = {}
  for name, shape in sorted(shapes.items()):
    x = rng.normal(size=shape)
    if name.endswith('token_embedder/embedding'):
      pass
    elif name.endswith('logits_dense/kernel'):
      x *= 3 / np.sqrt(shape[0])
    elif name.endswith('/scale'):
      x = 1 + 0.1 * x
    elif name.endswith('kernel_right_lora'):
      x *= 0.05
    elif 'kernel' in name:
      x /= np.sqrt(np.prod(shape[:-1]))
      # T5 has no factor of 1 / sqrt(64) in its attention.
      x *= 1 / 8 if '/query/' in name and 't5_module' in name else 1
    elif 'gaussian_matrix' not in name:
      x *= 0.1
    result[name] = np.asarray(x, np.float32)
  logits = result['textual/t5_module/decoder/logits_dense/kernel']
  words = result['textual/t5_module/token_embedder/embedding']
  logits -= 0.1 * words.T
  logits[:, :2] = 0
  return result


# --- Inputs


@dataclasses.dataclass(frozen=True)
class Inputs:
  """One batch, as each side takes it."""

  theirs: dict[str, Any]
  ours: batch_lib.Batch


def make_inputs() -> Inputs:
  """Images of which half are letter-boxed, captions and their places."""
  rng = np.random.default_rng(1)
  sizes = batch_lib.BatchSizes(BATCH, SIDE, 1, CONTEXT, LENGTH)
  batch = batch_lib.Batch.zeros(sizes)
  cells = rng.integers(0, 256, (BATCH, 8, 8, 3))
  image = cells.repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)
  image_size = np.full((BATCH, 2), SIDE)
  image_size[BATCH // 2 :, 0] = SIDE * 3 // 4
  valid = np.arange(SIDE)[None, :, None] < image_size[:, 0, None, None]
  valid = np.broadcast_to(valid, (BATCH, SIDE, SIDE))
  image = image * valid[..., None]

  count = rng.integers(LENGTH // 2, LENGTH - 1, (BATCH, 1, 1))
  at = np.arange(LENGTH)
  # As the research code has them: after the begin token, one position later.
  words = rng.integers(2, VOCAB, (BATCH, 1, LENGTH))
  words = np.where(at <= count, words, np.where(at == count + 1, 1, 0))
  words[..., 0] = 0
  moved = lambda x: np.concatenate([x[:, :, 1:], 0 * x[:, :, :1]], axis=2)
  targets = moved(words)
  context = rng.integers(2, VOCAB, (BATCH, 1, CONTEXT))
  context[..., 5] = 1
  context[..., 6:] = 0
  points = rng.uniform(0.1, 0.9, (BATCH, 1, LENGTH, 2, 2))
  has_place = (words > 1) & (rng.random(words.shape) < 0.8)
  pixels = image_size[:, None, None, None, ::-1]
  points_px = np.where(has_place[..., None, None], points * pixels, 0)
  corner = image_size[:, None, ::-1]

  ours = batch.replace(
    image=np.asarray(image, np.uint8),
    image_size=np.asarray(image_size, np.int32),
    prompt_boxes=np.tile(task.WHOLE_IMAGE, (BATCH, 1, 1)),
    prompt_box_weights=np.ones((BATCH, 1), np.float32),
    encoder_input_tokens=np.asarray(context, np.int32),
    decoder_target_tokens=np.asarray(targets, np.int32),
    decoder_loss_weights=np.asarray(targets > 0, np.float32),
    points=np.asarray(moved(points), np.float32),
    point_weights=np.asarray(moved(has_place), np.float32),
  )
  ours.check(sizes)
  ones, zeros = np.ones(BATCH, np.int32), np.zeros(BATCH, np.int32)
  theirs = {
    'inputs': np.asarray(image, np.float32),
    'padding_mask': np.asarray(valid, np.float32),
    'label': {
      'prompt_boxes': np.concatenate(
        [np.zeros_like(corner), corner], -1
      ).astype(np.float32),
      'text_tokens': np.asarray(words, np.int32),
      'context_tokens': np.asarray(context, np.int32),
      'points': np.asarray(points_px, np.float32),
      'labels': ones[:, None],
      'cap_loss_valid_mask': ones,
      'proposal_loss_valid_mask': zeros,
      'objcap_loss_valid_mask': zeros,
      'point_loss_valid_mask': ones,
    },
  }
  return Inputs(
    jax.tree.map(jnp.asarray, theirs), jax.tree.map(jnp.asarray, ours)
  )


# --- What is timed


@dataclasses.dataclass
class Program:
  """A compiled function and what it needs; `run` waits for its result."""

  compiled: Any
  args: tuple[Any, ...]
  compile_seconds: float
  flops: float
  # Of a training step: the first argument comes from the step before.
  carries: bool = False
  seconds: float = float('inf')

  def run(self) -> Any:
    """The result, timed."""
    start = time.perf_counter()
    result = jax.block_until_ready(self.compiled(*self.args))
    self.seconds = min(self.seconds, time.perf_counter() - start)
    if self.carries:
      self.args = (result[0], *self.args[1:])
    return result


def build(
  fn: Callable,
  *args: Any,
  carries: bool = False,
  counted: Callable | None = None,
) -> Program:
  """Compiles.

  Args:
    fn: what to run.
    *args: its arguments.
    carries: its first result is its first argument of the next run.
    counted: `fn` without loops over layers, whose bodies XLA counts once.
  """
  start = time.perf_counter()
  jitted = jax.jit(fn, donate_argnums=(0,) if carries else ())
  lowered = jitted.lower(*args)
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  if counted is not None:
    lowered = jax.jit(counted).lower(*args)
  flops = lowered.cost_analysis()['flops']
  return Program(compiled, args, seconds, flops, carries)


class Reference:
  """The research code's side."""

  def __init__(self, modules: Any, inputs: Inputs):
    self._modules, self._batch = modules, inputs.theirs
    self.config = reference_config(modules)
    self.model = modules.model.PixelLlmModel(self.config, {})
    label = inputs.theirs['label']
    shapes = jax.eval_shape(
      functools.partial(self.model.flax_model.init, train=False),
      {'params': jax.random.key(0), 'dropout': jax.random.key(0)},
      inputs.theirs['inputs'],
      prompt_boxes=label['prompt_boxes'],
      context_tokens=label['context_tokens'],
    )['params']
    shapes = traverse_util.flatten_dict(dict(shapes), sep='/')
    self.flat = weights({name: x.shape for name, x in shapes.items()})
    self.params = traverse_util.unflatten_dict(
      {name: jnp.asarray(x) for name, x in self.flat.items()}, sep='/'
    )

  def train(self, dropout: bool) -> Program:
    """`train_step_partitioned_jit`, as from its second step on."""
    config = reference_config(self._modules, dropout)
    model = self._modules.model.PixelLlmModel(config, {})
    partition = self._modules.partition
    rate = self._modules.schedules.get_learning_rate_fn(config)
    frozen = partition.create_frozen_mask_from_regex(
      self.params, config.frozen_params, log=False
    )
    # It gives its arguments away.
    params = jax.tree.map(jnp.copy, self.params)
    state, _, _ = partition.create_partitioned_train_state(
      params, frozen, config, jnp.int32(0), {}, jax.random.key(0), rate
    )
    fn = functools.partial(
      partition.train_step_partitioned_jit,
      tx=state.tx,
      model=model,
      loss_and_metrics_fn=model.loss_function,
      learning_rate_fn=rate,
    )
    return build(fn, state, self._batch, carries=True)

  def encode(self) -> Program:
    """Images to the features that prompts are read with."""
    key = self.config.model.text_decoder_feature_key

    def encode(model, batch):
      maps = model.forward_backbones(
        batch['inputs'], batch['padding_mask'], preprocess=True, train=False
      )
      return self._modules.features.concat_visual_features(maps, key)

    fn = nn.apply(encode, self.model.flax_model)
    return build(
      lambda params, batch: fn({'params': params}, batch),
      self.params,
      self._batch,
    )

  def decode(self, beams: int, features: jax.Array) -> Program:
    """`PixelLlmModel.inference` from encoded images on."""
    c = self.config.model
    c.decode_method = 'beam' if beams > 1 else 'greedy'
    c.decode_beam_size = beams
    model = self._modules.model.PixelLlmModel(self.config, {})

    def prefix(module, features, batch):
      label = batch['label']
      given = module.get_prompt_boxes_and_points({}, label, train=False)
      given = module.forward_prompt_encoder_adapter(
        features, (SIDE, SIDE), given, {**label, 'gt_boxes': None}
      )
      return module.maybe_project_visual_feature(given['visual_features'])

    prefix = nn.apply(prefix, model.flax_model)
    begin = jnp.full((BATCH, 1, LENGTH), c.end_token_id, jnp.int32)
    begin = begin.at[..., 0].set(c.begin_token_id)

    def decode(params, features, batch):
      predictions = {
        'visual_features': prefix({'params': params}, features, batch),
        'begin_tokens': begin,
        'context_tokens': batch['label']['context_tokens'],
      }
      predictions = model.autoregressive_predict(params, predictions)
      predictions = model.prepare_text_features(params, batch, predictions)
      predictions = model.predict_points(params, batch, predictions)
      return predictions['text_tokens'], predictions['point_coords']

    return build(decode, self.params, features, self._batch)


class Ours:
  """Our side."""

  def __init__(self, params: dict[str, np.ndarray], inputs: Inputs):
    self.model = pixel_llm.PixelLLM(our_config())
    self._batch = inputs.ours
    one = jax.tree.map(lambda x: x[:1], inputs.ours)
    shapes = nn.unbox(
      jax.eval_shape(self.model.init, jax.random.key(0), one)['params']
    )
    shapes = traverse_util.flatten_dict(shapes, sep='/')
    wanted = {name: x.shape for name, x in shapes.items()}
    got = {name: x.shape for name, x in params.items()}
    assert wanted == got, set(wanted.items()) ^ set(got.items())
    self.params = traverse_util.unflatten_dict(
      {name: jnp.asarray(x) for name, x in params.items()}, sep='/'
    )

  def train(self, dropout: bool) -> Program:
    """`train_step` with the published recipe."""
    config = optimizer.OptimizerConfig(
      learning_rate=RATE,
      warmup_steps=WARMUP,
      weight_decay=0.0,
      b2=0.999,
      clip_norm=None,
      freeze=('^sam/', '^prompt_encoder/', '^t5/(?!.*/lora_)'),
    )
    mask = optimizer.trainable_mask(config, self.params)
    tx = optimizer.make(config, STEPS, self.params)
    params = jax.tree.map(jnp.copy, self.params)
    state = state_lib.TrainState(
      jnp.int32(0), params, tx.init(state_lib.split(params, mask)[0])
    )
    network = our_config(dropout)
    fn = functools.partial(
      step.train_step,
      model=pixel_llm.PixelLLM(network),
      mask=mask,
      optimizer=tx,
      # 0.1 a pixel, as published.
      config=experiment.LossConfig(point_weight=0.1 * SIDE),
      rng=jax.random.key(0),
    )
    counted = functools.partial(
      fn, model=straight(network, 'eva', 'sam', 'extractor', 't5')
    )
    return build(fn, state, self._batch, carries=True, counted=counted)

  def encode(self) -> Program:
    """Images to the features that prompts are read with."""

    def encode(model, params, image, size):
      return model.run(params, image, size, method='encode_image')

    return build(
      functools.partial(encode, self.model),
      self.params,
      self._batch.image,
      self._batch.image_size,
      counted=functools.partial(
        encode, straight(self.model.config, 'eva', 'sam')
      ),
    )

  def decode(
    self, beams: int, features: jax.Array, length: int = LENGTH
  ) -> Program:
    """`generate` from encoded images on."""
    how = decoding.DecodingConfig(length=length, beams=beams)

    def decode(model, params, batch, features):
      output = task.generate(model, params, batch, how, features)
      return output.tokens, output.points

    return build(
      functools.partial(decode, self.model),
      self.params,
      self._batch,
      features,
      counted=functools.partial(
        decode, straight(self.model.config, 'extractor', 't5')
      ),
    )


# --- Comparison


def relative(a: Any, b: Any) -> float:
  """Largest difference over the largest number of `b`."""
  a, b = np.asarray(a), np.asarray(b)
  return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def check_train(theirs: Any, ours: Any) -> str:
  """Loss and gradients of the first step; Adam's first moment has these."""
  want, got = theirs[3]['total_loss'][0], ours[1]['loss']
  loss = abs(float(got) - float(want)) / abs(float(want))

  def moments(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    found = {}
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      if match := re.search(r'(?:^|/)mu/(.*)', name):
        found[match[1]] = leaf
    return found

  want, got = scenic_names.to_ours(moments(theirs[0])), moments(ours[0])
  assert set(want) == set(got), set(want) ^ set(got)
  # It also projects the "no mask" embedding there: a part of its gradient
  # that our bias has instead.
  shared = [n for n in got if '/prompt_projection/' not in n]
  scale = max(np.abs(want[n]).max() for n in shared)
  worst = max(
    (np.abs(got[n] - want[n]).max() / (np.abs(want[n]).max() + 1e-4 * scale), n)
    for n in shared
  )
  good = loss < 1e-4 and worst[0] < 1e-2
  return (
    f'loss {float(ours[1]["loss"]):.6f} and gradients of {len(shared)} '
    f'parameters {"equal" if good else "DIFFER"}, relative difference '
    f'{loss:.1e} of the loss, at most {worst[0]:.1e} of gradients, in '
    f'{worst[1]}'
  )


def check_decode(theirs: Any, ours: Any, inputs: Inputs) -> str:
  """Tokens and points of the positions that both write."""
  # Theirs begin with the begin token and never fill the last slot.
  want, got = np.asarray(theirs[0])[:, 0, 1:-1], np.asarray(ours[0])[:, 0]
  count = want.shape[1]
  rows = int(np.sum(np.any(want != got[:, :count], axis=1)))
  sides = np.asarray(inputs.ours.image_size)[:, None, None, ::-1]
  # The last of ours is not read, so that its points are not there yet.
  points = np.asarray(ours[1])[:, 0, : count - 1] * sides
  apart = float(np.abs(points - np.asarray(theirs[1])[:, 0, 1:-2]).max())
  again = int(np.sum(want[:, 1:] == want[:, :-1]))
  said = 'equal' if not rows and apart < 1e-2 else f'DIFFER in {rows} rows'
  return (
    f'{count} tokens of {BATCH} rows {said}, points within {apart:.1e} px; '
    f'{len(np.unique(want))} different tokens, {again} as the one before'
  )


def main() -> int:
  """Prints the table; 1 if results differ."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scenic', type=pathlib.Path, required=True)
  parser.add_argument('--t5x', type=pathlib.Path, required=True)
  parser.add_argument('--runs', type=int, default=10, help='timed, of each')
  parser.add_argument(
    '--only',
    type=lambda text: text.split(','),
    default=list(PARTS),
    help=f'of {",".join(PARTS)}',
  )
  args = parser.parse_args()
  if unknown := set(args.only) - set(PARTS):
    parser.error(f'--only: expected some of {",".join(PARTS)}, got {unknown}')

  inputs = make_inputs()
  theirs = Reference(import_reference(args.scenic, args.t5x), inputs)
  ours = Ours(scenic_names.to_ours(theirs.flat, GLOBAL), inputs)
  count = sum(x.size for x in theirs.flat.values()) / 1e6
  print(
    f'pixel_llm {_commit(pathlib.Path(__file__).parent)} against scenic '
    f'{_commit(args.scenic)} with T5X {_commit(args.t5x)}, jax '
    f'{jax.__version__}, float32\n{_processor()}, {os.cpu_count()} cores, '
    f'load {os.getloadavg()[0]:.1f} before; {count:.1f} M parameters, batch '
    f'{BATCH}, {SIDE} px, {LENGTH} tokens; fastest of {args.runs} runs in turn',
    flush=True,
  )
  failed = False
  lines = []
  features = None
  for part in args.only:
    if part in BEAMS and features is None:
      features = theirs.encode().run()
    pair, text = _measure(part, theirs, ours, inputs, features)
    print(f'{part}: {text}', flush=True)
    failed |= 'DIFFER' in text
    for _ in range(args.runs):
      for program in pair:
        program.run()
    a, b = pair
    lines.append(
      f'| {part} | {a.seconds:.3f} | {b.seconds:.3f} | '
      f'{a.seconds / b.seconds:.2f} | {a.flops / 1e9:.1f} | '
      f'{b.flops / 1e9:.1f} | {a.compile_seconds:.0f} | '
      f'{b.compile_seconds:.0f} |'
    )
    print(lines[-1], flush=True)
  print(
    f'load {os.getloadavg()[0]:.1f} after\n\n'
    '| | theirs, s | ours, s | ratio | theirs, GFLOP | ours, GFLOP | theirs, '
    'compile s | ours, compile s |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- |\n' + '\n'.join(lines)
  )
  return int(failed)


def _measure(
  part: str, theirs: Reference, ours: Ours, inputs: Inputs, features: Any
) -> tuple[tuple[Program, Program], str]:
  """Both programs, run once, and how their results compare."""
  if part in ('train', 'dropout'):
    dropout = part == 'dropout'
    pair = theirs.train(dropout), ours.train(dropout)
  elif part == 'encode':
    pair = theirs.encode(), ours.encode()
  else:
    beams = BEAMS[part]
    pair = theirs.decode(beams, features), ours.decode(beams, features)
  a, b = [program.run() for program in pair]
  if part == 'train':
    return pair, check_train(a, b)
  if part == 'dropout':
    return pair, 'both random, not compared'
  if part == 'encode':
    apart = relative(a, b)
    said = 'equal' if apart < 1e-4 else 'DIFFER'
    return pair, f'features {said}, relative difference {apart:.1e}'
  # As many tokens as theirs; what is timed writes two more.
  b = ours.decode(BEAMS[part], features, LENGTH - 2).run()
  return pair, check_decode(a, b, inputs)


def _commit(folder: pathlib.Path) -> str:
  git = ['git', '-C', str(folder), 'rev-parse', '--short', 'HEAD']
  result = subprocess.run(git, capture_output=True, text=True, check=False)
  return result.stdout.strip() or '(no git)'


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as lines:
      names = [x.split(':')[1].strip() for x in lines if 'model name' in x]
    return names[0]
  except (OSError, IndexError):
    return platform.processor() or platform.machine()


if __name__ == '__main__':
  sys.exit(main())
