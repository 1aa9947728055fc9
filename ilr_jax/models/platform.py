"""Which kind of device the programs that are traced now will run on; the few places that differ by it ask here.

Not `jax.default_backend()`, because a plan compiles on a CPU for devices that are only described.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

TILE, LANES = 8, 128  # places and channels of a tile of a TPU's memory
_described: ContextVar[str | None] = ContextVar("described", default=None)
SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # its name, and the one that it had; JAX refuses both at once


def take_memory() -> None:
    """Let this process have 92 % of a GPU's memory, unless the environment says how much; before JAX makes its devices.

    Of itself JAX takes 75 % (the newest may take more later), and the evaluator's training wants more than that of 80 GB.
    """
    if not any(name in os.environ for name in SHARES):
        os.environ[SHARES[0]] = "0.92"


def platform() -> str:
    """cpu, gpu or tpu."""
    return _described.get() or jax.default_backend()


@contextmanager
def described(kind: str | None) -> Iterator[None]:
    """Within it, `kind` is what is traced for; None: this process's own devices."""
    token = _described.set(kind)
    try:
        yield
    finally:
        _described.reset(token)
