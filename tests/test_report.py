"""The report says what the artifacts say, the same bytes each time."""

import csv
import hashlib
import html
import json
import subprocess
import sys

import pytest
from made_up_runs import make_workdir, round_row, write_run
from rich.console import Console

from ilr_jax import estimates, page, provenance, report
from ilr_jax.files import read_json, write_json


def row_of(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_rows_are_the_records_and_null_where_a_figure_does_not_apply(workdir):
    rows = report.collect([workdir])
    assert [(row["method"], row["round"]) for row in rows] == [("sft", 0), ("dpo", 0), ("dpo", 1), ("ilr", 0), ("ilr", 1), ("ilr", 2)]
    row = row_of(rows, method="ilr", round=2)
    assert (row["seed"], row["test_accuracy"], row["evaluator_accuracy"], row["wrong_to_right"], row["threshold"]) == (
        0,
        0.61,
        0.8,
        1,
        0.63,
    )
    row = row_of(rows, method="dpo", round=1)
    assert row["compared"] == 150 and row["replaced"] is None and row["label_accuracy"] is None and row["wrong_to_right"] is None


def test_results_file(workdir):
    assert report.write([workdir]) == workdir / "report.html"
    results = read_json(workdir / "results.json")
    row = row_of(results["rows"], method="ilr", round=1)
    assert (row["label_accuracy"], row["audit"]) == (pytest.approx(0.51), "stages/refine-01/audit.jsonl")
    ilr = row_of(results["summary"], method="ilr")
    assert (ilr["test_accuracy"], ilr["test_interval"], ilr["replaced"], ilr["rounds"]) == (0.61, [0.57, 0.65], 2, 2)
    assert ilr["evaluator_accuracy"] == pytest.approx((0.6 * 10 + 0.8 * 30) / 40)
    assert ilr["difference"] == {"mean": pytest.approx(0.11), "interval": None, "seeds": [0], "over": "seeds"}
    assert row_of(results["summary"], method="sft")["difference"] is None
    card = row_of(results["cards"], series="ilr")
    assert (card["comparisons"], card["pairs"]) == (4, 4) and card["recall"] == 2 / 3 and card["accepts_wrong"] == 0


def test_the_card_of_preference_optimisation_is_of_the_policys_samples(workdir):
    report.write([workdir])
    results = read_json(workdir / "results.json")
    assert row_of(results["rows"], method="dpo", round=1)["comparisons"] == "stages/preferences-0/comparisons.jsonl"
    card = row_of(results["cards"], series="dpo")
    assert (card["comparisons"], card["pairs"], card["accuracy"]) == (3, 2, 0.5) and card["flips"] == pytest.approx(1 / 3)
    assert card["longer"] == 1.0 and card["longer_right"] == 1.0  # the one pair of different lengths
    assert card["precision"] is card["accepts_wrong"] is None and card["replaced"] == 0
    assert page.report_card(card)[3:5] == ["–", "–"]


def test_what_wrote_the_evaluators_data_is_no_evaluator(workdir):
    text = report.write([workdir]).read_text()
    assert "0123456789ab" in text and "ba9876543210" not in text and "4321" not in text


def test_the_labels_of_dpo_are_those_of_round_0(workdir):
    assert [row["round"] for row in provenance.labelled(workdir, "dpo", 0)] == [0]
    assert [row["round"] for row in provenance.labelled(workdir, "ilr", 0, 1)] == [0, 1]


def test_results_as_a_table(workdir):
    path = workdir / "runs" / "ilr-seed0.json"
    run = read_json(path)
    run["rounds"][-1]["findings"] = {"strict": 0.125}
    path.write_text(json.dumps(run))
    with open(report.write([workdir]).with_name("results.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(read_json(workdir / "results.json")["rows"])
    row = row_of(rows, method="ilr", round="2")
    assert [row[name] for name in ("test_accuracy", "test_low", "test_high", "findings.strict")] == ["0.61", "0.57", "0.65", "0.125"]
    assert row["replaced"] == "1" and row_of(rows, method="dpo", round="1")["replaced"] == "" and "test_interval" not in row


def test_several_seeds_give_mean_and_interval(tmp_path):
    make_workdir(tmp_path, seeds=(0, 4, 2))
    ilr = row_of(estimates.summarise(report.collect([tmp_path])), method="ilr")
    assert ilr["seeds"] == [0, 2, 4] and ilr["test_accuracy"] == pytest.approx(0.63)
    assert ilr["test_interval"] == pytest.approx([0.61, 0.65], abs=0.005)
    assert ilr["difference"]["mean"] == pytest.approx(0.11) and ilr["difference"]["interval"] == pytest.approx([0.11, 0.11])
    assert ilr["replaced"] == 2


def test_shares_have_intervals_over_seeds_and_of_one_over_what_they_are_of(tmp_path):
    make_workdir(tmp_path, seeds=(0, 1))
    record = read_json(tmp_path / "runs" / "ilr-seed1.json")
    for row in record["rounds"][1:]:
        row |= {"evaluator_accuracy": 0.4, "label_accuracy": 0.9, "audit": record["rounds"][2]["audit"]}
    write_json(tmp_path / "runs" / "ilr-seed1.json", record)
    rows = report.collect([tmp_path])
    ilr, card = (row_of(found, series="ilr") for found in (estimates.summarise(rows), estimates.cards(rows, report.decisions(rows))))
    assert ilr["label_interval"] == pytest.approx([0.61, 0.9]) and ilr["evaluator_interval"] == pytest.approx([0.4, 0.75])
    assert card["recall"] == 4 / 7 and card["intervals"]["recall"] == pytest.approx([1 / 2, 2 / 3])
    assert "[40.0,75.0]" in page.headline(ilr)[6] and "57.1% of 7 [50.0,66.7]" in page.report_card(card)
    assert page.report_card(card)[5] == "0.0% of 8 [0.0,0.0]" and page.report_card(card)[8] == "0.0% of 1 [0.0,0.0]"
    of_seed = [[row for row in rows if row["seed"] == seed] for seed in (0, 1)]
    errors = [row_of(estimates.cards(own, report.decisions(own)), series="ilr")["calibration_error"] for own in of_seed]
    assert card["intervals"]["calibration_error"] == pytest.approx(sorted(errors)) and errors[0] != errors[1]
    alone = [row for row in rows if row["seed"] == 0]
    ilr, card = (row_of(found, series="ilr") for found in (estimates.summarise(alone), estimates.cards(alone, report.decisions(alone))))
    assert ilr["label_interval"] == [0.25, 1.0] and ilr["evaluator_interval"] == pytest.approx([0.75 - 0.15, 0.75 + 0.125])  # of 4, of 40
    assert page.headline(ilr)[5] == "41.0% → 61.0% of 4 [25.0,100.0]" and page.headline(ilr)[6] == "75.0% of 40 [60.0,87.5]"
    assert "66.7% of 3 [0.0,100.0]" in page.report_card(card) and card["intervals"]["calibration_error"] is None
    assert row_of(alone, method="ilr", round=2)["evaluator_interval"] == pytest.approx([19 / 30, 28 / 30])


def test_differences_are_paired_by_example_where_the_runs_tell(tmp_path):
    right = [1] * 60 + [0] * 40
    write_run(tmp_path, "sft", [round_row(0, 0.6, test_right=right)])
    write_run(tmp_path, "ilr", [round_row(1, 0.7, test_right=right[:60] + [1] * 10 + [0] * 30)])
    write_run(tmp_path, "naive", [round_row(1, 0.6, test_right=right[::-1])])
    summary = estimates.summarise(report.collect([tmp_path]))
    ilr, naive = (row_of(summary, method=name)["difference"] for name in ("ilr", "naive"))
    assert ilr["over"] == "seeds and test examples"
    assert ilr["mean"] == pytest.approx(0.1)
    assert 0.03 < ilr["interval"][0] < 0.1 < ilr["interval"][1] < 0.17  # not paired, it would hold zero
    assert naive["interval"][0] < -0.1 and naive["interval"][1] > 0.1
    assert "test_right" not in read_json(report.write([tmp_path]).with_name("results.json"))["rows"][0]


def test_what_was_not_tested_is_null_and_has_no_difference(tmp_path):
    untested = dict.fromkeys(("test_accuracy", "test_interval", "test_size", "test_right", "answers"))
    for seed in (0, 1):
        write_run(tmp_path, "sft", [round_row(0, 0.0, **untested)], seed)
        write_run(tmp_path, "ilr", [round_row(number, 0.0, **untested, label_accuracy=0.5) for number in (0, 1)], seed)
    rows = report.collect([tmp_path])
    summary = estimates.summarise(rows)
    assert [(entry["test_accuracy"], entry["test_interval"], entry["difference"]) for entry in summary] == [(None, None, None)] * 2
    assert estimates.differences(rows) == [] and page.supervisor(summary).startswith("test accuracy is not known")
    assert "test accuracy is not known" in report.write([tmp_path]).read_text()


def test_unfinished_runs_do_not_enter_means_of_finished_ones(workdir):
    write_run(workdir, "ilr", [round_row(0, 0.1)], seed=1, finished=False)
    write_run(workdir, "naive", [round_row(0, 0.2)], finished=False)
    summary = estimates.summarise(report.collect([workdir]))
    assert row_of(summary, method="ilr")["seeds"] == [0]
    naive = row_of(summary, method="naive")
    assert naive["test_accuracy"] == 0.2 and page.headline(naive)[0] == "naive (unfinished)"


def test_unfinished_runs_do_not_enter_the_cards_of_finished_ones(tmp_path):
    rows = report.collect([make_workdir(tmp_path, seeds=(0, 1))])
    alone = [row for row in rows if row["seed"] == 0]
    mixed = [{**row, "finished": row["seed"] == 0} for row in rows]
    cards = [estimates.cards(found, report.decisions(found)) for found in (alone, mixed, rows)]
    assert cards[0] == cards[1] and row_of(cards[2], series="ilr")["comparisons"] == 2 * row_of(cards[1], series="ilr")["comparisons"]


def test_workdirs_with_other_seeds_are_one_curve_and_with_the_same_runs_two(tmp_path):
    one, two, other = (make_workdir(tmp_path / name, seeds) for name, seeds in [("one", (0,)), ("two", (1,)), ("other", (0,))])
    assert {row["series"] for row in report.collect([one, two])} == {"sft", "ilr", "dpo"}
    summary = estimates.summarise(report.collect([one, other]))
    assert row_of(summary, series="ilr (other)")["difference"]["mean"] == pytest.approx(0.11)
    assert [entry["series"] for entry in summary][:2] == ["sft (one)", "sft (other)"]


def test_workdirs_of_different_configs_are_never_one_curve(tmp_path):
    one, two = (make_workdir(tmp_path / name, seeds) for name, seeds in [("one", (0,)), ("two", (1,))])
    config = read_json(two / "config.json")
    write_json(
        two / "config.json", config | {"method": "ilr", "seed": 1, "compute": {"slots": 7}}
    )  # in which runs of one workdir differ too
    assert {row["series"] for row in report.collect([one, two])} == {"sft", "ilr", "dpo"}
    write_json(two / "config.json", config | {"rounds": 3})
    assert "ilr (two)" in {row["series"] for row in report.collect([one, two])}


def test_the_report_of_several_workdirs_is_written_here_if_nowhere_else(tmp_path, monkeypatch):
    workdirs = [make_workdir(tmp_path / "a" / "run"), make_workdir(tmp_path / "b" / "run")]
    monkeypatch.chdir(tmp_path)
    assert report.write(workdirs).absolute() == tmp_path / "report.html"
    assert not any((workdir / "report.html").exists() for workdir in workdirs)
    html = report.write(workdirs, tmp_path / "new" / "folder").read_text()
    assert f"{workdirs[0]}, {workdirs[1]}" in html  # two folders of one name are told apart
    row = read_json(tmp_path / "new" / "folder" / "results.json")["rows"][-1]
    assert row["audit"] == "../../b/run/stages/refine-02/audit.jsonl"


def test_equal_artifacts_give_equal_bytes(tmp_path):
    digests = set()
    for name in ("one", "two"):
        path = report.write([make_workdir(tmp_path / name / "run", seeds=(0, 1))])
        digests.add((path.read_bytes(), path.with_name("results.json").read_bytes()))
    assert len(digests) == 1
    program = "import hashlib, sys; from ilr_jax import report; print(hashlib.sha256(report.write(sys.argv[1:]).read_bytes()).hexdigest())"
    command = [sys.executable, "-c", f"{program}; assert 'jax' not in sys.modules", str(tmp_path / "one" / "run")]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(digests.pop()[0]).hexdigest()


def test_terminal_table(workdir):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    run = read_json(workdir / "runs" / "dpo-seed0.json") | {"method": "[red]odd"}
    (workdir / "runs" / "odd.json").write_text(json.dumps(run))
    console.print(report.table(report.collect([workdir])))
    console.file.close()
    lines = console.export_text().splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("ilr "))
    assert lines[number].split() == ["ilr", "1", "2", "61.0%", "+11.0", "41.0%", "→", "75.0%", "2"]
    assert lines[number + 1].split() == ["of", "500", "61.0%", "of", "40"]
    assert lines[number + 2].split() == ["[57.0,65.0]", "of", "4", "[60.0,87.5]"] and lines[number + 3].split() == ["[25.0,100.0]"]
    assert any("[red]odd" in line for line in lines)


def test_labels_come_with_the_decision_that_put_them_there(workdir):
    one, two, three, _ = provenance.labels(workdir, "ilr", 0)
    assert (one["text"], one["source"], one["round"], one["score"]) == ("#### 8", "weak", 0, 0.9)
    assert (two["text"], two["source"], two["round"], two["reason"]) == ("#### 8", "proposal", 2, "score 0.8000 > threshold 0.6300")
    assert (three["prompt"], three["text"], three["score"], three["reason"]) == ("Question q3?", "#### 7", None, "not judged")
    kept = provenance.labels(workdir, "ilr", 0, round=1)[1]
    assert (kept["text"], kept["decision"], kept["decided"], kept["reason"]) == ("#### 7", "kept", 1, "score 0.4000 <= threshold 0.6300")
    assert (kept["accept"], kept["reject"], kept["score"], kept["threshold"]) == (0.4, 0.4, 0.4, 0.63)


@pytest.mark.parametrize("which", [("sft", 0, None), ("ilr", 0, 0), ("dpo", 0, 1)])
def test_first_labels_come_with_their_source_too(workdir, which):
    rows = provenance.labels(workdir, *which)
    assert [row["example_id"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert {(row["source"], row["round"], row["decision"], row["reason"]) for row in rows} == {
        ("weak", 0, "kept", "the weak supervisor's answer")
    }


def test_ilr_is_compared_with_each_rival_over_all_seeds(tmp_path):
    make_workdir(tmp_path, seeds=(0, 4, 2))
    path = report.write([tmp_path])
    dpo, sft = read_json(path.with_name("results.json"))["differences"]
    assert (dpo["series"], dpo["against"], dpo["seeds"], dpo["over"]) == ("ilr", "dpo", [0, 2, 4], "seeds")
    assert dpo["mean"] == pytest.approx(0.10) and dpo["interval"] == pytest.approx([0.10, 0.10])
    assert dpo["finished"] and page.difference(dpo | {"finished": False}) == page.difference(dpo) + ", of unfinished runs"
    assert (sft["against"], sft["mean"]) == ("sft", pytest.approx(0.11))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(report.collect([tmp_path])))
    console.file.close()
    text = console.export_text()  # the supervisor's: the mean over the seeds
    assert all(line.count("[") == line.count("]") for line in text.splitlines()), "an interval is broken"
    for line in ("ilr - dpo: +10.0 [+10.0,+10.0], seeds 0, 2, 4", "the supervisor's own test accuracy: 45.2%"):
        assert line in text and line in html.unescape(path.read_text())


def test_differences_stay_within_a_workdir_where_two_hold_the_same_runs(tmp_path):
    workdirs = [make_workdir(tmp_path / name) for name in ("one", "two")]
    pairs = [(entry["series"], entry["against"]) for entry in estimates.differences(report.collect(workdirs))]
    assert pairs == [(f"ilr ({name})", f"{rival} ({name})") for name in ("one", "two") for rival in ("dpo", "sft")]


@pytest.mark.parametrize(
    "which, message",
    [
        (("naive", 0, None), "only .*ilr seed 0"),
        (("ilr", 0, 3), r"round 3 .*\[0, 1, 2\]"),
    ],
)
def test_labels_that_are_not_there(workdir, which, message):
    with pytest.raises(ValueError, match=message):
        provenance.labels(workdir, *which)


def test_it_is_a_command_of_its_own(workdir, tmp_path):
    command = [sys.executable, "-m", "ilr_jax.report", str(workdir), str(workdir), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "report.html" in done.stdout and (tmp_path / "out" / "results.csv").exists(), done.stderr
    bad = subprocess.run([*command[:3], str(tmp_path / "missing")], capture_output=True, text=True, timeout=240)
    assert bad.returncode == 2 and bad.stderr.startswith("error: wanted a workdir")


def test_the_page_tells_of_how_many_and_of_test_questions_in_train(workdir):
    text = report.write([workdir]).read_text()
    assert "50.0% [46.0,54.0]</td><td>500</td>" in text and "41.0% [0.0,100.0]</td><td>4</td>" in text and "also stand in train" not in text
    path = workdir / "runs" / "sft-seed0.json"
    path.write_text(json.dumps(read_json(path) | {"tests_in_train": 7}))
    assert "<p>7 test questions also stand in train.</p>" in report.write([workdir]).read_text()


def test_bad_workdirs(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        report.collect([tmp_path / "missing"])
    with pytest.raises(ValueError, match="no runs"):
        report.collect([tmp_path])
    make_workdir(tmp_path / "sweep" / "points" / "alpha=0.1")
    with pytest.raises(ValueError, match=r"the folder of a sweep; give one of .*sweep/points/\*, or to `ilr report` all"):
        report.collect([tmp_path / "sweep"])
    write_run(tmp_path, "ilr", [])
    with pytest.raises(ValueError, match="none yet"):
        report.collect([tmp_path])
    (tmp_path / "runs" / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="x.json"):
        report.collect([tmp_path])
