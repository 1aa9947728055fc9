"""What a training run carries from step to step; every leaf has a leading axis K, one slice per adapter.

Not here: batches and the data position (the step number is the position). `trainable` is a dict with "adapters" (LoRA tree) or "params"
(all weights, K = 1), and "head" [K, D, 2] where an evaluator is trained.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ilr_jax.sharding import Layout, constrain_weights, put_weights
from ilr_jax.train import optimizer as optimizers
from ilr_jax.train.optimizer import OptimizerConfig

Trainable = Mapping[str, Any]


class TrainState(NamedTuple):
    """Weights that train, optimiser state, and per adapter: steps done, steps in all, of which warm-up, and the greatest learning rate."""

    trainable: Any
    opt_state: Any
    step: Int[Array, " K"]
    total: Int[Array, " K"]
    warmup: Int[Array, " K"]
    peak: Float[Array, " K"]


def adapters_in(trainable: Trainable) -> int:
    """K of a trainable tree, 1 for an empty one. ValueError where leaves disagree, or for several sets of full parameters."""
    sizes = {x.shape[:1] for x in jax.tree.leaves(trainable)} or {(1,)}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(f"trainable: wanted one leading axis K on every leaf, got sizes {sorted(sizes)}")
    (k,) = sizes.pop()
    if "params" in trainable and k != 1:
        raise ValueError(f"full fine-tuning trains one set of weights, got {k}; train them one after the other, or use LoRA")
    return k


def init(
    trainable: Trainable,
    optimizer: OptimizerConfig,
    total: Sequence[int],
    peak: Sequence[float] | None = None,
    layout: Layout | None = None,
) -> TrainState:
    """A state before its first step; `total` and `peak` (default: the config's learning rate) have one entry per adapter.

    With a layout, `trainable` has to be split by it already, and all else of the state will be. It holds the arrays of `trainable`
    themselves, which a step, and `loop.fit`, then donates.

    Raises ValueError where their lengths are not K, or a leaf is not float32 (an update of 1e-6 is lost on bfloat16 weights).
    """
    k = adapters_in(trainable)
    peak = [optimizer.learning_rate] * k if peak is None else peak
    if len(total) != k or len(peak) != k or min(total) < 1:
        raise ValueError(f"wanted total >= 1 and a peak learning rate for each of {k} adapters, got total={list(total)}, peak={list(peak)}")
    narrow = sorted({str(x.dtype) for x in jax.tree.leaves(trainable)} - {"float32"})
    if narrow:
        raise ValueError(f"what trains has to be float32, got {', '.join(narrow)}; cast it first, the compute dtype is set apart")
    warmup = [optimizers.warmup_steps(optimizer, n) for n in total]
    ints = lambda x: jnp.asarray(np.asarray(x, np.int32))
    counts = put_weights(layout, (ints([0] * k), ints(total), ints(warmup), jnp.asarray(np.asarray(peak, np.float32))))
    return TrainState(dict(trainable), _moments(optimizer, layout, dict(trainable)), *counts)


@partial(jax.jit, static_argnums=(0, 1))
def _moments(optimizer: OptimizerConfig, layout: Layout | None, trainable: Trainable) -> Any:
    moments = jax.vmap(optimizers.transform(optimizer).init)(trainable)
    return constrain_weights(layout, {"trainable": trainable, "opt_state": moments})["opt_state"]


def take(trainable: Any, k: int) -> Any:
    """Adapter `k` alone, its leading axis kept at length 1."""
    return jax.tree.map(lambda x: x[k : k + 1], trainable)
