"""The host's side of decoding many requests: which prompt goes to which slot when, and whose result is whose.

Short prompts first; a prompt is prefilled once for all its samples; slots that finish are taken again. What a slot does is a `Machine` of
device functions: `rollout` draws samples, `beam` searches. K adapters own K equal groups of slots, and all groups decode in one pass.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilr_jax import hosts
from ilr_jax.progress import Progress
from ilr_jax.sample import slots
from ilr_jax.sample.requests import Completion, Request, by_adapter, padded, prompt_rows
from ilr_jax.sample.slots import NEVER, Fill, Result
from ilr_jax.sharding import Layout, row_multiple

PREFILLS = 8  # batches of prompts that fill a group's slots


@dataclass(frozen=True)
class Machine:
    """What a slot does: `blank(slots, prompt length)` makes a state, `admit(state, fill)` starts prompts, `advance(state, wanted)` decodes.

    `advance` returns the state, which slots are free and what stands in all of them. `rows` is how many slots to have at most, `copies` how
    many of them a prompt takes, `window` the limit on new tokens; `layout` splits slots over devices.
    """

    blank: Callable[[int, int], Any]
    admit: Callable[[Any, Fill], Any]
    advance: Callable[[Any, np.ndarray], tuple[Any, Any, Any]]
    rows: int
    copies: int
    window: int
    bucket: int
    layout: Layout | None = None


class Engine:
    """One job's slots, queues and results. Slot s belongs to adapter s // (slots / K)."""

    def __init__(self, machine: Machine, requests: Sequence[Request], adapters: int, context: int, pad: int):
        self.machine, self.requests, self.context, self.pad = machine, requests, context, pad
        self.queues = [deque(queue) for queue in by_adapter(requests, adapters)]
        self.group = self._group_size()
        self.batch = max(
            1, self.group // machine.copies // PREFILLS
        )  # prompts of a group per prefill: few enough that freed slots wait little
        self.owners: list[tuple[int, int] | None] = [None] * (self.group * adapters)
        self.found: list[list[Completion | None]] = [[None] * machine.copies for _ in requests]
        self.length = 0
        self.state: Any = None

    def _group_size(self) -> int:
        """Slots per adapter: halved while the longest queue fits the half, so that small jobs do not pay for empty slots.

        All groups together divide evenly over the devices that share them.
        """
        most, copies = self.machine.rows // len(self.queues), self.machine.copies
        if most < copies:
            wanted = f"at least {copies} for each of {len(self.queues)} adapters"
            raise ValueError(f"slots (of beam search: prompts): wanted {wanted}, got {self.machine.rows}; raise it")
        needed = max(len(queue) for queue in self.queues) * copies
        while most // 2 >= max(needed, copies):
            most //= 2
        multiple = row_multiple(self.machine.layout, len(self.queues))
        return -(-most // multiple) * multiple

    def run(self, progress: Progress) -> list[list[Completion]]:
        """Each request's completions, in order."""
        while any(self.queues) or any(owner is not None for owner in self.owners):
            while self._can_admit():
                self._admit()
            self.state, *seen = self.machine.advance(self.state, self._wanted())
            done, result = hosts.fetched(seen)
            self._collect(done, result, progress)
        return [[completion for completion in found if completion is not None] for found in self.found]

    def _free(self, adapter: int) -> list[int]:
        return [s for s in range(adapter * self.group, (adapter + 1) * self.group) if self.owners[s] is None]

    def _wanted(self) -> np.ndarray:
        """Free slots [K] that a group's next prompts take."""
        wanted = [min(self.batch, len(queue)) * self.machine.copies if queue else NEVER for queue in self.queues]
        return np.array(wanted, np.int32)

    def _can_admit(self) -> bool:
        free = np.array([len(self._free(k)) for k in range(len(self.queues))])
        return bool(slots.worth_filling(free, self._wanted()))

    def _admit(self) -> None:
        """Prefills up to `batch` prompts of each group and gives them their slots."""
        rows: list[int | None] = []
        entries = []
        for k, queue in enumerate(self.queues):
            free = self._free(k)
            taken = [queue.popleft() for _ in range(min(self.batch, len(queue), len(free) // self.machine.copies))]
            for j, request in enumerate(taken):
                for copy in range(self.machine.copies):
                    slot = free.pop()
                    self.owners[slot] = (request, copy)
                    entries.append((len(rows) + j, slot, request, copy))
            rows += taken + [None] * (self.batch - len(taken))
        fill = self._fill(rows, entries)
        self.state = self.machine.admit(self._roomy(fill.rows.tokens.shape[1]), fill)

    def _fill(self, rows: list[int | None], entries: list[tuple[int, int, int, int]]) -> Fill:
        prompts = [[self.pad] if row is None else self.requests[row].tokens for row in rows]
        self.length = max(self.length, padded(max(map(len, prompts)), self.machine.bucket))
        lengths = [len(self.requests[request].tokens) for _, _, request, _ in entries]
        columns = [
            [source for source, _, _, _ in entries],
            [slot for _, slot, _, _ in entries],
            lengths,
            [min(self.machine.window, self.context - length) for length in lengths],
            [self.requests[request].id for _, _, request, _ in entries],
            [copy for _, _, _, copy in entries],
        ]
        room = len(rows) * self.machine.copies - len(entries)
        unused = (0, len(self.owners), 1, 0, 0, 0)
        padding = [[value] * room for value in unused]
        arrays = [
            np.array(column + rest, np.int64).astype(np.uint32).astype(np.int32) for column, rest in zip(columns, padding, strict=True)
        ]
        return Fill(prompt_rows(prompts, self.length, self.pad), *arrays)

    def _roomy(self, length: int) -> Any:
        """The state, made or widened for prompts of `length` tokens."""
        if self.state is None:
            return self.machine.blank(len(self.owners), length)
        return self.state if self.state.cache.prompt.positions.shape[1] >= length else slots.widen(self.state, length)

    def _collect(self, done: np.ndarray, result: Result, progress: Progress) -> None:
        for slot in np.flatnonzero(done):
            owner = self.owners[slot]
            if owner is None:
                continue
            request, copy = owner
            self.owners[slot] = None
            tokens = result.tokens[slot, : result.length[slot]].tolist()
            score = float(result.score[slot])
            self.found[request][copy] = Completion(tokens, float(result.log_prob[slot]), bool(result.ended[slot]), score)
            progress.advance(int(None not in self.found[request]), tokens=len(tokens))
