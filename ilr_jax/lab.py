"""The experiment's apparatus: the task's splits, the three models, and each part of a round in the words of the method.

Every method maps records to records (labels, answers, preferences) and keeps its work in stages; `rounds` calls them in order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax import evaluator as evaluators
from ilr_jax import tasks
from ilr_jax.files import read_rows, write_rows
from ilr_jax.judges import Judges
from ilr_jax.refine import judge, methods, pairs, select, split
from ilr_jax.roles import Model, fingerprint
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.stages import Bench, answer, answers_of, fine_tune, optimise
from ilr_jax.store import Store
from ilr_jax.types import Answer, Artifact, Audit, Config, Decision, Example, Label, Pair

Facts = Mapping[str, Any]


class Lab:
    """Task, models and store of one config in one workdir; models are loaded when first used."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir
        self.bench = Bench(Store(workdir), config)
        self.task = tasks.load(config.task)
        self.d1, self.d2 = split.train_split(self.task.train(), config.seed)
        self.tests = self.task.test()
        self.examples = {example.id: example for example in [*self.d1, *self.d2, *self.tests]}
        self._models: dict[str, Model] = {}
        self._loaded: dict[Model, Any] = {}
        self.judges = Judges(self.bench, self.task, self.model, lambda: self.evaluator())

    def model(self, role: str) -> Model:
        """The base model of `weak`, `strong`, `evaluator` or `judge`; one copy where two roles share it."""
        source = self.config[role].model
        if source not in self._models:
            self._models[source] = Model(source, self.bench.dtype, self._loaded)
        return self._models[source]

    def check(self) -> None:
        """Raise ValueError for what would fail later: weights that do not fit their config, a missing reference, a text too long."""
        self.bench.check([self.model(role).config for role in ("weak", "strong", "evaluator")])
        most = self.config.sft.max_length
        for role in ("weak", "strong", "evaluator"):
            self.model(role).check_weights()
        for example in [*self.d1, *self.tests]:
            reference(example)
        if len(self.d2) < self.config.folds:
            raise ValueError(f"folds={self.config.folds}: wanted at most the {len(self.d2)} examples to be labelled; use more of them")
        self.judges.check(self.d1, self.d2, self.tests)
        self.model("weak").check_prompts([*self.d1, *self.d2], most)
        self.model("weak").check_prompts(self.tests)
        self.model("strong").check_prompts(self.d2, most)
        self.model("strong").check_prompts(self.tests)

    def relative(self, artifact: Artifact, file: str) -> str:
        """The path of an artifact's file within the workdir, as records name it."""
        return (Path(artifact.folder) / file).relative_to(self.workdir).as_posix()

    # What is right, None where the task has no grader: for reports, oracles and the evaluator's data only.

    def grade(self, answers: Sequence[Answer]) -> Bool[np.ndarray, " n"] | None:
        """Which answers are right."""
        return self.task.grade([a.text for a in answers], [self.examples[a.example_id] for a in answers])

    def grade_labels(self, labels: Sequence[Label]) -> Bool[np.ndarray, " n"] | None:
        """Which labels are right."""
        return self.task.grade([label.text for label in labels], [self.examples[label.example_id] for label in labels])

    def win_rates(self, answers: Sequence[Answer]) -> Float[np.ndarray, " n"]:
        """P(an answer is better than the reference), by the config's judge; NaN where it gave no valid verdict."""
        return self.judges.win_rates([a.text for a in answers], [self.examples[a.example_id] for a in answers])

    # How answers are made.

    def _beam(self) -> BeamSettings:
        c = self.config
        return BeamSettings(c.decoding.max_new_tokens, c.decoding.beams, c.decoding.length_rule, prompts=c.compute.beam_batch)

    def _sampled(self, temperature: float, n: int = 1) -> SamplingSettings:
        c = self.config.decoding
        return SamplingSettings(c.max_new_tokens, temperature, c.top_k or None, c.top_p, n, slots=self.config.compute.slots)

    def _decoded(self, how: str) -> BeamSettings | SamplingSettings:
        return self._beam() if how == "beam" else self._sampled(self.config.decoding.temperature)

    # The weak supervisor and the evaluator (paper section 4.1 and appendix).

    def weak_supervisor(self) -> Artifact:
        """The weak model on the first half's references, with the snapshots that the evaluator's data comes from."""
        data = [(example.prompt, reference(example)) for example in self.d1]
        return fine_tune(self.bench, self.model("weak"), self.config.weak, "weak", [data], self.config.evaluator.checkpoints)

    def weak_labels(self) -> Artifact:
        """The weak supervisor's answers to the second half."""
        name, how = "weak-labels", self._decoded(self.config.decoding.labels)
        return answer(self.bench, self.model("weak"), name, [self.d2], how, self.weak_supervisor(), purpose=name)

    def test_supervisor(self) -> list[Answer]:
        """The weak supervisor's own answers to the test split, by beam search: what the strong model has to beat."""
        return answers_of(answer(self.bench, self.model("weak"), "weak-test", [self.tests], self._beam(), self.weak_supervisor()))

    def first_labels(self) -> tuple[list[Label], Facts]:
        """The unreliable demonstrations: the weak supervisor's answers to the unlabelled half, or those of them that are right."""
        answers, settings = self.weak_labels(), {"demos": self.config.demos, "task": self.config.task.to_dict()}

        def build(folder: Path) -> None:
            given = [Label(a.example_id, a.text, "weak") for a in answers_of(answers)]
            labels, decisions = given, [Decision(x.example_id, 0, x.text, "", False, "the weak supervisor's answer") for x in given]
            if self.config.demos == "correct":
                labels, decisions = methods.correct_demos(given, self.grade_labels(given))
            write_rows(folder / "labels.jsonl", labels)
            write_rows(folder / "audit.jsonl", self._audit(given, given, decisions))

        artifact = self.bench.run("first-labels", settings, {"answers": answers.manifest["digest"]}, build)
        return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {"label_file": self.relative(artifact, "labels.jsonl")}

    def evaluator(self) -> Artifact:
        """The comparison model, trained on answers to the first half: graded ones of the weak model's snapshots, or those of two models."""
        c, weak = self.config.evaluator, self.model("weak")
        how = self._sampled(c.temperature)
        if self.judges.graded:
            made = evaluators.graded_pairs(self.bench, weak, self.d1, how, self.weak_supervisor(), self.task.grade)
        else:
            made = evaluators.category_pairs(self.bench, weak, self.d1, how)
        train, held_out = pairs.split_pairs(made, self.config.seed, c.validation)
        return evaluators.train(self.bench, self.model("evaluator"), pairs.both_orders(train), pairs.both_orders(held_out))

    def score_fn(self, comparer: Artifact) -> judge.ScoreFn:
        """The trained evaluator or the judge as a function of (question, A, B)."""
        return self.judges.score_fn(comparer)

    # Fine-tuning on labels, and the test split.

    def _trainable(self, labels: Sequence[Label]) -> list[tuple[str, str]]:
        """(question, answer) of the labels that may be trained on. ValueError if there are none."""
        usable = [(self.examples[label.example_id].prompt, label.text) for label in labels if self.task.usable(label.text)]
        if not usable:
            raise ValueError(
                f"{self.bench.place}: wanted labels that {self.task.name} can train on, got none in {len(labels)}, the first: "
                f"{[x.text[:80] for x in labels[:1]]}; train the supervisor longer (weak.epochs, weak.learning_rate) or raise "
                "decoding.max_new_tokens"
            )
        return usable

    def fine_tune(self, labels: Sequence[Label]) -> Artifact:
        """The strong model on all labels that may be trained on, from the base."""
        return fine_tune(self.bench, self.model("strong"), self.config.strong, "sft", [self._trainable(labels)])

    def test(self, model: Artifact) -> tuple[list[Answer], Artifact]:
        """The strong model's answers to the test split, by beam search."""
        artifact = answer(self.bench, self.model("strong"), "test", [self.tests], self._beam(), model)
        return answers_of(artifact), artifact

    # A refinement round (paper section 3).

    def propose(self, labels: Sequence[Label], r: int) -> list[str]:
        """A proposal for every label, by a model that has not seen it: fold k's come from the model of all other folds.

        What may not be trained on is a proposal all the same: agreement and the evaluator decide on it.
        """
        folds = split.folds([label.example_id for label in labels], self.config.folds, self.config.seed, r)
        others = [[labels[i] for j, fold in enumerate(folds) if j != k for i in fold] for k in range(len(folds))]
        strong = self.model("strong")
        models = fine_tune(self.bench, strong, self.config.strong, "folds", [self._trainable(part) for part in others])
        groups = [[self.examples[labels[i].example_id] for i in fold] for fold in folds]
        how = self._decoded(self.config.decoding.proposals)
        answers = answers_of(answer(self.bench, strong, "proposals", groups, how, models, purpose=f"proposals-{r}"))
        proposals = [""] * len(labels)
        for i, given in zip([i for fold in folds for i in fold], answers, strict=True):
            proposals[i] = given.text
        return proposals

    def refine(
        self, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
    ) -> tuple[list[Label], Facts]:
        """The labels after round `r` of `method`, and what happened; the stage keeps both, and an audit of every label."""
        c = self.config
        settings = {"method": method, "round": r, "alpha": c.alpha, "alpha_of": c.alpha_of, "match": match}
        settings |= {"feedback": c.feedback, "oracle": c.oracle.to_dict(), "task": c.task.to_dict(), **self.judges.likeness()}
        inputs = {"labels": fingerprint([[x.example_id, x.text, x.source, x.round] for x in labels]), "proposals": fingerprint(proposals)}
        inputs |= {"evaluator": evaluator.manifest["digest"]} if evaluator else {}

        def build(folder: Path) -> Facts:
            after, decisions = self._decide(method, labels, proposals, evaluator, r, match)
            audit = self._audit(labels, after, decisions)
            write_rows(folder / "labels.jsonl", after)
            write_rows(folder / "audit.jsonl", audit)
            return _facts(method, audit)

        artifact = self.bench.run("refine", settings, inputs, build)
        files = {"audit": self.relative(artifact, "audit.jsonl"), "label_file": self.relative(artifact, "labels.jsonl")}
        return read_rows(Path(artifact.folder) / "labels.jsonl", Label), {**artifact.manifest["metrics"], **files}

    def _decide(
        self, method: str, labels: list[Label], proposals: list[str], evaluator: Artifact | None, r: int, match: int | None
    ) -> methods.Refined:
        c, examples = self.config, [self.examples[label.example_id] for label in labels]
        if method == "naive":
            return methods.naive_round(labels, proposals, examples, r, c.seed, c.alpha, match)
        if evaluator is None:
            capped = c.alpha_of if c.oracle.capped else "none"
            return methods.oracle_round(labels, proposals, examples, self.judges.agree, self.task.grade, r, c.seed, c.alpha, capped)
        return methods.ilr_round(labels, proposals, examples, self.judges.agree, self.score_fn(evaluator), r, c.alpha, c.alpha_of)

    def _audit(self, before: Sequence[Label], after: Sequence[Label], decisions: Sequence[Decision]) -> list[Audit]:
        """The decisions beside the prompts and grades that the report shows."""
        examples = [self.examples[label.example_id] for label in before]
        grades = [self.task.grade(texts, examples) for texts in ([x.text for x in before], [d.proposal for d in decisions])]
        was, would = ([None] * len(examples) if right is None else right.tolist() for right in grades)
        rows = zip(decisions, examples, after, was, would, strict=True)
        return [
            Audit(
                d.example_id, d.round, e.prompt, d.before, d.proposal, label.text, d.accepted, d.reason,
                d.accept, d.reject, d.score, d.threshold, right, better if d.proposal else None,
            )
            for d, e, label, right, better in rows
        ]  # fmt: skip

    # A DPO round (paper appendix).

    def prefer(self, policy: Artifact, evaluator: Artifact | None, r: int) -> tuple[list[Pair], Facts]:
        """The round's preferences out of the policy's own samples, and how often the evaluator was right about them."""
        c = self.config.dpo
        how, purpose = self._sampled(c.temperature, c.samples), f"dpo-samples-{r}"
        sampled = answer(self.bench, self.model("strong"), "dpo-samples", [self.d2], how, policy, purpose=purpose)
        answers = answers_of(sampled)
        texts = np.array([a.text for a in answers], object).reshape(len(self.d2), c.samples).tolist()
        compared = pairs.disjoint_pairs(self.d2, texts)
        settings = {"share": c.share, "scoring": c.scoring, "round": r, "task": self.config.task.to_dict()}
        inputs = {"samples": sampled.manifest["digest"]} | ({"evaluator": evaluator.manifest["digest"]} if evaluator else {})

        def build(folder: Path) -> Facts:
            chosen, facts = self._preferences(compared, evaluator)
            write_rows(folder / "preferences.jsonl", chosen)
            return facts

        artifact = self.bench.run("preferences", settings, inputs, build)
        return read_rows(Path(artifact.folder) / "preferences.jsonl", Pair), artifact.manifest["metrics"]

    def _preferences(self, compared: Sequence[tuple[Example, str, str]], evaluator: Artifact | None) -> tuple[list[Pair], Facts]:
        examples, a, b = (list(column) for column in zip(*compared, strict=True))
        a_right, b_right = self.task.grade(a, examples), self.task.grade(b, examples)
        if evaluator is None:
            chosen = pairs.oracle_preferences(compared, a_right, b_right)
            return chosen, {"compared": len(compared), "preferences": len(chosen)}
        ids, prompts = [e.id for e in examples], [e.prompt for e in examples]
        comparisons = judge.symmetric_score(self.score_fn(evaluator), ids, prompts, a, b, self.config.dpo.scoring)
        right, n = judge.evaluator_accuracy(judge.scores_of(comparisons), a_right, b_right)
        chosen = pairs.confident_preferences([c for c in comparisons if c], self.config.seed, self.config.dpo.share)
        facts = {"compared": len(compared), "preferences": len(chosen), "unanswered": sum(c is None for c in comparisons)}
        return chosen, {**facts, "evaluator_accuracy": right, "evaluator_pairs": n}

    def optimise_preferences(self, policy: Artifact, preferences: Sequence[Pair]) -> Artifact:
        """The policy after this round's DPO; as it was if nothing is preferred, as when all samples say the same."""
        return optimise(self.bench, self.model("strong"), policy, preferences) if preferences else policy


