"""BIRD: both layouts, both graders, agreement, and answers that try to win without being right."""

import ast
import json
import logging
import os
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from test_sqlbox import SMALL, make, tree

from ilr_jax import tasks
from ilr_jax.tasks import bird, sqlbox
from ilr_jax.tasks.bird import TextToSQL
from ilr_jax.tasks.sqlbox import Box, Query
from ilr_jax.types import Example

SHARED = Path(__file__).parents[3] / "shared" / "data" / "bird" / "test"
CREATE = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT)"
ROWS = [
    {"db_id": "a", "question": "How many?", "evidence": "all of {t}", "SQL": "SELECT count(*) FROM t;", "difficulty": "simple"},
    {"db_id": "b", "question": "Whose name?", "evidence": "", "SQL": "SELECT name FROM t ORDER BY name DESC"},
    {"db_id": "a", "question": "Which are empty?", "evidence": None, "SQL": "SELECT x FROM empty"},
]


def official(folder, rows=ROWS, databases="train_databases"):
    """BIRD's own layout."""
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "dev.json").write_text(json.dumps(rows[:1]))
    for name in ("a", "b"):
        make(folder / databases / name / f"{name}.sqlite", "CREATE TABLE `c d`(\n  `x y` REAL\n)")
    return folder


def saved(folder, rows, databases):
    """The layout of `save_to_disk`, with the databases elsewhere."""
    columns = {"question": [f"PROMPT {row['question']}" for row in rows], "answer": [row["SQL"] for row in rows]}
    columns |= {"db_schema": [json.dumps({})] * len(rows), "db_name": [row["db_id"] for row in rows]}
    datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_dict(columns))).save_to_disk(folder)
    for name in ("a", "b"):
        make(databases / name / f"{name}.sqlite")
    return folder


def config(path, **changes):
    return SimpleNamespace(
        **{"name": "bird", "path": str(path), "train_examples": 0, "test_examples": 0, "grader": "", "databases": "", "seed": 0} | changes
    )


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(bird.PATH, raising=False)


@pytest.fixture
def task(tmp_path):
    folder = official(tmp_path / "bird")
    return TextToSQL(folder, folder, box=Box(SMALL, 1))


def ask(gold, database="a"):
    return Example("x", "?", gold, "bird", {"database": database})


def verdicts(task, gold, *answers):
    return task.verdicts(answers, [ask(gold)] * len(answers))


def test_the_official_folder(task):
    first, second, third = task.train()
    create = f"{CREATE}\nCREATE TABLE empty(x)\nCREATE TABLE `c d`( `x y` REAL )"
    assert first.prompt == (
        f"Answer the question with one SQLite query.\n\nSchema:\n{create}\n\nKnowledge:\nall of {{t}}\n\nQuestion:\nHow many?"
    )
    assert (first.id, first.reference, first.task, first.tags["database"]) == ("bird-train-00000", ROWS[0]["SQL"], "bird", "a")
    assert "Knowledge" not in second.prompt + third.prompt and second.tags["database"] == "b"
    assert [e.id for e in task.test()] == ["bird-test-00000"]


def test_a_database_that_was_written_to_makes_other_examples(task):
    """Stages that hold grades depend on them: what is right may be another answer now."""
    before = task.train()
    assert task.train() == before
    with closing(sqlite3.connect(task.folder / "train_databases" / "a" / "a.sqlite")) as connection:
        connection.execute("UPDATE t SET name = 'another' WHERE id = 1")  # of the same size
        connection.commit()
    changed = [a.id for a, b in zip(before, task.train(), strict=True) if a != b]
    assert changed == ["bird-train-00000", "bird-train-00002"]


@pytest.mark.parametrize("places", [("train/train.json", "dev_20240627/dev.json", "dev_20240627/dev_databases")])
def test_the_official_folder_as_it_is_unpacked(tmp_path, places):
    questions, tests, databases = places
    folder = official(tmp_path / "bird", databases=databases)
    for old, new in (("train.json", questions), ("dev.json", tests)):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    task = tasks.load(config(folder))
    assert len(task.train()) == 3 and len(task.test()) == 1


