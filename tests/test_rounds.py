"""The whole method on tiny random models: every method, feedback and demonstration; sharing, resuming, refusing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import every_label_usable, make_tiny_config
from safetensors.numpy import load_file

from ilr_jax import export, provenance, refinement, report, rounds, stages
from ilr_jax.files import read_json
from ilr_jax.models import decoder, flops
from ilr_jax.models.lora import Lora
from ilr_jax.roles import Model
from ilr_jax.store import Store
from ilr_jax.types import Rows


def payload(workdir: Path) -> dict[str, bytes]:
    """Every file that a run leaves, but for clocks and logs."""
    files = [p for p in sorted((workdir / "stages").rglob("*")) if p.is_file() and p.name != "about.json"]
    return {str(p.relative_to(workdir)): p.read_bytes() for p in files}


def records(workdir: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (workdir / "runs").glob("*.json")}


def untimed(found: dict[str, dict]) -> dict[str, tuple]:
    """Records without clocks and without the config, which says how often to save."""
    rows = {name: [{key: value for key, value in row.items() if key != "seconds"} for row in found[name]["rounds"]] for name in found}
    return {name: (record["method"], record["seed"], record["finished"], rows[name]) for name, record in found.items()}


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    """One workdir with all four methods run by a config that tests may not change."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        every_label_usable(patch)
        rounds.run(make_tiny_config(tiny_models), workdir)
    return workdir


def test_every_method_leaves_a_record_of_every_round(finished):
    found = records(finished)
    assert sorted(found) == ["dpo-seed0", "ilr-seed0", "naive-seed0", "sft-seed0"]
    assert [len(found[f"{m}-seed0"]["rounds"]) for m in ("sft", "ilr", "naive", "dpo")] == [1, 2, 2, 2]
    assert all(record["finished"] for record in found.values())
    config = found["ilr-seed0"]["config"]
    assert config["rounds"] == 1 and config["compute"]["dtype"] == "float32" and read_json(finished / "config.json") == config
    ilr = found["ilr-seed0"]["rounds"][1]
    assert ilr["agreed"] + ilr["compared"] + ilr["unread"] == ilr["labels"] == 12
    assert (finished / ilr["audit"]).exists() and (finished / ilr["model"] / stages.ADAPTERS).exists()


