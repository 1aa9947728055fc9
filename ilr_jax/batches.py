"""Labels, comparisons and preferences as padded batches in numpy.

Every batch is a pure function of (data, seed, step), so resuming at a step needs no iterator state. Shapes come from a short list of
lengths, so each jitted step compiles once per shape. With K data sets (one per adapter) the rows of data set k are the k-th group of the
batch; a data set that is used up gives empty rows (units 0), which leave its adapter untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ilr_jax.types import Batch, ClassBatch, PairBatch, Rows

Normalize = Literal["sequence", "token"]
Sample = tuple[list[int], list[int]]  # prompt ids, answer ids with EOS


def bucket(length: int) -> int:
    """The padded length for `length`: multiples of 32 to 256, then of 128, so that few shapes are compiled and little is padded."""
    step = 32 if length <= 256 else 128
    return max(step, -(-length // step) * step)


def rows_of(sequences: Sequence[Sequence[int]], pad: int, length: int) -> Rows:
    """Right-padded rows, one document each; an empty sequence is a row of padding."""
    tokens = np.full((len(sequences), length), pad, np.int32)
    segments = np.zeros_like(tokens)
    for i, ids in enumerate(sequences):
        tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
    return Rows(tokens, np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape) * segments, segments)


def _cut(sample: Sample, max_length: int | None) -> Sample:
    """The sample within `max_length` tokens (0 or None: any length); it loses its end, and all of it where no answer token is left."""
    prompt, answer = sample
    kept = answer[: max(0, max_length - len(prompt))] if max_length else answer
    return (prompt, kept) if kept else ([], [])


def documents(rows: Sequence[Sequence[Sample]], pad: int, normalize: Normalize, length: int, width: int) -> Batch:
    """Rows of one or several samples each, `length` tokens long with room for `width` predictions; the loss is on answer tokens and EOS."""
    n = len(rows)
    tokens = np.full((n, length), pad, np.int32)
    segments, positions = (np.zeros((n, length), np.int32) for _ in range(2))
    places, targets = (np.zeros((n, width), np.int32) for _ in range(2))
    weights, units = np.zeros((n, width), np.float32), np.zeros(n, np.float32)
    for i, row in enumerate(rows):
        start = used = 0
        for number, (prompt, answer) in enumerate(row, 1):
            size, m = len(prompt) + len(answer), len(answer)
            here, these = slice(start, start + size), slice(used, used + m)
            tokens[i, here], segments[i, here], positions[i, here] = prompt + answer, number, np.arange(size)
            places[i, these], targets[i, these] = start + len(prompt) - 1 + np.arange(m), answer
            weights[i, these] = 1 / max(m, 1) if normalize == "sequence" else 1
            units[i] += min(m, 1) if normalize == "sequence" else m
            start, used = start + size, used + m
    return Batch(Rows(tokens, positions, segments), places, targets, weights, units)


def completions(samples: Sequence[Sample], pad: int, normalize: Normalize, max_length: int | None = None) -> Batch:
    """One sample a row, within `max_length` tokens."""
    samples = [_cut(sample, max_length) for sample in samples]
    longest = [max(map(len, column)) for column in ([p + a for p, a in samples], [a for _, a in samples])]
    return documents([[sample] for sample in samples], pad, normalize, bucket(longest[0]), bucket(longest[1]))


@dataclass(frozen=True)
class Epochs:
    """Which items of K data sets step i takes: seeded shuffle per epoch and data set, the last batch of an epoch is short."""

    sizes: tuple[int, ...]
    batch: int
    epochs: int
    seed: int

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"every data set to train on needs at least one row; their sizes are {list(self.sizes)}")

    @property
    def per_epoch(self) -> tuple[int, ...]:
        return tuple(-(-size // self.batch) for size in self.sizes)

    @property
    def totals(self) -> tuple[int, ...]:
        """Optimiser steps of each data set."""
        return tuple(steps * self.epochs for steps in self.per_epoch)

    @property
    def steps(self) -> int:
        return max(self.totals)

    def at(self, step: int) -> list[list[int]]:
        """Indices into each data set at `step`; empty for a data set that is used up."""
        taken = []
        for k, (size, per_epoch) in enumerate(zip(self.sizes, self.per_epoch, strict=True)):
            epoch, place = divmod(step, per_epoch)
            if epoch >= self.epochs:
                taken.append([])
                continue
            order = np.random.default_rng([self.seed, epoch, k]).permutation(size)
            taken.append(order[place * self.batch : (place + 1) * self.batch].tolist())
        return taken


def _filled(groups: Sequence[Sequence], size: int, blank) -> list:
    return [item for group in groups for item in [*group, *[blank] * (size - len(group))]]


def _packed(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Indices of `sizes` in rows of at most `length`: each, longest first, in the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, left in enumerate(room) if left >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(i)
        room[row] -= sizes[i]
    return rows


def _row_length(steps: Sequence[Sequence[int]]) -> int:
    """Of the lengths from the longest sample to twice that, the one at which the packed steps have the fewest tokens."""
    longest = bucket(max(max(sizes, default=1) for sizes in steps))
    lengths = sorted({bucket(longest * i // 4) for i in range(4, 9)})
    return min(lengths, key=lambda length: length * max(len(_packed(sizes, length)) for sizes in steps))


def sft(
    sets: Sequence[Sequence[Sample]], epochs: Epochs, pad: int, normalize: Normalize, max_length: int, multiple: int = 1
) -> Callable[[int], Batch]:
    """The SFT batch of every step, K data sets side by side, samples packed into rows; all steps have one shape.

    The rows of a data set are a multiple of `multiple` (the microbatches).
    """
    kept = [[_cut(sample, max_length) for sample in data] for data in sets]
    sizes = [[len(prompt) + len(answer) for prompt, answer in data] for data in kept]
    steps = [taken for step in range(epochs.steps) for taken in enumerate(epochs.at(step))]
    taken_sizes = [[sizes[k][i] for i in taken] for k, taken in steps]
    length = _row_length(taken_sizes)
    packed = [
        [[kept[k][taken[j]] for j in row] for row in _packed(these, length)] for (k, taken), these in zip(steps, taken_sizes, strict=True)
    ]
    count = multiple * -(-max(map(len, packed)) // multiple)
    width = bucket(max(sum(len(answer) for _, answer in row) for rows in packed for row in rows))

    def at(step: int) -> Batch:
        groups = packed[step * len(sets) : (step + 1) * len(sets)]
        return documents(_filled(groups, count, []), pad, normalize, length, width)

    return at


def _classes(rows: Sequence[tuple[list[int], int]], pad: int) -> ClassBatch:
    lengths = np.array([len(ids) for ids, _ in rows], np.int32)
    return ClassBatch(
        rows_of([ids for ids, _ in rows], pad, bucket(int(lengths.max()))),
        np.maximum(lengths - 1, 0),
        np.array([label for _, label in rows], np.int32),
        (lengths > 0).astype(np.float32),
    )


def classes(data: Sequence[tuple[list[int], int]], epochs: Epochs, pad: int) -> Callable[[int], ClassBatch]:
    """The evaluator's training batch of every step, from (ids, class) rows."""
    return lambda step: _classes(_filled([[data[i] for i in epochs.at(step)[0]]], epochs.batch, ([], 0)), pad)


