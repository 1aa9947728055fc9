"""The steps: K adapters as K runs, any micro-batch, padding and device count, non-finite numbers, traces, donation, and a golden run."""

import json
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ilr_jax import batches
from ilr_jax.batches import Epochs, Packing
from ilr_jax.models.platform import described
from ilr_jax.train import state as states
from ilr_jax.train import steps
from ilr_jax.train.optimizer import OptimizerConfig

GOLDEN = Path(__file__).with_name("golden_sft.json")
# With this eps rounding of a gradient near zero does not become a change of the size of the learning rate.
ADAMW = OptimizerConfig("adamw", 1e-2, warmup=0.0, clip=1.0, weight_decay=0.01, eps=1e-3)
LENGTHS = [12, 14, 5, 9]
MANY = [12, 14, 5, 9, 8, 8, 13, 0, 4, 6, 11, 7]  # for three adapters
KINDS = {
    "sft": (steps.sft_step, tiny.batch, False),
    "evaluator": (steps.evaluator_step, tiny.class_batch, True),
    "dpo": (steps.dpo_step, tiny.pair_batch, False),
}


def start(k: int = 1, head: bool = False, total: int = 10):
    return states.init(copied(tiny.adapters(k, head=head)), ADAMW, [total] * k)


def copied(state):
    return jax.tree.map(jnp.copy, state)


@cache
def sft_result(microbatches: int = 1):
    """One SFT step from the usual start on the usual batch."""
    step = steps.sft_step(replace(tiny.SETUP, microbatches=microbatches), ADAMW)
    return jax.device_get(step(start(), tiny.base(), tiny.batch(LENGTHS)))


assert_close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_three_adapters_in_one_pass_equal_three_runs_of_unequal_length(kind):
    make_step, make_batch, head = KINDS[kind]
    step = make_step(tiny.SETUP, ADAMW)
    together = start(3, head)
    alone = [copied(states.take(together, k)) for k in range(3)]
    for i in range(3):
        # Adapter 0 has data for one step, adapter 1 for two; a data set that is used up gives empty rows.
        lengths = [n if i <= k else 0 for k in range(3) for n in LENGTHS]
        batch = make_batch(lengths, seed=i)
        together, metrics = step(together, tiny.base(), batch)
        assert metrics["active"].tolist() == [i <= k for k in range(3)] and metrics["finite"].all()
        for k in range(i, 3):
            alone[k], own = step(alone[k], tiny.base(), tiny.pick(batch, slice(4 * k, 4 * k + 4)))
            assert_close({name: x[k : k + 1] for name, x in metrics.items()}, own)
            assert float(own["grad_norm"][0]) > 0 and float(own["loss"][0]) > 0
    assert together.step.tolist() == [1, 2, 3]
    assert_close(together, tiny.stack(alone), rtol=1e-4)


def test_an_adapter_without_rows_keeps_every_bit():
    before = jax.device_get(start(2))
    after, metrics = steps.sft_step(tiny.SETUP, ADAMW)(start(2), tiny.base(), tiny.batch([0, 0, 7, 9]))
    assert tiny.equal_bits(states.take(after, 0), states.take(before, 0))
    assert after.step.tolist() == [0, 1] and metrics["loss"][0] == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_adapter_is_reported_and_left_alone_and_its_neighbour_trains(poison):
    tree = jax.tree.map(jnp.copy, tiny.adapters(2))
    tree["adapters"]["q_proj"]["b"] = tree["adapters"]["q_proj"]["b"].at[0, 0, 0, 0].set(poison)
    before = states.init(tree, ADAMW, [9, 9])
    kept = jax.device_get(before)
    after, metrics = steps.sft_step(tiny.SETUP, ADAMW)(before, tiny.base(), tiny.batch([7, 9, 7, 9]))
    assert metrics["finite"].tolist() == [False, True]
    assert tiny.equal_bits(states.take(after, 0), states.take(kept, 0))
    assert after.step.tolist() == [0, 1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states.take(after, 1)))


def test_a_target_outside_the_vocabulary_makes_the_step_non_finite():
    batch = tiny.batch(LENGTHS)
    targets = batch.targets.copy()
    targets[0, 0] = tiny.VOCAB
    _, metrics = steps.sft_step(tiny.SETUP, ADAMW)(start(), tiny.base(), batch._replace(targets=targets))
    assert not metrics["finite"][0]


def test_microbatches_of_single_rows_give_the_same_step():
    assert_close(sft_result(4), sft_result())


def test_microbatches_of_unequal_numbers_of_tokens():
    """`token` divides by all tokens of the batch, not by those of each part."""
    batch = tiny.batch(LENGTHS, normalize="token")
    whole, parts = (steps.sft_step(replace(tiny.SETUP, microbatches=n), ADAMW)(start(), tiny.base(), batch) for n in (1, 4))
    assert_close(parts, whole)
    values = -steps.sequence_log_probs(tiny.SETUP)(tiny.adapters(), tiny.base(), batch)
    np.testing.assert_allclose(whole[1]["loss"][0], values.sum() / batch.units.sum(), rtol=1e-5)
    assert abs(float(whole[1]["loss"][0]) - float((values / batch.units).mean())) > 0.01


