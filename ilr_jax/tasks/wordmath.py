"""The embedded task: a seeded generator of grade-school word problems in the shape of GSM8K, for runs without a download.

A problem is a chain of 2 to 6 steps over one running quantity. Its reference writes one short line a step and ends in
`#### N`; the grader is GSM8K's. Which side a problem falls on (`corpus` for the embedded base models, `train`, `test`) is a
hash of its equations, so the three can never share a problem, nor one problem with other names. Not a data set of record:
numbers measured on it say how the method behaves, not how good a model is.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

from ilr_jax.tasks import gsm8k
from ilr_jax.tasks import wordings as say
from ilr_jax.types import Example

Side = Literal["corpus", "train", "test"]
SIDES: dict[Side, range] = {"corpus": range(0, 80), "train": range(80, 92), "test": range(92, 100)}
LARGEST = 9999
LENGTHS = {2: 4, 3: 5, 4: 4, 5: 2, 6: 1}  # number of steps: how often
ASIDES = 0.12  # share of problems with a number that has nothing to do with the question


Operand = tuple[Literal["number", "step"], int]


class Step(NamedTuple):
    """One line of a solution. An operand is a number of the text, or the result of the step with that index."""

    word: str
    left: Operand
    op: Literal["+", "-", "*", "/"]
    right: Operand


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and the steps that solve it."""

    prompt: str
    steps: tuple[Step, ...]

    @property
    def reference(self) -> str:
        """The answer in GSM8K's format."""
        values = run(self.steps)
        return "\n".join([*write(self.steps, values), f"#### {values[-1]}"])

    @property
    def side(self) -> Side:
        """Where the problem belongs, decided by its equations alone."""
        equations = [line.split()[1] for line in write(self.steps, run(self.steps))]
        bucket = zlib.crc32(" ".join(equations).encode()) % 100
        return next(side for side, buckets in SIDES.items() if bucket in buckets)


def look(operand: Operand, values: Sequence[int]) -> int:
    """The number that an operand stands for, given the results so far."""
    return operand[1] if operand[0] == "number" else values[operand[1]]


def calculate(left: int, op: str, right: int) -> int:
    """The result of one step, rounded down where a (wrong) division leaves a rest."""
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // max(right, 1)}[op]


def run(steps: Sequence[Step]) -> list[int]:
    """The result of every step."""
    values: list[int] = []
    for step in steps:
        values.append(calculate(look(step.left, values), step.op, look(step.right, values)))
    return values


def write(steps: Sequence[Step], values: Sequence[int]) -> list[str]:
    """One line a step, such as `more 12+7=19`, with the results that `values` states: they may be wrong."""
    return [f"{s.word} {look(s.left, values)}{s.op}{look(s.right, values)}={v}" for s, v in zip(steps, values, strict=True)]


def number(rng: random.Random, top: int = 400) -> int:
    """A number for the text, small ones more often."""
    return rng.randint(2, rng.choice((20, 99, 99, top)))


