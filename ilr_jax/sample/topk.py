"""The largest entries of every row where rows, and what stands in them, are split over devices.

XLA's own partitioner (jaxlib 0.10.2) gathers the whole array on every device of a mesh of CPUs before `lax.top_k`: all logits, in every
step of decoding. Here each device looks at its piece, and only what it found travels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ilr_jax.sharding import Layout


def top_k(
    layout: Layout | None, x: Float[Array, "N S"], count: int, axis: str | None = None
) -> tuple[Float[Array, "N C"], Int[Array, "N C"]]:
    """The `count` largest of each row, largest first, the lower index first among equals, and their indices, as `jax.lax.top_k`.

    Rows are split as "batch" is; `axis` is the logical axis of their entries, None if each row is whole somewhere.
    """
    if layout is None:
        values, ids = jax.lax.top_k(x, count)
        return values, ids
    pieces = layout.pieces(axis) if axis else 1
    split = layout.sharding("batch", axis).spec

    def local(x: Float[Array, "N S"]) -> tuple[Float[Array, "N C"], Int[Array, "N C"]]:
        """On one device."""
        values, ids = jax.lax.top_k(x, min(count, x.shape[1]))
        if pieces == 1:
            return values, ids
        ids += jax.lax.axis_index(split[1]) * x.shape[1]
        values, ids = (jax.lax.all_gather(y, split[1], axis=1, tiled=True) for y in (values, ids))  # lower indices first, still
        values, best = jax.lax.top_k(values, count)
        return values, jnp.take_along_axis(ids, best, axis=1)

    rows = layout.sharding("batch").spec
    return jax.shard_map(local, mesh=layout.mesh, in_specs=split, out_specs=(rows, rows), check_vma=False)(x)
