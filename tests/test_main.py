"""The command line of an experiment: what a user sees when something is misspelt or missing."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ilr_jax.main", f"--config={ROOT}/configs/quickstart.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_a_misspelt_field_is_an_error_that_names_the_nearest(tmp_path):
    done = run(f"--workdir={tmp_path}/run", "--config.rouns=2")
    assert done.returncode == 2 and 'Did you mean "rounds"' in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_misspelt_method_and_a_refused_workdir_are_one_message(tmp_path):
    done = run(f"--workdir={tmp_path}", "--config.method=irl")
    assert done.returncode == 2 and "wanted some of sft, ilr, naive, dpo" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "config.json").write_text(json.dumps({"rounds": 1}))
    done = run(f"--workdir={tmp_path}")
    assert done.returncode == 2 and "different config" in done.stderr and "Traceback" not in done.stderr


def test_fields_may_be_set_by_a_caller_with_flags_of_its_own(tmp_path):
    """`ilr demo` hands its flags over in a list, not through the command line of the process."""
    flags = ["ilr run", f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}", "--config.method=irl"]
    command = [sys.executable, "-c", f"from ilr_jax import main; main.run({flags!r})"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 2 and "wanted some of sft, ilr, naive, dpo" in done.stderr


def test_help_tells_what_the_flags_are():
    done = run("--help")
    assert "--workdir" in done.stdout and "--config" in done.stdout
