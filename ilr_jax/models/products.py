"""The product of two arrays, forward and backward: computed in their dtype, accumulated in float32.

Not here: which weights there are (`layers`, `lora`), what attends to what (`attention`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ilr_jax.models.platform import platform

SAVED = "saved"  # names what remat may keep: a policy cannot see products inside `matmul`, which it would keep in float32, and kernels


def _dot(a: Array, b: Array, contract: tuple[int, int], dtype: DTypeLike) -> Array:
    """Product over these of the last two axes, the leading ones of b shared; accumulated in float32, then rounded to `dtype`.

    A GPU that is asked for float32 writes all of it to memory before it rounds; a CPU takes two to four times as long if it is not asked.
    Where the contracted axis is split over devices, what each of them sums is rounded before they are added (but on a CPU).
    """
    shared = tuple(range(b.ndim - 2))
    axes = (a.ndim + contract[0],), (b.ndim + contract[1],)
    asked = jnp.float32 if platform() == "cpu" else dtype
    return jax.lax.dot_general(a, b, (axes, (shared, shared)), preferred_element_type=asked).astype(dtype)


def _turned(x: Float[Array, "*K M D"]) -> Float[Array, "*K D M"]:
    """The transpose; of activations it is written out on a CPU, whose products over the rows of both sides take twice as long without."""
    x = jnp.swapaxes(x, -1, -2)
    return jax.lax.optimization_barrier(x) if platform() == "cpu" and x.ndim < 4 else x


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Float[Array, "*K M D"], w: Float[Array, "*K D F"], dtype: DTypeLike) -> Float[Array, "*K M F"]:
    return _dot(x, w.astype(x.dtype), (-1, -2), dtype)


def _forward(x, w, dtype):
    return _rounded(x, w, dtype), (x, w)


def _backward(dtype, saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    return _dot(g, w.astype(x.dtype), (-1, -1), x.dtype), _dot(_turned(x), g, (-1, -2), w.dtype)


_rounded.defvjp(_forward, _backward)


def product(x: Float[Array, "*K M D"], w: Float[Array, "*K D F"]) -> Float[Array, "*K M F"]:
    """x w in float32, w computed with in x's dtype; the gradient by float32 weights is not rounded on the way.

    A plain dot with `preferred_element_type=float32` would run the backward products in float32, at half the speed in bfloat16.
    """
    return _rounded(x, w, jnp.float32)


def matmul(x: Float[Array, "*K M D"], w: Float[Array, "*K D F"]) -> Float[Array, "*K M F"]:
    """`product`, rounded to x's dtype."""
    return _rounded(x, w, x.dtype)
