"""Answers to ragged prompts: one sample, several, and beam search, against `generate` of transformers; how full the slots are."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks import peers
from benchmarks.measure import Side, agree, best, race
from benchmarks.shapes import LONGEST, LORA, Shape, Size, Texts, shape, texts
from ilr_jax.models import flops, lora
from ilr_jax.progress import Progress
from ilr_jax.sample import generate, rollout
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.engine import Engine, Machine
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute

TEMPERATURE, WINDOW, EOS = 0.7, LONGEST[1], 2
BEAMS, BEAM_WINDOW = 4, 64


def dtype() -> str:
    """Of both sides."""
    return "bfloat16" if peers.DEVICE == "cuda" else "float32"


def limited(machine: Machine, lengths: list[int]) -> Machine:
    """The machine with request i ending after lengths[i] tokens, as answers of these lengths would: random weights never end one."""
    table = np.array([*lengths, 0], np.int32)
    admit = lambda state, fill: machine.admit(state, fill._replace(limits=np.minimum(fill.limits, table[fill.ids])))
    return Machine(machine.blank, admit, machine.advance, machine.rows, machine.copies, machine.window, machine.bucket)


class Ours:
    """Our samples of answers as long as those of `data`; `steps` counts what the slots went through.

    With k > 1 adapters, each answers its share of the questions; a single one would be merged, and costs nothing.
    """

    def __init__(self, made: Shape, data: Texts, n: int, slots: int, k: int = 1, params: Any = None):
        self.data, self.made, self.k = data, made, k
        settings = SamplingSettings(WINDOW, TEMPERATURE, n=n, slots=slots)
        compute = Compute(made.config, dtype())
        prepared = lora.prepare(made.adapters(k)["adapters"], LORA, jnp.dtype(dtype())) if k > 1 else None
        weights = (made.params(dtype()) if params is None else params, prepared)
        machine = Machine(
            blank=lambda rows, length: rollout.blank(compute, rows, length, WINDOW),
            admit=lambda state, fill: rollout.admit(compute, weights, state, fill, jax.random.key(0)),
            advance=partial(rollout.advance, compute, settings.rule, (EOS,), settings.chunk, weights),
            rows=slots,
            copies=n,
            window=WINDOW,
            bucket=settings.bucket,
        )
        self.machine = limited(machine, [len(a) for a in data.answers])
        self.slots = self.steps = 0

    def advance(self, state: Any, wanted: np.ndarray) -> Any:
        """The machine's, counting."""
        before = int(state.cache.cursor)
        out = self.machine.advance(state, wanted)
        self.steps += (int(out[0].cache.cursor) - before) % WINDOW
        return out

    def __call__(self) -> float:
        share = -(-len(self.data.questions) // self.k)
        requests = [Request(ids, i // share, i) for i, ids in enumerate(self.data.questions)]
        m = self.machine
        counted = Machine(m.blank, m.admit, self.advance, m.rows, m.copies, m.window, m.bucket)
        engine, self.steps = Engine(counted, requests, self.k, self.made.config.context, 0), 0
        with Progress("", len(requests), "prompts", quiet=True) as bar:
            found = engine.run(bar)
        self.slots = len(engine.owners)
        return float(sum(len(c.tokens) + c.finished for row in found for c in row))


class Lengths(StoppingCriteria):
    """Ends every row at its own length."""

    def __init__(self, start: int, lengths: list[int]):
        self.start, self.lengths = start, peers.torch.tensor(lengths, device=peers.DEVICE)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Which rows are done."""
        return input_ids.shape[1] - self.start >= self.lengths


def sampled(made: Shape, data: Texts, n: int, batch: int) -> Side:
    """The peer's samples, prompts sorted by length."""
    model = peers.model(made, dtype()).eval()
    order = sorted(range(len(data.questions)), key=lambda i: len(data.questions[i]))
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}

    def run() -> float:
        useful = 0
        for begin in range(0, len(order), batch):
            taken = order[begin : begin + batch]
            ids, mask = peers.padded([data.questions[i] for i in taken], left=True)
            lengths = [len(data.answers[i]) for i in taken for _ in range(n)]
            stop = StoppingCriteriaList([Lengths(ids.shape[1], lengths)])
            with peers.torch.inference_mode():
                out = model.generate(
                    ids, attention_mask=mask, max_new_tokens=WINDOW, stopping_criteria=stop, eos_token_id=EOS, pad_token_id=0, **how
                )
            ended = (out[:, ids.shape[1] :] == EOS).int()
            first = peers.torch.where(ended.any(1), ended.argmax(1) + 1, ended.shape[1])
            useful += int(peers.torch.minimum(first, stop[0].lengths).sum())
        return float(useful)

    return run


def agree_greedy(made: Shape, data: Texts, count: int = 4, tokens: int = 16) -> None:
    """Without chance both sides answer with the very same tokens; with it they draw from different streams."""
    questions = data.questions[:count]
    settings = SamplingSettings(tokens, 0.0, slots=len(questions))
    mine = generate.generate(made.config, made.params(dtype()), None, [Request(q) for q in questions], settings, eos=(EOS,), dtype=dtype())
    ids, mask = peers.padded(questions, left=True)
    with peers.torch.inference_mode():
        out = (
            peers.model(made, dtype())
            .eval()
            .generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, eos_token_id=EOS, pad_token_id=0)
        )
    theirs = [[t for t in row.tolist() if t not in (0, EOS)] for row in out[:, ids.shape[1] :]]
    equal = sum(row[0].tokens == other for row, other in zip(mine, theirs, strict=True))
    agree("greedy answers that are equal token for token", equal, len(questions), 0.0 if dtype() == "float32" else 0.5)


def samples(size: Size, n: int) -> dict[str, Any]:
    """n samples a prompt, in useful tokens."""
    made = shape(size.model)
    data = texts(size.answers // n, made.config.vocab_size)
    mine, batch = Ours(made, data, n, size.slots), best(size.batches, lambda b: sampled(made, data, n, max(1, b // n)))
    row = race(mine, sampled(made, data, n, max(1, batch // n)), "tokens", size.repeats, lambda: agree_greedy(made, data)).row()
    agree("useful tokens", row["ours"] * _median(row), row["peer"] * float(np.median(row["peer_seconds"])), 0.02)
    full = row["ours"] * _median(row) / mine.slots / mine.steps
    return row | {
        "peer_batch": batch,
        "slots": mine.slots,
        "filled": full,
        "roof": bound(phases(made, data, n, mine.slots, mine.steps), _median(row)),
    }


def _median(row: dict[str, Any]) -> float:
    return float(np.median(row["ours_seconds"]))


def bound(phases: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    """The roof of work in phases, for `measure.share`."""
    return {"kind": "the bound", "phases": phases, "seconds": seconds}


def phases(made: Shape, data: Texts, n: int, rows: int, steps: float, answer: float | None = None) -> list[dict[str, float]]:
    """What n answers a question need at least: the questions' products, and the steps.

    A step of `rows` rows multiplies a token of each with all weights, and reads these once, each question's keys and values once for its n
    answers, and of each answer, `answer` tokens long (the data's mean), those of half.
    """
    config, width = made.config, np.dtype(dtype()).itemsize
    weights, head = flops.layers(config), config.hidden_size * config.vocab_size
    question, given = (float(np.mean(list(map(len, part)))) for part in (data.questions, data.answers))
    held = rows * (question / n + (given if answer is None else answer) / 2)
    cached = held * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    read = {"bytes": steps * (weights + head + cached) * width, dtype(): float(flops.FORWARD * steps * rows * (weights + head))}
    return [{dtype(): flops.FORWARD * weights * question * len(data.questions)}, read]


def beam(size: Size) -> dict[str, Any]:
    """Beam search of width 4 with the length rule of transformers, which has to find the very same tokens."""
    made, count = shape(size.model), size.searched
    data = texts(count, made.config.vocab_size)
    settings, params, found = BeamSettings(BEAM_WINDOW, BEAMS, "generated", prompts=size.slots // 2), made.params(dtype()), {}
    model = peers.model(made, dtype()).eval()
    order = sorted(range(count), key=lambda i: len(data.questions[i]))

    def ours() -> float:
        requests = [Request(ids) for ids in data.questions]
        out = generate.generate(made.config, params, None, requests, settings, eos=(EOS,), dtype=dtype())
        found["ours"] = [row[0].tokens for row in out]
        return float(sum(map(len, found["ours"])))

    def theirs(batch: int) -> float:
        rows: dict[int, list[int]] = {}
        for begin in range(0, count, batch):
            taken = order[begin : begin + batch]
            ids, mask = peers.padded([data.questions[i] for i in taken], left=True)
            with peers.torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=mask,
                    num_beams=BEAMS,
                    do_sample=False,
                    max_new_tokens=BEAM_WINDOW,
                    eos_token_id=EOS,
                    pad_token_id=0,
                )
            rows |= {i: [t for t in row.tolist() if t not in (0, EOS)] for i, row in zip(taken, out[:, ids.shape[1] :], strict=True)}
        found["peer"] = [rows[i] for i in range(count)]
        return float(sum(map(len, found["peer"])))

    batch = best([b for b in size.batches if b <= count * BEAMS], lambda b: partial(theirs, max(1, b // BEAMS)))

    def same() -> None:
        equal = sum(a == b for a, b in zip(found["ours"], found["peer"], strict=True))
        agree("answers that are equal token for token", equal, count, 0.0 if dtype() == "float32" else 0.5)

    row = race(ours, partial(theirs, max(1, batch // BEAMS)), "tokens", size.repeats, same).row()
    steps = sum(map(len, found["ours"])) / settings.prompts  # at least, if no slot ever waits
    needed = phases(made, data, BEAMS, settings.prompts * BEAMS, steps, BEAM_WINDOW)
    return row | {"peer_batch": batch, "roof": bound(needed, _median(row))}


def filled(size: Size) -> dict[str, Any]:
    """Useful tokens over slots times steps on half of GSM8K: what freed slots and the queue's end lose. The model hardly counts."""
    made = shape("tiny")
    data = texts(size.queue, made.config.vocab_size)
    mine = Ours(made, data, 1, 128)
    useful = mine()
    lengths = np.array([len(a) for a in data.answers])
    order = np.argsort([len(q) for q in data.questions], kind="stable")
    blocks = [lengths[order[i : i + 128]] for i in range(0, len(order), 128)]
    static = float(lengths.sum() / sum(128 * block.max() for block in blocks))
    return {"ratio": useful / mine.slots / mine.steps, "unit": "of slots x steps", "static": static, "prompts": size.queue}


sample_one = partial(samples, n=1)
sample_six = partial(samples, n=6)
