"""The parts of `benchmarks.card`, one in this process: python -m benchmarks.card.parts PART SIZE FILE TRACES.

A part gives (what, figures) one by one. Training is in `training`, the peer's in `peer`.
"""

import json
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.card import training
from benchmarks.card.training import DTYPE, Card, Row, Rows, attempt, params, peak, seconds
from benchmarks.measure import machine, roofs
from benchmarks.shapes import LORA, MODELS, shape, texts
from ilr_jax import batches
from ilr_jax.main import config_of
from ilr_jax.models import flops
from ilr_jax.models.attention import attend
from ilr_jax.models.cache import KeyValues
from ilr_jax.models.platform import described
from ilr_jax.plan import __main__ as plan
from ilr_jax.plan import figures
from ilr_jax.sample import generate, rollout, sampling
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute
from ilr_jax.train import steps
from ilr_jax.train.steps import Setup
from ilr_jax.types import BRANCH

EOS = 2
PLANNED = ("evaluator", "SFT", "test, beam", "DPO's samples", "DPO")  # of the plan's programs
SIZES = {
    "card": Card("mistral-7b", "gemma-2b", 8, 1024, 32, 256, 1000, 64, 256, (512, 1024, 2048), 8192, 2**30, PLANNED),
    "tiny": Card("small", "tiny", 4, 64, 8, 8, 6, 4, 16, (64, 128), 512, 2**22, PLANNED),
}


def reached(card: Card) -> Rows:
    """What the card can do: products of matrices, reading."""
    yield "roofs", roofs(card.square, card.words)


def numerics(card: Card) -> Rows:
    """A small model's loss and gradient here, against float32 on the same machine's CPU."""
    made = shape("small")
    batch = batches.completions(texts(8, made.config.vocab_size).samples, 0, "sequence")
    keys = iter(jax.random.split(jax.random.key(3), 64))
    tree = jax.tree.map(lambda x: x + 0.01 * jax.random.normal(next(keys), x.shape), made.adapters())
    flat = lambda tree: np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
    weights = made.params("float32")  # made once: devices round random numbers differently

    def of(device: Any, dtype: str, attention: Any, precision: str | None) -> tuple[float, np.ndarray]:
        with jax.default_device(device), jax.default_matmul_precision(precision):
            setup = Setup(made.config, LORA, dtype, attention=attention)
            frozen = jax.tree.map(lambda x: jax.device_put(x, device).astype(dtype), weights)
            loss = lambda tree: -steps.sequence_log_probs(setup)(tree, frozen, batch).mean()
            value, slopes = jax.jit(jax.value_and_grad(loss))(jax.device_put(tree, device))
            return float(value), flat(slopes)

    with described("cpu"):
        value, slopes = of(jax.devices("cpu")[0], "float32", "gemm", None)
    jax.clear_caches()  # what was traced for the CPU
    ways = [*(("bfloat16", how, None) for how in ("cudnn", "gemm", "xla")), ("float32", "gemm", None), ("float32", "gemm", "highest")]
    for dtype, how, precision in ways:

        def one(dtype: str = dtype, how: str = how, precision: str | None = precision) -> Row:
            there, turned = of(jax.devices()[0], dtype, how, precision)
            error = np.linalg.norm(turned - slopes) / np.linalg.norm(slopes)
            return {"loss": there, "loss_on_cpu": value, "loss_error": abs(there / value - 1), "gradient_error": float(error)}

        yield f"{dtype}, {how}, products {precision or 'as they are'}", attempt(one)


