"""A refinement round: fold models propose, proposals are judged, labels are replaced, and an audit says why.

Here the rules of `refine` meet models and stages; which method asks for what, and when, is in `rounds`.
From: paper section 3; other proposers, best-of-n and the rules 'filter' and 'add' are what its reviewers asked for.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ilr_jax import feedback
from ilr_jax.files import read_rows, write_rows
from ilr_jax.lab import Facts, Lab
from ilr_jax.refine import audit, card, methods, pairs, pick, select, split
from ilr_jax.roles import fingerprint
from ilr_jax.stages import answer, answers_of, fine_tune
from ilr_jax.types import Answer, Artifact, Audit, Decision, Label, Pair


def propose(lab: Lab, labels: Sequence[Label], r: int) -> list[list[Answer]]:
    """The proposals for every question that has a label, by the models of `refine.proposer`, `refine.samples` from each.

    What may not be trained on is a proposal all the same: agreement and the evaluator decide on it.
    """
    c, ids = lab.config, [label.example_id for label in select.newest(labels)]
    plan = split.assignments(ids, c.refine.proposer, c.folds, c.seed, r)
    seen = [{ids[i] for i in known} for known, _ in plan]
    data = [lab.trainable([label for label in labels if label.example_id in known]) for known in seen]
    strong, name = lab.model("strong"), "sft" if c.refine.proposer == "same" else "folds"  # trained on all labels it is the round's model
    models = fine_tune(lab.bench, strong, c.strong, name, data)
    groups = [[lab.examples[ids[i]] for i in asked] for _, asked in plan]
    how = lab.bench.decoded(c.decoding.proposals, c.refine.samples)
    proposals = {i: [] for i in ids}
    for given in answers_of(answer(lab.bench, strong, "proposals", groups, how, models, purpose=f"proposals-{r}")):
        proposals[given.example_id].append(given)
    return list(proposals.values())


def choose(
    lab: Lab, method: str, labels: Sequence[Label], candidates: Sequence[Sequence[Answer]], evaluator: Artifact | None, r: int
) -> tuple[list[str], int | None]:
    """(The proposal of every question that is put to the round's comparison, how many comparisons that took; None: nobody was asked).

    It is the likeliest one, unless `refine.pick` is 'feedback' and there are several; naive refinement asks nobody.
    """
    if lab.config.refine.pick == "log_prob" or method == "naive" or all(len(some) == 1 for some in candidates):
        return [pick.likeliest(some) for some in candidates], None
    now = select.newest(labels)
    examples, texts = [lab.examples[label.example_id] for label in now], [[answer.text for answer in some] for some in candidates]
    settings = feedback.settings(lab) | {"round": r}
    inputs = (
        {"labels": fingerprint([[x.example_id, x.text] for x in now]), "candidates": fingerprint(texts)} | lab.graded | _asked(evaluator)
    )

    def build(folder: Path) -> Facts:
        best, n = pick.preferred(now, texts, examples, partial(feedback.agree, lab), lambda *pair: feedback.prefers(lab, evaluator, *pair))
        write_rows(folder / "picked.jsonl", [Label(label.example_id, text, "proposal", r) for label, text in zip(now, best, strict=True)])
        return {"compared": n}

    artifact = lab.bench.run("pick", settings, inputs, build)
    picked = read_rows(Path(artifact.folder) / "picked.jsonl", Label)
    return [label.text for label in picked], artifact.manifest["metrics"]["compared"]


def refine(
    lab: Lab, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
) -> tuple[list[Label], Facts]:
    """The labels after round `r` of `method`, and what happened; the stage keeps both, and an audit of every question's newest label."""
    c = lab.config
    settings = {"method": method, "round": r, "rule": c.refine.rule, "alpha": c.alpha}
    settings |= {"match": match} if method == "naive" else {"alpha_of": c.alpha_of, **feedback.settings(lab)}
    inputs = {"labels": fingerprint([[x.example_id, x.text, x.source, x.round] for x in labels]), "proposals": fingerprint(proposals)}
    inputs |= lab.graded | _asked(evaluator)

    def build(folder: Path) -> Facts:
        decisions = _decide(lab, method, select.newest(labels), proposals, evaluator, r, match)
        rows = lab.audited(decisions, c.refine.rule)
        write_rows(folder / "labels.jsonl", select.relabel(labels, decisions, c.refine.rule))
        write_rows(folder / "audit.jsonl", rows)
        return audit.facts(method, rows, c.refine.rule)

    artifact = lab.bench.run("refine", settings, inputs, build)
    files = {"audit": lab.relative(artifact, "audit.jsonl"), "label_file": lab.relative(artifact, "labels.jsonl")}
    return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {**artifact.manifest["metrics"], **files}


def preferences(lab: Lab, facts: Facts) -> list[Pair]:
    """What a round's comparisons say, as preferences between label and proposal: the surest `dpo.share`, or an oracle's decisive ones."""
    rows = read_rows(lab.workdir / facts["audit"], Audit)
    if lab.config.feedback == "oracle":
        return pairs.decisive_preferences([row for row in rows if row.score is not None])
    return pairs.confident_preferences(card.asked(rows), lab.config.seed, lab.config.dpo.share)


def _asked(evaluator: Artifact | None) -> dict[str, str]:
    return {"evaluator": evaluator.manifest["digest"]} if evaluator else {}


def _decide(
    lab: Lab, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
) -> list[Decision]:
    c, examples, agree = lab.config, [lab.examples[label.example_id] for label in labels], partial(feedback.agree, lab)
    if method == "naive":
        return methods.naive_round(labels, proposals, examples, r, c.seed, c.alpha, match)
    if evaluator is None:
        capped, grade = c.alpha_of if c.oracle.capped else "none", lab.right
        return methods.oracle_round(labels, proposals, examples, agree, grade, r, c.seed, c.alpha, capped, c.oracle.error)
    score_fn = feedback.score_fn(lab, evaluator)
    return methods.ilr_round(labels, proposals, examples, agree, score_fn, r, c.alpha, c.alpha_of)
