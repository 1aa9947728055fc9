"""SaferPaca: the loader on a folder made here, its categories, and that it neither grades nor agrees."""

import os
from pathlib import Path

import pytest
from made_up_saferpaca import rows, save

from configs import saferpaca as config_file
from ilr_jax import settings
from ilr_jax.tasks import Task, saferpaca
from ilr_jax.types import Example

REAL = Path(os.environ.get("ILR_SAFERPACA_TEST", "not set"))


def test_examples_carry_their_category(tmp_path):
    task = saferpaca.SaferPaca(save(tmp_path, rows(5), rows(4, 10)), train_examples=3)
    train, test = task.train(), task.test()
    assert [e.tags["category"] for e in train] == ["general", "general", "safety"] and len(test) == 4
    assert train[1] == Example("saferpaca-train-00001", "What is 1 and 1?", "It is 2.", "saferpaca", {"category": "general"})
    assert test[0].id == "saferpaca-test-00000" and isinstance(task, Task)


def test_nothing_is_read_off_an_answer(tmp_path):
    task = saferpaca.SaferPaca("unused")
    assert task.grade([], []) is None and task.grade(["x"], [Example("e", "q", "x", "t")]) is None and task.agree(["x"], ["x"], []) is None
    assert task.usable(" x ") and not task.usable(" \n")


def test_bad_rows_are_listed_together(tmp_path):
    bad = [{"question": " ", "answer": "a", "category": "safety"}, *rows(1), {"question": "q", "answer": "a", "category": "Safety"}]
    task = saferpaca.SaferPaca(save(tmp_path, [*bad, {"question": "q", "answer": None, "category": "general"}], bad * 600))
    with pytest.raises(ValueError, match="train: rows that cannot be used") as caught:
        task.train()
    faults = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [fault[:19] for fault in faults] == ["row 0: wanted text ", "row 2: wanted the c", "row 3: wanted text "]
    with pytest.raises(ValueError, match="and 200 more$"):
        task.test()


def test_a_missing_column_or_folder_is_named(tmp_path):
    path = save(tmp_path, [{"question": "q", "answer": "a"}], rows(1))
    with pytest.raises(ValueError, match=r"missing \['category'\]"):
        saferpaca.SaferPaca(path).train()
    config = config_file.get_config()
    with pytest.raises(ValueError, match="task.path: wanted a folder"):
        saferpaca.load(config.task)


def test_the_published_settings():
    config = config_file.get_config()
    assert settings.check(config) == ["ilr"]
    assert (config.strong.epochs, config.decoding.max_new_tokens, config.dpo.samples, config.dpo.temperature) == (4, 512, 6, 1.0)
    assert (config.decoding.labels, config.decoding.proposals, config.decoding.temperature) == ("sample", "sample", 1.0)


@pytest.mark.skipif(not REAL.is_dir(), reason="ILR_SAFERPACA_TEST names no folder with the real test split")
def test_the_real_test_split(tmp_path):
    import datasets

    datasets.DatasetDict({"test": datasets.load_from_disk(str(REAL))}).save_to_disk(tmp_path)
    test = saferpaca.SaferPaca(str(tmp_path)).test()
    categories = [e.tags["category"] for e in test]
    assert (categories.count("general"), categories.count("safety")) == (300, 278)
