"""The jitted steps: `(state, frozen, batch) -> (state, metrics)` for SFT, evaluator and DPO, and what is computed without training.

Not here: the losses (`losses`), the loop around the steps (`loop`). `frozen` is the base's parameters, {} where all weights train; only
`trainable` is differentiated and only the state is donated. With K adapters the rows of a batch fall into K equal groups, every metric has
an entry per adapter, and an adapter whose rows count nothing, or whose loss or gradient is not finite, is left bit-unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ilr_jax.models import decoder, heads, lora
from ilr_jax.models.attention import Implementation
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.decoder import Decoder, Remat
from ilr_jax.models.lora import Lora
from ilr_jax.sharding import Layout, constrain, constrain_weights
from ilr_jax.train import losses
from ilr_jax.train import optimizer as optimizers
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.state import Trainable, TrainState, adapters_in
from ilr_jax.types import Batch, ClassBatch, PairBatch, Rows

Metrics = dict[str, Array]
Step = Callable[[TrainState, Mapping, Any], tuple[TrainState, Metrics]]
Objective = Callable[[Trainable, Mapping, Any, int], tuple[Array, Metrics]]


@dataclass(frozen=True)
class Setup:
    """What a step is compiled for. `chunk` completion positions at a time meet the vocabulary; a batch is worked off in `microbatches`.

    `layout` is how weights, state and rows are split over devices; None: one device.
    """

    config: ModelConfig
    lora: Lora | None = None
    dtype: str = "float32"
    attention: Implementation = "gemm"
    remat: Remat = "none"
    chunk: int = 16
    microbatches: int = 1
    layout: Layout | None = None

    def __post_init__(self):
        if min(self.chunk, self.microbatches) < 1:
            raise ValueError(f"wanted chunk and microbatches >= 1, got {self.chunk} and {self.microbatches}")

    def branching(self) -> "Setup":
        """The same for rows with branches, which splash cannot tell from each other's."""
        return replace(self, attention="gemm") if self.attention == "splash" else self


def _hidden(setup: Setup, trainable: Trainable, frozen: Mapping, rows: Rows) -> tuple[Float[Array, "N T D"], Decoder]:
    """Hidden states of the rows, and the model that made them; an evaluator's model may have no output head."""
    k, n = adapters_in(trainable), rows.tokens.shape[0]
    if n % k:
        raise ValueError(f"wanted a number of rows that {k} adapters can share equally, got {n}; pad the batch with empty rows")
    params = jax.tree.map(lambda x: x[0], trainable["params"]) if "params" in trainable else frozen
    adapters = None
    if "adapters" in trainable:
        if setup.lora is None:
            raise ValueError("wanted Setup.lora (rank, alpha, modules) for a tree with adapters, got none")
        adapters = lora.prepare(trainable["adapters"], setup.lora, jnp.float32)
    model = decoder.bind(setup.config, params, setup.layout)
    hidden, _ = model(rows, adapters, dtype=setup.dtype, attention=setup.attention, remat=setup.remat)
    return hidden, model


def _log_probs(setup: Setup, trainable: Trainable, frozen: Mapping, batch: Batch | PairBatch) -> Float[Array, "N C"]:
    hidden, model = _hidden(setup.branching() if isinstance(batch, PairBatch) else setup, trainable, frozen, batch.rows)
    places, targets = jnp.asarray(batch.places), jnp.asarray(batch.targets)
    trained = "params" in trainable
    return losses.token_log_probs(hidden, model.head_table(), places, targets, setup.chunk, trained, setup.layout)


def _class_logits(setup: Setup, trainable: Trainable, frozen: Mapping, batch: ClassBatch) -> Float[Array, "N M 2"]:
    hidden, _ = _hidden(setup, trainable, frozen, batch.rows)
    head = trainable["head"]
    groups = hidden.reshape(head.shape[0], -1, *hidden.shape[1:])
    last = jnp.reshape(batch.last, (*groups.shape[:2], -1))
    return jax.vmap(heads.classify)(groups, last, head).reshape(*batch.last.shape, -1)


def _tokens(rows: Rows, k: int) -> Int[Array, " K"]:
    return jnp.sum(jnp.reshape(rows.segments, (k, -1)) > 0, axis=1, dtype=jnp.int32)


