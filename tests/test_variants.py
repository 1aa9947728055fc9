"""The experiment's other ways through, on tiny random models: each variant of the config runs, and its record says so."""

import shutil
import zlib
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import every_label_usable, make_tiny_config

from configs import quickstart
from ilr_jax import refinement, rounds
from ilr_jax.files import read_json
from ilr_jax.lab import Lab
from ilr_jax.plan.counts import Counts, counted
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.stages import Bench
from ilr_jax.tasks import wordmath
from ilr_jax.types import Answer, Artifact, Label


def half_right(self, answers, examples):
    """Random models are never right, so half of the answers count as right, whichever they are."""
    return np.array([zlib.crc32(f"{e.id} {text}".encode()) % 2 == 0 for text, e in zip(answers, examples, strict=True)], bool)


@pytest.fixture(scope="module")
def variant(tiny_models, tmp_path_factory):
    """`variant(rounds=2)` runs the tiny config with that changed; all share one store, so that only what differs is computed.

    Every run has to ask for what a plan counts.
    """
    workdir, used, stage = tmp_path_factory.mktemp("variants"), {}, Bench.run

    def noted(*args, **options) -> Artifact:
        artifact = stage(*args, **options)
        used[artifact.folder] = artifact
        return artifact

    def run(**fields) -> dict[str, list[dict]]:
        config = make_tiny_config(tiny_models)
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        shutil.rmtree(workdir / "runs", ignore_errors=True)
        (workdir / "config.json").unlink(missing_ok=True)
        used.clear()
        rounds.run(config, workdir)
        check_counts(config, list(used.values()))
        found = {path.stem.removesuffix("-seed0"): read_json(path)["rounds"] for path in sorted((workdir / "runs").iterdir())}
        read = lambda row: {"audited": count(workdir, row["audit"]), "asked": count(workdir, row["comparisons"])}
        return {name: [{**row, **read(row)} for row in rows] for name, rows in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        every_label_usable(patch)
        patch.setattr("ilr_jax.tasks.gsm8k.Grading.grade", half_right)
        patch.setattr("ilr_jax.tasks.gsm8k.Grading.usable", lambda self, answer: True)
        patch.setattr(Bench, "run", noted)
        yield run


def check_counts(config, used: list[Artifact]) -> None:
    """A plan counts what a run did: exactly, but for what hangs on answers, of which it counts the most that there can be."""
    named = lambda *names: [artifact.manifest["metrics"] for artifact in used if Path(artifact.folder).name.rpartition("-")[0] in names]
    steps = lambda name: sum(max(found["steps"]) for found in named(name))
    answers = lambda name: sum(found["answers"] for found in named(name))
    compared = sum(found["compared"] or 0 for found in named("refine", "pick", "preferences"))
    pairs, c = sum(found["pairs"] for found in named("dpo")), config
    did = Counts(
        weak=steps("weak"),
        weak_labels=answers("weak-labels"),
        evaluator_answers=answers("evaluator-answers"),
        evaluator=sum(-(-found["comparisons"] // c.evaluator.batch) * c.evaluator.epochs for found in named("evaluator")),
        sft=steps("sft"),
        folds=steps("folds"),
        proposals=answers("proposals"),
        compared=compared * (c.feedback == "evaluator"),
        judged=0,
        tests=answers("test"),
        dpo_samples=answers("dpo-samples"),
        dpo_reference=2 * pairs,
        dpo=sum(found["steps"] for found in named("dpo")),
    )
    planned = counted(c, c.task.train_examples, c.task.test_examples)
    hangs = {"evaluator", "compared", "dpo_reference", "dpo"} | ({"sft"} if "sft_chosen" in c.method or c.demos == "correct" else set())
    hangs |= {"sft", "tests"} if c.rounds > 1 else set()  # rounds may end with the same labels
    longer = {"sft", "folds", "proposals", "tests"} if c.refine.rule != "replace" else set()  # or shorter, as labels are added or dropped
    for name, most in {name: most for name, most in asdict(planned).items() if name not in longer}.items():
        found = getattr(did, name)
        assert (found > 0) == (most > 0) and (found <= most if name in hangs else found == most), (name, found, most)


def count(workdir: Path, file: str | None) -> int:
    return len((workdir / file).read_text().splitlines()) if file else 0


def test_two_rounds_and_naive_that_replaces_as_many_as_ilr(variant):
    found = variant(method="ilr,naive,dpo", rounds=2, naive__match_count=True)
    assert [[row["round"] for row in rows] for rows in found.values()] == [[0, 1, 2]] * 3
    assert [row["replaced"] for row in found["naive"]] == [row["replaced"] for row in found["ilr"]]
    assert sum(row["replaced"] or 0 for row in found["ilr"]) > 0
    assert all(row["agreed"] + row["unread"] + row["compared"] == row["audited"] == 12 for row in found["ilr"][1:])
    pairs = 12 * quickstart.get_config().dpo.samples // 2
    assert [row["compared"] for row in found["dpo"]] == [None, pairs, pairs] and all(row["preferences"] for row in found["dpo"][1:])
    assert [row["asked"] for row in found["dpo"]] == [0, pairs, pairs]


def test_the_oracle_accepts_what_is_right(variant):
    found = variant(method="ilr,dpo", feedback="oracle")
    first, ilr = found["ilr"]
    flows = ilr["flows"]
    assert ilr["replaced"] == flows["wrong_to_right"] + flows["right_to_right"] > 2 and ilr["evaluator_accuracy"] == 1.0
    assert ilr["label_accuracy"] > first["label_accuracy"]
    dpo = found["dpo"][1]
    assert 0 < dpo["preferences"] < dpo["compared"] == dpo["asked"] and dpo["evaluator_accuracy"] == 1.0


def test_a_capped_oracle_accepts_its_share(variant):
    found = variant(method="ilr,dpo", feedback="oracle", oracle__capped=True)
    ilr, dpo = found["ilr"][1], found["dpo"][1]
    assert dpo["preferences"] == int(quickstart.get_config().dpo.share * dpo["compared"] + 0.5) > 0
    assert ilr["replaced"] == int(0.15 * ilr["compared"] + 0.5) > 0


def test_correct_demonstrations_are_right_labels_only(variant):
    first = variant(method="sft", demos="correct")["sft"][0]
    assert 0 < first["labels"] < 12 and first["label_accuracy"] == 1.0


def test_three_folds(variant):
    ilr = variant(method="ilr", feedback="oracle", folds=3)["ilr"][1]
    assert ilr["agreed"] + ilr["unread"] + ilr["compared"] == 12


def test_sampled_proposals_of_a_model_that_is_asked_in_its_chat_template(variant):
    sampled = {"decoding__labels": "beam", "decoding__proposals": "sample"}
    ilr = variant(method="ilr", feedback="oracle", strong__template="chat", **sampled)["ilr"][1]
    assert ilr["agreed"] + ilr["unread"] + ilr["compared"] == 12


@pytest.mark.parametrize("drawn", ["labels", "proposals"])
def test_labels_and_proposals_are_decoded_as_each_is_told(tiny_config, tmp_path, monkeypatch, drawn):
    tiny_config.decoding.update({"labels": "beam", "proposals": "beam"} | {drawn: "sample"})
    lab, how = Lab(tiny_config, tmp_path), {}
    labels = [Label(example.id, example.reference, "weak") for example in lab.d2]
    done = Artifact("", "", {"digest": ""})

    def answer(bench, model, name, groups, settings, *_, purpose) -> Artifact:
        how[name] = settings
        return done

    monkeypatch.setattr(Lab, "weak_supervisor", lambda self: done)
    monkeypatch.setattr("ilr_jax.refinement.fine_tune", lambda *_: done)
    monkeypatch.setattr("ilr_jax.lab.answer", answer)
    monkeypatch.setattr("ilr_jax.refinement.answer", answer)
    monkeypatch.setattr("ilr_jax.refinement.answers_of", lambda _: [Answer(label.example_id, 0, 0, "", 0.0, True) for label in labels])
    lab.weak_labels()
    refinement.propose(lab, labels, 1)
    sampled = [name for name, settings in how.items() if isinstance(settings, SamplingSettings)]
    assert len(how) == 2 and sampled == ["weak-labels" if drawn == "labels" else "proposals"]


def test_gsm8k_from_a_saved_folder_with_every_method(variant, tmp_path):
    sides = {"train": wordmath.WordMath(train_examples=24, test_examples=8, seed=0).train()}
    sides["test"] = wordmath.WordMath(train_examples=24, test_examples=8, seed=0).test()
    rows = {side: {"question": [e.prompt for e in found], "answer": [e.reference for e in found]} for side, found in sides.items()}
    datasets.DatasetDict({side: datasets.Dataset.from_dict(found) for side, found in rows.items()}).save_to_disk(tmp_path / "data")
    found = variant(task__name="gsm8k", task__path=str(tmp_path / "data"))
    assert sorted(found) == ["dpo", "ilr", "naive", "sft"] and [len(rows) for rows in found.values()] == [2, 2, 2, 1]
    assert all(row["test_size"] == 8 for rows in found.values() for row in rows)
