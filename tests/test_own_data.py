"""One's own noisy demonstrations, refined from end to end on tiny models; what nobody can know is null, and nothing stumbles over it."""

import json
import re

import pytest

from configs import jsonl as published
from ilr_jax import cli, demos, feedback, preference, provenance, rounds
from ilr_jax.files import read_json, read_rows
from ilr_jax.lab import Lab
from ilr_jax.types import Artifact, Audit


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def noisy(n, **fields):
    return [{"id": f"mine-{i}", "question": f"What is {i}+{i}?", "answer": f"It is {2 * i + i % 2}", **fields} for i in range(n)]


def gold(n):
    return [{**row, "reference": f"It is {2 * i}"} for i, row in enumerate(noisy(n))]


@pytest.fixture
def own(tiny_config, tmp_path):
    """`own(rows, test_rows, rounds=2)` is the tiny config on these rows as given demonstrations."""

    def make(rows, test=(), **fields):
        config = tiny_config.copy_and_resolve_references()
        config.task.update({**published.get_config().task, "path": write(tmp_path / "mine.jsonl", rows)})
        config.task.test_path = write(tmp_path / "test.jsonl", test) if test else ""
        config.update({"demos": "given", **fields})
        return config

    return make


def test_demonstrations_are_refined_without_a_test_split(own, tmp_path, capsys):
    trusted, rest = [{**row, "trusted": True} for row in noisy(12)[:6]], noisy(12)[6:]
    rounds.run(own(trusted + rest, method="sft,ilr"), tmp_path / "run")
    ((first, last),) = [read_json(path)["rounds"] for path in (tmp_path / "run" / "runs").glob("ilr-*")]
    for name in ("test_accuracy", "test_interval", "test_size", "answers", "supervisor_accuracy", "label_accuracy", "evaluator_accuracy"):
        assert first[name] is None and last[name] is None, name
    assert first["labels"] == last["labels"] == 6 and last["agreed"] + last["unread"] + last["compared"] == 6
    assert last["flows"] is None and last["compared"] > 0
    assert "how right it is nobody knows without trusted references of test questions (task.test_path)" in capsys.readouterr().out
    stages = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "stages").iterdir()}
    assert {"weak", "evaluator", "sft"} <= stages and not {"weak-labels", "weak-test", "test"} & stages

    assert cli.main(["status", str(tmp_path / "run")]) == 0
    assert "test accuracy not known" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "test accuracy is not known" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "test accuracy is not known" in (tmp_path / "run" / "report.html").read_text()
    exported = provenance.labels(tmp_path / "run", "ilr", 0)
    assert [row["example_id"] for row in exported] == [row["id"] for row in rest]
    assert {row["source"] for row in exported} <= {"given", "proposal"}
    kept = {row["example_id"]: row["text"] for row in provenance.labels(tmp_path / "run", "sft", 0)}
    assert kept == {row["id"]: row["answer"] for row in rest}


def test_demonstrations_with_references_are_refined_by_an_oracle(own, tmp_path):
    config = own(gold(8), test=gold(4), method="ilr", feedback="oracle", given="all")
    config.weak.model = config.evaluator.model = "embedded:no such model"  # which neither is asked nor loaded
    rounds.run(config, tmp_path / "run")
    ((first, last),) = [read_json(path)["rounds"] for path in (tmp_path / "run" / "runs").glob("*.json")]
    assert first["label_accuracy"] == 0.5 and first["supervisor_accuracy"] is None and first["test_size"] == last["test_size"] == 4
    assert last["flows"]["right_to_wrong"] == 0 and last["evaluator_accuracy"] == 1.0  # who is asked is an oracle


def test_test_questions_that_stand_in_train_are_told_and_recorded(own, tmp_path, caplog):
    tests = [{**gold(8)[3], "id": "a", "question": " What is  3+3?\n"}, {**gold(9)[8], "id": "b"}]
    config = own(gold(8), test=tests, method="sft", feedback="oracle", given="all")
    rounds.run(config, tmp_path / "run")
    assert "1 of 2 test questions also stand in train; the first: test-a" in caplog.messages
    assert read_json(tmp_path / "run" / "runs" / "sft-seed0.json")["tests_in_train"] == 1


