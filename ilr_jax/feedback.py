"""Who says which of two answers is better: the evaluator, trained on answers to the first half of the data, or the oracle, who grades.

The oracle stands as None beside the evaluator's artifact. Not here: the model behind the evaluator (`evaluator`), and what is made of what
they say (`refinement`, `preference`). From: paper section 4.1 and appendix (evaluator training data).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ilr_jax import evaluator as evaluators
from ilr_jax.lab import Lab
from ilr_jax.refine import judge, pairs
from ilr_jax.stages import SNAPSHOTS, answer, answers_of
from ilr_jax.types import Artifact, Example


def source(lab: Lab) -> Artifact | None:
    """Who gives the feedback: the evaluator, trained if need be, or None for the oracle."""
    return evaluator(lab) if lab.config.feedback == "evaluator" else None


def evaluator(lab: Lab) -> Artifact:
    """The comparison model, trained on answers of the weak model's snapshots to the first half, all snapshots sampled in one pass."""
    c, n = lab.config.evaluator, lab.config.evaluator.checkpoints
    how = lab.sampled(c.temperature)
    name, model = "evaluator-answers", lab.model("weak")
    sampled = answer(lab.bench, model, name, [lab.d1] * n, how, lab.weak_supervisor(), SNAPSHOTS, purpose=name)
    answers = answers_of(sampled)
    grades = lab.grade(answers).reshape(n, -1).T
    texts = np.array([a.text for a in answers], object).reshape(n, -1).T
    made = pairs.evaluator_pairs(lab.d1, texts.tolist(), grades.tolist(), lab.config.seed)
    train, held_out = pairs.split_pairs(made, lab.config.seed, c.validation)
    return evaluators.train(lab.bench, lab.model("evaluator"), pairs.both_orders(train), pairs.both_orders(held_out))


def score_fn(lab: Lab, evaluator: Artifact) -> judge.ScoreFn:
    """The trained evaluator as a function of (question, A, B)."""
    return evaluators.score_fn(lab.bench, lab.model("evaluator"), evaluator)


def settings(lab: Lab) -> dict[str, object]:
    """What of the config a verdict depends on, for the stages that ask for some."""
    return {"feedback": lab.config.feedback} | ({"oracle": lab.config.oracle.to_dict()} if lab.config.feedback == "oracle" else {})


def prefers(
    lab: Lab, evaluator: Artifact | None, examples: Sequence[Example], a: Sequence[str], b: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """How sure whoever is asked is that `b` is better than `a`, from 0 to 1; an oracle's verdict on b is 1 or 0."""
    ids, c = [e.id for e in examples], lab.config
    if evaluator is None:
        return (lab.task.grade(b, examples) != judge.flipped(ids, a, b, c.oracle.error, c.seed)).astype(float)
    comparisons = judge.symmetric_score(score_fn(lab, evaluator), ids, [e.prompt for e in examples], a, b)
    return np.array([comparison.score for comparison in comparisons])
