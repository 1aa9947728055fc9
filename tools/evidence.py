"""The experiments behind docs/results.md: they leave docs/evidence.jsonl, and of that all tables are made, nothing of them by hand.

python tools/evidence.py run DIR      # or go on with it; --jobs=2 at a time; hours
python tools/evidence.py write DIR    # put the points that are finished in evidence.jsonl, draw the plots, then as below
python tools/evidence.py write        # evidence.md, evidence-rounds.md and the tables of results.md, out of evidence.jsonl
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import evidence_records
import numpy as np

from configs import quickstart
from ilr_jax import page, sweep
from ilr_jax.files import flat, write_bytes

SEEDS = "0,1,2,3,4"
DOCS = Path(__file__).parent.parent / "docs"
GREY = "#76808a"  # seen on light and on dark
# Title; methods; axes of the grid.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Every method", "sft,ilr,dpo,dpo_pairs,sft_chosen,naive", ()),
    ("Reliable and unreliable, both ways", "sft,ilr,dpo", ("demos=weak,correct", "feedback=evaluator,oracle")),
    ("Feedback from right to random", "sft,ilr,dpo", ("feedback=oracle", "oracle.error=0.0,0.1,0.25,0.4,0.5")),
    ("How many labels may change", "sft,ilr,naive", ("alpha=0.05,0.15,0.3,0.5",)),
    ("More folds", "sft,ilr", ("folds=3,5",)),
    ("More rounds", "sft,ilr,naive,dpo", ("rounds=6",)),
    ("DPO as released", "sft,dpo", ("dpo.scoring=released",)),
    ("DPO with six samples a question", "sft,ilr,dpo", ("dpo.samples=6",)),
    ("Other preference losses", "sft,dpo", ("dpo.loss=ipo,hinge",)),
    ("Conservative DPO", "sft,dpo", ("dpo.smoothing=0.1,0.3",)),
    ("Robust DPO", "sft,dpo", ("dpo.loss=robust", "dpo.smoothing=0.1,0.3")),
    ("Long DPO at three betas", "sft,dpo", ("dpo.beta=0.1,0.5,2.0", "dpo.epochs=10")),
    ("Filter only, add only", "sft,ilr,naive", ("refine.rule=filter,add",)),
    ("Proposals without cross-labelling", "sft,ilr", ("refine.proposer=same,ensemble",)),
    ("A supervisor trained for less, and for longer", "sft,ilr,dpo", ("weak.epochs=1,4",)),
    ("Other readings of alpha", "sft,ilr", ("alpha_of=disagreeing,none",)),
    ("Naive with as many replacements as ILR", "sft,ilr,naive", ("naive.match_count=True",)),
    ("Best of four proposals", "sft,ilr", ("decoding.proposals=sample", "refine.samples=4", "refine.pick=log_prob,feedback")),
)
INTRODUCTION = f"""# Evidence

Made by `python tools/evidence.py write DIR` from what `python tools/evidence.py run DIR` left; what it means: [results.md](results.md).
The quickstart with seeds {SEEDS}: 800 weak labels, 400 test questions, three rounds, after the last of which `test` is measured. [..]:
95 % bootstrap intervals over seeds, of `test` and differences over test questions too; "of": how many of all seeds together. Labels
right: before and after. Evaluator right: on all rounds' pairs with exactly one right answer. Precision: of the labels that were
replaced, the new one is right; recall: of the right proposals against a wrong label, those that were accepted. Comparisons, TFLOP of
training, and seconds of all stages (each by one of two processes on a machine of two cores) are a seed's, all rounds together;
supervisor and evaluator are counted in. Other work shared that machine at times: seconds are bounds from above. All of it round by
round: [evidence-rounds.md](evidence-rounds.md).
"""
ROUNDS_INTRODUCTION = """# Evidence, round by round

