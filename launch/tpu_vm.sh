#!/usr/bin/env bash
# Cloud TPU VMs, of one host or many, by gcloud: one process on every host.
#
#   launch/tpu_vm.sh [--dry-run] create     make the TPU
#   launch/tpu_vm.sh [--dry-run] setup      bring the committed source to all hosts and install it
#   launch/tpu_vm.sh [--dry-run] run [FLAG of ilr_jax.main ...]      start the experiment, or continue it, in the background
#   launch/tpu_vm.sh [--dry-run] resume [FLAG of ilr_jax.main ...]   after a preemption: delete, create, setup and run
#   launch/tpu_vm.sh [--dry-run] logs       what the first host says, as it comes
#   launch/tpu_vm.sh [--dry-run] stop       training saves and ends
#   launch/tpu_vm.sh [--dry-run] fetch      copy WORKDIR to TO
#   launch/tpu_vm.sh [--dry-run] delete     give the TPU back, with the disks of its hosts
#
# Many hosts need a WORKDIR that all of them see, and a preempted machine loses its disk: for either, WORKDIR=gs://BUCKET/NAME, or SHARE and a
# WORKDIR in /mnt/ilr.
set -euo pipefail
CONFIG=${CONFIG:-configs/gsm8k.py}           # the experiment
WORKDIR=${WORKDIR:-runs/gsm8k}               # its folder on the hosts; a relative one lies in ~/ilr_jax
NAME=${NAME:-ilr}                            # of the TPU
ZONE=${ZONE:-}                               # empty: the one that gcloud is set to
PROJECT=${PROJECT:-}                         # empty: the one that gcloud is set to
ACCELERATOR=${ACCELERATOR:-v5litepod-8}      # type and size, as gcloud names them
RUNTIME=${RUNTIME:-}                         # the machine image; empty: the one for that type
SPOT=${SPOT:-}                               # yes: cheaper, and taken away at any time
SHARE=${SHARE:-}                             # an NFS export, SERVER:/FOLDER, mounted at /mnt/ilr on all hosts
PYTHON_VERSION=${PYTHON_VERSION:-3.12}       # for the hosts, whose own is too old
TO=${TO:-runs/fetched}                       # where fetch puts the results

# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
where=(${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"})

tpu() { run gcloud compute tpus tpu-vm "$@" ${where[@]+"${where[@]}"}; }

# on WORKERS COMMAND: a line for the shell of these hosts.
on() { tpu ssh "$NAME" "--worker=$1" "--command=$2"; }

# image: the one for the type of TPU, or an error.
image() {
  if [ -n "$RUNTIME" ]; then
    echo "$RUNTIME"
    return
  fi
  case $ACCELERATOR in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      echo "ACCELERATOR: wanted v5litepod-N, v5p-N or v6e-N, got '$ACCELERATOR'; for another type, RUNTIME has to name its image" >&2
      return 2
      ;;
  esac
}

create() {
  tpu create "$NAME" "--accelerator-type=$ACCELERATOR" "--version=$VERSION" ${SPOT:+--spot}
}

setup() {
  run mkdir -p runs
  run git archive --format=tar.gz --output=runs/source.tgz HEAD
  tpu scp runs/source.tgz "$NAME:source.tgz" --worker=all
  on all "mkdir -p ilr_jax && tar -xzf source.tgz -C ilr_jax && cd ilr_jax && python3 -m pip install --quiet --user uv \
&& python3 -m uv venv --allow-existing --python $(quoted "$PYTHON_VERSION") .venv \
&& python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
  # A fresh machine is still installing updates, for which apt waits; an export may give root no rights.
  local apt='sudo apt-get -o DPkg::Lock::Timeout=600 --yes'
  [ -z "$SHARE" ] || on all "$apt update && $apt install nfs-common && sudo mkdir -p /mnt/ilr \
&& (mountpoint -q /mnt/ilr || sudo mount -t nfs $(quoted "$SHARE") /mnt/ilr) && (test -w /mnt/ilr || sudo chown \"\$(id -u)\" /mnt/ilr)"
}

# As a unit of systemd, which outlives the connection and sends SIGTERM when the machine goes down, while network and share are still there.
# It reads $$ as $, and $NAME as a variable.
start() {
  the_line '' --distributed "$@"
  LINE=("${LINE[@]//\$/\$\$}")
  local unit="--unit=ilr --collect --property=TimeoutStopSec=600 --property=After=network-online.target"
  on all "cd ilr_jax && sudo systemd-run $unit${SHARE:+ --property=RequiresMountsFor=/mnt/ilr} --uid=\"\$(id -u)\" --working-directory=\"\$PWD\" \
\"\$PWD\"/.venv/bin/python $(quoted "${LINE[@]:1}")"
}

fetch() {
  case $WORKDIR in gs://*)
    run mkdir -p "$TO"
    run gcloud storage rsync --recursive '--exclude=^partial/' "$WORKDIR" "$TO"
    return
    ;;
  esac
  on 0 "cd ilr_jax && tar -czf ~/fetched.tgz -C $(quoted "$WORKDIR") ."
  run mkdir -p runs "$TO"
  tpu scp "$NAME:fetched.tgz" runs/fetched.tgz --worker=0
  run tar -xzf runs/fetched.tgz -C "$TO"
}

remove() { tpu delete "$NAME" --quiet; }

# lasting: an error unless the workdir outlives the machine.
lasting() {
  case $SHARE:$WORKDIR in *:gs://* | ?*:/mnt/ilr/*) return ;; esac
  echo "resume deletes the TPU with its disks: wanted WORKDIR=gs://BUCKET/NAME, or SHARE and a WORKDIR in /mnt/ilr, got WORKDIR=$WORKDIR" >&2
  exit 2
}

options "$@"
cd "$(dirname "$0")/.."
action=${REST[0]-}
set -- ${REST[@]+"${REST[@]:1}"}
case $action in
  run | resume) ;;
  *)
    if [ $# -gt 0 ]; then
      echo "$action takes no further words, got: $(quoted "$@")" >&2
      exit 2
    fi
    ;;
esac
case $action in create | resume) VERSION=$(image) ;; esac
case $SPOT in
  '' | yes) ;;
  *)
    echo "SPOT: wanted yes or nothing, got '$SPOT'" >&2
    exit 2
    ;;
esac
case $action in
  create) create ;;
  setup) setup ;;
  run) start "$@" ;;
  resume)
    lasting
    # Gone already, where the try before this one found no room for a new one.
    # shellcheck disable=SC2310  # that it may fail is the question
    if tpu describe "$NAME" '--format=value(state)'; then remove; fi
    create
    setup
    start "$@"
    ;;
  logs) on 0 'sudo journalctl --unit=ilr --output=cat --follow' ;;
  stop) on all 'sudo systemctl stop ilr' ;;
  fetch) fetch ;;
  delete) remove ;;
  *)
    help >&2
    echo "wanted create, setup, run, resume, logs, stop, fetch or delete; got '$action'" >&2
    exit 2
    ;;
esac
