"""One's own rows graded by what their SQL returns. What the sandbox stands is `test_sqlbox`'s matter, the comparison `test_bird`'s."""

import json
import sqlite3
from contextlib import closing

import pytest
from test_sqlbox import make

from configs import base
from ilr_jax import tasks
from ilr_jax.settings import check

ROWS = [
    {"question": "How many?", "reference": "SELECT count(*) FROM t", "database": "a"},
    {"question": "Which?", "reference": "SELECT id FROM t WHERE id < 2 ORDER BY id DESC", "database": "b"},
    {"question": "Unknown?", "answer": "SELECT 1", "database": "a"},
]


def config(folder, rows=ROWS, **fields):
    for name in ("a", "b"):
        if not (folder / "databases" / name).exists():
            make(folder / "databases" / name / f"{name}.sqlite")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = base.get_config().task
    section.update({"name": "jsonl", "path": str(folder / "rows.jsonl"), "answers": "given", "grader": "sql"})
    section.update({"databases": str(folder / "databases"), **fields})
    return section


def test_answers_are_graded_and_compared_by_what_they_return(tmp_path):
    task = tasks.load(config(tmp_path))
    train = task.train()
    said = ["```sql\nSELECT 200;\n```", "SELECT id FROM t WHERE id IN (0, 1) ORDER BY id", "SELECT 1"]
    assert task.grade(said, train).tolist() == [True, True, False]  # of the last nobody knows
    assert task.grade(["SELECT 199", "DROP TABLE t", "nonsense"], train).tolist() == [False] * 3
    strict = tasks.load(config(tmp_path, grader="sql-strict"))
    assert strict.grade(said, train).tolist() == [True, False, False]
    assert task.agree(said, ["SELECT count(id) FROM t", "SELECT id FROM t", "SELECT 1.0"], train).tolist() == [True, False, True]
    assert task.grade([], []).shape == (0,)


@pytest.mark.parametrize(
    "reference", ["```sql\nSELECT count(*) FROM t;\n```", "Here: ```SELECT 200```", "SELECT 200; SELECT 1", "SELECT 200;"]
)
def test_a_reference_says_what_an_answer_with_its_text_says(tmp_path, reference):
    task = tasks.load(config(tmp_path, [{**ROWS[0], "reference": reference}]))
    assert task.grade([reference], task.train()).all() and task.grade(["SELECT 200"], task.train()).all()


def test_a_database_that_was_written_to_is_another(tmp_path):
    before = [example.tags for example in tasks.load(config(tmp_path)).train()]
    assert [tags["database"] for tags in before] == ["a", "b", "a"]
    with closing(sqlite3.connect(tmp_path / "databases" / "a" / "a.sqlite")) as connection:
        connection.execute("DELETE FROM t WHERE id = 7")
        connection.commit()
    after = [example.tags for example in tasks.load(config(tmp_path)).train()]
    assert [x == y for x, y in zip(before, after, strict=True)] == [False, True, False]


def test_rows_without_a_database_that_can_be_used_are_told_all_together(tmp_path):
    rows = [{**ROWS[0], "database": name} for name in (None, "../a", "c", "broken", "c")] + [{**ROWS[0], "reference": "```sql\n```"}]
    (tmp_path / "databases" / "broken").mkdir(parents=True)
    (tmp_path / "databases" / "broken" / "broken.sqlite").write_text("no database, but text")
    with pytest.raises(ValueError, match="6 faults in 6 rows") as caught:
        tasks.load(config(tmp_path, rows))
    lines = str(caught.value).splitlines()
    assert all("wanted the name of a database in the column 'database'" in line for line in lines[1:3])
    assert "found no file" in lines[3] and lines[3].partition(": ")[2] == lines[5].partition(": ")[2] and len(lines) == 7
    assert "begins with b'no database" in lines[4]
    assert "the grader 'sql' reads nothing in the reference" in lines[-1]


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_the_folder_of_databases_must_be_there(tmp_path, folder):
    with pytest.raises(ValueError, match=f"task.databases='{folder}': wanted the folder"):
        tasks.load(config(tmp_path, databases=folder))


def test_settings_know_the_grader(tiny_config):
    tiny_config.task.update({"name": "jsonl", "path": "x", "grader": "sql"})
    assert check(tiny_config)
    tiny_config.task.grader = "sqll"
    with pytest.raises(ValueError, match="sql-strict"):
        check(tiny_config)
