"""A save comes back bit for bit or not at all: kills, flipped bits, missing files and full disks."""

import errno
import hashlib
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax.files import StorageError
from ilr_jax.train import checkpoint
from ilr_jax.train.saves import Saves

TREE = {
    "state": {"w": np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32), "step": np.array([1, 2, 3], np.int32)},
    "best": {},
}


def like() -> dict:
    return jax.tree.map(jnp.zeros_like, TREE)


def shifted(n: int) -> dict:
    return jax.tree.map(lambda x: jnp.asarray(x + n), TREE)


def test_newest_save_comes_back_with_its_note(tmp_path):
    for step in (3, 20, 100):
        tiny.save(tmp_path, step, shifted(step), {"best": 0.1 + 0.2, "none": None})
    step, tree, note = checkpoint.restore(tmp_path, like())
    assert (step, note) == (100, {"best": 0.1 + 0.2, "none": None})
    assert tiny.equal_bits(tree, shifted(100))
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["100", "20"]


@pytest.mark.parametrize(("keep", "left"), [(1, [100]), (3, [100, 20, 5])])
def test_as_many_saves_stay_as_are_asked_for(tmp_path, keep, left):
    with checkpoint.Saver(tmp_path, keep=keep) as saver:
        for step in (3, 5, 20, 100):
            saver.begin(step, shifted(step), {})
    assert Saves(str(tmp_path / "resume")).steps() == left


def test_what_is_read_takes_the_room_of_what_was_there(tmp_path):
    first = like()
    assert checkpoint.restore(tmp_path, first) is None and not any(x.is_deleted() for x in jax.tree.leaves(first))
    tiny.save(tmp_path, 3, shifted(3), {})
    _, tree, _ = checkpoint.restore(tmp_path, first)
    assert all(x.is_deleted() for x in jax.tree.leaves(first)) and tree["state"]["w"].sharding == like()["state"]["w"].sharding


def test_half_a_save_is_passed_over_and_is_cleared_away(tmp_path):
    tiny.save(tmp_path, 3, shifted(3), {})
    shutil.copytree(tmp_path / "resume" / "3", tmp_path / "resume" / "4")
    (tmp_path / "resume" / "4" / "manifest.json").unlink()
    assert checkpoint.restore(tmp_path, like())[0] == 3
    tiny.save(tmp_path, 5, shifted(5), {})
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["3", "5"]


def saved_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_found_named_and_passed_over(tmp_path, caplog):
    tiny.save(tmp_path, 3, shifted(3), {})
    tiny.save(tmp_path, 4, shifted(4), {})
    rng = np.random.default_rng(1)
    for path in saved_files(tmp_path / "resume" / "4"):
        good = path.read_bytes()
        if not good:
            continue
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        caplog.clear()
        step, tree, _ = checkpoint.restore(tmp_path, like())
        assert step == 3 and tiny.equal_bits(tree, shifted(3)), path
        assert path.name in caplog.text and "/4/" in caplog.text
        path.write_bytes(good)
    assert checkpoint.restore(tmp_path, like())[0] == 4


