"""Files of other people's data: rows with the place they stand at, and a reason for every row that cannot be read.

JSON lines, JSON, CSV, Parquet, a folder that `datasets.save_to_disk` wrote, or a data set on the Hugging Face Hub. JSON is read strictly,
since Python's reader lets pass what fails hours later: NaN, infinities, a key that occurs twice, lone surrogates. Not here: what the
columns mean (`shapes`).
From: RFC 8259 (JSON), RFC 4180 (CSV).
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ilr_jax.files import encode, explained, read_json

ANY = ""  # the name of the only split of a source that names none
BOM = b"\xef\xbb\xbf"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
BLANKS = re.compile(r"[ \t\r\n]*+")


MOST = 1_000  # faults that a message lists; a wrong column map makes one of every row


def listing(head: str, faults: Sequence[str]) -> str:
    """A message with all faults, a line each."""
    more = [f"... and {len(faults) - MOST:,} more"] if len(faults) > MOST else []
    return "\n  ".join([head, *faults[:MOST], *more])


class Row(NamedTuple):
    """A row as it stands in the data, by column; `where` is what messages call it: file:line, or the number in its split, from 0."""

    where: str
    values: Mapping[str, Any]


Entry = Row | str
"""A row, or one line that says why there is none."""


def splits(source: str) -> Mapping[str, Callable[[], list[Entry]]]:
    """The splits of `source` by name, each read when called; a source with one unnamed split has the name ANY.

    `source` is a file (.jsonl, .ndjson, .json, .csv, .parquet), a `save_to_disk` folder, or a Hub id (`OWNER/NAME`, with a configuration
    `OWNER/NAME:CONFIG`). Behind an @ stands the one split to use: `OWNER/NAME@validation`. ValueError for what is none of these.
    """
    where, mark, split = (source, "", "") if Path(source).exists() else source.rpartition("@")
    found = _splits(where if mark else source)
    if not mark:
        return found
    if split not in found:
        raise ValueError(f"{where}: wanted the split {split!r}, found {', '.join(found) or 'none'}")
    return {ANY: found[split]}


def _splits(source: str) -> Mapping[str, Callable[[], list[Entry]]]:
    path = Path(source)
    if path.is_dir():
        return _saved_splits(path)
    if path.suffix.lower() in FORMATS and not path.is_file():
        raise ValueError(f"{source}: wanted a file of data, found none there")
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"{source}: wanted a file that ends in {', '.join(FORMATS)}, got {path.suffix or 'no ending'!r}")
        return {ANY: partial(_collected, FORMATS[path.suffix.lower()], path)}
    if not HUB_ID.fullmatch(source):
        raise ValueError(f"{source!r}: wanted a file, a folder that save_to_disk wrote, or a Hub id (OWNER/NAME), found no such thing")
    return _hub_splits(source)


def strict(text: str) -> Any:
    """The value that JSON `text` states. ValueError with the reason for what JSON or Unicode forbids, and for nesting too deep to read."""
    try:
        value = STRICT.decode(text)
        encode(value, "the row")  # refuses NaN, infinities (1e999 too) and lone surrogates
        return value
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg}, column {error.colno})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has the key {next(name for name in found if names.count(name) > 1)!r} twice")
    return found


STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def _collected(read: Callable[[Path], Iterator[Entry]], path: Path) -> list[Entry]:
    with explained(path, "read"):
        return list(read(path)) or [f"{path}: the file has no row; wanted at least one"]


def _object(where: str, text: str | bytes) -> Entry:
    """The row that a JSON text states, or why it states none."""
    try:
        value = strict(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        return f"{where}: is no UTF-8 ({error.reason} at byte {error.start})"
    except ValueError as error:
        return f"{where}: {error}"
    return Row(where, value) if isinstance(value, dict) else f"{where}: wanted an object, got {type(value).__name__}"


def _jsonl(path: Path) -> Iterator[Entry]:
    """One object a line; a line ends at a line feed only, so that U+2028 may stand inside a text."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(BOM):
                yield f"{path}:1: begins with a byte order mark, which JSON forbids; save the file as UTF-8 without it"
                line = line.removeprefix(BOM)
            if line.strip():
                yield _object(f"{path}:{number}", line.rstrip())


def _json(path: Path) -> Iterator[Entry]:
    """The objects of one array, each read by itself, so that every bad one is told with its line."""
    data = path.read_bytes()
    if data.startswith(BOM):
        yield f"{path}:1: begins with a byte order mark, which JSON forbids; save the file as UTF-8 without it"
    try:
        text = data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        yield f"{path}: is no UTF-8 ({error.reason} at byte {error.start})"
        return
    if text.strip():
        yield from _elements(path, text)


