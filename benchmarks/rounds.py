"""One whole round of label refinement: two models on half the data each, their proposals for the other half, scores in both orders."""

from typing import Any

from benchmarks import peers
from benchmarks.decoding import Ours, agree_greedy, dtype, sampled
from benchmarks.measure import Side, agree, best, race
from benchmarks.shapes import Size, Texts, shape, texts
from benchmarks.training import BATCH, Epoch, agree_scores, comparisons, ours_scored, peer_scored, stepped


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
    learned, (score, scores) = Epoch(made, [part.samples for part in halves], dtype()), ours_scored(made, asked, dtype())
    ours = [learned, Ours(made, data, 1, size.slots, k=2), score]
    chosen = lambda sizes, make: best([n for n in sizes if n <= half], make)
    trained = [peers.Sft(made, part, BATCH, chosen(size.micro, lambda n, part=part: peers.Sft(made, part, BATCH, n))) for part in halves]
    proposed = [sampled(made, part, 1, chosen(size.batches, lambda n, part=part: sampled(made, part, 1, n))) for part in halves]
    judged, verdicts = peer_scored(made, asked, dtype(), chosen(size.micro, lambda n: peer_scored(made, asked, dtype(), n)[0]))

    def same() -> None:
        for i, side in enumerate(trained):
            stepped(learned, i, side)
        agree("tokens that the losses are on", learned.targets(), sum(side.targets() for side in trained), 0.0)
        agree_greedy(made, data)
        agree_scores(scores, verdicts, dtype())

    peer = [*trained, *proposed, judged]
    return race(in_turn(ours, float(count)), in_turn(peer, float(count)), "labels", size.repeats, same).row()