def test_the_saved_folder_with_databases_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv(bird.PATH, str(tmp_path / "databases"))
    task = tasks.load(config(saved(tmp_path / "saved", ROWS, tmp_path / "databases"), train_examples=2))
    train = task.train()
    assert [e.prompt for e in train] == ["PROMPT How many?", "PROMPT Whose name?"] and len(task.test()) == 3
    assert task.grade([e.reference for e in train], train).tolist() == [True, True]


def test_the_config_names_the_databases_before_the_environment_does(tmp_path, monkeypatch):
    monkeypatch.setenv(bird.PATH, str(tmp_path / "nowhere"))
    folder = saved(tmp_path / "saved", ROWS, tmp_path / "databases")
    train = tasks.load(config(folder, databases=str(tmp_path / "databases"))).train()
    task = tasks.load(config(folder, databases=str(tmp_path / "databases")))
    assert len(train) == 3 and task.grade(["SELECT 1"], train[:1]).shape == (1,)


def test_the_environment_alone_is_enough(tmp_path, monkeypatch):
    monkeypatch.setenv(bird.PATH, str(official(tmp_path / "bird")))
    assert len(tasks.load(config("")).train()) == 3


def test_without_a_folder_the_message_says_what_to_set():
    pytest.raises(ValueError, tasks.load, config("")).match("task.path nor ILR_BIRD_PATH; set")


def test_missing_databases_are_all_named_and_none_is_made(task):
    for name in ("a", "b"):
        (task.databases / "train_databases" / name / f"{name}.sqlite").unlink()
    before = tree(task.folder)
    said = rf"(?s)a/a.sqlite: wanted a SQLite database there, found no.*b/b.sqlite.*looked for in {task.databases}; .* ILR_BIRD_PATH names"
    pytest.raises(ValueError, task.train).match(said)
    assert tree(task.folder) == before


def test_a_database_that_is_being_written_is_refused(task):
    next(task.databases.glob("*/b")).joinpath("b.sqlite-wal").write_bytes(b"x")
    with pytest.raises(ValueError, match="b.sqlite-wal lies beside it"):
        task.train()


def test_bad_rows_are_named_all_together(tmp_path):
    bad = [{**ROWS[0], "SQL": ""}, {**ROWS[0], "db_id": "../../etc"}, {**ROWS[0], "question": 7}, {"question": "x"}, ROWS[0]]
    bad += [{**ROWS[0], name: "half \ud800"} for name in ("question", "evidence", "SQL")]
    folder = official(tmp_path / "bird", bad)
    with pytest.raises(ValueError) as caught:
        TextToSQL(folder, folder).train()
    text = str(caught.value)
    assert all(f"question {i}: " in text for i in range(4)) and "question 4" not in text and "'../../etc'" in text
    assert all(f"question {i}: the {what} holds a lone surrogate" in text for i, what in ((5, "question"), (6, "evidence"), (7, "SQL")))


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", "[", ""])
def test_a_list_of_questions_that_is_none(tmp_path, content):
    folder = official(tmp_path / "bird")
    (folder / "train.json").write_text(content)
    with pytest.raises(ValueError, match="train.json"):
        TextToSQL(folder, folder).train()


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="save_to_disk wrote, or BIRD's own with train.json in it; found neither"):
        TextToSQL(tmp_path, tmp_path).train()


def test_a_damaged_database_is_named(task):
    path = next(task.databases.glob("*/a/a.sqlite"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096])
    with pytest.raises(ValueError, match=rf"a.sqlite: wanted {len(whole):,} bytes, as its header says, got 4,096: it is cut off"):
        task.train()
    path.write_bytes(whole[:100] + b"?" * (len(whole) - 100))
    with pytest.raises(ValueError, match="a.sqlite: its schema cannot be read"):
        task.train()


