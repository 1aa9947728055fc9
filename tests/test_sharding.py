"""Every mesh computes what one device computes; what is split how; and what cannot be split."""

import re
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from ilr_jax import batches, evaluator, sharding
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, lora
from ilr_jax.models.lora import Lora
from ilr_jax.sample import beam, rollout, slots, topk
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.generate import generate
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute
from ilr_jax.train import state as states
from ilr_jax.train import steps
from ilr_jax.train.optimizer import OptimizerConfig

sys.path += [str(Path(__file__).parent / room) for room in ("train", "sample")]
import sample_models  # noqa: E402
import tiny_runs  # noqa: E402

RULES = {"batch": "data,fsdp", "embed": "fsdp", "heads": "tensor", "kv_heads": "auto", "mlp": "tensor", "vocab": "auto"}
MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))
meshes = pytest.mark.parametrize("mesh", MESHES[1:], ids=lambda mesh: "x".join(map(str, mesh)))
CONFIG = configs.from_fields(tiny_runs.FIELDS | {"vocab_size": 64})
SETUP = steps.Setup(CONFIG, Lora(3, 6.0, ("q_proj", "v_proj", "o_proj", "down_proj")), chunk=4, microbatches=2)
OPTIMIZERS = {name: OptimizerConfig(name, 1e-2, warmup=0.0, eps=1e-3) for name in ("adamw", "adafactor", "rmsprop")}
LENGTHS = [12, 14, 5, 9, 8, 8, 13, 3, 4, 6, 11, 7, 9, 10, 2, 12, 8, 14, 7, 5, 9, 11, 3, 6, 12, 14, 5, 9, 4, 4, 10, 13]


def units(config):
    return {
        "embed": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "mlp": config.intermediate_size,
        "vocab": config.vocab_size,
    }


def layout(mesh, config=CONFIG, **rules):
    return sharding.choose(dict(zip(sharding.MESH_AXES, mesh, strict=True)), RULES | rules, [units(config)], 0, 1)


@cache
def base():
    return tiny_runs.drawn(decoder.abstract(CONFIG), 0.2, 0)


def trainable(kind, k=2):
    if kind == "evaluator":
        like = {"params": decoder.abstract(CONFIG), "head": jax.ShapeDtypeStruct((CONFIG.hidden_size, 2), jax.numpy.float32)}
        return jax.tree.map(lambda x: x[None], tiny_runs.drawn(like, 0.2, 1))
    like = jax.eval_shape(lambda: lora.init(CONFIG, SETUP.lora, jax.random.split(jax.random.key(0), k)))
    return tiny_runs.drawn({"adapters": like}, 0.2, 1)


KINDS = {
    "sft": (steps.sft_step, tiny_runs.batch, "adamw"),
    "evaluator": (steps.evaluator_step, tiny_runs.class_batch, "adafactor"),
    "dpo": (steps.dpo_step, tiny_runs.pair_batch, "rmsprop"),
}


@cache
def trained(kind, mesh):
    """State and metrics after two steps, and the layout; two adapters, or all weights of the evaluator."""
    make_step, make_batch, optimizer = KINDS[kind]
    where = layout(mesh)
    setup = replace(SETUP, layout=where, lora=None if kind == "evaluator" else SETUP.lora)
    tree = trainable(kind)
    k = states.adapters_in(tree)
    state = sharding.put_weights(where, states.init(sharding.put_weights(where, tree), OPTIMIZERS[optimizer], [9] * k))
    frozen = sharding.put_weights(where, {} if kind == "evaluator" else base())
    step, seen = make_step(setup, OPTIMIZERS[optimizer]), []
    for i in range(2):
        state, metrics = step(state, frozen, sharding.put_rows(where, make_batch(LENGTHS, seed=i)))
        seen.append(jax.device_get(metrics))
    assert step._cache_size() == 1, "the state came back split otherwise than it went in"
    return state, seen, where


@meshes
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_one_device(kind, mesh):
    state, metrics, _ = trained(kind, mesh)
    alone, wanted, _ = trained(kind, MESHES[0])
    assert metrics[0]["finite"].all() and min(metrics[1]["grad_norm"]) > 0
    chex.assert_trees_all_close(metrics, wanted, rtol=2e-5, atol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(alone), rtol=1e-4, atol=1e-5)


