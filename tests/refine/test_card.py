"""The report card, against counts made by hand."""

from dataclasses import replace

import pytest

from ilr_jax.refine import card as cards
from ilr_jax.types import Audit


def card(audit):
    """Both halves of the card of decisions."""
    return cards.card(cards.asked(audit)) | cards.replacements(audit)


def decided(accept, reject, right=(False, True), label="####7", proposal="#### 8", accepted=False, name="q"):
    after = proposal if accepted else label
    score = (accept + reject) / 2
    return Audit(name, 1, "Question?", label, proposal, after, accepted, "", accept, reject, score, 0.6, *right)


RIGHT, WRONG = (False, True), (True, False)  # the proposal is the right one; the label is


def test_accuracy_and_both_errors_are_shares_of_their_own_pairs():
    rows = [
        decided(0.9, 0.9, RIGHT),
        decided(0.2, 0.2, RIGHT),
        decided(0.8, 0.8, WRONG),
        decided(0.5, 0.5, WRONG),
        decided(0.1, 0.1, WRONG),
    ]
    rows += [decided(0.9, 0.9, right) for right in ((True, True), (False, False), (None, None))]  # say nothing of what it should prefer
    found = card(rows)
    assert (found["comparisons"], found["pairs"], found["right_labels"], found["right_proposals"]) == (8, 5, 3, 2)
    assert found["accuracy"] == pytest.approx(2.5 / 5)
    assert found["rejects_right"] == 0.5 and found["accepts_wrong"] == pytest.approx(1.5 / 3)


def test_flips_and_the_liking_for_a_place():
    """accept and reject are both the probability of the proposal, in the second place and in the first."""
    always_second, fair = decided(0.9, 0.1), decided(0.8, 0.8)
    assert card([always_second])["flips"] == 1.0 and card([always_second])["second"] == pytest.approx(0.9)
    assert card([fair])["flips"] == 0.0 and card([fair])["second"] == 0.5
    found = card([always_second, fair, fair, replace(fair, accept=None)])
    assert found["flips"] == pytest.approx(1 / 3) and found["both_orders"] == 3


def test_length_is_told_beside_what_is_right():
    short, long = "#### 1", "a long way to #### 1"
    rows = [decided(0.9, 0.9, RIGHT, short, long), decided(0.9, 0.9, WRONG, short, long), decided(0.1, 0.1, WRONG, long, short)]
    rows += [decided(0.9, 0.9, RIGHT, long, short), decided(0.9, 0.9, RIGHT, short, short)]
    found = card(rows)
    assert found["longer"] == 0.75 and found["longer_right"] == 0.5 and found["unequal"] == found["unequal_pairs"] == 4
    either = decided(0.9, 0.9, (True, True), short, long)
    assert [card([*rows, either])[name] for name in ("unequal", "unequal_pairs")] == [5, 4]


def test_calibration_is_by_tenths_of_the_score():
    rows = [decided(1.0, 1.0, RIGHT), decided(0.95, 0.95, WRONG), decided(0.12, 0.12, WRONG), decided(0.3, 0.3, (True, True))]
    found = card(rows)
    assert found["calibration"] == [(1, pytest.approx(0.12), 0.0), (2, pytest.approx(0.975), 0.5)]
    assert found["calibration_error"] == pytest.approx((0.12 + 2 * 0.475) / 3)
    assert cards.calibration_gaps(found["calibration"]) == pytest.approx([0, 0.12, *[0] * 7, 2 * 0.475])


def test_precision_and_recall_of_what_was_replaced():
    rows = [
        decided(0.9, 0.9, RIGHT, accepted=True),
        decided(0.9, 0.9, (True, True), accepted=True),
        decided(0.9, 0.9, WRONG, accepted=True),
    ]
    rows += [decided(0.4, 0.4, RIGHT), decided(0.9, 0.9, (None, None), accepted=True)]
    found = card(rows)
    assert (found["replaced"], found["replaced_known"], found["precision"], found["recall"]) == (4, 3, pytest.approx(2 / 3), 0.5)
    dropped = card(
        [replace(row, after="") if row.accepted else row for row in rows]
    )  # as by the rule 'filter': no label has become another
    assert (dropped["replaced"], dropped["replaced_known"], dropped["precision"], dropped["recall"]) == (4, 0, None, 0.5)


def test_without_references_there_are_shares_of_the_comparisons_only():
    found = card([decided(0.9, 0.1, (None, None)), decided(0.7, 0.9, (None, None))])
    unknown = {name for name, value in found.items() if value is None}
    assert unknown == {"accuracy", "accepts_wrong", "rejects_right", "longer_right", "calibration_error", "precision", "recall"}
    assert found["flips"] == 0.5 and found["longer"] == 0.75 and found["calibration"] == [] and found["pairs"] == 0


def test_an_oracle_has_a_card_without_orders_and_who_was_not_asked_none():
    """It knows the score only, and naive refinement nothing."""
    oracle = replace(decided(1.0, 1.0), accept=None, reject=None)
    found = card([oracle])
    assert found["accuracy"] == 1.0 and found["rejects_right"] == 0.0 and found["flips"] is found["second"] is None
    nobody = [replace(oracle, score=None)]
    assert cards.card([]) is None and cards.asked(nobody) == [] and cards.replacements(nobody) == cards.replacements([])
    assert cards.replacements([])["precision"] is None and cards.replacements([])["replaced"] == 0
