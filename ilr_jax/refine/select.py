"""From scores to decisions, and from decisions to the labels of the next round.

Not here: where scores come from. Nothing is replaced without a `Decision` that says why.
From: paper section 3 (threshold); the readings of alpha are those of ilr.py and naive.py of the authors' code (d1a2a27).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax.refine.agree import Standing
from ilr_jax.types import Comparison, Decision, Label


def share_of(n: int, share: float) -> int:
    """`share` of n items, rounded half up. Raises ValueError unless it is between 0 and 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"wanted a share (alpha) between 0 and 1, got {share}")
    return math.floor(n * share + 0.5)


def check_alpha(alpha: float, alpha_of: str) -> None:
    """Raise ValueError unless alpha is a share and `alpha_of` one of its three readings."""
    share_of(0, alpha)
    if alpha_of not in ("disagreeing", "all", "none"):
        raise ValueError(f"wanted alpha_of 'disagreeing', 'all' or 'none', got {alpha_of!r}")


def threshold(scores: Float[Any, " N"], alpha: float, alpha_of: str = "disagreeing", total: int = 0) -> float:
    """What a score must exceed: max(0.5, the (1 - alpha) quantile of the disagreeing items' scores), linearly interpolated.

    `alpha_of` says of what alpha is a share: the disagreeing items (published ILR), 'all' labels (`total` of them), or 'none'
    (no cap, the threshold is 0.5). Since a score must *exceed* it: alpha 0 replaces nothing, alpha 1 all but the lowest score
    of those above 0.5 (if none is below), and if all scores are equal nothing is replaced. Without scores it is 0.5.
    """
    check_alpha(alpha, alpha_of)
    scores = np.asarray(scores, np.float64)
    if scores.size == 0 or alpha_of == "none":
        return 0.5
    if alpha_of == "all":
        alpha = min(1.0, alpha * total / scores.size)
    return max(0.5, float(np.quantile(scores, 1 - alpha)))


RULES = ("replace", "filter", "add")
REASONS: dict[Standing, str] = {"unread": "the proposal is empty", "agrees": "agrees with the label", "disagrees": "not judged"}


def unasked(label: Label, proposal: str | None, standing: Standing, round: int) -> Decision:
    """The decision on a proposal that nobody judged: the label stays."""
    return Decision(label.example_id, round, label.text, proposal or "", False, REASONS[standing])


def judged(comparison: Comparison, limit: float, round: int) -> Decision:
    """The decision on a judged proposal (b) for a label (a): accepted where the score exceeds `limit`."""
    accepted = comparison.score > limit
    reason = f"score {comparison.score:.4f} {'>' if accepted else '<='} threshold {limit:.4f}"
    c = comparison
    return Decision(c.example_id, round, c.a, c.b, accepted, reason, c.accept, c.reject, c.score, limit)


def newest(labels: Sequence[Label]) -> list[Label]:
    """The last label of every question, in the order in which the questions first appear; only the rule 'add' leaves others beside it."""
    return list({label.example_id: label for label in labels}.values())


def relabel(labels: Sequence[Label], decisions: Sequence[Decision], rule: str = "replace") -> list[Label]:
    """The labels of the next round, from one decision per question, about its newest label.

    An accepted proposal, by `rule`: 'replace' (one for one, as published) takes the label's place; 'filter' only drops the label;
    'add' stands beside it, as the question's newest label. ValueError for another rule, or for questions that are not the decisions'.
    """
    if rule not in RULES:
        raise ValueError(f"wanted the rule {', '.join(RULES)}, got {rule!r}")
    current = newest(labels)
    if [label.example_id for label in current] != [decision.example_id for decision in decisions]:
        raise ValueError(f"wanted one decision for each of {len(current)} questions in their order, got {len(decisions)} or another order")
    made = {d.example_id: Label(d.example_id, d.proposal, "proposal", d.round) for d in decisions if d.accepted}
    if rule == "add":
        return [*labels, *made.values()]
    if rule == "filter":
        return [label for label in labels if label.example_id not in made]
    return [made.get(label.example_id, label) for label in labels]


def label_flows(before: Bool[Any, " N"], after: Bool[Any, " N"], replaced: Bool[Any, " N"]) -> dict[str, int]:
    """How many replaced labels went from right or wrong to right or wrong, e.g. {'wrong_to_right': 31, ...}."""
    before, after, replaced = (np.asarray(x, bool) for x in (before, after, replaced))
    names = {True: "right", False: "wrong"}
    return {
        f"{names[old]}_to_{names[new]}": int(np.sum(replaced & (before == old) & (after == new)))
        for old in (True, False)
        for new in (True, False)
    }
