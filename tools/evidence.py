"""The experiments behind docs/evidence.md, and the document made of what they left: every table of it, nothing written by hand.

python tools/evidence.py run DIR      # or go on with it; --jobs=2 at a time; hours
python tools/evidence.py write DIR    # docs/evidence.md and evidence-rounds.md of the points that are finished, and the plots
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ilr_jax import page, report, sweep
from ilr_jax.files import write_bytes

SEEDS = "0,1,2,3,4"
OUT = Path(__file__).parent.parent / "docs" / "evidence.md"
ROUNDS_OUT = OUT.with_name("evidence-rounds.md")
GREY = "#76808a"  # seen on light and on dark
# Title; methods; axes of the grid.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Every method", "sft,ilr,dpo,dpo_pairs,sft_chosen,naive", ()),
    ("Reliable and unreliable, both ways", "sft,ilr,dpo", ("demos=weak,correct", "feedback=evaluator,oracle")),
    ("Feedback from right to random", "sft,ilr,dpo", ("feedback=oracle", "oracle.error=0.0,0.1,0.25,0.4,0.5")),
    ("How many labels may change", "sft,ilr,naive", ("alpha=0.05,0.15,0.3,0.5",)),
    ("More folds", "sft,ilr", ("folds=3,5",)),
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
The quickstart with seeds {SEEDS}: 800 weak labels, 400 test questions, three rounds, after the last of which `test` is measured.
[..]: 95 % bootstrap intervals over seeds and test questions. Labels right: before and after. Evaluator right: on all rounds' pairs with
exactly one right answer. Precision: of the labels that were replaced, the new one is right; recall: of the right proposals against a wrong
label, those that were accepted. Comparisons, TFLOP of training, and seconds of all stages (each by one of two processes on a machine of two
cores) are a seed's, all rounds together; supervisor and evaluator are counted in. Other work shared that machine at
times: seconds are bounds from above. All of them round by round: [evidence-rounds.md](evidence-rounds.md).
"""
ROUNDS_INTRODUCTION = """# Evidence, round by round

The points of [evidence.md](evidence.md), made by the same command: means over the seeds; `comparisons`, `replaced`, the four flows of
replaced labels, TFLOP and seconds are those of one seed and of that round alone. The evaluator's two errors are over the comparisons of all
seeds. The pairs of DPO have no holder who might give up a right answer, and both orders count alike: its two errors are one, what
`evaluator right` leaves. `dpo_pairs` learns from the comparisons of `ilr`: their errors stand there.
"""
ROUND = ("method", "round", "test", "labels right", "evaluator right", "gives up right labels", "refuses right proposals", "precision")
ROUND += ("recall", "comparisons", "replaced", *(flow.replace("_", " ") for flow in page.FLOWS), "TFLOP", "seconds")
HEAD = ("setting", "method", "test", "minus SFT, points", "ILR minus it, points", "labels right", "evaluator right", "comparisons")
HEAD += ("precision", "recall", "TFLOP", "seconds")

CURVES = {
    "test": ("test_accuracy", "round"),
    "labels": ("label_accuracy", "round"),
    "evaluator": ("evaluator_accuracy", "round"),
    "spent": ("test_accuracy", "spent"),
}
PLOTS = {name: page.CHARTS[fields] for name, fields in CURVES.items()} | {"flows": "What the replaced labels were and became"}

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run the command line; the exit code is that of the first sweep that fails."""
    if len(argv) < 2 or argv[0] not in ("run", "write"):
        print(__doc__, file=sys.stderr)
        return 2
    if argv[0] == "write":
        write_bytes(OUT, document(Path(argv[1])).encode())
        write_bytes(ROUNDS_OUT, round_by_round(Path(argv[1])).encode())
        for name, svg in plots(Path(argv[1])).items():
            write_bytes(OUT.with_name(f"evidence-{name}.svg"), svg.encode())
        return 0
    codes = [sweep.run([*command(methods, axes, argv[1]), *argv[2:]]) for _, methods, axes in SECTIONS]
    return next((code for code in codes if code), 0)


def command(methods: str, axes: Sequence[str], folder: str) -> list[str]:
    """The words of `ilr sweep` for a section."""
    fixed = ["--config=configs/quickstart.py", f"--workdir={folder}", f"--config.method={methods}", f"--seeds={SEEDS}"]
    return [*fixed, *(word for axis in axes for word in ("--grid", axis))]


def document(folder: Path) -> str:
    """The text: a section for each of SECTIONS that has finished points."""
    parts = [INTRODUCTION]
    for title, methods, axes, found in sections(folder):
        parts += [f"## {title}\n", f"`ilr sweep {' '.join(command(methods, axes, 'DIR'))}`\n"]
        parts += table(HEAD, [line for point, rows in found for line in lines(point, rows)])
        if not axes:
            parts += ["Round by round:\n", *table(ROUND, rounds(found[0][1]))]
            parts += [f"![{title}](evidence-{name}.svg)" for name, title in PLOTS.items()] + [""]
    return "\n".join(parts)


def round_by_round(folder: Path) -> str:
    """The text of the second document: a table of ROUND for each point of `sections`."""
    parts = [ROUNDS_INTRODUCTION]
    for title, _, _, found in sections(folder):
        parts += [f"## {title}\n"]
        for point, rows in found:
            parts += [f"`{point}`\n", *table(ROUND, rounds(rows))]
    return "\n".join(parts)


def sections(folder: Path) -> Iterator[tuple[str, str, tuple[str, ...], list[tuple[str, list[Row]]]]]:
    """Those of SECTIONS that have finished points: with their names and rows."""
    for title, methods, axes in SECTIONS:
        found = [(point.name, rows) for point in sweep.grid(axes) if (rows := finished(folder / "points" / point.name, methods))]
        if found:
            yield title, methods, axes, found


def table(head: Sequence[str], lines: Iterable[str]) -> list[str]:
    """The lines of a table in Markdown, and a blank one."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""]