def reference(example: Example) -> str:
    """The example's reference; ValueError if it has none."""
    if not example.reference:
        raise ValueError(
            f"example {example.id!r} has no reference answer, which is needed to train and to grade; add it or drop the example"
        )
    return example.reference


def _facts(method: str, audit: Sequence[Audit]) -> dict[str, Any]:
    """What a round did, in numbers; agreed, unread and compared labels are all labels, but for naive, which looks at none."""
    agreed, unread = (sum(row.reason == select.REASONS[how] for row in audit) for how in ("agrees", "unread"))
    asked = [row for row in audit if row.score is not None]
    was, would = (np.array([bool(getattr(row, side)) for row in asked]) for side in ("before_correct", "proposal_correct"))
    right, n = judge.evaluator_accuracy(np.array([row.score for row in asked]), was, would) if asked else (None, 0)
    flags = [np.array([bool(getattr(row, side)) for row in audit]) for side in ("before_correct", "proposal_correct", "accepted")]
    return {
        "agreed": agreed if method == "ilr" else None,
        "unread": unread,
        "compared": len(audit) - agreed - unread if method == "ilr" else 0,
        "unanswered": sum(row.reason == select.REASONS["disagrees"] for row in audit) if method == "ilr" else None,
        "replaced": sum(row.accepted for row in audit),
        "threshold": asked[0].threshold if asked else None,
        "evaluator_accuracy": right,
        "evaluator_pairs": n,
        "flows": select.label_flows(*flags),
    }
