"""The two-class head of the evaluator: a linear read-out of the hidden state at a text's last token (HF `score`, no bias).

Not here: its loss (`train.losses`) and its file (`hf.load_classifier`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def init(hidden_size: int, classes: int, key: PRNGKeyArray) -> Float[Array, "D C"]:
    """A float32 head with standard deviation 0.02."""
    return jax.random.normal(key, (hidden_size, classes), jnp.float32) * 0.02


def classify(hidden: Float[Array, "N T D"], last: Int[Array, "N M"], head: Float[Array, "D C"]) -> Float[Array, "N M C"]:
    """Float32 class logits, pooled at `last`: the places are data, never guessed from pad tokens."""
    pooled = jnp.take_along_axis(hidden, last[:, :, None], axis=1)
    return jnp.matmul(pooled.astype(jnp.float32), head)
