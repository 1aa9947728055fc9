"""Attention over one or several parts of keys, behind one function with a choice of implementation.

Not here: projections and RoPE (`layers`), where keys are kept (`cache`). Who sees whom is data: a query at (position p, segment s) sees
the keys of segment s, and of the one that s branches from, at positions p - window < q <= p.
"""

from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ilr_jax.models import splash
from ilr_jax.models.cache import KeyValues, Part
from ilr_jax.models.products import product
from ilr_jax.sharding import Layout
from ilr_jax.types import BRANCH

Implementation = Literal["gemm", "xla", "cudnn", "splash"]
# Four blocks take a quarter less time than one for rows of 480 on a CPU, more blocks no less; short rows stay whole.
BLOCKS, MIN_BLOCK = 4, 64


def visible(positions: Int[Array, "N T"], segments: Int[Array, "N T"], keys: KeyValues | Part, window: int | None) -> Bool[Array, "G R S"]:
    """Which keys each query sees; the R = N * T / G queries of the rows that share keys lie side by side."""
    rows = (keys.positions.shape[0], -1, 1)
    age, own, theirs = positions.reshape(rows) - keys.positions[:, None, :], segments.reshape(rows), keys.segments[:, None, :]
    seen = ((own == theirs) | (own % BRANCH == theirs)) & (age >= 0)
    return seen if window is None else seen & (age < window)


def _scores(q: Float[Array, "N T Q H"], seen: Bool[Array, "G R S"], keys: KeyValues) -> Float[Array, "G KV R M S"]:
    """Masked float32 scores: the R rows and places that share keys, times the M query heads of a KV head, make one GEMM."""
    (g, r, s), kv = seen.shape, keys.v.shape[1]
    # One dimension of r and m before the product: with two, the gradient of k transposes the scores element by element.
    rows = q.reshape(g, r, kv, -1, q.shape[-1]).swapaxes(1, 2).reshape(g, kv, -1, q.shape[-1])
    scores = product(rows, keys.k) * q.shape[-1] ** -0.5
    return jnp.where(seen[:, None, :, None, :], scores.reshape(g, kv, r, -1, s), jnp.finfo(jnp.float32).min)


def _gemm(q: Array, positions: Array, segments: Array, parts: tuple[KeyValues, ...], window: int | None) -> Float[Array, "N T Q H"]:
    """Each part by itself, as the softmax allows: sums of exp(score - top) times value, over the sum of exp(score - top)."""
    seen = [visible(positions, segments, keys, window) if keys.seen is None else keys.seen for keys in parts]
    scores = [_scores(q, mask, keys) for mask, keys in zip(seen, parts, strict=True)]
    by_query = lambda x: x.swapaxes(1, 2).reshape(q.shape[:3] + x.shape[4:])
    by_part = lambda x, like: x.reshape(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).swapaxes(1, 2)
    top = jax.lax.stop_gradient(reduce(jnp.maximum, [by_query(s.max(axis=-1)) for s in scores]))
    weights = [jnp.exp(s - by_part(top, s)[..., None]) for s in scores]
    mix = lambda w, v: product(w.astype(q.dtype).reshape(*w.shape[:2], -1, w.shape[-1]), v).reshape(*w.shape[:-1], -1)
    mixed = reduce(jnp.add, [by_query(mix(w, keys.v)) for w, keys in zip(weights, parts, strict=True)])
    total = reduce(jnp.add, [by_query(w.sum(axis=-1)) for w in weights])
    return (mixed / total[..., None]).astype(q.dtype)


def _triangle(q: Array, positions: Array, segments: Array, keys: KeyValues, window: int | None) -> Float[Array, "N T Q H"]:
    """Whole rows, where no place sees a later one: a block of queries is multiplied with the keys up to its own end only."""
    blocks = []
    for start in range(0, q.shape[1], size := max(MIN_BLOCK, -(-q.shape[1] // BLOCKS))):
        mine, past = slice(start, start + size), slice(start + size)
        part = KeyValues(keys.k[..., past], keys.v[:, :, past], keys.positions[:, past], keys.segments[:, past])
        blocks.append(_gemm(q[:, mine], positions[:, mine], segments[:, mine], (part,), window))
    return jnp.concatenate(blocks, axis=1)


def attend(
    q: Float[Array, "N T Q H"],
    positions: Int[Array, "N T"],
    segments: Int[Array, "N T"],
    parts: tuple[KeyValues, ...],
    window: int | None,
    implementation: Implementation = "gemm",
    layout: Layout | None = None,
) -> Float[Array, "N T Q H"]:
    """Softmax attention in float32 of the queries over all parts together.

    One part holds the very rows that the queries are (training, scoring, prefill): `gemm` is batched matrix products, `xla` and `cudnn`
    are those of `jax.nn.dot_product_attention`, `splash` is a kernel for TPUs that has to know the layout and takes no rows with branches.
    Several parts (decoding) are always `gemm`.
    """
    if len(parts) != 1:
        return _gemm(q, positions, segments, parts, window)
    (keys,) = parts
    if implementation == "gemm":
        return _triangle(q, positions, segments, keys, window)
    k, v = keys.k.transpose(0, 3, 1, 2), keys.v.swapaxes(1, 2)
    if implementation == "splash":
        return splash.attend(q, k, v, segments, window, layout)
    mask = jnp.broadcast_to(visible(positions, segments, keys, window)[:, None], (q.shape[0], 1, q.shape[1], keys.v.shape[2]))
    # The mask says more than that no place sees a later one, but this lets cuDNN skip half of the blocks.
    causal = implementation == "cudnn"
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation=implementation)