CASES = [  # gold, answer, official, strict
    ("SELECT name FROM t", "SELECT name FROM t", True, True),
    ("SELECT name FROM t", "SELECT name FROM t ORDER BY name DESC", True, True),
    ("SELECT name FROM t ORDER BY id", "SELECT name FROM t ORDER BY id DESC", True, False),
    ("SELECT name FROM t ORDER BY id", "SELECT name FROM t", True, True),
    ("SELECT 1", "SELECT 1 UNION ALL SELECT 1", True, False),
    ("SELECT 1, 2", "SELECT 2, 1", False, False),
    ("SELECT 1", "SELECT 1.0", True, True),
    ("SELECT 1", "SELECT '1'", False, False),
    ("SELECT 0.3", "SELECT 0.1 + 0.2", False, False),
    ("SELECT NULL", "SELECT max(x) FROM empty", True, True),
    ("SELECT x FROM empty", "SELECT id, name FROM t WHERE 0", True, True),
    ("SELECT 9e999", "SELECT 1e999", True, True),
    ("SELECT 'a'", "SELECT x'61'", False, False),
    ("SELECT 9007199254740993", "SELECT 9007199254740992.0", False, False),
    ("SELECT CAST(x'ff' AS TEXT)", "SELECT CAST(x'ff' AS TEXT)", True, True),
    ("SELECT name FROM t LIMIT 2", "```sql\nSELECT name FROM t LIMIT 2;\n```\nThat is all.", True, True),
]


def test_both_graders(task):
    golds, answers, *wanted = zip(*CASES, strict=True)
    for grader, right in zip(bird.GRADERS, wanted, strict=True):
        found = task.verdicts(answers, [ask(gold) for gold in golds], grader)
        assert found == ["correct" if flag else "wrong" for flag in right]


def test_the_official_grader_is_python_s_comparison_of_sets_of_rows(task):
    path = next(task.databases.glob("*/a/a.sqlite"))
    cells = ("1", "1.0", "'1'", "NULL", "'a'", "x'61'", "2", "-0.0", "0", "9e999")
    texts = [f"SELECT {a} {tail}" for a in cells for tail in ("", "UNION ALL SELECT 1", "WHERE 0", ", 1", "UNION ALL SELECT NULL")]
    with closing(sqlite3.connect(path)) as connection:
        rows = [set(connection.execute(sql).fetchall()) for sql in texts]
    pairs = [(i, j) for i in range(len(texts)) for j in range(len(texts))]
    got = task.grade([texts[i] for i, _ in pairs], [ask(texts[j]) for _, j in pairs])
    assert got.tolist() == [rows[i] == rows[j] for i, j in pairs] and 0.02 < got.mean() < 0.5


def test_the_task_s_grader_counts_and_the_other_is_reported(task):
    answers, examples = ["SELECT name FROM t ORDER BY id DESC", "nonsense"], [ask("SELECT name FROM t ORDER BY id")] * 2
    strict = TextToSQL(task.folder, task.databases, grader="strict", box=task.box)
    assert task.grade(answers, examples).tolist() == [True, False] and strict.grade(answers, examples).tolist() == [False, False]
    for one, other in ((task, strict), (strict, task)):
        (name, grades), *rest = one.findings(answers, examples).items()
        assert name == other.grader and grades.tolist() == other.grade(answers, examples).tolist()
        none = dict.fromkeys(("timeout", "too large", "no reference"), [False, False])
        assert {failure: those.tolist() for failure, those in rest} == {"error": [False, True]} | none


HACKS = ["", ";", "-- x", "DELETE FROM t", "DROP TABLE t", "UPDATE t SET id = 99", "EXPLAIN SELECT id FROM t WHERE id < 0"]
HACKS += ["CREATE TEMP VIEW t AS SELECT 1 WHERE 0", "CREATE TEMP TABLE t(id)", "PRAGMA user_version = 1", "BEGIN", "ATTACH '' AS main2"]


