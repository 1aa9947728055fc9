"""The first labels: which demonstrations the strong model starts from.

Not here: how the weak supervisor is trained and answers (`lab`), and what becomes of the labels (`refinement`).
From: paper section 4.1 (weak labels) and its experiments with correct demonstrations.
"""

from collections.abc import Mapping
from pathlib import Path

from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab
from ilr_jax.refine import methods
from ilr_jax.roles import fingerprint
from ilr_jax.stages import answers_of
from ilr_jax.types import Decision, Label

ORIGINS = {"weak": "the weak supervisor's answer", "given": "came with the data"}


def first_labels(lab: Lab) -> tuple[list[Label], Facts]:
    """The unreliable demonstrations: the data's own, or the weak supervisor's answers, all or those that are right."""
    given, inputs = _demonstrations(lab)

    def build(folder: Path) -> None:
        labels, decisions = given, [Decision(x.example_id, 0, x.text, "", False, ORIGINS[x.source]) for x in given]
        if lab.config.demos == "correct":
            grades = lab.grade_labels(given)
            assert grades is not None  # `feedback.check`
            labels, decisions = methods.correct_demos(given, grades)
        write_rows(folder / "labels.jsonl", labels)
        write_rows(folder / "audit.jsonl", lab.audited(given, given, decisions))

    artifact = lab.bench.run("first-labels", {"demos": lab.config.demos}, {**inputs, **lab.graded}, build)
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {"label_file": lab.relative(artifact, "labels.jsonl")}


def _demonstrations(lab: Lab) -> tuple[list[Label], Mapping[str, str]]:
    """The labels before anyone has looked at them, and the hash of where they come from."""
    if lab.config.demos == "given":
        given = [Label(e.id, e.given or "", "given") for e in lab.d2]
        return given, {"given": fingerprint([[x.example_id, x.text] for x in given])}
    answers = lab.weak_labels()
    return [Label(a.example_id, a.text, "weak") for a in answers_of(answers)], {"answers": answers.manifest["digest"]}
