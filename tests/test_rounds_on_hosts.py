"""The whole method on several real processes: it is that of one, also where one of them is lost, or all are."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from many_processes import ENV, begin, ended, flags, free_address
from safetensors.numpy import load_file

from ilr_jax import hosts
from ilr_jax.sharding import MESH_AXES

sys.path.insert(0, str(Path(__file__).parent / "services"))
from fake_api import chat, serving

EXPERIMENT = """
import os, sys
sys.path.insert(0, "tests")
import conftest
workdir = sys.argv[1]
def heard(event, words):
    if event == "open" and words[2] & (os.O_WRONLY | os.O_RDWR) and str(words[0]).startswith(workdir):
        os.write(1, f"writes {words[0]}\\n".encode())
sys.addaudithook(heard)
conftest.child(*sys.argv[1:])
"""


def experiment(workdir: Path | str, models: Path, count: int, mesh: tuple = (1, 2, 2), homes: Path | None = None) -> list[subprocess.Popen]:
    """The tiny experiment on four devices of `count` processes; with `homes` each on a machine of its own."""
    address, sizes = free_address(), [f"--config.sharding.{axis}={size}" for axis, size in zip(MESH_AXES, mesh, strict=True)]
    words = [[*sizes, *(flags(address, count, number) if count > 1 else [])] for number in range(count)]
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


def assert_same(found: Path, wanted: Path, atol: float) -> None:
    """Two workdirs hold the same round, labels and files, and the same adapter up to rounding, which on another mesh is another."""
    (*ours, adapter), (*theirs, other) = refined(found), refined(wanted)
    assert ours == theirs
    for name, weights in adapter.items():
        np.testing.assert_allclose(other[name], weights, rtol=0, atol=atol, err_msg=name)


def test_a_round_on_four_processes_is_that_of_one_also_when_it_was_begun_on_two_of_which_one_was_lost(one, tiny_models, tmp_path):
    """Two processes are begun, with two devices each; one of them is killed as they train, and four go on."""
    models = tiny_models["gemma"].parent
    many = tmp_path / "many"
    two = experiment(many, models, 2)
    while not list(many.glob("partial/weak-*/resume/resume/*/manifest.json")):
        assert two[0].poll() is None, two[0].communicate()
        time.sleep(0.05)
    two[1].kill()
    killed = time.monotonic()
    said = [ended(process)[1] for process in two]
    # Where it waited for JAX's service, or where gloo went on in a step that had failed, those have the last word.
    told = {2: ("error: process 0 lost the others, or failed itself (",), -signal.SIGABRT: ("another task died", "gloo::")}
    assert any(word in said[0] for word in told[two[0].returncode]), said
    assert time.monotonic() - killed < 2 * hosts.HEARTBEAT, said
    four = experiment(many, models, 4)
    said = [ended(process) for process in four]
    assert [process.returncode for process in four] == [0] * 4, said
    assert "weak: " in said[0][1] and "weak: 0/" not in said[0][1] and all("steps" not in words for _, words in said[1:]), said
    wrote = [[line for line in words.splitlines() if line.startswith("writes ")] for words, _ in said]
    saves = "/resume/resume/"  # into which each process writes its own part
    assert any(saves not in line for line in wrote[0]) and not [line for lines in wrote[1:] for line in lines if saves not in line], wrote
    assert_same(many, one, 1e-6)


def test_processes_without_a_common_workdir_end_with_a_message(tiny_models, tmp_path):
    address = free_address()
    words = [(str(tmp_path / str(i)), str(tiny_models["gemma"].parent), *flags(address, 2, i)) for i in (0, 1)]
    two = [begin(EXPERIMENT, *given, devices=2) for given in words]
    said = [ended(process)[1] for process in two]
    assert [process.returncode for process in two] == [2, 2], said
    assert "process 1 differs from process 0 (sees the workdir of process 0: wanted True, got False); give a workdir that all" in said[1]
    assert "process 1 differs from process 0; give a workdir that all of them share" in said[0]


def test_two_processes_that_share_a_bucket_alone_are_killed_and_go_on_elsewhere(one, tiny_models, tmp_path, url):
    """Two processes, each with a disk of its own, are killed as they train; two new machines take their last save from the bucket."""
    models, bucket = tiny_models["gemma"].parent, fsspec.filesystem("gs", use_listings_cache=False)
    two = experiment(url, models, 2, homes=tmp_path / "lost")
    while not [name for name in bucket.find(f"{url}/partial") if "/weak-" in name and name.endswith("/resume/resume/2/manifest.json")]:
        assert two[0].poll() is None, two[0].communicate()
        time.sleep(0.2)
    for process in two:
        process.kill()
        process.communicate()
    two = experiment(url, models, 2, (2, 1, 2), tmp_path / "new")
    said = [ended(process) for process in two]
    assert [process.returncode for process in two] == [0, 0] and "weak: " in said[0][1] and "weak: 0/" not in said[0][1], said
    assert_same(tmp_path / "new" / "0" / ".cache" / "ilr_jax" / "workdirs" / url.removeprefix("gs://"), one, 1e-4)
    assert not bucket.find(f"{url}/partial")


def test_a_slow_judge_behind_an_endpoint_is_asked_by_one_process_and_awaited_by_the_other(tiny_models, tmp_path, monkeypatch):
    """It takes longer than processes that talk over their devices wait for each other (gloo: 30 s)."""
    verdict = {"B": math.log(0.9), "A": math.log(0.1)}
    late = chat("B", verdict)
    late.pause = 40.0
    with serving(lambda path, body: chat("B", verdict), [late]) as api:
        monkeypatch.setitem(ENV, "MADE_UP_JUDGE", api.url)
        two = experiment(tmp_path / "run", tiny_models["gemma"].parent, 2, (2, 1, 2))  # whose programs are kept
        said = [ended(process) for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    asked = [json.dumps(body) for _, body in api.asked]
    figures = refined(tmp_path / "run")[0]
    assert len(asked) == len(set(asked)) == 2 * figures["compared"] > 0  # both orders, each once
