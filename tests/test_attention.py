"""Which attention a run takes, and what is refused before it starts."""

import dataclasses
import types

import jax
import pytest

from configs import base
from ilr_jax.models import config as configs
from ilr_jax.models.platform import described
from ilr_jax.sharding import MESH_AXES, Layout
from ilr_jax.stages import Bench
from ilr_jax.store import Store

SIZES = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
MODEL = configs.from_fields({"model_type": "mistral", "num_attention_heads": 2, "num_key_value_heads": 1} | SIZES)
LAYOUT = Layout(jax.make_mesh((2, 1, 1), MESH_AXES, devices=jax.devices()[:2]), ())


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(Store(tmp_path), base.get_config())


def on_gpu(monkeypatch, capability, platform="cuda 13000"):
    device = types.SimpleNamespace(compute_capability=capability, client=types.SimpleNamespace(platform_version=platform))
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("jax.devices", lambda: [device])


@pytest.mark.parametrize(
    ("capability", "platform", "dtype", "head_dim", "wanted"),
    (
        ("9.0", "cuda 13000", "bfloat16", 128, "cudnn"),
        ("9.0", "cuda 13000", "float32", 128, "gemm"),
        ("9.0", "cuda 13000", "bfloat16", 256, "gemm"),
        ("7.5", "cuda 13000", "bfloat16", 128, "gemm"),
        ("gfx90a", "rocm 70000", "bfloat16", 128, "gemm"),
    ),
)
def test_attention_by_itself_is_cudnn_where_that_can_be(bench, monkeypatch, capability, platform, dtype, head_dim, wanted):
    model = dataclasses.replace(MODEL, head_dim=head_dim)
    assert bench.attention(model) == bench.setup(model).attention == "gemm"  # on a CPU
    on_gpu(monkeypatch, capability, platform)
    bench.config.compute.dtype = dtype
    assert bench.attention(model) == bench.setup(model).attention == wanted
    bench.layouts = {MODEL: LAYOUT}
    assert bench.attention(MODEL) == "gemm"  # several GPUs have to ask for it
    bench.config.compute.attention = "xla"
    assert bench.attention(model) == "xla"


@pytest.mark.parametrize(("head_dim", "wanted"), ((128, "splash"), (256, "splash"), (64, "gemm")))
def test_attention_by_itself_is_splash_on_tpus_where_that_can_be(bench, head_dim, wanted):
    model = dataclasses.replace(MODEL, head_dim=head_dim)
    with described("tpu"):
        assert bench.attention(model) == wanted
        bench.layouts = {MODEL: LAYOUT}
        assert bench.attention(model) == wanted  # several as well


def test_splash_where_it_cannot_be_is_refused_at_once(bench):
    bench.config.compute.attention = "splash"
    model = lambda head_dim: dataclasses.replace(MODEL, head_dim=head_dim)
    with described("tpu"):
        bench.check([model(128), model(256)])
        with pytest.raises(ValueError, match=r"a multiple of 128 wide, got tpu and \[64, 128\]"):
            bench.check([model(64), model(128)])
    with pytest.raises(ValueError, match=r"wanted a TPU and heads .*, got cpu and \[128\]"):
        bench.check([model(128)])


def test_an_amd_gpu_has_no_cudnn(bench, monkeypatch):
    on_gpu(monkeypatch, "gfx90a", "rocm 70000")
    bench.config.compute.attention, bench.config.compute.dtype = "cudnn", "bfloat16"
    with pytest.raises(ValueError, match="wanted an NVIDIA GPU and bfloat16"):
        bench.check([MODEL])


@pytest.mark.parametrize(("capability", "limit"), (("8.0", 128), ("9.0", 256)))
def test_heads_too_wide_for_cudnn_are_refused_at_once(bench, monkeypatch, capability, limit):
    on_gpu(monkeypatch, capability)
    bench.config.compute.attention = "cudnn"
    model = lambda head_dim: dataclasses.replace(MODEL, head_dim=head_dim)
    bench.check([model(8), model(limit)])
    with pytest.raises(ValueError, match=f"wanted heads of at most {limit} .* {capability}, got {limit + 8}"):
        bench.check([model(8), model(limit + 8)])
