"""An evaluator's report card: how often it was right on the pairs that a refinement put to it, and what its errors hang on.

Not here: which pairs these are (`methods`), and how the card looks (`page`). What is right comes as the audit's flags.
From: order flips and length bias as they are told of LLM judges (Zheng et al. 2023, arXiv 2306.05685); the expected calibration error of
Guo et al. 2017 (arXiv 1706.04599).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax.refine.judge import evaluator_accuracy
from ilr_jax.types import Audit

BINS = 10


def card(audit: Sequence[Audit]) -> dict[str, Any] | None:
    """The card of the comparisons in `audit`; None where nobody was asked. A share of nothing is None.

    Keys, shares from 0 to 1, a score of exactly 0.5 counts half:

    - `comparisons`; `pairs`: those with exactly one right answer; `accuracy` over these
    - `accepts_wrong`: of the `right_labels` against a wrong proposal, those it would give up
    - `rejects_right`: of the `right_proposals` against a wrong label, those it would refuse
    - `flips`: it prefers another answer when the two change places; `second`: mean probability of the answer in the second place; both
      None for an oracle, who is not asked in both orders
    - `longer`: it prefers the longer answer (in characters); `longer_right`: of the `pairs`, the longer one is right
    - `calibration`: per tenth of the score, (pairs, mean score, share whose proposal is right); `calibration_error`: their mean distance
    - `replaced`; `precision`: of the `replaced_known` among these, the accepted proposal is right
    - `recall`: of the `right_proposals`, those that were accepted
    """
    rows = [row for row in audit if row.score is not None]
    if not rows:
        return None
    score = np.array([row.score for row in rows], float)
    orders = np.array([(row.accept, row.reject) for row in rows if None not in (row.accept, row.reject)], float).reshape(-1, 2)
    known = np.array([None not in (row.before_correct, row.proposal_correct) for row in rows])
    was, would, taken = (
        np.array([bool(getattr(row, name)) for row in rows]) for name in ("before_correct", "proposal_correct", "accepted")
    )
    longer = np.sign([len(row.proposal) - len(row.before) for row in rows])
    likes = (np.sign(score - 0.5) + 1) / 2  # the proposal: 1, 0, or 0.5 where it cannot tell
    decisive = known & (was != would)
    accuracy, pairs = evaluator_accuracy(score[decisive], was[decisive], would[decisive])
    bins = _calibration(score[decisive], would[decisive])
    return {
        "comparisons": len(rows),
        "accuracy": accuracy,
        "pairs": pairs,
        "accepts_wrong": _mean(likes[decisive & was]),
        "right_labels": int((decisive & was).sum()),
        "rejects_right": _mean(1 - likes[decisive & would]),
        "right_proposals": int((decisive & would).sum()),
        "flips": _mean((orders[:, 0] - 0.5) * (orders[:, 1] - 0.5) < 0),
        "second": _mean((orders[:, 0] + 1 - orders[:, 1]) / 2),
        "longer": _mean(np.where(longer > 0, likes, 1 - likes)[longer != 0]),
        "longer_right": _mean((would == (longer > 0))[decisive & (longer != 0)]),
        "calibration": bins,
        "calibration_error": sum(n * abs(mean - right) for n, mean, right in bins) / pairs if pairs else None,
        "replaced": int(taken.sum()),
        "replaced_known": int((taken & known).sum()),
        "precision": _mean(would[taken & known]),
        "recall": _mean(taken[decisive & would]),
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _calibration(score: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[tuple[int, float, float]]:
    """(number, mean score, share right) of every tenth of the score that holds some."""
    places = np.minimum((score * BINS).astype(int), BINS - 1)
    tenths = [here for b in range(BINS) if (here := places == b).any()]
    return [(int(here.sum()), float(score[here].mean()), float(right[here].mean())) for here in tenths]
