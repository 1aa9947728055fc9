"""Attention of whole rows on TPUs: JAX's splash kernel, whose scores never leave the chip, on each device's own rows and heads.

A compiler that splits programs over devices cannot split a kernel, so the split is spelt out here. Not here: rows with branches, which are
more than its equality of segments can say, and what is compiled elsewhere (`attention`).
From: `jax.experimental.pallas.ops.tpu.splash_attention` (jax 0.10), after FlashAttention-2 (arXiv 2307.08691).
"""

from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from ilr_jax.models.platform import LANES, platform
from ilr_jax.models.products import SAVED
from ilr_jax.sharding import Layout

BLOCKS = (512, 384, 256, 128)  # places of a row that are worked on at a time: as many as divide it


def attend(
    q: Float[Array, "N T Q H"],
    k: Float[Array, "N T KV H"],
    v: Float[Array, "N T KV H"],
    segments: Int[Array, "N T"],
    window: int | None,
    layout: Layout | None,
) -> Float[Array, "N T Q H"]:
    """Causal attention within segments, whose tokens stand side by side; H is a multiple of 128.

    Rows are padded to a multiple of what they are split into. Where heads are split into more pieces than there are key heads for, these
    are repeated, so that each device has those of its queries.
    On other devices than TPUs the kernel is interpreted, which is for tests only.
    """
    count, length = q.shape[:2]
    rows, pieces = (layout.pieces("batch"), layout.pieces("heads")) if layout else (1, 1)
    pad = lambda x: jnp.pad(x, ((0, -count % rows), (0, -length % LANES)) + ((0, 0),) * (x.ndim - 2))
    share = lambda x: jnp.repeat(x, pieces // gcd(pieces, x.shape[2]), axis=2)
    scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        """On one device."""
        kernel = _kernel(q.shape[2], q.shape[1], window)
        turned = (x.swapaxes(1, 2) for x in (q, k, v))
        one: Any = lambda q, k, v, s: kernel(q, k, v, kernels.SegmentIds(s, s))
        return jax.vmap(one)(*turned, segments).swapaxes(1, 2)

    inputs = pad(scaled), pad(share(k)), pad(share(v)), pad(segments)
    if layout is None:
        return local(*inputs)[:, :length]
    by_head, by_row = layout.sharding("batch", None, "heads", None).spec, layout.sharding("batch", None).spec
    split = jax.shard_map(local, mesh=layout.mesh, in_specs=(by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False)
    return split(*inputs)[:count, :length]


def _kernel(heads: int, length: int, window: int | None) -> kernels.SplashAttentionKernel:
    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None or window >= length else masks.LocalMask(shape, (window - 1, 0), 0)
    size = next(block for block in BLOCKS if length % block == 0)
    forward = dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), size)
    backward = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), size)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**forward, **backward, use_fused_bwd_kernel=True),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=platform() != "tpu",
    )
