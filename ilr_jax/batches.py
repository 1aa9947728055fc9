"""Labels, comparisons and preferences as padded batches in numpy.

Every batch is a pure function of (data, seed, step), so resuming at a step needs no iterator state. Shapes are few, so that each jitted
step compiles once or a few times: packed rows have one length for a whole run, others one out of a short list. With K data sets (one per
adapter) the rows of data set k are the k-th group of the batch; one that is used up gives empty rows, which leave its adapter untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from ilr_jax.types import BRANCH, Batch, ClassBatch, PairBatch, Rows

Normalize = Literal["sequence", "token"]
Sample = tuple[list[int], list[int]]  # prompt ids, answer ids with EOS
Verdict = tuple[list[int], int]  # ids of a comparison, and its class


def bucket(length: int) -> int:
    """The padded length for `length`: multiples of 32 to 256, then of 128, so that few shapes are compiled and little is padded."""
    step = 32 if length <= 256 else 128
    return max(step, -(-length // step) * step)


def rows_of(texts: Sequence[Sequence[Sequence[int]]], pad: int, length: int) -> tuple[Rows, list[list[int]]]:
    """Rows of one or several documents each, right-padded, and where each document begins."""
    tokens = np.full((len(texts), length), pad, np.int32)
    segments, positions = (np.zeros_like(tokens) for _ in range(2))
    starts = [[0, *accumulate(map(len, row))][:-1] for row in texts]
    for i, row in enumerate(texts):
        for number, (start, ids) in enumerate(zip(starts[i], row, strict=True), 1):
            here = slice(start, start + len(ids))
            tokens[i, here], segments[i, here], positions[i, here] = ids, number, np.arange(len(ids))
    return Rows(tokens, positions, segments), starts


def _cut(sample: Sample, max_length: int | None) -> Sample:
    """The sample within `max_length` tokens (0 or None: any length); it loses its end, and all of it where no answer token is left."""
    prompt, answer = sample
    kept = answer[: max(0, max_length - len(prompt))] if max_length else answer
    return (prompt, kept) if kept else ([], [])


def documents(rows: Sequence[Sequence[Sample]], pad: int, normalize: Normalize, length: int, width: int) -> Batch:
    """Rows of one or several samples each, `length` tokens long with room for `width` predictions; the loss is on answer tokens and EOS."""
    laid, starts = rows_of([[prompt + answer for prompt, answer in row] for row in rows], pad, length)
    places, targets = (np.zeros((len(rows), width), np.int32) for _ in range(2))
    weights, units = np.zeros((len(rows), width), np.float32), np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        used = 0
        for start, (prompt, answer) in zip(starts[i], row, strict=True):
            m = len(answer)
            these = slice(used, used + m)
            places[i, these], targets[i, these] = start + len(prompt) - 1 + np.arange(m), answer
            weights[i, these] = 1 / max(m, 1) if normalize == "sequence" else 1
            units[i] += min(m, 1) if normalize == "sequence" else m
            used += m
    return Batch(laid, places, targets, weights, units)


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
        """Optimiser steps of each data set in an epoch."""
        return tuple(-(-size // self.batch) for size in self.sizes)

    @property
    def totals(self) -> tuple[int, ...]:
        """Optimiser steps of each data set."""
        return tuple(steps * self.epochs for steps in self.per_epoch)

    @property
    def steps(self) -> int:
        """Steps until the largest data set is used up."""
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


@dataclass(frozen=True)
class Packing:
    """What rows cost: attention takes as much as the linear layers at `even` tokens; their number is a multiple of the microbatches."""

    even: float = 1e9
    multiple: int = 1


def _plan(steps: Sequence[Sequence[int]], packing: Packing) -> tuple[list[list[list[int]]], int, int]:
    """Steps of samples of these sizes, packed into rows, and the length and number of rows that serve all of them.

    Of the lengths from the longest sample to twice that, the one that costs least.
    """
    longest = max(1, *(max(sizes, default=1) for sizes in steps))
    lengths = {-(-longest * i // 4 // 32) * 32 for i in range(4, 9)}
    plans = {length: [_packed(sizes, length) for sizes in steps] for length in sorted(lengths)}
    counts = {length: packing.multiple * -(-max(map(len, plan)) // packing.multiple) for length, plan in plans.items()}
    length = min(lengths, key=lambda length: (counts[length] * length * (packing.even + length), length))
    return plans[length], length, counts[length]


def sft(
    sets: Sequence[Sequence[Sample]], epochs: Epochs, pad: int, normalize: Normalize, max_length: int, packing: Packing
) -> Callable[[int], Batch]:
    """The SFT batch of every step, K data sets side by side, samples packed into rows; all steps have one shape."""
    kept = [[_cut(sample, max_length) for sample in data] for data in sets]
    sizes = [[len(prompt) + len(answer) for prompt, answer in data] for data in kept]
    steps = [taken for step in range(epochs.steps) for taken in enumerate(epochs.at(step))]
    plan, length, count = _plan([[sizes[k][i] for i in taken] for k, taken in steps], packing)
    packed = [[[kept[k][taken[j]] for j in row] for row in rows] for (k, taken), rows in zip(steps, plan, strict=True)]
    width = bucket(max(sum(len(answer) for _, answer in row) for rows in packed for row in rows))

    def at(step: int) -> Batch:
        """The rows of all data sets at this step."""
        groups = packed[step * len(sets) : (step + 1) * len(sets)]
        return documents(_filled(groups, count, []), pad, normalize, length, width)

    return at


def _classes(rows: Sequence[Sequence[Verdict]], pad: int, length: int, width: int) -> ClassBatch:
    laid, starts = rows_of([[ids for ids, _ in row] for row in rows], pad, length)
    shape = len(rows), width
    last, labels, weight = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        for j, (start, (ids, label)) in enumerate(zip(starts[i], row, strict=True)):
            last[i, j], labels[i, j], weight[i, j] = start + len(ids) - 1, label, 1
    return ClassBatch(laid, last, labels, weight)


def classes(data: Sequence[Verdict], epochs: Epochs, pad: int, packing: Packing) -> Callable[[int], ClassBatch]:
    """The evaluator's training batch of every step, packed as in `sft`."""
    steps = [epochs.at(step)[0] for step in range(epochs.steps)]
    plan, length, count = _plan([[len(data[i][0]) for i in taken] for taken in steps], packing)
    width = max(len(row) for rows in plan for row in rows)
    packed = [[[data[taken[j]] for j in row] for row in rows] for taken, rows in zip(steps, plan, strict=True)]
    return lambda step: _classes(_filled([packed[step]], count, []), pad, length, width)


