"""The stages on two devices end with the weights and answers of one device; that every program does is in `test_sharding`."""

import jax
import numpy as np
from safetensors.numpy import load_file

from ilr_jax.lab import Lab
from ilr_jax.stages import ADAPTERS, answers_of


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
