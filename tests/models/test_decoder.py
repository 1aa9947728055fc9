"""The decoder by itself: isolation of packed documents, agreement of its variants, what it saves for the backward pass."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ilr_jax.models import config, decoder, lora
from ilr_jax.models.layers import join_heads, split_heads
from ilr_jax.models.platform import described
from ilr_jax.types import Rows

SHAPE = lora.Lora(4, 8.0)


@pytest.fixture(scope="module", params=("gemma", "mistral"))
def model(request):
    return config.from_fields(tiny.CONFIGS[request.param]), tiny.params(tiny.CONFIGS[request.param])


def packed(lengths=(9, 15), seed=3) -> Rows:
    """One row of several documents."""
    tokens = np.random.RandomState(seed).randint(0, 61, (1, sum(lengths))).astype(np.int32)
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
    return Rows(tokens, np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32), segments)


@pytest.mark.parametrize("lengths", ((9, 15), (90, 101)), ids=("short", "several blocks"))
@pytest.mark.parametrize("attention", ("gemm", "xla"))
def test_packed_documents_do_not_see_each_other(model, attention, lengths):
    rows = packed(lengths)
    run = lambda rows: tiny.hidden(*model, rows, attention=attention)
    before = run(rows)
    for own in (1, 2):
        other = rows.segments != own
        after = run(rows._replace(tokens=np.where(other, (rows.tokens + 7) % 61, rows.tokens)))
        np.testing.assert_array_equal(after[~other], before[~other])
        assert (after[other] != before[other]).mean() > 0.9
    first, second = lengths
    alone = Rows(*(np.roll(x * (rows.segments == 2), -first, axis=1) for x in rows))  # the second document, then padding
    np.testing.assert_allclose(before[:, first:], run(alone)[:, :second], rtol=0, atol=1e-5)


def test_causal(model):
    rows = packed((24,))
    before = tiny.hidden(*model, rows)
    changed = rows.tokens.copy()
    changed[:, 15] = (changed[:, 15] + 7) % 61
    after = tiny.hidden(*model, rows._replace(tokens=changed))
    np.testing.assert_array_equal(after[:, :15], before[:, :15])
    assert np.abs(after[:, 15:] - before[:, 15:]).max(-1).min() > 1e-4


@pytest.mark.parametrize("rows", (tiny.rows(), packed((90, 101))), ids=("short", "several blocks"))
def test_attention_implementations_agree(model, rows):
    """In states and in gradients; the longer rows are computed block by block."""
    (settings, params), real = model, rows.segments > 0

    def loss(params, kind):
        states, _ = decoder.bind(settings, params)(rows, attention=kind)
        return jnp.sum(jnp.square(states) * real[..., None]), states

    of = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (grads, states), (wanted, expected) = of(params, "gemm"), of(params, "xla")
    np.testing.assert_allclose(states[real], expected[real], rtol=0, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max()), grads, wanted)


def gradient(model, remat):
    """The function from adapters to the gradient of a loss."""
    settings, params = model
    rows = tiny.rows()

    def loss(adapters):
        states, _ = decoder.bind(settings, params)(rows, lora.prepare(adapters, SHAPE, jnp.float32), remat=remat)
        return jnp.sum(jnp.square(states) * (rows.segments > 0)[..., None])

    return jax.grad(loss)


def test_remat_changes_no_gradient():
    settings = config.from_fields(tiny.CONFIGS["mistral"])
    model = settings, tiny.params(tiny.CONFIGS["mistral"])
    adapters = tiny.adapters(settings, SHAPE, 1)
    plain, *others = (jax.jit(gradient(model, remat))(adapters) for remat in ("none", "dots", "full"))
    for other in others:
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * float(jnp.abs(a).max()))


def inner(jaxpr):
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    yield from inner(sub)


def scans_of_gradient(model, remat):
    jaxpr = jax.make_jaxpr(gradient(model, remat))(tiny.adapters(model[0], SHAPE, 1)).jaxpr
    forward, backward = (equation for equation in inner(jaxpr) if equation.primitive.name == "scan")
    return forward, backward


def products(scan) -> int:
    return collections.Counter(e.primitive.name for e in inner(scan.params["jaxpr"].jaxpr))["dot_general"]


def test_frozen_kernels_are_not_saved_again(model):
    """What the forward scan stacks up for the backward one holds no copy of a kernel, whose bytes would double the base model."""
    kernels = {(model[0].num_layers, *size) for size in lora.sizes(model[0]).values()}
    for scan in scans_of_gradient(model, "none"):
        assert not kernels & {v.aval.shape for v in scan.outvars}


def test_remat_saves_what_it_says(model):
    """`full` keeps a layer's input only, `dots` also the outputs of its linear layers, which then are not computed twice."""
    saved = {remat: scans_of_gradient(model, remat) for remat in ("none", "dots", "full")}
    kept = {remat: len(forward.outvars) for remat, (forward, _) in saved.items()}
    work = {remat: products(backward) for remat, (_, backward) in saved.items()}
    assert kept["full"] == 2 and kept["dots"] == 2 + 6  # the last linear layer's output is the next layer's input
    assert work["none"] < work["dots"] <= work["full"] - 7 - 5


