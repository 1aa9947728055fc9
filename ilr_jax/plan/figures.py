"""What is said of a program that is compiled for described devices: its memory, its time, and what to change where it does not fit.

Not here: which programs there are (`programs`), what their text tells (`hlo`).
"""

import re
import time
from dataclasses import dataclass
from math import inf
from typing import Any

from ilr_jax.plan import hlo
from ilr_jax.plan.chips import Chip

TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")  # libtpu's words for a program that does not fit
KERNEL_RATE = 0.5  # of the peak, assumed, in a kernel that has exponentials to compute between its products
TWICE = ("all-reduce",)  # a ring sends what it reduces out and back

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """The programs that are asked for, and the devices that they are for."""

    programs: list[Any]
    chip: Chip | None
    layout: Any
    count: int

    @property
    def kind(self) -> str | None:
        """The platform that these devices stand for where it is not this machine's."""
        return "tpu" if self.chip and self.chip.clock else None


def row(program: Any, made: Asked) -> Row:
    """The figures of one program; of one that the compiler refuses for want of memory, only what it wants."""
    begun = time.monotonic()
    try:
        compiled = program.lower().compile()
    except Exception as error:  # JaxRuntimeError; looked at by its text, which is all it has
        wants = TOO_LARGE.search(str(error))
        if wants is None:
            raise
        memory = float(wants[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[wants[2]]
        nothing = dict.fromkeys(("moved", "sent", "cycles", "collectives", "temporaries", "output", "seconds", "mfu", "hours"))
        found = _head(program, made) | nothing | {"memory": memory + program.beside, "compile_seconds": time.monotonic() - begun}
        found["arguments"] = program.arguments()
        return found | {"advice": advice(found, program)}
    return of(program, compiled, made, time.monotonic() - begun)


def _head(program: Any, made: Asked) -> Row:
    found: Row = {"program": program.stage, "runs": program.times, "tokens": program.tokens, "flops": program.flops}
    found["has"] = made.chip.memory if made.chip and made.chip.memory < inf else None
    return found | {"mesh": dict(made.layout.mesh.shape) if made.layout else {}}


def of(program: Any, compiled: Any, made: Asked, took: float) -> Row:
    """What is planned of a program that took so many seconds to compile."""
    chip, count = made.chip, made.count
    stats, cost = compiled.memory_analysis(), hlo.read(compiled.as_text())
    memory = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    sent = 0.0 + sum(size * (2 if kind in TWICE else 1) for kind, size in cost.collectives.items())
    seconds = expected(chip, cost, sent, program.flops / count)
    found = _head(program, made) | {"moved": cost.moved, "sent": sent}
    found |= {
        "cycles": cost.cycles,
        "collectives": cost.collectives,
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
    }
    found |= {"memory": memory + program.beside, "seconds": seconds, "compile_seconds": took}
    found["mfu"] = program.flops / (seconds * count * chip.peak) if chip and chip.clock and seconds and program.trains else None
    found["hours"] = seconds * program.times / 3600 if seconds else None
    return found | {"advice": advice(found, program)}


def expected(chip: Chip | None, cost: hlo.Cost, sent: float, flops: float) -> float | None:
    """Seconds of one run on one device; None for a CPU, and for a GPU whose rates are not known here.

    TPU: what is longer, the cycles that the compiler expects of all operations or all bytes moved at the rate of HBM (weights that are
    fetched ahead have no cycles); plus kernels, of which it expects nothing, at KERNEL_RATE of the peak; at least the products at peak;
    plus all collectives at the rate of a ring, as if they overlapped with nothing.
    H100, whose compiler tells no time: the greatest of products at peak and collectives at the link's rate, which nothing can beat.
    """
    if chip is None:
        return None
    if chip.clock is None:
        return max(flops / chip.peak, sent / chip.link) or None
    computed = max(cost.cycles / chip.clock, cost.moved / chip.bandwidth) + cost.kernels / (KERNEL_RATE * chip.peak)
    return max(computed, flops / chip.peak) + sent / chip.link


def advice(row: Row, program: Any) -> str:
    """What to change where a program does not fit; empty where it does."""
    if row["has"] is None or row["memory"] <= row["has"]:
        return ""
    over = f"needs {(row['memory'] - row['has']) / 2**30:.1f} GiB more than a device has"
    if row["arguments"] > 0.6 * row["has"]:
        return f"{over}; its weights and state take most: raise sharding.fsdp or sharding.tensor, or use more devices"
    change = f"lower {program.field}"
    if program.field.endswith(".microbatches"):
        change = f"raise {program.field}, or set {program.field.removesuffix('microbatches')}remat=full if it is not"
    return f"{over}; its activations or cache take most: {change}"
