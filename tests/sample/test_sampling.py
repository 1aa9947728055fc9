"""Drawing tokens: exact against plain references.

At N evenly spaced uniforms an exact inversion gives each token N * p times, to within one at either end of its stretch: much sharper than
any statistical test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilr_jax.models.platform import described
from ilr_jax.sample import sampling

N = 2000
EVEN = (np.arange(N, dtype=np.float32) + 0.5) / N


@pytest.fixture(params=["cpu", "gpu"])
def ways(request):
    """A nucleus is found in different ways on different devices."""
    with described(request.param):
        yield


def logits(vocabulary: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(vocabulary) * spread).astype(np.float32)


def counts(row: np.ndarray, *rule) -> np.ndarray:
    drawn = jax.jit(lambda u: sampling.draw(jnp.broadcast_to(jnp.asarray(row), (N, row.size)), u, *rule))(jnp.asarray(EVEN))
    return np.bincount(np.asarray(drawn), minlength=row.size)


def expected(row: np.ndarray, temperature: float, top_k: int | None, top_p: float) -> np.ndarray:
    """Temperature, then top-k, then top-p of what is left, in float64."""
    p = np.exp((row - row.max()).astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    p[order[top_k:] if top_k else order[row.size :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


@pytest.mark.parametrize("vocabulary", [1, 2, 37, 700, 1025])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_two_level_draw_is_exact(vocabulary, temperature):
    row = logits(vocabulary)
    assert np.abs(counts(row, temperature) - N * expected(row, temperature, None, 1.0)).max() < 1.5


@pytest.mark.parametrize(
    "rule", [(1.0, 5, 1.0), (0.7, 40, 0.8), (1.0, None, 0.5), (1.5, None, 0.95), (1.0, 1, 1.0), (1.0, None, 1e-6), (2.0, 5000, 0.95)]
)
@pytest.mark.usefixtures("ways")
def test_cuts_are_exact(rule):
    row = logits(700)
    assert np.abs(counts(row, *rule) - N * expected(row, *rule)).max() < 1.5


def test_top_k_comes_before_top_p():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert (counts(row, 1.0, 2, 0.5) > 0).tolist() == [True, False, False, False]  # 0.4 of 0.7 is over half; of 1 it would not be
    assert (counts(row, 1.0, None, 0.5) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("vocabulary", [700, 1500])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.usefixtures("ways")
def test_nucleus_wider_than_the_window_is_exact(vocabulary, ties):
    row = logits(vocabulary, spread=0.3)
    row = np.round(row * 4) / 4 if ties else row
    assert (expected(row, 1.0, None, 0.9) > 0).sum() > sampling.WINDOW
    assert np.abs(counts(row, 1.0, None, 0.9) - N * expected(row, 1.0, None, 0.9)).max() < 1.5


@pytest.mark.usefixtures("ways")
def test_nucleus_of_everything_that_is_possible():
    row = np.full(300, -np.inf, np.float32)
    row[50:250] = 0.0
    assert set(np.flatnonzero(counts(row, 1.0, None, 1 - 1e-7))) <= set(range(50, 250))


@pytest.mark.usefixtures("ways")
def test_a_wide_neighbour_changes_nothing():
    narrow, wide = logits(700, spread=5.0), logits(700, spread=0.1)
    u = jnp.asarray(np.linspace(0, 0.999, 50, dtype=np.float32))
    rows = lambda row, n: jnp.broadcast_to(jnp.asarray(row), (n, 700))
    alone = sampling.draw(rows(narrow, 50), u, 1.0, None, 0.9)
    beside = sampling.draw(jnp.concatenate([rows(narrow, 50), rows(wide, 1)]), jnp.append(u, 0.3), 1.0, None, 0.9)
    assert alone.tolist() == beside[:50].tolist()


@pytest.mark.parametrize("rule", [(1.0,), (0.3, 50), (1.0, None, 0.99)])
@pytest.mark.usefixtures("ways")
def test_impossible_tokens_are_never_drawn(rule):
    row = np.full(300, -np.inf, np.float32)
    row[[7, 100, 101]] = 0.0
    u = jnp.array([0.0, 1e-8, 0.3333, 0.5, 0.66666, 1 - 2**-24], jnp.float32)
    drawn = sampling.draw(jnp.broadcast_to(jnp.asarray(row), (6, 300)), u, *rule)
    assert drawn[0] == 7 and drawn[-1] == 101 and set(drawn.tolist()) <= {7, 100, 101}


def test_temperature_zero_takes_the_first_of_the_likeliest():
    assert sampling.draw(jnp.array([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]]), jnp.array([0.9, 0.9]), 0.0).tolist() == [1, 0]


def test_uniforms_are_uniform_and_belong_to_key_and_number():
    keys = jax.random.split(jax.random.key(3), 500)
    u = np.asarray(sampling.uniforms(keys, jnp.zeros(500, jnp.int32), 100))
    bins = np.histogram(u, bins=100, range=(0, 1))[0]
    assert 0.7 < np.square(bins - 500).sum() / 500 / 99 < 1.4  # chi-square over its degrees of freedom
    assert np.unique(u).size > 49_000  # repeats are those of 2^23 values, as by chance
    later = np.asarray(sampling.uniforms(keys[7:9], jnp.array([60, 3], jnp.int32), 5))
    assert later[:, 0].tolist() == u[60:65, 7].tolist() and later[:, 1].tolist() == u[3:8, 8].tolist()


def test_draws_follow_the_distribution():
    row = logits(50, spread=1.0)
    u = sampling.uniforms(jax.random.split(jax.random.key(0), 400), jnp.zeros(400, jnp.int32), 100).reshape(-1)
    drawn = sampling.draw(jnp.broadcast_to(jnp.asarray(row), (u.size, 50)), u, 0.8)
    mean = u.size * expected(row, 0.8, None, 1.0)
    assert (np.square(np.bincount(np.asarray(drawn), minlength=50) - mean) / mean).sum() / 49 < 1.6


def test_log_probs_are_of_the_model_itself():
    row = logits(30)
    p = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    assert float(sampling.log_probs(jnp.asarray(row)[None], jnp.array([4]))[0]) == pytest.approx(np.log(p[4]), abs=1e-5)


@pytest.mark.parametrize(
    "rule, name", [((-1.0, None, 1.0), "temperature"), ((1.0, 0, 1.0), "top_k"), ((1.0, None, 0.0), "top_p"), ((1.0, None, 1.1), "top_p")]
)
def test_impossible_rules_are_refused(rule, name):
    with pytest.raises(ValueError, match=f"{name}: wanted"):
        sampling.check(*rule)
