"""Untrusted SQL in processes of its own: every query gets an outcome, in order, whatever it does to the process that runs it.

`run` starts workers (`sqlworker`, a clean interpreter each, never a fork: JAX's threads may be alive here), shares the queries among
them, replaces those that die, and ends them all before it returns. What an outcome is hardly depends on the machine's load: the first
limit is a number of SQLite's instructions, the second one CPU time, so high that only what comes near it could go either way; the wall
clock is only an outer bound, and a query whose worker died or was killed is asked once more, alone. Outcomes are remembered per content
of the database and text of the query. Not here: what is right (`bird`).
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

from ilr_jax.files import explained, sha256_of

WORKER = Path(__file__).with_name("sqlworker.py")
HEADER = b"SQLite format 3\0"
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")  # of the environment, what an interpreter may need to start


class Query(NamedTuple):
    """A database's file and the text to run on it."""

    database: Path
    sql: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a query; of one that ran, hashes of its rows as a set (`rows`), as a bag and in order (`sqlworker.fingerprints`)."""

    status: Literal["ok", "error", "timeout", "too large"]
    detail: str = ""
    rows: str = ""
    bag: str = ""
    order: str = ""


@dataclass(frozen=True)
class Limits:
    """What one query may use: SQLite instructions, CPU seconds, bytes of SQLite's heap, and rows and bytes of its result.

    A loop of SQLite's does 60 to 200 million instructions a second, so `steps` ends it before `seconds`, and at the same point anywhere.
    Where functions take most of the time, LIKE over long texts, say, it is `seconds`: of CPU time, which other load does not use up, but
    which a slower machine does sooner.
    """

    steps: int = 1_500_000_000
    seconds: float = 30.0
    heap: int = 256 * 2**20
    rows: int = 1_000_000
    bytes: int = 256 * 2**20

    @property
    def wall(self) -> float:
        """Seconds after which a query is killed that does not even use CPU time, or whose machine is hopelessly busy."""
        return 10 + 10 * self.seconds


@dataclass(frozen=True)
class Box:
    """Runs queries within `limits`, `workers` at a time, and remembers their outcomes for as long as it lives."""

    limits: Limits = Limits()
    workers: int = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    known: dict[tuple[str, str], Outcome] = field(default_factory=dict)

    def run(self, queries: Sequence[Query]) -> list[Outcome]:
        """One outcome per query, in order. ValueError that lists every database that cannot be used."""
        contents = {path: content(path) for path in checked({query.database for query in queries})}
        keys = [(contents[query.database], query.sql) for query in queries]
        new = {key: query for key, query in zip(keys, queries, strict=True) if key not in self.known}
        self.known.update(zip(new, self._run(list(new.values())), strict=True))
        return [self.known[key] for key in keys]

    def _run(self, queries: Sequence[Query]) -> list[Outcome]:
        if not queries:
            return []
        with _crew(min(self.workers, len(queries)), self.limits) as crew:
            outcomes = _shared(crew, queries)
            for i, lost in enumerate(outcomes):
                if isinstance(lost, Lost):  # alone now: the others are idle
                    again = crew[0].ask(queries[i])
                    outcomes[i] = again.outcome() if isinstance(again, Lost) else again
        return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]


class Lost(NamedTuple):
    """A query whose worker gave no answer, with that worker's exit code, or None if it was killed for its time."""

    code: int | None

    def outcome(self) -> Outcome:
        """What it is called if it happens again alone."""
        if self.code in (None, -signal.SIGPROF):
            return Outcome("timeout", "beyond the limit of CPU time" if self.code else "beyond the limit of time")
        return Outcome("error", f"the process that ran it ended with exit code {self.code}")


