"""Slots on the device: the parts of decoding that samples and beams share.

A slot holds one sample, or all the beams of a prompt. Its prompt is prefilled in a batch of others and copied in; its generated keys live
in a ring that every slot writes at one shared cursor, so that a write is one update in place and a freed slot is taken again without moving
anything (JetStream's idea). Which ring entries belong to the present tenant is a matter of masks.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ilr_jax.models import decoder
from ilr_jax.models.attention import Implementation
from ilr_jax.models.cache import Cache, Part
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.decoder import Decoder, Unstacked
from ilr_jax.models.platform import platform
from ilr_jax.sharding import Layout, constrain
from ilr_jax.types import Rows

NEVER = np.iinfo(np.int32).max  # wanted free slots of a group without prompts left


def axes(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of an array of a decoding state."""
    return ("batch", "kv_heads", None, None) if ndim == 4 else ("batch", None, None)[:ndim]


@dataclass(frozen=True)
class Compute:
    """What decoding is compiled for: the model, the dtype of the computation, how prompts are read, and how all is split over devices."""

    config: ModelConfig
    dtype: str = "float32"
    attention: Implementation = "gemm"
    layout: Layout | None = None

    def bind(self, params: Any) -> Decoder:
        """The decoder over `params`."""
        return decoder.bind(self.config, params, self.layout)

    def split(self, tree: Any) -> Any:
        """Inside a jitted function: a state whose arrays are all split by slots, the cache by KV heads too."""
        return jax.tree.map(lambda x: constrain(self.layout, x, *axes(x.ndim)), tree)

    def gather(self, tree: Any) -> Any:
        """Inside a jitted function: whole arrays on every device, which every host can read."""
        return jax.tree.map(lambda x: constrain(self.layout, x, *(None,) * x.ndim), tree)


class Fill(NamedTuple):
    """Prompts to prefill, and the slots that they go to: slot `target[m]` continues row `source[m]`.

    Unused entries aim at a slot past the last. `limits` are how many tokens may be generated; draws come from request `ids` and sample
    `copies`.
    """

    rows: Rows
    source: Int[Any, " M"]
    target: Int[Any, " M"]
    lengths: Int[Any, " M"]
    limits: Int[Any, " M"]
    ids: Int[Any, " M"]
    copies: Int[Any, " M"]


class Result(NamedTuple):
    """What stands in each slot: the first `length` of `tokens` were generated before the end token (`ended`) or the limit."""

    tokens: Int[Any, "N W"]
    length: Int[Any, " N"]
    log_prob: Float[Any, " N"]
    score: Float[Any, " N"]
    ended: Bool[Any, " N"]


def put(old: Array, new: Array, fill: Fill) -> Array:
    """`old` [slots, ...] with rows of `new` in the slots being filled."""
    return old.at[fill.target].set(new[fill.source].astype(old.dtype), mode="drop")


def prefill(compute: Compute, weights: Any, cache: Cache, fill: Fill) -> tuple[Float[Array, "F D"], Cache]:
    """Hidden states at the last token of each prompt, and the cache with the prompts in their slots and the slots' rings empty."""
    params, adapters = weights
    hidden, part = compute.bind(params)(fill.rows, adapters, dtype=compute.dtype, attention=compute.attention, keep=True)
    assert part is not None
    last = jnp.sum(fill.rows.segments, axis=1) - 1
    prompt = jax.tree.map(lambda old, new: put(old, new, fill), cache.prompt, part)
    segments = cache.generated.segments.at[fill.target].set(0, mode="drop")
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return hidden, Cache(prompt, cache.generated._replace(segments=segments), cache.cursor)


def layers(model: Decoder, adapters: Any) -> Unstacked | None:
    """What `Decoder.step` should be given in a loop.

    CPUs and GPUs copy a layer's slice of the stacked weights at each step (a third of a step on an H100), so it is taken before the loop.
    That holds the weights twice, so not where they would take more than half of a GPU. A TPU is left to read slices in the loop: by its
    compiler's estimate a step of a 7B model takes 8 % longer, and 11 GiB less.
    """
    split = model.layout.mesh.size // model.layout.mesh.shape["data"] if model.layout else 1
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model.layers))) / split
    return model.unstack(adapters) if platform() != "tpu" and 2 * held <= room() / 2 else None


def room() -> float:
    """Bytes of a device's memory; infinite where it does not say, as of CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def bytes_here(tree: Any) -> int:
    """What the arrays, or the shapes that stand for them, take of one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def has_room_for(params: Any, copies: int, memory: float) -> bool:
    """Whether merged copies may stand beside the base, which stays for the trainings that follow: if all take half of a device at most."""
    return (1 + copies) * bytes_here(params) <= memory / 2


def worth_filling(free: Int[Any, " K"], wanted: Int[Any, " K"]) -> Bool[Any, ""]:
    """Whether at least half of the adapters' groups that have prompts left have the free slots `wanted` for the next of them.

    A prefill computes rows for every group, so with many adapters one that is asked for by a single group is mostly padding.
    """
    ready = (free >= wanted).sum()
    return (ready > 0) & (2 * ready >= (wanted < NEVER).sum())


def busy(done: Bool[Array, " N"], wanted: Int[Array, " K"]) -> Bool[Array, ""]:
    """Whether to decode on: some slot is at work, and it is not yet worth filling those that are free."""
    free = jnp.sum(done.reshape(wanted.shape[0], -1), axis=1)
    return ~jnp.all(done) & ~worth_filling(free, wanted)


@partial(jax.jit, static_argnames="length")
def _widen(prompt: Part, length: int) -> Part:
    more = length - prompt.positions.shape[1]
    pad = lambda x, axis: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
    keys, values = tuple(pad(k, 3) for k in prompt.k), tuple(pad(v, 2) for v in prompt.v)
    return Part(keys, values, pad(prompt.positions, 1), pad(prompt.segments, 1))


def widen(state: Any, length: int) -> Any:
    """The state with room for prompts of `length` tokens."""
    cache = state.cache
    return state._replace(cache=cache._replace(prompt=_widen(cache.prompt, length)))
