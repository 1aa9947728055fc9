#!/usr/bin/env bash
# This machine's CPUs: one process, or several that work as one, to try that out.
#
#   launch/local.sh [--dry-run] [FLAG of ilr_jax.main ...]
#
# Paths are relative to the repository; .venv is set up the first time. Stop it whenever you like; the same command continues.
set -euo pipefail
CONFIG=${CONFIG:-configs/quickstart.py} # the experiment
WORKDIR=${WORKDIR:-runs/quickstart}     # its folder
PROCESSES=${PROCESSES:-1}               # how many
PORT=${PORT:-8476}                      # where they meet, if they are several

# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
options "$@"
number PROCESSES 1
cd "$(dirname "$0")/.."
run make .venv/base
the_line .venv/bin/python ${REST[@]+"${REST[@]}"}
if [ "$PROCESSES" -eq 1 ]; then
  become env JAX_PLATFORMS=cpu "${LINE[@]}"
  exit 0
fi

started=()
trap 'told=yes; kill -TERM ${started[@]+"${started[@]}"}' TERM INT # training saves and ends
for ((number = 0; number < PROCESSES; number++)); do
  several=("--coordinator_address=localhost:$PORT" "--num_processes=$PROCESSES" "--process_id=$number")
  command=(env JAX_PLATFORMS=cpu "${LINE[@]}" "${several[@]}")
  if [ -n "$DRY_RUN" ]; then quoted "${command[@]}"; else
    "${command[@]}" &
    started+=($!)
  fi
done
code=0
for process in ${started[@]+"${started[@]}"}; do
  told=yes
  while [ -n "$told" ]; do # the trap ends a wait before the process has ended
    told='' ended=0
    wait "$process" || ended=$?
  done
  [ "$ended" -eq 0 ] || code=$ended
done
exit "$code"