def attention(card: Card) -> Rows:
    """The ways to attend, forward and backward of one layer, packed rows of the same number of tokens in all, two branches in each row.

    `error` is the distance of the gradients from those of `gemm`. Another first document has to leave the others' results bit-equal.
    """
    for name in (card.strong, card.weak):
        config = shape(name).config
        for length in card.lengths:
            rows = max(1, card.rows * card.length // length)
            drawn = lambda key, heads, rows=rows, length=length, c=config: jax.random.normal(
                jax.random.key(key), (rows, length, heads, c.head_dim), DTYPE
            )
            q, k, v = drawn(0, config.num_heads), drawn(1, config.num_kv_heads), drawn(2, config.num_kv_heads)
            places = jnp.broadcast_to(jnp.arange(length), (rows, length))
            positions, segments = places % (length // 4), 1 + places // (length // 4)
            half = length // 8  # the last documents of a row are branches of the one before them, which they go on from
            last = places >= length - length // 4
            segments = jnp.where(last, 3 + BRANCH * (1 + (places >= length - half)), segments)
            positions = jnp.where(last, length // 4 + places % half, positions)
            exact: list[np.ndarray] = []
            for how in ("gemm", "xla", "cudnn"):

                def one(how: Any, q: Any, k: Any, v: Any, positions: Any, segments: Any, exact: list[np.ndarray]) -> Row:
                    def out(q: Any, k: Any, v: Any) -> Any:
                        part = KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), positions, segments)
                        return attend(q, positions, segments, (part,), None, how)

                    loss = lambda *given: (out(*given).astype(jnp.float32) ** 2).sum()
                    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
                    stats: Any = step.memory_analysis()
                    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in step(q, k, v)])
                    exact.append(flat)
                    error = float(np.linalg.norm(flat - exact[0]) / np.linalg.norm(exact[0]))
                    first = segments == 1
                    other, forward = (jnp.where(first[..., None, None], 2 * x, x) for x in (q, k, v)), jax.jit(out)
                    if not (forward(q, k, v) == forward(*other))[~first].all():
                        raise SystemExit(f"{how}: what the first document says changes what others attend to")
                    return {"seconds": seconds(lambda: step(q, k, v)), "temporaries": stats.temp_size_in_bytes, "error": error}

                yield f"{name}, {rows} x {length}, {how}", attempt(partial(one, how, q, k, v, positions, segments, exact))


