"""One case in this process: python -m benchmarks.case NAME SIZE FILE, for `python -m benchmarks`."""

import importlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import peers  # first: it sets how PyTorch waits
from benchmarks.cases import CASES
from benchmarks.measure import QUIET, idle, machine, peak_memory, roofs, share
from benchmarks.shapes import SIZES

PATIENCE = 30  # looks, of two seconds each
ALLOCATION = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")  # what decides how memory is had, on both sides


def quiet() -> float:
    """Cores that others keep busy, once that is next to nothing. SystemExit if it never is."""
    busy = idle()
    for _ in range(PATIENCE):
        if busy <= QUIET:
            return busy
        busy = idle()
    raise SystemExit(f"wanted an idle machine, but other processes keep {busy:.1f} cores busy; stop them, or measure with --busy")


def main(name: str, size: str, path: str, *rest: str) -> None:
    """Measure, and write the row."""
    others = idle() if "--busy" in rest else quiet()
    module, function = CASES[name].run.split(":")
    reached, start = roofs() if size != "smoke" else {}, time.perf_counter()
    row = getattr(importlib.import_module(f"benchmarks.{module}"), function)(SIZES[size])
    if "roof" in row and reached:
        row["roof"]["share"] = share(row["roof"], reached)
    row |= {"wall": time.perf_counter() - start, "peak_bytes": peak_memory(), "others_busy": others, "roofs": reached}
    row |= {"lengths": "GSM8K's" if os.environ.get("ILR_GSM8K_PATH") else "drawn"}
    row |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "torch_device": peers.DEVICE}
    row |= {"machine": machine() | {"torch_threads": peers.torch.get_num_threads()}}
    row |= {"allocation": {name: os.environ[name] for name in ALLOCATION if name in os.environ}}
    Path(path).write_text(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
