"""An evaluator's report card: how often it was right on the pairs that were put to it, and what its errors hang on.

Not here: which pairs these are (`methods`, `pairs`), and how the card looks (`page`). What is right comes as flags of the rows.
From: order flips and length bias as they are told of LLM judges (Zheng et al. 2023, arXiv 2306.05685); the expected calibration error of
Guo et al. 2017 (arXiv 1706.04599).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax.refine.judge import evaluator_accuracy
from ilr_jax.types import Audit, Comparison

BINS = 10


def asked(audit: Iterable[Audit]) -> list[Comparison]:
    """The comparisons that the decisions rest on: the label as `a`, the proposal as `b`."""
    return [
        Comparison(x.example_id, x.prompt, x.before, x.proposal, x.accept, x.reject, x.score, x.before_correct, x.proposal_correct)
        for x in audit
        if x.score is not None
    ]


def card(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """What can be told of any comparisons; None if there are none. A share of nothing is None.

    Keys, shares from 0 to 1, a score of exactly 0.5 counts half:

    - `comparisons`; `pairs`: those with exactly one right answer; `accuracy` over these
    - `flips`: of the `both_orders`, it prefers another answer when the two change places; `second`: mean probability of the answer in the
      second place; both None for an oracle, who is not asked in both orders
    - `longer`: of the `unequal` (in characters), it prefers the longer answer; `longer_right`: of the `unequal_pairs`, which are those
      among the `pairs`, the longer one is right
    - `calibration`: per tenth of the score, (pairs, mean score, share whose answer b is right); `calibration_error`: their mean distance
    """
    if not comparisons:
        return None
    score, a, b, decisive = _columns(comparisons)
    orders = np.array([(row.accept, row.reject) for row in comparisons if None not in (row.accept, row.reject)], float).reshape(-1, 2)
    longer = np.sign([len(row.b) - len(row.a) for row in comparisons])
    accuracy, pairs = evaluator_accuracy(score[decisive], a[decisive], b[decisive])
    bins = _calibration(score[decisive], b[decisive])
    unequal = longer != 0
    return {
        "comparisons": len(comparisons),
        "accuracy": accuracy,
        "pairs": pairs,
        "both_orders": len(orders),
        "flips": _mean((orders[:, 0] - 0.5) * (orders[:, 1] - 0.5) < 0),
        "second": _mean((orders[:, 0] + 1 - orders[:, 1]) / 2),
        "unequal": int(unequal.sum()),
        "longer": _mean(np.where(longer > 0, _likes(score), 1 - _likes(score))[unequal]),
        "unequal_pairs": int((decisive & unequal).sum()),
        "longer_right": _mean((b == (longer > 0))[decisive & unequal]),
        "calibration": bins,
        "calibration_error": float(abs(calibration_gaps(bins)).sum() / pairs) if pairs else None,
    }


def calibration_gaps(bins: Iterable[tuple[int, float, float]]) -> Float[np.ndarray, " bins"]:
    """By tenth of the score, how many more answers b were promised to be right than are; of a card's `calibration`."""
    gaps = np.zeros(BINS)
    for n, mean, right in bins:
        gaps[min(int(mean * BINS), BINS - 1)] = n * (mean - right)
    return gaps


def replacements(audit: Sequence[Audit]) -> dict[str, Any]:
    """What the comparisons meant for labels, besides; as `card`.

    - `accepts_wrong`: of the `right_labels` against a wrong proposal, those it would give up
    - `rejects_right`: of the `right_proposals` against a wrong label, those it would refuse
    - `replaced`: accepted proposals; `precision`: of the `replaced_known` among these, which are now the label, the proposal is right
    - `recall`: of the `right_proposals`, those that were accepted
    """
    score, was, would, decisive = _columns(asked(audit))
    rows = [row for row in audit if row.score is not None]
    taken = np.array([row.accepted for row in rows], bool)
    known = np.array([row.after == row.proposal and None not in (row.before_correct, row.proposal_correct) for row in rows], bool)
    return {
        "accepts_wrong": _mean(_likes(score)[decisive & was]),
        "right_labels": int((decisive & was).sum()),
        "rejects_right": _mean(1 - _likes(score)[decisive & would]),
        "right_proposals": int((decisive & would).sum()),
        "replaced": int(taken.sum()),
        "replaced_known": int((taken & known).sum()),
        "precision": _mean(would[taken & known]),
        "recall": _mean(taken[decisive & would]),
    }


def _columns(rows: Sequence[Comparison]) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"], Any]:
    """Scores, whether a and b are right, and whether exactly one is known to be."""
    score = np.array([row.score for row in rows], float)
    a, b = (np.array([bool(getattr(row, side)) for row in rows], bool) for side in ("a_correct", "b_correct"))
    known = np.array([None not in (row.a_correct, row.b_correct) for row in rows], bool)
    return score, a, b, known & (a != b)


def _likes(score: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Whether b is preferred: 1, 0, or 0.5 where it cannot tell."""
    return (np.sign(score - 0.5) + 1) / 2


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _calibration(score: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[tuple[int, float, float]]:
    """(number, mean score, share right) of every tenth of the score that holds some."""
    places = np.minimum((score * BINS).astype(int), BINS - 1)
    tenths = [here for b in range(BINS) if (here := places == b).any()]
    return [(int(here.sum()), float(score[here].mean()), float(right[here].mean())) for here in tenths]
