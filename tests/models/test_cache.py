"""Decoding with the cache gives the hidden states of the full forward pass: every family, padding and window, shared prompts, rings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ilr_jax.models import cache, config, decoder
from ilr_jax.types import Rows

TOLERANCE = 3e-5  # on hidden states of order 1; seen: 1.3e-5, and 2e-6 with what LLVM makes at its level 3
PROMPT, NEW = 13, 8
# Prompts of five rows: whole, padded on the left, padded on the right; all but the shortest are longer than the Mistral's window of 7.
SPANS = [(0, PROMPT), (4, PROMPT), (PROMPT - 1, PROMPT), (0, 9), (0, 2)]


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


@partial(jax.jit, static_argnames="settings")
def prefill(settings, params, rows):
    return decoder.bind(settings, params)(rows, keep=True)[1]


@partial(jax.jit, static_argnames="settings")
def step(settings, params, state, tokens, positions, ancestors=None):
    return decoder.bind(settings, params).step(tokens, positions, state, ancestors=ancestors)


def decode(settings, params, rows: Rows, tokens, positions, *, width: int, length: int = NEW, ring: int | None = None):
    """Hidden states of `tokens`, `width` at a time, after a prefill of `rows`."""
    blank = cache.empty_part(settings, len(tokens), length, jnp.float32)
    state, out = cache.Cache(prefill(settings, params, rows), blank, jnp.zeros((), jnp.int32)), []
    for start in range(0, NEW, width):
        part = slice(start, start + width)
        hidden, state = step(settings, params, state, tokens[:, part], positions[:, part])
        out.append(hidden)
        if ring:
            state = state._replace(cursor=state.cursor % ring)
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize(("name", "width", "shared"), [*((name, 1, 3) for name in tiny.CONFIGS), ("mistral", 4, 1)])
def test_decode_equals_full_forward(name, width, shared):
    """Several tokens at a time, and one at a time by rows that share their prompt's part."""
    settings, params = config.from_fields(tiny.CONFIGS[name]), tiny.params(tiny.CONFIGS[name])
    whole, tokens, positions = continued(prompts(), shared)
    wanted = tiny.hidden(settings, params, whole)[:, PROMPT:]
    got = decode(settings, params, prompts(), tokens, positions, width=width)
    assert np.abs(wanted).mean() > 0.5
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_generated_part_as_a_ring():
    """A ring as long as the window holds all that the window shows, and the window hides tokens here."""
    fields = tiny.CONFIGS["mistral"] | {"sliding_window": 5}
    settings, params = config.from_fields(fields), tiny.params(fields)
    whole, tokens, positions = continued(prompts())
    wanted = tiny.hidden(settings, params, whole)[:, PROMPT:]
    got = decode(settings, params, prompts(), tokens, positions, width=1, length=5, ring=5)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
    wide = config.from_fields(fields | {"sliding_window": None})
    assert np.abs(tiny.hidden(wide, params, whole)[:, PROMPT:] - wanted).max() > 0.05


def test_rows_share_the_generated_part():
    """Beams of a prompt write side by side into one part, and each reads its own ancestors only."""
    settings, params = config.from_fields(tiny.CONFIGS["mistral"]), tiny.params(tiny.CONFIGS["mistral"])
    beams, groups = 3, len(SPANS)
    whole, tokens, positions = continued(prompts(), beams)
    wanted = tiny.hidden(settings, params, whole)[:, PROMPT:]
    blank = cache.empty_part(settings, groups, beams * NEW, jnp.float32)
    state = cache.Cache(prefill(settings, params, prompts()), blank, jnp.zeros((), jnp.int32))
    own = np.arange(beams * NEW)[None] % beams == np.tile(np.arange(beams), groups)[:, None]
    for t in range(NEW):
        hidden, state = step(settings, params, state, tokens[:, t : t + 1], positions[:, t : t + 1], own)
        np.testing.assert_allclose(hidden[:, 0], wanted[:, t], rtol=0, atol=TOLERANCE)
