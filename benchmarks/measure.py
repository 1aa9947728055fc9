"""How a figure is taken: two sides in turns, medians of ratios, what the machine can do at best, and whether it is idle.

Not here: what is compared (`training`, `preferences`, `decoding`, `operations`, `rounds`).
"""

import ctypes
import gc
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Setting = TypeVar("Setting")
Side = Callable[[], float]  # does the work once, to the end, and says how much of it there was
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "trl")
STAT, STATUS, CLEAR = Path("/proc/stat"), Path("/proc/self/status"), Path("/proc/self/clear_refs")
QUIET = 0.15  # of one core
QUICK = 15.0  # seconds; what is done sooner is tried again once it is warm


@dataclass(frozen=True)
class Race:
    """Both sides' seconds per repeat, in turns; `work` is what each did, in `unit`, `memory` what it took for that."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]
    cpu: tuple[float, float]
    first: tuple[float, float]
    work: tuple[float, float]
    memory: tuple[int | None, int | None]
    unit: str

    def row(self) -> dict[str, Any]:
        """For the results: the ratio is our speed over the peer's, by the repeats' medians, with the least and greatest of a repeat."""
        scale = self.work[0] / self.work[1]
        ratios = [scale * peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        usual = [statistics.median(side) for side in (self.ours, self.peer)]
        return {
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "unit": f"{self.unit}/s",
            "ours": self.work[0] / usual[0],
            "peer": self.work[1] / usual[1],
            "ours_seconds": list(self.ours),
            "peer_seconds": list(self.peer),
            "cpu_ratio": scale * self.cpu[1] / self.cpu[0],
            "ours_cpu_seconds": self.cpu[0],
            "peer_cpu_seconds": self.cpu[1],
            "ours_compile_seconds": max(0.0, self.first[0] - usual[0]),
            "peer_warmup_seconds": max(0.0, self.first[1] - usual[1]),
            "ours_memory_bytes": self.memory[0],
            "peer_memory_bytes": self.memory[1],
        }


def _timed(side: Side) -> tuple[float, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work = side()
    return time.perf_counter() - wall, time.process_time() - cpu, work


def seconds(run: Callable[[], Any], repeats: int = 5, warm: int = 1) -> list[float]:
    """Of every repeat of a computation by JAX, after `warm` others, the first of which compiles."""
    taken = []
    for _ in range(warm + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return taken[warm:]


def race(ours: Side, peer: Side, unit: str, repeats: int, same: Callable[[], None]) -> Race:
    """Each side once to warm up (that includes compiling), then `repeats` times in turns, the first of a turn alternating.

    Once more, beside the clock, for the memory that each takes.
    `same` looks at what the warm-up left, and raises RuntimeError (`agree`) where the two sides did not do the same.
    """
    sides = (ours, peer)
    first = [_timed(side)[0] for side in sides]
    same()
    runs: tuple[list, list] = ([], [])
    for i in range(repeats):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            runs[which].append(_timed(sides[which]))
    wall, cpu, work = ([tuple(run[j] for run in side) for side in runs] for j in range(3))
    medians = lambda pair: tuple(statistics.median(side) for side in pair)
    return Race(wall[0], wall[1], medians(cpu), (first[0], first[1]), medians(work), (_memory(ours), _memory(peer)), unit)


def _memory(side: Side) -> int | None:
    """Bytes that a side takes at most beyond what was there before; None where the system does not tell."""
    if not CLEAR.exists():
        return None
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what the C library keeps of freed memory would be taken again without a trace
    resident = lambda kind: next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(kind))
    CLEAR.write_text("5")  # proc(5): the peak starts again from here
    before = resident("VmRSS:")
    side()
    return max(0, resident("VmHWM:") - before)


def best(settings: Sequence[Setting], make: Callable[[Setting], Side]) -> Setting:
    """The one of a peer's settings that does most per second; a single one needs no trial.

    Each is tried once, and if that was quick once more, where the first time was to warm up.
    """
    if len(settings) == 1:
        return settings[0]
    tried = []
    for setting in settings:
        first = _timed(side := make(setting))
        tried.append(_timed(side) if first[0] < QUICK else first)
    return settings[max(range(len(tried)), key=lambda i: tried[i][2] / tried[i][0])]


def agree(what: str, ours: float, peer: float, tolerance: float) -> None:
    """Both sides computed the same, or what follows would compare different work."""
    if not abs(ours - peer) <= tolerance * max(abs(peer), 1e-9):
        raise RuntimeError(f"{what}: the two sides differ, {ours} and {peer}: they do not do the same work")


def near(what: str, ours: Any, peer: Any, most: float) -> None:
    """No two entries of both sides' arrays are farther apart than `most`; as `agree`."""
    apart = float(np.abs(np.subtract(ours, peer)).max())
    if not apart <= most:
        raise RuntimeError(f"{what}: the two sides differ by up to {apart}, wanted at most {most}: they do not do the same work")


def _busy() -> tuple[float, float]:
    """Busy time of all cores in ticks, and ours."""
    fields = [int(x) for x in STAT.read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields) - fields[3] - fields[4], time.process_time() * 100


def idle(seconds: float = 2.0) -> float:
    """Cores that others kept busy during `seconds`; 0.0 where the system does not tell."""
    if not STAT.is_file():
        return 0.0
    before = _busy()
    time.sleep(seconds)
    after = _busy()
    return max(0.0, ((after[0] - before[0]) - (after[1] - before[1])) / 100 / seconds)


def _rate(run: Callable[[], Any], work: float, repeats: int = 5) -> float:
    jax.block_until_ready(run())
    return work / min(_timed(lambda: float(jax.block_until_ready(run()) is not None))[0] for _ in range(repeats))


def roofs(size: int = 2048, words: int = 2**27) -> dict[str, float]:
    """What this machine reaches: products of square matrices in FLOP/s, by dtype, and bytes/s of reading."""
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    found = {}
    for dtype in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
        found[dtype] = _rate(lambda a=a: product(a, a), 2 * size**3)
    x, read = jnp.ones(words, jnp.float32), jax.jit(jnp.sum)
    return found | {"bytes": _rate(lambda: read(x), x.nbytes, 50)}  # between neighbours that read, too


def share(roof: Mapping[str, Any], reached: Mapping[str, float]) -> float:
    """How near a row comes to its roof: a `rate` to the machine's of that `kind`, or the least time for its `phases` to its `seconds`.

    A phase takes what it needs longest for: {"float32": FLOPs of products, "bytes": bytes read}, at the rates `reached`.
    """
    if "rate" in roof:
        return roof["rate"] / reached[roof["kind"]]
    return sum(max(amount / reached[kind] for kind, amount in phase.items()) for phase in roof["phases"]) / roof["seconds"]


def machine() -> dict[str, Any]:
    """Where and with what: device, processor, cores, memory, versions."""
    device, cpu = jax.devices()[0], platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {"device": device.device_kind, "cpu": cpu, "cores": cores, "versions": versions, "commit": described.stdout.strip() or None}


def peak_memory() -> int:
    """Bytes that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
