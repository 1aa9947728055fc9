"""The page shows what the report holds, and lets no label become markup."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_runs import HOSTILE, decision, make_workdir

from ilr_jax import page, report
from ilr_jax.files import read_json
from ilr_jax.refine.select import unasked
from ilr_jax.types import Label


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="labels-data">(.*?)</script>', html, re.DOTALL)[1])


class Tags(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_hostile_labels_stay_text(workdir):
    run = read_json(workdir / "runs" / "dpo-seed0.json") | {"method": HOSTILE}
    (workdir / "runs" / "hostile.json").write_text(json.dumps(run))
    html = report.write([workdir]).read_text()
    parsed = Tags()
    parsed.feed(html)
    assert [tag for tag, _ in parsed.tags].count("script") == 2 and "b" not in [tag for tag, _ in parsed.tags]
    assert html.count("</script>") == 2 and "alert(1)</script>" not in html
    assert HOSTILE in data_of(html)["texts"] and "<!--" not in html
    assert parsed.words.count(HOSTILE) >= 2  # the method's name and a config value: shown, as text


def test_what_else_was_found_of_test_answers_stands_in_the_rows(workdir):
    assert page.shares(None) == page.shares({}) == "–" and page.shares({"strict": 0.41, "x": 1.0}) == "strict 41.0%, x 100.0%"
    path = workdir / "runs" / "ilr-seed0.json"
    run = read_json(path)
    run["rounds"][-1]["findings"] = {"strict": 0.1234}
    path.write_text(json.dumps(run))
    assert report.write([workdir]).read_text().count("strict 12.3%") == 1
    assert {"strict": 0.1234} in [row["findings"] for row in read_json(workdir / "results.json")["rows"]]


def test_the_policy_lets_only_the_pages_own_script_run(workdir):
    html = report.write([workdir]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    parsed = Tags()
    parsed.feed(html)
    for _, attrs in parsed.tags:  # nothing is fetched, no handler is inline
        assert not {"src", "srcset", "data"} & attrs.keys() and not any(name.startswith("on") for name in attrs)
        assert all(attrs[name].startswith("#") for name in ("href", "xlink:href") if name in attrs)


def test_page_shows_figures_charts_config_and_versions(workdir):
    html = report.write([workdir]).read_text()
    shown = ["61.0% [57.0,65.0]", "+11.0", "41.0% → 61.0%", "75.0%", "0.7123", "task.name", "0.10.2", "1 x NVIDIA H100"]
    shown += ['<meta name="viewport" content="width=device-width', "prefers-color-scheme: dark", "currentColor"]
    assert not [words for words in shown if words not in html]
    assert html.count("<svg") == 5 and all(f'aria-label="{title}' in html for title in page.CHARTS.values())
    assert 'class="wrong_to_right" style="flex-grow:1"' in html and page.INK not in html and "torch" not in html


def test_each_chart_draws_its_own_field(workdir):
    html = report.write([workdir]).read_text()
    figures = {title: re.search(rf"<figcaption>{title}</figcaption>(.*?)</figure>", html, re.DOTALL)[1] for title in page.CHARTS.values()}
    drawn = [[name for name in ("sft", "ilr", "dpo") if f">{name}</text>" in svg] for svg in figures.values()]
    assert drawn == [["sft", "ilr", "dpo"], ["sft", "ilr", "dpo"], ["ilr", "dpo"], ["sft", "ilr", "dpo"]]
    rows = report.collect([workdir])
    looks = {name: page._look(number)["color"] for name, number in page._places(rows).items()}
    assert len(set(looks.values())) == 3 and all(
        (looks["sft"] in svg) == ("sft" in names) for svg, names in zip(figures.values(), drawn, strict=True)
    )
    assert len({tuple(page._look(number).values()) for number in range(64)}) == 64
    assert page.chart([], "test_accuracy") == "" == page.chart([], "test_accuracy", "spent")


def test_the_evaluators_card_stands_in_the_page_where_one_was_asked(workdir):
    html = report.write([workdir]).read_text()
    assert "Evaluator report card" in html and "<td>100.0% of 4 [100.0,100.0]</td>" in html
    assert re.search(r"<figcaption>Calibration</figcaption>.*?>score</text>.*?>ilr</text>", html, re.DOTALL)
    for method in ("ilr", "dpo"):
        (workdir / "runs" / f"{method}-seed0.json").unlink()
    assert "Evaluator report card" not in report.write([workdir]).read_text() and page.reliability([], []) == ""


def test_bands_go_from_the_lowest_to_the_highest_seed_or_show_the_interval_of_one(tmp_path):
    one, three = (report.collect([make_workdir(tmp_path / str(n), seeds)]) for n, seeds in enumerate([(0,), (0, 4, 2)]))
    assert list(page._points(one, "ilr", "test_accuracy", "round"))[2] == pytest.approx((2, 0.61, 0.57, 0.65))
    assert list(page._points(three, "ilr", "test_accuracy", "round"))[2] == pytest.approx((2, 0.63, 0.61, 0.65))
    assert list(page._points(one, "ilr", "evaluator_accuracy", "round")) == [(1, 0.6, 0.6, 0.6), (2, 0.8, 0.8, 0.8)]


def test_browser_data_has_every_decision_once_and_each_text_once(workdir):
    data = data_of(report.write([workdir]).read_text())
    assert len(data["rows"]) == 8 and len(set(data["texts"])) == len(data["texts"])
    named = {(data["texts"][row[1]], data["groups"][row[0]][2]): row for row in data["rows"]}
    outcomes = {key: data["texts"][row[6]] for key, row in named.items()}
    assert [outcomes[f"q{n}", 1] for n in (1, 2, 3, 4)] == ["accepted", "rejected", "agreed", "no proposal"]
    assert outcomes["q1", 2] == "not asked" and data["groups"][named["q1", 2][0]] == ["ilr", 0, 2]
    assert named["q1", 1][7:] == [False, True, 0.9, 0.9, 0.9, 0.63] and named["q4", 1][7:] == [False, None, None, None, None, None]


def test_a_label_that_was_dropped_is_not_said_to_be_the_proposal():
    row = dataclasses.replace(decision("q1", 1, accepted=True), after="")
    data, _ = page.browser_data([{"series": "ilr", "seed": 0, "round": 1}], [[row]])
    assert data["texts"][data["rows"][0][6]] == "dropped"


@pytest.mark.parametrize("standing, outcome", [("agrees", "agreed"), ("unread", "no proposal"), ("disagrees", "not asked")])
def test_outcomes_know_the_reasons_that_refinement_gives(standing, outcome):
    assert page.OUTCOMES[unasked(Label("q", "7", "weak"), "8", standing, 1).reason] == outcome


def test_a_page_too_large_keeps_accepted_rows_and_says_what_is_missing(workdir, monkeypatch):
    monkeypatch.setattr(page, "MOST_ROWS", 3)
    html = report.write([workdir]).read_text()
    data = data_of(html)
    assert [data["texts"][row[6]] for row in data["rows"]].count("accepted") == 2 and len(data["rows"]) == 3
    assert "5 more decisions are not in this page" in html


def test_thousands_of_rows_make_a_page_of_some_megabytes(workdir):
    audit = [decision(f"q{n}", 1, proposal=f"{n} and " * 30) for n in range(5000)]
    text = page.json_for_script(page.browser_data([{"series": "ilr", "seed": 0, "round": 1}], [audit])[0])
    assert len(text) < 3e6


@pytest.mark.skipif(not shutil.which("node"), reason="the page's script is run by node here")
def test_the_browser_of_labels_filters_searches_and_shows_more(workdir, tmp_path):
    audit = [decision(f"q{n}", 1, accepted=n % 2 == 0, right=(n % 3 == 0, True), proposal=f"answer {n}!") for n in range(70)]
    data = page.json_for_script(page.browser_data([{"series": "ilr", "seed": 0, "round": 1}], [audit])[0])
    (tmp_path / "data.json").write_text(data)
    script = Path(page.__file__).with_name("templates") / "report.js"
    command = ["node", str(Path(__file__).with_name("browser.js")), str(script), str(tmp_path / "data.json")]
    steps = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert steps["start"] == ["25 shown of 70 found, 70 in all.", 25, False]
    assert steps["more"] == ["70 shown of 70 found, 70 in all.", 70, True]
    assert steps["accepted"] == ["25 shown of 35 found, 70 in all.", 25, False]
    assert steps["accepted, wrong to right"][0] == "23 shown of 23 found, 70 in all."
    assert steps["text"] == ["1 shown of 1 found, 70 in all.", 1, True]
    assert "answer 42!" in steps["card"] and "accepted · ilr · seed 0 · round 1 · q42" in steps["card"]
    assert "✓ right" in steps["card"] and "score 0.400 · threshold 0.630" in steps["card"]


def test_each_seed_has_a_line_of_its_own_beside_their_mean(tmp_path):
    lines = lambda seeds: page.chart(report.collect([make_workdir(tmp_path / str(len(seeds)), seeds)]), "test_accuracy").count(
        "stroke-width: 0.6"
    )
    assert lines((0,)) == 0 and lines((0, 1, 2)) == 3 * 2  # of ILR and DPO; SFT has one round


def test_accuracy_stands_over_the_comparisons_that_were_spent(workdir):
    rows = report.collect([workdir])
    assert {row["method"]: row["spent"] for row in rows} == {"sft": 0, "dpo": 150, "ilr": 4}
    svg = page.chart(rows, "test_accuracy", "spent")
    assert ">comparisons spent<" in svg and ">round<" not in svg
    assert page.chart([row for row in rows if row["method"] == "sft"], "test_accuracy", "spent") == ""
