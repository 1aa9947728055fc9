"""The store when things go wrong: every disk call fails once, and the process is killed at random moments."""

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ilr_jax import files, store
from ilr_jax.store import StorageError, Store, claim
from ilr_jax.types import Stage

STAGE = Stage("weak_labels", {"lr": 1e-4}, {"d1": "abc"})


def build(folder: Path) -> dict[str, float]:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)))
    files.write_json(folder / "labels.json", ["a", "b"])
    return {"accuracy": 0.5}


def tree(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if Path(name).name != store.ABOUT}


class FailingDisk:
    """Lets the n-th call that touches the disk fail, for every kind of call that the store makes."""

    def __init__(self, monkeypatch, n: int, number: int = errno.ENOSPC):
        self.left, self.failed, self.number = n, False, number
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        for module in (files, store):
            monkeypatch.setattr(module, "open", self.wrap(self.open), raising=False)

    def wrap(self, function):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                self.failed = True
                raise OSError(self.number, os.strerror(self.number))
            return function(*args, **kwargs)

        return call

    def open(self, path, mode="r"):
        if mode != "wb":
            return open(path, mode)
        raw = io.FileIO(path, "w")
        writer = io.BufferedWriter(raw)
        disk = self

        class Writer:
            write = staticmethod(disk.wrap(lambda data: writer.write(data)))
            flush, fileno = writer.flush, writer.fileno

            def __enter__(self):
                return self

            def __exit__(self, *_):
                writer.close()

        return Writer()


def run_with_resume(root: Path):
    def continued(folder: Path):
        resume = folder / store.RESUME
        resume.mkdir(exist_ok=True)
        (resume / "step").write_text("1")
        return build(folder)

    return Store(root).run(STAGE, continued)


def test_whichever_disk_call_fails_the_artifact_is_whole_or_absent_and_a_retry_succeeds(tmp_path, monkeypatch):
    whole = Store(tmp_path / "whole").run(STAGE, build)
    expected = tree(tmp_path / "whole" / "stages")
    n, disk = 0, None
    while disk is None or disk.failed:
        n += 1
        root = tmp_path / str(n)
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, n)
            try:
                run_with_resume(root)
            except StorageError as error:
                assert str(tmp_path) in str(error) and str(error).count("start the same command again") == 1
        found = Store(root).find(STAGE)
        assert found is None or found.manifest == whole.manifest
        assert run_with_resume(root).manifest == whole.manifest
        assert tree(root / "stages") == expected
        shutil.rmtree(root)
    assert n > 20


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a writable workdir"), (errno.EACCES, "you may write to")],
)
def test_a_full_or_read_only_disk_is_named_with_what_to_do(tmp_path, monkeypatch, number, advice):
    FailingDisk(monkeypatch, 1, number)
    with pytest.raises(StorageError, match=rf"could not write {tmp_path}.*{os.strerror(number)}.*{advice}") as caught:
        Store(tmp_path).run(STAGE, build)
    assert caught.value.errno == number


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="you may write to"):
        Store(tmp_path).run(STAGE, build)


def test_a_disk_that_fills_up_inside_a_build_is_explained_and_other_errors_are_left_alone(tmp_path):
    def full(folder: Path):
        raise OSError(errno.ENOSPC, "No space left on device")

    def lost(folder: Path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "model.safetensors")

    with pytest.raises(StorageError, match="free some space there and start the same command again"):
        Store(tmp_path).run(STAGE, full)
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        Store(tmp_path).run(STAGE, lost)


def test_whichever_disk_call_fails_a_claim_is_whole_or_absent(tmp_path, monkeypatch):
    n, disk = 0, None
    while disk is None or disk.failed:
        n += 1
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, n)
            try:
                claim(tmp_path / str(n), {"method": "ilr", "alpha": 0.15})
            except StorageError as error:
                assert "free some space" in str(error)
        claim(tmp_path / str(n), {"method": "ilr", "alpha": 0.15})
    assert n > 4


CHILD = """
import sys, time
from pathlib import Path
from ilr_jax.store import Store, write_json, read_json
from ilr_jax.types import Stage

def build(folder):
    resume = folder / "resume" / "state.json"
    resume.parent.mkdir(exist_ok=True)
    step, total = read_json(resume) if resume.exists() else (0, 0)
    while step < 40:
        step, total = step + 1, total * 31 % 1000003 + step
        time.sleep(0.004)
        write_json(resume, [step, total])
    (folder / "many").mkdir()
    for i in range(20):
        write_json(folder / "many" / f"{i}.json", [i, total])
    return {"total": total}

print("ready", flush=True)
store, digest = Store(sys.argv[1]), "start"
for i in range(3):
    digest = store.run(Stage("stage", {"i": i}, {"before": digest}), build).manifest["digest"]
"""


def child(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(root)], stdout=subprocess.PIPE)


def test_killed_at_random_moments_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    with child(tmp_path / "unbroken") as process:
        assert process.wait(60) == 0
    rng, kills = random.Random(0), 0
    for _ in range(60):
        with child(tmp_path / "killed") as process:
            assert process.stdout and process.stdout.readline()
            try:
                process.wait(rng.uniform(0, 0.12) if kills < 12 else 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
                process.wait()
            if process.returncode == 0:
                break
    assert kills >= 4 and process.returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "unbroken")
    assert len(Store(tmp_path / "killed").finished()) == 3
