"""One's own data as a task: who is trusted, which ids rows have, and every fault of the data in one message."""

import json
import logging

import pytest
from pyarrow import Table, parquet

from configs import base
from ilr_jax import tasks
from ilr_jax.tasks import readers
from ilr_jax.types import Example


def config(path, **fields):
    section = base.get_config().task
    section.update({"name": "jsonl", "path": str(path), "grader": "exact", "answers": "given", **fields})
    return section


def write(folder, rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def faults(path, **fields):
    """The lines of the one error that the data leads to; the file is called F."""
    with pytest.raises(ValueError) as caught:
        tasks.load(config(path, **fields))
    return str(caught.value).replace(str(path), "F").split("\n  ")


def test_a_row_has_a_demonstration_a_trusted_reference_or_both(tmp_path):
    rows = [
        {"question": "a", "answer": "1"},
        {"question": "b", "answer": "2", "reference": "20"},
        {"question": "c", "answer": "3", "trusted": True},
        {"question": "d", "answer": None, "reference": "40"},
        {"question": "e", "reference": "50"},
        {"question": "f", "answer": "6", "reference": None, "trusted": False},
    ]
    train = tasks.load(config(write(tmp_path, rows))).train()
    assert [(e.prompt, e.given, e.reference) for e in train] == [
        ("a", "1", None),
        ("b", "2", "20"),
        ("c", "3", "3"),
        ("d", None, "40"),
        ("e", None, "50"),
        ("f", "6", None),
    ]


def test_trusted_answers_are_references_and_no_demonstrations(tmp_path):
    task = tasks.load(config(write(tmp_path, [{"question": "a", "answer": "1"}]), answers="trusted"))
    assert task.train() == [Example("train-00000", "a", "1", "jsonl")] and task.test() == []
    assert task.grade([" 1"], task.train()).all() and task.agree(["x"], ["X"], task.train()).all()
    assert task.usable("x") and not task.usable(" \n")


@pytest.mark.parametrize("number", [7, "7"])
def test_ids_are_the_rows_own_or_their_numbers(tmp_path, number):
    rows = [{"question": "a", "answer": "1", "key": number, "trusted": True}]
    train, test = write(tmp_path, rows * 1), write(tmp_path, rows, "test.jsonl")
    named = tasks.load(config(train, test_path=str(test), columns="id=key"))
    assert [e.id for e in named.train() + named.test()] == ["7", "test-7"]
    numbered = tasks.load(config(train, test_path=str(test)))
    assert [e.id for e in numbered.train() + numbered.test()] == ["train-00000", "test-00000"]


def test_numbers_of_rows_are_those_of_the_file_and_first_rows_are_taken(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer,trusted\na,1,TRUE\nb,2,\nc,3,false\n")
    train = tasks.load(config(path, train_examples=2)).train()
    assert [(e.id, e.reference) for e in train] == [("train-00000", "1"), ("train-00001", None)]


def test_all_faults_come_in_one_message_in_the_order_of_the_files(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    good = '{"id": 1, "question": "q", "answer": "a"}\n'
    train.write_text(
        good
        + '{"id": 2, "question": "q", "ans\n'
        + '{"id": 3, "prompt": "q", "completion": "a"}\n'
        + '{"id": 4, "question": "q"}\n'
        + good
        + '{"id": null, "question": "q", "answer": "a"}\n'
        + '{"id": 5, "question": null, "answer": "a"}\n'
        + '{"id": 6, "question": "q", "answer": ""}\n'
        + '{"id": 7, "question": "q", "answer": "a", "trusted": "perhaps"}\n'
        + '{"id": 8, "question": "q", "answer": "a", "reference": 3}\n'
        + '{"id": 9, "question": "q", "answer": "\\udfff"}\n'
    )
    test.write_text('{"question": "q", "answer": ["a"]}\n')
    head, *lines = faults(train, test_path=str(test))
    assert head.startswith("the data cannot be used: 11 faults in 12 rows;")
    assert [line.split(" ", 1) for line in lines] == [
        ["F:2:", "is no JSON (Unterminated string starting at, column 28)"],
        ["F:3:", "wanted question and answer as in the other rows, got id, prompt, completion"],
        ["F:4:", "wanted question and answer as in the other rows, got id, question"],
        ["F:5:", "the id '1' stands at F:1 too; give every row its own"],
        ["F:6:", "has no id, which other rows have; give it one, or none to any (task.columns='id=')"],
        ["F:7:", "question: wanted text, got null"],
        ["F:8:", "the answer is empty"],
        ["F:9:", "trusted: wanted true or false, got 'perhaps'"],
        ["F:10:", 'reference: wanted text, got int 3; put it in quotes, "3"'],
        ["F:11:", "the row: wanted text that is valid Unicode, got the lone surrogate '\\udfff'; clean it"],
        [f"{test}:1:", "answer: wanted text, got list ['a']"],
    ]


def test_an_odd_first_row_is_named_and_the_others_are_read(tmp_path):
    rows = [{"foo": 1}, {"question": "q", "answer": "a"}, {"question": "q", "answer": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="2 faults in 3 rows") as caught:
        tasks.load(config(tmp_path / "rows.jsonl"))
    lines = str(caught.value).splitlines()
    assert (
        "rows.jsonl:1: wanted question" in lines[1]
        and "got none of our columns" in lines[1]
        and "rows.jsonl:3: answer: wanted text" in lines[2]
    )


def test_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    assert len(tasks.load(config("~/rows.jsonl")).train()) == 1


@pytest.mark.parametrize("mark, wanted", [(1, "a"), ("1", "a"), ("Yes", "a"), (0, None), ("no", None), ("", None)])
def test_a_mark_of_trust_has_several_words(tmp_path, mark, wanted):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "answer": "a", "trusted": mark}) + "\n")
    assert tasks.load(config(tmp_path / "rows.jsonl")).train()[0].reference == wanted


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path):
    head, *lines = faults(write(tmp_path, [{"question": "q", "answer": "a"}, *[{"question": "q", "answer": 1}] * 1500]))
    assert "1500 faults in 1501 rows" in head and len(lines) == readers.MOST + 1 and lines[-1] == "... and 500 more"


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (
            [{"question": "q", "answer": "a"}],
            {"columns": "answer=respons"},
            "names 'respons' for 'answer', which no row has; found the col",
        ),
        ([{"text": "q"}], {}, "the columns fit no shape.*found the columns text"),
        ([{"prompt": "q", "response": "a"}], {}, "wanted answers beside 'prompt'.*task.columns='completion=COLUMN'"),
        ([{"question": "q", "answer": "a", "trusted": True}], {"answers": "trusted"}, "set task.answers='given'.*task.columns='trusted='"),
        ([{"question": "q", "answer": "a", "reference": "7"}], {"grader": "numeric"}, "the grader 'numeric' reads nothing in.*'7'"),
        ([{"question": "q", "answer": "a"}], {"columns": "answer"}, "wanted OURS=COLUMN"),
        ([{"question": "q", "answer": "a"}], {"grader": "no_such_module:f"}, "No module named 'no_such_module'"),
        ([{"question": "q", "answer": "a"}], {"test_path": "no/such.jsonl"}, "no/such.jsonl: wanted a file of data"),
        ([{"question": "q", "trusted": True}], {}, "F:1: is marked as trusted, but has no answer"),
        ([], {}, "F: the file has no row"),
    ],
)
def test_what_is_wrong_with_the_whole(tmp_path, rows, fields, message):
    path = write(tmp_path, rows)
    with pytest.raises(ValueError, match=message.replace("F:", f"{path}:")):
        tasks.load(config(path, **fields))


