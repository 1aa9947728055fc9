"""Anyone's own data: demonstrations as they came, trusted references where there are some, and a test split if there is one.

Files are read by `readers`, columns by `shapes`, answers by `graders`. Here rows become examples, and everything that is wrong with them
becomes one message. An example's `given` is the demonstration that nobody vouches for, its `reference` one that somebody does.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import graders, readers, shapes
from ilr_jax.tasks.graders import Named
from ilr_jax.tasks.readers import Entry, Row
from ilr_jax.tasks.shapes import Shape
from ilr_jax.types import Example

NAME = "jsonl"
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}  # a CSV knows no booleans


@dataclass(frozen=True)
class OwnData:
    """The examples of both splits, and how they are graded; `testing` holds only those with a reference, and may be empty."""

    training: Sequence[Example]
    testing: Sequence[Example]
    grader: Named
    name: str = NAME

    def train(self) -> list[Example]:
        return list(self.training)

    def test(self) -> list[Example]:
        return list(self.testing)

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether each answer is right; where there is no reference, none is."""
        return self.grader.grade(answers, examples)

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, Bool[np.ndarray, " n"]]:
        """None: one grader was chosen."""
        return {}

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether two answers state the same value, or are the same text where the grader reads none in either."""
        return self.grader.agree(a, b, examples)

    def usable(self, answer: str) -> bool:
        """Whether there is an answer at all."""
        return bool(answer.strip())


@dataclass(frozen=True)
class Split:
    """What the rows of one split have in common: its name, which of our names occur, their shape, and the config's word on them."""

    name: str
    columns: Mapping[str, str]
    names: frozenset[str]
    shape: Shape
    grader: Named
    answers: str

    def example(self, number: int, row: Row) -> Example:
        """The example of row `number`. ValueError with the reason where it makes none."""
        values = shapes.renamed(row.values, self.columns)
        marked = shapes.optional(values, "reference")
        blank = marked is not None and values.get(self.shape.answer) in (None, "")  # a row may have a reference instead of an answer
        prompt, answer = shapes.read(values, self.shape, self.shape.answer in self.names and not blank)
        trusted = _flag(values.get("trusted"))
        reference = marked or (answer if trusted or self.answers == "trusted" else None)
        if trusted and reference is None:
            raise ValueError("is marked as trusted, but has no answer")
        if reference is not None and not self.grader.reads(reference):
            wanted = f"; wanted {self.grader.form}" if self.grader.form else ""
            raise ValueError(f"the grader {self.grader.name!r} reads nothing in the reference {reference[-60:]!r}{wanted}")
        tags, given = self.grader.tags(values), answer if self.answers == "given" else None
        return Example(self._id(number, values), prompt, reference, NAME, tags, given=given)

    def _id(self, number: int, values: Mapping[str, Any]) -> str:
        """The row's own id, else its number, which stays when its text changes; test ids begin with `test-`."""
        if "id" not in self.names:
            return f"{self.name}-{number:05d}"
        if (name := values.get("id")) is None:
            raise ValueError("has no id, which other rows have; give it one, or none to any (task.columns='id=')")
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise ValueError(f"id: wanted text or a whole number, got {name!r}")
        return f"test-{name}" if self.name == "test" else str(name)


def _flag(value: Any) -> bool:
    flag = FLAGS.get(str(value).strip().lower(), value) if isinstance(value, str | int) else value
    if flag is not None and not isinstance(flag, bool):
        raise ValueError(f"trusted: wanted true or false, got {flag!r:.40}")
    return bool(flag)


def load(config: Any) -> OwnData:
    """The task as `config` describes it: `path`, `test_path`, `columns`, `answers`, `grader` and what belongs to it, numbers of examples.

    Everything that is wrong with the data of both splits comes in one ValueError; test rows that also stand in train are a warning.
    """
    if not config.path:
        raise ValueError("task.path: wanted your data (a file, a save_to_disk folder or a Hub id), got none")
    columns = shapes.column_map(config.columns)
    grader = graders.named(config.grader or graders.NAMES[0], config.pattern, config.databases)
    found, faults, total = {}, [], 0
    for name, (source, entries) in _entries(config).items():
        found[name], wrong = _examples(name, source, entries, columns, grader, config.answers)
        faults, total = faults + wrong, total + len(entries)
    train, test = found["train"], found.get("test", [])
    both = sorted({example.id for example in train} & {example.id for example in test})
    faults += [f"the id {name!r} in train is that of a test row, whose ids get 'test-' before them; choose another" for name in both]
    if faults:
        count = lambda n, what: f"{n} {what}{'s' * (n != 1)}"
        head = f"the data cannot be used: {count(len(faults), 'fault')} in {count(total, 'row')}; correct them, or take those rows out"
        raise ValueError(readers.listing(head, faults))
    train, test = train[: config.train_examples or None], test[: config.test_examples or None]
    _warn(test)
    return OwnData(train, [example for example in test if example.reference is not None], grader)


