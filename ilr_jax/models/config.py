"""What a model is, read from the `config.json` of its Hugging Face folder and from nowhere else.

Every field of the file is honoured, known to have no effect on the computation, or refused by name; where the file is silent the
family's own table says what `transformers` takes (5.24: `GemmaConfig`, `MistralConfig`, `LlamaConfig`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilr_jax.models import gemma, llama, mistral
from ilr_jax.models.tensors import read_json

FAMILIES = {family.name: family for family in (gemma.FAMILY, mistral.FAMILY, llama.FAMILY)}

# Bookkeeping of the file format or of other programs: no effect on the function that the model computes.
IGNORED = frozenset(
    {"architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "model_type", "id2label", "label2id"}
    | {"num_labels", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder"}
    | {"chunk_size_feed_forward", "initializer_range", "is_llama_config"}
)
# Fields whose only honoured value is "off"; the tuple holds what counts as off.
OFF = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, None),
    "pretraining_tp": (1, None),
    "use_bidirectional_attention": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "layer_types": (None,),
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "context",
}
OTHER = frozenset(
    {"num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "rms_norm_eps", "rope_theta", "rope_scaling"}
    | {"rope_parameters", "sliding_window", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
)


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency scaling: wavelengths over `original / low` are stretched by `factor`, those under `original / high` stay."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one decoder; hashable, so that it can be a static argument of a jitted function."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    activation: str
    norm_eps: float
    norm_offset: float
    embed_scale: bool
    rope_theta: float
    rope_scaling: RopeScaling | None
    window: int | None
    tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


def _refuse(fields: Mapping[str, Any], where: str) -> None:
    known = IGNORED | OFF.keys() | SIZES.keys() | OTHER
    problems = [f"{key}={fields[key]!r}: unknown field" for key in sorted(fields.keys() - known)]
    for key, off in OFF.items():
        if key in fields and fields[key] not in off:
            problems.append(f"{key}={fields[key]!r}: only {off[0]!r} is supported")
    problems += [f"{key}: missing" for key in sorted(SIZES.keys() - fields.keys())]
    if problems:
        raise ValueError(f"{where} describes a model that cannot be computed faithfully:\n  " + "\n  ".join(problems))


def _rope(fields: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from the fields of `transformers` 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    rope = dict(fields.get("rope_scaling") or {}) | dict(fields.get("rope_parameters") or {})
    theta = float(rope.pop("rope_theta", None) or fields["rope_theta"])
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if kind == "default" and not rope:
        return theta, None
    names = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or set(rope) != names:
        raise ValueError(
            f"{where}: RoPE of type {kind!r} with {sorted(rope)} is not supported; supported: 'default', 'llama3' with {sorted(names)}"
        )
    numbers = (rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"])
    return theta, RopeScaling(*map(float, numbers), original=int(rope["original_max_position_embeddings"]))


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (int(value),)


def from_fields(fields: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The model that the fields of a `config.json` describe; `where` names the file in errors.

    Raises ValueError that lists every unknown, missing or unsupported field.
    """
    name = fields.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"{where}: model_type {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    fields = dict(family.defaults) | {
        key: value for key, value in fields.items() if not (value is None and key in family.null_means_default)
    }
    _refuse(fields, where)
    sizes = {ours: int(fields[theirs]) for theirs, ours in SIZES.items()}
    theta, scaling = _rope(fields, where)
    activation = family.activations.get(fields.get("hidden_activation") or fields["hidden_act"])
    if activation is None:
        raise ValueError(
            f"{where}: hidden_act {fields['hidden_act']!r} is not one of {sorted(family.activations)}, which {name} models use"
        )
    if fields.get("sliding_window") is not None and not family.windowed:
        raise ValueError(f"{where}: sliding_window={fields['sliding_window']!r} is not part of the {name} family; only null is supported")
    kv_heads = int(fields.get("num_key_value_heads") or sizes["num_heads"])
    if sizes["num_heads"] % kv_heads:
        raise ValueError(f"{where}: num_attention_heads={sizes['num_heads']} is not a multiple of num_key_value_heads={kv_heads}")
    return ModelConfig(
        family=name,
        num_kv_heads=kv_heads,
        head_dim=int(fields.get("head_dim") or sizes["hidden_size"] // sizes["num_heads"]),
        activation=activation,
        norm_eps=float(fields["rms_norm_eps"]),
        norm_offset=family.norm_offset,
        embed_scale=family.embed_scale,
        rope_theta=theta,
        rope_scaling=scaling,
        window=fields.get("sliding_window"),
        tied=bool(fields["tie_word_embeddings"]),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=_ids(fields.get("eos_token_id")),
        pad_token_id=fields.get("pad_token_id"),
        **sizes,
    )


def read(folder: str | Path) -> ModelConfig:
    """The config of a local Hugging Face model folder; ValueError where the file is missing, is not JSON or is not supported."""
    path = Path(folder) / "config.json"
    return from_fields(read_json(path), str(path))
