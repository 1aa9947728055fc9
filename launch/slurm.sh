#!/usr/bin/env bash
# SLURM: submits one job with a process on each of several GPU nodes, which see one file system.
#
#   launch/slurm.sh [--dry-run] [FLAG of ilr_jax.main ...]
#
# Run it where jobs are submitted; paths are relative to the repository, and .venv is set up the first time. Jobs of one name run one after
# another, each going on from the one before: submit as many as the time limit makes necessary. A preempted job queues again by itself
# where the cluster is set to.
set -euo pipefail
CONFIG=${CONFIG:-configs/gsm8k.py} # the experiment
WORKDIR=${WORKDIR:-runs/gsm8k}     # its folder, seen by all nodes
CUDA=${CUDA:-cuda13}               # cuda12 for older drivers
NAME=${NAME:-ilr}                  # of the job
NODES=${NODES:-1}                  # machines
GPUS=${GPUS:-8}                    # in each
TIME=${TIME:-24:00:00}             # limit; two minutes before it, training saves and ends
PARTITION=${PARTITION:-}           # empty: the default one
ACCOUNT=${ACCOUNT:-}               # empty: the default one

# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
options "$@"
number NODES 1
number GPUS 1
cd "$(dirname "$0")/.."
run make ".venv/$CUDA"
# In a SLURM task JAX takes one GPU, unless told that all of them are this one process's.
devices=$(seq -s, 0 $((GPUS - 1)))
the_line .venv/bin/python --distributed ${REST[@]+"${REST[@]}"}
command=$(quoted srun --kill-on-bad-exit=1 --cpu-bind=none env "JAX_LOCAL_DEVICE_IDS=$devices" "${LINE[@]}")
run sbatch "--job-name=$NAME" --dependency=singleton "--nodes=$NODES" --ntasks-per-node=1 "--gres=gpu:$GPUS" --exclusive --mem=0 \
  "--time=$TIME" --signal=TERM@120 --requeue --open-mode=append "--output=$NAME-%j.log" \
  ${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"} "--wrap=$command"
