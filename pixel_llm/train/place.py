# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this one is, by what the environment says."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

from jax._src import cloud_tpu_init, clusters


class ClusterError(ValueError):
  """Processes that are missing, unlike one another, or not to be found."""


@dataclasses.dataclass(frozen=True)
class Place:
  """A process's place among the processes of a run.

  Attributes:
    coordinator: HOST:PORT of process 0, where its services listen.
    count: processes of the run.
    index: of this one.
    devices: the local GPUs that are this process's; None for all it sees.
    found: by what it was found.

  Raises:
    ClusterError: `coordinator` is not HOST:PORT, or `index` not below `count`.
  """

  coordinator: str
  count: int
  index: int
  devices: tuple[int, ...] | None = None
  found: str = ''

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdigit():
      raise ClusterError(
        f'coordinator {self.coordinator!r}: expected HOST:PORT.'
      )
    if not 0 <= self.index < self.count:
      raise ClusterError(
        f'--process-id {self.index}: expected 0 to {self.count - 1}, as there '
        f'are {self.count} processes.'
      )

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = self.coordinator.rpartition(':')
    return host.strip('[]'), int(port)


def find(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  devices: Sequence[int] | None = None,
  timeout: float = 60,
) -> Place | None:
  """The place that is given, or else that which the environment says.

  TPU VMs (of any number of slices, also on GKE), SLURM, Open MPI and Kubernetes
  are as `jax.distributed.initialize` finds them; pods of a JobSet say it in
  variables (launch/gke_jobset.yaml).

  Args:
    coordinator: HOST:PORT of process 0.
    count: processes of the run.
    index: of this one.
    devices: the local GPUs that are this process's.
    timeout: seconds to wait for the coordinator's name to be known.

  Returns: None for a process that is alone.

  Raises:
    ClusterError: what is given or found is not all, or does not fit.
  """
  found: dict[str, Any] = {}
  if None in (coordinator, count, index):
    found = _environment(coordinator is None, timeout)
  given = {
    'coordinator': coordinator,
    'count': count,
    'index': index,
    'devices': None if devices is None else tuple(devices),
  }
  found |= {k: v for k, v in given.items() if v is not None}
  if found.get('count') == 1 or not found.keys() - {'found'}:
    return None
  flags = {
    'coordinator': '--coordinator',
    'count': '--num-processes',
    'index': '--process-id',
  }
  missing = [flag for key, flag in flags.items() if key not in found]
  if missing:
    raise ClusterError(
      f'{", ".join(missing)}: neither given nor said by the environment '
      f'({found.get("found", "no cluster found")}). --no-cluster stays alone.'
    )
  return Place(**{'found': 'flags', **found})


def _environment(coordinator: bool, timeout: float) -> dict[str, Any]:
  """Fields of `Place` as the environment says; without a cluster none."""
  env = os.environ
  address = env.get('JAX_COORDINATOR_ADDRESS')
  index = env.get('JAX_PROCESS_ID')
  # Of one slice's hosts alone, where there may be several slices.
  if not cloud_tpu_init.running_in_cloud_tpu_vm:
    index = index or env.get('JOB_COMPLETION_INDEX')
  if address and 'JAX_NUM_PROCESSES' in env and index is not None:
    return {
      'coordinator': address,
      'count': _number(env['JAX_NUM_PROCESSES'], 'JAX_NUM_PROCESSES'),
      'index': _number(index, 'JAX_PROCESS_ID or JOB_COMPLETION_INDEX'),
      'found': 'variables of JAX',
    }
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.opt_in_only_method or not _is_present(kind):
      continue
    name = kind.__name__.removesuffix('Cluster')
    try:
      found = {
        'count': kind.get_process_count(),
        'index': kind.get_process_id(),
        'found': name,
      }
      if found['count'] > 1 and coordinator:
        found['coordinator'] = address or kind.get_coordinator_address(
          timeout_secs=int(timeout),
          override_coordinator_port=env.get('JAX_COORDINATOR_PORT'),
        )
    except RuntimeError as e:
      raise ClusterError(f'cluster of {name}: {e}') from e
    if (own := _own_device(kind)) is not None:
      found['devices'] = (own,)
    return found
  # Open MPI 5 does not say any more where it was started, which JAX goes by.
  if env.get('OMPI_COMM_WORLD_SIZE', '1') != '1':
    return {
      'count': int(env['OMPI_COMM_WORLD_SIZE']),
      'index': int(env['OMPI_COMM_WORLD_RANK']),
      'found': 'Open MPI',
    }
  if 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env:
    raise ClusterError(
      'this is a pod of an Indexed Job, which does not say of how many: set '
      'JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES as '
      'launch/gke_jobset.yaml does, or install the package kubernetes. '
      '--no-cluster stays alone.'
    )
  return {}


def _number(text: str, name: str) -> int:
  if not text.isdigit():
    raise ClusterError(f'{name}: expected a whole number, got {text!r}.')
  return int(text)


def _is_present(kind: type[clusters.ClusterEnv]) -> bool:
  # Any pod is one to JAX; and without its package it warns.
  if kind is clusters.K8sCluster and 'JOB_COMPLETION_INDEX' not in os.environ:
    return False
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return kind.is_env_present()


def _own_device(kind: type[clusters.ClusterEnv]) -> int | None:
  """The GPU of a process that shares its node with others of the run.

  JAX gives a process its GPU even where it is alone on its node, and where the
  launcher has left it only one to see.
  """
  env = os.environ
  local = kind.get_local_process_id()
  if local is None or cloud_tpu_init.running_in_cloud_tpu_vm:
    return None
  shared = env.get(
    'OMPI_COMM_WORLD_LOCAL_SIZE', env.get('SLURM_STEP_TASKS_PER_NODE', '2')
  )
  alone = re.fullmatch(r'1(\(x\d+\))?', shared)
  seen = env.get('CUDA_VISIBLE_DEVICES', env.get('ROCR_VISIBLE_DEVICES'))
  if alone or (seen is not None and local >= len(seen.split(','))):
    return None
  return local
