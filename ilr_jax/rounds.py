"""The experiment, told in order: who writes the labels, how each method spends its rounds, and what is recorded after each of them.

The work is in `demos`, `feedback`, `refinement` and `preference`, each piece on disk and shared by the methods; here is only the order
(paper section 3, appendix).
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ilr_jax import demos, feedback, hosts, metrics, preference, refinement, settings
from ilr_jax.files import explained, flat, read_json, write_json
from ilr_jax.lab import Lab
from ilr_jax.stages import Cost
from ilr_jax.store import claim
from ilr_jax.types import Answer, Artifact, Config, Label, Pair

Round = Mapping[str, Any]
BLANK = dict.fromkeys(
    ("label_accuracy", "label_size", "labels", "label_file", "evaluator_accuracy", "evaluator_pairs", "agreed", "unread", "compared")
    + ("preferences", "replaced", "threshold", "flows", "audit", "comparisons", "supervisor_accuracy")
    + ("test_accuracy", "test_interval", "test_size", "test_right", "test_measure", "unanswered", "answers", "findings")
)


def sft(lab: Lab) -> Iterator[Round]:
    """The baseline: the strong model, fine-tuned on the first labels."""
    labels, facts = demos.first_labels(lab)
    yield _measured(lab, 0, lab.fine_tune(labels), labels=labels, **facts)


def refined(lab: Lab, method: str) -> Iterator[tuple[int, list[Label], Round]]:
    """The labels of every round, the first ones as round 0: fold models propose for each other's part, then labels are replaced."""
    labels, facts = demos.first_labels(lab)
    yield 0, labels, facts
    judge = feedback.source(lab) if method == "ilr" else None
    matched = method == "naive" and lab.config.naive.match_count
    counts = [facts.get("replaced") for _, _, facts in refined(lab, "ilr")] if matched else []
    for r in range(1, lab.config.rounds + 1):
        candidates = refinement.propose(lab, labels, r)
        proposals, asked = refinement.choose(lab, method, labels, candidates, judge, r)
        labels, facts = refinement.refine(lab, method, labels, proposals, judge, r, counts[r] if matched else None)
        yield r, labels, facts if asked is None else {**facts, "compared": asked}  # the round asks again about what was picked


def ilr(lab: Lab) -> Iterator[Round]:
    """Iterative label refinement: comparisons decide which labels are replaced; each round's model starts from the base."""
    for r, labels, facts in refined(lab, "ilr"):
        yield _measured(lab, r, lab.fine_tune(labels), labels=labels, **facts)


def naive(lab: Lab) -> Iterator[Round]:
    """Labels replaced at random, without comparisons."""
    for r, labels, facts in refined(lab, "naive"):
        yield _measured(lab, r, lab.fine_tune(labels), labels=labels, **facts)


def preferred(lab: Lab, spend: Callable[[Artifact, list[Pair], int], tuple[Artifact, list[Label] | None]]) -> Iterator[Round]:
    """SFT, then each round the policy's samples, compared; `spend` makes the next policy of the preferences, and what it learnt from."""
    labels, facts = demos.first_labels(lab)
    policy = lab.fine_tune(labels)
    yield _measured(lab, 0, policy, labels=labels, **facts)
    judge = feedback.source(lab)
    for r in range(1, lab.config.rounds + 1):
        preferences, facts = preference.prefer(lab, policy, judge, r)
        policy, learnt = spend(policy, preferences, r)
        yield _measured(lab, r, policy, labels=learnt, **facts)


def dpo(lab: Lab) -> Iterator[Round]:
    """Preference optimisation on the same feedback: each round trains the current adapter on."""
    return preferred(lab, lambda policy, preferences, r: (preference.optimise(lab, policy, preferences), None))


def sft_chosen(lab: Lab) -> Iterator[Round]:
    """DPO's comparisons without DPO: each round fine-tunes from the base on the answers that are preferred."""

    def spend(policy: Artifact, preferences: list[Pair], r: int) -> tuple[Artifact, list[Label] | None]:
        chosen = [Label(pair.example_id, pair.better, "sample", r) for pair in preferences]
        return (lab.fine_tune(chosen), chosen) if chosen else (policy, None)

    return preferred(lab, spend)


