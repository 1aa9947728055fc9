"""The evidence's document is made of finished runs, a line for each method with all figures."""

import importlib.util
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
    assert "##" not in evidence.document(tmp_path)


@pytest.mark.parametrize("argv", [[], ["run"], ["show", "DIR"]])
def test_a_command_that_is_none_is_told_what_there_is(argv, capsys):
    assert evidence.main(argv) == 2 and "evidence.py write DIR" in capsys.readouterr().err
