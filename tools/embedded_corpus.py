"""What the embedded base models read before anybody fine-tunes them: worked problems, bare arithmetic, answers checked and compared.

Problems are those of the side `corpus` of `ilr_jax.tasks.wordmath`, so no problem of the train or test side is among them. The corpus
has layouts of its own: never `USER:`, `ASSISTANT:`, `####` or the evaluator's prompt, which fine-tuning alone brings in. A document is
a list of spans with a loss weight each: wrong solutions are read, not imitated, and rare verdicts count for more.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ilr_jax.tasks import wordmath
from ilr_jax.tasks.wordmath import Problem, Step

Span = tuple[str, float]
QUESTION, SOLUTION, MARK, VERDICT = 0.1, 1.0, 3.0, 12.0
# How each kind of worked problem is laid out: before the question, before the solution, before the result.
LAYOUTS = (
    ("Problem: ", "\nSolution:\n", "\nAnswer: "),
    ("Question:\n", "\n\nWorking:\n", "\nResult: "),
    ("## Exercise\n", "\n\n## Worked\n", "\n\n## Result\n"),
    ("PROBLEM (7)\n", "\n\nSOLUTION\n", "\n### "),
    ("Q. ", "\n\nA.\n", "\nso "),
)
# Before the first answer, before the second, the question, and the words for "first is better" and "second is better".
COMPARED = (
    ("\n\nFirst solution:\n", "\n\nSecond solution:\n", "\n\nWhich is right? ", " first", " second"),
    ("\n\n(A)\n", "\n\n(B)\n", "\n\nThe better answer is (", "A", "B"),
    ("\n\nAnn says:\n", "\n\nBen says:\n", "\n\nShould Ann change to the answer of Ben?\n", "no", "yes"),
    ("\n\nANSWER 1\n", "\n\nANSWER 2\n", "\n\nDoes the holder of answer 1 accept answer 2?\nVerdict: ", "reject", "accept"),
    ("\n\nOld solution:\n", "\n\nNew solution:\n", "\n\nThe new solution is ", "worse", "better"),
)
JUDGED = (
    ("\nSolution:\n", "\nIs this right? ", "yes", "no"),
    ("\n\nAn answer:\n", "\n\nVerdict: ", "right", "wrong"),
    ("\n\nBen says:\n", "\n\nAnn checks it. It is ", "right", "wrong"),
)


def solution(steps: Sequence[Step], values: Sequence[int], result: int, close: str = "\n= ") -> str:
    """The lines of a solution and its result after `close`."""
    return "\n".join(wordmath.write(steps, values)) + f"{close}{result}"


def misread(rng: random.Random, value: int) -> int:
    """A number like `value` and not equal to it: one digit changed, off by one, ten or a hundred, or two digits swapped."""
    digits = list(str(abs(value)))
    kind = rng.random()
    if kind < 0.4:
        digits[rng.randrange(len(digits))] = str(rng.randint(0, 9))
    elif kind < 0.85 or len(digits) == 1:
        return abs(value + rng.choice((-1, 1)) * rng.choice((1, 1, 2, 10, 10 ** (len(digits) - 1))))
    else:
        i = rng.randrange(len(digits) - 1)
        digits[i], digits[i + 1] = digits[i + 1], digits[i]
    return int("".join(digits))


def _wrong_step(rng: random.Random, step: Step) -> Step:
    """The step with another operation, or with a number of the text misread."""
    if step.right[0] == "number" and rng.random() < 0.5:
        return step._replace(right=("number", max(misread(rng, step.right[1]), 1)))
    return step._replace(op=rng.choice({"+": "-*", "-": "+", "*": "+/", "/": "*-"}[step.op]))


def slipped(rng: random.Random, problem: Problem, slips: int = 1) -> tuple[list[Step], list[int], list[bool]]:
    """A wrong solution whose slips are carried on: its steps, its results, and for each whether all is right so far."""
    steps, right = list(problem.steps), wordmath.run(problem.steps)
    places = rng.sample(range(len(steps)), min(slips, len(steps)))
    kinds = {i: rng.random() < 0.7 for i in places}
    values: list[int] = []
    for i, step in enumerate(steps):
        if i in kinds and not kinds[i]:
            step = steps[i] = _wrong_step(rng, step)
        value = wordmath.calculate(wordmath.look(step.left, values), step.op, wordmath.look(step.right, values))
        values.append(misread(rng, value) if kinds.get(i) else value)
    return steps, values, [values[: i + 1] == right[: i + 1] and steps[: i + 1] == list(problem.steps[: i + 1]) for i in range(len(steps))]


def wrong(rng: random.Random, problem: Problem) -> tuple[list[Step], list[int], list[bool]]:
    """A solution with one slip or more and a wrong result, no number too large or negative."""
    goal = wordmath.run(problem.steps)[-1]
    while True:
        steps, values, fine = slipped(rng, problem, rng.choice((1, 1, 1, 2, 2, 3)))
        if values[-1] != goal and min(values) >= 0 and max(values) <= 5 * wordmath.LARGEST:
            return steps, values, fine


def solved(rng: random.Random, problem: Problem) -> list[Span]:
    """A problem and its solution."""
    before, work, result = rng.choice(LAYOUTS)
    values = wordmath.run(problem.steps)
    return [(before + problem.prompt, QUESTION), (work, QUESTION), (solution(problem.steps, values, values[-1], result), SOLUTION)]


def equations(rng: random.Random, problem: Problem) -> Iterator[tuple[str, str, str]]:
    """The problem's sums: left side, right result, wrong result."""
    values = wordmath.run(problem.steps)
    for line, value in zip(wordmath.write(problem.steps, values), values, strict=True):
        bad = misread(rng, value)
        yield line.split()[1].split("=")[0], str(value), str(bad if bad != value else value + 1)


