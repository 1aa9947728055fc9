"""Stages on disk: found, built, continued after a kill, refused when damaged, whole or absent when the disk fails."""

import errno
import json
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ilr_jax import files, store
from ilr_jax.store import StorageError, Store, claim, read_json
from ilr_jax.types import Stage

STAGE = Stage("weak_labels", {"lr": 1e-4, "epochs": 2}, {"d1": "abc"})


def build(folder: Path) -> dict[str, float]:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)))
    files.write_json(folder / "labels.json", ["a", "b"])
    return {"accuracy": 0.5}


def forbidden(folder: Path):
    raise AssertionError("this must not be built again")


def tree(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if Path(name).name != store.ABOUT}


def test_a_stage_is_built_once_and_then_found(tmp_path):
    built = Store(tmp_path).run(STAGE, build)
    assert Store(tmp_path).run(STAGE, forbidden) == built == Store(tmp_path).find(STAGE)
    assert Path(built.folder) == tmp_path / "stages" / f"weak_labels-{built.key[:12]}"
    assert built.manifest["metrics"] == {"accuracy": 0.5} and built.manifest["inputs"] == {"d1": "abc"}
    assert built.manifest["files"]["deep/er/weights.bin"]["size"] == 256 and len(built.manifest["files"]) == 2
    assert Store(tmp_path).finished() == [built]
    about = read_json(Path(built.folder) / store.ABOUT)
    assert about["seconds"] >= 0 and about["packages"]["numpy"] == np.__version__


def test_how_a_stage_was_built_is_noted_and_changes_nothing_else(tmp_path):
    stores = [Store(tmp_path / name) for name in ("plain", "noted")]
    stores[1].how = {"devices": "8 x TPU v5e", "attention": "gemm"}
    built = [each.run(STAGE, build) for each in stores]
    assert [read_json(Path(b.folder) / store.ABOUT)["how"] for b in built] == [{}, stores[1].how]
    assert built[0].manifest == built[1].manifest


def test_stages_of_other_versions_are_reused_and_said_so_once(tmp_path, monkeypatch, caplog):
    for name in ("a", "b"):
        Store(tmp_path).run(Stage(name, {}, {}), build)
    later = Store(tmp_path)
    assert later.find(Stage("a", {}, {})) and not caplog.messages
    now = dict(store.packages()) | {"jax": "99.0"}
    monkeypatch.setattr(store, "packages", lambda: now)
    assert later.find(Stage("a", {}, {})) and later.find(Stage("b", {}, {}))
    (said,) = caplog.messages
    assert "are reused; they were made with jax " in said and "(now 99.0)" in said


@pytest.mark.parametrize(
    "other",
    [
        Stage("other", STAGE.settings, STAGE.inputs),
        Stage(STAGE.name, {"lr": 1e-4, "epochs": 3}, STAGE.inputs),
        Stage(STAGE.name, STAGE.settings, {"d1": "abd"}),
        Stage(STAGE.name, STAGE.settings, {}),
    ],
)
def test_a_stage_that_differs_in_anything_has_another_key(tmp_path, other):
    assert Store(tmp_path).key(STAGE) != Store(tmp_path).key(other)
    Store(tmp_path).run(STAGE, build)
    assert Store(tmp_path).find(other) is None


def test_the_key_knows_the_format_and_not_the_order(tmp_path, monkeypatch):
    key = Store(tmp_path).key(STAGE)
    assert key == Store(tmp_path / "elsewhere").key(Stage("weak_labels", {"epochs": np.int64(2), "lr": 1e-4}, {"d1": "abc"}))
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    assert key != Store(tmp_path).key(STAGE)


def test_the_digest_stands_for_the_files_and_only_for_them(tmp_path):
    def other(folder: Path):
        build(folder)
        (folder / "labels.json").write_text('["a", "c"]')

    first = Store(tmp_path / "a").run(STAGE, build)
    assert first.manifest["digest"] == Store(tmp_path / "b").run(Stage("renamed", {}, {}), build).manifest["digest"]
    assert first.manifest["digest"] != Store(tmp_path / "c").run(STAGE, other).manifest["digest"]


