"""Other people's files: what is read, and for every way in which a file can be bad a line that says where and why."""

import json
import time

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import Table, parquet

from ilr_jax.tasks import readers
from ilr_jax.tasks.readers import ANY, Row

ROWS = [{"question": "a\u2028b\u0085c", "answer": "1"}, {"question": "Größe?\n2", "answer": "2,\r\n3"}]


def read(path):
    """(values of the rows, lines about the others) of a source with one split."""
    (entries,) = (split() for split in readers.splits(str(path)).values())
    return [e.values for e in entries if isinstance(e, Row)], [e.replace(str(path), "F") for e in entries if isinstance(e, str)]


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def as_csv(rows):
    return "question,answer\r\n" + "".join(",".join(f'"{row[name]}"' for name in ("question", "answer")) + "\r\n" for row in rows)


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", as_lines(ROWS)),
        ("a.NDJSON", as_lines(ROWS).replace("\n", "\r\n\n")),
        ("a.json", json.dumps(ROWS)),
        ("b.json", json.dumps(ROWS, indent=1, ensure_ascii=False)),
        ("a.csv", as_csv(ROWS)),
        ("b.csv", "\ufeff" + as_csv(ROWS)),
    ],
)
def test_text_files_give_their_rows(tmp_path, name, text):
    assert read(write(tmp_path, name, text)) == (ROWS, [])


def test_parquet_saved_folders_and_splits(tmp_path):
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (ROWS, [])
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == (ROWS, [])
    datasets.DatasetDict({"train": one, "validation": one.select([1])}).save_to_disk(tmp_path / "two")
    assert list(readers.splits(str(tmp_path / "two"))) == ["train", "validation"]
    assert read(f"{tmp_path}/two@validation") == (ROWS[1:], [])
    with pytest.raises(ValueError, match="wanted the split 'test', found train, validation"):
        readers.splits(f"{tmp_path}/two@test")


def test_a_hub_data_set_is_asked_for_by_name_configuration_and_split(tmp_path, monkeypatch):
    asked = []
    found = datasets.DatasetDict({"train_sft": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given) or found)
    assert read("owner/name:main@train_sft") == (ROWS, []) and read("owner/name") == (ROWS, [])
    assert asked == [("owner/name", "main"), ("owner/name", None)]


def failing(error):
    def load_dataset(*given):
        raise error

    return load_dataset


def test_what_of_the_hub_cannot_be_built_is_one_message(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", failing(datasets.exceptions.DatasetGenerationError("columns differ")))
    with pytest.raises(ValueError, match="owner/name.*cannot be had from the Hugging Face Hub .columns differ"):
        readers.splits("owner/name")


def test_a_csv_field_may_be_long(tmp_path):
    assert read(str(write(tmp_path, "a.csv", f"question\n{'x' * 200_000}\n"))) == ([{"question": "x" * 200_000}], [])


def test_what_is_not_here_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", failing(ConnectionError("no network")))
    for source, message in {
        "owner/name": "cannot be had from the Hugging Face Hub .no network.*HF_HUB_OFFLINE",
        "data/train.jsonl": "wanted a file of data, found none there",
        "no such thing!": "wanted a file, a folder",
        str(tmp_path): "wanted a folder that save_to_disk wrote, found another",
        str(write(tmp_path, "a.txt", "x")): "ends in .jsonl, .ndjson, .json, .csv, .parquet, got '.txt'",
    }.items():
        with pytest.raises(ValueError, match=message):
            readers.splits(source)


GOOD = '{"question": "q"}'
BAD_OBJECTS = {
    '{"question": "q"': "is no JSON",
    '{"question": NaN}': "no NaN",
    '{"question": -Infinity}': "no NaN, no infinity",
    '{"question": 1e999}': "no NaN, no infinity",
    '{"question": "\\ud800"}': "the lone surrogate '\\ud800'",
    '{"q\\udc00": "x"}': "the lone surrogate '\\udc00'",
    '{"a": {"b": 1, "b": 2}}': "has the key 'b' twice",
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}": "is nested too deeply",
    '{"a":' * 100_000 + "1" + "}" * 100_000: "is nested too deeply",
    '{"a": ' + "9" * 5_000 + "}": "digits",
    '["question"]': "wanted an object, got list",
    "null": "wanted an object, got NoneType",
}


@pytest.mark.parametrize("bad", BAD_OBJECTS, ids=[text[:20] for text in BAD_OBJECTS])
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, bad):
    rows, faults = read(write(tmp_path, "a.jsonl", f"{GOOD}\n{bad}\n{GOOD}"))
    assert len(rows) == 2 and len(faults) == 1
    assert faults[0].startswith("F:2: ") and BAD_OBJECTS[bad] in faults[0] and len(faults[0]) < 250