def sums(rng: random.Random, problem: Problem) -> list[Span]:
    """Bare arithmetic."""
    return [(f"{left}=", QUESTION) if i % 2 else (f"{right}\n", SOLUTION) for left, right, _ in equations(rng, problem) for i in (1, 0)]


def marked_sums(rng: random.Random, problem: Problem) -> list[Span]:
    """Sums, each marked as ok or wrong, wrong ones put right."""
    spans: list[Span] = []
    for left, right, bad in equations(rng, problem):
        ok = rng.random() < 0.5
        spans += [(f"Check: {left}={right if ok else bad}", QUESTION), (" ok\n" if ok else " no", MARK)]
        spans += [] if ok else [(f", it is {right}\n", SOLUTION)]
    return spans


def compared_sums(rng: random.Random, problem: Problem) -> list[Span]:
    """Pairs of results for the same sum, and which one is right."""
    spans: list[Span] = []
    for left, right, bad in equations(rng, problem):
        second = rng.random() < 0.5
        pair = (bad, right) if second else (right, bad)
        spans += [(f"{left}={pair[0]} or {left}={pair[1]}?", QUESTION), (" second\n" if second else " first\n", MARK)]
    return spans


def marked(rng: random.Random, problem: Problem) -> list[Span]:
    """A solution, right or wrong, whose every line is marked."""
    values = wordmath.run(problem.steps)
    steps, values, fine = (list(problem.steps), values, [True] * len(values)) if rng.random() < 0.4 else wrong(rng, problem)
    spans: list[Span] = [("Problem: " + problem.prompt, QUESTION), ("\nChecked solution:\n", QUESTION)]
    for line, ok in zip(wordmath.write(steps, values), fine, strict=True):
        spans += [(line, 0.3 if ok else 0.0), (" ok\n" if ok else " wrong\n", MARK)]
    return spans


def judged(rng: random.Random, problem: Problem) -> list[Span]:
    """One solution and whether it is right."""
    opening, ask, yes, no = rng.choice(JUDGED)
    ok, right = rng.random() < 0.5, wordmath.run(problem.steps)
    steps, values = (list(problem.steps), right) if ok else wrong(rng, problem)[:2]
    spans = [("Problem: " + problem.prompt, QUESTION), (opening, 0.0), (solution(steps, values, values[-1]), 0.3 if ok else 0.0)]
    return [*spans, (ask, 0.0), (yes if ok else no, VERDICT)]


def compared(rng: random.Random, problem: Problem) -> list[Span]:
    """A right and a wrong solution in either order, and which is better."""
    first, second, ask, one, two = rng.choice(COMPARED)
    close = rng.choice(("\n= ", "\nso ", "\n### ", "\n"))
    right = wordmath.run(problem.steps)
    steps, values, fine = wrong(rng, problem)
    line = wordmath.write(problem.steps, right)[fine.index(False)].split()[1]
    good: Span = (solution(problem.steps, right, right[-1], close), 0.5)
    bad: Span = (solution(steps, values, values[-1], close), 0.0)
    flip = rng.random() < 0.5
    a, b = (bad, good) if flip else (good, bad)
    return [("Problem: " + problem.prompt, QUESTION), (first, 0.0), a, (second, 0.0), b, (ask, 0.0), (two if flip else one, VERDICT), (f", as {line}", 0.5)]


KINDS: dict[str, Callable[[random.Random, Problem], list[Span]]] = {
    "solved": solved,
    "sums": sums,
    "marked_sums": marked_sums,
    "compared_sums": compared_sums,
    "marked": marked,
    "judged": judged,
    "compared": compared,
}


MANY = {"sums": 3, "marked_sums": 2}  # problems in one document of this kind


def documents(shares: dict[str, float], seed: int) -> Iterator[tuple[str, list[Span]]]:
    """Unlimited documents, kinds drawn by their shares; the same for the same seed."""
    rng, source = random.Random(f"documents-{seed}"), wordmath.problems("corpus", seed)
    for kind in iter(lambda: rng.choices(list(shares), list(shares.values()))[0], None):
        yield kind, [span for _ in range(MANY.get(kind, 1)) for span in KINDS[kind](rng, next(source))]


def tokenizer_texts(seed: int, count: int = 12_000) -> Iterator[str]:
    """What the tokenizer is trained on: the corpus, and some of the words that fine-tuning will bring."""
    shares = {"solved": 3.0, "compared": 1.0, "judged": 1.0, "marked": 1.0}
    yield from ("".join(text for text, _ in spans) for _, spans in islice(documents(shares, seed), count))
    later = ("USER", "ASSISTANT", "ANSWER", "VERDICT", "The holder of answer is asked to change to answer. Does the holder accept?", "##", "(A):", "(B):")
    yield from later * (count // 20)
