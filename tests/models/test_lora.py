"""Adapters: K in one pass equal K passes, merged equals unmerged, fresh adapters change nothing, bad settings are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ilr_jax.models import config, decoder, lora
from ilr_jax.types import Rows

SHAPE = lora.Lora(3, 7.0, ("q_proj", "o_proj", "up_proj", "down_proj"))


@pytest.fixture(scope="module")
def model():
    settings = config.from_fields(tiny.CONFIGS["llama"])
    params = decoder.init(settings, jax.random.key(0))
    adapters = lora.init(settings, SHAPE, jax.random.split(jax.random.key(1), 3))
    random = np.random.RandomState(4)
    filled = {name: pair | {"b": jnp.asarray(0.1 * random.randn(*pair["b"].shape), jnp.float32)} for name, pair in adapters.items()}
    return settings, params, filled


def rows(k: int) -> Rows:
    """Different tokens for each of k adapters."""
    batches = [tiny.rows(seed) for seed in range(k)]
    return Rows(*(np.concatenate(x) for x in zip(*batches, strict=True)))


def run(model, adapters, rows):
    """Hidden states, and the gradient of a loss that sums over the rows."""
    settings, params, _ = model

    def loss(adapters):
        hidden, _ = decoder.bind(settings, params)(rows, lora.prepare(adapters, SHAPE, jnp.float32))
        hidden = hidden * (rows.segments > 0)[..., None]
        return jnp.sum(jnp.tanh(hidden)), hidden

    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(adapters)
    return hidden, gradient


def test_three_adapters_in_one_pass_equal_three_passes(model):
    adapters, batch = model[2], rows(3)
    hidden, gradient = run(model, adapters, batch)
    for k in range(3):
        part = slice(k * 5, (k + 1) * 5)
        one, own = run(model, jax.tree.map(lambda x, k=k: x[k : k + 1], adapters), Rows(*(x[part] for x in batch)))
        np.testing.assert_allclose(hidden[part], one, rtol=0, atol=1e-5)
        for path, mine in jax.tree_util.tree_leaves_with_path(gradient):
            theirs = own[path[0].key][path[1].key][0]
            np.testing.assert_allclose(mine[k], theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()), err_msg=str(path))
    assert float(jnp.abs(run(model, jax.tree.map(lambda x: x[::-1], adapters), batch)[0] - hidden).max()) > 0.1


@pytest.mark.parametrize("index", (0, 2))
def test_merged_equals_unmerged(model, index):
    settings, params, adapters = model
    one = lora.prepare(jax.tree.map(lambda x: x[index : index + 1], adapters), SHAPE, jnp.float32)
    batch = tiny.rows()
    wanted = tiny.logits(settings, params, batch, one)
    merged = tiny.logits(settings, lora.merge(params, adapters, SHAPE, index), batch)
    real = batch.segments > 0
    assert np.abs(wanted - tiny.logits(settings, params, batch))[real].max() > 0.02
    np.testing.assert_allclose(merged[real], wanted[real], rtol=0, atol=1e-5)


def test_merge_keeps_the_dtype_and_the_other_parameters(model):
    _, params, adapters = model
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    merged = lora.merge(half, adapters, SHAPE, 1)
    changed = {name for name in half["layers"] if bool((merged["layers"][name] != half["layers"][name]) is not False)}
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, half)
    same = {name for name, pair in half["layers"].items() if all(bool((merged["layers"][name][k] == pair[k]).all()) for k in pair)}
    assert set(half["layers"]) - same == set(SHAPE.modules) and changed
    delta = adapters["q_proj"]["a"][1] @ adapters["q_proj"]["b"][1] * (7.0 / 3)
    wanted = (half["layers"]["q_proj"]["kernel"].astype(jnp.float32) + delta).astype(jnp.bfloat16)
    np.testing.assert_array_equal(merged["layers"]["q_proj"]["kernel"], wanted)


def test_init_is_that_of_peft():
    """`a` uniform within 1/sqrt(inputs), `b` zero, adapters and modules drawn apart (compared with peft's own in test_parity)."""
    settings = config.from_fields(tiny.CONFIGS["mistral"])
    adapters = lora.init(settings, lora.Lora(16, 8.0), jax.random.split(jax.random.key(0), 2))
    assert set(adapters) == set(lora.ALL_LINEAR)
    for name, pair in adapters.items():
        inputs, outputs = lora.sizes(settings)[name]
        assert pair["a"].shape == (2, 3, inputs, 16) and pair["b"].shape == (2, 3, 16, outputs)
        assert pair["a"].dtype == pair["b"].dtype == jnp.float32
        assert not pair["b"].any()
        bound = inputs**-0.5
        assert 0.98 * bound < float(jnp.abs(pair["a"]).max()) <= bound
        assert abs(float(pair["a"].std()) - bound / 3**0.5) < 0.02 * bound
        assert not (pair["a"][0] == pair["a"][1]).any()
    assert not (adapters["gate_proj"]["a"] == adapters["up_proj"]["a"]).any()


def test_fresh_adapters_change_nothing_and_keys_decide(model):
    settings, params, _ = model
    keys = jax.random.split(jax.random.key(1), 2)
    fresh = lora.init(settings, SHAPE, keys)
    batch = Rows(*(x[:4] for x in tiny.rows()))
    ours = tiny.logits(settings, params, batch, lora.prepare(fresh, SHAPE, jnp.float32))
    np.testing.assert_array_equal(ours, tiny.logits(settings, params, batch))
    alone = lora.init(settings, SHAPE, keys[1:])
    np.testing.assert_array_equal(alone["q_proj"]["a"][0], fresh["q_proj"]["a"][1])


@pytest.mark.parametrize("settings", ({"rank": 0}, {"modules": ()}, {"modules": ("q_proj", "lm_head")}))
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="rank >= 1 and modules out of"):
        lora.Lora(**settings)
