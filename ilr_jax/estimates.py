"""Rows of runs into estimates: a summary, differences between methods, the evaluator's report card, each with its interval.

Not here: where rows come from and where the figures go (`report`); how often something was resampled (`metrics`). JAX is not imported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from ilr_jax import metrics
from ilr_jax.files import read_rows
from ilr_jax.refine.card import asked, calibration_gaps, card, replacements
from ilr_jax.types import Audit, Comparison

BASELINE = "sft"
RIVALS = ("dpo", "dpo_pairs", "sft_chosen", "naive", "sft")  # what ILR is compared with
SHARES = {"accuracy": "pairs", "accepts_wrong": "right_labels", "rejects_right": "right_proposals"}  # of a card: share -> of how many
SHARES |= {"precision": "replaced_known", "recall": "right_proposals", "flips": "both_orders", "second": "both_orders"}
SHARES |= {"longer": "unequal", "longer_right": "unequal_pairs"}

Row = dict[str, Any]


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One entry per series: its final test accuracy over seeds, the difference to the baseline, and what became of the labels.

    Intervals are 95 % bootstrap over seeds and, of test accuracy where every run tells which test examples were right, over these too.
    Runs that have not ended count only in a series that has no other.
    """
    series = _series(rows)
    return [_entry(name, group, series.get(_sibling(group[0], BASELINE))) for name, group in series.items()]


def differences(rows: Sequence[Row]) -> list[Row]:
    """Final test accuracy of ILR minus that of each rival, paired by seed and, where all runs tell, by test example, with its interval."""
    series, found = _series(rows), []
    for name, group in series.items():
        for rival in RIVALS if group[0]["method"] == "ilr" else ():
            against = _sibling(group[0], rival)
            if against in series and (difference := _difference(_last(group), _last(series[against]))):
                finished = all(row["finished"] for row in [*group, *series[against]])
                found.append({"series": name, "against": against, "finished": finished, **difference})
    return found


def cards(rows: Sequence[Row], audits: Sequence[Sequence[Audit]]) -> list[Row]:
    """The report card (`refine.card`) of each series' evaluator, on the comparisons of all rounds and seeds; `audits` are of the rows.

    Besides the card's keys: `intervals`, of the shares in SHARES and of the calibration error, over seeds; of one seed over what a share is
    of, the error has none; None of what is of nothing. Runs that have not ended count as in `summarise`.
    """
    made, audit_of = [], {id(row): audit for row, audit in zip(rows, audits, strict=True)}
    for name, group in _series(rows).items():
        mine: dict[int, tuple[list[Audit], list[Comparison]]] = {}
        for row in group:
            decided, sampled = mine.setdefault(row["seed"], ([], []))
            decided += audit_of[id(row)]
            sampled += read_rows(Path(row["comparisons"]), Comparison) if row["comparisons"] else []
        if found := _card(*([x for part in parts for x in part] for parts in zip(*mine.values(), strict=True))):
            each = [own for parts in mine.values() if (own := _card(*parts))]
            intervals = {share: interval([(own[share], own[of]) for own in each]) for share, of in SHARES.items()}
            intervals["calibration_error"] = _calibration(each)
            made.append({"series": name, **found, "intervals": intervals})
    return made


def _card(decided: Sequence[Audit], sampled: Sequence[Comparison]) -> Row | None:
    found = card(asked(decided) + list(sampled))
    return found and {**found, **replacements(decided)}


def interval(told: Sequence[tuple[float | None, int | None]]) -> list[float] | None:
    """The interval of a share, by what it is of each seed and of how many: over seeds, of one over what it is of; None of nothing."""
    known = [(share * of, of) for share, of in told if share is not None and of]
    if not known:
        return None
    estimate = metrics.bootstrap_share(*np.transpose(known), seed=0)
    return [estimate.low, estimate.high]


def _calibration(each: Sequence[Row]) -> list[float] | None:
    """The interval of the calibration error of all seeds' pairs together, by each seed's card."""
    known = [own for own in each if own["pairs"]]
    if len(known) < 2:
        return None
    gaps = np.stack([calibration_gaps(own["calibration"]) for own in known])
    estimate = metrics.bootstrap_gaps(gaps, np.array([own["pairs"] for own in known], float), seed=0)
    return [estimate.low, estimate.high]


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each series, of its finished runs only if it has some."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row["series"], []).append(row)
    return {name: [row for row in group if row["finished"]] or group for name, group in series.items()}