The points of [evidence.md](evidence.md), made by the same command: means over the seeds; `comparisons`, `replaced`, the four flows of
replaced labels, TFLOP and seconds are those of one seed and of that round alone. The evaluator's two errors are over the comparisons of all
seeds. The pairs of DPO have no holder who might give up a right answer, and both orders count alike: its two errors are one, what
`evaluator right` leaves.
"""
SHARES = ("test", "labels", "evaluator", "gives_up", "refuses", "precision", "recall")
COUNTS = ("compared", "replaced", *page.FLOWS)
ROUND = ("method", "round", "test", "labels right", "evaluator right", "gives up right labels", "refuses right proposals", "precision")
ROUND += ("recall", "comparisons", "replaced", *(flow.replace("_", " ") for flow in page.FLOWS), "TFLOP", "seconds")
HEAD = ("setting", "method", "test", "minus SFT, points", "ILR minus it, points", "labels right", "evaluator right", "comparisons")
LONG = (*HEAD, "precision", "recall", "TFLOP", "seconds", "supervisor, test")
BEGIN, END = "<!-- tables: python tools/evidence.py write -->", "<!-- end of tables -->"

CURVES = {
    "test": ("test_accuracy", "round"),
    "labels": ("label_accuracy", "round"),
    "evaluator": ("evaluator_accuracy", "round"),
    "spent": ("test_accuracy", "spent"),
}
PLOTS = {name: page.CHARTS[fields] for name, fields in CURVES.items()} | {"flows": "What the replaced labels were and became"}

Row = dict[str, Any]
Points = list[tuple[str, list[Row]]]  # name, and the records of its methods
Section = tuple[str, str, tuple[str, ...], Points]  # of SECTIONS, with its points


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit code is that of the first sweep that fails, or that a signal ends, which ends all."""
    match argv:
        case ["write"]:
            write(DOCS)
        case ["write", folder]:
            add(DOCS, Path(folder))
            write(DOCS)
        case ["run", folder, *words]:
            failed = 0
            for _, methods, axes in SECTIONS:
                code = sweep.run([*command(methods, axes, folder), *words])
                if code > 128:  # a signal
                    return code
                failed = failed or code
            return failed
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def command(methods: str, axes: Sequence[str], folder: str) -> list[str]:
    """The words of `ilr sweep` for a section."""
    fixed = ["--config=configs/quickstart.py", f"--workdir={folder}", f"--config.method={methods}", f"--seeds={SEEDS}"]
    return [*fixed, *(word for axis in axes for word in ("--grid", axis))]


def add(docs: Path, folder: Path) -> None:
    """Put the records of all points whose seeds have ended in evidence.jsonl, and draw the plots if the first one's have."""
    file, seeds = docs / "evidence.jsonl", {int(seed) for seed in SEEDS.split(",")}
    known, found = evidence_records.read(file), {}
    for _, methods, axes in SECTIONS:
        for point in sweep.grid(axes):
            for record in evidence_records.made(folder / "points" / point.name, point.name, methods.split(","), seeds):
                found[point.name, record["method"]] = record
    order = [(point.name, method) for _, methods, axes in SECTIONS for point in sweep.grid(axes) for method in methods.split(",")]
    records = known | found
    if left := list(dict.fromkeys(name for name, method in order if (name, method) not in found)):
        print(f"left as they were, for not all of their runs have ended in {folder}: {' '.join(left)}")
    evidence_records.write(file, {place: records[place] for place in dict.fromkeys(order) if place in records})
    _, methods, axes = SECTIONS[0]
    (first,) = sweep.grid(axes)
    if (first.name, "sft") in found:
        for name, svg in plots(evidence_records.finished(folder / "points" / first.name, methods.split(","), seeds)).items():
            write_bytes(docs / f"evidence-{name}.svg", svg.encode())


def write(docs: Path) -> None:
    """All documents, of the records; of results.md what stands between the marks."""
    found = sections(docs)
    write_bytes(docs / "evidence.md", document(found).encode())
    write_bytes(docs / "evidence-rounds.md", round_by_round(found).encode())
    before, rest = (docs / "results.md").read_text().split(BEGIN)
    write_bytes(docs / "results.md", f"{before}{BEGIN}\n{headlines(found[:2])}\n{END}{rest.split(END)[1]}".encode())


def sections(docs: Path) -> list[Section]:
    """Those of SECTIONS that have records, with them."""
    records = evidence_records.read(docs / "evidence.jsonl")
    named = lambda name, methods: [records[name, method] for method in methods.split(",") if (name, method) in records]
    found = ((*section, [(p.name, named(p.name, section[1])) for p in sweep.grid(section[2])]) for section in SECTIONS)
    known = ((title, methods, axes, [(name, rows) for name, rows in points if rows]) for title, methods, axes, points in found)
    return [section for section in known if section[-1]]


def document(found: Sequence[Section]) -> str:
    """The text of evidence.md."""
    parts = [INTRODUCTION]
    base = {row["method"]: row for _, _, axes, points in found if not axes for row in points[0][1]}
    of_base = lambda methods: [base[method] for method in methods.split(",") if method in base]
    for title, methods, axes, points in found:
        days = ", ".join(sorted({row["run"] for _, rows in points for row in rows}))
        parts += [f"## {title}\n", f"`ilr sweep {' '.join(command(methods, axes, 'DIR'))}` ({days})\n"]
        shown = points if not axes or as_base(axes) in dict(points) else [(as_base(axes), of_base(methods)), *points]
        parts += table(LONG, [line(cells(name, row)) for name, rows in shown for row in rows])
        if not axes:
            parts += ["Seed by seed, test:\n", *by_seed(points[0][1])]
            parts += ["Round by round:\n", *table(ROUND, rounds(points[0][1])), *pictures(), ""]
    return "\n".join(parts)


