"""The front door of decoding: many requests in, their completions out, by sampling or by beam search.

Token ids only: it knows no tokenizer and no task.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ilr_jax.models import lora as lora_
from ilr_jax.models.attention import Implementation
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.lora import Adapters, Lora
from ilr_jax.progress import Progress
from ilr_jax.sample import beam, rollout
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.engine import Engine, Machine
from ilr_jax.sample.requests import Completion, Request, check
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute, has_room_for, room
from ilr_jax.sharding import Layout, constrain_weights


@partial(jax.jit, static_argnames=("lora", "layout", "index"))
def _merge(params: Any, adapters: Adapters, lora: Lora, layout: Layout | None, index: int | None) -> Any:
    return constrain_weights(layout, lora_.merge(params, adapters, lora, index))


_prepare = jax.jit(lora_.prepare, static_argnames=("lora", "dtype"))


def generate(
    config: ModelConfig,
    params: Any,
    adapters: Adapters | None,
    requests: Sequence[Request],
    settings: SamplingSettings | BeamSettings,
    *,
    eos: Sequence[int],
    lora: Lora | None = None,
    key: PRNGKeyArray | int = 0,
    pad: int = 0,
    dtype: DTypeLike = jnp.float32,
    attention: Implementation = "gemm",
    layout: Layout | None = None,
    progress: str | None = None,
) -> list[list[Completion]]:
    """The completions of each request, in the order of the requests: `settings.n` samples, or the one that beam search ranks first.

    `adapters` [K, ...] come with their `lora`; None decodes with the bare `params`. A single adapter is merged into the weights, and so is
    each of several, on one device, where copies of the layers cost less than products with adapters beside them; neither where base and
    copies would take more than half of a device's memory.
    Samples are drawn from `key` (or the key of a seed), the request's `id` and the sample's number, whatever else is being decoded. Any of
    `eos` ends an answer; `pad` is any id of the vocabulary and has no effect. `dtype` is that of the computation; `attention` is how
    prompts are read (decoding over the cache has one way); `layout` is how weights and cache are split over devices. `progress` names the
    job on the terminal; None is silent. Raises ValueError for a request that the model cannot answer.
    """
    if (adapters is None) != (lora is None):
        raise ValueError("adapters and lora: wanted both or neither; `lora` says how the adapters are scaled")
    count = 1 if adapters is None else jax.tree.leaves(adapters)[0].shape[0]
    check(config, count, requests, [*eos])
    if not requests:
        return []
    weights = (params, None)
    if adapters is not None and lora is not None:
        weights = _weights(config, params, adapters, lora, count, settings, dtype, layout)
    key = jax.random.key(key) if isinstance(key, int) else key
    common = Compute(config, jnp.dtype(dtype).name, attention, layout), weights, tuple(eos)
    machine = _samples(settings, key, *common) if isinstance(settings, SamplingSettings) else _beams(settings, *common)
    with Progress(progress or "", len(requests), "prompts", quiet=progress is None) as bar:
        return Engine(machine, requests, count, config.context, pad).run(bar)


def _weights(
    config: ModelConfig,
    params: Any,
    adapters: Adapters,
    lora: Lora,
    count: int,
    settings: SamplingSettings | BeamSettings,
    dtype: DTypeLike,
    layout: Layout | None,
) -> tuple[Any, Any]:
    """Parameters and adapters as decoding reads them: merged, each into its own copy, or side by side."""
    if merges(config, lora, count, settings, layout) and has_room_for(params, count, room()):
        return _merge(params, adapters, lora, layout, 0 if count == 1 else None), None
    return params, _prepare(adapters, lora, dtype)


def merges(config: ModelConfig, lora: Lora, count: int, settings: SamplingSettings | BeamSettings, layout: Layout | None) -> bool:
    """Whether decoding is faster with copies of the layers, an adapter merged into each, than with adapters beside them."""
    rows = settings.slots if isinstance(settings, SamplingSettings) else settings.prompts * settings.width
    return count == 1 or (layout is None and lora_.worth_merging(config, lora, count, rows))


def _samples(settings: SamplingSettings, key: PRNGKeyArray, compute: Compute, weights: Any, eos: tuple[int, ...]) -> Machine:
    return Machine(
        blank=lambda rows, length: rollout.blank(compute, rows, length, settings.max_new_tokens),
        admit=lambda state, fill: rollout.admit(compute, weights, state, fill, key),
        advance=partial(rollout.advance, compute, settings.rule, eos, settings.chunk, weights),
        rows=settings.slots,
        copies=settings.n,
        window=settings.max_new_tokens,
        layout=compute.layout,
        bucket=settings.bucket,
    )


def _beams(settings: BeamSettings, compute: Compute, weights: Any, eos: tuple[int, ...]) -> Machine:
    return Machine(
        blank=lambda rows, length: beam.blank(compute, settings, rows, length),
        admit=lambda state, fill: beam.admit(compute, weights, state, fill),
        advance=partial(beam.advance, compute, settings, eos, weights),
        rows=settings.prompts,
        copies=1,
        window=settings.max_new_tokens,
        layout=compute.layout,
        bucket=settings.bucket,
    )
