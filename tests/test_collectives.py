"""What travels between devices in each compiled program, and what every device holds."""

import re

import jax
import numpy as np
import pytest
from test_sharding import KINDS, LENGTHS, OPTIMIZERS, layout, meshes, tiny_runs

from ilr_jax import evaluator, sharding
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, lora
from ilr_jax.models.lora import Lora
from ilr_jax.sample import beam, rollout, slots
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.requests import prompt_rows
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute, Fill
from ilr_jax.train import state as states
from ilr_jax.train import steps

WIDE = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
WIDE |= {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 3}
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def abstract(where, tree):
    """Shapes in place of weights, split as the layout has it."""
    put = lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    return jax.tree.map(put, tree, sharding.shardings(where, tree))


def lowered(kind, mesh):
    """The program for a model whose matrices all have over 1 MB, lowered for a mesh, and its arguments.

    Two adapters, activations computed again, and their log-probabilities; or all weights of an evaluator, and its scores; or eight steps of
    decoding 24 rows, of merged weights or two adapters beside the base, or 24 prompts with four beams each; or reading the prompts of both.
    """
    config = configs.from_fields(tiny_runs.FIELDS | WIDE)
    where = layout(mesh, config)
    base, classifier = decoder.abstract(config), jax.eval_shape(evaluator.initial, decoder.abstract(config), jax.random.key(0))
    if kind in ("decode", "adapters", "admit", "beam", "prefill"):
        shape, keys = Lora(4, 8.0), jax.random.split(jax.random.key(0), 2)
        beside = jax.eval_shape(lambda: lora.prepare(lora.init(config, shape, keys), shape, "float32"))
        return lowered_decoding(kind, where, config, (abstract(where, base), abstract(where, beside) if kind == "adapters" else None))
    if kind == "scores":
        arguments = abstract(where, classifier), {}, sharding.put_rows(where, tiny_runs.class_batch(LENGTHS))
        return steps.class_probabilities(steps.Setup(config, layout=where)).lower(*arguments), arguments
    make_step, make_batch, _ = KINDS["sft" if kind == "reference" else kind]
    if kind == "evaluator":
        frozen, setup, k, like = {}, steps.Setup(config, layout=where, remat="full"), 1, classifier
    else:
        frozen, setup, k = abstract(where, base), steps.Setup(config, Lora(4, 8.0), layout=where, remat="full"), 2
        like = {"adapters": jax.eval_shape(lambda: lora.init(config, setup.lora, jax.random.split(jax.random.key(0), k)))}
    if kind == "reference":
        arguments = abstract(where, like), frozen, sharding.put_rows(where, make_batch(LENGTHS))
        return steps.sequence_log_probs(setup).lower(*arguments), arguments
    state = abstract(where, jax.eval_shape(lambda tree: states.init(tree, OPTIMIZERS["adamw"], [9] * k), like))
    arguments = state, frozen, sharding.put_rows(where, make_batch(LENGTHS))
    return make_step(setup, OPTIMIZERS["adamw"]).lower(*arguments), arguments


def lowered_decoding(kind, where, config, weights):
    """As `lowered`, of base and adapters."""
    compute, wanted = Compute(config, layout=where), np.ones(1 if weights[1] is None else 2, np.int32)
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where.sharding(*slots.axes(x.ndim)))
    state = lambda blank: jax.tree.map(put, jax.eval_shape(blank))
    fill = Fill(prompt_rows([[0]] * 24, 64, 0), *(np.zeros(24, np.int32) for _ in range(6)))
    headless = lambda arguments: ({name: part for name, part in arguments[0][0].items() if name != "head"}, arguments[1])
    if kind in ("decode", "adapters", "admit"):
        how = SamplingSettings(8, slots=24)
        arguments = weights, state(lambda: rollout.blank(compute, 24, 64, 8))
        if kind == "admit":
            return rollout.admit.lower(compute, *arguments, fill, jax.random.key(0)), headless(arguments)
        return rollout.advance.lower(compute, how.rule, (0,), how.chunk, *arguments, wanted), arguments
    how = BeamSettings(8, prompts=24)
    arguments = weights, state(lambda: beam.blank(compute, how, 24, 64))
    if kind == "beam":
        return beam.advance.lower(compute, how, (0,), *arguments, wanted), arguments
    return beam.admit.lower(compute, *arguments, fill), headless(arguments)


