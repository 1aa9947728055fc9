"""Each optimiser and the schedule against torch and transformers, step by step; what differs between adapters stays apart."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax.train import optimizer as optimizers
from ilr_jax.train import state as states
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.steps import update

STEPS = 20
CASES = [
    OptimizerConfig("adamw", 3e-3),
    OptimizerConfig("adamw", 3e-3, weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-6, clip=0.5),
    OptimizerConfig("adafactor", 3e-3),
    OptimizerConfig("adafactor", 3e-3, weight_decay=0.1),
    OptimizerConfig("rmsprop", 3e-3),
    OptimizerConfig("rmsprop", 3e-3, weight_decay=0.1, eps=1e-3, schedule="constant"),
]


def tree(seed: int) -> dict:
    """Stacked matrices and vectors of layers, and a matrix that is no layer's; K = 1."""
    rng = np.random.default_rng(seed)
    make = lambda *shape: rng.normal(size=(1, *shape)).astype(np.float32)
    return {"params": {"layers": {"q_proj": make(3, 5, 4), "norm": make(3, 6)}, "embed": make(7, 4)}, "head": make(4, 2)}


def lora_tree(seed: int) -> dict:
    """Both sides of an adapter, stacked over layers; K = 1."""
    rng = np.random.default_rng(seed)
    make = lambda *shape: rng.normal(size=(1, 3, *shape)).astype(np.float32)
    return {"adapters": {"q_proj": {"a": make(5, 2), "b": make(2, 4)}}}


def tensors(values: dict) -> list[np.ndarray]:
    """One array per tensor that a torch model would have: one a layer of what is stacked."""
    stacked = lambda path: any(key.key in ("layers", "adapters") for key in path)
    leaves = [(path, np.asarray(x)[0]) for path, x in jax.tree_util.tree_leaves_with_path(values)]
    return [part for path, x in leaves for part in (x if stacked(path) else [x])]


def theirs(torch, config: OptimizerConfig, params):
    from transformers.optimization import Adafactor, get_cosine_schedule_with_warmup

    rate, decay = config.learning_rate, config.weight_decay
    made = {
        "adamw": lambda: torch.optim.AdamW(params, lr=rate, betas=(config.b1, config.b2), eps=config.eps, weight_decay=decay),
        "adafactor": lambda: Adafactor(params, lr=rate, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=decay),
        "rmsprop": lambda: torch.optim.RMSprop(params, lr=rate, alpha=config.decay, eps=config.eps, weight_decay=decay),
    }[config.name]()
    if config.schedule == "constant":
        return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)
    return made, get_cosine_schedule_with_warmup(made, math.ceil(STEPS * config.warmup), STEPS)


@pytest.mark.parametrize("config, tree", [*((config, tree) for config in CASES), (OptimizerConfig("adafactor", 3e-3), lora_tree)])
def test_twenty_steps_equal_torch(config, tree):
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(**{**vars(config), "warmup": 0.0 if config.schedule == "constant" else 0.15})
    params = [torch.nn.Parameter(torch.tensor(x)) for x in tensors(tree(0))]
    optimizer, schedule = theirs(torch, config, params)
    state = states.init(jax.tree.map(jnp.asarray, tree(0)), config, [STEPS])
    step = jax.jit(lambda state, grads: update(config, state, grads, jnp.zeros(1), jnp.ones(1, bool)))
    for i in range(STEPS):
        grads = tree(i + 1)
        before = [p.detach().numpy().copy() for p in params]
        for p, g in zip(params, tensors(grads), strict=True):
            p.grad = torch.tensor(g)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(params, config.clip)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        old = tensors(state.trainable)
        state, metrics = step(state, grads)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-5)
        for ours, mine, p, was in zip(tensors(state.trainable), old, params, before, strict=True):
            new = p.detach().numpy()
            np.testing.assert_allclose(ours, new, rtol=1e-5, atol=1e-6 * np.abs(new).max())
            # The change by itself too, up to the rounding of weights of order 1: it is a thousand times smaller than the weights.
            np.testing.assert_allclose(ours - mine, new - was, rtol=0, atol=1e-5 * np.abs(new - was).max() + 3e-7)


@pytest.mark.parametrize("total", [1, 2, 19, 20, 21, 59, 60, 200, 1001])
def test_schedule_equals_transformers_over_a_whole_run(total):
    torch = pytest.importorskip("torch")
    from transformers import TrainingArguments, get_cosine_schedule_with_warmup

    config = OptimizerConfig(learning_rate=2e-4)
    warmup = TrainingArguments.get_warmup_steps(type("Arguments", (), {"warmup_steps": config.warmup})(), total)
    assert optimizers.warmup_steps(config, total) == warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    factor = get_cosine_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0]
    steps = jnp.arange(total, dtype=jnp.int32)
    full = lambda value, dtype=jnp.int32: jnp.full(total, value, dtype)
    ours = optimizers.schedule(config, steps, full(total), full(warmup), full(2e-4, jnp.float32))
    np.testing.assert_allclose(ours, [2e-4 * factor(i) for i in range(total)], rtol=2e-6)


def test_constant_schedule_climbs_and_stays():
    config = OptimizerConfig(schedule="constant", warmup=0.4)
    ints = lambda *x: jnp.array(x, jnp.int32)
    rates = optimizers.schedule(config, ints(0, 1, 2, 4), ints(5, 5, 5, 5), ints(2, 2, 2, 2), jnp.ones(4))
    np.testing.assert_allclose(rates, [0, 0.5, 1, 1])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "rmsprop"])
def test_each_adapter_has_its_own_rate_length_and_clipping(name):
    config = OptimizerConfig(name, clip=1.0)
    stacked = tiny.stack([tiny.adapters(1, seed) for seed in range(3)])
    grads = jax.tree.map(lambda x: jnp.stack([jnp.sin(9 * x[0]), 100 * x[1], 0.01 * x[2]]), stacked)
    totals, peaks = [4, 9, 30], [1e-2, 1e-3, 1e-4]
    together, alone = states.init(stacked, config, totals, peaks), []
    step = jax.jit(lambda s, g: update(config, s, g, jnp.zeros(s.step.shape), jnp.ones(s.step.shape, bool))[0])
    for k in range(3):
        alone.append(states.init(states.take(stacked, k), config, totals[k : k + 1], peaks[k : k + 1]))
    for _ in range(3):
        together = step(together, grads)
        alone = [step(s, states.take(grads, k)) for k, s in enumerate(alone)]
    chex.assert_trees_all_close(together, tiny.stack(alone), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"name": "sgd"}, {"schedule": "linear"}, {"warmup": 2.0}, {"clip": 0.0}, {"learning_rate": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        OptimizerConfig(**wrong)
