"""Runs into figures: rows, a summary and report cards (`results.json`), rows (`results.csv`), a table for the terminal, and the page.

It reads finished artifacts only: nothing is trained, graded or sampled here, and JAX is not imported. How the page looks is `page`'s.
From: the quantities that the ILR paper reports per round (arXiv 2501.07886): accuracy on test, accuracy of the labels.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text

from ilr_jax import metrics, page, settings
from ilr_jax.files import encode, explained, flat, read_json, read_rows, without, write_bytes, write_csv
from ilr_jax.refine.card import asked, card, replacements
from ilr_jax.types import Audit, Comparison

BASELINE = "sft"
RIVALS = ("dpo", "dpo_pairs", "sft_chosen", "naive", "sft")  # what ILR is compared with
FIELDS = (
    "test_accuracy",
    "test_interval",
    "test_size",
    "test_right",
    "findings",
    "supervisor_accuracy",
    "label_accuracy",
    "labels",
)
FIELDS += ("test_measure", "unanswered", "evaluator_accuracy", "evaluator_pairs", "agreed", "unread", "compared", "preferences", "replaced")
FIELDS += ("threshold", "seconds", "training_flops")
KEPT = ("audit", "comparisons", "answers")  # files that a row names

Row = dict[str, Any]


def _short_names(workdirs: Sequence[str | Path]) -> dict[str, str]:
    """Path -> the name shown for it: its last part, or the whole path where two share that."""
    paths = list(dict.fromkeys(os.path.normpath(path) for path in workdirs))
    last = [os.path.basename(os.path.abspath(path)) for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}


def runs(workdir: str | Path) -> list[Row]:
    """The workdir's run records, by file name. Raises ValueError if there is no such folder, no run, or a damaged record."""
    if not os.path.isdir(workdir):
        raise ValueError(f"wanted a workdir, got {str(workdir)!r}, which is no folder; give the --workdir of a run")
    records = [_record(path) for path in sorted(Path(workdir, "runs").glob("*.json"))]
    if not records:
        raise ValueError(f"wanted runs in {workdir}, got no runs/*.json there; is it a workdir, and has its first round ended?")
    return records


def collect(workdirs: Sequence[str | Path]) -> list[Row]:
    """One row per method, seed and round of all workdirs, the baseline first; a figure that does not apply is None.

    `series` names the curve that a row belongs to: the method, with its workdir if two hold the same run or differ in settings.
    Raises ValueError for a folder that is no workdir, and if no round has ended yet.
    """
    names = _short_names(workdirs)
    rows = [row for folder, name in names.items() for run in runs(folder) for row in _rows(folder, name, run)]
    if not rows:
        raise ValueError(f"wanted finished rounds in {', '.join(names)}, got none yet; `ilr status` shows what is under way")
    places = [(row["method"], row["seed"], row["round"]) for row in rows]
    clash = len(set(places)) < len(places) or any(_settings(folder) != _settings([*names][0]) for folder in names)
    for row in rows:
        row["series"] = f"{row['method']} ({row['workdir']})" if clash else row["method"]
    return sorted(rows, key=lambda row: (row["method"] != BASELINE, row["series"], row["seed"], row["round"]))


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One entry per series: its final test accuracy over seeds, the difference to the baseline, and what became of the labels.

    Intervals are 95 % bootstrap over seeds and, where every run tells which test examples were right, over these too.
    Runs that have not ended count only in a series that has no other.
    """
    series = _series(rows)
    return [_entry(name, group, series.get(_sibling(group[0], BASELINE))) for name, group in series.items()]


def differences(rows: Sequence[Row]) -> list[Row]:
    """Final test accuracy of ILR minus that of each rival, paired by seed and, where all runs tell, by test example, with its interval."""
    series, found = _series(rows), []
    for name, group in series.items():
        for rival in RIVALS if group[0]["method"] == "ilr" else ():
            against = _sibling(group[0], rival)
            if against in series and (difference := _difference(_last(group), _last(series[against]))):
                finished = all(row["finished"] for row in [*group, *series[against]])
                found.append({"series": name, "against": against, "finished": finished, **difference})
    return found


def decisions(rows: Sequence[Row]) -> list[list[Audit]]:
    """What each row's round decided about labels; of a method that leaves them alone, nothing."""
    return [read_rows(Path(row["audit"]), Audit) if row["audit"] else [] for row in rows]


