"""What a device has: memory, rates and links, as their makers state them.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e: memory, bfloat16 peak, HBM and interconnect bandwidth); NVIDIA H100 SXM data sheet.
The clock is peak / operations per cycle of the matrix units: 4 (v5e), 8 (v4, v5p) of 128 x 128, 4 of 256 x 256 (v6e).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """A device: HBM [bytes], bfloat16 peak [FLOP/s], HBM rate [B/s], rate of a ring over one axis, both ways [B/s], clock [Hz]."""

    name: str
    memory: float
    peak: float
    bandwidth: float
    link: float
    clock: float | None


TPUS = {
    "v4": Chip("v4", 32 * 2**30, 275e12, 1228e9, 90e9, 275e12 / (2 * 8 * 128**2)),
    "v5e": Chip("v5e", 16 * 2**30, 197e12, 819e9, 90e9, 197e12 / (2 * 4 * 128**2)),
    "v5p": Chip("v5p", 95 * 2**30, 459e12, 2765e9, 180e9, 459e12 / (2 * 8 * 128**2)),
    "v6e": Chip("v6e", 32 * 2**30, 918e12, 1640e9, 180e9, 918e12 / (2 * 4 * 256**2)),
}
H100 = Chip("h100", 80e9, 989e12, 3350e9, 450e9, None)
