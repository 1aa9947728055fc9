"""The handler of Ctrl-C and SIGTERM: at once where nothing is under way, later where something is, the system's own for the second."""

import os
import signal
import subprocess
import sys

import pytest

from ilr_jax import interruption
from ilr_jax.progress import Progress

WAITS = """
import time
from ilr_jax import interruption
with interruption.listening(), interruption.held() as noticed:
    print("ready", flush=True)
    while not noticed():
        time.sleep(0.01)
    print("noticed", flush=True)
    time.sleep(600)
"""


SIGNALS = pytest.mark.parametrize("number", interruption.SIGNALS, ids=lambda number: number.name)


def notify(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@SIGNALS
def test_a_signal_ends_what_needs_no_saving_at_once(number):
    with interruption.listening(), pytest.raises(interruption.Interrupted) as notice:
        notify(number)
        pytest.fail("went on")
    assert notice.value.code == 128 + number


def test_one_that_python_could_not_raise_is_raised_at_the_next_look(monkeypatch):
    """Python prints and forgets what is raised in a `__del__`, and in callbacks of its garbage collector, of which JAX has one."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: lost.append(fault.exc_type))
    with interruption.listening(), pytest.raises(interruption.Interrupted, match="SIGTERM"):
        type("Dies", (), {"__del__": lambda self: notify()})()
        assert lost == [interruption.Interrupted]
        with Progress("prompts", 2, "prompts", quiet=True) as progress:
            progress.advance()
            pytest.fail("went on")


def test_what_is_ignored_stays_ignored():
    """As for a process that a shell script has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.listening():
            notify(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@SIGNALS
def test_a_signal_waits_while_it_is_held(number, capfd):
    steps = []
    with interruption.listening(), pytest.raises(interruption.Interrupted), interruption.held() as noticed:
        assert not noticed()
        notify(number)
        assert noticed() and "once more ends at once" in capfd.readouterr().err
        interruption.check()
        steps.append("saved")
    assert steps == ["saved"]


def test_an_error_while_it_is_held_stays_that_error():
    with interruption.listening(), pytest.raises(ZeroDivisionError), interruption.held():
        notify()
        _ = 1 / 0
    with interruption.listening(), interruption.held() as noticed:
        assert not noticed()


def test_libraries_that_catch_exceptions_do_not_catch_it():
    assert not issubclass(interruption.Interrupted, Exception)


def test_the_handler_before_is_put_back():
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with interruption.listening():
        assert all(signal.getsignal(number) not in before for number in interruption.SIGNALS)
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


@SIGNALS
def test_the_same_signal_again_ends_on_the_spot(number):
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "noticed\n"
        process.send_signal(number)
        try:
            assert process.wait(60) == -number
        finally:
            process.kill()


def test_a_pipe_that_is_gone_does_not_lose_the_save(tmp_path):
    """Ctrl-C in `ilr run ... 2>&1 | tee log` ends tee too, and often first."""
    script = WAITS.replace('print("noticed", flush=True)\n    time.sleep(600)', f'open({str(tmp_path / "saved")!r}, "w").close()')
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert (tmp_path / "saved").exists()