def _elements(path: Path, text: str) -> Iterator[Entry]:
    after_blanks = lambda start: BLANKS.match(text, start).end()  # pyright: ignore[reportOptionalMemberAccess] (it matches nothing, too)
    at = after_blanks(0)
    if text[at] != "[":
        yield f"{path}:1: wanted an array of objects, got {text[at : at + 20]!r}; give one object a line the ending .jsonl"
        return
    lenient, line, counted, number, at = json.JSONDecoder(), 1, 0, 0, after_blanks(at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}, row {number}"
        try:
            _, end = lenient.raw_decode(text, at)
        except (ValueError, RecursionError) as error:  # where it ends is unknown, and so are the rows behind it
            why = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON ({error})"
            yield f"{where}: {why}; nothing behind it was read"
            return
        yield _object(where, text[at:end])
        number, at = number + 1, after_blanks(end)
        if text[at : at + 1] == ",":
            at = after_blanks(at + 1)
        elif text[at : at + 1] != "]":
            yield f"{where}: wanted a comma or the end of the array behind it, got {text[at : at + 20] or 'the end of the file'!r}"
            return
    if rest := text[after_blanks(at + 1) :]:
        yield f"{path}: wanted nothing behind the array, got {rest[:20]!r}"


def _csv(path: Path) -> Iterator[Entry]:
    """A header and records of text of any length, commas between columns; a byte order mark is what Excel writes, and is passed over."""
    csv.field_size_limit(2**31 - 1)  # 131,072 characters without it
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _records(path, csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        yield f"{path}: is no UTF-8 ({error.reason} at byte {error.start}); nothing behind it was read"


def _records(path: Path, reader: Any) -> Iterator[Entry]:
    header, start = None, 1
    try:
        for record in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if header is None:
                header = record
                if len(header) == 1 and ";" in header[0]:
                    yield f"{where}: wanted columns with commas between them, got {header[0]!r}; save it with commas"
                    return
                if len(set(header)) < len(header):
                    yield f"{where}: wanted column names that differ, got {', '.join(header)}"
            elif record and len(record) != len(header):
                yield f"{where}: wanted {len(header)} fields as in the header, got {len(record)}"
            elif record:
                yield Row(where, dict(zip(header, record, strict=True)))
    except csv.Error as error:
        yield f"{path}:{reader.line_num}: is no CSV ({error}); nothing behind it was read"


def _parquet(path: Path) -> Iterator[Entry]:
    from pyarrow import parquet  # loaded late, as `datasets` below: most runs need neither

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors among them
        yield f"{path}: cannot be read as Parquet ({error}); if it is damaged, write it again"
        return
    yield from (Row(f"{path}, row {number}", row) for number, row in enumerate(rows))


FORMATS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _saved_splits(path: Path) -> Mapping[str, Callable[[], list[Entry]]]:
    """The splits of a saved DatasetDict, or the one of a saved Dataset."""
    if (path / "dataset_dict.json").is_file():
        listing = read_json(path / "dataset_dict.json")
        names = listing.get("splits", []) if isinstance(listing, dict) else []
        return {name: partial(_saved, path / name) for name in names}
    if not (path / "state.json").is_file():
        raise ValueError(f"{path}: wanted a folder that save_to_disk wrote, found another; give the path of a single file")
    return {ANY: partial(_saved, path)}


def _saved(folder: Path) -> list[Entry]:
    import datasets

    try:
        return _numbered(str(folder), datasets.load_from_disk(str(folder)))
    except IndexError:  # `datasets` writes an empty split without a data file, and then fails to read it
        return [f"{folder}: the split is empty; wanted at least one row"]
    except (OSError, ValueError) as error:
        return [f"{folder}: cannot be read ({error}); if it is damaged, save it again"]


def _hub_splits(source: str) -> Mapping[str, Callable[[], list[Entry]]]:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, config = source.partition(":")
    try:
        found: Any = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, DatasetsError) as error:  # no such data set, no network, offline, several configurations
        raise ValueError(
            f"{source} is no file or folder here, and cannot be had from the Hugging Face Hub ({error}); check the path, or the network "
            "and HF_HUB_OFFLINE; a configuration is given as OWNER/NAME:CONFIG"
        ) from error
    return {split: partial(_numbered, f"{source}, {split}", rows) for split, rows in found.items()}


def _numbered(where: str, rows: Iterable[Any]) -> list[Entry]:
    found: list[Entry] = [Row(f"{where}, row {number}", row) for number, row in enumerate(rows)]
    return found or [f"{where}: the split is empty; wanted at least one row"]
