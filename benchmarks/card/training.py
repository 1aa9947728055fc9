"""Training steps on the card: what their programs need, what they take, and how much of it is useful work."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.shapes import LORA, Shape, shape, texts
from ilr_jax import batches, evaluator
from ilr_jax.batches import Epochs, Packing, Preference
from ilr_jax.models import flops, lora
from ilr_jax.stages import CHUNK
from ilr_jax.train import state, steps
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.steps import Setup

OPTIMIZER = OptimizerConfig("adamw", 1e-4, warmup=0.0, schedule="constant", clip=1.0)
DTYPE = "bfloat16"
BETA = 0.1  # of DPO
MEMORY = 74e9  # bytes that a program may need, which an 80 GB card has
REFUSED = re.compile("(?i)cudnn|RESOURCE_EXHAUSTED|out of memory|hidden dim|head dim")
TRACES: Path | None = None  # where profiles and compiled programs are kept
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]


@dataclass(frozen=True)
class Card:
    """What is measured with: models by name of `shapes`; `rows` full ones of `length`; `batch` preferences; `slots` for six samples of each
    of `prompts`; `beams` prompts in beam search; `window` new tokens; `lengths` of rows in attention; the roofs' `square` and `words`;
    which programs of a plan are run.
    """

    strong: str
    weak: str
    rows: int
    length: int
    batch: int
    slots: int
    prompts: int
    beams: int
    window: int
    lengths: tuple[int, ...]
    square: int
    words: int
    planned: tuple[str, ...]


def peak() -> int | None:
    """Bytes of the device that this process's arrays and programs had at most so far; None where the device does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def seconds(run: Callable[[], Any]) -> list[float]:
    """Of every repeat, after two to warm up."""
    return measure.seconds(run, warm=2)


def keep(name: str, compiled: Any, run: Callable[[], Any]) -> None:
    """The compiled program's text and a profile of one run, where a folder for them is given."""
    if TRACES is not None:
        TRACES.mkdir(parents=True, exist_ok=True)
        (TRACES / f"{name}.hlo").write_text(compiled.as_text())
        with jax.profiler.trace(str(TRACES / name)):
            jax.block_until_ready(run())


def attempt(make: Callable[[], Row]) -> Row:
    """The row, or why there is none: a way that the card, its memory or cuDNN refuses is a result, too."""
    try:
        return make()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if not REFUSED.search(str(error)):
            raise
        return {"refused": str(error)[:500]}


HELD: dict[str, Any] = {}


def params(made: Shape) -> Any:
    """The model's parameters; one model's at a time."""
    if made.name not in HELD:
        HELD.clear()
        HELD[made.name] = jax.block_until_ready(made.params(DTYPE))
    return HELD[made.name]


def products(text: str) -> dict[str, int]:
    """How many of a compiled GPU program's products read float32, how many narrower numbers, and how many are not understood."""
    found, kinds = {"float32": 0, "narrow": 0, "unknown": 0}, dict(re.findall(r"%([\w.-]+) = (\w+)\[", text))
    for operands in re.findall(r"(?:dot|custom-call)\(([^)]*)\)[^\n]*(?:lhs_contracting_dims|__cublas|__triton_gemm)", text):
        first = re.findall(r"%([\w.-]+)", operands)[:1]
        kind = kinds.get(first[0]) if first else None
        found["unknown" if kind is None else "float32" if kind == "f32" else "narrow"] += 1
    return found


def needs(compiled: Any) -> Row:
    """The memory that a program's compiler plans."""
    stats = compiled.memory_analysis()
    row = {"arguments": stats.argument_size_in_bytes, "temporaries": stats.temp_size_in_bytes}
    return row | {"planned": sum(row.values()) + stats.output_size_in_bytes - stats.alias_size_in_bytes}


def measured(name: str, step: Any, begin: Any, frozen: Any, batch: Any, tokens: float, work: float) -> Row:
    """A step: the memory that its compiler plans and that it takes, its time, its FLOPs per second; no time where it does not fit."""
    start = time.perf_counter()
    compiled = step.lower(begin, frozen, batch).compile()
    row: Row = {"compile_seconds": time.perf_counter() - start, "products": products(compiled.as_text())}
    row |= needs(compiled)
    if row["planned"] > MEMORY:
        return row
    before = peak() or 0
    held, losses, batch = [begin], [], jax.device_put(batch)

    def run() -> Any:
        held[0], metrics = compiled(held[0], frozen, batch)
        losses.append(metrics["loss"])
        return held[0]

    taken = seconds(run)
    row |= {"seconds": taken, "tokens": tokens, "tokens_per_second": tokens / float(np.median(taken))}
    row |= {"flops_per_second": work / float(np.median(taken)), "loss": [float(x[0]) for x in losses]}
    row |= {"peak": after} if (after := peak() or 0) > before else {}  # else an earlier step's, which is all that the device remembers
    keep(name, compiled, run)
    return row


