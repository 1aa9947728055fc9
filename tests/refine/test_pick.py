"""Which of several proposals is put forward: the likeliest whole one, or the one that is liked best."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.pick import likeliest, preferred
from ilr_jax.types import Answer, Example, Label

ANSWERS = st.lists(st.tuples(st.sampled_from(["", " ", "a", "b"]), st.floats(-50, 0), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(ANSWERS)
def test_the_likeliest_is_whole_if_any_is(rows):
    candidates = [Answer("e", 0, i, *row) for i, row in enumerate(rows)]
    chosen = likeliest(candidates)
    whole = [(log_prob, text) for text, log_prob, finished in rows if text.strip() and finished]
    if whole:
        assert (max(whole)[0], chosen) in whole
    assert bool(chosen.strip()) == any(text.strip() for text, _, _ in rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=8), st.integers(0, 9))
def test_the_preferred_one_has_the_best_score_and_a_text_is_asked_about_once(candidates, current):
    """The judge likes large numbers; what agrees with the label counts as neither better nor worse."""
    n, asked = len(candidates), []
    labels, examples = [Label(f"e{i}", str(current), "weak") for i in range(n)], [Example(f"e{i}", "q", None, "t") for i in range(n)]

    def prefer(shown, a, b):
        assert set(a) == {str(current)}
        asked.extend((example.id, text) for example, text in zip(shown, b, strict=True))
        return [0.5 + (int(text) - current) / 20 for text in b]

    agree = lambda a, b, examples: [x == y for x, y in zip(a, b, strict=True)]
    texts = [[str(number) for number in numbers] for numbers in candidates]
    best, count = preferred(labels, texts, examples, agree, prefer)
    assert [int(text) for text in best] == [max(numbers) for numbers in candidates]
    assert count == len(asked) == len(set(asked)) and str(current) not in {text for _, text in asked}


def test_a_blank_proposal_is_taken_only_where_there_is_no_other():
    labels, examples = [Label(name, "x", "weak") for name in "ab"], [Example(name, "q", None, "t") for name in "ab"]
    never = lambda a, b, examples: [False] * len(a)
    assert preferred(labels, [["", "y"], [" ", ""]], examples, never, lambda *_: [0.0])[0] == ["y", " "]


def test_without_a_proposal_there_is_nothing_to_pick():
    with pytest.raises(ValueError, match="at least one proposal"):
        likeliest([])
    with pytest.raises(ValueError, match="at least one proposal"):
        preferred([Label("a", "x", "weak")], [[]], [Example("a", "q", None, "t")], lambda *_: [], lambda *_: [])