@meshes
def test_state_is_split_as_the_rules_say(mesh):
    """Moments live with their weights; what is factored or small is whole."""
    for kind in KINDS:
        state, _, where = trained(kind, mesh)
        assert jax.tree.map(lambda x: x.sharding, state) == sharding.shardings(where, state)
    state, _, where = trained("sft", mesh)
    a = state.opt_state[0].mu["adapters"]["q_proj"]["a"]
    assert a.addressable_shards[0].data.shape == (2, 2, CONFIG.hidden_size // where.mesh.shape["fsdp"], 3)


def test_a_step_with_splash_is_that_of_the_batched_products():
    """Interpreted, split over all three axes, its result kept by remat; two heads of 128 share a key head."""
    config = replace(CONFIG, head_dim=128, num_heads=4, num_kv_heads=2)
    tree = {"adapters": jax.eval_shape(lambda: lora.init(config, SETUP.lora, jax.random.split(jax.random.key(0), 2)))}
    tree, frozen, found = tiny_runs.drawn(tree, 0.2, 1), tiny_runs.drawn(decoder.abstract(config), 0.2, 0), {}
    for attention, mesh in (("splash", (2, 2, 2)), ("gemm", (1, 1, 1))):
        where = layout(mesh, config)
        setup = replace(SETUP, config=config, layout=where, attention=attention, remat="dots")
        state = sharding.put_weights(where, states.init(sharding.put_weights(where, tree), OPTIMIZERS["adamw"], [9] * 2))
        step = steps.sft_step(setup, OPTIMIZERS["adamw"])
        state, metrics = step(state, sharding.put_weights(where, frozen), sharding.put_rows(where, tiny_runs.batch(LENGTHS)))
        found[attention] = jax.device_get((metrics, state.trainable))
    chex.assert_trees_all_close(*found.values(), rtol=1e-4, atol=1e-5)
    assert found["splash"][0]["finite"].all()


PARAMS = {name: sample_models.params(name) for name in ("mistral", "gemma")}


@cache
def sampled(name, mesh, how, k=2, attention="gemm"):
    config = sample_models.CONFIGS[name]
    where = layout(mesh, config)
    adapters, shape = sample_models.adapters(name, k)
    put = lambda tree: sharding.put_weights(where, tree)
    asked = sample_models.requests(20, adapters=k)
    found = generate(config, put(PARAMS[name]), put(adapters), asked, how, eos=[3], lora=shape, key=1, layout=where, attention=attention)
    return [[(c.tokens, c.finished) for c in answers] for answers in found]


@meshes
@pytest.mark.parametrize(
    ("name", "how", "k"),
    (
        ("mistral", SamplingSettings(6, n=2, slots=16, chunk=4, bucket=32), 2),
        ("gemma", BeamSettings(6, prompts=8, bucket=32), 1),
        ("mistral", BeamSettings(6, prompts=8, bucket=32), 2),
    ),
    ids=("samples", "beams", "beams of two adapters"),
)
def test_decoding_is_that_of_one_device(mesh, name, how, k):
    assert sampled(name, mesh, how, k) == sampled(name, MESHES[0], how, k)


def questions(lengths):
    """As a model that judges is asked: which of two letters comes next."""
    prompts = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in lengths]
    ((_, batch),) = batches.options(prompts, (7, 9), len(prompts), 0)
    return batch


SCORES = {
    "evaluator's scores": (steps.class_probabilities, tiny_runs.class_batch, "evaluator"),
    "log-probabilities": (steps.sequence_log_probs, tiny_runs.batch, "sft"),
    "letters": (steps.token_log_probs, questions, ""),
}


@meshes
@pytest.mark.parametrize("kind", SCORES)
def test_scores_are_those_of_one_device(kind, mesh):
    """An evaluator's weights, two adapters, or the bare base."""
    run, make_batch, trained = SCORES[kind]

    def scores(mesh):
        where = layout(mesh)
        setup = replace(SETUP, layout=where, lora=None if trained == "evaluator" else SETUP.lora)
        tree, frozen = trainable(trained) if trained else {}, {} if trained == "evaluator" else base()
        put = lambda tree: sharding.put_weights(where, tree)
        return jax.device_get(run(setup)(put(tree), put(frozen), sharding.put_rows(where, make_batch(LENGTHS))))

    found, wanted = scores(mesh), scores(MESHES[0])
    assert len(found) == 32 and np.ptp(found) > 0
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 5}], ids=str)
def test_cut_distributions_are_those_of_one_device(cut):
    how = SamplingSettings(6, n=2, slots=16, chunk=4, bucket=32, **cut)
    assert sampled("gemma", (2, 2, 2), how) == sampled("gemma", MESHES[0], how)


def test_prompts_that_splash_reads_are_answered_as_by_one_device():
    """Two rows a prefill over eight devices, interpreted."""
    how = SamplingSettings(6, n=2, slots=16, chunk=4, bucket=32)
    assert sampled("mistral", (8, 1, 1), how, 2, "splash") == sampled("mistral", MESHES[0], how, 2)


@meshes
def test_the_largest_are_those_of_one_device(mesh):
    """Of few different values, so that most are equal; of rows that are whole, and of rows in pieces smaller than what is wanted."""
    x = np.random.default_rng(0).integers(0, 9, (16, 64)).astype(np.float32)
    where = layout(mesh, vocab="tensor")
    for count, axis in ((5, "vocab"), (40, "vocab"), (5, None)):
        found = jax.jit(lambda x, count=count, axis=axis: topk.top_k(where, x, count, axis))(x)
        chex.assert_trees_all_equal(jax.device_get(found), tuple(jax.device_get(jax.lax.top_k(x, count))))