def dpo_pairs(lab: Lab) -> Iterator[Round]:
    """DPO on the comparisons of ILR, label against proposal, round by round: the same feedback, spent on the model, not on the data."""
    policy = None
    for r, labels, facts in refined(lab, "ilr"):
        if policy is None:
            policy = lab.fine_tune(labels)
            yield _measured(lab, 0, policy, labels=labels, **facts)
            continue
        preferences = refinement.preferences(lab, facts)
        policy = preference.optimise(lab, policy, preferences)
        kept = {name: facts[name] for name in ("agreed", "unread", "compared", "evaluator_accuracy", "evaluator_pairs")}
        yield _measured(lab, r, policy, **kept, preferences=len(preferences))


def weak(lab: Lab) -> Iterator[Round]:
    """The supervisors alone: the weak model on the test split, its labels, and the evaluator on comparisons held out from its training."""
    labels, facts = demos.first_labels(lab)
    row = _row(lab, 0, lab.weak_supervisor(), lab.test_supervisor() if lab.tests else None, labels)
    judge = feedback.source(lab)
    held_out = judge.manifest["metrics"] if judge else {}  # a judge that is no evaluator was not trained
    row |= {"evaluator_accuracy": held_out.get("validation_accuracy"), "evaluator_pairs": held_out.get("held_out")}
    yield {**row, **facts}


METHODS = {"sft": sft, "ilr": ilr, "naive": naive, "dpo": dpo, "sft_chosen": sft_chosen, "dpo_pairs": dpo_pairs, "weak": weak}
ONE_ROUND = ("sft", "weak")


def run(config: Config, workdir: str | Path) -> None:
    """Every method of `config.method` in `workdir`, continuing what is there.

    Raises ValueError for settings that cannot be, for bad data or models, and for a workdir that another config made.
    """
    names = settings.check(config)
    if config.compute.cache:
        _keep_compiled(Path(config.compute.cache).expanduser())
    lab = Lab(config, workdir)
    hosts.alike(_facts(lab), "give all of them the same flags, code and data")
    lab.check()  # before the workdir is claimed: what fails on bad input must not stand in the way of the corrected command
    feedback.check(lab)
    hosts.told(lambda: _claim(lab))
    _share(lab)
    for number, name in enumerate(names, 1):
        _record(lab, name, f"[{number}/{len(names)}] {name}")


def _claim(lab: Lab) -> None:
    """See that the workdir is that of this config, or of none yet."""
    path = lab.workdir / "config.json"
    if lab.mirror.url:
        lab.bench.say(f"{lab.mirror.url} is worked on in {lab.workdir}")
    lab.mirror.pull(path)
    if (lab.workdir / "points").is_dir():
        raise ValueError(f"--workdir={lab.workdir}: wanted the folder of a run, or a new one, got that of a sweep; its runs are in points/")
    claim(lab.workdir, _resolved(lab), ignore=settings.incidental(lab.config))
    lab.mirror.push(path)


def _facts(lab: Lab) -> dict[str, Any]:
    """What has to be the same in all processes, or each would work on something else."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()[:12]
    return {"code": code, "data": lab.data[:12], **{f"config.{name}": value for name, value in flat(_resolved(lab)).items()}}


def _share(lab: Lab) -> None:
    """See that all processes have the same folder before them, without which they would wait for each other at the first save."""
    if lab.mirror.url:
        return
    path = Path(hosts.told(lambda: tempfile.mkdtemp(prefix="meeting-", dir=lab.workdir / "partial")))
    seen = (lab.workdir / "partial" / path.name).is_dir()
    hosts.alike({"sees the workdir of process 0": seen}, "give a workdir that all of them share, or --workdir=gs://BUCKET/NAME")
    hosts.told(path.rmdir)


def _resolved(lab: Lab) -> dict[str, Any]:
    """The config with what it left to the machine."""
    whole = lab.config.to_dict()
    return whole | {"compute": whole["compute"] | {"dtype": lab.bench.dtype}}


def _keep_compiled(folder: Path) -> None:
    """Have XLA keep its programs in `folder`: later rounds, methods and runs of the same shapes start at once."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _record(lab: Lab, name: str, title: str) -> None:
    """Run one method and keep its record up to date after every round; a record of more rounds, of an earlier run, stays until then.

    Times and FLOPs are those of the stages that a round was the first to need, whoever built them: a second run leaves the same bytes.
    """
    path = lab.workdir / "runs" / f"{name}-seed{lab.config.seed}.json"
    lab.bench.place, old = title, hosts.told(lambda: _begun(lab, path))
    lab.bench.spent.clear()
    if old["data"] != lab.data:
        lab.bench.say(f"{path.name} was made of other data: what the data changes is done anew, and then the record is replaced")
    steps, done, total = METHODS[name](lab), [], 1 if name in ONE_ROUND else lab.config.rounds + 1
    for r in range(total):
        lab.bench.place = f"{title}, round {r}" + (f" of {total - 1}" if total > 1 else "")
        facts, before = next(steps), {name: sum(row[name] for row in done) for name in Cost._fields}
        spent = {name: sum(getattr(cost, name) for cost in lab.bench.spent.values()) for name in Cost._fields}
        done.append({**facts, **{name: spent[name] - before[name] for name in Cost._fields}})
        record = {"method": name, "seed": lab.config.seed, "finished": r + 1 == total, "started": old["started"]}
        record |= {"tests_in_train": len(lab.known_tests), "data": lab.data}
        if len(done) >= len(old["rounds"]):
            record |= {"config": old.get("config", _resolved(lab)), **spent, "rounds": done}
            hosts.told(partial(_write, lab, path, record))
        lab.bench.say(_line(facts))


