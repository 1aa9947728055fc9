"""How cost grows: python -m benchmarks.growth [NAME ...], into benchmarks/results/growth.json and docs/growth.svg.

Examples, tokens of a row, layers, slots, adapters, devices, rounds, and labels: what should be a line is drawn as one. Imports no PyTorch.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

from benchmarks import parts
from benchmarks.measure import machine, seconds
from benchmarks.shapes import LORA, MODELS, Texts, texts
from ilr_jax import batches, report
from ilr_jax.batches import Epochs, Packing
from ilr_jax.files import read_json, read_rows, write_json, write_rows
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, lora
from ilr_jax.refine import audit, methods, select
from ilr_jax.store import Store
from ilr_jax.tasks import graders
from ilr_jax.train import state, steps
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.steps import Setup
from ilr_jax.types import Artifact, Example, Label, Stage

HERE = Path(__file__).parent
OPTIMIZER = OptimizerConfig(warmup=0.0, schedule="constant")
matplotlib.use("svg")


def _seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    return float(np.median(seconds(run, repeats)))


def _model(**fields: Any) -> Any:
    return configs.from_fields(MODELS["small"] | fields)


def _step(config: Any, rows: int, length: int, k: int = 1) -> tuple[Any, Callable[[], Any]]:
    """An SFT step of K adapters on full rows, and a function that takes it once."""
    ids = np.random.default_rng(0).integers(4, config.vocab_size, (k * rows, length)).tolist()
    batch = jax.device_put(
        batches.documents([[(row[: length // 2], row[length // 2 :])] for row in ids], 0, "sequence", length, length // 2)
    )
    setup, params = Setup(config, LORA), decoder.init(config, jax.random.key(0))
    step: Any = steps.sft_step(setup, OPTIMIZER)
    tree = {"adapters": lora.init(config, LORA, jax.random.split(jax.random.key(0), k))}
    held = [state.init(tree, OPTIMIZER, [1000] * k)]
    arguments = held[0], params, batch

    def once() -> Any:
        held[0], metrics = step(held[0], params, batch)
        return metrics

    return lambda: step.lower(*arguments), once


def examples(counts: Sequence[int] = (500, 1000, 2000, 4000)) -> list[tuple[int, float]]:
    """Seconds until all batches of an epoch of so many examples are made."""

    def made(data: Texts) -> None:
        at = batches.sft([data.samples], Epochs((len(data.samples),), 32, 1, 0), 0, "sequence", 512, Packing())
        for i in range(-(-len(data.samples) // 32)):
            at(i)

    drawn = {n: texts(n, 1024) for n in counts}
    return [(n, _seconds(lambda data=data: made(data), 3)) for n, data in drawn.items()]


def tokens(lengths: Sequence[int] = (128, 256, 512, 1024)) -> list[tuple[int, float]]:
    """Seconds of a step on 4,096 tokens in rows of so many."""
    return [(n, _seconds(_step(_model(), 4096 // n, n)[1])) for n in lengths]


def layers(counts: Sequence[int] = (4, 8, 12, 24, 48, 96)) -> list[tuple[int, float]]:
    """Seconds that compiling a step of so many layers takes."""
    found = []
    for n in counts:
        lower, _ = _step(_model(num_hidden_layers=n), 2, 64)
        traced = lower()
        start = time.perf_counter()
        traced.compile()
        found.append((n, time.perf_counter() - start))
    return found


def slots(counts: Sequence[int] = (16, 32, 64, 128, 256)) -> list[tuple[int, float]]:
    """Seconds of a decoding step of so many slots, 128 places of prompt and 128 of answer each."""
    config = _model()
    params = decoder.init(config, jax.random.key(0))
    return [(n, _seconds(parts.decoding(config, params, n, 128)) / parts.CHUNK) for n in counts]


def adapters(counts: Sequence[int] = (1, 2, 4, 8)) -> list[tuple[int, float]]:
    """Seconds of a step of so many adapters, each on 1,024 tokens."""
    return [(k, _seconds(_step(_model(), 4, 256, k)[1])) for k in counts]


SHARDED = """
import sys
from benchmarks.growth import *
from benchmarks.growth import _model
from configs import base
from ilr_jax import sharding
n = int(sys.argv[1])
config = _model()
rules = base.get_config().sharding.rules.to_dict()
layout = sharding.choose({"data": 1, "fsdp": n, "tensor": 1}, rules, [config.units], 0, 2**40)
tree = {"adapters": jax.eval_shape(lambda: lora.init(config, LORA, jax.random.split(jax.random.key(0), 1)))}
placed = lambda tree: jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, sharding.shardings(layout, tree)
)
start = placed(jax.eval_shape(lambda tree: state.init(tree, OPTIMIZER, [9]), tree))
rows = sharding.put_rows(layout, batches.documents([[([5] * 32, [6] * 32)]] * 8, 0, "sequence", 64, 32))
step = steps.sft_step(Setup(config, LORA, layout=layout), OPTIMIZER)
print(collective_bytes(step.lower(start, placed(decoder.abstract(config)), rows).compile().as_text()))
"""
COLLECTIVE = re.compile(r"= (\(?[^=]*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collective_bytes(program: str) -> int:
    """Bytes of the results of a compiled program's collectives on one device, those inside a loop once."""
    found = 0
    for result in COLLECTIVE.findall(program):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            width = int(re.sub(r"\D", "", kind) or 8) // 8
            found += width * int(np.prod([int(n) for n in shape.split(",") if n]))
    return found


