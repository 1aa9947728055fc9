"""Several real processes on this machine, as tests start them and read what they said."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What a cluster sets must not be found here, and one device a process is enough.
CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_COORDINATOR")
ENV = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTERS)} | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def free_address() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def begin(script: str, *words: str, devices: int = 1, home: Path | None = None) -> subprocess.Popen:
    """A process of `script`, or of the command itself where there is none; with a `home` it is on a machine of its own."""
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    ours = ["-c", script] if script else ["-m", "ilr_jax.main", "--config=configs/quickstart.py", "--workdir=nowhere"]
    command = [sys.executable, "-W", "ignore", *ours, *words]
    env = ENV | {"XLA_FLAGS": xla} | ({**os.environ, "XLA_FLAGS": xla, "HOME": str(home)} if home else {})
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, range(os.cpu_count() or 1))  # not only the core of a worker of pytest-xdist
    return process


def ended(process: subprocess.Popen) -> tuple[str, str]:
    """What it said on both streams, after it has ended."""
    try:
        return process.communicate(timeout=240)
    finally:
        process.kill()


def flags(address: str, count: int, number: int) -> list[str]:
    return [f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={number}"]