# Of each program: tokens of its rows; all-gathers of kernels in a turn of the loop over layers, and of tables; all-reduces of the rows'
# hidden states, and of gradients of kernels and tables.
# Kernels: each forward and backward; on 2 x 2 x 2 XLA does not see that those computed again, all but the last, are those of the backward
# pass. Decoding has no such loop, but three layers. Tables: embedding and head; the evaluator has no head. Hidden states: after o_proj and
# down_proj, forward, again and backward, the adapters' share apart; and what the embedding gives (of prefill on 1 x 2 x 4, six of the
# prompts' keys and values have their size). Gradients: over data and fsdp one by one.
EXPECTED = {
    "sft": (32 * 14, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (14, 2, 0, 0), (2, 2, 2): (20, 2, 9, 0), (1, 2, 4): (14, 2, 9, 0)}),
    "dpo": (32 * 24, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (14, 2, 0, 0), (2, 2, 2): (20, 2, 9, 0), (1, 2, 4): (14, 2, 9, 0)}),
    "evaluator": (32 * 14, {(8, 1, 1): (0, 0, 0, 8), (1, 8, 1): (14, 1, 0, 8), (2, 2, 2): (20, 1, 9, 15), (1, 2, 4): (14, 1, 9, 8)}),
    "scores": (32 * 14, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (7, 1, 0, 0), (2, 2, 2): (7, 1, 3, 0), (1, 2, 4): (7, 1, 3, 0)}),
    "reference": (32 * 14, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (7, 2, 0, 0), (2, 2, 2): (7, 2, 3, 0), (1, 2, 4): (7, 2, 3, 0)}),
    "admit": (24 * 64, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (7, 1, 0, 0), (2, 2, 2): (7, 1, 3, 0), (1, 2, 4): (7, 1, 9, 0)}),
    "prefill": (24 * 64, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (7, 1, 0, 0), (2, 2, 2): (7, 1, 3, 0), (1, 2, 4): (7, 1, 9, 0)}),
    "beam": (24 * 4, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (21, 2, 0, 0), (2, 2, 2): (21, 2, 7, 0), (1, 2, 4): (21, 2, 7, 0)}),
    "decode": (24, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (21, 2, 0, 0), (2, 2, 2): (21, 2, 7, 0), (1, 2, 4): (21, 2, 7, 0)}),
    "adapters": (24, {(8, 1, 1): (0, 0, 0, 0), (1, 8, 1): (21, 2, 0, 0), (2, 2, 2): (21, 2, 7, 0), (1, 2, 4): (21, 2, 7, 0)}),
}


@meshes
@pytest.mark.parametrize("kind", EXPECTED)
def test_collectives_of_each_program_are_those_expected(kind, mesh):
    """No weight is in larger pieces than its axes make, no stack of kernels travels (adapters' may), no logits do; state is donated.

    Where rows alone are split, no hidden states travel (keys and values of prompts do, to their slots). Prefill makes no logits and does
    not read the head; by chance the keys of its prompts are of their size.
    """
    (program, arguments), (data, fsdp, tensor) = lowered(kind, mesh), mesh
    program = program.compile()
    sizes = [
        (collective, int(np.prod([int(n) for n in shape.split(",") if n])))
        for result, collective in COLLECTIVE.findall(program.as_text())
        for shape in re.findall(r"\[([\d,]*)\]", result)
    ]
    tokens, expected = EXPECTED[kind]
    gathered = [size * tensor for collective, size in sizes if collective == "all-gather"]
    reduced = [size for collective, size in sizes if collective == "all-reduce"]
    hidden = [size for size in reduced if size * data * fsdp == tokens * 512]
    gradients = [size for size in reduced if {size * tensor, size * tensor * fsdp} & {512 * 1024, 8192 * 512}]
    found = sum(size == 512 * 1024 for size in gathered), sum(size == 8192 * 512 for size in gathered), len(hidden), len(gradients)
    assert found == expected[mesh] and max(gathered, default=0) <= 8192 * 512
    assert mesh != (8, 1, 1) or max((size for collective, size in sizes if collective != "all-reduce"), default=0) < tokens * 512
    assert kind in ("prefill", "admit") or not {size * parts for _, size in sizes for parts in (1, 2, 4, 8)} & {tokens * 8192}
    bytes_here = lambda x: int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    leaves = jax.tree.leaves(arguments)
    large = [x for x in leaves if x.size * x.dtype.itemsize > 2**20]  # kernels and tables with their moments, keys and values
    assert all(bytes_here(x) * fsdp * tensor <= x.size * x.dtype.itemsize for x in large) and large
    memory = program.memory_analysis()
    assert memory.argument_size_in_bytes == pytest.approx(sum(map(bytes_here, leaves)), rel=0.01)
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 2000
