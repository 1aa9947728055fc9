"""Optimisers and the learning-rate schedule, each equal to its PyTorch counterpart step by step.

Not here: the step that applies them (`steps`). A transformation comes without its learning rate, which is data: K adapters share one
program yet each has its own rate, length and step. From: torch 2.13 `AdamW` and `RMSprop`; transformers 5.24 `Adafactor` (with
scale_parameter, relative_step and warmup_init off), `get_cosine_schedule_with_warmup` and `TrainingArguments.get_warmup_steps` (rounds up).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

STACKED = frozenset({"adapters", "layers"})


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser and its constants; `warmup` is a fraction of the steps, `clip` the greatest norm of an adapter's gradient.

    `b1`, `b2` are AdamW's, `decay` is RMSprop's, `eps` belongs to both; Adafactor's constants are those of the paper (arXiv 1804.04235).
    """

    name: Literal["adamw", "adafactor", "rmsprop"] = "adamw"
    learning_rate: float = 1e-4
    warmup: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    b1: float = 0.9
    b2: float = 0.999
    decay: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self):
        if self.name not in TRANSFORMS or self.schedule not in ("cosine", "constant"):
            wanted = f"{', '.join(TRANSFORMS)} with schedule cosine or constant"
            raise ValueError(f"optimizer: wanted one of {wanted}; got {self.name!r} with {self.schedule!r}")
        if not 0 <= self.warmup <= 1 or self.learning_rate < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                "optimizer: wanted 0 <= warmup <= 1, learning_rate >= 0 and clip > 0 or none; "
                f"got warmup={self.warmup}, learning_rate={self.learning_rate}, clip={self.clip}"
            )


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(config.b1, config.b2, config.eps), optax.add_decayed_weights(config.weight_decay))


def _rmsprop(config: OptimizerConfig) -> optax.GradientTransformation:
    # torch adds the decay to the gradient, not to the update, and eps outside the root.
    decayed = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(decayed, optax.scale_by_rms(config.decay, config.eps, eps_in_sqrt=False))


def _per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on each layer of stacked weights by itself, as where every layer is a tensor of its own."""
    return optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(inner.update))


def _labels(tree: Any) -> Any:
    stacked = lambda path: not STACKED.isdisjoint(getattr(key, "key", None) for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, _: "stacked" if stacked(path) else "whole", tree)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    # Every matrix is factored, however small; a vector never is. Block RMS clipping is Adafactor's d = 1.
    one = optax.chain(optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1, epsilon=1e-30), optax.clip_by_block_rms(1.0))
    parts = optax.partition({"stacked": _per_layer(one), "whole": one}, _labels)
    return optax.chain(parts, optax.add_decayed_weights(config.weight_decay))


TRANSFORMS = {"adamw": _adamw, "adafactor": _adafactor, "rmsprop": _rmsprop}


def transform(config: OptimizerConfig) -> optax.GradientTransformation:
    """The update direction before the learning rate: new = old - rate * direction. For one adapter; map it over K."""
    return TRANSFORMS[config.name](config)


def warmup_steps(config: OptimizerConfig, total: int) -> int:
    """How many steps the rate climbs: the fraction of `total`, rounded up."""
    return math.ceil(total * config.warmup)


def schedule(
    config: OptimizerConfig, step: Int[Array, " K"], total: Int[Array, " K"], warmup: Int[Array, " K"], peak: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The learning rate of the step that comes after `step` steps; the first of a warm-up is 0, as in transformers."""
    climb = step / jnp.maximum(warmup, 1)
    # sin^2 of what is left equals (1 + cos(progress)) / 2 without its cancellation near the end.
    left = jnp.maximum(total - step, 0) / jnp.maximum(total - warmup, 1)
    after = jnp.sin(left * (jnp.pi / 2)) ** 2 if config.schedule == "cosine" else jnp.ones_like(climb)
    return peak * jnp.where(step < warmup, climb, after)


def clip_factor(config: OptimizerConfig, norm: Float[Array, " K"]) -> Float[Array, " K"]:
    """What to multiply each gradient with so that its norm is at most `clip` (torch `clip_grad_norm_`)."""
    return jnp.ones_like(norm) if config.clip is None else jnp.minimum(1.0, config.clip / (norm + 1e-6))
