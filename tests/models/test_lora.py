"""Adapters: K in one pass equal K passes, merged equals unmerged, fresh adapters change nothing, bad settings are refused."""

from functools import partial

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
    return settings, tiny.params(tiny.CONFIGS["llama"]), tiny.adapters(settings, SHAPE, 3)


def rows(k: int) -> Rows:
    """Different tokens for each of k adapters."""
    batches = [tiny.rows(seed) for seed in range(k)]
    return Rows(*(np.concatenate(x) for x in zip(*batches, strict=True)))


@partial(jax.jit, static_argnames="settings")
def run(settings, params, adapters, rows):
    """Hidden states, and the gradient of a loss that sums over the rows."""

    def loss(adapters):
        hidden, _ = decoder.bind(settings, params)(rows, lora.prepare(adapters, SHAPE, jnp.float32))
        hidden = hidden * (rows.segments > 0)[..., None]
        return jnp.sum(jnp.tanh(hidden)), hidden

    gradient, hidden = jax.grad(loss, has_aux=True)(adapters)
    return hidden, gradient


def test_three_adapters_in_one_pass_equal_three_passes(model):
    (*base, adapters), batch = model, rows(3)
    hidden, gradient = run(*base, adapters, batch)
    for k in range(3):
        part = slice(k * 5, (k + 1) * 5)
        one, own = run(*base, jax.tree.map(lambda x, k=k: x[k : k + 1], adapters), Rows(*(x[part] for x in batch)))
        np.testing.assert_allclose(hidden[part], one, rtol=0, atol=1e-5)
        for path, mine in jax.tree_util.tree_leaves_with_path(gradient):
            theirs = own[path[0].key][path[1].key][0]
            np.testing.assert_allclose(mine[k], theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()), err_msg=str(path))
    assert float(jnp.abs(run(*base, jax.tree.map(lambda x: x[::-1], adapters), batch)[0] - hidden).max()) > 0.1


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
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, half)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), merged, half)
    assert {name for name, pair in same["layers"].items() if not all(pair.values())} == set(SHAPE.modules)
    assert all(jax.tree.leaves({**same, "layers": {}}))
    delta = np.asarray(adapters["q_proj"]["a"][1]) @ np.asarray(adapters["q_proj"]["b"][1]) * np.float32(7.0 / 3)
    wanted = np.asarray(half["layers"]["q_proj"]["kernel"], np.float32) + delta
    np.testing.assert_allclose(np.asarray(merged["layers"]["q_proj"]["kernel"], np.float32), wanted, rtol=2**-8, atol=1e-5)


def test_init_is_that_of_peft():
    """`a` uniform within 1/sqrt(inputs), `b` zero, adapters and modules drawn apart (compared with peft's own in test_parity)."""
    settings = config.from_fields(tiny.CONFIGS["mistral"])
    adapters = lora.init(settings, lora.Lora(16, 8.0), jax.random.split(jax.random.key(0), 2))
    assert set(adapters) == set(lora.ALL_LINEAR)
    for name, pair in adapters.items():
        inputs, outputs = lora.sizes(settings)[name]
        assert pair["a"].shape == (2, 2, inputs, 16) and pair["b"].shape == (2, 2, 16, outputs)
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
    batch = tiny.rows()
    one = jax.tree.map(lambda x: x[:1], fresh)
    ours = tiny.logits(settings, params, batch, lora.prepare(one, SHAPE, jnp.float32))
    np.testing.assert_allclose(ours, tiny.logits(settings, params, batch), rtol=0, atol=1e-6)
    alone = lora.init(settings, SHAPE, keys[1:])
    np.testing.assert_array_equal(alone["q_proj"]["a"][0], fresh["q_proj"]["a"][1])


@pytest.mark.parametrize("settings", ({"rank": 0}, {"modules": ()}, {"modules": ("q_proj", "lm_head")}))
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="rank >= 1 and modules out of"):
        lora.Lora(**settings)


def test_copies_are_worth_their_reading_where_layers_are_small():
    """The embedded models' size against Mistral-7B's."""
    sized = lambda **fields: config.from_fields(tiny.CONFIGS["mistral"] | fields)
    small = sized(hidden_size=128, intermediate_size=352, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    large = sized(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    wide = lora.Lora(64, 128.0)
    assert lora.worth_merging(small, wide, 2, 128) and lora.worth_merging(small, wide, 10, 256)
    assert not lora.worth_merging(small, lora.Lora(4, 8.0), 10, 128) and not lora.worth_merging(large, wide, 2, 256)
