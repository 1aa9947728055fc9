"""SaferPaca end to end on tiny random models, and each kind of judge: trained evaluator, endpoint that may fail, one of our models."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_tiny_config, write_model
from made_up_saferpaca import rows, save

sys.path.append(str(Path(__file__).parent / "services"))
from fake_api import KEY, chat, error, serving  # noqa: E402

from ilr_jax import feedback, judges, preference, report, rounds  # noqa: E402
from ilr_jax.files import read_json  # noqa: E402
from ilr_jax.lab import Lab  # noqa: E402
from ilr_jax.models import decoder  # noqa: E402
from ilr_jax.roles import Model  # noqa: E402
from ilr_jax.services import embed  # noqa: E402
from ilr_jax.services import judge as verdicts  # noqa: E402
from ilr_jax.services.transport import EndpointError  # noqa: E402
from ilr_jax.stages import Bench  # noqa: E402
from ilr_jax.store import Store  # noqa: E402
from ilr_jax.tokenizer import JUDGED, PROMPT  # noqa: E402
from ilr_jax.types import Artifact, Rows  # noqa: E402


@pytest.fixture(scope="module")
def saferpaca(tiny_models, tmp_path_factory):
    """`saferpaca(method="sft")` is the tiny config on a made-up SaferPaca, judged by the evaluator unless told otherwise."""
    folder = tmp_path_factory.mktemp("saferpaca")
    path = save(folder / "data", rows(24), rows(6, 100))

    def config(**fields):
        c = make_tiny_config({"gemma": tiny_models["mistral"], "mistral": tiny_models["mistral"]})  # one family compiles once
        changes = {"method": "ilr", "task.name": "saferpaca", "task.path": path, "judge.kind": "evaluator", "alpha_of": "none"}
        changes |= {"endpoint.cache": str(folder / "answers"), "decoding.proposals": "sample", "decoding.temperature": 1.0}
        c.update_from_flattened_dict(changes | {name.replace("__", "."): value for name, value in fields.items()})
        return c

    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One store for the module's runs, so that each trains only what differs."""
    return tmp_path_factory.mktemp("runs")


def run(config, workdir) -> dict[str, list[dict]]:
    shutil.rmtree(workdir / "runs", ignore_errors=True)
    (workdir / "config.json").unlink(missing_ok=True)
    rounds.run(config, workdir)
    return {path.stem.removesuffix("-seed0"): read_json(path)["rounds"] for path in sorted((workdir / "runs").iterdir())}


def test_win_rates_likeness_and_two_model_pairs(saferpaca, workdir, capsys):
    found = run(saferpaca(method="sft,ilr,dpo"), workdir)
    assert sorted(found) == ["dpo", "ilr", "sft"] and "test win rate" in capsys.readouterr().out
    for row in [row for method in found.values() for row in method]:
        assert row["test_measure"] == "win rate" and row["label_accuracy"] is None and row["evaluator_accuracy"] is None
        assert 0 < row["test_accuracy"] < 1 and row["test_size"] == 6 == len(row["test_right"])
    first, ilr = found["ilr"]
    assert 0 < first["supervisor_accuracy"] < 1 and ilr["unanswered"] == 0
    assert ilr["agreed"] + ilr["compared"] + ilr["unread"] == 12 and ilr["agreed"] <= 6  # the more alike half at most
    audit = [json.loads(line) for line in (workdir / ilr["audit"]).read_text().splitlines()]
    assert all(row["before_correct"] is row["proposal_correct"] is None for row in audit)
    names = [path.name.rsplit("-", 1)[0] for path in (workdir / "stages").iterdir()]
    assert names.count("categories") == names.count("evaluator") == 1 and "judge" not in names
    assert "test accuracy of sft, dpo, ilr is the win rate over the references" in report.write([workdir]).read_text()
    assert read_json(workdir / "results.json")["rows"][0]["label_accuracy"] is None


