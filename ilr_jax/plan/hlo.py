"""Reading a compiled program: the time that the TPU compiler expects of every operation, bytes moved, and bytes of collectives.

Loops count as often as they run, unlike in XLA's own cost analysis, which counts their bodies once: a scan over layers by its trip count, a
decoding loop by its chunk. A collective that the compiler cuts up and lays beside other work keeps its channel, and counts once.
From: the text form of optimised HLO (XLA, libtpu 0.0.42); `estimated_cycles` in an operation's backend_config is the compiler's cost model,
which knows compute and HBM but no links.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all", "partition-id"}


@dataclass
class Cost:
    """Of one device, of one execution: cycles, bytes to and from HBM, bytes of each kind of collective."""

    cycles: float = 0.0
    moved: float = 0.0
    collectives: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Cost", times: int = 1) -> None:
        """Count `other`, `times` times."""
        self.cycles += times * other.cycles
        self.moved += times * other.moved
        for kind, size in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, 0.0) + times * size


def sizes(text: str, hbm_only: bool = False) -> list[int]:
    """Bytes of every array shape in a text; with `hbm_only`, of those that are not in on-chip memory (`S(1)` and up)."""
    found = []
    for kind, dims, layout in SHAPE.findall(text):
        bits = re.match(r"[a-z]+(\d+)", kind)
        if not (hbm_only and re.search(r"S\([1-9]\)", layout)):
            found.append(prod(int(n) for n in dims.split(",") if n) * max(int(bits[1]) if bits else 8, 8) // 8)
    return found


def read(text: str) -> Cost:
    """The cost of the program whose `compiled.as_text()` this is."""
    bodies: dict[str, list[re.Match]] = {}
    lines: list[re.Match] = []
    entry = ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            lines = bodies.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif instruction := INSTRUCTION.match(line):
            lines.append(instruction)
    return _cost(entry, bodies, {}, 1)


def _cost(name: str, bodies: dict[str, list[re.Match]], known: dict[tuple[str, int], Cost], trips: int) -> Cost:
    """The cost of one computation, run once inside a loop of `trips`, whose stacked operands it reads a slice of."""
    if (name, trips) in known:
        return known[name, trips]
    total, shapes = Cost(), {line[1]: line[2] for line in bodies.get(name, ())}
    channels: dict[str, tuple[str, int]] = {}
    for line in bodies.get(name, ()):
        _, shape, kind, rest = line.groups()
        if kind == "while":
            body, condition = _named(rest, "body"), _named(rest, "condition")
            count = _trips(condition, bodies)
            total.add(_cost(body, bodies, known, count), count)
            continue
        if kind in ("call", "conditional"):
            for part in _called(rest):
                total.add(_cost(part, bodies, known, trips))
            continue
        channels |= dict(_sent(line, bodies))
        total.add(_own(shape, kind, rest, shapes, trips))
    for sort, size in channels.values():
        total.add(Cost(collectives={sort: float(size)}))
    known[name, trips] = total
    return total


def _sent(line: re.Match, bodies: dict[str, list[re.Match]]) -> Iterator[tuple[str, tuple[str, int]]]:
    """(channel, (kind, bytes)) of an instruction that is a collective, or a fusion with some inside."""
    name, shape, kind, rest = line.groups()
    base = kind.removesuffix("-start")
    if base in COLLECTIVES:
        found = CHANNEL.search(rest)
        yield found[1] if found else name, (base, max(sizes(shape), default=0))
    elif kind in ("fusion", "async-start", "custom-call"):
        for part in _called(rest):
            for inner in bodies.get(part, ()):
                yield from _sent(inner, bodies)


def _own(shape: str, kind: str, rest: str, shapes: dict[str, str], trips: int) -> Cost:
    """What one instruction takes by itself."""
    cycles = float(sum(map(int, CYCLES.findall(rest))))
    if kind in FREE or kind.removesuffix("-start") in COLLECTIVES or kind.endswith("-done"):
        return Cost(cycles)
    operands = [shapes[name] for name in re.findall(r"%([\w.\-]+)", rest.partition("), ")[0]) if name in shapes]
    moved = float(sum(sizes(shape, hbm_only=True)))
    for operand in operands:
        moved += sum(sizes(operand, hbm_only=True)) / (trips if trips > 1 and _leading(operand) == trips else 1)
    return Cost(cycles, moved)


def _leading(shape: str) -> int:
    dims = next((dims for _, dims, _ in SHAPE.findall(shape)), "")
    return int(dims.split(",")[0]) if dims else 0


def _called(rest: str) -> list[str]:
    return [part.strip(" %") for group in CALLED.findall(rest) for part in group.split(",")]


def _named(rest: str, what: str) -> str:
    found = re.search(rf"{what}=%?([\w.\-]+)", rest)
    return found[1] if found else ""


def _trips(condition: str, bodies: dict[str, list[re.Match]]) -> int:
    """How often a loop runs: the largest whole number that its condition knows, which is a bound where it may stop earlier."""
    numbers = [int(found[1]) for line in bodies.get(condition, ()) if (found := re.match(r"(\d+)\)", line[4])) and line[3] == "constant"]
    return max(numbers, default=1)