def _entries(config: Any) -> dict[str, tuple[str, list[Entry]]]:
    """Split -> its source and rows: train, and test where `test_path` or a split of that name gives one."""
    splits = readers.splits(config.path)
    train = splits.get("train") or splits.get(readers.ANY)
    if train is None:
        raise ValueError(f"task.path={config.path!r}: wanted a split 'train', found {', '.join(splits)}; name one with @SPLIT")
    tests = readers.splits(config.test_path) if config.test_path else splits
    test = tests.get("test") or (tests.get(readers.ANY) if config.test_path else None)
    if config.test_path and test is None:
        raise ValueError(f"task.test_path={config.test_path!r}: wanted a split 'test', found {', '.join(tests)}; name one with @SPLIT")
    found = {"train": (config.path, train())}
    return found if test is None else found | {"test": (config.test_path or config.path, test())}


def _examples(
    name: str, source: str, entries: Sequence[Entry], columns: Mapping[str, str], grader: Named, answers: str
) -> tuple[list[Example], list[str]]:
    """The examples of a split, and one line for everything that is wrong with it, in the order of the data."""
    rows = [entry for entry in entries if isinstance(entry, Row)]
    try:
        split = _split(name, rows, columns, grader, answers) if rows else None
    except ValueError as error:
        return [], [*(entry for entry in entries if isinstance(entry, str)), f"{source}: {error}"]
    examples, faults, places = [], [], {}
    for number, entry in enumerate(entries):
        if split is None or isinstance(entry, str):
            faults.append(entry)
            continue
        try:
            example = split.example(number, entry)
        except ValueError as error:
            faults.append(f"{entry.where}: {error}")
            continue
        if example.id in places:
            faults.append(f"{entry.where}: the id {example.id!r} stands at {places[example.id]} too; give every row its own")
        places.setdefault(example.id, entry.where)
        examples.append(example)
    return examples, faults


def _split(name: str, rows: Sequence[Row], columns: Mapping[str, str], grader: Named, answers: str) -> Split:
    """What the rows have in common. ValueError for columns that are not there, fit no shape, or hold no answers to train on."""
    there = sorted({column for row in rows for column in row.values})
    listed = f"found the columns {', '.join(there)}"
    unknown = [f"{column!r} for {ours!r}" for ours, column in columns.items() if column and column not in there]
    if unknown and name == "train":
        raise ValueError(f"task.columns names {', '.join(unknown)}, which no row has; {listed}")
    shape = _shape(rows, columns, listed)
    names = frozenset(shapes.renamed(dict.fromkeys(there), columns))
    marks = sorted({"reference", "trusted"} & names)
    if answers == "trusted" and marks:
        raise ValueError(
            f"wanted no column {marks[0]!r} with task.answers='trusted', got one; set task.answers='given', so that the column says what "
            f"is trusted, or leave it unread: task.columns='{marks[0]}='"
        )
    if name == "train" and shape.answer not in names and not marks:
        raise ValueError(
            f"wanted answers beside {shape.prompt!r}, {listed}; say which holds them, e.g. task.columns='{shape.answer}=COLUMN'"
        )
    return Split(name, columns, names, shape, grader, answers)


def _shape(rows: Sequence[Row], columns: Mapping[str, str], listed: str) -> Shape:
    """That of the first row that has one. ValueError if none has."""
    faults = []
    for kind in dict.fromkeys(tuple(shapes.renamed(row.values, columns)) for row in rows):
        try:
            return shapes.shape_of(kind, columns)
        except ValueError as error:
            faults.append(f"{error}; {listed}")
    raise ValueError(faults[0])


def _warn(test: Sequence[Example]) -> None:
    """A line about test rows that nothing can be graded against."""
    if bare := sum(example.reference is None for example in test):
        logging.getLogger(__name__).warning("%d of %d test rows have no trusted reference and are left out", bare, len(test))
