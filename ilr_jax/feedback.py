"""Who says which of two answers is better: the evaluator, trained on answers to the first half of the data, a judge, or the oracle.

Evaluator and judge are artifacts, on which all hangs that hangs on their verdicts, and a `ScoreFn`; the oracle, who grades, stands as None
beside them. Here too is what is asked of them where a task reads nothing off an answer: how often test answers win over the references,
and how alike two answers are. Not here: the models behind them (`evaluator`, `judges`, `services`), and what is made of what they say
(`refinement`, `preference`). From: paper section 4.1 and appendix (evaluator training data; SaferPaca).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilr_jax import evaluator as evaluators
from ilr_jax import hosts, judges
from ilr_jax.files import read_json, write_json, write_rows
from ilr_jax.lab import Lab, reference
from ilr_jax.refine import judge, pairs
from ilr_jax.refine.agree import above_median
from ilr_jax.roles import fingerprint
from ilr_jax.services import embed
from ilr_jax.services import judge as verdicts
from ilr_jax.stages import SNAPSHOTS, answer, answers_of, fine_tune
from ilr_jax.tokenizer import JUDGED
from ilr_jax.types import Answer, Artifact, Example, Pair

JUDGE = "judge"  # the role of a model that judges, and the stage that says who judges


def check(lab: Lab) -> None:
    """Raise ValueError for what the task cannot give, and for comparisons that have no room."""
    c = lab.config
    if not lab.has_grader:
        _check_ungraded(lab)
    trained = lab.d1 if "evaluator" in lab.comparers else ()
    known = [(e.prompt, reference(e)) for e in [*trained, *(() if lab.has_grader else lab.tests)]]
    compared = known + [(e.prompt, e.given or "") for e in lab.d2]
    if "evaluator" in lab.comparers:
        model = lab.model("evaluator")
        model.check_comparisons(compared, c.decoding.max_new_tokens, lambda asked: model.tokenizer.comparisons(asked, None))
    if "model" in lab.comparers:
        judges.check(lab.bench, lab.model(JUDGE), compared)


def _check_ungraded(lab: Lab) -> None:
    c, name = lab.config, lab.task.name
    if c.feedback == "oracle" or c.demos == "correct" or c.demos_error:
        needs = "feedback='oracle', demos='correct' and demos_error"
        raise ValueError(f"task.name={name!r} has no grader, which {needs} need; choose others")
    if "evaluator" in lab.comparers and {e.tags.get("category") for e in lab.d1} != {pairs.GENERAL, pairs.SAFETY}:
        raise ValueError(
            f"task.name={name!r} has neither a grader nor examples of both categories, general and safety, so no evaluator can be trained; "
            "use feedback='judge' with judge.kind='endpoint' or 'model'"
        )


def source(lab: Lab) -> Artifact | None:
    """Who gives the feedback: the evaluator, trained if need be, the judge, or None for the oracle."""
    return {"evaluator": evaluator, "judge": the_judge, "oracle": lambda _: None}[lab.config.feedback](lab)


def evaluator(lab: Lab) -> Artifact:
    """The comparison model, trained on answers to the first half: graded ones of the weak model's snapshots, or those of two models."""
    made = _graded_pairs(lab) if lab.has_grader else _category_pairs(lab)
    train, held_out = pairs.split_pairs(made, lab.config.seed, lab.config.evaluator.validation)
    return evaluators.train(lab.bench, lab.model("evaluator"), pairs.both_orders(train), pairs.both_orders(held_out))


def _graded_pairs(lab: Lab) -> list[Pair]:
    """Out of answers of the supervisor's snapshots, all sampled in one pass."""
    n, name, how = lab.config.evaluator.checkpoints, "evaluator-answers", lab.bench.sampled(lab.config.evaluator.temperature)
    sampled = answer(lab.bench, lab.model("weak"), name, [lab.d1] * n, how, lab.weak_supervisor(), SNAPSHOTS, purpose=name)
    answers = answers_of(sampled)
    grades = lab.right([a.text for a in answers], [lab.examples[a.example_id] for a in answers]).reshape(n, -1).T
    texts = np.array([a.text for a in answers], object).reshape(n, -1).T
    return pairs.evaluator_pairs(lab.d1, texts.tolist(), grades.tolist(), lab.config.seed)


def _category_pairs(lab: Lab) -> list[Pair]:
    """Out of the answers of two models, fine-tuned on the general and on the safety references in one pass."""
    weak, name, how = lab.model("weak"), "evaluator-answers", lab.bench.sampled(lab.config.evaluator.temperature)
    of = {category: [e for e in lab.d1 if e.tags["category"] == category] for category in (pairs.GENERAL, pairs.SAFETY)}
    data = [[(e.prompt, reference(e)) for e in part] for part in of.values()]
    models = fine_tune(lab.bench, weak, lab.config.weak, "categories", data)
    asked = [of[pairs.GENERAL], lab.d1]  # the safety model answers general questions too, to be the worse one there
    answers = answers_of(answer(lab.bench, weak, name, asked, how, models, purpose=name))
    general, safety = ({a.example_id: a.text for a in answers if a.adapter == k} for k in range(2))
    return pairs.category_pairs(lab.d1, general, safety, lab.config.seed)