def test_training_flops_are_those_of_the_stages_that_a_round_was_the_first_to_need(finished):
    """Round 1 of ILR trains the evaluator, the fold models that make its proposals, and the model after it; their logs tell the tokens."""
    row, config = records(finished)["ilr-seed0"]["rounds"][1], read_json(finished / "config.json")
    made = {path.parent: read_json(path) for path in finished.glob("stages/*/manifest.json")}
    digests = {manifest["inputs"]["adapters"] for manifest in made.values() if manifest["name"] == "proposals"}
    trained = [finished / row["model"]] + [folder for folder, manifest in made.items() if manifest["digest"] in digests]
    (judge,) = (folder for folder, manifest in made.items() if manifest["name"] == "evaluator")
    of = lambda folder: [json.loads(line).get("tokens", [0]) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens = [sum(map(sum, of(folder))) for folder in [*trained, judge]]
    strong, weak = (Model(config[role]["model"], "float32").config for role in ("strong", "evaluator"))
    each = flops.adapters(strong, Lora(config["lora"]["rank"], config["lora"]["alpha"]))
    assert len(trained) == 2 and row["training_flops"] == each * sum(tokens[:2]) + flops.classifier(weak) * tokens[2]


def test_methods_share_their_first_round(finished):
    firsts = {record["rounds"][0]["model"] for record in records(finished).values()}
    assert len(firsts) == 1
    names = [path.name.rsplit("-", 1)[0] for path in (finished / "stages").iterdir()]
    assert names.count("weak") == names.count("weak-labels") == names.count("evaluator") == names.count("folds") == 1


def test_a_second_run_does_nothing_again(finished, monkeypatch, tiny_models, capsys):
    reports = [finished / "results.json", *(finished / "runs").iterdir()]
    report.write([finished])
    before, records_before = payload(finished), [path.read_bytes() for path in reports]
    every_label_usable(monkeypatch)
    monkeypatch.setattr(stages.loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    rounds.run(make_tiny_config(tiny_models), finished)
    report.write([finished])
    assert payload(finished) == before and [path.read_bytes() for path in reports] == records_before
    told = [line.partition(": test accuracy ")[0] for line in capsys.readouterr().out.splitlines()]
    later = [f"[{i}/4] {name}, round {r} of 1" for i, name in ((2, "ilr"), (3, "naive"), (4, "dpo")) for r in (0, 1)]
    assert told == ["[1/4] sft, round 0", *later]


def test_a_longer_record_stays_until_there_is_another_of_its_length(finished, monkeypatch, tiny_models):
    path = finished / "runs" / "ilr-seed0.json"
    before = path.read_bytes()
    every_label_usable(monkeypatch)
    monkeypatch.setattr(refinement, "propose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rounds.run(make_tiny_config(tiny_models), finished)
    assert path.read_bytes() == before


def test_a_report_can_be_written_of_it(finished):
    html = report.write([finished]).read_text()
    results = read_json(finished / "results.json")
    fields = ("method", "seed", "round", "test_accuracy", "label_accuracy", "evaluator_accuracy")
    assert len(results["rows"]) == 7 and all(field in row for row in results["rows"] for field in fields)
    by_place = {(row["method"], row["round"]): row for row in results["rows"]}
    assert by_place["dpo", 1]["label_accuracy"] is None and by_place["sft", 0]["evaluator_accuracy"] is None
    assert 0 <= by_place["ilr", 1]["label_accuracy"] <= 1 and by_place["ilr", 1]["seed"] == 0
    assert [(entry["series"], entry["against"]) for entry in results["differences"]] == [("ilr", m) for m in ("dpo", "naive", "sft")]
    assert all(entry["over"] == "seeds and test examples" and entry["interval"] for entry in results["differences"])
    assert "ilr - dpo" in html


@pytest.mark.parametrize(("method", "round"), [("sft", 0), ("ilr", 0), ("ilr", 1), ("naive", 1), ("dpo", 1)])
def test_every_label_can_be_exported_with_its_decision(finished, method, round):
    rows = provenance.labels(finished, method, 0, round)
    assert len(rows) == 12 and all(row["reason"] and row["prompt"] and row["decision"] in ("kept", "accepted") for row in rows)
    assert all((row["accept"] is None) == (row["score"] is None) for row in rows)
    assert any(row["score"] is not None for row in rows) == ((method, round) == ("ilr", 1))


def test_an_adapter_is_exported_with_a_base_that_can_be_loaded(finished, tmp_path, tiny_models):
    export.model(finished, "ilr", 0, None, tmp_path / "out", adapter=True)
    fields = read_json(tmp_path / "out" / "adapter_config.json")
    assert fields["base_model_name_or_path"] == str(tiny_models["mistral"].resolve())
    assert Path(export._loadable("embedded:gemma")).is_dir() and export._loadable("google/gemma-2b") == "google/gemma-2b"


def test_a_model_on_another_base_or_a_damaged_one_is_not_exported(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished, tmp_path / "copy")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="was trained on another base than"):
        patch.setattr(Model, "digest", "other")
        export.model(copy, "sft", 0, None, tmp_path / "out", adapter=True)
    path = copy / records(copy)["sft-seed0"]["rounds"][0]["model"] / stages.ADAPTERS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="adapters.safetensors is damaged"):
        export.model(copy, "sft", 0, None, tmp_path / "out", adapter=True)


def test_another_prompt_makes_other_stages(tiny_config, tmp_path, monkeypatch, capsys):
    bench, built = stages.Bench(Store(tmp_path), tiny_config, "[2/4] ilr, round 1"), []
    for text in ("{question}", "{question}?", "{question}"):
        monkeypatch.setattr(stages.tokenizer, "PROMPT", text)
        bench.run("stage", {}, {}, lambda folder: built.append(folder))
    assert len(built) == 2 and capsys.readouterr().out == "[2/4] ilr, round 1: stage\n" * 2


def test_without_a_usable_label_the_error_names_method_round_and_reason(tiny_config, tmp_path):
    tiny_config.method = "ilr"
    with pytest.raises(
        ValueError, match=r"\[1/1\] ilr, round 0 of 1: wanted labels that wordmath can train on, got none in 12, the first: \['"
    ):
        rounds.run(tiny_config, tmp_path)


def test_the_audit_tells_where_every_label_came_from(finished):
    ilr = records(finished)["ilr-seed0"]["rounds"][1]
    audit = [json.loads(line) for line in (finished / ilr["audit"]).read_text().splitlines()]
    labels = [json.loads(line) for line in (finished / ilr["audit"]).with_name("labels.jsonl").read_text().splitlines()]
    assert len(audit) == len(labels) == 12 and all(row["reason"] for row in audit)
    for row, label in zip(audit, labels, strict=True):
        assert row["after"] == label["text"] == (row["proposal"] if row["accepted"] else row["before"])
        assert (label["source"], label["round"]) == (("proposal", 1) if row["accepted"] else ("weak", 0))


def test_another_config_is_refused_but_another_method_or_seed_is_not(finished, tiny_models):
    config = make_tiny_config(tiny_models)
    config.alpha = 0.5
    with pytest.raises(ValueError, match=r"different config.*\n.*alpha: wanted 0.15, got 0.5"):
        rounds.run(config, finished)


def test_a_second_run_finds_its_programs_on_disk(tiny_config, tmp_path, monkeypatch):
    """In another workdir, with nothing in memory: all that the first run kept."""

    def compiles(lab):
        """A method of one program, which takes several times the tenth of a second from which on programs are kept."""
        config, rows = Model(lab.config.weak.model, "float32").config, Rows(*np.ones((3, 1, 8), np.int32))
        jax.jit(jax.grad(lambda params: decoder.bind(config, params)(rows)[0].sum())).lower(decoder.abstract(config)).compile()
        yield rounds.BLANK

    monkeypatch.setitem(rounds.METHODS, "sft", compiles)
    folder, hits = tmp_path / "xla", []
    tiny_config.method, tiny_config.compute.cache = "sft", str(folder)
    note = lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
    jax.monitoring.register_event_listener(note)
    try:
        rounds.run(tiny_config, tmp_path / "one")
        kept = len(list(folder.glob("*-cache")))
        assert kept > 0 and not hits
        jax.clear_caches()
        rounds.run(tiny_config, tmp_path / "two")
        assert len(hits) >= kept
    finally:
        jax.monitoring.unregister_event_listener(note)


def test_unknown_method_is_refused(tiny_config, tmp_path):
    tiny_config.method = "ilr,sfd"
    with pytest.raises(ValueError, match="some of sft, ilr, naive, dpo, sft_chosen, dpo_pairs, weak; got .sfd."):
        rounds.run(tiny_config, tmp_path)
    assert not list(tmp_path.iterdir())


KILLED = "import sys; from conftest import child; child(sys.argv[1], sys.argv[2])"


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(finished, tiny_models, tmp_path):
    """Signals inside trainings that have saved, each time the same command: all is as in the run that nobody killed."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tiny_models["gemma"].parent)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for stage, number, code in (("weak", signal.SIGKILL, -9), ("folds", signal.SIGTERM, 143), ("dpo", signal.SIGKILL, -9)):
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 240
            while not list(tmp_path.glob(f"partial/{stage}-*/resume/resume/1/manifest.json")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(number)
        assert process.returncode == code
    assert not (tmp_path / "runs" / "dpo-seed0.json").exists() or not records(tmp_path)["dpo-seed0"]["finished"]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=400)
    assert payload(tmp_path) == payload(finished)
    assert untimed(records(tmp_path)) == untimed(records(finished))


def test_trained_adapters_are_finite_and_moved(finished):
    sft = records(finished)["sft-seed0"]["rounds"][0]["model"]
    arrays = load_file(finished / sft / stages.ADAPTERS)
    assert all(np.isfinite(x).all() for x in arrays.values()) and any(np.abs(x).max() > 0 for n, x in arrays.items() if n.endswith(".b"))


def test_dpo_starts_at_log_2_because_its_reference_is_the_policy_it_goes_on_from(finished):
    (metrics,) = finished.glob("stages/dpo-*/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[0])["loss"] == pytest.approx([np.log(2)], abs=1e-6)


def test_snapshots_come_in_the_order_of_training_and_end_with_what_was_trained(finished):
    (folder,) = finished.glob("stages/weak-[0-9a-f]*")
    trained, taken = (load_file(folder / name) for name in (stages.ADAPTERS, stages.SNAPSHOTS))
    gaps = [max(np.abs(taken[name].take([i], axis=x.shape.index(1)) - x).max() for name, x in trained.items()) for i in range(3)]
    assert gaps[0] > gaps[2] == 0.0


def test_a_round_whose_proposals_are_mostly_empty_says_so():
    facts = rounds.BLANK | {"test_measure": "accuracy", "test_accuracy": 0.5}
    naive, dpo_pairs = facts | {"labels": 10, "unread": 6}, facts | {"agreed": 1, "compared": 3, "unread": 6}
    assert rounds._line(naive) == rounds._line(dpo_pairs) == "test accuracy 50.0%; 6 of 10 proposals are empty"
    assert {rounds._line(row) for row in (facts, naive | {"unread": 5}, dpo_pairs | {"compared": 5})} == {"test accuracy 50.0%"}