def test_layers_are_scanned():
    """The program does not grow with depth."""
    sizes = []
    for layers in (2, 7):
        settings = config.from_fields(tiny.CONFIGS["llama"] | {"num_hidden_layers": layers})
        params = decoder.abstract(settings)
        sizes.append(len(list(inner(jax.make_jaxpr(lambda p, s=settings: decoder.bind(s, p)(packed())[0])(params).jaxpr))))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("token", (61, -1, -100))
def test_a_token_outside_the_table_is_not_read_as_another(model, token):
    rows = packed()
    rows.tokens[0, -1] = token
    assert np.isnan(tiny.hidden(*model, rows)[0, -1]).all()


@pytest.mark.parametrize("name", ("gemma", "llama"))
def test_init(name):
    """Random parameters have the shapes that `abstract` promises and those of a loaded model; layers differ."""
    settings = config.from_fields(tiny.CONFIGS[name])
    params = decoder.init(settings, jax.random.key(0), dtype=jnp.bfloat16)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(params) == shapes(decoder.abstract(settings)) == shapes(tiny.params(tiny.CONFIGS[name]))
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    kernel = np.asarray(params["layers"]["up_proj"]["kernel"], np.float32)
    assert abs(kernel.std() - 0.02) < 1e-3 and (kernel[0] != kernel[1]).mean() > 0.9
    assert (np.asarray(params["norm"]["scale"]) + settings.norm_offset == 1).all()


def test_bfloat16_is_close_to_float32(model):
    rows = packed()
    wide = tiny.hidden(*model, rows)
    half = tiny.hidden(*model, rows, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - wide).mean() < 0.02 * np.abs(wide).mean()


@pytest.mark.parametrize(("length", "size"), ((16, 128), (13, 128), (16, 64)))
def test_heads_are_taken_apart_on_a_tpu_as_elsewhere(length, size):
    x = jnp.arange(2 * length * 3 * size, dtype=jnp.float32).reshape(2, length, 3 * size)
    plain, weights = split_heads(x, size), jnp.cos(x)
    gradient = jax.grad(lambda x: (join_heads(split_heads(x, size) ** 2) * weights).sum())
    wanted = gradient(x)
    with described("tpu"):
        turned = split_heads(x, size)
        np.testing.assert_array_equal(join_heads(turned), x)
        np.testing.assert_array_equal(gradient(x), wanted)
    np.testing.assert_array_equal(turned, plain)
    np.testing.assert_array_equal(join_heads(plain), x)
    assert plain.shape == (2, length, 3, size)
