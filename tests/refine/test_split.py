"""Splits and folds: disjoint, complete, balanced, seeded, and independent of the input's order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.split import assignments, folds, parts, shuffled, train_split, uniform
from ilr_jax.types import Example

IDS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True)


def examples(n: int, text: str | None = None) -> list[Example]:
    return [Example(f"e{i}", text or f"question {i}", str(i), "test") for i in range(n)]


@pytest.mark.parametrize(("n", "sizes"), [(7473, (3736, 3737)), (2, (1, 1)), (3, (1, 2))])
def test_train_split_halves_and_gives_the_odd_one_to_d2(n, sizes):
    d1, d2 = train_split(examples(n), seed=0)
    assert (len(d1), len(d2)) == sizes
    assert sorted(e.id for e in d1 + d2) == sorted(e.id for e in examples(n))


def test_train_split_depends_on_the_seed_and_not_on_the_order_of_the_data():
    data = examples(50)
    assert train_split(data, 1) == train_split(data[::-1], 1)
    assert train_split(data, 1) != train_split(data, 2)
    assert [e.id for e in train_split(data, 1)[0]] != [e.id for e in data[:25]]


def test_train_split_keeps_examples_with_the_same_question():
    d1, d2 = train_split(examples(10, "the same question"), seed=0)
    assert len({e.id for e in d1 + d2}) == 10


def test_parts_go_by_trust_where_not_all_is_trusted():
    row = lambda name, reference, given: Example(name, "q", reference, "test", given=given)
    data = [row("both", "r", "g"), row("gold", "r", None), row("noisy", None, "g"), row("bare", None, None)]
    names = lambda *choice: tuple([e.id for e in part] for part in parts(data, *choice, seed=0))
    assert names("given", "untrusted") == (["both", "gold"], ["noisy"])
    assert names("given", "all") == (["both", "gold"], ["both", "noisy"])
    assert names("weak", "untrusted") == names("correct", "all") == (["both", "gold"], ["noisy", "bare"])
    assert parts(examples(9), "weak", "untrusted", 3) == train_split(examples(9), 3)


@pytest.mark.parametrize("n", [0, 1])
def test_train_split_refuses_what_cannot_be_halved(n):
    with pytest.raises(ValueError, match=f"at least 2 train examples.*got {n}"):
        train_split(examples(n), seed=0)


def test_equal_ids_are_refused_by_name():
    with pytest.raises(ValueError, match=r"got 1 more than once \(first: 'e1'\)"):
        train_split([*examples(4), examples(2)[1]], seed=0)


@settings(max_examples=100, deadline=None)
@given(IDS, st.integers(2, 5), st.integers(0, 5), st.integers(0, 5))
def test_folds_are_disjoint_complete_and_balanced(ids, k, seed, round):
    if len(ids) < k:
        with pytest.raises(ValueError, match=f"each of {k} folds, got {len(ids)} labels"):
            folds(ids, k, seed, round)
        return
    parts = folds(ids, k, seed, round)
    assert len(parts) == k
    assert sorted(i for part in parts for i in part) == list(range(len(ids)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == folds(ids, k, seed, round)


def test_folds_are_drawn_anew_for_each_round_and_seed():
    ids = [f"e{i}" for i in range(100)]
    drawn = {tuple(folds(ids, 2, seed, round)[0]) for seed in range(3) for round in range(4)}
    assert len(drawn) == 12
    members = [{ids[i] for i in part} for part in folds(ids, 2, 0, 0)]
    assert members == [{ids[::-1][i] for i in part} for part in folds(ids[::-1], 2, 0, 0)]


@pytest.mark.parametrize("k", [0, 1])
def test_one_fold_is_refused(k):
    with pytest.raises(ValueError, match="at least 2 folds"):
        folds(["a", "b"], k, 0, 0)


def test_draws_look_uniform_and_differ_by_purpose():
    draws = [uniform("test", i) for i in range(2000)]
    assert all(0 <= d < 1 for d in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
    assert uniform("test", 1) != uniform("other", 1)
    first = [shuffled(["a", "b", "c", "d"], "test", i)[0] for i in range(2000)]
    assert all(abs(first.count(j) / 2000 - 0.25) < 0.04 for j in range(4))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 3), st.sampled_from(["cross", "same", "ensemble"]))
def test_who_is_trained_on_what_and_proposes_for_whom(n, k, round, proposer):
    """Cross-labelling never proposes for what it has seen; an ensemble has the same models, asked about everything."""
    ids = [f"e{i}" for i in range(n)]
    if n < k and proposer != "same":
        return
    plan = assignments(ids, proposer, k, 0, round)
    asked = sorted(i for _, questions in plan for i in questions)
    if proposer == "cross":
        assert all(not set(seen) & set(questions) and sorted([*seen, *questions]) == list(range(n)) for seen, questions in plan)
        assert asked == list(range(n)) and len(plan) == k
    elif proposer == "ensemble":
        assert [seen for seen, _ in plan] == [seen for seen, _ in assignments(ids, "cross", k, 0, round)]
        assert asked == sorted(list(range(n)) * k)
    else:
        assert plan == [(list(range(n)), list(range(n)))]


def test_an_unknown_proposer_is_refused():
    with pytest.raises(ValueError, match="cross, same or ensemble, got 'self'"):
        assignments(["a", "b"], "self", 2, 0, 1)
