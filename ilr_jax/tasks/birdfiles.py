"""BIRD's files (Li et al., arXiv 2305.03111): questions in two layouts, and the databases they are about.

`official`: the folder as BIRD hands it out, `train.json` and `dev.json` (our test split) with db_id, question, evidence and SQL; the
prompt is made here, from the CREATE statements of the real database. `saved`: what `save_to_disk` wrote, with columns question (the
whole prompt), answer, db_schema and db_name. Databases are `NAME/NAME.sqlite`, in a folder `*_databases` or not. Not here: grading.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ilr_jax.files import read_json
from ilr_jax.tasks import readers, saved

LISTS = {"train": ("train.json", "train/train.json"), "test": ("dev.json", "dev/dev.json", "dev_*/dev.json")}
PLACES = ("{name}/{name}.sqlite", "*_databases/{name}/{name}.sqlite", "*/*_databases/{name}/{name}.sqlite")
SAVED = ("question", "answer", "db_schema", "db_name")
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can write and UTF-8 cannot
NAME = re.compile(r"[\w-][\w .-]*")  # no path: a question must not lead out of the folder


class Question(NamedTuple):
    """One row of either layout; `where` names it in messages. `knowledge` is None where `text` is the whole prompt."""

    where: str
    text: str
    knowledge: str | None
    sql: str
    database: str

    def prompt(self, schema: str) -> str:
        """What a model is asked."""
        if self.knowledge is None:
            return self.text
        known = f"Knowledge:\n{self.knowledge}\n\n" if self.knowledge else ""
        return f"Answer the question with one SQLite query.\n\nSchema:\n{schema}\n\n{known}Question:\n{self.text}"

    def faults(self) -> Iterator[str]:
        """What makes it unusable, in words."""
        wanted = {"question": self.text, "SQL": self.sql, "database's name": self.database}
        yield from (
            f"{self.where}: the {what} is empty or no text; fill it in or remove the row" for what, text in wanted.items() if not text
        )
        broken = [what for what, text in {**wanted, "evidence": self.knowledge or ""}.items() if SURROGATE.search(text)]
        yield from (f"{self.where}: the {what} holds a lone surrogate, which is half a character; clean it" for what in broken)
        if self.database and not NAME.fullmatch(self.database):
            yield f"{self.where}: wanted the plain name of a database, got {self.database!r}"


def read(folder: Path, split: str, count: int | None) -> list[Question]:
    """The first `count` questions of a split (None: all). ValueError that lists all bad rows."""
    questions = list((_saved if saved.is_saved(folder) else _official)(folder, split, count))
    faults = [fault for question in questions for fault in question.faults()]
    if faults:
        raise ValueError(readers.listing("questions that cannot be used:", faults))
    return questions


def _saved(folder: Path, split: str, count: int | None) -> Iterator[Question]:
    rows = saved.read(folder, split, SAVED)
    for i, row in enumerate(rows.select(range(min(count or len(rows), len(rows))))):
        question, sql, database = (_text(row, column) for column in ("question", "answer", "db_name"))
        yield Question(f"{folder}, {split} row {i}", question, None, sql, database)


def _official(folder: Path, split: str, count: int | None) -> Iterator[Question]:
    path = next((path for place in LISTS[split] for path in sorted(folder.glob(place))), None)
    if path is None:
        raise ValueError(
            f"task.path={str(folder)!r}: wanted questions of {split}: a folder that DatasetDict.save_to_disk wrote, or BIRD's own with "
            f"{LISTS[split][0]} in it; found neither"
        )
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: wanted a list of questions, not empty, got {rows!r:.80}; copy the file again")
    for i, row in enumerate(rows[: count or None]):
        question, knowledge, sql, database = (_text(row, key) for key in ("question", "evidence", "SQL", "db_id"))
        yield Question(f"{path}, question {i}", question, knowledge, sql, database)


def _text(row: Mapping[str, Any], key: str) -> str:
    """The text under `key`; empty if there is none, or something else."""
    value = row.get(key)
    return value.strip() if isinstance(value, str) else ""


def find(databases: Path, name: str) -> Path:
    """The file of a database; if there is none, where it was to be."""
    places = [place.format(name=escape(name)) for place in PLACES]
    return next((path for place in places for path in sorted(databases.glob(place))), databases / name / f"{name}.sqlite")


@lru_cache(256)
def schema(database: Path) -> str:
    """The CREATE statements of a database's tables, one a line where that changes nothing. ValueError if it cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema=0")
            found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'")
            tables = [sql for (sql,) in found]
    except sqlite3.Error as error:
        raise ValueError(f"{database}: its schema cannot be read ({error}); copy the database again") from error
    return "\n".join(sql if "--" in sql else re.sub(r"\s*\n\s*", " ", sql.strip()) for sql in tables)
