"""Comparisons: both orders are really asked, place does not count, broken scores are refused."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.judge import evaluator_accuracy, scores_of, symmetric_score

TEXTS = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=12)


def arbitrary(requests):
    """A judge with a fixed, meaningless opinion of every ordered request."""
    return np.array([int.from_bytes(hashlib.sha256(repr(r).encode()).digest()[:6], "big") / 2**48 for r in requests])


def compare(score_fn, rows, scoring="symmetric"):
    n = len(rows)
    a, b = [r[0] for r in rows], [r[1] for r in rows]
    return symmetric_score(score_fn, [f"e{i}" for i in range(n)], [f"q{i}" for i in range(n)], a, b, scoring)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_swapping_the_answers_turns_a_score_into_its_complement(rows):
    there = compare(arbitrary, rows)
    back = compare(arbitrary, [(b, a) for a, b in rows])
    assert np.allclose([x.score + y.score for x, y in zip(there, back, strict=True)], 1, rtol=0, atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), TEXTS)
def test_a_judge_that_sees_only_places_gives_exactly_one_half(p, rows):
    assert all(c.score == 0.5 for c in compare(lambda requests: np.full(len(requests), p), rows))


def test_both_orders_are_asked_in_one_call_and_kept():
    asked = []

    def likes_b(requests):
        asked.append(requests)
        return [0.75 if second == "B" else 0.125 for _, _, second in requests]

    (c,) = symmetric_score(likes_b, ["e"], ["q"], ["A"], ["B"])
    assert asked == [[("q", "A", "B"), ("q", "B", "A")]]
    assert (c.example_id, c.prompt, c.a, c.b, c.accept, c.reject, c.score) == ("e", "q", "A", "B", 0.75, 0.875, 0.8125)


def test_released_scoring_does_not_swap_and_so_says_nothing():
    asked = []

    def record(requests):
        asked.extend(requests)
        return arbitrary(requests)

    comparisons = compare(record, [(f"a{i}", f"b{i}") for i in range(50)], "released")
    assert asked[:50] == asked[50:] and asked[0] == ("q0", "a0", "b0")
    assert all(abs(c.score - 0.5) < 1e-12 for c in comparisons)
    assert len({c.accept for c in comparisons}) == 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_score_that_is_no_probability_names_its_example(bad):
    with pytest.raises(ValueError, match=r"for example 'e1' \(1 of 4 are bad\).*NaN means"):
        compare(lambda requests: [0.5, bad, 0.5, 0.5], [("a", "b"), ("c", "d")])


def test_wrong_numbers_of_scores_lists_and_unknown_scoring_are_refused():
    with pytest.raises(ValueError, match=r"wanted 2 scores from the evaluator, got shape \(1,\)"):
        compare(lambda requests: [0.5], [("a", "b")])
    with pytest.raises(ValueError, match="got 1, 1, 2, 1"):
        symmetric_score(arbitrary, ["e"], ["q"], ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="'symmetric' or 'released', got 'both'"):
        compare(arbitrary, [("a", "b")], "both")


def test_nothing_to_compare_asks_nobody():
    def unexpected(requests):
        raise AssertionError(requests)

    assert compare(unexpected, []) == []


def test_evaluator_accuracy_counts_only_pairs_with_one_right_answer():
    scores = np.array([0.9, 0.9, 0.1, 0.5, 0.9, 0.1])
    a_right = np.array([False, True, True, False, True, False])
    b_right = np.array([True, False, False, True, True, False])
    assert evaluator_accuracy(scores, a_right, b_right) == ((1 + 0 + 1 + 0.5) / 4, 4)
    assert evaluator_accuracy(scores[4:], a_right[4:], b_right[4:]) == (None, 0)


def test_a_masked_score_is_no_comparison_and_nan_is_broken_still():
    masked = lambda hidden: lambda requests: np.ma.masked_array([0.9] * 3 + [0.2] * 3, [i in hidden for i in range(6)])
    rows = [("a", "b"), ("c", "d"), ("e", "f")]
    assert [c and c.score for c in compare(masked({1}), rows)] == [pytest.approx(0.85), None, pytest.approx(0.85)]
    assert [c is None for c in compare(masked({3}), rows)] == [True, False, False]  # the other order of the first one
    assert scores_of(compare(masked({1}), rows)) == pytest.approx([0.85, np.nan, 0.85], nan_ok=True)
    with pytest.raises(ValueError, match="got nan for example 'e1'"):
        compare(lambda requests: np.ma.masked_array([0.5, np.nan] * 3, [True] + [False] * 5), rows)


def test_accuracy_leaves_out_what_has_no_score_and_is_unknown_where_nothing_says_what_is_right():
    right, wrong = np.array([True, True]), np.array([False, False])
    assert evaluator_accuracy(np.array([0.1, np.nan]), right, wrong) == (1.0, 1)
    assert evaluator_accuracy(np.array([0.1, 0.2]), None, None) == (None, 0)
