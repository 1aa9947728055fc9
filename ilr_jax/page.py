"""The report's page: one HTML file with charts, tables and every decision about a label, readable offline and on a phone.

Labels are hostile text: Jinja escapes them, the browser of labels shows them as text only, and a content security policy (CSP Level 3,
W3C) lets nothing run but the page's own script, named by its hash. Not here: what the figures mean (`report`). JAX is not imported.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import jinja2

FLOWS = ("wrong_to_right", "right_to_wrong", "wrong_to_wrong", "right_to_right")
HEADLINE = ("method", "seeds", "round", "test accuracy", "vs sft", "labels right", "evaluator right", "replaced")
CARD = (
    "method",
    "comparisons",
    "right",
    "accepts wrong",
    "rejects right",
    "order flips",
    "second place",
    "longer preferred",
    "longer right",
)
CARD += ("calibration error", "precision", "recall")
CHARTS = {
    ("test_accuracy", "round"): "Test accuracy",
    ("label_accuracy", "round"): "Labels that are right",
    ("evaluator_accuracy", "round"): "Evaluator right, on the pairs it was asked",
    ("test_accuracy", "spent"): "Test accuracy by comparisons spent",
}
LEGEND = "[..] 95 % interval over seeds and test questions; of labels and evaluator over seeds, of one seed over labels and pairs"
LEGEND += "\ndifferences in points; –: does not apply, or not known"
ACROSS = {"round": "round", "spent": "comparisons spent"}
OUTCOMES = {"agrees with the label": "agreed", "the proposal is empty": "no proposal", "not judged": "not asked"}  # else rejected
MOST_ROWS = 20_000  # a page of more would be slow to open on a phone
INK = "#010203"  # stands for the page's text colour, light or dark, until the SVG is inlined
COLOURS = ("#8a8f98", "#2f86d1", "#d97a1f", "#2a9d6f", "#b565c9", "#d0494f", "#a08c00", "#00a0a8")
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.parse_math": False,
}

Row = Mapping[str, Any]


def percent(value: float | None) -> str:
    """0.5512 as 55.1%."""
    return "–" if value is None else f"{value:.1%}"


def interval(ends: Sequence[float] | None, sign: str = "") -> str:
    """[0.48, 0.56] as ` [48.0,56.0]`; nothing for None."""
    return "" if ends is None else f" [{ends[0] * 100:{sign}.1f},{ends[1] * 100:{sign}.1f}]"


def shares(found: Mapping[str, float] | None) -> str:
    """{"strict": 0.41} as `strict 41.0%`."""
    return ", ".join(f"{name} {percent(value)}" for name, value in (found or {}).items()) or "–"


def headline(entry: Row) -> list[str]:
    """A summary entry as the cells under HEADLINE."""
    of: Callable[[int | None], str] = lambda n: f" of {n:,}" if n else ""
    difference = entry["difference"]
    known = [share for share in (entry["label_accuracy_first"], entry["label_accuracy_last"]) if share is not None]
    return [
        entry["series"] + ("" if entry["finished"] else " (unfinished)"),
        str(len(entry["seeds"])),
        str(entry["rounds"]),
        percent(entry["test_accuracy"]) + of(entry["test_size"]) + interval(entry["test_interval"]),
        f"{difference['mean'] * 100:+.1f}{interval(difference['interval'], '+')}" if difference else "–",
        (" → ".join(dict.fromkeys(map(percent, known))) + of(entry["label_size"]) if known else "–") + interval(entry["label_interval"]),
        percent(entry["evaluator_accuracy"]) + of(entry["evaluator_pairs"]) + interval(entry["evaluator_interval"]),
        "–" if entry["replaced"] is None else f"{entry['replaced']:g}",
    ]


def supervisor(summary: Sequence[Row]) -> str:
    """The line about supervisors and about test accuracies that are win rates or unknown; empty if there is nothing to tell."""
    if all(entry["test_accuracy"] is None for entry in summary):
        return "test accuracy is not known: the data has no test split with trusted references"
    known = dict.fromkeys(percent(value) for entry in summary if (value := entry["supervisor_accuracy"]) is not None)
    won = [entry["series"] for entry in summary if entry["test_measure"] == "win rate"]
    parts = [f"the supervisor's own test accuracy: {', '.join(known)}"] if known else []
    parts += [f"test accuracy of {', '.join(won)} is the win rate over the references, by the run's judge"] if won else []
    return "; ".join(parts)


def difference(entry: Row) -> str:
    """A difference of two series as a line of text, in points."""
    ends = interval(entry["interval"], "+") or " (no interval: one number only)"
    rest = "" if entry["finished"] else ", of unfinished runs"
    seeds = f"seed{'s' * (len(entry['seeds']) > 1)} {', '.join(map(str, entry['seeds']))}"
    return f"{entry['series']} - {entry['against']}: {entry['mean'] * 100:+.1f}{ends}, {seeds}{rest}"


def report_card(entry: Row) -> list[str]:
    """An evaluator's card as the cells under CARD, a share with what it is of."""
    of = lambda share, n: "–" if entry[share] is None else f"{percent(entry[share])} of {entry[n]:,}{interval(entry['intervals'][share])}"
    return [
        entry["series"],
        str(entry["comparisons"]),
        of("accuracy", "pairs"),
        of("accepts_wrong", "right_labels"),
        of("rejects_right", "right_proposals"),
        of("flips", "both_orders"),
        of("second", "both_orders"),
        of("longer", "unequal"),
        of("longer_right", "unequal_pairs"),
        of("calibration_error", "pairs"),
        of("precision", "replaced_known"),
        of("recall", "right_proposals"),
    ]


