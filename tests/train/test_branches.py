"""Preferences as branches of one prompt: who knows of whom, and where DPO starts. Against TRL: `test_losses`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax import batches
from ilr_jax.train import state as states
from ilr_jax.train import steps
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.types import BRANCH

LENGTHS = [12, 14, 5, 9]


def test_dpo_of_the_reference_itself_is_log_two():
    pairs, trainable = tiny.pair_batch(LENGTHS * 3), tiny.adapters(3)
    sides = tiny.pair_sides(LENGTHS * 3)
    reference = [steps.sequence_log_probs(tiny.SETUP)(trainable, tiny.base(), side) for side in sides]
    pairs = pairs._replace(reference=jnp.stack(reference, -1)[:, None, :])
    begin = states.init(jax.tree.map(jnp.copy, trainable), OptimizerConfig(), [10] * 3)
    _, metrics = steps.dpo_step(tiny.SETUP, OptimizerConfig())(begin, tiny.base(), pairs)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["logps/chosen"], reference[0].reshape(3, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/margins"], 0, atol=1e-5)


@pytest.mark.parametrize(("lengths", "row", "width"), [([14, 9, 11], 64, 40), ([60, 50, 47], 256, 160)], ids=["short", "several blocks"])
@pytest.mark.parametrize("attention", ["gemm", "xla"])
def test_answers_of_a_row_know_nothing_of_each_other(attention, lengths, row, width):
    """Other tokens in one answer, or in a whole preference, leave all other answers' log-probabilities bit-equal."""
    batch = batches.pair_rows([tiny.preferences(lengths)], 0, row, width, 3)
    run = steps.token_log_probs(replace(tiny.SETUP, attention=attention))
    values = lambda tokens: np.asarray(run(tiny.adapters(), tiny.base(), batch._replace(rows=batch.rows._replace(tokens=tokens))))
    rows, before = batch.rows, values(batch.rows.tokens)
    root = lambda pair: pair + 1
    changes = [(rows.segments == root(a // 2) + (a % 2 + 1) * BRANCH, batch.answers == a) for a in range(6)]
    changes += [(rows.segments % BRANCH == root(pair), batch.answers // 2 == pair) for pair in range(3)]
    for changed, own in changes:
        after = values(np.where(changed, (rows.tokens + 1) % tiny.VOCAB, rows.tokens))
        others = (batch.answers >= 0) & ~own
        np.testing.assert_array_equal(after[others], before[others])
        assert (after[own] != before[own]).any()


def test_preferences_never_meet_splash_which_cannot_tell_branches(monkeypatch):
    def met(*_):
        raise AssertionError("splash")

    monkeypatch.setattr("ilr_jax.models.splash.attend", met)
    run = lambda how, batch: steps.token_log_probs(replace(tiny.SETUP, attention=how))(tiny.adapters(), tiny.base(), batch)
    np.testing.assert_array_equal(*(run(how, tiny.pair_batch(LENGTHS)) for how in ("splash", "gemm")))
    with pytest.raises(AssertionError, match="splash"):
        run("splash", tiny.batch([7]))
