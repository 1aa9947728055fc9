"""Single operations: drawing a token, memory of the loss, compiling, and K adapters in one pass."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.monitoring import register_event_duration_secs_listener
from transformers.generation.logits_process import TopPLogitsWarper

from benchmarks import peers
from benchmarks.decoding import TEMPERATURE
from benchmarks.measure import Side, agree, near, race, seconds
from benchmarks.rounds import in_turn
from benchmarks.shapes import LORA, Size, shape, texts
from benchmarks.training import BATCH, OPTIMIZER, Epoch, roof, trained
from ilr_jax import batches
from ilr_jax.batches import Epochs, Packing
from ilr_jax.models import flops, lora
from ilr_jax.sample import generate, sampling
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.train import losses, steps
from ilr_jax.train.steps import Setup

ROWS, VOCABULARY, CALLS, TOKENS = 8, 256_000, 10, 2048
COMPILED = "/jax/core/compile/backend_compile_duration"


def draw(size: Size, top_p: float, spread: float) -> dict[str, Any]:
    """A token a row from normal logits over a vocabulary of 256,000; top-p 0.9 leaves 1 to 10 tokens at a spread of 6, hundreds at 3."""
    logits = np.random.default_rng(0).normal(0, spread, (ROWS, VOCABULARY)).astype(np.float32)
    drawn = jax.jit(lambda x, u: sampling.draw(x, u, TEMPERATURE, None, top_p))
    x, u = jnp.asarray(logits), jnp.linspace(0.05, 0.95, ROWS)
    y, torch, warp = peers.torch.tensor(logits, device=peers.DEVICE), peers.torch, TopPLogitsWarper(top_p) if top_p < 1 else None

    def ours() -> float:
        for _ in range(CALLS):
            jax.block_until_ready(drawn(x, u))
        return float(CALLS * ROWS)

    def peer() -> float:
        for _ in range(CALLS):
            scores = y / TEMPERATURE
            scores = scores if warp is None else warp(None, scores)  # type: ignore[reportArgumentType]
            torch.multinomial(torch.softmax(scores, -1), 1)
        peers.wait()
        return float(CALLS * ROWS)

    def same() -> None:
        scores = y / TEMPERATURE
        scores = scores if warp is None else warp(None, scores)  # type: ignore[reportArgumentType]
        _agree_draws(drawn, x, torch.softmax(scores, -1).cpu().numpy())

    row = race(ours, peer, "tokens", size.repeats, same).row()
    return row | {"roof": {"kind": "bytes", "rate": row["ours"] * VOCABULARY * x.dtype.itemsize}}  # every logit read once


def _agree_draws(drawn: Any, x: Any, probabilities: np.ndarray, draws: int = 64) -> None:
    """Every token is drawn by as many of evenly spaced uniforms as it is likely by the peer, up to one at either end."""
    found = np.array([drawn(x, jnp.full(ROWS, (i + 0.5) / draws)) for i in range(draws)])
    shares = [np.bincount(tokens, minlength=VOCABULARY) / draws for tokens in found.T]
    near("shares of drawn tokens, and their probabilities", shares, probabilities, 1.5 / draws)


def _temporaries(run: Any, *shapes: Any) -> int:
    found: Any = jax.jit(run).lower(*shapes).compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def _in_chunks(hidden: Any, table: Any, targets: Any) -> Any:
    """Our loss and its gradient by `hidden`."""
    places = jnp.arange(TOKENS)[None]
    return jax.value_and_grad(lambda h: losses.token_log_probs(h, table, places, targets, 128).sum())(hidden)


def _full_logits(hidden: Any, table: Any, targets: Any) -> Any:
    """The same by the whole matrix of logits."""
    log_probs = lambda h: jax.nn.log_softmax(jnp.einsum("ntd,vd->ntv", h, table))
    return jax.value_and_grad(lambda h: jnp.take_along_axis(log_probs(h), targets[..., None], axis=-1).sum())(hidden)


def loss_memory(size: Size) -> dict[str, Any]:
    """Bytes that the loss and its gradient take at 2,048 tokens and a vocabulary of 256,000, over those by the whole matrix of logits."""
    config = shape(size.wide).config
    hidden = jax.ShapeDtypeStruct((1, TOKENS, config.hidden_size), jnp.float32)
    table = jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    mine, all_logits = (_temporaries(run, hidden, table, targets) for run in (_in_chunks, _full_logits))
    return {"ratio": mine / all_logits, "unit": "of the bytes of full logits", "ours": mine, "peer": all_logits}


def loss_speed(size: Size) -> dict[str, Any]:
    """The time of both: 2,048 tokens, of which full logits take 6 GB."""
    config, keys = shape(size.wide).config, jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (1, TOKENS, config.hidden_size))
    table = jax.random.normal(keys[1], (config.vocab_size, config.hidden_size)) / config.hidden_size**0.5
    targets, found = jax.random.randint(keys[2], (1, TOKENS), 0, config.vocab_size), {}

    def side(name: str, run: Any) -> Side:
        jitted = jax.jit(run)

        def once() -> float:
            found[name] = jax.block_until_ready(jitted(hidden, table, targets))
            return float(TOKENS)

        return once

    def same() -> None:
        agree("loss", float(found["ours"][0]), float(found["peer"][0]), 1e-5)
        near("gradients", found["ours"][1], found["peer"][1], 1e-4)

    row = race(side("ours", _in_chunks), side("peer", _full_logits), "tokens", size.repeats, same).row()
    return row | {"roof": roof(2 * flops.FORWARD * config.hidden_size * config.vocab_size * row["ours"], "float32")}  # two products


def compiles(size: Size) -> dict[str, Any]:
    """Programs that an epoch of SFT on ragged examples compiles for its step; one length of rows serves all, so one."""
    made = shape("small")
    data = texts(size.examples * 2, made.config.vocab_size)
    at = batches.sft([data.samples], Epochs((len(data.samples),), BATCH, 1, 0), 0, "token", 0, Packing(lora.even_length(made.config)))
    setup = Setup(made.config, LORA)
    step, begin, params, counted = steps.sft_step(setup, OPTIMIZER), trained(setup, made.adapters()), made.params("float32"), []
    parts = [jax.device_put(at(i)) for i in range(2 * size.examples // BATCH)]
    register_event_duration_secs_listener(lambda event, duration_secs, **_: counted.append(event) if event == COMPILED else None)
    for part in parts:
        begin, _ = step(begin, params, part)
    return {"ratio": float(len(counted)), "unit": "programs", "steps": len(parts)}


FIRST = """
import json, sys, time
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from benchmarks.training import *
made = shape(sys.argv[2])
batch = batches.completions([(q, a) for q, a in texts(8, made.config.vocab_size).samples], 0, "sequence")
setup, params = Setup(made.config, LORA), made.params("float32")
begin = jax.block_until_ready(trained(setup, made.adapters()))
jax.block_until_ready(params)  # else what makes them still runs beside the tracing where it was loaded and not compiled
took, made = [time.perf_counter()], steps.sft_step(setup, OPTIMIZER)
for part in (lambda: made.trace(begin, params, batch), lambda: made.lower(), lambda: made.compile()):
    made = part()
    took.append(time.perf_counter())
