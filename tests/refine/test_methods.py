"""One round of each method, on labels whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.methods import correct_demos, gold_demos, ilr_round, naive_round, oracle_round
from ilr_jax.refine.select import relabel
from ilr_jax.types import Example, Label

ROUND = st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 3)), min_size=1, max_size=40)


def world(rows):
    """Labels and proposals that are numbers in words; the right answer is always 0."""
    examples = [Example(f"e{i}", f"question {i}", "answer 0", "test") for i in range(len(rows))]
    labels = [Label(f"e{i}", f"label {a}", "weak") for i, (a, _) in enumerate(rows)]
    return labels, [None if b is None else f"proposal {b}" for _, b in rows], examples


def agree(a, b, examples):
    return np.array([x[-1] == y[-1] for x, y in zip(a, b, strict=True)])


def grade(answers, examples):
    return np.array([text[-1] == e.reference[-1] for text, e in zip(answers, examples, strict=True)])


def smaller_is_better(requests):
    """A judge that prefers the smaller number, by how much smaller it is."""
    return [0.5 + (int(a[-1]) - int(b[-1])) / 8 for _, a, b in requests]


def forbidden(*_):
    raise AssertionError("nobody may be asked")


@settings(max_examples=100, deadline=None)
@given(ROUND, st.floats(0, 1), st.sampled_from(["disagreeing", "all", "none"]))
def test_ilr_replaces_exactly_what_its_decisions_accept(rows, alpha, alpha_of):
    labels, proposals, examples = world(rows)
    decisions = ilr_round(labels, proposals, examples, agree, smaller_is_better, round=2, alpha=alpha, alpha_of=alpha_of)
    new = relabel(labels, decisions)
    assert [d.example_id for d in decisions] == [label.example_id for label in labels]
    for label, after, d, proposal in zip(labels, new, decisions, proposals, strict=True):
        assert after == (Label(label.example_id, d.proposal, "proposal", 2) if d.accepted else label)
        assert (d.before, d.proposal, d.round) == (label.text, proposal or "", 2)
        asked = proposal is not None and proposal[-1] != label.text[-1]
        assert (d.score is not None) == asked == (d.threshold is not None)
        assert d.accepted == (d.score is not None and d.threshold is not None and d.score > d.threshold)


@settings(max_examples=100, deadline=None)
@given(ROUND)
def test_ilr_without_a_cap_never_worsens_under_a_right_judge(rows):
    labels, proposals, examples = world(rows)
    new = relabel(labels, ilr_round(labels, proposals, examples, agree, smaller_is_better, round=0, alpha_of="none"))
    assert all(int(after.text[-1]) <= int(label.text[-1]) for label, after in zip(labels, new, strict=True))


def test_a_label_whose_comparison_got_no_answer_stays_and_does_not_count():
    labels, proposals, examples = world([(2, 0), (3, 0), (3, 1), (1, 1)])
    masked = lambda requests: np.ma.masked_array(smaller_is_better(requests), [i == 1 for i in range(len(requests))])
    decisions = ilr_round(labels, proposals, examples, agree, masked, round=1, alpha_of="none")
    assert [d.accepted for d in decisions] == [True, False, True, False]
    assert (decisions[1].reason, decisions[1].score) == ("not judged", None)


def test_the_threshold_looks_at_disagreeing_items_only():
    labels, proposals, examples = world([(1, 1)] * 80 + [(4, i % 4) for i in range(20)])  # 5 proposals at each of 4 scores

    def accepted(alpha_of):
        decisions = ilr_round(labels, proposals, examples, agree, smaller_is_better, round=0, alpha=0.3, alpha_of=alpha_of)
        return sum(d.accepted for d in decisions)

    assert accepted("disagreeing") == 5  # 6 of the 20 may be, the sixth ties with others
    assert accepted("none") == 20


def test_ilr_passes_prompt_label_and_proposal_in_that_order():
    labels, proposals, examples = world([(3, 1)])
    asked = []
    ilr_round(labels, proposals, examples, agree, lambda requests: asked.extend(requests) or [0.5] * len(requests), round=0)
    assert asked == [("question 0", "label 3", "proposal 1"), ("question 0", "proposal 1", "label 3")]


@pytest.mark.parametrize("rows", [[(1, 1)] * 5, [(1, None)] * 5, []])
def test_all_agree_none_read_or_nothing_at_all_asks_nobody(rows):
    labels, proposals, examples = world(rows)
    assert relabel(labels, ilr_round(labels, proposals, examples, agree, forbidden, round=0)) == labels
    assert relabel(labels, oracle_round(labels, proposals, examples, agree, forbidden, round=0)) == labels


def test_all_equal_scores_replace_nothing_under_the_cap():
    labels, proposals, examples = world([(3, 1)] * 10)
    assert relabel(labels, ilr_round(labels, proposals, examples, agree, smaller_is_better, round=0)) == labels


@settings(max_examples=100, deadline=None)
@given(ROUND, st.floats(0, 1), st.integers(0, 9))
def test_naive_replaces_its_share_of_all_labels_as_far_as_proposals_go(rows, alpha, seed):
    labels, proposals, examples = world(rows)
    decisions = naive_round(labels, proposals, examples, round=1, seed=seed, alpha=alpha)
    new = relabel(labels, decisions)
    accepted = [d for d in decisions if d.accepted]
    assert len(accepted) == min(int(alpha * len(rows) + 0.5), sum(p is not None for p in proposals))
    assert all(a.text == (d.proposal if d.accepted else d.before) for a, d in zip(new, decisions, strict=True))
    assert all(d.score is None for d in decisions)


def test_naive_is_random_seeded_and_can_match_a_count():
    labels, proposals, examples = world([(3, 1)] * 200)

    def drawn(round, seed):
        return [d.accepted for d in naive_round(labels, proposals, examples, round=round, seed=seed)]

    draws = [drawn(r, s) for s in (0, 1) for r in (0, 1)]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
    assert draws[0] == drawn(0, 0)
    decisions = naive_round(labels, proposals, examples, round=0, seed=0, match_count=7)
    assert sum(d.accepted for d in decisions) == 7
    assert {d.reason for d in decisions} == {"drawn at random with 7 of 200 labels", "not judged"}


@settings(max_examples=100, deadline=None)
@given(ROUND)
def test_the_oracle_accepts_exactly_the_right_proposals_that_disagree(rows):
    labels, proposals, examples = world(rows)
    decisions = oracle_round(labels, proposals, examples, agree, grade, round=0)
    assert [d.accepted for d in decisions] == [b == 0 and a != 0 for a, b in rows]


def test_the_oracle_can_be_capped_in_both_readings():
    labels, proposals, examples = world([(3, 0)] * 20 + [(3, 1)] * 20 + [(3, 3)] * 60)

    def accepted(**cap):
        return sum(d.accepted for d in oracle_round(labels, proposals, examples, agree, grade, round=0, **cap))

    assert accepted(alpha=0.15, alpha_of="none") == 20
    assert accepted(alpha=0.15, alpha_of="disagreeing") == 6
    assert accepted(alpha=0.15, alpha_of="all") == 15
    decisions = oracle_round(labels, proposals, examples, agree, grade, round=0, alpha=0.15, alpha_of="all")
    assert sum(d.reason == "the proposal is right, but 15 were accepted already" for d in decisions) == 5
    with pytest.raises(ValueError, match="got 'some'"):
        accepted(alpha_of="some")


def test_correct_demos_keep_only_what_is_graded_right():
    labels, _, _ = world([(0, None), (1, None), (0, None)])
    kept, decisions = correct_demos(labels, np.array([True, False, True]))
    assert kept == [labels[0], labels[2]]
    assert [d.reason for d in decisions] == ["kept: graded right", "dropped: graded wrong", "kept: graded right"]
    with pytest.raises(ValueError, match="got 0 of 3"):
        correct_demos(labels, np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"wanted 3 verdicts from the grades, got shape \(2,\)"):
        correct_demos(labels, np.ones(2, bool))


@settings(max_examples=100, deadline=None)
@given(ROUND, st.integers(0, 9))
def test_an_oracle_errs_at_its_rate_and_always_on_the_same_pairs(rows, seed):
    """Right at 0, always wrong at 1, and what is turned round at one rate is so at every higher one, in any order and round."""
    labels, proposals, examples = world(rows)

    def said(error, order=slice(None), round=1):
        decisions = oracle_round(labels[order], proposals[order], examples[order], agree, grade, round=round, seed=seed, error=error)
        assert all(d.accepted == (d.score == 1.0) and d.threshold == 0.5 for d in decisions if d.score is not None)
        return {d.example_id: d.score for d in decisions if d.score is not None}

    right = said(0.0)
    turned = [{name for name, score in said(error).items() if score != right[name]} for error in (0.0, 0.3, 0.6, 1.0)]
    assert turned[0] == set() and turned[3] == set(right) and all(a <= b for a, b in zip(turned, turned[1:], strict=False))
    assert said(0.3) == said(0.3, slice(None, None, -1)) == said(0.3, round=7)


def test_about_the_stated_share_of_verdicts_is_turned_round_and_the_audit_says_which():
    labels, proposals, examples = world([(3, 0), (3, 1)] * 500)
    decisions = oracle_round(labels, proposals, examples, agree, grade, round=1, error=0.2)
    wrong = [d for d, (_, b) in zip(decisions, [(3, 0), (3, 1)] * 500, strict=True) if d.accepted != (b == 0)]
    assert 160 < len(wrong) < 240 and all(d.reason.endswith("; the verdict is turned round") for d in wrong)
    assert not {d.example_id for d in decisions if "turned round" in d.reason} - {d.example_id for d in wrong}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.floats(0, 1), st.integers(0, 5))
def test_gold_demos_hold_exactly_the_share_of_wrong_answers(digits, error, seed):
    labels, _, examples = world([(digit, None) for digit in digits])
    grades, wanted = np.array([digit == 0 for digit in digits]), int(len(digits) * error + 0.5)
    references = [example.reference for example in examples]
    if wanted > sum(digits):
        with pytest.raises(ValueError, match=f"wanted {wanted} wrong answers of the supervisor .* got {sum(digits)}"):
            gold_demos(labels, references, grades, error, seed)
        return
    made, decisions = gold_demos(labels, references, grades, error, seed)
    kept = [i for i, label in enumerate(made) if label == labels[i]]
    assert len(kept) == wanted and not grades[kept].any()
    assert all(made[i] == Label(f"e{i}", "answer 0", "reference") for i in set(range(len(made))) - set(kept))
    assert [d.before for d in decisions] == [label.text for label in made]