def test_microbatches_of_the_evaluator():
    batch = tiny.class_batch([12, 14, 5, 0])  # parts of two rows and of one
    whole, parts = (steps.evaluator_step(replace(tiny.SETUP, microbatches=n), ADAMW)(start(head=True), tiny.base(), batch) for n in (1, 2))
    assert_close(parts, whole)


def test_microbatches_of_several_adapters_and_pairs():
    results = []
    for parts in (1, 2):
        step = steps.dpo_step(replace(tiny.SETUP, microbatches=parts), ADAMW)
        results.append(step(start(3), tiny.base(), tiny.pair_batch(MANY)))
    assert_close(*results)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left):
    step = steps.sft_step(tiny.SETUP, ADAMW)
    assert_close(step(start(), tiny.base(), tiny.batch(LENGTHS, t=23, c=13, left=left)), sft_result())


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_samples_packed_into_rows_give_the_same_step(normalize):
    rng = np.random.default_rng(5)
    data = [
        ([int(t) for t in rng.integers(0, tiny.VOCAB, n)], [int(t) for t in rng.integers(0, tiny.VOCAB, 1 + n // 3)])
        for n in (9, 20, 4, 13)
    ]
    packed = batches.sft([data], Epochs((4,), 4, 1, 0), 0, normalize, 64, Packing())(0)
    assert packed.rows.segments.max() > 1
    step = steps.sft_step(tiny.SETUP, ADAMW)
    results = [step(start(), tiny.base(), batch) for batch in (packed, batches.completions(data, 0, normalize))]
    assert_close(*results)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_comparisons_packed_into_rows_give_the_same_step(microbatches):
    rng = np.random.default_rng(5)
    data = [([int(t) for t in rng.integers(0, tiny.VOCAB, n)], i % 2) for i, n in enumerate((12, 26, 5, 17, 9))]
    packed = batches.classes(data, Epochs((5,), 5, 1, 0), 0, Packing(multiple=2))(0)
    assert packed.rows.segments.max() > 1 and packed.last.shape[1] > 1
    step = steps.evaluator_step(replace(tiny.SETUP, microbatches=microbatches), ADAMW)
    (_, alone), *_ = batches.scoring(data, 6, 0)
    assert_close(*(step(start(head=True), tiny.base(), batch) for batch in (packed, alone)))


def test_four_devices_give_the_same_step():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))
    step = steps.sft_step(tiny.SETUP, ADAMW)
    spread = place(tiny.batch(MANY), "data")
    assert {shard.data.shape for shard in spread.rows.tokens.addressable_shards} == {(3, 14)}
    many = step(place(start(3)), place(tiny.base()), spread)
    assert_close(many, step(start(3), tiny.base(), tiny.batch(MANY)))


def test_remat_and_attention_change_nothing_but_rounding():
    setup = replace(tiny.SETUP, remat="full", attention="xla")
    assert_close(steps.sft_step(setup, ADAMW)(start(), tiny.base(), tiny.batch(LENGTHS)), sft_result())


def test_bfloat16_compute_keeps_float32_weights_and_stays_near():
    step = steps.sft_step(replace(tiny.SETUP, dtype="bfloat16"), ADAMW)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.base())
    after, metrics = step(start(), half, tiny.batch(LENGTHS))
    assert {str(x.dtype) for x in jax.tree.leaves(after.trainable)} == {"float32"}
    assert metrics["loss"].dtype == jnp.float32 and metrics["finite"][0]
    np.testing.assert_allclose(metrics["loss"], sft_result()[1]["loss"], rtol=0.03)
    np.testing.assert_allclose(metrics["grad_norm"], sft_result()[1]["grad_norm"], rtol=0.1)


@pytest.mark.parametrize("kind", ["sft", "evaluator"])
def test_full_fine_tuning_moves_every_weight_and_lowers_the_loss(kind):
    make_step, make_batch, head = KINDS[kind]
    config = replace(ADAMW, learning_rate=3e-3, clip=None)
    tree = jax.tree.map(jnp.copy, tiny.full(head=head))
    if head:
        tree["params"].pop("head")  # an evaluator has no vocabulary to predict
    before = jax.device_get(tree)
    state, losses = states.init(tree, config, [6]), []
    for _ in range(6):
        state, metrics = make_step(tiny.FULL, config)(state, {}, make_batch(LENGTHS))
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(state.trainable))
    assert all(jax.tree.leaves(moved)), moved


