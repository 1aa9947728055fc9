"""The evaluator's pairs and DPO's preferences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.pairs import (
    both_orders,
    category_pairs,
    confident_preferences,
    decisive_preferences,
    disjoint_pairs,
    evaluator_pairs,
    oracle_preferences,
    split_pairs,
)
from ilr_jax.types import Audit, Comparison, Example, Pair


def example(i: int = 0, reference: str | None = "reference") -> Example:
    return Example(f"e{i}", f"question {i}", reference, "test")


def pairs_of(right: list[str], wrong: list[str], seed: int = 0) -> list[Pair]:
    return evaluator_pairs([example()], [right + wrong], [[True] * len(right) + [False] * len(wrong)], seed)


@pytest.mark.parametrize(
    ("right", "wrong", "kinds"),
    [
        (["r1", "r2"], ["w1"], ["reference over right", "right over wrong"]),
        (["r1"], [], ["reference over right"]),
        ([], ["w1", "w2"], ["reference over wrong"]),
        (["reference"], ["w1"], ["right over wrong"]),
        (["reference"], [], []),
        ([], [], []),
    ],
)
def test_kinds_of_pairs_of_a_question(right, wrong, kinds):
    pairs = pairs_of(right, wrong)
    assert [p.kind for p in pairs] == kinds
    for p in pairs:
        assert p.better in {*right, "reference"}
        assert p.worse in (right if p.kind == "reference over right" else wrong)
        assert (p.example_id, p.prompt) == ("e0", "question 0")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=10), max_size=12), st.integers(0, 3))
def test_no_pair_prefers_a_wrong_answer_or_compares_equal_texts(grades, seed):
    examples = [example(i) for i in range(len(grades))]
    answers = [[f"{'right' if g else 'wrong'} {j}" for j, g in enumerate(row)] for row in grades]
    pairs = evaluator_pairs(examples, answers, grades, seed)
    assert pairs == evaluator_pairs(examples, answers, grades, seed)
    assert all(p.better != p.worse and not p.better.startswith("wrong") for p in pairs)
    assert len(pairs) == sum((any(row)) + (not all(row)) for row in grades)


def test_early_checkpoints_are_drawn_twice_as_often_as_the_next():
    n = 8000
    wrong = [["w0", "w1", "w2"]] * n
    worse = [p.worse for p in evaluator_pairs([example(i) for i in range(n)], wrong, [[False] * 3] * n, seed=0)]
    assert [abs(worse.count(f"w{i}") / n - share) < 0.02 for i, share in enumerate((4 / 7, 2 / 7, 1 / 7))] == [True] * 3
    better = [
        p.better
        for p in evaluator_pairs([example(i) for i in range(n)], [["r0", "w0"]] * n, [[True, False]] * n, seed=0)
        if p.kind == "right over wrong"
    ]
    assert abs(better.count("r0") / n - 2 / 3) < 0.02 and abs(better.count("reference") / n - 1 / 3) < 0.02


def test_an_example_without_reference_is_named():
    with pytest.raises(ValueError, match="got none for 'e7'"):
        evaluator_pairs([example(7, None)], [["a"]], [[True]], 0)


def test_both_orders_accept_only_the_change_to_the_better_answer():
    assert both_orders([Pair("e", "q", "good", "bad")]) == [("q", "good", "bad", 0), ("q", "bad", "good", 1)]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 200), st.integers(0, 5))
def test_split_pairs_holds_a_tenth_out_and_loses_nothing(n, seed):
    pairs = [Pair(f"e{i // 2}", "q", f"b{i}", f"w{i}") for i in range(n)]
    train, held = split_pairs(pairs, seed)
    assert sorted(p.better for p in train + held) == sorted(p.better for p in pairs)
    assert len(held) == max(1, int(n * 0.1 + 0.5)) and train


def test_split_pairs_is_seeded_and_refuses_a_single_pair():
    pairs = [Pair(f"e{i}", "q", f"b{i}", "w") for i in range(100)]
    assert split_pairs(pairs, 0) == split_pairs(pairs, 0) != split_pairs(pairs, 1)
    assert split_pairs(pairs, 0)[1] != pairs[-10:]
    with pytest.raises(ValueError, match="at least 2 pairs.*got 1"):
        split_pairs(pairs[:1], 0)


def test_six_samples_make_three_disjoint_pairs():
    pairs = disjoint_pairs([example(0), example(1)], [list("abcdef"), list("ghijkl")])
    assert [(e.id, a, b) for e, a, b in pairs] == [(f"e{i // 3}", x, y) for i, (x, y) in enumerate(["ab", "cd", "ef", "gh", "ij", "kl"])]
    with pytest.raises(ValueError, match="even number of samples to pair, got 5 for 'e0'"):
        disjoint_pairs([example()], [list("abcde")])


def comparison(i: int, score: float) -> Comparison:
    return Comparison(f"e{i}", f"q{i}", "a", "b", score, score, score)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0, 1))
def test_confident_preferences_keep_the_surest_share_and_follow_the_score(scores, share):
    comparisons = [comparison(i, s) for i, s in enumerate(scores)]
    kept = confident_preferences(comparisons, seed=0, share=share)
    assert len(kept) == int(share * len(scores) + 0.5)
    chosen = [int(p.example_id[1:]) for p in kept]
    assert chosen == sorted(set(chosen))
    sure = [abs(s - 0.5) for s in scores]
    left = [sure[i] for i in range(len(scores)) if i not in chosen]
    assert not left or not chosen or max(left) <= min(sure[i] for i in chosen)
    assert all((p.better, p.worse) == (("b", "a") if scores[i] > 0.5 else ("a", "b")) for i, p in zip(chosen, kept, strict=True))


def test_equal_confidence_is_drawn_by_seed_and_not_by_place():
    comparisons = [comparison(i, 0.5) for i in range(100)]
    drawn = [[p.example_id for p in confident_preferences(comparisons, seed)] for seed in (0, 1)]
    assert drawn[0] != drawn[1] and drawn[0] != [f"e{i}" for i in range(15)]


def test_equal_answers_are_no_preference():
    same = Comparison("e0", "q", "a", "a", 1.0, 1.0, 1.0)
    assert [p.example_id for p in confident_preferences([same, comparison(1, 0.6)], seed=0, share=1.0)] == ["e1"]


def test_oracle_preferences_choose_the_right_answer_where_one_is():
    pairs = [(example(i), f"a{i}", f"b{i}") for i in range(4)]
    chosen = oracle_preferences(pairs, np.array([1, 0, 1, 0], bool), np.array([0, 1, 1, 0], bool))
    assert chosen == [Pair("e0", "question 0", "a0", "b0", "oracle"), Pair("e1", "question 1", "b1", "a1", "oracle")]


def test_an_oracle_may_be_held_to_a_share_of_all_pairs():
    pairs = [(example(i), f"a{i}", f"b{i}") for i in range(40)]
    right, wrong = np.array([1, 0] * 20, bool), np.zeros(40, bool)
    chosen = oracle_preferences(pairs, right, wrong, 3, 0.15)
    assert len(chosen) == 6 and chosen == [pair for pair in oracle_preferences(pairs, right, wrong) if pair in chosen]
    assert chosen != oracle_preferences(pairs, right, wrong, 4, 0.15)
    assert len(oracle_preferences(pairs, right, wrong, 3, 0.9)) == 20


def test_decisive_preferences_follow_the_verdict_on_pairs_with_one_right_answer():
    row = lambda name, score, was, would: Audit(name, 1, "q", "old", "new", "", False, "", None, None, score, 0.5, was, would)
    rows = [row("a", 1.0, False, True), row("b", 0.0, False, True), row("c", 0.0, True, False), row("d", 1.0, False, False)]
    made = decisive_preferences(rows)
    assert [(p.example_id, p.better, p.worse) for p in made] == [("a", "new", "old"), ("b", "old", "new"), ("c", "old", "new")]


def of_category(i, category):
    return Example(f"e{i}", f"question {i}", f"reference {i}", "t", {"category": category})


def test_two_models_make_pairs_by_category():
    examples = [of_category(i, "general" if i < 5 else "safety") for i in range(8)]
    general = {f"e{i}": f"general {i}" for i in range(5)}
    safety = {f"e{i}": "sorry" for i in range(8)} | {"e0": "general 0"}
    pairs = category_pairs(examples, general, safety, seed=0)
    own = [p for p in pairs if p.kind == "reference over own category"]
    assert [(p.better, p.worse) for p in own] == [(f"reference {i}", f"general {i}" if i < 5 else "sorry") for i in range(8)]
    across = [p for p in pairs if p.kind == "general over safety"]
    assert 2 <= len(across) <= 3 and all((p.better, p.worse) == (f"general {p.example_id[1]}", "sorry") for p in across)
    drawn = {tuple(p.example_id for p in category_pairs(examples, general, safety, seed)[8:]) for seed in range(9)}
    assert len(drawn) > 1 and category_pairs(examples, general, safety, seed=0) == pairs


def test_two_model_pairs_are_capped_and_leave_out_equal_texts():
    examples = [of_category(0, "general"), of_category(1, "safety"), of_category(2, "safety")]
    answers = {f"e{i}": f" reference {i}" for i in range(3)}
    assert category_pairs(examples, answers, answers, seed=0) == []
    assert (
        len(category_pairs(examples, {"e0": "g"}, {f"e{i}": "s" for i in range(3)}, seed=0)) == 4
    )  # one general question, two safety ones
    with pytest.raises(ValueError, match="the category general or safety for every example, got neither or one for 'e3'"):
        category_pairs([*examples, of_category(3, "other")], answers, answers, seed=0)