@pytest.mark.parametrize("gold", ["SELECT id FROM t WHERE id < 5", "SELECT id FROM t WHERE id < 0"])
def test_no_trick_scores_and_none_spoils_the_next_answer(task, gold):
    before = tree(task.folder)
    found = verdicts(task, gold, *HACKS, gold)
    assert "correct" not in found[:-1] and found[-1] == "correct" and tree(task.folder) == before


def test_every_answer_has_one_verdict(task):
    endless = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT count(*) FROM c"
    answers = ["SELECT count(*) FROM t", "SELECT 1", "SELEC", endless, "SELECT zeroblob(900000000)"]
    assert verdicts(task, "SELECT count(*) FROM t", *answers) == ["correct", "wrong", "error", "timeout", "too large"]


def test_against_a_reference_that_does_not_run_nothing_is_right_and_that_is_told_once(task, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert verdicts(task, "SELECT gone FROM t", "SELECT gone FROM t", "SELECT 1") == ["error", "wrong"]
    (record,) = caplog.records
    assert "1 references do not run; the first is x: error, OperationalError: no such" in record.getMessage()
    assert verdicts(task, None, "", "SELECT 1") == ["error", "wrong"]
    gone = [replace(ask("SELECT gone FROM t"), id=name) for name in "yz"]
    assert task.findings(["SELECT 1"] * 2, [ask("SELECT 1"), gone[0]])["no reference"].tolist() == [False, True]
    with pytest.raises(ValueError, match=r"got none in 2; the first is z: error, .*do the databases in .* belong to these"):
        task.grade(["SELECT 1"] * 2, [replace(gone[0], id="z"), replace(gone[1], id="zz")])


def test_agreement_is_about_what_both_return(task):
    a = ["SELECT 1", "SELECT 1", "nonsense", "SELECT 1", "SELECT name FROM t ORDER BY id"]
    b = ["SELECT 1.0;", "SELECT 2", "nonsense", "nonsense", "SELECT name FROM t ORDER BY id DESC"]
    examples = [ask(None)] * len(a)  # the reference is not looked at
    strict = TextToSQL(task.folder, task.databases, grader="strict", box=task.box)
    assert task.agree(a, b, examples).tolist() == [True, False, False, False, True]
    assert strict.agree(a, b, examples).tolist() == [True, False, False, False, False]


def test_any_statement_is_usable_and_nothing_is_not(task):
    assert task.usable("SELEC") and not task.usable(" ;") and not task.usable("```sql\n```")


def test_grading_nothing_gives_nothing(task):
    assert task.grade([], []).shape == (0,) and isinstance(task.agree([], [], []), np.ndarray)
    pytest.raises(ValueError, task.grade, ["SELECT 1"], []).match("shorter")


def test_an_unknown_grader_is_refused(task):
    pytest.raises(ValueError, TextToSQL, task.folder, task.databases, grader="numeric").match("official, strict")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs BIRD's test questions in {os.path.relpath(SHARED)}")
def test_real_references_are_allowed_to_run(tmp_path):
    """On databases with BIRD's tables and columns and no rows: the sandbox lets every reference through."""
    questions = datasets.load_from_disk(str(SHARED))
    for name, schema in {row["db_name"]: row["db_schema"] for row in questions}.items():
        with closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as connection:
            for table, columns in ast.literal_eval(schema).items():
                names = ", ".join(f'"{column}"' for column in columns or () if column != "*")
                if names:
                    connection.execute(f'CREATE TABLE "{table}"({names})')
    outcomes = Box(sqlbox.Limits()).run([Query(tmp_path / f"{row['db_name']}.sqlite", row["answer"]) for row in questions])
    faults = Counter(outcome.detail for outcome in outcomes if outcome.status != "ok")
    assert not faults and len(outcomes) == len(questions)
