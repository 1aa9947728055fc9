"""The loop: a run that is stopped anywhere and continued ends with the same bytes; early stopping, snapshots, errors, late metrics."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax.train import checkpoint, loop, steps
from ilr_jax.train import state as states
from ilr_jax.train.journal import NonFiniteLoss
from ilr_jax.train.optimizer import OptimizerConfig

CONFIG = OptimizerConfig("adamw", 0.1, clip=1.0, weight_decay=0.01, eps=1e-3)  # the same program as in test_steps
STEPS = 6


class Killed(Exception):
    pass


@jax.jit
def toy_step(state, frozen, batch):
    """Pulls K vectors towards the batch; a batch entry of NaN makes that adapter's loss NaN, one of 99 means that it has no data."""
    grads = {"adapters": state.trainable["adapters"] - batch[:, None]}
    loss, active = jnp.sum(grads["adapters"] ** 2, axis=1), batch != 99
    state, metrics = steps.update(CONFIG, state, grads, loss, active)
    return state, {"loss": loss, "tokens": jnp.full(loss.shape, 7, jnp.int32), **metrics}


def begin(k: int = 2, total: int = STEPS):
    weights = np.random.default_rng(0).normal(size=(k, 5)).astype(np.float32)
    return states.init({"adapters": jnp.asarray(weights)}, CONFIG, [total] * k)


def batch_at(i: int):
    return np.array([np.sin(i), np.cos(i)], np.float32)


def train(folder, *, at=batch_at, state=None, number=STEPS, **options):
    return loop.fit(toy_step, begin(total=number) if state is None else state, {}, at, number, folder=folder, **options)


def first(k: int, total: int):
    """A state of the real model, whose steps donate, unlike the toy's."""
    return states.init(jax.tree.map(jnp.copy, tiny.adapters(k)), CONFIG, [total] * k)


def killed_at(step: int):
    def at(i):
        if i == step:
            raise Killed
        return batch_at(i)

    return at


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_killed_at_any_step_continues_bit_for_bit(tmp_path, step, every):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", at=killed_at(step), save_steps=every)
    started, done = [], step // every * every

    def watched(i):
        started.append(i)
        return batch_at(i)

    again = train(tmp_path / "cut", at=watched)
    assert sorted(started) == list(range(done, STEPS))  # nothing that was saved is done again
    assert tiny.equal_bits(again.state, whole.state)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_real_model_continues_bit_for_bit_from_every_step(tmp_path):
    step = steps.sft_step(tiny.SETUP, CONFIG)
    at = lambda i: tiny.batch([12, 14, 5, 9], seed=i)
    run = lambda folder, at, **o: loop.fit(step, first(2, 4), tiny.base(), at, 4, folder=folder, **o)
    whole = run(tmp_path / "whole", at)
    for stop in (1, 2, 3):

        def cut(i, stop=stop):
            if i == stop:
                raise Killed
            return at(i)

        with pytest.raises(Killed):
            run(tmp_path / "cut", cut, save_steps=1)
    again = run(tmp_path / "cut", at)
    assert tiny.equal_bits(again.state, whole.state)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {here!r})
import test_loop as t
def at(i):
    if i == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.batch_at(i)
