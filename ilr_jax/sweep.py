"""Many runs as one: every point of a grid of config fields with every seed, a process each, and the estimates of all in one file.

A point is an ordinary workdir, `points/NAME`, whose `stages/` and `partial/` are links to the sweep's own: a stage is named by what goes
into it, so points share those that their fields do not change, and two processes never build one twice. What is finished is skipped;
another grid in the same folder adds points. Not here: the experiment (`rounds`, in the processes) and the estimates (`report`).
Imports no JAX.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ilr_jax import estimates, interruption, main, page, report, settings
from ilr_jax.files import explained, read_json, write_csv, write_json
from ilr_jax.store import claim
from ilr_jax.types import Config

COMMAND = (sys.executable, "-m", "ilr_jax.main")
USAGE = "ilr sweep --config=FILE --workdir=DIR [--grid FIELD=VALUE,VALUE ...] [--seeds=0,1,2] [--jobs=N] [--config.FIELD=VALUE ...]"
COLUMNS = (
    "method",
    "seeds",
    "finished",
    "rounds",
    "test_accuracy",
    "test_low",
    "test_high",
    "difference",
    "difference_low",
    "difference_high",
)
COLUMNS += ("label_accuracy_first", "label_accuracy_last", "label_low", "label_high", "label_size")
COLUMNS += ("evaluator_accuracy", "evaluator_low", "evaluator_high", "evaluator_pairs", "replaced")


@dataclass(frozen=True)
class Point:
    """One setting of the swept fields, as text; its name is that of its folder."""

    fields: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """`alpha=0.3,folds=3`; what a folder's name should not hold is replaced, and a hash then keeps names apart."""
        text = ",".join(f"{field}={value}" for field, value in self.fields) or "base"
        plain = re.sub(r"[^A-Za-z0-9=.,_+-]", "_", text)[:120]
        return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def flags(self) -> list[str]:
        """The point as flags of a run."""
        return [f"--config.{field}={value}" for field, value in self.fields]


@dataclass(frozen=True)
class Job:
    """One process: a point with one seed, all methods."""

    title: str
    command: tuple[str, ...]
    log: Path
    records: tuple[Path, ...]

    def finished(self) -> bool:
        """Whether every method's record says so."""
        return all(path.exists() and read_json(path)["finished"] for path in self.records)


def run(argv: Sequence[str] | None = None) -> int:
    """Run a sweep's command line, or continue it; returns the exit code: 1 if a run failed, 2 for what a user can put right at once.

    Ctrl-C and SIGTERM end the runs first: 130 and 143.
    """
    options, flags = parser().parse_known_args(list(sys.argv[1:] if argv is None else argv))
    try:
        with interruption.listening():
            return _run(options, flags)
    except interruption.Interrupted as notice:
        print("stopped; the same command continues", file=sys.stderr)
        return notice.code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, flags: list[str]) -> int:
    base, workdir = main.config_of(flags)
    if "://" in workdir:
        raise ValueError(f"wanted a folder as workdir of a sweep, whose runs share stages by locks, got {workdir!r}")
    jobs = plan(flags, base, Path(workdir), grid(options.grid), _seeds(options.seeds))
    if options.jobs < 1:
        raise ValueError(f"--jobs: wanted at least 1, got {options.jobs}")
    failed = execute(jobs, options.jobs)
    entries = collect(workdir)
    if entries:
        Console().print(*tables(entries), page.LEGEND, sep="\n", markup=False)
        print(*(Path(workdir) / name for name in ("results.json", "results.csv")), sep="\n")
    for job in failed:
        print(f"failed: {job.title}: {_last_line(job.log)}\n  log: {job.log}", file=sys.stderr)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The sweep's own arguments; all others are those of `ilr run`."""
    made = argparse.ArgumentParser("ilr sweep", usage=USAGE, description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    made.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=V,V", help="a config field and its values; several: all combined"
    )
    made.add_argument("--seeds", default="0", metavar="N,N", help="default: %(default)s")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time; default: %(default)s")
    return made


def grid(axes: Sequence[str]) -> list[Point]:
    """Every combination of the axes `FIELD=VALUE,VALUE` (with `;` between values that hold commas), the last axis fastest.

    Raises ValueError, listing them, for axes that are none.
    """
    swept, faults = {}, []
    for axis in axes:
        field, _, values = axis.partition("=")
        field = field.strip().removeprefix("config.")
        given = [value.strip() for value in values.split(";" if ";" in values else ",")]
        if not field or not all(given) or len(set(given)) < len(given):
            faults.append(f"--grid {axis}: wanted FIELD=VALUE,VALUE with values that differ")
        elif field in swept or field in ("method", "seed"):
            hint = {"method": "give methods by --config.method", "seed": "give seeds by --seeds"}.get(field, "give all its values at once")
            faults.append(f"--grid {axis}: {field} cannot be an axis (again); {hint}")
        swept[field] = [(field, value) for value in given]
    if faults:
        raise ValueError("\n  ".join(["the grid cannot be swept:", *faults]))
    return [Point(combined) for combined in product(*swept.values())]