def full_rows(card: Card, config: Any) -> np.ndarray:
    """The ids of rows of one document each, for both sides."""
    return np.random.default_rng(0).integers(4, config.vocab_size, (card.rows, card.length))


def lora_step(card: Card, name: str, **how: Any) -> Row:
    """A LoRA step on full rows, the loss on every token but the first."""
    made, tokens = shape(name), float(card.rows * card.length)
    setup = Setup(made.config, LORA, DTYPE, chunk=CHUNK, **how)
    step, begin = steps.sft_step(setup, OPTIMIZER), state.init(made.adapters(), OPTIMIZER, [1000])
    rows = [(row[:1].tolist(), row[1:].tolist()) for row in full_rows(card, made.config)]
    batch, work = batches.completions(rows, 0, "sequence"), flops.adapters(made.config, LORA) * tokens
    return measured("-".join(map(str, (name, *how.values()))), step, begin, params(made), batch, tokens, work)


def ways(card: Card, name: str, tried: list[tuple[str, str, int]]) -> Rows:
    """LoRA steps, by (attention, remat, microbatches)."""
    for attention, remat, micro in tried:
        how = {"attention": attention, "remat": remat, "microbatches": micro}
        what = f"{card.rows} x {card.length}, {attention}, remat {remat}, microbatches {micro}"
        yield what, attempt(lambda how=how: lora_step(card, name, **how))


def sft(card: Card) -> Rows:
    """Adapters of the strong model."""
    tried = [("cudnn", "dots", 1), ("cudnn", "full", 1), ("cudnn", "none", 4), ("gemm", "dots", 1), ("gemm", "full", 1), ("xla", "full", 1)]
    yield from ways(card, card.strong, tried)


def gemma(card: Card) -> Rows:
    """Adapters of the weak model, with its large vocabulary."""
    yield from ways(card, card.weak, [("gemm", "dots", 1), ("gemm", "none", 4), ("cudnn", "dots", 1)])


def preferences(card: Card, config: Any) -> list[Preference]:
    """Pairs of answers of GSM8K's lengths, with the reference's log-probabilities."""
    data = texts(card.batch, config.vocab_size)
    other = [*data.answers[1:], data.answers[0]]
    return [Preference((q, a), (q, b), -90.0, -90.0) for q, a, b in zip(data.questions, data.answers, other, strict=True)]


def dpo_step(card: Card, name: str, attention: Any) -> Row:
    """A step of packed preferences; a question counts with each of its answers in `tokens`, once in the work."""
    made = shape(name)
    pairs = preferences(card, made.config)
    tokens = float(sum(len(question) + len(answer) for pair in pairs for question, answer in (pair.chosen, pair.rejected)))
    batch = batches.preferences(pairs, Epochs((len(pairs),), len(pairs), 1, 0), 0, 0, Packing(lora.even_length(made.config)))(0)
    work = flops.adapters(made.config, LORA) * float((batch.rows.segments > 0).sum())
    step = steps.dpo_step(Setup(made.config, LORA, DTYPE, attention=attention, remat="dots", chunk=CHUNK), OPTIMIZER, BETA)
    begin = state.init(made.adapters(), OPTIMIZER, [1000])
    row = measured(f"dpo-{attention}", step, begin, params(made), batch, tokens, work)
    return row | {"shape": batch.rows.tokens.shape, "filled": float((batch.rows.segments > 0).mean())}


def dpo(card: Card) -> Rows:
    """Adapters of the strong model, by preferences."""
    for attention in ("cudnn", "gemm"):
        yield f"{card.batch} preferences, {attention}, remat dots", attempt(partial(dpo_step, card, card.strong, attention))


def evaluation(card: Card) -> Rows:
    """A step of all weights of the weak model on 16 comparisons of GSM8K's lengths."""
    made = shape(card.weak)
    data = texts(16, made.config.vocab_size)
    rows = [(q + a[:-1] + b, i % 2) for i, (q, a, b) in enumerate(zip(data.questions, data.answers, reversed(data.answers), strict=True))]
    tokens = float(sum(len(ids) for ids, _ in rows))
    batch = batches.classes(rows, Epochs((len(rows),), len(rows), 1, 0), 0, Packing(lora.even_length(made.config)))(0)
    initial = jax.jit(lambda key: evaluator.initial(made.params("float32"), key))
    for remat in ("full", "dots"):

        def one(remat: Any = remat) -> Row:
            begin = state.init(initial(jax.random.key(0)), OPTIMIZER, [1000])
            step = steps.evaluator_step(Setup(made.config, None, DTYPE, remat=remat), OPTIMIZER)
            row = measured(f"evaluator-{remat}", step, begin, {}, batch, tokens, flops.classifier(made.config) * tokens)
            return row | {"shape": batch.rows.tokens.shape}

        yield f"{len(rows)} comparisons, remat {remat}", attempt(one)
