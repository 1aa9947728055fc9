"""Reading a compiled program: the time that the TPU compiler expects of every operation, bytes moved, and bytes of collectives.

Loops count as often as they run, unlike in XLA's own cost analysis, which counts their bodies once: a scan over layers by its trip count, a
decoding loop by its chunk. A collective that the compiler cuts up and lays beside other work keeps its channel, and counts once.
From: the text form of optimised HLO (XLA, libtpu 0.0.42); `estimated_cycles` in an operation's backend_config is the compiler's cost model,
which knows compute and HBM but neither links nor what is inside a kernel (`splash`), whose products are counted here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CALLED = re.compile(r"(?:calls|branch_computations|true_computation|false_computation|to_apply)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
KERNEL = re.compile(r"splash_mha_(fwd|dkv)")
PRODUCTS = {"fwd": 2, "dkv": 5}  # scores and mix; in the backward pass scores again, and of the weights, k, v and q
MOST = 2**31 - 1  # what the least of int32 numbers is looked for from: no bound of a loop
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all", "partition-id"}

Bodies = dict[str, list[re.Match]]


@dataclass
class Cost:
    """Of one device, of one execution: cycles, bytes to and from HBM, FLOPs inside kernels, bytes of each kind of collective."""

    cycles: float = 0.0
    moved: float = 0.0
    kernels: float = 0.0
    collectives: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Cost", times: int = 1) -> None:
        """Count `other`, `times` times."""
        self.cycles += times * other.cycles
        self.moved += times * other.moved
        self.kernels += times * other.kernels
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
    bodies: Bodies = {}
    lines: list[re.Match] = []
    entry = ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            lines = bodies.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif instruction := INSTRUCTION.match(line):
            lines.append(instruction)
    return _cost(entry, bodies, {})


def _cost(name: str, bodies: Bodies, known: dict[str, Cost]) -> Cost:
    """The cost of one computation, run once."""
    if name in known:
        return known[name]
    total, shapes = Cost(), {line[1]: line[2] for line in bodies.get(name, ())}
    channels: dict[str, tuple[str, int]] = {}
    for line in bodies.get(name, ()):
        _, _, kind, rest = line.groups()
        if kind == "while":
            total.add(_cost(_named(rest, "body"), bodies, known), _trips(rest, bodies))
        elif kind in ("call", "conditional"):
            for part in _called(rest):
                total.add(_cost(part, bodies, known))
        else:
            channels |= dict(_sent(line, bodies, shapes))
            total.add(Cost(float(sum(map(int, CYCLES.findall(rest)))), float(_moved(line, bodies, shapes)), _inside(line)))
    for sort, size in channels.values():
        total.add(Cost(collectives={sort: float(size)}))
    known[name] = total
    return total


def _sent(line: re.Match, bodies: Bodies, shapes: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, int]]]:
    """(channel, (kind, bytes of the whole arrays)) of an instruction that is a collective, or a fusion with some inside."""
    name, shape, kind, rest = line.groups()
    base = kind.removesuffix("-start")
    if base in COLLECTIVES:
        found, given = CHANNEL.search(rest), sum(sum(sizes(shapes.get(operand, ""))) for operand in _operands(rest))
        size = given if base == "reduce-scatter" else sum(n for n in sizes(shape) if n > 8)  # less is the context of what runs beside
        if kind.endswith("-start") and base not in ("all-reduce", "reduce-scatter"):
            size -= given  # the result of these holds the operands too
        yield found[1] if found else name, (base, size)
    elif kind in ("fusion", "async-start", "custom-call"):
        for part in _called(rest):
            inside = {inner[1]: inner[2] for inner in bodies.get(part, ())}
            for inner in bodies.get(part, ()):
                yield from _sent(inner, bodies, inside)


def _inside(line: re.Match) -> float:
    """FLOPs of the products inside a kernel of attention, of whole rows: 2 T T H for each row, head and product.

    Of the results with most axes (others are scratch) the largest has rows first (of one row, `dkv` has blocks of keys), and
    heads, places and their width last.
    """
    name, shape, kind, _ = line.groups()
    found = KERNEL.match(name)
    if kind != "custom-call" or not found:
        return 0.0
    results = ([int(n) for n in dims.split(",")] for _, dims, _ in SHAPE.findall(shape))
    *outer, heads, length, width = max(results, key=lambda sizes: (len(sizes), prod(sizes)))
    rows = outer[0] if len(outer) > (found[1] == "dkv") else 1
    return 2.0 * PRODUCTS[found[1]] * rows * heads * length * length * width


def _moved(line: re.Match, bodies: Bodies, shapes: Mapping[str, str]) -> int:
    """Bytes that one instruction reads from HBM and writes there: of what it slices, or updates in place, the slice only."""
    _, shape, kind, rest = line.groups()
    if kind in FREE or kind.removesuffix("-start") in COLLECTIVES or kind.endswith("-done"):
        return 0
    names, others = _operands(rest), _travelling(rest, bodies)
    shape, shapes = others(shape), {name: others(shapes.get(name, "")) for name in names}
    in_hbm = [sum(sizes(shapes.get(name, ""), hbm_only=True)) for name in names]
    if kind.endswith("-start"):  # a copy beside other work: (destination, source, context)
        to = SHAPE.search(shape)
        return min(sizes(shape)[:2]) * (bool(sizes(to[0], hbm_only=True)) + bool(sum(in_hbm))) if to else 0
    if kind == "dynamic-slice":
        return 2 * sum(sizes(shape))
    if kind == "dynamic-update-slice":
        return 2 * sum(sizes(shapes.get(names[1], "")))
    written = sum(sizes(shape, hbm_only=True))
    for part in _called(rest) if kind == "fusion" else ():
        slices, kept = _slices(part, bodies)
        in_hbm = [min(size, slices.get(i, size)) for i, size in enumerate(in_hbm)]
        written -= kept
    return sum(in_hbm) + max(written, 0)


def _travelling(rest: str, bodies: Bodies) -> Callable[[str], str]:
    """Takes out of a text of shapes the arrays of the collectives that a fusion does a part of: these are counted as sent."""
    inside = [line for part in _called(rest) for line in bodies.get(part, ()) if line[3].removesuffix("-start") in COLLECTIVES]
    known = {line[1]: line[2] for part in _called(rest) for line in bodies.get(part, ())}
    texts = [line[2] for line in inside] + [known.get(name, "") for line in inside for name in _operands(line[4])]
    gone = {(kind, dims) for text in texts for kind, dims, _ in SHAPE.findall(text)}
    return lambda text: SHAPE.sub(lambda found: "" if (found[1], found[2]) in gone else found[0], text) if gone else text


def _slices(name: str, bodies: Bodies) -> tuple[dict[int, int], int]:
    """Of a fused computation: bytes touched of parameters that it only slices or updates in place; bytes of results left as they were."""
    body = bodies.get(name, ())
    shapes = {line[1]: line[2] for line in body}
    alias = {line[1]: _operands(line[4])[0] for line in body if line[3] == "bitcast" and _operands(line[4])}
    numbers = {line[1]: int(line[4].partition(")")[0]) for line in body if line[3] == "parameter"}

    def parameter(name: str) -> int | None:
        while name in alias:
            name = alias[name]
        return numbers.get(name)

    touched: dict[int, int] = {}
    whole: set[int] = set()
    kept = 0
    for line in body:
        if line[3] in ("parameter", "bitcast"):
            continue
        operands = _operands(line[4])
        parts: dict[int, int] = {}
        if line[3] in ("dynamic-slice", "slice", "gather"):
            parts = {0: sum(sizes(line[2]))}
        elif line[3] == "dynamic-update-slice" and parameter(operands[0]) is not None:
            parts = {0: 0}
            kept += sum(sizes(line[2])) - sum(sizes(shapes.get(operands[1], "")))
        elif line[3] == "fusion":
            for part in _called(line[4]):
                parts, more = _slices(part, bodies)
                kept += more
        for place, operand in enumerate(operands):
            if (number := parameter(operand)) is not None:
                touched[number] = touched.get(number, 0) + parts.get(place, 0)
                whole |= set() if place in parts else {number}
    return {number: size for number, size in touched.items() if number not in whole}, kept


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.partition(")")[0])


def _called(rest: str) -> list[str]:
    return [part.strip(" %") for group in CALLED.findall(rest) for part in group.split(",")]


def _named(rest: str, what: str) -> str:
    found = re.search(rf"{what}=%?([\w.\-]+)", rest)
    return found[1] if found else ""


def _numbers(name: str, bodies: Bodies) -> Iterator[int]:
    """The whole numbers that a computation knows, in what it calls too."""
    for line in bodies.get(name, ()):
        if line[3] == "constant" and (found := re.match(r"(\d+)\)", line[4])):
            yield int(found[1])
        for part in _called(line[4]):
            yield from _numbers(part, bodies)


def _trips(rest: str, bodies: Bodies) -> int:
    """How often a loop runs: as the compiler says, or the largest number that its condition knows, a bound where it may stop earlier."""
    if found := TRIPS.search(rest):
        return int(found[1])
    numbers = [n for n in _numbers(_named(rest, "condition"), bodies) if n < MOST]
    if not numbers:
        raise ValueError(f"wanted a loop whose condition holds a number, got while({rest[:60]}: this XLA writes it otherwise")
    return max(numbers)
