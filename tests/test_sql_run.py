"""Text to SQL through the method, with made-up models: what they write is run, graded by both graders, compared, replaced and recorded."""

from ilr_jax import demos, lab, refinement, report, rounds
from ilr_jax.files import read_json, read_rows
from ilr_jax.types import Answer, Artifact

WRITTEN = ("{gold}", "```sql\n{gold};\n```\nThat is all.", "SELECT 'no'", "DROP TABLE items")  # right, right, wrong, error


def made_up_models(patch, workdir):
    """Nothing is trained; labels and test answers are right for every other two examples, proposals always."""

    def answers(name, groups):
        for example in (example for group in groups for example in group):
            form = WRITTEN[0 if name == "proposals" else int(example.id[-5:]) % 4]
            yield Answer(example.id, 0, 0, form.replace("{gold}", example.reference), 0.0, True)

    def artifact(name, groups=()):
        return Artifact(str(workdir / "stages" / name), name, {"digest": name, "answers": list(answers(name, groups))})

    made_up = {
        "fine_tune": lambda bench, model, section, name, *_: artifact(name),
        "answer": lambda bench, model, name, groups, *_, **__: artifact(name, groups),
        "answers_of": lambda made: made.manifest["answers"],
    }
    for room in (lab, demos, refinement):
        for name, function in made_up.items():
            patch.setattr(room, name, function, raising=False)


def test_the_method_runs_on_sql_and_records_both_graders(tiny_config, tmp_path, monkeypatch):
    config, workdir = tiny_config, tmp_path / "run"
    config.method, config.feedback = "ilr", "oracle"
    config.task.name, config.task.path = "minisql", str(tmp_path / "made")
    made_up_models(monkeypatch, workdir)
    rounds.run(config, workdir)
    record = read_json(workdir / "runs" / "ilr-seed0.json")
    first, last = record["rounds"]
    assert first["test_accuracy"] == first["supervisor_accuracy"] == 0.5
    assert first["findings"] == {"strict": 0.5, "error": 0.25, "timeout": 0.0, "too large": 0.0, "no reference": 0.0}
    right = round(first["label_accuracy"] * first["labels"])
    assert 0 < right < first["labels"] == 12 and last["label_accuracy"] == 1.0
    assert (last["agreed"], last["replaced"], last["flows"]["wrong_to_right"]) == (right, 12 - right, 12 - right)
    assert "strict 50.0%" in report.write([workdir]).read_text()


def test_small_models_are_trained_on_sql_and_what_they_write_is_run(tiny_config, tmp_path):
    config, workdir = tiny_config, tmp_path / "run"
    config.method, config.demos = "ilr,naive,dpo", "gold"  # with the evaluator, which trains on what the supervisor's checkpoints write
    config.task.name, config.task.path = "minisql", str(tmp_path / "made")
    config.task.train_examples, config.task.test_examples = 16, 4
    config.sft.max_length = config.compute.bucket = 960
    rounds.run(config, workdir)
    first, last = read_json(workdir / "runs" / "ilr-seed0.json")["rounds"]
    assert first["labels"] == 8 and first["label_accuracy"] == 1.0 == last["label_accuracy"] + last["replaced"] / 8
    assert first["test_accuracy"] == 0.0 and first["findings"]["error"] == 1.0  # eight bytes of a random model are no SQL
    assert last["compared"] == 8 and last["evaluator_pairs"] == 8 and 0 <= last["evaluator_accuracy"] <= 1
    naive, dpo = (read_json(workdir / "runs" / f"{name}-seed0.json")["rounds"][-1] for name in ("naive", "dpo"))
    assert (
        naive["compared"] == 0
        and naive["replaced"] == naive["flows"]["right_to_wrong"] > 0
        and dpo["compared"] == 8
        and dpo["labels"] is None
    )
    answers = list((workdir / "stages").glob("test-*/answers.jsonl"))  # of the first model, and of what each method made of it
    assert 3 <= len(answers) <= 4 and all(len(read_rows(path, Answer)) == 4 for path in answers)