def test_one_trace_per_shape_and_the_state_is_donated_and_nothing_else(monkeypatch):
    traces, loss = [], steps.losses.sft_loss
    monkeypatch.setattr(steps.losses, "sft_loss", lambda *args: (traces.append(1), loss(*args))[1])
    step = steps.sft_step(replace(tiny.SETUP, chunk=5), ADAMW)
    assert step is steps.sft_step(replace(tiny.SETUP, chunk=5), replace(ADAMW, learning_rate=1.0, warmup=0.3))
    assert step is not steps.sft_step(replace(tiny.SETUP, chunk=5), replace(ADAMW, b1=0.5))
    first, frozen, batch = start(), tiny.base(), jax.device_put(tiny.batch(LENGTHS))
    state, _ = step(first, frozen, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert not any(x.is_deleted() for x in jax.tree.leaves((frozen, batch)))
    for seed in range(2):
        state, _ = step(state, frozen, tiny.batch(LENGTHS, seed=seed))
    # Other lengths, rates and steps are data.
    step(states.init(copied(tiny.adapters(1, 4)), ADAMW, [77], [0.5]), frozen, jax.device_put(batch))
    assert len(traces) == 1
    step(state, frozen, tiny.batch(LENGTHS, t=15))
    assert len(traces) == 2


def test_inference_agrees_with_training():
    batch, trainable = tiny.batch(LENGTHS), tiny.adapters(2)
    log_probs = steps.sequence_log_probs(tiny.SETUP)
    token = tiny.batch(LENGTHS, normalize="token")
    values = log_probs(trainable, tiny.base(), token)
    np.testing.assert_array_equal(log_probs(trainable, tiny.base(), batch), values)
    _, metrics = steps.sft_step(tiny.SETUP, ADAMW)(start(2), tiny.base(), token)
    np.testing.assert_allclose(metrics["loss"], -values.reshape(2, -1).sum(1) / token.units.reshape(2, -1).sum(1), rtol=1e-5)
    silent = jax.tree.map(jnp.zeros_like, trainable)
    np.testing.assert_allclose(log_probs({}, tiny.base(), batch), log_probs(silent, tiny.base(), batch), rtol=1e-5)


def test_class_probabilities_and_evaluation_agree():
    batch, trainable = tiny.class_batch([*LENGTHS, 0, 8]), tiny.adapters(head=True)
    found = np.asarray(steps.class_probabilities(tiny.SETUP)(trainable, tiny.base(), batch))[:, 0]
    sums = steps.class_evaluation(tiny.SETUP)(trainable, tiny.base(), batch)
    classes, real = batch.classes[:, 0], batch.weight[:, 0] > 0
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(sums["loss"][0], -np.log(found[np.arange(6), classes])[real].sum(), rtol=1e-5)
    assert (sums["right"][0], sums["units"][0]) == ((found.argmax(1) == classes)[real].sum(), 5)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_all_products_of_a_bfloat16_step_are_of_bfloat16(kind, device):
    """The backward ones too: a float32 cotangent would make a product run at half its speed, or less.

    A CPU is asked for float32 results; a GPU for those only that stay float32: scores, the head's, the gradients of adapters.
    """
    make_step, make_batch, _ = KINDS[kind]
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.base())
    jax.clear_caches()  # a program that was traced for another device would be taken again
    traced: Any = make_step(replace(tiny.SETUP, dtype="bfloat16"), ADAMW)
    with described(device):
        equations = tiny.equations(traced.trace(start(), base, make_batch(LENGTHS)).jaxpr.jaxpr)
    found = [equation for equation in equations if equation.primitive.name == "dot_general"]
    assert len(found) > 30  # forward and backward are both seen
    assert {str(x.aval.dtype) for product in found for x in product.invars} == {"bfloat16"}
    narrow = sum(x.aval.dtype == jnp.bfloat16 for product in found for x in product.outvars)
    linear = 7 + len(tiny.LORA.modules) * 2  # of a layer: its own products and those of its adapters, each forward and by the activations
    assert narrow == 0 if device == "cpu" else narrow >= 2 * linear - 3


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="3 adapters can share equally, got 4"):
        steps.sequence_log_probs(tiny.SETUP)(tiny.adapters(3), tiny.base(), tiny.batch(LENGTHS))
    with pytest.raises(ValueError, match="into 3 microbatches, got 4 rows for 1"):
        steps.sft_step(replace(tiny.SETUP, microbatches=3), ADAMW)(start(), tiny.base(), tiny.batch(LENGTHS))
    with pytest.raises(ValueError, match="wanted Setup.lora"):
        steps.sequence_log_probs(tiny.FULL)(tiny.adapters(), tiny.base(), tiny.batch(LENGTHS))
    with pytest.raises(ValueError, match=">= 1, got 0 and 1"):
        steps.Setup(tiny.CONFIG, chunk=0)


def trajectory() -> list[list[float]]:
    """Losses of two adapters over eight steps with all the usual settings."""
    config = replace(ADAMW, warmup=0.2)
    state, losses = states.init(copied(tiny.adapters(2)), config, [8, 8], [2e-2, 1e-2]), []
    for i in range(8):
        state, metrics = steps.sft_step(tiny.SETUP, config)(state, tiny.base(), tiny.batch(LENGTHS, seed=i % 2))
        losses.append(np.asarray(metrics["loss"]).tolist())
    return losses


def test_golden_losses():
    np.testing.assert_allclose(trajectory(), json.loads(GOLDEN.read_text()), rtol=1e-5, atol=0)


if __name__ == "__main__":  # writes the golden file anew: python tests/train/test_steps.py --write
    if sys.argv[1:] == ["--write"]:
        GOLDEN.write_text(json.dumps(trajectory(), indent=1) + "\n")