def test_without_a_path_there_is_nothing_to_read():
    with pytest.raises(ValueError, match="task.path: wanted your data"):
        tasks.load(config(""))


def test_ids_that_would_meet_those_of_test_are_refused(tmp_path):
    test = write(tmp_path, [{"id": 1, "question": "q", "answer": "a"}], "test.jsonl")
    (_, line) = faults(write(tmp_path, [{"id": "test-1", "question": "q", "answer": "a"}]), test_path=str(test))
    assert line.startswith("the id 'test-1' in train is that of a test row")


def test_test_rows_without_a_trusted_reference_are_left_out_and_told(tmp_path, caplog):
    rows = [{"question": f"q {i}", "answer": "a", "trusted": True} for i in range(9)]
    test = write(tmp_path, [{"question": "other", "answer": "b", "trusted": True}, {"question": "new", "answer": "a"}], "t.jsonl")
    with caplog.at_level(logging.WARNING):
        task = tasks.load(config(write(tmp_path, rows), test_path=str(test)))
    assert caplog.messages == ["1 of 2 test rows have no trusted reference and are left out"] and len(task.test()) == 1


def test_a_saved_folder_with_both_splits(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"question": "q", "answer": "a"}])
    datasets.DatasetDict({"train": rows, "test": rows, "more": rows}).save_to_disk(tmp_path / "both")
    task = tasks.load(config(tmp_path / "both", answers="trusted"))
    assert [e.id for e in task.train() + task.test()] == ["train-00000", "test-00000"]
    task = tasks.load(config(f"{tmp_path}/both@more", test_path=f"{tmp_path}/both@test", answers="trusted"))
    assert len(task.test()) == 1
    datasets.DatasetDict({"dev": rows}).save_to_disk(tmp_path / "dev")
    with pytest.raises(ValueError, match="wanted a split 'train', found dev; name one with @SPLIT"):
        tasks.load(config(tmp_path / "dev"))
    with pytest.raises(ValueError, match="wanted a split 'test', found dev"):
        tasks.load(config(tmp_path / "both", test_path=str(tmp_path / "dev")))


def test_rows_of_a_parquet_file_are_named_by_their_number(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(Table.from_pylist([{"question": "q", "answer": "a", "id": 1}, {"question": "q", "answer": None, "id": 2}]), path)
    assert faults(path)[1] == "F, row 1: answer: wanted text, got null"
