"""Grading anyone's rows by running their SQL: each names its database; comparison, sandbox and limits are those of BIRD (`bird`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import birdfiles, shapes, sqlbox
from ilr_jax.tasks.bird import TextToSQL
from ilr_jax.tasks.sqltext import statement
from ilr_jax.types import Example

NAMES = {"sql": "official", "sql-strict": "strict"}
COLUMN = "database"


@dataclass(frozen=True)
class Execution:
    """Right is what returns the rows that the reference returns, on the database of the example's tags."""

    name: str
    task: TextToSQL
    form: str = "an SQL statement"
    seen: dict[str, dict[str, str] | str] = field(default_factory=dict, compare=False, repr=False)  # by database: tags, or its fault

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether each answer is right; without a reference none is."""
        right = np.zeros(len(examples), bool)
        known = [i for i, example in enumerate(examples) if example.reference is not None]
        right[known] = self.task.grade([answers[i] for i in known], [examples[i] for i in known])
        return right

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether both answers run and return the same."""
        return self.task.agree(a, b, examples)

    def reads(self, reference: str) -> bool:
        """Whether there is a statement in it; what it returns is not looked at here."""
        return bool(statement(reference))

    def tags(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The row's database. ValueError where it names none, or one that cannot be used."""
        name = shapes.optional(values, COLUMN)
        if name is None or not birdfiles.NAME.fullmatch(name):
            raise ValueError(
                f"wanted the name of a database in the column {COLUMN!r}, got {name!r}; task.columns='{COLUMN}=COLUMN' maps another"
            )
        if name not in self.seen:
            path = birdfiles.find(self.task.databases, name)
            fault = sqlbox.fault_of(path)
            self.seen[name] = f"{path}: {fault}" if fault else {"database": name, "content": sqlbox.content(path)}
        if isinstance(found := self.seen[name], str):
            raise ValueError(found)
        return found


def named(name: str, databases: str) -> Execution:
    """The grader `name`, one of NAMES, over a folder of NAME/NAME.sqlite. ValueError where there is no such folder."""
    folder = Path(databases)
    if not databases or not folder.is_dir():
        raise ValueError(f"task.databases={databases!r}: wanted the folder of the databases, NAME/NAME.sqlite, for task.grader={name!r}")
    return Execution(name, TextToSQL(folder, folder, grader=NAMES[name]))
