"""Progress of a long job: a bar on a terminal; elsewhere a plain line at the start, at every tenth of the way and every half minute.

It prints, and looks for signals: metrics go to files through their own code. Bars are drawn by `rich`.
"""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ilr_jax import interruption

LINES, SECONDS = 10, 30
ROOMY = 110  # columns of a terminal
_muted = False


def mute() -> None:
    """Say nothing of any job from now on: of several processes one tells of what all of them do."""
    global _muted
    _muted = True


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


class Progress:
    """`with Progress("sft", 500, "steps") as progress: ... progress.advance(1, tokens=4096, loss=0.7)`.

    Shows done/total, units per second, tokens per second (where `tokens` are given), the latest figures, elapsed time and ETA. `total` may
    be None where it is unknown; `start` units were done before, and count for no rate. Writes to `stream`, by default standard error;
    `quiet` writes nothing.
    """

    def __init__(self, name: str, total: int | None, unit: str, *, start: int = 0, stream: Any = None, quiet: bool = False):
        self.name, self.total, self.unit = name, total, unit
        self.stream, self.quiet = stream or sys.stderr, quiet or _muted
        self.done = self.before = start
        self.tokens = 0
        self.figures: dict[str, Any] = {}
        self._start = self._said_at = time.monotonic()
        self._said = start
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self._start = self._said_at = time.monotonic()
        if not self.quiet and self.stream.isatty():
            console = Console(file=self.stream)
            wide = console.width >= ROOMY  # else the figures, which say more, would be cut
            columns = (
                TextColumn("{task.description}"),
                *([BarColumn()] * wide),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            ends = (*([TimeElapsedColumn()] * wide), TimeRemainingColumn())
            self._bar = Bar(*columns, *ends, console=console, refresh_per_second=4)
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.done, figures="")
            self._bar.start()
        elif not self.quiet:  # compiling may take minutes before the first unit is done
            self._print(f"{self.name}: {self._count()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.done != self._said:
            self._line()

    def advance(self, n: int = 1, *, tokens: int = 0, **figures: Any) -> None:
        """`n` more units are done, which dealt with `tokens` tokens; `figures` replace the ones shown. Interrupted if a signal came."""
        interruption.check()
        self.done, self.tokens = self.done + n, self.tokens + tokens
        self.figures.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, advance=n, figures=self.summary())
        elif self._line_is_due():
            self._line()

    def summary(self) -> str:
        """Rates and figures, as `12.3 steps/s, 4096 tokens/s, loss 0.71`."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rates = [f"{(self.done - self.before) / elapsed:.3g} {self.unit}/s"]
        rates += [f"{self.tokens / elapsed:,.0f} tokens/s"] if self.tokens else []
        return ", ".join(rates + [f"{key} {_show(value)}" for key, value in self.figures.items()])

    def _line_is_due(self) -> bool:
        """After each tenth of the total, and where the last line is half a minute old."""
        tenth = self.total is not None and self.done * LINES // max(self.total, 1) > self._said * LINES // max(self.total, 1)
        return tenth or time.monotonic() - self._said_at >= SECONDS

    def _count(self) -> str:
        return f"{self.done}{'' if self.total is None else f'/{self.total}'} {self.unit}"

    def _line(self) -> None:
        self._said, self._said_at = self.done, time.monotonic()
        if self.quiet:
            return
        elapsed = self._said_at - self._start
        made = self.done - self.before
        left = f", {_clock(elapsed / made * (self.total - self.done))} left" if self.total and made else ""
        self._print(f"{self.name}: {self._count()}, {self.summary()}, {_clock(elapsed)} elapsed{left}")

    def _print(self, line: str) -> None:
        """Once nobody reads the lines any more, as at the other end of a broken pipe, the work goes on without them."""
        try:
            print(line, file=self.stream, flush=True)
        except BrokenPipeError:
            self.quiet = True
