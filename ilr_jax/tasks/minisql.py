"""minisql: text to SQL without a download, over four real SQLite databases that are made here, through BIRD's code from file to grade.

Everything follows from the seed. Rows, questions and reference SQL are drawn from the words in `minischemas`; a question is kept if its
reference returns something. Which side a question falls on (`train`, `test`) is a hash of its SQL and database, so the two can never
share a query, nor one query in other words. They are written as BIRD's own folder is laid out, and `bird.TextToSQL` does the rest.
Not a data set of record: it shows that the method and the sandbox work, not how good a model is.
"""

import hashlib
import json
import os
import random
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ilr_jax.files import explained, sync_folder, write_bytes
from ilr_jax.tasks.bird import GRADERS, TextToSQL
from ilr_jax.tasks.minischemas import KINDS, SCHEMAS, Schema
from ilr_jax.tasks.sqlbox import Box, Limits

Side = Literal["train", "test"]
SIDES: dict[Side, range] = {"train": range(0, 80), "test": range(80, 100)}
FILES: dict[Side, str] = {"train": "train.json", "test": "dev.json"}
HOME = "~/.cache/ilr_jax/minisql"
LIMITS = Limits(steps=20_000_000, seconds=5.0, heap=64 * 2**20, rows=20_000, bytes=2**22)  # the tables have a few dozen rows
THINGS, EVENTS = 20, 60  # rows of the two tables of a database
TRIES = 20_000  # draws without a new question after which there are none left

SIGNS = {">": ("above", "over"), "<": ("below", "under")}
ENDS = {"desc": "highest", "asc": "lowest"}
TOTALS = {"sum": ("total", "summed"), "avg": ("average", "mean"), "max": ("largest", "maximum"), "min": ("smallest", "minimum")}


def database(schema: Schema, seed: int) -> bytes:
    """A database's file: the same for the same seed (and version of SQLite, which writes its number into it)."""
    rng = random.Random(f"{schema.name}-{seed}")
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in schema.tables:
            connection.execute(statement)
        things = [
            (i, _label(schema, i), rng.choice(schema.groups), rng.randint(schema.lowest, schema.highest)) for i in range(1, THINGS + 1)
        ]
        events = [(rng.randint(1, THINGS), rng.choice(schema.places), rng.randint(1, schema.most)) for _ in range(EVENTS)]
        connection.executemany(f"INSERT INTO {schema.one} VALUES(?, ?, ?, ?)", things)
        connection.executemany(f"INSERT INTO {schema.many} VALUES(?, ?, ?)", events)
        connection.commit()
        return connection.serialize()


def _label(schema: Schema, number: int) -> str:
    """A thing's name; where there are more things than names, some have a number."""
    times, place = divmod(number - 1, len(schema.labels))
    return schema.labels[place] + (f" {times + 1}" if times else "")


def question(rng: random.Random) -> tuple[Schema, str, str]:
    """A database, a question about it and the SQL that answers it, of any side."""
    schema, (sql, wordings) = rng.choice(SCHEMAS), rng.choice(KINDS)
    sign, way, fn = rng.choice(list(SIGNS)), rng.choice(list(ENDS)), rng.choice(list(TOTALS))
    slots = {"g": rng.choice(schema.groups), "p": rng.choice(schema.places), "k": rng.randint(2, 5)}
    slots |= {"n": rng.randint(schema.lowest, schema.highest), "a": rng.randint(1, schema.most), "s": 5 * rng.randint(1, schema.most)}
    slots |= {"sign": sign, "over": rng.choice(SIGNS[sign]), "way": way, "end": ENDS[way], "fn": fn, "total": rng.choice(TOTALS[fn])}
    slots |= schema._asdict()
    return schema, rng.choice(wordings).format_map(slots), sql.format_map(slots)


def side(schema: Schema, sql: str) -> Side:
    """Where a query belongs, decided by itself alone."""
    bucket = zlib.crc32(f"{schema.name} {sql}".encode()) % 100
    return next(side for side, buckets in SIDES.items() if bucket in buckets)


def questions(wanted: Side, seed: int, databases: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
    """Questions of one side as BIRD writes them, none twice; ends when no new one is found."""
    rng, seen, tries = random.Random(f"{wanted}-{seed}"), set(), 0
    connections = {name: sqlite3.connect(":memory:") for name in databases}
    for name, connection in connections.items():
        connection.deserialize(databases[name])
    while (tries := tries + 1) <= TRIES:
        schema, text, sql = question(rng)
        if side(schema, sql) == wanted and (schema.name, text) not in seen and _says_something(connections[schema.name], sql):
            seen.add((schema.name, text))
            tries = 0
            yield {"db_id": schema.name, "question": text, "evidence": "", "SQL": sql}
    for connection in connections.values():
        connection.close()


def _says_something(connection: sqlite3.Connection, sql: str) -> bool:
    """Whether it returns any value: an empty result would be matched by too many wrong queries."""
    return any(value is not None for row in connection.execute(sql) for value in row)


def contents(train: int, test: int, seed: int) -> dict[str, bytes]:
    """Every file of the folder by its path in it. ValueError if there are not that many questions."""
    databases = {schema.name: database(schema, seed) for schema in SCHEMAS}
    files = {f"minisql_databases/{name}/{name}.sqlite": data for name, data in databases.items()}
    wanted: dict[Side, int] = {"train": train, "test": test}
    for which, count in wanted.items():
        found = list(islice(questions(which, seed, databases), count))
        if len(found) < count:
            raise ValueError(f"task.{which}_examples={count}: minisql has {len(found)} questions of that side; ask for fewer")
        files[FILES[which]] = json.dumps(found, indent=1).encode() + b"\n"
    return files


def write(home: Path, files: Mapping[str, bytes]) -> Path:
    """Put the files into a folder of `home` that is named by their content, whole or not at all; one that is there is left alone."""
    digest = hashlib.sha256(b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in sorted(files.items()))).hexdigest()
    folder = home / digest[:16]
    if folder.is_dir():
        return folder
    partial = home / f".{folder.name}.{os.getpid()}.tmp"
    try:
        for name, data in files.items():
            with explained(partial):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(partial / name, data)
        with explained(folder):
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # if it is, another process was first, with the same bytes
                    raise
            sync_folder(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load(config: Any) -> TextToSQL:
    """The task as `config` (`path`: where the folder is made, `train_examples`, `test_examples`, `grader`, `seed`) describes it."""
    counts = {key: getattr(config, key) for key in ("train_examples", "test_examples")}
    for key, count in counts.items():
        if not count or count < 0:
            raise ValueError(f"task.{key}={count!r}: the questions of minisql are made, so say how many (for instance 1000)")
    home = Path(config.path or HOME).expanduser()
    folder = write(home, contents(config.train_examples, config.test_examples, config.seed))
    return TextToSQL(folder, folder, grader=config.grader or GRADERS[0], name="minisql", box=Box(LIMITS))