class Chain:
    """A problem while it is made: its sentences and steps so far, the running quantity (`now`, `value`) and what that counts."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        gender = rng.choice(("he", "she"))
        self.name, self.other = rng.choice(say.NAMES[gender]), rng.choice(say.NAMES["she" if gender == "he" else "he"])
        self.holder, self.unit, self.money = self.name, rng.choice(say.THINGS), False
        self.slots = {"name": self.name, "other": self.other, "they": gender, "pro": gender.capitalize()}
        self.value = number(rng)
        self.now: Operand = ("number", self.value)
        self.steps: list[Step] = []
        self.text: list[str] = []
        self.say(say.START, n=self.value)

    def say(self, templates: Sequence[str], **slots: Any) -> None:
        boxes = self.rng.choice(say.BOXES)
        self.text.append(self.rng.choice(templates).format(**self.slots, unit=self.unit, **{"boxes": boxes, **slots}))

    def step(self, word: str, left: Operand, op: Literal["+", "-", "*", "/"], right: Operand) -> Operand:
        self.steps.append(Step(word, left, op, right))
        self.value = run(self.steps)[-1]
        return ("step", len(self.steps) - 1)

    def divisor(self, top: int) -> int | None:
        fits = [k for k in range(2, top + 1) if self.value % k == 0 and self.value // k > 1]
        return self.rng.choice(fits) if fits else None


def _more(c: Chain) -> bool:
    n = number(c.rng)
    c.say(say.EARN if c.money else say.MORE, n=n)
    c.now = c.step("more", c.now, "+", ("number", n))
    return True


def _less(c: Chain) -> bool:
    if c.value < 4:
        return False
    n = min(number(c.rng), c.rng.randint(2, c.value - 2))
    c.say(say.SPEND if c.money else say.LESS, n=n)
    c.now = c.step("left", c.now, "-", ("number", n))
    return True


def _grow(c: Chain) -> bool:
    k = c.rng.choice(tuple(say.TIMES))
    c.say(say.GROW, k=k, times=say.TIMES[k])
    c.now = c.step("times", c.now, "*", ("number", k))
    return True


def _price(c: Chain) -> bool:
    k = c.rng.randint(2, 9)
    if c.money:
        return False
    c.say(say.PRICE, k=k)
    c.unit, c.money, c.now = "dollars", True, c.step("price", c.now, "*", ("number", k))
    return True


def _share(c: Chain) -> bool:
    k = c.divisor(9)
    if k is None or c.holder != c.name:
        return False
    c.say(say.SHARE, k=k)
    c.slots |= {"name": c.other, "other": c.name, "they": "she" if c.slots["they"] == "he" else "he"}
    c.slots["pro"] = c.slots["they"].capitalize()
    c.holder, c.now = c.other, c.step("share", c.now, "/", ("number", k))
    return True


def _pack(c: Chain) -> bool:
    k, boxes = c.divisor(9), c.rng.choice(say.BOXES)
    if k is None or c.money or c.unit in say.BOXES:
        return False
    c.say(say.PACK, k=k, boxes=boxes)
    c.unit, c.now = boxes, c.step("packs", c.now, "/", ("number", k))
    return True


def _keep(c: Chain) -> bool:
    k = c.divisor(5)
    if k is None:
        return False
    c.say(say.KEEP, part=say.PARTS[k])
    c.now = c.step("part", c.now, "/", ("number", k))
    return True


def _bunch(c: Chain) -> bool:
    a, b, less = c.rng.randint(2, 9), number(c.rng, 200), c.rng.random() < 0.4
    if c.money or c.unit in say.BOXES or (less and a * b > c.value - 2):
        return False
    c.say(say.BUNCH_LESS if less else say.BUNCH_MORE, a=a, b=b)
    bunch = c.step("all", ("number", a), "*", ("number", b))
    c.now = c.step("left", c.now, "-", bunch) if less else c.step("more", c.now, "+", bunch)
    return True


def _both(c: Chain) -> bool:
    n, k = number(c.rng), c.rng.choice(tuple(say.TIMES))
    if c.rng.random() < 0.5:
        c.say(say.BOTH_TIMES, times=say.TIMES[k])
        second = c.step("times", c.now, "*", ("number", k))
    else:
        c.say(say.BOTH_MORE, n=n)
        second = c.step("more", c.now, "+", ("number", n))
    c.now = c.step("both", c.now, "+", second)
    return True


ONE_STEP = (_more, _less, _grow, _price, _share, _pack, _keep)
TWO_STEPS = (_bunch, _both)


def make(rng: random.Random) -> Problem:
    """One problem, of any side."""
    while True:
        length = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        chain = Chain(rng)
        if rng.random() < ASIDES:
            chain.say(say.ASIDE, n=rng.randint(5, 60))
        while len(chain.steps) < length:
            rng.choice(ONE_STEP + TWO_STEPS if len(chain.steps) < length - 1 else ONE_STEP)(chain)
        # Once it was shared, "in all" would mean everybody's.
        chain.say(say.ASK if chain.holder == chain.name else say.ASK_ONE, holder=chain.holder)
        problem = Problem(" ".join(chain.text), tuple(chain.steps))
        if max(run(problem.steps)) <= LARGEST:
            return problem


def problems(side: Side, seed: int) -> Iterator[Problem]:
    """Unlimited problems of one side, no prompt twice; the same for the same seed."""
    rng, seen = random.Random(f"{side}-{seed}"), set()
    while True:
        problem = make(rng)
        if problem.side == side and problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


@dataclass(frozen=True)
class WordMath(gsm8k.Grading):
    """The embedded task; grading, agreement and which labels are usable are GSM8K's."""

    train_examples: int
    test_examples: int
    seed: int
    name: str = "wordmath"

    def train(self) -> list[Example]:
        return self._examples("train", self.train_examples)

    def test(self) -> list[Example]:
        return self._examples("test", self.test_examples)

    def _examples(self, side: Side, count: int) -> list[Example]:
        found = enumerate(islice(problems(side, self.seed), count))
        return [Example(f"wordmath-{side}-{i:05d}", p.prompt, p.reference, self.name, {"steps": len(p.steps)}) for i, p in found]


def load(config: Any) -> WordMath:
    """The task as `config` (`train_examples`, `test_examples`, `grader`, `seed`) describes it; both counts must be positive."""
    counts = {key: getattr(config, key) for key in ("train_examples", "test_examples")}
    for key, count in counts.items():
        if not count or count < 0:
            raise ValueError(f"task.{key}={count!r}: the embedded task is unlimited, so say how many examples to make (for instance 2000)")
    return WordMath(**counts, seed=config.seed, grader=config.grader or "numeric")