def everything(config):
    """Base and adapters; what training makes of adapters and of an evaluator, with each optimiser."""
    adapters = {"adapters": jax.eval_shape(lambda: lora.init(config, Lora(2, 4.0), jax.random.split(jax.random.key(0), 2)))}
    classifier = jax.eval_shape(evaluator.initial, decoder.abstract(config), jax.random.key(0))
    tree = decoder.abstract(config) | adapters
    for name, optimizer in OPTIMIZERS.items():
        of = lambda weights, k, optimizer=optimizer: jax.eval_shape(lambda x: states.init(x, optimizer, [9] * k), weights)
        tree |= {f"sft.{name}": of(adapters, 2).opt_state, f"evaluator.{name}": of(classifier, 1).opt_state}
    return tree


def test_tensors_of_the_three_families_are_split_as_written_down():
    """A mesh of 2 x 2 x 2; a change here changes where every tensor lives."""
    lines = []
    for name, config in sample_models.CONFIGS.items():
        where, tree = layout((2, 2, 2), config), everything(config)
        for path, split in zip(jax.tree.leaves(sharding.paths(tree)), jax.tree.leaves(sharding.shardings(where, tree)), strict=True):
            lines.append(f"{name} {path} {split.spec}")
        compute = Compute(config, layout=where)
        made = {"beam": partial(beam.blank, compute, BeamSettings(6), 8, 32), "samples": partial(rollout.blank, compute, 8, 32, 6)}
        for kind, blank in made.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(blank)):
                lines.append(f"{name} {kind}{jax.tree_util.keystr(path)} {where.sharding(*slots.axes(leaf.ndim)).spec}")
    golden = Path(__file__).with_name("golden_sharding.txt")
    assert golden.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("mesh", "rules", "message"),
    [
        ((1, 1, 3), {}, "sharding.rules.heads=tensor: 4 cannot be split into 3 (tensor); what would work: 1, 2, 4"),
        ((1, 3, 1), {}, "sharding.rules.embed=fsdp: 16 cannot be split into 3 (fsdp); what would work: 1, 2, 4, 8"),
        ((1, 1, 4), {"kv_heads": "tensor"}, "sharding.rules.kv_heads=tensor: 2 cannot be split into 4 (tensor); what would work: 1, 2"),
        ((2, 8, 1), {}, "at most, and with an open axis to divide, the 8 devices; got 16; what divides them: 1, 2, 4, 8"),
        ((0, 3, 1), {}, "the 8 devices; got 3"),
        ((1, 2, 2), {"mlp": "tensr"}, "sharding.rules.mlp: wanted some of data, fsdp, tensor, or auto; got tensr"),
        ((1, 2, 2), {"mlp": "fsdp"}, "sharding.rules: embed and mlp split one weight, so they cannot both use fsdp"),
        ((1, 2, 2), {"heads": "data"}, "sharding.rules: batch and heads split one array, so they cannot both use data"),
        ((1, 2, 2), {"kv_heads": "data"}, "sharding.rules: batch and kv_heads split one array, so they cannot both use data"),
    ],
)
def test_what_cannot_be_split_is_named(mesh, rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layout(mesh, **rules)


@pytest.mark.parametrize(
    ("sizes", "weights", "wanted"),
    [
        ((0, 0, 0), 100, (8, 1, 1)),  # fits one device
        ((0, 0, 0), 1500, (2, 1, 4)),
        ((0, 0, 1), 1500, (2, 4, 1)),
        ((0, 0, 0), 10**9, (1, 2, 4)),  # fits nowhere: as many pieces as there are devices, four of them for the four heads
        ((0, 0, 2), 1500, (2, 2, 2)),
        ((0, 2, 0), 10**9, (1, 2, 4)),
        ((2, 0, 0), 1, (2, 1, 4)),
        ((2, 0, 1), 1, (2, 4, 1)),
        ((2, 1, 1), 1, (2, 1, 1)),  # fewer devices than there are
    ],
)
def test_open_axes_follow_from_size_and_devices(sizes, weights, wanted):
    where = sharding.choose(dict(zip(sharding.MESH_AXES, sizes, strict=True)), RULES, [units(CONFIG)], weights, 1000)
    assert where is not None and tuple(where.mesh.shape.values()) == wanted


def test_several_processes_use_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert layout((2, 2, 2)) is not None
    message = "sharding: wanted a mesh of all 8 devices of the 2 processes, got {'data': 2, 'fsdp': 1, 'tensor': 2}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layout((2, 1, 2))


def test_one_device_needs_no_layout():
    assert layout(MESHES[0]) is None
    assert sharding.row_multiple(None, 3) == 1 and sharding.row_multiple(layout((2, 4, 1)), 2) == 4