def render(
    rows: Sequence[Row],
    audits: Sequence[Sequence[Any]],
    backgrounds: Sequence[Row],
    *,
    summary: Sequence[Row],
    differences: Sequence[Row],
    cards: Sequence[Row],
) -> str:
    """The page's text, self-contained. `audits` holds the `types.Audit`s of each row."""
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "shares": shares,
        "headline": headline,
        "difference": difference,
        "report_card": report_card,
    }
    script = (folder / "report.js").read_text(encoding="utf-8")
    labels, left_out = browser_data(rows, audits)
    return environment.get_template("report.html.j2").render(
        rows=rows,
        entries=summary,
        supervisor=supervisor(summary),
        differences=differences,
        columns=HEADLINE,
        charts=[(title, svg) for (field, across), title in CHARTS.items() if (svg := chart(rows, field, across))],
        flows=FLOWS,
        cards=cards,
        card_columns=CARD,
        reliability=reliability(rows, cards),
        labels=json_for_script(labels),
        left_out=left_out,
        backgrounds=backgrounds,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=(folder / "report.css").read_text(encoding="utf-8"),
    )


def json_for_script(value: Any) -> str:
    """JSON that may stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: lone surrogates and line separators are escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def browser_data(rows: Sequence[Row], audits: Sequence[Sequence[Any]]) -> tuple[dict[str, Any], int]:
    """Every decision for the page's script, and how many were left out beyond MOST_ROWS (accepted ones go first).

    A text is kept once in `texts` and named by its number; `groups` are method, seed and round; `rows` follow `_decision`.
    """
    found = ((number, audit) for number, group in enumerate(audits) for audit in group)
    kept = nsmallest(MOST_ROWS, found, key=lambda pair: 2 * (not pair[1].accepted) + (pair[1].score is None))
    texts: dict[str, int] = {}
    decisions = [_decision(number, audit, texts) for number, audit in sorted(kept, key=lambda pair: (pair[0], not pair[1].accepted))]
    names = [[row["series"], row["seed"], row["round"]] for row in rows]
    return {"groups": names, "texts": list(texts), "rows": decisions}, sum(map(len, audits)) - len(kept)


def _decision(group: int, audit: Any, texts: dict[str, int]) -> list[Any]:
    outcome = ("accepted" if audit.after else "dropped") if audit.accepted else OUTCOMES.get(audit.reason, "rejected")
    words = (audit.example_id, audit.prompt, audit.before, audit.proposal, audit.reason, outcome)
    numbers = [audit.accept, audit.reject, audit.score, audit.threshold]
    known = [texts.setdefault(word, len(texts)) for word in words]
    return [group, *known, audit.before_correct, audit.proposal_correct, *(n if n is None else round(n, 4) for n in numbers)]


def chart(rows: Sequence[Row], field: str, across: str = "round") -> str:
    """The field `across` rounds or comparisons "spent", a curve per series (mean of its seeds), as SVG text; empty if there is none.

    Thin: each seed. Bands: lowest to highest seed; of one seed, the interval of its test accuracy. A series of one round, or that spends
    nothing, is a dashed line.
    """
    curves = {name: points for name in _places(rows) if (points := list(_points(rows, name, field, across)))}
    if across == "spent":
        curves = {name: points if points[-1][0] else points[-1:] for name, points in curves.items()}
    if not curves or (across == "spent" and not any(points[-1][0] for points in curves.values())):
        return ""

    def draw(axes: Any) -> None:
        """Every series, and its seeds where it is a curve."""
        from matplotlib.ticker import MaxNLocator

        axes.set_xlabel(ACROSS[across])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, points in curves.items():
            _draw(axes, _places(rows)[name], name, points)
            for own in _seeds(rows, name, field, across) if len(points) > 1 else ():
                axes.plot(*zip(*own, strict=True), color=_look(_places(rows)[name])["color"], linewidth=0.6, alpha=0.6)

    return drawn(field + across, draw)


def reliability(rows: Sequence[Row], cards: Sequence[Row]) -> str:
    """Score against the share of right second answers, a curve per card, as SVG text; empty if nothing says what is right."""
    known = [entry for entry in cards if entry["calibration"]]

    def draw(axes: Any) -> None:
        axes.set(xlabel="score", ylabel="second answer right", xlim=(0, 1), ylim=(0, 1))
        axes.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=":")
        for entry in known:
            _, scores, right = zip(*entry["calibration"], strict=True)
            axes.plot(scores, right, label=entry["series"], **_look(_places(rows)[entry["series"]]))

    return drawn("reliability", draw) if known else ""


def drawn(salt: str, draw: Callable[[Any], None], share: bool = True) -> str:
    """What `draw` puts into axes, of shares or not, as SVG text in the page's colours. The salt fixes its ids: same figures, same bytes."""
    import matplotlib  # takes a while to load, and only the page needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.2, color=INK)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _points(rows: Sequence[Row], series: str, field: str, across: str) -> Iterator[tuple[float, float, float, float]]:
    """(round, or mean of what was spent until then; mean, low, high) of every round in which the series has the field."""
    mine = [row for row in rows if row["series"] == series and row[field] is not None]
    for number in sorted({row["round"] for row in mine}):
        values = [row[field] for row in mine if row["round"] == number]
        ends = [row["test_interval"] for row in mine if row["round"] == number and field == "test_accuracy"]
        low, high = ends[0] if len(ends) == 1 and ends[0] else (min(values), max(values))
        places = [row[across] for row in mine if row["round"] == number]
        yield sum(places) / len(places), sum(values) / len(values), low, high


def _seeds(rows: Sequence[Row], series: str, field: str, across: str) -> list[list[tuple[int, float]]]:
    """(round, or what was spent until then; value) of each of the series' seeds, where there are several."""
    mine = [row for row in rows if row["series"] == series and row[field] is not None]
    seeds = dict.fromkeys(row["seed"] for row in mine)
    return [sorted((row[across], row[field]) for row in mine if row["seed"] == seed) for seed in seeds] if len(seeds) > 1 else []


def _places(rows: Sequence[Row]) -> dict[str, int]:
    """Which of the page's series each is."""
    return {name: number for number, name in enumerate(dict.fromkeys(row["series"] for row in rows))}


def _look(number: int) -> dict[str, str]:
    """A series looks the same in every chart, and like no other."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]}


def _draw(axes: Any, number: int, name: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    rounds, means, lows, highs = zip(*points, strict=True)
    look = _look(number)
    axes.plot(rounds, means, label=name, **look)
    axes.fill_between(rounds, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    if len(points) == 1:
        axes.axhline(means[0], color=look["color"], linestyle="--", linewidth=1)