t.train(t.Path({folder!r}), at=at if sys.argv[1] == "kill" else t.batch_at, save_steps=1, put=lambda x: x)
"""


def test_sigkill_leaves_nothing_that_continuing_cannot_mend(tmp_path):
    here = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", SCRIPT.format(here=here, folder=str(tmp_path / "cut")), "kill"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    whole, again = train(tmp_path / "whole"), train(tmp_path / "cut")
    assert tiny.equal_bits(again.state, whole.state)
    digests = {hashlib.sha256((tmp_path / name / "metrics.jsonl").read_bytes()).hexdigest() for name in ("cut", "whole")}
    assert len(digests) == 1


def test_a_damaged_save_is_passed_over_and_the_run_ends_the_same(tmp_path, caplog):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", at=killed_at(4), save_steps=1)
    path = next(iter((tmp_path / "cut" / "resume" / "4").rglob("manifest.json")))
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    again = train(tmp_path / "cut")
    assert str(path) in caplog.text
    assert tiny.equal_bits(again.state, whole.state)


def test_slow_saves_come_less_often(tmp_path, monkeypatch):
    """Every step takes a second; saves of half a second are at least ten seconds apart, but for those asked for by number of steps."""
    clock, saved = [0.0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def begin_save(saver, step, tree, note):
        clock[0] += 0.5
        saved.append(step)

    def step(*args):
        clock[0] += 1
        return toy_step(*args)

    monkeypatch.setattr(loop.Saver, "begin", begin_save)
    run = lambda name, **o: loop.fit(step, begin(total=30), {}, batch_at, 30, folder=tmp_path / name, **o)
    run("often", save_seconds=2.0)
    assert saved == [2, 12, 22]
    saved.clear()
    run("seldom", save_seconds=11.0)
    assert saved == [11, 22]
    saved.clear()
    run("counted", save_seconds=1e9, save_steps=10)
    assert saved == [10, 20, 30]


def test_the_state_is_given_away(tmp_path):
    """In a fresh run and in one that goes on: else a full fine-tune would be in memory twice."""
    step = steps.sft_step(tiny.SETUP, CONFIG)
    for _ in range(2):
        state = first(1, 1)
        loop.fit(step, state, tiny.base(), lambda i: tiny.batch([12, 14, 5, 9]), 1, folder=tmp_path, save_steps=1)
        assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_metrics_have_a_line_per_step_and_null_for_an_adapter_without_data(tmp_path):
    train(tmp_path, at=lambda i: np.array([1.0, 2.0 if i < 2 else 99.0], np.float32))
    found = lines(tmp_path)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert found[1]["loss"][1] > 0 and found[2]["loss"][1] is None and found[2]["loss"][0] > 0
    assert set(found[0]) == {"step", "loss", "grad_norm", "learning_rate", "tokens"}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_metrics_are_fetched_one_step_late(tmp_path, monkeypatch):
    seen, got = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (seen.append("fetch"), got(x))[1])

    def step(*args):
        seen.append("step")
        return toy_step(*args)

    loop.fit(step, begin(), {}, batch_at, STEPS, folder=tmp_path)
    assert seen == ["step", "step", "fetch"] + ["step", "fetch"] * (STEPS - 2) + ["fetch"]


def test_batches_are_made_on_another_thread_ahead_of_their_use(tmp_path):
    ready, names = threading.Event(), set()

    def at(i):
        names.add(threading.current_thread().name)
        if i == 1:
            ready.set()
        return batch_at(i)

    def step(*args):
        assert ready.wait(60)  # batch 1 is made before step 0 is over
        return toy_step(*args)

    loop.fit(step, begin(), {}, at, STEPS, folder=tmp_path)
    assert threading.main_thread().name not in names


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_loss_stops_with_step_and_adapter(tmp_path, poison):
    at = lambda i: np.array([1.0, poison if i == 2 else 1.0], np.float32)
    with pytest.raises(NonFiniteLoss, match=r"toy: adapter 1 has loss (nan|inf) .* at step 3"):
        train(tmp_path, at=at, name="toy", save_steps=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["1", "2"]  # nothing is saved of a run that went wrong


def validation(values):
    """Loss by step from a table, so that the answer is known; asks for the state as `fit` passes it."""
    return lambda state: values[int(state.step[0])]


def test_early_stopping_returns_the_best_weights(tmp_path):
    values, seen = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.1}, {}
    keep = lambda i, tree: seen.update({i: tree})
    done = train(tmp_path, number=8, validate=validation(values), validate_every=2, snapshots=8, on_snapshot=keep)
    assert (done.steps, done.best, done.best_step) == (6, 0.3, 4)
    assert tiny.equal_bits(done.state.trainable, seen[4])
    assert [line["validation"] for line in lines(tmp_path) if "validation" in line] == [[0.5], [0.3], [0.4]]


def test_patience_and_the_last_step(tmp_path):
    values = {2: 0.5, 4: 0.6, 6: 0.4, 7: 0.3}
    done = train(tmp_path, number=7, validate=validation(values), validate_every=2, patience=2)
    assert (done.steps, done.best, done.best_step) == (7, 0.3, 7)


@pytest.mark.parametrize("step", range(1, 6))
def test_early_stopping_remembers_over_a_kill(tmp_path, step):
    values = {2: 0.3, 4: 0.5, 6: 0.2, 8: 0.1}
    options = {"number": 8, "validate": validation(values), "validate_every": 2, "patience": 1}
    whole = train(tmp_path / "whole", **options)
    assert (whole.steps, whole.best_step) == (4, 2)
    if step < 4:
        with pytest.raises(Killed):
            train(tmp_path / "cut", at=killed_at(step), save_steps=1, **options)
    else:
        train(tmp_path / "cut", save_steps=1, **options)  # killed after it had stopped
    again = train(tmp_path / "cut", **options)
    assert tiny.equal_bits(again.state, whole.state) and again[1:] == whole[1:]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_non_finite_validation_loss_stops(tmp_path):
    with pytest.raises(NonFiniteLoss, match="validation loss nan after step 2"):
        train(tmp_path, validate=lambda state: float("nan"), validate_every=2)


@pytest.mark.parametrize("number, wanted", [(20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]), (4, [1, 1, 2, 2, 2, 3, 3, 4, 4, 4])])
def test_snapshots_come_at_every_tenth(tmp_path, number, wanted):
    seen = []
    train(tmp_path, number=number, on_snapshot=lambda i, tree: seen.append((i, jax.device_get(tree))))
    assert [i for i, _ in seen] == list(range(1, 11))
    for (_, tree), steps_done in zip(seen[:3], wanted, strict=False):
        assert tiny.equal_bits(tree, train(tmp_path / str(steps_done), state=begin(total=number), number=steps_done).state.trainable)


def test_snapshots_outlive_the_steps_that_come_after(tmp_path):
    kept = []
    step = steps.sft_step(tiny.SETUP, CONFIG)
    at = lambda i: tiny.batch([12, 14, 5, 9])
    loop.fit(step, first(1, 3), tiny.base(), at, 3, folder=tmp_path, snapshots=3, on_snapshot=lambda i, tree: kept.append(tree))
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept)) and not tiny.equal_bits(kept[0], kept[2])


def test_an_error_of_a_batch_is_raised_as_it_is_and_progress_is_kept(tmp_path, capsys):
    with pytest.raises(Killed):
        train(tmp_path, at=killed_at(4), save_steps=2)
    assert checkpoint.restore(tmp_path, {"state": begin(), "best": {}})[0] == 4
    capsys.readouterr()
    train(tmp_path, name="toy")
    assert "toy: 6/6 steps" in capsys.readouterr().err


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted steps and patience >= 1"):
        train(tmp_path, number=0, state=begin())
    with pytest.raises(ValueError, match="got 6, 0 and 0"):
        train(tmp_path, patience=0)
    with pytest.raises(ValueError, match="validate_every >= 1"):
        train(tmp_path, validate=lambda state: 0.0)
