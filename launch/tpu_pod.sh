#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs pixel-llm on all hosts of a TPU pod (Cloud TPU VMs).
#
#   launch/tpu_pod.sh --name NAME --zone ZONE [options] -- VERB ARGUMENTS...
#
#   --project P       default gcloud's
#   --create TYPE     makes the pod first, of this type: v5p-32, v6e-64, ...
#   --runtime R       its software, default v2-alpha-tpuv5
#   --spot            it may be taken away, and is cheaper
#   --install         copies the last commit to all hosts and installs it
#   --detach          leaves it running there, with output in ~/pixel_llm.log
#   --stop            has it save and end (SIGTERM), instead of running
#   --dry-run         prints the commands, and runs none
#
# The same command goes on after an interruption. The workdir and the records
# must be the same place for all hosts: a bucket for the one, a mounted disk or
# bucket for the other.
set -euo pipefail

name='' zone='' create='' runtime=v2-alpha-tpuv5 dry='' install='' detach=''
stop='' flags=() making=()
while (($#)); do
  case $1 in
    --name) name=$2 && shift 2 ;;
    --zone) zone=$2 && shift 2 ;;
    --project) flags+=(--project "$2") && shift 2 ;;
    --create) create=$2 && shift 2 ;;
    --runtime) runtime=$2 && shift 2 ;;
    --spot) making+=(--spot) && shift ;;
    --install) install=1 && shift ;;
    --detach) detach=1 && shift ;;
    --stop) stop=1 && shift ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) sed -n '/^#$/,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) echo "$0: $1: no such option; see --help" >&2 && exit 2 ;;
  esac
done
if [[ ! $name || ! $zone ]]; then
  echo "$0: expected --name and --zone; see --help" >&2
  exit 2
fi
flags+=(--zone "$zone")

run() {
  printf '%q ' "$@"
  echo
  [[ $dry ]] || "$@"
}
tpu() { run gcloud compute tpus tpu-vm "$@"; }
everywhere() { tpu ssh "$name" "${flags[@]}" --worker=all --command "$1"; }

if [[ $create ]]; then
  tpu create "$name" "${flags[@]}" --accelerator-type "$create" \
    --version "$runtime" ${making[@]+"${making[@]}"}
fi
if [[ $install ]]; then
  archive=$(mktemp -d)/pixel_llm.tar.gz
  run git -C "$(dirname "$0")/.." archive -o "$archive" HEAD
  tpu scp "$archive" "$name:" "${flags[@]}" --worker=all
  everywhere 'mkdir -p pixel_llm && tar -xzf pixel_llm.tar.gz -C pixel_llm &&
    cd pixel_llm && python3 -m venv .venv &&
    .venv/bin/pip install --quiet ".[tpu,data]"'
fi
if [[ $stop ]]; then
  everywhere 'pkill -TERM -f "[p]ixel-llm"'
elif (($#)); then
  printf -v command ' %q' "$@"
  command="cd pixel_llm && exec .venv/bin/pixel-llm$command"
  if [[ $detach ]]; then
    printf -v command 'nohup sh -c %q > pixel_llm.log 2>&1 < /dev/null &' \
      "$command"
  fi
  everywhere "$command"
fi