def in_order(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Index lists of at most `batch` items, longest first: rows of a batch are of like length, and memory peaks at the start."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    yield from (order[i : i + batch] for i in range(0, len(order), batch))


def scoring(data: Sequence[Verdict], batch: int, pad: int) -> Iterator[tuple[list[int], ClassBatch]]:
    """Batches to classify, one comparison a row, each with the indices that its first rows have in `data`."""
    for taken in in_order([len(ids) for ids, _ in data], batch):
        rows = [[data[i]] for i in taken]
        yield taken, _classes(_filled([rows], batch, []), pad, bucket(len(data[taken[0]][0])), 1)


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


def options(prompts: Sequence[Sequence[int]], ids: Sequence[int], batch: int, pad: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches whose rows predict each of the tokens `ids` next after a prompt, with the indices that their first rows have in `prompts`."""
    for taken in in_order([len(prompt) for prompt in prompts], batch):
        kept = _filled([[list(prompts[i]) for i in taken]], batch, [])
        rows, _ = rows_of([[prompt] for prompt in kept], pad, bucket(len(prompts[taken[0]])))
        last = np.array([max(len(prompt) - 1, 0) for prompt in kept], np.int32)
        shape = len(kept), len(ids)
        targets = np.broadcast_to(np.array(ids, np.int32), shape)
        yield taken, Batch(rows, np.repeat(last[:, None], len(ids), 1), targets, np.ones(shape, np.float32), np.ones(len(kept), np.float32))


def _pair(preference: Preference, max_length: int) -> Preference | None:
    """The preference within `max_length` tokens a side; None where nothing is left of an answer."""
    sides = [_cut(side, max_length) for side in (preference.chosen, preference.rejected)]
    return replace(preference, chosen=sides[0], rejected=sides[1]) if all(answer for _, answer in sides) else None


def _parts(preference: Preference) -> list[list[int]]:
    return [preference.chosen[0], preference.chosen[1], preference.rejected[1]]


def pair_rows(rows: Sequence[Sequence[Preference]], pad: int, length: int, width: int, most: int) -> PairBatch:
    """Rows of `length` tokens with room for `width` predictions of up to `most` preferences; both answers branch off their prompt."""
    laid, starts = rows_of([[sum(_parts(pair), []) for pair in row] for row in rows], pad, length)
    places, targets, answers = (np.full((len(rows), width), blank, np.int32) for blank in (0, 0, -1))
    reference, weight = np.zeros((len(rows), most, 2), np.float32), np.zeros((len(rows), most), np.float32)
    for i, row in enumerate(rows):
        used = 0
        for m, (start, pair) in enumerate(zip(starts[i], row, strict=True)):
            reference[i, m], weight[i, m] = (pair.reference_chosen, pair.reference_rejected), 1
            asked, begin = len(pair.chosen[0]), start + len(pair.chosen[0])
            for side, answer in enumerate(_parts(pair)[1:]):
                here, these = slice(begin, begin + len(answer)), slice(used, used + len(answer))
                laid.segments[i, here] += (side + 1) * BRANCH
                laid.positions[i, here] = asked + np.arange(len(answer))
                places[i, these] = [start + asked - 1, *range(begin, begin + len(answer) - 1)]
                targets[i, these], answers[i, these] = answer, 2 * m + side
                begin, used = here.stop, these.stop
    return PairBatch(laid, places, targets, answers, reference, weight)


def preferences(data: Sequence[Preference], epochs: Epochs, pad: int, max_length: int, packing: Packing) -> Callable[[int], PairBatch]:
    """The DPO batch of every step, packed as in `sft`."""
    kept = [_pair(preference, max_length) for preference in data]
    steps = [[pair for i in epochs.at(step)[0] if (pair := kept[i]) is not None] for step in range(epochs.steps)]
    plan, length, count = _plan([[sum(map(len, _parts(pair))) for pair in taken] for taken in steps], packing)
    packed = [[[taken[j] for j in row] for row in rows] for taken, rows in zip(steps, plan, strict=True)]
    answered = lambda row: sum(len(answer) for pair in row for answer in _parts(pair)[1:])
    laid = [row for rows in packed for row in rows]
    width, most = bucket(max(map(answered, laid), default=1)), max(map(len, laid), default=1)
    return lambda step: pair_rows(_filled([packed[step]], count, []), pad, length, width, most)
