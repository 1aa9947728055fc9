"""Losses against plain JAX over full logits and against TRL's own code; no vocabulary-sized buffer over all positions."""

import math
import re
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from ilr_jax import batches
from ilr_jax.models import hf, peft
from ilr_jax.models.family import KEYS
from ilr_jax.train import losses, state, steps
from ilr_jax.train.optimizer import OptimizerConfig

N, T, C, D, V = 3, 11, 7, 5, 23


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, table = jax.random.normal(keys[0], (N, T, D)), jax.random.normal(keys[1], (V, D))
    return hidden, table, jax.random.randint(keys[2], (N, C), 0, T), jax.random.randint(keys[3], (N, C), 0, V)


def plain(hidden, table, places, targets):
    log_probs = jax.nn.log_softmax(jnp.einsum("ntd,vd->ntv", hidden, table))
    return jnp.take_along_axis(jnp.take_along_axis(log_probs, places[..., None], 1), targets[..., None], 2)[..., 0]


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.parametrize("train_table", [False, True])
def test_token_log_probs_and_gradients_equal_full_logits(chunk, train_table):
    hidden, table, places, targets = inputs()
    weight = jax.random.normal(jax.random.key(7), (N, C))
    ours = lambda h, w: jnp.sum(weight * jnp.sin(losses.token_log_probs(h, w, places, targets, chunk, train_table)))
    theirs = lambda h, w: jnp.sum(weight * jnp.sin(plain(h, w, places, targets)))
    both = (0, 1) if train_table else 0
    ours, theirs = (jax.jit(jax.value_and_grad(fn, both)) for fn in (ours, theirs))
    np.testing.assert_allclose(losses.token_log_probs(*inputs(), chunk, train_table), plain(*inputs()), rtol=0, atol=3e-6)
    for a, b in zip(*(jax.tree.leaves(fn(hidden, table)) for fn in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_frozen_table_costs_two_products_and_a_trained_one_four():
    hidden, table, places, targets = inputs()

    def products(train_table):
        loss = lambda h, w: losses.token_log_probs(h, w, places, targets, C, train_table).sum()
        text = jax.jit(jax.value_and_grad(loss, (0, 1) if train_table else 0)).lower(hidden, table).as_text()
        return text.count("stablehlo.dot_general")

    assert products(False) == 2
    assert products(True) == 4  # forward, again for the backward pass, d hidden, d table


@pytest.mark.parametrize("target", [-1, -100, V, V + 5])
@pytest.mark.parametrize("train_table", [False, True])
def test_target_outside_the_vocabulary_is_nan(target, train_table):
    hidden, table, places, targets = inputs()
    values = losses.token_log_probs(hidden, table, places, targets.at[1, 2].set(target), 3, train_table)
    assert np.isnan(values[1, 2]) and np.isfinite(np.delete(np.asarray(values).ravel(), C + 2)).all()


def test_class_outside_the_head_is_nan():
    values = losses.class_loss(jnp.ones((4, 2)), jnp.array([0, 1, 2, -1]))
    np.testing.assert_allclose(values[:2], math.log(2), rtol=1e-6)
    assert np.isnan(values[2:]).all()


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_sft_loss_is_the_mean_that_the_normalisation_names(normalize):
    batch = tiny.batch([12, 0, 5, 8], normalize=normalize)
    log_probs = jax.random.normal(jax.random.key(0), batch.targets.shape).at[batch.weights == 0].set(jnp.nan)
    total, units = losses.sft_loss(log_probs, batch, 2)
    used = [[-float(x) for x, w in zip(row, keep, strict=True) if w] for row, keep in zip(log_probs, batch.weights, strict=True)]
    groups = [used[:2], used[2:]]
    for k, group in enumerate(groups):
        means = [np.mean(row) for row in group if row]
        wanted = np.mean(means) if normalize == "sequence" else np.mean([x for row in group for x in row])
        np.testing.assert_allclose(total[k] / units[k], wanted, rtol=1e-6)


def test_unused_targets_reach_neither_loss_nor_gradient():
    batch = tiny.batch([12, 4, 5, 8])  # unused targets are -100
    loss = lambda tree, frozen, b: losses.sft_loss(steps._log_probs(tiny.SETUP, tree, frozen, b), b, 1)[0][0]
    run = jax.jit(jax.value_and_grad(loss))
    clean = batch._replace(targets=np.maximum(batch.targets, 0))
    for a, b in zip(*(jax.tree.leaves(run(tiny.adapters(), tiny.base(), x)) for x in (batch, clean)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["sft", "dpo", "full"])
def test_no_buffer_of_all_positions_by_vocabulary(kind):
    setup = tiny.FULL if kind == "full" else tiny.SETUP
    trainable, frozen = (tiny.full(), {}) if kind == "full" else (tiny.adapters(), tiny.base())
    lengths = [40, 33, 40, 38]
    batch = tiny.pair_batch(lengths, t=64, c=40) if kind == "dpo" else tiny.batch(lengths, t=40, c=20)
    step = (steps.dpo_step if kind == "dpo" else steps.sft_step)(setup, OptimizerConfig())
    first = state.init(trainable, OptimizerConfig(), [9])
    traced = step.trace(first, frozen, batch)
    text = traced.lower().compile().as_text()
    shapes = {v.aval.shape for equation in tiny.equations(traced.jaxpr.jaxpr) for v in equation.outvars}
    shapes |= {tuple(map(int, s.split(","))) for s in re.findall(r"\[(\d+(?:,\d+)+)\]", text)}
    rows, places = 4, batch.places.shape[1]
    with_vocabulary = [s for s in shapes if tiny.VOCAB in s]
    assert (rows, setup.chunk, tiny.VOCAB) in with_vocabulary  # the chunks are seen, so a whole would be too
    assert max(math.prod(s) for s in with_vocabulary) < rows * places * tiny.VOCAB


def test_dpo_starts_at_log_two():
    values = jnp.array([-3.0, -70.0])
    loss, metrics = losses.dpo_loss(values, values - 1, values, values - 1, 0.1)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(metrics["rewards/margins"], 0)


def trl_loss(trl, torch, model, sides, reference, beta, kind="sigmoid", smoothing=0.0):
    """TRL's loss and metrics on our pairs: its `_compute_loss` on a stand-in for the trainer; `reference` [N, 2]."""
    join = lambda name: np.concatenate([getattr(side, name) for side in sides])
    tokens = np.concatenate([side.rows.tokens for side in sides])
    segments = np.concatenate([side.rows.segments for side in sides])
    mask = np.zeros_like(tokens)
    for i, (places, weights) in enumerate(zip(join("places"), join("weights"), strict=True)):
        mask[i, places[weights > 0] + 1] = 1

    def call(input_ids, attention_mask, labels, **_):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        ids = labels[:, 1:]
        picked = torch.log_softmax(logits, -1).gather(-1, ids.clamp(min=0)[..., None])[..., 0] * (ids >= 0)
        zeros = torch.zeros_like(picked)
        return SimpleNamespace(log_probs=picked, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    call.training = True
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer = SimpleNamespace(
        model=call,
        accelerator=same,
        args=SimpleNamespace(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    data = {"input_ids": tokens.astype(np.int64), "attention_mask": segments.astype(np.int64), "completion_mask": mask.astype(np.int64)}
    data |= {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    loss = trl.DPOTrainer._compute_loss(trainer, call, {name: torch.tensor(x) for name, x in data.items()}, False)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    """The tiny base model in `transformers`, made anew at each call."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base") / "model"
    hf.save_model(folder, tiny.CONFIG, tiny.base())
    return lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def dpo_against_trl(setup, trainable, frozen, model, beta=0.3, kind="sigmoid", smoothing=0.0):
    """Our gradients, after the loss and the metrics were compared with TRL's; its gradients are left in `model`.

    TRL's sigmoid has no label smoothing: it is put together of its losses on the pairs as they are and turned round.
    """
    trl, torch, lengths = pytest.importorskip("trl"), pytest.importorskip("torch"), [14, 9, 11, 6]
    made = tiny.preferences(lengths)
    batch, sides = batches.pair_rows([made[:3], made[3:]], 0, 64, 40, 3), tiny.pair_sides(lengths)
    reference = np.array([[p.reference_chosen, p.reference_rejected] for p in made], np.float32)
    loss, metrics = trl_loss(trl, torch, model, sides, reference, beta, kind, smoothing)
    if kind == "sigmoid" and smoothing:
        turned = trl_loss(trl, torch, model, sides[::-1], reference[:, ::-1].copy(), beta)[0]
        loss = (1 - smoothing) * loss + smoothing * turned
    loss.backward()

    def ours(tree):
        sums = steps._pair_sums(setup, tree, frozen, batch, 1, beta, kind, smoothing)
        return sums.pop("loss")[0] / 4, sums

    (value, named), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(trainable)
    assert abs(float(value) - loss.item()) <= 1e-5
    for name, total in named.items():
        np.testing.assert_allclose(total[0] / 4, metrics[name], rtol=0, atol=1e-4, err_msg=name)
    return grads


def assert_same_gradient(found, wanted, name):
    size = np.abs(wanted).max()  # some of these gradients are as small as the tolerance, so that is relative to them as well
    assert size > 1e-5, name
    np.testing.assert_allclose(found, wanted, rtol=0, atol=min(1e-4, 0.01 * size), err_msg=name)


VARIANTS = (("sigmoid", 0.0, 0.3), ("sigmoid", 0.2, 0.3), ("robust", 0.2, 0.3), ("hinge", 0.0, 0.05), ("ipo", 0.0, 0.3), ("ipo", 0.0, 2.0))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kind", "smoothing", "beta"), VARIANTS)
def test_dpo_loss_metrics_and_all_gradients_equal_trl(torch_model, kind, smoothing, beta):
    """Beta 0.05 leaves some pairs inside the hinge."""
    model = torch_model()
    grads = dpo_against_trl(tiny.FULL, tiny.full(), {}, model, beta, kind, smoothing)["params"]
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for path, name in KEYS.items():
        *rooms, leaf = path.split(".")
        found = grads[rooms[0]] if len(rooms) == 1 else grads[rooms[0]][rooms[1]]
        for i in range(tiny.CONFIG.num_layers if "{}" in name else 1):
            mine = found[leaf][0, i] if "{}" in name else found[leaf][0]
            assert_same_gradient(mine.T if leaf == "kernel" else mine, theirs.pop(name.format(i)), name.format(i))
    assert not theirs


@pytest.mark.filterwarnings("default")
def test_dpo_gradients_of_lora_equal_trl_over_peft(torch_model, tmp_path):
    reference = pytest.importorskip("peft")
    tree = tiny.adapters()
    peft.save_adapter(tmp_path / "adapter", tiny.CONFIG, tiny.LORA, tree["adapters"], 0, "base")
    model = reference.PeftModel.from_pretrained(torch_model(), tmp_path / "adapter", is_trainable=True)
    grads, compared = dpo_against_trl(tiny.SETUP, tree, tiny.base(), model)["adapters"], 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            _, _, _, _, layer, _, module, side, *_ = name.split(".")
            assert_same_gradient(grads[module][side[-1].lower()][0, int(layer)].T, weight.grad.numpy(), name)
            compared += 1
    assert compared == 2 * len(tiny.LORA.modules) * tiny.CONFIG.num_layers
