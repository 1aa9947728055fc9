"""A signal in a real process: training saves after the step that is under way, so that no step is lost, and ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import test_loop as loops
import tiny_runs as tiny

from ilr_jax import interruption
from ilr_jax.train import checkpoint

SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
import test_loop as t
from ilr_jax import interruption
def at(i):
    if i == {step}:
        os.kill(os.getpid(), signal.SIGINT)
    return t.batch_at(i)
try:
    with interruption.listening():
        t.train(t.Path({folder!r}), at=at, name="toy", {options})
except interruption.Interrupted as notice:
    sys.exit(f"{{notice}}")
"""
VALIDATED = "number=6, validate=lambda s: 1 / (1 + int(s.step[0])), validate_every=2"


@pytest.mark.parametrize("options", ["", VALIDATED])
@pytest.mark.parametrize("step", [0, 3])
def test_a_notice_loses_no_step(tmp_path, step, options):
    """No save is due by time; the notice alone makes one."""
    text = SCRIPT.format(here=str(Path(__file__).parent), folder=str(tmp_path / "cut"), step=step, options=options)
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=240)
    done = len([line for line in loops.lines(tmp_path / "cut") if "loss" in line])
    assert ended.returncode == 1 and f"toy is saved after step {done}\n" in ended.stderr and 0 < done < loops.STEPS
    started = []
    again, whole = (
        loops.train(tmp_path / name, at=lambda i: (started.append(i), loops.batch_at(i))[1], **eval(f"dict({options})"))
        for name in ("cut", "whole")
    )
    assert min(started[: -loops.STEPS]) == done
    assert tiny.equal_bits(again.state, whole.state) and again[1:] == whole[1:]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_notice_in_validation_is_followed_when_it_is_over(tmp_path):
    def validate(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with interruption.listening(), pytest.raises(interruption.Interrupted, match="saved after step 2"):
        loops.train(tmp_path, validate=validate, validate_every=2)
    assert checkpoint.restore(tmp_path, {"state": loops.begin(), "best": loops.begin().trainable})[0] == 2


def test_a_loss_that_is_not_finite_is_not_saved_by_a_notice(tmp_path):
    def at(i):
        if i == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loops.batch_at(i) * float("nan")

    with interruption.listening(), pytest.raises(loops.NonFiniteLoss):
        loops.train(tmp_path, at=at)
    assert not list(tmp_path.glob("resume/*"))
