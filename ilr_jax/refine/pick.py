"""Which of several proposals for a question is put to the comparison: the likeliest, or the one that the feedback likes best.

Not here: who proposes how often (`split.assignments`), and whether the picked one is accepted (`methods`).
From: best-of-n sampling, as the paper's reviewers asked for; an ensemble's proposals are picked from in the same way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ilr_jax.refine.agree import AgreeFn, readable, standings
from ilr_jax.types import Answer, Example, Label

PreferFn = Callable[[Sequence[Example], Sequence[str], Sequence[str]], Any]
"""(examples, a, b) -> float [n]: how sure whoever is asked is that b is better than a."""


def likeliest(candidates: Sequence[Answer]) -> str:
    """The text with the highest log-probability of those that ended by themselves and are not blank, if there are any; ties: the first.

    It is that of the whole answer, not of its mean token, so among equally sure answers the shorter one wins. ValueError for no candidate.
    """
    if not candidates:
        raise ValueError("wanted at least one proposal to pick from, got none")
    return max(candidates, key=lambda a: (readable(a.text), a.finished, a.log_prob)).text


def preferred(
    labels: Sequence[Label], candidates: Sequence[Sequence[str]], examples: Sequence[Example], agree_fn: AgreeFn, prefer_fn: PreferFn
) -> tuple[list[str], int]:
    """(the candidate that is most preferred to each label, comparisons asked for).

    A candidate that agrees with the label counts 0.5 and costs no comparison, a blank one comes last; ties: the first. `prefer_fn` is asked
    once, about all candidates that disagree, a text that occurs twice for a question once. ValueError for a question without candidates.
    """
    if not all(candidates):
        raise ValueError("wanted at least one proposal per question to pick from, got none for some")
    distinct = [list(dict.fromkeys(texts)) for texts in candidates]
    owners = [i for i, texts in enumerate(distinct) for _ in texts]
    flat = [text for texts in distinct for text in texts]
    how = standings([labels[i] for i in owners], flat, [examples[i] for i in owners], agree_fn)
    values = np.array([{"agrees": 0.5, "unread": -1.0, "disagrees": np.nan}[standing] for standing in how])
    asked = np.flatnonzero(np.isnan(values))
    if asked.size:
        of = [owners[j] for j in asked]
        values[asked] = prefer_fn([examples[i] for i in of], [labels[i].text for i in of], [flat[j] for j in asked])
    ends = np.cumsum([len(texts) for texts in distinct])
    best = [texts[int(np.argmax(values[end - len(texts) : end]))] for texts, end in zip(distinct, ends, strict=True)]
    return best, int(asked.size)
