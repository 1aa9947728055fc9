"""The layers of the decoder: linear with adapter, RMSNorm, RoPE, attention block and gated MLP; one block is one `Layer`.

Not here: the stack of blocks (`decoder`), adapters (`lora`), who sees whom (`attention`). From: the models of `transformers` 5.24.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ilr_jax.models import lora
from ilr_jax.models.cache import KeyValues
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.platform import LANES, TILE, platform
from ilr_jax.models.products import SAVED, matmul

INIT_STD = 0.02
Remember = Callable[[Array, Array], tuple[tuple[KeyValues, ...], Any]]


class Linear(nnx.Module):
    """A bias-free linear layer; the kernel is [inputs, outputs], the transpose of the HF layout, or one such for each of K row groups."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs), dtype) * jnp.asarray(INIT_STD, dtype))

    def __call__(self, x: Float[Array, "N T D"], added: Float[Array, "N T F"] | None = None) -> Float[Array, "N T F"]:
        kernel = self.kernel[...]
        y = matmul(x.reshape(*kernel.shape[:-2], -1, x.shape[-1]), kernel).reshape(*x.shape[:2], -1)
        return checkpoint_name(y if added is None else y + added, SAVED)


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale), computed in float32."""

    def __init__(self, size: int, *, eps: float, offset: float, dtype: DTypeLike):
        self.eps, self.offset = eps, offset
        self.scale = nnx.Param(jnp.full((size,), 1.0 - offset, dtype))

    def __call__(self, x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        wide = x.astype(jnp.float32)
        unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = (self.offset + self.scale[...].astype(jnp.float32)).reshape((1,) * (x.ndim - 1) + (-1,))
        return (unit * scale).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> Float[Array, " half"]:
    """Radians per position of each pair of channels; Llama-3's scaling as in `transformers` 5.24 `_compute_llama3_parameters`."""
    inverse = 1.0 / config.rope_theta ** (jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    if config.rope_scaling is None:
        return inverse
    s = config.rope_scaling
    turns = s.original * inverse / (2 * jnp.pi)
    smooth = jnp.clip((turns - s.low) / (s.high - s.low), 0.0, 1.0)
    return inverse * ((1 - smooth) / s.factor + smooth)


def rope_angles(config: ModelConfig, positions: Int[Array, "N T"]) -> tuple[Float[Array, "N T 1 half"], Float[Array, "N T 1 half"]]:
    """Cosine and sine of every position, float32."""
    angles = positions[:, :, None].astype(jnp.float32) * rope_frequencies(config)[None, None, :]
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def rotate(x: Float[Array, "N T Q H"], angles: tuple[Array, Array]) -> Float[Array, "N T Q H"]:
    """RoPE (arXiv 2104.09864) with the HF pairing: channel i turns with channel i + H/2."""
    cos, sin = angles
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def split_heads(x: Float[Array, "N T D"], size: int) -> Float[Array, "N T Q H"]:
    """Heads of `size` channels as an axis of their own.

    A TPU's memory holds tiles of 8 places and 128 channels, and attention reads a head at a time: turned by whole tiles there, where XLA by
    itself turns single elements, twice. Elsewhere, and of what is no whole tiles, this is a view; on a TPU the barrier keeps XLA from
    copying the kernel at every decoded token, to have the product come out in heads.
    """
    n, t, _ = x.shape
    if not _in_tiles(t, size):
        return (jax.lax.optimization_barrier(x) if platform() == "tpu" else x).reshape(n, t, -1, size)
    return x.reshape(n, t // TILE, TILE, -1, size).transpose(0, 3, 1, 2, 4).reshape(n, -1, t, size).swapaxes(1, 2)


def join_heads(x: Float[Array, "N T Q H"]) -> Float[Array, "N T D"]:
    """What `split_heads` took apart."""
    n, t, heads, size = x.shape
    if not _in_tiles(t, size):
        return x.reshape(n, t, -1)
    return x.swapaxes(1, 2).reshape(n, heads, -1, TILE, size).transpose(0, 2, 3, 1, 4).reshape(n, t, -1)


def _in_tiles(places: int, channels: int) -> bool:
    return platform() == "tpu" and places % TILE == 0 and channels % LANES == 0


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


class Layer(nnx.Module):
    """One pre-norm block: attention, then the gated MLP."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.config = config
        norm = lambda: RMSNorm(config.hidden_size, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)
        self.attention_norm, self.mlp_norm = norm(), norm()
        linear = lambda name: Linear(*lora.sizes(config)[name], rngs=rngs, dtype=dtype)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = map(linear, ("q_proj", "k_proj", "v_proj", "o_proj"))
        self.gate_proj, self.up_proj, self.down_proj = map(linear, ("gate_proj", "up_proj", "down_proj"))

    def __call__(
        self,
        x: Float[Array, "N T D"],
        angles: tuple[Array, Array],
        positions: Int[Array, "N T"],
        segments: Int[Array, "N T"],
        remember: Remember,
        adapters: Mapping[str, Mapping[str, Array]],
        attention: Callable[..., Float[Array, "N T Q H"]],
    ) -> tuple[Float[Array, "N T D"], Any]:
        """The block's output; `remember` turns this layer's new keys and values into what is attended to and what is kept of them."""
        h = self.attention_norm(x)
        by_head = [split_heads(y, self.config.head_dim) for y in self._linear(h, adapters, "q_proj", "k_proj", "v_proj")]
        q, k, v = rotate(by_head[0], angles), rotate(by_head[1], angles), by_head[2]
        parts, kept = remember(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))
        mixed = attention(q, positions, segments, parts)
        x = x + self._linear(join_heads(mixed), adapters, "o_proj")[0]
        gate, up = self._linear(self.mlp_norm(x), adapters, "gate_proj", "up_proj")
        return x + self._linear(ACTIVATIONS[self.config.activation](gate) * up, adapters, "down_proj")[0], kept

    def _linear(self, x: Float[Array, "N T D"], adapters: Mapping[str, Mapping[str, Array]], *names: str) -> list[Array]:
        """The linear layers of these names, each with its adapter."""
        added = lora.added(x, adapters, names)
        return [getattr(self, name)(x, added.get(name)) for name in names]
