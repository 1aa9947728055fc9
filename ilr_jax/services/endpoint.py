"""Questions to a model behind an OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, TGI, ...): many at a time, retried, paid for once.

Retries, the budget and the cache are here, so that they are counted and bounded in one place. Not here: the request itself (`transport`),
what is asked and how a reply is read (`judge`, `embed`).
"""

import hashlib
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilr_jax.files import encode
from ilr_jax.progress import Progress
from ilr_jax.services.cache import Cache
from ilr_jax.services.keys import read_key
from ilr_jax.services.transport import Again, EndpointError, Refused, Transport
from ilr_jax.types import Config

ASKED = 2  # times, before an answer counts as invalid
HOPELESS = 20  # answers, all invalid, after which no other is asked for
CHARACTERS = 4  # of a token, for what a request will take; the reply says what it took


@dataclass(frozen=True)
class Invalid:
    """In place of an answer: the endpoint replied, but not with one; `reason` says what came."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked. `max_requests` and `max_tokens` bound what one start of the command sends; 0: no bound."""

    timeout: float = 60.0  # seconds of one request, its reply included
    attempts: int = 8
    workers: int = 8
    max_requests: int = 0
    max_tokens: int = 0
    first_wait: float = 1.0  # seconds before the second attempt, doubled before each further one
    longest_wait: float = 120.0


@dataclass(frozen=True)
class Form:
    """How questions of one kind are put: the request for `group` of them, and their answers out of its reply.

    `read(reply, n)` gives for each of n questions an answer that JSON can hold, or Invalid; ValueError if the reply has another form.
    """

    path: str
    body: Callable[[Sequence[Any]], Mapping[str, Any]]
    read: Callable[[Mapping[str, Any], int], Sequence[Any]]
    group: int = 1


class _Stopped(Exception):
    """Another thread has met an error that is final."""


class Budget:
    """What may still be sent; the threads of an endpoint share it."""

    def __init__(self, limits: Limits):
        self.limits, self.requests, self.tokens = limits, 0, 0
        self._lock = threading.Lock()

    def take(self, tokens: int) -> None:
        """Count a request of about `tokens` tokens, before it is sent. EndpointError if that exceeds a limit."""
        with self._lock:
            for name, used in (("max_requests", self.requests + 1), ("max_tokens", self.tokens + tokens)):
                if 0 < getattr(self.limits, name) < used:
                    raise EndpointError(f"the budget is used up: endpoint.{name}={getattr(self.limits, name)}; raise it, or start again")
            self.requests, self.tokens = self.requests + 1, self.tokens + tokens

    def correct(self, tokens: int) -> None:
        """Count so many tokens more, or fewer, than were taken."""
        with self._lock:
            self.tokens += tokens


