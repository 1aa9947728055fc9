"""The programs that a plan is made of: how often they run, what stays in memory beside them, and that depth costs no compile time."""

from dataclasses import replace

import jax
import pytest

from ilr_jax import main, roles
from ilr_jax.models import config as model_config
from ilr_jax.plan.programs import Load, Planned
from ilr_jax.sample import rollout
from ilr_jax.sample.generate import merges
from ilr_jax.stages import Bench
from ilr_jax.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a config's file


def test_each_fold_model_trains_on_all_other_folds():
    config, _ = main.config_of(
        ["--config=configs/quickstart.py", "--workdir=plan", "--config.folds=5", "--config.rounds=1", "--config.method=ilr"]
    )
    models = {role: roles.config_of(config[role].model) for role in ("weak", "evaluator", "strong")}
    found = {p.stage: p.times for p in Planned(Bench(Store("plan"), config), models, Load(800, 400, 64, 32, 96), jax.devices()).programs()}
    assert (
        found["5 fold models"] == 20 * config.strong.epochs and found["SFT"] == 2 * 25 * config.strong.epochs
    )  # batches of 16 of 320, of 400


def test_what_is_compiled_to_train_and_to_score_does_not_grow_with_depth(tiny_models, tmp_path):
    """Of models of 16 and 80 layers, as the compiler gets them; what prefills and decodes has a cache for each layer, and does grow."""
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan"])
    config.sharding.update({"data": 2, "fsdp": 2, "tensor": 2})
    sizes = []
    for depth in (16, 80):
        strong, weak = (replace(model_config.read(tiny_models[name]), num_layers=depth) for name in ("mistral", "gemma"))
        models, bench = {"weak": weak, "evaluator": weak, "strong": strong}, Bench(Store(tmp_path), config)
        bench.layouts = roles.layouts(config.sharding, models, bench.dtype)
        programs = Planned(bench, models, Load(80, 40, 32, 16, 48), jax.devices()).programs()
        flat = [p for p in programs if p.trains or p.stage in ("comparisons", "DPO's reference")]
        sizes.append({program.stage: program.lower().as_text().count("\n") for program in flat})
    assert sizes[0] == sizes[1] and len(sizes[0]) == 7


def test_the_evaluator_trains_with_memory_settings_of_its_own(tiny_models, tmp_path):
    """And without any, with those of what trains adapters."""
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan"])
    model = model_config.read(tiny_models["gemma"])
    setups = lambda bench: [(setup.remat, setup.microbatches) for setup in (bench.setup(model, bench.lora), bench.setup(model))]
    config.compute.update({"remat": "dots", "microbatches": 4})
    bench = Bench(Store(tmp_path), config)
    assert setups(bench) == [("dots", 4), ("dots", 4)]
    config.compute.evaluator.update({"remat": "full", "microbatches": 3})
    assert setups(bench) == [("dots", 4), ("full", 3)]
    assert [bench.packing(bench.setup(model, *given)).multiple for given in ([bench.lora], [])] == [4, 3]
    models = dict.fromkeys(("weak", "evaluator", "strong"), model)
    programs = {p.stage: p for p in Planned(bench, models, Load(80, 40, 32, 16, 48), jax.devices()).programs()}
    assert programs["evaluator"].field == "compute.evaluator.microbatches" and programs["SFT"].field == "compute.microbatches"
    rows = [programs[name].given()[2].rows.tokens.shape[0] for name in ("SFT", "evaluator")]
    assert rows[0] % 4 == 0 and rows[1] % 3 == 0


def test_a_base_stays_beside_its_merged_copy_and_where_there_is_no_room_for_both_adapters_do():
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan"])
    models = {role: roles.config_of(config[role].model) for role in ("weak", "evaluator", "strong")}
    sizes = {role: roles.size(model) * 4.0 for role, model in models.items()}  # bytes in float32
    planned = lambda memory: Planned(Bench(Store("plan"), config), models, Load(800, 400, 64, 32, 96), jax.devices(), memory)
    beside = lambda memory: {p.stage: p.beside for p in planned(memory).programs()}
    roomy, tight = beside(4 * sizes["strong"]), beside(4 * sizes["strong"] - 1)
    assert (
        roomy["test, beam"] == sizes["strong"]
        and roomy[f"weak labels, {config.decoding.labels}"] == sizes["weak"]
        and tight["test, beam"] == 0
    )
    assert roomy["comparisons"] == tight["comparisons"] == sizes["strong"] and roomy["proposals, beam"] == 0
    arguments = lambda memory: len(jax.tree.leaves(planned(memory)._decoder("strong", 1, planned(memory).bench.beam())))
    assert arguments(4 * sizes["strong"] - 1) == arguments(4 * sizes["strong"]) + 2 * len(planned(0.0).bench.lora.modules)


def test_only_what_the_experiment_runs_is_planned():
    flags = ["--config.method=ilr", "--config.demos=given", "--config.feedback=judge", "--config.judge.kind=model"]
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan", *flags, "--config.judge.model=embedded:mistral"])
    models = {role: roles.config_of(config[role].model) for role in roles.needed(config, graded=True)}
    found = list(Planned(Bench(Store("plan"), config), models, Load(800, 400, 64, 32, 96), jax.devices()).programs())
    after = ["the judge's comparisons", "test, beam"]
    assert [p.stage for p in found] == ["SFT", "2 fold models", "prefill of proposals", "proposals, beam", *after]
    (judge,) = (p for p in found if p.stage == after[0])
    assert judge.times == -(-2 * 400 * config.rounds // config.compute.score_batch) and judge.lower().as_text().count("\n") > 100


def test_sampled_proposals_are_planned_as_they_are_drawn():
    """A prompt is read once for its samples, by sampling's own programs, with the config's temperature and top-p."""
    flags = ["--config.decoding.proposals=sample", "--config.refine.samples=4", "--config.decoding.top_p=0.9", "--config.method=ilr"]
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan", *flags])
    models = {role: roles.config_of(config[role].model) for role in roles.needed(config, graded=True)}
    found = {p.stage: p for p in Planned(Bench(Store("plan"), config), models, Load(800, 400, 64, 32, 96), jax.devices()).programs()}
    prefill, proposals = found["prefill of proposals"], found["proposals, sample"]
    assert prefill.function is rollout.admit and proposals.function is rollout.advance
    assert proposals.given()[1] == (config.decoding.temperature, None, 0.9)
    rows, slots = prefill.tokens // 64, config.compute.slots
    assert rows == max(slots // 2 // 4 // 8, 1) * 2 and prefill.times == -(-400 * config.rounds // rows)
    assert "admit" in prefill.lower().as_text()


def test_several_adapters_are_merged_where_decoding_them_does():
    config, _ = main.config_of(["--config=configs/quickstart.py", "--workdir=plan"])
    models = {role: roles.config_of(config[role].model) for role in roles.needed(config, graded=True)}
    made = Planned(Bench(Store("plan"), config), models, Load(800, 400, 64, 32, 96), jax.devices())
    how = made.bench.beam()
    (kernels, beside), merged = made._decoder("strong", 2, how), merges(models["strong"], made.bench.lora, 2, how, None)
    assert merged == (beside is None) == (kernels["layers"]["q_proj"]["kernel"].shape[1] == 2)
    assert made._decoder("strong", 2, replace(how, prompts=10**6))[1] is None  # many rows: adapters beside cost more than copies