@pytest.mark.parametrize("bad", BAD_OBJECTS, ids=[text[:20] for text in BAD_OBJECTS])
def test_a_bad_element_of_an_array_is_named(tmp_path, bad):
    """What Python's reader takes at all does not hide the rows behind it."""
    rows, faults = read(write(tmp_path, "a.json", f"[{GOOD},\n{bad},\n{GOOD}]"))
    assert len(faults) == 1 and faults[0].startswith("F:2, row 1: ") and BAD_OBJECTS[bad] in faults[0]
    assert len(rows) == (1 if "nothing behind it was read" in faults[0] else 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "F: the file has no row"),
        (b" \n\n", "F: the file has no row"),
        (b'\xef\xbb\xbf{"a": "b"}\n', "F:1: begins with a byte order mark"),
        (b'{"a": "b"}\n{"a": "\xff"}\n', "F:2: is no UTF-8"),
        (b'{"a": "b"} {"a": "c"}\n', "F:1: is no JSON (Extra data"),
        ("\ud800".encode("utf-8", "surrogatepass"), "F:1: is no UTF-8"),
    ],
)
def test_bad_lines(tmp_path, text, message):
    assert read(write(tmp_path, "a.jsonl", text))[1][0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "F: the file has no row"),
        (b"[]", "F: the file has no row"),
        (b'\xef\xbb\xbf[{"a": "b"}]', "F:1: begins with a byte order mark"),
        (b'[{"a": "\xff"}]', "F: is no UTF-8"),
        (b'{"a": "b"}', "F:1: wanted an array of objects"),
        (b'[{"a": "b"}\n', "F:1, row 0: wanted a comma or the end of the array"),
        (b'[{"a": "b"}, ', "F:1, row 1: is no JSON"),
        (b'[{"a": "b"}] x', "F: wanted nothing behind the array, got 'x'"),
    ],
)
def test_bad_arrays(tmp_path, text, message):
    assert read(write(tmp_path, "a.json", text))[1][0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "F: the file has no row"),
        (b"question,answer\n", "F: the file has no row"),
        (b"a,a\n1,2\n", "F:1: wanted column names that differ"),
        (b"a;b\n1;2\n", "F:1: wanted columns with commas between them, got 'a;b'; save it with commas"),
        (b'a,b\n"x\ny",1\n1,2,3\n4\n', "F:4: wanted 2 fields as in the header, got 3"),
        (b'a,b\n"open,1\n', "F:2: is no CSV"),
        (b'a,b\n"x" y,1\n', "F:2: is no CSV"),
        (b"a,b\n\xff,1\n", "F: is no UTF-8"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    assert read(write(tmp_path, "a.csv", text))[1][0].startswith(message)


def test_unreadable_parquet_and_damaged_folders(tmp_path):
    for data in (b"", b"PAR1 and no more", parquet_bytes(tmp_path)[:-9]):
        assert "cannot be read as Parquet" in read(write(tmp_path, "a.parquet", data))[1][0]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_dict({"question": []})}).save_to_disk(
        tmp_path / "two"
    )
    assert "the split is empty" in read(f"{tmp_path}/two@test")[1][0]
    for data in (tmp_path / "two" / "train").glob("*.arrow"):
        data.write_bytes(data.read_bytes()[:100])
    assert "train: cannot be read" in read(f"{tmp_path}/two@train")[1][0]


def parquet_bytes(folder):
    parquet.write_table(Table.from_pylist(ROWS), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.mkdir()
    with pytest.raises(ValueError, match="save_to_disk"):
        readers.splits(str(path))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.lists(st.integers(), max_size=3)), min_size=1))
def test_any_rows_come_back_from_lines_and_arrays(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    assert read(write(folder, "any.jsonl", as_lines(rows))) == (rows, [])
    assert read(write(folder, "any.json", json.dumps(rows, indent=2))) == (rows, [])


def test_a_long_array_is_read_in_linear_time(tmp_path):
    start = time.process_time()
    rows, faults = read(write(tmp_path, "a.json", json.dumps([{"a": "x" * 20}] * 30_000, indent=1)))
    assert len(rows) == 30_000 and not faults and time.process_time() - start < 5


def test_the_only_split_has_no_name(tmp_path):
    assert list(readers.splits(str(write(tmp_path, "a.jsonl", GOOD)))) == [ANY]
