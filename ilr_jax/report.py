"""Runs into figures: rows, a summary and report cards (`results.json`), rows (`results.csv`), a table for the terminal, and the page.

It reads finished artifacts only: nothing is trained, graded or sampled here, and JAX is not imported. How the page looks is `page`'s.
From: the quantities that the ILR paper reports per round (arXiv 2501.07886): accuracy on test, accuracy of the labels.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ilr_jax import page, settings
from ilr_jax.estimates import BASELINE, cards, differences, interval, summarise
from ilr_jax.files import encode, explained, flat, read_json, read_rows, without, write_bytes, write_csv
from ilr_jax.types import Audit

FIELDS = (
    "test_accuracy",
    "test_interval",
    "test_size",
    "test_right",
    "findings",
    "supervisor_accuracy",
    "label_accuracy",
    "label_size",
    "labels",
)
FIELDS += ("test_measure", "unanswered", "evaluator_accuracy", "evaluator_pairs", "agreed", "unread", "compared", "preferences", "replaced")
FIELDS += ("threshold", "seconds", "training_flops")
SHARES = {"label": "label_size", "evaluator": "evaluator_pairs"}  # of a round, with what they are of
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
        if os.path.isdir(Path(workdir, "points")):
            raise ValueError(
                f"wanted a workdir, got the folder of a sweep; give one of {workdir}/points/*, or to `ilr report` all of them and --out=DIR"
            )
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


def decisions(rows: Sequence[Row]) -> list[list[Audit]]:
    """What each row's round decided about labels; of a method that leaves them alone, nothing."""
    return [read_rows(Path(row["audit"]), Audit) if row["audit"] else [] for row in rows]


def table(rows: Sequence[Row]) -> Table:
    """The summary for a terminal, a row per method."""
    summary = summarise(rows)
    told = [page.supervisor(summary), page.LEGEND, *map(page.difference, differences(rows))]
    result = lines("Iterative label refinement", page.HEADLINE, map(page.headline, summary))
    result.caption = Text("\n".join(line for line in told if line))
    return result


def lines(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows of `columns` for a terminal, of which 80 columns are enough: what stands in a cell is broken into lines."""
    result = Table(title=Text(title), box=None, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        result.add_column(column.replace(" ", "\n"), justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in rows:
        result.add_row(*(Text(re.sub(r" (?=of |\[)|(?<=→) ", "\n", cell)) for cell in row))
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
    write_bytes(folder / "results.json", encode({"rows": kept, **made, "backgrounds": backgrounds}, "the results", indent=1) + b"\n")
    write_csv(folder / "results.csv", [_plain(row) for row in kept])
    write_bytes(folder / "report.html", text.encode())
    return folder / "report.html"


def _plain(row: Row) -> Row:
    """The row with what is inside a field taken apart: the ends of intervals, what else was found of test answers."""
    intervals = [f"{what}_interval" for what in ("test", *SHARES)]
    ends = {name.replace("interval", end): (row[name] or (None, None))[i] for name in intervals for i, end in enumerate(("low", "high"))}
    others = {f"findings.{name}": value for name, value in (row["findings"] or {}).items()}
    return {key: value for key, value in row.items() if key not in (*intervals, "findings")} | ends | others


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
        row |= {f"{what}_interval": interval([(row[f"{what}_accuracy"], row[of])]) for what, of in SHARES.items()}
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


if __name__ == "__main__":
    from ilr_jax.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))
