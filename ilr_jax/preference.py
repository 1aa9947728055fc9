"""A preference round: the policy's own samples in pairs, the comparisons of them, and DPO on the surest.

Here the rules of `refine.pairs` meet models and stages; which policy a round starts from is in `rounds`.
From: paper appendix (SFT + DPO).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ilr_jax import dpo, feedback
from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab
from ilr_jax.refine import judge, pairs
from ilr_jax.refine.card import card
from ilr_jax.stages import answer, answers_of
from ilr_jax.types import Artifact, Comparison, Example, Pair


def prefer(lab: Lab, policy: Artifact, evaluator: Artifact | None, r: int) -> tuple[list[Pair], Facts]:
    """The round's preferences out of the policy's own samples, and what was asked: how much, how often rightly, and the file of it."""
    c = lab.config.dpo
    how, purpose = lab.bench.sampled(c.temperature, c.samples), f"dpo-samples-{r}"
    sampled = answer(lab.bench, lab.model("strong"), "dpo-samples", [lab.d2], how, policy, purpose=purpose)
    answers = answers_of(sampled)
    texts = np.array([a.text for a in answers], object).reshape(len(lab.d2), c.samples).tolist()
    compared = pairs.disjoint_pairs(lab.d2, texts)
    settings = {"round": r, **feedback.settings(lab)} | ({"share": c.share, "scoring": c.scoring} if evaluator else {})
    settings |= {"share": c.share} if evaluator is None and lab.config.oracle.capped else {}
    inputs = {"samples": sampled.manifest["digest"], **lab.graded}
    inputs |= {"evaluator": evaluator.manifest["digest"]} if evaluator else {}

    def build(folder: Path) -> Facts:
        chosen, facts, asked = _preferences(lab, compared, evaluator)
        write_rows(folder / "preferences.jsonl", chosen)
        write_rows(folder / "comparisons.jsonl", asked)
        return facts

    artifact = lab.bench.run("preferences", settings, inputs, build)
    facts = {**artifact.manifest["metrics"], "comparisons": lab.relative(artifact, "comparisons.jsonl")}
    return read_rows(Path(artifact.folder) / "preferences.jsonl", Pair), facts


def _preferences(
    lab: Lab, compared: Sequence[tuple[Example, str, str]], evaluator: Artifact | None
) -> tuple[list[Pair], Facts, list[Comparison]]:
    """The surest comparisons as preferences, counts, and all that got a verdict, with what is right."""
    c, (examples, a, b) = lab.config, (list(column) for column in zip(*compared, strict=True))
    ids, prompts = [e.id for e in examples], [e.prompt for e in examples]
    right = [lab.flags(a, examples), lab.flags(b, examples)]
    if evaluator is None:
        turned, (is_a, is_b) = judge.flipped(ids, a, b, c.oracle.error, c.seed), np.array(right, bool)
        said_a, said_b = np.where(turned, is_b, is_a), np.where(turned, is_a, is_b)
        share = c.dpo.share if c.oracle.capped else 1.0
        chosen = pairs.oracle_preferences(compared, said_a, said_b, c.seed, share)
        rows = zip(ids, prompts, a, b, (0.5 + (said_b.astype(float) - said_a) / 2).tolist(), strict=True)
        comparisons = [Comparison(i, prompt, x, y, None, None, score) for i, prompt, x, y, score in rows]
    else:
        comparisons = judge.symmetric_score(feedback.score_fn(lab, evaluator), ids, prompts, a, b, c.dpo.scoring)
        chosen = pairs.confident_preferences([x for x in comparisons if x is not None], c.seed, c.dpo.share)
    graded = zip(comparisons, *right, strict=True)
    answered = [replace(x, a_correct=a_is, b_correct=b_is) for x, a_is, b_is in graded if x is not None]
    found = card(answered) or {}
    facts = {"compared": len(compared), "preferences": len(chosen), "unanswered": len(compared) - len(answered)}
    return chosen, {**facts, "evaluator_accuracy": found.get("accuracy"), "evaluator_pairs": found.get("pairs", 0)}, answered


def optimise(lab: Lab, policy: Artifact, preferences: Sequence[Pair]) -> Artifact:
    """The policy after this round's DPO; as it was if nothing is preferred, as when all samples say the same."""
    return dpo.optimise(lab.bench, lab.model("strong"), policy, preferences) if preferences else policy
