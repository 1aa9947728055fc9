"""Sweeps: the grid, what is shared, resuming, failures, and the table; most on runs that are made up, one on the tiny experiment."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import make_tiny_config

from ilr_jax import cli, main, sweep
from ilr_jax.files import read_json

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a config's file
ROOT = Path(__file__).parent.parent
CONFIG = f"--config={ROOT}/configs/quickstart.py"
# A run that takes no time: better with seed and alpha, and impossible at alpha 0.4 until the file `mended` stands in the sweep's folder.
MADE_UP = """
import os, sys, time
from pathlib import Path
from made_up_runs import round_row, write_run
flags = dict(word.split("=", 1) for word in sys.argv[1:])
workdir, alpha, seed = Path(flags["--workdir"]), float(flags.get("--config.alpha", 0.15)), int(flags["--config.seed"])
with open(workdir.parent.parent / "started.txt", "a") as file:
    print(workdir.name, seed, file=file)
if (cores := workdir.parent.parent / "cores").exists():
    time.sleep(1)  # by then both are there
    with open(cores, "a") as file:
        print(*os.sched_getaffinity(0), file=file)
if (workdir.parent.parent / "stop").exists():
    (workdir.parent.parent / "stop").write_text(str(os.getpid()))
    os.kill(os.getppid(), 15)
    time.sleep(60)
if alpha == 0.4 and not (workdir.parent.parent / "mended").exists():
    sys.exit("error: alpha 0.4 cannot be")
write_run(workdir, "sft", [round_row(0, 0.5)], seed)
write_run(workdir, "ilr", [round_row(0, 0.5), round_row(1, 0.5 + alpha + seed / 100, label_accuracy=0.7)], seed)
"""


@pytest.fixture
def swept(tmp_path, monkeypatch, capsys):
    """`swept("--grid", ...)` runs a sweep of made-up runs; returns the exit code, what it said, and which runs it has started so far."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.setattr(sweep, "COMMAND", (sys.executable, str(tmp_path / "made_up.py")))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    folder = tmp_path / "sweep"

    def call(*words):
        code = cli.main(["sweep", CONFIG, f"--workdir={folder}", "--config.method=sft,ilr", *words])
        log = folder / "started.txt"
        return code, capsys.readouterr(), log.read_text().splitlines() if log.exists() else []

    return call


def test_every_point_is_run_with_every_seed_and_stands_in_the_table(swept, tmp_path):
    code, said, started = swept("--grid", "config.alpha=0.1,0.2", "--seeds=0,1", "--jobs=2")
    assert code == 0 and sorted(started) == [f"alpha={alpha} {seed}" for alpha in (0.1, 0.2) for seed in (0, 1)]
    points = read_json(tmp_path / "sweep" / "results.json")["points"]
    assert [(p["point"], p["fields"], p["method"], p["seeds"]) for p in points] == [
        (f"alpha={alpha}", {"alpha": alpha}, method, [0, 1]) for alpha in ("0.1", "0.2") for method in ("sft", "ilr")
    ]
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    ilr = rows[1]
    assert (ilr["alpha"], ilr["method"], ilr["seeds"], ilr["label_accuracy_last"]) == ("0.1", "ilr", "2", "0.7")
    assert float(ilr["test_accuracy"]) == pytest.approx(0.605) and float(ilr["difference"]) == pytest.approx(0.105)
    assert float(ilr["test_low"]) == pytest.approx(0.6) and float(ilr["test_high"]) == pytest.approx(0.61)
    assert "alpha=0.2" in said.out and "results.csv" in said.out


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="wants cores that can be parted")
def test_runs_side_by_side_have_cores_of_their_own(swept, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "cores").touch()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        swept("--seeds=0,1", "--jobs=2")
        first, second = (set(map(int, line.split())) for line in (tmp_path / "sweep" / "cores").read_text().splitlines())
        assert first and second and first | second == os.sched_getaffinity(0) and not first & second
    finally:
        os.sched_setaffinity(0, before)


def test_what_is_finished_is_skipped_and_another_grid_adds_to_the_table(swept, tmp_path):
    swept("--grid=alpha=0.1")
    _, said, started = swept("--grid=alpha=0.1,0.2", "--seeds=0,1")
    assert started == ["alpha=0.1 0", "alpha=0.1 1", "alpha=0.2 0", "alpha=0.2 1"] and "4 runs, 1 finished before" in said.out
    swept("--grid=folds=3")
    assert {p["point"] for p in read_json(tmp_path / "sweep" / "results.json")["points"]} == {"alpha=0.1", "alpha=0.2", "folds=3"}


def test_a_signal_ends_the_runs_too_and_the_same_command_goes_on(swept, tmp_path):
    (tmp_path / "sweep").mkdir()
    (stop := tmp_path / "sweep" / "stop").touch()
    code, said, started = swept("--seeds=0,1")
    assert code == 143 and "the same command continues" in said.err and started == ["base 0"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(stop.read_text()), 0)
    stop.unlink()
    assert swept("--seeds=0,1")[0] == 0


