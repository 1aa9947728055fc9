"""Runs hostile SQL, one query at a time, and answers with fingerprints of the result: the child process behind `sqlbox`.

Started as a script, with limits as JSON in its argument: a line of JSON asks, a line of JSON answers. Standard library only. Here a
query can do nothing but read: the database is opened read-only and immutable, an authorizer allows reading alone, SQLite's limits are
low, the process may write no file, and its memory and CPU time are bounded. Not here: killing and replacing it (`sqlbox`), grading.
From: "Defense Against The Dark Arts" (sqlite.org/security.html); CPU time by an interval timer, since SQLite's progress handler cannot
end one long instruction.
"""

import json
import random
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
FORBIDDEN = {"load_extension", "fts3_tokenizer"}
READERS = ("json_each", "json_tree")
CAPS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 2000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 250_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
PRAGMAS = ("query_only=1", "trusted_schema=0", "cell_size_check=1", "temp_store=2", "mmap_size=0")
STRIDE = 10_000  # instructions between two looks at their number

# The clock stands still, or an answer of today would be graded differently tomorrow.
NOW = {"current_timestamp": "2024-06-27 12:00:00", "current_date": "2024-06-27", "current_time": "12:00:00"}
CLOCKS = {"date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1, "timediff": 0}  # name: place of the time

Reply = dict[str, str]


def main() -> None:
    """Answer every line of standard input."""
    limits = json.loads(sys.argv[1])
    confine(limits["heap"])
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])  # its signal ends the process: nothing shorter ends one long instruction
        reply = answer(asked["database"], asked["sql"], limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


def confine(heap: int) -> None:
    """Bound this process: no file may grow, no core is written, `heap` bytes for SQLite and as much again for all else."""
    for number in (signal.SIGPROF, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit={heap}")
    most = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # elsewhere the heap's limit has to do
        most[resource.RLIMIT_AS] = _space() + 2 * heap
    for what, size in most.items():
        resource.setrlimit(what, (size, size))


def _space() -> int:
    """Bytes of address space that this process has at present."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def answer(database: str, sql: str, limits: dict[str, Any]) -> Reply:
    """What became of one query: its status, a reason, and, if it ran, the fingerprints of its result."""
    connection = sqlite3.connect(f"file:{quote(database)}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        restrict(connection, limits["steps"])
        cursor = connection.execute(sql)
        if cursor.description is None:
            return {"status": "error", "detail": "there is no query in it"}
        return {"status": "ok", **fingerprints(cursor, limits["rows"], limits["bytes"])}
    except TooLarge as error:
        return {"status": "too large", "detail": str(error)}
    except Exception as error:  # whatever a query does, it gets an answer
        return {"status": _status(error), "detail": f"{type(error).__name__}: {error}"[:200]}
    finally:
        connection.close()


class TooLarge(Exception):
    """The result has more rows or bytes than is allowed."""


def _status(error: Exception) -> str:
    if isinstance(error, MemoryError | sqlite3.DataError):  # the heap's limit; a value or a text beyond SQLite's limit of length
        return "too large"
    return "timeout" if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT else "error"


def restrict(connection: sqlite3.Connection, steps: int) -> None:
    """Let the connection read the one database, with a still clock and fixed dice, and run `steps` instructions."""
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    for what, most in CAPS.items():
        connection.setlimit(what, most)
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    for name, function in _still().items():
        connection.create_function(name, -1, function, deterministic=True)
    dice = random.Random(0)
    connection.create_function("random", 0, lambda: dice.randrange(-(2**63), 2**63))
    connection.create_function("randomblob", 1, lambda n: dice.randbytes(max(int(n or 1), 1)))
    for table in READERS:  # they are declared when they are first read, which the authorizer takes for a write
        with suppress(sqlite3.OperationalError):
            connection.execute(f"SELECT 1 FROM {table}('[]')")
    connection.set_authorizer(_authorize)
    left = iter(range(steps // STRIDE))
    connection.set_progress_handler(lambda: next(left, None) is None, STRIDE)


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    allowed = action in READING and not (action == sqlite3.SQLITE_FUNCTION and second in FORBIDDEN)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


@lru_cache(1)
def _still() -> dict[str, Callable[..., Any]]:
    """SQLite's own functions of time, computed on a separate connection where the present is always NOW."""
    inner = sqlite3.connect(":memory:")

    def call(name: str, place: int, *values: Any) -> Any:
        """What the function `name` gives, its time values beginning at argument `place`."""
        values = values if len(values) > place else (*values, "now")
        told = [NOW["current_timestamp"] if _word(value) == "now" and i in _times(name, place) else value for i, value in enumerate(values)]
        if len(told) > place and _word(told[place]) in ("subsec", "subsecond"):
            told.insert(place, NOW["current_timestamp"])
        return inner.execute(f"SELECT {name}({', '.join('?' * len(told))})", told).fetchone()[0]

    clocks = {name: lru_cache(4096, typed=True)(partial(call, name, place)) for name, place in CLOCKS.items()}
    return {name: lambda value=value: value for name, value in NOW.items()} | clocks


def _word(value: Any) -> str:
    """A value as SQLite's functions of time read it."""
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).rstrip("\0").lower()


def _times(name: str, place: int) -> tuple[int, ...]:
    return (0, 1) if name == "timediff" else (place,)


def fingerprints(rows: Iterable[tuple[Any, ...]], most_rows: int, most_bytes: int) -> Reply:
    """Three hashes of a result: equal `rows` are equal sets of rows, equal `bag` counts them, equal `order` keeps their order.

    Values are equal as Python compares them (1 and 1.0 are, 1 and '1' are not), NULL equals NULL; columns have no names.
    """
    found, size = [], 0
    for row in rows:
        data = encoded(row)
        found.append(blake2b(data, digest_size=16).digest())
        size += len(data)
        if len(found) > most_rows or size > most_bytes:
            raise TooLarge(f"more than {most_rows} rows" if len(found) > most_rows else f"more than {most_bytes} bytes")
    return {"rows": _hash(sorted(set(found))), "bag": _hash(sorted(found)), "order": _hash(found)}


def _hash(digests: list[bytes]) -> str:
    return blake2b(b"".join(digests), digest_size=16).hexdigest()


def encoded(row: tuple[Any, ...]) -> bytes:
    """A row as bytes that are equal exactly where Python finds the rows equal."""
    return repr(tuple(int(value) if type(value) is float and value.is_integer() else value for value in row)).encode()


if __name__ == "__main__":
    main()
