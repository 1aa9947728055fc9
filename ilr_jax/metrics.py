"""Accuracies and how sure we are of them: percentile bootstrap over examples, and over seeds.

Not here: grading (tasks) and tables (report). Numpy only; the same seed gives the same interval.
From: Efron's percentile bootstrap (1979).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped


class Estimate(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def accuracy(right: Bool[Any, "*N"]) -> float:
    """Share of true values. Raises ValueError for no values."""
    return float(np.mean(_checked(right)))


def bootstrap_interval(values: Shaped[Any, "*S N"], seed: int, n: int = 2000, level: float = 0.95) -> Estimate:
    """Mean of `values` with its bootstrap interval at `level`, from `n` resamples.

    One row is resampled over its examples; [S, N] is S seeds on the same N examples, and both are resampled, each as a
    whole, so that an example that is hard for every seed counts once. Raises ValueError for no values or non-finite ones.
    """
    if not 0 < level < 1 or n < 1:
        raise ValueError(f"wanted a level between 0 and 1 and at least 1 resample, got {level} and {n}")
    table = np.atleast_2d(_checked(values))
    means = _resampled_means(table, np.random.default_rng(seed), n)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(table.mean()), float(low), float(high))


def paired_difference(a: Shaped[Any, "*S N"], b: Shaped[Any, "*R M"], seed: int, n: int = 2000, level: float = 0.95) -> Estimate:
    """Mean of a - b with its interval; `a` and `b` are graded on the same examples (and seeds), so these are resampled together.

    Raises ValueError if the shapes differ.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"wanted results on the same examples and seeds, got shapes {a.shape} and {b.shape}; compare only what both have")
    return bootstrap_interval(a - b, seed, n, level)


def bootstrap_share(right: Shaped[Any, " S"], of: Shaped[Any, " R"], seed: int, n: int = 2000, level: float = 0.95) -> Estimate:
    """The `right` of all S runs over what they are `of`, with its interval from `n` resamples of whole runs.

    Runs of different size weigh by it; resamples that are of nothing are left out. Of one run, the things that it is of are resampled: of
    things that are right or wrong, a binomial number is right. Raises ValueError if all are of nothing.
    """
    right, of = _checked(right), _checked(of)
    if right.shape != of.shape or of.sum() <= 0:
        raise ValueError(f"wanted what is right and what it is of for each run, got shapes {right.shape} and {of.shape}, of {of.sum():g}")
    if len(of) > 1:
        return bootstrap_gaps(right[:, None], of, seed, n, level)
    share, size = float(right[0] / of[0]), round(float(of[0]))
    low, high = np.quantile(np.random.default_rng(seed).binomial(size, share, n) / size, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(share, float(low), float(high))


def bootstrap_gaps(gaps: Shaped[Any, "S B"], of: Shaped[Any, " S"], seed: int, n: int = 2000, level: float = 0.95) -> Estimate:
    """The sizes of the gaps that all S runs together leave in each of B places, summed, over what the runs are `of`; as `bootstrap_share`.

    With a place for each bin of a score, the expected calibration error.
    """
    drawn = np.random.default_rng(seed).multinomial(len(of), np.full(len(of), 1 / len(of)), size=n)
    drawn = drawn[drawn @ of > 0]
    low, high = np.quantile(abs(drawn @ gaps).sum(1) / (drawn @ of), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(abs(gaps.sum(0)).sum() / of.sum()), float(low), float(high))


def _checked(values: Any) -> Float[np.ndarray, "*S N"]:
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("wanted at least one value to average, got none; was the test split or the set of labels empty?")
    if values.ndim > 2 or not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"wanted finite values [N] or [S, N], got shape {values.shape} with {bad} non-finite; look at the grader")
    return values


def _resampled_means(table: Float[np.ndarray, "S N"], rng: np.random.Generator, n: int) -> Float[np.ndarray, " R"]:
    seeds, examples = table.shape
    means = np.empty(n)
    for i in range(n):
        # How often each seed and example was drawn: two small products instead of a resampled table.
        rows = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        columns = np.bincount(rng.integers(examples, size=examples), minlength=examples)
        means[i] = rows @ table @ columns / table.size
    return means
