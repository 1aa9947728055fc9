"""Who says which of two answers is better: the evaluator, trained on answers to the first half of the data.

Not here: the model behind it (`evaluator`), and what its scores lead to (`refinement`, `preference`).
From: paper section 4.1 and appendix (evaluator training data).
"""

import numpy as np

from ilr_jax import evaluator as evaluators
from ilr_jax.lab import Lab
from ilr_jax.refine import judge, pairs
from ilr_jax.stages import SNAPSHOTS, answer, answers_of
from ilr_jax.types import Artifact


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
