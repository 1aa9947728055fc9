"""Runs the benchmarks, each in a process of its own, and keeps the figures: python -m benchmarks [CASE ...] [--size=cpu|smoke].

`--check` fails where a ratio is beyond its floor in two tries one after the other; `--write` makes docs/performance.md of what is kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.table import write

HERE = Path(__file__).parent
WAIT = 60  # tries, of two seconds each, for an idle machine


def measured(name: str, size: str, busy: bool) -> dict[str, Any]:
    """The figures of a case, from a process that has the machine for itself."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.case", name, size, str(out), *(["--busy"] if busy else [])]
        done = subprocess.run(command, cwd=HERE.parent, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip()[-3000:]}")
        return json.loads(out.read_text())


def told(case: Case, row: dict[str, Any]) -> str:
    """A line on the terminal."""
    ends = f" [{row['least']:.2f}, {row['most']:.2f}]" if "least" in row else ""
    return f"{case.number:4} {case.what}: {row['ratio']:.2f}{ends}, floor {case.floor:g}, goal {case.goal:g} ({row['wall']:.0f} s)"


def main() -> int:
    """Measure, print, keep; 1 where a floor is missed and `--check` asks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all unless named: {', '.join(CASES)}")
    parser.add_argument("--size", default="cpu", choices=("cpu", "smoke"))
    parser.add_argument(
        "--json", type=Path, help="where figures are kept; those of other cases stay. Default: benchmarks/results/SIZE.json"
    )
    parser.add_argument("--busy", action="store_true", help="measure although other processes are at work, and say so in the results")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is beyond its floor twice")
    parser.add_argument("--write", action="store_true", help="only make docs/performance.md of the results")
    given = parser.parse_args()
    if given.write:
        write(HERE / "results", HERE.parent / "docs" / "performance.md")
        return 0
    if unknown := sorted(set(given.cases) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if find_spec("torch") is None or find_spec("trl") is None:
        parser.error("the other side is not installed (PyTorch, transformers, peft, trl); run `make dev`, or pip install -e '.[torch]'")
    path = given.json or HERE / "results" / f"{given.size}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"cases": {}}
    missed = []
    for name in given.cases or [name for name, case in CASES.items() if given.size in case.sizes]:
        case, row = CASES[name], measured(name, given.size, given.busy)
        if given.check and not case.passes(row["ratio"]):
            print(told(case, row) + ", again", flush=True)
            row = measured(name, given.size, given.busy)
        print(told(case, row), flush=True)
        missed += [] if case.passes(row["ratio"]) else [name]
        kept["cases"][name] = row
        if not given.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
    if missed:
        print(f"beyond their floors: {', '.join(missed)}")
    return int(bool(missed and given.check))


if __name__ == "__main__":
    sys.exit(main())
