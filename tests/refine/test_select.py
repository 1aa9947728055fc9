"""The threshold's three readings and edges; decisions and what they do to labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.select import RULES, judged, label_flows, newest, relabel, share_of, threshold, unasked
from ilr_jax.types import Comparison, Decision, Label

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=80).map(np.array)


def replaced(scores, *args):
    return int(np.sum(scores > threshold(scores, *args)))


@settings(max_examples=200, deadline=None)
@given(SCORES, st.floats(0, 1))
def test_the_cap_holds_for_the_disagreeing_items(scores, alpha):
    assert replaced(scores, alpha, "disagreeing") <= np.ceil(alpha * scores.size + 1e-9)
    assert threshold(scores, alpha) == max(0.5, np.quantile(scores, 1 - alpha))


@settings(max_examples=200, deadline=None)
@given(SCORES, st.floats(0, 1), st.integers(0, 200))
def test_the_cap_holds_for_all_labels(scores, alpha, agreeing):
    total = scores.size + agreeing
    assert replaced(scores, alpha, "all", total) <= np.ceil(alpha * total + 1e-9)
    assert replaced(scores, alpha, "all", total) >= replaced(scores, alpha, "disagreeing", total)


@settings(max_examples=50, deadline=None)
@given(SCORES, st.floats(0, 1))
def test_without_a_cap_one_half_decides(scores, alpha):
    assert threshold(scores, alpha, "none", 1000) == 0.5


def test_readings_of_alpha_on_a_known_case():
    scores = np.linspace(0.505, 0.995, 50)  # 50 disagreeing items of 100 labels, all preferred
    assert [replaced(scores, 0.2, of, 100) for of in ("disagreeing", "all", "none")] == [10, 20, 50]


def test_edges_have_the_stated_outcome():
    scores = np.array([0.4, 0.6, 0.8])
    assert replaced(scores, 0.0) == 0
    assert replaced(scores, 1.0) == 2
    assert replaced(np.array([0.6, 0.7, 0.8]), 1.0) == 2  # a score must exceed the lowest
    assert replaced(np.full(9, 0.7), 0.15) == 0  # all equal
    assert replaced(np.array([0.1, 0.2]), 0.5) == 0
    assert [threshold(np.zeros(0), 0.15, of, 10) for of in ("disagreeing", "all", "none")] == [0.5, 0.5, 0.5]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, got 15"):
        threshold(np.array([0.5]), 15.0)
    with pytest.raises(ValueError, match="'disagreeing', 'all' or 'none', got 'half'"):
        threshold(np.array([0.5]), 0.15, "half")


@pytest.mark.parametrize(("n", "share", "count"), [(11211, 0.15, 1682), (10, 0.15, 2), (10, 0.0, 0), (10, 1.0, 10), (0, 0.5, 0)])
def test_share_of(n, share, count):
    assert share_of(n, share) == count


def test_decisions_say_why_and_relabel_follows_them():
    labels = [Label(f"e{i}", f"label {i}", "weak") for i in range(4)]
    decisions = [
        judged(Comparison("e0", "q", "label 0", "proposal 0", 0.9, 0.72, 0.81), 0.64, 3),
        judged(Comparison("e1", "q", "label 1", "proposal 1", 0.5, 0.66, 0.58), 0.64, 3),
        unasked(labels[2], "proposal 2", "agrees", 3),
        unasked(labels[3], None, "unread", 3),
    ]
    assert [d.reason for d in decisions] == [
        "score 0.8100 > threshold 0.6400",
        "score 0.5800 <= threshold 0.6400",
        "agrees with the label",
        "the proposal is empty",
    ]
    first = decisions[0]
    assert (first.before, first.proposal, first.accept, first.reject, first.score, first.threshold) == (
        *("label 0", "proposal 0"),
        *(0.9, 0.72, 0.81, 0.64),
    )
    assert relabel(labels, decisions) == [Label("e0", "proposal 0", "proposal", 3), *labels[1:]]


def test_a_score_at_the_threshold_is_not_enough():
    assert not judged(Comparison("e", "q", "a", "b", 0.5, 0.5, 0.5), 0.5, 0).accepted


def test_label_flows_count_replaced_labels_only():
    before = np.array([True, True, False, False, False, True])
    after = np.array([True, False, True, False, True, False])
    was_replaced = np.array([True, True, True, True, False, False])
    flows = label_flows(before, after, was_replaced)
    assert flows == {"right_to_right": 1, "right_to_wrong": 1, "wrong_to_right": 1, "wrong_to_wrong": 1}
    assert sum(label_flows(before, after, ~was_replaced).values()) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_rules_drop_add_or_exchange_and_touch_nothing_else(rounds):
    """Over several rounds: 'filter' only loses, 'add' only gains, 'replace' keeps one label a question."""
    for rule in RULES:
        labels = [Label(f"e{i}", f"label {i}", "weak") for i in range(5)]
        for number, flags in enumerate(rounds, 1):
            current = newest(labels)
            decisions = [Decision(x.example_id, number, x.text, f"new {number}", flags[int(x.example_id[1])], "") for x in current]
            after, accepted = relabel(labels, decisions, rule), {d.example_id for d in decisions if d.accepted}
            fresh = [x for x in after if x not in labels]
            assert {x.example_id for x in fresh} == (set() if rule == "filter" else accepted)
            assert all((x.text, x.source, x.round) == (f"new {number}", "proposal", number) for x in fresh)
            gone = [x for x in labels if x not in after]
            assert {x.example_id for x in gone} == (set() if rule == "add" else accepted)
            assert len(after) == len(labels) + len(fresh) - len(gone)
            if rule != "filter":
                assert [x.example_id for x in newest(after)] == [f"e{i}" for i in range(5)]
                assert all(x.round == number for x in newest(after) if x.example_id in accepted)
            labels = after


def test_relabelling_wants_a_known_rule_and_a_decision_for_every_question():
    labels = [Label("e0", "a", "weak")]
    with pytest.raises(ValueError, match="wanted the rule replace, filter, add, got 'drop'"):
        relabel(labels, [Decision("e0", 1, "a", "b", True, "")], "drop")
    with pytest.raises(ValueError, match="wanted one decision for each of 1 questions"):
        relabel(labels, [])
