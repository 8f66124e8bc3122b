#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs pixel-llm as several processes of one cluster on this machine.
#
#   launch/local.sh [-n N] [--gpus N] [--port PORT] [--dry-run] VERB ARGUMENTS...
#
#   -n N          processes, default 2
#   --gpus N      GPUs that the processes share out, each its part; default 0
#   --port PORT   where process 0 listens; default one by chance
#   --dry-run     prints the commands, and runs none
#
# Lines of output begin with the process's number. SIGINT and SIGTERM go to all.
# Ends with the first exit code that is not 0. PIXEL_LLM names the command.
set -euo pipefail

count=2 gpus=0 dry='' port=$((20000 + RANDOM % 10000))
while (($#)); do
  case $1 in
    -n) count=$2 && shift 2 ;;
    --gpus) gpus=$2 && shift 2 ;;
    --port) port=$2 && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) sed -n '/^#$/,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    -*) echo "$0: $1: no such option; see --help" >&2 && exit 2 ;;
    *) break ;;
  esac
done
if (($# == 0)); then
  echo "$0: expected what pixel-llm is to do; see --help" >&2
  exit 2
fi
if ((gpus % count)); then
  echo "$0: $gpus GPUs can not be shared out to $count processes" >&2
  exit 2
fi

pids=()
for ((i = 0; i < count; i++)); do
  command=("${PIXEL_LLM:-pixel-llm}" "$@" --coordinator "127.0.0.1:$port"
    --num-processes "$count" --process-id "$i")
  if ((gpus)); then
    each=$((gpus / count))
    command+=(--local-devices "$(seq -s, $((i * each)) $((i * each + each - 1)))")
  fi
  if [[ $dry ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" > >(sed -u "s/^/[$i] /") 2>&1 &
    pids+=($!)
  fi
done
((${#pids[@]})) || exit 0
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
  while true; do
    wait "$pid" && status=0 || status=$?
    # A signal to this script ends `wait`, not the process.
    kill -0 "$pid" 2>/dev/null || break
  done
  ((code)) || code=$status
done
exit "$code"