def in_order(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Index lists of at most `batch` items, longest first: rows of a batch are of like length, and memory peaks at the start."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    yield from (order[i : i + batch] for i in range(0, len(order), batch))


def scoring(data: Sequence[list[int]], batch: int, pad: int) -> Iterator[tuple[list[int], ClassBatch]]:
    """Batches of rows to classify, each with the indices that its first rows have in `data`."""
    for taken in in_order([len(ids) for ids in data], batch):
        yield taken, _classes(_filled([[(data[i], 0) for i in taken]], batch, ([], 0)), pad)


def labelled(data: Sequence[tuple[list[int], int]], batch: int, pad: int) -> Iterator[ClassBatch]:
    """Batches of (ids, class) rows to evaluate on."""
    for taken in in_order([len(ids) for ids, _ in data], batch):
        yield _classes(_filled([[data[i] for i in taken]], batch, ([], 0)), pad)


@dataclass(frozen=True)
class Preference:
    """A tokenised DPO pair with the reference's log-probabilities of both answers."""

    chosen: Sample
    rejected: Sample
    reference_chosen: float
    reference_rejected: float


def likelihoods(samples: Sequence[Sample], batch: int, pad: int, max_length: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches whose answers' summed log-probabilities are wanted, each with the indices that its first rows have in `samples`."""
    for taken in in_order([len(prompt) + len(answer) for prompt, answer in samples], batch):
        yield taken, completions(_filled([[samples[i] for i in taken]], batch, ([], [])), pad, "token", max_length)


def take(batch: Batch, part: slice) -> Batch:
    """Some rows of a batch."""
    rows = Rows(batch.rows.tokens[part], batch.rows.positions[part], batch.rows.segments[part])
    return Batch(rows, batch.places[part], batch.targets[part], batch.weights[part], batch.units[part])


def preferences(data: Sequence[Preference], epochs: Epochs, pad: int, max_length: int) -> Callable[[int], PairBatch]:
    """The DPO batch of every step."""
    blank = Preference(([], []), ([], []), 0.0, 0.0)

    def at(step: int) -> PairBatch:
        group = _filled([[data[i] for i in epochs.at(step)[0]]], epochs.batch, blank)
        chosen, rejected = ([getattr(p, side) for p in group] for side in ("chosen", "rejected"))
        both = completions(chosen + rejected, pad, "token", max_length)
        n = len(group)
        halves = (take(both, slice(n)), take(both, slice(n, None)))
        reference = [np.array([getattr(p, f"reference_{side}") for p in group], np.float32) for side in ("chosen", "rejected")]
        whole = (halves[0].units > 0) & (halves[1].units > 0)  # a pair counts only if something is left of both answers
        return PairBatch(*halves, reference[0], reference[1], whole.astype(np.float32))

    return at
