"""One whole round of label refinement: two models on half the data each, their proposals for the other half, scores in both orders."""

from typing import Any

from benchmarks import peers
from benchmarks.decoding import Ours, dtype, sampled
from benchmarks.measure import Side, best, race
from benchmarks.shapes import Size, Texts, shape, texts
from benchmarks.training import BATCH, comparisons, epoch, ours_scored, peer_scored


def in_turn(sides: list[Side], work: float) -> Side:
    """One side after the other, as one piece of work."""

    def run() -> float:
        for side in sides:
            side()
        return work

    return run


def refinement(size: Size) -> dict[str, Any]:
    """From labels to scores; the peer's parts are TRL, `generate` and a classifier of transformers, each with its best batch size."""
    made, count = shape(size.model), size.examples
    data, half = texts(count, made.config.vocab_size), count // 2
    halves = [Texts(data.questions[part], data.answers[part]) for part in (slice(half), slice(half, None))]
    asked = comparisons(data, 2 * count)
    ours = [
        epoch(made, [part.samples for part in halves], dtype()),
        Ours(made, data, 1, size.slots, k=2),
        ours_scored(made, asked, dtype())[0],
    ]
    trained = lambda part: lambda n: peers.sft(made, part, BATCH, n)
    proposed = lambda part: lambda n: sampled(made, part, 1, n)
    parts = [make(part) for make in (trained, proposed) for part in halves] + [lambda n: peer_scored(made, asked, dtype(), n)[0]]
    tried = [size.micro, size.micro, size.batches, size.batches, size.micro]
    peer = [part(best([n for n in sizes if n <= half], part)) for part, sizes in zip(parts, tried, strict=True)]
    return race(in_turn(ours, float(count)), in_turn(peer, float(count)), "labels", size.repeats).row()
