"""Each part of a round by itself, on a lab whose models are not trained: what is asked of whom, with which settings."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from ilr_jax import demos, dpo, feedback, preference, refinement, rounds, stages
from ilr_jax import evaluator as evaluators
from ilr_jax.lab import Lab
from ilr_jax.models.lora import ALL_LINEAR
from ilr_jax.roles import Model, needed
from ilr_jax.sample.requests import Completion
from ilr_jax.types import Answer, Artifact, Label, Pair

POLICY = Artifact("", "", {"digest": "d"})


def _answer(label):
    return Answer(label.example_id, 0, 0, label.text, 0.0, True)


def _labs(config, tmp_path):
    lab = Lab(config, tmp_path)
    return lab, [Label(example.id, example.reference, "weak") for example in lab.d2]


def test_a_proposal_that_may_not_be_trained_on_is_one_all_the_same(tiny_config, tmp_path, monkeypatch):
    """It disagrees with every other text, is compared, and may win; only a blank one counts as none."""
    lab, labels = _labs(tiny_config, tmp_path)
    monkeypatch.setattr("ilr_jax.refinement.fine_tune", lambda *_: None)
    monkeypatch.setattr("ilr_jax.refinement.answer", lambda bench, model, name, groups, how, models, purpose: groups)
    monkeypatch.setattr(
        "ilr_jax.refinement.answers_of", lambda groups: [_answer(Label(e.id, "no number", "weak")) for g in groups for e in g]
    )
    monkeypatch.setattr(feedback, "score_fn", lambda *_: lambda requests: [0.6 + (r[1] > r[2]) * 0.1 for r in requests])
    proposals, asked = refinement.choose(lab, "ilr", labels, refinement.propose(lab, labels, 1), POLICY, 1)
    assert proposals == ["no number"] * len(labels) and asked is None
    labels[0] = Label(labels[0].example_id, "none here either", "weak")
    proposals[1] = labels[1].text
    proposals[2] = " "
    _, facts = refinement.refine(lab, "ilr", labels, proposals, Artifact("", "", {"digest": "e"}), 1, None)
    assert (facts["agreed"], facts["unread"], facts["compared"]) == (1, 1, len(labels) - 2)
    _, facts = refinement.refine(lab, "naive", labels, proposals, None, 1, len(labels))
    assert (facts["agreed"], facts["compared"], facts["replaced"]) == (None, 0, len(labels) - 1)


def test_without_a_preference_the_policy_stays(tiny_config, tmp_path):
    lab, _ = _labs(tiny_config, tmp_path)
    policy = Artifact("", "", {})
    chosen, facts, _ = preference._preferences(lab, [(example, "same", "same") for example in lab.d2], evaluator=None)
    assert chosen == [] and (facts["compared"], facts["preferences"], facts["evaluator_pairs"]) == (len(lab.d2), 0, 0)
    assert preference.optimise(lab, policy, chosen) is policy


def test_folds_are_proposed_for_by_models_that_have_not_seen_them(tiny_config, tmp_path, monkeypatch):
    """With three folds each model sees the other two; the proposals come back in the labels' order."""
    tiny_config.folds = 3
    lab, labels = _labs(tiny_config, tmp_path)
    seen, asked = [], []
    monkeypatch.setattr("ilr_jax.refinement.fine_tune", lambda bench, model, section, name, sets: seen.extend(sets))
    monkeypatch.setattr("ilr_jax.refinement.answer", lambda bench, model, name, groups, how, models, purpose: asked.extend(groups))
    monkeypatch.setattr(
        "ilr_jax.refinement.answers_of",
        lambda _: [Answer(e.id, k, 0, f"#### {e.id[-5:]}", 0.0, True) for k, group in enumerate(asked) for e in group],
    )
    proposals = refinement.propose(lab, labels, 1)
    prompts = [{prompt for prompt, _ in data} for data in seen]
    for known, group in zip(prompts, asked, strict=True):
        assert not known & {example.prompt for example in group} and len(known) == 8 and len(group) == 4
    assert [[given.text for given in some] for some in proposals] == [[f"#### {label.example_id[-5:]}"] for label in labels]