def test_a_workdir_that_goes_on_with_other_data_says_so(own, tmp_path, capsys):
    fields = {"test": gold(4), "method": "sft", "feedback": "oracle", "given": "all"}
    for rows, told in ((gold(8), False), (gold(8), False), (gold(7) + [{**gold(8)[7], "answer": "It is 15, I think"}], True)):
        rounds.run(own(rows, **fields), tmp_path / "run")
        said = [line for line in capsys.readouterr().out.splitlines() if "was made of other data" in line]
        assert (
            said
            == ["[1/1] sft: sft-seed0.json was made of other data: what the data changes is done anew, and then the record is replaced"]
            * told
        )
    assert len(list((tmp_path / "run" / "stages").glob("sft-*"))) == 2  # nothing of the older data is lost


def test_labels_of_which_some_have_references_are_graded_where_they_have_one(own, tmp_path):
    lab = Lab(own(gold(6)[:3] + noisy(6)[3:], given="all"), tmp_path)
    labels, _ = demos.first_labels(lab)
    assert [(x.text, x.source) for x in labels] == [(row["answer"], "given") for row in noisy(6)]
    assert lab.grade_labels(lab.known(labels)).tolist() == [True, False, True]
    audit = read_rows(tmp_path / demos.first_labels(lab)[1]["label_file"].replace("labels.jsonl", "audit.jsonl"), Audit)
    assert [row.before_correct for row in audit] == [True, False, True, None, None, None]


def test_preferences_between_answers_that_nobody_can_grade(own, tmp_path, monkeypatch):
    lab = Lab(own([{**row, "trusted": i < 2} for i, row in enumerate(noisy(6))]), tmp_path)
    monkeypatch.setattr(feedback, "score_fn", lambda *_: lambda requests: [0.5 + (r[1] > r[2]) * 0.4 for r in requests])
    lab.config.dpo.share = 1.0
    chosen, facts, asked = preference._preferences(lab, [(example, "one", "another") for example in lab.d2], Artifact("", "", {}))
    assert {(x.a_correct, x.b_correct) for x in asked} == {(None, None)}
    assert len(chosen) == facts["preferences"] == 4 and facts["evaluator_accuracy"] is None and facts["evaluator_pairs"] == 0


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (noisy(6), {}, r"wanted rows with a trusted reference, which the evaluator learns from, got none in 6; .*feedback='judge'"),
        (noisy(6), {"demos": "weak"}, "wanted rows with a trusted reference, which the supervisor learns from"),
        (noisy(6), {"feedback": "oracle"}, r"feedback='oracle': wanted a trusted reference in every row .* in 6 of 6 \(first: 'mine-0'\)"),
        (gold(6)[:3] + noisy(6)[3:], {"demos": "correct"}, "demos='correct': wanted a trusted reference .* in 3 of 3"),
        (gold(6), {}, "demos='given': wanted answers that came with the data and that nobody has checked, got none, .*given='all'"),
        (gold(6)[:5] + noisy(6)[5:], {}, "folds=2: wanted at most the 1 examples"),
    ],
)
def test_data_that_cannot_do_what_is_asked_says_what_to_do(own, tmp_path, rows, fields, message):
    with pytest.raises(ValueError, match=message):
        Lab(own(rows, **fields), tmp_path).check()


def test_a_demonstration_too_long_to_compare_is_refused_at_once(own, tmp_path):
    rows = [{**row, "trusted": i < 4} for i, row in enumerate(noisy(8))]
    rows[6]["answer"] = "so " * 400
    with pytest.raises(ValueError, match="comparing two answers to the question that begins 'What is 6.6"):
        feedback.check(Lab(own(rows), tmp_path))


def test_a_changed_reference_is_another_stage(own, tmp_path):
    changed = [{**row, "reference": "It is 5"} for row in gold(4)]
    one, two = (Lab(own(rows, given="all"), tmp_path).graded for rows in (gold(4), changed))
    assert one != two and one == Lab(own(gold(4), given="all"), tmp_path).graded


def test_the_published_config_refines_what_came_with_the_data():
    config = published.get_config()
    assert (config.demos, config.task.answers, config.task.name) == ("given", "given", "jsonl")
