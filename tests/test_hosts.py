"""Several real processes on this machine: they meet, they decide together, and one that is left alone says so in bounded time."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from ilr_jax import hosts

sys.path.insert(0, str(Path(__file__).parent / "services"))
from fake_api import chat, serving

ROOT = Path(__file__).parent.parent
COMMAND = """
import sys
from ilr_jax import main, rounds
def run(config, workdir):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    total = multihost_utils.process_allgather(np.array([10.0 ** jax.process_index()])).sum()
    print(jax.process_count(), jax.process_index(), total, flush=True)
rounds.run = run
sys.exit(main.run(["ilr run", "--config=configs/quickstart.py", "--workdir=nowhere", *sys.argv[1:]]))
"""
TRAINS = """
import os, signal, sys
sys.path.insert(0, "tests/train")
import test_loop as t
from ilr_jax import hosts, interruption
number, folder = int(sys.argv[2]), t.Path(sys.argv[3])
hosts.start(False, sys.argv[1], 2, number, 240)
t.loop.Saver.begin = lambda self, step, *_: print("saved", step, flush=True)
def at(i):
    if (number, i) == (1, 5):
        os.kill(os.getpid(), signal.SIGTERM)
    return t.batch_at(i)
try:
    with interruption.listening():
        t.train(folder / str(number), number=40, state=t.begin(total=40), at=at)
except interruption.Interrupted as notice:
    print(notice, flush=True)
"""
EXPERIMENT = """
import sys
sys.path.insert(0, "tests")
import conftest
conftest.child(*sys.argv[1:])
"""
# What a cluster sets must not be found here, and one device a process is enough.
CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_COORDINATOR")
ENV = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTERS)} | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def free_address() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def begin(script: str, *words: str, devices: int = 1, home: Path | None = None) -> subprocess.Popen:
    """A process of `script`, or of the command itself where there is none; with a `home` it is on a machine of its own."""
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    ours = ["-c", script] if script else ["-m", "ilr_jax.main", "--config=configs/quickstart.py", "--workdir=nowhere"]
    command = [sys.executable, "-W", "ignore", *ours, *words]
    env = ENV | {"XLA_FLAGS": xla} | ({**os.environ, "XLA_FLAGS": xla, "HOME": str(home)} if home else {})
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[str, str]:
    """What it said on both streams, after it has ended."""
    try:
        return process.communicate(timeout=240)
    finally:
        process.kill()


def flags(address: str, count: int, number: int) -> list[str]:
    return [f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={number}"]


def test_two_processes_meet_and_reduce():
    address = free_address()
    both = [begin(COMMAND, *flags(address, 2, number)) for number in (0, 1)]
    said = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert ["2 0 11.0\n" in said[0][0], "2 1 11.0\n" in said[1][0]] == [True, True], said


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_left_alone_ends_in_bounded_time_with_one_message(number):
    address = free_address()
    process = begin("", *flags(address, 2, number), "--startup_timeout=3")
    out, said = ended(process)
    wanted = f"error: process {number} of 2 at {address} did not meet all the others within 3 s; "
    assert process.returncode == 2 and said.count("error: ") == 1 and wanted in said and "stack trace" not in said, said
    assert not out


def test_a_port_that_is_taken_is_one_message():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        process = begin("", *flags(f"localhost:{taken.getsockname()[1]}", 1, 0), "--startup_timeout=60")
        said = ended(process)[1]
    assert process.returncode == 2 and "in use" in said and "; choose another port" in said, said


def test_a_cluster_that_is_not_there_is_one_message():
    process = begin("", "--distributed")
    said = ended(process)[1]
    assert process.returncode == 2 and "wanted TPU metadata, SLURM, MPI or Kubernetes" in said and said.count("error: ") == 1


def test_slurm_is_detected():
    """One task as `srun` describes it."""
    tasks = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    command = [sys.executable, "-c", COMMAND, "--distributed"]
    done = subprocess.run(command, env=ENV | tasks, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "1 0 1.0\n" in done.stdout, done.stderr


def test_a_notice_to_one_process_makes_both_save_after_the_same_step(tmp_path):
    address = free_address()
    both = [begin(TRAINS, address, str(number), str(tmp_path)) for number in (0, 1)]
    said = [ended(process)[0].splitlines()[-2:] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] and re.fullmatch(r"saved \d+", said[0][0]) and said[0][0].split()[1] in said[0][1], said


WAITS = """
import os, sys, threading, time
from ilr_jax import hosts, interruption
hosts.start(False, sys.argv[1], 2, int(sys.argv[2]), 240)
print("here", flush=True)
try:
    with interruption.listening():
        hosts.told(lambda: time.sleep(3600))
except interruption.Interrupted as notice:
    print("interrupted", flush=True)
os._exit(0)
"""


def test_a_process_that_waits_for_the_first_still_listens():
    address = free_address()
    both = [begin(WAITS, address, str(number)) for number in (0, 1)]
    assert [process.stdout.readline() for process in both] == ["here\n"] * 2
    time.sleep(2)
    both[1].send_signal(signal.SIGTERM)
    assert ended(both[1])[0] == "interrupted\n"
    both[0].kill()
    both[0].communicate()


def experiment(workdir: Path | str, models: Path, count: int, homes: Path | None = None) -> list[subprocess.Popen]:
    """The tiny experiment on four devices of `count` processes; with `homes` each on a machine of its own."""
    address = free_address()
    words = [flags(address, count, number) for number in range(count)] if count > 1 else [["--nodistributed"]]
    home = lambda number: homes / str(number) if homes else None
    return [begin(EXPERIMENT, str(workdir), str(models), *given, devices=4 // count, home=home(i)) for i, given in enumerate(words)]


def refined(workdir: Path) -> tuple[dict, dict, list, dict]:
    """Of the one run there: the last round without times and places, its labels, the names of all stages' files, and its adapter."""
    row = json.loads((workdir / "runs" / "ilr-seed0.json").read_text())["rounds"][-1]
    labels = [json.loads(line) for line in (workdir / row["label_file"]).read_text().splitlines()]
    names = sorted((path.parent.name.rsplit("-", 1)[0], path.name) for path in workdir.glob("stages/*/*"))
    figures = {
        name: value for name, value in row.items() if name not in ("seconds", "model", "answers", "label_file", "audit", "comparisons")
    }
    return figures, labels, names, load_file(workdir / row["model"] / "adapters.safetensors")


