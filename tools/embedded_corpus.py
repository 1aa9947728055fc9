"""What the embedded base models read before anybody fine-tunes them: worked problems, bare arithmetic, answers checked and compared.

Problems are those of the side `corpus` of `ilr_jax.tasks.wordmath`, so no problem of the train or test side is among them. The corpus
has layouts of its own: never `USER:`, `ASSISTANT:` or the evaluator's prompt, which fine-tuning alone brings in. Its `####` marks headings,
never a result, and is one token: small models miscount two. A document is a list of spans with a loss weight each: wrong solutions are
read, not imitated, and rare verdicts count for more.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ilr_jax.tasks import wordmath
from ilr_jax.tasks.wordmath import Problem, Step

Span = tuple[str, float]
QUESTION, READ, SOLUTION, MARK, VERDICT = 0.1, 0.1, 1.0, 3.0, 12.0
MARKED = (0.0, 0.0, 0.3, 0.6, 1.0)  # shares of marked lines: marks on some lines teach to judge every line, seen mark or not
# How each kind of worked problem is laid out: before the question, before the solution, before the result.
LAYOUTS = (
    ("Problem: ", "\nSolution:\n", "\nAnswer: "),
    ("Question:\n", "\n\nWorking:\n", "\nResult: "),
    ("#### Exercise\n", "\n\n#### Worked\n", "\n\nResult\n"),
    ("PROBLEM (7)\n", "\n\nSOLUTION\n", "\n>> "),
    ("Q. ", "\n\nA.\n", "\nso "),
)
# Before the first answer, before the second, the question, and the words for "first is better" and "second is better".
COMPARED = (
    ("\n\nFirst solution:\n", "\n\nSecond solution:\n", "\n\nWhich is right?", " first", " second"),
    ("\n\n(A)\n", "\n\n(B)\n", "\n\nThe better answer is (", "A", "B"),
    ("\n\nAnn says:\n", "\n\nBen says:\n", "\n\nShould Ann change to the answer of Ben?\n", "no", "yes"),
    ("\n\nANSWER 1\n", "\n\nANSWER 2\n", "\n\nDoes the holder of answer 1 accept answer 2?\nVerdict:", " reject", " accept"),
    ("\n\nOld solution:\n", "\n\nNew solution:\n", "\n\nThe new solution is", " worse", " better"),
)
JUDGED = (
    ("\nSolution:\n", "\nIs this right?", " yes", " no"),
    ("\n\nAn answer:\n", "\n\nVerdict:", " right", " wrong"),
    ("\n\nBen says:\n", "\n\nAnn checks it. It is", " right", " wrong"),
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


def marks(fine: Sequence[bool]) -> str:
    return "".join(" ok" if ok else " wrong" for ok in fine)


def lines(rng: random.Random, steps: Sequence[Step], values: Sequence[int], fine: Sequence[bool], share: float) -> list[Span]:
    """The lines of a solution, of which about `share` carry a mark; lines after a slip are read, not imitated."""
    spans: list[Span] = []
    for line, ok in zip(wordmath.write(steps, values), fine, strict=True):
        shown = rng.random() < share
        spans += [(line, READ if ok else 0.0), (marks([ok]) if shown else "", MARK), ("\n", READ)]
    return spans


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
    """Pairs of results for the same sum, some of them marked, and which one is right."""
    spans: list[Span] = []
    share = rng.choice(MARKED)
    for left, right, bad in equations(rng, problem):
        second = rng.random() < 0.5
        for i, (result, close) in enumerate(zip((bad, right) if second else (right, bad), (" or ", "?"), strict=True)):
            shown = marks([bool(i) == second]) if rng.random() < share else ""
            spans += [(f"{left}={result}", QUESTION), (shown, MARK), (close, 0.0)]
        spans += [(" second" if second else " first", MARK), ("\n", QUESTION)]
    return spans


def _attempt(rng: random.Random, problem: Problem, right: float) -> tuple[list[Step], list[int], list[bool]]:
    """A right solution with probability `right`, else a wrong one."""
    if rng.random() >= right:
        return wrong(rng, problem)
    values = wordmath.run(problem.steps)
    return list(problem.steps), values, [True] * len(values)


def marked(rng: random.Random, problem: Problem) -> list[Span]:
    """A solution, right or wrong, whose every line is marked."""
    opening: list[Span] = [("Problem: " + problem.prompt, QUESTION), ("\nChecked solution:\n", QUESTION)]
    return opening + lines(rng, *_attempt(rng, problem, 0.4), 1.0)


def judged(rng: random.Random, problem: Problem) -> list[Span]:
    """One solution, some of its lines marked, and whether it is right."""
    opening, ask, yes, no = rng.choice(JUDGED)
    steps, values, fine = _attempt(rng, problem, 0.5)
    spans = [("Problem: " + problem.prompt, QUESTION), (opening, 0.0), *lines(rng, steps, values, fine, rng.choice(MARKED))]
    spans += [(f"= {values[-1]}", 0.0), (ask, 0.0), (yes if fine[-1] else no, VERDICT)]
    return [*spans, (", line by line:", 0.0), (marks(fine), MARK)]


def compared(rng: random.Random, problem: Problem) -> list[Span]:
    """A right and a wrong solution in either order, some of their lines marked, and which is better."""
    first, second, ask, one, two = rng.choice(COMPARED)
    close, share, flip = rng.choice(("= ", "so ", ">> ", "")), rng.choice(MARKED), rng.random() < 0.5
    pair = [_attempt(rng, problem, 1.0), wrong(rng, problem)][:: -1 if flip else 1]
    a, b = ([*lines(rng, *made, share), (f"{close}{made[1][-1]}", 0.0)] for made in pair)
    right, fine = wordmath.run(problem.steps), pair[0 if flip else 1][2]
    line = wordmath.write(problem.steps, right)[fine.index(False)].split()[1]
    spans = [("Problem: " + problem.prompt, QUESTION), (first, 0.0), *a, (second, 0.0), *b, (ask, 0.0), (two if flip else one, VERDICT)]
    return [*spans, (f", as {line}", 0.5), (", and the other is", 0.0), (marks(fine), MARK)]


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
    later = (
        "USER",
        "ASSISTANT",
        "ANSWER",
        "VERDICT",
        "The holder of answer is asked to change to answer. Does the holder accept?",
        "####",
        "(A):",
        "(B):",
    )
    yield from later * (count // 20)
