"""BIRD (Li et al., arXiv 2305.03111): text to SQL over real databases, graded by what the SQL returns.

Two graders, both reported. `official`: equal as sets of rows, with BIRD's own comparison of values: 1 equals 1.0 but not '1', NULL equals
NULL, columns in order and without names, two empty results are equal. `strict`: equal as bags, and in order where the reference has
an ORDER BY of its own. Different from BIRD's scorer on purpose: an answer runs alone, reads only and cannot spoil the reference or the
database; text that is not valid UTF-8 compares by its bytes, where the scorer fails; an answer without a query is an error, where the
scorer finds it equal to an empty result; the clock stands still; limits are of work, not of time, and hold for each query by itself.
Not here: the files (`birdfiles`), the processes (`sqlbox`), which text of an answer counts (`sqltext.statement`).
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import birdfiles, sqlbox
from ilr_jax.tasks.sqlbox import Box, Outcome, Query
from ilr_jax.tasks.sqltext import ordered, statement
from ilr_jax.types import Example

GRADERS = ("official", "strict")
PATH = "ILR_BIRD_PATH"

Verdict = Literal["correct", "wrong", "error", "timeout", "too large"]
FAILURES = ("error", "timeout", "too large")


@dataclass(frozen=True)
class TextToSQL:
    """Questions in `folder`, answered by SQL on databases in `databases`; None examples means all. `grader` is one of GRADERS."""

    folder: Path
    databases: Path
    train_examples: int | None = None
    test_examples: int | None = None
    grader: str = GRADERS[0]
    name: str = "bird"
    box: Box = field(default_factory=Box, compare=False, repr=False)
    told: set[str] = field(default_factory=set, compare=False, repr=False)  # references that do not run, once warned of

    def __post_init__(self) -> None:
        if self.grader not in GRADERS:
            raise ValueError(f"task.grader={self.grader!r}: wanted one of {', '.join(GRADERS)}")

    def train(self) -> list[Example]:
        return self._examples("train", self.train_examples)

    def test(self) -> list[Example]:
        return self._examples("test", self.test_examples)

    def _examples(self, split: str, count: int | None) -> list[Example]:
        questions = birdfiles.read(self.folder, split, count)
        files = {name: _file(self.databases, name) for name in sorted({question.database for question in questions})}
        sqlbox.checked(files.values(), f"the databases were looked for in {self.databases}; task.databases or {PATH} names another folder")
        schemas = {name: birdfiles.schema(path) for name, path in files.items()}
        tags = {name: {"database": name, "content": sqlbox.content(path)} for name, path in files.items()}
        return [
            Example(f"{self.name}-{split}-{i:05d}", q.prompt(schemas[q.database]), q.sql, self.name, tags[q.database])
            for i, q in enumerate(questions)
        ]

    def verdicts(self, answers: Sequence[str], examples: Sequence[Example], grader: str | None = None) -> list[Verdict]:
        """Exactly one verdict per answer, in order, by `grader` (the task's own by default)."""
        strict = (grader or self.grader) == "strict"
        given, wanted = self._outcomes(answers, examples), self._references(examples)
        return [
            _verdict(outcome, gold, strict, ordered(statement(example.reference or "")))
            for outcome, gold, example in zip(given, wanted, examples, strict=True)
        ]

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether each answer's SQL returns what the reference's does; one that fails is wrong."""
        return self._grades(answers, examples, self.grader)

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, Bool[np.ndarray, " n"]]:
        """The same by the grader that does not count; which answers came to no rows that could be compared, and why not; to which none can.

        `no reference`: that does not run, so that no answer is right.
        """
        others = {grader: self._grades(answers, examples, grader) for grader in GRADERS if grader != self.grader}
        verdicts = self.verdicts(answers, examples)
        others |= {failure: np.array([verdict == failure for verdict in verdicts], bool) for failure in FAILURES}
        return others | {"no reference": np.array([gold.status != "ok" for gold in self._references(examples)], bool)}

    def _grades(self, answers: Sequence[str], examples: Sequence[Example], grader: str) -> Bool[np.ndarray, " n"]:
        return np.array([verdict == "correct" for verdict in self.verdicts(answers, examples, grader)], dtype=bool)

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether both answers run and return the same (paper section 3); in order, for `strict`, if either orders its rows."""
        outcomes = zip(self._outcomes(a, examples), self._outcomes(b, examples), a, b, strict=True)
        strict = self.grader == "strict"
        return np.array(
            [_verdict(x, y, strict, any(ordered(statement(text)) for text in texts)) == "correct" for x, y, *texts in outcomes], dtype=bool
        )

    def usable(self, answer: str) -> bool:
        """Whether the answer may be trained on: any that is not empty; whether it runs is not looked at."""
        return bool(statement(answer))

    def _outcomes(self, answers: Sequence[str], examples: Sequence[Example]) -> list[Outcome]:
        return self.box.run([Query(self._database(e), statement(a)) for a, e in zip(answers, examples, strict=True)])

    def _references(self, examples: Sequence[Example]) -> list[Outcome]:
        """What the references return. One that does not run is warned of, once: no answer can be right there. ValueError if none runs."""
        outcomes = self.box.run([Query(self._database(example), statement(example.reference or "")) for example in examples])
        broken = {e.id: outcome for e, outcome in zip(examples, outcomes, strict=True) if outcome.status != "ok" and e.id not in self.told}
        if broken:
            self.told.update(broken)
            name, first = next(iter(broken.items()))
            what = f"{first.status}, {first.detail}"
            if len(broken) == len(examples) > 1:
                raise ValueError(
                    f"wanted references that run on their databases, got none in {len(broken)}; the first is {name}: {what}; "
                    f"do the databases in {self.databases} belong to these questions, and are they whole?"
                )
            logging.getLogger(__name__).warning("%d references do not run; the first is %s: %s", len(broken), name, what)
        return outcomes

    def _database(self, example: Example) -> Path:
        return _file(self.databases, example.tags["database"])


def _verdict(given: Outcome, wanted: Outcome, strict: bool, in_order: bool) -> Verdict:
    if given.status != "ok":
        return given.status
    what = ("order" if in_order else "bag") if strict else "rows"
    return "correct" if wanted.status == "ok" and getattr(given, what) == getattr(wanted, what) else "wrong"


@lru_cache(1024)
def _file(databases: Path, name: str) -> Path:
    return birdfiles.find(databases, name).absolute()


def load(config: Any) -> TextToSQL:
    """The task as `config` (`path`, `databases`, `train_examples`, `test_examples`, `grader`) describes it; 0 examples: all.

    `path` holds the questions, and the databases too unless `databases`, or else the environment's ILR_BIRD_PATH, names their folder.
    """
    databases = config.databases or os.environ.get(PATH, "")
    if not config.path and not databases:
        raise ValueError(
            f"wanted BIRD's questions and databases, got neither task.path nor {PATH}; set task.path to the folder with train.json and "
            f"dev.json, or one that DatasetDict.save_to_disk wrote, and task.databases or {PATH} to the databases' folder if it is another"
        )
    folder = Path(config.path or databases).expanduser()
    return TextToSQL(
        folder, Path(databases or folder).expanduser(), config.train_examples, config.test_examples, config.grader or GRADERS[0]
    )
