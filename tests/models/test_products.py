"""The products against plain ones of JAX in float32, whose gradients JAX derives by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilr_jax.models.platform import described
from ilr_jax.models.products import matmul, product

SHAPES = {"weight": ((96, 64), (64, 80)), "adapters": ((2, 96, 64), (2, 64, 3)), "heads": ((2, 3, 24, 16), (2, 3, 16, 40))}
shapes = pytest.mark.parametrize("shape", SHAPES)
NARROW = 2.0**-8  # what rounding to bfloat16 takes off at most, of a number of size 1
WIDE = 2e-6  # the same of a float32 sum of so many terms, of the sum of their sizes


def drawn(shape):
    """x, w and the gradient of their product, float32."""
    left, right = SHAPES[shape]
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in (left, right, (*left[:-1], right[-1]))]


def ours(of, x, w, g):
    """The product and its gradients by x and w, for g by the product."""
    value, back = jax.vjp(of, x, w)
    return value, *back(g)


def plain(x, w, g):
    """The same of plain float32 arrays; with each the sum of its terms' sizes."""
    results = lambda x, w, g: (jnp.matmul(x, w), *jax.grad(lambda x, w: (jnp.matmul(x, w) * g).sum(), (0, 1))(x, w))
    wide = [a.astype(jnp.float32) for a in (x, w, g)]
    return zip(results(*wide), results(*map(jnp.abs, wide)), strict=True)


@shapes
@pytest.mark.parametrize("of", (product, matmul))
def test_in_float32_they_are_plain_products(of, shape):
    given = drawn(shape)
    for found, (wanted, size) in zip(ours(of, *given), plain(*given), strict=True):
        assert found.dtype == jnp.float32
        assert (jnp.abs(found - wanted) <= WIDE * size).all()


@shapes
@pytest.mark.parametrize("weights", ("float32", "bfloat16"))
@pytest.mark.parametrize("device", ("cpu", "gpu"))
@pytest.mark.parametrize("of", (product, matmul))
def test_in_bfloat16_what_is_multiplied_is_rounded_and_sums_are_not(of, device, weights, shape):
    """Weights and gradients are rounded to x's dtype, whatever theirs; what float32 weights get is not rounded afterwards."""
    x, w, g = drawn(shape)
    x, w, half = x.astype(jnp.bfloat16), w.astype(weights), g.astype(jnp.bfloat16)
    with described(device):
        results = ours(of, x, w, g if of is product else half)
    dtypes = (jnp.float32 if of is product else jnp.bfloat16, jnp.bfloat16, w.dtype)
    for found, (wanted, size), dtype in zip(results, plain(x, w.astype(jnp.bfloat16), half), dtypes, strict=True):
        assert found.dtype == dtype
        off = jnp.abs(found.astype(jnp.float32) - wanted) - WIDE * size
        assert (off <= (0.0 if dtype == jnp.float32 else NARROW * jnp.abs(wanted))).all()


@pytest.mark.parametrize("device", ("cpu", "gpu"))
def test_a_gradient_that_is_not_asked_for_is_not_computed(device):
    """The forward product is not needed either: the loss is linear in it."""
    x, w, g = drawn("weight")
    with described(device):
        of = lambda *asked: jax.jit(jax.grad(lambda x, w: (product(x, w) * g).sum(), asked)).lower(x, w).as_text()
        found = [of(*asked).count("dot_general ") for asked in ((0,), (1,), (0, 1))]
    assert found == [1, 1, 2]
