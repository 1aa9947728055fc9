"""Files that are whole or not there: JSON and JSON-lines written atomically, locks, and disk errors that say what to do.

Not here: which files there are (`store`). POSIX only (flock, rename, fsync). Imports nothing of ours.
From: the write, sync, rename, sync-the-folder order of Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

import csv
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

FULL = {errno.ENOSPC: "free some space there", errno.EDQUOT: "free some of your quota there", errno.EROFS: "choose a writable workdir"}
HINTS = {**FULL, errno.EACCES: "choose a workdir that you may write to", errno.EPERM: "choose a workdir that you may write to"}

Row = TypeVar("Row")


class StorageError(OSError):
    """The disk refused: the message names the path and says what to do. What was finished before is untouched."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. ValueError for what JSON cannot hold, StorageError for the disk."""
    write_bytes(path, encode(value, str(path), indent=1) + b"\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. ValueError, naming the file, if it is not JSON."""
    with explained(path, "read"):
        data = path.read_bytes()
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"wanted JSON in {path}, got something else ({error}); the file is damaged: restore it, or delete it if a run wrote it"
        ) from error


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclass instances as JSON lines (UTF-8, sorted keys), whole or not at all; ValueError names a bad row."""

    def lines() -> Iterator[bytes]:
        for number, row in enumerate(rows, 1):
            values = {name: getattr(row, name) for name in _fields(type(row))}
            yield encode(values, f"row {number} of {path}") + b"\n"

    write_bytes(path, lines())


@cache
def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def read_rows(path: Path, cls: type[Row]) -> list[Row]:
    """The rows that `write_rows` wrote. Raises ValueError with file:line and the reason for a line that is no `cls`."""
    hints, rows = get_type_hints(cls), []
    plain = {name: _types(hint) for name, hint in hints.items()}
    with explained(path, "read"), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(_row(json.loads(line.decode()), cls, hints, plain))
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: wanted a {cls.__name__} as JSON, got {line[:80]!r}: {error}") from error
    return rows


def _row(values: Any, cls: type[Row], hints: Mapping[str, Any], plain: Mapping[str, frozenset[type]]) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"wanted an object, got {type(values).__name__}")
    for name, value in values.items():
        if name in hints and type(value) not in plain[name] and not _fits(value, hints[name]):
            raise ValueError(f"{name}: wanted {hints[name]}, got {value!r}")
    return cls(**values)


def _types(hint: Any) -> frozenset[type]:
    """Types whose every value fits the hint, which is quicker to see than by `_fits`."""
    options = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    return frozenset(option for option in options if get_origin(option) is None and isinstance(option, type))


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is Any:
        return True
    if origin is not None:
        return isinstance(value, origin)
    return type(value) is hint or (hint is float and type(value) is int)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """Write a table, a line per row under a header. Columns: `first`, then as rows name them; what a row lacks or is None is empty."""
    file = io.StringIO()
    lines = csv.DictWriter(file, list(dict.fromkeys([*first, *(name for row in rows for name in row)])), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    write_bytes(path, file.getvalue().encode())


def write_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, given whole or piece by piece, and sync it; whole or not at all.

    StorageError if the disk refuses: the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # beside the target: a rename is atomic only within a file system
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename that is not synced may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, after saying that we wait for `what` if another holds it. A killed holder lets go by itself."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (the lock lives as long as the file is open)
    with file:
        with explained(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.getLogger(__name__).warning("another process is at work on %s; waiting for it", what)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def explained(path: str | os.PathLike[str], verb: str = "write", only: Collection[int] | None = None) -> Iterator[None]:
    """Turn an OSError (of the numbers in `only`) into one that names the path and says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or (only is not None and error.errno not in only):
            raise
        hint = HINTS.get(error.errno or 0, "see what is wrong with that path")
        advice = f"{hint} and start the same command again: what is finished is kept, nothing half-written counts"
        raise StorageError(error.errno, f"could not {verb} {path} ({error.strerror or error}); {advice}") from error


def encode(value: Any, what: str, indent: int | None = None) -> bytes:
    """Canonical JSON: keys sorted, UTF-8, one form for one value. ValueError, naming `what`, for what JSON cannot hold."""
    try:
        return _encoder(indent).encode(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: wanted text that is valid Unicode, got the lone surrogate {error.object[error.start]!r}; clean it"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what}: wanted what JSON can hold (no NaN, no infinity), got: {error}") from error


@cache
def _encoder(indent: int | None) -> json.JSONEncoder:
    separators = (",", ":") if indent is None else (",", ": ")
    return json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested sections by dotted name; an empty section is a value."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of `flat` fields that are neither one of `names` nor below one."""
    return {field: value for field, value in fields.items() if not any(field == name or field.startswith(f"{name}.") for name in names)}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with explained(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
