"""Where a step of decoding spends its time: python -m benchmarks.parts [SLOTS ...], into benchmarks/results/parts.json.

Every part by itself, in the shapes of the step, on the model of the sampling benchmarks. What they leave of the whole is norms, RoPE, the
writing of keys and values, and what lies between operations; less than nothing where parts by themselves take longer. Imports no PyTorch.
"""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import machine, roofs, seconds
from benchmarks.shapes import MODELS
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, flops
from ilr_jax.models.attention import attend, visible
from ilr_jax.models.cache import KeyValues, empty_part
from ilr_jax.models.products import matmul
from ilr_jax.sample import rollout, sampling
from ilr_jax.sample.slots import Compute

PROMPT, WINDOW, CHUNK, RULE = 128, 256, 32, (0.7, None, 1.0)


def step(model: str, n: int) -> dict[str, float]:
    """Milliseconds of a step of `n` slots and of its parts, and the least that its products can take."""
    config = configs.from_fields(MODELS[model])
    params = decoder.init(config, jax.random.key(0))
    whole = _milliseconds(decoding(config, params, n, WINDOW)) / CHUNK
    bound, x = decoder.bind(config, params), lambda size: jax.random.normal(jax.random.key(1), (n, size))
    weights = [w for w in jax.tree.leaves(nnx.state(bound.layers)) if w.ndim == 3]
    layers = [[w[i] for w in weights] for i in range(config.num_layers)]
    inputs = {w.shape[1]: x(w.shape[1]) for w in weights}
    products = jax.jit(lambda layers, inputs: [matmul(inputs[w.shape[0]], w) for layer in layers for w in layer])
    found = {"layers' products": _milliseconds(lambda: products(layers, inputs))}
    hidden = x(config.hidden_size)
    head = jax.jit(lambda params, hidden: decoder.bind(config, params).logits(hidden))
    found["product with the vocabulary"] = _milliseconds(lambda: head(params, hidden))
    logits, u = head(params, hidden), jax.random.uniform(jax.random.key(2), (n,))

    def say(logits: Any, u: Any) -> Any:
        token = sampling.draw(logits, u, *RULE)
        return token, sampling.log_probs(logits, token)

    drawn = jax.jit(say)
    found["draw and its probability"] = _milliseconds(lambda: drawn(logits, u))
    found |= {f"attention to {what}": _attention(config, n, length) for what, length in (("prompts", PROMPT), ("the ring", WINDOW))}
    found["the rest"] = whole - sum(found.values())
    return found | {"step": whole, "flops": float(flops.FORWARD * n * (flops.layers(config) + config.hidden_size * config.vocab_size))}


def _milliseconds(run: Callable[[], Any]) -> float:
    return float(np.median(seconds(run, 25, 3))) * 1e3


def decoding(config: Any, params: Any, n: int, window: int) -> Callable[[], Any]:
    """A function that takes CHUNK steps of `n` slots, with PROMPT places of prompt and `window` of answer each."""
    compute = Compute(config)
    held = [rollout.blank(compute, n, PROMPT, window)]

    def once() -> Any:
        held[0] = held[0]._replace(left=jnp.full(n, window, jnp.int32), drawn=jnp.zeros(n, jnp.int32))
        held[0], *seen = rollout.advance(compute, RULE, (2,), CHUNK, (params, None), held[0], np.array([n + 1], np.int32))
        return seen

    return once


def _attention(config: Any, n: int, length: int) -> float:
    """One token's attention in all layers to `length` places of each slot."""
    part = empty_part(config, n, length, jnp.float32)
    q = jax.random.normal(jax.random.key(3), (n, 1, config.num_heads, config.head_dim))
    own = jnp.ones((n, 1), jnp.int32)

    def all_layers(q: Any, part: Any) -> Any:
        seen = visible(own, own, part, config.window)
        for i in range(config.num_layers):
            layer = part.layer(i, seen)
            q = attend(q, own, own, (layer, KeyValues(layer.k[..., :1], layer.v[:, :, :1], own, own)), config.window)
        return q

    run = jax.jit(all_layers)
    return _milliseconds(lambda: run(q, part))


def main(counts: list[int]) -> None:
    """Measure, print, keep."""
    reached = roofs()
    kept: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "roofs": reached, "slots": {}}
    for n in counts:
        parts = step("mistral", n)
        least = parts["flops"] / reached["float32"] * 1e3
        kept["slots"][n] = parts | {"least": least}
        print(f"{n} slots: {parts['step']:.1f} ms a step, its products {least:.1f} at the rate of large ones")
        for name, taken in parts.items():
            if name not in ("step", "flops"):
                print(f"  {name:28} {taken:5.1f} ms  {taken / parts['step']:4.0%}")
    path = Path(__file__).parent / "results" / "parts.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [32, 128])
