#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
#
# Submits a run to SLURM; its processes find each other by SLURM's variables.
#
#   launch/slurm.sh [options] -- VERB ARGUMENTS...
#
#   --nodes N      default 1
#   --gpus N       of a node, default 8; 0 for none
#   --per gpu      a process for each GPU; default one for each node
#   --time T       default 24:00:00
#   --sbatch FLAG  a further line of #SBATCH, as --sbatch --partition=h100
#   --dry-run      prints the script that it would submit
#
# Two minutes before the time is up all processes save, and the job goes back
# into the queue; so it does after a preemption. PIXEL_LLM names the command.
set -euo pipefail

nodes=1 gpus=8 per=node time=24:00:00 dry='' lines=''
while (($#)); do
  case $1 in
    --nodes) nodes=$2 && shift 2 ;;
    --gpus) gpus=$2 && shift 2 ;;
    --per) per=$2 && shift 2 ;;
    --time) time=$2 && shift 2 ;;
    --sbatch) lines+=$'\n'"#SBATCH $2" && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    -h | --help) sed -n '/^#$/,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    *) echo "$0: $1: no such option; see --help" >&2 && exit 2 ;;
  esac
done
if (($# == 0)) || [[ $per != gpu && $per != node ]]; then
  echo "$0: expected --per gpu or node, and -- VERB ARGUMENTS; see --help" >&2
  exit 2
fi
tasks=1
if [[ $per == gpu ]]; then tasks=$gpus; fi
if ((gpus)); then lines+=$'\n'"#SBATCH --gpus-per-node=$gpus"; fi
printf -v command ' %q' "${PIXEL_LLM:-pixel-llm}" "$@"

script="#!/bin/bash
#SBATCH --job-name=pixel-llm
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pixel-llm-%j.log$lines
srun --label$command
code=\$?
# Saved after a signal, or stood still: the same command goes on.
case \$code in 75 | 76) scontrol requeue \"\$SLURM_JOB_ID\" ;; esac
exit \$code"
if [[ $dry ]]; then
  printf '%s\n' "$script"
else
  sbatch <<<"$script"
fi
