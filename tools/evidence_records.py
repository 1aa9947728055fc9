"""What the evidence keeps of finished runs: figures with their intervals, a record for each method of a point; docs/evidence.jsonl.

Not here: which runs there are, and the documents (`evidence`). A figure is [share, low, high, of how many]; what is not known is null.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ilr_jax import estimates, metrics, page, report
from ilr_jax.files import read_json, write_bytes

Row = dict[str, Any]
Figure = list[float | int | None] | None
Records = dict[tuple[str, str], Row]  # by point and method


def read(path: Path) -> Records:
    """The records of a file; none if it is not there."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["point"], row["method"]): row for row in rows}


def write(path: Path, records: Records) -> None:
    """A record a line."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in records.values()).encode())


def made(workdir: Path, point: str, methods: Sequence[str], seeds: set[int]) -> Iterator[Row]:
    """The records of the methods in the workdir; none before the seeds of all of them have ended."""
    rows = finished(workdir, methods, seeds)
    ahead = {entry["against"]: entry for entry in estimates.differences(rows)}
    for entry in estimates.summarise(rows):
        method = entry["method"]
        mine = [row for row in rows if row["method"] == method]
        asked = [row for row in rows if row["method"] == "ilr"] if method == "dpo_pairs" else mine  # it learns from ILR's comparisons
        of_round = lambda group, number: [row for row in group if row["round"] == number]
        numbers = sorted({row["round"] for row in mine})
        record = {"point": point, "method": method, "run": _day(workdir, method), "seeds": len(entry["seeds"])}
        record |= {"minus_sft": _difference(entry["difference"]), "ilr_minus": _difference(ahead.get(method))}
        record |= {"labels_before": _figure(entry["label_accuracy_first"]), "supervisor": _supervisor(mine), "by_seed": _by_seed(mine)}
        record |= _figures(mine, asked)
        yield record | {"rounds": [{"round": n, **_figures(of_round(mine, n), of_round(asked, n))} for n in numbers]}


def finished(workdir: Path, methods: Sequence[str], seeds: set[int]) -> list[Row]:
    """The rows of the methods with these seeds; none before all of them have ended."""
    if not list(workdir.glob("runs/*.json")):
        return []
    rows = [row for row in report.collect([workdir]) if row["finished"] and row["method"] in methods and row["seed"] in seeds]
    whole = all({row["seed"] for row in rows if row["method"] == method} == seeds for method in methods)
    return rows if whole else []


def _supervisor(rows: Sequence[Row]) -> Figure:
    """The supervisor's own test accuracy, of runs that share its labels."""
    told = np.array([row["supervisor_accuracy"] for row in rows if row["supervisor_accuracy"] is not None])
    if not len(told):
        return None
    share, low, high = metrics.bootstrap_share(told, np.ones(len(told)), seed=0)
    return _figure(share, [low, high])


def _by_seed(rows: Sequence[Row]) -> list[float]:
    """Test accuracy after the last round, by seed."""
    last = {row["seed"]: row["test_accuracy"] for row in rows}
    return [last[seed] for seed in sorted(last)]


def _figures(rows: Sequence[Row], asked: Sequence[Row]) -> Row:
    """What some rounds of a method come to: test and labels after the last, the rest of all; counts, TFLOP and seconds are a seed's."""
    (entry,) = estimates.summarise(rows)
    card = next(iter(estimates.cards(asked, report.decisions(asked))), {})
    told = lambda share: _figure(card[share], card["intervals"][share], card[estimates.SHARES[share]]) if card else None
    each = lambda name: sum(row[name] or 0 for row in rows) / len(entry["seeds"])
    known = lambda name: any(row[name] is not None for row in rows)
    return {
        "test": _figure(entry["test_accuracy"], entry["test_interval"], entry["test_size"]),
        "labels": _figure(entry["label_accuracy_last"], entry["label_interval"], max(row["labels"] or 0 for row in rows)),
        "evaluator": _figure(entry["evaluator_accuracy"], entry["evaluator_interval"], entry["evaluator_pairs"]),
        "gives_up": told("accepts_wrong"),
        "refuses": told("rejects_right"),
        "precision": _precision(rows),
        "recall": told("recall") if asked == rows else None,
        **{name: each(name) if known(name) else None for name in ("compared", "replaced", *page.FLOWS)},
        "tflop": each("training_flops") / 1e12,
        "seconds": each("seconds"),
    }


def _precision(rows: Sequence[Row]) -> Figure:
    """Of the labels that were replaced, those whose new one is right; none of a method that replaces none."""
    seeds: dict[int, list[int]] = {}
    for row in rows:
        right, of = seeds.setdefault(row["seed"], [0, 0])
        counts = {flow: row[flow] or 0 for flow in page.FLOWS}
        seeds[row["seed"]] = [right + counts["wrong_to_right"] + counts["right_to_right"], of + sum(counts.values())]
    right, of = np.transpose(list(seeds.values()))
    if not of.sum():
        return None
    share, low, high = metrics.bootstrap_share(right, of, seed=0)
    return _figure(share, [low, high], int(of.sum()))


def _figure(share: float | None, ends: Iterable[float] | None = None, of: int | None = None) -> Figure:
    low, high = ends or (None, None)
    return None if share is None else [share, low, high, of]


def _difference(entry: Mapping[str, Any] | None) -> Figure:
    return None if entry is None else _figure(entry["mean"], entry["interval"])


def _day(workdir: Path, method: str) -> str:
    """The last day on which one of the method's runs was begun."""
    return max(read_json(path)["started"] for path in workdir.glob(f"runs/{method}-seed*.json"))[:10]
