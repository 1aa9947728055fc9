"""What a device has: memory, rates and links, as their makers state them.

Sources: cloud.google.com/tpu/docs (bfloat16 peak, HBM and its rate; v5e and v6e less what the runtime keeps); rates of links: "How to Scale
Your Model" (jax-ml.github.io/scaling-book), one way for v5e and v6e, whose slices of less than 16 x 16 do not wrap around, both ways for
the others; NVIDIA H100 SXM data sheet, of whose 85.5 GB (as `nvidia-smi` counts them) a process takes 92 % (`models/platform`).
The clock is peak / operations per cycle of the matrix units: 4 (v5e), 8 (v5p) of 128 x 128, 4 of 256 x 256 (v6e).
"""

from math import inf
from typing import NamedTuple


class Chip(NamedTuple):
    """A device: HBM [bytes], bfloat16 peak [FLOP/s], HBM rate [B/s], rate of a ring over one axis [B/s], clock [Hz]."""

    name: str
    memory: float
    peak: float
    bandwidth: float
    link: float
    clock: float | None


TPUS = {
    "v5e": Chip("v5e", 15.75 * 2**30, 197e12, 819e9, 45e9, 197e12 / (2 * 4 * 128**2)),
    "v5p": Chip("v5p", 95 * 2**30, 459e12, 2765e9, 180e9, 459e12 / (2 * 8 * 128**2)),
    "v6e": Chip("v6e", 31.25 * 2**30, 918e12, 1640e9, 90e9, 918e12 / (2 * 4 * 256**2)),
}
H100 = Chip("h100", 0.92 * 85.5e9, 989e12, 3350e9, 450e9, None)
GPU = Chip("gpu", inf, inf, inf, inf, None)  # those of this machine, which are asked what they are
