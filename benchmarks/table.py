"""docs/performance.md from the results: every figure beside its floor, its goal and its roof. Imports neither JAX nor PyTorch."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import CASES, Case

BEGIN, END = "<!-- figures: python -m benchmarks --write -->", "<!-- end of figures -->"
HEAD = "| | measure | peer | ratio [least, most] | of processor time | floor | goal | ours | peer's | of the roof | compiling "
HEAD += "| memory, ours and peer's |\n"
HEAD += "|---|---|---|---|---|---|---|---|---|---|---|---|"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sides(row: Mapping[str, Any]) -> tuple[str, str]:
    if "ours" not in row:
        return "", ""
    unit = row["unit"] if row["unit"].endswith("/s") else "s" if "start" in row["unit"] else "bytes"
    return f"{_number(row['ours'])} {unit}", f"{_number(row['peer'])} {unit}"


def _lengths(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Of texts, in most of the rows."""
    return Counter(map(_own_lengths, rows.values())).most_common(1)[0][0]


def _own_lengths(row: Mapping[str, Any]) -> str:
    return {"drawn": "drawn", "GSM8K's": "of GSM8K", None: "not told"}[row.get("lengths")]


def _line(case: Case, row: Mapping[str, Any], lengths: str) -> str:
    own = _own_lengths(row)
    what = case.what + (f" (lengths: {own})" if own != lengths else "")
    ratio = f"{row['ratio']:.2f}" + (f" [{row['least']:.2f}, {row['most']:.2f}]" if "least" in row else "")
    cpu = f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""
    at_most = "≤ " if case.least else ""
    roof = f"{row['roof']['share']:.0%} of {row['roof']['kind']}" if "share" in row.get("roof", {}) else ""
    wanted = f"{at_most}{case.floor:g} | {at_most}{case.goal:g}"
    compiling = f"{_number(row['ours_compile_seconds'])} s" if "ours_compile_seconds" in row else ""
    taken = [_number(size / 2**20) for side in ("ours", "peer") if (size := row.get(f"{side}_memory_bytes")) is not None]
    memory = f"{' and '.join(taken)} MiB" if taken else ""
    columns = (case.number, what, case.peer, ratio, cpu, wanted, *_sides(row), roof, compiling, memory)
    return f"| {' | '.join(columns)} |"


def _machine(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """On what the rows were measured; all of them on one machine."""
    row = list(rows.values())[-1]
    seen = {(r["machine"]["cpu"], r["machine"]["cores"], r["machine"]["device"]) for r in rows.values()}
    if len(seen) > 1:
        raise SystemExit(f"wanted results of one machine in one file, got {sorted(seen)}; measure them again on one")
    of = row["machine"]
    where = f"{of['cpu']}, {of['cores']} cores" + ("" if of["device"] == "cpu" else f", {of['device']}")
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items() if version)
    roof = {kind: _roof(rows, kind) for kind in ("float32", "bfloat16", "bytes")}
    rates = f"products of matrices {roof['float32']} GFLOP/s in float32 and {roof['bfloat16']} in bfloat16, memory {roof['bytes']} GB/s"
    measured = f"Measured on {where} ({row['date'][:10]}); {versions}. Lengths: {_lengths(rows)}"
    return f"{measured}. Roofs, medians of the rows that name them: {rates}."


def _roof(rows: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    found = [row["roofs"][kind] / 1e9 for row in rows.values() if row.get("roof", {}).get("kind") == kind]
    return f"{median(found):,.0f}" if found else "?"


def figures(results: Path) -> str:
    """All files of `results` as tables."""
    parts = []
    for path in sorted(results.glob("*.json")):
        rows = json.loads(path.read_text()).get("cases")
        if rows is None:  # growth's
            continue
        lines = [_line(CASES[name], rows[name], _lengths(rows)) for name in CASES if name in rows]
        parts.append("\n".join([_machine(rows), "", HEAD, *lines]))
    return "\n\n".join(parts)


def write(results: Path, page: Path) -> None:
    """Put the tables between the marks of the page; what people wrote around them stays."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{figures(results)}\n{END}{rest.split(END)[1]}")
