"""The class head pools at the position that the data names (its parity with transformers is in test_parity)."""

import jax
import jax.numpy as jnp
import numpy as np

from ilr_jax.models import heads


def test_pools_at_last_not_at_padding():
    hidden = jax.random.normal(jax.random.key(0), (3, 6, 8), jnp.bfloat16)
    head = heads.init(8, 2, jax.random.key(1))
    last = np.array([[5, 1], [0, 0], [3, 2]])
    wanted = np.stack([np.asarray(hidden[row, places], np.float32) @ np.asarray(head) for row, places in enumerate(last)])
    got = heads.classify(hidden, jnp.asarray(last), head)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_init():
    head = heads.init(4096, 2, jax.random.key(0))
    assert head.shape == (4096, 2) and head.dtype == jnp.float32
    assert abs(float(head.std()) - 0.02) < 1e-3
