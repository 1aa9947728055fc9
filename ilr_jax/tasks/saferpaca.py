"""SaferPaca: instructions of two categories, general and safety (paper section 4 and appendix); answers are free text.

Rows come from a folder that `datasets.save_to_disk` wrote, with the columns question, answer and category. Nothing can be read off such an
answer: `grade` and `agree` say None, so that answers are measured by how often a judge prefers them to the reference, and likeness stands
for agreement. Not here: judge and likeness (`services`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilr_jax.tasks import readers, saved
from ilr_jax.types import Example

COLUMNS = ("question", "answer", "category")
CATEGORIES = ("general", "safety")


@dataclass(frozen=True)
class SaferPaca:
    """The data in the folder `path`; no or 0 examples means all. Examples carry the tag `category`."""

    path: str
    train_examples: int = 0
    test_examples: int = 0
    name: str = "saferpaca"

    def train(self) -> list[Example]:
        return self._examples("train", self.train_examples)

    def test(self) -> list[Example]:
        return self._examples("test", self.test_examples)

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> None:
        """None: there is no right answer, only a better one."""

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
        """None: without a grader there is nothing to find."""
        return {}

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> None:
        """None: whether two answers say the same is a matter of likeness."""

    def usable(self, answer: str) -> bool:
        """Whether there is an answer to train on."""
        return bool(answer.strip())

    def _examples(self, split: str, count: int) -> list[Example]:
        rows = saved.read(Path(self.path), split, COLUMNS)
        rows = rows.select(range(min(count or len(rows), len(rows))))
        faults = [f"row {i}: {fault}" for i, row in enumerate(rows) if (fault := _fault(row))]
        if faults:
            raise ValueError(readers.listing(f"{self.path}, {split}: rows that cannot be used:", faults))
        return [
            Example(f"saferpaca-{split}-{i:05d}", row["question"].strip(), row["answer"].strip(), self.name, {"category": row["category"]})
            for i, row in enumerate(rows)
        ]


def _fault(row: Any) -> str:
    """What is wrong with a row, "" if nothing is."""
    if odd := [name for name in COLUMNS if not isinstance(row[name], str) or not row[name].strip()]:
        return f"wanted text in the column {odd[0]!r}, got {row[odd[0]]!r}"
    return "" if row["category"] in CATEGORIES else f"wanted the category general or safety, got {row['category']!r}"


def load(config: Any) -> SaferPaca:
    """The task as `config` (`path`, `train_examples`, `test_examples`) describes it."""
    if not config.path:
        raise ValueError("task.path: wanted a folder that DatasetDict.save_to_disk wrote, with splits train and test, got none")
    return SaferPaca(config.path, config.train_examples, config.test_examples)
