# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding of T5 1.1: ours against transformers' `generate`.

Both have the same random weights, read the same random text and write the same
number of tokens; token ids are compared and a difference is an error. Both run
in this process on the CPU, in turn, and of each the fastest run counts.

Needs `pip install torch transformers` beside pixel_llm.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

from pixel_llm.checkpoints import mapping, t5_names, tensors
from pixel_llm.model import t5

CONTEXT = 40


def main() -> int:
  """Prints one line a size, batch and search; 1 if token ids differ."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--size', nargs='+', choices=tuple(t5.SIZES), default=['small', 'base']
  )
  parser.add_argument('--batch', nargs='+', type=int, default=[1, 4, 16])
  parser.add_argument('--beams', nargs='+', type=int, default=[1, 4])
  parser.add_argument('--tokens', type=int, default=64, help='to write')
  parser.add_argument('--runs', type=int, default=3, help='timed, of each')
  args = parser.parse_args()

  import jax
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  print(
    f'against transformers {transformers.__version__} (torch '
    f'{torch.__version__}, {torch.get_num_threads()} threads, eager, '
    f'inference mode); ours with jax {jax.__version__}\n'
    f'{_processor()}, {os.cpu_count()} cores, load '
    f'{os.getloadavg()[0]:.1f} before; float32, {CONTEXT} tokens read, '
    f'{args.tokens} written, fastest of {args.runs} runs in turn',
    flush=True,
  )
  failed = False
  for size in args.size:
    theirs, params = _models(size)
    for batch in args.batch:
      for beams in args.beams:
        failed |= _compare(size, theirs, params, batch, beams, args)
  return int(failed)


def _compare(
  size: str, theirs: Any, params: Any, batch: int, beams: int, args
) -> bool:
  """Prints tokens a second of both; whether any token id differs."""
  rng = np.random.default_rng(batch)
  text = rng.integers(2, 32000, (batch, CONTEXT)).astype(np.int32)
  ours = _ours(size, params, text, beams, args.tokens)
  runs = (ours, lambda: _theirs(theirs, text, beams, args.tokens))
  ids = [run() for run in runs]
  best = [float('inf')] * 2
  for _ in range(args.runs):
    for i, run in enumerate(runs):
      start = time.perf_counter()
      run()
      best[i] = min(best[i], time.perf_counter() - start)
  different = int(np.sum(np.any(ids[0] != ids[1], axis=1)))
  speeds = [batch * args.tokens / seconds for seconds in best]
  print(
    f'{size:6} batch {batch:2} {"greedy" if beams == 1 else f"beam {beams}":7}'
    f' ours {speeds[0]:8.1f} tokens/s, transformers {speeds[1]:8.1f}, '
    f'ratio {speeds[0] / speeds[1]:5.2f}; ids '
    + (f'DIFFER in {different} rows' if different else 'equal'),
    flush=True,
  )
  return different > 0


def _ours(
  size: str, params: Any, text: np.ndarray, beams: int, length: int
) -> Callable[[], np.ndarray]:
  """A compiled search over `text`."""
  import jax

  from pixel_llm.model import decoding

  config = t5.SIZES[size]
  model = t5.T5(config)
  # No end token: every run writes all of its tokens. Scores then have no
  # length penalty on either side.
  search = decoding.DecodingConfig(
    length=length, beams=beams, min_length=length
  )

  @jax.jit
  def generate(params, text):
    encoded, valid = model.apply(params, None, text, method='encode')
    cross = model.apply(params, encoded, method='cross_attention_cache')

    def step(tokens, index, cache):
      return model.apply(
        params, tokens, index, cache, cross, valid, method='decode_step'
      )

    return decoding.decode(
      step,
      model.init_cache(len(text), length),
      len(text),
      search,
      beams=t5.CACHE_BEAMS,
    ).tokens

  return lambda: np.asarray(generate(params, text))


def _theirs(
  model: Any, text: np.ndarray, beams: int, length: int
) -> np.ndarray:
  import torch

  with torch.inference_mode():
    ids = model.generate(
      torch.from_numpy(text).long(),
      attention_mask=torch.ones(text.shape, dtype=torch.long),
      max_new_tokens=length,
      min_new_tokens=length,
      num_beams=beams,
      do_sample=False,
    )
  return ids.numpy()[:, 1:]


def _models(size: str) -> tuple[Any, Any]:
  """Theirs of random weights, and our parameters with the same."""
  import torch
  import transformers

  c = t5.SIZES[size]
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=c.vocab_size,
      d_model=c.emb_dim,
      d_kv=c.head_dim,
      d_ff=c.mlp_dim,
      num_layers=c.num_encoder_layers,
      num_decoder_layers=c.num_decoder_layers,
      num_heads=c.num_heads,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
      decoder_start_token_id=0,
    )
  ).eval()
  with torch.no_grad():
    # As initialized, the logits hardly depend on what was written before.
    for name, weight in model.named_parameters():
      if name.endswith('lm_head.weight'):
        weight.mul_(c.emb_dim**-0.5 / weight.std() * 3)
  state = {
    name: tensors.of_array(x.detach().numpy())
    for name, x in model.state_dict().items()
  }
  given, report = mapping.apply(t5_names.HUGGING_FACE, state)
  assert not report, report
  ours = {
    name.removeprefix(t5_names.PREFIX): x.read() for name, x in given.items()
  }
  return model, {'params': traverse_util.unflatten_dict(ours, sep='/')}


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as lines:
      names = [x.split(':')[1].strip() for x in lines if 'model name' in x]
    return names[0]
  except (OSError, IndexError):
    return platform.processor() or platform.machine()


if __name__ == '__main__':
  sys.exit(main())
