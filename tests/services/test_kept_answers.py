"""Answers on disk: shared by processes, and whole after a kill in the middle of a write."""

import pytest

from ilr_jax.files import StorageError
from ilr_jax.services.cache import Cache


def read(path) -> Cache:
    cache = Cache(path)
    cache.refresh()
    return cache


def test_what_one_puts_another_finds_even_while_it_is_open(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    one, two = read(path), read(path)
    one.put({"a": {"text": "\u2028 line", "top": [["A", -0.1]]}})
    two.put({"b": 2})
    assert "a" not in two
    for cache in (one, two, read(path)):
        cache.refresh()
        assert cache["a"]["text"] == "\u2028 line" and cache["b"] == 2


@pytest.mark.parametrize("torn", [b'{"key":"c","val', b'{"key":"c"}\n', b"\xff\xfe\n", b"[1]\n", b"[" * 100_000 + b"\n"])
def test_a_torn_or_damaged_line_is_no_answer_and_spoils_none(tmp_path, caplog, torn):
    path = tmp_path / "answers.jsonl"
    read(path).put({"a": 1})
    with open(path, "ab") as file:
        file.write(torn)
    cache = read(path)
    assert "c" not in cache and cache["a"] == 1
    cache.put({"b": 2})
    again = read(path)
    assert (again["a"], again["b"]) == (1, 2) and "c" not in again and "1 damaged lines are not used" in caplog.text


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="answers.jsonl"):
        Cache(tmp_path / "file" / "answers.jsonl").put({"a": 1})
