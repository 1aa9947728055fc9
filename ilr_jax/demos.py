"""The first labels: which demonstrations the strong model starts from.

Not here: how the weak supervisor is trained and answers (`lab`), and what becomes of the labels (`refinement`).
From: paper section 4.1 (weak labels) and its experiments with correct demonstrations; references, and a share of them corrupted, are ours.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab, reference
from ilr_jax.refine import methods
from ilr_jax.roles import fingerprint
from ilr_jax.stages import answers_of
from ilr_jax.types import Decision, Label

ORIGINS = {"weak": "the weak supervisor's answer", "given": "came with the data"}


def first_labels(lab: Lab) -> tuple[list[Label], Facts]:
    """The demonstrations, as `demos` says: the data's own, the weak supervisor's, those of them that are right, or the references.

    Of the references a share `demos_error` is replaced by wrong answers of the supervisor; without it, the supervisor is not asked.
    """
    c = lab.config
    given, inputs = _demonstrations(lab)

    def build(folder: Path) -> None:
        labels, decisions = _chosen(lab, given)
        write_rows(folder / "labels.jsonl", labels)
        write_rows(folder / "audit.jsonl", lab.audited(decisions))

    settings = {"demos": c.demos} | ({"error": c.demos_error} if c.demos == "gold" else {})
    artifact = lab.bench.run("first-labels", settings, {**inputs, **lab.graded}, build)
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {"label_file": lab.relative(artifact, "labels.jsonl")}


def _demonstrations(lab: Lab) -> tuple[list[Label], Mapping[str, str]]:
    """The labels before anyone has looked at them, none where nobody is asked, and the hash of where they come from."""
    if lab.config.demos == "given":
        given = [Label(e.id, e.given or "", "given") for e in lab.d2]
        return given, {"given": fingerprint([[x.example_id, x.text] for x in given])}
    if lab.config.demos == "gold" and not lab.config.demos_error:
        return [], {}
    answers = lab.weak_labels()
    return [Label(a.example_id, a.text, "weak") for a in answers_of(answers)], {"answers": answers.manifest["digest"]}


def _chosen(lab: Lab, given: list[Label]) -> tuple[list[Label], list[Decision]]:
    """The first labels out of those given, and why each."""
    if lab.config.demos == "correct":
        return methods.correct_demos(given, lab.right([x.text for x in given], [lab.examples[x.example_id] for x in given]))
    if lab.config.demos != "gold":
        return given, [Decision(x.example_id, 0, x.text, "", False, ORIGINS[x.source]) for x in given]
    gold = [Label(example.id, reference(example), "reference") for example in lab.d2]
    grades = lab.right([x.text for x in given], [lab.examples[x.example_id] for x in given]) if given else np.ones(len(gold), bool)
    return methods.gold_demos(given or gold, [label.text for label in gold], grades, lab.config.demos_error, lab.config.seed)
