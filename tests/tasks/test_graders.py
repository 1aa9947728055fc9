"""Graders by name: what each calls right, what each calls the same, and names that cannot be."""

import numpy as np
import pytest

from ilr_jax.tasks import graders
from ilr_jax.types import Example


def example(reference):
    return Example("x", "q", reference, "jsonl")


def right(grader, answer, reference):
    (flag,) = grader.grade([answer], [example(reference)]).tolist()
    return flag


@pytest.mark.parametrize(
    ("name", "answer", "reference", "wanted"),
    [
        ("exact", " Yes,\n  indeed ", "yes, indeed", True),
        ("exact", "\uff39es", "YES", True),
        ("exact", "yes", "yes.", False),
        ("exact", "", "yes", False),
        ("numeric", "so #### 1,000", "#### 1000.0", True),
        ("numeric", "1000", "#### 1000", False),
        ("regex", "Therefore: <b>", "my choice: <b>", True),
        ("regex", "Therefore: <c>", "my choice: <b>", False),
        ("regex", "none", "none", False),
    ],
)
def test_what_is_right(name, answer, reference, wanted):
    assert right(graders.named(name, "<(.)>"), answer, reference) is wanted


def test_without_a_reference_nothing_is_right():
    assert not any(right(graders.named(name, "(.)"), "", None) for name in ("exact", "numeric", "regex"))


def test_agreement_is_about_the_value_and_about_the_text_where_there_is_none():
    a = ["it is <b>", "it is <b>", "it is <b>", "no choice", "no choice "]
    b = ["so: <b>", "so: <c>", "no choice", "another", "no choice"]
    assert graders.named("regex", "<(.)>").agree(a, b, []).tolist() == [True, False, False, False, True]


def test_a_pattern_without_a_group_compares_the_whole_match():
    grader = graders.named("regex", r"\d+$")
    assert right(grader, "a 12", "b 12") and not right(grader, "a 1", "b 12")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the working folder."""
    (tmp_path / "my_graders_of_a_test.py").write_text(
        "limit = 3\n"
        "def longer(answer, example): return len(answer) >= len(example.reference)\n"
        "def undecided(answer, example): return None\n"
        "def alone(answer): return True\n"
    )
    (tmp_path / "my_broken_module.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/"])
    return "my_graders_of_a_test"


def test_a_function_of_the_users_judges(module):
    grader = graders.named(f"{module}:longer")
    got = grader.grade(["abc", "a", "abc"], [example("ab"), example("ab"), example(None)])
    assert got.dtype == bool and got.tolist() == [True, False, False]
    assert grader.agree(["a", "b"], ["a ", "c"], []).tolist() == [True, False]
    assert right(graders.named("numpy:array_equal"), "#", "x") is False


def test_a_verdict_must_be_one(module):
    with pytest.raises(ValueError, match="wanted True or False, got None for the example 'x'"):
        graders.named(f"{module}:undecided").grade(["a"], [example("b")])
    assert graders.Grader("f", lambda answer: None, lambda answer, e: np.True_).grade(["a"], [example("b")]).all()


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("bleu", "", "wanted one of exact, numeric, regex, sql, sql-strict, module:function"),
        ("module:function", "", "No module named 'module'"),
        ("no_such_module:f", "", "wanted a module that can be imported, got No module named 'no_such_module'"),
        ("my_broken_module:f", "", "wanted a module that can be imported, got invalid syntax"),
        ("my_graders_of_a_test:longr", "", "wanted a function 'longr' in my_graders_of_a_test; did you mean 'longer'"),
        ("my_graders_of_a_test:limit", "", "wanted a function 'limit'"),
        ("my_graders_of_a_test:alone", "", "wanted a function of .answer, example., got one that does not take these"),
        (":f", "", "wanted a module that can be imported"),
        ("regex", "", "task.pattern: wanted the regular expression"),
        ("regex", "(", "wanted a regular expression, got one that cannot be read"),
    ],
)
def test_names_that_cannot_be(module, name, pattern, message):
    with pytest.raises(ValueError, match=message):
        graders.named(name, pattern)
