"""Many questions to an endpoint that fails in every way: each answered once, in order, paid for once, and the key seen by nobody."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_api import ECHO, FAST, KEY, Fault, chat, echo, error, opened, serving

from ilr_jax.services.endpoint import Invalid
from ilr_jax.services.transport import EndpointError, _seconds, check_url

ITEMS = [f"question {i}" for i in range(24)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_answers_come_in_order_and_are_asked_for_once(tmp_path):
    with serving(echo) as api, opened(api.url, tmp_path) as endpoint:
        assert endpoint.ask(ITEMS * 2, ECHO, "t") == [item.upper() for item in ITEMS * 2]
        assert len(api.asked) == len(ITEMS) and api.asked[0][0] == "/v1/chat/completions" and api.asked[0][1]["model"] == "m"
        assert endpoint.ask(ITEMS, ECHO, "t") == [item.upper() for item in ITEMS] and len(api.asked) == len(ITEMS)
    with serving(echo) as api:
        with opened(api.url, tmp_path) as again:  # another run, another address
            assert again.ask(ITEMS, ECHO, "t") == [item.upper() for item in ITEMS] and not api.asked
        with opened(api.url, tmp_path, model="another") as other:
            other.ask(ITEMS[:2], ECHO, "t")
        assert len(api.asked) == 2


PASSING = {
    "429": error(429, retry_after="0"),
    "429 with a date": error(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with nonsense": error(429, retry_after="soon"),
    **{str(status): error(status) for status in (408, 409, 500, 502, 503, 529)},
    "broken JSON": Fault(body=b'{"choices": [{"mess'),
    "no JSON": Fault(body=b"<html>busy</html>"),
    "JSON of another kind": Fault(body=[1, 2]),
    "deep JSON": Fault(body=b"[" * 100_000),
    "not the API's form": Fault(body={"object": "list"}),
    "empty": Fault(),
    "cut off": Fault(body=b"x" * 1000, cut=True),
    "silent": Fault(body=chat("TOO LATE").body, pause=0.6),
    "trickling": Fault(body=chat("TOO LATE").body, pause=0.05, pieces=20),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_costs_one_more_attempt(tmp_path, fault):
    with serving(echo, [fault]) as api, opened(api.url, tmp_path, replace(FAST, timeout=0.3)) as endpoint:
        assert endpoint.ask(["hello"], ECHO, "t") == ["HELLO"]
        assert len(api.asked) == 2 == endpoint.budget.requests


def test_retry_after_is_waited_for_and_one_that_is_too_long_ends_the_run(tmp_path):
    with serving(echo, [error(429, retry_after="0.4")]) as api, opened(api.url, tmp_path) as endpoint:
        start = time.monotonic()
        assert endpoint.ask(["a"], ECHO, "t") == ["A"] and time.monotonic() - start >= 0.4
        api.faults = [error(429, retry_after="100000")]
        with pytest.raises(EndpointError, match="asks to wait 100000 s, start again after that"):
            endpoint.ask(["b"], ECHO, "t")
        assert len(api.asked) == 3


def test_retry_after_is_read_as_seconds_or_date():
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 50))
    assert 45 < _seconds({"retry-after": later}) <= 50 and _seconds({"retry-after": "7"}) == 7
    assert [_seconds({"retry-after": text}) for text in ("", "-5", "nan", "inf", "soon")] == [0] * 5 and _seconds({}) == 0


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429])
def test_what_will_not_pass_is_asked_no_second_time(tmp_path, status):
    fault = error(status, "You exceeded your quota", "insufficient_quota" if status == 429 else None)
    with serving(lambda *_: fault) as api, opened(api.url, tmp_path, replace(FAST, workers=1)) as endpoint:
        with pytest.raises(EndpointError, match=f"t: m at {api.url}: HTTP {status}: .*quota.*; check .* 0 of 24 answers are kept in "):
            endpoint.ask(ITEMS, ECHO, "t")
        assert len(api.asked) == 1


def test_an_endpoint_that_always_fails_stops_the_run_and_the_next_goes_on_with_what_was_saved(tmp_path):
    broken = [False]
    answer = lambda path, body: error(500, "down") if broken[0] and len(api.asked) > 10 else echo(path, body)
    with serving(answer) as api:
        broken[0] = True
        with opened(api.url, tmp_path) as endpoint, pytest.raises(EndpointError) as caught:
            endpoint.ask(ITEMS, ECHO, "judge")
        assert "no answer in 4 attempts, at last: HTTP 500: " in str(caught.value) and "10 of 24 answers are kept in" in str(caught.value)
        assert len(api.asked) <= 10 + FAST.attempts * FAST.workers
        broken[0], before = False, len(api.asked)
        with opened(api.url, tmp_path) as endpoint:
            assert endpoint.ask(ITEMS, ECHO, "judge") == [item.upper() for item in ITEMS]
        assert len(api.asked) == before + 14


def test_an_address_where_nobody_is(tmp_path):
    with serving(echo) as api:
        url = api.url
    with opened(url, tmp_path, replace(FAST, attempts=2)) as endpoint, pytest.raises(EndpointError, match="in 2 attempts, at last: .*Conn"):
        endpoint.ask(["a"], ECHO, "t")


def test_invalid_answers_are_a_state_asked_twice_and_bounded(tmp_path):
    odd = lambda path, body: chat("?") if body["messages"][0]["content"] in ITEMS[3:5] else echo(path, body)
    with serving(odd) as api, opened(api.url, tmp_path) as endpoint:
        found = endpoint.ask(ITEMS, ECHO, "t", tolerated=0.1)
        assert [i for i, x in enumerate(found) if isinstance(x, Invalid)] == [3, 4] and len(api.asked) == len(ITEMS) + 2
        with pytest.raises(EndpointError, match="2 answers are invalid, such as: a question mark"):
            endpoint.ask(ITEMS, ECHO, "t", tolerated=0.05)
        refused = [error(400, "content filter"), error(413, "too long"), error(422, "no")]
        api.faults = list(refused)
        reasons = [x.reason for x in endpoint.ask(["x", "y", "z"], ECHO, "t", tolerated=1.0)]
        assert sorted(reasons)[0].startswith("HTTP 400: ") and "content filter" in sorted(reasons)[0] and len(reasons) == 3


def test_an_endpoint_that_never_gives_a_valid_answer_is_not_asked_for_all(tmp_path):
    many = [f"item {i}" for i in range(500)]
    with serving(lambda *_: chat("?")) as api, opened(api.url, tmp_path) as endpoint:
        with pytest.raises(EndpointError, match="20 answers are invalid, such as: a question mark"):
            endpoint.ask(many, ECHO, "t", tolerated=0.5)
        assert len(api.asked) <= 2 * (20 + FAST.workers)


def test_the_budget_is_never_exceeded_and_what_was_answered_is_kept(tmp_path):
    with serving(echo) as api:
        with opened(api.url, tmp_path, replace(FAST, max_requests=7)) as endpoint:
            with pytest.raises(EndpointError, match=r"budget is used up: endpoint.max_requests=7; raise it.* 7 of 24 answers are kept"):
                endpoint.ask(ITEMS, ECHO, "t")
            assert len(api.asked) == 7
        with opened(api.url, tmp_path) as endpoint:
            endpoint.ask(ITEMS, ECHO, "t")
            assert len(api.asked) == len(ITEMS) and endpoint.budget.tokens == 50 * 17  # as the replies count them, not as estimated
        with opened(api.url, tmp_path / "other", replace(FAST, workers=1, max_tokens=220)) as endpoint:
            with pytest.raises(EndpointError, match=r"endpoint.max_tokens=220"):
                endpoint.ask(ITEMS, ECHO, "t")
            assert len(api.asked) == len(ITEMS) + 4


def test_the_key_is_in_the_header_and_nowhere_else(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    texts = []
    with serving(echo) as api, opened(api.url, tmp_path) as endpoint:
        for fault in (error(401, f"bad key {KEY}!"), error(404, KEY), Fault(body=[KEY]), error(500, f"Bearer {KEY}"), error(400, KEY)):
            api.faults = [fault] * 100
            with pytest.raises(EndpointError) as caught:
                endpoint.ask(["x", "y", "z"], ECHO, "t")
            texts.append(repr(caught.getrepr(style="long", showlocals=False)) + str(caught.getrepr(style="short")))
        api.faults = []
        endpoint.ask(ITEMS, ECHO, "t")
    assert api.authorized and set(api.authorized) == {f"Bearer {KEY}"} and "[key]" in "".join(texts)
    texts += [caplog.text, *capfd.readouterr(), repr(endpoint), *(p.read_text() for p in tmp_path.rglob("*") if p.is_file())]
    assert not any(KEY in text for text in texts)


@pytest.mark.parametrize("url", ["http://u:secret@h/v1", "https://h/v1?api-key=secret", "h:80/v1", "", "ftp://h/secret"])
def test_an_address_with_credentials_or_of_another_kind_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


def test_without_the_client_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[judge\]'"), opened("http://127.0.0.1:1/v1", tmp_path):
        pass


CHILD = """
import sys
from pathlib import Path
from fake_api import ECHO, opened
with opened(sys.argv[1], Path(sys.argv[2])) as endpoint:
    endpoint.ask([f"question {i}" for i in range(60)], ECHO, "t")
"""


def test_a_kill_loses_nothing_that_was_answered(tmp_path):
    items = [f"question {i}" for i in range(60)]
    slow = lambda path, body: Fault(body=echo(path, body).body, pause=0.02)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with serving(slow) as api:
        for wanted in (8, 24):
            with subprocess.Popen([sys.executable, "-c", CHILD, api.url, str(tmp_path)], env=env, stderr=subprocess.DEVNULL) as process:
                deadline = time.monotonic() + 30
                while len(api.asked) < wanted:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
        with opened(api.url, tmp_path) as endpoint:
            assert endpoint.ask(items, ECHO, "t") == [item.upper() for item in items]
        assert len(items) <= len(api.asked) <= len(items) + 2 * (FAST.workers + 1)  # those on their way at a kill are asked again
