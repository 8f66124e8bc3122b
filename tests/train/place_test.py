# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Environments as launchers leave them."""

import pytest
from jax._src import cloud_tpu_init

from pixel_llm.train import place as place_lib

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[003-004]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
}
OPEN_MPI_4 = {
  'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.1.2.3:5',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '0',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
}
JOBSET = {
  'KUBERNETES_SERVICE_HOST': '10.0.0.1',
  'JOB_COMPLETION_INDEX': '2',
  'JAX_COORDINATOR_ADDRESS': 'run-workers-0-0.run:8482',
  'JAX_NUM_PROCESSES': '4',
}
GKE_TPU = {
  'TPU_WORKER_HOSTNAMES': 'localhost,b',
  'TPU_WORKER_ID': '1',
  'MEGASCALE_NUM_SLICES': '2',
  'MEGASCALE_SLICE_ID': '1',
  'MEGASCALE_COORDINATOR_ADDRESS': 'localhost:8080',
}


@pytest.fixture
def found(monkeypatch):
  """`find` in an environment of these variables alone."""

  def find(variables, tpu=False, **given):
    for name in (*SLURM, *OPEN_MPI_4, *JOBSET, *GKE_TPU, 'JAX_PROCESS_ID'):
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_init, 'running_in_cloud_tpu_vm', tpu)
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', tpu)
    place = place_lib.find(timeout=1, **given)
    return place and (
      place.coordinator,
      place.count,
      place.index,
      place.devices,
    )

  return find


def test_slurm_is_found(found):
  assert found(SLURM) == ('node003:61447', 4, 3, (1,))
  alone = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'SLURM_LOCALID': '0'}
  assert found(alone) == ('node003:61447', 4, 3, None)
  one_seen = {**SLURM, 'CUDA_VISIBLE_DEVICES': '1'}
  assert found(one_seen) == ('node003:61447', 4, 3, None)
  assert found({**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}) is None


def test_open_mpi_is_found(found):
  assert found(OPEN_MPI_4) == ('10.1.2.3:61441', 2, 1, None)
  five = {k: v for k, v in OPEN_MPI_4.items() if 'uri' not in k}
  with pytest.raises(place_lib.ClusterError, match='--coordinator: neither'):
    found(five)
  assert found(five, coordinator='a:1') == ('a:1', 2, 1, None)


def test_jobset_is_found(found):
  assert found(JOBSET) == ('run-workers-0-0.run:8482', 4, 2, None)
  bare = {k: v for k, v in JOBSET.items() if 'JAX' not in k}
  with pytest.raises(place_lib.ClusterError, match='JAX_NUM_PROCESSES'):
    found(bare)
  with pytest.raises(place_lib.ClusterError, match=r'whole number, got .x.'):
    found({**JOBSET, 'JAX_NUM_PROCESSES': 'x'})


def test_tpus_on_gke_are_found_over_all_slices(found):
  assert found(GKE_TPU, tpu=True) == ('localhost:8482', 4, 3, None)
  # As in a JobSet, whose index is that in a slice.
  both = {**JOBSET, **GKE_TPU, 'JOB_COMPLETION_INDEX': '1'}
  address = JOBSET['JAX_COORDINATOR_ADDRESS']
  assert found(both, tpu=True) == (address, 4, 3, None)


def test_what_is_given_goes_before_what_is_found(found):
  given = {'coordinator': '[::1]:9', 'count': 2, 'index': 0}
  assert found(SLURM, **given) == ('[::1]:9', 2, 0, None)
  assert found({}, **given, devices=[2, 3]) == ('[::1]:9', 2, 0, (2, 3))
  assert place_lib.Place('[::1]:9', 2, 0).address == ('::1', 9)


def test_nothing_found_is_alone(found):
  assert found({}) is None


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ({'count': 2}, '--coordinator, --process-id: neither given nor said'),
    ({'devices': [0]}, '--coordinator, --num-processes, --process-id'),
    ({'coordinator': 'a:1', 'count': 2, 'index': 2}, 'expected 0 to 1'),
    ({'coordinator': 'a', 'count': 2, 'index': 1}, "'a': expected HOST:PORT"),
  ],
)
def test_flags_that_do_not_fit_are_told(found, given, said):
  with pytest.raises(place_lib.ClusterError, match=said):
    found({}, **given)
