"""Comparisons: the evaluator asked in both orders, so that its liking for a place cancels; and how often it is right.

Not here: the evaluator's prompt, its model, and what a score leads to. Every method that compares goes through `symmetric_score`; an
oracle, who grades, errs by `flipped`. From: paper section 3; `scoring='released'` from dpo.py of the authors' code
(github.com/HelloElwin/iterative-label-refinement, d1a2a27); an oracle of a given error rate is ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax.refine.split import uniform
from ilr_jax.types import Comparison

ScoreFn = Callable[[Sequence[tuple[str, str, str]]], Any]
"""[(prompt, first, second)] -> float [n]: P(the holder of `first`, answer A, accepts to change to `second`, answer B).

A judge may leave a request without a valid answer: that entry is masked (`numpy.ma`). NaN is no answer but a broken evaluator.
"""


def symmetric_score(
    score_fn: ScoreFn,
    ids: Sequence[str],
    prompts: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    scoring: str = "symmetric",
) -> list[Comparison | None]:
    """Compare answers `a` and `b` to each prompt: score = mean of P(accept | A=a, B=b) and P(reject | A=b, B=a).

    Swapping a and b turns a score s into 1 - s; an evaluator that looks at places only gives 0.5. All 2n requests go to
    `score_fn` in one call (none if there is nothing to compare); None stands where either got no valid answer. 'released' is the published
    DPO baseline's fault, kept for comparison with it: the second request is not swapped, so every score is mean(p, 1 - p) = 0.5 up to
    rounding.
    Raises ValueError for lists of unequal length, an unknown `scoring`, and scores that are not probabilities (NaN too).
    """
    if not len(ids) == len(prompts) == len(a) == len(b):
        raise ValueError(f"wanted one id, prompt, a and b per comparison, got {len(ids)}, {len(prompts)}, {len(a)}, {len(b)}")
    if scoring not in ("symmetric", "released"):
        raise ValueError(f"wanted scoring 'symmetric' or 'released', got {scoring!r}")
    if not ids:
        return []
    straight = list(zip(prompts, a, b, strict=True))
    swapped = list(zip(prompts, b, a, strict=True)) if scoring == "symmetric" else straight
    p = _probabilities(score_fn(straight + swapped), [*ids, *ids])
    accept, reject = p[: len(ids)], 1 - p[len(ids) :]
    rows = zip(ids, prompts, a, b, accept.tolist(), reject.tolist(), ((accept + reject) / 2).tolist(), strict=True)
    return [None if row[-1] is None else Comparison(*row) for row in rows]


def scores_of(comparisons: Sequence[Comparison | None]) -> Float[np.ndarray, " N"]:
    """The scores, NaN where there is no comparison."""
    return np.array([np.nan if c is None else c.score for c in comparisons], np.float64)


def flipped(ids: Sequence[str], a: Sequence[str], b: Sequence[str], error: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which verdicts on answers `a` and `b` an oracle that errs with probability `error` turns round.

    Drawn once for a question and two answers: the same whenever, in whichever order and beside whatever else they are compared, as an
    annotator's mistakes would be. What is turned round at one rate is so at every higher one. ValueError for lists of unequal length.
    """
    rows = zip(ids, a, b, strict=True)
    return np.array([uniform(seed, "flipped", i, *sorted((x, y))) < error for i, x, y in rows], bool)


def evaluator_accuracy(
    scores: Float[Any, " N"], a_right: Bool[Any, " N"] | None, b_right: Bool[Any, " N"] | None
) -> tuple[float | None, int]:
    """(accuracy, pairs): how often the evaluator preferred the right answer, over the pairs with exactly one right answer.

    `scores` is P(b is better), NaN where it was not told; a score of exactly 0.5 counts half. The accuracy is None where no pair counts,
    as where nothing says what is right (None).
    """
    if a_right is None or b_right is None:
        return None, 0
    scores, a_right, b_right = np.asarray(scores, float), np.asarray(a_right, bool), np.asarray(b_right, bool)
    decisive = (a_right != b_right) & ~np.isnan(scores)
    if not decisive.any():
        return None, 0
    lean = np.sign(scores - 0.5) * np.where(b_right, 1, -1)
    return float(np.mean((lean[decisive] + 1) / 2)), int(decisive.sum())


def _probabilities(scores: Any, ids: Sequence[str]) -> np.ma.MaskedArray:
    p = np.ma.asarray(scores, np.float64)
    if p.shape != (len(ids),):
        raise ValueError(f"wanted {len(ids)} scores from the evaluator, got shape {p.shape}; it must answer every request, in order")
    bad = np.flatnonzero(~((p.data >= 0) & (p.data <= 1)) & ~np.ma.getmaskarray(p))
    if bad.size:
        raise ValueError(
            f"wanted probabilities from the evaluator, got {p.data[bad[0]]} for example {ids[bad[0]]!r} ({bad.size} of {p.size} are bad); "
            "a NaN means a broken evaluator: train it again with a lower learning rate or in float32"
        )
    return p