class Worker:
    """One child process, started when it is first asked and again after it has died."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, query: Query) -> Outcome | Lost:
        """The query's outcome, or how its process ended. OSError if no process can be started."""
        process = self.process = self.process or _started(self.limits)
        try:
            _send(process, json.dumps({"database": str(query.database), "sql": query.sql}).encode() + b"\n")
            reply = _reply(process, self.limits.wall)
        except BrokenPipeError:  # it died before it was asked
            reply = b""
        if reply:
            return Outcome(**json.loads(reply))
        code = self.stop()
        return Lost(None if reply is None else code)

    def stop(self) -> int:
        """End the process, if there is one; its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.kill()
        with process:  # waits, and closes the pipes
            pass
        return process.returncode


def _started(limits: Limits) -> "subprocess.Popen[bytes]":
    """A worker that is ready, without what the user's environment would add to Python, in UTC."""
    command = [sys.executable, "-I", "-S", "-B", str(WORKER), json.dumps(asdict(limits))]
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}  # no keys
    process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**inherited, "TZ": "UTC"})
    if _reply(process, 60.0) != b"ready\n":
        process.kill()
        with process:
            pass
        raise OSError(f"a process that runs SQL did not start (exit code {process.returncode}): {' '.join(command)}")
    return process


def _send(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    assert process.stdin
    while data:
        data = data[process.stdin.write(data) :]


def _reply(process: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
    """A line of the process; empty if it ended first, None if it took longer than `seconds`."""
    assert process.stdout
    pipe, end, data = process.stdout.fileno(), time.monotonic() + seconds, b""
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while not data.endswith(b"\n"):
        if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
            return None
        part = os.read(pipe, 2**16)
        if not part:
            return b""
        data += part
    return data


@contextmanager
def _crew(size: int, limits: Limits) -> Iterator[list[Worker]]:
    """Workers that are gone afterwards, whatever happens."""
    workers = [Worker(limits) for _ in range(size)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def _shared(crew: Sequence[Worker], queries: Sequence[Query]) -> list[Outcome | Lost]:
    """Every query asked once, of whichever worker is idle; results in the queries' order."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def ask(query: Query) -> Outcome | Lost:
        worker = idle.get()
        try:
            return worker.ask(query)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(crew)) as pool:
        return list(pool.map(ask, queries))


def checked(paths: Collection[Path], hint: str = "") -> list[Path]:
    """The paths, each of a whole SQLite database that nobody is writing to. ValueError that lists the others, with reasons, and `hint`."""
    faults = [f"{path}: {fault}" for path in sorted(paths) if (fault := fault_of(path))]
    if faults:
        raise ValueError("\n  ".join(["databases that cannot be used:", *faults, *([hint] if hint else [])]))
    return sorted(paths)


def fault_of(path: Path) -> str:
    """Why the path is no whole SQLite database that nobody is writing to; empty if it is one."""
    if not path.is_file():
        return "wanted a SQLite database there, found no file; none is ever made up in its place"
    for beside in (path.with_name(path.name + end) for end in ("-wal", "-journal")):
        if beside.exists():
            return f"{beside.name} lies beside it, so it is being written to or was not closed; open it once with sqlite3 and close it"
    with explained(path, "read"), open(path, "rb") as file:
        head, size = file.read(100), path.stat().st_size
    if not head.startswith(HEADER):
        return f"wanted a SQLite database, got a file that begins with {head[: len(HEADER)]!r}; copy it again"
    wanted = _length(head)
    return f"wanted {wanted:,} bytes, as its header says, got {size:,}: it is cut off; copy it again" if size < wanted else ""


def _length(head: bytes) -> int:
    """The bytes that a database has by its header, at least (sqlite.org/fileformat.html: page size, pages, whether their number holds)."""
    number = lambda place, size=4: int.from_bytes(head[place : place + size], "big")
    page = 65536 if number(16, 2) == 1 else number(16, 2)
    return page * number(28) if len(head) == 100 and number(24) == number(92) else 100


def content(path: Path) -> str:
    """What stands for the bytes of a file, read again only where it has changed."""
    found = path.stat()
    return _hashed(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(1024)
def _hashed(path: Path, *stamp: int) -> str:
    return sha256_of(path)
