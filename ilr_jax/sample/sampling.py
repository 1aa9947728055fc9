"""Drawing the next token: temperature, then top-k, then top-p (the order of vLLM 0.5), by inverting the distribution function at one
uniform a row.

Nothing here knows of requests or slots. A row's token depends on its logits and its uniform only, never on its neighbours, and no noise of
the size of the vocabulary is made.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ilr_jax.models.platform import platform
from ilr_jax.sample.topk import top_k as likeliest
from ilr_jax.sharding import Layout

WINDOW = 64  # a nucleus is looked for among so many of the likeliest tokens first
TRIANGLE = 1024  # weights at most whose running sum is a product
Rule = tuple[float, int | None, float]  # temperature, top-k, top-p


def check(temperature: float, top_k: int | None, top_p: float) -> None:
    """ValueError unless the three describe a distribution."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature: wanted a number >= 0 (0 takes the likeliest token), got {temperature!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: wanted at least 1, or None to keep all tokens, got {top_k!r}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: wanted a share in (0, 1], 1 to keep all tokens, got {top_p!r}")


def uniforms(keys: Key[Array, " N"], first: Int[Array, " N"], count: int) -> Float[Array, "count N"]:
    """The uniforms in [0, 1) of each row's draws `first`, `first` + 1, ...; they depend on the row's key and the draw's number only."""
    one = lambda key, index: jax.random.uniform(jax.random.fold_in(key, index))
    numbers = first[None, :] + jnp.arange(count)[:, None]
    return jax.vmap(jax.vmap(one), (None, 0))(keys, numbers)


def _running_sum(weights: Float[Array, "N S"]) -> Float[Array, "N S"]:
    """Cumulative sums, of a window as one product with a triangle: a scan is a dozen small operations, but needs no matrix of S x S."""
    if weights.shape[1] > TRIANGLE:
        return jnp.cumsum(weights, axis=1)
    triangle = jnp.triu(jnp.ones((weights.shape[1],) * 2, weights.dtype))
    return jnp.matmul(weights, triangle, precision=jax.lax.Precision.HIGHEST)


def _invert(weights: Float[Array, "N S"], sums: Float[Array, "N S"], mass: Float[Array, "N 1"]) -> Int[Array, "N 1"]:
    """The first entry of positive weight whose cumulative sum exceeds `mass`; rounding never leads past the last such entry."""
    mass = jnp.minimum(mass, jnp.max(sums, axis=1, keepdims=True) * (1 - 1e-6))
    return jnp.argmax((sums > mass) & (weights > 0), axis=1, keepdims=True)


def _two_levels(weights: Float[Array, "N V"], u: Float[Array, "N 1"]) -> Int[Array, " N"]:
    """Draws by blocks of about sqrt(V): first the block from the block sums, then the entry within the block."""
    n, v = weights.shape
    size = 2 ** math.ceil(math.log2(v) / 2)
    blocks = jnp.pad(weights, ((0, 0), (0, -v % size))).reshape(n, -1, size)
    totals = jnp.sum(blocks, axis=2)
    sums = _running_sum(totals)
    mass = u * sums[:, -1:]
    block = _invert(totals, sums, mass)
    before = jnp.take_along_axis(sums - totals, block, axis=1)
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    return (block * size + _invert(inside, _running_sum(inside), mass - before))[:, 0]


def _nucleus(
    scaled: Float[Array, "N V"], size: int, u: Float[Array, "N 1"], total: Float[Array, "N 1"] | None, top_p: float, layout: Layout | None
) -> tuple[Int[Array, " N"], Array]:
    """Draws from the smallest set of likeliest tokens that holds `top_p` of `total` (None: of the window), the crossing token included.

    Looks at the `size` likeliest; the second result says which rows would have needed more.
    """
    values, ids = likeliest(layout, scaled, size, "vocab")
    # The first is the largest, but a slice of what top_k gives would make XLA sort the whole vocabulary (170 times as long on a CPU).
    weights = jnp.exp(values - jnp.max(values, axis=1, keepdims=True))
    sums = _running_sum(weights)
    wanted = top_p * (sums[:, -1:] if total is None else total)
    kept = jnp.where((sums - weights < wanted) | (top_p >= 1), weights, 0.0)
    kept_sums = jnp.where(kept > 0, sums, 0.0)
    choice = _invert(kept, kept_sums, u * jnp.max(kept_sums, axis=1, keepdims=True))
    return jnp.take_along_axis(ids, choice, axis=1)[:, 0], (sums[:, -1] < wanted[:, 0]) & (size < scaled.shape[1])


