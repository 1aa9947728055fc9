"""What a state may hold, and how adapters are put side by side and taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax.train import state as states
from ilr_jax.train.optimizer import OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=0.25, warmup=0.05)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "rmsprop"])
def test_every_leaf_has_the_leading_axis(name):
    state = states.init(tiny.adapters(3, head=True), OptimizerConfig(name), [10, 20, 41])
    assert {x.shape[0] for x in jax.tree.leaves(state)} == {3}
    assert state.warmup.tolist() == [1, 1, 3]  # 2.05 steps are rounded up


def test_peak_is_the_configured_rate_unless_given():
    assert states.init(tiny.adapters(2), CONFIG, [5, 5]).peak.tolist() == [0.25, 0.25]
    assert states.init(tiny.adapters(2), CONFIG, [5, 5], [0.5, 1.0]).peak.tolist() == [0.5, 1.0]


def test_an_adapter_is_taken_as_it_was():
    parts = [tiny.adapters(1, 5), tiny.adapters(2, 6)]
    joined = tiny.stack(parts)
    assert states.adapters_in(joined) == 3
    assert tiny.equal_bits(states.take(joined, 0), parts[0])
    assert tiny.equal_bits(states.take(joined, 2), states.take(parts[1], 1))


@pytest.mark.parametrize("total, peak", [([5], None), ([5, 0], None), ([5, 5], [1.0])])
def test_one_total_and_peak_per_adapter(total, peak):
    with pytest.raises(ValueError, match="each of 2 adapters"):
        states.init(tiny.adapters(2), CONFIG, total, peak)


def test_weights_that_train_are_float32():
    with pytest.raises(ValueError, match="float32, got bfloat16"):
        states.init(jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.full()), CONFIG, [5])


def test_leading_axes_have_to_agree():
    with pytest.raises(ValueError, match="one leading axis"):
        states.adapters_in({"adapters": {"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}})
    with pytest.raises(ValueError, match="one set of weights, got 2"):
        states.adapters_in({"params": {"embed": np.zeros((2, 3, 4))}})
    assert states.adapters_in({}) == 1
