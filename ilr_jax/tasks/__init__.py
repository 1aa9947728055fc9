"""The tasks: what is asked, what the reference says, how answers are graded and when two of them say the same.

One file a data set. A task knows no model and no tokenizer; answers are plain text.
"""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import bird, graders, gsm8k, jsonl, minisql, saferpaca, wordmath
from ilr_jax.types import Example

FACTORIES = {
    "gsm8k": gsm8k.load,
    "wordmath": wordmath.load,
    "bird": bird.load,
    "minisql": minisql.load,
    "jsonl": jsonl.load,
    "saferpaca": saferpaca.load,
}
# Of each task what `task.grader` may be; the first one is meant where it is empty.
GRADERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gsm8k", "wordmath"), tuple(gsm8k.GRADERS)),
    **dict.fromkeys(("bird", "minisql"), bird.GRADERS),
    "jsonl": graders.NAMES,
    "saferpaca": (),
}
PLACES = ("path", "test_path", "databases")  # fields that hold files or folders


@runtime_checkable
class Task(Protocol):
    """What the experiment needs of a data set; every method is deterministic."""

    @property
    def name(self) -> str: ...

    def train(self) -> list[Example]:
        """Examples to be split into those that the supervisor learns from, which have references, and those to label."""
        ...

    def test(self) -> list[Example]:
        """Examples with references that nothing is trained on; there may be none."""
        ...

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"] | None:
        """Whether answer i is right for example i; None, whatever is asked, if the task has no grader.

        Figures of what is right are null then, the oracle is refused, and test answers are measured by their win rate: the probability that
        the config's judge prefers them to the reference.
        """
        ...

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> Mapping[str, Bool[np.ndarray, " n"]]:
        """What is reported of answers beside `grade`, by name: whether another grader takes them, how they failed; or nothing."""
        ...

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"] | None:
        """Whether a[i] and b[i] say the same, so that a comparison of them is not worth asking for.

        None, whatever is asked, if nothing can be read off an answer: then the half of the pairs that is more alike counts as agreed.
        """
        ...

    def usable(self, answer: str) -> bool:
        """Whether an answer may be trained on."""
        ...


def load(config: Any) -> Task:
    """The task `config.name`; config holds the fields of `configs.base` under `task`, of which each task reads its own; ~ is the home."""
    if config.name not in FACTORIES:
        near = get_close_matches(config.name, FACTORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task.name={config.name!r}: wanted one of {', '.join(FACTORIES)}{hint}")
    config = deepcopy(config)
    for name in PLACES:
        setattr(config, name, os.path.expanduser(getattr(config, name, None) or ""))
    return FACTORIES[config.name](config)