def samples(card: Card) -> Rows:
    """A decoding step with all slots busy, the draws in it, and six samples a prompt, as long as answers of GSM8K."""
    from benchmarks.decoding import Ours  # which brings PyTorch along

    made = shape(card.strong)
    compute, how = Compute(made.config, DTYPE), SamplingSettings(card.window, 0.7, n=6, slots=card.slots, chunk=min(32, card.window))
    prompt = min(128, made.config.context - card.window)
    blank = rollout.blank(compute, card.slots, prompt, card.window)
    every = lambda n: jnp.full(card.slots, n, jnp.int32)
    busy, weights, wanted = blank._replace(left=every(card.window), starts=every(prompt)), (params(made), None), np.array([2**30], np.int32)
    start = time.perf_counter()
    compiled = rollout.advance.lower(compute, how.rule, (EOS,), how.chunk, weights, busy, wanted).compile()
    row: Row = {"compile_seconds": time.perf_counter() - start, "slots": card.slots, "prompt": prompt, "window": card.window}
    row |= training.needs(compiled)
    held = [busy]

    def chunk() -> Any:
        held[0] = compiled(weights, held[0]._replace(left=every(card.window), drawn=every(0)), wanted)[0]
        return held[0].left

    taken = float(np.median(seconds(chunk))) / how.chunk
    training.keep("advance", compiled, chunk)
    config, width = made.config, jnp.dtype(DTYPE).itemsize
    read = (flops.layers(config) + config.hidden_size * config.vocab_size) * width
    cache = card.slots * (prompt + card.window) * 2 * config.num_layers * config.num_kv_heads * config.head_dim * width
    yield "step", row | {"seconds": taken, "weights": read, "cache": cache, "bytes_per_second": (read + cache) / taken, "peak": peak()}
    logits, u = jax.random.normal(jax.random.key(0), (card.slots, config.vocab_size)), jnp.linspace(0.05, 0.95, card.slots)
    for top_p in (1.0, 0.9):
        draw = jax.jit(lambda x, u, p=top_p: (token := sampling.draw(x, u, 0.7, None, p), sampling.log_probs(x, token)))
        yield f"draw, top-p {top_p}", {"seconds": seconds(lambda draw=draw: draw(logits, u))}
    held.clear()
    del blank, busy
    answering = lambda count: Ours(made, texts(count, config.vocab_size), 6, card.slots, params=params(made))
    answering(card.prompts // 4)()  # compiles
    mine = answering(card.prompts)
    start = time.perf_counter()
    useful = mine()
    took = time.perf_counter() - start
    row = {"prompts": card.prompts, "samples": 6, "useful": useful, "seconds": took, "tokens_per_second": useful / took}
    yield "six samples", row | {"steps": mine.steps, "filled": useful / mine.steps / mine.slots}


def beam(card: Card) -> Rows:
    """Beam search of width 4, `window` tokens in and out."""
    made, rng = shape(card.strong), np.random.default_rng(0)
    requests = [Request(rng.integers(4, made.config.vocab_size, card.window).tolist()) for _ in range(card.beams)]
    settings = BeamSettings(card.window, 4, "generated", prompts=card.beams // 2)

    def run() -> int:
        found = generate.generate(made.config, params(made), None, requests, settings, eos=(EOS,), dtype=DTYPE)
        return sum(len(row[0].tokens) for row in found)

    run()
    start = time.perf_counter()
    tokens = run()
    took = time.perf_counter() - start
    yield "beam", {"requests": card.beams, "tokens": tokens, "seconds": took, "requests_per_second": card.beams / took, "peak": peak()}


def planned(card: Card) -> Rows:
    """What `ilr_jax.plan` says of programs of GSM8K's experiment on this device, and what they take when they run on zeros.

    The device remembers only the most that was ever taken, so they run from the smallest to the largest.
    """
    with TemporaryDirectory() as folder:
        flags = ["--config=configs/gsm8k.py", "--workdir=plan", "--config.compute.remat=dots", "--config.method=sft,ilr,dpo"]
        for role, name in (("weak", card.weak), ("evaluator", card.weak), ("strong", card.strong)):
            (Path(folder) / name).mkdir(exist_ok=True)
            (Path(folder) / name / "config.json").write_text(json.dumps(MODELS[name]))
            flags.append(f"--config.{role}.model={folder}/{name}")
        where = f"{jax.default_backend()}:1"
        made = plan.asked(config_of(flags)[0], *plan.topology(where), plan.parser().parse_args([f"--topology={where}"]))
    found = []
    for program in made.programs:
        if program.stage in card.planned:
            start = time.perf_counter()
            compiled = program.lower().compile()
            row = figures.of(program, compiled, made, time.perf_counter() - start)
            found.append((row["memory"] - program.beside, program, compiled, row))
    for size, program, compiled, row in sorted(found, key=lambda each: each[0]):
        yield program.stage, row | _ran(size, program, compiled)


def _ran(size: int, program: Any, compiled: Any) -> Row:
    """The peak of one run, and how far it is from the planned `size`; of training, what steps take."""
    before = peak() or 0
    arrays = lambda tree: all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree))  # else it is static, and compiled in
    blank = lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
    given = [jax.tree.map(blank, argument) for argument in program.given() if arrays(argument)]
    held = [given.pop(0)] if program.trains else []

    def run() -> Any:
        out = compiled(*held, *given)
        held[:] = [out[0]] if program.trains else []
        return out

    taken = seconds(run) if program.trains else None
    if taken is None:
        jax.block_until_ready(run())
    return {"seconds": taken} | ({"peak": after, "off_plan": after / size - 1} if (after := peak() or 0) > before else {})


def of_peer(kind: str, name: str, card: Card) -> Rows:
    """Steps of PyTorch, transformers and PEFT, given the very same weights."""
    from benchmarks.card import peer  # which brings PyTorch along

    yield from {"sft": peer.sft, "dpo": peer.dpo}[kind](shape(name), card)


RUN = {
    "roofs": reached,
    "evaluator": training.evaluation,
    "numerics": numerics,
    "sft": training.sft,
    "dpo": training.dpo,
    "plan": planned,
    "attention": attention,
    "gemma": training.gemma,
    "samples": samples,
    "beam": beam,
    "peer": lambda card: of_peer("sft", card.strong, card),
    "peer-gemma": lambda card: of_peer("sft", card.weak, card),
    "peer-dpo": lambda card: of_peer("dpo", card.strong, card),
}


def main(part: str, size: str, path: str, traces: str) -> None:
    """Measure the part, and add each figure to the file."""
    training.TRACES = Path(traces) if traces else None
    out = Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    for what, row in RUN[part](SIZES[size]):
        kept = json.loads(out.read_text()) if out.is_file() else {"machine": machine(), "parts": {}}
        if kept["machine"]["device"] != machine()["device"]:
            raise SystemExit(f"{out} holds figures of {kept['machine']['device']}; wanted another --json for {machine()['device']}")
        kept["parts"].setdefault(part, {})[what] = row | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        out.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{part}, {what}: {row}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
