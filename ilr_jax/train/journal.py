"""What a training run says of itself: a line per step in `metrics.jsonl`, TensorBoard beside it, and progress on the screen.

Not here: what is measured (`steps`). Times go to TensorBoard and the screen only, so that `metrics.jsonl` of a run that was killed and
continued is the same file, byte for byte.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from ilr_jax import files, hosts
from ilr_jax.progress import Progress

FLAGS = ("finite", "active")


class NonFiniteLoss(ValueError):
    """A loss or gradient is NaN or infinite; the message names the step and the adapter."""


def _cut(path: Path, start: int) -> None:
    """Drop the lines after step `start`, and a last line that a kill cut short."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n") or json.loads(line)["step"] > start:
            break
        kept.append(line)
    files.write_bytes(path, b"".join(kept))


class Journal:
    """`with Journal(folder, "sft", start, steps) as journal: journal.step(1, metrics)`; `start` steps are done already."""

    def __init__(self, folder: Path, name: str, start: int, steps: int):
        self.name, self._leads = name, hosts.leads()
        self.path = folder / "metrics.jsonl" if self._leads else Path(os.devnull)  # what one process writes is enough
        if self._leads:
            _cut(self.path, start)
        self._progress = Progress(name, steps, "steps", start=start)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, flush_secs=10, write_to_disk=self._leads)
        self._time = time.monotonic()

    def __enter__(self) -> "Journal":
        self._file = open(self.path, "ab")  # noqa: SIM115 (closed by __exit__)
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, trace)
        self._board.close()
        self._file.close()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics ([K] each) of a step; NonFiniteLoss where an adapter that took part in it is not finite."""
        active = np.asarray(metrics["active"])
        self._check(step, metrics, active)
        values = {name: np.asarray(x).tolist() for name, x in metrics.items() if name not in FLAGS}
        values = {name: [v if on else None for v, on in zip(row, active, strict=True)] for name, row in values.items()}
        self._write(step, values)
        used = [v for v in values["loss"] if v is not None]
        tokens, now = sum(v or 0 for v in values["tokens"]), time.monotonic()
        took, self._time = max(now - self._time, 1e-9), now
        self._board.add_scalar("step_time_sec", took, step)
        self._board.add_scalar("tokens_per_sec", tokens / took, step)
        self._progress.advance(1, tokens=tokens, loss=sum(used) / max(len(used), 1))

    def validation(self, step: int, value: float) -> None:
        """Write a validation loss; NonFiniteLoss where it is not finite."""
        if not math.isfinite(value):
            raise NonFiniteLoss(f"{self.name}: validation loss {value} after step {step}; lower the learning rate or look at the data")
        self._write(step, {"validation": [value]})

    def sync(self) -> None:
        """Make the lines durable: a save must never be ahead of them."""
        if self._leads:
            with files.explained(self.path):
                os.fsync(self._file.fileno())

    def _check(self, step: int, metrics: Mapping[str, Any], active: np.ndarray) -> None:
        for k in np.flatnonzero(active & ~np.asarray(metrics["finite"])):
            loss, norm = (float(np.asarray(metrics[name])[k]) for name in ("loss", "grad_norm"))
            raise NonFiniteLoss(
                f"{self.name}: adapter {k} has loss {loss} and gradient norm {norm} at step {step}, wanted finite numbers; that step "
                "was not applied. Lower the learning rate, or look at the batch of that step"
            )

    def _write(self, step: int, values: Mapping[str, list]) -> None:
        with files.explained(self.path):
            self._file.write(files.encode({"step": step, **values}, str(self.path)) + b"\n")
            self._file.flush()
        for name, row in values.items():
            for k, value in enumerate(row):
                if value is not None:
                    self._board.add_scalar(name if len(row) == 1 else f"{name}/{k}", value, step)
