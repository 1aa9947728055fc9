"""Splash attention, interpreted, against the batched products; on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from ilr_jax import sharding
from ilr_jax.models import splash
from ilr_jax.models.attention import attend
from ilr_jax.models.cache import KeyValues
from ilr_jax.models.platform import described
from ilr_jax.plan import hlo

RULES = {name: "" for name in ("embed", "mlp", "vocab")} | {"batch": "data,fsdp", "heads": "tensor", "kv_heads": "auto"}


def rows(length: int, heads: int, kv: int, count: int = 2, width: int = 128):
    """Random queries, keys and values of rows of two documents, with padding before, between and after."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(count, length, n, width)), jnp.float32) for n in (heads, kv, kv))
    positions, segments = np.zeros((2, count, length), np.int32)
    for number, (start, end) in enumerate(((3, length // 2), (length // 2 + 4, length - 5)), 1):
        positions[:, start:end], segments[:, start:end] = np.arange(end - start), number
    return (q, k, v), jnp.asarray(positions), jnp.asarray(segments)


def both(qkv, positions, segments, window, layout=None):
    """Value and gradients of a sum over what is no padding: of the kernel, and of the batched products."""
    told = (segments > 0)[:, :, None, None]

    def total(of):
        return lambda *x: (jnp.where(told, of(*x).astype(jnp.float32), 0.0) ** 2).sum()

    def plain(q, k, v):
        return attend(q, positions, segments, (KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), positions, segments),), window)

    kernel = lambda q, k, v: splash.attend(q, k, v, segments, window, layout)
    return (jax.jit(jax.value_and_grad(total(of), (0, 1, 2)))(*qkv) for of in (kernel, plain))


@pytest.mark.parametrize(
    ("length", "heads", "kv", "window"), [(128, 2, 2, None), (200, 4, 2, None), (200, 4, 1, 40), (384, 2, 1, 100), (640, 1, 1, None)]
)
def test_values_and_gradients_are_those_of_the_batched_products(length, heads, kv, window):
    found, wanted = both(*rows(length, heads, kv), window)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_in_bfloat16_it_is_as_near_as_the_batched_products():
    wide, positions, segments = rows(200, 4, 2)
    _, wanted = both(wide, positions, segments, None)
    found = both([x.astype(jnp.bfloat16) for x in wide], positions, segments, None)
    off = lambda of: [float(jnp.abs(x.astype(jnp.float32) - y).max()) for x, y in zip(of[1], wanted[1], strict=True)]
    kernel, products = map(off, found)
    assert all(mine < 2 * theirs for mine, theirs in zip(kernel, products, strict=True)), (kernel, products)


@pytest.mark.parametrize(
    ("mesh", "kv", "count"), [((2, 2, 2), 2, 8), ((1, 2, 4), 2, 8), ((2, 1, 4), 1, 8), ((4, 1, 1), 2, 5), ((2, 2, 2), 2, 1)]
)
def test_on_a_mesh_each_device_has_its_own_rows_and_heads(mesh, kv, count):
    """Key heads that are fewer than the pieces too, and rows that do not divide, as of a prefill."""
    sizes = dict(zip(sharding.MESH_AXES, mesh, strict=True))
    layout = sharding.choose(sizes, RULES, [{"heads": 4, "kv_heads": kv, "mlp": 4, "embed": 4, "vocab": 4}], 0, 1)
    qkv, positions, segments = rows(128, 4, kv, count)
    axes = lambda x: ("batch" if count == 8 else None, None, "heads" if x.shape[2] == 4 else "kv_heads", None)
    split = [jax.device_put(x, layout.sharding(*axes(x))) for x in qkv]
    found, _ = both(split, positions, segments, None, layout)
    _, wanted = both(qkv, positions, segments, None)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_documents_of_a_row_know_nothing_of_each_other():
    (q, k, v), _, segments = rows(200, 2, 1)
    run = jax.jit(lambda *x: splash.attend(*x, segments, None, None))
    changed = (segments == 2)[:, :, None, None]
    before, after = (np.asarray(run(*(jnp.where(changed, x + plus, x) for x in (q, k, v)))) for plus in (0.0, 1.0))
    np.testing.assert_array_equal(before[segments == 1], after[segments == 1])
    assert (before[segments == 2] != after[segments == 2]).any()


@pytest.mark.tpu
def test_splash_compiles_for_several_tpus_and_its_products_are_counted(monkeypatch):
    """Forward and backward, rows split over two devices and heads over two."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    model = dict.fromkeys(("embed", "mlp", "vocab", "heads"), 8) | {"kv_heads": 1}
    where = sharding.choose({"data": 2, "fsdp": 1, "tensor": 2}, RULES, [model], 0, 1, devices)
    made = lambda heads, split: jax.ShapeDtypeStruct(
        (4, 512, heads, 256), jnp.bfloat16, sharding=where.sharding("batch", None, split, None)
    )
    segments = jax.ShapeDtypeStruct((4, 512), jnp.int32, sharding=where.sharding("batch", None))
    run = jax.grad(lambda q, k, v, s: splash.attend(q, k, v, s, 100, where).astype(jnp.float32).sum(), (0, 1, 2))
    with described("tpu"), jax.default_matmul_precision("default"):  # as users have it
        text = jax.jit(run).lower(made(8, "heads"), made(1, "kv_heads"), made(1, "kv_heads"), segments).compile().as_text()
    assert hlo.read(text).kernels == 7 * 2 * (4 // 2) * (8 // 2) * 512 * 512 * 256
