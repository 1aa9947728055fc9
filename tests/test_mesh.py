"""The stages on two devices end with the weights and answers of one device, and a training goes on with other devices than it began on;
that every program does the same on each mesh is in `test_sharding`."""

from dataclasses import replace
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
import test_sharding as programs
from safetensors.numpy import load_file

from ilr_jax import roles, sharding
from ilr_jax.lab import Lab
from ilr_jax.stages import ADAPTERS, answers_of
from ilr_jax.train import loop
from ilr_jax.train import state as states


def supervised(config, workdir, fsdp):
    """The trained supervisor's adapter and its labels."""
    config.sharding.fsdp = fsdp
    lab = Lab(config, workdir / str(fsdp))
    labels = answers_of(lab.weak_labels())
    return load_file(f"{lab.weak_supervisor().folder}/{ADAPTERS}"), [(a.example_id, a.text, a.finished) for a in labels]


def test_a_supervisor_on_two_devices_is_that_of_one(tiny_config, tmp_path):
    (alone, wanted), (split, found) = (supervised(tiny_config, tmp_path, n) for n in (1, 2))
    assert found == wanted and alone.keys() == split.keys()
    for name, weights in alone.items():
        np.testing.assert_allclose(split[name], weights, rtol=0, atol=1e-4, err_msg=name)


def test_the_layout_is_the_mesh_that_was_asked_for(tiny_config, tmp_path):
    tiny_config.sharding.update({"data": 0, "fsdp": 2, "tensor": 2})
    lab = Lab(tiny_config, tmp_path)
    assert lab.bench.layout is not None and dict(lab.bench.layout.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    kernel = lab.model("strong").params["layers"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16) and len(jax.devices()) == 8


def test_each_model_is_split_as_far_as_its_own_sizes_allow(tiny_config, tmp_path):
    """Beside a model of one KV head, one of two has these split, its weights and its cache alike."""
    sizes = SimpleNamespace(data=1, fsdp=1, tensor=2, rules=tiny_config.sharding.rules)
    one, two = (replace(Lab(tiny_config, tmp_path).model("strong").config, num_kv_heads=n) for n in (1, 2))
    found = roles.layouts(sizes, {"weak": one, "strong": two}, "float32")
    assert [found[model].pieces("kv_heads") for model in (one, two)] == [1, 2] and found[one].mesh == found[two].mesh
    assert [found[model].pieces("heads") for model in (one, two)] == [2, 2]
    sizes.rules = tiny_config.sharding.rules.copy_and_resolve_references()
    sizes.rules.kv_heads = "tensor"
    with pytest.raises(ValueError, match=r"sharding.rules.kv_heads=tensor: 1 cannot be split into 2 \(tensor\)"):
        roles.layouts(sizes, {"weak": one, "strong": two}, "float32")


@pytest.mark.parametrize("kind", ["sft", "evaluator"])
def test_a_training_goes_on_with_fewer_devices(tmp_path, kind):
    """Saved on eight devices, continued on four, then on one: the batches go on, and so do weights, moments and steps."""
    make_step, make_batch, optimizer = programs.KINDS[kind]
    starts, steps = [], 6

    def train(folder, mesh, stop):
        where = programs.layout(mesh)
        setup = replace(programs.SETUP, layout=where, lora=None if kind == "evaluator" else programs.SETUP.lora)
        tree = programs.trainable(kind)
        state = sharding.put_weights(
            where, states.init(sharding.put_weights(where, tree), programs.OPTIMIZERS[optimizer], [steps] * states.adapters_in(tree))
        )
        frozen = sharding.put_weights(where, {} if kind == "evaluator" else programs.base())

        seen = []

        def at(i):
            if i == stop:
                raise KeyError(i)
            seen.append(i)
            return make_batch(programs.LENGTHS, seed=i)

        put = lambda batch: sharding.put_rows(where, batch)
        step = make_step(setup, programs.OPTIMIZERS[optimizer])
        try:
            return loop.fit(step, state, frozen, at, steps, folder=folder, put=put, save_steps=1).state
        finally:
            starts.append(seen[0])

    for mesh, stop in (((2, 2, 2), 2), ((1, 4, 1), 4)):
        with pytest.raises(KeyError):
            train(tmp_path / "moved", mesh, stop)
    moved = train(tmp_path / "moved", (1, 1, 1), steps)
    assert starts == [0, 2, 4]
    stayed = train(tmp_path / "stayed", (1, 1, 1), steps)
    chex.assert_trees_all_close(jax.device_get(moved), jax.device_get(stayed), rtol=1e-3, atol=1e-4)
