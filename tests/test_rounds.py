"""The whole method on tiny random models: every method, feedback and demonstration; sharing, resuming, refusing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import every_label_usable, make_tiny_config
from safetensors.numpy import load_file

from ilr_jax import rounds, stages
from ilr_jax.lab import Lab
from ilr_jax.roles import Model
from ilr_jax.sample.requests import Completion
from ilr_jax.types import Answer, Artifact, Label


def payload(workdir: Path) -> dict[str, bytes]:
    """Every file that a run leaves, but for clocks and logs."""
    files = [p for p in sorted((workdir / "stages").rglob("*")) if p.is_file() and p.name != "about.json"]
    return {str(p.relative_to(workdir)): p.read_bytes() for p in files}


def records(workdir: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (workdir / "runs").glob("*.json")}


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
    ilr = found["ilr-seed0"]["rounds"][1]
    assert ilr["agreed"] + ilr["compared"] <= ilr["labels"] == 12
    assert (finished / ilr["audit"]).exists() and (finished / ilr["model"] / stages.ADAPTERS).exists()


def test_methods_share_their_first_round(finished):
    firsts = {record["rounds"][0]["model"] for record in records(finished).values()}
    assert len(firsts) == 1
    names = [path.name.rsplit("-", 1)[0] for path in (finished / "stages").iterdir()]
    assert names.count("weak") == names.count("weak-labels") == names.count("evaluator") == names.count("folds") == 1


def test_a_second_run_does_nothing_again(finished, monkeypatch, tiny_models):
    before = payload(finished)
    every_label_usable(monkeypatch)
    monkeypatch.setattr(stages.loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    rounds.run(make_tiny_config(tiny_models), finished)
    assert payload(finished) == before


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


def test_unknown_method_is_refused(tiny_config, tmp_path):
    tiny_config.method = "ilr,sfd"
    with pytest.raises(ValueError, match="some of sft, ilr, naive, dpo; got .sfd."):
        rounds.run(tiny_config, tmp_path)
    assert not list(tmp_path.iterdir())


def _labs(config, tmp_path):
    lab = Lab(config, tmp_path)
    return lab, [Label(example.id, example.reference, "weak") for example in lab.d2]


def test_folds_are_proposed_for_by_models_that_have_not_seen_them(tiny_config, tmp_path, monkeypatch):
    """With three folds each model sees the other two; the proposals come back in the labels' order."""
    tiny_config.folds = 3
    lab, labels = _labs(tiny_config, tmp_path)
    seen, asked = [], []
    monkeypatch.setattr("ilr_jax.lab.fine_tune", lambda bench, model, section, name, sets: seen.extend(sets))
    monkeypatch.setattr("ilr_jax.lab.answer", lambda bench, model, name, groups, how, models, purpose: asked.extend(groups))
    monkeypatch.setattr(
        "ilr_jax.lab.answers_of",
        lambda _: [Answer(e.id, k, 0, f"#### {e.id[-5:]}", 0.0, True) for k, group in enumerate(asked) for e in group],
    )
    proposals = lab.propose(labels, 1)
    prompts = [{prompt for prompt, _ in data} for data in seen]
    for known, group in zip(prompts, asked, strict=True):
        assert not known & {example.prompt for example in group} and len(known) == 8 and len(group) == 4
    assert proposals == [f"#### {label.example_id[-5:]}" for label in labels]


def test_each_round_draws_its_own_samples_and_beams_are_shared(tiny_config, tmp_path, monkeypatch):
    """Two rounds from one policy ask with other ids and make two stages; two beam searches are one stage."""
    lab, asked = Lab(tiny_config, tmp_path), []
    monkeypatch.setattr(stages, "load_adapters", lambda *_: {"adapters": None})
    monkeypatch.setattr(Model, "params", None)
    blank = Completion([70], 0.0, True, 0.0)
    monkeypatch.setattr(
        stages, "generate", lambda *given, **_: asked.append(given[3]) or [[blank] * getattr(given[4], "n", 1)] * len(given[3])
    )
    monkeypatch.setattr(Lab, "_preferences", lambda *_: ([], {}))
    policy = Artifact(str(tmp_path), "", {"digest": "d"})
    for r in (1, 2, 2):
        lab.prefer(policy, None, r)
    first, second = ({request.id for request in requests} for requests in asked)
    assert len(first) == len(second) == len(lab.d2) and not first & second and max(first | second) >= 2**28
    assert lab.test(policy)[1] == stages.answer(lab.bench, lab.model("strong"), "test", [lab.tests], lab._beam(), policy, purpose="other")


def test_oracle_feedback_and_correct_demonstrations(tiny_config, tmp_path, monkeypatch):
    """The oracle accepts exactly the right proposals; correct demonstrations are the right labels only."""
    tiny_config.feedback, tiny_config.demos = "oracle", "correct"
    lab, gold = _labs(tiny_config, tmp_path)
    wrong = [Label(label.example_id, "#### 123456", "weak") for label in gold]
    labels, facts = lab.refine("ilr", wrong, [x.text if i % 2 else "#### 7654321" for i, x in enumerate(gold)], None, 1, None)
    assert [label.text for label in labels] == [gold[i].text if i % 2 else "#### 123456" for i in range(len(gold))]
    assert facts["replaced"] == facts["flows"]["wrong_to_right"] == len(gold) // 2 and facts["evaluator_accuracy"] is None
    mixed = [gold[i] if i % 3 else wrong[i] for i in range(len(gold))]
    monkeypatch.setattr(Lab, "weak_supervisor", lambda self: None)
    monkeypatch.setattr(Lab, "weak_labels", lambda self, _: [_answer(label) for label in mixed])
    assert [label.example_id for label in rounds.first_labels(lab)] == [gold[i].example_id for i in range(len(gold)) if i % 3]


def _answer(label):
    return Answer(label.example_id, 0, 0, label.text, 0.0, True)


def test_released_scoring_of_dpo_is_at_chance(tiny_config, tmp_path, monkeypatch):
    tiny_config.dpo.scoring = "released"
    lab, _ = _labs(tiny_config, tmp_path)
    monkeypatch.setattr(Lab, "score_fn", lambda self, evaluator: lambda requests: np.array([0.25 + len(q) % 3 / 4 for q, _, _ in requests]))
    pairs = [(example, example.reference, "#### 1") for example in lab.d2]
    chosen, facts = lab._preferences(pairs, evaluator=Artifact("", "", {}))
    assert facts["evaluator_accuracy"] == pytest.approx(0.5) and len(chosen) == facts["preferences"]


KILLED = "import sys; from conftest import child; child(sys.argv[1], sys.argv[2])"


@pytest.mark.parametrize("moment", [0.35, 0.7])
def test_a_killed_run_ends_with_the_same_bytes(finished, tiny_models, tmp_path, moment):
    """SIGKILL at a moment of the run, then the same command: stages and labels are those of the run that nobody killed."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tiny_models["gemma"].parent)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    total = len(list((finished / "stages").iterdir()))
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("stages/*"))) < moment * total:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = payload(tmp_path)
    assert 0 < len(done) < len(payload(finished))
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=400)
    assert payload(tmp_path) == payload(finished)


def test_trained_adapters_are_finite_and_moved(finished):
    sft = records(finished)["sft-seed0"]["rounds"][0]["model"]
    arrays = load_file(finished / sft / stages.ADAPTERS)
    assert all(np.isfinite(x).all() for x in arrays.values()) and any(np.abs(x).max() > 0 for n, x in arrays.items() if n.endswith(".b"))
