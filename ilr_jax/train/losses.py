"""What is minimised: SFT's cross-entropy, DPO's preference loss and the evaluator's two-class loss.

Not here: gradients, accumulation and means over a batch (`steps`). Log-probabilities are computed at completion positions only, a chunk of
them at a time, so that neither [N, T, V] nor [N, C, V] ever exists. From: paper section 2 and
appendix; DPO and its variants: the papers that their docstrings name.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ilr_jax.sharding import Layout, constrain
from ilr_jax.types import Batch


def _logits(hidden: Float[Array, "N c D"], table: Float[Array, "V D"], layout: Layout | None) -> Float[Array, "N c V"]:
    contract = (((2,), (1,)), ((), ()))
    logits = jax.lax.dot_general(hidden, table.astype(hidden.dtype), contract, preferred_element_type=jnp.float32)
    return constrain(layout, logits, "batch", None, "vocab")


def _pick(log_probs: Float[Array, "*N V"], ids: Int[Array, "*N"]) -> Float[Array, "*N"]:
    """Entry `ids` of the last axis; NaN for an id outside it, which indexing would clamp or wrap in silence."""
    picked = jnp.take_along_axis(log_probs, ids[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.where((ids >= 0) & (ids < log_probs.shape[-1]), picked, jnp.nan)


def _chunk(layout: Layout | None, hidden: Float[Array, "N c D"], table: Float[Array, "V D"], targets: Int[Array, "N c"]) -> Array:
    logits = _logits(hidden, table, layout)
    most, _, total = _likely(logits)
    return _pick(logits, targets) - most - jnp.log(total)


def _likely(logits: Float[Array, "N c V"]) -> tuple[Array, Array, Array]:
    """The greatest logit, what each token has of its likelihood, and the sum of that: one exponential of each logit serves all.

    A softmax takes a second one, and log-probabilities of all tokens are written to memory before one of them is picked.
    """
    most = jax.lax.stop_gradient(logits.max(-1))
    likely = jnp.exp(logits - most[..., None])
    return most, likely, likely.sum(-1)


def _chunk_with_slope(
    layout: Layout | None, hidden: Float[Array, "N c D"], table: Float[Array, "V D"], targets: Int[Array, "N c"]
) -> tuple[Array, Array]:
    """Log-probabilities and their derivative by `hidden` [N, c, D]: the target's vector minus the expected one."""
    logits, weights = _logits(hidden, table, layout), table.astype(hidden.dtype)
    most, likely, total = _likely(logits)
    expected = jnp.matmul(likely.astype(hidden.dtype), weights, preferred_element_type=jnp.float32) / total[..., None]
    slope = jnp.take(weights, targets, axis=0, mode="clip").astype(jnp.float32) - expected
    return _pick(logits, targets) - most - jnp.log(total), slope.astype(hidden.dtype)


