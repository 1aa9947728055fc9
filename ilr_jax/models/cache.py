"""The key-value cache of decoding: a prompt part that is written once, and a generated part that all rows write at one shared index.

Both keep one pair of arrays per layer: keys [rows, kv_heads, head_dim, length] and values [rows, kv_heads, length, head_dim], as the
batched GEMMs of one query read them in order (keys the other way round took four times as long on a CPU). Keys are stored after RoPE, so
their order does not matter: the generated part may be used as a ring. n neighbouring rows may share a part: they read the prompt once, and
the beams of a prompt, which write side by side, need no reordering.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from ilr_jax.models.config import ModelConfig


class KeyValues(NamedTuple):
    """Keys and values of one layer that queries may attend to; rows of queries are a multiple of G, neighbours share.

    `seen` is which keys each query sees, where that was worked out before; None: by positions and segments.
    """

    k: Float[Array, "G KV H S"]
    v: Float[Array, "G KV S H"]
    positions: Int[Array, "G S"]
    segments: Int[Array, "G S"]
    seen: Bool[Array, "G M S"] | None = None


class Part(NamedTuple):
    """Keys and values of all layers, with the positions and segments that every layer shares (segment 0: nothing is written there)."""

    k: tuple[Float[Array, "G KV H S"], ...]
    v: tuple[Float[Array, "G KV S H"], ...]
    positions: Int[Array, "G S"]
    segments: Int[Array, "G S"]

    def layer(self, i: int, seen: Bool[Array, "G M S"] | None = None) -> KeyValues:
        """What queries of layer i may attend to."""
        return KeyValues(self.k[i], self.v[i], self.positions, self.segments, seen)


class Cache(NamedTuple):
    """What decoding remembers; `cursor` is where the generated part is written next."""

    prompt: Part
    generated: Part
    cursor: Int[Array, ""]


def empty_part(config: ModelConfig, rows: int, length: int, dtype: DTypeLike) -> Part:
    """A part with nothing written in it."""
    arrays = lambda *shape: tuple(jnp.zeros((rows, config.num_kv_heads, *shape), dtype) for _ in range(config.num_layers))
    blank = jnp.zeros((rows, length), jnp.int32)
    return Part(arrays(config.head_dim, length), arrays(length, config.head_dim), blank, blank)


def write(old: Shaped[Array, "G ..."], new: Shaped[Array, "N ..."], cursor: Int[Array, ""], axis: int) -> Shaped[Array, "G ..."]:
    """`old` with `new` at `cursor` along `axis`, rows that share a part side by side: in place inside a jitted loop."""
    groups, shape = old.shape[0], new.shape
    beside = jnp.moveaxis(new.reshape(groups, -1, *shape[1:]), 1, axis).reshape(groups, *shape[1:axis], -1, *shape[axis + 1 :])
    return jax.lax.dynamic_update_slice_in_dim(old, beside.astype(old.dtype), cursor, axis)
