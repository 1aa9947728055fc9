"""The labels of a run, each with where it came from: what `ilr export --labels` writes.

Not here: tables and pages (`report`). It reads finished artifacts only, and JAX is not imported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilr_jax.files import read_rows
from ilr_jax.report import runs
from ilr_jax.types import Audit, Label

Row = dict[str, Any]


def labels(workdir: str | Path, method: str, seed: int, round: int | None = None) -> list[Row]:
    """The labels after a round (the last by default), each with where it came from.

    Keys: example_id, prompt, text, source, round; and of the decision that put it there, or of the last one that kept a first label:
    decided (its round), decision, accept, reject, score, threshold, reason. Raises ValueError for a run or a round that is not there.
    """
    files = [Path(workdir, entry["label_file"]) for entry in labelled(workdir, method, seed, round)]
    decisions = {row.example_id: [] for row in read_rows(files[0].with_name("audit.jsonl"), Audit)}
    for row in [row for path in files for row in read_rows(path.with_name("audit.jsonl"), Audit)]:
        decisions[row.example_id].append(row)
    return [_provenance(label, decisions[label.example_id]) for label in read_rows(files[-1], Label)]


def labelled(workdir: str | Path, method: str, seed: int, round: int | None = None) -> list[Row]:
    """The entries that left labels; of dpo, whose labels stay, round 0's only. Raises as `labels`."""
    found = [entry for entry in entries(workdir, method, seed, round) if entry.get("label_file")]
    if not found:
        raise ValueError(f"wanted labels of {method!r}, seed {seed}, got no file of labels in its record; start the run again to have them")
    return found


def finished(workdir: str | Path, method: str, seed: int, round: int | None = None) -> bool:
    """Whether the run has ended, or has done the round that is asked for. Raises as `labels`."""
    return round is not None or _run(workdir, method, seed)["finished"]


def entries(workdir: str | Path, method: str, seed: int, round: int | None = None) -> list[Row]:
    """The record's rounds up to `round` (the last by default). Raises as `labels`."""
    found = _run(workdir, method, seed)["rounds"]
    if round not in (None, *(entry["round"] for entry in found)):
        raise ValueError(f"wanted labels of round {round} of {method!r}, seed {seed}, got rounds {[entry['round'] for entry in found]}")
    return [entry for entry in found if round is None or entry["round"] <= round]


def _run(workdir: str | Path, method: str, seed: int) -> Row:
    records = {(record["method"], record["seed"]): record for record in runs(workdir)}
    if (method, seed) not in records:
        there = ", ".join(f"{name} seed {number}" for name, number in records)
        raise ValueError(
            f"wanted the run {method!r} with seed {seed} in {workdir}, got only {there}; take one of these, or add another by "
            "`ilr run` with --config.method and --config.seed"
        )
    return records[method, seed]


def _provenance(label: Label, decisions: Sequence[Audit]) -> Row:
    made = [row for row in decisions if row.accepted and row.round == label.round and label.source == "proposal"]
    last = (made or [row for row in decisions if not row.accepted] or decisions)[-1]
    row = {"example_id": label.example_id, "prompt": last.prompt, "text": label.text, "source": label.source, "round": label.round}
    row |= {"decided": last.round, "decision": "accepted" if last.accepted else "kept"}
    return row | {name: getattr(last, name) for name in ("accept", "reject", "score", "threshold", "reason")}
