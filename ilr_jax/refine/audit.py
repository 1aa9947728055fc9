"""What a round did: each decision beside what the report shows of it, and the round in numbers.

Not here: decisions (`methods`) and grades, which come as flags; they are null where there is no reference.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ilr_jax.refine import judge, select
from ilr_jax.types import Audit, Decision, Example


def audited(
    decisions: Iterable[Decision],
    examples: Iterable[Example],
    after: Iterable[str],
    before_correct: Iterable[bool | None],
    proposal_correct: Iterable[bool | None],
) -> list[Audit]:
    """One row a decision; all are aligned. ValueError if their numbers differ."""
    rows = zip(decisions, examples, after, before_correct, proposal_correct, strict=True)
    return [
        Audit(
            d.example_id, d.round, e.prompt, d.before, d.proposal, text, d.accepted, d.reason,
            d.accept, d.reject, d.score, d.threshold, right, better if d.proposal else None,
        )
        for d, e, text, right, better in rows
    ]  # fmt: skip


def facts(method: str, audit: Sequence[Audit], rule: str = "replace") -> dict[str, Any]:
    """What a round did, in numbers; agreed, unread and compared labels are all labels, but for naive, which looks at none.

    Flows are those of the labels with a reference, null if there are none. `replaced` counts accepted proposals, whatever the rule made of
    them; by 'filter' no label becomes another, so there are no flows.
    """
    agreed, unread = (sum(row.reason == select.REASONS[how] for row in audit) for how in ("agrees", "unread"))
    asked = [row for row in audit if row.score is not None]
    was, would = (np.array([bool(getattr(row, side)) for row in asked]) for side in ("before_correct", "proposal_correct"))
    right, n = judge.evaluator_accuracy(np.array([row.score for row in asked]), was, would) if asked else (None, 0)
    known = [row for row in audit if row.before_correct is not None]
    flags = [np.array([bool(getattr(row, side)) for row in known]) for side in ("before_correct", "proposal_correct", "accepted")]
    return {
        "agreed": agreed if method == "ilr" else None,
        "unread": unread,
        "compared": len(audit) - agreed - unread if method == "ilr" else 0,
        "unanswered": sum(row.reason == select.REASONS["disagrees"] for row in audit) if method == "ilr" else None,
        "replaced": sum(row.accepted for row in audit),
        "threshold": asked[0].threshold if asked else None,
        "evaluator_accuracy": right,
        "evaluator_pairs": n,
        "flows": select.label_flows(*flags) if known and rule != "filter" else None,
    }