@pytest.fixture(scope="module")
def one(tiny_models, tmp_path_factory) -> Path:
    """The workdir of the tiny experiment on one process."""
    workdir = tmp_path_factory.mktemp("one")
    (alone,) = experiment(workdir, tiny_models["gemma"].parent, 1)
    said = ended(alone)
    assert alone.returncode == 0, said
    return workdir


def assert_same(found: Path, wanted: Path) -> None:
    """Two workdirs hold the same round, labels and files, and the same adapter up to rounding."""
    (*ours, adapter), (*theirs, other) = refined(found), refined(wanted)
    assert ours == theirs
    for name, weights in adapter.items():
        np.testing.assert_allclose(other[name], weights, rtol=0, atol=1e-6, err_msg=name)


def test_a_round_on_four_processes_is_that_of_one_also_when_one_of_them_was_lost(one, tiny_models, tmp_path):
    """Four processes are begun, one of them is killed as they train, and the same command goes on."""
    models = tiny_models["gemma"].parent
    many = tmp_path / "many"
    four = experiment(many, models, 4)
    while not list(many.glob("partial/weak-*/resume/resume/*/manifest.json")):
        assert four[0].poll() is None, four[0].communicate()
        time.sleep(0.05)
    four[3].kill()
    killed = time.monotonic()
    said = [ended(process)[1] for process in four]
    told = {
        2: "error: process 0 lost the others, or failed itself (",
        -signal.SIGABRT: "another task died",
    }  # the second, where it waited for JAX's service
    assert told[four[0].returncode] in said[0] and time.monotonic() - killed < 2 * hosts.HEARTBEAT, said
    four = experiment(many, models, 4)
    said = [ended(process) for process in four]
    assert [process.returncode for process in four] == [0, 0, 0, 0], said
    assert "weak: " in said[0][1] and "weak: 0/" not in said[0][1] and "steps" not in said[1][1], said
    assert_same(many, one)


def test_two_processes_that_share_a_bucket_alone_are_killed_and_go_on_elsewhere(one, tiny_models, tmp_path, url):
    """Two processes, each with a disk of its own, are killed as they train; two new machines take their last save from the bucket."""
    models, bucket = tiny_models["gemma"].parent, fsspec.filesystem("gs", use_listings_cache=False)
    two = experiment(url, models, 2, tmp_path / "lost")
    while not [name for name in bucket.find(f"{url}/partial") if "/weak-" in name and name.endswith("/resume/resume/2/manifest.json")]:
        assert two[0].poll() is None, two[0].communicate()
        time.sleep(0.2)
    for process in two:
        process.kill()
        process.communicate()
    two = experiment(url, models, 2, tmp_path / "new")
    said = [ended(process) for process in two]
    assert [process.returncode for process in two] == [0, 0] and "weak: " in said[0][1] and "weak: 0/" not in said[0][1], said
    assert_same(tmp_path / "new" / "0" / ".cache" / "ilr_jax" / "workdirs" / url.removeprefix("gs://"), one)
    assert not bucket.find(f"{url}/partial")


def test_a_slow_judge_behind_an_endpoint_is_asked_by_one_process_and_awaited_by_the_other(tiny_models, tmp_path, monkeypatch):
    """It takes longer than processes that talk over their devices wait for each other (gloo: 30 s)."""
    verdict = {"B": math.log(0.9), "A": math.log(0.1)}
    late = chat("B", verdict)
    late.pause = 40.0
    with serving(lambda path, body: chat("B", verdict), [late]) as api:
        monkeypatch.setitem(ENV, "MADE_UP_JUDGE", api.url)
        two = experiment(tmp_path / "run", tiny_models["gemma"].parent, 2)
        said = [ended(process) for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    asked = [json.dumps(body) for _, body in api.asked]
    figures = refined(tmp_path / "run")[0]
    assert len(asked) == len(set(asked)) == 2 * figures["compared"] > 0  # both orders, each once


BAD = {
    "no number": (("a:1", 2, None), "wanted --coordinator_address, --num_processes, --process_id together, got no --process_id"),
    "address alone": (("a:1", None, None), "got no --num_processes and no --process_id"),
    "no address": ((None, 2, 0), "got no --coordinator_address"),
    "no port": (("here", 2, 0), "wanted host:port of process 0, got 'here'"),
    "no processes": (("a:1", 0, 0), "--num_processes: wanted at least 1, got 0"),
    "number too high": (("a:1", 2, 2), "--process_id: wanted 0 to --num_processes - 1, got 2"),
    "negative number": (("a:1", 2, -1), "got -1"),
}


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("fault", BAD)
def test_flags_that_cannot_be_are_refused(fault, distributed):
    given, message = BAD[fault]
    with pytest.raises(ValueError, match=re.escape(message)):
        hosts.start(distributed, *given, 60.0)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match="together.*host:port.*more than 0 seconds"):
        hosts.start(False, "here", None, None, 0.0)


def test_without_a_flag_nothing_is_started():
    import jax

    hosts.start(False, None, None, None, 300.0)
    assert not jax.distributed.is_initialized() and hosts.voting()(True, False) == [True, False]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
