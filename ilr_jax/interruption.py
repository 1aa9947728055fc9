"""Ctrl-C, and SIGTERM, by which a machine says that it is about to be taken away: training saves and ends, anything else ends at once.

Not here: the save (`train/loop`), and what the process says and returns (`main`). Between trainings nothing needs saving, because finished
stages are on disk. The same signal a second time meets the system's default and ends the process on the spot.
The handler of SIGTERM is ours because orbax's `reached_preemption` (0.12) is always false without JAX's distributed service.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
ONCE_MORE = b"\nstopping after the step that is under way, which is saved; the same signal once more ends at once\n"


class Interrupted(BaseException):
    """A signal came. No `Exception`, like KeyboardInterrupt: a library that retries must not take it for a failure of its own."""

    def __init__(self, number: int, state: str):
        super().__init__(f"stopped by {SIGNALS[signal.Signals(number)]}, {state}")
        self.code = 128 + number  # what a shell would say of the process


@dataclass
class _Notice:
    number: int = 0
    held: bool = False


_notice = _Notice()


def _come(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    _notice.number = _notice.number or number
    if _notice.held:
        with suppress(OSError):  # nobody may be there to read it: Ctrl-C ends the other programs of a pipe too
            os.write(2, ONCE_MORE)  # a print may be under way
    check()


def check() -> None:
    """Raise Interrupted if a signal came and is not held.

    What the handler raises is lost where Python runs it inside a callback of the garbage collector (JAX has one) or a `__del__`, so
    everything that takes long looks here between its parts.
    """
    if _notice.number and not _notice.held:
        raise Interrupted(_notice.number, "what was under way begins again")


def told(state: str) -> Interrupted:
    """The exception for the signal that came here, or to another process: then as if it had been SIGTERM."""
    return Interrupted(_notice.number or signal.SIGTERM, state)


@contextmanager
def listening() -> Iterator[None]:
    """While inside, a signal raises Interrupted in the main thread, which is where this must be called; one that is ignored stays so."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _come)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _notice.number = 0


@contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """While inside, a signal raises nothing; the value given tells whether one came. Leaving raises Interrupted if it did."""
    _notice.held = True
    try:
        yield lambda: _notice.number != 0
    finally:
        _notice.held = False
    if _notice.number:
        raise told("after the last step of a training")
