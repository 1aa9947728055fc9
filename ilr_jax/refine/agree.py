"""Which proposals say the same as the label: these keep the label and cost no comparison.

Not here: what "the same" means. That is the task's (same final number, same execution result, ...) and comes as a function. An answer
in which the task can read nothing, such as one without a final number, says nothing, so it agrees with no other text, not even with one
that says nothing either: the evaluator decides between them. Only a blank proposal is left out.
From: paper section 3 and appendix (agreement by task).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax.types import Example, Label

AgreeFn = Callable[[Sequence[str], Sequence[str], Sequence[Example]], Any]
"""(labels' texts, proposals, examples) -> bool [n]; called once for a round, since a task may need all pairs together."""

Standing = Literal["unread", "agrees", "disagrees"]


def check_aligned(labels: Sequence[Label], proposals: Sequence[str | None], examples: Sequence[Example]) -> None:
    """Raise ValueError unless the three lists speak of the same questions in the same order."""
    if not len(labels) == len(proposals) == len(examples):
        sizes = f"{len(labels)} labels, {len(proposals)} proposals, {len(examples)} examples"
        raise ValueError(f"wanted one proposal and one example per label, got {sizes}; a missing proposal is None")
    for label, example in zip(labels, examples, strict=True):
        if label.example_id != example.id:
            raise ValueError(f"wanted labels and examples in one order, got {label.example_id!r} beside {example.id!r}; join by id")


def as_flags(flags: Any, n: int, what: str) -> list[bool]:
    """Answers of a task's function as n Python bools; ValueError if their number is another."""
    flags = np.asarray(flags)
    if flags.shape != (n,):
        raise ValueError(f"wanted {n} verdicts from {what}, got shape {flags.shape}; it must answer for every item, in order")
    return [bool(flag) for flag in flags]


def readable(proposal: str | None) -> bool:
    """Whether there is a proposal at all: not None, not blank."""
    return proposal is not None and bool(proposal.strip())


def standings(labels: Sequence[Label], proposals: Sequence[str | None], examples: Sequence[Example], agree_fn: AgreeFn) -> list[Standing]:
    """How each proposal stands to its label: 'unread' (nothing to read: None or blank), 'agrees' or 'disagrees'.

    A proposal with the label's very text agrees, whatever `agree_fn` says of it.
    """
    check_aligned(labels, proposals, examples)
    result: list[Standing] = ["unread"] * len(labels)
    given = [(i, p) for i, p in enumerate(proposals) if p is not None and readable(p)]
    if not given:
        return result
    texts = [labels[i].text for i, _ in given]
    same = as_flags(agree_fn(texts, [p for _, p in given], [examples[i] for i, _ in given]), len(given), "agree_fn")
    for (i, proposal), text, flag in zip(given, texts, same, strict=True):
        result[i] = "agrees" if flag or proposal == text else "disagrees"
    return result


def above_median(similarity: Float[Any, " N"]) -> Bool[np.ndarray, " N"]:
    """Agreement where only likeness can be measured: above the median of all pairs (SaferPaca, paper appendix)."""
    similarity = np.asarray(similarity)
    return similarity > np.median(similarity) if similarity.size else np.zeros(0, bool)
