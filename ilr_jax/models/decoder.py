"""The one decoder of all families: tokens to hidden states, with or without a cache, and hidden states to logits.

Parameters travel as a plain nested dict (`init`, `abstract`); `bind` puts them into the NNX module inside a jitted function, at trace time
only. Layers are stacked on a leading axis: training, scoring and prefill scan over many, decoding never does (see `cache`).
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ilr_jax.models.attention import Implementation, attend, visible
from ilr_jax.models.cache import Cache, KeyValues, Part, write
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.layers import INIT_STD, Layer, RMSNorm, rope_angles
from ilr_jax.models.products import SAVED
from ilr_jax.sharding import Layout, constrain
from ilr_jax.types import Rows

Remat = Literal["none", "dots", "full"]
# At most so many layers on one device: a bfloat16 step of six took 15 % less time so on a CPU. Compiling grows with depth, and where
# weights are gathered, a scan holds one layer's at a time.
UNROLLED = 8
Unstacked = list[tuple[Layer, Any]]
POLICIES = {"dots": jax.checkpoint_policies.save_only_these_names(SAVED), "full": jax.checkpoint_policies.nothing_saveable}


class Table(nnx.Module):
    """A vector per token, [V, D]: the embedding, or the output head of untied models."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        shape = (config.vocab_size, config.hidden_size)
        self.table = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(INIT_STD, dtype))


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm, and a head unless it is tied to the embedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.layout: Layout | None = None
        self.embed = Table(config, rngs=rngs, dtype=dtype)
        split = nnx.split_rngs(splits=config.num_layers)
        self.layers = split(nnx.vmap(lambda r: Layer(config, rngs=r, dtype=dtype)))(rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)
        if not config.tied:
            self.head = Table(config, rngs=rngs, dtype=dtype)

    def _embed(self, tokens: Int[Array, "N T"], dtype: DTypeLike) -> Float[Array, "N T D"]:
        # NaN, not the last row, for an id outside the table: a wrong tokenizer must not train in silence.
        table = constrain(self.layout, self.embed.table[...], "vocab", None)  # else whole rows of the batch would travel
        rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        x = constrain(self.layout, rows.astype(dtype), "batch", None, None)
        return x * jnp.asarray(self.config.hidden_size**0.5, dtype) if self.config.embed_scale else x

    def __call__(
        self,
        rows: Rows,
        adapters: Mapping[str, Any] | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        attention: Implementation = "gemm",
        remat: Remat = "none",
        keep: bool = False,
    ) -> tuple[Float[Array, "N T D"], Part | None]:
        """Normed hidden states of whole rows, computed in `dtype`; with `keep`, also the keys and values of every layer, as a prompt part.

        `adapters` come from `lora.prepare`; N must be a multiple of their K.
        """
        tokens, positions, segments = (jnp.asarray(x) for x in rows)
        angles = rope_angles(self.config, positions)
        graph, stacked = nnx.split(self.layers)
        among = partial(attend, window=self.config.window, implementation=attention, layout=self.layout)

        def body(x, xs):
            layer = nnx.merge(graph, xs[0])
            remember = lambda k, v: ((KeyValues(k, v, positions, segments),), (k, v) if keep else None)
            x, kept = layer(x, angles, positions, segments, remember, xs[1], among)
            return constrain(self.layout, x, "batch", None, None), kept

        short = self.layout is None and self.config.num_layers <= UNROLLED
        body = body if remat == "none" else jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=short)
        x, kept = jax.lax.scan(body, self._embed(tokens, dtype), (stacked, adapters or {}), unroll=short)
        layers = range(self.config.num_layers)
        part = Part(tuple(kept[0][i] for i in layers), tuple(kept[1][i] for i in layers), positions, segments) if keep else None
        return self.norm(x), part

    def step(
        self,
        tokens: Int[Array, "N T"],
        positions: Int[Array, "N T"],
        cache: Cache,
        adapters: Mapping[str, Any] | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        layers: Unstacked | None = None,
        ancestors: Bool[Array, "N S"] | None = None,
    ) -> tuple[Float[Array, "N T D"], Cache]:
        """Hidden states of the next T tokens of each row, and the cache with them written at its cursor (segment 1); T is 1 in a ring.

        `layers` comes from `unstack`, called outside a loop over steps. Where rows share the generated part (T = 1), `ancestors` are the
        entries that a row continues.
        """
        segments, done = jnp.ones_like(positions), cache.generated
        among = partial(attend, window=self.config.window)
        see = lambda keys: visible(positions, segments, keys, self.config.window)
        before = see(done) if ancestors is None else see(done) & ancestors.reshape(done.positions.shape[0], -1, ancestors.shape[1])
        # The barrier keeps these from being computed again inside the fusions of every layer.
        angles, seen, before = jax.lax.optimization_barrier((rope_angles(self.config, positions), see(cache.prompt), before))
        x, new = self._embed(tokens, dtype), []
        for i, (layer, adapter) in enumerate(layers or self.unstack(adapters)):

            def remember(k, v, i=i):
                return (cache.prompt.layer(i, seen), done.layer(i, before), KeyValues(k, v, positions, segments)), (k, v)

            x, kept = layer(x, angles, positions, segments, remember, adapter, among)
            x = constrain(self.layout, x, "batch", None, None)
            new.append(kept)
        x = self.norm(x)
        # Writes are in place only if they come after all reads. A barrier orders nothing on a CPU, so the index waits: no x is below -inf.
        cursor = cache.cursor + (x[0, 0, 0] < -jnp.inf)
        put = lambda old, new, axis: write(old, new, cursor, axis)
        k = tuple(put(old, k, 3) for old, (k, _) in zip(done.k, new, strict=True))
        v = tuple(put(old, v, 2) for old, (_, v) in zip(done.v, new, strict=True))
        part = Part(k, v, put(done.positions, positions, 1), put(done.segments, segments, 1))
        return x, Cache(cache.prompt, part, cache.cursor + tokens.size // done.positions.shape[0])

    def unstack(self, adapters: Mapping[str, Any] | None = None) -> Unstacked:
        """The layers one by one, each with its adapters."""
        graph, stacked = nnx.split(self.layers)
        pick = lambda tree, i: jax.tree.map(lambda w: w[i], tree)
        return [(nnx.merge(graph, pick(stacked, i)), pick(adapters or {}, i)) for i in range(self.config.num_layers)]

    def head_table(self) -> Float[Array, "V D"]:
        """The output head; the embedding where they are tied."""
        return (self.embed if self.config.tied else self.head).table[...]

    def logits(self, hidden: Float[Array, "*N D"]) -> Float[Array, "*N V"]:
        """Float32 logits. For a few positions only: training goes through `train.losses`, which never holds [N, T, V]."""
        table = self.head_table().astype(hidden.dtype)
        contract = (((hidden.ndim - 1,), (1,)), ((), ()))
        return jax.lax.dot_general(hidden, table, contract, preferred_element_type=jnp.float32)


@cache
def _blueprint(config: ModelConfig, dtype: DTypeLike) -> tuple[Any, Any]:
    """The decoder's graph definition and its abstract state."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype)))


def abstract(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, as a nested dict of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(_blueprint(config, jnp.dtype(dtype))[1])


@partial(jax.jit, static_argnames=("config", "dtype"))
def init(config: ModelConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Random parameters: normal with standard deviation 0.02, norms at one."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key), dtype=dtype)))


def bind(config: ModelConfig, params: Mapping[str, Any], layout: Layout | None = None) -> Decoder:
    """The decoder over `params`, its activations split as in `layout`; made at trace time, so a jitted step pays nothing for it."""
    graph, blank = _blueprint(config, jnp.dtype(jnp.float32))
    state = jax.tree.map(lambda x: x, blank)
    nnx.replace_by_pure_dict(state, dict(params))
    model = nnx.merge(graph, state)
    model.layout = layout
    return model
