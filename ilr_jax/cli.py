"""The console script `ilr`: one verb per thing a user wants, each with an example in its `--help`.

Here are only arguments and printing; the work is in the modules that the verbs load when called, so that `ilr --help` is quick.
Bad input, which every module tells by ValueError or OSError, ends with one message and exit code 2.
From: this project.
"""

import argparse
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ilr_jax.files import encode, read_json, write_bytes
from ilr_jax.mirror import readable


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb with `argv` (the command line's by default); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in PASSED and words[1:2] not in (["-h"], ["--help"]):
        return PASSED[words[0]](words[1:])  # their flags are those of ilr_jax.main, which argparse does not know
    arguments = parser().parse_args(words or ["--help"])
    try:
        code = arguments.verb(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def entry() -> NoReturn:
    """The console script."""
    code = main()
    from ilr_jax.main import leave

    leave(code)


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments."""
    root = argparse.ArgumentParser("ilr", description="Iterative label refinement in JAX.", epilog="example: ilr demo")
    verbs = root.add_subparsers(metavar="VERB", required=True)
    verb = _verb(verbs, "run", run, "run an experiment, or continue it", "ilr run --config=configs/quickstart.py --workdir=runs/quickstart")
    verb.usage = "ilr run --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]     (every FIELD: configs/base.py)"
    example = "ilr sweep --config=configs/quickstart.py --workdir=runs/alpha --grid alpha=0.05,0.15,0.3 --seeds=0,1,2"
    verb = _verb(verbs, "sweep", sweep, "run a grid of config fields with several seeds, and collect one table", example)
    verb.usage = (
        "ilr sweep --config=FILE --workdir=DIR [--grid FIELD=VALUE,VALUE ...] [--seeds=0,1,2] [--jobs=N] [--config.FIELD=VALUE ...]\n"
        "  --grid: the values of a config field; several: all combined   --seeds: 0 of itself   --jobs: runs at a time, 1 of itself"
    )
    verb = _verb(verbs, "report", report, "write report.html, results.json and results.csv, print the table", "ilr report runs/quickstart")
    verb.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of an experiment; several are compared")
    verb.add_argument("--out", metavar="DIR", help="where to write; default: the workdir itself, or of several the working folder")
    verb = _verb(verbs, "status", status, "what is done, what is under way, how much disk it takes", "ilr status runs/quickstart")
    verb.add_argument("workdir", metavar="WORKDIR", help="folder of an experiment")
    verb = _verb(verbs, "export", export, "labels or a model of a run", "ilr export runs/gsm8k --method ilr --labels labels.jsonl")
    _add_export_arguments(verb)
    verb = _verb(
        verbs, "demo", demo, "the quickstart: every method on the embedded task, then the report", "ilr demo --workdir runs/quickstart"
    )
    verb.add_argument("--workdir", default="runs/quickstart", metavar="DIR", help="default: %(default)s; the same command continues there")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    _verb(verbs, "env", env, "versions and devices, for bug reports", "ilr env")
    return root


def run(flags: Sequence[str]) -> int:
    """`python -m ilr_jax.main` with these flags."""
    from ilr_jax import main as experiment

    return experiment.run(["ilr run", *flags])


def sweep(flags: Sequence[str]) -> int:
    """`python -m ilr_jax.sweep` with these flags."""
    from ilr_jax import sweep as sweeps

    return sweeps.run(flags)


PASSED: dict[str, Callable[[Sequence[str]], int]] = {"run": run, "sweep": sweep}


def report(arguments: argparse.Namespace) -> int:
    """Write the report and print the table."""
    from rich.console import Console

    from ilr_jax import report as reports

    workdirs = [readable(workdir) for workdir in arguments.workdirs]
    path = reports.write(workdirs, arguments.out)
    Console().print(reports.table(reports.collect(workdirs)))
    print(*(path.with_name(name) for name in ("results.json", "results.csv")), path, sep="\n")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print runs, stages, what is under way, and sizes. A workdir whose first round has not ended is fine here."""
    workdir = readable(arguments.workdir)
    if not (workdir / "config.json").exists():
        raise ValueError(f"wanted a workdir, got {arguments.workdir!r}, which holds no config.json; give the --workdir of a run")
    parts = {"runs whose first round has ended": _run_lines(workdir), "finished stages": _stage_lines(workdir)}
    copied = "://" in arguments.workdir
    parts |= {} if copied else {"under way": _partial_lines(workdir)}
    for title, lines in parts.items():
        print(f"{title}:", *(list(lines) or ["none"]), sep="\n  ")
    print(f"disk: {_size(workdir) / 1e6:,.1f} MB{', weights and what is under way left out' if copied else ''}")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the labels or the model of one run."""
    which = {"workdir": arguments.workdir, "method": arguments.method, "seed": arguments.seed, "round": arguments.round}
    if arguments.adapter and not arguments.model:
        raise ValueError("wanted --model DIR with --adapter, got --labels; labels have no adapter")
    if arguments.model:
        from ilr_jax.export import model

        model(**which, out=arguments.model, adapter=arguments.adapter)
    else:
        from ilr_jax.provenance import entries, finished, labelled, labels

        which["workdir"] = readable(arguments.workdir)
        lines = [encode(row, "a label") + b"\n" for row in labels(**which)]
        write_bytes(Path(arguments.labels), b"".join(lines))
        after, last = labelled(**which)[-1]["round"], entries(**which)[-1]["round"]
        rest = f"; no later round of {arguments.method} changed any" if last > after else ""
        print(f"{len(lines)} labels, as after round {after}{rest}{'' if finished(**which) else '; the run is unfinished'}")
    print(arguments.model or arguments.labels)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the quickstart's config, report on it, and say what can be done next."""
    from configs import quickstart

    program = "ilr" if shutil.which("ilr") else os.path.relpath(sys.argv[0])  # of which a run makes another
    flags = [f"--config={quickstart.__file__}", f"--workdir={arguments.workdir}", f"--config.seed={arguments.seed}"]
    if code := run(flags) or report(argparse.Namespace(workdirs=[arguments.workdir], out=None)):
        return code
    print(f"next: open {arguments.workdir}/report.html; the refined labels, each with its reason:")
    print(f"  {program} export {arguments.workdir} --method ilr --seed {arguments.seed} --labels labels.jsonl")
    return 0


def env(arguments: argparse.Namespace) -> int:
    """Print versions, devices, cores and memory."""
    from ilr_jax.store import packages

    print(
        f"python {platform.python_version()}", *(f"{name} {version or 'not installed'}" for name, version in packages().items()), sep="\n"
    )
    # In a process of its own: an accelerator that does not start is what a bug report is often about.
    asked = subprocess.run([sys.executable, "-c", "import jax; print(*jax.devices(), sep=', ')"], capture_output=True, text=True)
    devices = asked.stdout.strip() if asked.returncode == 0 else f"none; {asked.stderr.strip()[-500:]}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"system {platform.platform()}", f"devices {devices}", f"cores {os.cpu_count()}", f"memory {memory / 2**30:.1f} GiB", sep="\n")
    return 0


def _verb(verbs: Any, name: str, function: Callable[[Any], int], what: str, example: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    verb.set_defaults(verb=function)
    return verb


def _add_export_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("workdir", metavar="WORKDIR", help="folder of an experiment")
    verb.add_argument("--method", required=True, help="as in the config: ilr, dpo, ...")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    verb.add_argument("--round", type=int, metavar="N", help="default: the last one")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", metavar="FILE", help="write the round's labels as JSON lines, each with where it came from")
    what.add_argument("--model", metavar="DIR", help="write the round's model as a Hugging Face folder")
    verb.add_argument("--adapter", action="store_true", help="with --model: only the LoRA adapter, as a PEFT folder")


def _run_lines(workdir: Path) -> Iterator[str]:
    for path in sorted([*workdir.glob("runs/*.json"), *workdir.glob("points/*/runs/*.json")]):  # its own, or those of a sweep
        record, point = read_json(path), path.parent.parent
        last = record["rounds"][-1]
        state = "finished" if record["finished"] else "unfinished"
        figures = f"test accuracy {last['test_accuracy']:.1%}" if last["test_accuracy"] is not None else "test accuracy not known"
        figures += f", labels right {last['label_accuracy']:.1%}" if last["label_accuracy"] is not None else ""
        figures += f", {record['seconds']:.0f} s of stages (shared ones counted in each)"
        rounds = f"rounds 0 to {last['round']}" if last["round"] else "round 0"
        name = f"{record['method']} seed {record['seed']}" + (f" of {point.name}" if point != workdir else "")
        yield f"{name}: {state}, {rounds} done, {figures}"


def _stage_lines(workdir: Path) -> Iterator[str]:
    for path in sorted(workdir.glob("stages/*/about.json")):
        yield f"{path.parent.name}: {read_json(path)['seconds']:.1f} s, {_size(path.parent) / 1e6:,.1f} MB"


def _partial_lines(workdir: Path) -> Iterator[str]:
    for folder in sorted(path for path in workdir.glob("partial/*") if path.is_dir()):
        if found := _stats(folder):
            age = time.time() - max(entry.st_mtime for entry in found)
            yield f"{folder.name}: {_size(folder) / 1e6:,.1f} MB, last written {age:.0f} s ago"


def _size(folder: Path) -> int:
    return sum(entry.st_size for entry in _stats(folder) if stat.S_ISREG(entry.st_mode))


def _stats(folder: Path) -> list[os.stat_result]:
    """Of the folder and all that is in it; what a live run takes away meanwhile is left out."""
    found = []
    for root, _, names in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in names)):
            with suppress(FileNotFoundError):
                found.append(os.lstat(path))
    return found
