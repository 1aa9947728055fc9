"""SIGTERM, by which a machine says that it is about to be taken away: training saves and ends, anything else ends at once.

Not here: the save (`train/loop`), and what the process says and returns (`main`). Between trainings nothing needs saving, because finished
stages are on disk. A second SIGTERM meets the system's default and ends the process on the spot.
The handler is ours because orbax's `reached_preemption` (0.12) is always false without JAX's distributed service.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Preempted(BaseException):
    """SIGTERM came. No `Exception`, like KeyboardInterrupt: a library that retries must not take it for a failure of its own."""


@dataclass
class _Notice:
    came: bool = False
    held: bool = False


_notice = _Notice()


def _come(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _notice.came = True
    if not _notice.held:
        raise Preempted("nothing was under way that needs saving")


@contextmanager
def listening() -> Iterator[None]:
    """While inside, SIGTERM raises Preempted in the main thread, which is where this must be called."""
    before = signal.signal(signal.SIGTERM, _come)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _notice.came = False


@contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM raises nothing; the value given tells whether it came. Leaving raises Preempted if it did."""
    _notice.held = True
    try:
        yield lambda: _notice.came
    finally:
        _notice.held = False
    if _notice.came:
        raise Preempted("after the last step of a training")
