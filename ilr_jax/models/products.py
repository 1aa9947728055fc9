"""The product of two arrays, forward and backward: computed in their dtype, accumulated in float32.

Not here: which weights there are (`layers`, `lora`), what attends to what (`attention`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Float32 product over these of the last two axes, the leading ones of b shared."""
    shared = tuple(range(b.ndim - 2))
    axes = (a.ndim + contract[0],), (b.ndim + contract[1],)
    return jax.lax.dot_general(a, b, (axes, (shared, shared)), preferred_element_type=jnp.float32)


def _turned(x: Float[Array, "*K M D"]) -> Float[Array, "*K D M"]:
    """The transpose; of activations it is written out on a CPU, whose products over the rows of both sides take twice as long without."""
    x = jnp.swapaxes(x, -1, -2)
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" and x.ndim < 4 else x


@jax.custom_vjp
def product(x: Float[Array, "*K M D"], w: Float[Array, "*K D F"]) -> Float[Array, "*K M F"]:
    """x w in float32, w computed with in x's dtype; the gradient by float32 weights is not rounded on the way.

    A plain dot with `preferred_element_type=float32` would run the backward products in float32, at half the speed in bfloat16.
    """
    return _dot(x, w.astype(x.dtype), (-1, -2))


def _forward(x, w):
    return product(x, w), (x, w)


def _backward(saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    return _dot(g, w.astype(x.dtype), (-1, -1)).astype(x.dtype), _dot(_turned(x), g, (-1, -2)).astype(w.dtype)


product.defvjp(_forward, _backward)


def matmul(x: Float[Array, "*K M D"], w: Float[Array, "*K D F"]) -> Float[Array, "*K M F"]:
    """`product`, rounded to x's dtype."""
    return product(x, w).astype(x.dtype)
