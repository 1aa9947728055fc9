"""The first labels: which demonstrations the strong model starts from.

Not here: how the weak supervisor is trained and answers (`lab`), and what becomes of the labels (`refinement`).
From: paper section 4.1 (weak labels) and its experiments with correct demonstrations; references, and a share of them corrupted, are ours.
"""

from pathlib import Path

import numpy as np

from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab, reference
from ilr_jax.refine import methods
from ilr_jax.roles import fingerprint
from ilr_jax.stages import answers_of
from ilr_jax.types import Decision, Label


def first_labels(lab: Lab) -> tuple[list[Label], Facts]:
    """The demonstrations, as `demos` says: the weak supervisor's answers, those of them that are right, or the references.

    Of the references a share `demos_error` is replaced by wrong answers of the supervisor; without it, the supervisor is not asked.
    """
    c = lab.config
    settings = {"demos": c.demos, "task": c.task.to_dict()} | ({"error": c.demos_error} if c.demos == "gold" else {})
    answers = None if c.demos == "gold" and not c.demos_error else lab.weak_labels()
    inputs = {"answers": answers.manifest["digest"]} if answers else {"examples": fingerprint([[e.id, e.reference] for e in lab.d2])}

    def build(folder: Path) -> None:
        given = [Label(a.example_id, a.text, "weak") for a in answers_of(answers)] if answers else []
        labels, decisions = _chosen(lab, given)
        write_rows(folder / "labels.jsonl", labels)
        write_rows(folder / "audit.jsonl", lab.audit(decisions))

    artifact = lab.bench.run("first-labels", settings, inputs, build)
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {"label_file": lab.relative(artifact, "labels.jsonl")}


def _chosen(lab: Lab, given: list[Label]) -> tuple[list[Label], list[Decision]]:
    """The first labels out of the supervisor's, and why each; `given` is empty where it was not asked."""
    if lab.config.demos == "correct":
        return methods.correct_demos(given, lab.grade_labels(given))
    if lab.config.demos == "weak":
        return given, [Decision(x.example_id, 0, x.text, "", False, "the weak supervisor's answer") for x in given]
    gold = [Label(example.id, reference(example), "reference") for example in lab.d2]
    grades = lab.grade_labels(given) if given else np.ones(len(gold), bool)
    return methods.gold_demos(given or gold, [label.text for label in gold], grades, lab.config.demos_error, lab.config.seed)
