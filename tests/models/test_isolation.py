"""Documents of a packed row, and branches of one prompt, know nothing of each other, to the bit, whichever attention reads the row.

Rows are longer than a block of the batched products, and of splash's kernel. Whole models: `test_decoder`, and of branches `test_branches`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilr_jax.models import backend
from ilr_jax.models.attention import attend
from ilr_jax.models.cache import KeyValues
from ilr_jax.types import BRANCH

# (segment, first position, tokens); a place of padding at the end.
DOCUMENTS = ((1, 0, 90), (2, 0, 101), (0, 0, 1))
LONGER = ((1, 0, 300), (2, 0, 339), (0, 0, 1))
BRANCHES = ((1, 0, 40), (1 + BRANCH, 40, 30), (1 + 2 * BRANCH, 40, 41), (2, 0, 60), (2 + BRANCH, 60, 20), (0, 0, 1))
nvidia = pytest.mark.skipif(not backend._nvidia(), reason="cuDNN runs on NVIDIA GPUs only: JAX_PLATFORMS=cuda on a machine with one")
CASES = {
    "gemm": ("gemm", DOCUMENTS, 16),
    "gemm, branches": ("gemm", BRANCHES, 16),
    "xla": ("xla", DOCUMENTS, 16),
    "xla, branches": ("xla", BRANCHES, 16),
    "splash": ("splash", LONGER, 128),
    "cudnn": ("cudnn", DOCUMENTS, 64),
    "cudnn, branches": ("cudnn", BRANCHES, 64),
}


@pytest.mark.parametrize("case", [pytest.param(name, marks=nvidia if "cudnn" in name else ()) for name in CASES])
def test_to_the_bit_in_values_and_gradients(case):
    """Of a document, or branch, that is changed: nobody else's result changes, and no gradient reaches it."""
    attention, spans, width = CASES[case]
    segments = np.concatenate([np.full(n, segment, np.int32) for segment, _, n in spans])[None]
    positions = np.concatenate([np.arange(first, first + n, dtype=np.int32) for _, first, n in spans])[None]
    rng, dtype = np.random.default_rng(0), jnp.bfloat16 if attention == "cudnn" else jnp.float32
    qkv = [jnp.asarray(rng.normal(size=(1, segments.size, heads, width)), dtype) for heads in (2, 1, 1)]

    def total(q, k, v, told):
        keys = KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), jnp.asarray(positions), jnp.asarray(segments))
        mixed = attend(q, jnp.asarray(positions), jnp.asarray(segments), (keys,), None, attention)
        return (jnp.where(told[:, :, None, None], mixed.astype(jnp.float32), 0.0) ** 2).sum(), mixed

    run = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    for changed in sorted({*segments[0].tolist()} - {0}):
        here = segments == changed
        apart = (segments > 0) & ~here & (segments % BRANCH != changed)  # neither it nor a branch of it
        other = [jnp.where(here[:, :, None, None], x + 1, x) for x in qkv]
        (grads, before), (later, after) = (jax.device_get(run(*x, apart)) for x in (qkv, other))
        np.testing.assert_array_equal(after[apart], before[apart])
        assert (after[here] != before[here]).all(-1).any(-1).mean() > 0.9
        for first, second in zip(grads, later, strict=True):
            assert not first[here].any() and not second[here].any() and first[apart].any()
            if attention != "cudnn":  # which adds up a gradient in no fixed order
                np.testing.assert_array_equal(second[apart], first[apart])
