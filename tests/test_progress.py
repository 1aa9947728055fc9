"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io

import pytest

from ilr_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_about_ten_plain_lines_with_rates_and_figures():
    out = io.StringIO()
    with Progress("sft", 237, "steps", stream=out) as progress:
        for step in range(237):
            progress.advance(1, tokens=100, loss=1 / (step + 1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("sft: 24/237 steps, ") and lines[-1].startswith("sft: 237/237 steps, ")
    assert all(word in lines[-1] for word in (" steps/s, ", " tokens/s, ", "loss 0.004219", " elapsed, ", "0:00 left"))


def test_a_short_job_ends_with_its_last_line():
    out = io.StringIO()
    with Progress("sample", None, "prompts", stream=out) as progress:
        progress.advance(3)
    assert out.getvalue().startswith("sample: 3 prompts, ") and out.getvalue().count("\n") == 1


def test_a_failed_job_does_not_claim_more():
    out = io.StringIO()
    with pytest.raises(KeyError), Progress("x", 100, "steps", stream=out) as progress:
        progress.advance(1)
        raise KeyError
    assert out.getvalue() == ""


def test_quiet_says_nothing_and_counts():
    out = io.StringIO()
    with Progress("x", 2, "steps", stream=out, quiet=True) as progress:
        progress.advance(2, tokens=5)
    assert (out.getvalue(), progress.done, progress.tokens) == ("", 2, 5)


def test_a_terminal_gets_a_bar():
    out = Terminal()
    with Progress("sft", 4, "steps", stream=out) as progress:
        progress.advance(4, loss=0.5)
    assert "sft" in out.getvalue() and "4/4" in out.getvalue() and "loss 0.5" in out.getvalue()
