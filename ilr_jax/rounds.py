"""The experiment, told in order: who writes the labels, how each method spends its rounds, and what is recorded after each of them.

The work is in `lab` and `stages`, each piece on disk and shared by the methods; here is only the order (paper section 3, appendix).
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ilr_jax import metrics, settings
from ilr_jax.files import explained, read_json, write_json
from ilr_jax.judges import NO_VERDICT
from ilr_jax.lab import Lab
from ilr_jax.store import claim
from ilr_jax.types import Answer, Artifact, Config, Label

Round = Mapping[str, Any]
BLANK = dict.fromkeys(
    ("label_accuracy", "labels", "label_file", "evaluator_accuracy", "evaluator_pairs", "agreed", "unread", "compared", "preferences")
    + ("replaced", "threshold", "flows", "audit", "supervisor_accuracy", "unanswered")
)


def sft(lab: Lab) -> Iterator[Round]:
    """The baseline: the strong model, fine-tuned on the first labels."""
    labels, facts = lab.first_labels()
    yield _measured(lab, 0, lab.fine_tune(labels), labels=labels, **facts)


def refined(lab: Lab, method: str) -> Iterator[tuple[int, list[Label], Round]]:
    """The labels of every round, the first ones as round 0: fold models propose for each other's part, then labels are replaced."""
    labels, facts = lab.first_labels()
    yield 0, labels, facts
    judge = lab.judges.comparer() if method == "ilr" else None
    matched = method == "naive" and lab.config.naive.match_count
    counts = [facts.get("replaced") for _, _, facts in refined(lab, "ilr")] if matched else []
    for r in range(1, lab.config.rounds + 1):
        proposals = lab.propose(labels, r)
        labels, facts = lab.refine(method, labels, proposals, judge, r, counts[r] if matched else None)
        yield r, labels, facts


def ilr(lab: Lab) -> Iterator[Round]:
    """Iterative label refinement: comparisons decide which labels are replaced; each round's model starts from the base."""
    for r, labels, facts in refined(lab, "ilr"):
        yield _measured(lab, r, lab.fine_tune(labels), labels=labels, **facts)


def naive(lab: Lab) -> Iterator[Round]:
    """Labels replaced at random, without comparisons."""
    for r, labels, facts in refined(lab, "naive"):
        yield _measured(lab, r, lab.fine_tune(labels), labels=labels, **facts)


def dpo(lab: Lab) -> Iterator[Round]:
    """Preference optimisation on the same feedback: each round samples, compares, and trains the current adapter on."""
    labels, facts = lab.first_labels()
    policy = lab.fine_tune(labels)
    yield _measured(lab, 0, policy, labels=labels, **facts)
    judge = lab.judges.comparer()
    for r in range(1, lab.config.rounds + 1):
        preferences, facts = lab.prefer(policy, judge, r)
        policy = lab.optimise_preferences(policy, preferences)
        yield _measured(lab, r, policy, **facts)


METHODS = {"sft": sft, "ilr": ilr, "naive": naive, "dpo": dpo}


def run(config: Config, workdir: str | Path) -> None:
    """Every method of `config.method` in `workdir`, continuing what is there.

    Raises ValueError for settings that cannot be, for bad data or models, and for a workdir that another config made.
    """
    names = settings.check(config)
    if config.compute.cache:
        _keep_compiled(Path(config.compute.cache).expanduser())
    lab = Lab(config, Path(workdir))
    lab.check()  # before the workdir is claimed: what fails on bad input must not stand in the way of the corrected command
    how = (*(f"compute.{name}" for name in config.compute if name != "dtype"), *NO_VERDICT)
    claim(workdir, _resolved(lab), ignore=("method", "seed", *how))
    for number, name in enumerate(names, 1):
        _record(lab, name, f"[{number}/{len(names)}] {name}")


def _resolved(lab: Lab) -> dict[str, Any]:
    """The config with what it left to the machine."""
    return lab.config.to_dict() | {"compute": {**lab.config.compute, "dtype": lab.bench.dtype}}


def _keep_compiled(folder: Path) -> None:
    """Have XLA keep its programs in `folder`: later rounds, methods and runs of the same shapes start at once."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _record(lab: Lab, name: str, title: str) -> None:
    """Run one method and keep its record up to date after every round; a record of more rounds, of an earlier run, stays until then.

    Times are those of the stages that a round was the first to need, whoever built them, so that a second run leaves the same bytes.
    """
    path = lab.workdir / "runs" / f"{name}-seed{lab.config.seed}.json"
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    old = read_json(path) if path.exists() else {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rounds": []}
    lab.bench.spent.clear()
    steps, done, total = METHODS[name](lab), [], 1 if name == "sft" else lab.config.rounds + 1
    for r in range(total):
        lab.bench.place = f"{title}, round {r}"
        facts, before = next(steps), sum(row["seconds"] for row in done)
        done.append({**facts, "seconds": sum(lab.bench.spent.values()) - before})
        record = {"method": name, "seed": lab.config.seed, "finished": r + 1 == total, "started": old["started"]}
        if len(done) >= len(old["rounds"]):
            write_json(
                path, record | {"config": old.get("config", _resolved(lab)), "seconds": sum(lab.bench.spent.values()), "rounds": done}
            )
        lab.bench.say(f"test {facts['test_measure']} {facts['test_accuracy']:.1%}" + _label_line(facts))


def _label_line(facts: Round) -> str:
    line = f", labels right {facts['label_accuracy']:.1%}" if facts["label_accuracy"] is not None else ""
    return line + (f", evaluator right {facts['evaluator_accuracy']:.1%}" if facts["evaluator_accuracy"] is not None else "")


def _measured(lab: Lab, r: int, model: Artifact, labels: list[Label] | None = None, **facts: Any) -> Round:
    """A round's row: the model (in round 0 the supervisor too) on the test split, the labels against the references, facts."""
    answers, artifact = lab.test(model)
    worth = _worth(lab, answers)
    told = worth[~np.isnan(worth)]  # a judge may leave an answer without a verdict
    interval = metrics.bootstrap_interval(told, lab.config.seed)
    row = {**BLANK, "round": r, "test_accuracy": interval.mean, "test_interval": [interval.low, interval.high], "test_size": len(told)}
    row |= {
        "test_measure": "accuracy" if lab.judges.graded else "win rate",
        "test_right": worth.tolist() if len(told) == len(worth) else None,
    }
    row |= {"answers": lab.relative(artifact, "answers.jsonl"), "model": lab.relative(model, "")}
    if r == 0:
        row["supervisor_accuracy"] = float(np.nanmean(_worth(lab, lab.test_supervisor())))
    grades = lab.grade_labels(labels) if labels is not None else None
    row |= {"labels": len(labels) if labels is not None else None, "label_accuracy": None if grades is None else float(np.mean(grades))}
    return row | facts


def _worth(lab: Lab, answers: list[Answer]) -> Shaped[np.ndarray, " n"]:
    """What test answers are worth: right or not; without a grader P(better than the reference), NaN where no valid verdict came."""
    right = lab.grade(answers)
    return lab.win_rates(answers) if right is None else right