def devices(counts: Sequence[int] = (2, 4, 8)) -> list[tuple[int, float]]:
    """Bytes of collectives' results, on one device, in a step with weights split over so many emulated devices."""
    found = []
    for n in counts:
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"}
        run = subprocess.run([sys.executable, "-c", SHARDED, str(n)], cwd=HERE.parent, env=env, check=True, capture_output=True, text=True)
        found.append((n, float(run.stdout.splitlines()[-1])))
    return found


def refined(count: int, folder: Path) -> None:
    """A round of refinement without models, and the report, which is a command of its own and reads what the round left."""
    made = _refined(count, folder)
    assert len(read_rows(Path(made.folder) / "labels.jsonl", Label)) == count
    where = Path(made.folder).relative_to(folder)
    row = {
        "round": 1,
        "audit": f"{where}/audit.jsonl",
        "label_file": f"{where}/labels.jsonl",
        "label_accuracy": None,
        **made.manifest["metrics"],
    }
    row |= {"test_accuracy": 0.5, "test_interval": [0.4, 0.6], "test_size": 100, "seconds": 1.0, "training_flops": 1e12}
    (folder / "runs").mkdir()
    record = {"method": "ilr", "seed": 0, "finished": True, "started": "2026-01-01T00:00:00Z", "seconds": 1.0, "rounds": [row]}
    write_json(folder / "runs" / "ilr-seed0.json", record)
    report.write([folder])


def _refined(count: int, folder: Path) -> Artifact:
    """Agreement, scores, decisions, labels, all on disk as a stage."""
    rng = np.random.default_rng(0)
    say = lambda value: f"They have {value} in the morning and sell some, which leaves them with half of that.\n#### {value}"
    old, new = rng.integers(0, 50, count).tolist(), rng.integers(0, 50, count).tolist()
    asked = [Example(str(i), f"How many are left of {i} on the second day?", f"#### {i % 50}", "made up") for i in range(count)]
    labels, proposals = [Label(str(i), say(value), "weak") for i, value in enumerate(old)], list(map(say, new))
    grader = graders.named("numeric")
    score = lambda pairs: rng.random(len(pairs))

    def build(stage: Path) -> dict[str, Any]:
        decisions = methods.ilr_round(labels, proposals, asked, grader.agree, score, 1, 0.15, "disagreeing")
        was, would = (grader.grade([getattr(d, side) for d in decisions], asked) for side in ("before", "proposal"))
        after = [d.proposal if d.accepted else d.before for d in decisions]
        rows = audit.audited(decisions, asked, after, map(bool, was), map(bool, would))
        write_rows(stage / "labels.jsonl", select.relabel(labels, decisions))
        write_rows(stage / "audit.jsonl", rows)
        return audit.facts("ilr", rows)

    return Store(folder / "stages").run(Stage("refine", {}, {}), build)


