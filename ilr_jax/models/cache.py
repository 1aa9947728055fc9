"""The key-value cache of decoding: a prompt part that is written once, and a generated part that all rows write at one shared index.

Both keep one pair of arrays per layer, laid out [rows, kv_heads, length, head_dim] (batched GEMM reads it in order). Keys are stored after
RoPE, so their order does not matter: the generated part may be used as a ring. A prompt may be shared by n neighbouring rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ilr_jax.models.config import ModelConfig


class KeyValues(NamedTuple):
    """Keys and values of one layer that queries may attend to; rows of queries are a multiple of G, neighbours share."""

    k: Float[Array, "G KV S H"]
    v: Float[Array, "G KV S H"]
    positions: Int[Array, "G S"]
    segments: Int[Array, "G S"]


class Part(NamedTuple):
    """Keys and values of all layers, with the positions and segments that every layer shares (segment 0: nothing is written there)."""

    k: tuple[Float[Array, "G KV S H"], ...]
    v: tuple[Float[Array, "G KV S H"], ...]
    positions: Int[Array, "G S"]
    segments: Int[Array, "G S"]

    def layer(self, i: int) -> KeyValues:
        return KeyValues(self.k[i], self.v[i], self.positions, self.segments)


class Cache(NamedTuple):
    """What decoding remembers; `cursor` is where the generated part is written next."""

    prompt: Part
    generated: Part
    cursor: Int[Array, ""]


def empty_part(config: ModelConfig, rows: int, length: int, dtype: DTypeLike) -> Part:
    """A part with nothing written in it."""
    shape = (rows, config.num_kv_heads, length, config.head_dim)
    arrays = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
    return Part(arrays(), arrays(), jnp.zeros((rows, length), jnp.int32), jnp.zeros((rows, length), jnp.int32))


def write(old: Array, new: Array, index: Int[Array, ""], axis: int) -> Array:
    """`old` with `new` at `index` along `axis`: in place inside a jitted loop."""
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis)
