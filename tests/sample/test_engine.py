"""The host's scheduling, on a machine that only counts: no model, so that every order of finishing can be tried."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from ilr_jax.progress import Progress
from ilr_jax.sample.engine import Engine, Machine
from ilr_jax.sample.requests import Request, padded
from ilr_jax.sample.slots import NEVER, Result, busy, worth_filling


class Prompt(NamedTuple):
    positions: np.ndarray


class Cache(NamedTuple):
    prompt: Prompt


class State(NamedTuple):
    cache: Cache
    left: np.ndarray
    said: np.ndarray


class Counter:
    """Slot s answers the prompt [a, b, ...] with [a, copy] after a + copy + 1 looks; it notes what it was asked to do."""

    def __init__(self, slots: int, copies: int, adapters: int):
        self.slots, self.copies, self.adapters = slots, copies, adapters
        self.prefilled: list[list[int]] = []
        self.looks = self.busy = self.computed = 0

    def blank(self, rows: int, length: int) -> State:
        return State(Cache(Prompt(np.zeros((rows, length)))), np.zeros(rows, int), np.zeros((rows, 2), int))

    def admit(self, state: State, fill: Any) -> State:
        self.computed += len(fill.rows.tokens)
        for row, group in zip(fill.rows.tokens, np.arange(len(fill.rows.tokens)) // (len(fill.rows.tokens) // self.adapters), strict=True):
            if row[0] != 99:
                assert row[1] == group, "a prompt was prefilled with another adapter"
                self.prefilled.append(row.tolist())
        for source, target, length, copy in zip(fill.source, fill.target, fill.lengths, fill.copies, strict=True):
            if target < len(state.left):
                assert state.left[target] == 0, "a slot at work was taken"
                row = fill.rows.tokens[source]
                assert fill.rows.segments[source].sum() == length and row[1] == target // (len(state.left) // self.adapters)
                state.left[target], state.said[target] = row[0] + copy + 1, (row[0], copy)
        return state

    def advance(self, state: State, wanted: np.ndarray) -> tuple[State, np.ndarray, Result]:
        done = lambda: (state.left == 0).reshape(self.adapters, -1).sum(axis=1)
        while (state.left > 0).any() and not worth_filling(done(), wanted):
            self.looks, self.busy = self.looks + 1, self.busy + int((state.left > 0).sum())
            state.left[:] = np.maximum(state.left - 1, 0)
        n = len(state.left)
        return state, state.left == 0, Result(state.said, np.full(n, 2), np.zeros(n), np.zeros(n), np.ones(n, bool))

    def run(self, requests: list[Request], context: int = 50) -> list[list[list[int]]]:
        machine = Machine(self.blank, self.admit, self.advance, self.slots, self.copies, window=30, bucket=16)
        with Progress("", len(requests), "prompts", quiet=True) as progress:
            found = Engine(machine, requests, self.adapters, context, pad=99).run(progress)
            assert progress.done == len(requests) and progress.tokens == 2 * len(requests) * self.copies
        return [[completion.tokens for completion in completions] for completions in found]


def prompts(count: int, adapters: int = 1, seed: int = 0) -> list[Request]:
    random = np.random.RandomState(seed)
    return [Request([int(random.randint(0, 20)), i % adapters] + [7] * random.randint(0, 9), i % adapters, i) for i in range(count)]


@pytest.mark.parametrize("slots, copies, adapters", [(8, 1, 1), (8, 3, 1), (12, 2, 3), (64, 1, 2), (3, 1, 3), (5, 5, 1)])
def test_every_request_is_answered_once_in_its_own_slots(slots, copies, adapters):
    counter, requests = Counter(slots, copies, adapters), prompts(23, adapters)
    assert counter.run(requests) == [[[request.tokens[0], copy] for copy in range(copies)] for request in requests]
    assert len(counter.prefilled) == 23  # once each, whatever the number of copies


def test_adapters_of_unequal_load():
    requests = [Request([i % 5, 0], 0, i) for i in range(17)] + [Request([3, 2], 2, 99)]
    assert len(Counter(6, 1, 3).run(requests)) == 18


def test_many_adapters_wait_for_each_other():
    """A prefill has rows for all of them, so it is worth it only if many of these are used."""
    counter, requests = Counter(30, 1, 10), prompts(300, 10)
    assert len(counter.run(requests)) == 300 and len(counter.prefilled) / counter.computed > 0.5
    counter = Counter(10, 1, 5)
    unequal = [Request([i % 7, k], k, 100 * k + i) for k, n in enumerate((17, 3, 9, 1, 5)) for i in range(n)]
    assert counter.run(unequal) == [[[request.tokens[0], 0]] for request in unequal]


def test_freed_slots_are_taken_while_others_work():
    counter = Counter(16, 1, 1)
    counter.run(prompts(200))
    assert counter.busy / (counter.looks * 16) > 0.85


@pytest.mark.parametrize(
    "done, wanted, on",
    [
        ([1, 1, 1, 1], [NEVER, NEVER], False),  # nobody is at work
        ([1, 1, 1, 0], [NEVER, NEVER], True),  # no prompts wait: to the end
        ([1, 0, 0, 0], [2, NEVER], True),
        ([1, 1, 0, 0], [2, NEVER], False),
        ([1, 1, 0, 0], [NEVER, 1], True),  # another group's free slots are of no use
        ([1, 0, 1, 0], [2, 1], False),  # one group of two suffices
        ([1, 0, 0, 0, 0], [1, 1, 1, 1, 1], True),  # one of five is too few
        ([1, 0, 1, 0, 1], [1, 1, 1, 1, 1], False),
        ([1, 0, 0, 0, 0], [1, 1, NEVER, NEVER, NEVER], False),  # groups without prompts left do not count
    ],
)
def test_decoding_goes_on_while_somebody_works_and_nobody_waits_for_a_free_slot(done, wanted, on):
    assert bool(busy(jnp.array(done, bool), jnp.array(wanted, jnp.int32))) is on


@pytest.mark.parametrize("count, group", [(3, 4), (4, 4), (5, 8), (1000, 256)])
def test_few_requests_get_few_slots(count, group):
    counter = Counter(256, 1, 1)
    machine = Machine(counter.blank, counter.admit, counter.advance, 256, 1, window=30, bucket=16)
    assert Engine(machine, prompts(count), 1, 50, 99).group == group


def test_too_few_slots_for_the_copies_of_a_prompt_are_refused():
    with pytest.raises(ValueError, match="wanted at least 6 for each of 2 adapters, got 8"):
        Counter(8, 6, 2).run(prompts(4, 2))


def test_padded_lengths_are_few_and_close():
    lengths = range(1, 4097)
    assert all(n <= padded(n, 32) <= max(n + 31, 1.25 * n) for n in lengths)
    assert len({padded(n, 32) for n in lengths}) <= 32
