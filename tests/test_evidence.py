"""The evidence's records are made of finished runs, and its documents of the records, all figures of them."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from made_up_runs import make_workdir

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.append(str(TOOLS))
SPEC = importlib.util.spec_from_file_location("evidence", TOOLS / "evidence.py")
assert SPEC and SPEC.loader
evidence = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(evidence)
records = evidence.evidence_records

SECTIONS = (("All", "sft,ilr,dpo", ()), ("Some", "sft,dpo", ("alpha=0.3",)))


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """A folder for the documents, with results.md; two sections and two seeds are wanted."""
    monkeypatch.setattr(evidence, "SECTIONS", SECTIONS)
    monkeypatch.setattr(evidence, "SEEDS", "0,1")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(f"Before.\n{evidence.BEGIN}\nOld.\n{evidence.END}\nAfter.\n")
    return tmp_path / "docs"


def written(docs, folder):
    evidence.add(docs, folder)
    evidence.write(docs)
    return {path.name: path.read_text() for path in docs.iterdir()}


def lines_of(text, head):
    """The lines of the tables under a head, as dictionaries."""
    found = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]
    starts = [i for i, cells in enumerate(found) if cells == list(head)]
    rows = [cells for i, cells in enumerate(found) if len(cells) == len(head) and i not in starts]
    return [dict(zip(head, cells, strict=True)) for cells in rows]


def test_a_line_has_a_cell_for_every_column(tmp_path, docs):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    lines = {row["method"]: row for row in lines_of(written(docs, tmp_path)["evidence.md"], evidence.LONG)}
    assert list(lines) == ["sft", "ilr", "dpo"]
    ilr = lines["ilr"]
    assert ilr["test"].startswith("61.5% [") and ilr["minus SFT, points"].startswith("+11.0")
    assert ilr["labels right"] == "41.0% → 61.0% [61.0,61.0]" and ilr["evaluator right"] == "75.0% of 80 [75.0,75.0]"
    assert ilr["precision"] == "100.0% of 4 [100.0,100.0]" and ilr["TFLOP"] == "4.5" and ilr["seconds"] == "8"
    assert ilr["supervisor, test"] == "43.7% [43.2,44.2]" and lines["dpo"]["supervisor, test"] == ilr["supervisor, test"]
    assert ilr["comparisons"] == "4" and lines["sft"]["comparisons"] == "0" and lines["dpo"]["ILR minus it, points"].startswith("+10.0")


def test_results_have_the_tables_between_the_marks_and_nothing_else_changes(tmp_path, docs):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    text = written(docs, tmp_path)["results.md"]
    assert text.startswith(f"Before.\n{evidence.BEGIN}\n**All**") and text.endswith(f"{evidence.END}\nAfter.\n") and "Old" not in text
    assert [row["method"] for row in lines_of(text, evidence.HEAD)] == ["sft", "ilr", "dpo"]
    assert text == written(docs, tmp_path)["results.md"]


def test_every_section_shows_the_point_that_changes_nothing(tmp_path, docs, monkeypatch):
    monkeypatch.setattr(evidence, "SECTIONS", (*SECTIONS, ("More", "sft,ilr", ("alpha=0.15,0.3",))))
    for name in ("base", "alpha=0.15", "alpha=0.3"):
        make_workdir(tmp_path / "points" / name, (0, 1))
    lines = lines_of(written(docs, tmp_path)["evidence.md"], evidence.LONG)
    assert [(line["setting"], line["method"]) for line in lines] == [
        *(("base", "sft"), ("base", "ilr"), ("base", "dpo")),
        *((name, method) for name in ("alpha=0.15", "alpha=0.3") for method in ("sft", "dpo")),
        *((name, method) for name in ("alpha=0.15", "alpha=0.3") for method in ("sft", "ilr")),
    ]
    assert {**lines[3], "setting": "base"} == lines[0]


def test_each_seed_of_the_first_section_is_told(tmp_path, docs):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    lines = {line["method"]: line for line in lines_of(written(docs, tmp_path)["evidence.md"], ("method", "0", "1"))}
    assert [lines["ilr"][seed] for seed in "01"] == ["61.0%", "62.0%"] and lines.keys() == {"sft", "ilr", "dpo"}


def test_only_points_whose_seeds_have_all_ended_get_records(tmp_path, docs, monkeypatch, capsys):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    make_workdir(tmp_path / "points" / "alpha=0.3", (0,))
    assert {place for place in records.read(docs / "evidence.jsonl")} == set()
    text = written(docs, tmp_path)["evidence.md"]
    assert (
        "## All" in text
        and "## Some" not in text
        and capsys.readouterr().out.endswith("points: alpha=0.3\n".replace("points", str(tmp_path)))
    )
    make_workdir(tmp_path / "points" / "alpha=0.3", (1, 2))  # a seed that is not asked for changes nothing
    evidence.add(docs, tmp_path)
    assert capsys.readouterr().out == "" and records.read(docs / "evidence.jsonl")["alpha=0.3", "sft"]["seeds"] == 2
    monkeypatch.setattr(evidence, "SEEDS", "0,1,2")
    (docs / "evidence.jsonl").unlink()
    assert "## All" not in written(docs, tmp_path)["evidence.md"]


def test_records_outlive_the_runs_and_are_replaced_by_whole_newer_points(tmp_path, docs, monkeypatch):
    for point in ("base", "alpha=0.3"):
        make_workdir(tmp_path / "one" / "points" / point, (0, 1))
        make_workdir(tmp_path / "two" / "points" / point, (1, 2))
    before = written(docs, tmp_path / "one")
    (tmp_path / "two" / "points" / "alpha=0.3" / "runs" / "dpo-seed1.json").unlink()
    monkeypatch.setattr(evidence, "SEEDS", "1,2")
    after = written(docs, tmp_path / "two")
    of = lambda text: {(row["point"], row["method"]): row for row in map(json.loads, text["evidence.jsonl"].splitlines())}
    old, new = of(before), of(after)
    assert list(new) == list(old) == [("base", "sft"), ("base", "ilr"), ("base", "dpo"), ("alpha=0.3", "sft"), ("alpha=0.3", "dpo")]
    assert {place for place in old if old[place] != new[place]} == {("base", "sft"), ("base", "ilr"), ("base", "dpo")}
    assert new["base", "ilr"]["test"][0] == pytest.approx(old["base", "ilr"]["test"][0] + 0.01)


def test_every_point_is_shown_round_by_round(tmp_path, docs):
    for name in ("base", "alpha=0.3"):
        make_workdir(tmp_path / "points" / name, (0, 1))
    text = written(docs, tmp_path)["evidence-rounds.md"]
    assert text.index("## All") < text.index("`base`") < text.index("## Some") < text.index("`alpha=0.3`")
    lines = lines_of(text, evidence.ROUND)
    assert [(line["method"], line["round"]) for line in lines] == [
        *(("sft", "0"), ("ilr", "0"), ("ilr", "1"), ("ilr", "2"), ("dpo", "0"), ("dpo", "1")),
        *(("sft", "0"), ("dpo", "0"), ("dpo", "1")),
    ]
    first = lines[2]
    wanted = {"test": "55.5%", "labels right": "51.0% [51.0,51.0]", "evaluator right": "60.0% of 20 [60.0,60.0]", "comparisons": "2"}
    wanted |= {"gives up right labels": "0.0% of 2 [0.0,0.0]", "refuses right proposals": "0.0% of 2 [0.0,0.0]", "TFLOP": "1.5"}
    wanted |= {"precision": "100.0% of 2 [100.0,100.0]", "wrong to right": "1", "replaced": "1"}
    assert {name: first[name].replace(first["test"], "55.5%") for name in wanted} == wanted and first["test"].startswith("55.5%")
    assert lines[0]["precision"] == lines[0]["comparisons"] == ""


def test_the_pairs_that_dpo_learns_from_have_the_errors_of_ilrs_comparisons(tmp_path, docs, monkeypatch):
    workdir = make_workdir(tmp_path / "points" / "base", (0, 1))
    for seed in (0, 1):
        record = json.loads((workdir / "runs" / f"ilr-seed{seed}.json").read_text()) | {"method": "dpo_pairs"}
        record["rounds"] = [row | {"audit": None, "label_accuracy": None, "flows": None} for row in record["rounds"]]
        (workdir / "runs" / f"dpo_pairs-seed{seed}.json").write_text(json.dumps(record))
    monkeypatch.setattr(evidence, "SECTIONS", (("All", "sft,ilr,dpo_pairs", ()),))
    lines = lines_of(written(docs, tmp_path)["evidence-rounds.md"], evidence.ROUND)
    errors = [[line[name] for name in ("gives up right labels", "refuses right proposals")] for line in lines if line["round"] == "1"]
    assert errors[0] == errors[1] and all(errors[0])
    assert [line["precision"] == "" for line in lines if line["round"] == "1"] == [False, True]


def test_the_plots_are_of_the_first_section_and_the_same_each_time(tmp_path, docs):
    make_workdir(tmp_path / "points" / "base", (0, 1))
    found = written(docs, tmp_path)
    made = {name: found[f"evidence-{name}.svg"] for name in evidence.PLOTS}
    assert all(svg.startswith("<svg") for svg in made.values()) and "wrong to right" in made["flows"] and "ilr 1" in made["flows"]
    assert found == written(docs, tmp_path)
    assert all(f"(evidence-{name}.svg)" in found[page] for name in made for page in ("evidence.md", "results.md"))


@pytest.mark.parametrize("argv", [[], ["run"], ["show", "DIR"]])
def test_a_command_that_is_none_is_told_what_there_is(argv, capsys):
    assert evidence.main(argv) == 2 and "evidence.py write DIR" in capsys.readouterr().err


def test_the_documents_are_those_of_the_records(tmp_path):
    for name in ("evidence.jsonl", "results.md"):
        (tmp_path / name).write_text((evidence.DOCS / name).read_text())
    evidence.write(tmp_path)
    for name in ("evidence.md", "evidence-rounds.md", "results.md"):
        assert (tmp_path / name).read_text() == (evidence.DOCS / name).read_text(), name


def test_what_the_results_say_stands_in_the_evidence():
    """Every interval, and every figure with one decimal, of the parts that read the evidence: all but the machine's."""
    text, found = (evidence.DOCS / "results.md").read_text(), ""
    for name in ("evidence.md", "evidence-rounds.md"):
        found += (evidence.DOCS / name).read_text()
    part = re.sub("`[^`]*`", "", text[text.index("`[..]` are") : text.index("## GSM8K")])
    intervals = re.findall(r"\[([+-][\d.]+),\s+([+-][\d.]+)\]", part)
    assert len(intervals) > 10 and [ends for ends in intervals if "[{},{}]".format(*ends) not in found] == []
    known = set(re.findall(r"\d+\.\d", found))
    assert [figure for figure in re.findall(r"(?<![\d.,=])\d+\.\d(?!\d)", part) if figure not in known] == []


@pytest.mark.parametrize(("codes", "code"), [((130,), 130), ((1, 143), 143), ((0, 1), 1), ((0, 0), 0)])
def test_a_signal_ends_all_sweeps_and_a_failure_does_not(monkeypatch, codes, code):
    left = list(codes)
    monkeypatch.setattr(evidence, "SECTIONS", SECTIONS)
    monkeypatch.setattr(evidence.sweep, "run", lambda words: left.pop(0))
    assert evidence.main(["run", "DIR"]) == code and not left
