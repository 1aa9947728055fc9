"""One GPU of 80 GB with the paper's models: python -m benchmarks.card [PART ...] [--size=tiny].

Every part runs in a process of its own and keeps each figure as soon as it has it. Weights are random and made on the device; the peer is
given the very same ones there. `tiny` runs everything with small models, on any device, to see that it runs.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from ilr_jax.models.platform import take_memory

ROOT = Path(__file__).parents[2]
PARTS = ("roofs", "evaluator", "numerics", "sft", "dpo", "plan", "attention", "gemma", "samples", "beam", "peer", "peer-gemma", "peer-dpo")
SECONDS = 300  # a part at most


def main() -> int:
    """Run the parts, one after the other; 1 where one failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all unless named: {', '.join(PARTS)}")
    parser.add_argument("--size", default="card", choices=("card", "tiny"))
    parser.add_argument(
        "--json", default=str(ROOT / "benchmarks" / "results" / "card.json"), help="where figures are kept; default: %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="a part at most; default: %(default)s")
    parser.add_argument("--traces", default="", help="a folder for profiles and compiled programs; default: none are kept")
    given = parser.parse_args()
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]  # not here: this process shall hold no device
    if given.size == "card" and (seen := subprocess.run(asked, capture_output=True, text=True).stdout.strip()) != "gpu":
        parser.error(
            f"wanted a GPU for the paper's models, got {seen or 'no device'}; `make .venv/cuda13` installs what JAX needs, or --size=tiny"
        )
    take_memory()  # as much as a run takes
    failed = []
    for part in given.parts or PARTS:
        command, start = [sys.executable, "-m", "benchmarks.card.parts", part, given.size, given.json, given.traces], time.monotonic()
        own = {"XLA_PYTHON_CLIENT_PREALLOCATE": str(part == "plan").lower()}  # what is taken bit by bit cannot become one large piece
        own |= {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"} if part.startswith("peer") else {}  # what is free again, the peer can take
        try:
            code = subprocess.run(command, cwd=ROOT, env=os.environ | own, timeout=given.seconds).returncode
        except subprocess.TimeoutExpired:
            code = f"over {given.seconds:.0f} s"
        print(f"{part}: {code or 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
        failed += [part] if code else []
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
