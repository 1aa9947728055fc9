"""Low-rank adapters (LoRA, arXiv 2106.09685) with a leading axis K over one frozen base.

An adapter tree holds, per adapted module, `a` [K, L, in, r] and `b` [K, L, r, out]; K adapters train and sample in one pass that
reads the base once, the rows of a batch falling into K equal groups. Rank, alpha and initialisation are PEFT's (0.21):
y = x W + (x A) B * alpha / r.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PRNGKeyArray

from ilr_jax.models.config import ModelConfig
from ilr_jax.models.products import matmul

Adapters = Mapping[str, Mapping[str, Array]]
READ = 100  # rows: two cores read 10 GB/s and multiply 430 GFLOP/s in float32, an H100 3 TB/s and 800 TFLOP/s in bfloat16
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """Rank, alpha and which linear layers are adapted."""

    rank: int = 64
    alpha: float = 128.0
    modules: tuple[str, ...] = ALL_LINEAR

    def __post_init__(self):
        unknown = sorted(set(self.modules) - set(ALL_LINEAR))
        if unknown or not self.modules or self.rank < 1:
            raise ValueError(
                f"LoRA wants rank >= 1 and modules out of {', '.join(ALL_LINEAR)}; got rank {self.rank}, modules {self.modules}"
            )

    @property
    def scale(self) -> float:
        """What (x A) B is multiplied by."""
        return self.alpha / self.rank


def sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every linear layer of a block."""
    d, f, q, kv = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }


def even_length(config: ModelConfig) -> float:
    """Tokens of a row at which attention over all of it takes as many multiplications as the linear layers."""
    return sum(i * o for i, o in sizes(config).values()) / (2 * config.num_heads * config.head_dim)


@partial(jax.jit, static_argnums=(0, 1))
def init(config: ModelConfig, lora: Lora, keys: Key[Array, " K"]) -> dict[str, dict[str, Array]]:
    """Float32 adapters for `keys` [K], one key each: `a` uniform in +-1/sqrt(in), `b` zero, so that they change nothing yet."""

    def one(key: PRNGKeyArray) -> dict[str, dict[str, Array]]:
        tree = {}
        for i, name in enumerate(lora.modules):
            inputs, outputs = sizes(config)[name]
            shape, bound = (config.num_layers, inputs, lora.rank), inputs**-0.5
            a = jax.random.uniform(jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound)
            tree[name] = {"a": a, "b": jnp.zeros((config.num_layers, lora.rank, outputs), jnp.float32)}
        return tree

    return jax.vmap(one)(keys)


def prepare(adapters: Adapters, lora: Lora, dtype: DTypeLike) -> dict[str, dict[str, Array]]:
    """Adapters as the decoder reads them: layers first, in `dtype`, the scale folded into `b`.

    What trains stays float32, so that its gradient is not rounded; it is computed with in the activations' dtype all the same.
    """
    scales = {"a": 1.0, "b": lora.scale}
    return {
        name: {side: jnp.swapaxes(weight * scales[side], 0, 1).astype(dtype) for side, weight in pair.items()}
        for name, pair in adapters.items()
    }


def added(x: Float[Array, "N T D"], adapters: Mapping[str, Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """(x A) B [N, T, F] of one layer for those of `names` that are adapted, row group k through adapter k; `a` [K, D, r], `b` [K, r, F].

    All meet x in one product: thin ones cost more than their share, and so does turning x round for the gradient of each.
    """
    names = [name for name in names if name in adapters]
    if not names:
        return {}
    (n, t, d), k = x.shape, adapters[names[0]]["a"].shape[0]
    low = matmul(x.reshape(k, n // k * t, d), jnp.concatenate([adapters[name]["a"] for name in names], axis=2))
    parts = jnp.split(low, len(names), axis=2)
    return {name: matmul(part, adapters[name]["b"]).reshape(n, t, -1) for name, part in zip(names, parts, strict=True)}


def merge(params: Mapping, adapters: Adapters, lora: Lora, index: int | None = 0) -> dict:
    """Decoder parameters with adapter `index` added to the kernels in float32 and rounded to the kernels' dtype.

    None adds each to kernels of its own, [L, K, in, out], which row group k of a batch goes through.
    """
    layers = dict(params["layers"])
    for name, pair in adapters.items():
        kernel = layers[name]["kernel"]
        a, b = (jnp.swapaxes(pair[side], 0, 1) if index is None else pair[side][index] for side in "ab")
        wide = kernel.astype(jnp.float32)
        layers[name] = {"kernel": ((wide[:, None] if index is None else wide) + jnp.matmul(a, b) * lora.scale).astype(kernel.dtype)}
    return {**params, "layers": layers}


def worth_merging(config: ModelConfig, lora: Lora, k: int, rows: int) -> bool:
    """Whether a decoding step of so many rows takes less with k merged copies of the layers than with k adapters beside one base.

    Every weight is read once, as long as multiplying it with `READ` rows takes, and multiplied with the rows that go through it.
    """
    adapted = [sizes(config)[name] for name in lora.modules]
    base, added = sum(i * o for i, o in adapted), lora.rank * sum(i + o for i, o in adapted)
    return base * (k - 1) * READ < added * (k * READ + rows)
