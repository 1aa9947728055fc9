"""A workdir in a bucket, here an emulated one: two machines share it, one goes on where another was lost, and nothing half done counts."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import jax.numpy as jnp
import pytest
from conftest import every_label_usable, make_tiny_config

from ilr_jax import cli, mirror, rounds
from ilr_jax.files import StorageError
from ilr_jax.mirror import Mirror
from ilr_jax.store import Store
from ilr_jax.train import checkpoint
from ilr_jax.types import Stage

sys.path.insert(0, str(Path(__file__).parent / "train"))
import test_loop as loops
import tiny_runs as tiny

STAGE = Stage("answers", {"epochs": 2}, {"data": "abc"})


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process work on the machine of that name: with a disk of its own."""
    return lambda name: monkeypatch.setattr(mirror, "CACHE", str(tmp_path / name))


@pytest.fixture
def files(emulator):
    return fsspec.filesystem("gs", use_listings_cache=False)


def build(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b" * 1000)
    return {"rows": 3}


def forbidden(folder):
    raise AssertionError("it was built again")


def test_a_stage_of_one_machine_is_found_by_another(machine, url):
    machine("one")
    built = Store(url).run(STAGE, build)
    machine("two")
    found = Store(url).run(STAGE, forbidden)
    assert found.manifest == built.manifest and found.folder != built.folder
    assert (Path(found.folder) / "sub" / "a.txt").read_text() == "a"
    assert [artifact.key for artifact in Store(url).finished()] == [built.key]


def test_a_folder_is_not_there_before_its_manifest_is_and_is_pushed_again(machine, url, monkeypatch):
    machine("one")
    store = Store(url)
    put = store.mirror._bucket.put_file
    monkeypatch.setattr(store.mirror._bucket, "put_file", lambda a, b: put(a, b) if b.endswith("txt") else broken())
    with pytest.raises(StorageError, match=r"could not write gs://made-up/.*json \(HttpError: come back later, 503\)"):
        store.run(STAGE, build)
    monkeypatch.undo()
    machine("two")
    assert Store(url).find(STAGE) is None
    machine("one")
    assert Store(url).run(STAGE, forbidden)  # its own disk has it
    machine("two")
    assert Store(url).run(STAGE, forbidden)


def test_bytes_that_the_bucket_changed_are_found(machine, url, files):
    machine("one")
    name = Path(Store(url).run(STAGE, build).folder).name
    files.pipe_file(f"{url}/stages/{name}/b.txt", b"c" * 1000)
    machine("two")
    with pytest.raises(ValueError, match=r"b\.txt is damaged: its bytes were changed"):
        Store(url).find(STAGE)


def test_a_damaged_folder_is_not_given_to_the_bucket_and_the_message_heals(machine, url, files):
    machine("one")
    built = Store(url).run(STAGE, build)
    files.rm(f"{url}/stages", recursive=True)
    path = Path(built.folder) / "b.txt"
    path.write_text("c" * 1000)
    with pytest.raises(ValueError, match=rf"Delete {built.folder} and .*delete {url}/stages/answers-\w+ too"):
        Store(url).find(STAGE)
    assert not files.find(f"{url}/stages")
    path.write_text("b" * 1000)
    assert Store(url).find(STAGE) == built and len(files.find(f"{url}/stages")) == 4


def test_the_buckets_folder_is_taken_where_two_differ(machine, url, files):
    for name, text in (("one", "b"), ("two", "c")):
        machine(name)
        Store(url).run(STAGE, lambda folder, text=text: (folder / "b.txt").write_text(text) and None)
        if name == "one":
            files.rm(url, recursive=True)
    machine("one")
    assert (Path(Store(url).run(STAGE, forbidden).folder) / "b.txt").read_text() == "c"


def test_what_a_killed_run_left_of_a_finished_stage_goes(machine, url, files):
    machine("one")
    name = Path(Store(url).run(STAGE, build).folder).name
    files.pipe_file(f"{url}/partial/{name}/resume/resume/3/tree/big", b"x")
    assert Store(url).run(STAGE, forbidden) and not files.find(f"{url}/partial")


def test_a_file_that_the_bucket_lost_is_lost_and_one_that_cannot_be_asked_for_is_an_error(machine, url, files, monkeypatch):
    machine("one")
    here = Mirror(url)
    path = here.root / "config.json"
    files.pipe_file(f"{url}/config.json", b"{}")
    here.pull(path)
    assert path.read_bytes() == b"{}"
    monkeypatch.setattr(files, "info", broken)
    with pytest.raises(StorageError, match="could not read .*config.json .HttpError: come back later, 503"):
        here.pull(path)
    monkeypatch.undo()
    machine("one")
    assert path.read_bytes() == b"{}" and [p.name for p in path.parent.iterdir()] == ["config.json"]
    files.rm_file(f"{url}/config.json")
    here.pull(path)
    assert not path.exists()


def broken(*_, **__):
    from gcsfs.retry import HttpError  # not above: the emulator sets what gcsfs reads when it is imported

    raise HttpError({"code": 503, "message": "come back later"})


def test_a_bucket_that_fails_is_no_damaged_save(machine, url, files, monkeypatch):
    machine("one")
    here, tree = Mirror(url), {"w": jnp.arange(10.0)}
    folder = here.root / "partial" / "sft"
    with checkpoint.Saver(folder, here) as saver:
        saver.begin(1, tree, {})
    monkeypatch.setattr(files, "cat_file", broken)
    with pytest.raises(StorageError, match="could not read .*resume/1/manifest.json"):
        checkpoint.restore(folder, tree, here)
    monkeypatch.undo()
    machine("one")
    monkeypatch.setattr(files, "pipe_file", broken)
    with pytest.raises(StorageError, match="could not write .*resume/2/manifest.json"), checkpoint.Saver(folder, here) as saver:
        saver.begin(2, tree, {})
    assert not files.find(f"{url}/partial/sft/resume/2")


@pytest.mark.parametrize("step", [1, 4])
def test_training_goes_on_on_another_machine_bit_for_bit(tmp_path, machine, url, step, caplog):
    whole = loops.train(tmp_path / "whole")
    folder = lambda: Mirror(url).root / "partial" / "sft" / "resume"
    machine("one")
    with pytest.raises(loops.Killed):
        loops.train(folder(), at=loops.killed_at(step), save_steps=1, mirror=Mirror(url))
    machine("two")
    Mirror(url).pull_files(folder())
    started = []
    again = loops.train(folder(), at=lambda i: (started.append(i), loops.batch_at(i))[1], save_steps=1, mirror=Mirror(url))
    assert sorted(started) == list(range(step, loops.STEPS)) and tiny.equal_bits(again.state, whole.state)
    assert (folder() / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert not (folder() / "resume").exists()  # the arrays are in the bucket alone


def test_saves_in_a_bucket_are_two_and_a_damaged_one_is_passed_over(machine, url, files, caplog):
    machine("one")
    here = Mirror(url)
    folder = here.root / "partial" / "sft"
    tree = {"w": jnp.arange(1000.0)}
    for step in (1, 2, 3):
        with checkpoint.Saver(folder, here) as saver:
            saver.begin(step, {"w": tree["w"] * step}, {})
    saves = f"{url}/partial/sft/resume"
    assert sorted({name.split("/resume/")[1].split("/")[0] for name in files.find(saves)}) == ["2", "3"]
    step, found, _ = checkpoint.restore(folder, {"w": jnp.zeros(1000)}, here)
    assert step == 3 and tiny.equal_bits(found, {"w": tree["w"] * 3})
    changed = max(files.find(f"{saves}/3/tree"), key=files.size)
    files.pipe_file(changed, files.cat_file(changed)[:-1] + b"?")
    assert checkpoint.restore(folder, {"w": jnp.zeros(1000)}, here)[0] == 2
    assert f"{changed} was changed after it was written; going back" in caplog.text.replace("gs://", "")
    files.rm_file(f"{saves}/2/manifest.json")
    assert checkpoint.restore(folder, {"w": jnp.zeros(1000)}, here) is None and "/2 is not finished" in caplog.text
    with checkpoint.Saver(folder, here) as saver:
        saver.begin(3, tree, {})
    assert {name.split("/resume/")[1].split("/")[0] for name in files.find(saves)} == {"3"}


def test_a_whole_run_in_a_bucket(tiny_models, tmp_path, machine, url, files, monkeypatch, capsys):
    """Another machine builds nothing again; report, status and export read it from anywhere."""
    every_label_usable(monkeypatch)
    config = make_tiny_config(tiny_models)
    config.method = "sft,ilr"
    rounds.run(config, tmp_path / "local")
    machine("one")
    rounds.run(config, url)
    assert f"{url} is worked on in {tmp_path / 'one'}" in capsys.readouterr().out
    names = files.find(url)
    assert not [name for name in names if "/partial/" in name]
    machine("two")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_fill", lambda *_: forbidden(None))
        rounds.run(config, url)
    assert json.loads(files.cat_file(f"{url}/runs/ilr-seed0.json"))["finished"]
    machine("three")
    capsys.readouterr()
    assert cli.main(["report", url, "--out", str(tmp_path / "there")]) == 0
    assert cli.main(["report", str(tmp_path / "local"), "--out", str(tmp_path / "here")]) == 0
    both = [json.loads((tmp_path / name / "results.json").read_text())["summary"] for name in ("here", "there")]
    assert both[0] == both[1]
    assert cli.main(["status", url]) == 0 and "ilr seed 0: finished" in capsys.readouterr().out
    files.rm_file(f"{url}/runs/sft-seed0.json")
    files.rm_file(next(name for name in names if "/stages/test-" in name and name.endswith("manifest.json")))
    assert cli.main(["status", url]) == 0
    said = capsys.readouterr().out
    assert "sft seed 0" not in said and said.count("\n  test-") == 1  # the bucket's counts, and half a stage is none
    assert not list((tmp_path / "read").rglob("*.safetensors"))
    for place, out in ((url, "a"), (str(tmp_path / "local"), "b")):
        assert cli.main(["export", place, "--method", "ilr", "--labels", str(tmp_path / f"{out}.jsonl")]) == 0
        assert cli.main(["export", place, "--method", "ilr", "--model", str(tmp_path / out)]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workdir", ["s3://bucket/run", "gs://", "gs://bucket", "gs://bucket//run", "gs://bucket/../run"])
def test_other_addresses_are_refused(workdir):
    with pytest.raises(ValueError, match=f"wanted a folder or gs://BUCKET/NAME as workdir, got '{workdir}'"):
        Mirror(workdir)


def test_a_bucket_that_is_not_there_is_one_message(machine, emulator):
    machine("one")
    with pytest.raises(StorageError, match="could not write gs://nowhere/run/.*see that the bucket is there and that you may write it"):
        Store("gs://nowhere/run").run(STAGE, build)


def test_without_gcsfs_it_is_said_what_to_install():
    text = "import sys; sys.modules['gcsfs'] = None; from ilr_jax.mirror import Mirror; Mirror('gs://bucket/run')"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=240)
    assert done.stderr.endswith("ValueError: a workdir in a bucket needs gcsfs: pip install 'ilr_jax[gcs]'\n")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_sweep_wants_a_folder(capsys):
    assert cli.main(["sweep", "--config=configs/quickstart.py", "--workdir=gs://bucket/run"]) == 2
    assert "wanted a folder as workdir of a sweep" in capsys.readouterr().err
