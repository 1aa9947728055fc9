"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io
import re
from types import SimpleNamespace

import pytest

from ilr_jax import progress as progresses
from ilr_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still but where a test sets `now`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progresses, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("rich.console.monotonic", lambda: clock.now)
    return clock


def test_about_ten_plain_lines_with_rates_and_figures():
    out = io.StringIO()
    with Progress("sft", 237, "steps", stream=out) as progress:
        for step in range(237):
            progress.advance(1, tokens=100, loss=1 / (step + 1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 11 and lines[0] == "sft: 0/237 steps"
    assert lines[1].startswith("sft: 24/237 steps, ") and lines[-1].startswith("sft: 237/237 steps, ")
    assert all(word in lines[-1] for word in (" steps/s, ", " tokens/s, ", "loss 0.004219", " elapsed, ", "0:00 left"))


def test_a_slow_job_has_a_line_every_half_minute(clock):
    out = io.StringIO()
    with Progress("sft", 100, "steps", stream=out) as progress:
        for _ in range(11):
            clock.now += 12
            progress.advance(1, tokens=600)
    found = [re.match(r"sft: (\d+)/100 steps", line)[1] for line in out.getvalue().splitlines()]
    assert found == ["0", "3", "6", "9", "10", "11"]
    assert "0.0833 steps/s, 50 tokens/s, 0:36 elapsed, 19:24 left" in out.getvalue()


def test_a_short_job_ends_with_its_last_line():
    out = io.StringIO()
    with Progress("sample", None, "prompts", stream=out) as progress:
        progress.advance(3)
    first, last = out.getvalue().splitlines()
    assert first == "sample: 0 prompts" and last.startswith("sample: 3 prompts, ")


def test_a_failed_job_does_not_claim_more():
    out = io.StringIO()
    with pytest.raises(KeyError), Progress("x", 100, "steps", stream=out) as progress:
        progress.advance(1)
        raise KeyError
    assert out.getvalue() == "x: 0/100 steps\n"


def test_what_was_done_before_counts_for_no_rate(clock):
    out = io.StringIO()
    with Progress("sft", 100, "steps", start=60, stream=out) as progress:
        for _ in range(10):
            clock.now += 1
            progress.advance(1)
    first, last = out.getvalue().splitlines()
    assert first == "sft: 60/100 steps" and last == "sft: 70/100 steps, 1 steps/s, 0:10 elapsed, 0:30 left"


def test_work_goes_on_when_nobody_reads_any_more():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress("sft", 2, "steps", stream=Gone()) as progress:
        progress.advance(2)
    assert progress.done == 2 and progress.quiet


def test_quiet_says_nothing_and_counts():
    out = io.StringIO()
    with Progress("x", 2, "steps", stream=out, quiet=True) as progress:
        progress.advance(2, tokens=5)
    assert (out.getvalue(), progress.done, progress.tokens) == ("", 2, 5)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_terminal_gets_a_bar_with_rates_figures_and_time_left(clock, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = Terminal()
    with Progress("evaluator-answers", 40, "steps", stream=out) as progress:
        for _ in range(30):
            clock.now += 2
            progress.advance(1, tokens=2400, loss=0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    words = (
        "evaluator-answers",
        "30/40",
        "0.5 steps/s, 1,200 tokens/s, loss 0.5",
        "0:00:20",
        *(["0:01:00", "━"] if columns == "120" else []),
    )
    assert all(word in text for word in words), text
