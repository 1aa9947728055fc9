"""Decoding with the cache gives the hidden states of the full forward pass: every family, padding and window, shared prompts, rings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ilr_jax.models import cache, config, decoder
from ilr_jax.types import Rows

TOLERANCE = 1e-5  # on hidden states of order 1; seen: 2e-6
PROMPT, NEW = 13, 8
# Prompts of five rows: whole, padded on the left, padded on the right; all but the shortest are longer than the Mistral's window of 7.
SPANS = [(0, PROMPT), (4, PROMPT), (PROMPT - 1, PROMPT), (0, 9), (0, 2)]


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def model(request):
    settings = config.from_fields(tiny.CONFIGS[request.param])
    params = decoder.init(settings, jax.random.key(0))
    return settings, jax.tree.map(lambda w: 8.0 * w if w.ndim > 2 else w, params)  # large enough for attention to matter


def prompts(spans=SPANS) -> Rows:
    tokens = np.random.RandomState(1).randint(0, 61, (len(spans), PROMPT)).astype(np.int32)
    place = np.arange(PROMPT)[None]
    start, stop = (np.array(x)[:, None] for x in zip(*spans, strict=True))
    inside = (place >= start) & (place < stop)
    return Rows(tokens, np.where(inside, place - start, 0).astype(np.int32), inside.astype(np.int32))


def continued(rows: Rows, n: int = 1) -> tuple[Rows, np.ndarray, np.ndarray]:
    """`rows`, each n times, with NEW tokens after them; and those tokens and their positions alone."""
    rows = Rows(*(np.repeat(x, n, axis=0) for x in rows))
    tokens = np.random.RandomState(2).randint(0, 61, (len(rows.tokens), NEW)).astype(np.int32)
    positions = (rows.segments.sum(1, keepdims=True) + np.arange(NEW)[None]).astype(np.int32)
    whole = Rows(*(np.concatenate(x, 1) for x in zip(rows, (tokens, positions, np.ones_like(tokens)), strict=True)))
    return whole, tokens, positions


def full(model, rows: Rows):
    settings, params = model
    return jax.jit(lambda params: decoder.bind(settings, params)(rows)[0])(params)


def decode(model, rows: Rows, tokens, positions, *, width: int, length: int = NEW, ring: int | None = None):
    """Hidden states of `tokens`, `width` at a time, after a prefill of `rows`."""
    settings, params = model

    @jax.jit
    def prefill(params):
        return decoder.bind(settings, params)(rows, keep=True)[1]

    @jax.jit
    def step(params, state, tokens, positions):
        return decoder.bind(settings, params).step(tokens, positions, state)

    blank = cache.empty_part(settings, len(tokens), length, jnp.float32)
    state, out = cache.Cache(prefill(params), blank, jnp.zeros((), jnp.int32)), []
    for start in range(0, NEW, width):
        part = slice(start, start + width)
        hidden, state = step(params, state, jnp.asarray(tokens[:, part]), jnp.asarray(positions[:, part]))
        out.append(hidden)
        if ring:
            state = state._replace(cursor=state.cursor % ring)
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("width", (1, 4))
def test_decode_equals_full_forward(model, width):
    whole, tokens, positions = continued(prompts())
    wanted = full(model, whole)[:, PROMPT:]
    got = decode(model, prompts(), tokens, positions, width=width)
    assert 0.5 < float(jnp.abs(wanted).mean())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_rows_share_a_prompt(model):
    spans = [(0, PROMPT), (3, 9)]
    whole, tokens, positions = continued(prompts(spans), 3)
    wanted = full(model, whole)[:, PROMPT:]
    got = decode(model, prompts(spans), tokens, positions, width=1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_generated_part_as_a_ring():
    settings = config.from_fields(tiny.CONFIGS["mistral"] | {"sliding_window": 5})
    model = settings, jax.tree.map(lambda w: 8.0 * w if w.ndim > 2 else w, decoder.init(settings, jax.random.key(0)))
    whole, tokens, positions = continued(prompts())
    wanted = full(model, whole)[:, PROMPT:]
    got = decode(model, prompts(), tokens, positions, width=1, length=5, ring=5)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_prompt_part_of_a_longer_window_matters():
    """The test above can fail: without the window the same tokens give other hidden states."""
    wide, narrow = (config.from_fields(tiny.CONFIGS["mistral"] | {"sliding_window": window}) for window in (None, 5))
    params = jax.tree.map(lambda w: 8.0 * w if w.ndim > 2 else w, decoder.init(wide, jax.random.key(0)))
    whole, _, _ = continued(prompts())
    assert float(jnp.abs(full((wide, params), whole) - full((narrow, params), whole)).max()) > 0.05
