"""Which kind of device the programs that are traced now will run on; the few places that differ by it ask here.

Not `jax.default_backend()`, because a plan compiles on a CPU for devices that are only described.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

TILE, LANES = 8, 128  # places and channels of a tile of a TPU's memory
_described: ContextVar[str | None] = ContextVar("described", default=None)


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
