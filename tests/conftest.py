# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test: 8 devices, no silent broadcasting."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compiling is most of the suite's time; the numbers are the same.
jax.config.update('jax_disable_most_optimizations', True)
