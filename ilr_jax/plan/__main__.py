"""Whether an experiment fits a machine, and how long it would take: every program compiled for devices that are described, none run.

Example: python -m ilr_jax.plan --config=configs/gsm8k.py --topology=v5e:2x4 --config.compute.remat=full
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import inf, prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ilr_jax import main, settings
from ilr_jax.plan import chips, figures
from ilr_jax.plan.chips import Chip
from ilr_jax.plan.figures import Asked, Row

USAGE = "python -m ilr_jax.plan --config=FILE --topology=KIND:SHAPE [--json=FILE] [--config.FIELD=VALUE ...]"
TOPOLOGY = (
    "v5e, v5p or v6e and the shape of the slice, as v5e:2x4 (the TPU compiler; the extra 'tpu' has it), gpu:1 (GPUs of this "
    "machine), h100:8, or cpu:8, which this machine's CPU stands for"
)
SIZES = ("arguments", "temporaries", "output", "memory", "free")  # GiB of a device
COLUMNS = ("program", "runs", "Mtokens", *SIZES, "TFLOP", "GB moved", "GB sent", "ms", "MFU", "hours", "compiled in")
WIDTH = 150  # of the table, at least
NUMBERS = {
    "examples": (7473, "training examples, half of them the supervisor's (those of GSM8K)"),
    "tests": (1319, "test questions (those of GSM8K)"),
    "prompt": (128, "tokens of a question"),
    "answer": (128, "tokens of an answer"),
    "length": (512, "tokens of a training row, into which samples are packed"),
}


def run(argv: Sequence[str] | None = None) -> int:
    """Plan the experiment of a command line; returns the exit code: 1 if something does not fit, 2 for what a user can put right.

    What an H100 that is not here has no room for is not known: the CPU's compiler, which is asked, takes more memory than the card's.
    """
    options, flags = parser().parse_known_args(list(sys.argv[1:] if argv is None else argv))
    try:
        chip, shape = topology(options.topology)
        _prepare(chip, prod(shape))
        config, _ = main.config_of([*flags, "--workdir=plan"])
        _check(options, config)
        rows = list(planned(config, chip, shape, options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    hours = sum(row["hours"] for row in rows if row["hours"] is not None)
    whole = chip is not None and chip.clock is not None and all(row["hours"] is not None for row in rows)
    Console(width=max(WIDTH, Console().width)).print(table(rows, chip, prod(shape)))
    bound = "by the CPU's compiler, which may want twice what the card's does, " if chip is chips.H100 else ""
    for row in rows:
        if row["advice"]:
            row["advice"] = bound + row["advice"]
            print(f"{row['program']}: {row['advice']}")
    if hours:
        least = "" if whole else "at least "  # no compiler was asked, or it refused a program and told no time
        total = f"{hours:,.1f} hours, {hours * prod(shape):,.1f} chip-hours"
        print(f"{least}{total} on {options.topology}, loading, compiling and work of the host apart")
    if options.json:
        found = {"topology": options.topology, "whole": whole, "chip_hours": hours * prod(shape) or None, "programs": rows}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if not bound and any(row["advice"] for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    """The plan's own arguments; all others are those of `ilr run`."""
    made = argparse.ArgumentParser("ilr_jax.plan", usage=USAGE, description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    made.add_argument("--topology", required=True, metavar="KIND:SHAPE", help=TOPOLOGY)
    for name, (value, what) in NUMBERS.items():
        made.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{what}; default: %(default)s")
    made.add_argument("--only", action="append", metavar="TEXT", help="only the programs whose name has TEXT in it; may be given again")
    made.add_argument("--json", metavar="FILE", help="write all figures there too")
    return made


def topology(text: str) -> tuple[Chip | None, tuple[int, ...]]:
    """The chip (None: this machine's CPU) and the shape of a slice of them. ValueError for what is neither."""
    kind, _, sides = text.partition(":")
    known = {**chips.TPUS, "h100": chips.H100, "gpu": chips.GPU, "cpu": None}
    if kind not in known or not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", sides):
        raise ValueError(f"--topology={text}: wanted {TOPOLOGY}")
    return known[kind], tuple(int(part) for part in sides.split("x"))


def _check(options: argparse.Namespace, config: Any) -> None:
    faults = [f"--{name}: wanted at least 1, got {getattr(options, name)}" for name in NUMBERS if getattr(options, name) < 1]
    if options.prompt + options.answer > options.length:
        faults.append(f"--length: wanted at least the {options.prompt + options.answer} tokens of a sample, got {options.length}")
    if options.json and not Path(options.json).resolve().parent.is_dir():
        faults.append(f"--json={options.json}: wanted a file in a folder that is there")
    if config.compute.attention == "cudnn" and not options.topology.startswith("gpu:"):
        faults.append("compute.attention='cudnn': wanted another, which can be compiled without an NVIDIA GPU")
    if faults:
        raise ValueError("; ".join(faults))
    settings.check(config)


def _prepare(chip: Chip | None, count: int) -> None:
    """Before JAX starts: only `gpu` needs an accelerator, and a CPU stands for devices that have no compiler here."""
    if chip is chips.GPU:
        from ilr_jax.models.platform import take_memory

        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        take_memory()
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # only a process that holds a TPU has to be alone
    if chip is None or chip.clock is None:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()


def _devices(chip: Chip | None, shape: tuple[int, ...]) -> list[Any]:
    import jax
    from jax.experimental import topologies

    if chip is chips.GPU:
        found = _gpus()[: prod(shape)]
    elif chip is None or chip.clock is None:
        found = jax.devices("cpu")
    else:
        name = f"{chip.name}:{'x'.join(map(str, shape))}"
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except Exception as error:  # libtpu is not there, or knows no such slice: it has no error type of its own
            reason = str(error).splitlines()[0]
            there = (
                "take a shape that is made, as 2x2, 2x4 or 4x4 (v5p: 2x2x1, 2x2x4)" if find_spec("libtpu") else "install the extra 'tpu'"
            )
            raise ValueError(f"--topology={name}: wanted a slice that libtpu can describe, got: {reason}; {there}") from error
    if len(found) != prod(shape):
        raise ValueError(f"--topology: wanted {prod(shape)} {chip.name if chip else 'cpu'} devices, got {len(found)}")
    return list(found)


def _gpus() -> list[Any]:
    import jax

    try:
        return jax.devices("gpu")
    except RuntimeError:  # which is how JAX says that there are none
        return []


def _seen(gpu: Any) -> Chip:
    """What a GPU of this machine has; of those whose rates are not known here the time stays open."""
    known = chips.H100 if "H100" in gpu.device_kind else chips.GPU
    return known._replace(memory=(gpu.memory_stats() or {}).get("bytes_limit", known.memory))


def planned(config: Any, chip: Chip | None, shape: tuple[int, ...], options: argparse.Namespace) -> Iterator[Row]:
    """A row of figures for every program of the experiment, as it is compiled."""
    from ilr_jax.models.platform import described

    made = asked(config, chip, shape, options)
    for program in made.programs:
        print(f"{program.stage} ...", file=sys.stderr, flush=True)
        with described(made.kind):
            row = figures.row(program, made)
        yield row


def asked(config: Any, chip: Chip | None, shape: tuple[int, ...], options: argparse.Namespace) -> Asked:
    """The programs of the experiment for devices of that kind. ValueError for a name in `--only` that none has."""
    from ilr_jax import roles
    from ilr_jax.models.platform import described
    from ilr_jax.plan.programs import Load, Planned
    from ilr_jax.stages import Bench
    from ilr_jax.store import Store
    from ilr_jax.tasks import GRADERS

    devices = _devices(chip, shape)
    chip = _seen(devices[0]) if chip is chips.GPU else chip
    graded = bool(GRADERS.get(config.task.name))
    models = {role: roles.config_of(config[role].model) for role in roles.needed(config, graded)}
    if config.compute.dtype == "auto" and chip is not None:
        config.compute.dtype = "bfloat16"
    bench = Bench(Store("plan"), config)
    memory = int(chip.memory) if chip and chip.memory < inf else None
    bench.layouts = roles.layouts(config.sharding, models, bench.dtype, devices, memory)
    kind = "tpu" if chip and chip.clock else None
    with described(kind):
        bench.check(list(models.values()))
    load = Load(options.examples, options.tests, options.prompt, options.answer, options.length)
    with described(kind):
        everything = list(Planned(bench, models, load, devices, chip.memory if chip else inf, graded).programs())
    for text in options.only or []:
        if not any(text in program.stage for program in everything):
            raise ValueError(f"--only={text}: wanted a part of a program's name: {', '.join(program.stage for program in everything)}")
    programs = [program for program in everything if any(text in program.stage for text in options.only or [""])]
    return Asked(programs, chip, bench.layout, len(devices))


def table(rows: Sequence[Row], chip: Chip | None, count: int) -> Table:
    """The rows for a terminal; tokens of all runs, sizes in GiB a device, moved and sent by a device, FLOPs of all of them.

    Output: what does not take the place of arguments. Memory: all of these, and what the stage holds beside; free: what it leaves.
    """
    mesh = " x ".join(f"{name}={n}" for name, n in rows[0]["mesh"].items()) if rows and rows[0]["mesh"] else "one device"
    made = Table(title=f"{count} x {chip.name if chip else 'CPU'}, {mesh}", box=None, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(COLUMNS):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    show = lambda value, form: "" if value is None else format(value, form)
    for row in rows:
        sizes = row | {"free": row["has"] and row["has"] - row["memory"]}
        giga = [show(sizes[name] if sizes[name] is None else sizes[name] / 2**30, ".1f") for name in SIZES]
        work = [f"{row['flops'] / 1e12:,.1f}", *(show(row[name] and row[name] / 1e9, ",.1f") for name in ("moved", "sent"))]
        times = [show(row["seconds"] and row["seconds"] * 1e3, ",.0f"), show(row["mfu"], ".0%"), show(row["hours"], ",.2f")]
        made.add_row(
            row["program"],
            f"{row['runs']:,}",
            f"{row['runs'] * row['tokens'] / 1e6:,.1f}",
            *giga,
            *work,
            *times,
            f"{row['compile_seconds']:.0f} s",
        )
    return made


if __name__ == "__main__":
    sys.exit(run())
