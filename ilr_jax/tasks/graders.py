"""Graders for anyone's data, by name: `exact`, `numeric`, `regex`, `sql`, or a function of the user's own.

A grader either reads a value in an answer, which is compared with the reference's, or judges an answer by itself. Not here: how SQL is
graded (`execution`), and grading by a model.
"""

import importlib
import inspect
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import execution
from ilr_jax.tasks.execution import Execution
from ilr_jax.tasks.gsm8k import numeric
from ilr_jax.types import Example

FUNCTION = "module:function"  # stands for any name with a colon
NAMES = ("exact", "numeric", "regex", *execution.NAMES, FUNCTION)
Read = Callable[[str], Hashable | None]
Judge = Callable[[str, Example], Any]


@dataclass(frozen=True)
class Grader:
    """`read` states what an answer says, None if nothing; where `judge` is given, it decides what is right."""

    name: str
    read: Read
    judge: Judge | None = None
    form: str = ""  # of what it reads, in words

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether each answer is right; without a reference none is."""
        return np.array([e.reference is not None and self._right(a, e) for a, e in zip(answers, examples, strict=True)], dtype=bool)

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether two answers state the same value; where neither states one, whether they are the same text."""
        return np.array([self._same(x, y) for x, y in zip(a, b, strict=True)], dtype=bool)

    def reads(self, reference: str) -> bool:
        """Whether a reference can be compared with."""
        return self.judge is not None or self.read(reference) is not None

    def tags(self, values: Mapping[str, Any]) -> dict[str, str]:
        """What grading needs of a row beside its reference: nothing."""
        return {}

    def _right(self, answer: str, example: Example) -> bool:
        if self.judge is None:
            said = self.read(answer)
            return said is not None and said == self.read(example.reference or "")
        verdict = self.judge(answer, example)
        if not isinstance(verdict, bool | np.bool_):
            raise ValueError(f"task.grader={self.name!r}: wanted True or False, got {verdict!r:.80} for the example {example.id!r}")
        return bool(verdict)

    def _same(self, a: str, b: str) -> bool:
        said = self.read(a), self.read(b)
        return a.strip() == b.strip() if said == (None, None) else said[0] == said[1]


Named = Grader | Execution  # what a grader's name can stand for


def exact(answer: str) -> str | None:
    """The answer in Unicode's compatibility form (NFKC), without case, its blanks and line ends single blanks; None if nothing is left."""
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()) or None


def named(name: str, pattern: str = "", databases: str = "") -> Named:
    """The grader `name`: one of NAMES, or `module:function` with the function (answer, example) -> bool.

    `pattern` is that of `regex`: its first group, or the whole match if it has none, is compared. `databases` is the folder of those that
    `sql` runs on. Raises ValueError for a name, a pattern, a folder, a module or a function that cannot be.
    """
    if name in execution.NAMES:
        return execution.named(name, databases)
    if ":" in name:
        return Grader(name, lambda answer: None, _function(name))
    if name not in NAMES:
        raise ValueError(f"task.grader={name!r}: wanted one of {', '.join(NAMES)}")
    if name == "numeric":
        return Grader(name, numeric, form="a number behind ####, as in '#### 42'")
    return Grader(name, exact if name == "exact" else _pattern(pattern))


def _pattern(pattern: str) -> Read:
    if not pattern:
        raise ValueError("task.pattern: wanted the regular expression of task.grader='regex', got none")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"task.pattern={pattern!r}: wanted a regular expression, got one that cannot be read ({error})") from error

    def read(answer: str) -> str | None:
        found = compiled.search(answer)
        return found[min(1, compiled.groups)] if found else None

    return read


def _function(name: str) -> Judge:
    """The function behind `module:function`; modules beside the command's working folder are found too."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script has its own folder there instead
    try:
        found = importlib.import_module(module)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ValueError(f"task.grader={name!r}: wanted a module that can be imported, got {error}; looked in {os.getcwd()} too") from error
    judge = getattr(found, function, None)
    if not callable(judge):
        near = get_close_matches(function, dir(found), n=1)
        raise ValueError(
            f"task.grader={name!r}: wanted a function {function!r} in {module}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    try:
        inspect.signature(judge).bind("an answer", "its example")
    except TypeError as error:
        raise ValueError(
            f"task.grader={name!r}: wanted a function of (answer, example), got one that does not take these ({error})"
        ) from error
    return judge
