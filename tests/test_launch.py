"""The scripts and descriptions of `launch/`: what each would run, with odd values; stand-ins for the tools record what really is run."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
TOOLS = ("make", "git", "gcloud", "sbatch", "srun", "sudo", "env", "mkdir", "tar")
ODD = {"CONFIG": "configs/my file.py", "WORKDIR": 'runs/it\'s "odd" $HOME & `x` * \\ é'}
FLAG = "--config.task.path=a b;'c'"
LINE = ["-m", "ilr_jax.main", f"--config={ODD['CONFIG']}", f"--workdir={ODD['WORKDIR']}"]
# One write a call: several processes may append at the same time.
RECORD = '#!/bin/sh\nprintf \'%s\\0\' "${0##*/}" "$@" "$(printf \'\\1\')" >> "$RECORDED"\n'
CALLS = [
    ("local.sh", (FLAG,), {}),
    ("local.sh", (FLAG,), {"PROCESSES": "3"}),
    ("gpu.sh", (FLAG,), {"CUDA": "cuda12"}),
    ("slurm.sh", (FLAG,), {"PARTITION": "a b", "ACCOUNT": "it's mine"}),
    *(("tpu_vm.sh", (action,), {"NAME": "a b"}) for action in ("create", "setup", "logs", "stop", "fetch", "delete")),
    ("tpu_vm.sh", ("fetch",), {"WORKDIR": "gs://bucket/a b"}),
    ("tpu_vm.sh", ("run", FLAG), {"SHARE": "10.0.0.2:/a b", "ZONE": "z", "SPOT": "yes"}),
    ("tpu_vm.sh", ("resume", FLAG), {"SHARE": "10.0.0.2:/a b", "WORKDIR": "/mnt/ilr/a b"}),
]


class Copy:
    """The scripts in a folder with a blank in its name, and tools that only write down how they were called."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.recorded = folder / "a copy", folder / "bin", folder / "recorded"
        shutil.copytree(LAUNCH, self.root / "launch")
        for path in (*(self.bin / tool for tool in TOOLS), self.root / ".venv" / "bin" / "python"):
            self.tool(path, RECORD)

    def tool(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        ours = {"PATH": f"{self.bin}:{os.environ['PATH']}", "RECORDED": str(self.recorded), "HOME": "/home/any", "LC_ALL": "C.UTF-8"}
        return ours | ODD | variables

    def call(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        env = self.environment(**variables)
        return subprocess.run(words, cwd=self.root.parent, env=env, capture_output=True, text=True, timeout=120)

    def script(self, name: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
        return self.call(str(self.root / "launch" / name), *words, **variables)

    def dry(self, name: str, *words: str, **variables: str) -> list[list[str]]:
        done = self.script(name, "--dry-run", *words, **variables)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]

    def calls(self) -> list[list[str]]:
        """What the tools wrote down since the last look."""
        if not self.recorded.exists():
            return []
        text = self.recorded.read_text()
        self.recorded.unlink()
        return [call.split("\0")[:-1] for call in text.split("\1\0")[:-1]]


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path)


def shellcheck(*words: str, **options) -> str:
    """What it complains of."""
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "wanted shellcheck, which the dev extra brings: pip install -e '.[dev]'"
    return subprocess.run([found, "--enable=check-set-e-suppressed", *words], capture_output=True, text=True, **options).stdout


def test_scripts_pass_shellcheck():
    assert shellcheck("--external-sources", *(f"launch/{name}" for name in (*SCRIPTS, "common.sh")), cwd=ROOT) == ""
    described = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert [shellcheck("--shell=bash", "-", input=described[part]) for part in ("setup", "run")] == ["", ""]


@pytest.mark.parametrize(("name", "words", "variables"), CALLS, ids=lambda x: " ".join(x) if isinstance(x, tuple) else None)
def test_a_dry_run_prints_what_would_run_and_runs_nothing(copy, name, words, variables):
    printed = copy.dry(name, *words, **variables)
    assert printed and not copy.calls()
    done = copy.script(name, *words, **variables)
    assert done.returncode == 0, done.stderr
    ran = copy.calls()
    key = sorted if name == "local.sh" else list  # whose processes start at the same time
    assert key(ran) == key([[Path(call[0]).name, *call[1:]] for call in printed])


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_setting_with_its_default(copy, name):
    text = (LAUNCH / name).read_text()
    wanted = re.findall(r"^([A-Z_]+)=\$\{\1:-(.*)\} +# (.+)$", text, re.M)
    assert len(wanted) == len(re.findall(r"^[A-Z_]+=", text, re.M)) >= 3
    done = copy.script(name, "--help")
    assert done.returncode == 0 and all(f"  {variable}={default}   ({what})\n" in done.stdout for variable, default, what in wanted)
    assert f"launch/{name} [--dry-run]" in done.stdout and "set -euo pipefail" not in done.stdout and not copy.calls()
    assert "\nset -euo pipefail\n" in text


def test_on_this_machine(copy):
    setup, line = copy.dry("local.sh", FLAG)
    assert setup == ["make", ".venv/base"] and line == ["env", "JAX_PLATFORMS=cpu", ".venv/bin/python", *LINE, FLAG]
    _, *lines = copy.dry("local.sh", PROCESSES="2", PORT="99")
    meet = ["--coordinator_address=localhost:99", "--num_processes=2"]
    assert lines == [["env", "JAX_PLATFORMS=cpu", ".venv/bin/python", *LINE, *meet, f"--process_id={i}"] for i in (0, 1)]
    assert copy.dry("gpu.sh", FLAG) == [["make", ".venv/cuda13"], [".venv/bin/python", *LINE, FLAG]]


def test_what_make_is_asked_for_is_there():
    for target in ("base", "cuda12", "cuda13", "tpu"):
        done = subprocess.run(["make", "--dry-run", "--always-make", f".venv/{target}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and f"touch .venv/{target}" in done.stdout, done.stderr


@pytest.mark.parametrize("code", [143, 2])
def test_several_processes_get_the_signal_and_give_their_code(copy, code):
    (copy.bin / "env").unlink()
    body = f"#!/bin/sh\necho $$ >> \"$RECORDED\"\ntrap 'exit {code}' TERM\nwhile :; do sleep 0.05; done\n"
    copy.tool(copy.root / ".venv" / "bin" / "python", body)
    command = [str(copy.root / "launch" / "local.sh")]
    with subprocess.Popen(command, env=copy.environment(PROCESSES="2")) as process:
        deadline = time.monotonic() + 60
        while (not copy.recorded.exists() or copy.recorded.read_text().count("\n") < 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == code
        finally:
            process.kill()


def test_slurm(copy):
    setup, sbatch = copy.dry("slurm.sh", FLAG, NODES="3", GPUS="4", TIME="1:00:00")
    assert setup == ["make", ".venv/cuda13"] and {"--nodes=3", "--gres=gpu:4", "--time=1:00:00", "--ntasks-per-node=1"} <= set(sbatch)
    assert {"--requeue", "--signal=TERM@120", "--dependency=singleton"} <= set(sbatch)
    assert not [word for word in sbatch if word.startswith(("--partition", "--account"))]
    copy.call("sh", "-c", sbatch[-1].removeprefix("--wrap="))
    (srun,) = copy.calls()
    assert srun[srun.index("env") :] == ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3", ".venv/bin/python", *LINE, "--distributed", FLAG]
    assert {"--partition=a b", "--account=c"} <= set(copy.dry("slurm.sh", PARTITION="a b", ACCOUNT="c")[1])


def test_tpu_vm(copy):
    (create,) = copy.dry("tpu_vm.sh", "create", NAME="it's", ZONE="z", PROJECT="p", ACCELERATOR="v5p-64", RUNTIME="r", SPOT="yes")
    start = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert create == [*start, "create", "it's", "--accelerator-type=v5p-64", "--version=r", "--spot", "--zone=z", "--project=p"]
    for size, image in {"v5litepod-16": "v2-alpha-tpuv5-lite", "v5p-8": "v2-alpha-tpuv5", "v6e-8": "v2-alpha-tpuv6e"}.items():
        assert f"--version={image}" in copy.dry("tpu_vm.sh", "create", ACCELERATOR=size)[0]
    (create,) = copy.dry("tpu_vm.sh", "create")
    assert not [word for word in create if word.startswith(("--spot", "--zone", "--project"))]
    steps = [call[4] if call[0] == "gcloud" else call[0] for call in copy.dry("tpu_vm.sh", "resume", SHARE="s:/x", WORKDIR="/mnt/ilr/x")]
    assert steps == ["describe", "delete", "create", "mkdir", "git", "scp", "ssh", "ssh", "ssh"]
    assert all("--worker=all" in call for call in copy.dry("tpu_vm.sh", "setup") if call[0] == "gcloud")


def test_tpu_hosts_run_the_line(copy):
    """The shell of a host gets the very words, whatever is in them; systemd, which reads $$ as $, is told so."""
    (run,) = copy.dry("tpu_vm.sh", "run", FLAG)
    (command,) = [word.removeprefix("--command=") for word in run if word.startswith("--command=")]
    (copy.root.parent / "ilr_jax").mkdir()
    assert copy.call("sh", "-c", command).returncode == 0
    (sudo,) = copy.calls()
    at = sudo.index("-m")
    assert sudo[1] == "systemd-run" and sudo[at - 1] == f"{copy.root.parent}/ilr_jax/.venv/bin/python"
    assert sudo[at:] == [word.replace("$", "$$") for word in [*LINE, "--distributed", FLAG]]
    assert f"--working-directory={copy.root.parent}/ilr_jax" in sudo


@pytest.mark.parametrize("word", ["--dry-run", "-n"])
def test_a_dry_run_is_one_wherever_it_stands(copy, word):
    for words in (("tpu_vm.sh", "delete", word), ("slurm.sh", FLAG, word), ("gpu.sh", FLAG, word, FLAG)):
        done = copy.script(*words)
        assert done.returncode == 0 and done.stdout and not copy.calls()


def test_what_a_script_cannot_do_is_refused_before_anything_runs(copy):
    for words, variables, message in (
        (("tpu_vm.sh", "create", "--spot"), {}, "create takes no further words, got: --spot"),
        (("tpu_vm.sh", "create"), {"ACCELERATOR": "v4-8"}, "ACCELERATOR: wanted v5litepod-N, v5p-N or v6e-N, got 'v4-8'; for another"),
        (("tpu_vm.sh", "create"), {"SPOT": "no"}, "SPOT: wanted yes or nothing, got 'no'"),
        (("tpu_vm.sh", "resume"), {"WORKDIR": "runs/gsm8k", "SHARE": "s:/x"}, "or SHARE and a WORKDIR in /mnt/ilr, got WORKDIR=runs/gsm8k"),
        (("tpu_vm.sh", "resume"), {"WORKDIR": "/mnt/ilr/x"}, "resume deletes the TPU with its disks: wanted WORKDIR=gs://BUCKET/NAME"),
        (("local.sh",), {"PROCESSES": "0"}, "PROCESSES: wanted a whole number, at least 1, got '0'"),
        (("local.sh",), {"PROCESSES": "1.5"}, "PROCESSES: wanted a whole number"),
        (("slurm.sh",), {"GPUS": "x"}, "GPUS: wanted a whole number, at least 1, got 'x'"),
    ):
        done = copy.script(*words, **variables)
        assert done.returncode == 2 and message in done.stderr and not copy.calls()


@pytest.mark.parametrize("action", ["setup", "resume"])
def test_a_step_that_fails_is_the_last_one(copy, action):
    copy.tool(copy.bin / "gcloud", RECORD + '[ "$4" != scp ]\n')
    assert copy.script("tpu_vm.sh", action, WORKDIR="gs://bucket/name").returncode == 1
    assert copy.calls()[-1][4] == "scp"


def test_resume_goes_on_where_the_last_one_found_no_room(copy):
    for fails in ("create", "describe"):
        copy.tool(copy.bin / "gcloud", RECORD + f'[ "$4" != {fails} ]\n')
        assert copy.script("tpu_vm.sh", "resume", WORKDIR="gs://bucket/name").returncode == (fails == "create")
    steps = [call[4] for call in copy.calls() if call[0] == "gcloud"]
    assert steps == ["describe", "delete", "create", "describe", "create", "scp", "ssh", "ssh"]


@pytest.mark.parametrize("words", [(), ("creat",), ("--dry-run",)])
def test_an_unknown_action_is_an_error_that_lists_them(copy, words):
    done = copy.script("tpu_vm.sh", *words)
    assert done.returncode == 2 and "wanted create, setup, run, resume" in done.stderr and not done.stdout and not copy.calls()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=30, max_size=60))
def test_quoted_words_are_read_back_by_any_shell(words):
    quote = ["bash", "-c", f'. {shlex.quote(str(LAUNCH / "common.sh"))}; quoted "$@"', "_", *words]
    line = subprocess.run(quote, capture_output=True, check=True).stdout.decode()
    for shell in ("sh", "bash"):
        read = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout.decode()
        assert read.split("\0")[:-1] == words
    assert shlex.split(line) == words


def test_skypilot_runs_the_line(copy):
    described = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"CONFIG", "WORKDIR", "EXTRA"} <= described["envs"].keys()
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    done = copy.call("bash", "-c", f"cd {shlex.quote(str(copy.root))}\n{described['run']}", **nodes)
    assert done.returncode == 0, done.stderr
    assert copy.calls() == [["python", *LINE, "--coordinator_address=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]]
