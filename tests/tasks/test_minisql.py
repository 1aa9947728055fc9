"""minisql: what is made, that it is the same every time, and that train and test share no query."""

import json
import re
import sqlite3
from collections import Counter
from contextlib import closing
from types import SimpleNamespace

import pytest
from test_sqlbox import tree

from ilr_jax import tasks
from ilr_jax.roles import EMBEDDED
from ilr_jax.tasks import bird, minisql
from ilr_jax.tasks.minischemas import KINDS, SCHEMAS


def config(path, **changes):
    fields = {"name": "minisql", "path": str(path), "train_examples": 200, "test_examples": 60, "grader": "", "seed": 3}
    return SimpleNamespace(**(fields | changes))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tasks.load(config(tmp_path_factory.mktemp("minisql")))


@pytest.fixture(scope="module")
def both(task):
    return task.train(), task.test()


def test_it_is_bird_s_task_on_bird_s_files(task):
    assert type(task) is bird.TextToSQL and task.name == "minisql" and task.grader == "official"
    assert {path.name for path in task.folder.iterdir()} == {"train.json", "dev.json", "minisql_databases"}
    assert len(list(task.databases.glob("*_databases/*/*.sqlite"))) == len(SCHEMAS) >= 3


def test_references_are_right_by_both_graders_and_nothing_else_is(task, both):
    train, _ = both
    references = [str(e.reference) for e in train]
    for grader in bird.GRADERS:
        assert set(task.verdicts(references, train, grader)) == {"correct"}
    shuffled = Counter(task.verdicts(references[1:] + references[:1], train))
    assert shuffled["error"] > 100 and shuffled["correct"] < 10  # mostly of another database
    assert task.agree(references, references, train).all() and all(map(task.usable, references))


def test_no_reference_returns_nothing(task, both):
    empty = task.box.run([bird.Query(task._database(e), "SELECT 1 WHERE 0") for e in both[0]])
    null = task.box.run([bird.Query(task._database(e), "SELECT NULL") for e in both[0]])
    found = task._references(both[0])
    assert not {outcome.bag for outcome in found} & {outcome.bag for outcome in empty + null}


def test_the_same_seed_makes_the_same_bytes_and_a_second_call_leaves_them_alone(task, tmp_path):
    again = tasks.load(config(tmp_path))
    assert again.folder.name == task.folder.name and again.train() == task.train()
    before = tree(tmp_path)
    assert tasks.load(config(tmp_path)).folder == again.folder and tree(tmp_path) == before
    other = tasks.load(config(tmp_path, seed=4))
    assert other.folder != again.folder and other.train() != again.train()
    assert tasks.load(config(tmp_path, train_examples=50)).train() == task.train()[:50]


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    files, calls = minisql.contents(5, 5, 0), []

    def fail(path, data):
        calls.append(path)
        if len(calls) == 4:
            raise OSError("disk full")
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(minisql, "write_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            minisql.write(tmp_path, files)
    assert tree(tmp_path) == {}
    assert len(tree(minisql.write(tmp_path, files))) == len(files) + 1 + len(SCHEMAS)


def test_train_and_test_share_no_query(task):
    sides = {side: json.loads((task.folder / name).read_text()) for side, name in minisql.FILES.items()}
    queries = {side: {(row["db_id"], row["SQL"]) for row in rows} for side, rows in sides.items()}
    assert len(queries["train"]) > 150 and not queries["train"] & queries["test"]
    assert sorted(bucket for buckets in minisql.SIDES.values() for bucket in buckets) == list(range(100))


def test_no_question_comes_twice(both):
    prompts = [example.prompt for split in both for example in split]
    assert len(set(prompts)) == len(prompts)


def test_every_kind_and_every_database_is_asked_about_in_varied_words(both):
    train, _ = both
    words = " ".join(str(e.reference) for e in train)
    for part in ("join", "group by", "order by", "having", "limit", "distinct", "not in", "avg(", "count(*)", " and "):
        assert part in words
    assert Counter(e.tags["database"] for e in train).keys() == {schema.name for schema in SCHEMAS}
    assert len({re.sub(r"\d+", "", e.prompt.split("Question:\n")[1]) for e in train}) > 120 and len(KINDS) >= 12


def test_the_databases_hold_what_their_schemas_say():
    for schema in SCHEMAS:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(minisql.database(schema, 0))
            labels = [label for (label,) in connection.execute(f"SELECT {schema.label} FROM {schema.one}")]
            assert len(set(labels)) == minisql.THINGS and set(schema.labels) <= set(labels)
            joined = f"SELECT count(*) FROM {schema.one} JOIN {schema.many} ON {schema.key} = {schema.one}.id"
            assert connection.execute(joined).fetchone() == (minisql.EVENTS,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_prompts_and_answers_are_short_for_the_embedded_models(both):
    from ilr_jax.models import config as model_config
    from ilr_jax.tokenizer import Tokenizer

    tokenizer = Tokenizer(EMBEDDED / "gemma", model_config.read(EMBEDDED / "gemma"))
    assert max(tokenizer.lengths([e.prompt for split in both for e in split])) < 200
    assert max(len(ids) for ids in tokenizer.encode([str(e.reference) for split in both for e in split])) < 110


@pytest.mark.parametrize("count", [0, None, -1])
def test_the_number_of_questions_must_be_said(tmp_path, count):
    with pytest.raises(ValueError, match="test_examples"):
        tasks.load(config(tmp_path, test_examples=count))


def test_more_questions_than_there_are_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(minisql, "TRIES", 3)
    with pytest.raises(ValueError, match=r"train_examples=10000: minisql has \d+ questions of that side; ask for fewer"):
        tasks.load(config(tmp_path, train_examples=10_000))