def cards(rows: Sequence[Row], audits: Sequence[Sequence[Audit]]) -> list[Row]:
    """The report card (`refine.card`) of each series' evaluator, on the comparisons of all rounds and seeds; `audits` are of the rows."""
    made = []
    for name in dict.fromkeys(row["series"] for row in rows):
        mine = [(row, audit) for row, audit in zip(rows, audits, strict=True) if row["series"] == name]
        decided = [decision for _, audit in mine for decision in audit]
        sampled = [x for row, _ in mine if row["comparisons"] for x in read_rows(Path(row["comparisons"]), Comparison)]
        if found := card(asked(decided) + sampled):
            made.append({"series": name, **found, **replacements(decided)})
    return made


def table(rows: Sequence[Row]) -> Table:
    """The summary for a terminal, a row per method."""
    summary = summarise(rows)
    lines = [page.supervisor(summary), page.LEGEND, *map(page.difference, differences(rows))]
    caption = "\n".join(line for line in lines if line)
    result = Table(title="Iterative label refinement", caption=Text(caption), box=None, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(page.HEADLINE):
        result.add_column(column.replace(" ", "\n"), justify="right" if number else "left", overflow="fold")
    for entry in summary:
        result.add_row(*(Text(cell.replace(" [", "\n[")) for cell in page.headline(entry)))  # so that 80 columns are enough
    return result


def write(workdirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write `results.json`, `results.csv` and `report.html` to `out` and return the page's path.

    By default `out` is the workdir, or the working folder if there are several. The same artifacts give the same bytes. Raises ValueError
    for what is no workdir, StorageError if the disk refuses.
    """
    rows, folder = collect(workdirs), Path(out or (workdirs[0] if len(_short_names(workdirs)) == 1 else "."))
    summary = summarise(rows)
    backgrounds = [_background(path, name) for path, name in _short_names(workdirs).items()]
    audits = decisions(rows)
    made = {"summary": summary, "differences": differences(rows), "cards": cards(rows, audits)}
    text = page.render(rows, audits, backgrounds, **made)
    moved = lambda row: {file: row[file] and os.path.relpath(row[file], folder) for file in KEPT}
    kept = [{key: value for key, value in row.items() if key != "test_right"} | moved(row) for row in rows]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "results.json", encode({"rows": kept, **made}, "the results", indent=1) + b"\n")
    write_csv(folder / "results.csv", [_plain(row) for row in kept])
    write_bytes(folder / "report.html", text.encode())
    return folder / "report.html"


def _plain(row: Row) -> Row:
    """The row with what is inside a field taken apart: the ends of the interval, what else was found of test answers."""
    low, high = row["test_interval"] or (None, None)
    others = {f"findings.{name}": value for name, value in (row["findings"] or {}).items()}
    left = {key: value for key, value in row.items() if key not in ("test_interval", "findings")}
    return {**left, "test_low": low, "test_high": high, **others}


def _record(path: Path) -> Row:
    record = read_json(path)
    if not isinstance(record, dict) or not record.keys() >= {"method", "seed", "finished", "rounds"}:
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"wanted a run's record in {path}, got {got}; delete it and start the run again, its stages are kept")
    return record


def _rows(folder: str, name: str, run: Mapping[str, Any]) -> Iterator[Row]:
    head, spent = {"workdir": name, "method": run["method"], "seed": run["seed"], "finished": run["finished"]}, 0
    for entry in run["rounds"]:
        flows, spent = entry.get("flows") or {}, spent + (entry.get("compared") or 0)
        row = head | {"round": entry["round"], "spent": spent} | {field: entry.get(field) for field in FIELDS}
        row |= {flow: flows.get(flow) for flow in page.FLOWS}
        yield row | {file: entry.get(file) and os.path.join(folder, entry[file]) for file in KEPT}


def _settings(folder: str) -> Row:
    """The fields of a workdir's config in which its runs are alike."""
    config = _config(folder)
    return without(flat(config), settings.incidental(config))


def _config(folder: str) -> Row:
    path = Path(folder, "config.json")
    return read_json(path) if path.exists() else {}


def _background(folder: str, name: str) -> Row:
    """What a workdir's figures rest on: its config, evaluators, package versions and devices."""
    manifests = [read_json(path) for path in sorted(Path(folder).glob("stages/evaluator-*/manifest.json"))]
    versions: dict[str, set[str]] = {}
    for about in (read_json(path) for path in Path(folder).glob("stages/*/about.json")):
        for package, version in {"python": about.get("python"), **about.get("packages", {}), **about.get("how", {})}.items():
            versions.setdefault(package, set()).add(str(version))
    found = {package: ", ".join(sorted(seen - {"None", ""})) for package, seen in sorted(versions.items())}
    trained = [manifest for manifest in manifests if manifest["name"] == "evaluator"]  # not what wrote its data
    evaluators = [manifest["metrics"] | {"key": manifest["key"][:12]} for manifest in trained]
    known = max((record.get("tests_in_train", 0) for record in runs(folder)), default=0)
    made = {"name": name, "config": flat(_config(folder)), "evaluators": evaluators, "tests_in_train": known}
    return made | {"versions": {k: v for k, v in found.items() if v}}


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each series, of its finished runs only if it has some."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row["series"], []).append(row)
    return {name: [row for row in group if row["finished"]] or group for name, group in series.items()}


def _sibling(row: Row, method: str) -> str:
    """The series of another method in the same workdir."""
    return method + row["series"].removeprefix(row["method"])


def _last(rows: Sequence[Row]) -> dict[int, Row]:
    """The last round of each seed."""
    return {row["seed"]: row for row in rows}


def _entry(name: str, rows: Sequence[Row], baseline: Sequence[Row] | None) -> Row:
    first, last = _last(rows[::-1]), _last(rows)
    replaced = [row["replaced"] for row in rows if row["replaced"] is not None]
    judged = [row for row in rows if row["evaluator_accuracy"] is not None]
    pairs = sum(row["evaluator_pairs"] for row in judged)
    return {
        "series": name,
        "method": rows[0]["method"],
        "seeds": sorted(last),
        "finished": all(row["finished"] for row in rows),
        "rounds": max(row["round"] for row in rows),
        "test_accuracy": _mean(row["test_accuracy"] for row in last.values()),
        "test_interval": _interval(list(last.values())),
        "test_size": max((row["test_size"] or 0 for row in last.values()), default=0) or None,
        "test_measure": rows[0]["test_measure"],
        "supervisor_accuracy": _mean(row["supervisor_accuracy"] for row in first.values()),
        "difference": None if baseline is None or rows[0]["method"] == BASELINE else _difference(last, _last(baseline)),
        "label_accuracy_first": _mean(row["label_accuracy"] for row in first.values()),
        "label_accuracy_last": _mean(row["label_accuracy"] for row in last.values()),
        "evaluator_accuracy": sum(row["evaluator_accuracy"] * row["evaluator_pairs"] for row in judged) / pairs if pairs else None,
        "evaluator_pairs": pairs or None,
        "replaced": sum(replaced) / len(last) if replaced else None,
    }


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _interval(rows: Sequence[Row]) -> list[float] | None:
    """Of one seed, the interval that its run recorded; None where nothing was tested."""
    if any(row["test_accuracy"] is None for row in rows):
        return None
    return rows[0]["test_interval"] if len(rows) == 1 else _estimated(metrics.bootstrap_interval, _results(rows))


def _difference(rows: Mapping[int, Row], baseline: Mapping[int, Row]) -> Row | None:
    """Of the seeds that both have and tested, paired by seed and, where they tell, by test example."""
    tested = lambda side: {seed for seed, row in side.items() if row["test_accuracy"] is not None}
    seeds = sorted(tested(rows) & tested(baseline))
    if not seeds:
        return None
    results = _results([rows[seed] for seed in seeds] + [baseline[seed] for seed in seeds])
    here, there = results[: len(seeds)], results[len(seeds) :]
    over = "seeds" if results.shape[1] == 1 else "seeds and test examples"
    ends = _estimated(metrics.paired_difference, here, there)
    return {"mean": float(here.mean() - there.mean()), "interval": ends, "seeds": seeds, "over": over}


def _results(rows: Sequence[Row]) -> Float[np.ndarray, "R N"]:
    """Right (1) or wrong (0) per run and test example if all tell, of equally many; else the accuracies, N = 1."""
    told = [row["test_right"] for row in rows]
    if all(told) and len({len(right) for right in told}) == 1:
        return np.array(told, float)
    return np.array([[row["test_accuracy"]] for row in rows])


def _estimated(how: Callable[..., metrics.Estimate], *results: Float[np.ndarray, "R N"]) -> list[float] | None:
    """The interval, or None where there is one number only, which says nothing of its spread."""
    if results[0].size == 1:
        return None
    estimate = how(*results, seed=0)
    return [estimate.low, estimate.high]


if __name__ == "__main__":
    from ilr_jax.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))