def _chunked(fn, hidden, table, targets, chunk: int):
    """`fn` over chunks of the second axis, the last one padded; results have that axis at its own length again."""
    n, c = targets.shape
    if c <= chunk:
        return fn(hidden, table, targets)
    count = -(-c // chunk)
    split = lambda x: jnp.pad(x, ((0, 0), (0, count * chunk - c)) + ((0, 0),) * (x.ndim - 2)).reshape(n, count, chunk, *x.shape[2:])
    out = jax.lax.map(lambda xs: fn(xs[0], table, xs[1]), (split(hidden).swapaxes(0, 1), split(targets).swapaxes(0, 1)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(n, -1, *x.shape[3:])[:, :c], out)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _frozen(
    hidden: Float[Array, "N C D"], table: Float[Array, "V D"], targets: Int[Array, "N C"], chunk: int, layout: Layout | None
) -> Float[Array, "N C"]:
    """Log-probabilities whose derivative by `hidden` is made in the forward pass: two products with the table instead of three."""
    return _chunked(partial(_chunk, layout), hidden, table, targets, chunk)


def _frozen_forward(hidden, table, targets, chunk, layout):
    return _chunked(partial(_chunk_with_slope, layout), hidden, table, targets, chunk)


def _frozen_backward(chunk, layout, slope, g):
    return (g[..., None] * slope.astype(jnp.float32)).astype(slope.dtype), None, None


_frozen.defvjp(_frozen_forward, _frozen_backward)


def token_log_probs(
    hidden: Float[Array, "N T D"],
    table: Float[Array, "V D"],
    places: Int[Array, "N C"],
    targets: Int[Array, "N C"],
    chunk: int = 16,
    train_table: bool = False,
    layout: Layout | None = None,
) -> Float[Array, "N C"]:
    """Float32 log-probability of `targets[n, c]` given the hidden state at `places[n, c]`; NaN where a target is outside the vocabulary.

    Holds N * chunk * V logits at most, split by rows and vocabulary as in `layout`. With `train_table` the gradient reaches `table` too, at
    the price of a third product with it; without, the table counts as a constant.
    """
    picked = constrain(layout, jnp.take_along_axis(hidden, places[:, :, None], axis=1), "batch", None, None)
    table = constrain(layout, table, "vocab", None)  # gathered once, not for every chunk
    if train_table:
        return _chunked(jax.checkpoint(partial(_chunk, layout)), picked, table, targets, chunk)
    return _frozen(picked, table, targets, chunk, layout)


def by_adapter(values: Float[Array, "*N"], k: int) -> Float[Array, " K"]:
    """Sums over the rows of each of the k adapters."""
    return values.reshape(k, -1).sum(axis=1)


def sft_loss(log_probs: Float[Array, "N C"], batch: Batch, k: int) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Per adapter, the sum of weighted negative log-probabilities and what it is to be divided by; the weights hold the normalisation."""
    used = jnp.asarray(batch.weights) > 0
    # Places that are not used may hold any target, -100 too, so they are cut off before the sum.
    terms = -jnp.where(used, batch.weights * jnp.where(used, log_probs, 0.0), 0.0)
    return by_adapter(terms.sum(axis=1), k), by_adapter(jnp.asarray(batch.units), k)


def sequence_log_prob(log_probs: Float[Array, "N C"], batch: Batch) -> Float[Array, " N"]:
    """Log-probability of each row's whole completion: plain sum over the used places, whatever their weights."""
    return jnp.where(jnp.asarray(batch.weights) > 0, log_probs, 0.0).sum(axis=1)


def by_answer(values: Float[Array, "N C"], answers: Int[Array, "N C"], count: int) -> Float[Array, "N count"]:
    """Sums over the predictions of each of a row's answers."""
    own = answers[:, None, :] == jnp.arange(count)[None, :, None]
    return jnp.where(own, values[:, None, :], 0.0).sum(axis=2)


def sigmoid_loss(margin: Float[Array, "*N"], beta: float, smoothing: float) -> Float[Array, "*N"]:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m) for margin m and smoothing e.

    e = 0 is DPO (https://arxiv.org/abs/2305.18290, equation 7). e > 0 is conservative DPO, for preferences that are wrong with probability
    e (https://ericmitchell.ai/cdpo.pdf): beyond a margin of log((1 - e) / e) it pulls back.
    """
    return -(1 - smoothing) * jax.nn.log_sigmoid(margin) - smoothing * jax.nn.log_sigmoid(-margin)


def robust_loss(margin: Float[Array, "*N"], beta: float, smoothing: float) -> Float[Array, "*N"]:
    """(-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2e) for e below 1/2: robust DPO (https://arxiv.org/abs/2403.00409).

    Its mean over preferences that are wrong with probability e is DPO's loss on the right ones.
    """
    return (smoothing * jax.nn.log_sigmoid(-margin) - (1 - smoothing) * jax.nn.log_sigmoid(margin)) / (1 - 2 * smoothing)


def hinge_loss(margin: Float[Array, "*N"], beta: float, smoothing: float) -> Float[Array, "*N"]:
    """max(0, 1 - m): SLiC's hinge (https://arxiv.org/abs/2305.10425) on DPO's margin (https://arxiv.org/abs/2309.06657)."""
    return jax.nn.relu(1 - margin)


def ipo_loss(margin: Float[Array, "*N"], beta: float, smoothing: float) -> Float[Array, "*N"]:
    """(m / beta - 1 / (2 beta))^2: log-ratios are to differ by 1 / (2 beta) and no more (https://arxiv.org/abs/2310.12036, equation 17).

    As in TRL 1.16 the margin is one of means per token here, so that the target does not depend on the answers' lengths.
    """
    return (margin / beta - 1 / (2 * beta)) ** 2


PREFERENCE_LOSSES = {"sigmoid": sigmoid_loss, "ipo": ipo_loss, "robust": robust_loss, "hinge": hinge_loss}


def dpo_loss(
    chosen: Float[Array, "*N"],
    rejected: Float[Array, "*N"],
    reference_chosen: Float[Array, "*N"],
    reference_rejected: Float[Array, "*N"],
    beta: float,
    loss: str = "sigmoid",
    smoothing: float = 0.0,
    lengths: tuple[Float[Array, "*N"], Float[Array, "*N"]] | None = None,
) -> tuple[Float[Array, "*N"], dict[str, Float[Array, "*N"]]]:
    """The loss of every pair, and its metrics under TRL's names (1.16, `DPOTrainer`), from summed log-probabilities.

    The margin is r_c - r_r with the implicit rewards r = beta * (log pi(y|x) - log pi_ref(y|x)); what is made of it is in
    `PREFERENCE_LOSSES`. For 'ipo' the rewards are divided by `lengths`, the tokens of chosen and rejected answers, first.
    """
    better, worse = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    metrics = {
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/margins": better - worse,
        "rewards/accuracies": (better > worse).astype(jnp.float32),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    margin = better - worse
    if loss == "ipo":
        if lengths is None:
            raise ValueError("loss='ipo': wanted the answers' lengths, got none; it compares means per token")
        margin = better / jnp.maximum(lengths[0], 1) - worse / jnp.maximum(lengths[1], 1)
    return PREFERENCE_LOSSES[loss](margin, beta, smoothing), jax.lax.stop_gradient(metrics)


def class_loss(logits: Float[Array, "*N C"], classes: Int[Array, "*N"]) -> Float[Array, "*N"]:
    """Cross-entropy of every text, float32; NaN for a class that does not exist."""
    return -_pick(jax.nn.log_softmax(logits.astype(jnp.float32)), classes)