def test_an_endpoint_that_fails_stops_the_run_and_the_same_command_goes_on(saferpaca, workdir, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    state, answered = {"up": 5}, []

    def reply(path, body):
        state["up"] -= 1
        if state["up"] < 0:
            return error(503)
        answered.append(json.dumps(body, sort_keys=True))
        return chat("B", {"B": -0.1, "A": -2.4})

    with serving(reply) as api:
        how = {"judge__base_url": api.url, "judge__key_name": "JUDGE_KEY", "endpoint__attempts": 2, "endpoint__workers": 1}
        config = saferpaca(feedback="judge", judge__kind="endpoint", judge__model="big", **how)
        with pytest.raises(EndpointError, match=r"judge: big at .* HTTP 503: .* 5 of 12 answers are kept in .*; the same command"):
            run(config, workdir)
        assert len(answered) == 5 and len(api.asked) == 7
        state["up"] = 10_000
        ilr = run(config, workdir)["ilr"][1]
        assert ilr["compared"] and ilr["replaced"] == 0 and ilr["threshold"] == 0.5  # it likes the second place: every score is 0.5
        once = len(answered)
        assert len(set(answered)) == once and set(api.authorized) == {f"Bearer {KEY}"}
        for path in [*workdir.glob("stages/win-rates-*"), *workdir.glob("stages/refine-*")]:
            shutil.rmtree(path)
        assert run(config, workdir)["ilr"][1]["compared"] == ilr["compared"] and len(answered) == once
        limited = saferpaca(feedback="judge", judge__kind="endpoint", judge__model="other", endpoint__max_requests=3, **how)
        with pytest.raises(EndpointError, match="endpoint.max_requests=3"):
            run(limited, workdir)
        assert len(answered) == once + 3
    texts = [path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.stat().st_size < 10**6]
    assert not any(KEY.encode() in text for text in texts)


def test_one_of_our_models_judges_by_the_token_that_it_would_write_next(tiny_models, saferpaca, tmp_path):
    folder = write_model(tmp_path / "judge", "mistral", seed=7, max_position_embeddings=4096)
    bench = Bench(Store(tmp_path), saferpaca(compute__score_batch=3))
    model = Model(str(folder), "float32")
    requests = [("Why?", "because", "so"), ("Why?", "so", "because"), ("How long is it?", "x" * 300, ""), ("\u00e9?", "{a}", "%s")]
    score = judges.score_fn(bench, model)
    found, letters = score(requests), np.array(model.tokenizer.letters(verdicts.LETTERS))

    @jax.jit
    def log_odds(ids):
        bound = decoder.bind(model.config, model.params)
        hidden, _ = bound(Rows(ids, np.arange(ids.size)[None], np.ones(ids.shape, np.int32)))
        a, b = bound.logits(hidden[0, -1])[letters]
        return b - a

    for request, p in zip(requests[:2], found[:2], strict=True):  # of one length, so compiled once
        text = PROMPT.format(question="\n\n".join(verdicts.question(*request, 0))) + JUDGED
        odds = log_odds(np.array(model.tokenizer.encode([text]), np.int32))
        assert p == pytest.approx(1 / (1 + np.exp(-float(odds))), abs=1e-5)
    assert score(requests[2:3]) == pytest.approx(found[2:3], abs=1e-5)  # whatever it is scored with
    assert len({round(float(p), 7) for p in found}) == 4 and ((found > 0) & (found < 1)).all()


def test_a_run_with_one_of_our_models_as_judge(saferpaca, workdir, tmp_path):
    folder = write_model(tmp_path / "judge", "mistral", seed=7, max_position_embeddings=4096)
    config = saferpaca(method="sft,weak", feedback="judge", judge__kind="model", judge__model=str(folder))
    found = run(config, workdir)
    for (row,) in found.values():
        assert row["test_measure"] == "win rate" and 0 < row["test_accuracy"] < 1 and row["evaluator_accuracy"] is None
    (who,) = [read_json(path) for path in workdir.glob("stages/judge-*/judge.json") if read_json(path)["kind"] == "model"]
    assert who["prompt"] == verdicts.version() and len(who["model"]) == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge__kind": "endpoint", "judge__key_name": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY or in a line"),
        ({"judge__kind": "endpoint", "judge__base_url": "https://u:p@h/v1", "judge__key_name": ""}, "base_url for h: wanted no user"),
        ({"embed__kind": "endpoint", "embed__key_name": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY"),
        ({"feedback": "oracle"}, "task.name='saferpaca' has no grader, which feedback='oracle'"),
        ({"demos": "correct"}, "demos='correct' and demos_error need"),
        (
            {"feedback": "judge", "judge__kind": "model", "judge__model": "gemma", "decoding__max_new_tokens": 300},
            r"may take \d+ tokens, wanted at most the context",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(saferpaca, tiny_models, tmp_path, fields, message):
    config = saferpaca(**{name: str(tiny_models["gemma"]) if value == "gemma" else value for name, value in fields.items()})
    with pytest.raises(ValueError, match=message):
        rounds.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_endpoint_without_its_key_is_told_before_a_model_is_fetched(saferpaca, tmp_path):
    config = saferpaca(judge__kind="endpoint", judge__key_name="NO_SUCH_KEY", strong__model="no/such-model")
    with pytest.raises(ValueError, match="environment variable NO_SUCH_KEY"):
        rounds.run(config, tmp_path)


def test_the_more_alike_half_agrees_where_the_task_reads_nothing(saferpaca, tmp_path):
    lab = Lab(saferpaca(), tmp_path)
    a, b = ["the cat sat", "yes", "a dog barks", "no"], ["a cat sat", "Paris", "dogs bark", "9"]
    assert feedback.agree(lab, a, b, lab.d2[:4]).tolist() == [True, False, True, False]
    assert feedback.likeness(lab) == {"embed": embed.VERSION}
    lab.config.embed.kind = "endpoint"
    assert feedback.likeness(lab) == {"embed": lab.config.embed.model}


def test_preferences_leave_out_what_got_no_verdict(saferpaca, tmp_path, monkeypatch):
    lab = Lab(saferpaca(dpo__share=1.0), tmp_path)
    masked = lambda requests: np.ma.masked_array(np.linspace(0, 1, len(requests)), [i == 1 for i in range(len(requests))])
    monkeypatch.setattr(feedback, "score_fn", lambda *_: masked)
    chosen, facts, asked = preference._preferences(lab, [(e, "one", "two") for e in lab.d2], Artifact("", "", {}))
    assert [(x.example_id, x.a_correct, x.b_correct) for x in asked] == [(p.example_id, None, None) for p in chosen]  # there is no grader
    assert [p.example_id for p in chosen] == [e.id for i, e in enumerate(lab.d2) if i != 1]
    assert (facts["compared"], facts["preferences"], facts["unanswered"], facts["evaluator_pairs"]) == (12, 11, 1, 0)


def test_an_evaluator_needs_grades_or_both_categories(saferpaca, tmp_path):
    path = save(tmp_path / "data", [row | {"category": "general"} for row in rows(8)], rows(3))
    with pytest.raises(ValueError, match="neither a grader nor examples of both categories"):
        feedback.check(Lab(saferpaca(task__path=path), tmp_path / "run"))
