"""Agreement: what costs no comparison."""

import numpy as np
import pytest

from ilr_jax.refine.agree import above_median, standings
from ilr_jax.types import Example, Label

EXAMPLES = [Example(f"e{i}", f"question {i}", None, "test") for i in range(4)]
LABELS = [Label(f"e{i}", text, "weak") for i, text in enumerate(["1 #### 5", "2 #### 5", "same", "x"])]


def same_end(a, b, examples):
    return np.array([x.split()[-1] == y.split()[-1] for x, y in zip(a, b, strict=True)])


def test_standings_tell_agreeing_disagreeing_and_unread_apart():
    assert standings(LABELS, ["3 #### 5", "4 #### 6", None, "  \n"], EXAMPLES, same_end) == ["agrees", "disagrees", "unread", "unread"]


def test_the_same_text_agrees_whatever_the_task_says():
    never = standings(LABELS, ["other", "2 #### 5", "same", "y"], EXAMPLES, lambda a, b, e: [False] * len(a))
    assert never == ["disagrees", "agrees", "agrees", "disagrees"]


def test_the_task_sees_all_readable_pairs_in_one_call_and_none_if_there_are_none():
    calls = []

    def record(a, b, examples):
        calls.append((list(a), list(b), [e.id for e in examples]))
        return [True] * len(a)

    standings(LABELS, [None, "p1", None, "p3"], EXAMPLES, record)
    assert calls == [(["2 #### 5", "x"], ["p1", "p3"], ["e1", "e3"])]
    assert standings(LABELS, [None] * 4, EXAMPLES, record) == ["unread"] * 4
    assert len(calls) == 1


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="4 labels, 3 proposals, 4 examples"):
        standings(LABELS, ["a", "b", "c"], EXAMPLES, same_end)
    with pytest.raises(ValueError, match="'e0' beside 'e3'"):
        standings(LABELS, ["a"] * 4, EXAMPLES[::-1], same_end)
    with pytest.raises(ValueError, match=r"wanted 4 verdicts from agree_fn, got shape \(1,\)"):
        standings(LABELS, ["a"] * 4, EXAMPLES, lambda a, b, e: [True])


def test_above_median_is_the_upper_half_and_takes_nothing():
    assert above_median(np.array([0.1, 0.9, 0.5, 0.6])).tolist() == [False, True, False, True]
    assert above_median(np.array([0.5, 0.5])).tolist() == [False, False]
    assert above_median(np.zeros(0)).tolist() == []