def test_a_failing_point_stops_no_other_and_is_told_with_its_log(swept, tmp_path):
    code, said, started = swept("--grid=alpha=0.4,0.1", "--seeds=0,1")
    log = tmp_path / "sweep" / "logs" / "alpha=0.4-seed1.log"
    assert code == 1 and len(started) == 4
    assert f"failed: alpha=0.4 seed 1: error: alpha 0.4 cannot be\n  log: {log}" in said.err and log.exists()
    assert {p["point"] for p in read_json(tmp_path / "sweep" / "results.json")["points"]} == {"alpha=0.1"}
    (tmp_path / "sweep" / "mended").touch()
    code, _, started = swept("--grid=alpha=0.4,0.1", "--seeds=0,1")
    assert code == 0 and started[4:] == ["alpha=0.4 0", "alpha=0.4 1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid=alpha=0.1,2", "--grid=folds=1,2"], "alpha=2,folds=1: the config cannot be run:\n  folds: wanted at least 2"),
        (["--grid=alpha"], "--grid alpha: wanted FIELD=VALUE,VALUE"),
        (["--grid=alpha=0.1,0.1"], "with values that differ"),
        (["--grid=alpha=0.1", "--grid=config.alpha=0.2"], "give all its values at once"),
        (["--grid=method=sft,ilr"], "give methods by --config.method"),
        (["--grid=seed=1,2"], "give seeds by --seeds"),
        (["--grid=alhpa=0.1"], "no such field in the config.*alpha"),
        (["--grid=alhpa=0.1,0.2"], r"\Aerror: the sweep cannot be run:\nalhpa=0.1: no such field [^\n]*\n\Z"),
        (["--seeds=0-3"], "--seeds: wanted whole numbers"),
        (["--jobs=0"], "--jobs: wanted at least 1"),
        (["--config.alpha=2"], "base: the config cannot be run"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_run(swept, words, message):
    import re

    code, said, started = swept(*words)
    assert code == 2 and re.search(message, said.err, re.S) and not started


def test_a_folder_belongs_to_one_config_but_for_the_swept_fields(swept):
    swept("--grid=alpha=0.1")
    code, said, started = swept("--grid=alpha=0.1,0.2", "--config.rounds=2")
    assert code == 2 and "rounds: wanted 3, got 2" in said.err and len(started) == 1


def test_a_run_and_a_sweep_do_not_take_each_others_folder(swept, tmp_path, tiny_flags, capsys, monkeypatch):
    swept("--grid=alpha=0.1")
    monkeypatch.chdir(ROOT)
    assert main.run(["ilr run", *tiny_flags, f"--workdir={tmp_path / 'sweep'}"]) == 2
    assert "wanted the folder of a run, or a new one, got that of a sweep" in capsys.readouterr().err
    code, said, _ = swept(f"--workdir={tmp_path / 'sweep' / 'points' / 'alpha=0.1'}")
    assert code == 2 and "wanted the folder of a sweep, or a new one, got that of a run" in said.err


def test_names_of_points_are_names_of_folders():
    names = [point.name for point in sweep.grid(["strong.model=a/b;a:b", "lora.modules=q_proj,v_proj;all"])]
    assert len(set(names)) == 4 and all("/" not in name and ":" not in name for name in names)
    assert sweep.grid([])[0].name == "base" and sweep.grid(["folds=2"])[0].name == "folds=2"


@pytest.fixture
def tiny_flags(tiny_models):
    """The tiny config as flags; references as labels, because random models write nothing that can be trained on."""
    config = make_tiny_config(tiny_models)
    names = ("rounds", "task.train_examples", "task.test_examples", "sft.max_length", "sft.batch", "dpo.batch", "evaluator.checkpoints")
    names += ("weak.model", "strong.model", "evaluator.model", "weak.epochs", "strong.epochs", "decoding.max_new_tokens")
    names += ("compute.slots", "compute.beam_batch", "compute.bucket", "compute.cache")
    flat = {name: config[name] if "." not in name else config[name.split(".")[0]][name.split(".")[1]] for name in names}
    ours = [f"--config.{name}={value}" for name, value in flat.items()]
    return [CONFIG, *ours, "--config.method=sft", "--config.demos=gold", "--config.feedback=oracle"]


def test_points_of_the_tiny_experiment_share_what_their_fields_do_not_change(tiny_flags, tmp_path, monkeypatch):
    """Two points and two seeds: one weak supervisor a seed; and a point's workdir is like any other."""
    monkeypatch.chdir(ROOT)
    assert sweep.run([*tiny_flags, f"--workdir={tmp_path}", "--grid=strong.epochs=1,2", "--seeds=0,1", "--jobs=2"]) == 0
    made = [path.name.rsplit("-", 1)[0] for path in (tmp_path / "stages").iterdir()]
    assert (made.count("weak"), made.count("weak-test"), made.count("first-labels"), made.count("sft"), made.count("test")) == (
        2,
        2,
        2,
        4,
        4,
    )
    point = tmp_path / "points" / "strong.epochs=2"
    record = json.loads((point / "runs" / "sft-seed1.json").read_text())
    assert record["finished"] and record["config"]["strong"]["epochs"] == 2 and (point / record["rounds"][0]["label_file"]).exists()
    assert cli.main(["status", str(point)]) == cli.main(["report", str(point)]) == 0
    entries = read_json(tmp_path / "results.json")["points"]
    assert [(e["point"], e["method"], e["seeds"]) for e in entries] == [(f"strong.epochs={n}", "sft", [0, 1]) for n in (1, 2)]
    assert all(e["test_interval"] for e in entries)