def the_judge(lab: Lab) -> Artifact:
    """The config's judge: the trained evaluator, or a stage that says in a file who judges, what it is asked and how."""
    c = lab.config.judge
    if c.kind == "evaluator":
        return evaluator(lab)
    who = {"kind": c.kind, "prompt": verdicts.version(), "seed": lab.config.seed}
    if c.kind == "endpoint":
        who |= {"model": c.model, "top_logprobs": c.top_logprobs}
    else:
        who |= {"model": lab.model(JUDGE).digest, "asked": JUDGED}
    return lab.bench.run(JUDGE, who, {}, lambda folder: write_json(folder / "judge.json", who))


def score_fn(lab: Lab, comparer: Artifact) -> judge.ScoreFn:
    """The trained evaluator or the judge as a function: [(question, A, B)] -> P(the holder of A accepts to change to B)."""
    c = lab.config
    if comparer.manifest.get("name") != JUDGE:
        return evaluators.score_fn(lab.bench, lab.model("evaluator"), comparer)
    if c.judge.kind == "model":
        return judges.score_fn(lab.bench, lab.model(JUDGE))
    ask = verdicts.score_fn(lab.endpoint(JUDGE), c.seed, c.judge.top_logprobs, c.judge.max_invalid)
    return lambda requests: hosts.told(lambda: ask(requests))


def settings(lab: Lab) -> dict[str, object]:
    """What of the config a verdict depends on, and what agrees before one is asked for, for the stages that ask."""
    c = lab.config
    return {"feedback": c.feedback, **likeness(lab)} | ({"oracle": c.oracle.to_dict()} if c.feedback == "oracle" else {})


def prefers(
    lab: Lab, evaluator: Artifact | None, examples: Sequence[Example], a: Sequence[str], b: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """How sure whoever is asked is that `b` is better than `a`, from 0 to 1; an oracle's verdict on b is 1 or 0.

    Where a judge gave no valid verdict it is 0: such a `b` is picked only where there is nothing else.
    """
    ids, c = [e.id for e in examples], lab.config
    if evaluator is None:
        return (lab.right(b, examples) != judge.flipped(ids, a, b, c.oracle.error, c.seed)).astype(float)
    comparisons = judge.symmetric_score(score_fn(lab, evaluator), ids, [e.prompt for e in examples], a, b)
    return np.nan_to_num(judge.scores_of(comparisons), nan=0.0)


def win_rates(lab: Lab, answers: Sequence[Answer]) -> Float[np.ndarray, " n"]:
    """For each answer P(it is better than its example's reference) by the judge in both orders; NaN where no valid verdict came."""
    by, examples = the_judge(lab), [lab.examples[a.example_id] for a in answers]
    compared = [[e.id, e.prompt, reference(e), a.text] for e, a in zip(examples, answers, strict=True)]

    def build(folder: Path) -> Mapping[str, Any]:
        ids, prompts, references, given = (list(column) for column in zip(*compared, strict=True))
        found = judge.symmetric_score(score_fn(lab, by), ids, prompts, references, given)
        write_json(folder / "wins.json", [None if c is None else c.score for c in found])
        write_rows(folder / "comparisons.jsonl", [c for c in found if c is not None])
        return {"compared": len(found), "unanswered": sum(c is None for c in found)}

    inputs = {"judge": by.manifest["digest"], "compared": fingerprint(compared)}
    artifact = lab.bench.run("win-rates", {}, inputs, build)
    return np.array([np.nan if p is None else p for p in read_json(Path(artifact.folder) / "wins.json")], np.float64)


def agree(lab: Lab, a: Sequence[str], b: Sequence[str], examples: Sequence[Example]) -> Bool[np.ndarray, " n"]:
    """Which pairs say the same: as the task reads them, or, where it reads nothing, those that are more alike than the median."""
    told = lab.task.agree(a, b, examples)
    if told is not None:
        return told
    similarity = embed.local if lab.config.embed.kind == "local" else embed.of_endpoint(lab.endpoint("embed"))
    return above_median(hosts.told(lambda: similarity(a, b)))


def likeness(lab: Lab) -> dict[str, str]:
    """What stands for the embedder in the names of stages; nothing where the task itself says what agrees."""
    c = lab.config.embed
    return {"embed": embed.VERSION if c.kind == "local" else c.model} if lab.reads_likeness else {}
