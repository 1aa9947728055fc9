"""The data that travels between the rooms; data only, and it imports nothing of ours.

Records (`Example` to `Decision`) are frozen dataclasses of plain Python values: they go to JSONL and come back unchanged.
Batches are named tuples of arrays, so JAX sees them as pytrees although this module does not import JAX.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int

Config = Any  # an ml_collections ConfigDict, whose fields no type checker knows
Source = Literal["weak", "given", "proposal", "reference", "sample"]


@dataclass(frozen=True, slots=True)
class Example:
    """One question of a task. Only graders and the oracle may read `reference`; `given` is the demonstration that came with the data."""

    id: str
    prompt: str
    reference: str | None
    task: str
    tags: Mapping[str, Any] = field(default_factory=dict)
    given: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """The demonstration that a question has at present; `source` and `round` (0: first labels) tell where it came from."""

    example_id: str
    text: str
    source: Source
    round: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer `number` of an adapter to a question, its log-probability, and whether it ended by itself."""

    example_id: str
    adapter: int
    number: int
    text: str
    log_prob: float
    finished: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """A decision with what the report shows beside it; correctness is null where there is no reference."""

    example_id: str
    round: int
    prompt: str
    before: str
    proposal: str
    after: str
    accepted: bool
    reason: str
    accept: float | None
    reject: float | None
    score: float | None
    threshold: float | None
    before_correct: bool | None
    proposal_correct: bool | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, the better one known: evaluator data, or a preference for DPO."""

    example_id: str
    prompt: str
    better: str
    worse: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the evaluator said of answers `a` and `b` in both orders, and which of them are right, null where nothing says so.

    `accept` is P(accept the change to b | a is A, b is B); `reject` is P(reject the change to a | b is A, a is B); null of an oracle, who
    grades. `score` is their mean: the symmetric probability that b is better than a (paper section 3).
    """

    example_id: str
    prompt: str
    a: str
    b: str
    accept: float | None
    reject: float | None
    score: float
    a_correct: bool | None = None
    b_correct: bool | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one proposal in one round, and why; the probabilities are null where nobody was asked."""

    example_id: str
    round: int
    before: str
    proposal: str
    accepted: bool
    reason: str
    accept: float | None = None
    reject: float | None = None
    score: float | None = None
    threshold: float | None = None


BRANCH = 2**16


class Rows(NamedTuple):
    """Token rows as the decoder reads them; padding may stand anywhere.

    `segments` is 0 at padding and 1, 2, ... for the documents of a row; a token attends within its segment only. s + i * BRANCH is branch
    i of segment s, which goes on from there: it sees s and itself, but no other branch. `positions` counts from 0 within a segment.
    """

    tokens: Int[Any, "N T"]
    positions: Int[Any, "N T"]
    segments: Int[Any, "N T"]


class Batch(NamedTuple):
    """Rows and what to predict from them. With K adapters, N = K * B and the rows of adapter k are k*B to (k+1)*B - 1.

    Prediction c of a row is made at position `places[n, c]` for the token `targets[n, c]` and enters the loss with
    `weights[n, c]` (0 at unused places); `units[n]` is what the row adds to the loss's denominator. The two choices of
    normalisation differ in these two arrays only (paper appendix, "sequence": weight 1/length, one unit per example;
    "token": weight 1, one unit per token).
    """

    rows: Rows
    places: Int[Any, "N C"]
    targets: Int[Any, "N C"]
    weights: Float[Any, "N C"]
    units: Float[Any, " N"]


class PairBatch(NamedTuple):
    """Rows of up to M preferences for DPO, each a prompt and two answers as its branches: the prompt is computed once for both.

    Predictions are as in `Batch`. Prediction c belongs to answer `answers[n, c]` of the row, which is 2 m for the chosen and 2 m + 1 for
    the rejected answer to prompt m; -1: to none. `reference` are the reference's summed log-probabilities of both, computed once, before
    training. Weight 0: no preference.
    """

    rows: Rows
    places: Int[Any, "N C"]
    targets: Int[Any, "N C"]
    answers: Int[Any, "N C"]
    reference: Float[Any, "N M 2"]
    weight: Float[Any, "N M"]


class ClassBatch(NamedTuple):
    """Rows of up to M texts with a class each; the classifier pools at `last`, the place of a text's last token. Weight 0: no text."""

    rows: Rows
    last: Int[Any, "N M"]
    classes: Int[Any, "N M"]
    weight: Float[Any, "N M"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the experiment: its name, the settings that its result depends on, and the hashes of its inputs."""

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished stage: its folder, the key that names it (hash of the stage) and what its manifest holds."""

    folder: str
    key: str
    manifest: Mapping[str, Any]
