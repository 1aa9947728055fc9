"""What the reviewers asked for, on tiny random models: methods and variants run, share stages, and their records say what they did."""

import pytest
from test_variants import variant

from ilr_jax import feedback, provenance, refinement, rounds
from ilr_jax.lab import Lab
from ilr_jax.types import Answer, Artifact, Label

__all__ = ["variant"]
ROW = {*rounds.BLANK, "round", "audited", "asked", "test_accuracy", "test_interval", "test_size", "test_right", "answers", "model"}
ROW |= {"seconds", "training_flops"}


def test_methods_that_spend_the_same_comparisons_otherwise(variant):
    """SFT on chosen answers uses DPO's comparisons, DPO on pairs uses ILR's, and every row has the same fields."""
    found = variant(method="ilr,dpo,sft_chosen,dpo_pairs,weak")
    for row in (row for rows in found.values() for row in rows):
        assert set(row) == ROW
    last = {name: rows[-1] for name, rows in found.items()}
    fields = ("compared", "evaluator_accuracy", "evaluator_pairs")
    assert all(last["sft_chosen"][name] == last["dpo"][name] for name in (*fields, "preferences"))
    assert last["sft_chosen"]["labels"] == last["dpo"]["preferences"] > 0 and last["sft_chosen"]["label_accuracy"] is not None
    assert all(last["dpo_pairs"][name] == last["ilr"][name] for name in fields)
    assert 0 < last["dpo_pairs"]["preferences"] <= last["ilr"]["compared"] and last["dpo_pairs"]["label_accuracy"] is None
    assert len({rows[0]["model"] for name, rows in found.items() if name != "weak"}) == 1
    assert len({row["model"] for row in last.values()}) == 5
    (weak,) = found["weak"]
    assert weak["test_accuracy"] == weak["supervisor_accuracy"] == found["ilr"][0]["supervisor_accuracy"]
    assert (
        weak["evaluator_pairs"] > 0 and 0 <= weak["evaluator_accuracy"] <= 1 and weak["label_accuracy"] == found["ilr"][0]["label_accuracy"]
    )


@pytest.mark.parametrize("rule", ["filter", "add"])
def test_labels_are_dropped_or_added_over_two_rounds(variant, rule, tmp_path):
    rows = variant(method="ilr", feedback="oracle", refine__rule=rule, rounds=2)["ilr"]
    sign = 1 if rule == "add" else -1
    sizes = [row["labels"] for row in rows]
    assert rows[1]["replaced"] > 0 and [b - a for a, b in zip(sizes, sizes[1:], strict=False)] == [
        sign * row["replaced"] for row in rows[1:]
    ]
    assert rows[2]["audited"] == (12 if rule == "add" else sizes[1]) and (rows[1]["flows"] is None) == (rule == "filter")


@pytest.mark.parametrize("fields", [{"refine__proposer": "same"}, {"refine__proposer": "ensemble"}, {"refine__samples": 2}])
def test_other_proposers_and_several_proposals(variant, fields):
    fields |= {"decoding__proposals": "sample"} if "refine__samples" in fields else {}
    ilr = variant(method="ilr,naive", feedback="oracle", **fields)["ilr"][1]
    assert ilr["agreed"] + ilr["unread"] + ilr["compared"] == ilr["audited"] == 12
    picked = variant(method="ilr", feedback="oracle", refine__pick="feedback", **fields)["ilr"][1]
    if fields == {"refine__proposer": "same"}:
        assert picked["compared"] == ilr["compared"]  # there was nothing to pick from
    else:
        assert ilr["compared"] <= picked["compared"] <= 24 and picked["replaced"] >= ilr["replaced"]


def test_an_oracle_that_always_errs_accepts_what_is_wrong(variant):
    found = variant(method="ilr,dpo", feedback="oracle", oracle__error=1.0)
    flows = found["ilr"][1]["flows"]
    assert flows["wrong_to_wrong"] + flows["right_to_wrong"] == found["ilr"][1]["replaced"] > 0
    assert found["ilr"][1]["evaluator_accuracy"] == found["dpo"][1]["evaluator_accuracy"] == 0.0


def test_gold_demonstrations_are_corrupted_at_their_rate(variant, monkeypatch):
    """A text is right here if it is the reference."""
    right = lambda self, answers, examples: feedback.np.array([a == e.reference for a, e in zip(answers, examples, strict=True)], bool)
    monkeypatch.setattr("ilr_jax.tasks.gsm8k.Grading.grade", right)
    gold = [variant(method="sft", demos="gold", demos_error=error)["sft"][0]["label_accuracy"] for error in (0.0, 0.25)]
    assert gold == [1.0, 0.75]


@pytest.fixture
def lab(tiny_config, tmp_path):
    return Lab(tiny_config, tmp_path)


def test_one_model_that_proposes_is_the_rounds_own(lab, monkeypatch):
    """Trained on all labels under the name of the round's model, so that it is the same stage; with 'add' on old labels too."""
    lab.config.refine.proposer, trained = "same", []
    monkeypatch.setattr("ilr_jax.refinement.fine_tune", lambda bench, model, section, name, sets: trained.append((name, sets)))
    monkeypatch.setattr("ilr_jax.refinement.answer", lambda bench, model, name, groups, *_, purpose: groups)
    monkeypatch.setattr("ilr_jax.refinement.answers_of", lambda groups: [Answer(e.id, 0, 0, "x", 0.0, True) for g in groups for e in g])
    labels = [Label(example.id, f"#### {n}", "weak") for n in (1, 2) for example in lab.d2]
    assert len(refinement.propose(lab, labels, 1)) == len(lab.d2)
    ((name, (data,)),) = trained
    assert name == "sft" and data == lab.trainable(labels) and len(data) == 2 * len(lab.d2)


def test_the_evaluator_picks_and_naive_refinement_asks_nobody(lab, monkeypatch):
    monkeypatch.setattr(feedback, "score_fn", lambda *_: lambda requests: [0.5 + (len(b) - len(a)) / 100 for _, a, b in requests])
    lab.config.refine.pick, judge = "feedback", Artifact("", "", {"digest": "e"})
    labels = [Label(example.id, "#### 1", "weak") for example in lab.d2]
    candidates = [
        [Answer(label.example_id, 0, i, text, -float(i), True) for i, text in enumerate(("#### 2", "#### 345"))] for label in labels
    ]
    n = len(labels)
    assert refinement.choose(lab, "ilr", labels, candidates, judge, 1) == (["#### 345"] * n, 2 * n)
    assert refinement.choose(lab, "naive", labels, candidates, None, 1) == (["#### 2"] * n, None)


def test_references_are_wanted_where_labels_are_graded(lab):
    lab.config.demos, lab.d2[0] = "gold", type(lab.d2[0])("x", "q", None, "wordmath")
    with pytest.raises(ValueError, match="demos='gold': wanted a trusted reference .* got none in 1 of"):
        lab.check()


def test_exported_labels_of_added_proposals_have_their_own_decisions():
    from made_up_runs import decision

    decisions = [decision("q", 0, reason="given", score=None, proposal=""), decision("q", 1, accepted=True, score=0.9), decision("q", 2)]
    first, added = (
        provenance._provenance(label, decisions) for label in (Label("q", "#### 7", "weak"), Label("q", "#### 8", "proposal", 1))
    )
    assert (first["decision"], first["decided"], added["decision"], added["decided"]) == ("kept", 2, "accepted", 1)