def as_base(axes: Sequence[str]) -> str:
    """What the fields of the axes are in the point that changes none: every section shows it too."""
    base = flat(quickstart.get_config().to_dict())
    fields = [axis.partition("=")[0] for axis in axes]
    return sweep.Point(tuple((field, str(base[field])) for field in fields)).name


def by_seed(records: Sequence[Row]) -> list[str]:
    """A table of test accuracies after the last round, a line for each method."""
    return table(("method", *SEEDS.split(",")), [line([row["method"], *map(page.percent, row["by_seed"])]) for row in records])


def round_by_round(found: Sequence[Section]) -> str:
    """The text of evidence-rounds.md: a table of ROUND for each point."""
    parts = [ROUNDS_INTRODUCTION]
    for title, _, _, points in found:
        parts += [f"## {title}\n"]
        for name, rows in points:
            parts += [f"`{name}`\n", *table(ROUND, rounds(rows))]
    return "\n".join(parts)


def headlines(found: Sequence[Section]) -> str:
    """The tables of results.md: a line for each method, what was asked and what came of it; and the plots."""
    parts = []
    for title, _, axes, points in found:
        lines = [line(cells(name, row)[: len(HEAD)]) for name, rows in points for row in rows]
        parts += [f"**{title}**\n", *table(HEAD, lines), *([] if axes else [*pictures(), ""])]
    return "\n".join(parts).strip()


def pictures() -> list[str]:
    """The plots, as Markdown."""
    return [f"![{title}](evidence-{name}.svg)" for name, title in PLOTS.items()]


def table(head: Sequence[str], lines: Iterable[str]) -> list[str]:
    """The lines of a table in Markdown, and a blank one."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""]


def line(cells: Iterable[str]) -> str:
    """A table's line."""
    return "| " + " | ".join(cells) + " |"


def cells(name: str, row: Row) -> list[str]:
    """A record's line under LONG."""
    labels = f"{share(row['labels_before'])} → {share(row['labels'], of=False)}" if row["labels"] else ""
    return [
        name,
        row["method"],
        share(row["test"], of=False),
        *(points(row[key]) for key in ("minus_sft", "ilr_minus")),
        labels,
        share(row["evaluator"]),
        count(row["compared"] or 0),
        *(share(row[key]) for key in ("precision", "recall")),
        count(row["tflop"], 1),
        count(row["seconds"]),
        share(row["supervisor"], of=False),
    ]


def rounds(records: Sequence[Row]) -> Iterator[str]:
    """A line under ROUND for each round of each record."""
    for row in records:
        for each in row["rounds"]:
            figures = [share(each[key], of=key not in ("test", "labels")) for key in SHARES]
            counts = [count(each[key]) for key in COUNTS]
            yield line([row["method"], str(each["round"]), *figures, *counts, count(each["tflop"], 1), count(each["seconds"])])


def share(figure: Sequence[Any] | None, of: bool = True) -> str:
    """A figure of `evidence_records` as a cell."""
    if figure is None:
        return ""
    value, low, high, n = figure
    many = f" of {n:,}" if of and n else ""
    return page.percent(value) + many + page.interval(None if low is None else [low, high])


def points(figure: Sequence[Any] | None) -> str:
    """A difference as a cell."""
    return "" if figure is None else f"{figure[0] * 100:+.1f}{page.interval(None if figure[1] is None else figure[1:3], '+')}"


def count(value: float | None, digits: int = 0) -> str:
    """A count, a mean over the seeds, as a cell."""
    return "" if value is None else f"{value:,.{digits}f}"


def plots(rows: Sequence[Row]) -> dict[str, str]:
    """PLOTS as SVG, of the report's rows."""
    made = {name: page.chart(rows, *fields) for name, fields in CURVES.items()} | {"flows": flows(rows)}
    return {name: svg.replace("currentColor", GREY) for name, svg in made.items()}


def flows(rows: Sequence[Row]) -> str:
    """What the replaced labels were and became: a bar for each round of each method that replaces some, means over the seeds."""
    kept = [row for row in rows if row["replaced"] is not None]
    bars = {(row["method"], row["round"]): [] for row in kept}
    for row in kept:
        bars[row["method"], row["round"]].append([row[flow] or 0 for flow in page.FLOWS])
    heights = np.array([np.mean(found, axis=0) for found in bars.values()])

    def draw(axes: Any) -> None:
        for i, flow in enumerate(page.FLOWS):
            axes.bar(range(len(bars)), heights[:, i], bottom=heights[:, :i].sum(1), label=flow.replace("_", " "), color=page.COLOURS[i + 1])
        axes.set_xticks(range(len(bars)), [f"{method} {number}" for method, number in bars], rotation=30)
        axes.set_ylabel("labels replaced")

    return page.drawn("flows", draw, share=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
