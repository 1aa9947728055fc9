"""What the journal drops when a run goes on, and what TensorBoard gets."""

import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ilr_jax.train import journal as journals
from ilr_jax.train.journal import Journal, NonFiniteLoss

METRICS = {
    "loss": np.array([0.5, 0.25]),
    "grad_norm": np.ones(2),
    "learning_rate": np.ones(2),
    "tokens": np.array([3, 4], np.int32),
    "finite": np.ones(2, bool),
    "active": np.ones(2, bool),
}


def test_lines_after_the_start_and_a_line_that_was_cut_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = "".join(json.dumps({"step": i}) + "\n" for i in (1, 2, 2, 3))
    for rest in ("", '{"step":4}\n{"step":5}\n', '{"st', '{"step":4}\n{"st'):
        path.write_text(kept + rest)
        with Journal(tmp_path, "sft", 3, 9):
            pass
        assert path.read_text() == kept
    with Journal(tmp_path, "sft", 0, 9):
        pass
    assert path.read_text() == ""


def events(folder):
    for path in folder.glob("events*"):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_has_a_curve_per_adapter_and_the_speed(tmp_path):
    with Journal(tmp_path, "sft", 0, 1) as journal:
        journal.step(1, METRICS)
        journal.validation(1, 0.75)
    values = {v.tag: v.simple_value for event in events(tmp_path / "tensorboard") for v in event.summary.value}
    assert values["loss/0"] == 0.5 and values["loss/1"] == 0.25 and values["validation"] == 0.75
    assert values["tokens_per_sec"] * values["step_time_sec"] == pytest.approx(7)


def test_progress_shows_the_loss_and_tokens_of_the_adapters_that_took_part(tmp_path, monkeypatch):
    seen, advance = [], journals.Progress.advance
    monkeypatch.setattr(journals.Progress, "advance", lambda self, n, **what: (seen.append((n, what)), advance(self, n, **what))[1])
    with Journal(tmp_path, "sft", 0, 2) as journal:
        journal.step(1, METRICS)
        journal.step(2, METRICS | {"active": np.array([False, True])})
    assert seen == [(1, {"tokens": 7, "loss": 0.375}), (1, {"tokens": 4, "loss": 0.25})]


def test_a_non_finite_loss_says_what_can_be_done_about_it(tmp_path):
    with (
        Journal(tmp_path, "sft", 0, 2) as journal,
        pytest.raises(NonFiniteLoss, match="Lower the learning rate, or look at the batch of that"),
    ):
        journal.step(1, METRICS | {"finite": np.array([True, False])})
