"""Who compares two answers besides the oracle: the trained evaluator, a model behind an endpoint, or one of our own models as it is.

Each is a stage, whose artifact says who it is, so that what hangs on its verdicts hangs on it; and a `ScoreFn`. Here too is what a judge
is needed for where a task reads nothing off an answer: win rates against the references, and likeness that stands for agreement.
From: paper appendix (SaferPaca).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax import batches, evaluator
from ilr_jax.files import read_json, write_json, write_rows
from ilr_jax.progress import Progress
from ilr_jax.refine.agree import above_median
from ilr_jax.refine.judge import ScoreFn, symmetric_score
from ilr_jax.refine.pairs import GENERAL, SAFETY
from ilr_jax.roles import Model, fingerprint
from ilr_jax.services import embed
from ilr_jax.services import judge as verdicts
from ilr_jax.services.endpoint import Endpoint, Limits
from ilr_jax.services.keys import read_key
from ilr_jax.stages import Bench
from ilr_jax.tasks import Task
from ilr_jax.tokenizer import JUDGED
from ilr_jax.train import steps
from ilr_jax.types import Artifact, Config, Example

JUDGE = "judge"  # the role, and the stage that says who judges
NO_VERDICT = ("endpoint", "judge.base_url", "judge.key_name", "embed.base_url", "embed.key_name")  # fields that decide none


@dataclass
class Judges:
    """The judges of one bench and task. An endpoint is opened once, so that its budget is one."""

    bench: Bench
    task: Task
    model_of: Callable[[str], Model]  # role -> model
    trained: Callable[[], Artifact]  # the evaluator

    @cached_property
    def graded(self) -> bool:
        """Whether the task says what is right; where it does not, test answers are measured by how often they win over the reference."""
        return self.task.grade([], []) is not None

    @cached_property
    def alike(self) -> bool:
        """Whether likeness stands for agreement, because the task reads nothing off an answer."""
        return self.task.agree([], [], []) is None

    def check(self, d1: Sequence[Example], d2: Sequence[Example], tests: Sequence[Example]) -> None:
        """Raise ValueError for what the task cannot give, for an endpoint that cannot be asked, and for comparisons that have no room."""
        c = self.bench.config
        asked = {c.feedback} | ({c.judge.kind} if c.feedback == "judge" or not self.graded else set())
        if not self.graded:
            _check_ungraded(c, self.task.name, "evaluator" in asked, d1)
        known = [*(d1 if "evaluator" in asked else ()), *(() if self.graded else tests)]
        compared = [(e.prompt, e.reference or "") for e in known] + [(e.prompt, "") for e in d2]
        if "evaluator" in asked:
            self.model_of("evaluator").check_comparisons(compared, c.decoding.max_new_tokens)
        if "model" in asked:
            model = self.model_of(JUDGE)
            model.check_weights()
            self.bench.check([model.config])
            model.check_comparisons(compared, c.decoding.max_new_tokens, lambda question: _text(question, "", "", c.seed) + JUDGED)
        _ = "endpoint" in asked and self.endpoint
        _ = self.alike and self.embedder

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint that judges. ValueError where it cannot be asked: no client, no key, no address."""
        return self._opened(self.bench.config.judge)

    @cached_property
    def embedder(self) -> embed.Similarity:
        """How alike two answers are. ValueError as in `endpoint`."""
        c = self.bench.config.embed
        return embed.local if c.kind == "local" else embed.of_endpoint(self._opened(c))

    def likeness(self) -> dict[str, str]:
        """What stands for the embedder in the names of stages; nothing where none is used."""
        c = self.bench.config.embed
        return {"embed": embed.VERSION if c.kind == "local" else c.model} if self.alike else {}

    def agree(self, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
        """Which pairs say the same: as the task reads them, or, where it reads nothing, those that are more alike than the median."""
        told = self.task.agree(a, b, examples)
        return above_median(self.embedder(a, b)) if told is None else told

    def comparer(self) -> Artifact | None:
        """Who compares answers for the config's feedback: the trained evaluator, or the judge; None where the oracle does."""
        return {"evaluator": self.trained, "judge": self.judge, "oracle": lambda: None}[self.bench.config.feedback]()

    def judge(self) -> Artifact:
        """The config's judge: the trained evaluator, or a stage that says in a file who judges, what it is asked and how."""
        c = self.bench.config.judge
        if c.kind == "evaluator":
            return self.trained()
        who = {"kind": c.kind, "prompt": verdicts.version(), "seed": self.bench.config.seed}
        if c.kind == "endpoint":
            who |= {"model": c.model, "top_logprobs": c.top_logprobs}
        else:
            who |= {"model": self.model_of(JUDGE).digest, "asked": JUDGED}
        return self.bench.run(JUDGE, who, {}, lambda folder: write_json(folder / "judge.json", who))

    def score_fn(self, comparer: Artifact) -> ScoreFn:
        """A judge or a trained evaluator as a function: [(prompt, a, b)] -> P(the holder of a accepts to change to b)."""
        c = self.bench.config
        if comparer.manifest.get("name") != JUDGE:
            return evaluator.score_fn(self.bench, self.model_of("evaluator"), comparer)
        if c.judge.kind == "model":
            return model_score_fn(self.bench, self.model_of(JUDGE))
        return verdicts.score_fn(self.endpoint, c.seed, c.judge.top_logprobs, c.judge.max_invalid)

    def win_rates(self, answers: Sequence[str], examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        """For each answer P(it is better than its example's reference) by the judge in both orders; NaN where no valid verdict came."""
        comparer = self.judge()
        compared = [[e.id, e.prompt, e.reference or "", answer] for e, answer in zip(examples, answers, strict=True)]

        def build(folder: Path) -> Mapping[str, Any]:
            ids, prompts, references, given = (list(column) for column in zip(*compared, strict=True))
            found = symmetric_score(self.score_fn(comparer), ids, prompts, references, given)
            write_json(folder / "wins.json", [None if c is None else c.score for c in found])
            write_rows(folder / "comparisons.jsonl", [c for c in found if c is not None])
            return {"compared": len(found), "unanswered": sum(c is None for c in found)}

        inputs = {"judge": comparer.manifest["digest"], "compared": fingerprint(compared)}
        artifact = self.bench.run("win-rates", {}, inputs, build)
        return np.array([np.nan if p is None else p for p in read_json(Path(artifact.folder) / "wins.json")], np.float64)

    def _opened(self, section: Config) -> Endpoint:
        how = self.bench.config.endpoint
        limits = Limits(how.timeout, how.attempts, how.workers, how.max_requests, how.max_tokens)
        return Endpoint(section.base_url, section.model, read_key(section.key_name), limits, Path(how.cache).expanduser())


def _check_ungraded(config: Config, task: str, trained: bool, examples: Sequence[Example]) -> None:
    """Raise ValueError for what needs a grader: the oracle, right demonstrations, and an evaluator for examples without categories."""
    if config.feedback == "oracle" or config.demos == "correct":
        raise ValueError(f"task.name={task!r} has no grader, which feedback='oracle' and demos='correct' need; choose others")
    if trained and {e.tags.get("category") for e in examples} != {GENERAL, SAFETY}:
        raise ValueError(
            f"task.name={task!r} has neither a grader nor examples of both categories, general and safety, so no evaluator can be trained; "
            "use feedback='judge' with judge.kind='endpoint' or 'model'"
        )


def _text(prompt: str, a: str, b: str, seed: int) -> str:
    """What one of our own models is asked: the judge's rules and question, as one question."""
    return "\n\n".join(verdicts.question(prompt, a, b, seed))


def model_score_fn(bench: Bench, model: Model) -> ScoreFn:
    """One of our own models, as it is, as a judge: p(B) / (p(A) + p(B)) of the token that it would write next."""
    letters = model.tokenizer.letters(verdicts.LETTERS)
    log_probs = steps.token_log_probs(bench.setup(model))

    def score(requests: Sequence[verdicts.Request3]) -> Float[np.ndarray, " n"]:
        asked = model.tokenizer.judgements([_text(*request, bench.config.seed) for request in requests])
        odds = np.full(len(requests), np.nan)
        with Progress("comparisons", len(requests), "verdicts") as progress:
            for taken, batch in batches.options(asked, letters, bench.config.compute.score_batch, model.tokenizer.pad):
                a, b = np.asarray(log_probs({}, model.params, batch), np.float64)[: len(taken)].T
                odds[taken] = b - a
                progress.advance(len(taken))
        return 1 / (1 + np.exp(-odds))

    return score