def plan(flags: Sequence[str], base: Config, folder: Path, points: Sequence[Point], seeds: Sequence[int]) -> list[Job]:
    """The jobs of a sweep, after all configs were checked, the folder claimed and the points' workdirs laid out.

    Seeds are next to each other, because points wait for each other's common stages and seeds have none. Raises ValueError.
    """
    methods = _checked(flags, points)
    if (folder / "runs").is_dir():
        raise ValueError(f"--workdir={folder}: wanted the folder of a sweep, or a new one, got that of a run")
    claim(folder, base.to_dict(), ignore=(*settings.incidental(base), *(name for point in points for name, _ in point.fields)))
    jobs = []
    for point in points:
        workdir = _workdir(folder, point)
        for seed in seeds:
            command = (*COMMAND, *flags, f"--workdir={workdir}", *point.flags, f"--config.seed={seed}")
            records = tuple(workdir / "runs" / f"{method}-seed{seed}.json" for method in methods[point])
            jobs.append(Job(f"{point.name} seed {seed}", command, folder / "logs" / f"{point.name}-seed{seed}.log", records))
    return jobs


def execute(jobs: Sequence[Job], n: int) -> list[Job]:
    """Run the jobs that are not finished, `n` at a time, each on its share of the cores; returns those that failed, which stop no other."""
    waiting, running, failed = [job for job in jobs if not job.finished()], {}, []
    free = _shares(n)
    where = f"; what they say: {jobs[0].log.parent}" if waiting else ""
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished before{where}", flush=True)
    total = len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < n:
                job, share = waiting.pop(0), free.pop()
                with interruption.held():  # or a signal might leave one that nobody ends
                    running[job] = _start(job, share), share
            for job in [job for job, (process, _) in running.items() if process.poll() is not None]:
                process, share = running.pop(job)
                free.append(share)
                code = process.returncode
                failed += [job] if code else []
                done = total - len(waiting) - len(running)
                print(f"[{done}/{total}] {job.title}: {f'failed with exit code {code}' if code else 'finished'}", flush=True)
            time.sleep(0.05)
    finally:
        if running:
            done = sum(job.finished() for job in jobs)
            print(f"{done} of {len(jobs)} runs are finished; {len(running)} under way are ended, trainings save first", flush=True)
        for process, _ in running.values():
            process.terminate()  # a run that is killed continues with the same bytes
        for process, _ in running.values():
            process.wait()
    return failed


def collect(folder: str | Path) -> list[dict[str, Any]]:
    """One entry per point and method of the folder, as `estimates.summarise` has them, with the point's fields; writes both result files.

    Points of which no round has ended yet are left out. Raises ValueError for a damaged record.
    """
    entries = []
    for path in sorted(Path(folder, "points").iterdir()):
        if list(path.glob("runs/*.json")):
            summary = estimates.summarise(report.collect([path]))
            entries += [{"point": path.name, "fields": read_json(path / "point.json"), **entry} for entry in summary]
    write_json(Path(folder) / "results.json", {"points": entries})
    lines = [{"point": entry["point"], **entry["fields"], **_flat(entry)} for entry in entries]
    fields = [name for entry in entries for name in entry["fields"]]
    write_csv(Path(folder) / "results.csv", lines, ["point", *fields, *COLUMNS])
    return entries


def tables(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The entries for a terminal, a table for each point, as a report has it."""
    for point, group in groupby(entries, lambda entry: entry["point"]):
        yield report.lines(point, page.HEADLINE, map(page.headline, group))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: wanted whole numbers and commas, 0,1,2, got {text!r}") from error
    return list(dict.fromkeys(seeds))


def _checked(flags: Sequence[str], points: Sequence[Point]) -> dict[Point, list[str]]:
    """The methods of every point. ValueError that lists what is wrong with which."""
    methods: dict[Point, list[str]] = {}
    faults: dict[str, str] = {}  # the first point that has each
    for point in points:
        try:
            methods[point] = settings.check(main.config_of([*flags, *point.flags])[0])
        except ValueError as error:
            faults.setdefault(str(error), point.name)
    if faults:
        raise ValueError("\n".join(["the sweep cannot be run:", *(f"{name}: {fault}" for fault, name in faults.items())]))
    return methods


def _workdir(folder: Path, point: Point) -> Path:
    """The point's workdir, laid out. The links are relative, so that the sweep's folder can be moved."""
    workdir = folder / "points" / point.name
    with explained(workdir):
        for made in (workdir, folder / "logs"):
            made.mkdir(parents=True, exist_ok=True)
        for name in ("stages", "partial"):
            (folder / name).mkdir(exist_ok=True)
            with suppress(FileExistsError):
                os.symlink(os.path.join("..", "..", name), workdir / name)
    write_json(workdir / "point.json", dict(point.fields))
    return workdir


def _shares(n: int) -> list[set[int]]:
    """The cores of this process in `n` parts, each empty where they cannot be parted.

    XLA computes with a thread for every core; the threads of several processes on the same cores would wait for each other.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # Linux has it, macOS does not
    return [set(cores[i::n]) if 1 < n <= len(cores) else set() for i in range(n)]


def _start(job: Job, cores: set[int]) -> subprocess.Popen:
    with explained(job.log), open(job.log, "wb") as log:
        process = subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    if cores:
        with suppress(ProcessLookupError):  # it may have ended already
            os.sched_setaffinity(process.pid, cores)
    return process


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's figures under the names of COLUMNS, intervals and difference taken apart."""
    minus = entry["difference"] or {"mean": None, "interval": None}
    ends = {"difference": minus["interval"], **{what: entry[f"{what}_interval"] for what in ("test", "label", "evaluator")}}
    apart = {f"{what}_{end}": (pair or (None, None))[i] for what, pair in ends.items() for i, end in enumerate(("low", "high"))}
    found = {**entry, **apart, "difference": minus["mean"], "seeds": len(entry["seeds"])}
    return {column: found[column] for column in COLUMNS}


if __name__ == "__main__":
    sys.exit(run())
