"""Where steps of training and decoding spend their time: python -m benchmarks.parts, into benchmarks/results/parts.json.

Every part by itself, in the shapes of the step, on the models of the benchmarks. What they leave of the whole is norms, RoPE, activations,
the writing of keys and values, and what lies between operations; less than nothing where parts by themselves take longer. No PyTorch.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import machine, roofs, seconds
from benchmarks.shapes import LORA, MODELS
from ilr_jax import batches
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, flops, lora
from ilr_jax.models.attention import attend, visible
from ilr_jax.models.cache import KeyValues, empty_part
from ilr_jax.models.products import matmul
from ilr_jax.sample import rollout, sampling
from ilr_jax.sample.slots import Compute
from ilr_jax.train import losses, state, steps
from ilr_jax.train.optimizer import OptimizerConfig

PROMPT, WINDOW, CHUNK, RULE = 128, 256, 32, (0.7, None, 1.0)
SLOTS = (32, 128)
# What trains, on full rows of so many tokens for each adapter: (model, dtype, adapters).
TRAINED = (("mistral", "float32", 1), ("mistral", "bfloat16", 1), ("small", "float32", 1), ("small", "float32", 2))
ROWS, LENGTH = 8, 256
OPTIMIZER = OptimizerConfig("adamw", 1e-4, warmup=0.0, schedule="constant", clip=1.0)
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # what reads the same activations


def decoding_step(model: str, n: int) -> dict[str, float]:
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


def decoding(config: Any, params: Any, n: int, window: int, k: int = 1) -> Callable[[], Any]:
    """A function that takes CHUNK steps of `n` slots, those of K models, with PROMPT places of prompt and `window` of answer each."""
    compute = Compute(config)
    held = [rollout.blank(compute, n, PROMPT, window)]

    def once() -> Any:
        held[0] = held[0]._replace(left=jnp.full(n, window, jnp.int32), drawn=jnp.zeros(n, jnp.int32))
        held[0], *seen = rollout.advance(compute, RULE, (2,), CHUNK, (params, None), held[0], np.full(k, n + 1, np.int32))
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


def training_step(model: str, dtype: str, k: int) -> dict[str, float]:
    """As `decoding_step`, of SFT of K adapters, each on rows of its own; of each part forward and backward together."""
    config, n = configs.from_fields(MODELS[model]), k * ROWS
    setup, params = steps.Setup(config, LORA, dtype), jax.tree.map(lambda x: x.astype(dtype), decoder.init(config, jax.random.key(0)))
    begin = lambda: {"adapters": lora.init(config, LORA, jax.random.split(jax.random.key(1), k))}
    ids = np.random.default_rng(0).integers(4, config.vocab_size, (n, LENGTH)).tolist()
    batch = jax.device_put(batches.completions([(row[:1], row[1:]) for row in ids], 0, "sequence"))
    step = steps.sft_step(setup, OPTIMIZER)
    taken = _milliseconds(_repeated(lambda held: step(held, params, batch), state.init(begin(), OPTIMIZER, [1000] * k)))
    numbers = np.random.default_rng(1)
    x = lambda *shape: jnp.asarray(numbers.standard_normal(shape, np.float32), dtype)
    inputs = [[x(n, LENGTH, lora.sizes(config)[names[0]][0]) for names in TOGETHER] for _ in range(config.num_layers)]

    def base(layers: Any, inputs: Any) -> Any:
        flat = lambda y: y.reshape(-1, y.shape[-1])
        return [
            matmul(flat(y), layers[name]["kernel"][i])
            for i, layer in enumerate(inputs)
            for y, names in zip(layer, TOGETHER, strict=True)
            for name in names
        ]

    def adapted(_: Any, adapters: Any, inputs: Any) -> Any:
        tree = lora.prepare(adapters, LORA, jnp.float32)
        pick = lambda i: jax.tree.map(lambda w: w[i], tree)
        return [lora.added(y, pick(i), names) for i, layer in enumerate(inputs) for y, names in zip(layer, TOGETHER, strict=True)]

    def among(where: Any, q: Any, k: Any, v: Any) -> Any:
        positions, segments = where
        keys = KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), positions, segments)
        return attend(q, positions, segments, (keys,), config.window)

    def likely(table_and_targets: Any, hidden: Any) -> Any:
        return losses.token_log_probs(hidden, *table_and_targets)

    heads = [x(n, LENGTH, count, config.head_dim) for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    update = jax.jit(partial(steps.update, OPTIMIZER), donate_argnums=0)
    grads, one = jax.tree.map(jnp.ones_like, begin()), jnp.ones(k)
    found = {
        "products with the base": _forward_and_backward(base, params["layers"], inputs),
        "adapters": _forward_and_backward(adapted, None, begin()["adapters"], inputs),
        "attention": _forward_and_backward(among, tuple(batch.rows[1:]), *heads) * config.num_layers,
        "product with the vocabulary and loss": _forward_and_backward(
            likely, (params["head"]["table"], batch.places, batch.targets), x(n, LENGTH, config.hidden_size)
        ),
        "optimiser": _milliseconds(_repeated(lambda held: update(held, grads, one, one > 0), state.init(begin(), OPTIMIZER, [1000] * k))),
    }
    found["the rest"] = taken - sum(found.values())
    return found | {"step": taken, "flops": float(flops.adapters(config, LORA) * n * LENGTH)}


def _repeated(step: Callable[[Any], tuple[Any, Any]], begin: Any) -> Callable[[], Any]:
    """Steps one after the other, each from the state that the one before left."""
    held = [begin]

    def once() -> Any:
        held[0], seen = step(held[0])
        return held[0], seen

    return once


def _forward_and_backward(run: Callable[..., Any], fixed: Any, *inputs: Any) -> float:
    """Milliseconds of a computation and of its gradient by all inputs but the `fixed` ones."""

    def both(fixed: Any, *inputs: Any) -> Any:
        out, back = jax.vjp(partial(run, fixed), *inputs)
        return out, back(out)

    jitted = jax.jit(both)
    return _milliseconds(lambda: jitted(fixed, *inputs))


def two_adapters(k: int) -> dict[str, float]:
    """A step of decoding with K adapters of the small model, each merged into a copy of the layers and with slots of its own."""
    config = configs.from_fields(MODELS["small"])
    params, n = decoder.init(config, jax.random.key(0)), k * SLOTS[0]
    merged = lora.merge(params, lora.init(config, LORA, jax.random.split(jax.random.key(1), k)), LORA, None if k > 1 else 0)
    taken = _milliseconds(decoding(config, merged, n, WINDOW, k)) / CHUNK
    return {"step": taken, "flops": float(flops.FORWARD * n * (flops.layers(config) + config.hidden_size * config.vocab_size))}


def told(what: str, parts: dict[str, float], rate: float) -> dict[str, float]:
    """The parts with the least that products take, printed."""
    least = parts["flops"] / rate * 1e3
    print(f"{what}: {parts['step']:.1f} ms a step, its products {least:.1f} at the rate of large ones", flush=True)
    for name, taken in parts.items():
        if name not in ("step", "flops"):
            print(f"  {name:36} {taken:6.1f} ms  {taken / parts['step']:4.0%}", flush=True)
    return parts | {"least": least}


def main() -> None:
    """Measure, print, keep each as soon as it is there."""
    reached = roofs()
    kept: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "roofs": reached, "steps": {}}
    runs: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {}
    for n in SLOTS:
        runs[f"decoding, mistral, {n} slots"] = "float32", partial(decoding_step, "mistral", n)
    for k in (1, 2):
        runs[f"decoding, small, {k} x {SLOTS[0]} slots"] = "float32", partial(two_adapters, k)
    for model, dtype, k in TRAINED:
        runs[f"training, {model}, {dtype}, {k} x {ROWS} rows"] = dtype, partial(training_step, model, dtype, k)
    for what, (dtype, run) in runs.items():
        kept["steps"][what] = told(what, run(), reached[dtype])
        (Path(__file__).parent / "results" / "parts.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