def line(cells: Iterable[str]) -> str:
    """A table's line; what does not apply is left blank."""
    return ("| " + " | ".join(cells) + " |").replace("–", "")


def rounds(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each round of each method: means over the seeds, the evaluator's shares over the comparisons of all."""
    for method in dict.fromkeys(row["method"] for row in rows):
        for number in sorted({row["round"] for row in rows if row["method"] == method}):
            mine = [row for row in rows if (row["method"], row["round"]) == (method, number)]
            mean = lambda name, mine=mine: None if any(row[name] is None for row in mine) else fmean(row[name] for row in mine)
            told = lambda name, unit=1.0, digits=0, mean=mean: "" if (value := mean(name)) is None else f"{value / unit:,.{digits}f}"
            card = next(iter(report.cards(mine, report.decisions(mine))), {})
            cells = [method, str(number), *(page.percent(mean(name)) for name in ("test_accuracy", "label_accuracy", "evaluator_accuracy"))]
            cells += [page.percent(card.get(name)) for name in ("accepts_wrong", "rejects_right")]
            cells += [page.percent(precision(mine)), page.percent(card.get("recall"))]
            cells += [told(name) for name in ("compared", "replaced", *page.FLOWS)]
            yield line([*cells, told("training_flops", 1e12, 1), told("seconds")])


def precision(rows: Sequence[Row]) -> float | None:
    """Of the labels that were replaced, those whose new one is right; None if none was."""
    counts = {flow: sum(row[flow] or 0 for row in rows) for flow in page.FLOWS}
    return (counts["wrong_to_right"] + counts["right_to_right"]) / sum(counts.values()) if any(counts.values()) else None


def plots(folder: Path) -> dict[str, str]:
    """PLOTS as SVG, of the first section."""
    _, methods, _ = SECTIONS[0]
    rows = finished(folder / "points" / "base", methods)
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


def finished(workdir: Path, methods: str) -> list[Row]:
    """The rows of the methods whose five seeds have all ended there; none if SFT's have not."""
    if not list(workdir.glob("runs/*.json")):
        return []
    rows = [row for row in report.collect([workdir]) if row["finished"] and row["method"] in methods.split(",")]
    full = {
        method for method in methods.split(",") if len({row["seed"] for row in rows if row["method"] == method}) == len(SEEDS.split(","))
    }
    return [row for row in rows if row["method"] in full] if "sft" in full else []


def lines(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """A line of the table for each method."""
    ahead = {entry["against"]: entry for entry in report.differences(rows)}
    cards = {entry["series"]: entry for entry in report.cards(rows, report.decisions(rows))}
    for entry in report.summarise(rows):
        mine = [row for row in rows if row["series"] == entry["series"]]
        seeds = len(entry["seeds"])
        card = cards.get(entry["series"], {})
        cells = [name, entry["method"], page.percent(entry["test_accuracy"]) + page.interval(entry["test_interval"])]
        cells += [points(entry["difference"]), points(ahead.get(entry["method"]))]
        first, last = entry["label_accuracy_first"], entry["label_accuracy_last"]
        cells.append("" if last is None or entry["method"] == "dpo" else f"{page.percent(first)} → {page.percent(last)}")
        cells += [page.percent(entry["evaluator_accuracy"]), f"{sum(row['compared'] or 0 for row in mine) / seeds:,.0f}"]
        cells += [page.percent(precision(mine)), page.percent(card.get("recall"))]
        cells += [
            f"{sum(row['training_flops'] or 0 for row in mine) / seeds / 1e12:.1f}",
            f"{sum(row['seconds'] for row in mine) / seeds:.0f}",
        ]
        yield line(cells)


def points(difference: Mapping[str, Any] | None) -> str:
    """A difference with its interval."""
    return "" if difference is None else f"{difference['mean'] * 100:+.1f}{page.interval(difference['interval'], '+')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
