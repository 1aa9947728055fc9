"""A refinement round: fold models propose, proposals are judged, labels are replaced, and an audit says why.

Here the rules of `refine` meet models and stages; which method asks for what, and when, is in `rounds`.
From: paper section 3.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ilr_jax import feedback
from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab
from ilr_jax.refine import audit, methods, split
from ilr_jax.roles import fingerprint
from ilr_jax.stages import answer, answers_of, fine_tune
from ilr_jax.types import Artifact, Label


def propose(lab: Lab, labels: Sequence[Label], r: int) -> list[str]:
    """A proposal for every label, by a model that has not seen it: fold k's come from the model of all other folds.

    What may not be trained on is a proposal all the same: agreement and the evaluator decide on it.
    """
    folds = split.folds([label.example_id for label in labels], lab.config.folds, lab.config.seed, r)
    others = [[labels[i] for j, fold in enumerate(folds) if j != k for i in fold] for k in range(len(folds))]
    strong = lab.model("strong")
    models = fine_tune(lab.bench, strong, lab.config.strong, "folds", [lab.trainable(part) for part in others])
    groups = [[lab.examples[labels[i].example_id] for i in fold] for fold in folds]
    how = lab.decoded(lab.config.decoding.proposals)
    answers = answers_of(answer(lab.bench, strong, "proposals", groups, how, models, purpose=f"proposals-{r}"))
    proposals = [""] * len(labels)
    for i, given in zip([i for fold in folds for i in fold], answers, strict=True):
        proposals[i] = given.text
    return proposals


def refine(
    lab: Lab, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
) -> tuple[list[Label], Facts]:
    """The labels after round `r` of `method`, and what happened; the stage keeps both, and an audit of every label."""
    c = lab.config
    settings = {"method": method, "round": r, "alpha": c.alpha, "alpha_of": c.alpha_of, "match": match}
    settings |= {"feedback": c.feedback, "oracle": c.oracle.to_dict(), **feedback.likeness(lab)}
    inputs = {"labels": fingerprint([[x.example_id, x.text, x.source, x.round] for x in labels]), "proposals": fingerprint(proposals)}
    inputs |= lab.graded | ({"evaluator": evaluator.manifest["digest"]} if evaluator else {})

    def build(folder: Path) -> Facts:
        after, decisions = _decide(lab, method, labels, proposals, evaluator, r, match)
        rows = lab.audited(labels, after, decisions)
        write_rows(folder / "labels.jsonl", after)
        write_rows(folder / "audit.jsonl", rows)
        return audit.facts(method, rows)

    artifact = lab.bench.run("refine", settings, inputs, build)
    files = {"audit": lab.relative(artifact, "audit.jsonl"), "label_file": lab.relative(artifact, "labels.jsonl")}
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {**artifact.manifest["metrics"], **files}


def _decide(
    lab: Lab, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
) -> methods.Refined:
    c, examples, agree = lab.config, [lab.examples[label.example_id] for label in labels], partial(feedback.agree, lab)
    if method == "naive":
        return methods.naive_round(labels, proposals, examples, r, c.seed, c.alpha, match)
    if evaluator is None:
        capped = c.alpha_of if c.oracle.capped else "none"
        return methods.oracle_round(labels, proposals, examples, agree, lab.task.grade, r, c.seed, c.alpha, capped)
    score_fn = feedback.score_fn(lab, evaluator)
    return methods.ilr_round(labels, proposals, examples, agree, score_fn, r, c.alpha, c.alpha_of)