def test_two_runs_give_the_same_bytes_but_for_about(tmp_path):
    for name in ("a", "b"):
        Store(tmp_path / name).run(STAGE, build)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_settings_with_other_keys_than_text_come_back_sealed(tmp_path):
    stage = Stage("s", {"by_epoch": {10: "x", 9: "y"}, "betas": (0.9, 0.99)}, {})
    assert Store(tmp_path).run(stage, build).manifest["settings"]["betas"] == [0.9, 0.99]


@pytest.mark.parametrize("stage", [Stage("a/b", {}, {}), Stage("..", {}, {}), Stage("", {}, {}), Stage("x", {"lr": float("nan")}, {})])
def test_bad_stages_are_refused(tmp_path, stage):
    with pytest.raises(ValueError, match="wanted a stage name|wanted what JSON can hold"):
        Store(tmp_path).run(stage, forbidden)


@pytest.mark.parametrize("text", ["", "{}", "[1]", None])
def test_a_damaged_about_is_named(tmp_path, text):
    path = Path(Store(tmp_path).run(STAGE, build).folder) / store.ABOUT
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=f"{store.ABOUT} is damaged.*start again: the stage is then rebuilt"):
        Store(tmp_path).find(STAGE)


@pytest.mark.parametrize("name", [store.MANIFEST, store.ABOUT, "link"])
def test_reserved_names_and_links_are_refused(tmp_path, name):
    def bad(folder: Path):
        (folder / name).symlink_to("/etc/hostname") if name == "link" else (folder / name).write_text("{}")

    with pytest.raises(ValueError, match=f"wanted plain files.*{name}"):
        Store(tmp_path).run(STAGE, bad)
    assert Store(tmp_path).find(STAGE) is None
    assert Store(tmp_path).run(STAGE, build).manifest["metrics"] == {"accuracy": 0.5}


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(data[:-2])
    else:
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])


@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
@pytest.mark.parametrize("name", ["deep/er/weights.bin", store.MANIFEST])
def test_a_damaged_file_is_named_and_never_used(tmp_path, name, how):
    artifact = Store(tmp_path).run(STAGE, build)
    damage(Path(artifact.folder) / name, how)
    for use in (lambda s: s.run(STAGE, forbidden), lambda s: s.find(STAGE), lambda s: s.finished()):
        with pytest.raises(ValueError, match=rf"{name} is damaged: .*not used. Delete .*{Path(artifact.folder).name}"):
            use(Store(tmp_path))
    shutil.rmtree(artifact.folder)
    assert Store(tmp_path).run(STAGE, build) == artifact


