"""Attention over one or several parts of keys, behind one function with a choice of implementation.

Who sees whom is data: a query at (position p, segment s) sees the keys of segment s at positions p - window < q <= p.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ilr_jax.models.cache import KeyValues

Implementation = Literal["gemm", "xla", "cudnn"]


def visible(positions: Int[Array, "G T"], segments: Int[Array, "G T"], keys: KeyValues, window: int | None) -> Bool[Array, "G T S"]:
    """Which keys each query sees."""
    age = positions[:, :, None] - keys.positions[:, None, :]
    seen = (segments[:, :, None] == keys.segments[:, None, :]) & (age >= 0)
    return seen if window is None else seen & (age < window)


def _logits(
    q: Float[Array, "N T Q H"], positions: Int[Array, "N T"], segments: Int[Array, "N T"], keys: KeyValues, window: int | None
) -> Float[Array, "N KV M S"]:
    """Masked float32 scores. Rows that share keys, their T and the query heads of a KV head make one GEMM (M = T * Q / KV)."""
    n, t, heads, size = q.shape
    g, kv = keys.k.shape[:2]
    seen = visible(positions.reshape(g, -1), segments.reshape(g, -1), keys, window)
    rows = q.reshape(g, n // g * t, kv, heads // kv, size).swapaxes(1, 2).reshape(g, kv, -1, size)
    scores = jnp.einsum("gkmh,gksh->gkms", rows, keys.k, preferred_element_type=jnp.float32) * size**-0.5
    scores = scores.reshape(g, kv, n // g * t, heads // kv, -1)
    scores = jnp.where(seen[:, None, :, None, :], scores, jnp.finfo(jnp.float32).min)
    return scores.reshape(g, kv, n // g, -1, scores.shape[-1]).swapaxes(1, 2).reshape(n, kv, -1, scores.shape[-1])


def _gemm(q: Array, positions: Array, segments: Array, parts: tuple[KeyValues, ...], window: int | None) -> Float[Array, "N T Q H"]:
    n, t, heads, size = q.shape
    scores = jnp.concatenate([_logits(q, positions, segments, keys, window) for keys in parts], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out, start = jnp.zeros((), q.dtype), 0
    for keys in parts:
        g, kv, length = keys.k.shape[:3]
        share = weights[..., start : start + length].reshape(g, n // g, kv, -1, length).swapaxes(1, 2).reshape(g, kv, -1, length)
        mixed = jnp.einsum("gkms,gksh->gkmh", share, keys.v, preferred_element_type=jnp.float32).astype(q.dtype)
        mixed = mixed.reshape(g, kv, n // g, t, heads // kv, size).transpose(0, 2, 3, 1, 4, 5).reshape(n, t, heads, size)
        out, start = mixed + out if start else mixed, start + length
    return out


def attend(
    q: Float[Array, "N T Q H"],
    positions: Int[Array, "N T"],
    segments: Int[Array, "N T"],
    parts: tuple[KeyValues, ...],
    window: int | None,
    implementation: Implementation = "gemm",
) -> Float[Array, "N T Q H"]:
    """Softmax attention in float32 of the queries over all parts together.

    `gemm` is batched matrix products and serves every shape; `xla` and `cudnn` are those of `jax.nn.dot_product_attention` and serve one
    part whose rows are the queries' rows (training, scoring, prefill); decoding over two parts is always `gemm`.
    """
    if implementation == "gemm" or len(parts) != 1 or parts[0].k.shape[0] != q.shape[0]:
        return _gemm(q, positions, segments, parts, window)
    (keys,) = parts
    mask = jnp.broadcast_to(visible(positions, segments, keys, window)[:, None], (q.shape[0], 1, q.shape[1], keys.k.shape[2]))
    return jax.nn.dot_product_attention(q, keys.k.swapaxes(1, 2), keys.v.swapaxes(1, 2), mask=mask, implementation=implementation)