def _sibling(row: Row, method: str) -> str:
    """The series of another method in the same workdir."""
    return method + row["series"].removeprefix(row["method"])


def _last(rows: Sequence[Row]) -> dict[int, Row]:
    """The last round of each seed."""
    return {row["seed"]: row for row in rows}


def _entry(name: str, rows: Sequence[Row], baseline: Sequence[Row] | None) -> Row:
    first, last = _last(rows[::-1]), _last(rows)
    replaced = [row["replaced"] for row in rows if row["replaced"] is not None]
    share, pairs = _evaluated(rows)
    labelled = list((last if any(row["label_accuracy"] is not None for row in last.values()) else first).values())  # dpo leaves them alone
    return {
        "series": name,
        "method": rows[0]["method"],
        "seeds": sorted(last),
        "finished": all(row["finished"] for row in rows),
        "rounds": max(row["round"] for row in rows),
        "test_accuracy": _mean(row["test_accuracy"] for row in last.values()),
        "test_interval": _interval(list(last.values())),
        "test_size": max((row["test_size"] or 0 for row in last.values()), default=0) or None,
        "test_measure": rows[0]["test_measure"],
        "supervisor_accuracy": _mean(row["supervisor_accuracy"] for row in first.values()),
        "difference": None if baseline is None or rows[0]["method"] == BASELINE else _difference(last, _last(baseline)),
        "label_accuracy_first": _mean(row["label_accuracy"] for row in first.values()),
        "label_accuracy_last": _mean(row["label_accuracy"] for row in last.values()),
        "label_interval": interval([(row["label_accuracy"], row["label_size"] if len(last) == 1 else 1) for row in labelled]),
        "label_size": max((row["label_size"] or 0 for row in labelled), default=0) or None,
        "evaluator_accuracy": share,
        "evaluator_interval": interval([_evaluated([row for row in rows if row["seed"] == seed]) for seed in last]),
        "evaluator_pairs": pairs,
        "replaced": sum(replaced) / len(last) if replaced else None,
    }


def _evaluated(rows: Sequence[Row]) -> tuple[float | None, int | None]:
    """How often the evaluator was right in all these rounds, and of how many pairs."""
    judged = [(row["evaluator_accuracy"], row["evaluator_pairs"]) for row in rows if row["evaluator_pairs"]]
    pairs = sum(of for _, of in judged)
    return (sum(share * of for share, of in judged) / pairs, pairs) if pairs else (None, None)


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _interval(rows: Sequence[Row]) -> list[float] | None:
    """Of one seed, the interval that its run recorded; None where nothing was tested."""
    if any(row["test_accuracy"] is None for row in rows):
        return None
    return rows[0]["test_interval"] if len(rows) == 1 else _estimated(metrics.bootstrap_interval, _results(rows))


def _difference(rows: Mapping[int, Row], baseline: Mapping[int, Row]) -> Row | None:
    """Of the seeds that both have and tested, paired by seed and, where they tell, by test example."""
    tested = lambda side: {seed for seed, row in side.items() if row["test_accuracy"] is not None}
    seeds = sorted(tested(rows) & tested(baseline))
    if not seeds:
        return None
    results = _results([rows[seed] for seed in seeds] + [baseline[seed] for seed in seeds])
    here, there = results[: len(seeds)], results[len(seeds) :]
    over = "seeds" if results.shape[1] == 1 else "seeds and test examples"
    ends = _estimated(metrics.paired_difference, here, there)
    return {"mean": float(here.mean() - there.mean()), "interval": ends, "seeds": seeds, "over": over}


def _results(rows: Sequence[Row]) -> Float[np.ndarray, "R N"]:
    """Right (1) or wrong (0) per run and test example if all tell, of equally many; else the accuracies, N = 1."""
    told = [row["test_right"] for row in rows]
    if all(told) and len({len(right) for right in told}) == 1:
        return np.array(told, float)
    return np.array([[row["test_accuracy"]] for row in rows])


def _estimated(how: Callable[..., metrics.Estimate], *results: Float[np.ndarray, "R N"]) -> list[float] | None:
    """The interval, or None where there is one number only, which says nothing of its spread."""
    if results[0].size == 1:
        return None
    estimate = how(*results, seed=0)
    return [estimate.low, estimate.high]
