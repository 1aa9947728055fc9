"""Rows and JSON: what goes in comes out, or the file is not touched; bad lines are named."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilr_jax import files
from ilr_jax.store import StorageError, read_json, read_rows, write_json, write_rows
from ilr_jax.types import Comparison, Decision, Example, Label

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LABELS = st.lists(st.builds(Label, TEXT, TEXT, st.sampled_from(["weak", "proposal", "reference", "sample"]), st.integers(0, 9)))
same_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(LABELS)
def test_rows_come_back_unchanged(tmp_path: Path, rows):
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Label) == rows


def test_all_kinds_of_fields_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in (
        Example("e", "a\u2028b\r\nc\0\u202e\U0001f600", None, "t", {"db": "x", "n": [1, None, 2.5]}),
        Comparison("e", "q", "a", "b", 0.1, 1.0, 0.30000000000000004),
        Decision("e", 1, "a", "b", False, "why", None, None, 0.5, None),
    ):
        write_rows(path, [row, row])
        assert read_rows(path, type(row)) == [row, row]


def test_the_bytes_are_canonical(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [Label("é", "x\ny", "weak")])
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"example_id":"é","round":0,"source":"weak","text":"x\\ny"}\n'.encode()
    write_json(tmp_path / "x.json", {"b": (1, np.float64(0.5)), "a": np.int32(3)})
    assert (tmp_path / "x.json").read_text() == '{\n "a": 3,\n "b": [\n  1,\n  0.5\n ]\n}\n'


def test_a_lone_surrogate_is_refused_by_row_and_the_old_file_stays(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Label("e0", "old", "weak")])
    with pytest.raises(ValueError, match=r"row 2 of .*rows.jsonl: .*lone surrogate '\\ud800'"):
        write_rows(path, [Label("e1", "new", "weak"), Label("e2", "bad \ud800", "weak")])
    assert read_rows(path, Label) == [Label("e0", "old", "weak")]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, {"a": object()}])
def test_what_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"x.json: wanted what JSON can hold"):
        write_json(tmp_path / "x.json", value)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "wanted an object, got list"),
        (b'{"example_id": "e", "text": "x"}', "source"),
        (b'{"example_id": "e", "text": "x", "source": "weak", "colour": 1}', "colour"),
        (b'{"example_id": "e", "text": 5, "source": "weak"}', "text: wanted .*str.*, got 5"),
        (b'{"example_id": "e", "text": "x", "source": "guess"}', "source: wanted .*got 'guess'"),
        (b'{"example_id": "e", "text": "x", "source": "weak", "round": true}', "round: wanted .*int.*, got True"),
        (b'{"example_id": "e", "text": "\xff", "source": "weak"}', "codec can't decode"),
        (b"[" * 200_000, "RecursionError|recursion"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Label("e0", "fine", "weak")])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: wanted a Label as JSON(?s:.*)({reason})"):
        read_rows(path, Label)


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="could not write .*x.json"):
        write_json(tmp_path / "x.json", 2)
    assert os.listdir(tmp_path) == ["x.json"] and read_json(tmp_path / "x.json") == 1


def test_damaged_json_and_missing_files_are_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="wanted JSON in .*x.json"):
        read_json(tmp_path / "x.json")
    with pytest.raises(StorageError, match="could not read .*rows.jsonl"):
        read_rows(tmp_path / "rows.jsonl", Label)


def test_a_table_without_rows_has_its_header(tmp_path):
    files.write_csv(tmp_path / "t.csv", [], ["point", "seeds", "point"])
    assert (tmp_path / "t.csv").read_text() == "point,seeds\n"
    files.write_csv(tmp_path / "t.csv", [{"seeds": 1}, {"seeds": None, "new": 'a "b",'}], ["point"])
    assert (tmp_path / "t.csv").read_text() == 'point,seeds,new\n,1,\n,,"a ""b"","\n'
