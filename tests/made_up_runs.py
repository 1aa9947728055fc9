"""A workdir as the experiment leaves it, with made-up figures: for the tests of what only reads artifacts."""

import dataclasses
import json
from pathlib import Path

from ilr_jax.types import Audit, Comparison, Label

BLANK = {
    "label_accuracy": None,
    "label_size": None,
    "labels": None,
    "evaluator_accuracy": None,
    "evaluator_pairs": None,
    "agreed": None,
    "compared": None,
}
BLANK |= {"unread": None, "preferences": None, "label_file": None}
BLANK |= {"replaced": None, "threshold": None, "flows": None, "audit": None, "comparisons": None, "answers": "stages/test-0/answers.jsonl"}
BLANK |= {"seconds": 2.5, "training_flops": 1.5e12}
HOSTILE = "</script><script>alert(1)</script><!-- <b>bold</b>"


def write_json(path, value):
    path.write_text(json.dumps(value))  # not synced, unlike the real ones: the tests write many


def write_rows(path, rows):
    path.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))


def round_row(number, accuracy, **facts):
    interval = [accuracy - 0.04, accuracy + 0.04]
    return {**BLANK, "round": number, "test_accuracy": accuracy, "test_interval": interval, "test_size": 500, **facts}


AT_MOST = "score 0.4000 <= threshold 0.6300"


def decision(name, number, accepted=False, reason=AT_MOST, score: float | None = 0.4, right=(False, True), proposal="#### 8"):
    after, limit = proposal if accepted else "#### 7", None if score is None else 0.63
    return Audit(name, number, f"Question {name}?", "#### 7", proposal, after, accepted, reason, score, score, score, limit, *right)


def write_run(workdir, method, rounds, seed=0, finished=True):
    Path(workdir, "runs").mkdir(parents=True, exist_ok=True)
    record = {"method": method, "seed": seed, "finished": finished, "started": "2026-01-01T00:00:00Z", "seconds": 60.0, "rounds": rounds}
    write_json(Path(workdir, "runs", f"{method}-seed{seed}.json"), record)


def write_stage(workdir, name, metrics=None, seconds=3.0):
    folder = Path(workdir, "stages", name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", {"name": name.rpartition("-")[0], "key": name.rsplit("-")[-1], "metrics": metrics or {}})
    about = {"seconds": seconds, "python": "3.11.7", "packages": {"jax": "0.10.2", "torch": None}}
    write_json(folder / "about.json", about | {"how": {"devices": "1 x NVIDIA H100", "mesh": "", "attention": "cudnn"}})
    return folder


def write_refinement(workdir, name, audit):
    folder = write_stage(workdir, name)
    write_rows(folder / "audit.jsonl", audit)
    labels = [Label(row.example_id, row.after, "proposal" if row.accepted else "weak", row.round if row.accepted else 0) for row in audit]
    write_rows(folder / "labels.jsonl", labels)
    return {"audit": f"stages/{name}/audit.jsonl", "label_file": f"stages/{name}/labels.jsonl"}


def write_comparisons(workdir, name):
    """Two samples right and one wrong of one question, compared as DPO does: it flips once, and errs once."""
    rows = [Comparison("q1", "Question q1?", "#### 7", "#### 8, I think", 0.9, 0.3, 0.6, False, True)]
    rows += [Comparison("q1", "Question q1?", "#### 7", "#### 8", 0.2, 0.2, 0.2, False, True)]
    rows += [Comparison("q1", "Question q1?", "#### 8", "#### 8", 0.5, 0.5, 0.5, True, True)]
    write_rows(write_stage(workdir, name) / "comparisons.jsonl", rows)
    return f"stages/{name}/comparisons.jsonl"


def make_workdir(workdir, seeds=(0,)):
    """sft, ilr of two rounds after round 0, and dpo, for each seed; seed s is s points better everywhere."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    write_json(Path(workdir, "config.json"), {"method": "sft,ilr,dpo", "rounds": 2, "task": {"name": HOSTILE}})
    write_stage(workdir, "evaluator-0123456789ab", {"validation_accuracy": 0.7123, "pairs": 88})
    write_stage(workdir, "evaluator-answers-ba9876543210", {"answers": 4321})
    for seed in seeds:
        plus = seed / 100
        given = [decision(f"q{n}", 0, reason="the weak supervisor's answer", score=None, proposal="") for n in (1, 2, 3, 4)]
        file = write_refinement(workdir, f"first-labels-{seed}", given)["label_file"]
        first = round_row(0, 0.50 + plus, label_accuracy=0.41, label_size=4, labels=4, label_file=file, supervisor_accuracy=0.432 + plus)
        write_run(workdir, "sft", [first], seed)
        write_run(workdir, "ilr", [first, *_refined_rounds(workdir, seed, plus)], seed)
        sampled = write_comparisons(workdir, f"preferences-{seed}")
        judged = round_row(1, 0.51 + plus, evaluator_accuracy=0.75, evaluator_pairs=100, compared=150, comparisons=sampled)
        write_run(workdir, "dpo", [first, judged], seed)
    return Path(workdir)


def _refined_rounds(workdir, seed, plus):
    one = [
        decision("q1", 1, accepted=True, reason="score 0.9000 > threshold 0.6300", score=0.9),
        decision("q2", 1, proposal=HOSTILE, right=(True, False)),
        decision("q3", 1, reason="agrees with the label", score=None, right=(True, True)),
        decision("q4", 1, reason="the proposal is empty", score=None, right=(False, None), proposal=""),
    ]
    two = [dataclasses.replace(row, round=2, accepted=False, before=row.after, reason="not judged") for row in one]
    two[1] = decision("q2", 2, accepted=True, reason="score 0.8000 > threshold 0.6300", score=0.8)
    audits = [write_refinement(workdir, f"refine-{seed}{number}", audit) for number, audit in enumerate((one, two), 1)]
    flows = {"right_to_right": 0, "right_to_wrong": 0, "wrong_to_right": 1, "wrong_to_wrong": 0}
    facts = {"labels": 4, "label_size": 4, "agreed": 1, "compared": 2, "replaced": 1, "threshold": 0.63, "flows": flows}
    for number, (accuracy, right, pairs) in enumerate([(0.55, 0.6, 10), (0.61, 0.8, 30)], 1):
        judged = {"evaluator_accuracy": right, "evaluator_pairs": pairs, "label_accuracy": 0.41 + number / 10}
        yield round_row(number, accuracy + plus, **facts, **judged, **audits[number - 1])