def _above_threshold(weights: Float[Array, "N V"], u: Float[Array, "N 1"], total: Float[Array, "N 1"], top_p: float) -> Int[Array, " N"]:
    """`_nucleus` of any size without a sort: the least weight in it is found bit by bit, from the mass of all weights that are no less."""
    wanted, value = top_p * total, lambda bits: jax.lax.bitcast_convert_type(bits, jnp.float32)
    mass = lambda which: jnp.sum(jnp.where(which, weights, 0.0), axis=1, keepdims=True)

    def narrow(i: Array, least: Int[Array, "N 1"]) -> Int[Array, "N 1"]:
        higher = least | (1 << (29 - i))
        return jnp.where(mass(weights >= value(higher)) >= wanted, higher, least)

    # Floats from 0 to 1 are ordered as their bits are, of which 30 differ.
    least = value(jax.lax.fori_loop(0, 30, narrow, jnp.zeros(wanted.shape, jnp.int32)))
    above, equal = weights > least, weights == least
    # Of equally likely tokens at the edge as many as are needed, the lower ids first; of those that weigh nothing, none.
    needed = jnp.ceil((wanted - mass(above)) / least)
    too_many = jnp.any(jnp.sum(equal, axis=1, keepdims=True) > needed)
    edge = jax.lax.cond(too_many, lambda: equal & (jnp.cumsum(equal, axis=1) <= needed), lambda: equal)
    return _two_levels(jnp.where(above | edge, weights, 0.0), u)


def draw(
    logits: Float[Array, "N V"],
    uniform: Float[Array, " N"],
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    layout: Layout | None = None,
) -> Int[Array, " N"]:
    """A token a row from float32 logits; exact up to float32 rounding. Temperature 0 takes the likeliest token, the lowest id among equals.

    With top-k, exactly k tokens remain (the lower ids among equals) and top-p is a share of their mass. `layout` is how rows and
    vocabulary are split.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=1)
    scaled, u = logits / temperature if temperature != 1 else logits, uniform[:, None]
    vocabulary = logits.shape[1]
    if top_k is not None and top_k < vocabulary:
        return _nucleus(scaled, top_k, u, None, top_p, layout)[0]
    if top_p >= 1:
        return _two_levels(_weigh(scaled), u)
    total = jnp.sum(_weigh(scaled), axis=1, keepdims=True)
    wide = lambda scaled, u, total: _above_threshold(_weigh(scaled), u, total, top_p)
    if platform() == "gpu":  # where 30 passes over the weights take half as long as finding the 64 likeliest (H100, 256 x 32,000)
        return wide(scaled, u, total)
    tokens, spilled = _nucleus(scaled, min(WINDOW, vocabulary), u, total, top_p, layout)
    if platform() == "cpu" and layout is None:
        wide = partial(_one_by_one, wide, spilled)
    # Weighed again, so that the usual case need not write the weights.
    return jnp.where(spilled, jax.lax.cond(jnp.any(spilled), lambda: wide(scaled, u, total), lambda: tokens), tokens)


def _weigh(scaled: Float[Array, "N V"]) -> Float[Array, "N V"]:
    return jnp.exp(scaled - jnp.max(scaled, axis=1, keepdims=True))


def _one_by_one(of_rows: Callable[..., Int[Array, " M"]], which: Array, *rows: Array) -> Int[Array, " N"]:
    """`of_rows` of each row in `which` by itself, which then stays in a core's cache; 0 for the others."""
    one = lambda row: of_rows(*(x[None] for x in row))[0]
    return jax.lax.map(lambda args: jax.lax.cond(args[0], one, lambda _: 0, args[1:]), (which, *rows))


def log_probs(logits: Float[Array, "N V"], tokens: Int[Array, " N"]) -> Float[Array, " N"]:
    """Log-probabilities of tokens under the model's own distribution (temperature 1, nothing cut off)."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=1)
