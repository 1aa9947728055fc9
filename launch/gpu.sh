#!/usr/bin/env bash
# One machine with NVIDIA GPUs: one process, whether there is one GPU or eight.
#
#   launch/gpu.sh [--dry-run] [FLAG of ilr_jax.main ...]
#
# Paths are relative to the repository; .venv is set up the first time. Stop it whenever you like; the same command continues.
set -euo pipefail
CONFIG=${CONFIG:-configs/gsm8k.py} # the experiment
WORKDIR=${WORKDIR:-runs/gsm8k}     # its folder
CUDA=${CUDA:-cuda13}               # cuda12 for older drivers

# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
options "$@"
cd "$(dirname "$0")/.."
run make ".venv/$CUDA"
the_line .venv/bin/python ${REST[@]+"${REST[@]}"}
become "${LINE[@]}"
