"""The embedded task: what the generator promises."""

import re
from collections import Counter
from functools import cache
from itertools import islice
from types import SimpleNamespace

import pytest

from ilr_jax import tasks
from ilr_jax.tasks import wordmath

CONFIG = {"name": "wordmath", "path": "", "train_examples": 300, "test_examples": 100, "grader": "numeric", "seed": 3}


def config(**changes):
    return SimpleNamespace(**(CONFIG | changes))


@cache
def problems(side, count=400, seed=0):
    return list(islice(wordmath.problems(side, seed), count))


def test_the_same_seed_gives_the_same_examples():
    assert tasks.load(config()).train() == tasks.load(config()).train()
    assert tasks.load(config(seed=4)).train() != tasks.load(config()).train()
    assert tasks.load(config(train_examples=50)).train() == tasks.load(config()).train()[:50]


def test_the_three_sides_share_no_problem():
    equations = {
        side: {tuple(line.split()[1] for line in p.reference.split("\n")[:-1]) for p in problems(side, 700)} for side in wordmath.SIDES
    }
    assert all(len(found) > 500 for found in equations.values())
    for a, b in (("corpus", "train"), ("corpus", "test"), ("train", "test")):
        assert not equations[a] & equations[b]


def test_the_side_does_not_depend_on_the_wording():
    problem = problems("test", 1)[0]
    assert wordmath.Problem("Other words.", problem.steps).side == "test"


def test_sides_cover_every_bucket_once():
    assert sorted(bucket for side in wordmath.SIDES.values() for bucket in side) == list(range(100))


def test_no_prompt_comes_twice():
    prompts = [p.prompt for p in problems("train", 700)]
    assert len(set(prompts)) == len(prompts)


def test_references_grade_right_and_wrong_numbers_do_not():
    task = tasks.load(config())
    train = task.train()
    assert task.grade([e.reference for e in train], train).all()
    assert not task.grade([e.reference + "1" for e in train], train).any()
    assert task.usable(train[0].reference)


def test_every_line_of_a_reference_is_true():
    for problem in problems("train"):
        *lines, last = problem.reference.split("\n")
        for line in lines:
            word, left, op, right, result = re.fullmatch(r"([a-z]+) (\d+)([-+*/])(\d+)=(\d+)", line).groups()
            exact = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right), "/": int(left) / int(right)}[op]
            assert word and exact == int(result)
        assert last == f"#### {result}"


def test_two_to_six_steps_and_all_operations():
    found = problems("corpus", 800)
    assert set(Counter(len(p.steps) for p in found)) == {2, 3, 4, 5, 6}
    assert {s.op for p in found for s in p.steps} == set("+-*/")


def test_numbers_have_at_most_four_digits_and_stay_positive():
    values = [v for p in problems("corpus", 800) for v in wordmath.run(p.steps)]
    assert min(values) > 0 and 1000 < max(values) <= 9999


def test_every_number_of_the_text_that_a_step_uses_is_in_the_text():
    words = {word: k for k, word in wordmath.say.TIMES.items()} | {word: k for k, word in wordmath.say.PARTS.items()}
    for problem in problems("train"):
        stated = {int(n) for n in re.findall(r"\d+", problem.prompt)} | {k for word, k in words.items() if word in problem.prompt}
        used = {value for step in problem.steps for kind, value in (step.left, step.right) if kind == "number"}
        assert used <= stated, problem.prompt


def test_after_a_share_the_question_names_whose_part_is_asked_for():
    shared = [p for p in problems("train", 600) if any(step.word == "share" for step in p.steps)]
    assert len(shared) > 50
    for problem in shared:
        question = problem.prompt.split(". ")[-1]
        assert any(name in question for names in wordmath.say.NAMES.values() for name in names), problem.prompt


def test_wording_varies():
    found = problems("train", 600)
    openings = Counter(re.sub(r"[A-Z][a-z]+|\d+", "", p.prompt.split(".")[0]) for p in found)
    assert len(openings) > 50 and len({p.prompt.split(". ")[-1] for p in found}) > 100


def test_lengths_stay_short():
    lengths = sorted(len(p.prompt.split()) for p in problems("train", 600))
    assert 30 < lengths[300] < 45 and lengths[-1] < 90
    assert max(len(p.reference.split("\n")) for p in problems("train", 600)) <= 7


def test_a_wrong_division_rounds_down():
    assert wordmath.calculate(7, "/", 2) == 3 and wordmath.calculate(7, "/", 0) == 7


@pytest.mark.parametrize("count", [0, None, -1])
def test_the_number_of_examples_must_be_said(count):
    with pytest.raises(ValueError, match="test_examples"):
        tasks.load(config(test_examples=count))


def test_an_unknown_task_names_the_near_miss():
    with pytest.raises(ValueError, match="did you mean 'wordmath'"):
        tasks.load(config(name="wordmaths"))