class Endpoint:
    """A model behind `base_url`, asked with `key`; answers are kept in the folder `cache`, one file for each model."""

    def __init__(self, base_url: str, model: str, key: str, limits: Limits, cache: Path):
        self.model, self.limits, self.budget = model, limits, Budget(limits)
        self.transport = Transport(base_url, key, limits.timeout)
        self.cache = Cache(cache / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.jsonl")

    def ask(self, items: Sequence[Any], form: Form, name: str, tolerated: float = 0.0) -> list[Any]:
        """The answer to each item, or Invalid, in order; what the cache holds is not asked again.

        Raises EndpointError where the endpoint stays unreachable or broken, where it refuses the key, where the budget is used up, where
        more than a share `tolerated` of the items (and more than one) get no valid answer, and where none of the first HOPELESS does. What
        was answered by then is kept.
        """
        keys = [self._key(form, item) for item in items]
        self.cache.refresh()
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self.cache}
        invalid: dict[str, Invalid] = {}
        try:
            self._ask_all(missing, form, name, invalid, max(1.0, tolerated * len(items)))
        except EndpointError as error:
            done = sum(key in self.cache for key in keys)
            raise EndpointError(
                f"{name}: {self.model} at {self.transport.base_url}: {error}. {done} of {len(items)} answers are kept in "
                f"{self.cache.path}; the same command asks for the others only"
            ) from None
        return [self.cache[key] if key in self.cache else invalid[key] for key in keys]

    def _ask_all(self, missing: Mapping[str, Any], form: Form, name: str, invalid: dict[str, Invalid], tolerated: float) -> None:
        """Fill the cache, and `invalid`, by as many threads as there may be; the first error that is final ends them all."""
        names, stop = list(missing), threading.Event()
        groups = [names[i : i + form.group] for i in range(0, len(names), form.group)]
        pool = ThreadPoolExecutor(self.limits.workers)
        try:
            with Progress(name, len(names), "questions", quiet=not names) as progress:
                jobs = {pool.submit(self._answer, {key: missing[key] for key in group}, form, stop): len(group) for group in groups}
                for job in as_completed(jobs):
                    invalid |= job.result()
                    hopeless = len(invalid) >= HOPELESS and not any(key in self.cache for key in missing)
                    if len(invalid) > tolerated or hopeless:
                        raise EndpointError(
                            f"{len(invalid)} answers are invalid, such as: {self.transport.clean(next(iter(invalid.values())).reason)}"
                        )
                    progress.advance(jobs[job], requests=self.budget.requests, invalid=len(invalid))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _answer(self, questions: Mapping[str, Any], form: Form, stop: threading.Event) -> dict[str, Invalid]:
        """Ask until there is an answer, which goes into the cache; what got none, even when asked again, is returned.

        An error that is final stops the other threads before their next attempt.
        """
        try:
            return self._valid_or_not(questions, form, stop)
        except EndpointError:
            stop.set()
            raise
        except _Stopped:
            return {}

    def _valid_or_not(self, questions: Mapping[str, Any], form: Form, stop: threading.Event) -> dict[str, Invalid]:
        body = {"model": self.model, **form.body(list(questions.values()))}
        asked, invalid = 0, {}
        while asked == 0 or (invalid and asked < ASKED):
            try:
                answers = dict(zip(questions, self._reply(body, form, len(questions), stop), strict=True))
            except Refused as reason:
                return dict.fromkeys(questions, Invalid(str(reason)))
            asked, invalid = asked + 1, {key: answer for key, answer in answers.items() if isinstance(answer, Invalid)}
            self.cache.put({key: answer for key, answer in answers.items() if key not in invalid})
        return invalid

    def _reply(self, body: Mapping[str, Any], form: Form, n: int, stop: threading.Event) -> Sequence[Any]:
        """The answers out of a reply that came whole, attempted as often as the limits allow."""
        for attempt in range(1, self.limits.attempts):
            try:
                return self._attempt(body, form, n, stop)
            except Again as reason:
                self._wait(attempt, reason, stop)
        try:
            return self._attempt(body, form, n, stop)
        except Again as reason:
            raise EndpointError(f"no answer in {self.limits.attempts} attempts, at last: {reason}") from None

    def _attempt(self, body: Mapping[str, Any], form: Form, n: int, stop: threading.Event) -> Sequence[Any]:
        """The answers out of the reply to one request, which counts."""
        if stop.is_set():
            raise _Stopped
        about = len(encode(body, "a question")) // CHARACTERS + body.get("max_tokens", 0)
        self.budget.take(about)
        reply = self.transport.send(form.path, body)
        usage = reply.get("usage")
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
        self.budget.correct(used - about if isinstance(used, int) else 0)
        try:
            return form.read(reply, n)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Again(self.transport.clean(f"the reply is not of the API's form ({type(error).__name__}: {error})")) from None

    def _wait(self, attempt: int, reason: Again, stop: threading.Event) -> None:
        """Back off: twice as long each time, spread out so that the threads do not come back together; never less than was asked for."""
        if reason.after > self.limits.longest_wait:
            raise EndpointError(f"{reason}; it asks to wait {reason.after:.0f} s, start again after that")
        backoff = min(self.limits.first_wait * 2 ** (attempt - 1), self.limits.longest_wait) * random.uniform(0.5, 1)
        stop.wait(max(backoff, reason.after))

    def _key(self, form: Form, item: Any) -> str:
        """What an answer is kept under: the model, and all of the question and its parameters. Not the address: it may move."""
        return hashlib.sha256(encode([form.path, self.model, form.body([item])], "a question")).hexdigest()


def opened(section: Config, how: Config) -> Endpoint:
    """The endpoint of a config's section `judge` or `embed`, asked as `endpoint` says. ValueError: no client, no key, no address."""
    limits = Limits(how.timeout, how.attempts, how.workers, how.max_requests, how.max_tokens)
    return Endpoint(section.base_url, section.model, read_key(section.key_name), limits, Path(how.cache).expanduser())
