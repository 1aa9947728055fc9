"""Samples on the device: one slot a sample, drawn token by token; `engine` fills the slots and takes the results.

The hidden state of a slot's last token waits in the state, so that a token is drawn in one place only, the first one too.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from ilr_jax.models.cache import Cache, empty_part
from ilr_jax.sample import sampling, slots
from ilr_jax.sample.slots import Compute, Fill, Result


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn: `n` a prompt, in `slots` slots over all adapters, `chunk` steps between looks from the host.

    Temperature, then top-k (None: all), then top-p (1: all); temperature 0 takes the likeliest token. Prompts are padded to multiples of
    `bucket`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    n: int = 1
    slots: int = 128
    chunk: int = 32
    bucket: int = 64

    def __post_init__(self):
        sampling.check(self.temperature, self.top_k, self.top_p)
        for name in ("max_new_tokens", "n", "slots", "chunk", "bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")

    @property
    def rule(self) -> sampling.Rule:
        """(temperature, top_k, top_p)."""
        return self.temperature, self.top_k, self.top_p


class Samples(NamedTuple):
    """The state of N samples; `left` is how many tokens may still be drawn, 0 in a free slot."""

    cache: Cache
    hidden: Float[Array, "N D"]
    keys: Key[Array, " N"]
    starts: Int[Array, " N"]
    drawn: Int[Array, " N"]
    left: Int[Array, " N"]
    tokens: Int[Array, "N W"]
    log_prob: Float[Array, " N"]
    ended: Bool[Array, " N"]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def blank(compute: Compute, rows: int, prompt: int, window: int) -> Samples:
    """Free slots with room for prompts of `prompt` tokens and `window` new ones."""
    none, config, dtype = jnp.zeros(rows, jnp.int32), compute.config, compute.dtype
    cache = Cache(empty_part(config, rows, prompt, dtype), empty_part(config, rows, window, dtype), jnp.zeros((), jnp.int32))
    hidden, tokens = jnp.zeros((rows, config.hidden_size), dtype), jnp.zeros((rows, window), jnp.int32)
    keys = jax.random.split(jax.random.key(0), rows)
    return compute.split(Samples(cache, hidden, keys, none, none, none, tokens, none.astype(jnp.float32), none > 0))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def admit(compute: Compute, weights: Any, state: Samples, fill: Fill, key: PRNGKeyArray) -> Samples:
    """New samples in free slots. A sample's draws come from its request's id, its number among that request's samples, and the key."""
    hidden, cache = slots.prefill(compute, weights, state.cache, fill)
    own = jax.vmap(lambda i, copy: jax.random.fold_in(jax.random.fold_in(key, i), copy))(fill.ids, fill.copies)
    at = lambda old, new: old.at[fill.target].set(new, mode="drop")
    new = Samples(
        cache,
        slots.put(state.hidden, hidden, fill),
        at(state.keys, own),
        at(state.starts, fill.lengths),
        at(state.drawn, 0),
        at(state.left, fill.limits),
        state.tokens,
        at(state.log_prob, 0.0),
        at(state.ended, False),
    )
    return compute.split(new)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def advance(
    compute: Compute, rule: sampling.Rule, eos: tuple[int, ...], chunk: int, weights: Any, state: Samples, wanted: Any
) -> tuple[Samples, Bool[Array, " N"], Result]:
    """Up to `chunk` steps, fewer if none is busy or prompts, `wanted` slots a group [K], have room; which are free, and what is in all."""
    params, adapters = weights
    model, steps = compute.bind(params), jnp.arange(state.tokens.shape[1])[None, :]
    layers, noise = slots.layers(model, adapters), sampling.uniforms(state.keys, state.drawn, chunk)

    def step(i: Array, s: Samples) -> Samples:
        """One token more in every busy slot."""
        busy, logits = s.left > 0, model.logits(s.hidden)
        token = sampling.draw(logits, noise[i], *rule, layout=compute.layout)
        ended = busy & jnp.isin(token, jnp.array(eos))
        said = sampling.log_probs(logits, token)
        tokens = jnp.where((steps == s.drawn[:, None]) & busy[:, None], token[:, None], s.tokens)
        hidden, cache = model.step(token[:, None], (s.starts + s.drawn)[:, None], s.cache, adapters, dtype=compute.dtype, layers=layers)
        return Samples(
            cache._replace(cursor=cache.cursor % steps.shape[1]),
            hidden[:, 0],
            s.keys,
            s.starts,
            s.drawn + busy,
            jnp.where(ended, 0, jnp.maximum(s.left - 1, 0)),
            tokens,
            s.log_prob + jnp.where(busy, said, 0.0),
            s.ended | ended,
        )

    go = lambda carry: (carry[0] < chunk) & slots.busy(carry[1].left == 0, wanted)
    _, state = jax.lax.while_loop(go, lambda carry: (carry[0] + 1, step(*carry)), (jnp.zeros((), jnp.int32), state))
    result = Result(state.tokens, state.drawn - state.ended, state.log_prob, state.log_prob, state.ended)
    return compute.split(state), *compute.gather((state.left == 0, result))
