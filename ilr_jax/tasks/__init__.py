"""The tasks: what is asked, what the reference says, how answers are graded and when two of them say the same.

One file a data set. A task knows no model and no tokenizer; answers are plain text.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from ilr_jax.tasks import gsm8k, saferpaca, wordmath
from ilr_jax.types import Example

FACTORIES = {"gsm8k": gsm8k.load, "wordmath": wordmath.load, "saferpaca": saferpaca.load}


@runtime_checkable
class Task(Protocol):
    """What the experiment needs of a data set; every method is deterministic."""

    @property
    def name(self) -> str: ...

    def train(self) -> list[Example]:
        """Examples with references, to be split into the supervisor's half and the half to label."""
        ...

    def test(self) -> list[Example]:
        """Examples with references that nothing is trained on."""
        ...

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"] | None:
        """Whether answer i is right for example i; None, whatever is asked, if the task has no grader.

        Figures of what is right are null then, the oracle is refused, and test answers are measured by their win rate: the probability that
        the config's judge prefers them to the reference.
        """
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
    """The task `config.name`; config holds `name`, `path`, `train_examples`, `test_examples`, `grader` and `seed`."""
    if config.name not in FACTORIES:
        near = get_close_matches(config.name, FACTORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task.name={config.name!r}: wanted one of {', '.join(FACTORIES)}{hint}")
    return FACTORIES[config.name](config)