print(json.dumps(np.diff(took).tolist()))
"""


def warm_start(size: Size) -> dict[str, Any]:
    """Seconds until a process has its training step compiled, from a full compilation cache over from an empty one, three times each."""
    starts: tuple[list, list] = ([], [])
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            run = [sys.executable, "-c", FIRST, folder, size.model]
            for parts in starts:
                told = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                parts.append(dict(zip(("tracing", "lowering", "loading or compiling"), json.loads(told), strict=True)))
    cold, warm = ([sum(parts.values()) for parts in side] for side in starts)
    ratios = [a / b for a, b in zip(warm, cold, strict=True)]
    row = {"ratio": median(ratios), "least": min(ratios), "most": max(ratios), "unit": "of a cold start"}
    return row | {"ours": median(warm), "peer": median(cold), "warm": starts[1], "cold": starts[0]}


def adapters(size: Size) -> dict[str, Any]:
    """Training two adapters and sampling from both, at the size of the embedded models: in one pass, over one after the other."""
    made = shape("small")
    data = texts(2 * size.examples, made.config.vocab_size)
    halves = [data.samples[: size.examples], data.samples[size.examples :]]
    params = made.params("float32")

    def sampled(k: int, groups: list[list[batches.Sample]]) -> Side:
        tree, settings = made.adapters(k)["adapters"], SamplingSettings(64, TEMPERATURE, slots=k * size.slots)

        def run() -> float:
            requests = [Request(q, j, i) for j, group in enumerate(groups) for i, (q, _) in enumerate(group)]
            out = generate.generate(made.config, params, tree, requests, settings, eos=(2,), lora=LORA)
            return float(sum(len(c.tokens) for row in out for c in row))

        return run

    both, each = Epoch(made, halves), [Epoch(made, [half]) for half in halves]
    apart = [side for alone, half in zip(each, halves, strict=True) for side in (alone, sampled(1, [half]))]

    def same() -> None:
        for together, alone in zip(both.losses, each, strict=True):
            agree("an adapter's mean loss", together, alone.losses[0], 1e-4)

    ours = [both, sampled(2, halves)]
    row = race(in_turn(ours, 1.0), in_turn(apart, 1.0), "rounds", size.repeats, same).row()
    for name, sides in {"ours": ours, "peer": [in_turn(apart[::2], 1.0), in_turn(apart[1::2], 1.0)]}.items():
        row |= {f"{name}_{part}_seconds": seconds(side, 3, 0) for part, side in zip(("training", "sampling"), sides, strict=True)}
    weights, head = flops.layers(made.config), made.config.hidden_size * made.config.vocab_size
    drawn = ours[1]()
    work = flops.adapters(made.config, LORA) * both.work + flops.FORWARD * (
        weights * (sum(map(len, data.questions)) + drawn) + head * drawn
    )
    return row | {"roof": roof(work * row["ours"], "float32")}


draw_plain = partial(draw, top_p=1.0, spread=3.0)
draw_nucleus = partial(draw, top_p=0.9, spread=6.0)
draw_wide = partial(draw, top_p=0.9, spread=3.0)