def _accumulate(grad: Callable, trainable: Trainable, batch: Any, k: int, parts: int) -> tuple[Any, Metrics]:
    """Float32 sums over `parts` equal parts of every adapter's rows of what `grad(trainable, part)` gives."""
    if parts == 1:
        return grad(trainable, batch)

    def split(x):
        if x.shape[0] % (k * parts):
            raise ValueError(f"wanted each adapter's rows to divide into {parts} microbatches, got {x.shape[0]} rows for {k} adapters")
        return jnp.reshape(x, (k, parts, -1, *x.shape[1:])).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad, trainable, jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, grad(trainable, part)), None)
    return jax.lax.scan(add, zeros, split_batch)[0]


def update(
    optimizer: OptimizerConfig,
    state: TrainState,
    grads: Any,
    loss: Float[Array, " K"],
    active: Bool[Array, " K"],
    layout: Layout | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after one update of the adapters that are active and finite, and what to report of it."""
    norm = jax.vmap(optax.tree.norm)(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rate = optimizers.schedule(optimizer, state.step, state.total, state.warmup, state.peak)
    wide = lambda x, like: x.reshape(-1, *(1,) * (like.ndim - 1))
    factor = optimizers.clip_factor(optimizer, norm)
    grads = jax.tree.map(lambda g: g * wide(factor, g), grads)
    direction, opt_state = jax.vmap(optimizers.transform(optimizer).update)(grads, state.opt_state, state.trainable)
    trainable = jax.tree.map(lambda p, d: p - wide(rate, d) * d, state.trainable, direction)
    new = TrainState(trainable, opt_state, state.step + 1, state.total, state.warmup, state.peak)
    keep = constrain(layout, active & finite, None)  # else masks of the size of the adapters would travel
    state = jax.tree.map(lambda new, old: jnp.where(wide(keep, new), new, old), new, state)
    return state, {"grad_norm": norm, "learning_rate": rate, "finite": finite, "active": active}


def _step(setup: Setup, optimizer: OptimizerConfig, objective: Objective, units: Callable[[Any], Array]) -> Step:
    """A step from an objective (per adapter: the loss's sum, and sums of metrics) and the rows' units, whose sum divides them."""

    def step(state: TrainState, frozen: Mapping, batch: Any) -> tuple[TrainState, Metrics]:
        """One optimiser step on the batch."""
        k = adapters_in(state.trainable)
        whole = partial(jax.tree.map, lambda x: constrain(setup.layout, x, None))
        total = whole(losses.by_adapter(jnp.asarray(units(batch)), k))
        share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)

        def loss(trainable, part):
            sums, metrics = objective(trainable, frozen, part, k)
            return jnp.sum(sums * share), {"loss": sums, **metrics}

        grads, sums = _accumulate(jax.grad(loss, has_aux=True), state.trainable, batch, k, setup.microbatches)
        grads, sums = constrain_weights(setup.layout, grads), whole(sums)
        tokens = sums.pop("tokens")
        means = {name: value * share for name, value in sums.items()}
        state, metrics = update(optimizer, state, grads, means["loss"], total > 0, setup.layout)
        state = constrain_weights(setup.layout, state)  # as it came, so that it is donated and the next step is the same program
        return state, {**means, "tokens": tokens, **metrics}

    return jax.jit(step, donate_argnums=0)


def _shared(factory: Callable[..., Step]) -> Callable[..., Step]:
    """One program for all optimisers that differ in rate and warm-up only: these travel in the state."""
    cached = cache(factory)

    @wraps(factory)
    def made(setup: Setup, optimizer: OptimizerConfig, *rest: float | str) -> Step:
        return cached(setup, replace(optimizer, learning_rate=0.0, warmup=0.0), *rest)

    return made


@_shared
def sft_step(setup: Setup, optimizer: OptimizerConfig) -> Step:
    """Supervised fine-tuning on a `Batch`; the loss is its weighted sum over its units."""

    def objective(trainable, frozen, batch: Batch, k):
        total, _ = losses.sft_loss(_log_probs(setup, trainable, frozen, batch), batch, k)
        return total, {"tokens": _tokens(batch.rows, k)}

    return _step(setup, optimizer, objective, lambda batch: batch.units)


@_shared
def evaluator_step(setup: Setup, optimizer: OptimizerConfig) -> Step:
    """Training of the two-class evaluator on a `ClassBatch`, with `head` in the trainable tree; metrics also have `accuracy`."""

    def objective(trainable, frozen, batch: ClassBatch, k):
        sums = _class_sums(setup, trainable, frozen, batch, k)
        return sums["loss"], {"accuracy": sums["right"], "tokens": _tokens(batch.rows, k)}

    return _step(setup, optimizer, objective, lambda batch: batch.weight)


@_shared
def dpo_step(setup: Setup, optimizer: OptimizerConfig, beta: float = 0.1, loss: str = "sigmoid", smoothing: float = 0.0) -> Step:
    """DPO on a `PairBatch`, a prompt and both its answers in one row; metrics also have TRL's (`losses.dpo_loss`)."""

    def objective(trainable, frozen, batch: PairBatch, k):
        sums = _pair_sums(setup, trainable, frozen, batch, k, beta, loss, smoothing)
        return sums.pop("loss"), {**sums, "tokens": _tokens(batch.rows, k)}

    return _step(setup, optimizer, objective, lambda batch: batch.weight)


def _pair_sums(
    setup: Setup, trainable: Trainable, frozen: Mapping, batch: PairBatch, k: int, beta: float, loss: str, smoothing: float
) -> Metrics:
    answers, reference = jnp.asarray(batch.answers), jnp.asarray(batch.reference)
    sides = lambda x: (x[..., 0], x[..., 1])
    by_answer = lambda x: sides(losses.by_answer(x, answers, 2 * batch.weight.shape[1]).reshape(reference.shape))
    log_probs = by_answer(_log_probs(setup, trainable, frozen, batch))
    lengths = by_answer(jnp.ones(answers.shape, jnp.float32))
    values, metrics = losses.dpo_loss(*log_probs, *sides(reference), beta, loss, smoothing, lengths)
    return jax.tree.map(lambda x: losses.by_adapter(x * batch.weight, k), {"loss": values, **metrics})


def _class_sums(setup: Setup, trainable: Trainable, frozen: Mapping, batch: ClassBatch, k: int) -> Metrics:
    logits, classes = _class_logits(setup, trainable, frozen, batch), jnp.asarray(batch.classes)
    right = (jnp.argmax(logits, axis=-1) == classes).astype(jnp.float32)
    values = {"loss": losses.class_loss(logits, classes), "right": right, "units": jnp.ones_like(right)}
    return jax.tree.map(lambda x: losses.by_adapter(x * batch.weight, k), values)


@cache
def sequence_log_probs(setup: Setup) -> Callable[[Trainable, Mapping, Batch], Float[Array, " N"]]:
    """`(trainable, frozen, batch) -> [N]`: summed log-probability of each completion; trainable {} is the bare base.

    For DPO's reference: computed once before training, float32.
    """
    run = lambda trainable, frozen, batch: losses.sequence_log_prob(_log_probs(setup, trainable, frozen, batch), batch)
    return jax.jit(run)


@cache
def token_log_probs(setup: Setup) -> Callable[[Trainable, Mapping, Batch], Float[Array, "N C"]]:
    """`(trainable, frozen, batch) -> [N, C]`: log-probability of every prediction, float32; trainable {} is the bare base."""
    return jax.jit(lambda trainable, frozen, batch: _log_probs(setup, trainable, frozen, batch))


@cache
def class_probabilities(setup: Setup) -> Callable[[Trainable, Mapping, ClassBatch], Float[Array, "N M 2"]]:
    """`(trainable, frozen, batch) -> [N, M, 2]`: the evaluator's probabilities of both classes."""
    return jax.jit(lambda trainable, frozen, batch: jax.nn.softmax(_class_logits(setup, trainable, frozen, batch)))


@cache
def class_evaluation(setup: Setup) -> Callable[[Trainable, Mapping, ClassBatch], Metrics]:
    """`(trainable, frozen, batch) -> {loss, right, units}` [K], sums over texts: validation loss and accuracy of the evaluator."""
    return jax.jit(lambda tree, frozen, batch: _class_sums(setup, tree, frozen, batch, adapters_in(tree)))
