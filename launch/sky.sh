#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs pixel-llm on machines that SkyPilot finds (skypilot.yaml).
#
#   launch/sky.sh --name NAME [options] -- VERB ARGUMENTS...
#
#   --nodes N     default 1
#   --gpus G      of a node, default H100:8
#   --managed     as a managed job, which goes on elsewhere when its machines
#                 are taken away
#   --spot        on such machines, which are cheaper
#   --dry-run     prints the command, and runs nothing
set -euo pipefail

name='' nodes=1 gpus=H100:8 dry='' verb=(sky launch) flags=() cluster=(-c)
while (($#)); do
  case $1 in
    --name) name=$2 && shift 2 ;;
    --nodes) nodes=$2 && shift 2 ;;
    --gpus) gpus=$2 && shift 2 ;;
    --managed) verb=(sky jobs launch) cluster=(-n) && shift ;;
    --spot) flags+=(--use-spot) && shift ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) sed -n '/^#$/,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) echo "$0: $1: no such option; see --help" >&2 && exit 2 ;;
  esac
done
if [[ ! $name || $# == 0 ]]; then
  echo "$0: expected --name and -- VERB ARGUMENTS; see --help" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
printf -v arguments '%q ' "$@"
command=("${verb[@]}" "${cluster[@]}" "$name" --yes --num-nodes "$nodes"
  --gpus "$gpus" ${flags[@]+"${flags[@]}"} --env "ARGUMENTS=$arguments"
  launch/skypilot.yaml)
printf '%q ' "${command[@]}"
echo
[[ $dry ]] || "${command[@]}"