ALONE = """
import json, sys, time
from benchmarks.growth import Path, refined
from benchmarks.measure import peak_memory
start = time.perf_counter()
refined(int(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps([time.perf_counter() - start, peak_memory()]))
"""


def labels(counts: Sequence[int] = (10_000, 100_000, 1_000_000)) -> list[tuple[int, float, int]]:
    """Seconds, and bytes of memory at most, that a round of refinement of so many labels takes without models."""
    found = []
    for n in counts:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            run = subprocess.run([sys.executable, "-c", ALONE, str(n), folder], cwd=HERE.parent, check=True, capture_output=True, text=True)
            found.append((n, *json.loads(run.stdout.splitlines()[-1])))
    return found


def rounds(counts: Sequence[int] = (1, 2, 4, 8)) -> list[tuple[int, float, int]]:
    """Seconds of all stages of ILR over so many rounds, 100 labels of the embedded task, and how many stages there are on disk by then.

    They are points of one sweep, each of which goes on with the stages of those before.
    """
    found, small = [], ["--config.method=ilr", "--config.task.train_examples=200", "--config.task.test_examples=50"]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for n in counts:
            words = ["--config=configs/quickstart.py", f"--workdir={folder}", f"--grid=rounds={n}", *small]
            subprocess.run([sys.executable, "-m", "ilr_jax.sweep", *words], cwd=HERE.parent, check=True, capture_output=True)
            record = read_json(Path(folder, "points", f"rounds={n}", "runs", "ilr-seed0.json"))
            found.append((n, record["seconds"], len(list(Path(folder, "stages").iterdir()))))
    return found


CURVES = {
    "examples": (examples, "examples", "s for an epoch's batches"),
    "tokens": (tokens, "tokens of a row", "s for a step on 4,096 tokens"),
    "layers": (layers, "layers", "s to compile a step"),
    "slots": (slots, "slots", "s for a decoding step"),
    "adapters": (adapters, "adapters", "s for a step, 1,024 tokens each"),
    "devices": (devices, "devices (fsdp)", "bytes of collectives' results in a step"),
    "rounds": (rounds, "rounds of ILR", "s for all stages, 100 labels"),
    "labels": (labels, "labels", "s for a round without models"),
}


def draw(curves: dict[str, list], path: Path) -> None:
    """All curves in one figure."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, points) in zip(axes.flat, curves.items(), strict=False):
        axis.plot([p[0] for p in points], [p[1] for p in points], marker="o")
        axis.set(xlabel=CURVES[name][1], ylabel=CURVES[name][2], ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    matplotlib.rcParams |= {"svg.hashsalt": "ilr_jax", "svg.fonttype": "none"}
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure the curves named, or all; keep the others' figures; draw."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all unless named: {', '.join(CURVES)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(CURVES)):
        parser.error(f"no such curve: {', '.join(unknown)}; there are {', '.join(CURVES)}")
    path = HERE / "results" / "growth.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"curves": {}}
    for name in names or CURVES:
        kept["curves"][name] = CURVES[name][0]()
        print(name, kept["curves"][name], flush=True)
        kept["machine"] = machine()
        path.write_text(json.dumps(kept, indent=1) + "\n")
    draw({name: kept["curves"][name] for name in CURVES if name in kept["curves"]}, HERE.parent / "docs" / "growth.svg")


if __name__ == "__main__":
    main()
