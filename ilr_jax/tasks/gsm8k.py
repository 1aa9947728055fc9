"""GSM8K (Cobbe et al., arXiv 2110.14168): loader, grader and agreement; the embedded task is graded by the same functions.

Rows come from the Hub (`openai/gsm8k`, config `main`) or from a folder that `datasets.save_to_disk` wrote. Two graders:
`numeric` compares numbers; `released` compares strings exactly as the paper's code did (github.com/HelloElwin/iterative-label-refinement
at d1a2a27, `metrics/eval_gsm8k.py`), so that its figures can be compared. Reading symbolic mathematics is out of scope.
"""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import saved
from ilr_jax.types import Example

HUB = ("openai/gsm8k", "main")
COLUMNS = ("question", "answer")
# After the mark the number may follow on the next line, or after words, currency and markup on the same one: `#### **$1,000.00**`.
# No part of it is tried twice: a degenerate answer may be a long run of blanks.
NUMBER = re.compile(r"####\s*+((?:[^\n\d.]|\.(?!\d))*+)(\d{1,3}(?:,\d{3})++(?!\d)|\d++)?(\.\d++)?(?<=\d)(?:\s*+/\s*+(\d++))?")
LONGEST = 1000  # characters of a number; what is longer is none


def numeric(answer: str) -> Fraction | int | None:
    """The number after the first `####` that one follows, else None. Later text, such as an invented next turn, does not count."""
    found = NUMBER.search(unicodedata.normalize("NFKC", answer).replace("\N{MINUS SIGN}", "-"))
    if found is None or any(part and len(part) > LONGEST for part in found.groups()[1:]):
        return None
    words, whole, part, below = found.groups()
    digits = (whole or "0").replace(",", "")
    # An integer equals its fraction, and is read in a fifth of the time.
    value = Fraction(digits + (part or "")) / max(int(below or 1), 1) if part or below else int(digits)
    return -value if words.rstrip().removesuffix("$").rstrip().endswith("-") else value


def released(answer: str) -> str | None:
    """The word after the last `####` and a blank, as text: `####5` and `$5` are not `5`; None if there is no such word."""
    before, mark, after = answer.rpartition("####")
    words = (mark + after).split()
    return words[1] if mark and len(words) > 1 else None


GRADERS: dict[str, Callable[[str], Hashable | None]] = {"numeric": numeric, "released": released}


@dataclass(frozen=True, kw_only=True)
class Grading:
    """Grading, agreement and usability of answers that end in `#### N`; `grader` is a key of `GRADERS`."""

    grader: str = "numeric"

    def __post_init__(self) -> None:
        if self.grader not in GRADERS:
            raise ValueError(f"task.grader={self.grader!r}: wanted one of {', '.join(GRADERS)}")

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether each answer is right; an answer that states no number is wrong."""
        read = GRADERS[self.grader]
        wanted = [read(example.reference or "") for example in examples]
        return np.array([w is not None and read(a) == w for a, w in zip(answers, wanted, strict=True)], dtype=bool)

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Whether two answers state the same final number (paper section 3: it needs no comparison); one without any does not."""
        read = GRADERS[self.grader]
        pairs = [(read(x), read(y)) for x, y, _ in zip(a, b, examples, strict=True)]
        return np.array([x is not None and x == y for x, y in pairs], dtype=bool)

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, Bool[np.ndarray, " n"]]:
        """None: the released grader is there to compare with published figures, not to be reported beside the other."""
        return {}

    def usable(self, answer: str) -> bool:
        """Whether the answer may be trained on: one without `####` may not, yet it stays in the pool that is refined."""
        return "####" in answer


@dataclass(frozen=True)
class GSM8K(Grading):
    """The real data. `path` is a `save_to_disk` folder or None for the Hub; None examples means all."""

    path: str | None = None
    train_examples: int | None = None
    test_examples: int | None = None
    name: str = "gsm8k"

    def train(self) -> list[Example]:
        return self._examples("train", self.train_examples)

    def test(self) -> list[Example]:
        return self._examples("test", self.test_examples)

    def _examples(self, split: str, count: int | None) -> list[Example]:
        where, rows = self.path or HUB[0], _rows(self.path, split)
        chosen = rows.select(range(min(count or len(rows), len(rows))))
        return [self._example(f"{where}, {split} row {i}", f"gsm8k-{split}-{i:05d}", row) for i, row in enumerate(chosen)]

    def _example(self, where: str, name: str, row: Any) -> Example:
        if odd := [column for column in COLUMNS if not isinstance(row[column], str | None)]:
            raise ValueError(f"{where}: wanted text in the column {odd[0]!r}, got {row[odd[0]]!r}")
        question, answer = ((row[column] or "").strip() for column in COLUMNS)
        if not question or not answer:
            raise ValueError(f"{where}: the {'answer' if question else 'question'} is empty; remove the row or fill it in")
        if GRADERS[self.grader](answer) is None:
            raise ValueError(
                f"{where}: the answer does not end in '#### number', so nothing can be graded against it; got {answer[-60:]!r}"
            )
        return Example(name, question, answer, self.name)


def _rows(path: str | None, split: str) -> Any:
    """One split with the two columns, not empty."""
    if path:
        return saved.read(Path(path), split, COLUMNS)
    return saved.checked(_fetched(split), f"{HUB[0]}, {split}", COLUMNS)


def _fetched(split: str) -> Any:
    """One split from the Hub, or from the copy of it that `datasets` keeps."""
    import datasets

    try:
        return datasets.load_dataset(*HUB, split=split)
    except (OSError, ValueError) as error:  # no network, offline, no such cached copy
        raise ValueError(
            f"{HUB[0]} cannot be had from the Hugging Face Hub ({error}); check the network and HF_HUB_OFFLINE, or set task.path to a "
            "folder that DatasetDict.save_to_disk wrote"
        ) from error


def load(config: Any) -> GSM8K:
    """The task as `config` (`path`, `train_examples`, `test_examples`, `grader`) describes it; empty path: Hub, no or 0 examples: all."""
    return GSM8K(
        path=config.path or None,
        train_examples=config.train_examples,
        test_examples=config.test_examples,
        grader=config.grader or "numeric",
    )
