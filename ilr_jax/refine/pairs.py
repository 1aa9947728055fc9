"""Pairs of a better and a worse answer: what the evaluator is trained on, and what DPO is trained on.

Not here: who wrote and graded the answers, and how a pair becomes tokens.
From: paper appendix (evaluator training data; SFT + DPO). A pair of two equal texts teaches nothing and is left out, where the
authors' code (d1a2a27) keeps it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.refine.select import share_of
from ilr_jax.refine.split import shuffled, uniform
from ilr_jax.types import Audit, Comparison, Example, Pair

REJECT, ACCEPT = 0, 1
GENERAL, SAFETY = "general", "safety"  # values of the tag `category` of examples


def evaluator_pairs(
    examples: Sequence[Example], answers: Sequence[Sequence[str]], grades: Sequence[Sequence[bool]], seed: int
) -> list[Pair]:
    """Up to two pairs per question, from the answers of a model's checkpoints, in checkpoint order, and their grades.

    Some answer right: the reference over a right answer, and if some are wrong too, a right answer or the reference over a
    wrong one. None right: the reference over a wrong answer. Raises ValueError for an example without a reference.
    """
    pairs = []
    for example, texts, flags in zip(examples, answers, grades, strict=True):
        if example.reference is None:
            raise ValueError(f"wanted a reference for every example that the evaluator learns from, got none for {example.id!r}")
        right = [text for text, flag in zip(texts, flags, strict=True) if flag]
        wrong = [text for text, flag in zip(texts, flags, strict=True) if not flag]
        pairs += _question_pairs(example, example.reference, right, wrong, seed)
    return pairs


def category_pairs(examples: Sequence[Example], general: Mapping[str, str], safety: Mapping[str, str], seed: int) -> list[Pair]:
    """Pairs for a task without a grader, from the answers (example id -> text) of a model of each category's references.

    The reference over the answer of the question's own category's model; and for general questions, as many as there are safety questions
    at most, drawn by seed, the general model's answer over the safety model's, which tends to refuse. Raises ValueError for an example
    without a reference or one of the two categories, and KeyError for a missing answer.
    """
    if odd := [e for e in examples if e.reference is None or e.tags.get("category") not in (GENERAL, SAFETY)]:
        raise ValueError(f"wanted a reference and the category general or safety for every example, got neither or one for {odd[0].id!r}")
    pairs = []
    for e in examples:
        own = (general if e.tags["category"] == GENERAL else safety)[e.id]
        pairs.append(Pair(e.id, e.prompt, str(e.reference), own, "reference over own category"))
    asked = [e for e in examples if e.tags["category"] == GENERAL]
    for i in shuffled([e.id for e in asked], seed, "category_pairs")[: len(examples) - len(asked)]:
        e = asked[i]
        pairs.append(Pair(e.id, e.prompt, general[e.id], safety[e.id], "general over safety"))
    return [pair for pair in pairs if pair.better.strip() != pair.worse.strip()]


def both_orders(pairs: Sequence[Pair]) -> list[tuple[str, str, str, int]]:
    """(prompt, answer A, answer B, class) with each pair in both orders: class 1 (accept) where B is better, else 0 (reject)."""
    rows = []
    for pair in pairs:
        rows.append((pair.prompt, pair.better, pair.worse, REJECT))
        rows.append((pair.prompt, pair.worse, pair.better, ACCEPT))
    return rows


def split_pairs(pairs: Sequence[Pair], seed: int, share: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """(training, validation): a seeded `share` of the pairs, at least one, is held out. ValueError below two pairs."""
    if len(pairs) < 2:
        raise ValueError(
            f"wanted at least 2 pairs to train and validate the evaluator, got {len(pairs)}; add examples with a trusted reference"
        )
    order = shuffled([f"{i}/{pair.example_id}" for i, pair in enumerate(pairs)], seed, "split_pairs")
    held = set(order[: min(max(1, share_of(len(pairs), share)), len(pairs) - 1)])
    return [p for i, p in enumerate(pairs) if i not in held], [p for i, p in enumerate(pairs) if i in held]


def disjoint_pairs(examples: Sequence[Example], samples: Sequence[Sequence[str]]) -> list[tuple[Example, str, str]]:
    """(example, a, b) for samples 1 and 2, 3 and 4, ... of each question: 6 samples make 3 pairs. ValueError if odd."""
    pairs = []
    for example, texts in zip(examples, samples, strict=True):
        if len(texts) % 2:
            raise ValueError(
                f"wanted an even number of samples to pair, got {len(texts)} for {example.id!r}; set dpo.samples to an even number"
            )
        pairs += [(example, a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    return pairs


def confident_preferences(comparisons: Sequence[Comparison], seed: int, share: float = 0.15) -> list[Pair]:
    """The `share` of all comparisons with the largest |score - 0.5|, as preferences for the answer that the score favours.

    Kept in the order given; equal confidence is drawn by seed, and a score of 0.5 prefers a (as the published code does).
    """
    order = shuffled([f"{i}/{c.example_id}" for i, c in enumerate(comparisons)], seed, "confident")
    ranked = sorted((i for i in order if comparisons[i].a != comparisons[i].b), key=lambda i: -abs(comparisons[i].score - 0.5))
    kept = sorted(ranked[: share_of(len(comparisons), share)])
    return [_preference(comparisons[i], comparisons[i].score > 0.5) for i in kept]


def oracle_preferences(
    pairs: Sequence[tuple[Example, str, str]], a_right: Bool[Any, " N"], b_right: Bool[Any, " N"], seed: int = 0, share: float = 1.0
) -> list[Pair]:
    """The preferences that an oracle gives: the right answer over the wrong one, for pairs with exactly one right answer.

    At most `share` of all pairs, drawn by seed, in the order given.
    """
    preferences = []
    for (example, a, b), a_is, b_is in zip(pairs, a_right, b_right, strict=True):
        if bool(a_is) != bool(b_is):
            better, worse = (b, a) if b_is else (a, b)
            preferences.append(Pair(example.id, example.prompt, better, worse, "oracle"))
    order = shuffled([f"{i}/{pair.example_id}" for i, pair in enumerate(preferences)], seed, "oracle")
    return [preferences[i] for i in sorted(order[: share_of(len(pairs), share)])]


def decisive_preferences(asked: Sequence[Audit]) -> list[Pair]:
    """What an oracle said of (label, proposal) pairs with exactly one right answer; its verdict may be wrong."""
    decisive = [row for row in asked if bool(row.before_correct) != bool(row.proposal_correct)]
    sides = [(row.proposal, row.before) if row.score == 1 else (row.before, row.proposal) for row in decisive]
    return [Pair(row.example_id, row.prompt, *side, "oracle") for row, side in zip(decisive, sides, strict=True)]


def _question_pairs(example: Example, reference: str, right: list[str], wrong: list[str], seed: int) -> list[Pair]:
    chosen = []
    differing = [text for text in right if text.strip() != reference.strip()]
    if differing:
        chosen.append((reference, _draw(differing, seed, example.id, "right"), "reference over right"))
    if right and wrong:
        # The reference stands last in the draw, so it is the least likely one, as in the published data.
        chosen.append((_draw([*right, reference], seed, example.id, "better"), _draw(wrong, seed, example.id, "wrong"), "right over wrong"))
    elif wrong:
        chosen.append((reference, _draw(wrong, seed, example.id, "wrong"), "reference over wrong"))
    return [Pair(example.id, example.prompt, better, worse, kind) for better, worse, kind in chosen]


def _draw(texts: Sequence[str], *salt: str | int) -> str:
    """One of n texts in checkpoint order, the i-th with weight 2^(n - i - 1): early checkpoints answer more diversely."""
    edges = np.cumsum(0.5 ** np.arange(len(texts)))
    place = np.searchsorted(edges, uniform("draw", *salt) * edges[-1], side="right")
    return texts[min(int(place), len(texts) - 1)]


def _preference(c: Comparison, prefers_b: bool) -> Pair:
    better, worse = (c.b, c.a) if prefers_b else (c.a, c.b)
    return Pair(c.example_id, c.prompt, better, worse, "evaluator")
