"""docs/experiments.md: every command in it parses against its config, and what it sets can be run."""

import re
import shlex
from pathlib import Path

import pytest

from ilr_jax import main, report, settings, sweep

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a config's file
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "experiments.md").read_text()
RUN = "ilr sweep --config=configs/quickstart.py --workdir=runs/wishes --seeds=0,1,2,3,4"
COMMANDS = [text.replace("RUN", RUN, 1) for text in re.findall(r"`((?:ilr run|ilr sweep|RUN) [^`]*--[^`]*)`", TEXT)]
COMMANDS += [re.sub(r"\\\n\s*", "", text) for text in re.findall(r"^    (ilr (?:run|sweep) (?:.*\\\n)*.*)$", TEXT, re.M)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_its_config_can_be_run(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, verb, *words = shlex.split(command)
    options, flags = sweep.parser().parse_known_args(words) if verb == "sweep" else (None, words)
    for point in sweep.grid(options.grid if options else []):
        found, workdir = main.config_of([*flags, *point.flags])
        assert settings.check(found) and workdir


def test_all_rows_that_run_stands_for_share_a_folder_in_any_order(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    shared = [shlex.split(command)[2:] for command in COMMANDS if command.startswith(RUN)]
    for words in (*shared, *shared[::-1]):
        options, flags = sweep.parser().parse_known_args(
            [f"--workdir={tmp_path}" if word.startswith("--workdir") else word for word in words]
        )
        base, workdir = main.config_of(flags)
        assert sweep.plan(flags, base, Path(workdir), sweep.grid(options.grid), [0])
    assert len(shared) > 15


def test_the_document_has_the_authors_scripts_and_says_what_run_stands_for():
    assert f"`{RUN}`" in TEXT and len(COMMANDS) > 30
    assert len(set(re.findall(r"`([a-z-]+/[a-z0-9-]+\.sh)`", TEXT))) == 17  # those in parallel/ are the same experiments


def test_every_column_of_a_report_is_in_the_document(workdir):
    report.write([workdir])
    head = (workdir / "results.csv").read_text().splitlines()[0].split(",")
    assert len(head) > 25 and not [name for name in head if f"`{name}`" not in TEXT.partition("## What a report holds")[2]]


def test_every_method_and_variant_is_in_the_document():
    fields = ("refine.rule", "refine.proposer", "refine.pick", "dpo.loss", "demos", "feedback", "alpha_of")
    wanted = [*settings.METHODS, *(value for field in fields for value in settings.CHOICES[field])]
    assert not [word for word in wanted if not re.search(rf"\b{word}\b", TEXT)]