def _begun(lab: Lab, path: Path) -> Mapping[str, Any]:
    """The record of an earlier run, or the beginning of one."""
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    lab.mirror.pull(path)
    new = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rounds": [], "data": lab.data}
    return new | (read_json(path) if path.exists() else {})


def _write(lab: Lab, path: Path, record: Mapping[str, Any]) -> None:
    write_json(path, record)
    lab.mirror.push(path)


def _line(facts: Round) -> str:
    names = {"test_accuracy": f"test {facts['test_measure']}", "label_accuracy": "labels right", "evaluator_accuracy": "evaluator right"}
    known = [f"{what} {facts[name]:.1%}" for name, what in names.items() if facts[name] is not None]
    line = ", ".join(known) or "done; how right it is nobody knows without trusted references of test questions (task.test_path)"
    empty, asked = (
        facts["unread"] or 0,
        facts["labels"] if facts["agreed"] is None else facts["agreed"] + facts["compared"] + facts["unread"],
    )
    return f"{line}; {empty} of {asked} proposals are empty" if 2 * empty > (asked or 0) else line


def _measured(lab: Lab, r: int, model: Artifact, labels: list[Label] | None = None, **facts: Any) -> Round:
    """A round's row: the model (in round 0 the supervisor too) on the test split, the labels against the references, facts."""
    return _row(lab, r, model, lab.test(model) if lab.tests else None, labels) | facts


def _row(lab: Lab, r: int, model: Artifact, tested: tuple[list[Answer], Artifact] | None, labels: list[Label] | None) -> dict[str, Any]:
    """What cannot be known is null: there may be no test split, and no reference for any label."""
    row = {**BLANK, "round": r, "model": lab.relative(model, ""), **(_test_row(lab, *tested) if tested else {})}
    if r == 0 and tested and lab.config.demos != "given":
        row["supervisor_accuracy"] = float(np.nanmean(_worth(lab, lab.test_supervisor()[0])))
    if labels is not None:
        grades = lab.grade_labels(lab.known(labels))
        row["labels"] = len(labels)
        if grades is not None and len(grades):
            row |= {"label_accuracy": float(np.mean(grades)), "label_size": len(grades)}
    return row


def _test_row(lab: Lab, answers: list[Answer], artifact: Artifact) -> Round:
    worth = _worth(lab, answers)
    told = worth[~np.isnan(worth)]  # a judge may leave an answer without a verdict
    interval = metrics.bootstrap_interval(told, lab.config.seed)
    row = {"test_accuracy": interval.mean, "test_interval": [interval.low, interval.high], "test_size": len(told)}
    row |= {"test_measure": "accuracy" if lab.has_grader else "win rate", "answers": lab.relative(artifact, "answers.jsonl")}
    row["test_right"] = worth.tolist() if len(told) == len(worth) else None
    return row | {"findings": lab.findings(answers)}


def _worth(lab: Lab, answers: list[Answer]) -> Shaped[np.ndarray, " n"]:
    """What test answers are worth: right or not; without a grader P(better than the reference), NaN where no valid verdict came."""
    right = lab.grade(answers)
    return feedback.win_rates(lab, answers) if right is None else right
