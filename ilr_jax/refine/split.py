"""Who is trained on what: the D1/D2 split and the folds of a round.

Not here: training, and the order of batches. Every draw is a SHA-256 hash
of (seed, purpose, id), so it depends neither on the order of the input, nor on a generator's state, nor on a library's version.
From: paper section 3 (halves and cross-labelling); K > 2 folds, and proposals without cross-labelling, are ours.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from ilr_jax.types import Example


def uniform(*salt: str | int) -> float:
    """A number in [0, 1) that is always the same for the same salt."""
    digest = hashlib.sha256(json.dumps(salt).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: all that a float holds, so 1.0 cannot come out


def shuffled(ids: Sequence[str], *salt: str | int) -> list[int]:
    """The positions of `ids` in an order drawn by `salt`.

    Raises ValueError if an id occurs twice: two equal ids would always stay together, so the order would not be random.
    """
    twice = [i for i, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"wanted ids that differ, got {len(twice)} more than once (first: {twice[0]!r}); give every example its own id")
    keys = [hashlib.sha256(json.dumps([*salt, i]).encode()).digest() for i in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


def train_split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(D1, D2): the examples in a seeded order, halved; an odd one out goes to D2 (7,473 give 3,736 and 3,737).

    The halves are by example id: two examples with the same question text are two examples. Raises ValueError below two.
    """
    if len(examples) < 2:
        raise ValueError(
            f"wanted at least 2 train examples to halve, got {len(examples)}; raise task.train_examples or check the task's data"
        )
    order = shuffled([e.id for e in examples], seed, "train_split")
    half = len(examples) // 2
    return [examples[i] for i in order[:half]], [examples[i] for i in order[half:]]


def shared(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """Ids of the test examples whose question stands in train too, white space apart."""
    known = {" ".join(example.prompt.split()) for example in train}
    return [example.id for example in test if " ".join(example.prompt.split()) in known]


def parts(examples: Sequence[Example], demos: str, given: str, seed: int) -> tuple[list[Example], list[Example]]:
    """(D1, D2) of data that may be trusted in part: D1 has references, D2 the labels that are refined.

    All trusted: the paper's halves. Else D2 is the rest. With demos='given', D2 is what has a demonstration and no reference, or, with
    given='all', every demonstration; D1 is all that has a reference, and may be empty.
    """
    trusted = [example for example in examples if example.reference is not None]
    if demos == "given":
        return trusted, [e for e in examples if e.given is not None and (given == "all" or e.reference is None)]
    if len(trusted) == len(examples):
        return train_split(examples, seed)
    return trusted, [example for example in examples if example.reference is None]


def check_parts(d1: Sequence[Example], d2: Sequence[Example], demos: str, feedback: str) -> None:
    """Raise ValueError where D1 has nobody to learn from, D2 nothing to refine, or what looks at references does not find them in D2."""
    if demos == "given" and not d2:
        raise ValueError(
            "demos='given': wanted answers that came with the data and that nobody has checked, got none, as all are trusted; set "
            "task.answers='given' if they are to be refined, take 'trusted' from rows that nobody has checked, or set given='all' if "
            "every row has a trusted reference too"
        )
    if not d1 and (feedback == "evaluator" or demos != "given"):
        who = "the evaluator" if demos == "given" else "the supervisor"
        raise ValueError(
            f"wanted rows with a trusted reference, which {who} learns from, got none in {len(d2)}; check some rows and mark them (columns "
            "'trusted' or 'reference', docs/data.md), or do without: demos='given' with feedback='judge'"
        )
    bare = [example.id for example in d2 if example.reference is None]
    if bare and (feedback == "oracle" or demos in ("correct", "gold")):
        what = "feedback='oracle'" if feedback == "oracle" else f"demos={demos!r}"
        raise ValueError(
            f"{what}: wanted a trusted reference in every row that is refined, got none in {len(bare)} of {len(d2)} (first: {bare[0]!r}); "
            "without one nobody knows what is right: use feedback='evaluator', or add references"
        )


def folds(ids: Sequence[str], k: int, seed: int, round: int) -> list[list[int]]:
    """K lists of positions in `ids`: disjoint, complete, sizes differ by at most 1, drawn anew for each (seed, round).

    Raises ValueError for k < 2 (a model would propose for what it was trained on) and for fewer labels than folds.
    """
    if k < 2:
        raise ValueError(f"wanted at least 2 folds, got {k}: with one fold the model would propose for its own training data")
    if len(ids) < k:
        raise ValueError(f"wanted at least one label for each of {k} folds, got {len(ids)} labels; use fewer folds or more data")
    order = shuffled(ids, seed, "folds", round)
    return [sorted(order[j::k]) for j in range(k)]


def assignments(ids: Sequence[str], proposer: str, k: int, seed: int, round: int) -> list[tuple[list[int], list[int]]]:
    """Per fold model of a round: the positions in `ids` that it is trained on, and those that it proposes for.

    'cross' (as published): model j sees all folds but the j-th and proposes for that one. 'ensemble': the same models, and each proposes
    for every question, those it has seen too. 'same': one model that sees, and proposes for, all. ValueError for another proposer.
    """
    everything = list(range(len(ids)))
    if proposer == "same":
        return [(everything, everything)]
    if proposer not in ("cross", "ensemble"):
        raise ValueError(f"wanted the proposer cross, same or ensemble, got {proposer!r}")
    parts = folds(ids, k, seed, round)
    seen = [sorted(set(everything) - set(part)) for part in parts]
    return [(known, part if proposer == "cross" else everything) for known, part in zip(seen, parts, strict=True)]
