#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
#
# Submits a run to Kubernetes as a JobSet (gke_jobset.yaml), one pod a host.
#
#   launch/gke.sh --name NAME --image IMAGE [options] -- VERB ARGUMENTS...
#
#   --tpu TYPE:TOPOLOGY:CHIPS   of a slice, and chips a host:
#                               tpu-v5p-slice:2x2x4:4
#   --gpu TYPE:COUNT            of a host: nvidia-h100-80gb:8
#   --hosts N                   of a slice, default 1
#   --slices N                  TPU slices, default 1
#   --restarts N                after failures and preemptions, default 100
#   --namespace N               default kubectl's
#   --dry-run                   prints what it would submit
#
# Without --tpu and --gpu it runs on CPUs. The image has pixel-llm on its path.
set -euo pipefail

declare -A value=([NAME]='' [IMAGE]='' [HOSTS]=1 [SLICES]=1 [RESTARTS]=100
  [SELECTOR]='{}' [LIMITS]='{}' [RESOURCE]=none [ANNOTATIONS]='{}')
dry='' apply=(kubectl apply -f -)
while (($#)); do
  case $1 in
    --name | --image | --hosts | --slices | --restarts)
      key=${1#--} && value[${key^^}]=$2 && shift 2
      ;;
    --namespace) apply+=(--namespace "$2") && shift 2 ;;
    --tpu)
      IFS=: read -r type topology chips <<<"$2"
      value[SELECTOR]="{cloud.google.com/gke-tpu-accelerator: $type,"
      value[SELECTOR]+=" cloud.google.com/gke-tpu-topology: '$topology'}"
      # A slice is a node pool, and takes one job.
      value[ANNOTATIONS]="{alpha.jobset.sigs.k8s.io/exclusive-topology:"
      value[ANNOTATIONS]+=" cloud.google.com/gke-nodepool}"
      value[RESOURCE]=google.com/tpu
      value[LIMITS]="{google.com/tpu: $chips}"
      shift 2
      ;;
    --gpu)
      value[SELECTOR]="{cloud.google.com/gke-accelerator: ${2%:*}}"
      value[RESOURCE]=nvidia.com/gpu
      value[LIMITS]="{nvidia.com/gpu: ${2##*:}}"
      shift 2
      ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) sed -n '/^#$/,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) echo "$0: $1: no such option; see --help" >&2 && exit 2 ;;
  esac
done
if [[ ! ${value[NAME]} || ! ${value[IMAGE]} || $# == 0 ]]; then
  echo "$0: expected --name, --image and -- VERB ARGUMENTS; see --help" >&2
  exit 2
fi
if ((value[SLICES] > 1)) && [[ ${value[RESOURCE]} != google.com/tpu ]]; then
  echo "$0: --slices are of TPUs; see --hosts" >&2
  exit 2
fi

arguments=''
for argument in "$@"; do
  argument=${argument//\\/\\\\}
  arguments+="${arguments:+, }\"${argument//\"/\\\"}\""
done
value[ARGUMENTS]="[$arguments]"
text=$(<"$(dirname "$0")/gke_jobset.yaml")
for key in "${!value[@]}"; do
  text=${text//"\${$key}"/"${value[$key]}"}
done
if [[ $dry ]]; then
  printf '# %s\n%s\n' "${apply[*]}" "$text"
else
  "${apply[@]}" <<<"$text"
fi