def test_files_of_adapters_are_joined_into_one_of_all(tmp_path):
    parts = [tiny.adapters(k, seed=k) for k in (1, 2)]
    for i, part in enumerate(parts):
        checkpoint.save_tree(tmp_path / f"{i}.safetensors", part)
    checkpoint.join([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "joined")
    checkpoint.save_tree(tmp_path / "wanted", tiny.stack(parts))
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_new_saves_stay_where_later_ones_were_damaged(tmp_path):
    for step in (90, 100):
        tiny.save(tmp_path, step, shifted(step), {})
        (tmp_path / "resume" / str(step) / "manifest.json").write_text("{}")
    assert checkpoint.restore(tmp_path, like()) is None
    tiny.save(tmp_path, 10, shifted(10), {})
    assert checkpoint.restore(tmp_path, like())[0] == 10 and [p.name for p in (tmp_path / "resume").iterdir()] == ["10"]


@pytest.mark.parametrize("harm", ["missing", "added", "cut"])
def test_other_harm_is_found_too(tmp_path, caplog, harm):
    tiny.save(tmp_path, 4, shifted(4), {})
    for i, path in enumerate(saved_files(tmp_path / "resume" / "4")):
        good = path.read_bytes()
        if harm == "missing":
            path.unlink()
        elif harm == "cut":
            path.write_bytes(good[:-1])
        other = path.with_name(f"other{i}")
        if harm == "added":
            other.write_bytes(b"")
        if harm != "cut" or good:
            caplog.clear()
            assert checkpoint.restore(tmp_path, like()) is None
            assert (other if harm == "added" else path).name in caplog.text
        path.write_bytes(good)
        other.unlink(missing_ok=True)


def test_a_save_of_other_arrays_is_refused_not_cast(tmp_path):
    tiny.save(tmp_path, 4, shifted(4), {})
    other = {"state": {"w": jnp.zeros((3, 50), jnp.bfloat16), "other": jnp.zeros(2)}, "best": {}}
    with pytest.raises(ValueError) as error:
        checkpoint.restore(tmp_path, other)
    for text in ("state.w: wanted [[3, 50], 'bfloat16'], got [[3, 50], 'float32']", "state.other", "state.step"):
        assert text in str(error.value)


def test_a_full_disk_is_named_and_the_save_before_stays(tmp_path, capfd, caplog):
    big = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32))}
    tiny.save(tmp_path, 1, big, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="could not write .*resume/2"):
            tiny.save(tmp_path, 2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in "".join([*capfd.readouterr(), caplog.text])  # the error says it all
    assert [p.name for p in (tmp_path / "resume").iterdir()] == ["1"]
    assert tiny.equal_bits(checkpoint.restore(tmp_path, jax.tree.map(jnp.copy, big))[1], big)


def test_a_save_is_written_while_the_run_goes_on_and_holds_what_it_was_given(tmp_path, monkeypatch):
    commit, may = Saves.commit, threading.Event()
    monkeypatch.setattr(Saves, "commit", lambda *args: (may.wait(60), commit(*args)))
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(2000, 1000)).astype(np.float32)), "n": jnp.ones(3)}
    kept = jax.tree.map(lambda x: np.array(x, copy=True), tree)
    with checkpoint.Saver(tmp_path) as saver:
        saver.begin(1, tree, {"at": "start"})
        for _ in range(5):
            tree = step(tree)
        assert not (tmp_path / "resume" / "1" / "manifest.json").exists()  # nothing counts as saved before its manifest is there
        may.set()
        saver.begin(2, tree, {})  # waits for the one before
        assert (tmp_path / "resume" / "1" / "manifest.json").exists()
        (tmp_path / "first").mkdir()
        shutil.copytree(tmp_path / "resume" / "1", tmp_path / "first" / "resume" / "1")
    for folder, wanted, note in ((tmp_path / "first", kept, {"at": "start"}), (tmp_path, tree, {})):
        _, found, told = checkpoint.restore(folder, jax.tree.map(jnp.zeros_like, kept))
        assert tiny.equal_bits(found, wanted) and told == note


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_beside_another_error_is_told_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Saves, "commit", full)
    with pytest.raises(KeyError), checkpoint.Saver(tmp_path) as saver:
        saver.begin(1, shifted(1), {})
        raise KeyError("of the run")
    assert "the save that was under way is lost" in caplog.text and "resume/1" in caplog.text


def test_a_disk_that_fails_in_the_background_is_told_by_the_next_save(tmp_path, monkeypatch):
    monkeypatch.setattr(Saves, "commit", full)
    with pytest.raises(StorageError, match="could not write .*resume/1"), checkpoint.Saver(tmp_path) as saver:
        saver.begin(1, shifted(1), {})
        saver.begin(2, shifted(2), {})
    assert not any((tmp_path / "resume").iterdir())


def test_trained_weights_round_trip_and_have_the_same_bytes_in_any_order(tmp_path):
    tree = tiny.adapters(2, head=True)
    turned = {"head": tree["head"], "adapters": dict(reversed(tree["adapters"].items()))}
    checkpoint.save_tree(tmp_path / "a.safetensors", tree, note="seed 3")
    checkpoint.save_tree(tmp_path / "b.safetensors", turned, note="seed 3")
    digests = [hashlib.sha256((tmp_path / f"{x}.safetensors").read_bytes()).hexdigest() for x in "ab"]
    assert digests[0] == digests[1]
    loaded = checkpoint.load_tree(tmp_path / "a.safetensors", jax.eval_shape(lambda: tree))
    assert jax.tree.structure(loaded) == jax.tree.structure(dict(tree)) and tiny.equal_bits(loaded, tree)


def test_weights_that_do_not_fit_are_listed_all_at_once(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save_tree(path, {"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.float32), "z": np.zeros(1, np.float32)})
    wanted = {"x": np.zeros((2, 4), np.float32), "y": np.zeros(2, np.int32), "w": np.zeros(1, np.float32)}
    with pytest.raises(ValueError) as error:
        checkpoint.load_tree(path, wanted)
    assert all(f"\n  {name}: wanted" in str(error.value) for name in "wxyz")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="a.safetensors, got"):
        checkpoint.load_tree(path, TREE)
