"""The experiment's apparatus: the task's splits, the three models, fine-tuning, answers and grades.

What is done with it, in functions that take the lab: `demos` (first labels), `feedback` (who compares), `refinement` and `preference` (a
round of each kind). All map records to records (labels, answers, preferences) and keep their work in stages; `rounds` calls them in order.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from ilr_jax import hosts, tasks
from ilr_jax.refine import audit, split
from ilr_jax.roles import Memory, Model, comparers, fingerprint, layouts, needed
from ilr_jax.services.endpoint import Endpoint, opened
from ilr_jax.stages import Bench, answer, answers_of, fine_tune
from ilr_jax.store import Store
from ilr_jax.types import Answer, Artifact, Audit, Config, Decision, Example, Label

Facts = Mapping[str, Any]


class _Told:
    """A task whose verdicts are those of process 0: SQL may run out of time on one machine only, and all must go the same way."""

    def __init__(self, task: tasks.Task):
        self.name, self.train, self.test, self.usable = task.name, task.train, task.test, task.usable
        self._task = task

    def grade(self, answers: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"] | None:
        return hosts.told(lambda: self._task.grade(answers, examples))

    def findings(self, answers: Sequence[str], examples: Sequence[Example]) -> Mapping[str, Bool[np.ndarray, " n"]]:
        return hosts.told(lambda: self._task.findings(answers, examples))

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"] | None:
        return hosts.told(lambda: self._task.agree(a, b, examples))


class Lab:
    """Task, models and store of one config in one workdir; models are loaded when first used."""

    def __init__(self, config: Config, workdir: str | Path):
        self.config, self.memory = config, Memory()
        self.bench = Bench(Store(workdir, hosts.leads(), hosts.told), config)
        self.mirror, self.workdir = self.bench.store.mirror, self.bench.store.root
        self.task: tasks.Task = _Told(tasks.load(config.task))
        self.d1, self.d2 = split.parts(self.task.train(), config.demos, config.given, config.seed)
        self.tests = self.task.test()
        self.known_tests = split.shared([*self.d1, *self.d2], self.tests)
        self.examples = {example.id: example for example in [*self.d1, *self.d2, *self.tests]}
        self.data = fingerprint([[e.id, e.prompt, e.reference, e.given, dict(e.tags)] for e in self.examples.values()])
        self._models: dict[tuple[str, str], Model] = {}
        self._endpoints: dict[str, Endpoint] = {}
        for section in self._asked:  # before any model is fetched: a key may be missing
            self.endpoint(section)
        models = {role: self.model(role).config for role in self.roles}
        self.bench.layouts = self.memory.layouts = layouts(config.sharding, models, self.bench.dtype)
        self.bench.store.how = self._how(models)

    def _how(self, models: Mapping[str, Any]) -> dict[str, str]:
        """What a stage's files do not tell: devices, mesh, dtype and attention."""
        mesh = self.bench.layout.mesh.shape if self.bench.layout else {}
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        ways = ", ".join(sorted({self.bench.attention(model) for model in models.values()}))
        how = {"devices": devices, "mesh": " x ".join(f"{name}={n}" for name, n in mesh.items())}
        return how | {"dtype": self.bench.dtype, "attention": ways}

    def model(self, role: str) -> Model:
        """The base model of `weak`, `strong`, `evaluator` or `judge`; one copy where two roles share it."""
        section = self.config[role]
        source, template = section.model, "plain" if role == "evaluator" else section.template  # its comparisons have a form of their own
        if (source, template) not in self._models:
            self._models[source, template] = Model(source, self.bench.dtype, self.memory, template)
        return self._models[source, template]

    @property
    def roles(self) -> list[str]:
        """The models that are needed."""
        return needed(self.config, self._graded)

    @cached_property
    def has_grader(self) -> bool:
        """Whether the task says what is right; where it does not, a judge compares test answers with the references."""
        return self.task.grade([], []) is not None

    @property
    def comparers(self) -> set[str]:
        """Who is asked to compare answers."""
        return comparers(self.config, self._graded)

    @property
    def _graded(self) -> bool:
        return self.has_grader or not self.tests

    @property
    def reads_likeness(self) -> bool:
        """Whether answers agree by likeness, as the task does not tell."""
        return self.task.agree([], [], []) is None

    @property
    def _asked(self) -> list[str]:
        """The sections of the config whose endpoint is asked."""
        embeds = self.reads_likeness and self.config.embed.kind == "endpoint"
        return ["judge"] * ("endpoint" in self.comparers) + ["embed"] * embeds

    def endpoint(self, section: str) -> Endpoint:
        """The endpoint of `judge` or `embed`; opened once, so that its budget is one."""
        if section not in self._endpoints:
            self._endpoints[section] = opened(self.config[section], self.config.endpoint)
        return self._endpoints[section]

    def check(self) -> None:
        """Raise ValueError for what would fail later: weights that do not fit their config, a missing reference, a text too long.

        Warns of test questions that stand in train.
        """
        split.check_parts(self.d1, self.d2, self.config.demos, "evaluator" if "evaluator" in self.comparers else self.config.feedback)
        self.bench.check([self.model(role).config for role in self.roles])
        most = self.config.sft.max_length
        for role in self.roles:
            self.model(role).check_weights()
        if len(self.d2) < self.config.folds:
            raise ValueError(f"folds={self.config.folds}: wanted at most the {len(self.d2)} examples to be labelled; use more of them")
        if "weak" in self.roles:
            self.model("weak").check_prompts([*self.d1, *self.d2], most)
            self.model("weak").check_prompts(self.tests)
        if "strong" in self.roles:
            self.model("strong").check_prompts(self.d2, most)
            self.model("strong").check_prompts(self.tests)
        if seen := self.known_tests:
            message = "%d of %d test questions also stand in train; the first: %s"
            logging.getLogger(__name__).warning(message, len(seen), len(self.tests), ", ".join(seen[:5]))

    def relative(self, artifact: Artifact, file: str) -> str:
        """The path of an artifact's file within the workdir, as records name it."""
        return (Path(artifact.folder) / file).relative_to(self.workdir).as_posix()

    # What is right, None where the task has no grader: for reports, oracles and the evaluator's data only.

    @cached_property
    def graded(self) -> dict[str, str]:
        """What grades of the half to be labelled depend on, as an input of the stages that hold some."""
        c, references = self.config.task, [[e.id, e.prompt, e.reference, dict(e.tags)] for e in self.d2]
        return {"graded": fingerprint([c.name, c.grader, c.pattern, references])}

    def known(self, items: Sequence[Any]) -> list[Any]:
        """The answers or labels whose example has a reference, so that they can be graded."""
        return [item for item in items if self.examples[item.example_id].reference is not None]

    def grade(self, answers: Sequence[Answer]) -> Bool[np.ndarray, " n"] | None:
        """Which answers are right."""
        return self.task.grade([a.text for a in answers], [self.examples[a.example_id] for a in answers])

    def findings(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Shares of the answers that other graders of the task take, and that failed, by name."""
        found = self.task.findings([a.text for a in answers], [self.examples[a.example_id] for a in answers])
        return {name: float(np.mean(those)) for name, those in found.items()}

    def grade_labels(self, labels: Sequence[Label]) -> Bool[np.ndarray, " n"] | None:
        """Which labels are right."""
        return self.task.grade([label.text for label in labels], [self.examples[label.example_id] for label in labels])

    def right(self, texts: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Which texts are right, for oracles and right demonstrations; `feedback.check` refuses them where the task has no grader."""
        grades = self.task.grade(texts, examples)
        assert grades is not None
        return grades

    def flags(self, texts: Sequence[str], examples: Sequence[Example]) -> list[bool | None]:
        """Whether each text is right, None where there is no reference or grader: for what is kept for people to read."""
        grades = self.task.grade(texts, examples)
        return [None if grades is None or e.reference is None else bool(grades[i]) for i, e in enumerate(examples)]

    # How answers are made.

    # The weak supervisor (paper section 4.1).

    def weak_supervisor(self) -> Artifact:
        """The weak model on the first half's references, with the snapshots that the evaluator's data comes from."""
        data = [(example.prompt, reference(example)) for example in self.d1]
        return fine_tune(self.bench, self.model("weak"), self.config.weak, "weak", [data], self.config.evaluator.checkpoints)

    def weak_labels(self) -> Artifact:
        """The weak supervisor's answers to the second half."""
        name, how = "weak-labels", self.bench.decoded(self.config.decoding.labels)
        return answer(self.bench, self.model("weak"), name, [self.d2], how, self.weak_supervisor(), purpose=name)

    def test_supervisor(self) -> tuple[list[Answer], Artifact]:
        """The weak supervisor's own answers to the test split, by beam search: what the strong model has to beat."""
        artifact = answer(self.bench, self.model("weak"), "weak-test", [self.tests], self.bench.beam(), self.weak_supervisor())
        return answers_of(artifact), artifact

    # Fine-tuning on labels, and the test split.

    def trainable(self, labels: Sequence[Label]) -> list[tuple[str, str]]:
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
        return fine_tune(self.bench, self.model("strong"), self.config.strong, "sft", [self.trainable(labels)])

    def test(self, model: Artifact) -> tuple[list[Answer], Artifact]:
        """The strong model's answers to the test split, by beam search."""
        artifact = answer(self.bench, self.model("strong"), "test", [self.tests], self.bench.beam(), model)
        return answers_of(artifact), artifact

    # What a round leaves behind.

    def audited(self, decisions: Sequence[Decision], rule: str = "replace") -> list[Audit]:
        """The decisions beside the prompts and grades that the report shows; no grade where there is no reference or grader.

        By the rule 'filter' nothing stands after an accepted one.
        """
        examples = [self.examples[d.example_id] for d in decisions]
        was, would = (self.flags([getattr(d, side) for d in decisions], examples) for side in ("before", "proposal"))
        after = [d.before if not d.accepted else "" if rule == "filter" else d.proposal for d in decisions]
        return audit.audited(decisions, examples, after, was, would)


def reference(example: Example) -> str:
    """The example's reference; ValueError if it has none."""
    if not example.reference:
        raise ValueError(
            f"example {example.id!r} has no reference answer, which is needed to train and to grade; add it or drop the example"
        )
    return example.reference
