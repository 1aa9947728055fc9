"""Text to SQL through the whole method: what models write is run, graded by both graders, and recorded."""

from ilr_jax import report, rounds
from ilr_jax.files import read_json
from ilr_jax.tasks.bird import TextToSQL


def test_the_method_runs_on_sql_and_records_both_graders(tiny_config, tmp_path, monkeypatch):
    tiny_config.method = "sft,ilr"
    tiny_config.task.name, tiny_config.task.path = "minisql", str(tmp_path / "made")
    gold = TextToSQL.grade
    monkeypatch.setattr(TextToSQL, "other_grades", lambda self, answers, examples: {"strict": ~gold(self, answers, examples)})
    rounds.run(tiny_config, tmp_path / "run")
    for method, count in (("sft", 1), ("ilr", 2)):
        record = read_json(tmp_path / "run" / "runs" / f"{method}-seed0.json")
        assert record["finished"] and len(record["rounds"]) == count
        for row in record["rounds"]:  # random models write no SQL that is right
            assert (row["test_accuracy"], row["label_accuracy"], row["other_accuracies"]) == (0.0, 0.0, {"strict": 1.0})
    assert "strict 100.0%" in report.write([tmp_path / "run"]).read_text()
