"""Single operations: drawing a token, memory of the loss, compiling, and K adapters in one pass."""

import subprocess
import sys
import tempfile
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.monitoring import register_event_duration_secs_listener
from transformers.generation.logits_process import TopPLogitsWarper

from benchmarks import peers
from benchmarks.decoding import TEMPERATURE
from benchmarks.measure import Side, agree, near, race
from benchmarks.rounds import in_turn
from benchmarks.shapes import LORA, Size, shape, texts
from benchmarks.training import BATCH, OPTIMIZER, Epoch, trained
from ilr_jax import batches
from ilr_jax.batches import Epochs, Packing
from ilr_jax.models import lora
from ilr_jax.sample import generate, sampling
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.train import losses, steps
from ilr_jax.train.steps import Setup

ROWS, VOCABULARY, CALLS = 8, 256_000, 10
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


def loss_memory(size: Size) -> dict[str, Any]:
    """Bytes that the loss and its gradient take at 2,048 tokens and a vocabulary of 256,000, over those by the whole matrix of logits."""
    config, tokens = shape(size.wide).config, 2048
    hidden = jax.ShapeDtypeStruct((1, tokens, config.hidden_size), jnp.float32)
    table = jax.ShapeDtypeStruct((config.vocab_size, config.hidden_size), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def ours(hidden: Any, table: Any, targets: Any) -> Any:
        places = jnp.arange(tokens)[None]
        return jax.value_and_grad(lambda h: losses.token_log_probs(h, table, places, targets, 128).sum())(hidden)

    def full(hidden: Any, table: Any, targets: Any) -> Any:
        log_probs = lambda h: jax.nn.log_softmax(jnp.einsum("ntd,vd->ntv", h, table))
        return jax.value_and_grad(lambda h: jnp.take_along_axis(log_probs(h), targets[..., None], axis=-1).sum())(hidden)

    mine, all_logits = _temporaries(ours, hidden, table, targets), _temporaries(full, hidden, table, targets)
    return {"ratio": mine / all_logits, "unit": "of the bytes of full logits", "ours": mine, "peer": all_logits}


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
begin = trained(setup, made.adapters())
start = time.perf_counter()
jax.block_until_ready(steps.sft_step(setup, OPTIMIZER).lower(begin, params, batch).compile())
print(json.dumps(time.perf_counter() - start))
"""


def warm_start(size: Size) -> dict[str, Any]:
    """Seconds until a process has its training step compiled, from a full compilation cache over from an empty one."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        run = [sys.executable, "-c", FIRST, folder, size.model]
        cold, *warm = (float(subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for _ in range(3))
    return {"ratio": min(warm) / cold, "unit": "of a cold start", "ours": min(warm), "peer": cold}


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

    return race(in_turn([both, sampled(2, halves)], 1.0), in_turn(apart, 1.0), "rounds", size.repeats, same).row()


draw_plain = partial(draw, top_p=1.0, spread=3.0)
draw_nucleus = partial(draw, top_p=0.9, spread=6.0)
draw_wide = partial(draw, top_p=0.9, spread=3.0)
