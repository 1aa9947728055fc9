"""GSM8K: what each grader reads, agreement, and the loader on a folder made here."""

import time
from fractions import Fraction

import datasets
import numpy as np
import pytest

from ilr_jax.tasks import gsm8k
from ilr_jax.types import Example

THOUSAND = Example("x", "How many?", "500*2=1000\n#### 1000", "gsm8k")


@pytest.mark.parametrize(
    ("ending", "numeric", "released"),
    [
        ("#### 1000", True, True),
        ("#### 1000\n\nUSER:\nWhat next?", True, True),
        ("#### 1,000", True, False),
        ("#### $1000", True, False),
        ("#### 1000.", True, False),
        ("#### 1000.0", True, False),
        ("#### 1000%", True, False),
        ("#### +1000", True, False),
        ("####1000", True, False),
        ("#### **1000**", True, False),
        ("#### \\boxed{1000}", True, False),
        ("#### \uff11\uff10\uff10\uff10", True, False),
        ("#### 1000\n\nASSISTANT:\n#### 7", True, False),
        ("#### so\n#### 1000", True, True),
        ("#### 2000/2", True, False),
        ("#### 7\n#### 1000", False, True),
        ("#### -1000", False, False),
        ("#### 100", False, False),
        ("#### 10000", False, False),
        ("#### 1000.5", False, False),
        ("#### 1,0000", False, False),
        ("The answer is 1000", False, False),
        ("####", False, False),
        ("", False, False),
    ],
)
def test_graders(ending, numeric, released):
    for grader, wanted in (("numeric", numeric), ("released", released)):
        got = gsm8k.Grading(grader=grader).grade([f"1+1=2\n{ending}"], [THOUSAND])
        assert got.dtype == bool and got.tolist() == [wanted], grader


@pytest.mark.parametrize("ending", ["-5", "- 5", "-$5", "$-5", "\N{MINUS SIGN}5", "-5.00"])
def test_negative_numbers(ending):
    assert gsm8k.numeric(f"#### {ending}") == Fraction(-5)


@pytest.mark.parametrize(
    "answer", ["#### " + " " * 50_000 + "abc", "x ####" + "-$ " * 20_000, "####" + "9" * 5_000, "####1/" + "9" * 5_000]
)
def test_degenerate_answers_state_no_number_and_cost_nothing(answer):
    start = time.perf_counter()
    assert gsm8k.numeric(answer) is None
    assert time.perf_counter() - start < 1


def test_decimals():
    assert gsm8k.numeric("#### so. 5.") == 5 and gsm8k.numeric("#### -.5") == Fraction(-1, 2)
    assert gsm8k.numeric("#### .5") == gsm8k.numeric("#### 1/2") == gsm8k.numeric("#### $0.50") == Fraction(1, 2)


def test_agreement_is_about_the_final_number():
    a = ["2*3=6\n#### 6", "#### 6", "no number", "#### 6"]
    b = ["3+3=6\n#### $6.00", "#### 7", "none here either", "no number"]
    assert gsm8k.Grading().agree(a, b, [THOUSAND] * 4).tolist() == [True, False, False, False]


def test_usable_wants_the_mark():
    assert gsm8k.Grading().usable("6\n#### 6") and not gsm8k.Grading().usable("6\nAnswer: 6")


def test_unknown_grader_is_refused():
    with pytest.raises(ValueError, match="numeric, released"):
        gsm8k.Grading(grader="exact")


def save(folder, rows, test=None):
    splits = {"train": rows, "test": test if test is not None else rows[:1]}
    columns = {split: {key: [row[key] for row in found] for key in rows[0]} for split, found in splits.items()}
    datasets.DatasetDict({split: datasets.Dataset.from_dict(found) for split, found in columns.items()}).save_to_disk(folder)
    return str(folder)


ROWS = [{"question": f"What is {i}+{i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"} for i in range(5)]


def test_loads_a_saved_folder(tmp_path):
    task = gsm8k.GSM8K(path=save(tmp_path, ROWS), train_examples=3)
    train, test = task.train(), task.test()
    assert [e.id for e in train] == ["gsm8k-train-00000", "gsm8k-train-00001", "gsm8k-train-00002"]
    assert [e.id for e in test] == ["gsm8k-test-00000"]
    assert train[2] == Example("gsm8k-train-00002", "What is 2+2?", "2+2=4\n#### 4", "gsm8k")
    assert task.grade([str(e.reference) for e in train], train).all()
    assert len(gsm8k.GSM8K(path=task.path, train_examples=99).train()) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?", "answer": ""}, "train row 1: the answer is empty"),
        ({"question": "Q?", "answer": None}, "train row 1: the answer is empty"),
        ({"question": " ", "answer": "#### 1"}, "train row 1: the question is empty"),
        ({"question": "Q?", "answer": "It is 5"}, "train row 1: the answer does not end in '#### number'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        gsm8k.GSM8K(path=save(tmp_path, [ROWS[0], row])).train()


def test_an_empty_split_is_an_error(tmp_path):
    task = gsm8k.GSM8K(path=save(tmp_path, ROWS, test=[]))
    with pytest.raises(ValueError, match="test: the split is empty"):
        task.test()


def test_wrong_columns_are_named(tmp_path):
    path = save(tmp_path, [{"question": "Q?", "solution": "#### 1"}])
    with pytest.raises(ValueError, match=r"missing \['answer'\], found \['question', 'solution'\]"):
        gsm8k.GSM8K(path=path).train()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="DatasetDict.save_to_disk"):
        gsm8k.GSM8K(path=str(tmp_path)).train()


def test_a_damaged_folder_is_named(tmp_path):
    path = save(tmp_path, ROWS)
    for data in (tmp_path / "train").glob("*.arrow"):
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"train cannot be read .*; if it is damaged, save it again"):
        gsm8k.GSM8K(path=path).train()


def test_a_missing_split_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; found train"):
        gsm8k.GSM8K(path=str(tmp_path)).test()


def test_lengths_must_match():
    with pytest.raises(ValueError, match="shorter"):
        gsm8k.Grading().grade(["#### 1", "#### 2"], [THOUSAND])


def test_without_a_reference_nothing_is_right():
    assert not gsm8k.Grading().grade(["no number"], [Example("x", "How many?", None, "gsm8k")]).any()


def test_grading_nothing_gives_nothing():
    assert gsm8k.Grading().grade([], []).shape == (0,) and isinstance(gsm8k.Grading().agree([], [], []), np.ndarray)
