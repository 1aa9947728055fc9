"""The evidence's document is made of finished runs, a line for each method with all figures."""

import importlib.util
import re
from pathlib import Path

import pytest
from made_up_runs import make_workdir

from ilr_jax import report

SPEC = importlib.util.spec_from_file_location("evidence", Path(__file__).parent.parent / "tools" / "evidence.py")
assert SPEC and SPEC.loader
evidence = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(evidence)


def test_a_line_has_a_cell_for_every_column(tmp_path):
    workdir = make_workdir(tmp_path / "points" / "base", (0,))
    lines = {line.split(" | ")[1]: line.strip("| ").split(" | ") for line in evidence.lines("base", report.collect([workdir]))}
    assert list(lines) == ["sft", "dpo", "ilr"] and {line.count(" | ") for line in evidence.lines("base", report.collect([workdir]))} == {
        11
    }
    ilr = dict(zip(evidence.HEAD, lines["ilr"], strict=True))
    assert ilr["test"].startswith("61.0%") and ilr["minus SFT, points"].startswith("+11.0") and ilr["labels right"] == "41.0% → 61.0%"
    assert ilr["TFLOP"] == "4.5" and ilr["seconds"] == "8" and ilr["comparisons"] == "4"


def test_only_points_whose_seeds_have_all_ended_are_shown(tmp_path, monkeypatch):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    monkeypatch.setattr(evidence, "SECTIONS", (("All", "sft,ilr", ()), ("None", "sft,ilr", ("alpha=0.3",))))
    monkeypatch.setattr(evidence, "SEEDS", "0,1")
    text = evidence.document(tmp_path)
    assert "## All" in text and "## None" not in text and "| dpo |" not in text
    monkeypatch.setattr(evidence, "SEEDS", "0,1,2")
    assert "##" not in evidence.document(tmp_path) + evidence.round_by_round(tmp_path)


def test_every_point_is_shown_round_by_round(tmp_path, monkeypatch):
    for name in ("base", "alpha=0.3"):
        make_workdir(tmp_path / "points" / name, (0,))
    monkeypatch.setattr(evidence, "SECTIONS", (("All", "sft,ilr", ()), ("Some", "sft,dpo", ("alpha=0.3",))))
    monkeypatch.setattr(evidence, "SEEDS", "0")
    text = evidence.round_by_round(tmp_path)
    rows = report.collect([tmp_path / "points" / "base"])
    assert [text.count(f"| {name} |") for name in ("sft", "ilr", "dpo")] == [
        times * len({row["round"] for row in rows if row["method"] == name}) for name, times in (("sft", 2), ("ilr", 1), ("dpo", 1))
    ]
    assert text.index("## All") < text.index("`base`") < text.index("## Some") < text.index("`alpha=0.3`")


def test_a_round_has_a_line_with_what_the_evaluator_got_wrong(tmp_path):
    rows = report.collect([make_workdir(tmp_path / "points" / "base", (0, 1))])
    lines = [dict(zip(evidence.ROUND, (cell.strip() for cell in line[1:-1].split("|")), strict=True)) for line in evidence.rounds(rows)]
    assert len(lines) == len({(line["method"], line["round"]) for line in lines}) == len({(row["method"], row["round"]) for row in rows})
    first = next(line for line in lines if (line["method"], line["round"]) == ("ilr", "1"))
    wanted = {"test": "55.5%", "labels right": "51.0%", "evaluator right": "60.0%", "comparisons": "2", "replaced": "1", "TFLOP": "1.5"}
    wanted |= {"gives up right labels": "0.0%", "refuses right proposals": "0.0%", "precision": "100.0%", "wrong to right": "1"}
    assert {name: first[name] for name in wanted} == wanted
    assert next(line for line in lines if line["method"] == "sft")["precision"] == ""


def test_the_plots_are_of_the_first_section_and_the_same_each_time(tmp_path, monkeypatch):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    monkeypatch.setattr(evidence, "SECTIONS", (("All", "sft,ilr,dpo", ()),))
    monkeypatch.setattr(evidence, "SEEDS", "0,1")
    made = evidence.plots(tmp_path)
    assert made.keys() == evidence.PLOTS.keys() and made == evidence.plots(tmp_path)
    assert all(svg.startswith("<svg") for svg in made.values()) and "wrong to right" in made["flows"] and "ilr 1" in made["flows"]
    text = evidence.document(tmp_path)
    assert all(f"(evidence-{name}.svg)" in text for name in made)


@pytest.mark.parametrize("argv", [[], ["run"], ["show", "DIR"]])
def test_a_command_that_is_none_is_told_what_there_is(argv, capsys):
    assert evidence.main(argv) == 2 and "evidence.py write DIR" in capsys.readouterr().err


def test_what_the_results_say_stands_in_the_evidence():
    """Every interval, and every figure with one decimal, of the part that reads the evidence."""
    docs = Path(evidence.OUT).parent
    text, found = (docs / "results.md").read_text(), evidence.OUT.read_text() + evidence.ROUNDS_OUT.read_text()
    part = re.sub("`[^`]*`", "", text[text.index("## Everything else") : text.index("## GSM8K")])
    intervals = re.findall(r"\[([+-][\d.]+),\s+([+-][\d.]+)\]", part)
    assert len(intervals) > 10 and [ends for ends in intervals if "[{},{}]".format(*ends) not in found] == []
    known = set(re.findall(r"\d+\.\d", found))
    assert [figure for figure in re.findall(r"(?<![\d.,=])\d+\.\d(?!\d)", part) if figure not in known] == []
