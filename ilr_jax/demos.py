"""The first labels: which demonstrations the strong model starts from.

Not here: how the weak supervisor is trained and answers (`lab`), and what becomes of the labels (`refinement`).
From: paper section 4.1 (weak labels) and its experiments with correct demonstrations.
"""

from pathlib import Path

from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab
from ilr_jax.refine import methods
from ilr_jax.stages import answers_of
from ilr_jax.types import Decision, Label


def first_labels(lab: Lab) -> tuple[list[Label], Facts]:
    """The unreliable demonstrations: the weak supervisor's answers to the unlabelled half, or those of them that are right."""
    answers, settings = lab.weak_labels(), {"demos": lab.config.demos}

    def build(folder: Path) -> None:
        given = [Label(a.example_id, a.text, "weak") for a in answers_of(answers)]
        labels, decisions = given, [Decision(x.example_id, 0, x.text, "", False, "the weak supervisor's answer") for x in given]
        if lab.config.demos == "correct":
            labels, decisions = methods.correct_demos(given, lab.grade_labels(given))
        write_rows(folder / "labels.jsonl", labels)
        write_rows(folder / "audit.jsonl", lab.audit(given, given, decisions))

    artifact = lab.bench.run("first-labels", settings, {"answers": answers.manifest["digest"], **lab.graded}, build)
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {"label_file": lab.relative(artifact, "labels.jsonl")}
