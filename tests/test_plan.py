"""The plan: compiled programs are read as often as their loops run, against arithmetic by hand; what does not fit says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ilr_jax import evaluator, main, roles
from ilr_jax.models import decoder, lora
from ilr_jax.models.lora import Lora
from ilr_jax.models.platform import platform
from ilr_jax.plan import __main__ as plan
from ilr_jax.plan import chips, figures, hlo

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a config's file
FLAGS = ["--config=configs/quickstart.py", "--prompt=64", "--answer=32", "--length=96"]


def program(layers: int, devices: int = 4) -> str:
    """A scan over layers, whose weights are split and gathered in every turn."""
    mesh = Mesh(jax.devices()[:devices], "x")
    split = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    weights = jax.ShapeDtypeStruct((layers, 256, 256), jnp.float32, sharding=split(None, "x"))
    rows = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=split("x"))

    def body(x, w):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, split())), None

    return jax.jit(lambda x, w: jax.lax.scan(body, x, w)[0]).lower(rows, weights).compile().as_text()


@pytest.mark.parametrize("layers", [3, 12])
def test_a_loop_counts_as_often_as_it_runs(layers):
    cost = hlo.read(program(layers))
    assert cost.collectives == {"all-gather": layers * 256 * 256 * 4}
    read = layers * (256 * 256 * 4 / 4)  # of the weights each device has a quarter: read once at least, and not once per layer each
    assert read < cost.moved < 20 * layers * 256 * 256 * 4


TEXT = """HloModule jit_f
%part (p: bf16[8,64]) -> bf16[64,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  ROOT %ag.1 = bf16[64,64]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
%inner (i: f32[9,16,16]) -> f32[1,16,16] {
  %i = f32[9,16,16]{2,1,0} parameter(0)
  %z = s32[] constant(0)
  ROOT %ds = f32[1,16,16]{2,1,0} dynamic-slice(%i, %z), dynamic_slice_sizes={1,16,16}
}
%save (a: f32[9,16,16], b: f32[9,16,16]) -> f32[9,16,16] {
  %a = f32[9,16,16]{2,1,0} parameter(0)
  %b = f32[9,16,16]{2,1,0} parameter(1)
  %c = f32[1,16,16]{2,1,0} fusion(%b), kind=kLoop, calls=%inner
  %z.1 = s32[] constant(0)
  ROOT %dus = f32[9,16,16]{2,1,0} dynamic-update-slice(%a, %c, %z.1)
}
%body (b: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %x = bf16[8,64]{1,0} get-tuple-element(%b), index=1
  %k = f32[9,16,16]{2,1,0} get-tuple-element(%b), index=2
  %f.1 = bf16[64,64]{1,0} fusion(%x), kind=kCustom, calls=%part, backend_config={"estimated_cycles":"100"}
  %f.2 = bf16[64,64]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%part, backend_config={"estimated_cycles":"20"}
  %f.3 = f32[9,16,16]{2,1,0} fusion(%k, %k), kind=kLoop, calls=%save
  %e = bf16[8,64]{1,0:T(8,128)S(1)} exponential(%x)
  %cs = (bf16[8,64]{1,0:T(8,128)S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %s = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, u32[]) all-gather-start(%x), channel_id=9
  %d = bf16[64,64]{1,0} all-gather-done(%s)
  %ar = (f32[16]{0}, f32[32]{0}) all-reduce(%x, %x), channel_id=10
  %rs = bf16[1,64]{1,0} reduce-scatter(%x), channel_id=11
  ROOT %t = (s32[], bf16[8,64]{1,0}) tuple(%x, %x)
}
%condition (c: (s32[], bf16[8,64])) -> pred[] {
  %most = s32[] constant(2147483647)
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%n, %n), direction=LT
}
ENTRY %main (a: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %a = (s32[], bf16[8,64]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[8,64]{1,0}) while(%a), condition=%condition, body=%body
}
"""


def test_what_the_tpu_compiler_writes_is_read():
    """All five times: a collective in two parts counts once, of stacks only what is sliced or updated, and on-chip memory is not HBM."""
    cost = hlo.read(TEXT)
    whole, piece, layer = 64 * 64 * 2, 8 * 64 * 2, 16 * 16 * 4
    assert cost.cycles == 5 * 120
    assert cost.collectives == {"all-gather": 5 * 2 * whole, "all-reduce": 5 * 48 * 4, "reduce-scatter": 5 * piece}
    assert cost.moved == 5 * (2 * layer + piece + piece)  # f.3, e, cs


def test_what_a_kernel_multiplies_is_counted():
    """In blocks of 512 places, of which the gradient of queries comes in a part for each."""
    shape = "(f32[{3}512,128]{{2,1,0}}, bf16[{3}{1},{2},128]{{3,2,1,0}})"
    kernel = "  %splash_mha_{0}.1 = " + shape + ' custom-call(%x), custom_call_target="tpu_custom_call"'
    cases = (("fwd", "32", 512, 2 * 32), ("fwd", "1", 512, 2), ("dkv", "1,32", 512, 5 * 32), ("dkv", "4,32", 2048, 5 * 32))
    for rows, (name, heads, length, products) in ((rows, case) for rows in (4, 1) for case in cases):
        line = kernel.format(f"{name}_segmented", heads, length, "4," if rows == 4 else "")
        cost = hlo.read(TEXT.replace("  %e = ", line + "\n  %e = "))
        assert cost.kernels == 5 * products * 2 * rows * length**2 * 128 and cost.cycles == hlo.read(TEXT).cycles
    v5p = chips.TPUS["v5p"]
    assert figures.expected(v5p, hlo.Cost(kernels=v5p.peak), 0.0, 0.0) == 1 / figures.KERNEL_RATE


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="wanted a loop whose condition holds a number"):
        hlo.read(TEXT.replace("%n = s32[] constant(5)", "%n = s32[] parameter(0)"))


def test_time_is_cycles_and_what_is_sent_and_on_a_gpu_nothing_beats_the_peak():
    v5e = chips.TPUS["v5e"]
    assert v5e.clock == pytest.approx(1.5e9, rel=0.01) and chips.TPUS["v6e"].clock == pytest.approx(1.75e9, rel=0.01)
    assert figures.expected(v5e, hlo.Cost(cycles=v5e.clock), v5e.link, v5e.peak / 2) == 2.0
    assert figures.expected(v5e, hlo.Cost(cycles=v5e.clock), v5e.link, 3 * v5e.peak) == 4.0  # not less than the products at peak
    assert figures.expected(chips.H100, hlo.Cost(), 0.0, 2 * chips.H100.peak) == 2.0
    assert figures.expected(None, hlo.Cost(), 0.0, 0.0) is None


def planned(tmp_path, *flags):
    """What a user is shown, and the file: in a process of its own, because the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-m", "ilr_jax.plan", *FLAGS, f"--json={tmp_path / 'plan.json'}", *flags]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "COLUMNS": "150", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "plan.json").read_text())


def test_every_program_of_an_experiment_is_planned_for_emulated_devices(tmp_path):
    said, found = planned(tmp_path, "--topology=h100:2x2")
    rows = {row["program"]: row for row in found["programs"]}
    assert list(rows)[:3] == ["weak SFT", "weak labels, sample", "evaluator's answers"] and list(rows)[-1] == "DPO" and len(rows) == 13
    sft, folds = rows["SFT"], rows["2 fold models"]
    assert (
        sft["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
        and folds["flops"] == 2 * sft["flops"]
        and "4 x h100" in said
        and "at least" in said
    )
    assert all(row["seconds"] > 0 and row["memory"] > row["arguments"] > 0 and not row["advice"] for row in rows.values())
    assert sft["tokens"] == folds["tokens"] / 2 > 0 and all(row["output"] >= 0 for row in rows.values()) and "Mtokens" in said
    assert found["chip_hours"] == pytest.approx(sum(row["hours"] for row in rows.values()) * 4)
    _check_what_travels_and_what_is_donated(rows)


def _check_what_travels_and_what_is_donated(rows):
    """On `data` alone: gradients of what trains, once a microbatch; nothing where nothing trains; and no state is held twice."""
    config, _ = main.config_of([FLAGS[0], "--workdir=plan"])
    models = {role: roles.config_of(config[role].model) for role in ("strong", "evaluator")}
    adapters = jax.eval_shape(lambda: lora.init(models["strong"], Lora(config.lora.rank, 1.0), jax.random.split(jax.random.key(0), 1)))
    classifier = jax.eval_shape(evaluator.initial, decoder.abstract(models["evaluator"]), jax.random.key(0))
    for name, tree in {"SFT": adapters, "DPO": adapters, "evaluator": classifier}.items():
        gradients = config.compute.microbatches * 4 * sum(x.size for x in jax.tree.leaves(tree))
        others = sum(size for kind, size in rows[name]["collectives"].items() if kind != "all-reduce")
        assert rows[name]["collectives"]["all-reduce"] == pytest.approx(gradients, rel=0.01) and others < 0.01 * gradients, name
    assert rows["comparisons"]["sent"] == rows["DPO's reference"]["sent"] == 0
    assert all(row["output"] < 0.01 * row["arguments"] for row in rows.values())


@pytest.mark.tpu
def test_programs_are_planned_for_tpus_by_their_own_compiler(tmp_path):
    pytest.importorskip("libtpu")
    said, found = planned(tmp_path, "--topology=v5e:2x2", "--only=weak SFT", "--only=weak labels")
    assert "4 x v5e" in said and [row["program"] for row in found["programs"]] == ["weak SFT", "weak labels, sample"]
    assert all(0 < row["seconds"] < 1 and 0 < row["memory"] < 2**30 and not row["advice"] for row in found["programs"])


@pytest.mark.tpu
@pytest.mark.parametrize(
    "name, shape, peak, rate", [("v5e", (2, 2), 0.88, 0.32), ("v5p", (2, 2, 1), 0.90, 0.24), ("v6e", (2, 2), 0.70, 0.24)]
)
def test_the_tpu_compilers_estimates_of_a_product_and_of_a_sum_are_known_shares_of_their_roofs(name, shape, peak, rate, monkeypatch):
    """The rule on a known case."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chip = chips.TPUS[name]
    where = jax.sharding.SingleDeviceSharding(plan._devices(chip, shape)[0])
    a = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=where)
    product, total = (figures.expected(chip, hlo.read(jax.jit(f).lower(a, a).compile().as_text()), 0.0, 0.0) for f in (jnp.matmul, jnp.add))
    assert 2 * 8192**3 / chip.peak / product == pytest.approx(peak, abs=0.03)
    assert 3 * 8192**2 * 2 / chip.bandwidth / total == pytest.approx(rate, abs=0.03)  # it is dark about what is bound by memory


class Named:
    field = "compute.slots"


@pytest.mark.parametrize("topology, kind", [("v5e:1x1", "tpu"), ("cpu:1", "cpu")])
def test_programs_are_traced_for_the_devices_that_are_described(topology, kind, monkeypatch, capsys):
    def row(program, *_):
        raise ValueError(f"{program.stage} for a {platform()}")

    monkeypatch.setattr(plan, "_prepare", lambda *_: None)
    monkeypatch.setattr(plan, "_devices", lambda *_: jax.devices()[:1])
    monkeypatch.setattr(figures, "row", row)
    assert plan.run([*FLAGS, f"--topology={topology}"]) == 2
    assert capsys.readouterr().err.endswith(f"error: weak SFT for a {kind}\n") and platform() == "cpu"


def test_gpus_of_this_machine_are_asked_what_they_are(monkeypatch, capsys):
    """CPU devices stand for them."""
    monkeypatch.setattr(plan, "_prepare", lambda *_: None)
    assert plan.run([*FLAGS, "--topology=gpu:1"]) == 2
    assert "wanted 1 gpu devices, got 0" in capsys.readouterr().err
    monkeypatch.setattr(plan, "_gpus", lambda: jax.devices("cpu"))
    assert plan.run([*FLAGS, "--topology=gpu:1", "--only=weak SFT"]) == 0
    said = capsys.readouterr().out
    assert "1 x gpu, one device" in said and "chip-hours" not in said  # of a device that tells nothing, nothing is known
    card = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", memory_stats=lambda: {"bytes_limit": 7})
    assert plan._seen(card) == chips.H100._replace(memory=7)
    other = SimpleNamespace(device_kind="NVIDIA L4", memory_stats=lambda: {"bytes_limit": 7})
    assert figures.expected(plan._seen(other), hlo.Cost(), 0.0, 1e12) is None


def test_what_does_not_fit_says_what_to_change():
    row = {"has": 100.0 * 2**30, "memory": 50 * 2**30, "arguments": 10}
    assert figures.advice(row, Named) == "" and figures.advice(row | {"has": None}, Named) == ""
    over = row | {"memory": 101 * 2**30}
    assert figures.advice(over, Named) == "needs 1.0 GiB more than a device has; its activations or cache take most: lower compute.slots"
    assert "raise sharding.fsdp" in figures.advice(over | {"arguments": 90 * 2**30}, Named)
    training = SimpleNamespace(field="compute.evaluator.microbatches")
    assert figures.advice(over, training).endswith("raise compute.evaluator.microbatches, or set compute.evaluator.remat=full if it is not")


@pytest.mark.parametrize("topology, code", [("cpu:8", 1), ("h100:8", 0)])
def test_what_the_cpus_compiler_says_of_a_card_is_no_verdict(topology, code, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_prepare", lambda *_: None)
    monkeypatch.setattr(figures, "advice", lambda *_: "needs more")
    assert plan.run([*FLAGS, f"--topology={topology}", "--only=weak SFT"]) == code
    said = capsys.readouterr().out
    assert ("weak SFT: needs more" in said) == bool(code) != ("weak SFT: by the CPU's compiler" in said)


BAD = {
    "--answer=0": "--answer: wanted at least 1, got 0",
    "--prompt=90": "--length: wanted at least the 122 tokens of a sample, got 96",
    "--config.compute.attention=cudnn": "compute.attention='cudnn': wanted another",
    "--only=nothing": "--only=nothing: wanted a part of a program's name: weak SFT, weak labels",
    "--json=nowhere/plan.json": "--json=nowhere/plan.json: wanted a file in a folder that is there",
    "--config.compute.remat=some": "compute.remat: wanted one of none, dots, full; got 'some'",
    "--config.compute.microbatches=0": "compute.microbatches: wanted at least 1; got 0",
    "--config.method=foo": "method: wanted some of sft, ilr",
}


@pytest.mark.parametrize("flag", BAD)
def test_flags_that_cannot_be_are_one_message(flag, capsys, monkeypatch):
    monkeypatch.setattr(plan, "_prepare", lambda *_: None)
    assert plan.run([*FLAGS, "--topology=cpu:8", flag]) == 2
    assert BAD[flag] in capsys.readouterr().err


class Refused:
    """libtpu's words; the compiler itself is not asked here."""

    stage, times, tokens, flops, field, beside, trains = "SFT", 1, 1, 1.0, "compute.microbatches", 2**30, True
    arguments = lambda self: 12 * 2**30

    def lower(self):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.50G of 15.75G hbm. Exceeded hbm capacity")


def test_a_program_that_the_tpu_compiler_refuses_is_a_row_with_what_it_wants():
    row = figures.row(Refused(), figures.Asked([], chips.TPUS["v5e"], None, 1))
    assert row["memory"] == 30.5 * 2**30 and "needs 14.8 GiB more" in row["advice"] and row["hours"] is None
    assert "raise sharding.fsdp" in row["advice"] and row["arguments"] == 12 * 2**30


def test_hours_without_those_of_a_refused_program_are_a_bound_from_below(monkeypatch, capsys):
    refused = figures.row(Refused(), figures.Asked([], chips.TPUS["v5e"], None, 1))
    monkeypatch.setattr(plan, "_prepare", lambda *_: None)
    monkeypatch.setattr(plan, "_devices", lambda *_: jax.devices()[:1])
    fits, found = refused | {"hours": 2.0, "advice": ""}, {"weak SFT": refused}
    monkeypatch.setattr(figures, "row", lambda program, *_: found.get(program.stage, fits))
    assert plan.run([*FLAGS, "--topology=v5e:1x1", "--only=SFT"]) == 1
    assert "at least 2.0 hours, 2.0 chip-hours on v5e:1x1" in capsys.readouterr().out
    found.clear()
    assert plan.run([*FLAGS, "--topology=v5e:1x1", "--only=SFT"]) == 0
    assert "\n4.0 hours, 4.0 chip-hours on v5e:1x1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v9:2x2", "v4:2x2x1", "cpu:0", "cpu:\u00b2", "v5e:2xq", "v5p:2x-2"])
def test_a_topology_that_is_none_is_one_message(text, capsys):
    assert plan.run([*FLAGS, f"--topology={text}"]) == 2
    assert f"--topology={text}: wanted v5e, v5p or v6e and the shape of the slice" in capsys.readouterr().err
