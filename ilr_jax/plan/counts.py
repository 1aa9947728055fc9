"""How often an experiment does what it is made of: arithmetic over its config, in the order of `rounds`; nothing is compiled here.

What methods and rounds share counts once, as their stages do. What hangs on answers is the most that there can be: every proposal
disagrees with its label, every question gives the evaluator two pairs, and it does not stop early. Labels that are dropped or added are
not counted.
"""

from dataclasses import dataclass
from math import ceil

from ilr_jax.refine.select import share_of
from ilr_jax.types import Config


@dataclass(frozen=True)
class Counts:
    """Optimiser steps of what trains, requests of what decodes, comparisons in both orders; 0: not part of the experiment."""

    weak: int  # steps of the supervisor
    weak_labels: int
    evaluator_answers: int
    evaluator: int  # steps
    sft: int  # steps
    folds: int  # steps of the fold models, which train in one pass
    proposals: int
    compared: int  # by the evaluator
    judged: int  # by one of our models as it is
    tests: int  # answers to test questions
    dpo_samples: int
    dpo_reference: int  # answers
    dpo: int  # steps


def counted(config: Config, examples: int, tests: int, graded: bool = True) -> Counts:
    """The counts for so many examples, half of them to be labelled, and test questions; a judge compares what nothing grades."""
    c, rounds = config, config.rounds
    methods = {name.strip() for name in c.method.split(",")}
    known, labelled = examples // 2, ceil(examples / 2)
    refined = methods & {"ilr", "naive"}  # trained on
    relabelled = refined | ({"ilr"} if methods & {"dpo_pairs"} or (c.naive.match_count and "naive" in methods) else set())
    sampled = methods & {"dpo", "sft_chosen"}
    first = int(methods != {"weak"})  # the model of the first labels, with which all others begin
    measured = first + rounds * len(methods - {"sft", "weak"})

    proposing, sampling = _shared(rounds, len(relabelled)), _shared(rounds, len(sampled))
    candidates = c.refine.samples * (c.folds if c.refine.proposer == "ensemble" else 1)
    picked = candidates if c.refine.pick == "feedback" and candidates > 1 else 0  # each is compared with the label before one is judged
    pairs = labelled * (c.dpo.samples // 2)
    compared = labelled * rounds * (1 + picked) * ("ilr" in relabelled) + pairs * sampling

    speaks = c.judge.kind if c.feedback == "judge" else c.feedback
    won = 0 if graded else tests * measured
    by = {name: compared * (name == speaks) + won * (name == c.judge.kind) for name in ("evaluator", "model")}
    trained = by["evaluator"] > 0 or (speaks == "evaluator" and "weak" in methods)
    share = 1.0 if c.feedback == "oracle" and not c.oracle.capped else c.dpo.share
    learnt = {"dpo": share_of(pairs, share), "dpo_pairs": share_of(labelled, share)}
    preferred = {name: n for name, n in learnt.items() if name in methods}  # preferences of a round

    judgements = 2 * (2 * known - share_of(2 * known, c.evaluator.validation))  # two pairs of a question, both orders
    epochs = lambda n, batch, section: ceil(n / batch) * section.epochs
    same = c.refine.proposer == "same"  # the model of the round before proposes: there already, unless nobody measures it
    full = first + rounds * len(refined) + same * max(rounds - 1, 0) * len(relabelled - refined)
    chosen = rounds * ("sft_chosen" in methods) * epochs(learnt["dpo"], c.sft.batch, c.strong)
    return Counts(
        weak=epochs(known, c.sft.batch, c.weak) * (c.demos != "given" or trained),
        weak_labels=labelled * (c.demos in ("weak", "correct") or bool(c.demos_error)),
        evaluator_answers=known * c.evaluator.checkpoints * trained,
        evaluator=epochs(judgements, c.evaluator.batch, c.evaluator) * trained,
        sft=epochs(labelled, c.sft.batch, c.strong) * full + chosen,
        folds=0 if same else epochs(ceil(labelled * (c.folds - 1) / c.folds), c.sft.batch, c.strong) * proposing,
        proposals=labelled * candidates * proposing,
        compared=by["evaluator"],
        judged=by["model"],
        tests=tests * measured,
        dpo_samples=labelled * c.dpo.samples * sampling,
        dpo_reference=2 * rounds * sum(preferred.values()),
        dpo=rounds * sum(epochs(n, c.dpo.batch, c.dpo) for n in preferred.values()),
    )


def _shared(rounds: int, chains: int) -> int:
    """Rounds of all chains that start from the same labels or model, the first of which they share."""
    return max(rounds * chains - max(chains - 1, 0), 0)
