"""Several real processes on this machine: they meet, they decide together, and one that is left alone says so in bounded time."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from many_processes import ENV, ROOT, begin, ended, flags, free_address

from ilr_jax import hosts, roles

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
STEPS = """
import sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ilr_jax import hosts, main
hosts.start(False, sys.argv[1], 4, int(sys.argv[2]), 240)
mesh = Mesh(np.array(jax.devices()), "all")
spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
def step(state):  # one reduction over the processes after the other
    for _ in range(6):
        both = jax.lax.with_sharding_constraint(state.sum(0), whole)
        state = jax.lax.with_sharding_constraint(jax.numpy.tanh(state + both), spread)
    return state, both.sum()
step = jax.jit(step, out_shardings=(spread, whole))
state = jax.make_array_from_callback((4, 128), spread, lambda _: np.ones((1, 128), np.float32))
ask = hosts.voting()
try:
    with hosts.together():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            state, total = step(state)
            for _ in range(4):
                ask(total, False)
            print("trains", flush=True)
except hosts.Lost as lost:
    print(lost, file=sys.stderr)
    main.leave(2)
"""

NAMES = """
import sys
from ilr_jax import hosts, roles
address, number, *folders = sys.argv[1:]
hosts.start(False, address, 2, int(number), 240)
if int(number):
    roles.sha256_of = None  # process 0 alone reads weights whole
for folder in folders:
    try:
        print(roles.Model(folder, "float32").digest, flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


def test_two_processes_meet_and_reduce():
    address = free_address()
    both = [begin(COMMAND, *flags(address, 2, number)) for number in (0, 1)]
    said = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert ["2 0 11.0\n" in said[0][0], "2 1 11.0\n" in said[1][0]] == [True, True], said


def test_a_model_has_one_name_in_all_processes_and_files_that_differ_are_told(tiny_models, tmp_path):
    address, same = free_address(), tiny_models["gemma"]
    for i in (0, 1):
        shutil.copytree(same, tmp_path / str(i))
    (tmp_path / "1" / "config.json").write_text((same / "config.json").read_text() + " ")
    both = [begin(NAMES, address, str(i), str(same), str(tmp_path / str(i))) for i in (0, 1)]
    said = [[line for line in ended(process)[0].splitlines() if not line.startswith("[Gloo]")] for process in both]
    assert said[0][0] == said[1][0] == roles.Model(str(same), "float32").digest
    assert f"give all of them the same files in {tmp_path / '0'}" in said[0][1] and "config.json: wanted" in said[1][1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_left_alone_ends_in_bounded_time_with_one_message(number):
    address = free_address()
    process = begin("", *flags(address, 2, number), "--startup_timeout=3")
    out, said = ended(process)
    wanted = f"error: process {number} of 2 at {address} did not meet all the others within 3 s; "
    assert process.returncode == 2 and said.count("error: ") == 1 and wanted in said and "stack trace" not in said, said
    assert not out


def test_a_process_that_is_left_alone_hears_ctrl_c():
    address, before = free_address(), signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits that it is ignored
    try:
        process = begin("", *flags(address, 2, 0), "--startup_timeout=240")
    finally:
        signal.signal(signal.SIGINT, before)
    with socket.socket() as s:
        while process.poll() is None and s.connect_ex(("localhost", int(address.partition(":")[2]))):
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert ended(process) == ("", "stopped; the same command continues\n") and process.returncode == 130


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


@pytest.mark.parametrize("lost", [0, 3])
def test_a_process_that_is_lost_amid_steps_and_votes_ends_the_others_with_our_message(lost):
    """Where a vote outlives its failed step, gloo aborts a process that still waits in that step: seen in every fifth run of this."""
    address = free_address()
    four = [begin(STEPS, address, str(number)) for number in range(4)]
    assert all("trains\n" in process.stdout for process in four)
    four[lost].kill()
    said = [ended(process)[1] for process in four]
    assert [process.returncode for process in four] == [-signal.SIGKILL if i == lost else 2 for i in range(4)], said
    assert all(f"process {i} lost the others" in said[i] for i in range(4) if i != lost), said


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


ALIKE = """
import sys
from ilr_jax import hosts
address, number = sys.argv[1], int(sys.argv[2])
hosts.start(False, address, 3, number, 60.0)
hosts.alike({"rate": 0.5, "code": "c"}, "never shown")
try:
    hosts.alike({"rate": 0.5, "code": "c", **({"rate": 0.6, "more": 1} if number == 2 else {})}, "give all the same flags")
except ValueError as error:
    print(error, flush=True)
"""


def test_processes_that_differ_all_end_and_one_that_differs_says_in_what():
    address = free_address()
    three = [begin(ALIKE, address, str(number)) for number in range(3)]
    said = [ended(process)[0].splitlines()[-1] for process in three]  # gloo tells of its ranks before
    assert said[:2] == ["process 2 differs from process 0; give all the same flags"] * 2
    told = "more: wanted '(absent)', got 1; rate: wanted 0.5, got 0.6"
    assert said[2] == f"process 2 differs from process 0 ({told}); give all the same flags"


def test_a_process_that_waits_for_the_first_still_listens():
    address = free_address()
    both = [begin(WAITS, address, str(number)) for number in (0, 1)]
    assert [process.stdout.readline() for process in both] == ["here\n"] * 2
    time.sleep(2)
    both[1].send_signal(signal.SIGTERM)
    assert ended(both[1])[0] == "interrupted\n"
    both[0].kill()
    both[0].communicate()


BAD = {
    "no number": (("a:1", 2, None), "wanted --coordinator_address, --num_processes, --process_id together, got no --process_id"),
    "address alone": (("a:1", None, None), "got no --num_processes and no --process_id"),
    "no address": ((None, 2, 0), "got no --coordinator_address"),
    "no port": (("here", 2, 0), "wanted host:port of process 0, got 'here'"),
    "a port that is none": (("a:65536", 2, 0), "--coordinator_address: wanted a port up to 65535, got 'a:65536'"),
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
    assert not jax.distributed.is_initialized() and hosts.voting()(None, True, False) == [True, False]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
