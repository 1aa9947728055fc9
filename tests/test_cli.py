"""Every verb does what its help says; bad input is one message and exit code 2."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from made_up_runs import make_workdir

from ilr_jax import cli

VERBS = ("run", "report", "status", "export", "demo", "env")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0 and f"example: ilr {verb}" in capsys.readouterr().out


def test_examples_of_the_help_can_be_parsed(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        words = " ".join(capsys.readouterr().out.split("example: ilr ")[1].split()).split()
        assert verb == "run" or cli.parser().parse_args(words).verb is getattr(cli, verb)


def test_help_lists_the_verbs_and_loads_nothing_heavy():
    program = (
        "import sys; from ilr_jax import cli\ntry: cli.main([])\n"  # as --help
        "finally: print(*{'jax', 'numpy', 'absl', 'rich', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"    {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.endswith("\n\n")  # none of them was printed


def test_run_hands_its_flags_to_main_untouched(monkeypatch):
    from ilr_jax import main

    given = []
    monkeypatch.setattr(main, "run", lambda argv: given.append(argv) or 0)
    assert cli.main(["run", "--config=c.py", "--workdir", "w", "--config.rounds=2", "--helpfull"]) == 0
    assert given == [["ilr run", "--config=c.py", "--workdir", "w", "--config.rounds=2", "--helpfull"]]


def test_report_writes_the_files_and_prints_table_and_paths(workdir, capsys):
    assert cli.main(["report", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert "61.0%" in out and str(workdir / "report.html") in out and str(workdir / "results.json") in out
    assert (workdir / "report.html").exists() and (workdir / "results.json").exists()


def test_report_of_several_workdirs_goes_to_out(workdir, tmp_path, capsys):
    other = make_workdir(tmp_path / "two")
    assert cli.main(["report", str(workdir), str(other), "--out", str(tmp_path / "both")]) == 0
    assert "ilr (two)" in (tmp_path / "both" / "report.html").read_text()
    assert not (workdir / "report.html").exists()


def test_status_tells_runs_stages_and_what_is_under_way(workdir, capsys):
    (workdir / "partial" / "sft-00aa").mkdir(parents=True)
    (workdir / "partial" / "sft-00aa" / "weights").write_bytes(b"0" * 2_000_000)
    (workdir / "partial" / "sft-00aa.lock").touch()
    assert cli.main(["status", str(workdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "  ilr seed 0: finished, rounds 0 to 2 done, test accuracy 61.0%, labels right 61.0%, 60 s of stages (shared ones counted in each)"
        in lines
    )
    assert any(line.startswith("  refine-01: 3.0 s") for line in lines)
    (partial,) = [line for line in lines if "sft-00aa" in line]
    assert "2.0 MB, last written" in partial and lines[-1].startswith("disk: 2.0 MB")


def test_status_of_a_sweep_tells_the_runs_of_its_points(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    for point in ("alpha=0.1", "alpha=0.2"):
        make_workdir(tmp_path / "points" / point)
    assert cli.main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [sum(f"{method} seed 0 of alpha=0.2: finished" in line for line in lines) for method in ("sft", "ilr", "dpo")] == [1, 1, 1]
    assert any("sft seed 0 of alpha=0.1: finished, round 0 done" in line for line in lines)


def test_status_leaves_out_what_a_live_run_takes_away_meanwhile(workdir, monkeypatch, capsys):
    partial = workdir / "partial" / "sft-00aa"
    partial.mkdir(parents=True)
    (partial / "a.tmp").write_bytes(b"0" * 1_000_000)
    (partial / "weights").write_bytes(b"0" * 2_000_000)
    real = cli.os.lstat

    def vanishing(path, *given, **named):
        if str(path).endswith("a.tmp"):
            raise FileNotFoundError(path)
        return real(path, *given, **named)

    monkeypatch.setattr(cli.os, "lstat", vanishing)
    assert cli.main(["status", str(workdir)]) == 0
    assert "sft-00aa: 2.0 MB" in capsys.readouterr().out


def test_status_of_a_workdir_in_its_first_round(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("none") == 3


def test_export_writes_labels_as_json_lines(workdir, tmp_path, capsys):
    path = tmp_path / "out.jsonl"
    assert cli.main(["export", str(workdir), "--method", "ilr", "--round", "1", "--labels", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4 and "4 labels, as after round 1\n" in capsys.readouterr().out
    assert rows[0] == {
        "example_id": "q1",
        "prompt": "Question q1?",
        "text": "#### 8",
        "source": "proposal",
        "round": 1,
        "decided": 1,
        "decision": "accepted",
        "accept": 0.9,
        "reject": 0.9,
        "score": 0.9,
        "threshold": 0.63,
        "reason": "score 0.9000 > threshold 0.6300",
    }


def test_export_says_that_dpo_leaves_the_labels_as_they_are(workdir, tmp_path, capsys):
    assert cli.main(["export", str(workdir), "--method", "dpo", "--labels", str(tmp_path / "out.jsonl")]) == 0
    assert "4 labels, as after round 0; no later round of dpo changed any\n" in capsys.readouterr().out


def test_export_hands_a_model_to_the_exporter(workdir, monkeypatch, capsys):
    given = []
    exporter = types.SimpleNamespace(model=lambda **which: given.append(which))
    monkeypatch.setitem(sys.modules, "ilr_jax.export", exporter)
    assert cli.main(["export", str(workdir), "--method", "dpo", "--seed", "3", "--model", "m", "--adapter"]) == 0
    assert given == [{"workdir": str(workdir), "method": "dpo", "seed": 3, "round": None, "out": "m", "adapter": True}]


def test_demo_runs_the_quickstart_and_reports(tmp_path, monkeypatch, capsys):
    from ilr_jax import main

    given = []

    def experiment(flags):
        given.extend(flags)
        cli.sys.argv = ["ilr run", *flags]  # as the real one does, for ml_collections
        make_workdir(tmp_path / "demo")
        return 0

    monkeypatch.setattr(main, "run", experiment)
    monkeypatch.setattr(cli.shutil, "which", lambda _: None)
    monkeypatch.setattr(cli.sys, "argv", [str(Path.cwd() / ".venv" / "bin" / "ilr")])
    assert cli.main(["demo", "--workdir", str(tmp_path / "demo"), "--seed", "7"]) == 0
    assert given[1].endswith("configs/quickstart.py") and given[2:] == [f"--workdir={tmp_path / 'demo'}", "--config.seed=7"]
    out = capsys.readouterr().out
    assert str(tmp_path / "demo" / "report.html") in out
    assert out.endswith(f"  .venv/bin/ilr export {tmp_path / 'demo'} --method ilr --seed 7 --labels labels.jsonl\n")


def test_demo_that_fails_keeps_its_exit_code(tmp_path, monkeypatch):
    from ilr_jax import main

    monkeypatch.setattr(main, "run", lambda flags: 2)
    assert cli.main(["demo", "--workdir", str(tmp_path)]) == 2


def test_env_lists_versions_and_machine(capsys):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    for word in ("python 3.", "ilr-jax 0.", "jax 0.", "orbax-checkpoint 0.", "transformers 5.", "cores ", "memory ", "devices "):
        assert f"\n{word}" in f"\n{out}"
    assert "cpu" in out.lower()


def test_env_shows_why_no_device_starts(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    assert cli.main(["env"]) == 0
    assert "devices none; " in (out := capsys.readouterr().out) and "nonsense" in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["report", "{}/missing"], "no folder"),
        (["report", "{}"], "no runs"),
        (["status", "{}"], "no config.json"),
        (["export", "{}", "--method", "ilr", "--labels", "x"], "no runs"),
        (["export", "{}/one", "--method", "sft", "--round", "1", "--labels", "x"], "wanted labels of round 1"),
        (["export", "{}/one", "--method", "ilr", "--labels", "{}/no/folder/x"], "could not write"),
        (["export", "{}/one", "--method", "ilr", "--labels", "x", "--adapter"], "--model DIR"),
        (["report", "{}/one", "{}"], "no runs"),
        (["report", "{}/one", "--out", "/proc/nowhere"], "could not write"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(words, message, workdir, tmp_path, capsys):
    assert cli.main([word.format(tmp_path) for word in words]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ") and not said.out


def test_other_exceptions_keep_their_traceback(workdir, monkeypatch):
    from ilr_jax import report

    monkeypatch.setattr(report, "write", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", str(workdir)])


def test_a_reader_that_leaves_early_is_no_error(workdir):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from ilr_jax.cli import main; sys.exit(main())", "status", str(workdir)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
