"""One round of each way to refine labels, as a pure function: labels and proposals in, a decision on each of them out.

Not here: training, sampling, what an accepted proposal does to the labels (`select.relabel`), and DPO's data (`pairs`). `labels`,
`proposals` and `examples` are aligned, one label a question; a proposal is None or blank where there is none. Only the oracle and the
demonstrations look at what is right.
From: paper section 3 (ILR) and its experiments with naive refinement, oracle feedback and correct demonstrations.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from ilr_jax.refine.agree import AgreeFn, as_flags, check_aligned, readable, standings
from ilr_jax.refine.judge import ScoreFn, flipped, symmetric_score
from ilr_jax.refine.select import check_alpha, judged, share_of, threshold, unasked
from ilr_jax.refine.split import shuffled
from ilr_jax.types import Decision, Example, Label

GradeFn = Callable[[Sequence[str], Sequence[Example]], Any]
"""(answers, examples) -> bool [n]: which answers are right."""


def ilr_round(
    labels: Sequence[Label],
    proposals: Sequence[str | None],
    examples: Sequence[Example],
    agree_fn: AgreeFn,
    score_fn: ScoreFn,
    round: int,
    alpha: float = 0.15,
    alpha_of: str = "disagreeing",
) -> list[Decision]:
    """Judge the proposals that disagree with their label, in both orders, and accept those above the threshold.

    A label whose comparison got no valid answer stays, and does not count for the threshold.
    """
    decisions, asked = _before_asking(labels, proposals, examples, agree_fn, round)
    comparisons = symmetric_score(
        score_fn,
        ids=[labels[i].example_id for i in asked],
        prompts=[examples[i].prompt for i in asked],
        a=[labels[i].text for i in asked],
        b=[decisions[i].proposal for i in asked],
    )
    answered = [(i, c) for i, c in zip(asked, comparisons, strict=True) if c is not None]  # the others stay "not judged"
    limit = threshold(np.array([c.score for _, c in answered]), alpha, alpha_of, len(labels))
    for i, comparison in answered:
        decisions[i] = judged(comparison, limit, round)
    return decisions


def naive_round(
    labels: Sequence[Label],
    proposals: Sequence[str | None],
    examples: Sequence[Example],
    round: int,
    seed: int,
    alpha: float = 0.15,
    match_count: int | None = None,
) -> list[Decision]:
    """Accept a random `alpha` of all labels' proposals, asking nobody; `match_count` gives their number instead.

    Drawn among the proposals that are not blank; if these are fewer than wanted, all are taken.
    """
    check_aligned(labels, proposals, examples)
    wanted = share_of(len(labels), alpha) if match_count is None else match_count
    order = shuffled([label.example_id for label in labels], seed, "naive", round)
    drawn = set([i for i in order if readable(proposals[i])][:wanted])
    decisions = []
    for i, (label, proposal) in enumerate(zip(labels, proposals, strict=True)):
        decision = unasked(label, proposal, "disagrees" if readable(proposal) else "unread", round)
        if i in drawn:
            decision = replace(decision, accepted=True, reason=f"drawn at random with {len(drawn)} of {len(labels)} labels")
        decisions.append(decision)
    return decisions


def oracle_round(
    labels: Sequence[Label],
    proposals: Sequence[str | None],
    examples: Sequence[Example],
    agree_fn: AgreeFn,
    grade_fn: GradeFn,
    round: int,
    seed: int = 0,
    alpha: float = 1.0,
    alpha_of: str = "none",
    error: float = 0.0,
) -> list[Decision]:
    """Accept exactly the right ones among the proposals that disagree with their label; a share `error` of these verdicts is wrong.

    A verdict is a score of 1 or 0 against the threshold 0.5: it knows no degrees, so alpha is no quantile here. The published runs set no
    cap. With `alpha_of` 'disagreeing' or 'all', at most `alpha` of these are accepted, drawn by seed.
    """
    check_alpha(alpha, alpha_of)
    decisions, asked = _before_asking(labels, proposals, examples, agree_fn, round)
    said = _verdicts(
        [labels[i] for i in asked], [decisions[i].proposal for i in asked], [examples[i] for i in asked], grade_fn, error, seed
    )
    favoured = {i for i, (flag, _) in zip(asked, said, strict=True) if flag}
    of = {"disagreeing": len(asked), "all": len(labels)}
    cap = share_of(of[alpha_of], alpha) if alpha_of != "none" else len(favoured)
    order = shuffled([label.example_id for label in labels], seed, "oracle", round)
    taken = set([i for i in order if i in favoured][:cap])
    for i, (flag, reason) in zip(asked, said, strict=True):
        late = f", but {cap} were accepted already" if i in favoured - taken else ""
        decisions[i] = replace(decisions[i], accepted=i in taken, reason=reason + late, score=float(flag), threshold=0.5)
    return decisions


def _verdicts(
    labels: Sequence[Label], proposals: Sequence[str], examples: Sequence[Example], grade_fn: GradeFn, error: float, seed: int
) -> list[tuple[bool, str]]:
    """Whether the oracle favours each proposal, and why."""
    if not labels:
        return []
    right = as_flags(grade_fn(proposals, examples), len(labels), "grade_fn")
    turned = flipped([e.id for e in examples], [label.text for label in labels], proposals, error, seed)
    reasons = [f"the proposal is {'right' if flag else 'wrong'}" for flag in right]
    rows = zip(right, turned.tolist(), reasons, strict=True)
    return [(flag != flip, f"{reason}; the verdict is turned round" if flip else reason) for flag, flip, reason in rows]


def correct_demos(labels: Sequence[Label], grades: Bool[Any, " N"], round: int = 0) -> tuple[list[Label], list[Decision]]:
    """Only the labels graded right; one decision per label given, those that go say so. ValueError if none is right."""
    right = as_flags(grades, len(labels), "the grades")
    if not any(right):
        raise ValueError(
            f"wanted some right labels for demos='correct', got 0 of {len(labels)}; use demos='weak' or a stronger weak supervisor"
        )
    reasons = ["kept: graded right" if flag else "dropped: graded wrong" for flag in right]
    decisions = [Decision(label.example_id, round, label.text, "", False, why) for label, why in zip(labels, reasons, strict=True)]
    return [label for label, flag in zip(labels, right, strict=True) if flag], decisions


def gold_demos(
    labels: Sequence[Label], references: Sequence[str], grades: Bool[Any, " N"], error: float, seed: int
) -> tuple[list[Label], list[Decision]]:
    """The references as labels, but for a share `error` of the questions, drawn by seed, which keep their wrong label.

    `labels` are the supervisor's, `grades` tell which are right. ValueError if fewer than the share are wrong.
    """
    wrong = [not flag for flag in as_flags(grades, len(labels), "the grades")]
    wanted = share_of(len(labels), error)
    if sum(wrong) < wanted:
        raise ValueError(
            f"demos_error={error}: wanted {wanted} wrong answers of the supervisor for {len(labels)} questions, got {sum(wrong)}; "
            "lower it, or use a weaker weak supervisor"
        )
    drawn = set([i for i in shuffled([label.example_id for label in labels], seed, "gold") if wrong[i]][:wanted])
    gold = [Label(label.example_id, text, "reference") for label, text in zip(labels, references, strict=True)]
    made = [labels[i] if i in drawn else gold[i] for i in range(len(labels))]
    reasons = ["a wrong answer of the supervisor" if i in drawn else "the reference" for i in range(len(labels))]
    return made, [Decision(label.example_id, 0, label.text, "", False, why) for label, why in zip(made, reasons, strict=True)]


def _before_asking(
    labels: Sequence[Label], proposals: Sequence[str | None], examples: Sequence[Example], agree_fn: AgreeFn, round: int
) -> tuple[list[Decision], list[int]]:
    """A decision to keep each label, and the positions where the proposal disagrees, whose decision is still open."""
    standing = standings(labels, proposals, examples, agree_fn)
    rows = zip(labels, proposals, standing, strict=True)
    decisions = [unasked(label, proposal, how, round) for label, proposal, how in rows]
    return decisions, [i for i, how in enumerate(standing) if how == "disagrees"]
