"""Adapter folders without peft: a round trip is exact, and every setting or tensor that cannot be honoured is named."""

import json

import numpy as np
import pytest
import tiny_models as tiny
from safetensors.numpy import load_file, save_file

from ilr_jax.models import config, lora, peft

SETTINGS = config.from_fields(tiny.CONFIGS["gemma"])
SHAPE = lora.Lora(4, 6.0, ("q_proj", "down_proj"))


@pytest.fixture
def saved(tmp_path):
    adapters = tiny.adapters(SETTINGS, SHAPE, 2)
    peft.save_adapter(tmp_path / "adapter", SETTINGS, SHAPE, adapters, 1, "org/base")
    return adapters, tmp_path / "adapter"


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_round_trip_is_exact(saved):
    adapters, folder = saved
    shape, loaded = peft.load_adapter(folder, SETTINGS)
    assert shape == SHAPE
    for name, pair in adapters.items():
        for side, weight in pair.items():
            np.testing.assert_array_equal(loaded[name][side], weight[1:2])


def test_files_are_those_of_peft(saved):
    _, folder = saved
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # whoever may read the settings may read the weights
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (4, 6, "org/base")
    names = load_file(folder / "adapter_model.safetensors")
    assert names["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, SETTINGS.intermediate_size)
    assert len(names) == 2 * 2 * 2


@pytest.mark.parametrize(
    "fields",
    (
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_dropout": 0.1},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"peft_type": "IA3"},
        {"target_modules": ".*q_proj"},
        {"feature_of_next_year": {"on": True}},
        {"r": None},
        {"r": 0},
        {"lora_alpha": "16"},
    ),
)
def test_settings_that_are_not_plain_lora_are_refused_by_name(saved, fields):
    edit(saved[1], **fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        peft.load_adapter(saved[1], SETTINGS)


def test_all_linear_is_every_linear_layer(tmp_path):
    shape = lora.Lora(4, 6.0)
    adapters = tiny.adapters(SETTINGS, shape, 1)
    peft.save_adapter(tmp_path / "adapter", SETTINGS, shape, adapters, 0, "org/base")
    edit(tmp_path / "adapter", target_modules="all-linear")
    found, loaded = peft.load_adapter(tmp_path / "adapter", SETTINGS)
    assert found == shape and loaded.keys() == adapters.keys()


def test_settings_that_are_off_pass(saved):
    edit(saved[1], use_dora=False, rank_pattern={}, modules_to_save=None, lora_dropout=0, init_lora_weights=True, qalora_group_size=16)
    assert peft.load_adapter(saved[1], SETTINGS)[0] == SHAPE


def test_all_problems_of_the_tensors_at_once(saved):
    path = saved[1] / "adapter_model.safetensors"
    prefix, tensors = "base_model.model.model.layers.0.", load_file(path)
    tensors.pop(f"{prefix}self_attn.q_proj.lora_A.weight")
    tensors[f"{prefix}mlp.down_proj.lora_B.weight"] = np.zeros((48, 5), np.float32)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((4, 48), np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        peft.load_adapter(saved[1], SETTINGS)
    for text in (
        "q_proj.lora_A.weight: missing, wanted shape (4, 48)",
        "wanted shape (48, 4), got (48, 5)",
        "lm_head.lora_A.weight: not part",
    ):
        assert text in str(error.value)


def test_rank_decides_the_shape(saved):
    edit(saved[1], r=5)
    with pytest.raises(ValueError, match=r"wanted shape \(5, 48\), got \(4, 48\)"):
        peft.load_adapter(saved[1], SETTINGS)


def test_missing_and_damaged_files(saved, tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        peft.load_adapter(tmp_path, SETTINGS)
    (saved[1] / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing"):
        peft.load_adapter(saved[1], SETTINGS)
    (saved[1] / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="wanted JSON in"):
        peft.load_adapter(saved[1], SETTINGS)


def test_nothing_is_overwritten(saved):
    adapters, folder = saved
    with pytest.raises(ValueError, match="exists already"):
        peft.save_adapter(folder, SETTINGS, SHAPE, adapters, 0, "org/base")
