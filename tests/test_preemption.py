"""The handler of SIGTERM: at once where nothing is under way, later where something is, the system's own for the second."""

import os
import signal
import subprocess
import sys

import pytest

from ilr_jax import preemption

WAITS = """
import time
from ilr_jax import preemption
with preemption.listening(), preemption.held() as noticed:
    print("ready", flush=True)
    while not noticed():
        time.sleep(0.01)
    print("noticed", flush=True)
    time.sleep(600)
"""


def notify():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_notice_ends_what_needs_no_saving_at_once():
    with preemption.listening(), pytest.raises(preemption.Preempted):
        notify()
        pytest.fail("went on")


def test_a_notice_waits_while_it_is_held():
    steps = []
    with preemption.listening(), pytest.raises(preemption.Preempted), preemption.held() as noticed:
        assert not noticed()
        notify()
        assert noticed()
        steps.append("saved")
    assert steps == ["saved"]


def test_an_error_while_it_is_held_stays_that_error():
    with preemption.listening(), pytest.raises(ZeroDivisionError), preemption.held():
        notify()
        _ = 1 / 0
    with preemption.listening(), preemption.held() as noticed:
        assert not noticed()


def test_libraries_that_catch_exceptions_do_not_catch_it():
    assert not issubclass(preemption.Preempted, Exception)


def test_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_notice_ends_on_the_spot():
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "noticed\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()