def test_each_round_draws_its_own_samples_and_beams_are_shared(tiny_config, tmp_path, monkeypatch):
    """Two rounds from one policy ask with other ids and make two stages; two beam searches are one stage."""
    lab, asked = Lab(tiny_config, tmp_path), []
    monkeypatch.setattr(stages, "load_adapters", lambda *_: {"adapters": None})
    monkeypatch.setattr(Model, "params", None)
    blank = Completion([70], 0.0, True, 0.0)
    monkeypatch.setattr(
        stages, "generate", lambda *given, **_: asked.append(given[3]) or [[blank] * getattr(given[4], "n", 1)] * len(given[3])
    )
    monkeypatch.setattr(preference, "_preferences", lambda *_: ([], {}, []))
    policy = Artifact(str(tmp_path), "", {"digest": "d"})
    for r in (1, 2, 2):
        preference.prefer(lab, policy, None, r)
    first, second = ({request.id for request in requests} for requests in asked)
    assert len(first) == len(second) == len(lab.d2) and not first & second and max(first | second) >= 2**28
    assert lab.test(policy)[1] == stages.answer(
        lab.bench, lab.model("strong"), "test", [lab.tests], lab.bench.beam(), policy, purpose="other"
    )


def test_oracle_feedback_and_correct_demonstrations(tiny_config, tmp_path, monkeypatch):
    """The oracle accepts exactly the right proposals; correct demonstrations are the right labels only."""
    tiny_config.feedback, tiny_config.demos = "oracle", "correct"
    lab, gold = _labs(tiny_config, tmp_path)
    wrong = [Label(label.example_id, "#### 123456", "weak") for label in gold]
    labels, facts = refinement.refine(lab, "ilr", wrong, [x.text if i % 2 else "#### 7654321" for i, x in enumerate(gold)], None, 1, None)
    assert [label.text for label in labels] == [gold[i].text if i % 2 else "#### 123456" for i in range(len(gold))]
    assert facts["replaced"] == facts["flows"]["wrong_to_right"] == len(gold) // 2
    assert (facts["evaluator_accuracy"], facts["evaluator_pairs"]) == (1.0, len(gold) // 2)
    mixed = [gold[i] if i % 3 else wrong[i] for i in range(len(gold))]
    monkeypatch.setattr(Lab, "weak_labels", lambda self: Artifact("", "", {"digest": "d"}))
    monkeypatch.setattr("ilr_jax.demos.answers_of", lambda _: [_answer(label) for label in mixed])
    assert [label.example_id for label in demos.first_labels(lab)[0]] == [gold[i].example_id for i in range(len(gold)) if i % 3]


def test_released_scoring_of_dpo_is_at_chance(tiny_config, tmp_path, monkeypatch):
    tiny_config.dpo.scoring = "released"
    lab, _ = _labs(tiny_config, tmp_path)
    monkeypatch.setattr(
        feedback, "score_fn", lambda self, evaluator: lambda requests: np.array([0.25 + len(q) % 3 / 4 for q, _, _ in requests])
    )
    pairs = [(example, example.reference, "#### 1") for example in lab.d2]
    chosen, facts, _ = preference._preferences(lab, pairs, evaluator=Artifact("", "", {}))
    assert facts["evaluator_accuracy"] == pytest.approx(0.5) and len(chosen) == facts["preferences"]


@pytest.fixture
def lab(tiny_config, tmp_path):
    """A lab whose weak supervisor is taken for trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "weak_supervisor", lambda self: POLICY)
        yield Lab(tiny_config, tmp_path)


class Caught(Exception):
    """Raised in place of a call, with what it was given."""


def caught(monkeypatch, place, call):
    """The positional and named arguments with which `call()` calls what stands in `place`, which does nothing else."""

    def catch(*given, **named):
        raise Caught(given, named)

    monkeypatch.setattr(place, catch)
    with pytest.raises(Caught) as info:
        call()
    return info.value.args


def test_every_round_has_other_folds(lab, monkeypatch):
    labels = [Label(example.id, example.reference, "weak") for example in lab.d2]
    (*_, first), _ = caught(monkeypatch, "ilr_jax.refinement.fine_tune", lambda: refinement.propose(lab, labels, 1))
    (*_, second), _ = caught(monkeypatch, "ilr_jax.refinement.fine_tune", lambda: refinement.propose(lab, labels, 2))
    assert [sorted(part) for part in first] != [sorted(part) for part in second]
    assert sorted(sum(first, [])) == sorted(sum(second, []))


def test_samples_are_drawn_at_the_temperature_of_their_purpose(lab, monkeypatch):
    c = lab.config
    c.dpo.temperature, c.evaluator.temperature, c.decoding.temperature, c.dpo.samples = 0.31, 0.41, 0.51, 4
    asked = lambda room, call: next(x for x in caught(monkeypatch, f"ilr_jax.{room}.answer", call)[0] if hasattr(x, "max_new_tokens"))
    of_dpo = asked("preference", lambda: preference.prefer(lab, POLICY, None, 1))
    of_evaluator = asked("feedback", lambda: feedback.evaluator(lab))
    assert (of_dpo.temperature, of_dpo.n) == (0.31, 4) and (of_evaluator.temperature, of_evaluator.n) == (0.41, 1)
    assert asked("lab", lab.weak_labels).rule == (0.51, None, 1.0)
    c.decoding.top_k, c.decoding.top_p = 40, 0.9
    assert asked("lab", lab.weak_labels).rule == (0.51, 40, 0.9) and asked(
        "preference", lambda: preference.prefer(lab, POLICY, None, 1)
    ).rule == (0.31, 40, 0.9)
    c.decoding.length_rule, c.decoding.beams, c.decoding.max_new_tokens = "generated", 3, 7
    beams = asked("lab", lambda: lab.test(POLICY))
    assert (beams.length, beams.width, beams.max_new_tokens) == ("generated", 3, 7)


def test_the_supervisors_alone_need_no_strong_model(tiny_config, tmp_path):
    tiny_config.method, tiny_config.strong.model = "weak", "no/such-model"
    Lab(tiny_config, tmp_path).check()
    tiny_config.update({"demos": "given", "feedback": "oracle"})
    assert needed(tiny_config, graded=True) == ["weak"]


@pytest.mark.parametrize("role", ("weak", "strong"))
def test_a_role_is_trained_with_its_own_settings(tiny_config, tmp_path, monkeypatch, role):
    lab, section, c = Lab(tiny_config, tmp_path), tiny_config[role], tiny_config.sft
    section.learning_rate, section.epochs, section.optimizer = 0.123, 3, "adafactor"
    c.warmup, c.normalize, c.max_length, c.batch = 0.25, "token", 333, 5
    labels = [Label(example.id, example.reference, "weak") for example in lab.d2]
    train = lab.weak_supervisor if role == "weak" else lambda: lab.fine_tune(labels)
    (_, optimizer), _ = caught(monkeypatch, "ilr_jax.stages.steps.sft_step", train)
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup) == ("adafactor", 0.123, 0.25)
    (data, epochs, _, normalize, max_length, _), _ = caught(monkeypatch, "ilr_jax.stages.batches.sft", train)
    assert (epochs.batch, epochs.epochs, normalize, max_length, len(data)) == (5, 3, "token", 333, 1)


def test_dpo_is_trained_with_its_own_settings(lab, monkeypatch):
    section = lab.config.dpo
    section.beta, section.learning_rate, section.batch, section.epochs, section.share = 0.7, 0.123, 3, 4, 0.5
    section.loss, section.smoothing = "robust", 0.2
    monkeypatch.setattr(dpo, "load_adapters", lambda *_: {"adapters": {"b": np.zeros((1, 2), np.float32)}})
    monkeypatch.setattr(dpo, "_reference", lambda *_: [[0.0] * 9] * 2)
    chosen = [Pair(str(i), "q", "a", "b") for i in range(9)]
    monkeypatch.setattr(dpo.batches, "preferences", lambda *_: None)
    (_, optimizer, *loss), _ = caught(monkeypatch, "ilr_jax.dpo.steps.dpo_step", lambda: preference.optimise(lab, POLICY, chosen))
    assert (optimizer.name, optimizer.learning_rate, *loss) == ("rmsprop", 0.123, 0.7, "robust", 0.2)
    (_, epochs, *_), _ = caught(monkeypatch, "ilr_jax.dpo.batches.preferences", lambda: preference.optimise(lab, POLICY, chosen))
    assert (epochs.sizes, epochs.batch, epochs.epochs) == ((9,), 3, 4)
    monkeypatch.setattr(feedback, "score_fn", lambda self, evaluator: lambda requests: np.arange(len(requests)) / len(requests))
    compared = [(example, example.reference, "#### 1") for example in lab.d2]
    assert len(preference._preferences(lab, compared, POLICY)[0]) == len(compared) * section.share


@pytest.mark.parametrize(("name", "wanted"), (("previous", {"adapters": "the policy's"}), ("base", {})))
def test_the_reference_of_dpo_is_the_policy_as_it_was_or_the_base_and_computed_once(lab, monkeypatch, name, wanted):
    lab.config.dpo.reference, seen = name, []
    monkeypatch.setattr(dpo, "load_adapters", lambda *_: {"adapters": "the policy's"})
    run = lambda tree, params, batch: seen.append(tree) or np.arange(len(batch.units))
    monkeypatch.setattr(dpo.steps, "sequence_log_probs", lambda setup: run)
    for _ in range(2):
        assert dpo._reference(lab.bench, lab.model("strong"), POLICY, [Pair("0", "q", "a", "b")]) == [[0.0], [1.0]]
    assert seen == [wanted]


def test_references_that_changed_are_graded_anew(tiny_config, tmp_path):
    """An oracle's decisions rest on them, and so do all figures of a round."""
    tiny_config.feedback = "oracle"
    lab, gold = _labs(tiny_config, tmp_path)
    wrong = [Label(label.example_id, "#### 123456", "weak") for label in gold]
    replaced = lambda: refinement.refine(lab, "ilr", wrong, [label.text for label in gold], None, 1, None)[1]["replaced"]
    assert replaced() == replaced() == len(gold)
    lab = Lab(tiny_config, tmp_path)
    lab.d2 = [dataclasses.replace(example, reference="#### 7") for example in lab.d2]
    lab.examples |= {example.id: example for example in lab.d2}
    assert replaced() == 0
    other = Lab(tiny_config, tmp_path)
    other.d2 = [dataclasses.replace(example, tags={"content": "2"}) for example in lab.d2]
    assert other.graded != lab.graded


def test_the_weights_of_one_base_at_a_time_are_in_memory(lab):
    weak, strong = lab.model("weak"), lab.model("strong")
    first = weak.params
    assert weak.params is first and list(lab.memory.held) == [weak.folder]
    assert strong.params is not first and list(lab.memory.held) == [strong.folder]
    chat = Model(str(strong.folder), lab.bench.dtype, lab.memory, "chat")
    assert chat.params is strong.params and chat.digest != strong.digest
    strong.release()
    assert not lab.memory.held


def test_dpo_goes_on_from_the_round_before_and_samples_from_it(lab, monkeypatch):
    lab.config.rounds = 3
    asked, trained, named = [], [], lambda name: Artifact(name, "", {})
    monkeypatch.setattr(demos, "first_labels", lambda lab: ([], {}))
    monkeypatch.setattr(Lab, "fine_tune", lambda self, labels: named("sft"))
    monkeypatch.setattr(feedback, "evaluator", lambda lab: named("evaluator"))
    monkeypatch.setattr(preference, "prefer", lambda lab, policy, judge, r: (asked.append((policy.folder, judge.folder, r)) or [r], {}))
    monkeypatch.setattr(
        preference, "optimise", lambda lab, policy, pairs: trained.append((policy.folder, *pairs)) or named(f"dpo {pairs[0]}")
    )
    monkeypatch.setattr(rounds, "_measured", lambda lab, r, policy, **facts: {r: policy.folder})
    assert list(rounds.dpo(lab)) == [{0: "sft"}, {1: "dpo 1"}, {2: "dpo 2"}, {3: "dpo 3"}]
    assert asked == [("sft", "evaluator", 1), ("dpo 1", "evaluator", 2), ("dpo 2", "evaluator", 3)]
    assert trained == [("sft", 1), ("dpo 1", 2), ("dpo 2", 3)]


def test_the_evaluator_accepts_what_it_was_taught_to_accept(tiny_config, tmp_path):
    lab, section = Lab(tiny_config, tmp_path), tiny_config.evaluator
    section.learning_rate, section.epochs, section.patience = 1e-2, 20, 20
    taught = [row for i in range(16) for row in ((f"q{i}", "zzzz", "zzzz", 1), (f"q{i}", "aa", "aa", 0))]
    judge = feedback.score_fn(lab, evaluators.train(lab.bench, lab.model("evaluator"), taught, taught[:4]))
    accepted, refused = judge([("q", "zzzz", "zzzz"), ("q", "aa", "aa")])
    assert accepted > 0.9 and refused < 0.1


def test_adapters_sit_where_they_are_told(lab):
    assert lab.bench.lora.modules == ALL_LINEAR
    lab.config.lora.modules = "q_proj, v_proj"
    assert lab.bench.lora.modules == ("q_proj", "v_proj")


OFFLINE = """
import socket
asked = []
def refuse(*where):
    asked.append(where[1:] or where)
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from configs import quickstart
from ilr_jax.lab import Lab
config = quickstart.get_config()
config.task.train_examples = config.task.test_examples = 20
lab = Lab(config, Path("unused"))
lab.check()
print(len(lab.model("weak").params), len(lab.model("strong").params), asked)
"""


def test_the_embedded_task_and_models_ask_for_no_network():
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2)[2] == "[]\n"