def test_an_artifact_is_hashed_once_by_a_store_and_not_by_its_builder(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(store, "sha256_of", lambda path: hashed.append(path.name) or files.sha256_of(path))
    builder, reader = Store(tmp_path), Store(tmp_path)
    builder.run(STAGE, build)
    assert len(hashed) == 2 and builder.find(STAGE) and len(hashed) == 2
    assert reader.find(STAGE) and reader.run(STAGE, forbidden) and len(hashed) == 4


def test_any_changed_value_in_the_manifest_breaks_its_seal(tmp_path):
    artifact = Store(tmp_path).run(STAGE, build)
    path = Path(artifact.folder) / store.MANIFEST
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(ValueError, match="manifest.json is damaged: it was changed"):
        Store(tmp_path).find(STAGE)


def test_a_failed_build_keeps_resume_and_nothing_else(tmp_path):
    def fails(folder: Path):
        (folder / "half").mkdir()
        (folder / "half" / "written.bin").write_bytes(b"x")
        (folder / store.RESUME).mkdir()
        (folder / store.RESUME / "step").write_text("7")
        raise RuntimeError("the loss is NaN")

    def continues(folder: Path):
        assert [p.name for p in folder.iterdir()] == [store.RESUME]
        assert (folder / store.RESUME / "step").read_text() == "7"
        return build(folder)

    with pytest.raises(RuntimeError, match="the loss is NaN"):
        Store(tmp_path / "a").run(STAGE, fails)
    assert Store(tmp_path / "a").find(STAGE) is None
    Store(tmp_path / "a").run(STAGE, continues)
    Store(tmp_path / "b").run(STAGE, build)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_build_that_was_complete_but_for_the_rename_is_not_repeated(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        Store(tmp_path).run(STAGE, build)
    assert Store(tmp_path).run(STAGE, forbidden).manifest["metrics"] == {"accuracy": 0.5}


def test_a_sealed_partial_folder_with_a_flipped_bit_is_built_again(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        Store(tmp_path).run(STAGE, build)
    (weights,) = tmp_path.rglob("weights.bin")
    damage(weights, "flipped")
    assert Store(tmp_path).run(STAGE, build)
    assert "building again" in caplog.text


def test_a_second_builder_waits_says_so_and_reads_the_result(tmp_path, caplog):
    started, go = threading.Event(), threading.Event()

    def slow(folder: Path):
        started.set()
        assert go.wait(20)
        return build(folder)

    results = []
    first = threading.Thread(target=lambda: results.append(Store(tmp_path).run(STAGE, slow)))
    second = threading.Thread(target=lambda: results.append(Store(tmp_path).run(STAGE, forbidden)))
    first.start()
    assert started.wait(20)
    with caplog.at_level(logging.WARNING):
        second.start()
        deadline = time.monotonic() + 20
        while "waiting for it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "another process is at work on stage 'weak_labels'" in caplog.text and not results
    go.set()
    first.join(20)
    second.join(20)
    assert len(results) == 2 and results[0] == results[1]


CONFIG = {"method": "ilr", "seed": 0, "task": {"name": "gsm8k", "train": 100}, "alpha": 0.15, "betas": (0.9, 0.99)}


def test_claim_accepts_the_same_config_with_another_method_and_seed(tmp_path):
    claim(tmp_path / "new" / "work", CONFIG)
    claim(tmp_path / "new" / "work", CONFIG | {"method": "dpo", "seed": 3})
    assert read_json(tmp_path / "new" / "work" / "config.json") == json.loads(json.dumps(CONFIG))


def test_claim_names_every_difference_and_changes_nothing(tmp_path):
    claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    other = {"method": "dpo", "seed": 1, "task": {"name": "gsm8k", "train": 200, "new": True}, "betas": (0.9, 0.99)}
    with pytest.raises(ValueError, match="choose another workdir") as caught:
        claim(tmp_path, other)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "alpha: wanted 0.15, got '(absent)'",
        "task.new: wanted '(absent)', got True",
        "task.train: wanted 100, got 200",
    ]
    assert (tmp_path / "config.json").read_bytes() == before
    claim(tmp_path, other, ignore=("method", "seed", "task", "alpha"))


def test_claim_needs_a_config_that_json_can_hold(tmp_path):
    with pytest.raises(ValueError, match="wanted what JSON can hold"):
        claim(tmp_path, {"lr": float("nan")})
    claim(tmp_path, CONFIG)


def test_of_several_that_build_together_one_writes_the_artifact(tmp_path):
    """Two stores in lockstep, as two processes are: the one that follows builds in a folder of its own, and reads what the other wrote."""
    answers, turn = [], threading.Barrier(2, timeout=60)

    def told(leads, ask):
        if leads:
            answers.append(ask())
        turn.wait()
        answer = answers[-1]
        turn.wait()
        return answer

    def build(folder):
        (folder / "text").write_text(folder.name)
        folders.append(folder)

    folders: list = []
    stores = [Store(tmp_path, leads, partial(told, leads)) for leads in (True, False)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda store: store.run(STAGE, build), stores))
    assert found[0] == found[1] == Store(tmp_path).find(STAGE)
    aside = next(folder for folder in folders if tmp_path not in folder.parents)
    assert Path(found[0].folder, "text").read_text() != aside.name and not aside.exists() and len(folders) == 2
