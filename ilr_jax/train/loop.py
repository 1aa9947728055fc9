"""The one training loop of SFT, evaluator and DPO: batches made ahead, metrics fetched a step late, saves, early stopping,
and the end that a signal asks for.

Not here: what a step does (`steps`), what is written of it (`journal`), how a state is saved (`checkpoint`). The step number is the whole
data position, so a run that was killed and is started again with the same arguments ends with the same bytes.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ilr_jax import files, hosts, interruption
from ilr_jax.mirror import Mirror
from ilr_jax.train.checkpoint import HERE, Saver, restore
from ilr_jax.train.journal import Journal
from ilr_jax.train.saves import KEEP
from ilr_jax.train.state import Trainable, TrainState
from ilr_jax.train.steps import Step

AHEAD = 2
PAUSE = 20  # times what the last save held the run up, which therefore waits for saves a twentieth of its time at most
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Fitted(NamedTuple):
    """The state at the end, with the best weights where there was validation; steps done; the best validation loss and its step."""

    state: TrainState
    steps: int
    best: float | None
    best_step: int


@dataclass
class _Run:
    """What a save holds: the state, and what early stopping remembers; and when it was saved and how long that held the run up."""

    state: TrainState
    best_tree: Any
    done: int = 0
    best: float | None = None
    best_step: int = 0
    bad: int = 0
    saved: float = field(default_factory=lambda: time.monotonic())
    took: float = 0.0

    def resume(self, folder: Path, mirror: Mirror) -> None:
        found = restore(folder, {"state": self.state, "best": self.best_tree}, mirror)
        if found is not None:
            self.done, trees, note = found
            self.state, self.best_tree = TrainState(*trees["state"]), trees["best"]
            self.best, self.best_step, self.bad = note["best"], note["best_step"], note["bad"]

    def save_is_due(self, seconds: float, steps: int | None) -> bool:
        waited = time.monotonic() - self.saved
        return waited >= max(seconds, PAUSE * self.took) or (steps is not None and self.done % steps == 0)

    def save(self, saver: Saver, wait: bool) -> None:
        note, start = {"best": self.best, "best_step": self.best_step, "bad": self.bad}, time.monotonic()
        saver.begin(self.done, {"state": self.state, "best": self.best_tree}, note)
        if wait:
            saver.finish()
        self.saved = time.monotonic()
        self.took = self.saved - start

    def fitted(self) -> Fitted:
        state = self.state if self.best is None else self.state._replace(trainable=self.best_tree)
        return Fitted(state, self.done, self.best, self.best_step)

    def judge(self, value: float) -> None:
        if self.best is None or value < self.best:
            self.best, self.best_step, self.bad, self.best_tree = value, self.done, 0, _copy(self.state.trainable)
        else:
            self.bad += 1


def _start(state: TrainState, folder: Path, mirror: Mirror, keep_best: bool) -> _Run:
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    run = _Run(state, _copy(state.trainable) if keep_best else {})
    run.resume(folder, mirror)
    return run


def _ahead(make: Callable[[int], Any], start: int, stop: int) -> Generator[Any, None, None]:
    """make(start), ..., make(stop - 1), computed on a thread ahead of their use; an exception of `make` is raised here."""
    pool = ThreadPoolExecutor(1)
    try:
        queue = deque(pool.submit(make, i) for i in range(start, min(start + AHEAD, stop)))
        for i in range(start, stop):
            batch = queue.popleft().result()
            if i + AHEAD < stop:
                queue.append(pool.submit(make, i + AHEAD))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _due(done: int, steps: int, count: int) -> list[int]:
    """Which of `count` equal parts of `steps` end with step `done`, rounded up; the first part is 1."""
    return [i for i in range(1, count + 1) if -(-steps * i // count) == done]


def _report(journal: Journal, late: list[tuple[int, Any]], keep: int) -> None:
    """Fetch and write the metrics that wait, but for the last `keep` steps."""
    while len(late) > keep:
        step, metrics = late.pop(0)
        journal.step(step, hosts.fetched(metrics))


def fit(
    step_fn: Step,
    state: TrainState,
    frozen: Mapping,
    batch_at: Callable[[int], Any],
    steps: int,
    *,
    folder: str | Path,
    name: str = "train",
    put: Callable[[Any], Any] = jax.device_put,
    validate: Callable[[TrainState], float] | None = None,
    validate_every: int = 0,
    patience: int = 1,
    snapshots: int = 10,
    on_snapshot: Callable[[int, Trainable], None] | None = None,
    save_seconds: float = 60.0,
    save_steps: int | None = None,
    keep: int = KEEP,
    mirror: Mirror = HERE,
) -> Fitted:
    """Train from `state` for `steps` steps on `batch_at(0)`, `batch_at(1)`, ..., or go on from the save in `folder`.

    The state is donated, so that it is in memory once: do not use it, or what it was made from, afterwards. `put` moves a batch to the
    devices. `validate` gives a loss every `validate_every` steps and at the end; after `patience` of them that are no better than the best,
    training stops, and the best weights are returned. `on_snapshot(i, trainable)` gets a copy after i/`snapshots` of the steps; after a
    kill it may be called again, with the same. Saves every `save_seconds` (less often where that holds it up) or `save_steps`, in
    `folder` or the bucket of `mirror`, and keeps the newest `keep`. Writes `metrics.jsonl` and `tensorboard/`. A signal to any process
    makes all save after the same step and raise Interrupted, where `interruption` listens. Raises NonFiniteLoss and StorageError.
    """
    if steps < 1 or patience < 1 or (validate and validate_every < 1):
        wanted = "steps and patience >= 1, and validate_every >= 1 with validate"
        raise ValueError(f"{name}: wanted {wanted}; got {steps}, {patience} and {validate_every}")
    folder, late, agreed = Path(folder), [], hosts.voting()
    run = _start(state, folder, mirror, keep_best=validate is not None)
    batches = _ahead(lambda i: put(batch_at(i)), run.done, steps)
    journals, saves = Journal(folder, name, run.done, steps), Saver(folder, mirror, keep)
    with journals as journal, closing(batches), interruption.held() as noticed, saves as saver:
        while run.done < steps and run.bad < patience:
            run.state, metrics = step_fn(run.state, frozen, next(batches))
            run.done += 1
            late.append((run.done, metrics))
            validating = validate and (run.done % validate_every == 0 or run.done == steps)
            parts = _due(run.done, steps, snapshots if on_snapshot else 0)
            # One step stays under way while the metrics of the one before are fetched, unless its result is needed now.
            _report(journal, late, 0 if validating or parts or run.done == steps else 1)
            if validate and validating:
                value = float(validate(run.state))
                journal.validation(run.done, value)
                run.judge(value)
            if on_snapshot:
                for part in parts:
                    on_snapshot(part, _copy(run.state.trainable))
            saving, stopping = agreed(run.state.step, run.save_is_due(save_seconds, save_steps), noticed())
            if saving or stopping:
                _report(journal, late, 0)
                journal.sync()
                run.save(saver, wait=stopping)
            if stopping:
                raise interruption.told(f"{name} is saved after step {run.done}")
    return run.fitted()
