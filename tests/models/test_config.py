"""Every field of the published config.json files lands where it belongs; what cannot be honoured is refused by name."""

import dataclasses
import json

import pytest
import tiny_models as tiny
from published import GEMMA_2B, LLAMA_3_8B, MISTRAL_7B, PUBLISHED

from ilr_jax.models import config

SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    fields, wanted = PUBLISHED[name]
    assert config.from_fields(fields) == wanted


def test_rope_of_llama_3_1_in_the_fields_of_transformers_4_and_5():
    old = config.from_fields(LLAMA_3_8B | {"rope_scaling": SCALING})
    assert old.rope_scaling == config.RopeScaling(8.0, 1.0, 4.0, 8192) and old.rope_theta == 5e5
    new = {key: value for key, value in LLAMA_3_8B.items() if not key.startswith("rope")}
    assert config.from_fields(new | {"rope_parameters": SCALING | {"rope_theta": 500000.0}}) == old
    plain = config.from_fields(new | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    assert plain.rope_scaling is None and plain.rope_theta == 77.0


def test_silence_means_what_transformers_takes():
    bare = {key: value for key, value in tiny.BASE.items() if not key.endswith("_token_id")} | {"num_key_value_heads": 2}
    mistral, gemma, llama = (config.from_fields(bare | {"model_type": name}) for name in ("mistral", "gemma", "llama"))
    assert (mistral.window, gemma.head_dim, llama.head_dim) == (4096, 256, 12)
    assert gemma.tied and not mistral.tied and not llama.tied
    assert {x.rope_theta for x in (mistral, gemma, llama)} == {1e4} and {x.norm_eps for x in (mistral, gemma, llama)} == {1e-6}
    assert config.from_fields(bare | {"model_type": "mistral", "sliding_window": None}).window is None
    assert config.from_fields({**bare, "model_type": "llama", "num_key_value_heads": None}).num_kv_heads == 4


def test_several_ends():
    assert config.from_fields(LLAMA_3_8B | {"eos_token_id": [128001, 128009]}).eos_token_ids == (128001, 128009)
    assert config.from_fields(LLAMA_3_8B | {"eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("fields", "named"),
    (
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0: unknown field"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3"),
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"model_type": ["llama"]}, "model_type ['llama']"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu': not part of the llama family"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None: wanted a finite number > 0"),
        ({"vocab_size": "128256"}, "vocab_size='128256': wanted an integer >= 1"),
        ({"vocab_size": 128256.0}, "vocab_size=128256.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta=-1.0"),
        ({"rope_parameters": [1]}, "rope_parameters=[1]: wanted an object or null"),
        ({"rope_scaling": SCALING | {"factor": "8"}}, "rope_scaling.factor='8'"),
        ({"rope_scaling": SCALING | {"high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor=1.0"),
        ({"head_dim": 127}, "head_dim=127: wanted an even number"),
        ({"hidden_size": 4000, "num_attention_heads": 32 * 3, "num_key_value_heads": 8}, "hidden_size=4000"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no'"),
        ({"hidden_act": ["silu"]}, "hidden_act=['silu']"),
        ({"attention_bias": []}, "attention_bias=[]"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id=[1, '2']"),
        ({"eos_token_id": [1, 128256]}, "eos_token_id=[1, 128256]: wanted less than vocab_size"),
        ({"pad_token_id": -1}, "pad_token_id=-1: wanted a token id or null"),
    ),
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, named):
    with pytest.raises(ValueError) as error:
        config.from_fields(LLAMA_3_8B | fields, "here/config.json")
    assert named in str(error.value) and "here/config.json" in str(error.value)


@pytest.mark.parametrize("window", [0, -4096, 4096.0])
def test_a_window_without_width_is_refused(window):
    with pytest.raises(ValueError, match=f"sliding_window={window}: wanted an integer >= 1 or null"):
        config.from_fields(MISTRAL_7B | {"sliding_window": window})


def test_hidden_activation_overrules_hidden_act_in_gemma_only():
    assert config.from_fields(GEMMA_2B | {"hidden_act": "relu", "hidden_activation": "gelu_pytorch_tanh"}).activation == "gelu_tanh"
    with pytest.raises(ValueError, match="hidden_activation='relu': gemma models use"):
        config.from_fields(GEMMA_2B | {"hidden_activation": "relu"})
    assert config.from_fields(LLAMA_3_8B | {"hidden_activation": None}).activation == "silu"


def test_problems_between_fields_come_together():
    with pytest.raises(ValueError, match=r"(?s)rope_theta=0.*num_key_value_heads=3.*head_dim=5"):
        config.from_fields(LLAMA_3_8B | {"num_key_value_heads": 3, "head_dim": 5, "rope_parameters": {"rope_theta": 0}})


def test_all_problems_at_once():
    fields = {key: value for key, value in LLAMA_3_8B.items() if key != "hidden_size"} | {"mlp_bias": True, "new_thing": 3}
    with pytest.raises(ValueError, match=r"(?s)new_thing=3.*mlp_bias=True.*hidden_size: missing"):
        config.from_fields(fields)


def test_config_is_static():
    """Equal configs are one key of jit's cache."""
    one, two = (config.from_fields(json.loads(json.dumps(LLAMA_3_8B))) for _ in range(2))
    assert hash(one) == hash(two)
    assert {one: 1}[two] == 1 and dataclasses.replace(one, rope_theta=1.0) != one
