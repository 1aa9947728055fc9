"""Intervals: deterministic, of the right width, and refusing what they cannot average."""

import numpy as np
import pytest

from ilr_jax.metrics import accuracy, bootstrap_gaps, bootstrap_interval, bootstrap_share, paired_difference


def flips(p: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < p


def test_accuracy_is_the_share_of_true():
    assert accuracy(np.array([True, False, True, True])) == 0.75


def test_the_interval_has_the_width_of_the_binomial():
    right = flips(0.4, 1000)
    mean, low, high = bootstrap_interval(right, seed=0)
    assert mean == right.mean() and low < mean < high
    assert abs((high - low) / (2 * 1.96 * np.sqrt(mean * (1 - mean) / 1000)) - 1) < 0.1
    wide = bootstrap_interval(right, seed=0, level=0.99)
    assert wide.low < low and wide.high > high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = [low <= 0.4 <= high for _, low, high in (bootstrap_interval(flips(0.4, 200, seed=s), 0, n=300) for s in range(200))]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_the_same_seed_gives_the_same_interval():
    right = flips(0.4, 50)
    assert bootstrap_interval(right, 3) == bootstrap_interval(right, 3) != bootstrap_interval(right, 4)


def test_several_seeds_on_the_same_examples_are_not_taken_for_more_examples():
    right = flips(0.5, 200)
    one, five = bootstrap_interval(right, 0), bootstrap_interval(np.tile(right, (5, 1)), 0)
    assert abs((five.high - five.low) / (one.high - one.low) - 1) < 0.15


def test_seeds_that_differ_widen_the_interval():
    rows = np.array([[0.0] * 100, [1.0] * 100])
    _, low, high = bootstrap_interval(rows, 0)
    assert (low, high) == (0.0, 1.0)


def test_a_paired_difference_is_tighter_than_two_intervals():
    base = flips(0.5, 500)
    better = base | flips(0.1, 500, seed=1)
    difference = paired_difference(better, base, seed=0)
    assert difference.mean == pytest.approx(better.mean() - base.mean())
    assert 0 < difference.low < difference.high
    assert difference.high - difference.low < (lambda i: i.high - i.low)(bootstrap_interval(base, 0))
    assert paired_difference(base, base, 0) == (0, 0, 0)


@pytest.mark.parametrize("function", [accuracy, lambda v: bootstrap_interval(v, 0), lambda v: paired_difference(v, v, 0)])
def test_nothing_cannot_be_averaged(function):
    with pytest.raises(ValueError, match="at least one value"):
        function(np.zeros(0, bool))


def test_a_share_is_that_of_all_and_its_interval_is_over_runs():
    share, low, high = bootstrap_share(np.array([10, 90, 50]), np.array([100, 100, 50]), seed=0)
    assert share == 0.6 and low == pytest.approx(0.1) and high == pytest.approx(1.0)
    assert bootstrap_share(np.array([3, 6, 9]), np.array([10, 20, 30]), seed=0) == pytest.approx((0.3, 0.3, 0.3))
    share, low, high = bootstrap_share(np.array([30]), np.array([100]), seed=0)  # of one run, over the hundred
    assert share == 0.3 and (low, high) == pytest.approx((0.3 - 0.09, 0.3 + 0.09), abs=0.011)
    assert bootstrap_share(np.array([0, 1]), np.array([0, 2]), seed=0) == (0.5, 0.5, 0.5)  # a run that is of nothing says nothing
    many = np.random.default_rng(0).binomial(100, 0.7, size=200)
    _, low, high = bootstrap_share(many, np.full(200, 100), seed=0)
    wanted = 1.96 * many.std() / 100 / 200**0.5
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.1)


def test_gaps_of_all_runs_are_summed_before_their_sizes_are():
    one, other = np.array([[4.0, -1.0], [-4.0, -1.0]]), np.array([10, 10])
    error, low, high = bootstrap_gaps(one, other, seed=0)
    assert error == 2 / 20 and (low, high) == pytest.approx((2 / 20, 5 / 10))  # both runs once; one of them twice


def test_bad_values_and_settings_are_refused():
    for right, of in ((np.ones(2), np.ones(3)), (np.zeros(2), np.zeros(2))):
        with pytest.raises(ValueError, match="what is right and what it is of for each run"):
            bootstrap_share(right, of, 0)
    with pytest.raises(ValueError, match="1 non-finite"):
        bootstrap_interval(np.array([1.0, np.nan]), 0)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\)"):
        paired_difference(np.ones(3), np.ones(4), 0)
    with pytest.raises(ValueError, match="level between 0 and 1"):
        bootstrap_interval(np.ones(3), 0, level=95.0)
