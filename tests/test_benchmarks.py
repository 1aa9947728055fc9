"""The benchmarks' own arithmetic, and that every case is there; what they measure is measured by `make bench-smoke`."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, table
from benchmarks.card.__main__ import PARTS
from benchmarks.cases import CASES, Case

ROOT = Path(__file__).parents[1]


def names(module: str) -> set[str]:
    """What a module defines; without importing it, which would take PyTorch and its friends."""
    tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
    targets = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} | {
        t.id for ts in targets for t in ts if isinstance(t, ast.Name)
    }


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_its_function_and_a_floor_below_its_goal(name):
    case = CASES[name]
    module, function = case.run.split(":")
    assert function in names(module)
    assert case.floor >= case.goal if case.least else case.floor <= case.goal


def test_every_part_of_the_card_is_there():
    tree = ast.parse((ROOT / "benchmarks" / "card" / "parts.py").read_text())
    (run,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "RUN"]
    assert tuple(ast.literal_eval(key) for key in run.keys) == PARTS


def test_a_ratio_is_of_work_per_second_and_sides_take_turns(monkeypatch):
    clock, calls = [0.0], []

    def side(name, seconds, work):
        def run():
            calls.append(name)
            clock[0] += seconds
            return work

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.time, "process_time", lambda: 2 * clock[0])
    row = measure.race(side("ours", 2.0, 100.0), side("peer", 3.0, 50.0), "tokens", 3, lambda: calls.append("same")).row()
    assert row["ratio"] == row["least"] == row["most"] == row["cpu_ratio"] == 3.0  # 50 tokens a second against 16.7
    assert (row["ours"], row["unit"]) == (50.0, "tokens/s")
    assert calls == ["ours", "peer", "same", *["ours", "peer"], *["peer", "ours"], *["ours", "peer"], *["ours", "peer"]]


@pytest.mark.skipif(not measure.CLEAR.exists(), reason="only Linux tells")
def test_memory_is_what_a_side_takes_beyond_what_was_there():
    held = np.ones(2**22)  # 32 MiB, there before

    def side():
        return float(np.ones(2**23).sum() + held[0])  # 64 MiB, gone after it

    for _ in range(2):
        assert 60 * 2**20 < measure._memory(side) < 80 * 2**20


def test_the_best_setting_does_most_per_second(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def make(setting):
        def run():
            clock[0] += setting[0]
            return setting[1]

        return run

    assert measure.best([(2.0, 10.0), (3.0, 30.0), (1.0, 9.0)], make) == (3.0, 30.0)
    assert measure.best([(5.0, 1.0)], lambda _: pytest.fail("a single setting needs no trial")) == (5.0, 1.0)


def test_sides_that_differ_are_no_benchmark():
    measure.agree("loss", 1.0005, 1.0, 1e-3)
    for other in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match="do not do the same work"):
            measure.agree("loss", other, 1.0, 1e-3)
    measure.near("scores", [0.5, 0.2], [0.5, 0.21], 0.02)
    for other in (0.3, float("nan")):
        with pytest.raises(RuntimeError, match="scores: the two sides differ by up to"):
            measure.near("scores", [0.5, 0.2], [0.5, other], 0.02)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("differs", ["nothing", "a token", "a mask", "a row's mask"])
def test_a_step_on_other_targets_is_no_benchmark(monkeypatch, differs):
    pytest.importorskip("trl")
    from benchmarks import peers, training
    from benchmarks.shapes import shape, texts

    class Other(peers.Sft):
        def __init__(self, *given):
            super().__init__(*given)
            if differs == "a token":
                self.rows[0]["input_ids"][-1] = 5
            for row in {"a mask": self.rows, "a row's mask": self.rows[:1]}.get(differs, []):
                row["completion_mask"] = [*row["completion_mask"][1:], 0]

    monkeypatch.setattr(peers, "Sft", Other)
    check = lambda: training.same_step(shape("tiny"), texts(32, 128), "float32", 4)
    if differs == "nothing":
        return check()
    with pytest.raises(RuntimeError, match="do not do the same work"):
        check()


def test_a_share_of_the_roof_is_of_what_each_phase_needs_longest_for():
    reached = {"float32": 100.0, "bytes": 10.0}
    assert measure.share({"kind": "float32", "rate": 60.0}, reached) == 0.6
    phases = [{"float32": 200.0}, {"float32": 100.0, "bytes": 30.0}, {"float32": 500.0, "bytes": 30.0}]
    assert measure.share({"kind": "the bound", "phases": phases, "seconds": 20.0}, reached) == (2 + 3 + 5) / 20


@pytest.mark.parametrize(("least", "ratio", "passes"), [(False, 1.9, False), (False, 2.0, True), (True, 2.0, True), (True, 2.1, False)])
def test_floors(least, ratio, passes):
    assert Case("", "", "", "", 2.0, 2.0, least).passes(ratio) is passes


def test_the_page_holds_every_figure_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    machine = {"device": "cpu", "cpu": "A processor", "cores": 2, "versions": {"jax": "1.2", "torch": None}}
    common = {"machine": machine, "roofs": {"float32": 4e11, "bfloat16": 8e11, "bytes": 9e9}, "date": "2026-01-02T03:04:05+00:00"}
    common |= {"lengths": "drawn"}
    speed = {"ratio": 1.5, "least": 1.25, "most": 1.75, "unit": "tokens/s", "ours": 1500.0, "peer": 1000.0, "cpu_ratio": 1.4}
    speed |= {"ours_compile_seconds": 4.25, "ours_memory_bytes": 64 * 2**20, "peer_memory_bytes": 128 * 2**20}
    rows = {"step": common | speed | {"roof": {"kind": "float32", "share": 0.61}}, "loss-memory": common | {"ratio": 0.04, "unit": ""}}
    rows |= {"scores": common | speed | {"lengths": "GSM8K's"}}
    (tmp_path / "cpu.json").write_text(json.dumps({"cases": rows}))
    (tmp_path / "growth.json").write_text(json.dumps({"curves": {}}))
    table.write(tmp_path, page)
    text = page.read_text()
    assert (
        text.startswith("before\n")
        and text.endswith("after\n")
        and "old" not in text
        and "A processor, 2 cores (2026-01-02); jax 1.2. Lengths: drawn. Roofs" in text
    )
    assert text.count("(lengths: of GSM8K)") == text.count("scores of ragged comparisons, both orders (lengths: of GSM8K)") == 1
    assert "| 1.50 [1.25, 1.75] | 1.40 | 1 | 1.2 | 1,500 tokens/s | 1,000 tokens/s | 61% of float32 |" in text
    assert "| 0.04 |  | ≤ 0.25 | ≤ 0.12 |" in text and "| 61% of float32 | 4.25 s | 64 and 128 MiB |" in text
    table.write(tmp_path, page)
    assert page.read_text() == text
